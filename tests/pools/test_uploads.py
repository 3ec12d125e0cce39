"""
What a pool uploads: modules that its workers don't have.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import jobs
import pytest
from pools.contract import LONG
from pools.shops import Stocked, stock, stocked

from parallel import ConfigError, ExecutorPool, PoolBrokenError, Registry, SerializationError, task, using
from parallel.pools.distant import uploads
from parallel.pools.distant.uploads import UploadError, pack

__all__ = ["stocked"]


class Lent(Executor):
    """An executor that outlives its pools, as a cluster does."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Pass it on."""
        return self._executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """It is somebody else's."""


@pytest.fixture(params=["spawn", "forkserver"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """An executor of one process, which has been started, so that it looks for modules where they were then."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(request.param)) as made:
        assert made.submit(jobs.double, 1).result(LONG) == 2
        yield Lent(made)


@pytest.fixture
def elsewhere(executor: Executor) -> Callable[..., ExecutorPool]:
    """Makes pools on it."""
    return partial(ExecutorPool, lambda: executor, capabilities=["running"], max_workers=1)


Pools = Callable[..., ExecutorPool]


def test_a_package(elsewhere: Pools, stocked: Stocked) -> None:
    """All of it is there: functions, classes, data; and values of its classes come back."""
    prices = stocked("3")
    with elsewhere(upload=["shop"]) as pool:
        assert pool.submit(prices.price).result(LONG) == "3"
        assert pool.submit(prices.Basket(1).counted).result(LONG).count == 2
        place = Path(pool.submit(prices.place).result(LONG))
        assert place != Path(str(prices.__file__))
        assert (place.parent / "__init__.py").exists()
        assert not (place.parent / "__pycache__" / "old.txt").exists()
        assert list(pool.map(str, range(3))) == ["0", "1", "2"]


def test_without(elsewhere: Pools, stocked: Stocked) -> None:
    """What the worker lacks is told, and what to do about it."""
    prices = stocked("3")
    with elsewhere() as pool:
        error = pool.submit(prices.price).exception(LONG)
        assert isinstance(error, SerializationError)
        assert isinstance(error.__cause__, ModuleNotFoundError)
        assert str(error).startswith("the function shop.prices:price can't travel")
        assert str(error).endswith("install it there, or name its package in `upload`")
        other = pool.submit(jobs.same, prices.Basket(1)).exception(LONG)
        assert "the arguments of jobs:same can't travel" in str(other)
        assert str(other).endswith("install it there, or name its package in `upload`")


def test_an_initializer(elsewhere: Pools, stocked: Stocked) -> None:
    """It may be in an uploaded module; it runs once, and what it has set stays."""
    prices = stocked("3")
    with elsewhere(upload=["shop.prices"], initializer=prices.open_shop, initargs=("first",)) as pool:
        assert [pool.submit(prices.opened).result(LONG) for _ in range(3)] == [["first"]] * 3


def test_another_version(elsewhere: Pools, stocked: Stocked) -> None:
    """Each pool runs its own, in turns too, and finds its modules as it left them."""
    old = stocked("old")
    with elsewhere(upload=["shop"], initializer=old.open_shop, initargs=("old",)) as before:
        assert before.submit(old.price).result(LONG) == "old"
        new = stocked("new")
        with elsewhere(upload=["shop"]) as after:
            for _ in range(2):
                assert after.submit(new.price).result(LONG) == "new"
                assert after.submit(new.opened).result(LONG) == []
                assert before.submit(_price).result(LONG) == "old"
                assert before.submit(_opened).result(LONG) == ["old"]


def _price() -> object:
    return importlib.import_module("shop.prices").price()


def _opened() -> object:
    return importlib.import_module("shop.prices").opened()


def test_what_was_imported_there(elsewhere: Pools, stocked: Stocked, tmp_path: Path) -> None:
    """An older version that is installed there is not taken any more, though it was imported."""
    installed = stock(tmp_path / "installed", "installed")
    with elsewhere() as pool:
        pool.submit(lambda: sys.path.insert(0, str(installed))).result(LONG)
        assert pool.submit(_price).result(LONG) == "installed"
    prices = stocked("new")
    with elsewhere(upload=["shop"]) as pool:
        assert pool.submit(prices.price).result(LONG) == "new"


def test_many_versions(elsewhere: Pools, stocked: Stocked) -> None:
    """A process keeps a few; who comes back after many others is sent again."""
    first = stocked("first")
    initializer: Any = {"initializer": first.open_shop, "initargs": ("first",)}
    with elsewhere(upload=["shop"], **initializer) as pool:
        folder = Path(pool.submit(first.place).result(LONG)).parents[2]
        for number in range(uploads.KEPT + 3):
            version = stocked(str(number))
            with elsewhere(upload=["shop"]) as other:
                assert other.submit(version.price).result(LONG) == str(number)
        assert len(list(folder.iterdir())) == uploads.KEPT + 1
        assert pool.submit(_price).result(LONG) == "first"
        assert pool.submit(_opened).result(LONG) == ["first"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_nothing_is_left(method: str, stocked: Stocked) -> None:
    """What was unpacked goes with its process."""
    prices = stocked("3")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as executor:
        with ExecutorPool(lambda: Lent(executor), upload=["shop"], max_workers=1) as pool:
            place = Path(pool.submit(prices.place).result(LONG))
        assert place.exists()
        assert place.is_relative_to(tempfile.gettempdir())
    assert not left()


def left() -> list[str]:
    """Return what is in the temporary folder of uploads."""
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith(uploads._PREFIX)]


@pytest.mark.skipif(uploads.fcntl is None, reason="no locks here")
def test_a_process_that_is_killed(elsewhere: Pools, stocked: Stocked) -> None:
    """Who unpacks next on its machine removes what it has left; not what is in use."""
    prices = stocked("3")
    options = {"max_workers": 1, "mp_context": multiprocessing.get_context("spawn")}
    with ExecutorPool(ProcessPoolExecutor, options, upload=["shop"]) as pool, elsewhere(upload=["shop"]) as other:
        for each in (pool, other):
            each.submit(prices.price).result(LONG)
        assert len(left()) == 2
        os.kill(pool.submit(os.getpid).result(LONG), signal.SIGKILL)
    assert len(left()) == 2
    with ExecutorPool(ProcessPoolExecutor, options, upload=["shop"]) as pool:
        assert pool.submit(prices.price).result(LONG) == "3"
        assert len(left()) == 2
    assert len(left()) == 1


def test_workers_that_are_threads(stocked: Stocked) -> None:
    """These have what is here: nothing is unpacked."""
    from concurrent.futures import ThreadPoolExecutor

    prices = stocked("3")
    with ExecutorPool(ThreadPoolExecutor, upload=["shop"]) as pool:
        assert pool.submit(prices.place).result(LONG) == prices.__file__
    assert sys.modules["shop.prices"] is prices


# -- what is packed ---------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where modules are looked for."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def names_in(data: bytes) -> list[str]:
    """Return the names of the files in a zip."""
    return zipfile.ZipFile(BytesIO(data)).namelist()


def test_a_module(place: Path) -> None:
    """A module is its file; nothing is imported."""
    (place / "corner.py").write_text("raise AssertionError")
    [upload] = pack(["corner"])
    assert upload.name == "corner"
    assert names_in(upload.data) == ["corner.py"]
    assert "corner" not in sys.modules


def test_a_top_level_package(place: Path) -> None:
    """Whatever is named in it, it goes as a whole, and once; neither caches nor circles do."""
    stock(place, "1")
    (place / "shop" / "data" / "circle").symlink_to(place / "shop")
    [upload] = pack(["shop.prices", "shop", "shop.data"])
    expected = ["__init__.py", "data/price.txt", "prices.py", "state.py"]
    assert names_in(upload.data) == [f"shop/{name}" for name in expected]
    assert "shop" not in sys.modules


def test_portions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace package is sent with every portion; the first one counts."""
    for portion, name in (("1", "both"), ("2", "both"), ("1", "one"), ("2", "two")):
        file = place / portion / "market" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"portion = {portion}\n")
    monkeypatch.syspath_prepend(str(place / "2"))
    monkeypatch.syspath_prepend(str(place / "1"))
    [upload] = pack(["market.two"])
    assert sorted(names_in(upload.data)) == ["market/both.py", "market/one.py", "market/two.py"]
    assert zipfile.ZipFile(BytesIO(upload.data)).read("market/both.py") == b"portion = 1\n"


def test_the_same_files(place: Path) -> None:
    """They make the same upload, whenever they were written; programs in it can be run."""
    stock(place, "1")
    tool = place / "shop" / "tool.sh"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    [first] = pack(["shop"])
    os.utime(tool, (time.time() + 100, time.time() + 100))
    assert pack(["shop"]) == (first,)
    tool.write_text("#!/bin/sh\necho\n")
    assert pack(["shop"])[0].key != first.key
    mode = zipfile.ZipFile(BytesIO(first.data)).getinfo("shop/tool.sh").external_attr >> 16
    assert mode == 0o755


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nowhere", r"found no module 'nowhere' on sys.path here; name modules or packages that can be imported"),
        ("nowhere.at.all", r"found no module 'nowhere'"),
        ("shop.nothing", r"found 'shop' at '.*__init__.py', and no 'shop.nothing' in it; 'shop' names all of it"),
        ("sys", r"'sys' is a part of Python, which the workers have; leave it out"),
        ("json.decoder", r"'json.decoder' is a part of Python"),
        ("parallel", r"'parallel' is what takes uploads there"),
        ("boxed", r"found 'boxed' at '.*boxes.zip/boxed.py', and no files there; install it on the workers"),
        ("byhand", r"found no module 'byhand'"),
        ("__main__", r"'__main__' is the main module: what it defines travels by value; leave it out"),
    ],
)
def test_what_cannot_be_sent(name: str, problem: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what was asked, what was found, and what to do."""
    stock(place, "1")
    with zipfile.ZipFile(place / "boxes.zip", "w") as archive:
        archive.writestr("boxed.py", "")
    monkeypatch.syspath_prepend(str(place / "boxes.zip"))
    monkeypatch.setitem(sys.modules, "byhand", ModuleType("byhand"))
    with pytest.raises(UploadError, match=f"upload: (?:{problem})"):
        pack([name])


def test_a_missing_name() -> None:
    """The pool is broken, and says why."""
    with ExecutorPool(ProcessPoolExecutor, upload=["nowhere"]) as pool:
        error = pool.submit(jobs.nothing).exception(LONG)
    assert isinstance(error, PoolBrokenError)
    assert "is broken: it could not be started: upload: found no module 'nowhere'" in str(error)


def test_no_room(elsewhere: Pools, stocked: Stocked, tmp_path: Path) -> None:
    """Where it can't be unpacked, the pool is broken, and says so."""
    prices = stocked("3")
    with elsewhere() as pool:
        pool.submit(setattr, tempfile, "tempdir", str(tmp_path / "nowhere")).result(LONG)
    with elsewhere(upload=["shop"]) as pool:
        told = str(pool.submit(prices.price).exception(LONG))
    assert "is broken: upload: 'shop' can't be unpacked: " in told


# -- configuration ----------------------------------------------------------------------------------------------------


def test_a_configuration(executor: Executor, stocked: Stocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file says is done; what a pool has uploaded stays when the file is read again."""
    monkeypatch.setattr(jobs, "lend", lambda: executor, raising=False)
    said = '[pools.ex]\nkind = "executor"\nfactory = "jobs:lend"\nmax_workers = 1\nupload = ["shop"]\n'
    file = tmp_path / "parallel.toml"
    file.write_text(said)
    prices = stocked("3")
    with Registry(file) as registry, using(registry):
        price = task(pool="ex")(prices.price)
        assert price().result(LONG) == "3"
        (Path(str(prices.__file__)).parent / "data" / "price.txt").write_text("4")
        file.write_text(f'{said}[pools.other]\nkind = "thread"\n')
        registry.reload()
        assert price().result(LONG) == "3"


@pytest.mark.parametrize("wrong", ["shop", [""], ["a b"], [3]])
def test_mistakes(wrong: Any) -> None:
    """What can't be names of modules is refused where it is said."""
    with pytest.raises(ValueError, match="upload must be names of modules, such as"):
        ExecutorPool(ProcessPoolExecutor, upload=wrong)
    with pytest.raises(ConfigError, match=r"pools.ex.upload: expected the names of modules"):
        Registry({"pools": {"ex": {"kind": "executor", "factory": "a:b", "upload": wrong}}})
