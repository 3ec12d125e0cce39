"""
A configuration that is read again: what goes on, what is swapped, and what becomes of calls in flight.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import jobs
import pytest
from pools.process_jobs import wait_until

from parallel import (
    ConfigError,
    Future,
    PoolShutdownError,
    Registry,
    Retry,
    configure,
    gather,
    task,
    using,
)
from parallel.registry import default_registry

Runner = Callable[..., CompletedProcess[str]]
LONG = 30  # seconds; only a deadlock takes so long


def prefix(name: str, **options: object) -> dict[str, object]:
    """Describe a pool whose threads are called so."""
    return {"kind": "thread", "thread_name_prefix": name, **options}


def written(path: Path, text: str) -> Path:
    """Write a file."""
    path.write_text(text, encoding="utf-8")
    return path


@task(pool="here")
def where(_: object = None) -> str:
    """Return the thread's name."""
    return jobs.thread_name()


@task(pool="there")
def elsewhere(_: object = None) -> str:
    """Return the thread's name."""
    return jobs.thread_name()


def nested() -> str:
    """Call a task from a worker, and say where it runs."""
    return where().result(timeout=LONG)


def test_what_is_the_same_goes_on(tmp_path: Path) -> None:
    """Pools about which nothing else is said stay; the others are swapped."""
    path = tmp_path / "parallel.toml"
    text = '[pools.here]\nkind = "thread"\nthread_name_prefix = "{}"\n[pools.there]\nkind = "thread"\n'
    with Registry.from_toml(written(path, text.format("old"))) as registry:
        here, there = registry.pool("here"), registry.pool("there")
        assert where().result(timeout=LONG).startswith("old")
        written(path, text.format("new"))
        registry.reload()
        assert registry.pool("there") is there
        assert registry.pool("here") is not here
        assert where().result(timeout=LONG).startswith("new")
        assert here.submit(jobs.thread_name).result(timeout=LONG).startswith("old")  # whoever holds it may go on


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    """Its mistakes are raised, and all goes on."""
    path = written(tmp_path / "parallel.toml", '[pools.here]\nkind = "thread"\nthread_name_prefix = "old"')
    with Registry(path) as registry:
        here, edition = registry.pool("here"), registry.edition
        for bad in ("[pools.here]\nkind = 'thred'", "[pools", "[profiles.x]\n[tasks.'a:*']\npool = 'x'"):
            written(path, bad)
            with pytest.raises(ConfigError):
                registry.reload()
        path.unlink()
        with pytest.raises(ConfigError, match="can't be read"):
            registry.reload()
        assert registry.pool("here") is here
        assert registry.edition is edition
        assert where().result(timeout=LONG).startswith("old")


def test_nothing_changed_changes_nothing(tmp_path: Path) -> None:
    """Tasks need not look up anything anew."""
    path = written(tmp_path / "parallel.toml", '[pools.here]\nkind = "thread"')
    with Registry(path) as registry:
        edition = registry.edition
        registry.reload()
        assert registry.edition is edition


def test_rules_are_read_again(tmp_path: Path) -> None:
    """A task goes where the file now says, and an option is what it now says."""
    pools = "[pools.here]\nkind='thread'\nthread_name_prefix='a'\n[pools.b]\nkind='thread'\nthread_name_prefix='b'\n"
    path = written(tmp_path / "parallel.toml", pools)
    with Registry(path) as registry:
        assert where().result(timeout=LONG).startswith("a")
        written(path, f"{pools}[tasks.'*:where']\npool = 'b'")
        registry.reload()
        assert where().result(timeout=LONG).startswith("b")


