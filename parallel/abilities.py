"""
What each kind of pool can do, as tables for people.

The kinds declare it themselves, `PoolConfig.abilities`, as they do their options; `docs/kinds.md` shows what `tables`
makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from parallel.catalogue import OWN
from parallel.kinds import PoolConfig

ABILITIES: Final[Mapping[str, str]] = {
    "kill": "a call that overruns its `timeout`, or is cancelled with `running=True`, is ended",
    "ask": "a function that runs is told that it is to stop: `current_task().cancelled`",
    "replace": "a worker that is held by an overrun call is replaced",
    "crash": "a crash costs the calls that ran in that process, and no others",
    "rerun": "`idempotent` calls whose worker has died are run again",
    "priority": "of the calls that wait, those of a higher `priority` run first",
    "context": "context variables of the caller are seen by the call",
    "logs": "log records of the workers arrive in the program's own logging",
    "share": "a constant of a map travels once to each worker, not with each item",
    "fork": "a forked child of the program has pools of its own",
}
"""What pools may be able to do. All else, and each option of tasks, every kind can."""


def tables() -> str:
    """Give two tables in Markdown: what the kinds can do, and which options their pools have."""
    able = [
        [meaning, *(config.abilities.get(name, "") for config in OWN.values())] for name, meaning in ABILITIES.items()
    ]
    having = {kind: _options(config) for kind, config in OWN.items()}
    options = sorted({option for those in having.values() for option in those})
    has = [[f"`{option}`", *("yes" if option in those else "" for those in having.values())] for option in options]
    kinds = [f"`{kind}`" for kind in OWN]
    return f"{_table(['', *kinds], able)}\n\n{_table(['option', *kinds], has)}"


def _options(config: type[PoolConfig]) -> tuple[str, ...]:
    return tuple(option.name for option in attrs.fields(config))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(_lines([head, ["---"] * len(head), *rows]))


def _lines(rows: list[list[str]]) -> Iterator[str]:
    for row in rows:
        yield f"| {' | '.join(row)} |".replace("|  |", "| |").replace("|  |", "| |")
