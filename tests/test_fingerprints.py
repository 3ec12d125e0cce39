"""
Fingerprints: the same until what a function does is changed.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable
from subprocess import CompletedProcess
from textwrap import dedent
from types import FunctionType
from typing import Any

import pytest

from parallel import parallel_map, task
from parallel.context import plain_function
from parallel.fingerprints import fingerprint


def made(text: str, filename: str = "file.py") -> Any:
    """Run *text*, and return the `f` that it made."""
    space: dict[str, Any] = {"__name__": "made"}
    exec(compile(dedent(text), filename, "exec"), space)
    return space["f"]


PLAIN = "def f(x, /, y=1, *rest, z=2, **more): return x + 1 if x in {'a', 'b'} else [i for i in range(y)]"

SAME = {
    "moved": "\n\n\n" + PLAIN,
    "with a comment": "# why\n" + PLAIN.replace(": return", ":\n    # how\n    return"),
    "annotated": PLAIN.replace("y=1", "y: int = 1"),
    "another order in a set": PLAIN.replace("'a', 'b'", "'b', 'a'"),
}
CHANGED = {
    "constant": PLAIN.replace("x + 1", "x + 2"),
    "type of a constant": PLAIN.replace("x + 1", "x + 1.0"),
    "operator": PLAIN.replace("x + 1", "x - 1"),
    "set": PLAIN.replace("'b'", "'c'"),
    "default": PLAIN.replace("y=1", "y=True"),
    "keyword default": PLAIN.replace("z=2", "z=3"),
    "global": PLAIN.replace("range", "iter"),
    "nested code": PLAIN.replace("[i for", "[i * 2 for"),
    "signature": PLAIN.replace(", /", ""),
    "kind": "async " + PLAIN,
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_the_same(text: str) -> None:
    """Where a function stands, and what is said about it, does not count."""
    assert fingerprint(made(text, "other.py")) == fingerprint(made(PLAIN))


@pytest.mark.parametrize("text", CHANGED.values(), ids=CHANGED)
def test_changed(text: str) -> None:
    """What a function does counts."""
    assert fingerprint(made(text)) != fingerprint(made(PLAIN))


def test_docstrings_do_not_count() -> None:
    """A docstring counts only if it is also a value that the code uses."""
    documented, otherwise_documented = (f'def f(x):\n    "{text}"\n    return x + 1' for text in ("One.", "Two."))
    assert fingerprint(made(documented)) == fingerprint(made(otherwise_documented))
    returned, otherwise_returned = (f'def f(x):\n    "{text}"\n    return "{text}"' for text in ("One.", "Two."))
    assert fingerprint(made(returned)) != fingerprint(made(otherwise_returned))


def adder(amount: object) -> Callable[[Any], Any]:
    def add(x: Any) -> Any:
        return x + amount

    return add


def test_closures() -> None:
    """The values of a closure count: those that can be pickled, those that can't, and functions."""
    assert fingerprint(adder(1)) == fingerprint(adder(1)) != fingerprint(adder(2))
    assert fingerprint(adder({"a", "b", "c"})) == fingerprint(adder({"c", "b", "a"}))
    assert fingerprint(adder(threading.Lock())) == fingerprint(adder(threading.Lock()))
    assert fingerprint(adder(adder(1))) == fingerprint(adder(adder(1))) != fingerprint(adder(adder(2)))
    assert fingerprint(adder(threading)) != fingerprint(adder(functools))
    assert fingerprint(adder(int)) != fingerprint(adder(str))


def test_a_function_in_its_own_closure() -> None:
    """A function that knows itself has a fingerprint, and one that is not there yet."""

    def down(x: int) -> int:
        return x and down(x - 1)

    def early() -> Callable[[], int]:
        def look() -> int:
            return late

        print_it = fingerprint(look)
        late = 1
        assert fingerprint(look) != print_it
        return look

    assert fingerprint(down) == fingerprint(down)
    early()


def double(x: int) -> int:
    return x * 2


def test_decorated_functions() -> None:
    """A declared function has the fingerprint of the plain one; a cached one that of the function in it."""
    assert fingerprint(task(double)) == fingerprint(parallel_map(double)) == fingerprint(double)
    one, other = (functools.lru_cache(made(f"def f(x): return x + {number}")) for number in (1, 2))
    assert fingerprint(one) != fingerprint(other)


class Scale:
    """Called with what it is made with."""

    factor = 2

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return x * self.by * self.twice(self.factor)

    @property
    def half(self) -> float:
        return self.by / 2

    @classmethod
    def make(cls) -> Scale:
        return cls(1)

    @staticmethod
    def twice(x: int) -> int:
        return x * 2


def changed(name: str, value: object) -> type[Scale]:
    """Make the class anew, with another attribute."""
    space = {key: one for key, one in vars(Scale).items() if key not in ("__dict__", "__weakref__")}
    return type("Scale", (), {**space, name: value})


