"""
What surrounds the calls in a worker: environment, working directory, modules that are loaded, limits of memory.

    ProcessPool(env=, cwd=, threads_per_worker=, ...) ──▶ Surroundings ──▶ the process is started in them
                                                                      └──▶ what can only be done inside: enter()

Nothing here has state. A worker loads this module: it stays light.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Final, NamedTuple

from parallel.memory import limit_memory

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""By these, libraries learn how many threads they may start. They read them once, when they are loaded."""

GENERAL: Final = THREAD_VARIABLES[0]
"""The one that all but one of these libraries read if their own is not set."""

THREADED: Final = ("numpy", "mkl", "numexpr", "numba", "torch")
"""Modules that have read them once they are loaded."""


class PreloadFailed(Exception):
    """A module can't be imported that each worker is to have; the cause is why."""

    def __init__(self, module: str) -> None:
        super().__init__(module)
        self.module = module

    def __str__(self) -> str:
        return f"the import of {self.module!r}, which it is to preload,"


class Surroundings(NamedTuple):
    """
    What surrounds the calls in a worker.

    Attributes:
        env: Variables besides those of the pool's process, which they hide.
        cwd: The working directory, absolute; None: that of the pool's process.
        preload: Names of modules.
        soft_limit: Bytes above which a worker is replaced after its present call; None: it never is.
        hard_limit: Bytes that it can't go beyond; None: the system's limit holds.
        is_plain: Whether nothing was said about *env*, *cwd* and *preload*: then *env* holds defaults only.
    """

    env: Mapping[str, str] = {}
    cwd: str | None = None
    preload: tuple[str, ...] = ()
    soft_limit: int | None = None
    hard_limit: int | None = None
    is_plain: bool = True

    def inside(self) -> Surroundings:
        """Return what is left to be done in a process that was started with this environment, in this directory."""
        return self._replace(env={}, cwd=None)

    def enter(self) -> None:
        """
        Do in this process what has not been done at its start.

        Raises:
            OSError: The working directory can't be entered.
        """
        os.environ.update(self.env)
        if self.cwd is not None:
            os.chdir(self.cwd)
        if self.hard_limit is not None:
            limit_memory(self.hard_limit)

    def load(self) -> None:
        """
        Import the modules.

        Raises:
            PreloadFailed: One of them can't be.
        """
        for name in self.preload:
            load(name)

    def check(self) -> None:
        """
        See that the working directory is there.

        Raises:
            NotADirectoryError: It is not.
        """
        if self.cwd is not None and not os.path.isdir(self.cwd):
            raise NotADirectoryError(f"cwd: expected a directory, found {self.cwd!r}")


def load(name: str) -> None:
    """
    Import a module that is to be preloaded.

    Raises:
        PreloadFailed: It can't be, whatever it has raised.
    """
    try:
        import_module(name)
    except BaseException as error:  # SystemExit as well: some scripts have no guard
        raise PreloadFailed(name) from error


def thread_variables(threads: int, wanted: bool, env: Mapping[str, str]) -> dict[str, str]:
    """
    Return the variables that have libraries start so many threads, those of *env* among them.

    Args:
        threads: How many.
        wanted: Whether somebody asked for just so many; else what *env* says holds.
        env: The environment as it is.
    """
    if wanted:
        return dict.fromkeys(THREAD_VARIABLES, str(threads))
    said = {name: env[name] for name in THREAD_VARIABLES if name in env}  # a fork server may not have seen them
    if GENERAL in said:
        return said  # to set the others would overrule it
    return dict.fromkeys(THREAD_VARIABLES, str(threads)) | said


def loaded_too_early() -> list[str]:
    """Name the modules in this process that have read the variables of threads already."""
    return [name for name in THREADED if name in sys.modules]
