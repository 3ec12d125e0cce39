"""
The command line, as a user calls it.
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parallel import __version__, cli, config
from parallel.cli import main

ROOT = Path(config.__file__).parent.parent
WITHOUT_RICH = "import sys; sys.modules['rich'] = None; import runpy; runpy.run_module('parallel', run_name='__main__')"
GOOD = """
[pools.threads]
max_workers = 32
[pools.heavy]
kind = "process"
max_workers = "2*cpus"
[tasks."shop.images:*"]
pool = "heavy"
"""
EVERYTHING = """
unobserved = "warn"
[pools.threads]
max_pending = 3
on_full = "run"
helping = false
initargs = [true, "a"]
[tasks."*"]
timeout = 300
deadline = inf
retry = {on = ["OSError", "shop.errors:Busy"], attempts = inf, wait_initial = 0.25}
rate = "100/minute"
priority = -3
on_failure = "alerts:page"
[tasks."shop:*"]
retry = {timeout = inf}
[tasks."shop:sell"]
"""


class Terminal(io.StringIO):
    """Standard output as a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def ran(*arguments: str, code: str | None = None, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    start = ["-m", "parallel"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env={**os.environ, "PARALLEL_CONFIG": "", "PYTHONPATH": str(ROOT), **env},
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A file without a mistake."""
    path = tmp_path / "parallel.toml"
    path.write_text(GOOD, encoding="utf-8")
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A file with two mistakes."""
    path = tmp_path / "bad.toml"
    path.write_text("[pools.threads]\nmax_wokers = 3\n[tasks.'a:*']\npool = 'nope'", encoding="utf-8")
    return path


@pytest.mark.parametrize("code", [None, WITHOUT_RICH])
def test_a_right_file_is_shown(good: Path, code: str | None) -> None:
    """Piped, it is aligned text, whether rich is installed or not."""
    done = ran("check", str(good), code=code)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        f"{good}: no mistakes",
        "",
        "Pool       Kind     Options",
        "threads    thread   max_workers = 32",
    ]
    assert f'heavy      process  max_workers = "2*cpus" ({2 * config.cpus()} here)' in lines
    assert '"shop.images:*"  pool = "heavy"' in lines


def test_options_are_shown_as_a_file_could_say_them(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Durations and rates are written for people, and what is not said is left out."""
    good.write_text(EVERYTHING, encoding="utf-8")
    assert main(["check", str(good)]) == 0
    lines = [re.sub("  +", "  ", line) for line in capsys.readouterr().out.splitlines()]
    assert 'unobserved = "warn"' in lines
    assert 'threads  thread  initargs = [true, "a"], max_pending = 3, on_full = "run", helping = false' in lines
    assert (
        '"*"  timeout = "5m", deadline = inf, '
        'retry = {on = ["OSError", "shop.errors:Busy"], attempts = inf, wait_initial = "250ms"}, '
        'rate = "100/min", priority = -3, on_failure = "alerts:page"'
    ) in lines
    assert '"shop:*"  retry = {timeout = inf}' in lines
    assert '"shop:sell"  (defaults)' in lines


@pytest.mark.parametrize("code", [None, WITHOUT_RICH])
def test_all_mistakes_go_to_standard_error(bad: Path, code: str | None) -> None:
    """The status is 1, and standard output stays empty."""
    done = ran("check", str(bad), code=code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"{bad}: 2 mistakes",
        f"  {bad}:2: pools.threads.max_wokers: unknown option of kind 'thread' (did you mean 'max_workers'?); "
        "known: kind, max_workers, thread_name_prefix, initializer, initargs, max_pending, on_full, helping, "
        "memory_free, on_exit",
        f"  {bad}:4: tasks.\"a:*\".pool: no pool named 'nope'; known: loop, processes, threads",
    ]


def test_the_file_of_the_working_directory_is_found(good: Path) -> None:
    """Without a name, the file that a program started here would find is read."""
    done = ran("check", cwd=good.parent)
    assert done.stdout.startswith(f"{good}: no mistakes\n")


def test_the_file_that_the_environment_names_is_read(good: Path) -> None:
    """And the output says who named it."""
    done = ran("check", PARALLEL_CONFIG=str(good))
    assert done.stdout.startswith(f"{good} (named by $PARALLEL_CONFIG): no mistakes\n")


def test_without_a_file_the_built_in_pools_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No configuration is no mistake."""
    monkeypatch.setattr(cli, "find", lambda: None)
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("No configuration: ")
    assert "processes  process  (defaults)\n" in out
    assert "No rules for tasks." in out


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a mistake like others, not a traceback."""
    assert main(["check", str(tmp_path / "missing.toml")]) == 1
    assert "missing.toml: 1 mistake\n  can't be read: " in capsys.readouterr().err


def test_no_command_is_wrong_usage() -> None:
    """The help goes to standard error, with the status of wrong usage."""
    done = ran()
    assert (done.returncode, done.stdout) == (2, "")
    assert "check" in done.stderr
    assert done.stderr.startswith("usage: python -m parallel")


def test_an_unknown_command_is_wrong_usage() -> None:
    """The known ones are told."""
    done = ran("chek")
    assert done.returncode == 2
    assert "invalid choice: 'chek'" in done.stderr


def test_the_version_is_told() -> None:
    """It is that of the package."""
    assert ran("--version").stdout == f"parallel {__version__}\n"


@pytest.mark.parametrize("width", ["40", "200"])
def test_a_terminal_gets_drawn_tables(
    width: str, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With rich, in the width that there is, and nothing in a name is markup."""
    pytest.importorskip("rich")
    good.write_text(GOOD + "[tasks.'shop.[red]:smile*']", encoding="utf-8")
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["check", str(good)]) == 0
    assert "shop.[red]:smile*" in terminal.getvalue()
    assert "┃" in terminal.getvalue()


def test_a_terminal_without_rich(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the aligned text."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert main(["check", str(good)]) == 0
    assert "threads    thread   max_workers = 32\n" in terminal.getvalue()


def test_names_that_the_output_cannot_encode(good: Path) -> None:
    """They are escaped: a name never breaks the check."""
    good.write_text('[pools."größe"]\nkind = "inline"', encoding="utf-8")
    done = ran("check", str(good), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r'"gr\xf6\xdfe"' in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGPIPE")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_away(unbuffered: str, good: Path) -> None:
    """As with `| head`: quiet, with the status of SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "parallel", "check", str(good)],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_ends_quietly(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the status that shells give to Ctrl-C."""

    def interrupted(path: object, profile: object) -> config.Config:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_file", interrupted)
    assert main(["check", str(good)]) == 130
