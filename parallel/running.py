"""
`python -m parallel run`: a program, with a profile, a recording or figures at its end.

It becomes the program, by `exec`: what that sees of its arguments, signals, standard streams and `__main__` is what it
sees without. What is asked for it learns from the environment.

Nothing here has state.
"""

from __future__ import annotations

import argparse
import os
import sys

from parallel.asked import Refusal
from parallel.observe.recorder import ONLY, STATS, TRACE, check_target


def add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage]  # argparse has no other name for it
    """Add `run` to the commands."""
    about = "run a program with a profile, record what it does, or print at its end what took how long"
    parser = commands.add_parser(
        "run",
        help=about,
        description=f"{about[0].upper()}{about[1:]}.",
        usage="python -m parallel run [--profile NAME] [--record FILE] [--stats] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--profile", metavar="NAME", help="the profile of its configuration: sets $PARALLEL_PROFILE")
    add("--record", metavar="FILE", help="where what it does is written at its end: .html a page, .json for Perfetto")
    add("--stats", action="store_true", help="print the figures of each task, and what held the program back")
    add("-m", dest="is_module", action="store_true", help="what follows is a module, not a file")
    add("program", metavar="PROGRAM", nargs=argparse.REMAINDER, help="a file or a module, and its arguments")
    return parser


def run_program(arguments: argparse.Namespace) -> int:
    """
    Become the program.

    Args:
        arguments: Those that `add_run` has declared.

    Raises:
        Refusal: There is no such program, or the recording can't be written.
    """
    command = _command_of(arguments)
    environment = dict(os.environ)
    if arguments.profile is not None:
        environment["PARALLEL_PROFILE"] = arguments.profile
    if arguments.record is not None:
        try:
            environment[TRACE] = str(check_target(arguments.record))
        except (ValueError, OSError) as error:
            raise Refusal(f"--record: {error}") from None
    if arguments.stats:
        environment[STATS] = "1"
    if arguments.record is not None or arguments.stats:
        environment[ONLY] = str(os.getpid())  # which the program is going to have
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *_flags(), *command], environment)


def _command_of(arguments: argparse.Namespace) -> list[str]:
    """Return what the interpreter is to be told to run."""
    program: list[str] = arguments.program
    if not program:
        raise Refusal("name a script, or -m and a module")
    if arguments.is_module:
        return ["-m", *program]
    if not os.path.exists(program[0]):
        raise Refusal(f"there is no file {program[0]!r}; a module is named after -m")
    return program


def _flags() -> list[str]:
    """Return what this interpreter was told before `-m parallel`, such as `-W error`."""
    said = sys.orig_argv[1:]
    for index, word in enumerate(said):
        if word == "-mparallel" or said[index : index + 2] == ["-m", "parallel"]:
            return said[:index]
    return []
