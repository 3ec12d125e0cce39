"""
The shape of a program: futures and what they hang on, tasks and their stages.
"""

from __future__ import annotations

import concurrent.futures
import io
import re

import jobs
import pytest
import rich.console
from pools.process_jobs import wait_until

from parallel import Future, Registry, completed, first, gather, race, settle, task, unseen, using
from parallel.graphs import Edge, Graph, Node

LONG = 30.0

double = task(jobs.double, pool="thread")
in_process = task(jobs.double, pool="process")
add = task(jobs.add, pool="thread")
wait_at = task(jobs.wait_at, pool="thread")


def shown(graph: Graph) -> str:
    """The text of a graph, without times."""
    return re.sub(r"running [\d.]+ m?u?s", "running", str(graph))


def test_a_task(kinds: Registry) -> None:
    """One is one line, with its pool; no pool is opened."""
    assert str(double.graph()) == "jobs:double (thread pool 'thread')"
    assert kinds.open_pools() == []


def test_a_chain_of_tasks(kinds: Registry) -> None:
    """Stages come one after the other, with how they are tied, each in its pool; a plain function has none."""
    chain = double.then(in_process).catch(ValueError, jobs.same).finally_(jobs.nothing)
    assert str(chain.graph()) == (
        "jobs:double (thread pool 'thread')\n"
        "└─ then jobs:double (process pool 'process')\n"
        "   └─ catch same\n"
        "      └─ finally nothing"
    )


def test_pools_are_those_of_the_configuration(nowhere: object) -> None:
    """A rule decides, and options do."""
    rules = {"pools": {"heavy": {"kind": "process"}}, "tasks": {"jobs:double": {"pool": "heavy"}}}
    with Registry(rules) as registry, using(registry):
        assert str(double.graph()) == "jobs:double (process pool 'heavy')"
        assert str(double.options(pool="loop").graph()) == "jobs:double (loop pool 'loop')"


def test_what_a_future_hangs_on(kinds: Registry) -> None:
    """The tree goes from the future to what has to end before: continuations, arguments, joins."""
    with jobs.Gate() as gate:
        slow = wait_at(gate.address, 3)
        gate.arrived()
        end = add(slow.then(in_process), gather(slow, double(1)).then(sum)).then(jobs.same)
        wait_until(lambda: "succeeded" in str(end.tree()))
        assert shown(end.tree()) == (
            "same (waiting, thread pool 'thread')\n"
            "└─ then jobs:add (waiting, thread pool 'thread')\n"
            "   ├─ argument jobs:double (waiting, process pool 'process')\n"
            "   │  └─ then jobs:wait_at (running, thread pool 'thread')\n"
            "   └─ argument sum (waiting, thread pool 'thread')\n"
            "      └─ then gather (waiting)\n"
            "         ├─ part jobs:wait_at (running, thread pool 'thread') …\n"
            "         └─ part jobs:double (succeeded, thread pool 'thread')"
        )
        gate.open()
        end.result(LONG)


@pytest.mark.parametrize("join", [gather, settle, race, first])
def test_joins(join: object, kinds: Registry) -> None:
    """Each is called by its name."""
    with jobs.Gate() as gate:
        future = join(wait_at(gate.address), wait_at(gate.address))  # type: ignore[operator]  # each is a function
        gate.arrived(2)
        assert str(future.tree()).startswith(f"{join.__name__} (waiting)\n├─ part jobs:wait_at")  # type: ignore[attr-defined]  # as above
        gate.open()
        future.result(LONG)


def test_what_a_body_waits_for(kinds: Registry) -> None:
    """A call whose body waits for another shows that one."""

    def outer(address: tuple[str, int]) -> int:
        return task(jobs.wait_at, pool="process")(address, 5).result()

    with jobs.Gate() as gate:
        future = task(outer, pool="thread")(gate.address)
        gate.arrived()
        wait_until(lambda: "awaited" in str(future.tree()))
        lines = shown(future.tree()).splitlines()
        assert lines[1] == "└─ awaited jobs:wait_at (running, process pool 'process')"
        gate.open()
        assert future.result(LONG) == 5


@pytest.mark.parametrize("kind", ["thread", "process", "loop"])
def test_how_long_it_runs(kind: str, kinds: Registry) -> None:
    """Of a call that runs it is told for how long."""
    with jobs.Gate() as gate:
        fn = jobs.to_thread(jobs.wait_at) if kind == "loop" else jobs.wait_at
        future = task(fn, pool=kind)(gate.address)
        gate.arrived()
        assert re.search(r"\(running [\d.]+ m?u?s, ", str(future.tree()))
        gate.open()
        future.result(LONG)


