"""
Which rules for tasks a name matches: `module:qualname` patterns, where `*` is any run of characters.

    names without `*` ── one look ──┐
    patterns by what comes before   ├──▶ those that match, the most specific first
    their first `*` ── a few looks ─┘

So a name is compared with few of ten thousand patterns; and a registry asks once for each task.

Nothing here changes after making, but what is kept of patterns that were compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate


class Patterns:
    """
    Patterns, ready to be matched.

    Args:
        patterns: They, each once.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = tuple(patterns)
        self._by_start: dict[str, list[str]] = {}
        self._compiled: dict[str, re.Pattern[str]] = {}
        for pattern in self._patterns:
            start, star, _ = pattern.partition("*")
            self._by_start.setdefault(start + star, []).append(pattern)

    def matching(self, name: str) -> list[str]:
        """
        Give the patterns that match a name, the most specific first.

        More specific is the one with the most characters besides `*`, and of these the one with the fewest `*`.
        """
        starts = [name, *(f"{name[:end]}*" for end in range(len(name) + 1))]
        near = [pattern for start in starts for pattern in self._by_start.get(start, ())]
        return sorted(filter(lambda pattern: self._matches(pattern, name), near), key=specificity, reverse=True)

    def _matches(self, pattern: str, name: str) -> bool:
        compiled = self._compiled.get(pattern)
        if compiled is None:  # `translate` knows how to match many stars in no more than linear steps
            compiled = self._compiled[pattern] = re.compile(translate(re.sub(r"[\[?]", r"[\g<0>]", pattern)))
        return compiled.match(name) is not None

    def __reduce__(self) -> tuple[type[Patterns], tuple[tuple[str, ...]]]:
        return Patterns, (self._patterns,)


def specificity(pattern: str) -> tuple[int, int]:
    """Give what is greater for the more specific pattern."""
    stars = pattern.count("*")
    return len(pattern) - stars, -stars
