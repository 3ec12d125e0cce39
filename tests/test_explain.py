"""
What the command line shows to a person: `explain`, `pools`, `check`, `init`, and the text of mistakes.

The expected texts here are what one sees; where they change, look at them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallel import config
from parallel.config import load

ROOT = Path(config.__file__).parent.parent
SHOP = """
from parallel import Retry, parallel_map, task


@task(pool="threads", timeout=10, retry=Retry(on=OSError, attempts=3))
def fetch(url: str) -> bytes: ...


@parallel_map
def resize(path: str) -> str: ...


class Shelf:
    @task(limit=3, on_failure=print)
    def put(self, item: str) -> None: ...


@task(pool="missing")
def lost() -> None: ...


def plain() -> None: ...
"""
FILE = """\
[defaults]
deadline = "5m"

[pools.heavy]
kind = "process"
max_workers = 3

[pools.forgotten]
kind = "thread"

[tasks."shop.*"]
timeout = "30s"

[tasks."shop.images:*"]
pool = "heavy"
timeout = "1m"

[tasks."shop.imgs:*"]
limit = 3

[profiles.test.pools.heavy]
kind = "inline"
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with a package of tasks, and a configuration."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "images.py").write_text(SHOP, encoding="utf-8")
    (tmp_path / "parallel.toml").write_text(FILE, encoding="utf-8")
    return tmp_path


def ran(where: Path, *arguments: str, status: int = 0, **env: str) -> tuple[str, str]:
    """Run the command line there; return what it prints, on standard output and error."""
    done = subprocess.run(
        [sys.executable, "-m", "parallel", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PARALLEL_CONFIG": "", **env},
        cwd=where,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def test_explain(shop: Path) -> None:
    """Each option that somebody says, with the layer, file and line that say it, and what it wins over."""
    out, err = ran(shop, "explain", "shop.images:fetch", PARALLEL_TASKS='{"*:fetch": {"limit": 4}}')
    assert (err, out) == (
        "",
        """\
shop.images:fetch runs in the pool "heavy", of kind process.

Option    Value                           Said by                                          Instead of
pool      "heavy"                         parallel.toml:15: tasks."shop.images:*".pool     \
"threads" (decorator), "threads" (built in)
timeout   "1m"                            parallel.toml:16: tasks."shop.images:*".timeout  \
"30s" (parallel.toml:12: tasks."shop.*".timeout), "10s" (decorator)
deadline  "5m"                            parallel.toml:2: defaults.deadline
retry     {on = "OSError", attempts = 3}  decorator
limit     4                               $PARALLEL_TASKS: tasks."*:fetch".limit

The pool "heavy":

Option       Value      Said by
kind         "process"  parallel.toml:5: pools.heavy.kind
max_workers  3          parallel.toml:6: pools.heavy.max_workers

Nothing is said about the others: rate, priority, idempotent, on_success, on_failure, preload, env, cwd, \
threads_per_worker, max_memory_per_child, hard_memory_limit, idle_timeout, mp_context, initializer, initargs, \
max_tasks_per_child, kill_grace, max_pending, on_full, context, forward_logs, nested, memory_free, on_exit.
""",
    )


def test_explain_a_map_and_a_method(shop: Path) -> None:
    """Whatever is declared can be explained, under a profile too."""
    out, _ = ran(shop, "explain", "shop.images:resize", "--profile", "test")
    assert 'shop.images:resize runs in the pool "heavy", of kind inline.' in out
    assert "parallel.toml:22: profiles.test.pools.heavy.kind" in out
    assert '"processes" (built in)' in out
    out, _ = ran(shop, "explain", "shop.images:Shelf.put")
    assert 'on_failure  "print"' in out


def test_explain_as_json(shop: Path) -> None:
    """For programs: first what wins."""
    out, _ = ran(shop, "explain", "shop.images:fetch", "--json")
    told = json.loads(out)
    assert told["task"] == "shop.images:fetch"
    assert told["pool"] == "heavy"
    assert [each["value"] for each in told["options"]["timeout"]] == ["1m", "30s", "10s"]
    assert told["options"]["timeout"][0]["where"] == f"{shop}/parallel.toml:16"
    assert told["options"]["retry"][0]["value"] == {"on": "OSError", "attempts": 3}
    assert told["options"]["rate"] == []
    assert told["pool_options"]["max_workers"][0]["value"] == 3


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("shop.images:resise", "shop.images has no 'resise' (did you mean 'resize'?)"),
        ("shop.images.fetch", "expected MODULE:FUNCTION, such as shop.images:thumbnail, found 'shop.images.fetch'"),
        ("ship:fetch", "no module named 'ship', neither in "),
        ("shop.images:plain", "shop.images:plain is no task: declare it with @task or @parallel_map"),
        ("shop.images:lost", 'shop.images:lost runs in a pool "missing", and there is none: decorator'),
    ],
)
def test_what_cannot_be_explained(name: str, problem: str, shop: Path) -> None:
    """Wrong usage is told in one line."""
    (shop / "parallel.toml").write_text("", encoding="utf-8")
    out, err = ran(shop, "explain", name, status=2)
    assert (out, err.startswith(f"python -m parallel explain: {problem}")) == ("", True), err


