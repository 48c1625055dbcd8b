"""Settings on the nodes of a real SLURM, and the commands about queue jobs."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from fsbroker import ClusterExecutor, cli
from fsbroker.launch import queue
from fsbroker.spool.jobs import JobLog, QueueJob
from fsbroker.spool.spool import open_spool
from tests.testbed.mpi import find
from tests.testbed.shell import Shell
from tests.testbed.slurm import Cluster

# pytest rewrites this module, and workers would import it as it stands.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slurm

LIMIT = 60.0


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path / "spool", capsys)


@pytest.fixture
def elsewhere(slurm: Cluster, tmp_path: Path) -> Iterator[Path]:
    """Where the nodes, and they alone, have the spool mounted; where it is here, they have none."""
    spool, there, empty = (tmp_path / name for name in ("spool", "elsewhere", "empty"))
    for directory in (spool, there, empty):
        directory.mkdir()
    for node in slurm.nodes:
        slurm.on(node, ["mount", "--bind", spool, there])
        slurm.on(node, ["mount", "--bind", empty, spool])
    yield there
    for node in slurm.nodes:
        for directory in (spool, there):
            slurm.on(node, ["umount", "--lazy", directory])


def log_of(spool: Path) -> JobLog:
    log = JobLog(*open_spool(spool)[:2])
    log.refresh()
    return log


def jobs_of(spool: Path) -> list[QueueJob]:
    return list(log_of(spool).jobs.values())


# -- tasks -------------------------------------------------------------------------------


def seen(name: str, path: str) -> tuple[str | None, bool]:
    return os.environ.get(name), os.path.exists(path)


def launched_by(name: str) -> str | None:
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()
    return os.environ.get(name)


def lasting(started: str) -> None:
    Path(started).touch()
    time.sleep(1000)


# -- settings ----------------------------------------------------------------------------


@pytest.mark.parametrize("pilots", [False, True])
def test_the_spool_has_another_path_on_the_nodes(
    tmp_path: Path, elsewhere: Path, pilots: bool
) -> None:
    mark = str(elsewhere / "spool.yaml")
    with ClusterExecutor(
        tmp_path / "spool",
        backend="slurm",
        block_allocation=pilots,
        idle_timeout=1,
        spool_on_nodes=str(elsewhere),
        setup=["export FSB_SETUP=done"],
    ) as executor:
        told = executor.submit(seen, "FSB_SETUP", mark)
        assert told.result(timeout=LIMIT) == ("done", True)
        assert not os.path.exists(mark)
        # As an input of another task: one that waits in the queue, or for a pilot.
        assert executor.submit(len, told).result(timeout=LIMIT) == 2


def test_a_launcher_of_the_site(slurm: Cluster, tmp_path: Path) -> None:
    mpich = find("mpich")
    assert mpich is not None
    launcher = ["srun", "--ntasks={ranks}", "--nodes={nodes}", "--overlap", "--mpi=pmi2"]
    more = ["--cpu-bind=none", "--mem=0", "--wait=0", "--kill-on-bad-exit=1", "--quiet"]
    with ClusterExecutor(
        tmp_path / "spool",
        backend="slurm",
        idle_timeout=1,
        mpi={"srun": ["env", "FSB_LAUNCHER=site", *launcher, *more]},
    ) as executor:
        future = executor.submit(launched_by, "FSB_LAUNCHER", resource_dict={"cores": 2})
        assert future.result(timeout=LIMIT) == ["site", "site"]


# -- commands ----------------------------------------------------------------------------


def test_a_workflow_file(slurm: Cluster, tmp_path: Path, shell: Shell) -> None:
    flow = tmp_path / "flow.json"
    with ClusterExecutor(export_workflow_filename=flow) as executor:
        first = executor.submit(statistics.fmean, data=[1, 2, 6])
        executor.submit(statistics.fmean, data=[first, 5])
    code, told = shell.json("run", str(flow), "--backend", "slurm")
    assert (code, told["outputs"]) == (cli.OK, {"result": 4.0})
    assert len(jobs_of(tmp_path / "spool")) == told["tasks"] == 2


def test_cancelling_queue_jobs(slurm: Cluster, tmp_path: Path, shell: Shell) -> None:
    """One that waits is over at once; the agent of one that runs gives back what it has."""
    spool, started = tmp_path / "spool", tmp_path / "started"
    executor = ClusterExecutor(spool, backend="none")
    executor.submit(lasting, str(started))
    executor._loop.flush(LIMIT)
    assert shell.json("launch", "slurm", "--jobs", "1")[0] == cli.OK
    slurm.wait_for(started.exists)
    executor.submit(pow, 2, 3)
    executor._loop.flush(LIMIT)
    assert shell.json("launch", "slurm", "--jobs", "1", "--", "--begin=now+1hour")[0] == cli.OK
    running, waiting = jobs_of(spool)
    told = {one["number"]: one for one in shell.json("jobs", "--ask")[1]["jobs"]}
    assert told[running.number]["state"] == "running"
    assert told[running.number]["asked"]["state"] == "RUNNING"
    assert told[waiting.number]["state"] == "submitted"
    assert told[waiting.number]["asked"] == {"state": "PENDING", "reason": "BeginTime"}

    code, answers = shell.json("jobs", "cancel", str(running.number), str(waiting.number))
    assert code == cli.OK
    assert [one["done"] for one in answers] == [True, True]
    slurm.wait_for(lambda: slurm.state(int(running.id)) == "CANCELLED")
    assert slurm.state(int(waiting.id)) == "CANCELLED"
    ends = {job.number: (job.state, job.source) for job in jobs_of(spool)}
    assert ends[waiting.number] == ("CANCELLED", "fsbroker")
    assert ends[running.number] == ("", ""), "the scheduler tells the next client of it"
    executor.shutdown(wait=False, cancel_futures=True)


def test_commands_while_the_controller_is_away(
    slurm: Cluster, tmp_path: Path, shell: Shell
) -> None:
    executor = ClusterExecutor(tmp_path / "spool", backend="none")
    executor.submit(pow, 2, 3)
    executor._loop.flush(LIMIT)
    assert shell.json("launch", "slurm", "--", "--hold")[0] == cli.OK
    slurm.stop_controller()
    (job,) = jobs_of(tmp_path / "spool")
    assert shell.json("jobs")[1]["jobs"][0]["id"] == job.id
    for words in (["jobs", "--ask"], ["jobs", "cancel", str(job.number)], ["launch", "slurm"]):
        code, _ = shell.run(*words)
        said = shell.err
        assert code == cli.ERROR
        assert "controller" in said
    assert not jobs_of(tmp_path / "spool")[0].is_over
    slurm.start_controller()
    assert shell.json("jobs", "cancel", str(job.number))[0] == cli.OK
    assert jobs_of(tmp_path / "spool")[0].is_over
    executor.shutdown(wait=False, cancel_futures=True)


def test_launch_counts_what_is_there(
    slurm: Cluster, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --jobs, jobs that are there suffice; one that is over does not count."""
    monkeypatch.setattr(queue, "FAILURES", 9)
    executor = ClusterExecutor(tmp_path / "spool", backend="none")
    executor.submit(pow, 2, 3)
    executor._loop.flush(LIMIT)
    assert len(shell.json("launch", "slurm", "--", "--begin=now+1hour")[1]["jobs"]) == 1
    code, told = shell.json("launch", "slurm")
    assert (code, told["jobs"]) == (cli.NOTHING_TO_DO, [])
    slurm.run(["scancel", jobs_of(tmp_path / "spool")[0].id])  # behind our back
    assert len(shell.json("launch", "slurm")[1]["jobs"]) == 1
    assert shell.json("wait", "--timeout", "60s")[0] == cli.OK
    executor.shutdown()
