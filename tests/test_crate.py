"""Executed workflows with their data: exported as RO-Crates, imported into other spools."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from python_workflow_definition.purepython import load_workflow_json

from fsbroker import ClusterExecutor, attach, cli
from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew, KeyConflict
from fsbroker.report import arrays, crate
from fsbroker.report.arrival import Crate, deliver
from fsbroker.spool import streams
from fsbroker.spool.census import Census
from fsbroker.spool.spool import create
from tests.testbed import validator
from tests.testbed.byhand import ByHand, Job, key_of
from tests.testbed.shell import Shell

FUNCTIONS = """
import dataclasses, os
import numpy as np

def mark():
    with open(os.environ["MARKS"], "a") as file:
        file.write("x")

@dataclasses.dataclass
class Point:
    x: float

def grid(n):
    mark()
    return np.linspace(0, 1, n)

def norm(values, *, scale=1.0):
    mark()
    return float((values * scale).sum())

def both(items, about):
    mark()
    return {"l": items[1], "about": about}

def traced(found, matrix):
    mark()
    return [found["l"], matrix.trace(), np.float32(1.5), np.asfortranarray(matrix), np.zeros(0)]

def point(x):
    mark()
    return Point(x)

def of_point(p):
    mark()
    return p.x

def broken(x):
    raise ValueError("no")
"""

SCRIPT = """
import sys
import numpy as np
from fsbroker import ClusterExecutor, get_item_from_future
import crate_functions as f

with ClusterExecutor(sys.argv[1], max_workers=1, tag="trip", idle_timeout=1) as executor:
    values = executor.submit(f.grid, 200_000)  # large enough for a file of its own
    number = executor.submit(f.norm, values, scale=2.0)
    both = executor.submit(f.both, [values, number], (1, "x"))
    found = executor.submit(f.traced, both, np.eye(2))
    point = executor.submit(f.point, get_item_from_future(both, "l"))
    last = executor.submit(f.of_point, point)
    print(number.result(), found.result(), point.result(), last.result())
