"""
Which item is which: bytes that are the same for equal items in every process and every run.

    value ──▶ pickle without a memo ──(sets in it)──▶ again, each set by its members in order ──▶ digest
                      └──(it is too large, or has itself in it)──▶ pickle as usual

An ordinary pickle is not enough. It tells an object that occurs twice from two equal ones, and it has the members of a
set in the order of their hashes, which are other ones in each process.

Equal means here: of the same types all the way down, and the same in each part; 1, 1.0 and True are three items, and
two dicts with the same entries in another order are two. Of an object, what it hands to pickle counts. An object that
hands on something else in each run, such as a time or an address, is another item each time.

Nothing here has state. All of it runs user code; it is called with no lock held.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer

PROTOCOL: Final = 5
"""That of pickle. It stays the same when pickle gets a higher one: what it makes is compared over years."""

MOST: Final = 1 << 26
"""
Bytes up to which a pickle is made without a memo. Without one, a structure that shares its parts on every level has no
end for practical purposes: this is where it is stopped, after some 0.1 s. A larger value may be told from an equal one
if they share their parts in different ways, and is run again then.
"""

LENGTH: Final = 16
"""
Bytes of a digest, half of a SHA-256. Two of 10 ** 9 items get the same one with a probability of 10 ** -21; twice as
many bytes would be half as much again in a journal of small values.
"""

_SETS: Final = frozenset({set, frozenset})
_MAKE_SETS: Final = (pickle.EMPTY_SET, pickle.FROZENSET)
_WORDS: Final = frozenset({str, int, bytes})


def canonical(value: object) -> bytes:
    """
    Pickle *value*, for comparison only; what a class or function is, is its name.

    Raises:
        Exception: Whatever pickle or the value's own code raises.
    """
    try:
        data = _pickled(pickle.Pickler, value)
        if any(code in data for code in _MAKE_SETS):  # or it looks like it: then this only takes longer
            data = _pickled(_Ordering, value)
    except (ValueError, RecursionError, _TooLargeError):  # pickle's words for what has itself in it
        return pickle.dumps(value, PROTOCOL)
    return data


def digests(texts: Iterable[bytes]) -> list[bytes]:
    """Return the digest of each of *texts*."""
    from hashlib import sha256  # loads OpenSSL: only a journal needs it

    return [sha256(text).digest()[:LENGTH] for text in texts]


def canonical_word(word: object) -> bytes:
    """
    Return the bytes of what a user's key function returned; no item has the same.

    Raises:
        TypeError: It is no str, int or bytes, and no tuple of these.
    """
    if not _is_word(word):
        raise TypeError(
            f"key= returned {word!r}, of type {type(word).__qualname__}: a key is a str, an int, bytes, or a tuple of"
            " these"
        )
    return b"key" + canonical(word)  # a pickle begins with another byte


def _is_word(word: object) -> bool:
    if type(word) is tuple:
        return all(map(_is_word, cast("tuple[object, ...]", word)))
    return type(word) in _WORDS


def _pickled(pickler: type[pickle.Pickler], value: object) -> bytes:
    file = _Limited()
    making = pickler(file, PROTOCOL)
    making.fast = True  # no memo
    making.dump(value)
    return file.getvalue()


class _TooLargeError(Exception):
    """The pickle is larger than `MOST`."""


class _Limited(BytesIO):
    """A file that takes nothing more once it has more than `MOST` bytes."""

    def write(self, data: Buffer, /) -> int:
        if self.tell() > MOST:
            raise _TooLargeError
        return super().write(data)


class _Ordering(pickle.Pickler):
    """Pickles a set as its members in order. Slow: it is asked about each object."""

    def persistent_id(self, obj: object) -> tuple[str, list[bytes]] | None:
        if type(obj) not in _SETS:
            return None
        members: Iterable[object] = obj  # type: ignore[assignment]  # it is a set
        return type(obj).__name__, sorted(map(canonical, members))
