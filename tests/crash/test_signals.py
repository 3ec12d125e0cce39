"""
Ctrl-C and SIGTERM, whatever the program is waiting in: it ends soon, what was queued is not run, and nothing is left.

In scripts of their own, with pools of each kind. See `scripts.py` for what is looked at after each.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from crash.scripts import Script

KINDS = ["thread", "process", "loop"]
MOMENT = 5.0  # seconds; from a signal to the end of the program
SOON = 1.0  # seconds; in which a wait ends, that is to take half of one at most: the machine is shared
HEAD = """
import os, signal, sys, threading, time
import parallel
from crash import signal_jobs
from crash.signal_jobs import LONG, QUEUED, say, ran, hold, pause
from parallel import TaskGroup, as_completed, configure, gather, parallel_map, task, wait

if __name__ == "__main__":
    kind, how = sys.argv[1:3]
    registry = signal_jobs.registry_of(kind)
    pool = registry.pool("here")
    threading._register_atexit(lambda: say("exit"))  # called before ours
"""

by_kind = pytest.mark.parametrize("kind", KINDS)


def script_of(body: str) -> str:
    """Make a script whose main part is *body*."""
    return HEAD + "".join(f"    {line}\n" for line in body.strip().splitlines())


# -- Ctrl-C, once -----------------------------------------------------------------------------------------------------

WAITS = script_of("""
def submit():
    global first
    first = pool.submit(LONG[kind])
    for i in range(3000): pool.submit(QUEUED[kind], i)

def is_in():
    return "in"

try:
    if how == "block":
        with registry:
            submit()
            first.result()
    elif how == "end of a block":
        with registry:
            submit()
    elif how == "group":
        with registry, TaskGroup():
            task(pool="here")(LONG[kind])()
            for i in range(100): task(pool="here")(QUEUED[kind])(i)
    elif how == "map":
        with registry:
            list(parallel_map(pool="here")(LONG[kind])(["in"] * 100))
    else:
        submit()
    if how == "result": first.result()
    if how == "then": first.then(ran).then(ran).result()
    if how == "as_completed": list(as_completed([first]))
    if how == "wait": wait([first])
    if how == "shutdown": registry.shutdown()
    if how == "pool": pool.shutdown()
    if how == "map of the pool": list(pool.map(LONG[kind], ["in"]))
    if how == "join": threading.Event().wait()
    if how == "sleep": time.sleep(600)
finally:
    if how != "exit": say("after")
""")

PLACES = ["result", "then", "as_completed", "wait", "block", "end of a block", "group", "map", "shutdown", "pool"]


@pytest.mark.parametrize("how", [*PLACES, "map of the pool", "join", "sleep"])
@by_kind
def test_interrupt(tmp_path: Path, kind: str, how: str) -> None:
    """An unhandled Ctrl-C ends any wait, cancels what is queued, and ends the program, with one traceback."""
    with Script(WAITS, tmp_path, kind, how) as script:
        script.wait_for("in")
        script.send(signal.SIGINT)
        began = time.monotonic()
        script.wait_for("after")
        assert time.monotonic() - began < SOON
        ended = script.ended()
    assert ended.status == -signal.SIGINT
    assert ended.seconds < MOMENT
    assert "ran" not in ended.out
    assert ended.err.count("Traceback") == 1, ended.err
    assert ended.err.endswith("KeyboardInterrupt\n"), ended.err


@by_kind
def test_interrupt_at_exit(tmp_path: Path, kind: str) -> None:
    """A Ctrl-C while the exit waits, with hours of calls queued, ends the program as well."""
    with Script(WAITS, tmp_path, kind, "exit") as script:
        script.wait_for("in")
        script.wait_for("exit")
        script.send(signal.SIGINT)
        ended = script.ended()
    assert ended.seconds < MOMENT
    assert "ran" not in ended.out
    assert ended.err.count("Traceback") <= 1, ended.err


# -- Ctrl-C, twice ----------------------------------------------------------------------------------------------------

STUBBORN = script_of("""
def submit():
    global first
    first = pool.submit(hold)
    for i in range(3000): pool.submit(ran, i)

def wait_long():
    say("waits")
    first.result()

try:
    if how == "block":
        with registry:
            submit()
            try: wait_long()
            finally: say("leaves")
    if how == "pool":
        with pool:
            submit()
            try: wait_long()
            finally: say("leaves")
    if how in ("result", "shutdown"): submit()
    if how == "result": wait_long()
    if how == "shutdown":
        try: wait_long()
        except KeyboardInterrupt:
            say("leaves")
            registry.shutdown(cancel_futures=True)
finally:
    say("after")