def test_a_relative_path_is_that_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may change its working directory."""
    written(tmp_path / "parallel.toml", "[pools.here]\nkind = 'thread'")
    monkeypatch.chdir(tmp_path)
    with Registry("parallel.toml") as registry:
        monkeypatch.chdir("/")
        registry.reload()


def test_what_was_found_is_found_again(nowhere: Path) -> None:
    """A file that has come meanwhile is read."""
    with using({}):
        pass
    registry = default_registry()
    assert "here" not in registry.config.pools
    written(nowhere / "parallel.toml", "[pools.here]\nkind = 'inline'")
    registry.reload()
    assert "here" in registry.config.pools


def test_calls_in_flight_are_not_lost() -> None:
    """Running, queued, waiting for arguments, in back-off, and what follows all of them."""
    registry = configure({"pools": {"here": prefix("old", max_workers=1), "there": prefix("there")}})
    tries: list[int] = []
    again = threading.Event()

    @task(pool="here", retry=Retry(attempts=3, wait_initial=0.05, wait_max=0.05, wait_jitter=0))
    def flaky() -> str:
        tries.append(1)
        if len(tries) < 3:
            again.set()
            raise OSError
        return jobs.thread_name()

    with jobs.Gate() as gate:
        held = elsewhere.options(pool="there")
        argument = task(pool="there")(jobs.wait_at)(gate.address, "argument")
        gate.arrived()
        retried = flaky()
        assert again.wait(LONG)
        waiting = where(argument)
        following = argument.then(where).then(len)
        running = where()
        configure({"pools": {"here": prefix("new", max_workers=1), "there": prefix("there")}})
        assert default_registry() is registry
        assert where().result(timeout=LONG).startswith("new")
        gate.open()
        assert running.result(timeout=LONG)
        assert waiting.result(timeout=LONG).startswith("old")
        assert following.result(timeout=LONG) > 0
        assert retried.result(timeout=LONG).startswith("old")
        assert held(1).result(timeout=LONG).startswith("there")


def test_a_map_that_runs_goes_on_where_it_began() -> None:
    """Its items are sent as they are asked for."""
    configure({"pools": {"here": prefix("old", max_workers=2)}})
    stream = where.stream(iter(range(200)), buffersize=4)
    first = next(stream)
    configure({"pools": {"here": prefix("new", max_workers=2)}})
    names = [first, *stream]
    assert len(names) == 200
    assert all(name.startswith("old") for name in names)
    assert all(name.startswith("new") for name in where.map(range(10)).result(timeout=LONG))


def test_an_old_pool_ends_when_nothing_needs_it() -> None:
    """Its workers leave, although a task that was called there is never called again."""
    gc.collect()
    configure({"pools": {"here": prefix("old")}})
    with jobs.Gate() as gate:
        held = task(pool="here")(jobs.wait_at)(gate.address, "held")
        gate.arrived()
        assert where().result(timeout=LONG).startswith("old")
        configure({"pools": {"here": prefix("new")}})
        assert [thread for thread in threading.enumerate() if thread.name.startswith("old")]
        gate.open()
        assert held.result(timeout=LONG) == "held"
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("old")])


def test_shutdown_waits_for_old_pools() -> None:
    """All that was accepted is run, wherever."""
    registry = Registry({"pools": {"here": prefix("old", max_workers=1)}})
    with jobs.Gate() as gate, registry:
        held = task(pool="here")(jobs.wait_at)(gate.address, "held")
        gate.arrived()
        queued = [where() for _ in range(5)]
        ends = queued[-1].then(len)
        registry.read_from({"pools": {"here": prefix("new")}}, None)
        assert where().result(timeout=LONG).startswith("new")
        gate.open()
    assert held.done()
    assert all(call.done() for call in queued)
    assert ends.done()


def test_shutdown_cancels_in_old_pools() -> None:
    """What waits there is cancelled, too."""
    registry = Registry({"pools": {"here": prefix("old", max_workers=1)}})
    with jobs.Gate() as gate:
        with using(registry):
            held = task(pool="here")(jobs.wait_at)(gate.address, "held")
            gate.arrived()
            queued = where()
        registry.read_from({"pools": {"here": prefix("new")}}, None)
        registry.shutdown(wait=False, cancel_futures=True)
        assert queued.cancelled()
        gate.open()
        registry.shutdown()
        assert held.done()


def test_a_pool_that_is_gone() -> None:
    """Calls to it are refused, with what is there; those that it has are run."""
    configure({"pools": {"here": prefix("old")}})
    call = where()
    configure({"pools": {"there": prefix("new")}})
    with pytest.raises(LookupError, match=r"no pool named 'here'.*there"):
        where()
    assert call.result(timeout=LONG).startswith("old")


def test_a_kind_that_is_changed() -> None:
    """From threads to processes, and back."""
    pid = task(pool="here")(jobs.pid)
    configure({"pools": {"here": {"kind": "thread"}}})
    assert pid().result(timeout=LONG) == os.getpid()
    configure({"pools": {"here": {"kind": "process", "max_workers": 1}}})
    assert pid().result(timeout=LONG) != os.getpid()
    configure({"pools": {"here": {"kind": "inline"}}})
    assert pid().result(timeout=LONG) == os.getpid()


def test_worker_processes_learn_of_new_rules() -> None:
    """A pool about which the same is said goes on, and its workers call by the new rules."""
    pools = {"far": {"kind": "process", "max_workers": 1}, "here": prefix("old"), "other": prefix("new")}
    registry = configure({"pools": pools})
    far = registry.pool("far")
    call = task(pool="far")(nested)
    assert call().result(timeout=LONG).startswith("old")
    configure({"pools": pools, "tasks": {"*:where": {"pool": "other"}}})
    assert registry.pool("far") is far
    wait_until(lambda: call().result(timeout=LONG).startswith("new"))
    assert call().result(timeout=LONG).startswith("new")


def test_reload_while_others_call() -> None:
    """Threads that call all the time see the old pools or the new ones, and lose nothing."""
    registry = configure({"pools": {"here": prefix("n0x", max_workers=2)}})
    stop = threading.Event()
    calls: list[list[Future[str]]] = [[], [], []]

    def call(made: list[Future[str]]) -> None:
        while not stop.is_set():
            made.append(where())
            if len(made) % 50 == 0:
                made[-1].result(timeout=LONG)

    threads = [threading.Thread(target=call, args=(made,)) for made in calls]
    for thread in threads:
        thread.start()
    try:
        for index in range(30):
            configure({"pools": {"here": prefix(f"n{index}x", max_workers=2)}})
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG)
    names = gather(*(call for made in calls for call in made)).result(timeout=LONG)
    assert all(name.startswith("n") for name in names)
    assert default_registry() is registry
    assert where().result(timeout=LONG).startswith("n29x")


def test_reload_after_shutdown() -> None:
    """There is nothing to change any more."""
    registry = Registry({})
    registry.shutdown()
    with pytest.raises(PoolShutdownError):
        registry.reload()


def test_configure_after_shutdown() -> None:
    """A default registry that was shut down is replaced."""
    before = configure({})
    before.shutdown()
    after = configure({"pools": {"here": prefix("x")}})
    assert after is not before
    assert where().result(timeout=LONG).startswith("x")


def test_reload_in_a_signal_handler(run_script: Runner) -> None:
    """It may come at any point of any call: nothing hangs, and no call is lost."""
    done = run_script(
        """
import itertools, signal, sys
from parallel import configure, task

texts = itertools.cycle([f"[pools.here]\\nkind = 'thread'\\nmax_workers = {n}" for n in (1, 2)])

def write():
    with open("parallel.toml", "w") as file:
        file.write(next(texts))

write()
registry = configure("parallel.toml")
count = 0

def reload(signum, frame):
    global count
    write()
    registry.reload()
    count += 1
    signal.setitimer(signal.ITIMER_REAL, 0.001)

@task(pool="here")
def double(x):
    return 2 * x

signal.signal(signal.SIGALRM, reload)
signal.setitimer(signal.ITIMER_REAL, 0.001)
made = 0
while count < 200:
    calls = [double.options(priority=x % 2)(x) if x % 3 else double(x) for x in range(20)]
    assert [call.result(timeout=30) for call in calls] == [2 * x for x in range(20)]
    made += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print("all", registry.config.pools["here"].kind)
"""
    )
    assert done.stdout.split() == ["all", "thread"]
