"""
The configuration that the tests are to find, from whatever directory pytest is started.
"""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the file beside this one."""
    monkeypatch.setenv("PARALLEL_CONFIG", str(Path(__file__).with_name("parallel.toml")))
