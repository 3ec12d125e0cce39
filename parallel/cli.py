"""
The command line, `python -m parallel`: what a configuration says, what is wrong in it, and what holds for a task.

    check    every mistake in a configuration, or what it says      schema   for editors
    explain  what holds for a task, and who says it                 init     a file to begin with
    pools    the pools, and who says what about them                map      in `shell`
                                                                    run      in `running`

Statuses: 0 right, 1 mistakes (told on standard error), 2 wrong usage, 130 after Ctrl-C, 141 when the reader of the
output has gone away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Final

from parallel.asked import Refusal, found_by, module_by
from parallel.checking import loaded_tasks, undecided, warnings_of
from parallel.checks import key_path
from parallel.config import Config, PoolConfig, Read, built_in, find, mistakes_of_file, read_file, read_found
from parallel.dumping import as_json, in_toml, said_in
from parallel.errors import ConfigError
from parallel.explaining import Explanation, explain_pool, explain_task, task_of
from parallel.interrupts import STATUS
from parallel.observing import ObserveOptions
from parallel.options import TaskOptions
from parallel.piped import PIPE_CLOSED
from parallel.running import add_run, run_program
from parallel.schema import schema
from parallel.shell import add_command, run
from parallel.showing import say, say_json, show
from parallel.template import TEMPLATE
from parallel.watching import add_top, watch

WRONG_USAGE: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one command.

    Args:
        argv: The arguments after the program's name, None for those of this process.

    Returns:
        The exit status.

    Raises:
        SystemExit: After `--help` and `--version` (status 0), and on wrong arguments (status 2).
    """
    try:
        try:
            return _run(argv)
        finally:
            _flush()
    except KeyboardInterrupt:
        return STATUS
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still unwritten goes nowhere
        return PIPE_CLOSED


def _flush() -> None:
    if sys.stdout is not None:  # else it was closed when the program began
        sys.stdout.flush()


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return WRONG_USAGE
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except Refusal as error:
        print(f"python -m parallel {arguments.command}: {error}", file=sys.stderr)
        return WRONG_USAGE


def _version() -> str:
    """Ask the package, which is there already: it stands above this room."""
    return str(sys.modules["parallel"].__version__)


# -- what may be said -------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    about = "Run a function over many items, or look at a configuration."
    parser = argparse.ArgumentParser("python -m parallel", description=about)
    parser.add_argument("--version", action="version", version=f"parallel {_version()}")
    commands = parser.add_subparsers(dest="command", title="commands")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        made.set_defaults(run=run)
        return made

    file = "a parallel.toml or pyproject.toml; without it, the one that programs started here would find"
    check = command("check", _check, "read a configuration, show its pools and rules, or every mistake in it")
    check.add_argument("file", nargs="?", metavar="FILE", help=file)
    check.add_argument(
        "--import",
        dest="modules",
        metavar="MODULE",
        action="append",
        default=[],
        help="load it, and warn of rules that match none of the tasks loaded then, and of pools that nothing uses; may "
        "be repeated",
    )
    explain = command("explain", _explain, "show what holds for a task, and which layer, file and line says it")
    explain.add_argument("function", metavar="MODULE:FUNCTION", help="a task, or a parallel map")
    explain.add_argument("--file", metavar="FILE", help=file)
    pools = command("pools", _pools, "show all pools, each with its options, and which file and line says them")
    pools.add_argument("--file", metavar="FILE", help=file)
    for one in (check, explain, pools):
        one.add_argument(
            "--profile", metavar="NAME", help="the profile, instead of the one that $PARALLEL_PROFILE names"
        )
        one.add_argument("--json", action="store_true", help="write JSON, for programs")
    of_schema = command(
        "schema", _schema, "print the JSON Schema of a parallel.toml, by which editors complete and check"
    )
    of_schema.add_argument("--pyproject", action="store_true", help="that of a pyproject.toml, and its [tool.parallel]")
    init = command("init", _init, "write a file to begin with, in which all that it says is explained")
    init.add_argument("file", nargs="?", metavar="FILE", default="parallel.toml", help="default: %(default)s")
    add_command(commands).set_defaults(run=run)
    add_run(commands).set_defaults(run=run_program)
    add_top(commands).set_defaults(run=watch)
    return parser


# -- check ------------------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    path = arguments.file or find()
    if path is not None and (mistakes := mistakes_of_file(path, arguments.profile)):
        raise ConfigError(os.fspath(path), mistakes)
    read = _read(path, arguments.profile)
    _import(arguments.modules)
    tasks = loaded_tasks() if arguments.modules else []
    if mistakes := list(undecided(read.config, tasks)):
        raise ConfigError(read.config.source, mistakes)
    warnings = list(warnings_of(read, tasks)) if arguments.modules else []
    if arguments.json:
        say_json(_as_json(read, warnings))
        return 0
    config = read.config
    if path is None:
        say(f"No configuration: $PARALLEL_CONFIG isn't set, and from {os.getcwd()} upward there is no parallel.toml,")
        say("and no pyproject.toml with a table [tool.parallel]. Programs started here have the built-in pools:")
    else:
        say(f"{config.source}{_named(arguments.file)}: no mistakes{_profiles_of(read)}")
    if config.unobserved != built_in().unobserved:
        say(f"\nunobserved = {in_toml(config.unobserved)}")
    if config.defaults != TaskOptions():
        say(f"\nAll tasks: {_options(config.defaults)}")
    for event, named in config.on.items():
        say(f"\nOn {event}: {', '.join(named)}")
    if config.observe != ObserveOptions():
        say(f"\nObserved: {_options(config.observe)}")
    show(("Pool", "Kind", "Options"), [_pool_row(name, pool) for name, pool in config.pools.items()])
    _show_rules(config)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _read(path: str | os.PathLike[str] | None, profile: str | None) -> Read:
    return read_found(profile) if path is None else read_file(path, profile)