""")


@pytest.mark.parametrize("how", ["result", "block", "pool", "shutdown"])
def test_second_interrupt(tmp_path: Path, how: str) -> None:
    """A thread can't be killed: the end of the program waits for its call. A second Ctrl-C ends that at once."""
    with Script(STUBBORN, tmp_path, "thread", how) as script:
        script.wait_for("in")
        script.wait_for("waits")
        script.send(signal.SIGINT)
        script.wait_for("leaves" if how != "result" else "exit")
        script.send(signal.SIGINT)
        ended = script.ended()
    assert ended.seconds < SOON, ended.seconds
    assert "ran" not in ended.out


# -- SIGTERM ----------------------------------------------------------------------------------------------------------

PATIENT = script_of("""
def short(number):
    return task(pool="here")(signal_jobs.QUICK[kind])(number)

def handler(*_):
    if how == "shutdown": registry.shutdown(cancel_futures=True)
    if how == "leave": registry.shutdown(wait=False, cancel_futures=True)
    say("handled")
    sys.exit(5)

if how != "default": signal.signal(signal.SIGTERM, handler)
where = sys.argv[3]
with parallel.using(registry):
    short(0).result()
    say("ready")
    if where == "submit":
        while True:
            for i in range(100): last = short(i)
            last.result()
    if where == "result":
        while True: short(1).then(signal_jobs.same).result()
    if where == "map":
        while True: list(parallel_map(pool="here")(signal_jobs.QUICK[kind])(range(200)))
    if where == "block":
        with registry, TaskGroup():
            for i in range(300): short(i)
            threading.Event().wait()
""")


@pytest.mark.parametrize("where", ["submit", "result", "map", "block"])
@pytest.mark.parametrize("how", ["default", "shutdown", "leave", "exit"])
@by_kind
def test_terminated(tmp_path: Path, kind: str, how: str, where: str) -> None:
    """SIGTERM ends the program, wherever it is; a handler may shut the registry down, and exit."""
    with Script(PATIENT, tmp_path, kind, how, where) as script:
        script.wait_for("ready")
        script.send(signal.SIGTERM)
        ended = script.ended()
    assert ended.seconds < MOMENT
    assert ended.status == (-signal.SIGTERM if how == "default" else 5), ended.err
    assert "Traceback" not in ended.err, ended.err


LOCKS = {
    "registry": "registry._lock",
    "default registry": "parallel.registry._default_lock",
    "callbacks": "registry.callbacks._lock",
    "making of callback threads": "registry._callbacks._lock",
    "hooks": "registry._hooks._lock",
    "desk": "registry._desk._quiet",
    "thread": "pools['thread']._engine._lock",
    "loop": "pools['loop']._engine._lock",
    "tally of the loop": "pools['loop']._engine.handed._quiet",
    "process": "pools['process']._engine._lock",
    "process, sending": "pools['process']._engine._dispatching.gate",
    "tally of the process": "pools['process']._handed._quiet",
    "gate": "pools['gated'].gate._room",
    "limits": "limited(1).terms.limits[0]._lock",
    "timer": "parallel.timer.TIMER.lock",
    "unseen": "parallel.unseen._lock",
}


@pytest.mark.parametrize(("wait", "cancel"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("lock", LOCKS)
def test_handler_while_a_lock_is_held(tmp_path: Path, lock: str, wait: bool, cancel: bool) -> None:
    """A handler that shuts down returns, whichever lock of ours the main thread holds."""
    text = (
        HEAD
        + f"""
    kinds = ("thread", "process", "loop", "inline")
    config = {{kind: {{"kind": kind}} for kind in kinds}} | {{"gated": {{"kind": "thread", "max_pending": 500}}}}
    registry = parallel.Registry({{"pools": config}})
    limited = task(pool="thread", limit=2)(signal_jobs.same)
    with parallel.using(registry):
        pools = {{name: registry.pool(name) for name in config}}
        signal.signal(signal.SIGTERM, lambda *_: (registry.shutdown({wait}, cancel_futures={cancel}), say("handled")))
        quick = {{name: task(pool=name)(signal_jobs.QUICK.get(name, signal_jobs.same)) for name in config}}
        gather(*(each(1).then(signal_jobs.same) for each in quick.values())).result()
        limited(1).result()
        lock = {LOCKS[lock]}
        calls = [each(i).then(signal_jobs.same) for i in range(30) for each in (*quick.values(), limited)]
        with lock:
            signal.raise_signal(signal.SIGTERM)
        assert not wait(calls, 20).not_done
    registry.shutdown()
    say("shut")
"""
    )
    with Script(text, tmp_path, "thread", "") as script:
        ended = script.ended()
    assert ended.status == 0, ended.err
    assert ended.out.split()[:2] == ["handled", "shut"]
