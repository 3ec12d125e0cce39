"""
Price an Asian call option by simulation, with the same answer wherever it runs.

    python examples/monte_carlo.py                   200,000 paths
    python examples/monte_carlo.py --paths 2000000   ten times as many: a third of the standard error

Such an option pays what the average of a price over a year is above the strike. Of the geometric average, the value is
known exactly, and the simulation has to find it; of the arithmetic average, which is what is traded, it is not. As the
two averages hardly differ, the known error of the one corrects the other (a control variate): that takes a simulation
of about a thousandth of the size.

`seed=42` gives each batch of paths a random generator of its own, which hangs on nothing but the seed and the number
of the batch. So threads or processes, how many, and how batches are sent in chunks make no difference in any bit.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterable, Mapping
from math import exp, fsum, log, sqrt
from statistics import NormalDist
from typing import Final, NamedTuple

import parallel
from parallel import parallel_map, using

SPOT: Final = 100.0
"""The price today."""

STRIKE: Final = 100.0
RATE: Final = 0.05
"""Interest in a year, continuously compounded."""

VOLATILITY: Final = 0.2
"""Standard deviation of the logarithm of the price after a year."""

DATES: Final = 12
"""Ends of months, at which the price counts: the option is settled at the last."""

PER_BATCH: Final = 1000
"""Paths: about ten milliseconds of work. Other batches draw other numbers: this is a part of the seed."""

PLACES: Final[Mapping[str, tuple[str, int, int | None]]] = {
    "1 process": ("process", 1, None),
    "2 processes": ("process", 2, None),
    "2 processes, batch by batch": ("process", 2, 1),
    "2 processes, chunks of 7": ("process", 2, 7),
    "2 threads": ("thread", 2, None),
    "no worker": ("inline", 1, None),
}
"""Where it runs: the kind of the pool, its workers, the batches that are sent together (None: as it turns out)."""


class Sums(NamedTuple):
    """What is kept of a batch: of the two payoffs, discounted, the sums, and those of their products."""

    paths: int
    arithmetic: float
    geometric: float
    arithmetic_squared: float
    geometric_squared: float
    product: float


class Estimate(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.5f} ± {self.error:.5f}"


class Prices(NamedTuple):
    """What the simulation says of both options, and of the arithmetic one with what is known of the other."""

    geometric: Estimate
    arithmetic: Estimate
    corrected: Estimate


@parallel_map(pool="simulation", seed=42)
def simulate(paths: int) -> Sums:
    """Simulate a batch of paths of a price that follows a geometric Brownian motion."""
    normal = parallel.rng(random.Random).gauss
    step = 1 / DATES
    drift = (RATE - VOLATILITY**2 / 2) * step
    spread = VOLATILITY * sqrt(step)
    discount = exp(-RATE)
    arithmetic: list[float] = []
    geometric: list[float] = []
    for _ in range(paths):
        level = log(SPOT)
        levels = [level := level + normal(drift, spread) for _ in range(DATES)]
        arithmetic.append(discount * max(sum(map(exp, levels)) / DATES - STRIKE, 0.0))
        geometric.append(discount * max(exp(sum(levels) / DATES) - STRIKE, 0.0))
    return Sums(
        paths,
        fsum(arithmetic),
        fsum(geometric),
        fsum(payoff**2 for payoff in arithmetic),
        fsum(payoff**2 for payoff in geometric),
        fsum(one * other for one, other in zip(arithmetic, geometric, strict=True)),
    )


def exact() -> float:
    """Return the value of the geometric option (Kemna and Vorst, 1990): its average is lognormal."""
    times = [(number + 1) / DATES for number in range(DATES)]
    mean = log(SPOT) + (RATE - VOLATILITY**2 / 2) * sum(times) / DATES
    variance = VOLATILITY**2 * sum(min(one, other) for one in times for other in times) / DATES**2
    above = (mean - log(STRIKE) + variance) / sqrt(variance)
    normal = NormalDist()
    paid = exp(mean + variance / 2) * normal.cdf(above) - STRIKE * normal.cdf(above - sqrt(variance))
    return exp(-RATE) * paid


def estimate(batches: Iterable[Sums]) -> Prices:
    """Put the batches together, in their order."""
    paths, *sums = (fsum(column) for column in zip(*batches, strict=True))
    arithmetic, geometric, arithmetic_squared, geometric_squared, product = (total / paths for total in sums)
    of_arithmetic, of_geometric = arithmetic_squared - arithmetic**2, geometric_squared - geometric**2
    of_both = product - arithmetic * geometric
    slope = of_both / of_geometric
    return Prices(
        Estimate(geometric, sqrt(of_geometric / paths)),
        Estimate(arithmetic, sqrt(of_arithmetic / paths)),
        Estimate(arithmetic - slope * (geometric - exact()), sqrt((of_arithmetic - slope * of_both) / paths)),
    )


def run(batches: list[int], place: str) -> Prices:
    """Simulate somewhere, and say how long that took."""
    kind, workers, chunksize = PLACES[place]
    pool = {"kind": kind} if kind == "inline" else {"kind": kind, "max_workers": workers}
    start = time.perf_counter()
    with using({"pools": {"simulation": pool}}):
        prices = estimate(simulate(batches, chunksize=chunksize))
    print(f"  {place:30}{time.perf_counter() - start:5.1f} s  {prices.corrected.value!r}", flush=True)
    return prices


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Price an Asian option by simulation, with seeds.")
    parser.add_argument("--paths", type=int, default=200_000, help="default: 200,000")
    paths: int = parser.parse_args().paths
    if paths < PER_BATCH:
        parser.error(f"--paths: {PER_BATCH:,} are the least that tell anything")

    batches = [PER_BATCH] * (paths // PER_BATCH) + [paths % PER_BATCH] * bool(paths % PER_BATCH)
    print(f"simulating {paths:,} paths in {len(batches):,} batches")
    found = {run(batches, place) for place in PLACES}
    geometric, arithmetic, corrected = found.pop()
    print(f"geometric average    {geometric}, exactly {exact():.5f}")
    print(f"arithmetic average   {arithmetic}")
    print(f"  with what is known {corrected}")
    if found:
        print("the runs do not agree", file=sys.stderr)
        return 1
    print(f"all {len(PLACES)} runs agree to the last bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
