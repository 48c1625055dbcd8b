"""A graph as text: DOT for Graphviz, Mermaid for pages that render it."""

from __future__ import annotations

from fsbroker.report.colours import colour_of
from fsbroker.report.graph import Graph, Node, Shape

_DOT_SHAPES = {
    Shape.BOX: "box",
    Shape.LIST: "box",
    Shape.CIRCLE: "ellipse",
}


def dot(graph: Graph) -> str:
    """The text of a DOT file."""
    lines = ["digraph workflow {", '  node [style=filled, fontname="sans-serif", fontsize=12];']
    for number, node in enumerate(graph.nodes):
        style = ', style="filled,dashed"' if node.shape is Shape.LIST else ""
        lines.append(
            f"  n{number} [label={_quoted(node.label)}, shape={_DOT_SHAPES[node.shape]}, "
            f"fillcolor={_quoted(colour_of(node))}, tooltip={_quoted(_tip(node))}{style}];"
        )
    for edge in graph.edges:
        label = f" [label={_quoted(edge.label)}, fontsize=10]" if edge.label else ""
        lines.append(f"  n{edge.source} -> n{edge.target}{label};")
    return "\n".join([*lines, "}\n"])


def _quoted(text: str) -> str:
    r"""As DOT reads it: a backslash would begin an escape such as \N."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _tip(node: Node) -> str:
    return node.title or node.label


def mermaid(graph: Graph) -> str:
    """The text of a Mermaid flowchart."""
    lines = ["flowchart TD"]
    for number, node in enumerate(graph.nodes):
        opened, closed = ('(["', '"])') if node.shape is Shape.CIRCLE else ('["', '"]')
        lines.append(f"  n{number}{opened}{_entities(node.label)}{closed}")
    for edge in graph.edges:
        label = f'|"{_entities(edge.label)}"|' if edge.label else ""
        lines.append(f"  n{edge.source} -->{label} n{edge.target}")
    colours: dict[str, list[str]] = {}
    for number, node in enumerate(graph.nodes):
        colours.setdefault(colour_of(node), []).append(f"n{number}")
    for colour, nodes in colours.items():
        name = f"c{colour.lstrip('#')}"
        lines += [f"  classDef {name} fill:{colour}", f"  class {','.join(nodes)} {name}"]
    return "\n".join([*lines, ""])


def _entities(text: str) -> str:
    """Mermaid takes no quotes in quotes, and reads Markdown and HTML: numbers say the same."""
    return "".join(one if one.isalnum() or one in " _.,:=+()/" else f"#{ord(one)};" for one in text)