def _import(modules: list[str]) -> None:
    """Import modules from the working directory, too, as a program there would."""
    sys.path.insert(0, "")
    for module in modules:
        module_by(module)


def _named(file: str | None) -> str:
    return " (named by $PARALLEL_CONFIG)" if not file and os.environ.get("PARALLEL_CONFIG") else ""


def _profiles_of(read: Read) -> str:
    config = read.config
    if config.profile is not None:
        return f", with the profile {key_path(config.profile)}"
    return f", also with its profiles {', '.join(map(key_path, read.profiles))}" if read.profiles else ""


def _pool_row(name: str, pool: PoolConfig) -> tuple[str, ...]:
    return key_path(name), pool.kind, _options(pool, pool.arguments())


def _show_rules(config: Config) -> None:
    rows = [(key_path(pattern), _options(options)) for pattern, options in config.tasks.items()]
    rows += [(f"{key_path(each)} (environment)", _options(options)) for each, options in config.environment.items()]
    if rows:
        show(("Tasks", "Options"), rows)
        say("\nIf several rules match a task, the most specific one that says an option wins.")
    else:
        say("\nNo rules for tasks.")


def _options(options: PoolConfig | TaskOptions | ObserveOptions, resolved: dict[str, object] | None = None) -> str:
    """Write the options that differ from their defaults, with what they come to on this machine."""
    written: list[str] = []
    for name, text in said_in(options):
        value: object = getattr(options, name)
        here = (resolved or {}).get(name, value)
        written.append(f"{name} = {text}" + f" ({here} here)" * (here != value))
    return ", ".join(written) or "(defaults)"


def _as_json(read: Read, warnings: list[str]) -> dict[str, object]:
    config = read.config
    return {
        "source": config.source,
        "profile": config.profile,
        "profiles": list(read.profiles),
        "unobserved": config.unobserved,
        "defaults": _said(config.defaults),
        "pools": {name: {"kind": pool.kind, **_said(pool)} for name, pool in config.pools.items()},
        "tasks": {pattern: _said(options) for pattern, options in config.tasks.items()},
        "environment": {pattern: _said(options) for pattern, options in config.environment.items()},
        "on": {event: list(named) for event, named in config.on.items()},
        "observe": _said(config.observe),
        "warnings": warnings,
    }


def _said(options: PoolConfig | TaskOptions | ObserveOptions) -> dict[str, object]:
    return {name: as_json(text) for name, text in said_in(options)}


# -- explain, pools ---------------------------------------------------------------------------------------------------


def _explain(arguments: argparse.Namespace) -> int:
    read = _read(arguments.file or find(), arguments.profile)
    _import([])
    task = task_of(found_by(arguments.function))
    if task is None:
        raise Refusal(f"{arguments.function} is no task: declare it with @task or @parallel_map")
    of_task = explain_task(task, read)
    (pool,) = (said[0].value for option, said in of_task.options.items() if option == "pool")
    name = str(as_json(pool))
    if name not in read.config.pools:
        raise Refusal(f"{arguments.function} runs in a pool {pool}, and there is none: {of_task.options['pool'][0]}")
    of_pool = explain_pool(name, read)
    if arguments.json:
        say_json({"task": task.name, "options": of_task.as_json(), "pool": name, "pool_options": of_pool.as_json()})
        return 0
    say(f"{task.name} runs in the pool {pool}, of kind {read.config.pools[name].kind}.")
    show(("Option", "Value", "Said by", "Instead of"), list(_rows(of_task)))
    say(f"\nThe pool {pool}:")
    show(("Option", "Value", "Said by"), [row[:3] for row in _rows(of_pool)])
    say(f"\nNothing is said about the others: {', '.join(_unsaid(of_task) + _unsaid(of_pool))}.")
    return 0


def _rows(explanation: Explanation) -> list[tuple[str, ...]]:
    return [
        (option, said[0].value, str(said[0]), ", ".join(f"{each.value} ({each})" for each in said[1:]))
        for option, said in explanation.options.items()
        if said
    ]


def _unsaid(explanation: Explanation) -> list[str]:
    return [option for option, said in explanation.options.items() if not said]


def _pools(arguments: argparse.Namespace) -> int:
    read = _read(arguments.file or find(), arguments.profile)
    explained = {name: explain_pool(name, read) for name in read.config.pools}
    if arguments.json:
        say_json({name: explanation.as_json() for name, explanation in explained.items()})
        return 0
    rows: list[tuple[str, ...]] = []
    for name, explanation in explained.items():
        for option, value, by, _ in _rows(explanation):
            rows.append((key_path(name) if option == "kind" else "", option, value, by))
    say(f"The pools of {read.config.source}{_profiles_of(read) if read.config.profile else ''}:")
    show(("Pool", "Option", "Value", "Said by"), rows)
    return 0


# -- schema, init -----------------------------------------------------------------------------------------------------


def _schema(arguments: argparse.Namespace) -> int:
    try:
        say_json(schema(of_pyproject=arguments.pyproject))
    except ValueError as error:  # a kind that a package adds
        raise Refusal(str(error)) from None
    return 0


def _init(arguments: argparse.Namespace) -> int:
    path: str = arguments.file
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise Refusal(f"{path} is there already, and stays as it is; name another, or move it away") from None
    except OSError as error:
        raise Refusal(f"{path} can't be written: {error.strerror}") from None
    say(f"Wrote {path}: read it, change it, and check it with `python -m parallel check {path}`.")
    return 0
