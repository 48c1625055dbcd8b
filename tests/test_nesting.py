"""Executors inside of tasks, on this machine: on the cores of the task, and without deadlock."""

from __future__ import annotations

import os
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


def test_only_flux_gives_tasks_instances(tmp_path: Path) -> None:
    with pytest.raises(errors.ResourceError, match=r"flux_executor_nesting with backend='local'"):
        ClusterExecutor(tmp_path / "spool", "local", flux_executor_nesting=True)
