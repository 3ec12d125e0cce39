"""
The order of the house: imports point from the roof to the ground.
"""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

import parallel

PACKAGE = Path(parallel.__file__).parent

HOUSE = [
    {"errors"},
    {"weak", "naps"},
    {"context"},
    {"trail"},
    {"coroutines"},
    {"kept"},
    {"salvage"},
    {"chunks"},
    {"deaths"},
    {"chains"},
    {"unseen"},
    {"outcomes"},
    {"states"},
    {"delivery"},
    {"links"},
    {"runs"},
    {"awaits"},
    {"events"},
    {"tidings"},
    {"checks"},
    {"hooks"},
    {"imports"},
    {"machine"},
    {"memory"},
    {"durations"},
    {"graphs"},
    {"rates"},
    {"sizes"},
    {"shortage"},
    {"retries"},
    {"options"},
    {"kinds"},
    {"observing"},
    {"stats"},
    {"elsewhere"},
    {"catalogue"},
    {"abilities"},
    {"lines"},
    {"layers"},
    {"files"},
    {"rules"},
    {"dumping"},
    {"tables"},
    {"config"},
    {"lanes"},
    {"timer"},
    {"futures"},
    {"here"},
    {"meetings"},
    {"combine"},
    {"arguments"},
    {"deadlines"},
    {"limits"},
    {"gates"},
    {"terms"},
    {"attempts"},
    {"call"},
    {"traced"},
    {"timed"},
    {"plans"},
    {"current"},
    {"logged"},
    {"pools.base"},
    {"pools.handing", "pools.backlog", "pools.workers", "pools.leftovers"},
    {"pools.blocking", "pools.intake"},
    {"pools.crew", "pools.desk", "pools.looping"},
    {"pools.sparing"},
    # One storey: the kinds of pools never import each other.
    {"pools.inline", "pools.thread", "pools.loop", "pools.process"},
    # Calls that somebody else's engine brings to its workers are packed as those of processes are.
    {"pools.distant"},
    {"pools.foreign", "pools.dask", "pools.ray"},
    {"pools"},
    {"opening"},
    {"following"},
    {"editions"},
    {"registry"},
    {"meters"},
    {"screens"},
    {"bars"},
    {"progress"},
    {"keys"},
    {"fingerprints"},
    {"storage"},
    {"occurrences"},
    {"journal"},
    {"seeds"},
    {"ledgers"},
    {"flows"},
    {"routes"},
    {"streams"},
    {"naming"},
    {"resources"},
    {"tasks"},
    {"declaring"},
    {"mapping"},
    {"hosts"},
    {"members"},
    {"company"},
    {"groups"},
    {"explaining"},
    {"checking"},
    {"schema"},
    {"template"},
    {"showing"},
    {"asked"},
    {"observe"},
    {"testing"},
    {"pytest_plugin"},
    {"inputs"},
    {"records"},
    {"interrupts"},
    {"piped"},
    {"shell"},
    {"running", "watching"},
    {"cli"},
    {"__main__"},
]
STOREY = {room: number for number, rooms in enumerate(HOUSE) for room in rooms}

SUITES = ("pools.process", "pools.distant", "observe")
"""Rooms of several modules."""

MODULES = sorted(path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """Name a module below the package: `pools.thread`, `pools`; the package itself is empty."""
    return ".".join(part for part in path.parts if part != "__init__")


def room_of(module: str) -> str:
    """Return the room that a module is in; a subpackage other than `pools` is one room."""
    for room in SUITES:
        if module == room or module.startswith(f"{room}."):
            return room
    return module


def tree_of(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).with_suffix(".py").read_text(encoding="utf-8"))


def imported_by(node: ast.AST) -> Iterator[str]:
    """Yield the modules of ours that an import statement names, without the package's own name."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == "parallel")
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        first, _, rest = node.module.partition(".")
        if first == "parallel":
            # `from parallel import context` names a module, `from parallel.context import this` what is in one.
            yield from ([rest] if rest else [alias.name for alias in node.names])


def test_every_module_has_its_place() -> None:
    """The house lists all modules, and no module that isn't there."""
    rooms = {room_of(dotted(path)) for path in MODULES} - {""}
    assert rooms == set(STOREY)


@pytest.mark.parametrize("path", [path for path in MODULES if dotted(path)], ids=dotted)
def test_imports_point_down(path: Path) -> None:
    """A module imports only from storeys below its own; within a suite, see below."""
    here = room_of(dotted(path))
    for node in ast.walk(tree_of(path)):
        for module in imported_by(node):
            there = room_of(module)
            assert there == here in SUITES or STOREY[there] < STOREY[here], f"{dotted(path)} imports {module}"


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_no_cycle(suite: str) -> None:
    """The modules of a suite import each other in one direction only."""
    rooms = [path for path in MODULES if dotted(path).startswith(suite)]
    needs = {dotted(path): {m for node in ast.walk(tree_of(path)) for m in imported_by(node)} for path in rooms}
    left = set(needs)
    while left:
        free = {module for module in left if not needs[module] & left - {module}}
        assert free, f"a cycle among {sorted(left)}"
        left -= free


def test_a_worker_process_loads_only_the_ground_floor() -> None:
    """What a worker process imports of ours stands below the pools, or in the process kind itself."""
    seen: set[str] = set()
    ahead = ["pools.process.worker"]
    while ahead:
        module = ahead.pop()
        if module in seen:
            continue
        seen.add(module)
        path = Path(*module.split("."))
        path = path / "__init__" if (PACKAGE / path).is_dir() else path
        for statement in tree_of(path).body:  # not what is under TYPE_CHECKING
            ahead += imported_by(statement)
    above = {"checks", "imports", "durations", "rates", "sizes", "retries", "options", "kinds", "config"}
    above |= {"futures", "combine", "pools.base", "registry", "tasks"}
    assert not seen & above, seen


@pytest.mark.parametrize("path", MODULES, ids=lambda path: dotted(path) or "parallel")
def test_no_import_of_ours_inside_a_function(path: Path) -> None:
    """An import inside a function is for heavy modules of others, never for hiding an arrow."""
    for function in ast.walk(tree_of(path)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not [module for node in ast.walk(function) for module in imported_by(node)], function.name


def test_the_roof_names_its_rooms_late() -> None:
    """The package itself imports no room but the ground floor's context; the other names are strings."""
    imported = {m for statement in tree_of(Path("__init__")).body for m in imported_by(statement)}
    assert imported == {"context"}


@pytest.mark.parametrize("path", [path for path in MODULES if dotted(path)], ids=dotted)
def test_module_names(path: Path) -> None:
    """No module is named like a public name of the package, or like a builtin."""
    name = dotted(path).rpartition(".")[2]
    assert name not in parallel.__all__
    assert not hasattr(builtins, name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: dotted(path) or "parallel")
def test_the_first_line_states_the_idea(path: Path) -> None:
    """Each module opens with a docstring."""
    assert ast.get_docstring(tree_of(path))
