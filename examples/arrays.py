"""
Find the nearest neighbours of many vectors among many others: one large array for all calls.

    python examples/arrays.py                    200,000 vectors, 100 MB
    python examples/arrays.py --vectors 1000000

Every call needs the whole array. As an ordinary argument it is written for each call anew; as one of the *constants* of
the map it is written once, into memory that each worker process maps once, and all of them read the same pages. What
comes out is compared with what numpy finds in this process alone. It needs numpy.
"""

import argparse
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Final, NamedTuple, TypeAlias

from parallel import parallel_map, using

try:
    import numpy as np
    from numpy.typing import NDArray
except ModuleNotFoundError:
    sys.exit("this example needs numpy: install it with `pip install numpy`")

Floats: TypeAlias = NDArray[np.float32]
Numbers: TypeAlias = NDArray[np.intp]

DIMENSIONS: Final = 128
NEAREST: Final = 5
"""Neighbours that are wanted of each."""

QUERIES: Final = 256
PER_CALL: Final = 8
"""Queries that one call looks for: the more, the less often the array is read, and the fewer calls there are."""

WORKERS: Final = 2


class Found(NamedTuple):
    """
    What a call has found.

    Attributes:
        neighbours: For each query the numbers of the vectors next to it, the nearest first.
        worker: The process that ran it.
        is_new: The array is another object than in the call before, in that process.
    """

    neighbours: Numbers
    worker: int
    is_new: bool


_seen: weakref.ref[Floats] | None = None
"""In a worker: the array of the call before, if it is still there."""


def nearest(queries: Floats, vectors: Floats) -> Numbers:
    """Find those of *vectors*, all of length 1, that have the smallest angles to each of *queries*."""
    cosines = queries @ vectors.T
    few = np.argpartition(cosines, -NEAREST)[:, -NEAREST:]
    order = np.argsort(-np.take_along_axis(cosines, few, 1), 1, kind="stable")
    return np.take_along_axis(few, order, 1)


@parallel_map(pool="processes")
def search(queries: Floats, vectors: Floats) -> Found:
    """Find the neighbours of some queries, and note whether the array has come anew."""
    global _seen
    is_new = _seen is None or _seen() is not vectors
    _seen = weakref.ref(vectors)
    return Found(nearest(queries, vectors), os.getpid(), is_new)


def unit_vectors(count: int, chance: np.random.Generator) -> Floats:
    """Make vectors of length 1 in all directions."""
    vectors = chance.standard_normal((count, DIMENSIONS), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def shared(batches: Sequence[Floats], vectors: Floats) -> Iterable[Found]:
    """Give all calls the same array, as a constant."""
    return search(batches, constants={"vectors": vectors})


def one_each(batches: Sequence[Floats], vectors: Floats) -> Iterable[Found]:
    """Give each call the array as an argument."""
    return search(batches, repeat(vectors))


def here(batches: Sequence[Floats], vectors: Floats) -> Iterator[Found]:
    """Make no calls at all."""
    return (Found(nearest(batch, vectors), os.getpid(), False) for batch in batches)


def run(
    what: str,
    search_all: Callable[[Sequence[Floats], Floats], Iterable[Found]],
    batches: Sequence[Floats],
    vectors: Floats,
) -> Numbers:
    """Search in one way, and print what that took."""
    start = time.perf_counter()
    found = list(search_all(batches, vectors))
    seconds = time.perf_counter() - start
    workers = len({each.worker for each in found})
    mapped = sum(each.is_new for each in found)
    size = mapped * vectors.nbytes / 1e6
    print(f"{what:14}{seconds:8.2f} s{workers:12}{f'{mapped} x':>7}{size:9,.0f} MB", flush=True)
    return np.concatenate([each.neighbours for each in found])


def main() -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description="Find nearest neighbours in one large array, in processes.")
    parser.add_argument("--vectors", type=int, default=200_000, help="default: 200,000")
    count: int = parser.parse_args().vectors
    if count < NEAREST:
        parser.error(f"--vectors: each is to have {NEAREST} neighbours")

    chance = np.random.default_rng(42)
    vectors = unit_vectors(count, chance)
    batches = np.array_split(unit_vectors(QUERIES, chance), QUERIES // PER_CALL)
    print(f"{QUERIES} queries in {len(batches)} calls, {count:,} vectors, {vectors.nbytes / 1e6:,.0f} MB")
    print(f"{'':14}{'time':>10}{'processes':>12}{'mapped':>19}")
    expected = run("numpy alone", here, batches, vectors)
    with using({"pools": {"processes": {"kind": "process", "max_workers": WORKERS}}}):
        list(search(batches[:2], constants={"vectors": vectors[:NEAREST]}))  # starts the workers, which import numpy
        found = [run("constants", shared, batches, vectors), run("arguments", one_each, batches, vectors)]
    if not all(np.array_equal(each, expected) for each in found):
        print("the workers found something else", file=sys.stderr)
        return 1
    print("all three found the same neighbours")
    return 0


if __name__ == "__main__":
    sys.exit(main())
