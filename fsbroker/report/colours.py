"""The colours of nodes, the same in every format."""

from __future__ import annotations

from fsbroker.report.graph import Node, Shape

BY_STATE = {
    "waiting": "#eeeeee",
    "ready": "#fff3c4",
    "running": "#bfdcff",
    "done": "#c8e6c0",
    "failed": "#f5b7b1",
    "cancelled": "#d9cfe3",
    "aliased": "#ffffff",
    "removed": "#ffffff",
}
_BY_SHAPE = {Shape.BOX: "#e8eef7", Shape.LIST: "#ffffff", Shape.CIRCLE: "#fdf6e3"}


def colour_of(node: Node) -> str:
    return BY_STATE.get(node.state, _BY_SHAPE[node.shape])
