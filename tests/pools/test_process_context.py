"""
Context variables that travel to worker processes: those that a pool's `context` names.
"""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
from pools import context_jobs
from pools.context_jobs import SESSION, USER

from parallel import ConfigError, ProcessPool, Registry, SerializationError, result_of, task, using

LONG = 30  # seconds; only a deadlock takes so long
METHODS = ["fork", "forkserver", "spawn"]
BOTH = ("pools.context_jobs:USER", "pools.context_jobs:SESSION")


@pytest.mark.parametrize("method", METHODS)
def test_values_travel(method: str) -> None:
    """A call sees the values that the named variables had where it was made; the next one doesn't."""
    with ProcessPool(1, method, context=BOTH) as pool:
        assert pool.submit(context_jobs.seen).result(LONG) == ("nobody", None)
        context = contextvars.copy_context()
        context.run(USER.set, "eve")
        context.run(SESSION.set, {"basket": [1, 2]})
        inside = context.run(pool.submit, context_jobs.seen)
        outside = pool.submit(context_jobs.seen)
        assert inside.result(LONG) == ("eve", {"basket": [1, 2]})
        assert outside.result(LONG) == ("nobody", None)


def test_many_calls_with_different_values() -> None:
    """Calls that travel together keep their values apart, and so do calls with arguments of all kinds."""

    def call(number: int) -> Any:
        USER.set(f"user {number}")
        return pool.submit(context_jobs.seen_with, number, [number], key="x" * number)

    with ProcessPool(2, context=BOTH) as pool:
        futures = [contextvars.copy_context().run(call, number) for number in range(500)]
        expected = [(f"user {number}", number, [number], "x" * number) for number in range(500)]
        assert [future.result(LONG) for future in futures] == expected


def test_functions_by_value() -> None:
    """A function that travels by value sees them as well; it looks them up itself."""

    def call() -> Any:
        USER.set("ann")
        return pool.submit(lambda: context_jobs.seen())

    with ProcessPool(1, context=BOTH) as pool:
        assert contextvars.copy_context().run(call).result(LONG) == ("ann", None)


def test_tasks() -> None:
    """A task takes the values of where it is called, also when it has waited for its arguments, or follows another."""
    pools = {"one": {"kind": "process", "max_workers": 1, "context": list(BOTH)}}

    def calls() -> Any:
        USER.set("bob")
        seen = task(pool="one", timeout=LONG)(context_jobs.seen)
        with_argument = task(pool="one")(context_jobs.seen_with)
        slow = task(pool="threads")(lambda: 7)
        follower = slow().then(task(pool="one")(context_jobs.seen_and))
        return seen(), with_argument(result_of(slow()), 1, key="k"), follower

    with using({"pools": pools}):
        first, second, third = contextvars.copy_context().run(calls)
        assert first.result(LONG) == ("bob", None)
        assert second.result(LONG) == ("bob", 7, 1, "k")
        assert third.result(LONG) == ("bob", 7)


def test_value_that_cant_travel() -> None:
    """A value that can't be pickled fails its call."""

    def call() -> Any:
        SESSION.set(context_jobs.Unpicklable())
        return pool.submit(context_jobs.seen)

    with ProcessPool(1, context=BOTH) as pool:
        with pytest.raises(SerializationError, match="no way"):
            contextvars.copy_context().run(call).result(LONG)
        assert pool.submit(context_jobs.seen).result(LONG) == ("nobody", None)


@pytest.mark.parametrize(
    ("context", "error", "text"),
    [
        ("pools.context_jobs:USER", TypeError, "a list of import strings, found the one string"),
        (["pools.context_jobs.USER"], ValueError, "did you mean 'pools.context_jobs:USER'"),
        (["pools.context_jobs:seen"], ValueError, "name a ContextVar, found <function seen"),
        (["pools.context_jobs:NONE"], AttributeError, "NONE"),
        (["pools.no_such_module:USER"], ImportError, "no_such_module"),
    ],
)
def test_wrong_names(context: Any, error: type[Exception], text: str) -> None:
    """What names no context variable is refused when the pool is made."""
    with pytest.raises(error, match=text):
        ProcessPool(1, context=context)


def test_wrong_names_in_a_configuration() -> None:
    """In a configuration, what has not the form is refused at once; what names nothing, when the pool opens."""
    with pytest.raises(ConfigError, match="a list of import strings"):
        Registry({"pools": {"one": {"kind": "process", "context": ["no import string"]}}})
    for wrong in ("NONE", "seen"):
        pools = {"one": {"kind": "process", "context": [f"pools.context_jobs:{wrong}"]}}
        with Registry({"pools": pools}) as registry, pytest.raises(ConfigError, match=r"pools\.one\.context"):
            registry.pool("one")
