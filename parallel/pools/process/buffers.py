"""
Large buffers leave the pickle of their value, so that nothing copies them on the way.

    value ──▶ pickle, protocol 5 ──▶ data, with a hole per large buffer ─────────────────▶ load() ──▶ value
                    └──────────────▶ the buffers themselves ──▶ (a segment, or a frame) ──┘

What leaves:
- Whatever offers its memory to pickle (`PickleBuffer`): arrays of numpy, frames of pandas, and the like. An
  array that does not lie in one piece is put into one first. What was read-only arrives so; all else is writable.
- `memoryview`s, which pickle alone refuses. They arrive as such.
- `bytes` and `bytearray`s, which pickle would copy: those that are the value itself, an argument, or in an exact list,
  tuple or dict that is one of these. Once one is found there, those further down leave as well. They are copied once
  more as they arrive, `bytes` being immutable.

Guarantee: no lock is held here; pickling and loading run user code. Nothing here has state.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from io import BytesIO
from pickle import PickleBuffer
from typing import Any, Final, SupportsIndex, cast

from parallel.salvage import load_around

LARGE: Final = 1 << 18
"""
Bytes from which a buffer leaves. A descriptor, a mapping and its faults cost some 100 µs more than a frame does; with
half of this, a call with such an argument takes longer than in band, with four times as much, up to four times as long.
"""

MOST_LOOKED_AT: Final = 10_000
"""Items of a list, tuple or dict up to which `bytes` are looked for in it. It takes 0.2 ms, less than pickling them."""

ALIGNMENT: Final = 64
"""Bytes; each buffer begins at a multiple, a cache line, as fast code on arrays likes it."""

_NATIVE: Final = frozenset("cbB?hHiIlLqQnNfd")
"""Formats that a `memoryview` can be cast to."""

_CONTAINERS: Final = frozenset({tuple, list, dict})
_BYTES: Final = frozenset({bytes, bytearray})
_WORTH_A_LOOK: Final = _CONTAINERS | _BYTES
_PROTOCOL: Final = 5


class Leaving:
    """
    What leaves one pickle.

    Attributes:
        buffers: Those that pickle was offered, in its order.
        takes_bytes: It is to be asked about each object: `persistent_id`. That is slow.
        whole: `bytes` and `bytearray`s, if it takes them.
    """

    __slots__ = ("_numbers", "buffers", "takes_bytes", "whole")

    def __init__(self, takes_bytes: bool) -> None:
        self.takes_bytes = takes_bytes
        self.buffers: list[memoryview] = []
        if takes_bytes:  # few do, and each call makes one of these
            self.whole: list[bytes | bytearray] = []
            self._numbers: dict[int, int] = {}  # of each in `whole`, by its id

    def clear(self) -> None:
        """Begin anew: the pickling has failed, and is tried in another way."""
        self.buffers.clear()
        if self.takes_bytes:
            self.whole.clear()
            self._numbers.clear()

    def take(self, buffer: PickleBuffer) -> bool:
        """Take a buffer out of the pickle; True if it stays in it. The `buffer_callback` of a pickler."""
        try:
            view = buffer.raw()
        except BufferError:  # it does not lie in one piece: pickle has an error for that
            return True
        if view.nbytes < LARGE:
            return True
        self.buffers.append(view)
        return False

    def persistent_id(self, obj: object) -> int | None:
        """Take `bytes` out of the pickle: the hook of a pickler, asked for each object in it."""
        if type(obj) not in _BYTES:
            return None
        large = cast(bytes, obj)
        if len(large) < LARGE:
            return None
        number = self._numbers.get(id(obj))
        if number is None:
            self._numbers[id(obj)] = number = 2 * len(self.whole) + (type(obj) is bytearray)
            self.whole.append(large)
        return number

    def parts(self) -> list[memoryview]:
        """Return all that leaves: the buffers, then the `bytes`."""
        return [*self.buffers, *(memoryview(each) for each in self.whole)] if self.takes_bytes else self.buffers


def has_large_bytes(value: object, depth: int) -> bool:
    """
    Tell whether there are `bytes` large enough to leave.

    Args:
        value: Where to look.
        depth: How many containers to look into, one in the other.
    """
    kind = type(value)
    if kind in _BYTES:
        return len(cast(bytes, value)) >= LARGE
    if not depth or kind not in _CONTAINERS:
        return False
    items: Collection[object] = cast("dict[object, object]", value).values() if kind is dict else cast("Any", value)
    worth = _BYTES if depth == 1 else _WORTH_A_LOOK
    if not items or len(items) > MOST_LOOKED_AT or worth.isdisjoint(map(type, items)):
        return False
    for item in items:  # noqa: SIM110  # `any` takes twice as long, for each call that is pickled
        if has_large_bytes(item, depth - 1):
            return True
    return False


def load(data: bytes | memoryview, parts: Sequence[memoryview], whole: int) -> Any:
    """
    Un-pickle a value whose parts have left.

    Args:
        data: Its pickle.
        parts: What had left, as `Leaving.parts` returned it; the value may keep it.
        whole: How many of them were `bytes`.
    """
    if not whole:
        return pickle.loads(data, buffers=parts)
    first = len(parts) - whole
    return _Loader(data, parts[:first], parts[first:]).load()


def load_what_can_be(data: bytes | memoryview, parts: Sequence[memoryview], whole: int) -> Any:
    """Un-pickle a value as `load` does, with gaps in the place of what can't be loaded: see `salvage`."""
    first = len(parts) - whole
    return load_around(data, parts[:first], _Loader(b"", (), parts[first:]).persistent_load)


