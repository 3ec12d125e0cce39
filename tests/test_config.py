"""
Finding, reading and checking TOML.
"""

import json
import math
import pickle
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from parallel import config
from parallel.catalogue import OWN
from parallel.checks import key_path
from parallel.config import Config, Unobserved, built_in, discover, find, from_mapping, load
from parallel.dumping import in_toml
from parallel.errors import ConfigError
from parallel.events import EVENTS
from parallel.kinds import InlineConfig, LoopConfig, PoolConfig, ProcessConfig, ThreadConfig
from parallel.options import Rate, Retry, TaskOptions

ROOT = Path(config.__file__).parent.parent


@pytest.fixture(autouse=True)
def no_configuration_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests from the environment of whoever runs them."""
    monkeypatch.delenv("PARALLEL_CONFIG", raising=False)


def mistakes_in(tables: object) -> tuple[str, ...]:
    """Check tables that are wrong."""
    with pytest.raises(ConfigError) as caught:
        from_mapping(tables)  # type: ignore[arg-type]  # wrong tables are what this is for
    return caught.value.mistakes


def written(path: Path, text: str) -> Path:
    """Write a file, with its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# Reading


def test_the_example_of_the_first_page(tmp_path: Path) -> None:
    """A file is read as it is written."""
    text = """
    [pools.threads]
    max_workers = 32

    [pools.heavy]
    kind = "process"
    mp_context = "spawn"
    max_tasks_per_child = 1000
    initializer = "shop.setup:prepare"
    initargs = ["a", 1, { b = 2 }]

    [tasks."shop.images:*"]
    pool = "heavy"
    timeout = "30s"
    """
    path = written(tmp_path / "parallel.toml", text)
    heavy = ProcessConfig(None, "spawn", "shop.setup:prepare", ("a", 1, {"b": 2}), 1000)
    pools = {"threads": ThreadConfig(32), "processes": ProcessConfig(), "loop": LoopConfig(), "heavy": heavy}
    assert load(path) == Config(str(path), pools, {"shop.images:*": TaskOptions(pool="heavy", timeout=30)})


def test_built_in_pools_may_change_their_kind() -> None:
    """A file may redefine `threads`, so that a program runs elsewhere."""
    assert from_mapping({"pools": {"threads": {"kind": "inline"}}}).pools["threads"] == InlineConfig()


def test_nothing_said_is_the_built_in_configuration() -> None:
    """An empty file changes nothing."""
    assert from_mapping({}, "x").pools == built_in().pools
    assert from_mapping({}, "x").tasks == built_in().tasks == {}


def test_pyproject_is_read_under_its_own_table(tmp_path: Path) -> None:
    """Key paths of mistakes start at the top of the file."""
    path = written(tmp_path / "pyproject.toml", "[tool.parallel.pools.threads]\nmax_workers = 0")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.mistakes[0].startswith(f"{path}:2: tool.parallel.pools.threads.max_workers: expected")


def test_a_pyproject_without_our_table_is_no_configuration(tmp_path: Path) -> None:
    """Who names a file wants it used."""
    with pytest.raises(ConfigError, match=r"tool\.parallel: expected a table, found nothing"):
        load(written(tmp_path / "pyproject.toml", "[project]\nname = 'x'"))


