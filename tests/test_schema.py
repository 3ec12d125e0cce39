"""
The JSON Schema of a configuration, beside what reading one says.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from test_config import configs

from parallel import config
from parallel.config import Config, from_mapping, load
from parallel.errors import ConfigError
from parallel.schema import schema
from parallel.template import TEMPLATE

ROOT = Path(config.__file__).parent.parent
WHOLE = jsonschema.Draft202012Validator(schema())
OF_PYPROJECT = jsonschema.Draft202012Validator(schema(of_pyproject=True))


def test_it_is_a_schema() -> None:
    """Of the draft that it says; and JSON, which has no infinity."""
    for each in (schema(), schema(of_pyproject=True)):
        jsonschema.Draft202012Validator.check_schema(each)
        assert json.loads(json.dumps(each, allow_nan=False)) == each


FILES = [path for path in sorted(ROOT.glob("examples/**/*.toml")) if path.parent.name != "custom_kind"]
"""Those of the examples; the kind of that one is there only once it is installed: see `test_custom_kind`."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_of_the_examples_are_right(path: Path) -> None:
    """Also as the table of a `pyproject.toml`, where they are one."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    if path.name == "pyproject.toml":
        OF_PYPROJECT.validate(document)
    else:
        WHOLE.validate(document)
        OF_PYPROJECT.validate({"project": {"name": "x"}, "tool": {"parallel": document, "other": 3}})


def test_the_first_file_is_right() -> None:
    """What `init` writes."""
    WHOLE.validate(tomllib.loads(TEMPLATE))


@given(configs())
def test_every_right_configuration_is_right(right: Config) -> None:
    """What can be read passes."""
    WHOLE.validate(tomllib.loads(right.to_toml()))


GOOD: list[dict[str, Any]] = [
    {},
    {"pools": {"threads": {"max_workers": 3}, "processes": {}, "x": {"kind": "loop"}}},
    {"pools": {"threads": {"kind": "inline"}}},
    {"extends": "base.toml", "pools": {"io": {"max_workers": "2*cpus"}}},
    {"profiles": {"test": {"pools": {"io": {"max_workers": 3}}, "unobserved": "warn"}}},
    {"tasks": {"*": {"timeout": math.inf, "retry": {"attempts": math.inf, "timeout": "5m"}, "rate": "5/2s"}}},
    {"tasks": {"a:b": {"retry": {"on": ["OSError", "a:B"], "wait_max": 0.5}}}},
    {"on": {"call_failed": "a:b", "pool_opened": ["a:b"]}},
]
BAD: list[dict[str, Any]] = [
    {"pool": {}},
    {"pools": {"x": {}}},
    {"pools": {"x": {"max_workers": 3}}},
    {"pools": {"x": {"kind": "thred"}}},
    {"pools": {"x": {"kind": "thread", "max_wokers": 3}}},
    {"pools": {"x": {"kind": "thread", "max_workers": 0}}},
    {"pools": {"x": {"kind": "thread", "max_workers": True}}},
    {"pools": {"x": {"kind": "thread", "max_workers": "all"}}},
    {"pools": {"x": {"kind": "thread", "max_tasks_per_child": 3}}},
    {"pools": {"x": {"kind": "loop", "on_full": "run"}}},
    {"pools": {"x": {"kind": "process", "initializer": "a.b"}}},
    {"pools": {"x": {"kind": "process", "initargs": "abc"}}},
    {"pools": {"x": {"kind": "process", "env": {"A": 1}}}},
    {"pools": {"x": {"kind": "process", "max_memory_per_child": "1 GB"}}},
    {"pools": {"x": {"kind": "process", "kill_grace": "soon"}}},
    {"pools": {"threads": {"helping": "yes"}}},
    {"pools": {"threads": {"on_exit": "kill"}}},
    {"pools": 3},
    {"tasks": {"a": {}}},
    {"tasks": {"a:b": {"tiemout": 3}}},
    {"tasks": {"a:b": {"timeout": "30 seconds"}}},
    {"tasks": {"a:b": {"timeout": True}}},
    {"tasks": {"a:b": {"retry": 3}}},
    {"tasks": {"a:b": {"retry": {"atempts": 3}}}},
    {"tasks": {"a:b": {"retry": {"attempts": 2.5}}}},
    {"tasks": {"a:b": {"limit": 0}}},
    {"tasks": {"a:b": {"on_failure": "a.b"}}},
    {"defaults": {"pool": 3}},
    {"unobserved": "wran"},
    {"on": {"call_faild": "a:b"}},
    {"on": {"call_failed": 3}},
    {"profiles": {"x": {"pool": {}}}},
    {"profiles": {"x": {"pools": {"io": {"max_workers": 0}}}}},
    {"profiles": 3},
]


@pytest.mark.parametrize("tables", GOOD, ids=json.dumps)
def test_right_tables(tables: dict[str, Any]) -> None:
    """As reading them says, but for files that others extend."""
    WHOLE.validate(tables)
    if "extends" not in tables and "io" not in str(tables):
        from_mapping(tables)


@pytest.mark.parametrize("tables", BAD, ids=json.dumps)
def test_wrong_tables(tables: dict[str, Any]) -> None:
    """What the schema refuses is a mistake."""
    assert list(WHOLE.iter_errors(tables))
    assert list(OF_PYPROJECT.iter_errors({"tool": {"parallel": tables}}))
    with pytest.raises(ConfigError):
        from_mapping(tables, profile="x" if "profiles" in tables else None)


def test_an_editor_is_told_what_options_mean() -> None:
    """Each has a line of text, from the docstring that has it anyway."""
    parts: Any = schema()["$defs"]
    for name, part in parts.items():
        for option, form in part["properties"].items():
            assert option == "kind" or form.get("description"), (name, option)
    assert parts["kind-process"]["properties"]["preload"]["description"].startswith("Modules that a process has loaded")


def test_the_command_prints_it() -> None:
    """For `parallel.toml`, and for `pyproject.toml`."""
    for more, expected in (([], schema()), (["--pyproject"], schema(of_pyproject=True))):
        out = subprocess.run(
            [sys.executable, "-m", "parallel", "schema", *more], capture_output=True, cwd=ROOT, check=True, timeout=60
        ).stdout
        assert json.loads(out) == expected


def test_the_example_is_read(tmp_path: Path) -> None:
    """The schema and the reader speak of the same files."""
    assert load(ROOT / "examples" / "parallel.toml").pools