def test_pools(shop: Path) -> None:
    """Every pool, and who says what about it."""
    out, _ = ran(shop, "pools", PARALLEL_POOLS__LOOP__MAX_WORKERS="7")
    assert (
        out
        == f"""\
The pools of {shop}/parallel.toml:

Pool       Option       Value      Said by
threads    kind         "thread"   built in
processes  kind         "process"  built in
loop       kind         "loop"     built in
           max_workers  7          $PARALLEL_POOLS__LOOP__MAX_WORKERS: pools.loop.max_workers
heavy      kind         "process"  parallel.toml:5: pools.heavy.kind
           max_workers  3          parallel.toml:6: pools.heavy.max_workers
forgotten  kind         "thread"   parallel.toml:9: pools.forgotten.kind
"""
    )
    told = json.loads(ran(shop, "pools", "--json", "--profile", "test")[0])
    assert told["heavy"]["kind"] == [
        {
            "value": "inline",
            "layer": "pools",
            "where": f"{shop}/parallel.toml:22",
            "key": "profiles.test.pools.heavy.kind",
        }
    ]


def test_check(shop: Path) -> None:
    """A right file is shown; with modules loaded, what nothing uses is warned of."""
    out, err = ran(shop, "check", "parallel.toml", "--import", "shop.images")
    assert (
        out
        == """\
parallel.toml: no mistakes, also with its profiles test

All tasks: deadline = "5m"

Pool       Kind     Options
threads    thread   (defaults)
processes  process  (defaults)
loop       loop     (defaults)
heavy      process  max_workers = 3
forgotten  thread   (defaults)

Tasks            Options
"shop.*"         timeout = "30s"
"shop.images:*"  pool = "heavy", timeout = "1m"
"shop.imgs:*"    limit = 3

If several rules match a task, the most specific one that says an option wins.
"""
    )
    assert (
        err
        == """\
warning: parallel.toml:18: tasks."shop.imgs:*": no task that is loaded matches
warning: parallel.toml:8: pools.forgotten: nothing uses it: no task that is loaded, and no rule
"""
    )
    assert ran(shop, "check", "parallel.toml")[1] == ""


def test_check_as_json(shop: Path) -> None:
    """For programs; the warnings are in it."""
    told = json.loads(ran(shop, "check", "--json", "--import", "shop.images")[0])
    assert told["pools"]["heavy"] == {"kind": "process", "max_workers": 3}
    assert told["tasks"]["shop.images:*"] == {"pool": "heavy", "timeout": "1m"}
    assert told["defaults"] == {"deadline": "5m"}
    assert len(told["warnings"]) == 2


def test_check_tells_rules_that_do_not_decide(shop: Path) -> None:
    """For a task that is loaded; without one, nobody can know."""
    (shop / "parallel.toml").write_text("[tasks.'shop*']\nlimit = 1\n[tasks.'*etch']\nlimit = 2\n")
    _, err = ran(shop, "check", "parallel.toml", "--import", "shop.images", status=1)
    assert (
        err
        == """\
parallel.toml: 1 mistake
  tasks."*etch".limit: "shop*" is as specific, and says something else, for the task shop.images:fetch; say it in a \
rule "shop.images:fetch"
"""
    )
    assert ran(shop, "check", "parallel.toml")[1] == ""


