"""
What the texts say: the README's program, commands and links, and the examples in docstrings.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

import parallel
from parallel.config import from_mapping

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = sorted(["parallel", *(module.name for module in pkgutil.walk_packages(parallel.__path__, "parallel."))])
COMMANDS = [
    'python -m pip install -e ".[rich]" && python examples/index_sources.py',
    'python -m pip install -e ".[test]" && python -m pytest',
]


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_readme_program(tmp_path: Path) -> None:
    """The README's program, with its configuration, prints what the README says."""
    [program], [configuration], [output] = blocks("python"), blocks("toml"), blocks("text")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    (tmp_path / "parallel.toml").write_text(configuration, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARALLEL_")}
    ended = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )

    assert len(program.splitlines()) <= 15
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == output
    assert ended.stderr == ""


def test_readme_commands() -> None:
    """The README has exactly two commands, one that runs the main job and one that runs the tests."""
    assert blocks("sh") == [f"{command}\n" for command in COMMANDS]
    assert README.count("pip install") == 2


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PROGRAMS = [
    (page, program, output)
    for page in PAGES
    for program, output in re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
]


@pytest.mark.parametrize(("page", "program", "output"), PROGRAMS, ids=[page for page, _, _ in PROGRAMS])
def test_programs_of_the_pages(page: str, program: str, output: str, tmp_path: Path) -> None:
    """Each program on a page prints what the page says, and nothing to standard error."""
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARALLEL_")}
    ended = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )

    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", output)


@pytest.mark.parametrize("page", PAGES)
def test_every_program_of_a_page_has_its_output(page: str) -> None:
    """No program goes unseen by the test above."""
    assert (ROOT / page).read_text("utf-8").count("```python\n") == sum(page == other for other, _, _ in PROGRAMS)


TABLES = [
    (page, toml)
    for page in PAGES
    for toml in re.findall(r"^```toml\n(.*?)^```$", (ROOT / page).read_text("utf-8"), re.M | re.S)
]


@pytest.mark.parametrize(("page", "toml"), TABLES, ids=[page for page, _ in TABLES])
def test_files_of_the_pages(page: str, toml: str) -> None:
    """Each file on a page is right, with each of its profiles; one that shows a part may lean on what is built in."""
    tables = tomllib.loads(toml)
    for profile in (None, *tables.get("profiles", ())):
        from_mapping(tables, page, profile)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", *PAGES])
def test_links(name: str) -> None:
    """What a page links to in this project is there."""
    page = ROOT / name
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))

    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_contributing_names_every_module() -> None:
    """The house in CONTRIBUTING.md has every module of the package, and no other."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package = ROOT / "parallel"

    assert set(re.findall(r"\w+\.py(?!\w)", page)) - {"test_layers.py", "overhead.py"} == {
        path.name for path in package.rglob("*.py")
    }


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    """Every `>>>` example in a docstring runs and gives what it shows."""
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)

    assert failures == 0


@pytest.mark.parametrize("name", MODULES)
def test_docstring_programs(name: str) -> None:
    """Every program in a module's docstring, which begins with an import of ours, compiles."""
    text = inspect.getdoc(importlib.import_module(name)) or ""
    for program in re.findall(r"^    (?:from|import) parallel.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL):
        compile(textwrap.dedent(program), f"the docstring of {name}", "exec")
