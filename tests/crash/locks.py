"""
Finds the locks that the package makes, by reading its sources.

A lock is known by where it is kept: `parallel.timer:Timer.lock`, `parallel.unseen:_lock`, or, if it is kept in a local
variable alone, by that of its function: `parallel.states:State.sleep.lock`.
"""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "parallel"
MAKERS = {
    *("Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier"),
    *("allocate_lock", "allocate", "_RLock", "LockType"),
    *("SimpleQueue", "Queue", "LifoQueue", "PriorityQueue", "JoinableQueue"),
}
"""What makes a lock, or something that has one, by the last part of its name."""


def locks_of_package() -> set[str]:
    """Return all that are made anywhere in the package."""
    found: set[str] = set()
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    makers = MAKERS | {name for tree in trees.values() for name in _makers_in(tree)}
    for path, tree in trees.items():
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        finder = _Finder(module, makers)
        finder.visit(tree)
        found |= finder.found
    return found


def _makers_in(tree: ast.Module) -> set[str]:
    """Return the classes that are made of locks; a base that the same module defines is none, whatever its name."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    makers = MAKERS - {node.name for node in classes}
    return {node.name for node in classes if any(_last_name(base) in makers for base in node.bases)}


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        node = node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, makers: set[str]) -> None:
        self.found: set[str] = set()
        self._makers = makers
        self._module = module
        self._around: list[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = []
        self._globals: set[str] = set()
        self._targets: list[ast.expr] = []

    def _enter(self, node: Any) -> None:
        self._around.append(node)
        before, self._globals = self._globals, set(self._globals)
        self.generic_visit(node)
        self._globals = before
        self._around.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _enter

    def visit_Global(self, node: ast.Global) -> None:
        self._globals |= set(node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            named = alias.name not in self._makers or alias.asname in (None, alias.name)
            assert named, f"{self._module}: a lock by another name is not found"

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assign(node, node.targets)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._assign(node, [node.target])

    def _assign(self, node: ast.Assign | ast.AnnAssign, targets: list[ast.expr]) -> None:
        self._targets = targets
        if node.value is not None:
            self.visit(node.value)
        self._targets = []

    def visit_Call(self, node: ast.Call) -> None:
        if _last_name(node.func) in self._makers:
            self.found.add(f"{self._module}:{self._place(node)}")
        self.generic_visit(node)

    def _place(self, node: ast.Call) -> str:
        classes = [one.name for one in self._around if isinstance(one, ast.ClassDef)]
        kept = [one for one in self._targets if isinstance(one, ast.Attribute)]
        for target in kept:
            if isinstance(target.value, ast.Name) and target.value.id == "self":
                return ".".join([*classes, target.attr])
            return ast.unparse(target)
        for target in self._targets:
            if isinstance(target, ast.Name):
                if target.id in self._globals or not self._around:
                    return target.id
                return ".".join([*(one.name for one in self._around), target.id])
        return ".".join([*(one.name for one in self._around), f"line {node.lineno}"])


def inner_lock(guard: Any) -> Any:
    """Return the lock of what guards something: of an event, the one that each use of it takes."""
    if isinstance(guard, threading.Event):
        return guard._cond  # type: ignore[attr-defined]
    return guard