"""
TASKS = 6


class Trip:
    """A script of tasks that leave marks, the spool that it ran on, and its export."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool, self.crate = root / "spool", root / "crate"
        (root / "crate_functions.py").write_text(FUNCTIONS)
        (root / "script.py").write_text(SCRIPT)
        self.printed = self.run(self.spool)
        self.ran = self.marks()

    def run(self, spool: Path) -> str:
        environment = {**os.environ, "MARKS": str(self.root / "marks")}
        done = subprocess.run(
            [sys.executable, "script.py", str(spool)],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        return done.stdout

    def marks(self) -> int:
        return len((self.root / "marks").read_text())

    def content(self, name: str = crate.TASKS):
        return json.loads((self.crate / name).read_text())


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    made = Trip(tmp_path_factory.mktemp("a trip"))
    words = ["export", "--spool", str(made.spool), "trip", "-o", str(made.crate)]
    assert cli.main([*words, "--license", "https://spdx.org/licenses/CC0-1.0"]) == cli.OK
    return made


@pytest.fixture
def copied(trip, tmp_path):
    """A crate to be spoilt."""
    shutil.copytree(trip.crate, tmp_path / "crate")
    return tmp_path / "crate"


def test_the_same_script_on_another_spool_runs_no_task(trip, tmp_path, capsys):
    assert trip.ran == TASKS
    shell = Shell(tmp_path / "other", capsys)
    code, told = shell.json("import", str(trip.crate))
    assert (code, told) == (cli.OK, {"imported": TASKS, "present": 0, "failed": 0, "pickled": 1})
    assert trip.run(tmp_path / "other") == trip.printed
    assert trip.marks() == TASKS
    # Once more: nothing is brought twice.
    assert shell.run("import", str(trip.crate)) == (
        cli.OK,
        f"0 values imported\n{TASKS} were here already\n",
    )
    (stream,) = _streams(tmp_path / "other")
    files, area, _ = create(tmp_path / "other")
    assert streams.is_sealed(files, area, stream)  # no agent will do it
    origins = [file.origin(0) for file in Census(files, area).result_files()]
    assert {one["imported"] for one in origins} == {str(trip.crate)}


def _streams(spool):
    files, area, _ = create(spool)
    return files.names(area.results)


def test_values_are_those_that_were_exported(trip, tmp_path):
    deliver(create(tmp_path / "other"), Crate(trip.crate))
    for task in trip.content()["tasks"]:
        if task["value"]["encoding"] == "pickle":
            continue  # its class is in a module that this process has not
        ours, theirs = (
            attach(spool, task["key"], backend="none").result(20)
            for spool in (tmp_path / "other", trip.spool)
        )
        assert type(ours) is type(theirs)
        if isinstance(ours, list):
            assert [type(one) for one in ours] == [type(one) for one in theirs]
            np.testing.assert_array_equal(ours[3], theirs[3])
            assert ours[4].dtype == theirs[4].dtype
            assert ours[:3] == theirs[:3]
        else:
            np.testing.assert_equal(ours, theirs)


PROFILE = "process-run-crate-0.5"
"""With it all of RO-Crate 1.1 is checked."""


@pytest.mark.rocrate
def test_a_validator_accepts_the_crate(copied):
    # A copy, for the validator reads nothing from below a name with a blank.
    assert validator.validate(copied, PROFILE) == {"passed": True, "issues": []}


@pytest.mark.rocrate
def test_the_validator_would_notice(copied):
    path = copied / crate.METADATA
    path.write_text(path.read_text().replace('"instrument"', '"tool"'))
    found = validator.validate(copied, PROFILE)
    assert {issue["check"] for issue in found["issues"]} == {"process-run-crate-0.5_1.1"}


def test_the_workflow_file_of_a_crate_runs_there(trip, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(trip.crate)
    monkeypatch.syspath_prepend(trip.root)
    monkeypatch.setenv("MARKS", str(tmp_path / "marks"))
    assert load_workflow_json(crate.WORKFLOW) == 200_000.0
    del sys.modules["crate_functions"]
    shell = Shell(tmp_path / "other", capsys)
    assert shell.run("run", crate.WORKFLOW) == (cli.OK, "result: 200000.0\n")


def test_each_node_has_its_data(trip):
    nodes = {node["id"]: node for node in trip.content(crate.WORKFLOW)["nodes"]}
    tasks = trip.content()["tasks"]
    assert [nodes[task["node"]]["value"] for task in tasks] == [
        f"crate_functions.{name}"
        for name in ("grid", "norm", "both", "traced", "point", "of_point")
    ]
    grid, norm, *_ = tasks
    assert norm["dependencies"] == [{"key": grid["key"], "selector": []}]
    assert norm["arguments"]["data"]["kwargs"] == {"scale": 2.0}
    assert norm["value"]["data"] == 200_000.0
    assert "return float((values * scale).sum())" in norm["function"]["source"]
    assert norm["client"]["python"] == norm["agent"]["version"]
    assert norm["client"]["host"] == norm["agent"]["host"] == os.uname().nodename
    assert norm["started"] > norm["submitted"] - 1
    about = grid["value"]["arrays"][0]
    with h5py.File(trip.crate / about["file"]) as file:
        np.testing.assert_array_equal(file[about["name"]], np.linspace(0, 1, 200_000))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in trip.crate.glob("*.*"))


def test_the_crate_says_that_pickles_run_code(trip):
    parts = {one["@id"]: one for one in trip.content(crate.METADATA)["@graph"]}
    (pickled,) = (trip.crate / "pickles").iterdir()
    entity = parts[f"pickles/{pickled.name}"]
    assert "runs code" in entity["description"]
    assert entity["encodingFormat"][0] == "application/x-python-pickle"


# -- what is refused ---------------------------------------------------------------------------


def test_every_changed_file_is_noticed(copied, tmp_path):
    for path in sorted(copied.rglob("*")):
        if path.is_dir() or path.name == crate.METADATA:
            continue
        original = path.read_bytes()
        middle = len(original) // 2
        path.write_bytes(original[:middle] + bytes([original[middle] ^ 1]) + original[middle + 1 :])
        with pytest.raises(FileDamaged, match="Not the content that was exported"):
            Crate(copied)
        path.unlink()
        with pytest.raises(FileDamaged, match="missing"):
            Crate(copied)
        path.write_bytes(original)
    Crate(copied)


def respelt(directory, change):
    """Change the tasks of a crate, and the checksum with them."""
    content = json.loads((directory / crate.TASKS).read_text())
    change(content)
    (directory / crate.TASKS).write_text(json.dumps(content))
    metadata = json.loads((directory / crate.METADATA).read_text())
    for entity in metadata["@graph"]:
        if entity["@id"] == crate.TASKS:
            entity["sha256"] = crate.digest_of(directory / crate.TASKS)
    (directory / crate.METADATA).write_text(json.dumps(metadata))


def _set(path, value):
    def change(content):
        at = content
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = value

    return change


FIRST = ("tasks", 0)
FORGED = {
    "a key that is none": ((*FIRST, "key"), "12"),
    "a descriptor that is none": ((*FIRST, "descriptor"), "x" * 40),
    "a round below zero": ((*FIRST, "round"), -1),
    "ranks that are no number": ((*FIRST, "ranks"), "1"),
    "more ranks than a row has room for": ((*FIRST, "ranks"), 1 << 16),
    "no start": ((*FIRST, "started"), None),
    "memory": ((*FIRST, "peak_memory"), 1.5),
    "an agent that is none": ((*FIRST, "agent"), "desk"),
    "a status of its own": ((*FIRST, "status"), "great"),
    "a value in no form": ((*FIRST, "value"), {"encoding": "marshal", "data": 1, "arrays": []}),
    "a wrong tag": ((*FIRST, "value"), {"encoding": "plain", "data": {"$": "?"}, "arrays": []}),
    "no value": ((*FIRST, "value"), None),
    "a file elsewhere": ((*FIRST, "value", "arrays", 0, "file"), "../../secret.h5"),
    "an array that is not there": ((*FIRST, "value", "arrays", 0, "name"), "x"),
    "objects": ((*FIRST, "value", "arrays", 0, "dtype"), "|O8"),
    "another shape": ((*FIRST, "value", "arrays", 0, "shape"), [3]),
    "a shape below zero": ((*FIRST, "value", "arrays", 0, "shape"), [-1]),
    "somebody else's pickle": (
        (*FIRST, "value"),
        {"encoding": "pickle", "file": "tasks.json", "arrays": []},
    ),
    "a task that is none": (FIRST, 7),
}


@pytest.mark.parametrize("name", FORGED)
def test_tasks_that_were_never_exported_so_are_refused(copied, tmp_path, name):
    respelt(copied, _set(*FORGED[name]))
    with pytest.raises(FileDamaged):
        Crate(copied)


def test_a_newer_format_is_refused_with_both_versions(copied):
    respelt(copied, _set(("format",), 2))
    with pytest.raises(FormatTooNew, match="Format 2, this fsbroker reads up to 1"):
        Crate(copied)


def test_other_directories_are_refused(tmp_path, capsys):
    shell = Shell(tmp_path / "spool", capsys)
    assert shell.run("import", str(tmp_path)) == (cli.ERROR, "")
    assert "Not an exported crate" in shell.err
    (tmp_path / crate.METADATA).write_text('{"@graph": [{"@id": "./", "@type": "Dataset"}]}')
    assert shell.run("import", str(tmp_path)) == (cli.ERROR, "")
    assert "not one of fsbroker" in shell.err
    (tmp_path / crate.METADATA).write_text('{"@graph":')
    assert shell.run("import", str(tmp_path)) == (cli.ERROR, "")
    assert "No JSON" in shell.err
    assert not (tmp_path / "spool").exists()


def test_links_and_files_outside_are_refused(copied, tmp_path):
    tasks = copied / crate.TASKS
    tasks.rename(tmp_path / "elsewhere")
    tasks.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileRefused, match="a link"):
        Crate(copied)
    tasks.unlink()
    (tmp_path / "elsewhere").rename(tasks)
    metadata = json.loads((copied / crate.METADATA).read_text())
    metadata["@graph"].append({"@type": "File", "sha256": "0"})
    for name in ("../secret", str(tmp_path / "secret")):
        metadata["@graph"][-1]["@id"] = name
        (copied / crate.METADATA).write_text(json.dumps(metadata))
        with pytest.raises(FileRefused, match="outside of it"):
            Crate(copied)


