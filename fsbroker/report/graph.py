"""Boxes, circles and arrows: what is drawn, whichever way.

Functions are boxes, inputs are circles; equal inputs share one. Lists and dicts that are put
together from results are boxes of their own.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from fsbroker.report.calls import Argument, Call, Items, Leaf, Opaque, Ref, Source
from fsbroker.report.shown import cut

WIDEST = 40


class Shape(enum.Enum):
    """What a node stands for."""

    BOX = "function"
    LIST = "collection"
    CIRCLE = "input"


class Node(NamedTuple):
    """One node.

    Attributes:
        title: what is shown when somebody points at it.
        state: of a task in a spool, by which it is coloured.
    """

    shape: Shape
    label: str
    title: str = ""
    state: str = ""


class Edge(NamedTuple):
    """An arrow between two nodes, by their numbers."""

    source: int
    target: int
    label: str = ""


class Graph(NamedTuple):
    """Nodes, the functions first, in their order; and edges."""

    nodes: list[Node]
    edges: list[Edge]


def graph_of(calls: Sequence[Call], functions: Sequence[Node] | None = None) -> Graph:
    """The graph of calls.

    Args:
        functions: the node of each call, if it is to be more than the function's name.
    """
    return _Builder(calls, functions).graph


class _Builder:
    def __init__(self, calls: Sequence[Call], functions: Sequence[Node] | None) -> None:
        boxes = functions or [Node(Shape.BOX, cut(one.label, WIDEST), one.name) for one in calls]
        self.graph = Graph(list(boxes), [])
        self._circles: dict[object, int] = {}
        for number, call in enumerate(calls):
            for argument in call.arguments:
                self._argument(number, argument)

    def _argument(self, target: int, argument: Argument) -> None:
        self._connect(argument.source, target, argument.label)

    def _connect(self, source: Source, target: int, label: str) -> None:
        edges = self.graph.edges
        if isinstance(source, Ref):
            edges.append(Edge(source.call, target, label + _path(source)))
        elif isinstance(source, Opaque):
            edges += [Edge(ref.call, target, label + _path(ref)) for ref in source.refs]
        elif isinstance(source, Leaf):
            edges.append(Edge(self._circle(source), target, label))
        else:
            edges.append(Edge(self._collection(source), target, label))

    def _circle(self, leaf: Leaf) -> int:
        if leaf.same not in self._circles:
            self._circles[leaf.same] = self._add(Node(Shape.CIRCLE, str(leaf.form)))
        return self._circles[leaf.same]

    def _collection(self, source: Items) -> int:
        number = self._add(Node(Shape.LIST, cut(_text(source), WIDEST)))
        for name, item in source.items:
            # What is no result stands in the box's text.
            if not isinstance(item, Leaf):
                self._connect(item, number, name)
        return number

    def _add(self, node: Node) -> int:
        self.graph.nodes.append(node)
        return len(self.graph.nodes) - 1


def _path(ref: Ref) -> str:
    return "".join(f"[{one!r}]" for one in ref.selector)


def _text(source: Source) -> str:
    if isinstance(source, Leaf):
        return str(source.form)
    if not isinstance(source, Items):
        return "$"
    if source.kind is list:
        return f"[{', '.join(_text(item) for _, item in source.items)}]"
    return f"{{{', '.join(f'{name}: {_text(item)}' for name, item in source.items)}}}"
