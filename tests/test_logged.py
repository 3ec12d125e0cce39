"""
Log records that tell of which call they are, from threads, coroutines and processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from pools.process_jobs import wait_until

from parallel import CallFilter, Registry, Retry, current_task, parallel_map, task
from parallel.trail import id_of

LONG = 30.0
LOGGER = logging.getLogger("tests.logged")


class Kept(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.records.append(record)

    def facts(self) -> list[tuple[object, object, object, object, str]]:
        """What the records say of their calls, with their messages."""
        names = ("task", "call_id", "attempt", "pool")
        return [(*(getattr(record, name) for name in names), record.getMessage()) for record in self.records]  # type: ignore[return-value]  # of four


@pytest.fixture
def kept() -> Iterator[Kept]:
    """A handler with the filter, at the root."""
    handler = Kept()
    handler.addFilter(CallFilter())
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)


def say(word: str) -> int:
    """Log."""
    LOGGER.warning("said %s", word)
    return current_task().id


async def say_later(word: str) -> int:
    """Log, in a coroutine."""
    return say(word)


def say_and_fail(word: str) -> None:
    """Log, and raise."""
    say(word)
    raise OSError(word)


def say_with_extra() -> None:
    """Log with an attribute of the same name."""
    LOGGER.warning("said", extra={"task": "mine"})


def say_item(number: int) -> int:
    """Log, of an item of a map."""
    LOGGER.warning("item %d", number)
    return number


@pytest.mark.parametrize("kind", ["thread", "loop", "inline", "process"])
def test_calls_of_every_kind(kind: str, kinds: Registry, kept: Kept) -> None:
    """Task, number, attempt and pool of the call are there."""
    fn = task(say_later if kind == "loop" else say, pool=kind)
    future = fn("a")
    future.result(LONG)
    wait_until(lambda: kept.records)
    (facts,) = kept.facts()
    assert facts == (fn.name, facts[1], 1, f"{kind} pool {kind!r}", "said a")
    if kind == "process":  # a call without terms doesn't know its number there, but its record does
        assert facts[1] == id_of(future)
    else:
        assert facts[1] == future.result()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_numbers_are_those_of_events(kind: str, kinds: Registry, kept: Kept) -> None:
    """A record's `call_id` is that of the call's events, also from a process."""
    events = kinds.events()
    task(say, pool=kind)("a").result(LONG)
    wait_until(lambda: kept.records)
    events.close()
    created = []
    with kinds.events() as events:
        task(say, pool=kind)("b").result(LONG)
        wait_until(lambda: len(kept.records) == 2)
        while not created:
            event = next(events)
            created += [event.call_id] if event.event == "call_created" else []
    assert kept.facts()[1][1] == created[0]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_attempts(kind: str, kinds: Registry, kept: Kept) -> None:
    """Each attempt is told apart, the call is one."""
    retry = Retry(on=OSError, attempts=3, wait_initial=0.001, wait_jitter=0)
    assert isinstance(task(say_and_fail, pool=kind, retry=retry)("a").exception(LONG), OSError)
    wait_until(lambda: len(kept.records) >= 3)
    facts = [each for each in kept.facts() if each[4] == "said a"]
    assert [attempt for _, _, attempt, _, _ in facts] == [1, 2, 3]
    assert len({number for _, number, _, _, _ in facts}) == 1


def test_outside_of_calls(kept: Kept) -> None:
    """There is nothing to tell, but a formatter can name it."""
    LOGGER.warning("said")
    assert kept.facts() == [("", None, None, "", "said")]
    assert logging.Formatter("%(task)s %(call_id)s %(message)s").format(kept.records[0]) == " None said"


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_attributes_of_the_users(kind: str, kinds: Registry, kept: Kept) -> None:
    """What a record has of that name stays."""
    task(say_with_extra, pool=kind)().result(LONG)
    wait_until(lambda: kept.records)
    assert kept.facts()[0][0] == "mine"
    assert isinstance(kept.facts()[0][1], int)


def test_items_of_a_map(kinds: Registry, kept: Kept) -> None:
    """Records of items name the function of the map."""
    assert sum(parallel_map(say_item, pool="process")(range(5))) == 10
    wait_until(lambda: len(kept.records) == 5)
    assert {each[0] for each in kept.facts()} == {f"{__name__}:say_item"}
    assert {each[3] for each in kept.facts()} == {"process pool 'process'"}


def test_a_function_as_it_is(kinds: Registry, kept: Kept) -> None:
    """One that was submitted has no task, but a pool and a number."""
    kinds.pool("thread").submit(say, "a").result(LONG)
    (facts,) = kept.facts()
    assert facts[0] == ""
    assert facts[3] == "thread pool 'thread'"
