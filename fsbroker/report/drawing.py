"""Drawing a graph: into a file, whose ending says how, or into a notebook."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections.abc import Callable

from fsbroker.errors import MissingProgram, WorkflowError
from fsbroker.report.graph import Graph
from fsbroker.report.svg import svg
from fsbroker.report.text import dot, mermaid
from fsbroker.report.whole import write_whole

TEXTS: dict[str, Callable[[Graph], str]] = {
    ".svg": svg,
    ".dot": dot,
    ".gv": dot,
    ".mmd": mermaid,
    ".mermaid": mermaid,
}
BY_GRAPHVIZ = (".png", ".pdf")
PATIENCE = 600.0
"""Seconds that Graphviz may take; thousands of nodes take minutes."""


def check_drawable(path: str) -> None:
    """Refuse now what could not be drawn later.

    Raises:
        WorkflowError: an unknown ending. MissingProgram: it takes Graphviz, which is not here.
    """
    ending = _ending(path)
    if ending not in TEXTS and ending not in BY_GRAPHVIZ:
        valid = ", ".join([*TEXTS, *BY_GRAPHVIZ])
        raise WorkflowError("The ending does not say how to draw", path, f"Valid: {valid}")
    if ending in BY_GRAPHVIZ and shutil.which("dot") is None:
        raise MissingProgram(
            f"{ending} files are drawn by Graphviz's program dot, which is not on PATH",
            path,
            "Install Graphviz, or draw an .svg, which needs nothing",
        )


def draw(graph: Graph, path: str) -> None:
    """Draw into a file, which is there whole or not at all.

    Raises:
        WorkflowError, MissingProgram: as `check_drawable`; or Graphviz failed.
    """
    check_drawable(path)
    ending = _ending(path)
    if ending in TEXTS:
        # A lone surrogate, which no file name or label should have, has no UTF-8 form.
        data = TEXTS[ending](graph).encode("utf-8", "replace")
    else:
        data = _by_graphviz(graph, ending[1:], path)
    write_whole(path, data)


def display(graph: Graph) -> None:
    """Show in the notebook that this runs in; without one, say so."""
    if not _in_notebook():
        warnings.warn(
            "There is no notebook to draw the graph in; name a file for it "
            "(plot_dependency_graph_filename)",
            stacklevel=2,
        )
        return
    from IPython import display as notebook

    notebook.display(notebook.SVG(svg(graph)))  # type: ignore[no-untyped-call]


def _in_notebook() -> bool:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _by_graphviz(graph: Graph, form: str, path: str) -> bytes:
    text = dot(graph).encode("utf-8", "replace")
    try:
        done = subprocess.run(
            ["dot", f"-T{form}"], input=text, capture_output=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired as error:
        cure = "Draw an .svg, which fsbroker does itself"
        raise WorkflowError(f"Graphviz took more than {PATIENCE:g} s", path, cure) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise WorkflowError(f"Graphviz failed ({said[-300:]})", path)
    return done.stdout