def test_how_long_it_ran() -> None:
    """Of one that has ended, if somebody observes; and how it has ended in any case."""
    with Registry({"observe": {"stats": True}}) as registry:
        future = registry.pool("threads").submit(jobs.divide, 1, 0)
        error = future.exception(LONG)
        assert isinstance(error, ZeroDivisionError)
        assert re.search(r"\(failed [\d.]+ u?m?s, thread pool 'threads'\): ZeroDivisionError: div", str(future.tree()))


def test_ends(kinds: Registry) -> None:
    """What has ended says how; of a chain the names of its stages are left."""
    assert str(completed(3).tree()) == "a Future (succeeded)"
    chain = double(1).then(jobs.same).then(lambda _: 1 / 0).catch(TypeError, str)
    chain.exception(LONG)
    assert str(chain.tree()).splitlines() == [
        "str (failed, thread pool 'thread'): ZeroDivisionError: division by zero",
        "└─ then test_ends.<locals>.<lambda> (ended)",
        "   └─ then same (ended)",
        "      └─ then double (ended)",
    ]
    cancelled: Future[int] = Future()
    assert cancelled.cancel()
    assert str(cancelled.tree()) == "a Future (cancelled)"


def test_to_look_is_no_look_at_a_failure(kinds: Registry) -> None:
    """A failure whose tree was printed is reported as ever."""
    future = double(None)
    wait_until(future.done)
    str(future.tree())
    assert len(unseen.unlooked()) == 1
    assert isinstance(future.exception(), TypeError)


def test_futures_of_others(kinds: Registry) -> None:
    """A standard future is told by its type; a map by its own."""
    other: concurrent.futures.Future[int] = concurrent.futures.Future()
    future = gather(other, double(1))
    assert "part Future (running)" in str(future.tree())
    other.set_result(1)
    future.result(LONG)
    with jobs.Gate() as gate:
        mapped = wait_at.map([gate.address] * 2)
        gate.arrived()
        assert "awaited" in str(mapped.tree())
        gate.open()
        mapped.result(LONG)


def test_long_chains(kinds: Registry) -> None:
    """Thousands of stages are no matter."""
    with jobs.Gate() as gate:
        start = end = wait_at(gate.address, 1)
        gate.arrived()
        for _ in range(3000):
            end = end.then(jobs.same)
        graph = end.tree()
        assert 1000 <= len(graph.nodes) <= 1001
        assert str(graph).count("\n") == len(graph.nodes) - 1
        assert graph.mermaid().count("-->") == len(graph.edges)
        start.cancel()
        gate.open()


def test_many_ways(kinds: Registry) -> None:
    """A future to which many ways lead is shown once, and named again."""
    with jobs.Gate() as gate:
        future: Future[object] = wait_at(gate.address, 1)  # type: ignore[assignment]  # a Future[Any]
        gate.arrived()
        for _ in range(40):
            future = gather(future, future)  # type: ignore[assignment]  # of a pair
        graph = future.tree()
        assert len(graph.nodes) == 41
        assert str(graph).count("…") == 40
        gate.open()
        future.result(LONG)


GRAPH = Graph(
    (Node('say "hi" <now>', "thread pool 'io'", "failed", 1.5, "E: #1"), Node("b", state="queued")),
    (Edge(0, 1, "then"),),
)


def test_mermaid() -> None:
    """What Mermaid would take for its own is written otherwise."""
    assert GRAPH.mermaid() == (
        "flowchart LR\n"
        "    n0[\"say #quot;hi#quot; #lt;now#gt;<br/>thread pool 'io'<br/>failed 1.5 s<br/>E: #35;1\"]\n"
        '    n1["b<br/>queued"]\n'
        '    n0 -->|"then"| n1\n'
        "    style n0 fill:#ffcdd2,color:#000\n"
    )


def test_dot() -> None:
    """Quotes and backslashes are escaped."""
    assert GRAPH.dot() == (
        "digraph parallel {\n"
        "    rankdir=LR;\n"
        '    node [shape=box, style="rounded,filled", fillcolor=white];\n'
        '    n0 [label="say \\"hi\\" <now>\\nthread pool \'io\'\\nfailed 1.5 s\\nE: #1", fillcolor="#ffcdd2"];\n'
        '    n1 [label="b\\nqueued"];\n'
        '    n0 -> n1 [label="then"];\n'
        "}\n"
    )


def test_rich() -> None:
    """Rich prints it as a tree; what looks like markup stays."""
    out = io.StringIO()
    graph = Graph((Node("a[b]", state="running"), Node("c")), (Edge(0, 1, "then"), Edge(1, 0, "then")))
    rich.console.Console(file=out, width=60).print(graph)
    assert out.getvalue().splitlines() == [" a[b] (running)", "└── then c", "    └── then a[b] (running)"]
