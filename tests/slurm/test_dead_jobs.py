"""Queue jobs that die, on a real SLURM: a right value comes all the same, or an error says why.

Nothing here may hang: all waiting has a limit.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fsbroker import ClusterExecutor, Future, errors
from fsbroker.agent.session import AgentSession, Claim
from fsbroker.environment import environment
from fsbroker.launch import queue
from fsbroker.launch.demand import Demand
from fsbroker.launch.slurm import TEMPLATE
from fsbroker.spool import presence
from fsbroker.spool.jobs import JobLog, QueueJob
from fsbroker.spool.spool import Spool, open_spool
from fsbroker.task import Encoding, Status, Value
from tests.testbed.slurm import Cluster

# pytest rewrites this module, and workers would import it as it stands.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slurm

LIMIT = 60.0
ONCE = {"retries": 0}


class Site:
    """A spool, and executors that submit queue jobs for it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.begun = directory / "begun"
        self.executors: list[ClusterExecutor] = []

    def executor(self, **options: Any) -> ClusterExecutor:
        """One with a job for each task."""
        made = ClusterExecutor(
            self.directory / "spool", backend="slurm", **{"idle_timeout": 5.0, **options}
        )
        self.executors.append(made)
        return made

    def beside(self) -> Site:
        """Another spool: those who share one submit jobs for each other's tasks."""
        made = Site(self.cluster, self.directory / "other")
        made.executors = self.executors
        return made

    def long_task(self, executor: ClusterExecutor, name: str = "x") -> Future:
        """It runs for ever at first, and returns its node when it runs again."""
        future = executor.submit(long_at_first, f"{self.begun}-{name}", resource_dict=ONCE)
        self.cluster.wait_for(lambda: self.runs(name) == 1, LIMIT)
        return future

    def runs(self, name: str = "x") -> int:
        path = Path(f"{self.begun}-{name}")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def node(self) -> str:
        """Where the long task ran first."""
        return Path(f"{self.begun}-x").read_text().split()[0]

    def log(self) -> JobLog:
        files, area, _ = open_spool(self.directory / "spool")
        log = JobLog(files, area)
        log.refresh()
        return log

    def jobs(self) -> list[QueueJob]:
        """All that were submitted, in their order."""
        return [job for job in self.log().jobs.values() if job.id]

    def agents(self) -> list[dict[str, Any]]:
        """What the agents that are listed say of themselves."""
        files, area, _ = open_spool(self.directory / "spool")
        found = (presence.about(files, area, one) for one in presence.listing(files, area))
        return [about for about in found if about]

    def kill(self, how: str, agent: dict[str, Any]) -> None:
        """Send a signal to an agent."""
        self.cluster.on(agent["host"], ["kill", f"-{how}", agent["pid"]])


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(queue, "QUERY_EVERY", 1.0)
    made = Site(slurm, tmp_path)
    yield made
    for executor in made.executors:
        executor.shutdown(wait=False, cancel_futures=True)


# -- tasks -------------------------------------------------------------------------------


def hold(size: int) -> None:
    held = bytearray(size)
    time.sleep(1000)
    del held


def long_at_first(begun: str) -> str:
    with open(begun, "a") as file:
        file.write(f"{os.uname().nodename}\n")
    with open(begun) as file:
        if len(file.readlines()) == 1:
            time.sleep(1000)
    return os.uname().nodename


def long_always(begun: str) -> None:
    with open(begun, "a") as file:
        file.write("x\n")
    time.sleep(1000)


def where(_: object = None) -> str:
    return os.uname().nodename


def kill_the_agent(begun: str) -> None:
    with open(begun, "a") as file:
        file.write("x\n")
    subprocess.run(["pkill", "-KILL", "-f", "[f]sbroker.agent --spool"], check=False)
    time.sleep(1000)


# -- jobs that are ended -----------------------------------------------------------------


