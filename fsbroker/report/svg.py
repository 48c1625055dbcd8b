"""A graph as SVG, for notebooks and browsers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

from fsbroker.report.colours import colour_of
from fsbroker.report.graph import Edge, Graph, Node, Shape
from fsbroker.report.layout import Box, Layout, layout

MARGIN = 12.0
LETTER = 7.2
"""Width of a letter at 12 px, with some to spare: no font is measured."""
SMALL = 5.6
"""Likewise at 10 px."""
HEIGHT = 30.0
STYLE = (
    "text{font:12px sans-serif;text-anchor:middle;dominant-baseline:central}"
    ".edge path{fill:none;stroke:#555}.edge text{font-size:10px;fill:#333}"
    ".edge rect{fill:#fff;opacity:.85}"
    ".function rect,.collection rect,.input ellipse{stroke:#333}"
    ".collection rect{stroke-dasharray:4 2}"
)
ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
    'markerHeight="8" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>'
)


def svg(graph: Graph) -> str:
    """The text of an SVG file."""
    boxes = [_box(node) for node in graph.nodes]
    edges = _joined(graph.edges)
    placed = layout(boxes, [(edge.source, edge.target) for edge in edges])
    width, height = placed.width + 2 * MARGIN, placed.height + 2 * MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="{-MARGIN:g} {-MARGIN:g} {width:.1f} {height:.1f}">'
    )
    nodes = map(_node, graph.nodes, boxes, placed.centres)
    style = f"<style>{STYLE}</style>{ARROW}"
    return "\n".join([head, style, *_edges(edges, boxes, placed), *nodes, "</svg>\n"])


def _joined(edges: Sequence[Edge]) -> list[Edge]:
    """Edges between the same two nodes as one, with all their labels."""
    labels: dict[tuple[int, int], list[str]] = {}
    for source, target, label in edges:
        labels.setdefault((source, target), []).append(label)
    return [Edge(*ends, ", ".join(filter(None, found))) for ends, found in labels.items()]


def _box(node: Node) -> Box:
    width = len(node.label) * LETTER + 20
    return Box(max(width, HEIGHT), HEIGHT)


def _node(node: Node, box: Box, centre: tuple[float, float]) -> str:
    x, y = centre
    fill = colour_of(node)
    if node.shape is Shape.CIRCLE:
        figure = f'<ellipse cx="{x:.1f}" cy="{y:.1f}" rx="{box.width / 2:.1f}" ry="{HEIGHT / 2}" '
    else:
        figure = (
            f'<rect x="{x - box.width / 2:.1f}" y="{y - HEIGHT / 2:.1f}" '
            f'width="{box.width:.1f}" height="{HEIGHT}" rx="3" '
        )
    title = f"<title>{_text(node.title)}</title>" if node.title else ""
    name = f"{node.shape.value} {node.state}".strip()
    return (
        f"<g class={quoteattr(name)}>{title}{figure}fill={quoteattr(fill)}/>"
        f'<text x="{x:.1f}" y="{y:.1f}">{_text(node.label)}</text></g>'
    )


def _edges(edges: Sequence[Edge], boxes: Sequence[Box], placed: Layout) -> Iterator[str]:
    for edge, between in zip(edges, placed.waypoints, strict=True):
        (x1, y1), (x2, y2) = placed.centres[edge.source], placed.centres[edge.target]
        start = (x1, y1 + boxes[edge.source].height / 2)
        end = (x2, y2 - boxes[edge.target].height / 2)
        points = [start, *between, end]
        path = f"M{start[0]:.1f},{start[1]:.1f}" + "".join(map(_bend, points, points[1:]))
        label = _label(edge.label, points) if edge.label else ""
        yield f'<g class="edge"><path d="{path}" marker-end="url(#arrow)"/>{label}</g>'


def _bend(first: tuple[float, float], second: tuple[float, float]) -> str:
    """From one point to the next, leaving and arriving upright."""
    (x1, y1), (x2, y2) = first, second
    middle = (y1 + y2) / 2
    return f" C{x1:.1f},{middle:.1f} {x2:.1f},{middle:.1f} {x2:.1f},{y2:.1f}"


def _label(text: str, points: Sequence[tuple[float, float]]) -> str:
    """At the middle of the last piece: what leaves an input may fan out far."""
    (x1, y1), (x2, y2) = list(pairwise(points))[-1]
    x, y, width = (x1 + x2) / 2, (y1 + y2) / 2, len(text) * SMALL
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y - 6:.1f}" width="{width:.1f}" height="12"/>'
        f'<text x="{x:.1f}" y="{y:.1f}">{_text(text)}</text>'
    )


def _text(text: str) -> str:
    """Escaped, without what XML cannot hold."""
    return escape("".join(one if one.isprintable() or one == "\n" else "?" for one in text))