def other(self: Any, *rest: Any) -> Any:
    return rest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("factor", 3),
        ("__call__", other),
        ("half", property(other)),
        ("make", classmethod(other)),
        ("twice", staticmethod(other)),
        ("more", 1),
    ],
)
def test_classes(name: str, value: object) -> None:
    """Of a class its methods and attributes count, whatever their kind, also for an object and in a base."""
    assert fingerprint(Scale) == fingerprint(changed("factor", 2)) != fingerprint(changed(name, value))
    derived, otherwise_derived = (type("Derived", (base,), {}) for base in (Scale, changed(name, value)))
    assert fingerprint(derived) != fingerprint(otherwise_derived)


def test_objects() -> None:
    """Of a callable object its state counts, and of a method that of its object."""
    assert fingerprint(Scale(1)) == fingerprint(Scale(1)) != fingerprint(Scale(2))
    assert fingerprint(Scale(1).__call__) == fingerprint(Scale(1).__call__) != fingerprint(Scale(2).__call__)
    assert fingerprint(Scale.make) != fingerprint(Scale.twice)


def test_partials() -> None:
    """Of a partial its function and arguments count."""
    plain = functools.partial(double, 1, y=2, z=3)
    assert fingerprint(plain) == fingerprint(functools.partial(double, 1, z=3, y=2))
    others = [
        functools.partial(double, 2, y=2, z=3),
        functools.partial(double, 1, y=3, z=3),
        functools.partial(other, 1),
    ]
    assert fingerprint(plain) not in {fingerprint(one) for one in others}


def test_chains() -> None:
    """All stages of a chain count, how each is tied, and which errors it catches."""
    halve, three, five = made("f = lambda x: x / 2"), made("f = lambda x: x + 3"), made("f = lambda x: x + 5")
    first = task(halve)
    chain = first.then(task(three)).catch(ValueError, five)
    others = [
        first.then(task(three)).catch(KeyError, five),
        first.then(task(three)).catch(ValueError, three),
        first.then(task(five)).catch(ValueError, five),
        task(three).then(task(three)).catch(ValueError, five),
        first.then(task(three)).then(five),
        first.then(task(three)),
    ]

    assert fingerprint(chain) == fingerprint(task(made("f = lambda x: x / 2")).then(three).catch(ValueError, five))
    assert len({fingerprint(each) for each in (chain, *others)}) == 1 + len(others)
    assert fingerprint(plain_function(chain)) != fingerprint(plain_function(others[-1]))


def test_long_chains() -> None:
    """A chain may have any number of stages."""
    chain = task(made(PLAIN))
    for _ in range(2000):
        chain = chain.then(made(PLAIN))
    assert fingerprint(chain) != fingerprint(task(made(PLAIN)))


def test_builtins() -> None:
    """A builtin is its name, and a method of a builtin object its object too."""
    some = [len, abs, operator.neg, operator.itemgetter(1), operator.itemgetter(2), "a".join, "b".join, str.join, int]
    assert len({fingerprint(one) for one in some}) == len(some)


SCRIPT = """
import dataclasses, enum, functools, sys
from parallel.fingerprints import fingerprint

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Job:
    names: frozenset = frozenset({"a", "b", "c"})
    colour: Colour = Colour.RED

    def __call__(self, x):
        return x in {"p", "q", "r", "s"} or super().__eq__(x)

def outer(names, job):
    def inner(x, also={"k", "l", "m"}):
        return [y for y in names if y in ("x", frozenset({"u", "v", "w"}))], job
    return inner

for fn in (outer, outer({"d", "e", "f"}, Job()), Job, Job(), functools.partial(outer, {"g", "h"}), sys.stdout.write):
    print(fingerprint(fn))
"""


def test_every_process_agrees(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """Neither the hashes of strings nor addresses matter."""
    told = {run_script(SCRIPT, env={"PYTHONHASHSEED": seed}).stdout for seed in ("0", "1", "2", "random")}
    assert len(told) == 1
    assert len(set(told.pop().split())) == 6


def test_a_compiled_file_agrees_with_its_source(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """A module read from its bytecode has the fingerprints that it had when it was compiled."""
    text = (
        "import pathlib, sys\npathlib.Path('made_once.py').write_text('def f(x): return x in {1, \"a\", (2, \"b\")}')\n"
    )
    script = text + "import made_once; from parallel.fingerprints import fingerprint; print(fingerprint(made_once.f))"
    assert run_script(script, flags=("-B",)).stdout == run_script(script).stdout == run_script(script).stdout


def test_a_function_that_has_run() -> None:
    """What the interpreter does to the instructions of a function that runs often does not count."""
    fn = made("def f(x):\n    total = 0\n    for i in range(x): total += i\n    return total")
    before = fingerprint(fn)
    for _ in range(100):
        fn(100)
    assert isinstance(fn, FunctionType) and fingerprint(fn) == before
