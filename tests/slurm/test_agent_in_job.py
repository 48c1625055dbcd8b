"""Agents inside jobs of a real SLURM: time, ends of all kinds, several nodes, MPI under srun."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fsbroker import ClusterExecutor
from fsbroker.spool import presence
from fsbroker.spool.log import Kind, Log, State
from fsbroker.spool.spool import Spool, open_spool
from tests.testbed.slurm import Cluster

# pytest rewrites this module, and workers would import it as it stands.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slurm

LIMIT = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]


class Site:
    """A spool, a client without agents, and agents in jobs."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.client = ClusterExecutor(directory / "spool", backend="none")
        self.spool: Spool = open_spool(directory / "spool")

    def job(self, *arguments: str, agent: str = "", script: str = "exec {agent}") -> int:
        """Submit a job; ``{agent}`` in its script is the command of an agent."""
        spool = self.directory / "spool"
        command = f"{sys.executable} -m fsbroker.agent --spool={spool} {agent}"
        file = self.directory / f"script-{time.monotonic_ns()}"
        file.write_text(f"#!/bin/sh\n{script.format(agent=command)}\n")
        output = f"--output={self.directory}/%j.out"
        variables = {**self.cluster.environment(), "PYTHONPATH": str(REPOSITORY)}
        return self.cluster.sbatch(output, *arguments, file, env=variables)

    def output(self, job: int) -> str:
        return (self.directory / f"{job}.out").read_text()

    def ended(self, job: int) -> str:
        """Wait for the end of a job; its state."""
        over = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        self.cluster.wait_for(lambda: self.cluster.state(job) not in over, LIMIT)
        return self.cluster.state(job)

    def agents(self) -> list[dict[str, Any]]:
        """What the agents that are present say of themselves."""
        files, area, _ = self.spool
        found = (presence.about(files, area, one) for one in presence.listing(files, area))
        return [about for about in found if about]

    def records(self) -> list[Any]:
        """All records of all logs."""
        files, area, _ = self.spool
        found = []
        for stem in files.names(area.claims):
            directory = area.log(stem)
            found += [Log.read(files, directory, name) for name in files.names(directory)]
        return found


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path) -> Iterator[Site]:
    made = Site(slurm, tmp_path)
    yield made
    made.client.shutdown(wait=False, cancel_futures=True)


def where(_: object = None) -> tuple[str, int]:
    return os.uname().nodename, os.getpid()


def ranks(_: object = None) -> tuple[str, int, int, int]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    total = world.allreduce(world.rank)
    assert total == sum(range(world.size))
    return os.uname().nodename, os.getpid(), world.rank, world.size


class TestMpi:
    @pytest.mark.parametrize(("count", "nodes"), [(2, 1), (2, 2), (4, 2)])
    def test_ranks_over_nodes(self, site: Site, count: int, nodes: int) -> None:
        site.job("--nodes=2", "--ntasks-per-node=2", agent="--time=300 --idle-timeout=1")
        wishes = {"cores": count, "num_nodes": nodes}
        first = site.client.submit(ranks, 1, resource_dict=wishes).result(LIMIT)
        second = site.client.submit(ranks, 2, resource_dict=wishes).result(LIMIT)
        assert [(rank, size) for _, _, rank, size in first] == [(n, count) for n in range(count)]
        assert len({host for host, *_ in first}) == nodes
        assert first == second  # the group was kept warm
