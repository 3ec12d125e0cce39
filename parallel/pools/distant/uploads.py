"""
Modules of the program that the workers don't have: packed here, and unpacked there.

    names ──▶ pack() ──▶ an Upload for each top-level package ──▶ (the Setup of the pool) ──▶ enter() ──▶ a folder there
    a call of that pool ──▶ use() ──▶ that folder is first on sys.path, and no other version is in sys.modules

A top-level package goes as a whole, as `import package.module` needs what is above the module, and it what is beside
it.

Guarantees:
- Each call finds what its own pool has uploaded, also where pools with other versions use the same process: these are
  put away while another one's calls come, with the modules that were imported of them, and come back as they were.
- What is installed there, or was imported there before, is taken no more once a version of it has come.
- What was unpacked is removed as the process ends. Where it was killed, who unpacks next on that machine removes it.

State: `_versions`, `_present` and `_root` of a worker, guarded by the lock of `worker`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, all_suffixes
from multiprocessing.util import Finalize
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from parallel.pools.process.pickling import MAIN
from parallel.pools.process.references import forget

fcntl: Any
try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

KEPT: Final = 4
"""Versions that a process keeps beside those that are in use, for pools that take turns. More cost memory, and disk;
who comes back after so many others is sent again."""

_PREFIX: Final = "parallel-upload-"
_READY: Final = ".d"
"""How the name of a folder ends whose owner, as long as it lives, holds its lock."""


class UploadError(RuntimeError):
    """Modules can't be uploaded."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)

    def __str__(self) -> str:
        return f"upload: {self.args[0]}"


class Upload(NamedTuple):
    """
    A top-level module or package.

    Attributes:
        name: What it is called.
        key: Names this version of it: the same for the same files.
        data: Its files, in a zip; empty where they have been unpacked.
    """

    name: str
    key: str
    data: bytes


# -- packing ----------------------------------------------------------------------------------------------------------


def pack(names: Sequence[str]) -> tuple[Upload, ...]:
    """
    Pack modules with all that is in their top-level packages; nothing is imported.

    Args:
        names: Such as `package.module`.

    Raises:
        UploadError: One can't be found, or is none that could be sent.
    """
    specs = {spec.name: spec for spec in map(_find, names)}
    return tuple(map(_packed, specs.values()))


def _find(name: str) -> ModuleSpec:
    """Return where the top-level package of a module is; see that the module is in it."""
    top, *rest = name.split(".")
    if top in sys.stdlib_module_names:
        raise UploadError(f"{name!r} is a part of Python, which the workers have; leave it out")
    if top in MAIN:
        raise UploadError(f"{name!r} is the main module: what it defines travels by value; leave it out")
    if top == __name__.partition(".")[0]:
        raise UploadError(f"{name!r} is what takes uploads there; install it on the workers, and leave it out")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # it is in sys.modules, made by hand
        spec = None
    if spec is None:
        raise UploadError(f"found no module {top!r} on sys.path here; name modules or packages that can be imported")
    places = list(spec.submodule_search_locations or ())
    for part in rest:
        places = [os.path.join(place, part) for place in places]
        if not any(map(_is_module, places)):
            raise UploadError(f"found {top!r} at {_place_of(spec)}, and no {name!r} in it; {top!r} names all of it")
    return spec


def _is_module(path: str) -> bool:
    return os.path.isdir(path) or any(os.path.isfile(path + suffix) for suffix in all_suffixes())


def _packed(spec: ModuleSpec) -> Upload:
    """Pack a top-level module or package. The same files make the same zip, whenever they were written."""
    file = io.BytesIO()
    try:
        with zipfile.ZipFile(file, "w") as archive:
            for name, path in dict(_files_of(spec)).items():
                info = zipfile.ZipInfo(name)
                info.external_attr = stat.S_IMODE(path.stat().st_mode) << 16
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    except OSError as error:
        raise UploadError(f"found {spec.name!r} at {_place_of(spec)}, and can't read it: {error}") from error
    data = file.getvalue()
    return Upload(spec.name, f"{spec.name}-{hashlib.sha256(data).hexdigest()}", data)


def _files_of(spec: ModuleSpec) -> Iterator[tuple[str, Path]]:
    """Yield the files of a module or package, each with its name in the zip."""
    folders = spec.submodule_search_locations
    if folders is None:
        paths = [(Path(spec.origin or "").name, Path(spec.origin or ""))]
    else:  # of portions of a namespace package, the first one that has a file is the one that counts
        paths = [(f"{spec.name}/{name}", path) for folder in reversed(list(folders)) for name, path in _below(folder)]
    if not paths or not all(path.is_file() for _, path in paths):
        raise UploadError(f"found {spec.name!r} at {_place_of(spec)}, and no files there; install it on the workers")
    yield from paths