def test_tables_of_pyproject_in_another_file(tmp_path: Path) -> None:
    """The likely mix-up of the two files is explained."""
    path = written(tmp_path / "parallel.toml", "[tool.parallel.pools.threads]\nmax_workers = 3")
    with pytest.raises(
        ConfigError, match=r"tool: unknown table or option \(\[tool.parallel\] is read from a pyproject.toml"
    ):
        load(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a = 1\nb = ", r"not TOML: Invalid value \(at .*\)"),
        (b"a = '\xff'", "expected text in UTF-8, found byte 0xff at offset 5"),
        (b"a = " + b"[" * 100_000, "not TOML: "),
        (b"a = " + b"1" * 5_000, "not TOML: "),
    ],
)
def test_files_that_are_not_toml(content: bytes, reason: str, tmp_path: Path) -> None:
    """The reason is told, with the place."""
    path = tmp_path / "parallel.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        load(path)
    assert caught.value.source == str(path)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Some editors write one."""
    path = tmp_path / "parallel.toml"
    path.write_bytes(b"\xef\xbb\xbf[pools.x]\nkind = 'inline'")
    assert load(path).pools["x"] == InlineConfig()


@pytest.mark.parametrize("name", [".", "missing.toml", "nul\0.toml"])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    """A directory, a missing file and an impossible name are told apart by the reason."""
    with pytest.raises(ConfigError, match=r"can't be read: .+"):
        load(f"{tmp_path}/{name}")


def test_reading_imports_nothing_that_the_file_names() -> None:
    """An import string is resolved when the pool starts."""
    assert from_mapping({"pools": {"threads": {"initializer": "no.such.module:thing"}}})


def test_importing_the_module_stays_light() -> None:
    """What reads a file is loaded when a file is read."""
    heavy = {"cattrs", "tomllib", "asyncio", "multiprocessing", "rich", "cloudpickle", "difflib", "json", "datetime"}
    code = f"import sys, parallel.config; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_a_configuration_can_be_sent_to_a_process() -> None:
    """It holds only plain values."""
    sent = from_mapping({"pools": {"x": {"kind": "thread", "initargs": [1]}}, "tasks": {"*": {"pool": "x"}}})
    assert pickle.loads(pickle.dumps(sent)) == sent


# Mistakes

PLANTED = {
    "pools": {
        "threads": {"max_wokers": 4, "max_workers": True, "thread_name_prefix": 1},
        "heavy": {
            "kind": "process",
            "max_tasks_per_child": 2.7,
            "mp_context": "frok",
            "initializer": "shop.setup",
            "initargs": "abc",
        },
        "full": {"kind": "thread", "on_full": "raise"},
        "typo": {"kind": "thred"},
        "bare": {"max_workers": 3},
        "list": [],
        "": {"kind": "inline"},
    },
    "tasks": {
        "shop.images:*": {"pool": "haevy", "tiemout": "30s"},
        "shop.images": {"pool": ""},
        "shop:a": {"pool": 3},
        "shop:b": "heavy",
        "shop:c": {
            "timeout": "often",
            "deadline": True,
            "limit": 2.5,
            "rate": "often",
            "priority": "high",
            "idempotent": "false",
            "on_success": "shop.done",
            "on_failure": 3,
            "retry": {"on": ["OSErorr"], "atempts": 3, "attempts": 0, "wait_max": math.inf, "wait_exp_base": "2"},
        },
        "shop:d": {"retry": 3},
        "shop:e": {"retry": {"wait_initial": "10s"}},
    },
    "unobserved": "wran",
    "defaults": {"pool": "thread", "timeout": 0},
    "task": {},
}

EXPECTED = [
    "pools.threads.max_wokers: unknown option of kind 'thread' (did you mean 'max_workers'?); known: kind, ",
    "pools.threads.max_workers: expected an integer of at least 1 or a string such as 'cpus', 'cpus-1' or '2*cpus', "
    "found boolean True",
    "pools.threads.thread_name_prefix: expected a string, found integer 1",
    "pools.heavy.max_tasks_per_child: expected an integer of at least 1, found float 2.7",
    "pools.heavy.mp_context: expected a start method that this platform has (",
    "pools.heavy.initializer: expected an import string such as 'package.module:attribute', found string 'shop.setup' "
    "(did you mean 'shop:setup'?)",
    "pools.heavy.initargs: expected an array, found string 'abc'",
    "pools.typo.kind: expected the kind of a pool, found string 'thred' (did you mean 'thread'?); "
    "known: thread, process, loop, inline, executor, dask, ray",
    "pools.bare.kind: expected the kind of a pool, found nothing; "
    "known: thread, process, loop, inline, executor, dask, ray",
    "pools.full.on_full: expected only beside max_pending, found string 'raise' without it",
    "pools.list: expected a table, found array []",
    "pools.\"\": expected the name of a pool, found string ''",
    "tasks.\"shop.images:*\".pool: no pool named 'haevy' (did you mean 'heavy'?); known: \"\", bare, full, heavy, "
    "list, loop, processes, threads, typo",
    "tasks.\"shop.images:*\".tiemout: unknown option of a task (did you mean 'timeout'?); known: pool, timeout, "
    "deadline, retry, limit, rate, priority, idempotent, on_success, on_failure",
    'tasks."shop.images": expected a name or pattern in quotes, such as "shop.images:resize" or "shop.images:*", '
    "found string 'shop.images'",
    "tasks.\"shop.images\".pool: expected the name of a pool, found string ''",
    'tasks."shop:a".pool: expected the name of a pool, found integer 3',
    "tasks.\"shop:b\": expected a table, found string 'heavy'",
    "tasks.\"shop:c\".timeout: expected a duration such as 2.5, '250ms' or '5m', found string 'often'",
    "tasks.\"shop:c\".deadline: expected a duration such as 2.5, '250ms' or '5m', found boolean True",
    'tasks."shop:c".limit: expected an integer of at least 1, found float 2.5',
    "tasks.\"shop:c\".rate: expected a rate such as '100/min' or '5/2s', found string 'often'",
    "tasks.\"shop:c\".priority: expected an integer, found string 'high'",
    "tasks.\"shop:c\".idempotent: expected true or false, found string 'false'",
    "tasks.\"shop:c\".on_success: expected a function, or an import string such as 'package.module:attribute', found "
    "string 'shop.done' (did you mean 'shop:done'?)",
    "tasks.\"shop:c\".on_failure: expected a function, or an import string such as 'package.module:attribute', found "
    "integer 3",
    "tasks.\"shop:c\".retry.on: expected an exception type, or its name such as 'OSError' or 'shop.errors:Busy', found "
    "string 'OSErorr' (did you mean 'OSError'?)",
    "tasks.\"shop:c\".retry.atempts: unknown option of retry (did you mean 'attempts'?); known: on, attempts, timeout, "
    "wait_initial, wait_max, wait_jitter, wait_exp_base",
    'tasks."shop:c".retry.attempts: expected an integer of at least 1, or inf, found integer 0',
    "tasks.\"shop:c\".retry.wait_max: expected a duration such as 2.5, '250ms' or '5m', found float inf (allowed: 0 or "
    "more, at most ",
    "tasks.\"shop:c\".retry.wait_exp_base: expected a number of at least 1, found string '2'",
    'tasks."shop:d".retry: expected a table, found integer 3',
    'tasks."shop:e".retry.wait_max: expected at least wait_initial, which is 10s, found 5s',
    "unobserved: expected 'log', 'warn', 'raise' or 'ignore', found string 'wran' (did you mean 'warn'?)",
    "defaults.pool: no pool named 'thread' (did you mean 'threads'?); known: \"\", bare, ",
    "defaults.timeout: expected a duration such as 2.5, '250ms' or '5m', found integer 0 (allowed: more than 0, ",
    "task: unknown table or option (did you mean 'tasks'?); known: pools, tasks, unobserved, defaults, on, observe, ",
]


def test_every_mistake_is_told_at_once() -> None:
    """Many mistakes of many sorts: each has its line, in order of the key paths."""
    found = mistakes_in(PLANTED)
    assert len(found) == len(EXPECTED)
    for line, expected in zip(found, sorted(EXPECTED), strict=True):
        assert line.startswith(expected)


@given(st.sets(st.integers(0, 13), min_size=1))
def test_planted_mistakes_are_all_found(where: set[int]) -> None:
    """Of any set of mistakes, each is told with its key path, and nothing else is."""
    plants: list[tuple[str, str, object]] = [
        ("pools", "a", {"kind": "thread", "max_workers": "many"}),
        ("pools", "b", {"kind": "process", "max_tasks_per_child": False}),
        ("pools", "c.d", {"kind": "inline", "initializer": "x:y"}),
        ("pools", "e", {"kind": "fiber"}),
        ("pools", "f", "thread"),
        ("tasks", "shop:*", {"pool": "zzz"}),
        ("tasks", "shop:one", {"pool": 1}),
        ("tasks", "shop", {}),
        ("tasks", "a:b:c*", {}),
        ("tasks", "*x", {"pools": "threads"}),
        ("tasks", "*y", {"timeout": math.nan, "retry": {"attempts": 2}}),
        ("tasks", "*z", {"retry": {"timeout": False}, "rate": "1/s"}),
        ("pools", "g", {"kind": "loop", "max_pending": 1, "on_full": "run"}),
        ("pools", "h", {"kind": "process", "on_full": "run"}),
    ]
    paths = ["pools.a.max_workers", "pools.b.max_tasks_per_child", 'pools."c.d".initializer', "pools.e.kind", "pools.f"]
    paths += ['tasks."shop:*".pool', 'tasks."shop:one".pool', "tasks.shop", 'tasks."a:b:c*"', 'tasks."*x".pools']
    paths += ['tasks."*y".timeout', 'tasks."*z".retry.timeout', "pools.g.on_full", "pools.h.on_full"]
    tables: dict[str, dict[str, object]] = {"pools": {"good": {"kind": "loop"}}, "tasks": {"*": {"pool": "good"}}}
    for table, name, value in (plants[each] for each in where):
        tables[table][name] = value
    found = mistakes_in(tables)
    assert len(found) == len(where)
    assert all(any(line.startswith(f"{paths[each]}: ") for line in found) for each in where)


@pytest.mark.parametrize(
    "wrong", ["", "prepare", "shop:", ":prepare", "shop:a:b", "shop:a b", "1shop:a", "shop..x:a", 3]
)
def test_wrong_import_strings(wrong: object) -> None:
    """The form is checked when the file is read."""
    (line,) = mistakes_in({"pools": {"threads": {"initializer": wrong}}})
    assert line.startswith("pools.threads.initializer: expected an import string such as 'package.module:attribute'")


def test_options_of_other_kinds_are_checked_by_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that is added brings its class, and needs no more."""

    @frozen
    class FakeConfig(PoolConfig):
        kind = "fake"
        address: str
        secure: bool = True
        weight: float = 1.0

    monkeypatch.setitem(OWN, "fake", FakeConfig)
    right = {"kind": "fake", "address": "x", "weight": 2}
    assert from_mapping({"pools": {"far": right}}).pools["far"] == FakeConfig("x", weight=2)
    assert mistakes_in({"pools": {"far": {"kind": "fake", "secure": "false", "weight": True}}}) == (
        "pools.far.address: required, found nothing",
        "pools.far.secure: expected a boolean, found string 'false'",
        "pools.far.weight: expected a number, found boolean True",
    )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=3) | st.dates(),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.text(max_size=8), below, max_size=3)
        | st.dictionaries(
            st.sampled_from(["pools", "tasks", "kind", "pool", "max_workers", "initargs", "threads", "a:*", "defaults"])
            | st.sampled_from(["profiles", "extends", "environment"])
            | st.sampled_from(["timeout", "retry", "on", "attempts", "limit", "rate", "on_full", "max_pending"]),
            below,
        )
        | st.dictionaries(st.none() | st.integers() | st.tuples(st.text(max_size=1)), below, max_size=2)
    ),
    max_leaves=12,
)
tables_of_anything = st.fixed_dictionaries(
    {},
    optional={
        "pools": anything | st.dictionaries(st.sampled_from(["threads", "x", ""]) | st.integers(), anything),
        "tasks": anything | st.dictionaries(st.sampled_from(["a:*", "b", ""]) | st.none(), anything),
        "profiles": anything | st.dictionaries(st.sampled_from(["x", "y", ""]) | st.none(), anything),
        "extends": anything,
        "defaults": anything,
        "more": anything,
    },
)