@pytest.mark.users
def test_files_of_another_user_are_refused(copied, accounts):
    os.chown(copied / crate.TASKS, accounts.a.uid, -1)
    with pytest.raises(FileRefused, match=r"another user.*Make a copy of the crate"):
        Crate(copied)


def test_a_key_is_bound_to_its_descriptor(tmp_path, copied):
    def named(name):
        key = {"cache_key": "the value", "cores": 1}
        with ClusterExecutor(tmp_path / name, max_workers=1, idle_timeout=1) as executor:
            return executor.submit(int, name[-1], resource_dict=key).key.hex()

    key = named("spool1")
    words = ["export", "--spool", str(tmp_path / "spool1"), key, "-o", str(tmp_path / "one")]
    assert cli.main(words) == cli.OK
    assert named("spool2") == key
    spool = create(tmp_path / "spool2")
    respelt(tmp_path / "one", _append(json.loads((copied / crate.TASKS).read_text())["tasks"][1]))
    with pytest.raises(KeyConflict, match="stands for another call here"):
        deliver(spool, Crate(tmp_path / "one"))
    assert len(_streams(tmp_path / "spool2")) == 1  # its agent's: nothing was brought


def _append(task):
    return lambda content: content["tasks"].append(task)


# -- what is exported --------------------------------------------------------------------------


