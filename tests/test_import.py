"""
What importing the package does, and what it leaves for later.
"""

import sys
from collections.abc import Callable
from subprocess import CompletedProcess
from textwrap import dedent

import pytest

import parallel

HEAVY = ("asyncio", "attr", "cattrs", "cloudpickle", "multiprocessing", "rich", "typing_extensions")


@pytest.mark.parametrize("heavy", HEAVY)
def test_import_is_light(heavy: str, run_script: Callable[..., CompletedProcess[str]]) -> None:
    """Importing the package loads nothing heavy."""
    run_script(f"import sys, parallel; assert {heavy!r} not in sys.modules")


def test_a_call_on_threads_is_light(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """A task on threads loads neither asyncio nor multiprocessing, cattrs nor cloudpickle nor rich."""
    run_script(
        dedent("""
        import sys
        from parallel import task
        assert task(abs)(-1).then(str).result() == "1"
        late = {"asyncio", "cattrs", "cloudpickle", "multiprocessing", "rich"} & sys.modules.keys()
        assert not late, late
        """)
    )


def test_a_process_pool_is_light(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """A process pool about which nothing special is said loads nothing that checks what is said."""
    run_script(
        dedent("""
        import sys
        from parallel import ProcessPool
        if __name__ == "__main__":
            with ProcessPool(1) as pool:
                assert pool.submit(abs, -1).result() == 1
            late = {"asyncio", "attr", "cattrs", "cloudpickle", "decimal", "inspect", "pathlib", "rich"}
            assert not late & sys.modules.keys(), late & sys.modules.keys()
        """)
    )


def test_import_starts_nothing(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """Importing every name starts no thread, opens no file for good and sets no environment variable."""
    run_script(
        dedent("""
        import os, threading
        before = dict(os.environ), len(os.listdir("/dev/fd"))
        import parallel
        for name in parallel.__all__:
            getattr(parallel, name)
        assert threading.active_count() == 1
        assert before == (dict(os.environ), len(os.listdir("/dev/fd")))
        """)
    )


def test_import_reads_no_file(run_script: Callable[..., CompletedProcess[str]]) -> None:
    """Importing every name opens no file but the modules' own, though there is a configuration."""
    run_script(
        dedent("""
        import pathlib, sys
        pathlib.Path("parallel.toml").write_text("this is no TOML")
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        import parallel
        for name in parallel.__all__:
            getattr(parallel, name)
        others = [name for name in opened if not name.endswith((".py", ".pyc", ".so", ".pth")) and ".pyc." not in name]
        assert not others, others
        """)
    )


@pytest.mark.parametrize("name", parallel.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each public name resolves, says what it is, and is listed by dir()."""
    value = getattr(parallel, name)
    assert value.__doc__
    assert value.__name__ == name
    assert name in dir(parallel)


def test_public_names_are_sorted() -> None:
    """The list of public names is one, and in order."""
    assert parallel.__all__ == sorted(set(parallel.__all__))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A wrong name is told as for any module."""
    with pytest.raises(AttributeError, match="'parallel' has no attribute 'taks'"):
        parallel.taks  # type: ignore[attr-defined]  # that is the test  # noqa: B018


def test_the_package_is_typed() -> None:
    """Type checkers may use the annotations of the installed package."""
    assert (sys.modules["parallel"].__spec__ is not None) and parallel.__version__
    from importlib.resources import files

    assert files("parallel").joinpath("py.typed").is_file()
