"""
Large data between processes: what leaves a pickle, the segments that carry it, and who lets go of them when.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import pytest
from jobs import frequent_switches
from pools import segment_jobs
from pools.segment_jobs import Child

from parallel.pools.process import passages, segments
from parallel.pools.process.buffers import LARGE
from parallel.pools.process.constants import Constant, Constants
from parallel.pools.process.parcels import Parcel, encode, open_posted, post
from parallel.pools.process.passages import MOST_LENT, MOST_MAPPED, Passage, sockets
from parallel.pools.process.segments import KEPT_FOR, MOST_OPEN, Store

SIZE = 4 * LARGE

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),  # 3.12 and later
    pytest.mark.skipif(not segments.POSSIBLE, reason="nothing but in band here"),
]


def _without_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")


def _in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(segments, "_MEMORY", "/does/not/exist")


def _in_band(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "POSSIBLE", False)
    monkeypatch.setattr(passages, "POSSIBLE", False)


def _as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change nothing."""


WAYS = [_as_it_is, _without_memfd, _in_files, _in_band]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way in which large data may travel, the later ones for systems that have nothing better."""
    request.param(monkeypatch)
    return request.param.__name__


@pytest.fixture
def child() -> Iterator[Child]:
    """A child process."""
    with Child() as one:
        yield one


@pytest.fixture
def ends() -> Iterator[tuple[Passage, Passage]]:
    """Both ends of a passage, in this process."""
    one, two = map(Passage, sockets())
    yield one, two
    one.close()
    two.close()


@pytest.fixture
def store() -> Iterator[Store]:
    """A store."""
    one = Store()
    yield one
    one.close()


def packed(value: object, store: Store) -> Parcel:
    """Pack what is large."""
    parcel = encode(value, False, store)
    assert isinstance(parcel, Parcel)
    return parcel


def inode(parcel: Parcel) -> int:
    """Tell one segment from the other."""
    assert parcel.lease is not None
    return os.fstat(parcel.lease.segment.descriptor).st_ino


def inodes(store: Store) -> list[int]:
    """Tell which segments the next parcels would have."""
    return list(map(inode, [packed(bytearray(SIZE), store) for _ in range(3)]))


# -- what arrives -----------------------------------------------------------------------------------------------------


VALUES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: os.urandom(SIZE),
    "bytearray": lambda: bytearray(os.urandom(SIZE)),
    "bytes in a list": lambda: [os.urandom(SIZE), 1, b"small"],
    "bytes in a dict": lambda: {"one": os.urandom(SIZE), 2: bytearray(SIZE)},
    "small": lambda: [b"x" * 100, bytearray(10), 5, None, "text"],
    "much that is small": lambda: [os.urandom(1000) for _ in range(1000)],
    "just large": lambda: b"x" * LARGE,
    "just not large": lambda: b"x" * (LARGE - 1),
    "empty": lambda: (b"", bytearray(), [], {}),
    "deep": lambda: {"a": [{"b": (os.urandom(SIZE),)}]},
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_values_arrive(way: str, make: Callable[[], Any]) -> None:
    """What is sent there and back is what it was, of the same type, by whatever way."""
    value = make()
    with Child() as child:
        back = child.call(segment_jobs.echo, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_start_methods(method: str) -> None:
    """A child by any start method sends and receives segments."""
    with Child(method) as child:
        data = bytearray(os.urandom(SIZE))
        assert child.call(segment_jobs.echo, data) == data


def test_large_bytes_leave_the_pickle(store: Store) -> None:
    """Of what is large, nothing is in the pickle; the same object twice is sent once."""
    data = os.urandom(SIZE)
    parcel = packed([data, data, bytearray(SIZE)], store)
    assert len(parcel.data) < 200
    assert parcel.sizes == (SIZE, SIZE)


def test_the_same_object_stays_the_same(child: Child) -> None:
    """What was one object in a value is one when it arrives."""
    data = bytearray(SIZE)
    one, two = child.call(segment_jobs.echo, [data, data])
    assert one is two


@pytest.mark.parametrize("small", [5, "text", b"x" * 1000, [b"x" * 1000] * 500, bytearray(LARGE - 1)])
def test_small_values_stay_in_band(store: Store, small: Any) -> None:
    """What is small is pickled, and nothing else."""
    data = encode(small, False, store)
    assert isinstance(data, bytes)
    assert pickle.loads(data) == small
    assert "0 segments" in repr(store)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"x" * SIZE),
        memoryview(bytearray(SIZE)),
        memoryview(bytearray(SIZE))[1:-1],
        memoryview(bytearray(range(256)) * 2048)[::2],
        memoryview(bytearray(SIZE)).cast("d"),
        memoryview(bytearray(SIZE)).cast("i", [SIZE // 8, 2]),
        memoryview(b"small"),
        memoryview(b""),
    ],
)
def test_views_arrive(way: str, view: memoryview) -> None:
    """A memoryview arrives as one of the same shape, and as writable as it was."""
    with Child() as child:
        assert child.call(segment_jobs.kind_of, view) == "memoryview"
        back = child.call(segment_jobs.echo, {"view": view})["view"]
    assert (back, back.format, back.shape, back.readonly) == (view, view.format, view.shape, view.readonly)


def test_pickle_buffers_arrive(way: str) -> None:
    """What a PickleBuffer holds arrives; one with gaps is an error of pickle's."""
    data = bytearray(os.urandom(SIZE))
    with Child() as child:
        assert child.call(segment_jobs.echo, PickleBuffer(data)) == data
        with pytest.raises(pickle.PicklingError, match="non-contiguous"):
            child.call(segment_jobs.echo, PickleBuffer(memoryview(data)[::2]))