@given(anything | tables_of_anything, st.none() | st.just("x"))
def test_any_data_is_a_configuration_or_a_config_error(data: object, profile: str | None) -> None:
    """No other exception comes out, and each mistake is one line that begins with its key path."""
    try:
        read = from_mapping(data, profile=profile)  # type: ignore[arg-type]  # that is the test
    except ConfigError as error:
        assert error.mistakes
        assert not [line for line in error.mistakes if "\n" in line]
        if isinstance(data, dict):
            tops = [key_path(key) for key in data] + ["profiles"]
            assert all(any(line.startswith((f"{top}.", f"{top}: ")) for top in tops) for line in error.mistakes)
    else:
        assert {"threads", "processes", "loop"} <= read.pools.keys()


# A right configuration comes back as it was written

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
workers = st.none() | st.integers(1, 99) | st.sampled_from(["cpus", "cpus-1", "2*cpus"])
import_strings = st.none() | st.sampled_from(["shop:setup", "shop.deep.er:Class.method"])
values = st.recursive(
    st.booleans() | st.integers(-9, 9) | names, lambda below: st.lists(below, max_size=2), max_leaves=4
)
initargs = st.lists(values, max_size=3).map(tuple)
max_pending = st.none() | st.integers(1, 99)
pool_configs = st.one_of(
    st.builds(ThreadConfig, workers, names, import_strings, initargs, max_pending, helping=st.booleans()),
    st.builds(
        ProcessConfig, workers, st.none() | st.just("spawn"), import_strings, initargs, st.none() | st.integers(1, 99)
    ),
    st.builds(LoopConfig, workers, st.integers(1, 99), st.sampled_from([None, "block", "raise"])),
    st.builds(InlineConfig),
)
patterns = st.sampled_from(["*", "shop.*", "shop.images:*", "shop.images:resize", "*:resize", "shop?[x]:f.<locals>.g"])


