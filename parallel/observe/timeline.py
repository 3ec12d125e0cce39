"""
A recording as a page: one file of HTML, which loads nothing.

    a table of `Recording` ──▶ JSON, put into `timeline.html` ──▶ the page, which does the rest in the browser

Nothing here has state.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from parallel.observe.summary import summarize


def page(table: Mapping[str, Any]) -> str:
    """
    Return a page that shows a recording.

    Args:
        table: What `Recording.table` has returned.
    """
    frame = files("parallel.observe").joinpath("timeline.html").read_text(encoding="utf-8")
    summary = summarize(table)
    figures = [each._asdict() for each in summary.tasks]
    data = json.dumps({**table, "verdict": summary.verdict, "summary": figures}, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # as `</script>` may stand in an error
    before, after = frame.replace("__TITLE__", html.escape(str(table["title"])), 1).split("__DATA__")
    return f"{before}{data}{after}"
