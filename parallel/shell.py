"""
`python -m parallel map MODULE:FUNCTION`: a function over the items of a pipe or a file, from the shell.

    arguments ──▶ the function, its journal, the files ──▶ Run, which `piped` is about ──▶ exit status

Guarantees:
- What is wrong is told before anything is run, with status 2.
- No earlier work is lost or mixed in unasked: neither what is in a journal, nor what is in the file of the output.
- What the function prints goes to standard error, and it can't read the items: standard output and input are ours.

Nothing here has state.
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, cast

from parallel.asked import Refusal, found_by
from parallel.context import plain_function
from parallel.durations import seconds
from parallel.errors import ParallelError
from parallel.fingerprints import fingerprint
from parallel.inputs import FORMATS, Input
from parallel.interrupts import Bell, Interrupts
from parallel.journal import Journal
from parallel.mapping import ParallelMap, parallel_map
from parallel.piped import REFUSED, Items, Run
from parallel.records import START
from parallel.registry import default_registry
from parallel.retries import Retry
from parallel.streams import Halt, MapSaid, is_of_median
from parallel.tasks import Task, caller

AHEAD: Final = 100_000
"""Items that may have been read and not written, as one before them takes long. Fewer may have workers wait for it,
more take memory."""

_NAME: Final = "python -m parallel map"

_ABOUT: Final = """\
Call a function with each item of a file, or of standard input, in parallel, and write one JSON record per item, in
input order: {"index": 0, "value": ...}, or {"index": 0, "error": {"type": ..., "message": ..., "traceback": ...}}.
"""

_AFTER: Final = """\
exit status:
  0    all items are fine
  1    some have failed, or could not be run
  2    it could not begin: a wrong argument, no such function, a file that can't be used
  130  interrupted: Ctrl-C once lets come to its end what runs, twice kills it
  141  the reader of the output has gone away

examples:
  find . -name '*.png' | python -m parallel map shop.images:thumbnail --pool processes > done.jsonl
  python -m parallel map shop.orders:check --input orders.csv --format csv --journal check.sqlite
  python -m parallel map shop.orders:check --input orders.csv --format csv --journal check.sqlite --resume failed
