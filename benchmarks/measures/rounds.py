"""
How everything is measured: all sides in one process, in turn, round by round.

    sides ──▶ in_turn() ──▶ Measured: one figure a round and side ──▶ Row: medians, what was found, its budget

A neighbour on the machine disturbs some rounds, and within a round all sides much alike. So a ratio is the median of
the rounds' ratios, and a difference that of the rounds' differences, never one of two medians.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import NamedTuple, TypeAlias

WORKERS = 2
"""Of every pool: as many as the machine has CPUs on which the budgets were set."""

ONE_BY_ONE = 20
"""A round trip takes about as long as so many calls made at once; a round has so many fewer of them."""

LEAST = 0.02
"""
Seconds that a side takes in a round at least. The system's scheduler gives and takes the CPU for some milliseconds: on
a busy machine, a side that takes less is either hit by that or isn't.
"""

PEERS_SHARE = 10
"""Peers make so many times fewer calls in a round."""

OURS = "parallel"
STANDARD = "standard"

Side: TypeAlias = Callable[[], float]
"""Measures once; microseconds a call, bytes, or whatever the row is of."""


class Scale(NamedTuple):
    """How long to measure."""

    rounds: int
    calls: int

    @property
    def fewer(self) -> int:
        """How many calls a peer makes in a round: each may take a hundred times as long as one of ours."""
        return max(self.calls // PEERS_SHARE, 1)

    @property
    def few(self) -> int:
        """How many calls a round makes that waits for each before the next."""
        return max(self.calls // ONE_BY_ONE, 1)


class Row(NamedTuple):
    """
    One line of the table.

    Attributes:
        what: What was measured.
        unit: Of the figures.
        figures: The median of each side: ours, what it is compared with, then the peers.
        found: What the budget bounds: a ratio to the second side, a difference to it, or our figure itself.
        found_unit: Of that; empty for a ratio.
        budget: The most that it may be; None: anything.
    """

    what: str
    unit: str
    figures: Mapping[str, float]
    found: float
    found_unit: str
    budget: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the budget is kept, if there is one."""
        return self.budget is None or self.found <= self.budget


class Measured:
    """What each side took in each round, the first of them ours, the second what it is compared with."""

    def __init__(self, unit: str, sides: Mapping[str, list[float]]) -> None:
        self._unit = unit
        self._sides = sides
        ours, beside, *_ = sides.values()
        self._pairs = list(zip(ours, beside, strict=True))

    def without_peers(self) -> Measured:
        """Leave out all but our side and what it is compared with."""
        return self.of(*list(self._sides)[:2])

    def of(self, ours: str, beside: str) -> Measured:
        """Take two of the sides: one for ours, and what it is compared with."""
        return Measured(self._unit, {name: self._sides[name] for name in (ours, beside)})

    def _row(self, what: str, found: float, found_unit: str, budget: float | None) -> Row:
        figures = {name: median(each) for name, each in self._sides.items()}
        return Row(what, self._unit, figures, found, found_unit, budget)

    def ratio(self, what: str, budget: float | None = None) -> Row:
        """Compare our side to the other as a share."""
        return self._row(what, median(one / two for one, two in self._pairs), "", budget)

    def difference(self, what: str, budget: float | None = None) -> Row:
        """Say what our side takes more than the other."""
        return self._row(what, median(one - two for one, two in self._pairs), self._unit, budget)

    def itself(self, what: str, budget: float | None = None) -> Row:
        """Take our figure as it is."""
        return self._row(what, median(one for one, _ in self._pairs), self._unit, budget)


def in_turn(unit: str, sides: Mapping[str, Side], rounds: int) -> Measured:
    """Measure all sides *rounds* times; who goes first changes each time. One round before that doesn't count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()  # else a round pays for the garbage of the one before
            figure = sides[name]()
            if number > 0:
                found[name].append(figure)
    return Measured(unit, found)


def per_call(work: Callable[[int], object], calls: int) -> Side:
    """Make a side of *work*, which makes so many calls, as often as it takes: microseconds for each."""

    def microseconds() -> float:
        made, seconds, start = 0, 0.0, time.perf_counter()
        while seconds < LEAST:
            work(calls)
            made += calls
            seconds = time.perf_counter() - start
        return seconds / made * 1e6

    return microseconds


def show(part: str, rows: Iterable[Row]) -> list[Row]:
    """Print the lines of one part of the table as they come, and return them."""
    print(f"\n{part:38}{OURS:>13}{'beside':>13}{'found':>12}{'budget':>12}")
    shown: list[Row] = []
    for row in rows:
        _show(row)
        shown.append(row)
    return shown


def _show(row: Row) -> None:
    names = list(row.figures)
    ours, beside = (f"{row.figures[name]:.2f} {row.unit}" for name in names[:2])
    found = f"{row.found:.2f} {row.found_unit}".rstrip()
    budget = "none" if row.budget is None else f"{row.budget:.2f} {row.found_unit}".rstrip()
    verdict = "" if row.budget is None else "kept" if row.kept else "MISSED"
    print(f"  {row.what:36}{ours:>13}{beside:>13}{found:>12}{budget:>12}  {verdict}", flush=True)
    for name in names[2:]:
        figure = row.figures[name]
        print(f"      {name:45}{f'{figure:.2f} {row.unit}':>13}{figure / row.figures[names[0]]:>10.1f} x", flush=True)
