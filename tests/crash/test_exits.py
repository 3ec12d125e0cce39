"""
Programs that end, orderly or not: soon, with at most one traceback, and nothing of them is left.

In scripts of their own, under each start method. See `scripts.py` for what is looked at after each.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from crash.scripts import Repl, Script

METHODS = ["forkserver", "spawn", "fork"]
NO_THREADS_AT_EXIT = (3, 12) <= sys.version_info < (3, 12, 2)
NEEDS_THREADS_AT_EXIT = pytest.mark.skipif(
    NO_THREADS_AT_EXIT, reason="CPython 3.12.0 and 3.12.1 start no thread at exit (gh-113964)"
)
MOMENT = 5.0  # seconds; from a signal to the end of the program
HEAD = """
import atexit, os, signal, sys, threading, time
from concurrent.futures import wait
from crash import exit_jobs
from pools import process_jobs
from parallel import ProcessPool, WorkerDiedError
say = exit_jobs.say
"""
MAIN = (
    HEAD
    + """
if __name__ == "__main__":
    method, how = sys.argv[1:3]
    pool = ProcessPool(2, method)
"""
)

by_each_method = pytest.mark.parametrize("method", METHODS)


def script_of(body: str) -> str:
    """Make a script whose main part is *body*."""
    return MAIN + "".join(f"    {line}\n" for line in body.strip().splitlines())


def noted(path: Path) -> Counter[int]:
    """Count how often each body ran."""
    return Counter(map(int, path.read_text().split()))


# -- the program is killed --------------------------------------------------------------------------------------------

BUSY = script_of("""
calls = [pool.submit(getattr(exit_jobs, how), "in") for _ in range(2)]
time.sleep(600)
""")


@pytest.mark.parametrize(
    ("how", "number"),
    [
        ("spin", signal.SIGKILL),
        ("sleep", signal.SIGKILL),
        ("refuse_to_end", signal.SIGKILL),
        ("spin", signal.SIGTERM),
        ("sleep", signal.SIGHUP),
    ],
)
@by_each_method
def test_killed_while_workers_are_busy(tmp_path: Path, method: str, how: str, number: int) -> None:
    """When the program is killed, its workers are gone within two seconds, whatever they do."""
    with Script(BUSY, tmp_path, method, how) as script:
        script.wait_for("in")
        script.send(number)
        assert script.ended().status == -number


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@by_each_method
def test_killed_while_workers_are_idle(tmp_path: Path, method: str, number: int) -> None:
    """So are idle workers."""
    text = script_of("""
wait([pool.submit(time.sleep, 0.05) for _ in range(4)])
say("idle")
time.sleep(600)
""")
    with Script(text, tmp_path, method, "") as script:
        script.wait_for("idle")
        script.send(number)
        assert script.ended().status == -number


@by_each_method
def test_killed_while_workers_start(tmp_path: Path, method: str) -> None:
    """So are workers that have just been started."""
    text = script_of("""
pool.submit(exit_jobs.sleep)
say("started")
time.sleep(600)
""")
    chance = random.Random(5)
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with Script(text, folder, method, "") as script:
            script.wait_for("started")
            time.sleep(chance.random() * 0.3)  # whatever it is doing then
            script.send(signal.SIGKILL)
            script.ended()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@by_each_method
def test_group_is_told_to_end(tmp_path: Path, method: str, number: int) -> None:
    """A signal to all processes at once, as of a service manager or a closed terminal, ends them without a word."""
    with Script(BUSY, tmp_path, method, "sleep", group=True) as script:
        script.wait_for("in")
        script.send(number)
        ended = script.ended()
        assert ended.status == -number
        assert ended.seconds < MOMENT
        assert "Traceback" not in ended.err


@by_each_method
def test_left_by_os_exit(tmp_path: Path, method: str) -> None:
    """A program that leaves by `os._exit` leaves no worker."""
    text = script_of("""
