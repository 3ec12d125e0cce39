"""
Layers of a configuration: files, profiles and the environment laid over each other.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.config import Config, discover, from_mapping, load, read_file
from parallel.errors import ConfigError
from parallel.kinds import InlineConfig, ProcessConfig, ThreadConfig
from parallel.layers import Layer, Place, layers_of, merged
from parallel.options import Retry, TaskOptions

FILE = """
[defaults]
timeout = "30s"

[pools.io]
kind = "thread"
max_workers = 4
thread_name_prefix = "io"

[tasks."shop:*"]
pool = "io"

[profiles.test]
defaults.timeout = inf
unobserved = "raise"
[profiles.test.pools.io]
kind = "inline"
[profiles.test.tasks."shop:sell"]
pool = "threads"

[profiles.big.pools.io]
max_workers = 64
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with two profiles."""
    path = tmp_path / "parallel.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


# Profiles


def test_a_profile_overlays_tables(file: Path) -> None:
    """What it doesn't say stays."""
    assert load(file).pools["io"] == ThreadConfig(4, "io")
    big = load(file, "big")
    assert big.pools["io"] == ThreadConfig(64, "io")
    assert big.tasks == load(file).tasks
    assert (big.profile, load(file).profile) == ("big", None)


def test_a_pool_of_another_kind_starts_anew(file: Path) -> None:
    """The options of the former kind would be mistakes."""
    test = load(file, "test")
    assert test.pools["io"] == InlineConfig()
    assert (test.unobserved, test.defaults.timeout) == ("raise", float("inf"))
    assert test.tasks == {"shop:*": TaskOptions(pool="io"), "shop:sell": TaskOptions(pool="threads")}


def test_the_environment_chooses_a_profile(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program says wins."""
    monkeypatch.setenv("PARALLEL_PROFILE", "test")
    assert load(file).profile == "test"
    assert load(file, "big").profile == "big"
    monkeypatch.setenv("PARALLEL_PROFILE", "")
    assert load(file).profile is None


def test_an_unknown_profile(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The known ones are told, and who asks for it."""
    with pytest.raises(
        ConfigError, match=r"  profiles: no profile named 'tets' \(did you mean 'test'\?\); known: big, t"
    ):
        load(file, "tets")
    monkeypatch.setenv("PARALLEL_PROFILE", "big ")
    with pytest.raises(ConfigError, match=r"  \$PARALLEL_PROFILE: profiles: no profile named 'big ' "):
        load(file)
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match=r"known: none"):
        discover()


def test_mistakes_in_a_profile_are_told_where_they_stand(tmp_path: Path) -> None:
    """With its own key path."""
    path = tmp_path / "parallel.toml"
    path.write_text("[profiles.x.pools.threads]\nmax_workers = 0\n[profiles.y]\npool = 3\n[profiles]\nz = 4")
    with pytest.raises(ConfigError) as caught:
        load(path, "x")
    assert [line.partition(": ")[2].partition(",")[0] for line in caught.value.mistakes] == [
        "profiles.x.pools.threads.max_workers: expected an integer of at least 1 or a string such as 'cpus'",
        "profiles.y.pool: unknown table or option (did you mean 'pools'?); known: pools",
        "profiles.z: expected a table",
    ]
    assert [line.split(": ")[0] for line in caught.value.mistakes] == [f"{path}:{line}" for line in (2, 4, 6)]


def test_a_mapping_may_have_profiles() -> None:
    """The environment doesn't choose one there."""
    tables = {"profiles": {"x": {"unobserved": "warn"}}}
    assert from_mapping(tables, profile="x").unobserved == "warn"
    assert from_mapping(tables).unobserved == "log"


# Defaults


def test_defaults_are_options_of_tasks(file: Path) -> None:
    """They are checked like those of a rule."""
    assert load(file).defaults == TaskOptions(timeout=30)


# The environment


