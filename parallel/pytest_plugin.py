"""
The pytest plugin: the fixtures `parallel_inline` and `parallel_registry`, and the option `--parallel-profile`.

pytest finds it by its entry point, so it is loaded wherever this library is installed: it imports nothing of it but
what `import parallel` does, until a test asks for a fixture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from parallel.registry import Registry

_VARIABLE: Final = "PARALLEL_PROFILE"
_BEFORE: Final = pytest.StashKey[str | None]()
"""What the variable was, if the option has set it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("parallel").addoption(
        "--parallel-profile", metavar="NAME", help="run with this profile of the configuration: sets $PARALLEL_PROFILE"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the variable, before any test module is imported."""
    profile: str | None = config.getoption("parallel_profile")
    if profile is None:
        return
    if not profile.strip():
        raise pytest.UsageError("--parallel-profile: expected the name of a profile, found an empty one")
    config.stash[_BEFORE] = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = profile


def pytest_unconfigure(config: pytest.Config) -> None:
    """Take it back."""
    if _BEFORE not in config.stash:
        return
    before = config.stash[_BEFORE]
    if before is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = before


@pytest.fixture
def parallel_inline() -> Iterator[Registry]:
    """Every pool of the configuration that is found runs calls where they are made, one after the other."""
    with _testing().inline() as registry:
        yield registry


@pytest.fixture
def parallel_registry() -> Iterator[Registry]:
    """
    A fresh current registry with the configuration that is found; at the end it is shut down.

    The test fails if a call still runs after some seconds, or a thread or worker process is still there, or if a call
    has failed and nobody has looked at its error.
    """
    testing = _testing()
    try:
        with testing.fresh() as registry:
            yield registry
    except testing.LeakError as leak:
        pytest.fail(str(leak), pytrace=False)


def _testing() -> Any:
    # Heavy: it loads the configuration's room, and with that attrs.
    return import_module("parallel.testing")
