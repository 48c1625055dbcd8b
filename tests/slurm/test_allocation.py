"""`ClusterExecutor(backend="allocation")`: clients inside jobs of a real SLURM.

What the clients do stands in `tests/testbed/in_allocation.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fsbroker import ClusterExecutor, errors
from tests.testbed.nesting import below, crowd
from tests.testbed.slurm import Cluster

pytestmark = pytest.mark.slurm

LIMIT = 90.0
REPOSITORY = Path(__file__).resolve().parents[2]


def tell(cluster: Cluster, directory: Path, story: str, *wishes: str) -> Any:
    """Have a story happen in a batch job; what it found."""
    own = {**cluster.environment(), "PYTHONPATH": str(REPOSITORY)}
    script = directory / "script"
    script.write_text(f"#!/bin/sh\nexec {client(story, directory)}\n")
    output = directory / "output"
    job = cluster.sbatch(f"--output={output}", *wishes, script, env=own)
    over = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
    cluster.wait_for(lambda: cluster.state(job) in over, LIMIT)
    return found(directory, story, output.read_text())


def client(story: str, directory: Path) -> str:
    return f"{sys.executable} -m tests.testbed.in_allocation {story} {directory}"


def found(directory: Path, story: str, said: str) -> Any:
    path = directory / f"{story}.json"
    assert path.exists(), said
    return json.loads(path.read_text())


@pytest.mark.mpich
def test_all_nodes_of_a_batch_job(slurm: Cluster, tmp_path: Path) -> None:
    seen = tell(slurm, tmp_path, "everything", "--nodes=3", "--ntasks-per-node=1", "-c2")
    assert seen["hosts"] == ["n1", "n2", "n3"]
    assert [(rank, size) for _, rank, size in seen["ranks"]] == [(0, 2), (1, 2)]
    assert len({host for host, *_ in seen["ranks"]}) == 2
    cores, threads, nodes, partition = seen["refused"]
    assert "wants 7 cores, and there are 6" in cores
    assert "No nodes of the allocation hold the task: 3 cores" in threads
    assert "wants 4 nodes, and there are 3: num_nodes=4" in nodes
    assert "Agents here are in no queue" in partition


@pytest.mark.mpich
def test_a_shell_of_salloc(slurm: Cluster, tmp_path: Path) -> None:
    """The client is on the login node, its agent on the nodes."""
    wishes = ["--quiet", "--nodes=3", "--ntasks-per-node=1", "-c2"]
    argv = ["salloc", *wishes, *client("everything", tmp_path).split()]
    done = slurm.run(argv, check=False, cwd=REPOSITORY, timeout=LIMIT)
    seen = found(tmp_path, "everything", done.stdout + done.stderr)
    assert seen["hosts"] == ["n1", "n2", "n3"]
    assert len({host for host, *_ in seen["ranks"]}) == 2


def test_a_client_in_a_step(slurm: Cluster, tmp_path: Path) -> None:
    """It holds the cores that its agent needs: that overlaps."""
    argv = ["srun", "--quiet", "-N1", "-n1", "-c2", *client("halves", tmp_path).split()]
    done = slurm.run(argv, check=False, cwd=REPOSITORY, timeout=LIMIT)
    assert all(found(tmp_path, "halves", done.stdout + done.stderr)["all"])


def test_two_clients_share_a_job(slurm: Cluster, tmp_path: Path) -> None:
    seen = tell(slurm, tmp_path, "halves", "--nodes=2", "--ntasks-per-node=1", "-c2")
    assert seen["came"] == ["a0", "a1", "b0", "b1"]
    assert all(seen["all"])
    assert "wants 3 cores, and there are 2: " in seen["refused"]
    assert "the limit is max_workers=2" in seen["refused"]


def test_what_one_agent_has_no_other_has(slurm: Cluster, tmp_path: Path) -> None:
    seen = tell(slurm, tmp_path, "whole", "--nodes=2", "--ntasks-per-node=1", "-c2")
    assert seen == {"before": 1, "seen": []}


def test_an_executor_on_the_cores_of_a_task(slurm: Cluster, tmp_path: Path) -> None:
    """It has those alone, though its job has two more nodes."""
    inner, meeting = str(tmp_path / "inner"), str(tmp_path / "met")
    pilots = {"block_allocation": True, "max_workers": 6, "nodes_per_job": 3, "max_jobs": 1}
    with ClusterExecutor(tmp_path / "spool", "slurm", idle_timeout=1.0, **pilots) as executor:
        wishes = {"threads_per_core": 2}
        future = executor.submit(crowd, inner, "allocation", 2, meeting, resource_dict=wishes)
        found = future.result(LIMIT)
    assert "wants 3 cores, and there are 2" in found["refused"]
    assert found["came"] == [["0", "1"], ["0", "1"]]
    below_it, own = found["below"]
    assert below_it[0] == own[0]
    assert set(below_it[2]) <= set(own[2])


def test_tasks_that_wait_for_tasks_of_the_same_spool(slurm: Cluster, tmp_path: Path) -> None:
    spool = str(tmp_path / "spool")
    pilot = {"block_allocation": True, "max_workers": 1, "max_jobs": 1}
    with ClusterExecutor(spool, "slurm", idle_timeout=1.0, **pilot) as executor:
        tasks = [executor.submit(below, spool, "allocation", 2, number) for number in range(2)]
        found = [task.result(LIMIT) for task in tasks]
    for number, chain in enumerate(found):
        assert [(name, threads) for name, _, threads, _ in chain] == [(number, 1)] * 3


def test_outside_of_an_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "FLUX_URI"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(errors.ResourceError, match=r"runs in no allocation: .* \(sbatch, salloc"):
        ClusterExecutor(tmp_path / "spool", backend="allocation")
