"""Executors inside of tasks, on this machine: on the cores of the task, and without deadlock."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from fsbroker import ClusterExecutor, errors
from tests.testbed.nesting import below, crowd

LIMIT = 60.0


def test_tasks_that_wait_for_tasks_of_the_same_spool(tmp_path: Path) -> None:
    """Two tasks for one core, each with one below it, and another below that."""
    spool = str(tmp_path / "spool")
    with ClusterExecutor(spool, "local", max_workers=1, idle_timeout=2.0) as executor:
        tasks = [executor.submit(below, spool, "local", 2, number) for number in range(2)]
        found = [task.result(LIMIT) for task in tasks]
    for number, chain in enumerate(found):
        assert [(name, threads) for name, _, threads, _ in chain] == [(number, 1)] * 3
        cpus = [set(cpus) for *_, cpus in chain]
        assert cpus[0] >= cpus[1] >= cpus[2]
    found_spools = sorted(str(path.parent) for path in Path(spool).rglob("spool.yaml"))
    assert found_spools == [spool, f"{spool}/nested", f"{spool}/nested/nested"]


def test_a_task_has_its_own_cores_only(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    inner, meeting = str(tmp_path / "inner"), str(tmp_path / "met")
    wishes = {"threads_per_core": 2}
    with ClusterExecutor(tmp_path / "spool", "local", max_workers=2, idle_timeout=2.0) as executor:
        future = executor.submit(crowd, inner, "local", 2, meeting, resource_dict=wishes)
        found = future.result(LIMIT)
    assert "wants 3 cores, and there are 2" in found["refused"]
    assert found["came"] == [["0", "1"], ["0", "1"]]
    below_it, own = found["below"]
    assert (below_it[1], own[1]) == (1, 2)
    assert set(below_it[2]) <= set(own[2])
    assert found["spools"] == [inner]


def refusal(spool: str) -> str:
    with ClusterExecutor(spool, "local", idle_timeout=1.0) as executor:
        try:
            executor.submit(pow, 3, 4, resource_dict={"memory_max": 0.75})
        except errors.ResourceError as error:
            return str(error)
    return ""


def test_a_task_has_its_own_memory_only(tmp_path: Path) -> None:
    wishes = {"memory_max": 0.5}
    with ClusterExecutor(tmp_path / "spool", "local", max_workers=1, idle_timeout=1.0) as executor:
        future = executor.submit(refusal, str(tmp_path / "inner"), resource_dict=wishes)
        assert "there are 512" in future.result(LIMIT)


def hold(begun: str, gate: str) -> None:
    Path(begun).touch()
    while not Path(gate).exists():
        time.sleep(0.02)


def ask(spool: str) -> int:
    with ClusterExecutor(spool, "local", idle_timeout=1.0) as executor:
        return executor.submit(pow, 3, 4).result(LIMIT / 2)


def test_agents_outside_of_a_task_are_none_for_what_it_submits(tmp_path: Path) -> None:
    """They may be full, and wait for it."""
    shared, begun, gate = (str(tmp_path / name) for name in ("shared", "begun", "gate"))
    one = {"backend": "local", "max_workers": 1, "idle_timeout": 1.0}
    with ClusterExecutor(shared, **one) as full, ClusterExecutor(tmp_path / "own", **one) as own:
        held = full.submit(hold, begun, gate)
        while not Path(begun).exists():
            assert not held.done()
        try:
            assert own.submit(ask, shared).result(LIMIT) == 81
        finally:
            Path(gate).touch()


def test_only_flux_gives_tasks_instances(tmp_path: Path) -> None:
    with pytest.raises(errors.ResourceError, match=r"flux_executor_nesting with backend='local'"):
        ClusterExecutor(tmp_path / "spool", "local", flux_executor_nesting=True)
