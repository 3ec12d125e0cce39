"""
Chains: a call with three plain continuations, and chains whose links run in other pools.

By hand means what a program writes that has nothing but the standard library: a future for each link, ended by a
callback of the one before, and each error handed on.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any

from measures.peers import installed, thread_pools
from measures.rounds import OURS, WORKERS, Row, Scale, in_turn, per_call
from measures.work import one, same, same_later
from parallel import Future, Registry, ThreadPool, task

BY_HAND = "by hand"

BUDGET = 20.0
"""Microseconds of a call with three continuations, all in all."""

NOISE = 0.05
"""By how much the chain through other pools may exceed the round trips: as much as two equal sides differ here."""

on_a = task(pool="a")(same)
on_b = task(pool="b")(same)
on_loop = task(pool="loop")(same_later)
on_process = task(pool="p")(same)

POOLS = {
    "a": {"kind": "thread", "max_workers": WORKERS},
    "b": {"kind": "thread", "max_workers": WORKERS},
    "p": {"kind": "process", "max_workers": WORKERS},
}


def chains(scale: Scale) -> Iterator[Row]:
    """Compare a call with three plain continuations."""
    with ThreadPool(WORKERS) as ours, concurrent.futures.ThreadPoolExecutor(WORKERS) as standard, ExitStack() as stack:
        makers: dict[str, Callable[[], Any]] = {
            OURS: lambda: ours.submit(one).then(same).then(same).then(same),
            BY_HAND: lambda: by_hand(by_hand(by_hand(standard.submit(one), same), same), same),
            **_peers(stack),
        }
        many = {name: scale.calls if name in (OURS, BY_HAND) else scale.fewer for name in makers}
        sides = {name: per_call(_gather(make), many[name]) for name, make in makers.items()}
        gathered = in_turn("µs", sides, scale.rounds)
        yield gathered.itself("call and 3 then, gathered", BUDGET)
        yield gathered.without_peers().ratio("the same, beside by hand", 1.0)
        sides = {name: per_call(_one_by_one(make), scale.few) for name, make in makers.items()}
        yield in_turn("µs", sides, scale.rounds).ratio("the same, one by one", 1.0)


def by_hand(future: concurrent.futures.Future[Any], fn: Callable[[Any], Any]) -> concurrent.futures.Future[Any]:
    """Call *fn* with the value of *future*; the future of what it returns."""
    after: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def follow(ended: concurrent.futures.Future[Any]) -> None:
        try:
            value = fn(ended.result())
        except BaseException as error:
            after.set_exception(error)
        else:
            after.set_result(value)

    future.add_done_callback(follow)
    return after


def _peers(stack: ExitStack) -> dict[str, Callable[[], Any]]:
    """Return how the peers chain that can."""
    there, pools = installed(), stack.enter_context(thread_pools())
    found: dict[str, Callable[[], Any]] = {}
    if "unsync" in there:
        submit = pools["unsync"].submit
        found["unsync"] = lambda: submit(one).then(same).then(same).then(same)
    if "more-executors" in there:
        f_map: Any = import_module("more_executors").f_map
        pool = pools["more-executors"]
        found["more-executors"] = lambda: f_map(f_map(f_map(pool.submit(one), same), same), same)
    return found


def _gather(make: Callable[[], Any]) -> Callable[[int], None]:
    def gather(calls: int) -> None:
        for future in [make() for _ in range(calls)]:
            future.result()

    return gather


def _one_by_one(make: Callable[[], Any]) -> Callable[[int], None]:
    def one_by_one(calls: int) -> None:
        for _ in range(calls):
            make().result()

    return one_by_one


def hops(scale: Scale) -> Iterator[Row]:
    """Compare a chain through tasks of other pools with as many round trips to the same pools."""
    with Registry({"pools": POOLS}):
        for what, stages in (
            ("a, b, a: threads", (on_a, on_b, on_a)),
            ("a, b, loop, a: threads, a loop", (on_a, on_b, on_loop, on_a)),
            ("a, p, b, a: threads, processes", (on_a, on_process, on_b, on_a)),
        ):
            sides = {
                OURS: per_call(_one_by_one(partial(_chain, stages)), scale.few),
                "round trips": per_call(_one_by_one(partial(_round_trips, stages)), scale.few),
            }
            yield in_turn("µs", sides, scale.rounds).ratio(what, 1.0 + NOISE)


def _chain(stages: tuple[Any, ...]) -> Future[Any]:
    first, *others = stages
    future: Future[Any] = first(1)
    for stage in others:
        future = future.then(stage)
    return future


def _round_trips(stages: tuple[Any, ...]) -> Future[Any]:
    """Wait for each stage before the next; the last is waited for by the caller."""
    *others, last = stages
    value: Any = 1
    for stage in others:
        value = stage(value).result()
    future: Future[Any] = last(value)
    return future
