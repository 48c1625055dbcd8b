"""`fsbroker demo`: its numbers, what it counts, and that its verdict can be a bad one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fsbroker import errors
from fsbroker.cli import demo
from fsbroker.cli.demo import metals, report, tasklog
from fsbroker.cli.demo.plan import Plan
from fsbroker.cli.demo.supervisor import Course
from fsbroker.cli.demo.tasklog import Line, TaskLog
from fsbroker.cli.demo.victims import VICTIMS, Target

pytest.importorskip("ase")

# Small, but each scan takes long enough that somebody can be killed in the middle of one.
SYMBOLS, POINTS, CELLS = ("Al", "Ni", "Cu", "Au"), 12, 4


def serial(metal: str, points: int) -> tuple[float, float]:
    """Lattice constant and bulk modulus, as ASE's tutorial computes them."""
    from ase import units
    from ase.build import bulk
    from ase.calculators.emt import EMT
    from ase.eos import EquationOfState

    volumes, energies = [], []
    for scale in np.linspace(0.97, 1.03, points):
        atoms = bulk(metal, "fcc", a=metals.EXPERIMENT[metal].lattice_constant * scale)
        atoms.calc = EMT()
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    return (4 * volume) ** (1 / 3), modulus / units.kJ * 1e24


# -- the whole demo ----------------------------------------------------------------------


@pytest.mark.mpich
@pytest.mark.parametrize("victim", sorted(VICTIMS))
def test_workflow_survives_the_end_of(victim, tmp_path, monkeypatch, capfd):
    seen = []
    print_report = report.print_report
    monkeypatch.setattr(demo, "print_report", lambda *it: seen.append(it) or print_report(*it))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = tmp_path / "the spool"
    options = ["--kill", victim, "--spool", str(spool), "--metals", ",".join(SYMBOLS)]

    code = demo.main([*options, "--points", str(POINTS), "--cells", str(CELLS)])

    said = capfd.readouterr()
    assert code == 0, said
    assert "FAILED" not in said.out
    assert not said.err
    ((plan, course),) = seen
    assert_same_as_serial(course.result["rows"])
    assert set(course.at_end.done()) == names(plan)
    begun_again = {task for task, attempts in course.at_end.attempts.items() if attempts > 1}
    assert bool(begun_again) == (victim != "client")
    assert not processes_with(str(spool))
    assert os.listdir(tmp_path) == ["the spool"]


def assert_same_as_serial(rows):
    assert [row["metal"] for row in rows] == list(SYMBOLS)
    for row in rows:
        expected = serial(row["metal"], POINTS)
        found = row["lattice_constant"], row["bulk_modulus"]
        assert found == pytest.approx(expected, rel=1e-6, abs=0)


def names(plan: Plan) -> set[str]:
    return {f"{kind} {metal}" for kind in ("scan", "fit") for metal in plan.metals} | {"summary"}


def processes_with(text: str) -> list[str]:
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in shown.stdout.splitlines() if text in line]


# -- the numbers -------------------------------------------------------------------------


@pytest.mark.parametrize("metal", metals.EXPERIMENT)
def test_fit_of_two_shares_is_that_of_a_serial_run(metal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shares = []
    for rank in (0, 1):
        volumes, energies = metals.curve(metal, 24, 1, slice(rank, None, 2))
        shares.append({"rank": rank, "size": 2, "volumes": volumes, "energies": energies})
    found = metals.fit(metal, shares)
    assert found["points"] == 24
    numbers = found["lattice_constant"], found["bulk_modulus"]
    assert numbers == pytest.approx(serial(metal, 24), rel=1e-6, abs=0)


def test_deviations_are_percent_of_the_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (row,) = metals.summary([{"metal": "Cu", "lattice_constant": 7.22, "bulk_modulus": 68.5}])
    assert row["lattice_constant_off"] == pytest.approx(100)
    assert row["bulk_modulus_off"] == pytest.approx(-50)


# -- the tasks' log ----------------------------------------------------------------------


def test_log_of_a_directory_without_one_is_empty(tmp_path):
    assert tasklog.read(str(tmp_path)).lines == []


def test_task_writes_when_it_begins_and_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tasklog.running("scan Al", 1, 2):
        (line,) = tasklog.read(str(tmp_path)).lines
        assert line[2:] == (os.getpid(), 1, 2, "scan Al")
        assert line.event == "began"
    assert [line.event for line in tasklog.read(str(tmp_path)).lines] == ["began", "ended"]


def test_task_that_fails_does_not_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), tasklog.running("fit Al"):
        1 / 0  # noqa: B018
    assert tasklog.read(str(tmp_path)).done() == set()


def test_line_that_is_being_written_is_not_read(tmp_path):
    Path(tmp_path, tasklog.NAME).write_text("began 1.0 4711 0 1 fit Al\nended 2.0 47")
    log = tasklog.read(str(tmp_path))
    assert [line.event for line in log.lines] == ["began"]
    assert log.in_progress() == {"fit Al": log.lines}


def test_task_is_done_when_all_of_its_ranks_are():
    log = TaskLog(lines("began 0", "began 1", "ended 0"))
    assert log.done() == set()
    assert [line.rank for line in log.in_progress()["scan Al"]] == [1]
    assert TaskLog(lines("began 0", "began 1", "ended 0", "ended 1")).done() == {"scan Al"}


