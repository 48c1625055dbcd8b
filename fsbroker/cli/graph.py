"""Draw what is in a spool: tasks as boxes, coloured by their states, and what they depend on.

With tasks named, these and all that they depend on. The file's ending says how: .svg, .dot,
.mmd (Mermaid), and .png and .pdf where Graphviz is installed. Without a file, Mermaid text.
Nothing of the tasks is imported or unpickled.
"""

from __future__ import annotations

import argparse
import sys

from fsbroker import cli
from fsbroker.cli import choice
from fsbroker.cli.output import print_json
from fsbroker.client.history import History
from fsbroker.report.calls import Call, Leaf
from fsbroker.report.drawing import check_drawable, draw
from fsbroker.report.graph import Graph, graph_of
from fsbroker.report.shown import shown
from fsbroker.report.stored import Stored
from fsbroker.report.text import mermaid
from fsbroker.spool.spool import open_spool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice.add_keys(parser, "a task")
    parser.add_argument("-o", "--output", metavar="FILE", help="draw into this file")
    parser.add_argument("--inputs", action="store_true", help="draw the other arguments too")


def run(options: argparse.Namespace) -> int:
    if options.output is not None:
        check_drawable(options.output)
    spool = open_spool(options.spool)
    history = History(spool)
    named = list(history)
    if options.keys or options.tag is not None:
        named = choice.chosen(options, history)
    found = Stored(spool, history, named)
    calls = found.calls(found.read(), lambda value, _: shown(value))
    graph = graph_of(calls if options.inputs else list(map(_results_only, calls)), found.nodes())
    if options.output is not None:
        draw(graph, options.output)
    if options.json:
        print_json(_as_json(graph))
    elif options.output is None:
        sys.stdout.write(mermaid(graph))
    return cli.OK


def _results_only(call: Call) -> Call:
    """Without arguments that are no results of others."""
    kept = (one for one in call.arguments if not isinstance(one.source, Leaf))
    return call._replace(arguments=tuple(kept))


def _as_json(graph: Graph) -> dict[str, object]:
    nodes = [
        {"id": n, "type": one.shape.value, "label": one.label, "state": one.state}
        for n, one in enumerate(graph.nodes)
    ]
    return {"nodes": nodes, "edges": [edge._asdict() for edge in graph.edges]}
