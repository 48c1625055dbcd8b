"""`ClusterExecutor(backend="allocation")`: clients inside a real Flux instance.

What the clients do stands in `tests/testbed/in_allocation.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fsbroker import ClusterExecutor, errors
from tests.testbed.flux import Instance
from tests.testbed.in_allocation import everything, halves, whole
from tests.testbed.slurm import Cluster

pytestmark = pytest.mark.flux

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def instance(flux: Instance) -> Instance:
    return flux


@pytest.mark.mpich
def test_all_nodes_of_an_instance(tmp_path: Path) -> None:
    seen = everything(tmp_path)
    assert seen["hosts"] == ["local-0", "local-1", "local-2"]
    assert [(rank, size) for _, rank, size in seen["ranks"]] == [(0, 2), (1, 2)]
    assert len({node for node, *_ in seen["ranks"]}) == 2
    cores, threads, nodes, partition = seen["refused"]
    assert "wants 7 cores, and there are 6" in cores
    assert "No nodes of the allocation hold the task: 3 cores" in threads
    assert "wants 4 nodes, and there are 3: num_nodes=4" in nodes
    assert "Agents here are in no queue" in partition


@pytest.mark.mpich
@pytest.mark.slurm
def test_an_instance_in_a_job_of_slurm(slurm: Cluster, tmp_path: Path) -> None:
    """On nodes with names of their own."""
    own = {**slurm.environment(), "FLUX_IPADDR_INTERFACE": "lo", "PYTHONPATH": str(REPOSITORY)}
    del own["FLUX_URI"]
    client = [sys.executable, "-m", "tests.testbed.in_allocation", "everything", tmp_path]
    step = ["srun", "--quiet", "--mpi=pmi2", "--nodes=3", "--ntasks-per-node=1", "-c2"]
    slurm.run([*step, "flux", "start", *client], env=own, timeout=90)
    seen = json.loads((tmp_path / "everything.json").read_text())
    assert seen["hosts"] == ["local-0", "local-1", "local-2"]
    assert len({node for node, *_ in seen["ranks"]}) == 2
    assert "wants 7 cores, and there are 6" in seen["refused"][0]


def test_two_clients_share_an_instance(tmp_path: Path) -> None:
    seen = halves(tmp_path)
    assert seen["came"] == ["a0", "a1", "b0", "b1"]
    assert all(seen["all"])
    assert "the limit is max_workers=2" in seen["refused"]


def test_what_one_agent_has_no_other_has(tmp_path: Path) -> None:
    assert whole(tmp_path) == {"before": 1, "seen": []}


def test_a_step_has_no_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_JOB_ID", "f123")
    with pytest.raises(errors.ResourceError, match=r"no instance of its own.*flux batch"):
        ClusterExecutor(tmp_path / "spool", backend="allocation")
