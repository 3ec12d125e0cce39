"""
Kinds of pools that packages add: the example, installed; and packages with mistakes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import jsonschema
import pytest

from parallel import catalogue, config
from parallel.config import from_mapping
from parallel.errors import ConfigError

ROOT = Path(config.__file__).parent.parent
EXAMPLE = ROOT / "examples" / "custom_kind"
Runner = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has installed the example."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    env = {**os.environ, "PYTHONWARNINGS": ""}
    subprocess.run([*pip, "--target", str(target), str(EXAMPLE)], check=True, timeout=300, env=env)
    return target


def ran(installed: Path, *arguments: str, status: int = 0) -> str:
    """Run the command line where the example is installed; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "parallel", *arguments],
        env={**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}", "PARALLEL_CONFIG": ""},
        cwd=EXAMPLE,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_calls_run_in_it(installed: Path, run_script: Runner) -> None:
    """It is a kind as any other; its workers do what they are for."""
    done = run_script(
        f"""
import os
from parallel import Registry, task
assert "parallel_nice" not in __import__("sys").modules

@task(pool="background")
def niceness():
    return os.nice(0)

if __name__ == "__main__":
    with Registry.from_toml({str(EXAMPLE / "parallel.toml")!r}) as registry:
        print(niceness().result() - os.nice(0), registry.pool("background").kind)
""",
        env={"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])},
    )
    assert done.stdout.split() == [str(min(15, 19 - os.nice(0))), "nice"]


@pytest.mark.slow
def test_the_command_line_knows_it(installed: Path, tmp_path: Path) -> None:
    """`check`, `pools`, `schema`, and mistakes in its options."""
    assert "background  nice     niceness = 15, max_workers = 2" in ran(installed, "check").replace(
        "max_workers = 2, niceness = 15", "niceness = 15, max_workers = 2"
    )
    assert "parallel.toml:5: pools.background.niceness" in ran(installed, "pools")
    whole = json.loads(ran(installed, "schema"))
    jsonschema.validate(tomllib.loads((EXAMPLE / "parallel.toml").read_text(encoding="utf-8")), whole)
    parts = whole["$defs"]
    niceness = parts["kind-nice"]["properties"]["niceness"]
    assert (niceness["maximum"], niceness["description"]) == (
        19,
        "How much they leave, from 0, nothing, to 19, all that others want.",
    )
    assert "preload" in parts["kind-nice"]["properties"]
    bad = tmp_path / "bad.toml"
    bad.write_text(
        "[pools.x]\nkind = 'nice'\nniceness = 20\n[pools.y]\nkind = 'nise'\n[pools.z]\nkind = 'nice'\nnicenes = 1"
    )
    told = ran(installed, "check", str(bad), status=1)
    assert "bad.toml:3: pools.x.niceness: expected an integer from 0 to 19, found integer 20" in told
    assert (
        "bad.toml:5: pools.y.kind: expected the kind of a pool, found string 'nise' (did you mean 'nice'?); known: "
        in told
    )
    assert "bad.toml:8: pools.z.nicenes: unknown option of kind 'nice' (did you mean 'niceness'?)" in told


# Packages with mistakes

BROKEN = {
    "absent": ("broken_kinds:Absent", "can't be loaded: AttributeError: "),
    "missing": ("no_such_module:Kind", "can't be loaded: ModuleNotFoundError: No module named 'no_such_module'"),
    "raises": ("broken_kinds_raise:Kind", "can't be loaded: ZeroDivisionError: division by zero"),
    "other": ("broken_kinds:Other", "must be a class derived from parallel.PoolConfig, found type <class"),
    "named": ("broken_kinds:Named", "Named must say its name as kind, and the import string of its Pool as pool"),
    "poolless": (
        "broken_kinds:Poolless",
        "Poolless must say its name as kind, and the import string of its Pool as pool",
    ),
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package whose kinds can't be had."""
    (tmp_path / "broken_kinds_raise.py").write_text("1 / 0", encoding="utf-8")
    (tmp_path / "broken_kinds.py").write_text(
        """
from attrs import frozen
from parallel import PoolConfig
class Other: ...
@frozen
class Named(PoolConfig):
    kind = "another"
    pool = "a:b"
@frozen
class Poolless(PoolConfig):
    kind = "poolless"
""",
        encoding="utf-8",
    )
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    lines = ["[parallel.pools]", *(f"{name} = {value}" for name, (value, _) in BROKEN.items())]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for each in (catalogue._installed, catalogue._loaded):
        each.cache_clear()
    yield
    for each in (catalogue._installed, catalogue._loaded):
        each.cache_clear()
    for module in ("broken_kinds", "broken_kinds_raise"):
        sys.modules.pop(module, None)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("kind", BROKEN)
def test_kinds_that_cannot_be_had(kind: str) -> None:
    """It is a mistake at the pool that names it, with the package's name; other pools don't mind."""
    with pytest.raises(ConfigError) as caught:
        from_mapping({"pools": {"far": {"kind": kind}}})
    (line,) = caught.value.mistakes
    assert line.startswith(f"pools.far.kind: {kind!r} of broken 1.0")
    assert BROKEN[kind][1] in line
    assert from_mapping({"pools": {"near": {"kind": "thread"}}})


@pytest.mark.usefixtures("broken")
def test_a_kind_that_nobody_names_is_not_loaded() -> None:
    """A broken package breaks nothing else."""
    with pytest.raises(
        ConfigError,
        match=r"known: thread, process, loop, inline, executor, dask, ray, absent, missing, raises, other, named",
    ):
        from_mapping({"pools": {"far": {"kind": "fiber"}}})
    assert "broken_kinds_raise" not in sys.modules
