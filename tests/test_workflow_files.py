"""`fsbroker run`: workflow files through any backend."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from fsbroker import ClusterExecutor, cli
from fsbroker.errors import WorkflowError
from fsbroker.report import steps
from tests.testbed.shell import Shell

FUNCTIONS = """
def mark(name):
    with open("marks", "a") as file:
        file.write(name + "\\n")

def get_prod_and_div(x, y):
    mark("prod_and_div")
    return {"prod": x * y, "div": x / y}

def get_sum(x, y):
    mark("sum")
    return x + y

def get_square(x):
    mark("square")
    return x**2

def pair(x):
    return x, -x

def fails(x):
    raise ValueError(f"no {x}")

def nothing():
    return [1, 2]

def objects(x):
    return {1, x}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a module of functions in it."""
    (tmp_path / "workflow.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("FSBROKER_IDLE_TIMEOUT", "1")
    monkeypatch.setenv("FSBROKER_MAX_WORKERS", "1")
    yield tmp_path
    sys.modules.pop("workflow", None)


@pytest.fixture
def shell(here, capsys):
    return Shell(here / "spool", capsys)


def node(number, kind, **more):
    return {"id": number, "type": kind, **more}


def edge(target, port, source, item=None):
    return {"target": target, "targetPort": port, "source": source, "sourcePort": item}


ARITHMETIC = {
    "version": "0.1.0",
    "nodes": [
        node(0, "function", value="workflow.get_prod_and_div"),
        node(1, "function", value="workflow.get_sum"),
        node(2, "function", value="workflow.get_square"),
        node(3, "input", value=1, name="x"),
        node(4, "input", value=2, name="y"),
        node(5, "output", name="result"),
        node(6, "output", name="sum"),
    ],
    "edges": [
        edge(0, "x", 3),
        edge(0, "y", 4),
        edge(1, "x", 0, "prod"),
        edge(1, "y", 0, "div"),
        edge(2, "x", 1),
        edge(5, None, 2),
        edge(6, None, 1),
    ],
}
"""What the workflow systems that share this format exchange as their first example."""


def write(content, path="flow.json"):
    with open(path, "w") as file:
        json.dump(content, file)
    return str(path)


def flow(*functions, edges=(), inputs=(), output=0):
    """A definition of function nodes 0, 1, ..., inputs 10, 11, ... and one output."""
    return {
        "version": "0.1.0",
        "nodes": [
            *(node(n, "function", value=name) for n, name in enumerate(functions)),
            *(node(n, "input", value=value, name="x") for n, value in enumerate(inputs, 10)),
            node(99, "output", name="result"),
        ],
        "edges": [*edges, edge(99, None, output)],
    }


def test_a_file_is_run_and_its_outputs_are_told(shell):
    write(ARITHMETIC)
    code, out = shell.run("run", "flow.json")
    assert code == cli.OK
    assert out == "result: 6.25\nsum: 2.5\n"
    code, told = shell.json("run", "flow.json")
    assert told["outputs"] == {"result": 6.25, "sum": 2.5}
    with open("marks") as file:
        assert file.read().split() == ["prod_and_div", "sum", "square"]  # and not again


def test_what_a_plan_wrote_has_the_keys_of_the_script(shell, here):
    sys.path.insert(0, str(here))
    import workflow

    def script(**options):
        with ClusterExecutor(here / "spool", **options) as executor:
            both = executor.submit(workflow.get_sum, 1, y=2)
            return executor.submit(workflow.get_square, both).result()

    assert script(export_workflow_filename="flow.json") is None
    code, out = shell.run("run", "flow.json")
    assert (code, out) == (cli.OK, "result: 9\n")
    assert script() == 9
    with open("marks") as file:
        assert file.read().split() == ["sum", "square"]


def test_lists_dicts_and_calls_by_place_become_arguments_again(shell, here):
    sys.path.insert(0, str(here))
    import workflow

    with ClusterExecutor(export_workflow_filename="flow.json") as executor:
        one = executor.submit(workflow.nothing)
        many = executor.submit(sum, [executor.submit(sum, one), 5])
        executor.submit(dict, a=[executor.submit(divmod, many, 3), {"b": one}], b=1)
    code, told = shell.json("run", "flow.json")
    assert (code, told["tasks"]) == (cli.OK, 5)
    assert told["outputs"] == {"result": {"a": [[2, 2], {"b": [1, 2]}], "b": 1}}


def test_ports_of_split_futures_as_executorlib_writes_them(shell):
    edges = [edge(0, "x", 10), edge(1, "x", 0, "1"), edge(1, "y", 0, "0")]
    write(flow("workflow.pair", "workflow.get_sum", edges=edges, inputs=[4], output=1))
    assert shell.run("run", "flow.json") == (cli.OK, "result: 0\n")


def test_an_output_may_be_an_input_or_an_item(shell):
    content = flow("workflow.pair", edges=[edge(0, "x", 10)], inputs=[{"k": 3}])
    content["edges"] = [edge(0, "x", 10, "k"), edge(99, None, 10, "k")]
    write(content)
    assert shell.run("run", "flow.json") == (cli.OK, "result: 3\n")


def test_a_failure_is_told_with_its_exit_code(shell):
    edges = [edge(0, "x", 10), edge(1, "x", 0)]
    write(flow("workflow.fails", "workflow.get_square", edges=edges, inputs=["luck"], output=1))
    code, out = shell.run("run", "flow.json")
    assert (code, out) == (cli.SOME_FAILED, "")
    assert "ValueError: no luck" in shell.err
    code, told = shell.json("run", "flow.json")
    assert len(told["errors"]) == 2
    assert told["outputs"] == {}


def test_what_has_no_form_in_json_is_told_as_python_has_it(shell):
    write(flow("workflow.objects", edges=[edge(0, "x", 10)], inputs=[2]))
    code, told = shell.json("run", "flow.json")
    assert (code, told["outputs"]) == (cli.OK, {"result": "{1, 2}"})


def _without(name):
    return {key: value for key, value in ARITHMETIC.items() if key != name}


def _with(**more):
    return {**ARITHMETIC, **more}


BROKEN = {
    "no nodes": (_without("nodes"), "it has no nodes and edges"),
    "a list": ([], "it has no nodes and edges"),
    "a newer version": (_with(version="0.2.0"), "it has version 0.2.0"),
    "nodes are no list": (_with(nodes={}), "its nodes are no list"),
    "a node of another type": (_with(nodes=[node(0, "loop")]), "a node is none of function"),
    "a node without id": (_with(nodes=[{"type": "input", "name": "x"}]), "a node is none of"),
    "a function without name": (_with(nodes=[node(0, "function")]), "node 0 has no value"),
    "a function without module": (
        _with(nodes=[node(0, "function", value="sum")]),
        "names no module and function",
    ),
    "an id twice": (_with(nodes=ARITHMETIC["nodes"] * 2), "two nodes have the same id"),
    "an edge to nowhere": (_with(edges=[edge(0, "x", 77)]), "an edge joins no two nodes"),
    "an edge from a list": (
        _with(edges=[{"source": [0], "target": 1, "targetPort": "x"}]),
        "an edge joins no two nodes",
    ),
    "an item of no name": (_with(edges=[edge(0, "x", 3, [1])]), "an edge names no item"),
    "no edge": (_with(edges=[1]), "an edge joins no two nodes"),
    "an edge to an input": (_with(edges=[edge(3, "x", 0)]), "goes to an input"),
    "an edge from an output": (_with(edges=[edge(1, "x", 5)]), "comes from an output"),
    "an edge without argument": (_with(edges=[edge(0, None, 3)]), "an edge names no argument"),
    "an argument twice": (
        _with(edges=[edge(0, "x", 3), edge(0, "x", 4)]),
        "an argument is given twice",
    ),
    "a circle": (_with(edges=[edge(1, "x", 2), edge(2, "x", 1)]), "round in a circle"),
    "a call of nothing": (
        _with(nodes=[node(0, "function", value="fsbroker.workflow.call")], edges=[]),
        "node 0 calls no function by name",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_workflow_file_is_refused(shell, name):
    content, told = BROKEN[name]
    write(content)
    assert shell.run("run", "flow.json") == (cli.ERROR, "")
    assert "Not a workflow file" in shell.err
    assert told in shell.err
    assert not os.path.exists("spool")


def test_no_json_is_refused(here):
    (here / "flow.json").write_text('{"nodes": [')
    with pytest.raises(WorkflowError, match="no JSON"):
        steps.load("flow.json")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("workflow.missing", "Cannot import"),
        ("no_such_module.f", "Cannot import.*PYTHONPATH"),
        ("__main__.calc", "A function of a script cannot be imported.*into a module"),
        ("workflow.__name__", "Not a function"),
    ],
)
def test_functions_that_are_not_there_are_told_before_anything_runs(shell, name, told):
    write(flow("workflow.nothing", name))
    assert shell.run("run", "flow.json") == (cli.ERROR, "")
    assert re.search(told, shell.err, re.DOTALL)
    assert not os.path.exists("spool")


def test_the_spool_may_come_from_the_settings(here, capsys, monkeypatch):
    write(flow("workflow.nothing"))
    monkeypatch.delenv("FSBROKER_SPOOL", raising=False)
    assert cli.main(["run", "flow.json"]) == cli.ERROR
    assert "No spool is named" in capsys.readouterr().err
    (here / "fsbroker.yaml").write_text("spool: its own\n")
    assert cli.main(["run", "flow.json"]) == cli.OK
    assert (here / "its own" / "spool.yaml").exists()
