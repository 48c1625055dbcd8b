"""executorlib's executors on a real SLURM: the talk's listings, blocks, and what jobs are asked.

In-allocation executors are made by a script in a job (`tests/testbed/listings.py`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import fsbroker
from fsbroker.launch import queue
from tests.testbed import listings
from tests.testbed.slurm import Cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(listings)

pytestmark = pytest.mark.slurm

LIMIT = 90.0
REPOSITORY = Path(__file__).resolve().parents[2]
EXPECTED: dict[str, Any] = {
    "sums": [2, 4, 6, 8],
    "chain": 6,
    "cached": [6, 6],
    "preload": 10,
    "streaming": [[2, 3], [0, 1]],
}


@pytest.fixture(autouse=True)
def here(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSBROKER_IDLE_TIMEOUT", "1")
    monkeypatch.setattr(queue, "QUERY_EVERY", 2.0)
    monkeypatch.setattr(queue, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(queue, "NOBODY_ASKS", 5.0)
    return tmp_path


@pytest.mark.mpich
def test_the_talk_from_the_login_node(here: Path) -> None:
    """A job for each task; pilots for the block."""
    face = fsbroker.SlurmClusterExecutor
    assert {name: listings.LISTINGS[name](face) for name in EXPECTED} == EXPECTED
    assert [one[:3] for one in listings.mpi(face)] == [(3, 2, 0), (3, 2, 1)]
    assert listings.gpus(face) == [(0, "0,1"), (1, "0,1")]
    assert (here / "executorlib_cache/spool.yaml").exists()
    assert (here / "cache/spool.yaml").exists()


@pytest.mark.mpich
def test_the_talk_in_a_job(slurm: Cluster, here: Path) -> None:
    names = [*EXPECTED, "mpi"]
    python = f"{sys.executable} -m tests.testbed.listings SlurmJobExecutor {' '.join(names)}"
    (here / "script").write_text(f"#!/bin/sh\ncd {here}\n{python} >results\n")
    own = {**slurm.environment(), "PYTHONPATH": str(REPOSITORY)}
    wishes = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]
    job = slurm.sbatch(f"--output={here / 'output'}", *wishes, here / "script", env=own)
    slurm.wait_for(lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), LIMIT)
    said = (here / "output").read_text()
    assert (here / "results").stat().st_size, said
    found = json.loads((here / "results").read_text())
    ranks = found.pop("mpi")
    assert found == EXPECTED
    assert [one[:3] for one in ranks] == [[3, 2, 0], [3, 2, 1]]
    assert not list(here.glob("fsbroker-*"))  # the private spool that both nodes saw
