"""MPI groups whose rank, or whose agent, is killed: right values, and nobody is left."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from fsbroker.executor import ClusterExecutor
from fsbroker.spool.spool import open_spool
from tests.faults.audit import outcomes
from tests.faults.processes import DEADLINE, wait_until
from tests.faults.tasks import mpi_task

pytestmark = pytest.mark.mpich

RANKS = 2
VALUE = ["m", 3]


@pytest.fixture
def future(processes):
    """A task of two ranks that waits for a file `gate`."""
    executor = ClusterExecutor(processes.spool, backend="none")
    gate = str(processes.folder / "gate")
    wishes = {"cores": RANKS}
    yield executor.submit(mpi_task, processes.journal, "m", gate, resource_dict=wishes)
    executor.shutdown(wait=False, cancel_futures=True)


def ranks_of(processes, count=RANKS):
    """The pids of the ranks, when so many have begun in all."""
    path = processes.folder / "journal.m"

    def pids():
        return [int(line.split()[1]) for line in path.read_text().splitlines()]

    wait_until(lambda: path.exists() and len(pids()) >= count)
    return pids()


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def are_gone(group):
    _, alive = psutil.wait_procs(group, timeout=DEADLINE)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def is_right(future, ranks=RANKS):
    return future.result(DEADLINE) == [VALUE] * ranks


def test_a_killed_rank_is_an_attempt_and_the_agent_lives(processes, future):
    agent = processes.agent(idle_timeout=1)
    victim = ranks_of(processes)[1]
    group = [one for one in descendants(agent) if one.is_running()]
    assert victim in {one.pid for one in group}
    os.kill(victim, signal.SIGKILL)
    assert are_gone(group)
    ranks_of(processes, 2 * RANKS)
    assert agent.poll() is None
    (processes.folder / "gate").touch()
    assert is_right(future)
    group = descendants(agent)
    processes.ends(agent)
    assert are_gone(group)
    (seen,) = outcomes(open_spool(processes.spool)).values()
    assert (seen.attempt, seen.generation) == (1, 1)


def test_an_agent_that_is_killed_leaves_no_rank(processes, future):
    agent = processes.agent()
    ranks = ranks_of(processes)
    group = descendants(agent)
    assert set(ranks) <= {one.pid for one in group}
    agent.kill()
    agent.wait()
    assert are_gone(group)
    other = processes.agent(idle_timeout=1)
    ranks_of(processes, 2 * RANKS)
    (processes.folder / "gate").touch()
    assert is_right(future)
    processes.ends(other)
    (seen,) = outcomes(open_spool(processes.spool)).values()
    assert seen.generation == 1
