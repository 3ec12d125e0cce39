"""
What futures hang on, and the stages of tasks, as graphs.

    future.tree() ──▶ what it hangs on, and what that hangs on ──┐
    task.graph() ───▶ its stages, in their pools ────────────────┴──▶ Graph

A future lets go of what it has followed when it ends: of that, the names of its chain are left.

Nothing here has state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from attrs import evolve

from parallel.chains import chain_of, short_name
from parallel.context import current_registry
from parallel.graphs import Edge, Graph, Node
from parallel.observe.recording import text_of
from parallel.observe.statistics import last_times
from parallel.outcomes import CANCELLED
from parallel.pools.base import pools
from parallel.registry import Registry
from parallel.states import State, is_ours
from parallel.trail import clock, id_of

if TYPE_CHECKING:
    from parallel.futures import Future
    from parallel.tasks import Task

MOST: Final = 1000
"""Futures of one graph; what those beyond that hang on is left out."""


# -- of tasks ---------------------------------------------------------------------------------------------------------


def graph_of_task(task: Task[..., Any]) -> Graph:
    """Return the stages of a task, each with the name of its pool; no pool is opened."""
    registry = _registry()
    first, ties = task.parts()
    stages = [first, *(stage[-1] for _, stage in ties)]
    edges = [Edge(number, number + 1, how.rstrip("_")) for number, (how, _) in enumerate(ties)]
    return Graph(tuple(_stage(stage, registry) for stage in stages), tuple(edges))


def _registry() -> Registry:
    return cast(Registry, current_registry())


def _stage(stage: Any, registry: Registry) -> Node:
    saying = getattr(stage, "saying", None)
    if saying is None:
        return Node(short_name(stage))
    name = registry.options_of(saying).pool or ""
    config = registry.config.pools.get(name)
    return Node(saying.task, f"pool {name!r}" if config is None else f"{config.kind} pool {name!r}")


# -- of futures -------------------------------------------------------------------------------------------------------


def tree_of_future(future: Future[Any]) -> Graph:
    """Return what a future hangs on, itself first."""
    walk = _Walk()
    walk.add(future)
    for each in walk.futures:  # more come on the way
        if len(walk.futures) < MOST:
            walk.go_on(each)
    return Graph(tuple(walk.nodes), tuple(walk.edges), is_backward=True)


class _Walk:
    """The way from a future to all that it hangs on."""

    def __init__(self) -> None:
        self.futures: list[Any] = []
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self._numbers: dict[int, int] = {}  # by the ids of futures, which are kept here
        self._times = last_times()
        self._running = {worker.call_id: worker.since for pool in pools() for worker in pool.at_work()}

    def add(self, future: Any) -> int:
        """Add a future, if it is not there; return its number."""
        number = self._numbers.get(id(future))
        if number is None:
            number = self._numbers[id(future)] = len(self.nodes)
            self.futures.append(future)
            self.nodes.append(self._node(future))
            if is_ours(future) and future.done():
                self._add_names(number, future)
        return number

    def _add_names(self, number: int, future: State[Any]) -> None:
        """Add the stages that led to one that has ended: their names are all that is left of them."""
        for name in reversed(chain_of(future.__dict__)[1:-1]):
            self.edges.append(Edge(len(self.nodes), number, "then"))
            number = len(self.nodes)
            self.nodes.append(Node(name, state="ended"))
            self.futures.append(None)

    def go_on(self, future: Any) -> None:
        """Add what one future hangs on."""
        if not is_ours(future) or future.done():
            return
        number = self._numbers[id(future)]
        for feed in future.feeds:
            if feed.how == "arguments" and is_ours(feed.source) and feed.source.feeds:
                for argument in feed.source.feeds:
                    self._tie(argument.source, number, "argument")
            else:
                self._tie(feed.source, number, "part" if feed.joins else feed.how)
        for awaited in future.awaited():
            if awaited is not None:
                self._tie(awaited, number, "awaited")

    def _tie(self, source: Any, number: int, how: str) -> None:
        self.edges.append(Edge(self.add(source), number, how))

    def _node(self, future: Any) -> Node:
        if not is_ours(future):
            return Node(type(future).__name__, state="succeeded" if future.done() else "running")
        fields, feeds = future.__dict__, future.feeds
        state, error = _state(future)
        seconds = self._seconds(future, state)
        made = fields.get("_made")
        if made is not None:
            return Node(made[0].name, made[0].pool, state, seconds, error)
        joins = next((feed.joins for feed in feeds if feed.joins), "")
        if joins:
            return Node(joins, "", state, seconds, error)
        stage = next((fn for feed in feeds if (fn := getattr(feed, "fn", None)) is not None), None)
        if hasattr(stage, "saying"):  # a task, which runs in its own pool
            return evolve(_stage(stage, _registry()), state=state, seconds=seconds, error=error)
        chain = chain_of(fields)
        name = chain[-1] if len(chain) > 1 else f"a {type(future).__name__}"
        return Node(name, str(getattr(future.dispatcher, "label", "")), state, seconds, error)

    def _seconds(self, future: State[Any], state: str) -> float | None:
        number = id_of(future)
        if state != "running":
            time = self._times.get(number)
            return None if time is None else time / 1e9
        since = self._running.get(number, 0)
        return (clock() - since) / 1e9 if since else None


def _state(future: State[Any]) -> tuple[str, str]:
    outcome = future.ended()
    if outcome is None:
        waits = future.feeds or future.awaited()
        return ("waiting" if waits else "running" if future.running() else "queued"), ""
    error = outcome[1]
    if error is None:
        return "succeeded", ""
    if error is CANCELLED:
        return "cancelled", ""
    return "failed", " ".join(text_of(error).split())[:200]
