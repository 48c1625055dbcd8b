"""Flux instances in Flux instances, and executors inside of tasks of a real Flux."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsbroker import ClusterExecutor
from fsbroker.launch import queue
from tests.testbed.flux import Instance
from tests.testbed.nesting import crowd, level, levels

pytestmark = pytest.mark.flux

LIMIT = 90.0


@pytest.fixture(autouse=True)
def instance(flux: Instance, monkeypatch: pytest.MonkeyPatch) -> Instance:
    monkeypatch.setattr(queue, "LOOK_EVERY", 0.5)  # where waiting is not the point
    return flux


def test_three_levels_of_instances(tmp_path: Path) -> None:
    """Each task has an instance, opens an executor in it, whose tasks have instances again."""
    spool, wishes = str(tmp_path / "spool"), {"threads_per_core": 2}
    options = {"flux_executor_nesting": True, "idle_timeout": 2.0}
    with ClusterExecutor(spool, "allocation", **options) as executor:
        futures = [executor.submit(levels, spool, 2, n, resource_dict=wishes) for n in range(3)]
        found = [future.result(LIMIT) for future in futures]
    # An agent's instance lies between that of a task and those of the tasks below it.
    assert found == [[[2, 2, n], [4, 2, n], [6, 2, n]] for n in range(3)]


@pytest.mark.parametrize("blocks", [False, True])
def test_nesting_in_queue_jobs(tmp_path: Path, blocks: bool) -> None:
    options = {"block_allocation": blocks, "idle_timeout": 1.0}
    with ClusterExecutor(tmp_path, "flux", flux_executor_nesting=True, **options) as executor:
        assert executor.submit(level).result(LIMIT) == 2
    with ClusterExecutor(tmp_path / "plain", "flux", **options) as executor:
        assert executor.submit(level).result(LIMIT) == 1


@pytest.mark.parametrize("nested", [False, True])
def test_an_executor_on_the_cores_of_a_task(tmp_path: Path, nested: bool) -> None:
    inner, meeting = str(tmp_path / "inner"), str(tmp_path / "met")
    options = {"idle_timeout": 1.0, "flux_executor_nesting": nested}
    with ClusterExecutor(tmp_path / "spool", "flux", **options) as executor:
        wishes = {"threads_per_core": 2}
        future = executor.submit(crowd, inner, "allocation", 2, meeting, resource_dict=wishes)
        found = future.result(LIMIT)
    assert "wants 3 cores, and there are 2" in found["refused"]
    assert found["came"] == [["0", "1"], ["0", "1"]]
