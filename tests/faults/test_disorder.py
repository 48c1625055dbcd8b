"""Many processes at once: killed at random, asleep past their lease, without any lock."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress

import psutil
import pytest

from fsbroker.executor import ClusterExecutor
from fsbroker.spool import presence
from fsbroker.spool.spool import create, open_spool
from tests.faults import points
from tests.faults.audit import check, outcomes
from tests.faults.parts import ENVIRONMENT, row, submit
from tests.faults.processes import DEADLINE, REPOSITORY, wait_until
from tests.faults.tasks import hold, task, value_of

SEED = int(os.environ.get("FSBROKER_TEST_SEED", "7"))
PATIENT = {"retries": 200}
"""More agents die here with the same row in hand than a real task may cost."""


# -- SIGKILL at random -------------------------------------------------------------------


class Chaos:
    """A client, two agents and their workers, of which something is always killed."""

    def __init__(self, processes, tasks, kills):
        self._processes = processes
        self._tasks = tasks
        self._kills = kills
        self._random = random.Random(SEED)
        self._agents = []
        self._client = None
        self.killed = Counter()

    def run(self):
        self._keep_running()
        while self._kills:
            time.sleep(self._random.uniform(0.1, 0.8))
            self._keep_running()
            self._kill(self._random.choice(["agent", "agent", "client", "worker"]))
        self._keep_running()

    def _keep_running(self):
        self._agents = [agent for agent in self._agents if agent.poll() is None]
        while len(self._agents) < 2:
            self._agents.append(self._processes.agent(idle_timeout=60, cores=1))
        if self._client is None or self._client.poll() is not None:
            arguments = (str(self._processes.spool), self._processes.journal, str(self._tasks))
            self._client = self._processes.start("chaos", *arguments, str(SEED))

    def _kill(self, what):
        if what == "client":
            victim = self._client.pid
        elif what == "agent":
            victim = self._random.choice(self._agents).pid
        else:
            workers = [
                child.pid
                for agent in self._agents
                for child in _children(agent.pid)
                if "fsbroker.agent.worker" in " ".join(_command(child))
            ]
            if not workers:
                return
            victim = self._random.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            self.killed[what] += 1
            self._kills -= 1
        for process in (*self._agents, self._client):
            if process.pid == victim:
                process.wait()

    def finish(self):
        """The last client ends with every value; it compares them itself."""
        deadline = time.monotonic() + 100
        while self._client.poll() is None:
            assert time.monotonic() < deadline
            self._keep_running_agents()
            time.sleep(0.05)
        assert self._client.returncode == 0, self._processes.output(self._client)
        for agent in self._agents:
            agent.terminate()
        self._processes.ends(self._processes.agent())

    def _keep_running_agents(self):
        for agent in self._agents:
            assert agent.poll() is None, self._processes.output(agent)


def _children(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _command(process):
    with suppress(psutil.Error):
        return process.cmdline()
    return []


@pytest.mark.timeout(300)
def test_random_kills(processes):
    tasks = 1000
    chaos = Chaos(processes, tasks, kills=50)
    began = time.monotonic()
    chaos.run()
    chaos.finish()
    names = {f"t{number}" for number in range(tasks)}
    again = check(open_spool(processes.spool), processes.journal, names)
    took = time.monotonic() - began
    print(f"seed {SEED}: killed {dict(chaos.killed)}, {again} of {tasks} ran again, {took:.0f} s")


# -- two agents --------------------------------------------------------------------------


def lockless(spool):
    """A file system without locks that exclude, as `sshfs` or NFS with `nolock`."""
    create(spool)
    settings = spool / "spool.yaml"
    text = settings.read_text()
    assert "lock: flock" in text
    settings.write_text(text.replace("lock: flock", "lock: none"))
    assert open_spool(spool).files.lock_class == "none"


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "locks that exclude nobody"])
def test_two_agents_share_ten_thousand_tasks(processes, locks):
    if not locks:
        lockless(processes.spool)
    spool = create(processes.spool)
    executor = ClusterExecutor(processes.spool, backend="none")
    agents = [processes.agent(cores=1, idle_timeout=2, lease=30.0) for _ in range(2)]
    wait_until(lambda: len(presence.listing(spool.files, spool.area)) == 2)
    names = [f"t{number}" for number in range(10_000)]
    futures = [executor.submit(task, processes.journal, name) for name in names]
    for name, future in zip(names, futures, strict=True):
        assert future.result(100) == value_of(name)
    executor.shutdown()
    for agent in agents:
        processes.ends(agent)
    check(spool, processes.journal, set(names), exact=True)  # nothing was claimed twice
    shares = Counter(seen.agent for seen in outcomes(spool).values())
    print("shares:", sorted(shares.values()))
    assert len(shares) == 2
    # How much each gets is the machine's affair; that one of them gets next to nothing is not.
    assert min(shares.values()) >= 500


ROWS = 400


def test_four_claim_row_by_row_without_a_lock(processes):
    """As many collisions as there can be: only the records' numbers keep them apart."""
    lockless(processes.spool)
    spool = create(processes.spool)
    stem = submit(spool, [row(number) for number in range(ROWS)])
    claimers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.faults.entry", "claimer", spool.files.root, ENVIRONMENT],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    with ExitStack() as stack:
        for one in claimers:
            stack.callback(one.wait)
            stack.callback(one.kill)
        assert {one.stdout.readline() for one in claimers} == {"joined\n"}
        for one in claimers:
            one.stdin.write("go\n")
            one.stdin.flush()
        said = [one.communicate(timeout=DEADLINE)[0] for one in claimers]
    claimed = [int(number) for text in said for number in text.split()]
    assert sorted(claimed) == list(range(ROWS))
    assert set(outcomes(spool)) == {(stem, number) for number in range(ROWS)}
    print("rows of each:", [len(text.split()) for text in said])