durations = st.floats(1e-9, 1e6)
retries = st.builds(
    Retry,
    st.sampled_from(["OSError", ["shop.errors:Busy", "ValueError"]]),
    attempts=st.none() | st.integers(1, 99),
    timeout=st.none() | durations,
    wait_max=durations,
    wait_initial=st.just(0),
    wait_exp_base=st.floats(1, 9),
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Make a right configuration."""
    pools = {**built_in().pools, **draw(st.dictionaries(names, pool_configs, max_size=4))}
    options = st.builds(
        TaskOptions,
        pool=st.sampled_from([None, *pools]),
        timeout=st.none() | durations | st.just(math.inf),
        deadline=st.none() | durations,
        retry=st.none() | retries,
        limit=st.none() | st.integers(1),
        rate=st.none() | st.builds(Rate, st.integers(1, 999), durations),
        priority=st.none() | st.integers(),
        idempotent=st.none() | st.booleans(),
        on_failure=import_strings,
    )
    unobserved: list[Unobserved] = ["log", "warn", "raise", "ignore"]
    tasks = draw(st.dictionaries(patterns, options, max_size=4))
    on = draw(st.dictionaries(st.sampled_from(list(EVENTS)), st.just(("shop:hear", "shop.deep:hear"))))
    return Config("the mapping given", pools, tasks, draw(st.sampled_from(unobserved)), draw(options), on=on)


def toml_of(config: Config) -> Iterator[str]:
    """Write a configuration as TOML."""
    yield f"unobserved = {toml(config.unobserved)}"
    for name, pool in config.pools.items():
        yield f"[pools.{toml(name)}]"
        yield f"kind = {toml(pool.kind)}"
        yield from said(pool)
    for pattern, options in config.tasks.items():
        yield f"[tasks.{toml(pattern)}]"
        yield from said(options)
    yield "[defaults]"
    yield from said(config.defaults)
    yield "[on]"
    for event, named in config.on.items():
        yield f"{event} = {toml(named)}"


def said(options: attrs.AttrsInstance) -> list[str]:
    """Write what differs from the defaults; durations as strings, by way of their own writer."""
    return [
        f"{option.name} = {toml(option.metadata['written'](value) if option.metadata and value is not None else value)}"
        for option in attrs.fields(type(options))
        if (value := getattr(options, option.name)) != option.default
    ]


def toml(value: object) -> str:
    """Write one value or key. JSON's are TOML's too, but TOML wants DEL escaped; None is where inf means no limit."""
    if isinstance(value, Retry):
        return f"{{{', '.join(said(value))}}}"
    if value is None:
        return "inf"
    return json.dumps(str(value) if isinstance(value, Rate) else value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(configs())
def test_a_right_configuration_is_read_as_it_is_written(right: Config) -> None:
    """Whatever may be said in TOML, is."""
    assert from_mapping(tomllib.loads("\n".join(toml_of(right)))) == right


@given(configs())
def test_a_configuration_that_is_dumped_is_read_as_the_same(right: Config) -> None:
    """Also when it is dumped again."""
    once = from_mapping(tomllib.loads(right.to_toml()))
    assert once == right
    assert once.to_toml() == right.to_toml()


def test_what_has_no_form_in_toml() -> None:
    """A program can say more than a file."""
    with pytest.raises(TypeError, match=r"TOML has no set, such as \{1\}"):
        from_mapping({"pools": {"threads": {"initargs": [{1}]}}}).to_toml()


def test_a_dump_for_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Profiles are merged in, and of the environment a comment tells."""
    monkeypatch.setenv("PARALLEL_TASKS", '{"*": {"limit": 3}}')
    text = """
    unobserved = "warn"
    [defaults]
    timeout = 90
    [pools.io]
    kind = "thread"
    max_workers = "2*cpus"
    [tasks."shop:*"]
    retry = { on = ["OSError"], attempts = inf }
    rate = "100/minute"
    [on]
    call_failed = "shop.alerts:page"
    [profiles.big.pools.io]
    max_workers = 64
    """
    assert (
        load(written(tmp_path / "parallel.toml", text), "big").to_toml()
        == """\
unobserved = "warn"

[defaults]
timeout = "1m30s"

[pools.io]
kind = "thread"
max_workers = 64

[tasks."shop:*"]
retry = {on = ["OSError"], attempts = inf}
rate = "100/min"

[on]
call_failed = ["shop.alerts:page"]

# The environment says besides:
# [tasks."*"]
# limit = 3
"""
    )


# Rules for tasks


def options_for(name: str, *rules: tuple[str, str | None]) -> str | None:
    """Give the pool that some rules choose."""
    return Config("x", {}, {pattern: TaskOptions(pool=pool) for pattern, pool in rules}).options_for(name).pool


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("*", True),
        ("shop.images:resize", True),
        ("shop.images:*", True),
        ("shop.*", True),
        ("*:resize", True),
        ("s*:*e", True),
        ("*images*", True),
        ("shop.images:resiz", False),
        ("hop.images:resize", False),
        ("shop.images", False),
        ("shop?images:resize", False),
        ("[s]hop.images:resize", False),
        ("Shop.*", False),
    ],
)
def test_a_star_is_any_run_of_characters_and_nothing_else_is_special(pattern: str, matches: bool) -> None:
    """Dots and colons are characters like others."""
    assert (options_for("shop.images:resize", (pattern, "x")) == "x") is matches


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ("shop.images:resize", "shop.images:resize*"),
        ("shop.images:*", "shop.*"),
        ("*:resize", "*size"),
        ("shop*", "*shop*"),
        ("shop*", "*:res*"),
    ],
)
def test_the_most_specific_rule_wins_wherever_it_stands(winner: str, loser: str) -> None:
    """More characters win; with as many, fewer stars do."""
    assert options_for("shop.images:resize", (winner, "w"), (loser, "l")) == "w"
    assert options_for("shop.images:resize", (loser, "l"), (winner, "w")) == "w"