def test_a_variable_overrides_one_value(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers and texts, of pools that a file or nobody names, over a profile too."""
    monkeypatch.setenv("PARALLEL_POOLS__IO__MAX_WORKERS", "8")
    monkeypatch.setenv("PARALLEL_POOLS__THREADS__MAX_WORKERS", "2*cpus")
    monkeypatch.setenv("PARALLEL_DEFAULTS__TIMEOUT", "5m")
    monkeypatch.setenv("PARALLEL_DEFAULTS__RETRY", "{attempts = 3, on = ['OSError']}")
    monkeypatch.setenv("PARALLEL_UNOBSERVED", "warn")
    read = load(file, "big")
    assert read.pools["io"] == ThreadConfig(8, "io")
    assert read.pools["threads"] == ThreadConfig("2*cpus")
    assert read.defaults == TaskOptions(timeout=300, retry=Retry(["OSError"], attempts=3))
    assert read.unobserved == "warn"


def test_rules_of_the_environment_win_over_more_specific_ones(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator need not know what the file says."""
    monkeypatch.setenv("PARALLEL_TASKS", '{"*": {"pool": "loop"}, "shop:*": {"limit": 3}}')
    monkeypatch.setenv("PARALLEL_TASKS__MORE", '{"shop:buy": {"limit": 4}}')
    read = load(file, "test")
    assert read.options_for("shop:sell") == TaskOptions(pool="loop", limit=3)
    assert read.options_for("shop:buy") == TaskOptions(pool="loop", limit=4)


def test_without_a_file_the_environment_speaks(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is laid over what is built in."""
    monkeypatch.setenv("PARALLEL_POOLS__PROCESSES__MAX_WORKERS", "1")
    assert discover().pools["processes"] == ProcessConfig(1)


def test_a_mapping_is_what_the_program_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says nothing about it."""
    monkeypatch.setenv("PARALLEL_POOLS__THREADS__MAX_WORKERS", "1")
    assert from_mapping({}).pools["threads"] == ThreadConfig()


def wrong(**environ: str) -> list[str]:
    """Give the mistakes of variables, the pools being `io`, `my-io` and `my_io`, and `deep__io`."""
    layers, mistakes = layers_of(environ, ["io", "my-io", "my_io", "deep__io"])
    assert not layers
    return list(map(str, mistakes))


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("PARALLEL_POOLS__OI__MAX_WORKERS", "8", "no pool named 'oi'; known: deep__io, io, my-io, my_io"),
        ("PARALLEL_POOLS__MYIO__MAX_WORKERS", "8", "no pool named 'myio' (did you mean 'my_io'?); known: deep"),
        ("PARALLEL_POOLS__IO", "8", "expected a pool and an option, as in PARALLEL_POOLS__IO__MAX_WORKERS; known: "),
        ("PARALLEL_POOLS__IO__", "8", "expected a pool and an option, as in "),
        ("PARALLEL_POOLS__MY_IO__MAX_WORKERS", "8", "it may mean several pools: my-io, my_io"),
        ("PARALLEL_POOL__IO__MAX_WORKERS", "8", "defaults, observe, pools and tasks can be said, found pool (did"),
        ("PARALLEL_TASKS", "x", "expected rules in JSON such as '{\"shop.images:*\": {\"pool\": "),
        ("PARALLEL_TASKS__A", "[" * 100_000, "expected rules in JSON such as "),
        ("PARALLEL_TASKS__A", "[]", "expected rules in JSON such as "),
    ],
)  # fmt: skip
def test_variables_that_can_mean_nothing(variable: str, text: str, problem: str) -> None:
    """The variable is told, and what is known."""
    (line,) = wrong(**{variable: text})
    assert line.startswith(f"${variable}: {problem}")


def test_variables_of_others_are_left_alone() -> None:
    """GNU parallel has some too."""
    assert wrong(PARALLEL_HOME="x", PARALLEL_SEQ="1", PARALLEL="-j3", PARALLEL_CONFIG="", OTHER__X="") == []


def test_a_name_may_have_what_divides_them() -> None:
    """The pool is found all the same."""
    ((layer,), mistakes) = layers_of({"PARALLEL_POOLS__DEEP__IO__ON_FULL": "raise"}, ["io", "deep__io"])
    assert (layer.tables, mistakes) == ({"pools": {"deep__io": {"on_full": "raise"}}}, [])


