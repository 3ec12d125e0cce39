"""
The shape of a program: which call, or task, follows which; as text, for Mermaid and for Graphviz.

    future.tree(), task.graph() ──▶ Graph ──▶ text, mermaid(), dot()

Nothing here has state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from parallel.durations import briefly

if TYPE_CHECKING:
    from rich.tree import Tree

_COLOURS: Final = {"succeeded": "#c8e6c9", "failed": "#ffcdd2", "cancelled": "#e0e0e0", "running": "#bbdefb"}


@frozen
class Node:
    """
    A call, or a task.

    Attributes:
        name: The name of the task or function, or of what joins several futures, such as `gather`.
        pool: What messages call its pool; empty: it runs in none, or nobody knows.
        state: `waiting` for others, `queued` for a worker, `running`, `succeeded`, `failed` or `cancelled`; `ended` if
            only that is known; empty for a task.
        seconds: How long it has run; None: not at all, or nobody knows.
        error: What it has failed with, in a line; empty: it has not.
    """

    name: str
    pool: str = ""
    state: str = ""
    seconds: float | None = None
    error: str = ""

    def __str__(self) -> str:
        said = ", ".join(filter(None, [_state(self), self.pool]))
        return self.name + f" ({said})" * bool(said) + f": {self.error}" * bool(self.error)


@frozen
class Edge:
    """
    What ties two of them.

    Attributes:
        first: The number of the one that comes first, in `Graph.nodes`.
        then: That of the one that follows it.
        how: `then`, `catch`, `finally`, `argument`, `part` of what joins several, or `awaited` in its body.
    """

    first: int
    then: int
    how: str


@frozen
class Graph:
    """
    Calls, or tasks, and what follows what. Its text is a tree, from the first node on; rich prints that in colours.

    Attributes:
        nodes: All of them.
        edges: What ties them.
        is_backward: The tree goes from the last to the first: from a future to what it waits for.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...] = ()
    is_backward: bool = field(default=False, repr=False)

    def __str__(self) -> str:
        lines: list[str] = []
        seen: set[int] = set()
        ahead = [(0, "", "")]  # nodes, with what stands before their own lines, and those of what hangs on them
        while ahead:
            node, head, rest = ahead.pop()
            again = " …" if node in seen else ""  # it was shown already
            lines.append(f"{head}{self.nodes[node]}{again}")
            below = [] if again else list(self._below(node))
            seen.add(node)
            for number, (other, how) in enumerate(reversed(below)):
                turn, more = ("└─ ", "   ") if number == 0 else ("├─ ", "│  ")
                ahead.append((other, f"{rest}{turn}{how} " if how else f"{rest}{turn}", rest + more))
        return "\n".join(lines)

    def _below(self, node: int) -> Iterator[tuple[int, str]]:
        """Yield what hangs on a node in the tree, and how."""
        for edge in self._ties.get(node, ()):
            yield edge.first if self.is_backward else edge.then, edge.how

    @cached_property
    def _ties(self) -> Mapping[int, list[Edge]]:
        ties: dict[int, list[Edge]] = {}
        for edge in self.edges:
            ties.setdefault(edge.then if self.is_backward else edge.first, []).append(edge)
        return ties

    def __rich__(self) -> Tree:
        from rich.markup import escape  # whoever prints it so has it
        from rich.tree import Tree

        styles = {"succeeded": "green", "failed": "red", "cancelled": "dim", "running": "blue"}

        def styled(node: Node, how: str) -> str:
            style = styles.get(node.state, "default")
            return f"[dim]{how}[/dim] [{style}]{escape(str(node))}[/{style}]".strip()

        whole = Tree(styled(self.nodes[0], ""))
        seen: set[int] = set()
        ahead = [(0, whole)]
        while ahead:
            node, tree = ahead.pop()
            if node not in seen:
                seen.add(node)
                ahead += [(other, tree.add(styled(self.nodes[other], how))) for other, how in self._below(node)]
        return whole

    def mermaid(self) -> str:
        """Return it as a flowchart of Mermaid, which Markdown pages of many hosts draw."""
        lines = ["flowchart LR"]
        for number, node in enumerate(self.nodes):
            label = "<br/>".join(_escaped(part) for part in _label(node))
            lines.append(f'    n{number}["{label}"]')
        for edge in self.edges:
            how = f'|"{_escaped(edge.how)}"|' if edge.how else ""
            lines.append(f"    n{edge.first} -->{how} n{edge.then}")
        lines += [
            f"    style n{number} fill:{_COLOURS[node.state]},color:#000"
            for number, node in enumerate(self.nodes)
            if node.state in _COLOURS
        ]
        return "\n".join(lines) + "\n"

    def dot(self) -> str:
        """Return it in the language of Graphviz."""
        lines = [
            "digraph parallel {",
            "    rankdir=LR;",
            '    node [shape=box, style="rounded,filled", fillcolor=white];',
        ]
        for number, node in enumerate(self.nodes):
            label = "\\n".join(part.replace("\\", "\\\\").replace('"', '\\"') for part in _label(node))
            colour = f', fillcolor="{_COLOURS[node.state]}"' if node.state in _COLOURS else ""
            lines.append(f'    n{number} [label="{label}"{colour}];')
        for edge in self.edges:
            how = f' [label="{edge.how}"]' if edge.how else ""
            lines.append(f"    n{edge.first} -> n{edge.then}{how};")
        return "\n".join([*lines, "}"]) + "\n"


def _label(node: Node) -> list[str]:
    """Return what stands in a box, line by line."""
    return [part for part in (node.name, node.pool, _state(node), node.error) if part]


def _state(node: Node) -> str:
    return node.state if node.seconds is None else f"{node.state} {briefly(node.seconds)}"


def _escaped(text: str) -> str:
    for character, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(character, entity)
    return text