def test_rules_that_are_as_specific_may_say_the_same() -> None:
    """Then there is nothing to decide."""
    assert options_for("shop.images:resize", ("shop*", "1"), ("*size", "1"), ("s*ze", "1")) == "1"


def test_rules_that_are_as_specific_and_differ_are_a_mistake() -> None:
    """It is told for the task that both match, with what to do."""
    problem = r'tasks\."\*size"\.pool: "shop\*" is as specific, and says something else, for the task '
    problem += r'shop\.images:resize; say it in a rule "shop\.images:resize"'
    with pytest.raises(ConfigError, match=problem):
        options_for("shop.images:resize", ("shop*", "1"), ("*size", "2"))
    assert options_for("shop.images:scale", ("shop*", "1"), ("*size", "2")) == "1"


def test_a_more_specific_rule_decides_between_others() -> None:
    """The tie below it doesn't matter then."""
    assert options_for("shop.images:resize", ("shop*", "1"), ("*size", "2"), ("*resize", "3")) == "3"


def test_a_rule_that_says_nothing_hides_nothing() -> None:
    """What the specific rule leaves open comes from the general one."""
    assert options_for("shop.images:resize", ("shop.images:resize", None), ("shop*", "x")) == "x"


def test_a_task_without_a_rule() -> None:
    """Nothing is said about it."""
    assert built_in().options_for("shop:f") == TaskOptions()


