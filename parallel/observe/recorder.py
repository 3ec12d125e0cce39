"""
`record()`: write down what a program does in parallel, and show it as a page, or to Perfetto.

    with record("run.html"): ──▶ Recording ──▶ at the end of the block, also after an error: the file

State: `_program`, written once, by whoever imports the first name.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from parallel.checks import did_you_mean
from parallel.observe.recording import MOST, Recording
from parallel.observe.summary import as_text, summarize
from parallel.observe.timeline import page
from parallel.observe.traces import trace_events


def _as_trace(table: Mapping[str, Any]) -> str:
    return json.dumps(trace_events(table), separators=(",", ":"))


WRITERS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {".html": page, ".json": _as_trace}
"""What makes the text of a file, by how its name ends."""


@contextmanager
def record(path: str | os.PathLike[str], *, most: int = MOST) -> Generator[None]:
    """
    Record what calls, workers and pools do in this block, and write that to a file at its end.

    All calls are recorded, of all pools of this process, and no values. Those that are made before the block are not.
    The file is written when the block ends, also by an error. What has not ended by then is shown as it is.

    Args:
        path: Where to; what is there is overwritten. `.html`: a page with a timeline, for a browser, which loads
            nothing. `.json`: trace events, which Perfetto opens.
        most: How many attempts of calls are kept; of what comes then only the number is.

    Raises:
        ValueError: The name ends otherwise.
        OSError: The file can't be written there; said before the block begins, if it is known by then.
    """
    target = check_target(path)
    recording = Recording(most)
    recording.start()
    try:
        yield
    finally:
        recording.stop()
        write(recording, target)


def check_target(path: str | os.PathLike[str]) -> Path:
    """
    Return where a recording is to be written, if it can be.

    Raises:
        ValueError, OSError: It can't; see `record`.
    """
    target = Path(path)
    if target.suffix not in WRITERS:
        known = ", ".join(WRITERS)
        raise ValueError(
            f"a recording can't be written to {os.fspath(path)!r}: its name has to end in one of {known}"
            f"{did_you_mean(target.suffix, WRITERS)}"
        )
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"a recording can't be written to {os.fspath(path)!r}: there is no folder {str(folder)!r}"
        )
    if target.is_dir() or not os.access(target if target.exists() else folder, os.W_OK):
        raise PermissionError(f"a recording can't be written to {os.fspath(path)!r}")
    return target.absolute()  # the program may go elsewhere meanwhile


def write(recording: Recording, target: Path) -> None:
    """Write what was recorded; a file that is there is replaced as a whole."""
    text = WRITERS[target.suffix](recording.table())
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


TRACE: Final = "PARALLEL_TRACE"
"""The variable that names the file to which the whole program is recorded."""

STATS: Final = "PARALLEL_STATS"
"""The variable that has what the whole program did printed at its end, if it is set."""

ONLY: Final = "PARALLEL_TRACE_ONLY"
"""The variable that says which process both are meant for, by its id: not for programs that it starts."""

_program: Recording | None = None


def record_program() -> None:
    """
    Record the program from now on; at its end, write that to `$PARALLEL_TRACE`, and print figures if `$PARALLEL_STATS`.

    A child that multiprocessing has started, such as a worker, doesn't. `{pid}` in the name becomes the process's id,
    for programs that start others of their kind.

    Raises:
        ValueError, OSError: It can't be written there; see `record`.
    """
    global _program
    pid = str(os.getpid())
    if _program is not None or _is_child() or os.environ.get(ONLY, pid) != pid:
        return
    path = os.environ.get(TRACE, "").replace("{pid}", pid)
    try:
        target = check_target(path) if path else None
    except (ValueError, OSError) as error:
        raise type(error)(f"${TRACE}: {error}") from None
    if target is None and not os.environ.get(STATS):
        return
    _program = Recording()
    _program.start()
    atexit.register(_finish, _program, target, os.getpid())  # which is called when all pools have run dry


def _is_child() -> bool:
    """Tell whether multiprocessing has started this process; perhaps it is about to load the main module."""
    processes: Any = sys.modules.get("multiprocessing.process")
    if processes is None:
        return False
    return processes.parent_process() is not None or hasattr(processes.current_process(), "_inheriting")


def _finish(recording: Recording, target: Path | None, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child
    recording.stop()
    if target is not None:
        write(recording, target)
    if os.environ.get(STATS) and sys.stderr is not None:
        print(f"\n{as_text(summarize(recording.table()))}", file=sys.stderr)