def test_values_that_are_mistakes_are_told_with_their_variable(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are checked like those of a file."""
    monkeypatch.setenv("PARALLEL_POOLS__IO__MAX_WORKERS", "many")
    monkeypatch.setenv("PARALLEL_POOLS__IO__MAX_WOKERS", "1\nx = 2")
    monkeypatch.setenv("PARALLEL_TASKS", '{"shop": {}, "*": {"pool": "oi"}}')
    with pytest.raises(ConfigError) as caught:
        load(file)
    told = [line.split(", ")[0].split(" (")[0].split(";")[0] for line in caught.value.mistakes]
    assert told == [
        "$PARALLEL_POOLS__IO__MAX_WOKERS: pools.io.max_wokers: unknown option of kind 'thread'",
        "$PARALLEL_POOLS__IO__MAX_WORKERS: pools.io.max_workers: expected an integer of at least 1 or a string such as "
        "'cpus'",
        "$PARALLEL_TASKS: tasks.\"*\".pool: no pool named 'oi'",
        "$PARALLEL_TASKS: tasks.shop: expected a name or pattern in quotes",
    ]


# Merging, beside a plain model of it

options = st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 3) | st.just({"deep": 1}), max_size=2)
pools = st.dictionaries(st.sampled_from(["x", "y"]), options, max_size=2)
tables = st.fixed_dictionaries(
    {},
    optional={
        "pools": pools,
        "tasks": pools,
        "defaults": options,
        "unobserved": st.sampled_from(["log", "warn"]),
    },
)


def options_in(table: Mapping[str, Any]) -> dict[tuple[str, ...], object]:
    """Give each option by its path."""
    flat: dict[tuple[str, ...], object] = {}
    for name, value in table.items():
        depth = 3 if name in ("pools", "tasks") else 2
        flat |= _flat((name,), value, depth)
    return flat


def _flat(path: tuple[str, ...], value: object, depth: int) -> dict[tuple[str, ...], object]:
    if not isinstance(value, dict) or len(path) == depth:
        return {path: value}
    return {deep: one for key, below in value.items() for deep, one in _flat((*path, key), below, depth).items()}


@given(st.lists(tables, max_size=4))
def test_layers_merge_as_a_plain_model_says(layers: list[dict[str, Any]]) -> None:
    """Option by option the last one wins; what takes the place of a table, or of what is none, leaves nothing of it."""
    expected: dict[tuple[str, ...], object] = {}
    by: dict[tuple[str, ...], int] = {}
    for number, layer in enumerate(layers):
        for path, value in options_in(layer).items():
            for other in list(expected):
                if other[: len(path)] == path or path[: len(other)] == other:
                    del expected[other]
            expected[path], by[path] = value, number
    made = [Layer(layer, where=lambda _, number=number: Place("", number)) for number, layer in enumerate(layers)]
    found = merged(made, {})
    assert options_in(found.tables) == expected
    assert all(found.where(path).line == by[path] for path in expected)


# Files that extend others


def test_a_file_extends_another(tmp_path: Path) -> None:
    """It is laid over that one; its profiles over all."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base.toml").write_text(
        "[pools.io]\nkind = 'thread'\nmax_workers = 4\n[profiles.big.pools.io]\nmax_workers = 64\n"
        "[tasks.'a:*']\npool = 'io'",
        encoding="utf-8",
    )
    path = tmp_path / "parallel.toml"
    path.write_text("extends = 'shared/base.toml'\n[pools.io]\nmax_workers = 8\nhelping = false", encoding="utf-8")
    assert load(path).pools["io"] == ThreadConfig(8, helping=False)
    assert load(path, "big").pools["io"] == ThreadConfig(64, helping=False)
    assert load(path).tasks == {"a:*": TaskOptions(pool="io")}
    read = read_file(path)
    assert read.said.where(("pools", "io", "max_workers")) == Place(str(path), 3)
    assert read.said.where(("pools", "io", "kind")) == Place(str(tmp_path / "shared" / "base.toml"), 2)