class _Loader(pickle.Unpickler):
    """Puts `bytes` back in."""

    def __init__(self, data: bytes | memoryview, buffers: Sequence[memoryview], whole: Sequence[memoryview]) -> None:
        super().__init__(BytesIO(data), buffers=buffers)
        self._whole = whole
        self._made: dict[int, bytes | bytearray] = {}

    def persistent_load(self, pid: int) -> bytes | bytearray:
        """Return what left by the number *pid*: the same object each time."""
        if pid not in self._made:
            self._made[pid] = (bytearray if pid % 2 else bytes)(self._whole[pid // 2])
        return self._made[pid]


def reducers() -> dict[type, Callable[[Any], Any]]:
    """Return what a pickler's `dispatch_table` needs besides: how views travel, and arrays that have gaps."""
    known: dict[type, Callable[[Any], Any]] = {memoryview: _reduce_view}
    array = getattr(sys.modules.get("numpy"), "ndarray", None)
    if array is not None:
        known[array] = _reduce_array
    return known


def offsets(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Return where each of the parts of these sizes begins when they lie in one piece, and where the last one ends."""
    begins: list[int] = []
    end = 0
    for size in sizes:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        begins.append(begin)
        end = begin + size
    return begins, end


def _reduce_view(view: memoryview) -> tuple[Callable[..., memoryview], tuple[PickleBuffer, str, tuple[int, ...]]]:
    shape = view.shape or ()  # None only for what is no array of anything
    plain = view.format == "B" and view.ndim == 1
    if not plain and (view.format not in _NATIVE or view.nbytes == 0 or view.ndim == 0):
        raise TypeError(f"cannot pickle a memoryview of format {view.format!r} and shape {shape}")
    if not view.c_contiguous:
        return _view, (PickleBuffer(_in_one_piece(view)), view.format, shape)
    return _view, (PickleBuffer(view), view.format, shape)


def _in_one_piece(view: memoryview) -> bytes | bytearray:
    return view.tobytes() if view.readonly else bytearray(view.tobytes())


def _view(buffer: bytes | bytearray | memoryview, code: str, shape: tuple[int, ...]) -> memoryview:
    """Make a view of that shape again. Its name is in pickles: both sides have the same version."""
    flat = memoryview(buffer)
    if code == "B" and len(shape) == 1:
        return flat
    reshape: Any = flat.cast  # the stubs know formats as literals only
    return cast(memoryview, reshape(code, shape))


def _reduce_array(array: Any) -> str | tuple[Any, ...]:
    """Reduce an array as numpy does, but out of band though it has gaps, like the columns of a larger one."""
    flags = array.flags
    if not flags.forc and array.nbytes >= LARGE and not array.dtype.hasobject:
        writable = flags.writeable
        array = array.copy()
        array.flags.writeable = writable
    protocol: SupportsIndex = _PROTOCOL
    reduced: str | tuple[Any, ...] = array.__reduce_ex__(protocol)
    return reduced