class TestCancelled:
    def test_a_running_job(self, site: Site) -> None:
        future = site.long_task(site.executor())
        site.cluster.run(["scancel", site.jobs()[-1].id])
        assert future.result(LIMIT) in site.cluster.nodes
        assert site.runs() == 2
        assert len(site.jobs()) == 2

    def test_a_pending_job(self, site: Site) -> None:
        update = ["scontrol", "update", "node=n1,n2,n3"]
        site.cluster.run([*update, "state=drain", "reason=test"])
        future = site.executor().submit(where)
        site.cluster.wait_for(site.jobs, LIMIT)
        site.cluster.run(["scancel", site.jobs()[0].id])
        site.cluster.wait_for(lambda: len(site.jobs()) == 2, LIMIT)
        site.cluster.run([*update, "state=resume"])
        assert future.result(LIMIT) in site.cluster.nodes

    def test_an_orphan(self, site: Site) -> None:
        """A script that does not wait for its agent: nobody tells that of the job's end."""
        template = TEMPLATE.replace("{{command}}", "(setsid bash -c '{{command}}' &)\nsleep 600")
        future = site.long_task(site.executor(submission_template=template))
        (agent,) = site.agents()
        site.kill("STOP", agent)
        site.cluster.run(["scancel", site.jobs()[-1].id])
        assert future.result(LIMIT) in site.cluster.nodes
        assert site.runs() == 2
        lives = ["ps", "-o", "stat=", "-p", agent["pid"]]
        assert "T" in site.cluster.on(agent["host"], lives)
        site.kill("CONT", agent)
        site.cluster.wait_for(
            lambda: not site.cluster.on(agent["host"], lives, check=False).strip(), LIMIT
        )

    def test_a_requeued_job_has_the_same_id(self, site: Site) -> None:
        future = site.long_task(site.executor())
        (job,) = [one.id for one in site.jobs()]
        site.cluster.run(["scontrol", "requeue", job])
        assert future.result(LIMIT) in site.cluster.nodes
        assert [one.id for one in site.jobs()] == [job]
        assert site.runs() == 2


class TestTime:
    def test_time_limits(self, site: Site) -> None:
        """Too long for any job: an error at last. Killed by SLURM unawares: tried again."""
        executor = site.executor(job_time=12)
        endless = executor.submit(long_always, f"{site.begun}-endless", resource_dict=ONCE)
        other = site.beside()
        killed = other.long_task(other.executor(job_time=600))
        job = other.jobs()[0].id
        other.kill("STOP", other.agents()[0])
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 2))
        site.cluster.run(["scontrol", "update", f"jobid={job}", f"EndTime={end}"])
        error = endless.exception(2 * LIMIT)
        assert isinstance(error, errors.WalltimeExceeded)
        assert "cut off 3 times" in str(error)
        assert site.runs("endless") == 3
        assert killed.result(LIMIT) in site.cluster.nodes
        assert other.runs() == 2
        assert (other.jobs()[0].state, other.jobs()[0].source) == ("TIMEOUT", "scontrol")


class TestNodes:
    def test_lost_nodes(self, site: Site) -> None:
        """One without power; one whose slurmd is dead: its job begins anew elsewhere, while
        the first instance lives on, with the same job id.
        """
        other = site.beside()
        off = site.long_task(site.executor(slurm_cmd_args=["--no-requeue", "--exclusive"]))
        cut = other.long_task(other.executor(slurm_cmd_args=["--requeue", "--exclusive"]))
        site.cluster.kill_node(other.node())
        site.cluster.power_off(site.node())
        (third,) = set(site.cluster.nodes) - {site.node(), other.node()}
        assert off.result(2 * LIMIT) == cut.result(2 * LIMIT) == third
        assert [site.runs(), other.runs()] == [2, 2]
        assert site.jobs()[0].state == "NODE_FAIL"
        assert len(site.jobs()) == 2
        assert len(other.jobs()) == 1


class TestWaiting:
    def test_a_job_that_its_user_holds_waits(self, site: Site) -> None:
        future = site.executor(slurm_cmd_args=["--hold"]).submit(where)
        site.cluster.wait_for(site.jobs, LIMIT)
        job = int(site.jobs()[0].id)
        time.sleep(3)  # some queries
        assert site.cluster.jobs()[job].reason == "JobHeldUser"
        site.cluster.run(["scontrol", "release", job])
        assert future.result(LIMIT) in site.cluster.nodes
        assert len(site.jobs()) == 1

    def test_a_job_that_slurm_holds_is_replaced(self, site: Site) -> None:
        """As after a failed launch: nobody would release it."""
        future = site.long_task(site.executor())
        job = site.jobs()[-1].id
        site.cluster.run(["scontrol", "requeuehold", job])
        assert future.result(LIMIT) in site.cluster.nodes
        first, second = site.jobs()
        assert "held" in first.reason
        assert second.id != job

    def test_dependencies_of_jobs(self, site: Site) -> None:
        """A job starts whatever became of that of its input; one that never can is replaced."""
        executor = site.executor()
        first = site.long_task(executor)
        second = executor.submit(pair, first, 1)
        third = executor.submit(pair, first, 2)
        site.cluster.wait_for(lambda: len(site.jobs()) == 3, LIMIT)
        one, _, other = (job.id for job in site.jobs())
        never = f"dependency=afterok:{one}"
        site.cluster.run(["scontrol", "update", f"jobid={other}", never])
        site.cluster.run(["scancel", one])
        assert second.result(LIMIT)[1] == 1
        assert third.result(LIMIT)[1] == 2
        reasons = {job.id: job.reason for job in site.jobs()}
        assert reasons[other] == "DependencyNeverSatisfied"