def test_several_bases_and_pyproject(tmp_path: Path) -> None:
    """The later ones win."""
    (tmp_path / "a.toml").write_text("unobserved = 'warn'\n[defaults]\nlimit = 1", encoding="utf-8")
    (tmp_path / "b.toml").write_text("unobserved = 'raise'", encoding="utf-8")
    path = tmp_path / "pyproject.toml"
    path.write_text("[tool.parallel]\nextends = ['a.toml', 'b.toml']", encoding="utf-8")
    assert load(path) == Config(str(path), load(path).pools, {}, "raise", TaskOptions(limit=1))
    (tmp_path / "c.toml").write_text("extends = 'pyproject.toml'", encoding="utf-8")
    assert load(tmp_path / "c.toml").unobserved == "raise"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("'missing.toml'", r"c.toml:2: extends: .*missing.toml can't be read: No such file"),
        ("['a.toml']", r"c.toml:2: extends: .*a.toml not TOML: "),
        ("'c.toml'", r"c.toml:2: extends: .*c.toml extends itself"),
        ("['b.toml']", r"b.toml:1: extends: .*c.toml extends itself"),
        ("3", r"c.toml:2: extends: expected the path of a file, or several, found integer 3"),
        ("['']", r"c.toml:2: extends: expected the path of a file"),
        ('"\\u0000"', r"c.toml:2: extends: expected the path of a file"),
    ],
)
def test_files_that_cannot_be_extended(said: str, problem: str, tmp_path: Path) -> None:
    """The file and line that ask for it are told."""
    (tmp_path / "a.toml").write_text("a = ", encoding="utf-8")
    (tmp_path / "b.toml").write_text("extends = 'c.toml'", encoding="utf-8")
    (tmp_path / "c.toml").write_text(f"\nextends = {said}", encoding="utf-8")
    with pytest.raises(ConfigError, match=problem) as caught:
        load(tmp_path / "c.toml")
    assert caught.value.source == str(tmp_path / "c.toml")


def test_a_mistake_in_a_base_is_told_there(tmp_path: Path) -> None:
    """Each mistake has the file and line that say it; a missing one, those around it."""
    (tmp_path / "base.toml").write_text("\n[pools.far]\nmax_workers = 3\n[tasks.'a:*']\npool = 'z'\n", encoding="utf-8")
    path = tmp_path / "parallel.toml"
    path.write_text(
        "extends = 'base.toml'\nextend = 1\n[pools.threads]\nkind = 'thread'\nmax_workers = 0", encoding="utf-8"
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert [line.split(", ")[0].split(" (")[0].split(";")[0] for line in caught.value.mistakes] == [
        f"{tmp_path}/base.toml:2: pools.far.kind: expected the kind of a pool",
        f"{tmp_path}/base.toml:5: tasks.\"a:*\".pool: no pool named 'z'",
        f"{path}:2: extend: unknown table or option",
        f"{path}:5: pools.threads.max_workers: expected an integer of at least 1 or a string such as 'cpus'",
    ]


def test_extending_is_for_files(nowhere: Path) -> None:
    """A mapping has no directory from which a path could be seen."""
    with pytest.raises(ConfigError, match="extends: unknown table or option"):
        from_mapping({"extends": "x.toml"})


def test_an_option_of_another_kind() -> None:
    """It is told which kinds can do it."""
    with pytest.raises(
        ConfigError,
        match=r"pools.x.max_tasks_per_child: kind 'thread' has no such option, but 'process' has; known: kind, ",
    ):
        from_mapping({"pools": {"x": {"kind": "thread", "max_tasks_per_child": 3}}})
    others = "but 'thread', 'process', 'loop', 'executor', 'dask' and 'ray' have"
    with pytest.raises(ConfigError, match=f"kind 'inline' has no such option, {others}"):
        from_mapping({"pools": {"x": {"kind": "inline", "max_pending": 3}}})
