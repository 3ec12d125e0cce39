"""
Bank statements: parsed in worker processes, converted at rates that come over the network. Its tests are beside it.

    total(["2026-03-01;12.50;EUR\n", ...]) ──▶ payments: a map on processes ──▶ rate: one call a currency, on threads
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from heapq import nlargest

from parallel import Retry, gather, parallel_map, task

ADDRESS = "https://rates.example.org/latest/{}"


@dataclass(frozen=True)
class Payment:
    """One line of a statement."""

    day: date
    amount: Decimal
    currency: str


class StatementError(ValueError):
    """A statement can't be read."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(line, text)
        self.line = line
        self.text = text

    def __str__(self) -> str:
        return f"line {self.line}: expected day;amount;currency, found {self.text!r}"


def download(currency: str) -> str:
    """Return what the server says about a currency."""
    with urllib.request.urlopen(ADDRESS.format(currency), timeout=5) as answer:
        text: str = answer.read().decode()
        return text


@task(pool="web", timeout="30s", retry=Retry(on=ConnectionError, attempts=3, wait_initial="10ms"))
def rate(currency: str) -> Decimal:
    """Return what one unit of a currency is worth."""
    return Decimal(download(currency))


@parallel_map(pool="cpu")
def payments(statement: str) -> list[Payment]:
    """Read the lines of a statement."""
    found: list[Payment] = []
    for number, line in enumerate(statement.splitlines(), 1):
        try:
            day, amount, currency = line.split(";")
            found.append(Payment(date.fromisoformat(day), Decimal(amount), currency))
        except (ValueError, ArithmeticError) as error:
            raise StatementError(number, line) from error
    return found


@task(pool="cpu")
def largest(found: Iterable[Payment], count: int) -> list[Payment]:
    """Return the largest payments, in order."""
    return nlargest(count, found, key=lambda payment: payment.amount)


@task(pool="cpu")
def without_small(found: list[Payment], least: Decimal) -> list[Payment]:
    """Return the payments of that amount at least."""
    for payment in [one for one in found if one.amount < least]:
        found.remove(payment)  # its own copy, in a worker process
    return found


def total(statements: Iterable[str]) -> Decimal:
    """Add up all payments of all statements."""
    found = [payment for some in payments(statements) for payment in some]
    currencies = sorted({payment.currency for payment in found})
    rates = dict(zip(currencies, gather(*map(rate, currencies)).result(), strict=True))
    return sum((payment.amount * rates[payment.currency] for payment in found), Decimal())