def _below(folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Yield what is in a folder, by its name relative to that, in order; links are followed, but not in circles."""
    real = os.path.realpath(folder)
    if real in above or not os.path.isdir(folder):
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file():
            yield entry.name, Path(entry.path)
        elif entry.is_dir() and entry.name != "__pycache__":
            for name, path in _below(entry.path, (*above, real)):
                yield f"{entry.name}/{name}", path


def _place_of(spec: ModuleSpec) -> str:
    return repr(spec.origin or list(spec.submodule_search_locations or ()))


# -- unpacking --------------------------------------------------------------------------------------------------------


class _Version:
    """
    One that has come.

    Attributes:
        name: That of the module or package.
        key: That of its upload.
        folder: What it was unpacked into.
        modules: Those that were imported of it, while another version is in use.
    """

    def __init__(self, name: str, key: str, folder: str) -> None:
        self.name = name
        self.key = key
        self.folder = folder
        self.modules: dict[str, ModuleType] = {}


_versions: OrderedDict[str, _Version] = OrderedDict()  # by key; the one that was brought in last comes last
_present: dict[str, _Version] = {}  # by name: those that are in use
_root: str | None = None


def enter(uploads: Sequence[Upload]) -> tuple[Upload, ...]:
    """
    Unpack what has come, as far as it isn't there, and use it; return it without its files.

    Raises:
        UploadError: It can't be unpacked.
    """
    for upload in uploads:
        if upload.key not in _versions:
            try:
                _versions[upload.key] = _Version(upload.name, upload.key, _unpacked(upload))
            except OSError as error:
                raise UploadError(f"{upload.name!r} can't be unpacked: {error}") from error
    marks = tuple(upload._replace(data=b"") for upload in uploads)
    use(marks)
    return marks


def use(uploads: Sequence[Upload]) -> bool:
    """Have these versions imported from now on; False if one of them isn't here any more."""
    others = [each for each in uploads if each.name not in _present or _present[each.name].key != each.key]
    if not _versions.keys() >= {each.key for each in others}:
        return False
    for each in others:
        _bring_in(_versions[each.key])
    if others:
        _throw_away()
    return True


def _bring_in(version: _Version) -> None:
    """Put a version in the place of the one that is there."""
    name = version.name
    imported = {key: module for key, module in list(sys.modules.items()) if key.partition(".")[0] == name}
    for key in imported:
        sys.modules.pop(key, None)
    before = _present.get(name)
    if before is not None:
        before.modules = imported
        with suppress(ValueError):  # a function has taken it away
            sys.path.remove(before.folder)
    sys.path.insert(0, version.folder)
    sys.modules.update(version.modules)
    version.modules = {}
    _present[name] = version
    _versions.move_to_end(version.key)
    importlib.invalidate_caches()
    forget(name)


def _throw_away() -> None:
    """Remove the versions that have not been used for the longest time."""
    others = [key for key, version in _versions.items() if _present.get(version.name) is not version]
    for key in others[:-KEPT]:
        shutil.rmtree(_versions.pop(key).folder, ignore_errors=True)


def _unpacked(upload: Upload) -> str:
    """Unpack one into a folder of its own, and return that."""
    folder = tempfile.mkdtemp(dir=_own_root())
    with zipfile.ZipFile(io.BytesIO(upload.data)) as archive:
        for info in archive.infolist():
            os.chmod(archive.extract(info, folder), (info.external_attr >> 16) | stat.S_IRUSR | stat.S_IWUSR)
    return folder


def _own_root() -> str:
    """Return the folder of this process, which goes with it."""
    global _root
    if _root is None:
        sweep()
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        _lock(folder)
        _root = folder + _READY
        os.rename(folder, _root)
        # Run at the exit of those that multiprocessing has started too; not in a forked child.
        Finalize(None, shutil.rmtree, (_root, True), exitpriority=-1000)
    return _root


def sweep() -> None:
    """Remove, on this machine, the folders of processes that were killed."""
    folder = tempfile.gettempdir()
    with suppress(OSError):  # there is none
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if name.startswith(_PREFIX) and name.endswith(_READY) and (lock := _lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(folder: str) -> int | None:
    """Lock a folder until its descriptor is closed, or the process is no more; None if that can't be."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is another user's, or in use; or the file system has no locks
        if descriptor is not None:
            os.close(descriptor)
        return None
    return descriptor


def _after_fork_in_child() -> None:
    global _root
    _root = None  # the parent's: what was unpacked there is there as long as that lives


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
