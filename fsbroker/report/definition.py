"""Calls as a Python Workflow Definition: JSON that other workflow systems read.

    {"version", "nodes": [function | input | output],
                "edges": [target, targetPort, source, sourcePort]}

The format calls functions by keyword and takes items out of dicts by the name of a port.
What goes beyond stands as a node of its own: an item by number as `get_item`, lists and dicts
as `get_list` and `get_dict` (all of the `python-workflow-definition` package), and a call that
is not by keyword as `fsbroker.workflow.call`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from fsbroker.errors import WorkflowError
from fsbroker.report.calls import Argument, Call, Items, Leaf, Opaque, Ref, Source
from fsbroker.workflow import FUNCTION

VERSION = "0.1.0"
RESULT = "result"
RESERVED = "__result__"
"""A port that the format keeps for itself."""
CALL = "fsbroker.workflow.call"
GET_LIST = "python_workflow_definition.shared.get_list"
GET_DICT = "python_workflow_definition.shared.get_dict"
GET_ITEM = "python_workflow_definition.executorlib.get_item"


class Made(NamedTuple):
    """A leaf's form where no input can hold the value: what makes it from inputs."""

    function: str
    inputs: dict[str, Any]


class Written(NamedTuple):
    """What `definition_of` makes: the JSON, and the node of each call."""

    content: dict[str, Any]
    nodes: list[int]

    def text(self) -> bytes:
        return json.dumps(self.content, indent=4).encode()


def definition_of(calls: Sequence[Call]) -> Written:
    """The definition of calls; its output is the value of the last one.

    Raises:
        WorkflowError: there is no call, or one that the format cannot hold.
    """
    if not calls:
        raise WorkflowError("There is nothing to write: no call was submitted")
    return _Writer(calls).definition()


class _Port(NamedTuple):
    node: int
    name: str | None = None


class _Writer:
    """Numbers nodes: the calls in their order, then the rest as it is met."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._nodes: list[dict[str, Any]] = []
        self._edges: list[dict[str, Any]] = []
        self._inputs: dict[object, int] = {}
        self._numbers = list(range(len(calls)))
        for call in calls:
            self._function(call.name if _is_by_name(call) else CALL)
        for number, call in enumerate(calls):
            self._call(number, call)

    def definition(self) -> Written:
        last = len(self._calls) - 1
        output = self._add({"type": "output", "name": RESULT})
        if len({edge["source"] for edge in self._edges} & set(range(last))) < last:
            # The package runs the lowest numbers last and gives that result, whatever the
            # output follows. With one end it is the same.
            output = self._turn_round(last)[output]
        self._edge(_Port(self._numbers[-1]), output, None)
        content = {"version": VERSION, "nodes": self._nodes, "edges": self._edges}
        return Written(content, self._numbers)

    def _turn_round(self, last: int) -> dict[int, int]:
        """Number nodes so that each has a lower number than what it comes from; old to new."""
        order = _from_inputs(len(self._nodes), self._edges, last)
        number = {node: len(order) - 1 - place for place, node in enumerate(order)}
        for node in self._nodes:
            node["id"] = number[node["id"]]
        self._nodes.sort(key=lambda node: int(node["id"]))
        for edge in self._edges:
            edge["target"], edge["source"] = number[edge["target"]], number[edge["source"]]
        self._numbers = [number[call] for call in self._numbers]
        return number

    def _call(self, number: int, call: Call) -> None:
        by_name = _is_by_name(call)
        if not by_name:
            self._edge(_Port(self._input(call.name, FUNCTION, call.name)), number, FUNCTION)
        for argument in call.arguments:
            self._argument(number, call, argument)

    def _argument(self, number: int, call: Call, argument: Argument) -> None:
        where = f"argument {argument.label!r} of {call.name}"
        self._edge(self._port(argument.source, argument.label, where), number, str(argument.port))

    def _port(self, source: Source, label: str, where: str) -> _Port:
        """Where a value comes from."""
        if isinstance(source, Ref):
            return self._part(source)
        if isinstance(source, Leaf):
            return _Port(self._leaf(source, label))
        if isinstance(source, Opaque):
            cure = "Give futures as arguments, or inside lists and dicts"
            raise WorkflowError("A workflow file cannot hold futures inside an object", where, cure)
        return self._items(source, where)

    def _items(self, source: Items, where: str) -> _Port:
        node = self._function(GET_DICT if source.kind is dict else GET_LIST)
        for name, item in source.items:
            self._edge(self._port(item, name, where), node, name)
        return _Port(node)

    def _leaf(self, leaf: Leaf, label: str) -> int:
        if isinstance(leaf.form, Made):
            node = self._function(leaf.form.function)
            for name, value in leaf.form.inputs.items():
                self._edge(_Port(self._input(value, name, object())), node, name)
            return node
        return self._input(leaf.form, label, leaf.same)

    def _part(self, ref: Ref) -> _Port:
        """A name at the end is a port; every other step is a node."""
        at = _Port(ref.call)
        for place, step in enumerate(ref.selector):
            last = place == len(ref.selector) - 1
            if last and type(step) is str and step != RESERVED:
                return _Port(at.node, step)
            at = self._item(at, step)
        return at

    def _item(self, at: _Port, step: int | str) -> _Port:
        node = self._function(GET_ITEM)
        self._edge(at, node, "obj")
        self._edge(_Port(self._input(step, "key", ("key", type(step), step))), node, "key")
        return _Port(node)

    def _function(self, name: str) -> int:
        return self._add({"type": "function", "value": name})

    def _input(self, value: Any, name: str, same: object) -> int:
        if same not in self._inputs:
            self._inputs[same] = self._add({"type": "input", "value": value, "name": name})
        return self._inputs[same]

    def _add(self, node: dict[str, Any]) -> int:
        self._nodes.append({"id": len(self._nodes), **node})
        return len(self._nodes) - 1

    def _edge(self, source: _Port, target: int, port: str | None) -> None:
        edge = {"target": target, "targetPort": port}
        self._edges.append({**edge, "source": source.node, "sourcePort": source.name})


def _is_by_name(call: Call) -> bool:
    ports = [argument.port for argument in call.arguments]
    return call.direct and bool(ports) and all(type(port) is str for port in ports)


def _from_inputs(count: int, edges: Sequence[dict[str, Any]], last: int) -> list[int]:
    """The nodes, each after those that it comes from, and ``last`` after all other functions."""
    before: list[list[int]] = [[] for _ in range(count)]
    for edge in edges:
        before[edge["target"]].append(edge["source"])
    order: dict[int, None] = {}
    for top in [*(node for node in range(count) if node != last), last]:
        stack = [top]
        while stack:
            missing = [one for one in before[stack[-1]] if one not in order]
            if missing and stack[-1] not in order:
                stack += missing
            else:
                order.setdefault(stack.pop())
    return list(order)
