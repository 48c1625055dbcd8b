"""`ClusterExecutor(backend="flux")` on a real Flux: pilots, a job for each task, and the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import fsbroker
from fsbroker import ClusterExecutor, errors
from fsbroker.launch import queue
from fsbroker.spool.jobs import JobLog, QueueJob
from fsbroker.spool.spool import open_spool
from tests.slurm.test_backend import LIMIT, add, after_file, note, square, workflow
from tests.test_programs import compiled as compiled  # noqa: PLC0414 - a fixture
from tests.test_schedulers import wait_for
from tests.testbed.flux import Instance
from tests.testbed.in_allocation import come, meet, ranks
from tests.testbed.slurm import Cluster

# pytest rewrites this module, and workers would import it as it stands.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.flux

EACH: dict[str, Any] = {"idle_timeout": 1.0}
"""A job for each task."""
PILOTS: dict[str, Any] = {"block_allocation": True, "max_workers": 2, "idle_timeout": 2.0}
WAYS = pytest.mark.parametrize("way", [EACH, {**PILOTS, "max_jobs": 1}], ids=["each", "pilots"])


class Site:
    """A directory with spools, and clients whose agents come in jobs of Flux."""

    def __init__(self, instance: Instance, directory: Path) -> None:
        self.instance = instance
        self.directory = directory
        self.note = str(directory / "ran")
        self._clients: list[ClusterExecutor] = []

    def client(self, spool: str = "spool", backend: str = "flux", **options: Any):
        self._clients.append(ClusterExecutor(self.directory / spool, backend, **options))
        return self._clients[-1]

    def close(self) -> None:
        for client in self._clients:
            client.shutdown(wait=False, cancel_futures=True)

    def jobs(self) -> dict[int, QueueJob]:
        files, area, _ = open_spool(self.directory / "spool")
        log = JobLog(files, area)
        log.refresh()
        return log.jobs

    def job_of(self, future: fsbroker.Future) -> QueueJob:
        """The job that was submitted for a task."""
        row = lambda: f"{future.stem}.{future.row}"  # noqa: E731
        wait_for(lambda: any(job.id and job.row == row() for job in self.jobs().values()))
        return next(job for job in self.jobs().values() if job.row == row())

    def state(self, job: QueueJob) -> str:
        return self.instance.run(["flux", "jobs", "-no", "{status} {dependencies}", job.id]).strip()

    def ran(self) -> list[str]:
        return sorted(Path(self.note).read_text().split())


@pytest.fixture
def site(flux: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    # Where waiting is not the point.
    monkeypatch.setattr(queue, "QUERY_EVERY", 2.0)
    monkeypatch.setattr(queue, "LOOK_EVERY", 0.5)
    made = Site(flux, tmp_path)
    yield made
    made.close()


# -- tasks -------------------------------------------------------------------------------


def device(directory: str, name: object, count: int) -> tuple[str, str]:
    """The node and the devices of a task, once so many have come."""
    come(directory, str(name), count)
    (node,) = fsbroker.resources().nodes
    return node, os.environ["CUDA_VISIBLE_DEVICES"]


def program(argv: list[str]) -> list[list[str]]:
    """What the ranks of a program say, started by the first rank of the task."""
    rank = 0
    if fsbroker.resources().ranks > 1:
        from mpi4py import MPI

        rank = MPI.COMM_WORLD.rank
    if rank:
        return []
    done = fsbroker.run(argv, mpi=True, check=True)
    return [line.split() for line in sorted(done.stdout.splitlines())]


def pids(_: int) -> int:
    from mpi4py import MPI

    MPI.COMM_WORLD.barrier()
    return os.getpid()


# -- work --------------------------------------------------------------------------------


def test_pilots_drain_the_spool(site: Site) -> None:
    """100 tasks on three nodes: all values, each node at work, nothing twice."""
    client = site.client(max_jobs=3, **PILOTS)
    here = str(site.directory / "come")
    # They fill all nodes, and none goes on until there is an agent on each.
    first = [client.submit(come, here, f"m{number}", 6) for number in range(6)]
    futures = [client.submit(square, number, site.note) for number in range(94)]
    assert all(len(future.result(LIMIT)) == 6 for future in first)
    assert [future.result(LIMIT)[0] for future in futures] == [n * n for n in range(94)]
    assert site.ran() == sorted(map(str, range(94)))
    assert len(site.jobs()) == 3


def test_the_scheduler_lets_dependents_wait(site: Site) -> None:
    client = site.client(**EACH)
    go = site.directory / "go"
    top = client.submit(after_file, str(go), 1)
    left, right = client.submit(add, top, 1), client.submit(add, top, 2)
    bottom = client.submit(add, left, right)
    jobs = {future: site.job_of(future) for future in (top, left, right, bottom)}
    wait_for(lambda: site.state(jobs[top]).startswith("RUN"))
    for future in (left, right, bottom):
        assert site.state(jobs[future]).startswith("DEPEND after-finish="), future
    go.touch()
    assert bottom.result(LIMIT) == 5
    assert len(site.jobs()) == 4


@pytest.mark.mpich
@WAYS
def test_mpi_over_two_nodes(site: Site, way: dict[str, Any]) -> None:
    found = site.client(**way).submit(ranks, resource_dict={"cores": 2, "num_nodes": 2})
    assert [(rank, size) for _, rank, size in found.result(LIMIT)] == [(0, 2), (1, 2)]
    assert len({where for where, *_ in found.result()}) == 2


@pytest.mark.mpich
def test_a_group_stays_for_the_next_task(site: Site) -> None:
    client = site.client(**{**PILOTS, "max_jobs": 1, "nodes_per_job": 2})
    wishes = {"cores": 4, "num_nodes": 2}
    first, second = (client.submit(pids, n, resource_dict=wishes) for n in range(2))
    assert len(set(first.result(LIMIT))) == 4
    assert second.result(LIMIT) == first.result()


def test_serial_tasks_on_all_nodes_of_one_job(site: Site) -> None:
    client = site.client(**{**PILOTS, "max_workers": 6, "max_jobs": 1, "nodes_per_job": 3})
    futures = [client.submit(meet, str(site.directory / "met"), n, 3) for n in range(6)]
    assert {future.result(LIMIT) for future in futures} == {"local-0", "local-1", "local-2"}
    assert len(site.jobs()) == 1


@WAYS
def test_gpus_are_disjoint(site: Site, way: dict[str, Any]) -> None:
    client = site.client(**way)
    meeting, wishes = str(site.directory / "devices"), {"gpus_per_core": 1}
    futures = [client.submit(device, meeting, n, 2, resource_dict=wishes) for n in range(2)]
    found = [future.result(LIMIT) for future in futures]
    assert len(set(found)) == 2
    assert {gpus for _, gpus in found} <= {"0", "1"}
    assert client.submit(device, meeting, "none", 0).result(LIMIT)[1] == ""


# -- programs ----------------------------------------------------------------------------


@pytest.mark.mpich
def test_a_program_of_one_rank(site: Site, compiled: Any) -> None:
    client = site.client(**EACH)
    argv = [str(compiled("mpich"))]
    told = client.submit(program, argv, resource_dict={"threads_per_core": 2}).result(LIMIT)
    assert [line[:2] for line in told] == [["0", "2"], ["1", "2"]]


@pytest.mark.mpich
def test_a_program_on_two_nodes_from_one_rank(site: Site, compiled: Any) -> None:
    client = site.client(**EACH)
    wishes = {"threads_per_core": 4, "num_nodes": 2}
    told = client.submit(program, [str(compiled("mpich"))], resource_dict=wishes).result(LIMIT)
    assert [line[:2] for line in told] == [[str(rank), "4"] for rank in range(4)]


@pytest.mark.mpich
def test_a_program_of_several_ranks(site: Site, compiled: Any) -> None:
    """The ranks hold their cores in Flux: what they start must not wait for these."""
    client = site.client(**{**PILOTS, "max_workers": 4, "max_jobs": 1, "nodes_per_job": 2})
    argv = [str(compiled("mpich"))]
    told = client.submit(program, argv, resource_dict={"cores": 2}).result(LIMIT)
    assert [line[:2] for line in told[0]] == [["0", "2"], ["1", "2"]]
    wishes = {"cores": 2, "num_nodes": 2, "cache": "refresh"}
    several = client.submit(program, argv, resource_dict=wishes)
    with pytest.raises(errors.ResourceError, match=r"hold their cores.*2 ranks on 2 nodes"):
        several.result(LIMIT)


# -- together ----------------------------------------------------------------------------


@pytest.mark.mpich
@pytest.mark.timeout(400)
def test_demo_is_the_same_here_and_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locally, with a job for each task, and with pilots: the same keys and numbers."""
    pytest.importorskip("ase")
    monkeypatch.chdir(site.directory)  # where tasks write their log
    options = {
        "local": {"max_workers": 2, "idle_timeout": 2.0},
        "each": EACH,
        "pilots": {**PILOTS, "max_jobs": 1},
        "allocation": {"max_workers": 2, "idle_timeout": 2.0},
    }
    found = {}
    for name, more in options.items():
        backend = name if name in ("local", "allocation") else "flux"
        with site.client(name, backend, **more) as client:
            futures = workflow(client)
            found[name] = [(future.key, future.result(2 * LIMIT)) for future in futures]
    assert all(one == found["local"] for one in found.values())
    assert [row["metal"] for row in found["local"][-1][1]] == ["Al", "Cu", "Au"]


def together(path: str, name: str, kinds: int) -> str:
    """What started the agent of this task, once tasks of so many kinds of agents have come."""
    kind = "flux" if "FLUX_ENCLOSING_ID" in os.environ else ""
    kind = kind or ("slurm" if "SLURM_JOB_ID" in os.environ else "local")
    note(path, name)
    here = f"{path}.kinds"
    come(here, kind, kinds)
    return kind


@pytest.mark.slurm
def test_local_slurm_and_flux_agents_drain_one_spool(slurm: Cluster, site: Site) -> None:
    clients = [
        site.client(backend="local", max_workers=1, idle_timeout=2.0),
        site.client(backend="slurm", max_jobs=1, **{**PILOTS, "max_workers": 1}),
        site.client(max_jobs=1, **{**PILOTS, "max_workers": 1}),
    ]
    first = [client.submit(together, site.note, f"m{n}", 3) for n, client in enumerate(clients)]
    futures = [one.submit(square, n, site.note) for n, one in enumerate(clients * 20)]
    assert sorted(future.result(LIMIT) for future in first) == ["flux", "local", "slurm"]
    assert [future.result(LIMIT)[0] for future in futures] == [n * n for n in range(60)]
    assert len(site.ran()) == len(set(site.ran())) == 63