def pair(node: str, number: int) -> tuple[str, int]:
    return node, number


# -- jobs that die by themselves -----------------------------------------------------------


def other_python() -> str | None:
    """An interpreter of another minor version, with nothing installed into it."""
    known = [shutil.which(f"python3.{minor}") for minor in range(10, 16)]
    known += map(str, Path.home().glob(".pyenv/versions/3.1*/bin/python"))
    say = ["-c", "import sys; print(sys.version_info[1])"]
    for path in filter(None, known):
        done = subprocess.run([path, *say], capture_output=True, text=True, check=False)
        if done.stdout.strip() not in ("", str(sys.version_info[1])):
            return path
    return None


class TestBadStarts:
    @pytest.mark.parametrize(
        ("options", "kind", "texts"),
        [
            ({"python": "/no/such/python"}, "EnvironmentMismatch", ["exit code 127", "/no/such"]),
            ({"setup": ["echo sorry", "exit 0"]}, "JobVanished", ["COMPLETED", "sorry"]),
            ({"setup": ["echo sorry", "exit 5"]}, "JobVanished", ["exit code 5", "sorry"]),
        ],
        ids=["python", "completed", "failed"],
    )
    def test_three_are_enough(
        self, site: Site, options: dict[str, Any], kind: str, texts: list[str]
    ) -> None:
        error = site.executor(**options).submit(where).exception(LIMIT)
        assert type(error).__name__ == kind
        assert all(text in str(error) for text in [*texts, "3 queue jobs", "jobs resume"])
        assert len(site.jobs()) == 3
        assert site.log().paused
        site.log().resume()
        assert site.executor().submit(where).result(LIMIT) in site.cluster.nodes

    def test_another_python(self, site: Site) -> None:
        python = other_python()
        if python is None:
            pytest.skip("there is only one minor version of Python here")
        error = site.executor(python=python).submit(where).exception(LIMIT)
        assert isinstance(error, errors.EnvironmentMismatch)
        assert python in str(error)


class TestVersions:
    def test_what_the_nodes_have_otherwise(self, site: Site, tmp_path: Path) -> None:
        other = tmp_path / "other" / "cloudpickle-0.1.dist-info"
        other.mkdir(parents=True)
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: cloudpickle\nVersion: 0.1\n")
        python = tmp_path / "python"
        python.write_text(
            f'#!/bin/sh\nPYTHONPATH={other.parent}:$PYTHONPATH exec {sys.executable} "$@"\n'
        )
        python.chmod(0o755)
        with pytest.warns(RuntimeWarning, match=r"on n\d cloudpickle is 0\.1, not \d"):
            self.compared(site, python=str(python))

    def test_nodes_that_have_the_same(self, site: Site) -> None:
        assert self.compared(site) == {""}

    def compared(self, site: Site, **options: Any) -> set[str]:
        """What two jobs, one after the other, have found."""
        executor = site.executor(**options)
        assert executor.submit(where).result(LIMIT)
        site.cluster.wait_for(lambda: site.log().compared, LIMIT)
        assert executor.submit(where, 2).result(LIMIT)
        return set(site.log().compared.values())


# Lines of `sacct --parsable2 --format=State,ExitCode,Reason` of a job over its memory: the job,
# its script, and the step that the kernel chose. The private SLURM has no accounting.
SACCT = """#!/bin/sh
echo 'OUT_OF_MEMORY|0:125|None'
echo 'OUT_OF_MEMORY|0:125|'
echo 'COMPLETED|0:0|'
"""


