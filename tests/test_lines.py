"""
In which line of a file a key stands.
"""

import json
import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.lines import Path, lines_of

EXAMPLE = '''# a comment with [brackets] and "quotes"
title = "a # no comment" # one = 1

[pools.io] # = 3
kind = 'thread'
initargs = [
    # nothing = 1
    { a = 1, "b.c" = [2] }, "x",

    """
    z = 1 \\"""
    """, \'\'\'
    y = 1''\'\'\',
    1979-05-27 07:32:00,
]
pools.deep.er = -1_000.5e3
[tasks."shop:\\u002a"]
retry = { on = "OSError", attempts = 3 }
[[many]]
x = 1
[many.below]
[[many]]
x = 2
[[many.below]]
y = true
'''

EXPECTED = {
    "title": 2,
    "pools": 4,
    "pools.io": 4,
    "pools.io.kind": 5,
    "pools.io.initargs": 6,
    "pools.io.initargs.0": 8,
    "pools.io.initargs.0.a": 8,
    "pools.io.initargs.0.b.c": 8,
    "pools.io.initargs.0.b.c.0": 8,
    "pools.io.initargs.1": 8,
    "pools.io.initargs.2": 10,
    "pools.io.initargs.3": 12,
    "pools.io.initargs.4": 14,
    "pools.io.pools": 16,
    "pools.io.pools.deep": 16,
    "pools.io.pools.deep.er": 16,
    "tasks": 17,
    "tasks.shop:*": 17,
    "tasks.shop:*.retry": 18,
    "tasks.shop:*.retry.on": 18,
    "tasks.shop:*.retry.attempts": 18,
    "many": 19,
    "many.0": 19,
    "many.0.x": 20,
    "many.0.below": 21,
    "many.1": 22,
    "many.1.x": 23,
    "many.1.below": 24,
    "many.1.below.0": 24,
    "many.1.below.0.y": 25,
}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_key_has_its_line(newline: str) -> None:
    """Strings, comments, arrays over several lines and all forms of tables."""
    found = lines_of(EXAMPLE.replace("\n", newline))
    assert {".".join(map(str, path)): line for path, line in found.items()} == EXPECTED


def paths_in(value: object, path: Path = ()) -> Iterator[Path]:
    """Tell all paths in what tomllib has read."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from ((*path, key), *paths_in(below, (*path, key)))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from ((*path, index), *paths_in(below, (*path, index)))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
spelled = st.sampled_from(["#", "[", "]", "\\", '"', "'", "\n", "=", "{", "}", ",", '"""', "'''", "\x7f", "\ta = 1"])
strings = st.lists(text | spelled, max_size=4).map("".join)
keys = strings | st.sampled_from(["a", "b", "a.b"])
values = st.recursive(
    strings | st.integers(-9, 9) | st.booleans(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(keys, below, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values), st.dictionaries(keys, st.dictionaries(keys, values)), st.integers(0, 3))
def test_all_keys_of_any_file_are_found(top: dict[str, object], tables: dict[str, dict[str, object]], gap: int) -> None:
    """The paths are those that tomllib reads, and the lines those in which they were written."""
    lines = [""] * gap
    expected: dict[Path, int] = {}
    for name, table in [("", top), *((each, tables[each]) for each in tables if each not in top)]:
        if table is not top:
            lines.append(f"[ {written(name)} ] # [x]")
        outer: Path = () if table is top else (name,)
        expected |= dict.fromkeys([outer] if outer else [], len(lines))
        for key, value in table.items():
            lines.append(f"{written(key)}={written(value)}#=")
            expected |= dict.fromkeys([(*outer, key), *paths_in(value, (*outer, key))], len(lines))
    document = "\n".join(lines)
    assert list(lines_of(document).items()) == list(expected.items())
    assert set(expected) == set(paths_in(tomllib.loads(document)))


def written(value: object) -> str:
    """Write a value, or a key, as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)} = {written(below)}" for key, below in value.items()) + " }"
    if isinstance(value, list):
        return "[ " + ",".join(map(written, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def test_what_is_nested_too_deep_has_no_line() -> None:
    """What was found until then is told."""
    depth = 300
    while True:
        try:
            document = "a = 1\nb = " + "[" * depth + "]" * depth
            tomllib.loads(document)
        except RecursionError:
            break
        depth += 100
    assert lines_of(document)[("b",)] == 2