def test_what_needs_cloudpickle(child: Child) -> None:
    """Large data beside a function that travels by value arrives, once."""
    data = bytearray(os.urandom(SIZE))
    parcel = packed([data, lambda: len(data)], child.store)
    assert parcel.sizes == (SIZE,)
    back, fn, view = child.call(segment_jobs.echo, [data, lambda: 5, memoryview(data)])
    assert (back, fn(), view) == (data, 5, data)
    assert type(view) is memoryview


def test_views_of_foreign_formats(store: Store) -> None:
    """A view whose format Python can't make is an error, not something else on the other side."""
    with pytest.raises(TypeError, match="memoryview of format '<i'"):
        encode(memoryview((ctypes.c_int32 * 5)()), False, store)


def test_unpicklable(store: Store) -> None:
    """What can't be pickled is an error, and takes no segment."""
    with pytest.raises(TypeError):
        encode([bytearray(SIZE), (each for each in ())], False, store)
    assert "0 segments" in repr(store)


# -- numpy and pandas -------------------------------------------------------------------------------------------------


def test_arrays_of_100_mb(child: Child) -> None:
    """A large array arrives equal and writable on both sides, and neither side's writing touches the other's."""
    numpy = pytest.importorskip("numpy")
    array = numpy.random.default_rng(0).random(100_000_000 // 8)
    before = array.copy()
    assert child.call(segment_jobs.write_and_sum, array) == len(array)
    assert (array == before).all()
    back = child.call(segment_jobs.echo, array)
    assert (back == before).all()
    assert back.flags.writeable and not back.flags.owndata
    child.call(segment_jobs.keep, back)
    back[0] = -1
    assert child.call(segment_jobs.first_kept) == before[0]


def _arrays() -> dict[str, Callable[[Any], Any]]:
    return {
        "integers": lambda np: np.arange(SIZE),
        "rows": lambda np: np.arange(SIZE).reshape(-1, 64),
        "by columns": lambda np: np.asfortranarray(np.arange(SIZE).reshape(-1, 64)),
        "with gaps": lambda np: np.arange(SIZE).reshape(-1, 64)[:, ::2],
        "backwards": lambda np: np.arange(SIZE)[::-1],
        "records": lambda np: np.zeros(SIZE, dtype=[("a", "i4"), ("b", "f8")]),
        "dates": lambda np: np.arange(SIZE).astype("M8[s]"),
        "texts": lambda np: np.array(["some text"] * SIZE),
        "objects": lambda np: np.array([None, "x", 5] * 1000, dtype=object),
        "nothing": lambda np: np.zeros((0, 5)),
        "a number": lambda np: np.array(5.0),
        "masked": lambda np: np.ma.masked_less(np.arange(SIZE), 5),
        "matrix": lambda np: np.asmatrix(np.arange(SIZE).reshape(-1, 64)),
    }


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("make", _arrays().values(), ids=_arrays())
def test_arrays_arrive(make: Callable[[Any], Any]) -> None:
    """Arrays of all kinds arrive equal, of their type, and writable."""
    numpy = pytest.importorskip("numpy")
    array = make(numpy)
    with Child() as child:
        back = child.call(segment_jobs.echo, [array])[0]
    assert (type(back), back.dtype, back.shape) == (type(array), array.dtype, array.shape)
    assert (back == array).all()
    assert back.flags.writeable


@pytest.mark.parametrize("gaps", [1, 2])
def test_read_only_arrays(child: Child, gaps: int) -> None:
    """An array that was read-only arrives read-only, as pickle has it."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(SIZE)[::gaps]
    array.flags.writeable = False
    back = child.call(segment_jobs.echo, array)
    assert not back.flags.writeable
    assert (back == array).all()


def test_arrays_with_gaps_leave_the_pickle(store: Store) -> None:
    """The columns of an array go out of band, and only they."""
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(SIZE).reshape(-1, 64)[:, :8]
    parcel = packed(array, store)
    assert parcel.sizes == (SIZE,)
    assert len(parcel.data) < 500


def test_frames_arrive(child: Child) -> None:
    """A frame of pandas arrives with its types, index and texts; its numbers leave the pickle."""
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")
    frame = pandas.DataFrame({"a": numpy.arange(SIZE), "b": numpy.random.default_rng(0).random(SIZE), "c": "text"})
    frame["d"] = frame["c"].astype("category")
    back = child.call(segment_jobs.echo, {"frame": frame})["frame"]
    pandas.testing.assert_frame_equal(back, frame)
    assert len(packed(frame[["a", "b"]], child.store).data) < 5000
    back.loc[0, "a"] = 7


# -- who lets go of what ----------------------------------------------------------------------------------------------


def test_segments_are_used_again(child: Child) -> None:
    """A segment is written again once the other side has let go of what came with it, and not before."""
    child.call(segment_jobs.echo, None)
    parcel = packed(bytearray(SIZE), child.store)
    first = inode(parcel)
    del parcel
    for _ in range(3):
        child.call(segment_jobs.kind_of, bytearray(SIZE))
    assert inode(packed(bytearray(SIZE), child.store)) == first
    child.call(segment_jobs.keep, memoryview(b"1" * SIZE))
    parcel = packed(bytearray(SIZE), child.store)
    assert inode(parcel) != first
    child.call(segment_jobs.echo, bytearray(SIZE))
    assert child.call(segment_jobs.first_kept) == ord("1")
    child.call(segment_jobs.drop_kept)
    child.call(segment_jobs.echo, None)
    del parcel
    assert first in inodes(child.store)


def test_results_use_segments_again(child: Child) -> None:
    """The child writes one result after the other into the same memory, as long as nobody keeps them."""
    for _ in range(5):
        assert len(child.call(segment_jobs.zeros, SIZE)) == SIZE
    before = child.call(segment_jobs.count_descriptors)
    for _ in range(20):
        child.call(segment_jobs.zeros, SIZE)
    assert child.call(segment_jobs.count_descriptors) == before


def test_results_that_are_kept_stay(child: Child) -> None:
    """Results that somebody keeps are not written over, however many they are; nor is a view of one."""
    results = [child.call(segment_jobs.echo, memoryview(bytes([i]) * SIZE)) for i in range(MOST_MAPPED + 20)]
    views = [result[5:10] for result in results]
    del results
    for _ in range(5):
        child.call(segment_jobs.echo, memoryview(b"x" * SIZE))
    assert [view.tobytes() for view in views] == [bytes([i]) * 5 for i in range(MOST_MAPPED + 20)]
    assert len(passages._holds) <= MOST_MAPPED


def test_the_mapping_goes_with_the_object(ends: tuple[Passage, Passage], store: Store) -> None:
    """The mapping lives as long as a part of what came with it, and its descriptor with it."""
    ours, theirs = ends
    value = open_posted(post(packed([memoryview(b"a" * SIZE), memoryview(b"b" * SIZE)], store), ours), theirs)
    assert theirs.released.take() == []
    maps = Path("/proc/self/maps").read_text()
    assert "memfd:parallel" in maps
    one = value[0][3:4]
    del value
    assert theirs.released.take() == []
    assert one.tobytes() == b"a"
    del one
    assert theirs.released.take() == [1]
    assert "memfd:parallel" not in Path("/proc/self/maps").read_text()


def test_what_is_not_read_is_let_go(ends: tuple[Passage, Passage], store: Store) -> None:
    """A descriptor whose message was never read is closed when the next one is received, and released."""
    ours, theirs = ends
    post(packed(bytearray(SIZE), store), ours)
    value = open_posted(post(packed(bytearray(b"x" * SIZE), store), ours), theirs)
    assert value == b"x" * SIZE
    assert sorted(theirs.released.take()) == [1, 2]


def test_a_parcel_is_posted_again(ends: tuple[Passage, Passage], store: Store) -> None:
    """What was posted in vain is posted again, and its segment is free only when both are done with it."""
    ours, theirs = ends
    parcel = packed(memoryview(b"x" * SIZE), store)
    used = inode(parcel)
    post(parcel, ours)
    value = open_posted(post(parcel, ours), theirs)
    del parcel
    ours.take_back(theirs.released.take())  # the first
    assert inode(packed(bytearray(SIZE), store)) != used
    assert value == b"x" * SIZE
    del value
    ours.take_back(theirs.released.take())
    assert used in inodes(store)


def test_full_socket(ends: tuple[Passage, Passage], store: Store) -> None:
    """When no more descriptors fit into the socket, data goes in band; none is lost."""
    ours, theirs = ends
    parcel = packed(memoryview(b"x" * SIZE), store)
    posted = []
    while not posted or posted[-1][1]:
        posted.append(post(parcel, ours))
    assert posted[-1][1] == 0
    assert all(open_posted(each, theirs) == b"x" * SIZE for each in posted)


def test_many_lent_segments_become_gifts(ends: tuple[Passage, Passage], store: Store) -> None:
    """Past a number of them, what the other side keeps is not waited for: its segment is never used again."""
    ours, theirs = ends
    kept = []
    for _ in range(MOST_LENT + 5):
        kept.append(open_posted(post(packed(memoryview(b"x" * SIZE), store), ours), theirs))
    assert f"{MOST_LENT} lent" in repr(ours)
    assert f"{MOST_LENT} segments" in repr(store)
    kept.clear()
    ours.take_back(theirs.released.take())
    assert "0 lent" in repr(ours)


def test_most_open(store: Store) -> None:
    """A store has no more than so many descriptors; what waits beyond them waits in band."""
    parcels = [packed(bytearray(LARGE), store) for _ in range(MOST_OPEN + 3)]
    assert [parcel.lease is None for parcel in parcels] == [False] * MOST_OPEN + [True] * 3
    assert parcels[-1].size > LARGE
    parcels.clear()
    assert packed(bytearray(50 * LARGE), store).lease is not None


def test_kept_bytes_are_bounded() -> None:
    """No more is kept than the store was told to."""
    store = Store(3 * SIZE)
    parcels = [packed(bytearray(SIZE), store) for _ in range(5)]
    del parcels
    assert len(store._warm) == 3
    store.close()
    assert "0 segments" in repr(store)


def test_little_data_takes_no_large_segment(store: Store) -> None:
    """A much larger segment is left for what needs it; one that is somewhat smaller grows."""
    large = inode(packed(bytearray(20 * SIZE), store))
    small = inode(packed(bytearray(SIZE), store))
    assert small != large
    assert inode(packed(bytearray(2 * SIZE), store)) == small


def test_expiry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody needed for a while is freed, and the store says when to look again."""
    assert store.expire() is None
    packed(bytearray(SIZE), store)
    left = store.expire()
    assert left is not None and 0 < left <= KEPT_FOR
    assert "1 segments" in repr(store)
    monkeypatch.setattr(segments, "KEPT_FOR", -1.0)
    assert store.expire() is None
    assert "0 segments" in repr(store)


def test_cycles(store: Store) -> None:
    """A segment that is collected together with its lease is closed, and nothing writes to its descriptor any more."""
    for _ in range(3):
        cycle: list[Any] = [packed(bytearray(SIZE), store)]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert len(store._opened) == len(store._warm) <= 1


def test_closing_while_lent(ends: tuple[Passage, Passage], store: Store) -> None:
    """What the other side has when all is closed stays what it is."""
    ours, theirs = ends
    value = open_posted(post(packed(memoryview(b"x" * SIZE), store), ours), theirs)
    ours.close()
    store.close()
    assert "0 segments" in repr(store)
    assert value == b"x" * SIZE


def test_threads(store: Store) -> None:
    """Many threads write, post, read and let go at the same time, and each gets what it sent."""
    failures: list[BaseException] = []

    def trip(number: int) -> None:
        ours, theirs = map(Passage, sockets())
        kept = None
        try:
            for step in range(100):
                data = bytes([number * 10 + step % 10]) * (LARGE + 100 * step)
                value = open_posted(post(packed(memoryview(data), store), ours), theirs)
                assert value == data
                assert kept is None or kept[0] == kept[1]
                kept = (value, data)
                del value
                ours.take_back(theirs.released.take())
        except BaseException as error:
            failures.append(error)
        finally:
            ours.close()
            theirs.close()

    with frequent_switches():
        threads = [threading.Thread(target=trip, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(segment_jobs.PATIENCE)
    assert not failures


def test_the_interpreter_ends(run_script: Callable[..., Any]) -> None:
    """A program that ends with segments, mappings and constants alive ends without a word."""
    found = run_script("""
from parallel.pools.process.constants import Constant
from parallel.pools.process.parcels import encode, open_posted, post
from parallel.pools.process.passages import Passage, sockets
from parallel.pools.process.segments import Store

store = Store()
ours, theirs = map(Passage, sockets())
data = memoryview(bytes(1 << 20))
constant = Constant(data, False, store)
parcels = [encode(data, False, store) for _ in range(3)]
values = [open_posted(post(parcel, ours), theirs) for parcel in parcels]
values.append(values)
print(store)
""")
    assert (found.stdout, found.stderr) == ("<Store [4 segments, 0 MB free]>\n", "")


# -- deaths -----------------------------------------------------------------------------------------------------------


def test_a_receiver_is_killed(child: Child) -> None:
    """Nothing is left of what was sent to a child that was killed, read or not; and nothing of it is used again."""
    child.call(segment_jobs.keep, memoryview(bytearray(SIZE)))
    child.send(segment_jobs.kill_me, bytearray(SIZE))
    child.process.join(segment_jobs.PATIENCE)
    child.passage.close()
    gc.collect()
    assert "0 segments" in repr(child.store)


def test_a_sender_is_killed() -> None:
    """What a child sent before it was killed can still be read, and what was half sent is gone with it."""
    with Child() as child:
        child.send(segment_jobs.echo, memoryview(b"x" * SIZE))
        assert child.connection.poll(segment_jobs.PATIENCE)
        child.die()
        value = child.receive()
    assert value == b"x" * SIZE


def test_killed_in_the_middle() -> None:
    """A child that is killed while it receives, copies, or sends leaves nothing behind, whenever it happens."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10):
        with Child() as child:
            child.call(segment_jobs.echo, None)
            for _ in range(3):
                child.send(segment_jobs.echo, bytearray(8 * SIZE))
            end = time.monotonic() + number * 0.001
            while time.monotonic() < end:
                child.passage.released.take()
            child.die()
        gc.collect()
        assert "0 segments" in repr(child.store)
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_sender_dies_between_descriptor_and_message(ends: tuple[Passage, Passage], store: Store) -> None:
    """A descriptor whose message never comes is closed with the passage."""
    ours, theirs = ends
    before = len(os.listdir("/proc/self/fd"))
    post(packed(bytearray(SIZE), store), ours)
    ours.close()
    store.close()
    theirs.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2  # the two sockets


def test_a_sender_that_is_gone(ends: tuple[Passage, Passage]) -> None:
    """Waiting for what will never come is an error, at once."""
    ours, theirs = ends
    with pytest.raises(BlockingIOError):
        theirs.receive(1, (SIZE,))
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive(1, (SIZE,))


def test_nothing_has_a_name(way: str) -> None:
    """No file is left of a child that was killed with segments on the way, and none was there before."""
    folders = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    before = [sorted(os.listdir(folder)) for folder in folders if folder.is_dir()]
    with Child() as child:
        child.call(segment_jobs.keep, bytearray(SIZE))
        during = [sorted(os.listdir(folder)) for folder in folders if folder.is_dir()]
        child.die()
    assert before == during == [sorted(os.listdir(folder)) for folder in folders if folder.is_dir()]


# -- forks ------------------------------------------------------------------------------------------------------------


def test_a_forked_child_has_no_segments(store: Store, in_fork: Callable[..., Any]) -> None:
    """A forked child closes what it inherits, and its store works, in memory of its own."""
    parcel = packed(bytearray(SIZE), store)
    used = inode(parcel)
    del parcel

    def look() -> tuple[str, bool]:
        inherited = repr(store)
        return inherited, inode(packed(bytearray(SIZE), store)) != used

    assert in_fork(look) == ("<Store [0 segments, 0 MB free]>", True)
    assert inode(packed(bytearray(SIZE), store)) == used


def test_a_lease_ends_in_a_forked_child(store: Store, in_fork: Callable[..., Any]) -> None:
    """What dies in a forked child closes no descriptor that isn't its own."""
    parcels = [packed(bytearray(SIZE), store)]
    descriptor = parcels[0].lease.segment.descriptor if parcels[0].lease else -1

    def drop() -> bool:
        ours = packed(bytearray(SIZE), store)  # gets the number of the one that was closed
        assert ours.lease is not None and ours.lease.segment.descriptor == descriptor
        parcels.clear()
        os.fstat(descriptor)
        return store._warm == []

    assert in_fork(drop)


def test_what_a_forked_child_sees_is_not_written_again(
    ends: tuple[Passage, Passage], store: Store, in_fork: Callable[..., Any]
) -> None:
    """What was there at a fork is released for good: the child may see it for as long as it likes."""
    ours, theirs = ends
    value = open_posted(post(packed(memoryview(b"x" * SIZE), store), ours), theirs)
    assert in_fork(value[:1].tobytes) == b"x"
    del value
    assert theirs.released.take() == [-1]
    ours.take_back([-1])
    assert "0 segments" in repr(store)
    value = open_posted(post(packed(memoryview(b"y" * SIZE), store), ours), theirs)
    del value
    assert theirs.released.take() == [2]


# -- when there is no room --------------------------------------------------------------------------------------------


def test_no_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the data can't be written, it goes in band, and the segment is closed."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert packed(bytearray(SIZE), store).lease is None
    assert "0 segments" in repr(store)


def test_memfds_are_forbidden(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox forbids memfds, a file without a name does."""

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert packed(bytearray(SIZE), store).lease is not None


def test_no_descriptors(store: Store, in_fork: Callable[..., Any]) -> None:
    """A sender without descriptors sends in band; a receiver without them fails with that error, and goes on."""

    def starve() -> tuple[bool, int | None, bytes]:
        one, two = map(Passage, sockets())
        posted = post(packed(bytearray(b"x" * SIZE), store), one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 4096))
        in_band = packed(bytearray(b"y" * SIZE), Store()).lease is None
        try:
            number: int | None = None
            open_posted(posted, two)
        except OSError as error:
            number = error.errno
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        value = open_posted(post(packed(bytearray(b"z" * SIZE), store), one), two)
        return in_band, number, bytes(value[:1])

    assert in_fork(starve) == (True, errno.EMFILE, b"z")


def test_no_descriptor_to_map_with(
    ends: tuple[Passage, Passage], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can't be mapped is copied."""

    def refuse(*_: object, **__: object) -> Any:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(passages, "mmap", refuse)
    ours, theirs = ends
    assert open_posted(post(packed(memoryview(b"x" * SIZE), store), ours), theirs) == b"x" * SIZE
    assert theirs.released.take() == [1]


# -- constants --------------------------------------------------------------------------------------------------------


def test_constants_are_sent_once(child: Child) -> None:
    """A constant is written once, and each worker gets it once, for all its calls; its calls there share it."""
    numpy = pytest.importorskip("numpy")
    array = numpy.zeros(SIZE)
    constant = Constant(array, False, child.store)
    with Child("spawn") as other:
        for each in (child, other):
            found = [each.call(segment_jobs.add_one, constant) for _ in range(3)]
            assert found == [1, 2, 3]
    assert array[0] == 0
    assert "1 segments" in repr(child.store)


def test_constants_beside_large_arguments(child: Child) -> None:
    """Constants and other large data go the same way and don't get mixed up."""
    constants = tuple(Constant(memoryview(bytes([i]) * SIZE), False, child.store) for i in range(3))
    small = Constant({"a": 1}, False, child.store)
    for _ in range(2):
        back = child.call(segment_jobs.echo, [*constants[::-1], b"x" * SIZE, small])
        assert [part[0] for part in back[:4]] == [2, 1, 0, ord("x")]
        assert back[4] == {"a": 1}


def test_constants_are_forgotten(child: Child) -> None:
    """When a constant dies, the workers drop it, and its segment is free for others."""
    constant = Constant(memoryview(b"x" * SIZE), False, child.store)
    assert isinstance(constant.packed, Parcel)
    used = inode(constant.packed)
    child.call(segment_jobs.kind_of, constant)
    assert inode(packed(bytearray(SIZE), child.store)) != used
    del constant
    child.call(segment_jobs.echo, None)
    assert used in inodes(child.store)


def test_a_constant_that_cannot_be_received(ends: tuple[Passage, Passage]) -> None:
    """A constant that is lost on the way is an error of the calls that ask for it, each time."""
    known = Constants(ends[1])
    known.learn([(1, (b"", 5, (SIZE,), 0))])
    for _ in range(2):
        with pytest.raises(OSError):
            known.find(1)
