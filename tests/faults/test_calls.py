"""File calls of real processes that fail, one at a time: nothing is lost, and it is told.

Each strike hits an agent (or a client) of its own in one spool, which finds what the ones
before it have left. One that is struck goes on, or ends with a message that names the
path; in the end a clean agent finishes everything.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.batches import prefix_of
from tests.faults.inject import FAULTS, SIGKILL, Strike, chosen, recorded, recorder
from tests.faults.processes import DEADLINE

pytestmark = pytest.mark.strace

MOST = 15
"""Calls of one kind that are struck in a long run, one in each of so many agents."""
FEW = {
    "EIO": ("openat", "pread64", "fsync", "linkat", "symlink", "rename"),
    "ENOSPC": ("fsync", "symlink"),
    "EDQUOT": ("write",),
    "ESTALE": ("openat", "getdents64"),
    "EINTR": ("fsync",),
    SIGKILL: ("rename",),
}
"""What a short run strikes, one call of each in the middle."""
TOLD = {
    "ENOSPC": "space",
    "EDQUOT": "quota",
    "EIO": "Input/output",
    "ESTALE": "Stale",
    "EINTR": "Interrupted",
}


@pytest.fixture
def numbers(batches, processes):
    """Which calls of an agent touch the spool."""
    batches.submit("clean")
    output = processes.folder / "recorded"
    processes.ends(processes.agent(before=recorder(output)))
    return recorded(output, processes.spool)


def strikes_at(fault, numbers, long):
    for call in FAULTS[fault] if long else FEW[fault]:
        assert numbers[call], f"no {call} on the spool was seen"
        for nth in chosen(numbers[call], MOST if long else 1):
            yield Strike(fault, call, nth)


def check_end(processes, process, strike):
    """It went on, or said what was wrong and where."""
    status, said = process.wait(DEADLINE), processes.output(process)
    if strike.fault == SIGKILL:
        assert status in (0, -signal.SIGKILL), said
        return
    assert status in (0, 1), f"{strike}: ended with {status}\n{said}"
    if status:
        assert "Traceback" not in said, f"{strike}\n{said}"
        assert str(processes.spool) in said, f"{strike}\n{said}"
        assert TOLD[strike.fault] in said, f"{strike}\n{said}"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fault", FAULTS)
def test_an_agent_whose_file_calls_fail(batches, processes, numbers, fault, long):
    ends = []
    for number, strike in enumerate(strikes_at(fault, numbers, long)):
        batches.submit(prefix_of(number))
        struck = processes.agent(before=strike.command())
        check_end(processes, struck, strike)
        ends.append(f"{strike}: {struck.returncode}")
    print(*ends, sep="\n")
    batches.finish()


CLIENT = ("mkdir", "fsync", "linkat", "unlink")
"""What a client's thread alone calls, once for each task file."""


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", SIGKILL])
def test_a_client_whose_file_calls_fail(batches, processes, fault, long):
    """Killed, its task is there or not. Else it has all of its values, or was told the cure."""
    for number, call in enumerate(CLIENT if long else CLIENT[1:3]):
        prefix = prefix_of(number)
        strike = Strike(fault, call, 1)
        agent = processes.agent(idle_timeout=60)
        client = processes.client(prefix, 5, before=strike.command(threads=True))
        status, said = client.wait(DEADLINE), processes.output(client)
        if fault == SIGKILL:
            assert status == -signal.SIGKILL, said
        elif fault == "ENOSPC" and status:
            assert "SpoolFull" in said
            assert f"{processes.spool}" in said.splitlines()[-1]
            assert "Free some space" in said.splitlines()[-1]
        else:
            assert status == 0, f"{strike}: {said}"
            assert said.count("['") == 5
        agent.kill()
        agent.wait()
        batches.submit(prefix)
    batches.finish()


@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS"])
def test_a_host_without_locks(batches, processes, error):
    """One agent can lock, the other cannot: neither waits for ever, nor do both own a row."""
    batches.submit("a", 40)
    every = ["-e", "trace=flock", "-e", f"inject=flock:error={error}:when=1+"]
    without = processes.agent(before=["strace", "-qq", "-o", os.devnull, *every], lease=60)
    with_locks = processes.agent(cores=1, lease=60)
    for agent in (without, with_locks):
        processes.ends(agent)
    batches.finish(exact=True)
