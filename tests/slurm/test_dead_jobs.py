"""Queue jobs that die, on a real SLURM: a right value comes all the same, or an error that says why.

Nothing here may hang: all waiting has a limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fsbroker import ClusterExecutor, Future, errors
from fsbroker.launch import queue
from fsbroker.launch.slurm import TEMPLATE
from fsbroker.spool import presence
from fsbroker.spool.jobs import JobLog, QueueJob
from fsbroker.spool.log import Kind, parse
from fsbroker.spool.spool import open_spool
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
        self.begun = directory / "begun"
        self.executors: list[ClusterExecutor] = []

    def executor(self, **options: Any) -> ClusterExecutor:
        """One with a job for each task."""
        made = ClusterExecutor(
            self.directory / "spool", backend="slurm", **{"idle_timeout": 5.0, **options}
        )
        self.executors.append(made)
        return made

    def long_task(self, executor: ClusterExecutor, name: str = "x") -> Future:
        """It runs for ever at first, and returns its node when it runs again."""
        future = executor.submit(long_at_first, f"{self.begun}-{name}", resource_dict=ONCE)
        self.cluster.wait_for(lambda: self.runs(name) == 1, LIMIT)
        return future

    def runs(self, name: str = "x") -> int:
        path = Path(f"{self.begun}-{name}")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def node_of(self, name: str) -> str:
        return Path(f"{self.begun}-{name}").read_text().split()[0]

    def log(self) -> JobLog:
        files, area, _ = open_spool(self.directory / "spool")
        log = JobLog(files, area)
        log.refresh()
        return log

    def jobs(self) -> list[QueueJob]:
        """All that were submitted, in their order."""
        return [job for job in self.log().jobs.values() if job.id]

    def running(self) -> int:
        """The id of the job that runs, when there is one."""
        states = self.cluster.jobs

        def found() -> list[int]:
            return [job.id for job in states().values() if job.state == "RUNNING"]

        return self.cluster.wait_for(found, LIMIT)[0]

    def agents(self) -> list[dict[str, Any]]:
        """What the agents that are listed say of themselves."""
        files, area, _ = open_spool(self.directory / "spool")
        found = (presence.about(files, area, one) for one in presence.listing(files, area))
        return [about for about in found if about]

    def kill(self, how: str, agent: dict[str, Any]) -> None:
        """Send a signal to an agent."""
        self.cluster.on(agent["host"], ["kill", f"-{how}", agent["pid"]])

    def reasons(self) -> list[str]:
        """Why rows were given back or taken from their agents."""
        files, area, _ = open_spool(self.directory / "spool")
        logs = [f"{files.root}/{area.log(stem)}" for stem in files.names(area.claims)]
        paths = [f"{log}/{name}" for log in logs for name in sorted(os.listdir(log))]
        found = [parse(os.readlink(path)) for path in paths if os.path.islink(path)]
        return [one.about for one in found if one and one.kind in (Kind.RELEASE, Kind.RECOVER)]


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(queue, "QUERY_EVERY", 1.0)
    made = Site(slurm, tmp_path)
    yield made
    for executor in made.executors:
        executor.shutdown(wait=False, cancel_futures=True)


# -- tasks -------------------------------------------------------------------------------


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
        site.cluster.run(["scancel", site.running()])
        assert future.result(LIMIT) in site.cluster.nodes
        assert site.runs() == 2
        assert len(site.jobs()) == 2

    def test_a_pending_job(self, site: Site) -> None:
        site.executor(slurm_cmd_args=["--begin=now+1hour"]).submit(where)
        job = site.cluster.wait_for(site.cluster.jobs, LIMIT)
        future = site.executor().submit(where)
        site.cluster.run(["scancel", *job])
        assert future.result(LIMIT) in site.cluster.nodes

    def test_an_orphan(self, site: Site) -> None:
        """The agent hears nothing of the end of its job, and wakes up when all is over."""
        template = TEMPLATE.replace("{{command}}", "({{command}})\ntrue")
        future = site.long_task(site.executor(submission_template=template))
        (agent,) = site.agents()
        site.kill("STOP", agent)
        site.cluster.run(["scancel", site.running()])
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
        job = site.running()
        site.cluster.run(["scontrol", "requeue", job])
        assert future.result(LIMIT) in site.cluster.nodes
        assert [one.id for one in site.jobs()] == [str(job)]
        assert site.runs() == 2


class TestTime:
    def test_time_limits(self, site: Site) -> None:
        """Too long for any job: an error at last. Killed by SLURM unawares: tried again."""
        executor = site.executor(job_time=12)
        endless = executor.submit(long_always, f"{site.begun}-endless", resource_dict=ONCE)
        killed = site.long_task(site.executor(job_time=600))
        job = next(one.id for one in site.jobs() if one.seconds == 600)
        site.kill("STOP", next(agent for agent in site.agents() if agent["job"] == job))
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 2))
        site.cluster.run(["scontrol", "update", f"jobid={job}", f"EndTime={end}"])
        error = endless.exception(2 * LIMIT)
        assert isinstance(error, errors.WalltimeExceeded)
        assert "cut off 3 times" in str(error)
        assert site.runs("endless") == 3
        assert killed.result(LIMIT) in site.cluster.nodes
        assert site.runs() == 2
        ended = next(one for one in site.jobs() if one.id == job)
        assert (ended.state, ended.source) == ("TIMEOUT", "scontrol")


class TestNodes:
    def test_lost_nodes(self, site: Site) -> None:
        """One without power; one whose slurmd is dead: its job begins anew elsewhere, while
        the first instance lives on, with the same job id.
        """
        final = site.executor(slurm_cmd_args=["--no-requeue", "--exclusive"])
        off = site.long_task(final, "off")
        again = site.executor(slurm_cmd_args=["--requeue", "--exclusive"])
        cut = site.long_task(again, "cut")
        node_off, node_cut = (site.node_of(name) for name in ("off", "cut"))
        job_off, job_cut = (one.id for one in site.jobs())
        site.cluster.kill_node(node_cut)
        site.cluster.power_off(node_off)
        (third,) = set(site.cluster.nodes) - {node_off, node_cut}
        assert off.result(2 * LIMIT) == cut.result(2 * LIMIT) == third
        assert [site.runs("off"), site.runs("cut")] == [2, 2]
        ended = {one.id: one for one in site.jobs()}
        assert ended[job_off].state == "NODE_FAIL"
        assert len(ended) == 3


class TestWaiting:
    def test_a_job_that_its_user_holds_waits(self, site: Site) -> None:
        future = site.executor(slurm_cmd_args=["--hold"]).submit(where)
        (job,) = site.cluster.wait_for(site.cluster.jobs, LIMIT)
        time.sleep(3)  # some queries
        assert site.cluster.jobs()[job].reason == "JobHeldUser"
        site.cluster.run(["scontrol", "release", job])
        assert future.result(LIMIT) in site.cluster.nodes
        assert len(site.jobs()) == 1

    def test_a_job_that_slurm_holds_is_replaced(self, site: Site) -> None:
        """As after a failed launch: nobody would release it."""
        future = site.long_task(site.executor())
        job = site.running()
        site.cluster.run(["scontrol", "requeuehold", job])
        assert future.result(LIMIT) in site.cluster.nodes
        first, second = site.jobs()
        assert "held" in first.reason
        assert second.id != str(job)

    def test_dependencies_of_jobs(self, site: Site) -> None:
        """Whatever becomes of the job of its input, a job starts; and if it never can, another does."""
        executor = site.executor()
        first = site.long_task(executor)
        second = executor.submit(pair, first, 1)
        third = executor.submit(pair, first, 2)
        site.cluster.wait_for(lambda: len(site.jobs()) == 3, LIMIT)
        one, _, other = (job.id for job in site.jobs())
        site.cluster.run(["scancel", one])
        site.cluster.wait_for(lambda: site.cluster.state(int(one)) == "CANCELLED", LIMIT)
        site.cluster.run(
            ["scontrol", "update", f"jobid={other}", f"dependency=afterok:{one}"], check=False
        )
        assert second.result(LIMIT)[1] == 1
        assert third.result(LIMIT)[1] == 2


def pair(node: str, number: int) -> tuple[str, int]:
    return node, number


# -- jobs that die by themselves -----------------------------------------------------------


class TestBadStarts:
    @pytest.mark.parametrize(
        ("options", "kind", "texts"),
        [
            (
                {"python": "/no/such/python"},
                errors.EnvironmentMismatch,
                ["exit code 127", "/no/such"],
            ),
            ({"setup": ["echo sorry", "exit 0"]}, errors.JobVanished, ["COMPLETED", "sorry"]),
            (
                {"setup": ["module load x", "exit 5"]},
                errors.JobVanished,
                ["FAILED", "exit code 5", "module"],
            ),
        ],
        ids=["python", "completed", "failed"],
    )
    def test_three_are_enough(
        self, site: Site, options: dict[str, Any], kind: type, texts: list[str]
    ) -> None:
        future = site.executor(**options).submit(where)
        error = future.exception(LIMIT)
        assert type(error) is kind
        assert all(text in str(error) for text in [*texts, "3 queue jobs", "jobs resume"])
        assert len(site.jobs()) == 3
        assert site.log().paused
        site.log().resume()
        assert site.executor().submit(where).result(LIMIT) in site.cluster.nodes