def test_attempts_count_also_where_one_rank_came_to_its_end():
    log = TaskLog(lines("began 0", "began 1", "ended 0", "began 0", "began 1", "ended 1"))
    assert log.attempts == {"scan Al": 2}
    assert log.completions == {"scan Al": 1}


def lines(*events: str, task: str = "scan Al", size: int = 2) -> list[Line]:
    """Lines of the ranks of one task, "began 0" and the like, one a second."""
    found = []
    for time, event in enumerate(events):
        kind, rank = event.split()
        found.append(Line(kind, float(time), 100 + int(rank), int(rank), size, task))
    return found


# -- the verdict -------------------------------------------------------------------------

ALL = ("began 0", "began 1", "ended 0", "ended 1")
HALF = [*lines(*ALL), *lines("began 0", "began 1", task="scan Cu")]
WHOLE = [
    *HALF,
    *lines("ended 0", "ended 1", task="scan Cu"),
    *(
        line
        for task in ("fit Al", "fit Cu", "summary")
        for line in lines("began 0", "ended 0", task=task, size=1)
    ),
]
TWO = Plan("/spool", ("Al", "Cu"), 24, 1)


@pytest.fixture(scope="module")
def rows():
    found = []
    for metal in TWO.metals:
        points = [*zip(*metals.curve(metal, 24, 1, slice(None)), strict=True)]
        numbers = metals.equation_of_state(points)
        measured = metals.EXPERIMENT[metal]._asdict()
        off = {f"{name}_off": 100 * (numbers[name] / measured[name] - 1) for name in measured}
        found.append({"metal": metal, "points": 24, **numbers, **off})
    return found


def result(rows):
    return {"rows": rows, "ranks": {metal: [[0, 2], [1, 2]] for metal in TWO.metals}}


def client_killed(rows, end=WHOLE, half=HALF) -> Course:
    target = Target("the client", 1, frozenset())
    return Course(target, 2.0, TaskLog(HALF), TaskLog(half), TaskLog(end), result(rows))


def agent_killed(rows, after) -> Course:
    target = Target("the agent", 1, frozenset({100, 101}))
    late = [line._replace(time=line.time + 100) for line in after]
    return Course(target, 50.0, TaskLog(HALF), None, TaskLog([*WHOLE_BUT_CU, *late]), result(rows))


WHOLE_BUT_CU = [line for line in WHOLE if line.task != "scan Cu" or line.event == "began"]
CU_AGAIN = [line._replace(pid=line.pid + 100) for line in lines(*ALL, task="scan Cu")]


def test_verdict_is_good_if_each_task_ran_once(rows, capsys):
    assert report.print_report(TWO, client_killed(rows))
    assert "5 of 5 tasks ran" in capsys.readouterr().out


def test_verdict_is_good_if_what_was_interrupted_ran_again(rows, capsys):
    assert report.print_report(TWO, agent_killed(rows, CU_AGAIN))
    said = capsys.readouterr().out
    assert "6 attempts, 5 complete" in said
    assert "interrupted by the kill: scan Cu; begun again: scan Cu" in said


def bad_courses(rows):
    again = lines("began 0", "ended 0", task="fit Al", size=1)
    yield "a task ran twice", client_killed(rows, [*WHOLE, *again])
    yield "a task never ran", client_killed(rows, WHOLE[:-2])
    yield "the kill came too late", client_killed(rows, WHOLE, WHOLE)
    yield "nothing was recovered", agent_killed(rows, lines("ended 0", "ended 1", task="scan Cu"))
    yield "another task ran again", agent_killed(rows, [*CU_AGAIN, *again_elsewhere()])
    one_rank = client_killed(rows)
    one_rank.result["ranks"]["Cu"] = [[0, 1]]
    yield "a scan ran on one rank", one_rank
    one_process = [line._replace(pid=1) for line in WHOLE]
    yield "both ranks were one process", client_killed(rows, one_process)
    yield "a number is wrong", client_killed([rows[0], {**rows[1], "bulk_modulus": 134.0}])
    yield "a fit is bad", client_killed([rows[0], {**rows[1], "misfit": 0.01}])


def again_elsewhere():
    return [line._replace(pid=300) for line in lines("began 0", "ended 0", task="fit Al", size=1)]


def test_verdict_is_bad_if_anything_is_not_as_it_should(rows, capsys):
    for what, course in bad_courses(rows):
        assert not report.print_report(TWO, course), what
        assert "FAILED" in capsys.readouterr().out


# -- the command -------------------------------------------------------------------------


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "ase" else name)
    with pytest.raises(errors.MissingExtra, match=r"pip install 'fsbroker\[demo\]'"):
        demo.main([])


def test_spool_of_an_earlier_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = tmp_path / "spool"
    spool.mkdir()
    Path(spool, "spool.yaml").touch()
    with pytest.raises(errors.SpoolError, match="in use"):
        demo.main(["--spool", str(spool)])
    assert os.listdir(tmp_path) == ["spool"]


@pytest.mark.parametrize(
    "options", [["--metals", "Al,Fe"], ["--points", "5"], ["--kill", "nobody"]]
)
def test_wrong_option_ends_with_2(options, capsys):
    with pytest.raises(SystemExit) as ended:
        demo.main(options)
    assert ended.value.code == 2
    assert options[0] in capsys.readouterr().err
