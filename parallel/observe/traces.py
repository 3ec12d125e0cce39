"""
A recording in the Trace Event Format, which Perfetto (ui.perfetto.dev) and Chrome's `about:tracing` open.

Worker processes are processes there; what else a program has is one with its threads: the lanes of its pools. Attempts
are complete events, and what follows another is tied to it by a flow. All have the clock of the machine.

Source: "Trace Event Format", the document of the Catapult project.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_STATES: Final = ("succeeded", "failed", "cancelled", "runs", "waits", "failed, and was tried again")


def trace_events(table: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return a recording as Trace Event Format has it.

    Args:
        table: What `Recording.table` has returned.

    Returns:
        An object of JSON: `traceEvents`, with times in microseconds, and what is known of the program.
    """
    events = [*_lanes(table), *_attempts(table), *_flows(table), *_marks(table)]
    about = {name: table[name] for name in ("title", "python", "cpus", "began", "dropped")}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def _place(table: Mapping[str, Any], lane: int) -> dict[str, int]:
    """Return the process and the thread that stand for a lane: a worker process has one thread."""
    found: dict[str, Any] = table["lanes"][lane]
    return {"pid": found["process"] or table["process"], "tid": lane + 1}


def _lanes(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from _process(table["process"], table["title"], 0)
    for lane, one in enumerate(table["lanes"]):
        place = _place(table, lane)
        if one["process"]:
            pool = table["pools"][one["pool"]]
            yield from _process(one["process"], f"{pool['kind']} pool {pool['name']}", lane + 1)
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": one["name"]}}
        yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": lane}}


def _process(pid: int, name: str, order: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": order}}


def _rows(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the attempts that have begun, each with its `row`."""
    calls: dict[str, list[int]] = table["calls"]
    for row, values in enumerate(zip(*calls.values(), strict=True)):
        call: dict[str, Any] = dict(zip(calls, values, strict=True), row=row)
        if call["started"] >= 0 and call["lane"] >= 0:
            yield call


def _end_of(table: Mapping[str, Any], call: Mapping[str, Any]) -> int:
    return int(call["ended"] if call["ended"] >= 0 else max(table["duration"], call["started"]))


def _attempts(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for call in _rows(table):
        args: dict[str, Any] = {
            "id": call["id"],
            "state": _STATES[call["state"]],
            "attempt": call["attempt"],
            "items": call["items"],
            "waited_us": call["started"] - max(call["queued"], call["created"]),
        }
        error = table["errors"].get(str(call["row"]))
        if error is not None:
            args["error"] = error
        yield {
            "ph": "X",
            "cat": "call",
            "name": table["tasks"][call["task"]],
            "ts": call["started"],
            "dur": _end_of(table, call) - call["started"],
            **_place(table, call["lane"]),
            "args": args,
        }


def _flows(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {call["row"]: call for call in _rows(table)} if table["links"] else {}
    for number, (source, target, how) in enumerate(table["links"], 1):
        if source not in begun or target not in begun:
            continue
        flow = {"cat": "chain", "name": how, "id": number}
        first, then = begun[source], begun[target]
        yield {
            "ph": "s",
            **flow,
            "ts": max(_end_of(table, first) - 1, first["started"]),
            **_place(table, first["lane"]),
        }
        yield {"ph": "f", "bp": "e", **flow, "ts": then["started"], **_place(table, then["lane"])}


def _marks(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for mark in table["marks"]:
        place = {"pid": table["process"], "tid": 0} if "pool" in mark else _place(table, mark["lane"])
        about = table["pools"][mark["pool"]]["name"] if "pool" in mark else mark["text"]
        text = f"{mark['kind']}: {about}" if about else mark["kind"]
        yield {"ph": "i", "cat": "pool", "s": "p", "name": text, "ts": mark["at"], **place}