"""


# -- what may be said -------------------------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]  # argparse has no other name for it
    """Add `map` to the commands."""
    parser = commands.add_parser(
        "map",
        help="call a function with each item of a file or of standard input, in parallel",
        description=_ABOUT,
        epilog=_AFTER,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("function", metavar="MODULE:FUNCTION", help="a plain function, a task or a parallel map; it gets one item")
    add("--input", metavar="FILE", default="-", help="where items are read; - is standard input, which is the usual")
    add(
        "--format",
        choices=list(FORMATS),
        default="lines",
        help="what an item is: the text of a line; a JSON value per line; a row of a CSV table with a header, as a "
        "dict of texts (default: %(default)s)",
    )
    add("--output", metavar="FILE", default="-", help="where records are written; - is standard output")
    add("--unordered", action="store_true", help="write each record as soon as it is there")
    add("--pool", metavar="NAME", help="the pool; else that of the task, and for a plain function `processes`")
    add("--timeout", metavar="TIME", type=_duration, help="how long an item may take: 30, 250ms, 5m, '3x median'")
    add("--retry", metavar="N", type=_count, help="try an item that fails up to N times in all, with growing waits")
    add(
        "--halt",
        metavar="WHEN[,fail=N]",
        type=_halt,
        help="end it after N failures (1 if that is not said), or so many of all items, as in 10%%: `soon` lets what "
        "runs come to its end, `now` kills it",
    )
    add("--total", metavar="N", type=_count, help="how many items there are, for the progress and a --halt in percent")
    add("--journal", metavar="FILE", help="record in it each item that has ended, before it is written")
    add(
        "--resume",
        metavar="failed",
        nargs="?",
        const=True,
        type=_resume,
        help="take from the journal what has ended in earlier runs; with `failed`, but run again what has failed",
    )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show the progress on standard error (default: if that is a terminal, and the output is none)",
    )
    return parser


def _duration(text: str) -> float | str:
    if is_of_median(text):
        return text  # which the map reads
    try:
        number = float(text)
    except ValueError:
        number = None
    try:
        return seconds(text if number is None else number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
    return int(text)


def _halt(text: str) -> Halt:
    match = re.fullmatch(r"(soon|now)(?:,fail=([0-9]+|[0-9]+(?:\.[0-9]+)?%))?", text)
    fail = match and (match[2] or "1")
    if match is None or fail is None or not 0 < float(fail.removesuffix("%")) <= (100 if "%" in fail else float("inf")):
        raise argparse.ArgumentTypeError(
            f"expected soon or now, and after how many failures, as in soon,fail=3 or now,fail=10%, found {text!r}"
        )
    return Halt("now" if match[1] == "now" else "soon", fail if fail.endswith("%") else int(fail))


def _resume(text: str) -> str:
    if text != "failed":
        raise argparse.ArgumentTypeError(
            f"expected failed or nothing behind it, found {text!r}: the function comes before --resume"
        )
    return text


# -- what is mapped ---------------------------------------------------------------------------------------------------


def _map_of(name: str) -> ParallelMap[..., Any]:
    """Find the function, and declare it if it is not."""
    found = found_by(name)
    if isinstance(found, ParallelMap):
        return cast("ParallelMap[..., Any]", found)
    if isinstance(found, Task):
        return ParallelMap(cast("Task[..., Any]", found))
    if not callable(found):
        raise Refusal(f"{name} is {found!r}, and can't be called")
    try:
        return parallel_map(cast("Callable[..., Any]", found))
    except TypeError as error:  # a generator function
        raise Refusal(str(error)) from None


def _said_of(arguments: argparse.Namespace, declared: MapSaid) -> dict[str, Any]:
    """Return what is said about this map: by the arguments, and else by its declaration."""
    said: dict[str, Any] = {**declared, "errors": "collect", "ordered": not arguments.unordered, "buffersize": AHEAD}
    for name in ("timeout", "halt", "total", "journal", "resume", "progress"):
        if getattr(arguments, name) is not None:
            said[name] = getattr(arguments, name)
    if arguments.retry is not None:
        said["retry"] = Retry(attempts=arguments.retry, timeout=None)  # else long items would have one attempt
    return said


def _check_journal(path: str | os.PathLike[str] | None, resume: object, task: Task[..., Any]) -> None:
    """See that an earlier run is neither mixed in unasked nor sought in vain unnoticed."""
    if path is None:
        if resume is not None:
            raise Refusal("--resume needs the --journal of the earlier run")
        return
    done = failed = 0
    if os.path.exists(path):
        with Journal(path, task.name, fingerprint(plain_function(task))) as journal:
            done, failed = journal.counts()
    told = f"{os.fspath(path)} has {done + failed:,} items of {task.name} from earlier runs, {failed:,} of which failed"
    if resume is not None:
        _say(told if done + failed else f"{os.fspath(path)} has no items of {task.name} yet: all are run")
    elif done + failed:
        raise Refusal(
            f"{told}: --resume goes on from there, --resume failed tries the failed ones again; "
            "to run all of them again, name another journal"
        )


# -- what it is connected to ------------------------------------------------------------------------------------------


@contextmanager
def _taken_over() -> Generator[tuple[int | None, int | None]]:
    """
    Take standard input and output away from the function, in this process and in those that it starts.

    What it prints would be among the records, and a program that it starts, such as `ssh`, might read the items.

    Yields:
        Other descriptors for the two; None for one that is closed.
    """
    _flush_prints()
    is_open = [_is_open(descriptor) for descriptor in range(3)]
    while (null := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # now it stands for one that is closed, and no copy gets its number
    given = tuple(os.dup(descriptor) if is_open[descriptor] else None for descriptor in range(2))
    os.dup2(null, 0)
    os.dup2(2, 1)
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # as standard error is
    try:
        yield given[0], given[1]
    finally:
        _flush_prints()
        for descriptor, copy in enumerate(given):
            if copy is not None:
                os.dup2(copy, descriptor)
                os.close(copy)
        os.close(null)


def _flush_prints() -> None:
    with suppress(OSError, ValueError, AttributeError):  # it may be closed, or gone
        sys.stdout.flush()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def _opened(path: str, given: int | None, name: str, flags: int) -> Generator[int]:
    """Open a file, or take what was *given* for it."""
    if path == "-":
        if given is None:
            raise Refusal(f"standard {name} is closed: say --{name} FILE")
        yield given
        return
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise Refusal(f"--{name}: {error.strerror}: {path!r}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_output(descriptor: int, source: int, path: str, resumed: bool) -> None:
    """See that nothing is lost that was in the file of the output; what is left of an earlier run is written anew."""
    there = os.fstat(descriptor)
    if path == "-" or not stat.S_ISREG(there.st_mode):
        return
    if os.path.samestat(there, os.fstat(source)):
        raise Refusal(f"--output: {path!r} is the input")
    if not there.st_size:
        return
    with open(path, "rb") as file:
        start = file.read(len(START))
    if not resumed or start != START[: len(start)]:
        raise Refusal(
            f"--output: {path!r} has {there.st_size:,} bytes already, and only --resume writes its records anew: "
            "delete it, or name another"
        )
    os.ftruncate(descriptor, 0)


def _say(text: str) -> None:
    """Tell on standard error; if that is gone, nobody hears it."""
    with suppress(OSError, ValueError):
        print(f"{_NAME}: {text}", file=sys.stderr, flush=True)


# -- the command ----------------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    """
    Run the command.

    Args:
        arguments: Those that `add_command` has declared.

    Returns:
        The exit status.
    """
    try:
        with _taken_over() as (standard_input, standard_output):
            return _run(arguments, standard_input, standard_output)
    except (Refusal, ParallelError) as error:
        _say(str(error))
        return REFUSED


def _run(arguments: argparse.Namespace, standard_input: int | None, standard_output: int | None) -> int:
    mapped = _map_of(arguments.function)
    said = _said_of(arguments, mapped.said)
    _check_journal(said.get("journal"), said.get("resume"), mapped.task)
    with ExitStack() as stack:
        given = stack.enter_context(_opened(arguments.input, standard_input, "input", os.O_RDONLY))
        output = stack.enter_context(_opened(arguments.output, standard_output, "output", os.O_WRONLY | os.O_CREAT))
        said.setdefault("progress", os.isatty(2) and not os.isatty(output))
        source = Input(given, FORMATS[arguments.format]())
        bell = stack.enter_context(Bell())
        interrupts = stack.enter_context(Interrupts(bell))
        items = _items_of(mapped, arguments.pool, source, said, bell)
        stack.callback(items.close)
        stack.callback(items.stop)
        _check_output(output, given, arguments.output, arguments.resume is not None)
        if os.isatty(given) and os.isatty(2):
            _say("reading items from the terminal; Ctrl-D ends them")
        one = Run(items, source, output, bell, interrupts, _say)
        try:
            return one.status()
        finally:
            default_registry().shutdown(cancel_futures=not one.is_over)


def _items_of(
    mapped: ParallelMap[..., Any], pool: str | None, source: Input, said: dict[str, Any], bell: Bell
) -> Items:
    try:
        task = mapped.task if pool is None else mapped.task.options(pool=pool)
        return Items(task, caller(), [source], said, bell.ring)
    except (TypeError, ValueError) as error:  # such as of a function that the pool can't run
        raise Refusal(str(error)) from error