@pytest.fixture
def hand(tmp_path):
    return ByHand(tmp_path / "by hand")


def test_a_task_goes_with_what_it_depends_on_and_failures_are_told(hand, capsys, tmp_path):
    hand.submit("other", tag="t")
    hand.submit("first", tag="first")
    hand.submit(Job("second", ("first",)), Job("third", ("second",)))
    hand.run(failing=["second"])
    shell = Shell(hand.root, capsys)
    out = str(tmp_path / "crate")
    assert shell.run("export", key_of("third").hex()[:10], "-o", out)[0] == cli.OK
    tasks = json.loads(Path(out, crate.TASKS).read_text())["tasks"]
    assert [(task["function"]["name"], task["status"]) for task in tasks] == [
        ("module.first", "done"),
        ("module.second", "failed"),
        ("module.third", "failed"),
    ]
    assert tasks[1]["error"]["message"] == "no"
    graph = json.loads(Path(out, crate.METADATA).read_text())["@graph"]
    actions = {one["name"].split()[0]: one for one in graph if one["@type"] == "CreateAction"}
    assert actions["module.second"]["actionStatus"].endswith("/FailedActionStatus")
    assert "result" not in actions["module.second"]
    told = Shell(tmp_path / "other", capsys).json("import", out)[1]
    assert told == {"imported": 1, "present": 0, "failed": 2, "pickled": 0}


def test_nothing_is_left_of_what_cannot_be_exported(hand, capsys, tmp_path):
    hand.submit("one", tag="t")
    hand.run()
    hand.submit("two", tag="t")
    shell = Shell(hand.root, capsys)
    assert shell.run("export", "t", "-o", str(tmp_path / "crate")) == (cli.NOT_ENDED, "")
    assert "1 of 2 tasks have no outcome (yet)" in shell.err
    assert shell.run("export", "no such", "-o", str(tmp_path / "crate"))[0] == cli.NOT_FOUND
    hand.run()
    (tmp_path / "crate").mkdir()
    assert shell.run("export", "t", "-o", str(tmp_path / "crate"))[0] == cli.ERROR
    assert "There is something of this name" in shell.err
    assert sorted(os.listdir(tmp_path)) == ["by hand", "crate"]