def test_a_pattern_of_many_stars_is_matched_fast() -> None:
    """No pattern makes the matching run away."""
    assert options_for("a" * 2_000, ("*a" * 30 + "*b", "x")) is None


@pytest.mark.parametrize("wrong", ["", "shop.images", ":", "shop:", ":f", "a:b:c", "a:b:*", "a b:c", ":*", "shop :*"])
def test_patterns_that_could_match_no_task(wrong: str) -> None:
    """A rule that can't match is a mistake, not a rule without effect."""
    (line,) = mistakes_in({"tasks": {wrong: {"pool": "threads"}}})
    assert ": expected a name or pattern in quotes, such as" in line


# Finding


def test_the_nearest_file_upward_is_found(tmp_path: Path) -> None:
    """A project's own file comes before one further up."""
    far = written(tmp_path / "parallel.toml", "")
    near = written(tmp_path / "a" / "b" / "parallel.toml", "")
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    assert find(tmp_path / "a" / "b" / "c" / "d") == near
    assert find(tmp_path / "a") == far


def test_parallel_toml_comes_before_pyproject(tmp_path: Path) -> None:
    """In one directory, the file that is only ours wins."""
    project = written(tmp_path / "pyproject.toml", "[tool.parallel]")
    assert find(tmp_path) == project
    own = written(tmp_path / "parallel.toml", "")
    assert find(tmp_path) == own