# -- asleep past the lease ---------------------------------------------------------------


@pytest.mark.parametrize("alive", [True, False], ids=["task file live", "task file retired"])
def test_an_agent_that_slept_past_its_lease_discards_its_work(processes, alive):
    """Stopped with rows in hand, taken for dead, woken again: its outcomes are void."""
    spool = create(processes.spool)
    executor = ClusterExecutor(processes.spool, backend="none")
    sleeper = processes.agent(idle_timeout=60)
    gates = [str(processes.folder / name) for name in ("gate", "gate", "last gate")]
    names = [f"t{number}" for number in range(3)]
    futures = [
        executor.submit(hold, processes.journal, *one) for one in zip(names, gates, strict=True)
    ]
    wait_until(lambda: len(_lines(processes.journal)) == 2)  # two cores: two rows run
    os.kill(sleeper.pid, signal.SIGSTOP)
    open(gates[0], "w").close()  # its workers end their tasks, but nobody listens
    # This host knows that the process lives; only its silence counts, as on another one.
    other = processes.agent(cores=3, lease=2)
    if not alive:
        open(gates[2], "w").close()
    for name, future in list(zip(names, futures, strict=True))[: 2 if alive else 3]:
        assert future.result(DEADLINE) == value_of(name)
    if not alive:
        processes.ends(other)
    before = outcomes(spool)
    assert len(spool.files.names(spool.area.tasks)) == alive
    os.kill(sleeper.pid, signal.SIGCONT)
    processes.ends(sleeper, 3)
    assert outcomes(spool) == before
    open(gates[2], "w").close()
    executor.shutdown()
    processes.ends(other)
    assert check(spool, processes.journal, set(names)) == 2
    after = outcomes(spool).values()
    assert len({seen.agent for seen in after}) == 1
    assert sorted(seen.generation for seen in after) == [0, 1, 1]


@pytest.mark.parametrize("point", points.ASLEEP, ids=lambda point: point.name)
def test_an_agent_that_slept_in_the_middle_of_a_step(processes, point):
    """The worst moment: it has decided, and acts when all is over."""
    spool = create(processes.spool)
    executor = ClusterExecutor(processes.spool, backend="none")
    gates = [str(processes.folder / name) for name in ("gate", "gate", "last gate")]
    open(gates[0], "w").close()
    names = [f"t{number}" for number in range(3)]
    futures = [
        executor.submit(hold, processes.journal, *one) for one in zip(names, gates, strict=True)
    ]
    sleeper = processes.agent(point, idle_timeout=60)
    wait_until(processes.mark(point).exists)
    other = processes.agent(cores=3, lease=2)
    for name, future in zip(names[:2], futures[:2], strict=True):
        assert future.result(DEADLINE) == value_of(name)
    # The last row still runs, so the task file is there for the sleeper to act on.
    wait_until(lambda: sleeper.pid not in _present(spool))
    before = outcomes(spool)
    os.kill(sleeper.pid, signal.SIGCONT)
    processes.ends(sleeper, 3)
    assert outcomes(spool) == before
    open(gates[2], "w").close()
    executor.shutdown()
    processes.ends(other)
    check(spool, processes.journal, set(names))


def _present(spool):
    files, area, _ = spool
    described = (presence.about(files, area, one) for one in presence.listing(files, area))
    return {one["pid"] for one in described if one}


def _lines(path):
    with suppress(FileNotFoundError), open(path) as file:
        return file.readlines()
    return []
