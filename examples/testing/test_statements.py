"""
How code that uses `parallel` is tested. Run it with `python -m pytest examples/testing`.

Most tests are inline: what they patch is seen by all calls, and nothing happens at the same time. A few go through real
pools, as only these show what races, and what dies.
"""

from collections.abc import Iterator
from decimal import Decimal

import pytest
import statements
from statements import StatementError, largest, payments, rate, total, without_small

from parallel import Registry, SerializationError
from parallel.testing import inline

MARCH = "2026-03-01;12.50;EUR\n2026-03-02;100;JPY\n"
APRIL = "2026-04-01;-2.50;EUR\n"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have rates without a network; return the currencies that have been asked for."""
    currencies: list[str] = []

    def download(currency: str) -> str:
        currencies.append(currency)
        return {"EUR": "2", "JPY": "0.01"}[currency]

    monkeypatch.setattr(statements, "download", download)
    return currencies


@pytest.fixture
def travelling() -> Iterator[Registry]:
    """Calls run inline, but what would go to a worker process is packed and loaded as if it did."""
    with inline(check_pickle=True) as registry:
        yield registry


@pytest.mark.usefixtures("parallel_inline")
def test_total(asked: list[str]) -> None:
    """All payments count, and each currency is asked for once, in order: inline, one call comes after the other."""
    assert total([MARCH, APRIL]) == Decimal("21.00")
    assert asked == ["EUR", "JPY"]


@pytest.mark.usefixtures("parallel_inline")
def test_a_rate_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that fails is tried again: the rules of a task hold inline too."""
    failures = [ConnectionError("reset"), ConnectionError("reset")]

    def download(_: str) -> str:
        if failures:
            raise failures.pop()
        return "2"

    monkeypatch.setattr(statements, "download", download)
    assert rate("EUR").result() == 2
    assert not failures


@pytest.mark.usefixtures("travelling")
def test_what_goes_to_processes_travels() -> None:
    """Statements, payments and errors come through as they are."""
    assert [len(some) for some in payments([MARCH, APRIL])] == [2, 1]
    with pytest.raises(StatementError, match="line 2: expected day;amount;currency, found 'nothing'"):
        payments([f"{APRIL}nothing"]).result()


@pytest.mark.usefixtures("travelling")
def test_nothing_is_changed_by_a_worker() -> None:
    """A function that changes its argument changes a copy: who relies on the opposite sees it here."""
    [found] = payments([MARCH])
    assert [payment.currency for payment in without_small(found, Decimal(50)).result()] == ["JPY"]
    assert [payment.currency for payment in found] == ["EUR", "JPY"]


@pytest.mark.usefixtures("travelling")
def test_what_can_not_travel_is_refused() -> None:
    """A generator can't go to a process; the error is the one that a real pool would have brought."""
    found = (payment for some in payments([MARCH]) for payment in some)
    with pytest.raises(SerializationError, match="the arguments of statements:largest can't travel"):
        largest(found, 1).result()


def test_in_real_pools(parallel_registry: Registry) -> None:
    """In worker processes it is the same; and nothing is left of them, nor an error that nobody has looked at."""
    assert [len(some) for some in payments([MARCH, APRIL])] == [2, 1]
    assert parallel_registry.pool("cpu").stats().workers > 0


def test_bad_statements_in_real_pools(parallel_registry: Registry) -> None:
    """One that can't be read costs itself only."""
    ends = list(payments([MARCH, "?", APRIL], errors="collect"))
    assert [type(end.error) for end in ends] == [type(None), StatementError, type(None)]
    assert parallel_registry.config.pools["cpu"].kind == "process"