@pytest.mark.parametrize("text", ["", "[project]\nname = 'x'", "[tool.other]\nparallel = true", "tool = 'parallel'"])
def test_a_pyproject_without_our_table_is_passed_by(text: str, tmp_path: Path) -> None:
    """Other tools' settings are no configuration of ours."""
    far = written(tmp_path / "parallel.toml", "")
    written(tmp_path / "a" / "pyproject.toml", text)
    assert find(tmp_path / "a") == far


def test_a_broken_pyproject_that_mentions_us_is_found(tmp_path: Path) -> None:
    """It can't be known whether it configures us: rather an error than a file passed by."""
    broken = written(tmp_path / "pyproject.toml", "[tool.parallel\n")
    assert find(tmp_path) == broken
    with pytest.raises(ConfigError, match="not TOML"):
        load(broken)


def test_a_broken_pyproject_that_does_not_mention_us_is_passed_by(tmp_path: Path) -> None:
    """It's others' trouble."""
    far = written(tmp_path / "parallel.toml", "")
    written(tmp_path / "a" / "pyproject.toml", "[tool.other\n")
    assert find(tmp_path / "a") == far


def test_directories_with_the_names_of_files_are_passed_by(tmp_path: Path) -> None:
    """Only a file is a configuration."""
    far = written(tmp_path / "parallel.toml", "")
    (tmp_path / "a" / "parallel.toml").mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").mkdir()
    assert find(tmp_path / "a") == far


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$PARALLEL_CONFIG` comes before any file that could be found; empty, it isn't set."""
    own = written(tmp_path / "parallel.toml", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARALLEL_CONFIG", str(tmp_path / "other.toml"))
    assert find() == tmp_path / "other.toml"
    monkeypatch.setenv("PARALLEL_CONFIG", "")
    assert find() == own


def test_a_missing_file_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't passed by, and the error says who named it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARALLEL_CONFIG", "./missing.toml")
    with pytest.raises(ConfigError, match=r"can't be read: .*; \$PARALLEL_CONFIG names it"):
        discover()


def test_what_is_found_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the working directory upward, else the built-in configuration."""
    monkeypatch.setattr(config, "find", lambda: None)
    assert discover() == built_in()
    monkeypatch.undo()
    written(tmp_path / "parallel.toml", "[pools.x]\nkind = 'inline'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARALLEL_CONFIG", raising=False)
    assert discover().pools["x"] == InlineConfig()


@pytest.mark.skipif(sys.platform == "win32", reason="a working directory can't be deleted there")
def test_a_working_directory_that_was_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to find, and that is no error."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert find() is None


# Any file

toml_values = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats()
    | names
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.sampled_from([10**400, "2*cpus", "5m", "a:b", "thread", "process", "cpus-1", "\u200b", "\x7f", "ﬁ"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(names, below, max_size=3),
    max_leaves=8,
)
words = st.sampled_from(
    ["kind", "max_workers", "pool", "timeout", "retry", "on", "attempts", "initargs", "env", "my-io", "my_io", "MY IO"]
)
toml_tables = st.dictionaries(names | words, toml_values | st.dictionaries(words, toml_values, max_size=3), max_size=4)
toml_files = st.dictionaries(
    names | st.sampled_from(["pools", "tasks", "defaults", "profiles", "on", "unobserved", "environment", "extend"]),
    toml_values | toml_tables,
    max_size=5,
)


@given(toml_files, st.sampled_from([None, "", "tool.parallel"]), st.booleans())
def test_any_file_is_a_configuration_or_a_config_error(
    tree: dict[str, object], heading: str | None, inline: bool
) -> None:
    """No other exception comes out of a file; each mistake names its line in it, and its key path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pyproject.toml" if heading else "parallel.toml")
        lines = [f"{key_path(key)} = {in_toml(value)}" for key, value in tree.items()]
        if not inline:  # as tables under headings, where that is the same
            tables = {key: value for key, value in tree.items() if isinstance(value, dict)}
            lines = [line for line, value in zip(lines, tree.values(), strict=True) if not isinstance(value, dict)]
            for key, value in tables.items():
                lines.append(f"[{heading + '.' if heading else ''}{key_path(key)}]")
                lines += [f"{key_path(each)} = {in_toml(below)}" for each, below in value.items()]
        path.write_text("\n".join([f"[{heading}]" if heading else "", *lines]), encoding="utf-8")
        try:
            read = load(path)
        except ConfigError as error:
            assert error.source == str(path)
            for line in error.mistakes:
                found = re.fullmatch(r"(.*):(\d+): (\S.*?): (.*)", line)
                assert found is not None, line
                assert found[1] == str(path)
                assert int(found[2]) <= len(lines) + 1
        else:
            assert load(path) == read