def test_a_full_disk_leaves_no_crate(hand, capsys, tmp_path, monkeypatch):
    hand.submit("one", tag="t")
    hand.run()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crate.os, "fsync", full)
    shell = Shell(hand.root, capsys)
    assert shell.run("export", "t", "-o", str(tmp_path / "crate"))[0] == cli.ERROR
    assert "No space left" in shell.err
    assert os.listdir(tmp_path) == ["by hand"]


def test_what_a_workflow_file_cannot_run_is_told(tmp_path, capsys):
    secret = 5
    with ClusterExecutor(tmp_path / "spool", max_workers=1, idle_timeout=1, tag="t") as executor:
        executor.submit(lambda x: x + secret, 1)
        executor.submit(str, 1j)
        executor.submit(repr, {1, 2})
    code, out = Shell(tmp_path / "spool", capsys).run("export", "t", "-o", str(tmp_path / "crate"))
    assert code == cli.OK
    _, told = out.split("cannot run:\n")
    assert [line.strip() for line in told.splitlines()] == [
        "argument '0' of builtins.str",
        "builtins.repr",
        "tests.test_crate.test_what_a_workflow_file_cannot_run_is_told.<locals>.<lambda>",
    ]


def test_many_arrays_are_parted_into_files(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MOST", 2)
    os.mkdir(tmp_path / "crate")
    files = arrays.ArrayFiles(str(tmp_path / "crate"))
    wanted = [np.arange(n, dtype=">i4").reshape(1, n) for n in range(1, 6)]
    about = [files.add(str(n), one) for n, one in enumerate(wanted)]
    files.flush()
    assert files.names == ["arrays-000.h5", "arrays-001.h5", "arrays-002.h5"]
    monkeypatch.chdir(tmp_path / "crate")
    for one, array in zip(about, wanted, strict=True):
        found = arrays.array(**one)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


# -- graphs of spools --------------------------------------------------------------------------


def test_a_spool_is_drawn_coloured_by_state(hand, capsys, tmp_path):
    hand.submit("done", tag="t")
    hand.submit("failed")
    hand.submit(Job("after", ("failed",)))
    hand.run(failing=["failed"])
    hand.submit(Job("waiting", ("done", "ready")), "ready")
    shell = Shell(hand.root, capsys)
    code, told = shell.json("graph")
    assert code == cli.OK
    states = {node["label"]: node["state"] for node in told["nodes"]}
    assert states == {
        "done": "done",
        "failed": "failed",
        "after": "failed",
        "waiting": "waiting",
        "ready": "ready",
    }
    assert shell.json("graph", "--tag", "t")[1]["nodes"] == [
        {"id": 0, "type": "function", "label": "done", "state": "done"}
    ]
    assert shell.run("graph", "-o", str(tmp_path / "g.svg")) == (cli.OK, "")
    text = (tmp_path / "g.svg").read_text()
    assert 'class="function failed"' in text
    assert "ValueError: no" in text
    assert shell.run("graph", "-o", "g.gif")[0] == cli.ERROR


def test_edges_have_the_names_of_arguments(trip, capsys):
    code, told = Shell(trip.spool, capsys).json("graph", "--inputs")
    assert code == cli.OK
    nodes = [node["label"] for node in told["nodes"]]
    edges = {
        (nodes[one["source"]], nodes[one["target"]], one["label"])
        for one in told["edges"]
        if nodes[one["target"]] in ("norm", "point", "traced", "both")
    }
    assert edges == {
        ("grid", "norm", "values"),
        ("2.0", "norm", "scale"),
        ("[$, $]", "both", "items"),
        ("(1, 'x')", "both", "about"),
        ("both", "traced", "found"),
        ("<f8[2x2]", "traced", "matrix"),
        ("both", "point", "x['l']"),
    }
    code, told = Shell(trip.spool, capsys).json("graph")
    assert {node["type"] for node in told["nodes"]} == {"function", "collection"}


def test_a_removed_dependency_is_drawn_as_removed(hand, capsys):
    hand.submit(Job("after", ("never there",)))
    told = Shell(hand.root, capsys).json("graph")[1]
    assert [(node["label"], node["state"]) for node in told["nodes"]] == [
        (key_of("never there").hex()[:12], "removed"),
        ("after", "waiting"),
    ]
