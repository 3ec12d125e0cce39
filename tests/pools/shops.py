"""
A package of the program that no worker has: `shop`, with a module, data, and a module in a folder below.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import pytest

PRICES = """
from pathlib import Path

from shop import state

HERE = Path(__file__).parent


def price() -> str:
    return (HERE / "data" / "price.txt").read_text()


def open_shop(name: str) -> None:
    state.opened.append(name)


def opened() -> list[str]:
    return state.opened


def place() -> str:
    return __file__


class Basket:
    def __init__(self, count: int) -> None:
        self.count = count

    def counted(self) -> "Basket":
        return Basket(self.count + 1)
"""

Stocked: TypeAlias = Callable[[str], ModuleType]


def stock(folder: Path, price: str) -> Path:
    """Write the package into a folder."""
    shop = folder / "shop"
    (shop / "data").mkdir(parents=True)
    (shop / "__pycache__").mkdir()
    (shop / "__pycache__" / "old.txt").write_text("not sent")
    (shop / "__init__.py").write_text("raise_nothing = True\n")
    (shop / "state.py").write_text("opened: list[str] = []\n")
    (shop / "prices.py").write_text(PRICES)
    (shop / "data" / "price.txt").write_text(price)
    return folder


@pytest.fixture
def stocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stocked]:
    """Returns what makes a version of the package the one that is imported here, and returns `shop.prices` of it."""

    def make(price: str) -> ModuleType:
        _forget()
        monkeypatch.syspath_prepend(str(stock(tmp_path / f"version {price}", price)))
        return importlib.import_module("shop.prices")

    yield make
    _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]
