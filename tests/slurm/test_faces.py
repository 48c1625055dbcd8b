"""executorlib's executors on a real SLURM: the talk's listings, blocks, and what jobs are asked.

In-allocation executors are made by a script in a job (`tests/testbed/listings.py`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

import fsbroker
from tests.testbed import listings
from tests.testbed.slurm import Cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(listings)

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm", "here")]

LIMIT = 90.0
REPOSITORY = Path(__file__).resolve().parents[2]


FACE = fsbroker.SlurmClusterExecutor


@pytest.mark.mpich
def test_the_talk_from_the_login_node(here: Path, long: bool) -> None:
    """A job for each task; pilots for the block."""
    names = listings.EXPECTED.keys() if long else ("sums", "cached", "preload", "exported")
    assert {name: listings.LISTINGS[name](FACE) for name in names} == {
        name: listings.EXPECTED[name] for name in names
    }
    assert [one[:3] for one in listings.mpi(FACE)] == [(3, 2, 0), (3, 2, 1)]
    assert (here / "executorlib_cache/spool.yaml").exists()
    assert (here / "cache/spool.yaml").exists()


@pytest.mark.mpich
@pytest.mark.long
def test_gpus_from_the_login_node() -> None:
    assert listings.gpus(FACE) == [(0, "0,1"), (1, "0,1")]


def use(j: int, executorlib_worker_id: int) -> tuple[int, int, int, str]:
    return j, executorlib_worker_id, os.getpid(), os.environ["SLURM_JOB_ID"]


def meet(place: str, name: str, j: int, executorlib_worker_id: int) -> tuple[int, int, int, str]:
    """As `use`, when there are two of these."""
    Path(place, name).touch()
    while len(os.listdir(place)) < 2:
        time.sleep(0.02)
    return use(j, executorlib_worker_id)


def test_a_block_keeps_its_preset(here: Path) -> None:
    """Two jobs, each with one worker, that stay: the preset runs twice, whatever comes."""
    calls = here / "calls"

    def init(executorlib_worker_id: int) -> dict[str, int]:
        with calls.open("a") as file:
            file.write(f"{executorlib_worker_id}\n")
        return {"j": 7}

    own = {"cache": "off"}
    with FACE(max_workers=2, block_allocation=True, init_function=init, idle_timeout=8) as exe:
        (here / "met").mkdir()
        futures = [exe.submit(meet, str(here / "met"), name, resource_dict=own) for name in "ab"]
        found = {one.result(LIMIT) for one in futures}
        futures = [exe.submit(use, resource_dict=own) for _ in range(40)]
        found |= {one.result(LIMIT) for one in futures}
    assert {j for j, *_ in found} == {7}
    numbers = sorted(number for _, number, *_ in found)
    assert len(set(numbers)) == len(numbers) == 2
    assert sorted(map(int, calls.read_text().split())) == numbers
    assert len({job for *_, job in found}) == 2


CLIENT = """
import os, sys, time
import fsbroker

exe = fsbroker.SlurmJobExecutor()
exe.submit(sum, [1, 1]).result()
futures = [exe.submit(time.sleep, 300) for _ in range(4)]
pids = exe.submit(os.getppid, resource_dict={"priority": 9999})
with open("known.new", "w") as file:
    file.write(f"{exe.info['cache_directory']} {os.getpid()}")
os.rename("known.new", "known")
time.sleep(300)
"""


def test_a_client_in_a_job_is_killed(slurm: Cluster, here: Path) -> None:
    """Its step ends, with all that runs on both nodes, and the spool that both saw is gone."""
    (here / "client.py").write_text(CLIENT)
    script = here / "script"
    script.write_text(f"#!/bin/sh\ncd {here}\n{sys.executable} client.py\nsleep 60\n")
    own = {**slurm.environment(), "PYTHONPATH": str(REPOSITORY)}
    wishes = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2"]
    job = slurm.sbatch(f"--output={here / 'output'}", *wishes, script, env=own)
    known = here / "known"
    slurm.wait_for(known.exists, LIMIT)
    spool, client = known.read_text().split()
    steps = ["squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i"]
    slurm.wait_for(lambda: f"{job}.0" in slurm.run(steps).stdout, LIMIT)
    slurm.on("n1", ["kill", "-KILL", client])
    killed = time.monotonic()
    slurm.wait_for(lambda: f"{job}.0" not in slurm.run(steps).stdout, LIMIT)
    assert not os.path.exists(spool)
    assert time.monotonic() - killed < 10
    assert slurm.state(job) == "RUNNING"  # so it was not the job's end


@pytest.mark.mpich
def test_the_talk_in_a_job(slurm: Cluster, here: Path) -> None:
    names = [*listings.EXPECTED, "mpi"]
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
    assert found == listings.EXPECTED
    assert [one[:3] for one in ranks] == [[3, 2, 0], [3, 2, 1]]
    assert not list(here.glob("fsbroker-*"))  # the private spool that both nodes saw