pool.submit(exit_jobs.spin, "in")
pool.submit(exit_jobs.sleep, "in")
time.sleep(0.5)
os._exit(7)
""")
    with Script(text, tmp_path, method, "") as script:
        assert script.ended(orderly=False).status == 7


# -- the program ends by itself ---------------------------------------------------------------------------------------

ENDS = script_of("""
calls = [pool.submit(exit_jobs.note_soon, "notes", i) for i in range(60)]
say("submitted")
if how == "leave": pool.shutdown(wait=False)
if how == "drop": del pool
if how == "exit": sys.exit(3)
if how == "raise": raise OSError("by itself")
if how == "handler":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
    os.kill(os.getpid(), signal.SIGTERM)
""")


@NEEDS_THREADS_AT_EXIT
@pytest.mark.parametrize(
    ("how", "status"), [("", 0), ("leave", 0), ("drop", 0), ("exit", 3), ("raise", 1), ("handler", 4)]
)
@by_each_method
def test_end_runs_what_was_accepted(tmp_path: Path, method: str, how: str, status: int) -> None:
    """At the end of the program what was accepted is run, once, however it comes to its end."""
    with Script(ENDS, tmp_path, method, how) as script:
        ended = script.ended()
    assert ended.status == status
    assert ended.err.count("Traceback") == (1 if how == "raise" else 0)
    assert noted(tmp_path / "notes") == dict.fromkeys(range(60), 1)


@NEEDS_THREADS_AT_EXIT
@by_each_method
def test_end_with_calls_that_end_their_worker(tmp_path: Path, method: str) -> None:
    """Calls that leave, hard or softly, don't keep the program from its end, nor what is queued behind them."""
    text = script_of("""
for i in range(20):
    pool.submit(exit_jobs.exit_hard, 9).on_failure(lambda error: say(type(error).__name__))
    pool.submit(exit_jobs.exit_softly, 9).on_failure(lambda error: say(type(error).__name__))
    pool.submit(exit_jobs.note_soon, "notes", i)
""")
    with Script(text, tmp_path, method, "") as script:
        ended = script.ended()
    assert ended.status == 0
    assert Counter(ended.out.split()) == {"WorkerDiedError": 20, "SystemExit": 20}
    assert noted(tmp_path / "notes") == dict.fromkeys(range(20), 1)


@by_each_method
def test_call_that_leaves_a_thread(tmp_path: Path, method: str) -> None:
    """A worker leaves at the end, though a call has left a thread that would go on for long."""
    text = script_of("""
print(pool.submit(exit_jobs.leave_thread).result())
began = time.monotonic()
pool.shutdown()
assert time.monotonic() - began < 10
""")
    with Script(text, tmp_path, method, "") as script:
        assert script.ended().status == 0


@pytest.mark.parametrize("inner", ["forkserver", "fork"])
@by_each_method
def test_pool_left_in_a_worker(tmp_path: Path, method: str, inner: str) -> None:
    """A pool that a call has left open in its worker ends with the worker."""
    text = script_of("""
print(pool.submit(exit_jobs.leave_pool, how).result())
""")
    with Script(text, tmp_path, method, inner) as script:
        ended = script.ended()
    assert (ended.status, ended.out) == (0, "3\n")


@by_each_method
def test_submit_at_the_end(tmp_path: Path, method: str) -> None:
    """What is submitted by an exit handler is run or refused; the program ends."""
    text = script_of("""
def late():
    try:
        say(str(pool.submit(abs, -5).result(20)))
    except RuntimeError:
        say("refused")
atexit.register(late)
pool.submit(abs, -1).result()
""")
    with Script(text, tmp_path, method, "") as script:
        ended = script.ended()
    assert ended.status == 0
    assert ended.out in ("5\n", "refused\n")


@by_each_method
def test_thread_that_submits_at_the_end(tmp_path: Path, method: str) -> None:
    """A daemon thread that goes on submitting doesn't keep the program from its end."""
    text = script_of("""
def submit():
    while True:
        try:
            pool.submit(abs, -5).result(20)
        except RuntimeError:
            return
threading.Thread(target=submit, daemon=True).start()
pool.submit(abs, -1).result()
""")
    with Script(text, tmp_path, method, "") as script:
        assert script.ended().status == 0


