"""
What may be said about a pool, kind by kind.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallel import kinds
from parallel.config import from_mapping
from parallel.errors import ConfigError
from parallel.kinds import InlineConfig, LoopConfig, PoolConfig, ProcessConfig, ThreadConfig, cpus

ROOT = Path(kinds.__file__).parent.parent


def mistake_in(name: str, **options: object) -> str:
    """Say something wrong about one pool in a file, and return the one mistake."""
    with pytest.raises(ConfigError) as caught:
        from_mapping({"pools": {name: options}})
    (line,) = caught.value.mistakes
    return line


def test_arguments_leave_out_what_is_not_said() -> None:
    """A default means the pool's own."""
    for config in kinds.KINDS.values():
        assert config().arguments() == {}
    assert ThreadConfig(thread_name_prefix="io").arguments() == {"thread_name_prefix": "io"}
    assert ProcessConfig(max_tasks_per_child=5).arguments() == {"max_tasks_per_child": 5}
    assert LoopConfig(max_workers=3).arguments() == {"max_workers": 3}


@pytest.mark.parametrize(
    ("said", "on_eight", "on_one"),
    [("cpus", 8, 1), ("cpus-1", 7, 1), ("2*cpus", 16, 2), ("2*cpus-3", 13, 1), ("cpus-99", 1, 1)],
)
def test_workers_as_a_share_of_the_cpus(said: str, on_eight: int, on_one: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share is resolved on the machine that runs, to 1 at least."""
    for count, workers in ((8, on_eight), (1, on_one)):
        monkeypatch.setattr(kinds, "cpus", lambda count=count: count)
        assert ThreadConfig(max_workers=said).arguments()["max_workers"] == workers


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this platform pins no processes")
def test_cpus_are_those_that_this_process_may_use() -> None:
    """A process that is pinned to one CPU counts one."""
    code = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); from parallel import kinds as k"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(k.cpus())"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "1", done.stderr
    assert cpus() >= 1


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, 8.0, "8", "cpu", "cpus-0", "0*cpus", "cpus*2", "2 * cpus", [4]])
def test_wrong_numbers_of_workers(wrong: object) -> None:
    """Workers are counted from 1; a file and a program hear the same."""
    for cls in (ThreadConfig, ProcessConfig, LoopConfig):
        with pytest.raises(ValueError, match=r"^max_workers: expected an integer of at least 1 or a string such as"):
            cls(max_workers=wrong)  # type: ignore[arg-type]  # that is the test
    line = mistake_in("threads", max_workers=wrong)
    assert line.startswith("pools.threads.max_workers: expected an integer of at least 1 or a string such as")


def test_only_start_methods_of_this_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """`spawn` is everywhere."""
    assert ProcessConfig(mp_context="spawn").arguments()["mp_context"] == "spawn"
    monkeypatch.setattr(kinds, "_START_METHODS", ("spawn",))
    line = mistake_in("processes", mp_context="fork")
    assert line.startswith("pools.processes.mp_context: expected a start method that this platform has")


# What waits

BOUNDED: list[tuple[type[ThreadConfig] | type[ProcessConfig] | type[LoopConfig], str]] = [
    (ThreadConfig, "threads"),
    (ProcessConfig, "processes"),
    (LoopConfig, "loop"),
]


@pytest.mark.parametrize(("cls", "name"), BOUNDED)
def test_pending_calls_may_be_bounded(
    cls: type[ThreadConfig] | type[ProcessConfig] | type[LoopConfig], name: str
) -> None:
    """With a number, and with what to do when so many wait."""
    assert cls(max_pending=5).arguments() == {"max_pending": 5}
    assert cls(max_pending=5, on_full="raise").arguments() == {"max_pending": 5, "on_full": "raise"}
    read = from_mapping({"pools": {name: {"max_pending": 1, "on_full": "block"}}}).pools[name]
    assert read == cls(max_pending=1, on_full="block")


@pytest.mark.parametrize(("cls", "name"), BOUNDED)
@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "5", float("inf"), [5]])
def test_pending_calls_are_counted_from_1(
    wrong: object, cls: type[ThreadConfig] | type[ProcessConfig] | type[LoopConfig], name: str
) -> None:
    """Whatever else is given is named."""
    with pytest.raises(ValueError, match=r"^max_pending: expected an integer of at least 1, found \S+ .+"):
        cls(max_pending=wrong)  # type: ignore[arg-type]  # that is the test
    assert mistake_in(name, max_pending=wrong).startswith(
        f"pools.{name}.max_pending: expected an integer of at least 1"
    )


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_full_pool_may_run_a_call_on_its_caller(kind: str) -> None:
    """Threads and processes run plain functions, which can run anywhere."""
    pool = from_mapping({"pools": {"x": {"kind": kind, "max_pending": 1, "on_full": "run"}}}).pools["x"]
    assert pool.arguments() == {"max_pending": 1, "on_full": "run"}


def test_a_full_loop_runs_nothing_on_its_caller() -> None:
    """The mistake says which kinds can."""
    with pytest.raises(ValueError, match=r"^on_full: expected 'block' or 'raise', found string 'run'"):
        LoopConfig(max_pending=1, on_full="run")  # type: ignore[arg-type]  # that is the test
    assert mistake_in("loop", max_pending=1, on_full="run") == (
        "pools.loop.on_full: expected 'block' or 'raise', found string 'run'; "
        "a coroutine can't run on its caller, as calls of the kinds thread and process can"
    )


@pytest.mark.parametrize("wrong", ["", "drop", True, 3, ["run"], {}])
def test_what_else_a_full_pool_can_not_do(wrong: object) -> None:
    """The words are told."""
    line = mistake_in("threads", max_pending=1, on_full=wrong)
    assert line.startswith("pools.threads.on_full: expected 'block', 'raise' or 'run', found ")


def test_the_nearest_word_is_suggested() -> None:
    """As for every word."""
    assert mistake_in("threads", max_pending=1, on_full="rise").endswith("found string 'rise' (did you mean 'raise'?)")


@pytest.mark.parametrize(("cls", "name"), BOUNDED)
def test_a_pool_that_never_gets_full(
    cls: type[ThreadConfig] | type[ProcessConfig] | type[LoopConfig], name: str
) -> None:
    """Without *max_pending*, *on_full* would be ignored: that is a mistake."""
    expected = "on_full: expected only beside max_pending, found string 'block' without it"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        cls(on_full="block")
    assert mistake_in(name, on_full="block") == f"pools.{name}.{expected}"


def test_inline_calls_never_wait() -> None:
    """So nothing bounds them."""
    line = mistake_in("x", kind="inline", max_pending=3)
    assert line.startswith("pools.x.max_pending: kind 'inline' has no such option, but ")


def test_helping_can_be_turned_off() -> None:
    """For threads, whose calls may hold locks; it is on otherwise."""
    assert ThreadConfig().helping
    assert ThreadConfig(helping=False).arguments() == {"helping": False}
    assert from_mapping({"pools": {"threads": {"helping": False}}}).pools["threads"] == ThreadConfig(helping=False)
    assert mistake_in("threads", helping="false") == "pools.threads.helping: expected a boolean, found string 'false'"
    assert mistake_in("threads", helping=0) == "pools.threads.helping: expected a boolean, found integer 0"
    assert mistake_in("processes", helping=True).startswith(
        "pools.processes.helping: kind 'process' has no such option, but 'thread' has"
    )


def test_every_kind_says_what_it_is() -> None:
    """And has the base that `Config.pools` promises."""
    for kind, config in kinds.KINDS.items():
        assert (config.kind, issubclass(config, PoolConfig)) == (kind, True)
    assert kinds.KINDS["inline"] is InlineConfig
