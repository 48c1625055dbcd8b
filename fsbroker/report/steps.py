"""A workflow file, read, checked and run.

    load(path) -> Definition -> submit(executor) -> futures of its outputs

Lists, dicts and calls that are put together by nodes of their own become arguments again, so
the calls are those that the file was made from, and have their keys.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

from fsbroker import workflow
from fsbroker.errors import WorkflowError
from fsbroker.parts import get_item_from_future
from fsbroker.report.definition import CALL, GET_DICT, GET_ITEM, GET_LIST, VERSION
from fsbroker.workflow import FUNCTION, item

KINDS = {"function": ("value",), "input": ("name",), "output": ("name",)}
"""Types of nodes, and what each must have besides its id."""


class Edge(NamedTuple):
    """What a port of a node gets: the value of another node, or an item of it."""

    target: int
    target_port: str | None
    source: int
    source_port: str | int | None


class Definition:
    """A workflow file.

    Attributes:
        path: where it stands.
        order: its functions, each after what it needs.
        outputs: the name of each output, and what it gets.

    Raises:
        WorkflowError: (from `load`) it is not one that can be run.
    """

    def __init__(self, path: str, content: Any) -> None:
        self.path = path
        self._nodes = self._checked_nodes(content)
        self._inputs: dict[int, list[Edge]] = {number: [] for number in self._nodes}
        for edge in self._checked_edges(content):
            self._inputs[edge.target].append(edge)
        self.order = list(self._in_order())
        self.outputs = {
            node["name"]: edge
            for number, node in self._nodes.items()
            if node["type"] == "output"
            for edge in self._inputs[number]
        }

    # -- checks --------------------------------------------------------------------------

    def _checked_nodes(self, content: Any) -> dict[int, dict[str, Any]]:
        if not isinstance(content, dict) or not {"nodes", "edges"} <= content.keys():
            raise self._wrong("it has no nodes and edges")
        version = str(content.get("version", VERSION))
        if version.split(".")[:2] != VERSION.split(".")[:2]:
            raise self._wrong(f"it has version {version}, this fsbroker reads {VERSION}")
        nodes = [self._checked_node(node) for node in self._list(content, "nodes")]
        found = {node["id"]: node for node in nodes}
        if len(found) < len(nodes):
            raise self._wrong("two nodes have the same id")
        return found

    def _checked_node(self, node: Any) -> dict[str, Any]:
        kind = node.get("type") if isinstance(node, dict) else None
        if type(kind) is not str or kind not in KINDS or type(node.get("id")) is not int:
            raise self._wrong(f"a node is none of {', '.join(KINDS)} with an id: {_short(node)}")
        for name in KINDS[kind]:
            if type(node.get(name)) is not str:
                raise self._wrong(f"node {node['id']} has no {name}")
        if kind == "function" and "." not in node["value"].strip("."):
            raise self._wrong(f"node {node['id']} names no module and function: {node['value']!r}")
        found: dict[str, Any] = node
        return found

    def _checked_edges(self, content: dict[str, Any]) -> Iterator[Edge]:
        taken: set[tuple[int, str | None]] = set()
        for entry in self._list(content, "edges"):
            edge = self._checked_edge(entry)
            if (edge.target, edge.target_port) in taken:
                raise self._wrong(f"an argument is given twice: {_short(entry)}")
            taken.add((edge.target, edge.target_port))
            yield edge

    def _checked_edge(self, entry: Any) -> Edge:
        found: dict[str, Any] = entry if isinstance(entry, dict) else {}
        source, target = (self._nodes.get(_whole(found.get(end))) for end in ("source", "target"))
        if source is None or target is None:
            raise self._wrong(f"an edge joins no two nodes: {_short(entry)}")
        if source["type"] == "output" or target["type"] == "input":
            raise self._wrong(f"an edge comes from an output or goes to an input: {_short(entry)}")
        port, item = found.get("targetPort"), found.get("sourcePort")
        if type(port) is not str and (port is not None or target["type"] == "function"):
            raise self._wrong(f"an edge names no argument: {_short(entry)}")
        if item is not None and type(item) not in (int, str):
            raise self._wrong(f"an edge names no item: {_short(entry)}")
        return Edge(target["id"], port, source["id"], item)

    def _list(self, content: dict[str, Any], name: str) -> list[Any]:
        found = content[name]
        if not isinstance(found, list):
            raise self._wrong(f"its {name} are no list")
        return found

    def _wrong(self, what: str) -> WorkflowError:
        cure = "It must be a Python Workflow Definition, as export_workflow_filename writes it"
        return WorkflowError(f"Not a workflow file: {what}", self.path, cure)

    def _in_order(self) -> Iterator[int]:
        missing = {number: len(edges) for number, edges in self._inputs.items()}
        after: dict[int, list[int]] = {number: [] for number in self._nodes}
        for number, edges in self._inputs.items():
            for edge in edges:
                after[edge.source].append(number)
        ready = sorted((number for number, count in missing.items() if not count), reverse=True)
        done = 0
        while ready:
            number = ready.pop()
            done += 1
            if self._nodes[number]["type"] == "function":
                yield number
            for target in after[number]:
                missing[target] -= 1
                if not missing[target]:
                    ready.append(target)
        if done < len(self._nodes):
            raise self._wrong("its edges go round in a circle")

    # -- running -------------------------------------------------------------------------

    def functions(self) -> dict[str, Callable[..., Any]]:
        """What its nodes name, imported.

        Raises:
            WorkflowError: a name is not found.
        """
        names = {self._nodes[number]["value"] for number in self.order} - {GET_LIST, GET_DICT}
        names |= {self._name_called(n) for n in self.order if self._nodes[n]["value"] == CALL}
        return {name: self._imported(name) for name in sorted(names - {CALL, GET_ITEM})}

    def _name_called(self, number: int) -> str:
        ports = {edge.target_port: edge for edge in self._inputs[number]}
        node = self._nodes[ports[FUNCTION].source] if FUNCTION in ports else {}
        name = node.get("value")
        if node.get("type") != "input" or type(name) is not str:
            raise self._wrong(f"node {number} calls no function by name")
        return name

    def _imported(self, name: str) -> Callable[..., Any]:
        if name.startswith("__main__."):
            cure = "Move it from the script into a module, and write the file again"
            raise WorkflowError("A function of a script cannot be imported", name, cure)
        try:
            found = workflow.found(name)
        except (ImportError, AttributeError) as error:
            cure = "Run this where its module can be imported (PYTHONPATH, the working directory)"
            raise WorkflowError(
                f"Cannot import ({error})", f"{name} of {self.path}", cure
            ) from error
        if not callable(found):
            raise WorkflowError("Not a function", f"{name} of {self.path}")
        return found  # type: ignore[no-any-return]

    def submit(self, executor: Executor) -> tuple[list[Future[Any]], dict[str, Any]]:
        """Submit every call; their futures, and by name what the outputs are.

        Raises:
            WorkflowError: a function cannot be imported; nothing was submitted.
        """
        return _Run(self, executor, self.functions()).outcome()

    def value_of(self, number: int) -> Any:
        """What a node holds: an input's value, a function's name."""
        return self._nodes[number].get("value")

    def type_of(self, number: int) -> str:
        """One of `KINDS`."""
        return str(self._nodes[number]["type"])

    def inputs_of(self, number: int) -> list[Edge]:
        """The edges that lead to a node, in the order of the file."""
        return self._inputs[number]

    def name_called(self, number: int) -> str:
        """The function that a node calls in the end."""
        name = str(self.value_of(number))
        return self._name_called(number) if name == CALL else name


class _Run:
    """One run of a definition: the value, or its future, of each node."""

    def __init__(
        self,
        definition: Definition,
        executor: Executor,
        functions: Mapping[str, Callable[..., Any]],
    ) -> None:
        self._definition = definition
        self._executor = executor
        self._functions = functions
        self._values: dict[int, Any] = {}
        self._futures: list[Future[Any]] = []
        for number in definition.order:
            self._values[number] = self._function(number)

    def outcome(self) -> tuple[list[Future[Any]], dict[str, Any]]:
        outputs = {name: self._at(edge) for name, edge in self._definition.outputs.items()}
        return self._futures, outputs

    def _function(self, number: int) -> Any:
        edges = self._definition.inputs_of(number)
        ports = {str(edge.target_port): self._at(edge) for edge in edges}
        name = self._definition.value_of(number)
        if name == GET_LIST:
            return list(ports.values())
        if name == GET_DICT:
            return ports
        if name == GET_ITEM and ports.keys() == {"obj", "key"}:
            return self._part(ports["obj"], ports["key"])
        places = []
        if name == CALL:
            del ports[FUNCTION]
            numbers = sorted(int(port) for port in ports if port.isdecimal())
            places = [ports.pop(str(number)) for number in numbers]
        return self._submit(self._functions[self._definition.name_called(number)], *places, **ports)

    def _at(self, edge: Edge) -> Any:
        if self._definition.type_of(edge.source) == "input":
            value = self._definition.value_of(edge.source)
        else:
            value = self._values[edge.source]
        return value if edge.source_port is None else self._part(value, edge.source_port)

    def _part(self, value: Any, step: Any) -> Any:
        """An item; of a result, when that is there."""
        if not isinstance(value, Future):
            return item(value, step)
        if type(step) is str and step.isdecimal():  # of a list or of a dict: its value tells
            return self._submit(item, value, step)
        return get_item_from_future(value, step)

    def _submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._executor.submit(fn, *args, **kwargs)
        self._futures.append(future)
        return future


def _whole(number: Any) -> int:
    return number if type(number) is int else -1


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 200 else f"{text[:200]}..."


def load(path: str) -> Definition:
    """Read a workflow file; nothing is imported yet.

    Raises:
        WorkflowError: it is none. OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WorkflowError(f"Not a workflow file: no JSON ({error})", path) from error
    return Definition(path, content)