def test_check_imports_nothing_wrong(shop: Path) -> None:
    """A module that can't be imported is wrong usage."""
    assert "no module named 'ship'" in ran(shop, "check", "--import", "ship", status=2)[1]


MISTAKEN = """\
extends = "base.toml"
unobserved = "wran"

[pools.io]
kind = "thread"
max_tasks_per_child = 100

[tasks."shop.images:*"]
pool = "oi"
timeout = "30 seconds"

[profiles.test.pools.io]
max_workers = "many"
"""


def test_five_mistakes(shop: Path) -> None:
    """All at once, with file, line, key, what was expected, what was found, and the nearest right one."""
    (shop / "bad.toml").write_text(MISTAKEN, encoding="utf-8")
    (shop / "base.toml").write_text('# Shared.\n[pools.heavy]\nkind = "proces"\n', encoding="utf-8")
    out, err = ran(shop, "check", "bad.toml", status=1)
    assert (out, err) == (
        "",
        """\
bad.toml: 6 mistakes
  bad.toml:2: unobserved: expected 'log', 'warn', 'raise' or 'ignore', found string 'wran' (did you mean 'warn'?)
  bad.toml:6: pools.io.max_tasks_per_child: kind 'thread' has no such option, but 'process' has; known: kind, \
max_workers, thread_name_prefix, initializer, initargs, max_pending, on_full, helping, memory_free, on_exit
  bad.toml:9: tasks."shop.images:*".pool: no pool named 'oi'; known: heavy, io, loop, processes, threads
  bad.toml:10: tasks."shop.images:*".timeout: expected a duration such as 2.5, '250ms' or '5m', found string \
'30 seconds' (did you mean '30s'?)
  base.toml:3: pools.heavy.kind: expected the kind of a pool, found string 'proces' (did you mean 'process'?); \
known: thread, process, loop, inline, executor, dask, ray
  bad.toml:13: profiles.test.pools.io.max_workers: expected an integer of at least 1 or a string such as 'cpus', \
'cpus-1' or '2*cpus', found string 'many'
""",
    )


def test_init(shop: Path) -> None:
    """It writes a right file, in which every line that is a comment is right too; and never over one."""
    assert ran(shop, "init", "new.toml")[0].startswith("Wrote new.toml: read it, change it, and check it with ")
    text = (shop / "new.toml").read_text(encoding="utf-8")
    assert load(shop / "new.toml").pools == config.built_in().pools
    lines = [line.removeprefix("# ") if " = " in line or "# [" in line else line for line in text.splitlines()]
    everything = "\n".join(line for line in lines if not line.startswith(("#", "What", "`")))
    (shop / "all.toml").write_text(everything, encoding="utf-8")
    read = load(shop / "all.toml")
    assert read.tasks["shop.images:*"].limit == 10
    assert load(shop / "all.toml", "test").pools["threads"].kind == "inline"
    assert "parallel.toml is there already, and stays as it is" in ran(shop, "init", status=2)[1]
    assert (shop / "parallel.toml").read_text(encoding="utf-8") == FILE
    assert "can't be written: No such file or directory" in ran(shop, "init", "no/x.toml", status=2)[1]


def test_a_hostile_file_runs_no_code(shop: Path) -> None:
    """Whatever a file names is not imported by reading, checking or explaining it, nor by making a registry of it."""
    (shop / "hostile.py").write_text("open('run', 'w').close()\nprint('run')\n", encoding="utf-8")
    (shop / "parallel.toml").write_text(
        """
[pools.io]
kind = "process"
initializer = "hostile:init"
preload = ["hostile"]
context = ["hostile:variable"]
[tasks."*"]
retry = { on = ["hostile:Error"] }
on_success = "hostile:hear"
on_failure = "hostile:hear"
[on]
call_failed = ["hostile:hear"]
""",
        encoding="utf-8",
    )
    for command in (
        ["check"],
        ["check", "--import", "shop.images"],
        ["pools"],
        ["explain", "shop.images:fetch"],
        ["schema"],
    ):
        assert "run" not in ran(shop, *command)[0].split("\n")
    code = "from parallel import Registry, configure; Registry('parallel.toml').config.options_for('a:b'); configure()"
    subprocess.run([sys.executable, "-c", code], cwd=shop, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert not (shop / "run").exists()
