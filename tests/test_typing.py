"""
What type checkers make of the public API: right uses pass, wrong ones are errors, in mypy and in pyright.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RIGHT = ROOT / "tests" / "typing" / "api.py"
WRONG = ROOT / "tests" / "typing_wrong.py"

pytestmark = pytest.mark.slow


def mypy(path: Path, cache: Path) -> Counter[int]:
    """Count mypy's errors by line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), "--no-error-summary", str(path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert not found.stderr, found.stderr
    lines = re.findall(r"^(.*):(\d+): error: ", found.stdout, re.MULTILINE)
    assert all(Path(ROOT, file) == path for file, _ in lines), found.stdout
    return Counter(int(line) for _, line in lines)


def pyright(path: Path, cache: Path) -> Counter[int]:
    """Count pyright's errors by line, in strict mode."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", str(path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    diagnostics = json.loads(found.stdout)["generalDiagnostics"]
    # What only follows from an error on the same line ("type is unknown") is no error of its own.
    return Counter(one["range"]["start"]["line"] + 1 for one in diagnostics if one["severity"] == "error")


CHECKERS = pytest.mark.parametrize("errors", [mypy, pyright])


@CHECKERS
def test_right_uses_pass(errors: Callable[[Path, Path], Counter[int]], tmp_path: Path) -> None:
    """The API, used as users do, has the types that they expect."""
    assert not errors(RIGHT, tmp_path)


@CHECKERS
def test_wrong_uses_are_errors(errors: Callable[[Path, Path], Counter[int]], tmp_path: Path) -> None:
    """Each marked line is an error, and no other."""
    lines = WRONG.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, start=1) if "# error: " in line}
    assert set(errors(WRONG, tmp_path)) == marked