class TestAgents:
    def test_a_task_that_kills_its_agent(self, site: Site) -> None:
        """It has its attempts, each in a job of its own, and an error that tells of each."""
        begun = f"{site.begun}-x"
        future = site.executor().submit(kill_the_agent, begun, resource_dict={"retries": 1})
        error = future.exception(LIMIT)
        assert isinstance(error, errors.WorkerLost)
        assert str(error).count("ended by failure") == 2
        assert site.runs() == 2

    def test_out_of_memory(
        self, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The end of the agent is real; that memory was the reason, a stand-in for sacct says."""
        (tmp_path / "sacct").write_text(SACCT)
        (tmp_path / "sacct").chmod(0o755)
        future = site.long_task(site.executor())
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        site.kill("KILL", site.agents()[0])
        error = future.exception(presence.LEASE / 2)  # sooner than by its silence
        assert isinstance(error, errors.OutOfMemory)
        assert "told by sacct" in str(error)

    def test_a_job_with_more_memory_than_it_has(self, tmp_path: Path) -> None:
        """SLURM kills it, and calls it FAILED; its output tells why."""
        with Cluster(nodes=1, gather="linux") as cluster, pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.environment().items():
                patch.setenv(name, value)
            patch.setattr(queue, "QUERY_EVERY", 1.0)
            site = Site(cluster, tmp_path)
            error = site.executor().submit(hold, 1500 << 20, resource_dict=ONCE).exception(LIMIT)
            site.executors[0].shutdown(wait=False, cancel_futures=True)
        assert isinstance(error, errors.OutOfMemory)
        assert re.search(r"FAILED, .*told by its output", str(error))

    def test_a_job_that_slurm_has_forgotten(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody can tell how it ended: that costs no attempt."""
        executor = site.executor()
        future = site.long_task(executor)
        site.cluster.wait_for(lambda: executor._loop._agents._queries, LIMIT)
        monkeypatch.setattr(queue, "QUERY_EVERY", 1000.0)
        (job,) = [int(one.id) for one in site.jobs()]
        site.kill("KILL", site.agents()[0])
        with short_memory(site.cluster):
            site.cluster.wait_for(lambda: job not in site.cluster.jobs(), LIMIT)
            assert not future.done()
            monkeypatch.setattr(queue, "QUERY_EVERY", 1.0)
            assert future.result(LIMIT) in site.cluster.nodes
        assert site.jobs()[0].state == "VANISHED"


@contextmanager
def short_memory(cluster: Cluster) -> Iterator[None]:
    """SLURM forgets jobs that ended some seconds ago."""
    conf = cluster.directory / "slurm.conf"
    text = conf.read_text()
    try:
        conf.write_text(text.replace("MinJobAge=600", "MinJobAge=2"))
        cluster.run(["scontrol", "reconfigure"])
        yield
    finally:
        conf.write_text(text)
        cluster.run(["scontrol", "reconfigure"])


# -- what nobody tells, without a scheduler ------------------------------------------------


class TestDemand:
    def test_an_input_that_has_ended_needs_no_job(self, tmp_path: Path) -> None:
        """Its agent died before it could say that the other task waits no longer."""
        client = ClusterExecutor(tmp_path / "spool", backend="none")
        first = client.submit(where)
        client._loop.flush(LIMIT)
        second = client.submit(pair, first, 1)
        client._loop.flush(LIMIT)
        spool, agent, claim = claimed(tmp_path / "spool")
        demand = Demand(spool, environment())
        (work,) = demand.look((), inputs=True)
        assert list(work.waiting.values()) == [[f"{claim.live.stem}.0"]]
        agent.publish(
            [agent.holdings.outcome(claim.live, 0, Status.DONE, Value(Encoding.PLAIN, b"1"))]
        )
        (work,) = demand.look((), inputs=True)
        assert list(work.waiting.values()) == [[]]
        assert not second.done()
        client.shutdown(wait=False, cancel_futures=True)

    def test_what_a_silent_agent_holds_is_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = ClusterExecutor(tmp_path / "spool", backend="none")
        client.submit(where)
        client._loop.flush(LIMIT)
        spool, _, _ = claimed(tmp_path / "spool")
        demand = Demand(spool, environment())
        seconds = itertools.count(0.0, 2.0)
        monkeypatch.setattr(spool.files, "monotonic", lambda: next(seconds))
        (work,) = demand.look((), inputs=False)
        assert (work.held, work.ready) == (1, [])
        for _ in range(20):
            (work,) = demand.look((), inputs=False)
        assert (work.held, len(work.ready)) == (0, 1)
        client.shutdown(wait=False, cancel_futures=True)


def claimed(path: Path) -> tuple[Spool, AgentSession, Claim]:
    """An agent that has claimed a row, and does nothing more."""
    spool = open_spool(path)
    agent = AgentSession(spool, environment(), {}, presence.describe())
    agent.join()
    agent.live.poll()
    claim = agent.claim(lambda *_: 1)
    assert claim is not None
    return spool, agent, claim