@by_each_method
def test_forked_child_that_ends(tmp_path: Path, method: str) -> None:
    """A child that the program forks, while its pool is at work, ends as a program does, and the pool goes on."""
    text = script_of("""
calls = [pool.submit(exit_jobs.note_soon, "notes", i) for i in range(40)]
child = os.fork()
if child == 0:
    sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
assert [call.result() for call in calls] == list(range(40))
""")
    with Script(text, tmp_path, method, "") as script:
        assert script.ended().status == 0
    assert noted(tmp_path / "notes") == dict.fromkeys(range(40), 1)


@by_each_method
def test_forked_child_that_uses_the_pool(tmp_path: Path, method: str) -> None:
    """A forked child may use its parent's pool, with workers of its own; its end is none of the parent's business."""
    text = script_of("""
assert pool.submit(abs, -1).result() == 1
held = pool.submit(time.sleep, 1)
child = os.fork()
if child == 0:
    assert pool.submit(abs, -2).result(20) == 2
    sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
assert held.result(20) is None
assert pool.submit(abs, -3).result(20) == 3
""")
    with Script(text, tmp_path, method, "") as script:
        assert script.ended().status == 0


@by_each_method
def test_without_standard_streams(tmp_path: Path, method: str) -> None:
    """A program that has closed its standard streams, as a daemon does, has pools that work."""
    text = (
        HEAD
        + """
if __name__ == "__main__":
    for number in range(3):
        os.close(number)
    with ProcessPool(2, sys.argv[1]) as pool:
        values = [call.result(20) for call in [pool.submit(abs, -i) for i in range(20)]]
        big = pool.submit(bytes, 1 << 20).result(20)
        with open("notes", "w") as file:
            file.write(f"{sum(values)} {len(big)}")
"""
    )
    with Script(text, tmp_path, method) as script:
        assert script.ended().status == 0
    assert (tmp_path / "notes").read_text() == "190 1048576"


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------

INTERRUPTED = script_of("""
if how == "idle":
    pool.submit(abs, -1).result()
    say("in")
    time.sleep(600)
calls = [pool.submit(exit_jobs.sleep if i % 2 else exit_jobs.spin, "in") for i in range(20)]
if how == "sleep": time.sleep(600)
if how == "result": calls[3].result()
if how == "wait": wait(calls)
if how == "shutdown": pool.shutdown()
if how == "map": list(pool.map(exit_jobs.sleep, ["in"] * 5))
if how == "with":
    with pool: calls[3].result()
if how == "submit":
    while True: pool.submit(exit_jobs.sleep)
""")


@pytest.mark.parametrize("how", ["sleep", "wait", "shutdown", "map", "with", "submit", "idle"])
@by_each_method
def test_interrupted(tmp_path: Path, method: str, how: str) -> None:
    """A Ctrl-C at a terminal, which reaches the workers too, ends the program soon, with the one traceback of main."""
    with Script(INTERRUPTED, tmp_path, method, how, group=True) as script:
        script.wait_for("in")
        time.sleep(0.3)  # until main is where it is to be
        script.send(signal.SIGINT)
        ended = script.ended()
    assert ended.status == -signal.SIGINT
    assert ended.seconds < MOMENT
    assert ended.err.count("Traceback") == 1, ended.err


@by_each_method
def test_interrupt_says_no_more(tmp_path: Path, method: str) -> None:
    """Besides that traceback nothing is said: the calls that ran were cut off by the Ctrl-C, which is known."""
    with Script(INTERRUPTED, tmp_path, method, "sleep", group=True) as script:
        script.wait_for("in")
        script.send(signal.SIGINT)
        ended = script.ended()
    assert ended.err.splitlines()[-1] == "KeyboardInterrupt"


@by_each_method
def test_interrupted_while_workers_start(tmp_path: Path, method: str) -> None:
    """A Ctrl-C that meets workers in the middle of their start makes them no less silent."""
    text = script_of("""
pool.submit(exit_jobs.sleep)
say("started")
time.sleep(600)
""")
    chance = random.Random(9)
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with Script(text, folder, method, "", group=True) as script:
            script.wait_for("started")
            time.sleep(chance.random() * 0.25)  # whatever it is doing then
            script.send(signal.SIGINT)
            ended = script.ended()
        assert ended.status == -signal.SIGINT
        assert ended.seconds < MOMENT
        assert ended.err.count("Traceback") == 1, ended.err


