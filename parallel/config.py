"""
What is configured: the tables of all layers, checked.

    files, a profile, the environment ─▶ layers ─▶ tables ─▶ Config: pools by name, rules for tasks by pattern
                                                     └─▶ ConfigError: every mistake, with its file, line and key path

Guarantees:
- Nothing that a file says is ignored: an option that isn't known is a mistake.
- A value is taken for what it is or refused, never made to fit: `true` is no number, `2.7` no integer.
- Reading imports nothing that the file names. Import strings are only checked for their form.

cattrs and tomllib are imported where a file is read: a program, or a worker process, that reads none doesn't pay.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import attrs
from attrs import Factory, field, frozen

from parallel.checks import as_table, described, did_you_mean, is_table, key_path
from parallel.dumping import in_toml, said_in, table_in_toml
from parallel.errors import ConfigError
from parallel.files import File, files_from
from parallel.files import find as find
from parallel.kinds import BUILT_IN
from parallel.kinds import PoolConfig as PoolConfig  # whoever takes a Config takes these from here too
from parallel.layers import ENVIRONMENT, Layer, Merged, Place, Told, layers_of, merged, told
from parallel.machine import cpus as cpus
from parallel.observing import ObserveOptions
from parallel.options import TaskOptions
from parallel.rules import Patterns, specificity
from parallel.tables import TABLE_NAMES, TOP, structured, unknown_table
from parallel.tables import Unobserved as Unobserved

_PROFILE: Final = "PARALLEL_PROFILE"


@frozen
class Config:
    """
    A configuration that was read and found right.

    Args:
        source: Where it came from: a file's path, or words.
        pools: What is said about each pool, by name. When read, it always has `threads`, `processes` and `loop`.
        tasks: Options by pattern, `module:qualname` where `*` is any run of characters; in the file's order.
        unobserved: What is done about a failure that nobody looked at: it is logged, warned of, raised at exit, or
            ignored.
        defaults: Options of all tasks; a task's own, and those of rules, win over them.
        environment: Rules that the environment says; they win over *tasks*.
        profile: The profile that was laid over the tables, None for none.
        on: Import strings of functions that are called with events, by the names of these; see `Registry.on`.
        observe: What is observed.
    """

    source: str
    pools: Mapping[str, PoolConfig]
    tasks: Mapping[str, TaskOptions]
    unobserved: Unobserved = "log"
    defaults: TaskOptions = field(factory=TaskOptions)
    environment: Mapping[str, TaskOptions] = field(factory=dict[str, TaskOptions])
    profile: str | None = None
    on: Mapping[str, tuple[str, ...]] = field(factory=dict[str, "tuple[str, ...]"])
    observe: ObserveOptions = field(factory=ObserveOptions)
    _patterns: Mapping[str, Patterns] = field(
        default=Factory(lambda config: cast(Config, config).patterns(), takes_self=True),
        init=False,
        eq=False,
        repr=False,
    )

    def patterns(self) -> Mapping[str, Patterns]:
        """Make the patterns of all rules ready, table by table."""
        return {ENVIRONMENT: Patterns(self.environment), "tasks": Patterns(self.tasks)}

    def to_toml(self) -> str:
        """
        Write it as a file that says the same.

        The profile is merged in; of rules that the environment says, which have no place in a file, a comment tells.

        Raises:
            TypeError: A program has said something for which TOML has no form.
        """
        parts = [f"unobserved = {in_toml(self.unobserved)}\n"] if self.unobserved != "log" else []
        if self.defaults != TaskOptions():
            parts.append(table_in_toml(("defaults",), said_in(self.defaults)))
        for name, pool in self.pools.items():
            if pool != BUILT_IN.get(name):
                parts.append(table_in_toml(("pools", name), (("kind", in_toml(pool.kind)), *said_in(pool))))
        parts += [table_in_toml(("tasks", pattern), said_in(options)) for pattern, options in self.tasks.items()]
        if self.on:
            parts.append(table_in_toml(("on",), ((event, in_toml(named)) for event, named in self.on.items())))
        if self.observe != ObserveOptions():
            parts.append(table_in_toml(("observe",), said_in(self.observe)))
        of_environment = [
            table_in_toml(("tasks", pattern), said_in(rule)) for pattern, rule in self.environment.items()
        ]
        if of_environment:
            lines = "\n".join(["The environment says besides:", *of_environment]).rstrip().splitlines()
            parts.append("".join(f"# {line}".rstrip() + "\n" for line in lines))
        return "\n".join(parts)

    def options_for(self, task_name: str) -> TaskOptions:
        """
        Merge the options of all rules that match a task's `module:qualname`.

        For each option, the most specific pattern that says it wins: the one with the most characters besides `*`, of
        these the one with the fewest `*`. So a whole name wins over every pattern.

        Raises:
            ConfigError: Two patterns that are as specific say different things, and none decides.
        """
        said: dict[str, object] = {}
        by: dict[str, tuple[str, str]] = {}
        for of, pattern, options in self.rules_for(task_name):
            for option, value in _said(options):
                if option not in said:
                    said[option], by[option] = value, (of, pattern)
                elif said[option] != value and _tie(by[option], (of, pattern)):
                    raise self._undecided(task_name, option, by[option][1], pattern)
        return TaskOptions(**cast(Any, said))

    def rules_for(self, task_name: str) -> Iterator[tuple[str, str, TaskOptions]]:
        """
        Give the rules that a task's name matches, what wins first: of which table, for which pattern, what they say.
        """
        for of, rules in ((ENVIRONMENT, self.environment), ("tasks", self.tasks)):
            for pattern in self._patterns[of].matching(task_name):
                yield of, pattern, rules[pattern]

    def _undecided(self, task_name: str, option: str, one: str, other: str) -> ConfigError:
        path = key_path("tasks", one, option)
        problem = f"{key_path(other)} is as specific, and says something else, for the task {task_name}"
        return ConfigError(self.source, [f"{path}: {problem}; say it in a rule {key_path(task_name)}"])


def _said(options: TaskOptions) -> Iterator[tuple[str, object]]:
    for option in attrs.fields(TaskOptions):
        value: object = getattr(options, option.name)
        if value is not option.default:
            yield option.name, value


def _tie(one: tuple[str, str], other: tuple[str, str]) -> bool:
    return one[0] == other[0] and specificity(one[1]) == specificity(other[1])


def built_in() -> Config:
    """
    Give the configuration that holds where nothing is said: the pools `threads`, `processes` and `loop`.
    """
    return Config("built-in defaults", dict(BUILT_IN), {})


def discover(profile: str | None = None) -> Config:
    """
    Read the configuration that `find` finds, or only what the environment says if there is none.

    Args:
        profile: The profile to lay over its tables, None for `$PARALLEL_PROFILE`.

    Raises:
        ConfigError: The file can't be read, or has mistakes.
    """
    return read_found(profile).config


def load(path: str | os.PathLike[str], profile: str | None = None) -> Config:
    """
    Read and check a file: a `parallel.toml`, or the table `[tool.parallel]` of a `pyproject.toml`.

    Args:
        path: Its path.
        profile: The profile to lay over its tables, None for `$PARALLEL_PROFILE`.

    Raises:
        ConfigError: The file can't be read, isn't TOML, or has mistakes; all of them are told.
    """
    return read_file(path, profile).config


def from_mapping(
    mapping: Mapping[str, object], source: str = "the mapping given", profile: str | None = None
) -> Config:
    """
    Check tables that a program made, in the form in which TOML would give them. The environment says nothing here.

    Args:
        mapping: `{"pools": {NAME: {...}}, "tasks": {PATTERN: {...}}, ...}`; all may be left out.
        source: What an error calls it.
        profile: The profile to lay over its tables, None for none.

    Raises:
        ConfigError: It has mistakes; all of them are told.
    """
    return _read(
        source, [_Whole(mapping, (), Layer(cast("Mapping[str, object]", as_table(mapping))))], profile, {}
    ).config


@frozen
class Read:
    """
    A configuration, and who says what in it.

    Attributes:
        config: The configuration.
        said: Its tables, and where each option was said.
        profiles: The names of the profiles that there are.
    """

    config: Config
    said: Merged
    profiles: Sequence[str]


def read_found(profile: str | None = None) -> Read:
    """Read what is found, as `discover` does, and keep who says what."""
    path = find()
    if path is None:
        return _read(built_in().source, [], profile or os.environ.get(_PROFILE) or None, os.environ)
    return read_file(path, profile)


def read_file(path: str | os.PathLike[str], profile: str | None = None) -> Read:
    """Read a file, as `load` does, and keep who says what."""
    files = [_whole(file) for file in files_from(path)]
    return _read(os.fspath(path), files, profile or os.environ.get(_PROFILE) or None, os.environ)


def _whole(file: File) -> _Whole:
    return _Whole(file.tables, file.at, file.layer(), file)


def mistakes_of_file(path: str | os.PathLike[str], profile: str | None = None) -> list[str]:
    """
    Tell all mistakes of a file, those of its profiles too: those that there are without one, or with *profile*, first.
    """
    found: dict[str, None] = {}
    profiles: list[str | None] = [profile]
    try:
        profiles += [name for file in files_from(path) for name in _whole(file).profiles if isinstance(name, str)]
    except ConfigError as error:
        return list(error.mistakes)
    for each in dict.fromkeys(profiles):
        try:
            read_file(path, each)
        except ConfigError as error:
            found |= dict.fromkeys(error.mistakes)
    return list(found)


@frozen
class _Whole:
    """
    All that one file, or mapping, says.
    """

    tables: object
    at: tuple[str, ...]
    layer: Layer
    file: File | None = None

    @property
    def profiles(self) -> Mapping[object, object]:
        return as_table(as_table(self.tables).get("profiles"))

    def of_profile(self, name: str) -> Layer:
        """Give what it says for a profile."""
        if self.file is not None:
            return self.file.layer("profiles", name)
        return Layer(cast("Mapping[str, object]", as_table(self.profiles.get(name))), ("profiles", name))

    def mistakes(self) -> Iterator[Told]:
        """Tell what is wrong around the tables."""
        if not is_table(self.tables):
            yield self._told((), f"expected a table, found {described(self.tables)}")
        for key in self.layer.tables:
            if key not in TOP and not (key == "extends" and self.file is not None):
                yield self._told((key,), unknown_table(key))
        profiles = as_table(self.tables).get("profiles", {})
        if not is_table(profiles):
            yield self._told(("profiles",), f"expected a table, found {described(profiles)}")
        for profile, tables in as_table(profiles).items():
            path = ("profiles", profile)
            if not (isinstance(profile, str) and profile):
                yield self._told(path, f"expected the name of a profile, found {described(profile)}")
            if not is_table(tables):
                yield self._told(path, f"expected a table, found {described(tables)}")
            for unknown in as_table(tables):
                if unknown not in TABLE_NAMES:
                    yield self._told((*path, unknown), unknown_table(unknown))

    def _told(self, keys: tuple[object, ...], problem: str) -> Told:
        place = Place() if self.file is None else self.file.where(*self.at, *keys)
        return told(place, (*self.at, *keys), problem)


def _read(source: str, wholes: list[_Whole], profile: str | None, environ: Mapping[str, str]) -> Read:
    """
    Merge what several files say, a profile and the environment, and check it.
    """
    mistakes = [mistake for whole in wholes for mistake in whole.mistakes()]
    profiles = list(dict.fromkeys(name for whole in wholes for name in whole.profiles if isinstance(name, str)))
    layers = [_of_tables(whole.layer) for whole in wholes]
    if profile is not None and profile in profiles:
        layers += [_of_tables(whole.of_profile(profile)) for whole in wholes if profile in whole.profiles]
    elif profile is not None:
        mistakes.append(_no_profile(profile, profiles, environ))
    kinds = {name: config.kind for name, config in BUILT_IN.items()}
    pools = as_table(merged(layers, kinds).tables.get("pools"))
    of_environment, wrong = layers_of(environ, {*BUILT_IN, *(name for name in pools if isinstance(name, str))})
    said = merged([*layers, *of_environment], kinds)
    mistakes += wrong
    if not (said.tables or mistakes):
        return Read(attrs.evolve(built_in(), source=source, profile=profile), said, profiles)  # spares loading cattrs
    config = _checked(said, source, profile, mistakes)
    return Read(config, said, profiles)


def _of_tables(layer: Layer) -> Layer:
    """Leave out of a layer what isn't one of our tables."""
    return attrs.evolve(layer, tables={key: value for key, value in layer.tables.items() if key in TABLE_NAMES})


def _no_profile(profile: str, profiles: Iterable[str], environ: Mapping[str, str]) -> Told:
    known = ", ".join(map(key_path, sorted(profiles))) or "none"
    place = Place(f"${_PROFILE}" if environ.get(_PROFILE) == profile else "")
    return told(place, ("profiles",), f"no profile named {profile!r}{did_you_mean(profile, profiles)}; known: {known}")


def _checked(said: Merged, source: str, profile: str | None, mistakes: list[Told]) -> Config:
    """
    Make a configuration of tables; or tell what is wrong in them, besides the mistakes that are known.
    """
    read, found = structured(said.tables)
    if found or mistakes:
        raise ConfigError(source, map(str, sorted([*mistakes, *map(said.told, found)])))
    return Config(
        source,
        {**BUILT_IN, **read.pools},
        read.tasks,
        read.unobserved,
        read.defaults,
        read.environment,
        profile,
        read.on,
        read.observe,
    )
