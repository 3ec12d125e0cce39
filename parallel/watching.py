"""
`python -m parallel top`: what a running program does, live.

    the program's socket ──▶ a snapshot, every second ──▶ a table of pools, and one of workers ──▶ the terminal

Nothing here has state.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from parallel.asked import Refusal
from parallel.durations import briefly, pause
from parallel.observe.serving import SUFFIX, folder, path_of
from parallel.showing import say, say_json, show

if TYPE_CHECKING:
    from rich.console import Group

PATIENCE: Final = 5.0
"""Seconds that a program gets to answer."""

MOST: Final = 40
"""Workers that are shown: first those that have run longest."""

_COUNTS: Final = ("workers", "queued", "running", "done", "per s", "failed")
_POOL: Final = ("pool", "kind", *_COUNTS, "wait p95", "run p50", "run p95")
_WORKER: Final = ("worker", "runs", "for", "busy")


class ProgramGoneError(Exception):
    """The program has ended, or there never was one."""


def add_top(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]  # argparse has no other name for it
    """Add `top` to the commands."""
    about = "show what a running program does, live"
    parser = commands.add_parser(
        "top",
        help=about,
        description="Show what a running program does, live: its pools, and what their workers run. The program's "
        "configuration has to say `[observe] socket = true`, or its environment PARALLEL_OBSERVE__SOCKET=true.",
    )
    add = parser.add_argument
    add("program", nargs="?", metavar="PID|FILE", help="a process id, or its socket; none: list what can be seen")
    add("--interval", default="1s", metavar="TIME", help="between two looks (default: %(default)s)")
    add("--once", action="store_true", help="look once, and print that; as where the output is no terminal")
    add("--json", action="store_true", help="look once, and print JSON")
    return parser


def watch(arguments: argparse.Namespace) -> int:
    """
    Show it.

    Raises:
        Refusal: There is no such program, or it can't be asked.
    """
    try:
        interval = pause(arguments.interval)
    except (TypeError, ValueError) as error:
        raise Refusal(f"--interval: {error}") from None
    try:
        if arguments.program is None:
            return _list()
        path = path_of(int(arguments.program)) if arguments.program.isdecimal() else Path(arguments.program)
        seen = ask(path)
    except (ProgramGoneError, OSError) as error:
        raise Refusal(str(error)) from None
    if arguments.json:
        say_json(seen)
    elif arguments.once or not sys.stdout.isatty():
        _print(seen)
    else:
        _live(path, seen, interval)
    return 0


def ask(path: Path) -> dict[str, Any]:
    """
    Return what a program does.

    Raises:
        ProgramGoneError: None can be asked there.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(PATIENCE)
            asking.connect(str(path))
            with asking.makefile("rb") as answer:
                data = answer.read()
    except (FileNotFoundError, ConnectionError):
        needs = "it has ended, or has not used a pool yet, or lacks `[observe] socket = true`"
        raise ProgramGoneError(f"no program can be asked at {path}: {needs}") from None
    except (OSError, ValueError) as error:
        raise ProgramGoneError(f"no program can be asked at {path}: {error}") from None
    try:
        found: dict[str, Any] = json.loads(data)
    except ValueError:
        raise ProgramGoneError(f"the program at {path} doesn't answer: it is not yours, or at its end") from None
    return found


def _list() -> int:
    """Say which programs can be seen."""
    count = 0
    for path in sorted(folder().glob(f"*{SUFFIX}")):
        with suppress(ProgramGoneError):
            seen = ask(path)
            say(f"{seen['pid']}  {seen['program']}")
            count += 1
    if count == 0:
        print("no program can be seen: one that says `[observe] socket = true`, and uses a pool, can", file=sys.stderr)
    return 0


# -- what is shown ----------------------------------------------------------------------------------------------------


def pool_rows(seen: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """Return a row for each pool; how many calls ended per second is known from the second look on."""
    done = {(pool["name"], pool["kind"]): pool["done"] for pool in before["pools"]} if before is not None else {}
    seconds = seen["at"] - before["at"] if before is not None else 0
    rows: list[tuple[str, ...]] = []
    for pool in seen["pools"]:
        earlier = done.get((pool["name"], pool["kind"]))
        speed = "" if earlier is None or seconds <= 0 else f"{max(pool['done'] - earlier, 0) / seconds:,.1f}"
        counts = (f"{pool[name]:,}" for name in ("queued", "running", "done"))
        workers = f"{pool['workers']}/{pool['max_workers']}" if pool["max_workers"] < 10**6 else str(pool["workers"])
        waited, ran = pool["queue_time"], pool["run_time"]
        failed = "" if pool["failed"] is None else f"{pool['failed']:,}"
        times = (_time(waited, "p95"), _time(ran, "p50"), _time(ran, "p95"))
        rows.append((pool["name"], pool["kind"], workers, *counts, speed, failed, *times))
    return rows


def worker_rows(seen: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each worker: first those that have run longest, last those that are idle."""
    workers = [worker for pool in seen["pools"] for worker in pool["at_work"]]
    workers.sort(key=lambda worker: (not worker["task"], -(worker["seconds"] or 0)))
    return [
        (
            worker["name"],
            worker["task"] or "(idle)",
            "" if worker["seconds"] is None else briefly(worker["seconds"]),
            "" if worker["utilisation"] is None else f"{worker['utilisation']:.0%}",
        )
        for worker in workers[:MOST]
    ]


def _time(times: Mapping[str, float] | None, which: str) -> str:
    return briefly(times[which]) if times is not None and times["count"] else ""


def _head(seen: Mapping[str, Any]) -> str:
    waiting = f", {seen['waiting']} wait in no pool" if seen["waiting"] else ""
    return f"process {seen['pid']}: {seen['program']}{waiting}"


def _print(seen: Mapping[str, Any]) -> None:
    say(_head(seen))
    show(_POOL, pool_rows(seen, None))
    show(_WORKER, worker_rows(seen))


def _live(path: Path, seen: dict[str, Any], interval: float) -> None:
    """Show it until the program ends, or a Ctrl-C comes."""
    try:
        from rich.live import Live
    except ImportError:
        raise Refusal("to show it live takes rich: install parallel-pools[rich], or say --once") from None
    before: dict[str, Any] | None = None
    with suppress(KeyboardInterrupt), Live(_drawn(seen, before), screen=True, auto_refresh=False) as live:
        while True:
            live.update(_drawn(seen, before), refresh=True)
            time.sleep(interval)
            before = seen
            try:
                seen = ask(path)
            except ProgramGoneError:
                break
    _print(seen)


def _drawn(seen: Mapping[str, Any], before: Mapping[str, Any] | None) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables: list[Table | Text] = [Text(_head(seen), style="bold")]
    for heads, rows, left in ((_POOL, pool_rows(seen, before), 2), (_WORKER, worker_rows(seen), 2)):
        table = Table(box=None, pad_edge=False)
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number < left else "right", overflow="fold")
        for row in rows:
            style = "dim" if "(idle)" in row else ""
            table.add_row(*map(Text, row), style=style)
        tables += [Text(), table]
    return Group(*tables)
