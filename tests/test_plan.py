"""Executors that run nothing: the calls are drawn, or written as a workflow file."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import resource
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from python_workflow_definition.purepython import load_workflow_json

from fsbroker import (
    ClusterExecutor,
    FluxClusterExecutor,
    FluxJobExecutor,
    SingleNodeExecutor,
    SlurmClusterExecutor,
    SlurmJobExecutor,
    get_item_from_future,
    mapping,
    split_future,
)
from fsbroker.api import TestClusterExecutor
from fsbroker.errors import ConfigError, MissingProgram, ResourceError, WorkflowError
from fsbroker.report.graph import Shape, graph_of

FUNCTIONS = """
def calc_add(a, b):
    return a + b

def calc_list(x):
    return sum(x)

def pair(a):
    return a, a + 1

def named(a):
    return {"k": a, "0": -a}

def nothing():
    return 3

def total(d):
    return sum(d.values())

def kind(x):
    return type(x).__name__

def many(first, /, *rest, scale=1, **more):
    return scale * (first + sum(rest) + sum(more.values()))

def flat(x):
    return [float(one) for row in x for one in row]

def last_of(x):
    return x[-1]

def list_of(*values):
    return list(values)
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A module that the package's reader imports, in this and in other processes."""
    (tmp_path / "flow_functions.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    import flow_functions

    yield flow_functions
    del sys.modules["flow_functions"]


def exported(calls, path="flow.json"):
    """What the file holds after these calls were submitted."""
    with ClusterExecutor(export_workflow_filename=str(path)) as executor:
        calls(executor)
    with open(path) as file:
        return json.load(file)


def run_by_package(path="flow.json"):
    """The result that python-workflow-definition comes to, in a process of its own."""
    code = (
        "import json, sys; from python_workflow_definition.purepython import load_workflow_json;"
        "print(json.dumps(load_workflow_json(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def chain(executor, add):
    future = 0
    for i in range(1, 4):
        future = executor.submit(add, i, future)
    return future


# -- nothing runs ------------------------------------------------------------------------------


def test_nothing_runs_and_no_spool_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    with ClusterExecutor("spool", plot_dependency_graph_filename="graph.svg") as executor:
        future = executor.submit(ran.touch)
        assert future.done()
        assert future.result() is None
        assert list(executor.map(ran.touch, [])) == []
        assert list(concurrent.futures.as_completed([future])) == [future]
        assert executor.futures() == []
        assert not os.path.exists("graph.svg")
    assert os.listdir(tmp_path) == ["graph.svg"]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(ran.touch)


def test_the_settings_turn_a_script_into_a_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("FSBROKER_PLOT_DEPENDENCY_GRAPH_FILENAME", str(tmp_path / "graph.mmd"))
    with ClusterExecutor(tmp_path / "spool") as executor:
        executor.submit(len, "abc")
    assert 'n0["len"]' in (tmp_path / "graph.mmd").read_text()
    assert not (tmp_path / "spool").exists()


@pytest.mark.parametrize(
    "face",
    [
        SingleNodeExecutor,
        TestClusterExecutor,
        SlurmJobExecutor,
        SlurmClusterExecutor,
        FluxJobExecutor,
        FluxClusterExecutor,
    ],
)
def test_every_executor_plans_the_same_without_its_scheduler(functions, face):
    wanted = exported(lambda executor: chain(executor, functions.calc_add))
    before = set(os.listdir())
    with face(max_workers=2, export_workflow_filename="flow.json") as executor:
        resources = {"cores": 2, "cache_directory": "elsewhere"}
        future = chain(executor, functions.calc_add)
        executor.submit(functions.nothing, resource_dict=resources)
        assert future.result() is None
        assert len(executor) == 0
        assert executor.info["cache_directory"] is None
        executor.max_workers = 3
    with open("flow.json") as file:
        nodes = json.load(file)["nodes"]
    assert len(nodes) == len(wanted["nodes"]) + 2
    assert set(os.listdir()) == before


def test_a_project_file_that_others_may_write_cannot_have_files_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = tmp_path / "fsbroker.yaml"
    project.write_text("export_workflow_filename: precious\n")
    project.chmod(0o666)
    with pytest.raises(ConfigError, match="export_workflow_filename is not taken"):
        ClusterExecutor("spool")


def test_wrong_resources_and_arguments_are_refused_as_ever(functions):
    with ClusterExecutor(plot_dependency_graph_filename="graph.svg") as executor:
        with pytest.raises(ResourceError, match="Did you mean 'cores'"):
            executor.submit(functions.calc_add, 1, 2, resource_dict={"core": 2})
        with pytest.raises(TypeError, match="too many positional"):
            executor.submit(functions.calc_add, 1, 2, 3)


def test_a_script_without_shutdown_gets_its_drawing_and_its_forked_child_does_not(tmp_path):
    script = textwrap.dedent(
        """
        import os, sys
        from fsbroker import ClusterExecutor
        executor = ClusterExecutor(plot_dependency_graph_filename="graph.dot")
        executor.submit(len, "abc")
        if os.fork() == 0:
            executor.submit
            sys.exit()
        os.wait()
        assert not os.path.exists("graph.dot")
        """
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert 'label="len"' in (tmp_path / "graph.dot").read_text()


# -- the graph ---------------------------------------------------------------------------------


def test_functions_are_boxes_inputs_circles_and_edges_have_arguments_names(functions):
    executor = ClusterExecutor(plot_dependency_graph_filename="graph.svg")
    chain(executor, functions.calc_add)
    nodes, edges = graph_of(executor._loop.calls)
    assert [(one.shape, one.label) for one in nodes] == [
        *[(Shape.BOX, "calc_add")] * 3,
        *[(Shape.CIRCLE, text) for text in "1023"],
    ]
    assert sorted(edges) == [
        (0, 1, "b"),
        (1, 2, "b"),
        (3, 0, "a"),
        (4, 0, "b"),
        (5, 1, "a"),
        (6, 2, "a"),
    ]
    executor.shutdown()


@dataclasses.dataclass
class Holder:
    inside: object


def test_parts_lists_and_hidden_futures_are_seen(functions):
    executor = ClusterExecutor(plot_dependency_graph_filename="graph.svg")
    two = executor.submit(functions.pair, 1)
    one, other = split_future(two, 2)
    executor.submit(functions.calc_add, one, b=other)
    assert other.result() is None
    executor.submit(functions.total, {"x": two, "y": [5, two]})
    executor.submit(functions.kind, Holder((two, {1: two})))
    executor.submit(max, two, 7)
    nodes, edges = graph_of(executor._loop.calls)
    assert {edge for edge in edges if edge.source == 0} == {
        (0, 1, "a[0]"),
        (0, 1, "b[1]"),
        (0, 3, "x"),
        (0, 4, "0"),
        *[(0, number, label) for number, label in _collections(nodes)],
    }
    executor.shutdown()


def _collections(nodes):
    for number, node in enumerate(nodes):
        if node.shape is Shape.LIST:
            yield number, "x" if node.label.startswith("{") else "1"


def test_batches_and_map_are_noted(functions):
    executor = ClusterExecutor(plot_dependency_graph_filename="graph.svg")
    futures = [executor.submit(functions.pair, n) for n in range(3)]
    for batch in executor.batched(futures, 2):
        executor.submit(functions.calc_list, batch)
    assert list(executor.map(functions.kind, [7, 8])) == [None, None]
    nodes, edges = graph_of(executor._loop.calls)
    assert [node.label for node in nodes if node.shape is Shape.BOX] == [
        *["pair"] * 3,
        *["calc_list"] * 2,
        *["kind"] * 2,
    ]
    lists = [number for number, node in enumerate(nodes) if node.shape is Shape.LIST]
    assert [edge.source for edge in edges if edge.target in lists] == [0, 1, 2]
    executor.shutdown()


def test_map_that_nobody_takes_results_of_is_noted_at_the_end(functions, monkeypatch):
    monkeypatch.setattr(mapping, "AHEAD", 2)

    def calls(executor):
        executor.map(functions.kind, range(5))

    assert len([one for one in exported(calls)["nodes"] if one["type"] == "function"]) == 5


def test_arguments_are_taken_as_they_are_at_submission(functions):
    def calls(executor):
        numbers = [1, 2]
        executor.submit(functions.calc_list, numbers)
        numbers.append(3)

    values = [node.get("value") for node in exported(calls)["nodes"]]
    assert values[1] == [1, 2]


def test_a_future_of_another_executor_is_its_result(functions):
    with ThreadPoolExecutor(1) as threads:
        exported(lambda exe: exe.submit(functions.calc_add, threads.submit(int, "4"), 1))
    assert load_workflow_json("flow.json") == 5


# -- drawing -----------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def drawn(functions, path):
    with ClusterExecutor(plot_dependency_graph_filename=str(path)) as executor:
        chain(executor, functions.calc_add)
        executor.submit(functions.kind, '<&"\x00\ud800')


def test_svg_needs_nothing_and_holds_any_text(functions, monkeypatch):
    monkeypatch.setenv("PATH", "")
    drawn(functions, "graph.svg")
    tree = ET.parse("graph.svg")
    kinds = [group.get("class") for group in tree.iter(f"{SVG}g")]
    assert kinds.count("function") == 4
    assert kinds.count("input") == 5
    assert kinds.count("edge") == 7
    labels = {text.text for text in tree.iter(f"{SVG}text")}
    assert {"calc_add", "a", "b", "0", "3"} <= labels
    assert any(label.startswith("'<&\"") for label in labels)


def test_dot_and_mermaid_texts(functions):
    drawn(functions, "graph.gv")
    text = Path("graph.gv").read_text()
    assert text.count("shape=box") == 4
    assert 'n0 -> n1 [label="b"' in text
    drawn(functions, "graph.mermaid")
    text = Path("graph.mermaid").read_text()
    assert text.startswith("flowchart TD\n")
    assert 'n0 -->|"b"| n1' in text
    assert "<" not in text.replace("flowchart", "")


def test_what_cannot_be_drawn_is_refused_before_anything(functions, monkeypatch):
    with pytest.raises(WorkflowError, match=r"Valid: \.svg, \.dot"):
        ClusterExecutor(plot_dependency_graph_filename="graph.gif")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingProgram, match=r"Graphviz.* or draw an \.svg"):
        ClusterExecutor(plot_dependency_graph_filename="graph.png")


@pytest.mark.graphviz
@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_png_and_pdf_by_graphviz(functions, ending, magic):
    drawn(functions, f"graph.{ending}")
    with open(f"graph.{ending}", "rb") as file:
        assert file.read(4) == magic


@pytest.mark.graphviz
def test_graphviz_reads_every_label(functions):
    drawn(functions, "graph.dot")
    done = subprocess.run(
        ["dot", "-Tplain", "graph.dot"], capture_output=True, check=True, text=True
    )
    assert done.stdout.count("\nnode ") == 9
    assert not done.stderr


def test_without_a_notebook_that_is_said(functions):
    executor = ClusterExecutor(plot_dependency_graph=True)
    executor.submit(functions.nothing)
    with pytest.warns(UserWarning, match="no notebook.*plot_dependency_graph_filename"):
        executor.shutdown()


def test_in_a_notebook_an_svg_is_displayed(tmp_path):
    script = textwrap.dedent(
        """
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils.capture import capture_output
        shell = InteractiveShell.instance()
        with capture_output() as captured:
            shell.run_cell('''
        from fsbroker import ClusterExecutor
        def add(a, b):
            return a + b
        with ClusterExecutor(plot_dependency_graph=True) as executor:
            executor.submit(add, 1, b=2)
        ''')
        (shown,) = captured.outputs
        print(shown.data["image/svg+xml"])
        """
    )
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    labels = {text.text for text in ET.fromstring(done.stdout).iter(f"{SVG}text")}
    assert labels == {"add", "1", "2", "a", "b"}


# -- workflow files ----------------------------------------------------------------------------


def test_the_chain_of_the_talk_as_executorlib_writes_it(functions):
    """The literal is what executorlib 1.11.0 wrote for these lines."""
    add = "flow_functions.calc_add"

    def edge(target, port, source):
        return {"target": target, "targetPort": port, "source": source, "sourcePort": None}

    assert exported(lambda executor: chain(executor, functions.calc_add)) == {
        "version": "0.1.0",
        "nodes": [
            *({"id": n, "type": "function", "value": add} for n in range(3)),
            {"id": 3, "type": "input", "value": 1, "name": "a"},
            {"id": 4, "type": "input", "value": 0, "name": "b"},
            {"id": 5, "type": "input", "value": 2, "name": "a"},
            {"id": 6, "type": "input", "value": 3, "name": "a"},
            {"id": 7, "type": "output", "name": "result"},
        ],
        "edges": [
            edge(0, "a", 3),
            edge(0, "b", 4),
            edge(1, "a", 5),
            edge(1, "b", 0),
            edge(2, "a", 6),
            edge(2, "b", 1),
            edge(7, None, 2),
        ],
    }
    assert run_by_package() == 6


def _split(executor, f):
    two = executor.submit(f.pair, 4)
    executor.submit(f.calc_add, *split_future(two, 2))


def _item(executor, f):
    both = executor.submit(f.named, 4)
    executor.submit(
        f.calc_list, [get_item_from_future(both, "k"), get_item_from_future(both, "0"), 1]
    )


def _reserved(executor, f):
    made = executor.submit(dict, [["__result__", 5]])
    executor.submit(f.calc_add, get_item_from_future(made, "__result__"), 1)


def _deep(executor, f):
    nest = executor.submit(f.list_of, [4, {"k": 5}])
    (inner,) = split_future(nest, 1)
    first, second = split_future(inner, 2)
    executor.submit(f.calc_add, get_item_from_future(second, "k"), first)


def _ends(executor, f):
    executor.submit(f.calc_add, 1, 2)
    executor.submit(f.calc_add, executor.submit(f.calc_add, 1, 2), 2)
    executor.submit(f.calc_list, [executor.submit(f.nothing), 4])


RUNS = {
    "a list of futures and a number": (
        lambda exe, f: exe.submit(
            f.calc_list, [exe.submit(f.calc_add, 1, 2), exe.submit(f.calc_add, 3, 4), 5]
        ),
        15,
    ),
    "a list of eleven": (
        lambda exe, f: exe.submit(f.last_of, [exe.submit(f.nothing), *range(9), "ten"]),
        "ten",
    ),
    "a dict": (lambda exe, f: exe.submit(f.total, {"a b": exe.submit(f.nothing), "c": 7}), 10),
    "one and the text 1": (
        lambda exe, f: exe.submit(f.list_of, exe.submit(f.kind, 1), exe.submit(f.kind, "1")),
        ["int", "str"],
    ),
    "one, 1.0 and True": (
        lambda exe, f: exe.submit(
            f.list_of, *(exe.submit(f.kind, value) for value in (1, 1.0, True, None))
        ),
        ["int", "float", "bool", "NoneType"],
    ),
    "split": (_split, 9),
    "batches": (
        lambda exe, f: exe.submit(
            f.calc_list, exe.batched([exe.submit(f.nothing), exe.submit(f.pair, 1)], 1)[0]
        ),
        3,
    ),
    "items": (_item, 1),
    "items of items": (_deep, 9),
    "an item whose name the format keeps for itself": (_reserved, 6),
    "no arguments": (lambda exe, f: exe.submit(f.nothing), 3),
    "no arguments, and another": (
        lambda exe, f: exe.submit(f.calc_add, exe.submit(f.nothing), 1),
        4,
    ),
    "several ends": (_ends, 7),
    "a built-in": (lambda exe, f: exe.submit(sum, [exe.submit(f.nothing), 2]), 5),
    "a class": (lambda exe, f: exe.submit(dict, a=exe.submit(f.nothing)), {"a": 3}),
    "places and names": (
        lambda exe, f: exe.submit(f.many, 1, 2, exe.submit(f.nothing), scale=2, more=4),
        20,
    ),
    "keywords in another order": (lambda exe, f: exe.submit(f.calc_add, b="b", a="a"), "ab"),
    "arrays": (lambda exe, f: exe.submit(f.flat, np.eye(2)), [1.0, 0.0, 0.0, 1.0]),
    "a scalar of NumPy": (lambda exe, f: exe.submit(f.calc_add, np.float32(0.5), np.int8(2)), 2.5),
    "a tuple": (lambda exe, f: exe.submit(f.calc_list, (1, 2)), 3),
    "a function twice": (
        lambda exe, f: [exe.submit(f.calc_add, 1, 2), exe.submit(f.calc_add, 1, 2)][1],
        3,
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_package_loads_and_runs_what_was_written(functions, name):
    calls, expected = RUNS[name]
    exported(lambda executor: calls(executor, functions))
    assert load_workflow_json("flow.json") == expected


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({1, 2}, "A set has no form in JSON: argument 'x' of flow_functions.kind"),
        ([{1: 2}], "A dict with the key 1 "),
        (1j, "A complex"),
        (b"bytes", "A bytes"),
        (np.array([1j]), "A ndarray"),
        (object(), "A object"),
        (np.longdouble(1), "A longdouble"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(functions, value, told):
    with open("flow.json", "w") as file:
        file.write("precious")
    executor = ClusterExecutor(export_workflow_filename="flow.json")
    with pytest.raises(WorkflowError, match=told):
        executor.submit(functions.kind, value)
    with pytest.raises(WorkflowError, match="no call was submitted"):
        executor.shutdown()
    with open("flow.json") as file:
        assert file.read() == "precious"


def test_futures_inside_objects_are_refused(functions):
    executor = ClusterExecutor(export_workflow_filename="flow.json")
    first = executor.submit(functions.nothing)
    executor.submit(functions.kind, Holder(first))
    with pytest.raises(WorkflowError, match=r"futures inside an object: argument 'x'"):
        executor.shutdown()
    assert not os.path.exists("flow.json")


def test_functions_that_nobody_finds_by_name_are_refused(functions):
    def local():
        pass

    with ClusterExecutor(export_workflow_filename="flow.json") as executor:
        for fn in (local, lambda: 1, partial(functions.calc_add, 1)):
            with pytest.raises(WorkflowError, match="not found by its name"):
                executor.submit(fn)
        executor.submit(functions.nothing)


def test_both_files_at_once(functions):
    with ClusterExecutor(
        export_workflow_filename="flow.json", plot_dependency_graph_filename="graph.svg"
    ) as executor:
        executor.submit(functions.nothing)
    assert os.path.exists("flow.json")
    assert os.path.exists("graph.svg")


def test_a_file_that_cannot_be_written_whole_leaves_what_was_there(functions):
    with open("flow.json", "w") as file:
        file.write("precious")
    executor = ClusterExecutor(export_workflow_filename="flow.json")
    executor.submit(functions.calc_list, list(range(100_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            executor.shutdown()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with open("flow.json") as file:
        assert file.read() == "precious"
    assert sorted(set(os.listdir()) - {"__pycache__"}) == ["flow.json", "flow_functions.py"]