@by_each_method
def test_interrupt_that_is_caught(tmp_path: Path, method: str) -> None:
    """A program that catches its Ctrl-C has a pool that works as before, with the same workers."""
    text = script_of("""
before = pool.submit(os.getpid).result()
call = pool.submit(time.sleep, 2)
say("in")
try:
    call.result()
except KeyboardInterrupt:
    say("caught")
assert call.result() is None
os.kill(before, 0)
assert pool.stats().workers <= 2
assert pool.submit(abs, -3).result() == 3
""")
    with Script(text, tmp_path, method, "", group=True) as script:
        script.wait_for("in")
        time.sleep(0.2)  # until main waits
        script.send(signal.SIGINT)
        ended = script.ended()
    assert (ended.status, ended.err) == (0, "")
    assert "caught" in ended.out


@pytest.mark.parametrize("how", ["spin", "sleep", "refuse_to_end"])
@by_each_method
def test_interrupted_at_the_end(tmp_path: Path, method: str, how: str) -> None:
    """A program that waits for its last calls is ended by a Ctrl-C."""
    text = script_of("""
pool.submit(getattr(exit_jobs, how), "in")
""")
    with Script(text, tmp_path, method, how, group=True) as script:
        script.wait_for("in")
        time.sleep(0.5)  # until main has come to its end
        script.send(signal.SIGINT)
        ended = script.ended()
        assert ended.seconds < MOMENT
        assert ended.err.count("Traceback") <= 1, ended.err


# -- at a prompt ------------------------------------------------------------------------------------------------------


def open_pool(repl: Repl, method: str) -> None:
    """Have a pool at the prompt, whose worker runs a call that takes very long."""
    repl.type("import time, os; from parallel import ProcessPool\n")
    repl.type(f"pool = ProcessPool(2, {method!r}); pool.submit(abs, -1).result() + 41\n")
    repl.wait_for(lambda seen: "\n42\n" in seen)
    repl.type("long = pool.submit(time.sleep, 600); 40 + 3\n")
    repl.wait_for(lambda seen: "\n43\n" in seen)


@pytest.mark.parametrize("flags", [(), ("-i",)], ids=str)
@by_each_method
def test_interrupt_at_a_prompt(tmp_path: Path, method: str, flags: tuple[str, ...]) -> None:
    """A Ctrl-C at a prompt ends the wait, and nothing else; the session goes on and ends in peace."""
    with Repl(tmp_path, *flags) as repl:
        open_pool(repl, method)
        repl.type("long.result()\n")
        time.sleep(0.5)  # until it waits
        repl.type("\x03")
        repl.wait_for(lambda seen: "KeyboardInterrupt" in seen)
        repl.type("pool.submit(abs, -44).result()\n")
        repl.wait_for(lambda seen: "\n44\n" in seen)
        repl.type("long.cancel(running=True)\n")
        repl.wait_for(lambda seen: "\nTrue\n" in seen)
        repl.type("\x04")
        assert repl.ended() == 0
        assert repl.seen.count("Traceback") == 1


@by_each_method
def test_prompt_left_with_a_running_call(tmp_path: Path, method: str) -> None:
    """A session that waits for a call at its end is ended by a Ctrl-C."""
    with Repl(tmp_path) as repl:
        open_pool(repl, method)
        repl.type("\x04")
        time.sleep(0.5)  # until it waits for the call
        began = time.monotonic()
        repl.type("\x03")
        repl.ended()
        assert time.monotonic() - began < MOMENT
        assert repl.seen.count("Traceback") <= 1


@by_each_method
def test_terminal_that_is_closed(tmp_path: Path, method: str) -> None:
    """A session whose terminal is closed leaves nothing."""
    with Repl(tmp_path) as repl:
        open_pool(repl, method)
        repl.hang_up()
        repl.ended()
