"""Agents inside jobs of a real SLURM: time, ends of all kinds, several nodes, MPI under srun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from fsbroker import ClusterExecutor, errors
from fsbroker.spool import presence
from fsbroker.spool.log import Kind, Record, parse
from fsbroker.spool.spool import Spool, open_spool
from tests.testbed.mpi import find
from tests.testbed.slurm import Cluster

# pytest rewrites this module, and workers would import it as it stands.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slurm

LIMIT = 60.0
MARK = "fsbroker-test-sleeper"
REPOSITORY = Path(__file__).resolve().parents[2]


class Site:
    """A spool, a client without agents, and agents in jobs."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.client = ClusterExecutor(directory / "spool", backend="none")
        self.spool: Spool = open_spool(directory / "spool")

    def job(
        self, *arguments: str, agent: str = "", script: str = "exec {agent}", **variables: str
    ) -> int:
        """Submit a job; ``{agent}`` in its script is the command of an agent."""
        spool = self.directory / "spool"
        command = f"{sys.executable} -m fsbroker.agent --spool={spool} {agent}"
        file = self.directory / f"script-{time.monotonic_ns()}"
        file.write_text(f"#!/bin/sh\n{script.format(agent=command)}\n")
        output = f"--output={self.directory}/%j.out"
        own = {**self.cluster.environment(), "PYTHONPATH": str(REPOSITORY)}
        return self.cluster.sbatch(output, *arguments, file, env={**own, **variables})

    def output(self, job: int) -> str:
        return (self.directory / f"{job}.out").read_text()

    def ended(self, job: int) -> str:
        """Wait for the end of a job; its state."""
        over = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
        self.cluster.wait_for(lambda: self.cluster.state(job) not in over, LIMIT)
        return self.cluster.state(job)

    def on_nodes(self, name: str) -> list[str]:
        """Processes of that name on all nodes."""
        found = []
        for node in self.cluster.nodes:
            listing = self.cluster.on(node, ["ps", "-eo", "args"]).splitlines()
            found += [line for line in listing if line.startswith(name)]
        return found

    def agents(self) -> list[dict[str, Any]]:
        """What the agents that are present say of themselves."""
        files, area, _ = self.spool
        found = (presence.about(files, area, one) for one in presence.listing(files, area))
        return [about for about in found if about]

    def records(self, kind: str) -> list[Record]:
        """All records of that kind in all logs."""
        files, area, _ = self.spool
        logs = [f"{files.root}/{area.log(stem)}" for stem in files.names(area.claims)]
        paths = [f"{log}/{name}" for log in logs for name in os.listdir(log)]
        found = [parse(os.readlink(path)) for path in paths if os.path.islink(path)]
        return [record for record in found if record and record.kind == Kind(kind)]


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path) -> Iterator[Site]:
    made = Site(slurm, tmp_path)
    yield made
    made.client.shutdown(wait=False, cancel_futures=True)


# -- tasks -------------------------------------------------------------------------------


def where(_: object = None) -> tuple[str, int]:
    return os.uname().nodename, os.getpid()


def ranks(_: object = None) -> tuple[str, int, int, int]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    total = world.allreduce(world.rank)
    assert total == sum(range(world.size))
    return os.uname().nodename, os.getpid(), world.rank, world.size


def long_at_first(begun: str) -> str:
    """Sleeps for long, but returns at once where it has been begun before."""
    try:
        with open(begun, "x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        return os.uname().nodename
    time.sleep(1000)
    return "slept"


def long_group_at_first(begun: str) -> str:
    """As `long_at_first`, on several ranks."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    again = world.bcast(os.path.exists(begun))
    world.barrier()
    with open(begun, "a"):
        pass
    if not again:
        time.sleep(1000)
    return os.uname().nodename


def fail_on(which: int, how: str) -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == which:
        print("rank", which, "fails", file=sys.stderr)
        if how == "raise":
            raise LookupError("no")
        if how == "exit":
            sys.exit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    MPI.COMM_WORLD.barrier()


def meet(directory: str, name: object, count: int) -> tuple[str, int]:
    """Returns once so many have come."""
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/{name}", "w"):
        pass
    while len(os.listdir(directory)) < count:
        time.sleep(0.05)
    return os.uname().nodename, os.getpid()


def devices(directory: str, name: object, count: int) -> tuple[str, str]:
    """The node and the GPUs of a task, once so many have come."""
    host, _ = meet(directory, name, count)
    return host, os.environ["CUDA_VISIBLE_DEVICES"]


def meet_all(directory: str) -> bool:
    from mpi4py import MPI

    MPI.COMM_WORLD.barrier()
    return os.path.exists(directory)


def until_exists(path: str) -> None:
    """Says on which node it is, and returns when the path is there."""
    with open(f"{path}.{os.uname().nodename}", "w"):
        pass
    while not os.path.exists(path):
        time.sleep(0.05)


def start_and_wait(path: str) -> None:
    """Starts a program that nobody is the parent of, and waits with it."""
    subprocess.run(["bash", "-c", f"setsid bash -c 'exec -a {MARK} sleep 1000' &"], check=True)
    until_exists(path)


def die() -> None:
    print("last words", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)


def fill_memory() -> None:
    content = bytearray(os.urandom(1 << 20) * 1000)
    time.sleep(60)
    print(len(content))


# -- time --------------------------------------------------------------------------------


class TestTime:
    def test_only_what_fits_is_claimed(self, site: Site) -> None:
        """The job's limit is an hour: what the agent is told counts."""
        long = site.client.submit(where, "long", resource_dict={"run_time_max": 200})
        short = site.client.submit(where, "short", resource_dict={"run_time_max": 50})
        other = site.client.submit(where, "no limit")
        job = site.job("--ntasks=2", "--time=60", agent="--time=100 --idle-timeout=1")
        assert short.result(LIMIT)[0] == other.result(LIMIT)[0] == "n1"
        assert site.ended(job) == "COMPLETED"
        assert not long.done()
        again = site.job("--ntasks=2", "--time=60", agent="--time=300 --idle-timeout=1")
        assert long.result(LIMIT)[0] in site.cluster.nodes
        assert site.ended(again) == "COMPLETED"

    def test_slurm_tells_what_the_submitter_did_not(self, site: Site) -> None:
        """Tasks with a limit wait for the answer, those without do not."""
        long = site.client.submit(where, "long", resource_dict={"run_time_max": 600})
        short = site.client.submit(where, "short", resource_dict={"run_time_max": 10})
        job = site.job("--ntasks=2", "--time=1", agent="--idle-timeout=1")
        assert short.result(LIMIT)[0] == "n1"
        assert site.ended(job) == "COMPLETED"
        assert not long.done()

    def test_the_end_of_the_job(self, site: Site, tmp_path: Path) -> None:
        """What runs is given back in the last moment and costs no attempt."""
        begun = tmp_path / "begun"
        future = site.client.submit(long_at_first, str(begun), resource_dict={"retries": 0})
        job = site.job("--time=60", agent="--time=14 --margin=8")
        site.cluster.wait_for(begun.exists, LIMIT)
        late = site.client.submit(where, "late")
        assert site.ended(job) == "COMPLETED"
        assert not late.done()
        assert [record.about for record in site.records("release")] == [
            "free the time of the agent's queue job was over"
        ]
        assert not site.agents()
        site.job(agent="--time=300 --idle-timeout=1")
        assert future.result(LIMIT) in site.cluster.nodes
        assert late.result(LIMIT)[0] in site.cluster.nodes


class TestEnds:
    @pytest.mark.parametrize("script", ["exec {agent}", "{agent}\ntrue"])
    def test_scancel(self, site: Site, tmp_path: Path, script: str) -> None:
        begun = tmp_path / "begun"
        future = site.client.submit(long_at_first, str(begun), resource_dict={"retries": 0})
        job = site.job(agent="--time=300", script=script)
        site.cluster.wait_for(begun.exists, LIMIT)
        site.cluster.run(["scancel", job])
        site.cluster.wait_for(lambda: not site.agents(), LIMIT)
        assert [record.about for record in site.records("release")] == [
            "free the agent was told to end"
        ]
        site.job(agent="--time=300 --idle-timeout=1")
        assert future.result(LIMIT) in site.cluster.nodes

    def test_an_orphan(self, site: Site, tmp_path: Path) -> None:
        """The job's script is gone, and nobody tells the agent that it started."""
        begun = tmp_path / "begun"
        future = site.client.submit(long_at_first, str(begun), resource_dict={"retries": 0})
        job = site.job(agent="--time=300", script="{agent}\ntrue")
        site.cluster.wait_for(begun.exists, LIMIT)
        (agent,) = site.agents()
        parent = site.cluster.on("n1", ["ps", "-o", "ppid=", "-p", agent["pid"]])
        site.cluster.on("n1", ["kill", "-KILL", parent.strip()])
        site.ended(job)
        site.cluster.wait_for(lambda: not site.agents(), LIMIT)
        assert [record.about for record in site.records("release")] == [
            "free the agent's queue job is gone"
        ]
        site.job(agent="--time=300 --idle-timeout=1")
        assert future.result(LIMIT) in site.cluster.nodes

    def test_scancel_of_a_group(self, site: Site) -> None:
        """Its ranks may be told before the agent is: that is no accident of theirs."""
        begun = str(site.directory / "begun")
        wishes = {"cores": 2, "num_nodes": 2, "retries": 0}
        future = site.client.submit(long_group_at_first, begun, resource_dict=wishes)
        job = site.job("--nodes=2", "--ntasks-per-node=1", agent="--time=300")
        site.cluster.wait_for(lambda: os.path.exists(begun), LIMIT)
        step = "pkill -TERM -o -x srun"  # only those of this pretend node
        site.cluster.on("n1", ["sh", "-c", f"{step}; sleep 0.2"])
        site.cluster.run(["scancel", job])
        site.cluster.wait_for(lambda: not site.agents(), LIMIT)
        assert [record.about.split()[0] for record in site.records("release")] == ["free"]
        site.job("--nodes=2", "--ntasks-per-node=1", agent="--time=300 --idle-timeout=1")
        assert len(set(future.result(LIMIT))) == 2

    def test_requeue(self, site: Site, tmp_path: Path) -> None:
        begun = tmp_path / "begun"
        future = site.client.submit(long_at_first, str(begun), resource_dict={"retries": 0})
        job = site.job("--requeue", agent="--time=300 --idle-timeout=60")
        site.cluster.wait_for(begun.exists, LIMIT)
        (first,) = site.agents()
        site.cluster.run(["scontrol", "requeue", job])
        future.result(2 * LIMIT)
        (second,) = site.agents()
        assert [each["job"] for each in (first, second)] == [str(job)] * 2
        assert [each["restart"] for each in (first, second)] == [0, 1]

    def test_a_task_over_its_own_limit_is_killed_alone(self, site: Site) -> None:
        site.job(agent="--time=300 --idle-timeout=1")
        slow = site.client.submit(time.sleep, 100, resource_dict={"run_time_max": 1})
        assert isinstance(slow.exception(LIMIT), errors.TimeLimitExceeded)
        assert site.client.submit(where).result(LIMIT)[0] == "n1"


# -- several nodes -----------------------------------------------------------------------


class TestNodes:
    def test_an_agent_has_the_cores_of_all_nodes(self, site: Site) -> None:
        job = site.job("--nodes=2", "--ntasks-per-node=2", agent="--time=300 --idle-timeout=5")
        meeting = str(site.directory / "met")
        futures = [site.client.submit(meet, meeting, number, 4) for number in range(4)]
        found = [future.result(LIMIT) for future in futures]
        assert sorted(host for host, _ in found) == ["n1", "n1", "n2", "n2"]
        serial = site.client.submit(meet, meeting, "x", 6)
        group = site.client.submit(meet_all, meeting, resource_dict={"cores": 2})
        wide = {"threads_per_core": 2, "num_nodes": 1}
        assert not serial.done()
        site.client.submit(meet, meeting, "y", 6).result(LIMIT)  # unlike ones side by side
        assert group.result(LIMIT)
        assert site.client.submit(where, resource_dict=wide).result(LIMIT)
        assert site.ended(job) == "COMPLETED", site.output(job)

    def test_what_workers_elsewhere_tell(self, site: Site) -> None:
        """Output, errors, a limit, and an end: as on the agent's own node."""
        site.job("--nodes=2", "--ntasks-per-node=1", agent="--time=300 --idle-timeout=5")
        block = site.client.submit(until_exists, str(site.directory / "go"))
        site.cluster.wait_for((site.directory / "go.n1").exists, LIMIT)
        wishes = {"retries": 0}
        died = site.client.submit(die, resource_dict=wishes).exception(LIMIT)
        assert isinstance(died, errors.WorkerLost)
        assert "killed by signal 9 (SIGKILL)" in str(died)
        assert "n2" in str(died)
        assert "last words" in str(died.__cause__)
        wishes = {"run_time_max": 1}
        slow = site.client.submit(time.sleep, 100, resource_dict=wishes).exception(LIMIT)
        assert isinstance(slow, errors.TimeLimitExceeded)
        big = site.client.submit(fill_memory, resource_dict={"memory_max": 0.2})
        assert isinstance(big.exception(LIMIT), errors.OutOfMemory)
        assert site.client.submit(where).result(LIMIT)[0] == "n2"
        (site.directory / "go").touch()
        block.result(LIMIT)

    def test_gpus_of_all_nodes(self, site: Site) -> None:
        """Tasks at once see disjoint devices, also where the first had none."""
        wanted = ("--nodes=2", "--ntasks-per-node=2", "--gres=gpu:2")
        site.job(*wanted, agent="--time=300 --idle-timeout=1")
        meeting = str(site.directory / "met")
        without = [site.client.submit(devices, f"{meeting}-none", n, 4) for n in range(4)]
        assert [found for _, found in (each.result(LIMIT) for each in without)] == [""] * 4
        wishes = {"gpus_per_core": 1}
        futures = [
            site.client.submit(devices, meeting, n, 4, resource_dict=wishes) for n in range(4)
        ]
        found = sorted(future.result(LIMIT) for future in futures)
        assert found == [("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")]

    def test_nothing_is_left_when_the_agent_is_killed(self, site: Site) -> None:
        """Serial workers and ranks of other nodes end with it, and what they started."""
        job = site.job(
            "--nodes=2", "--ntasks-per-node=2", agent="--time=300", script="{agent}; sleep 60"
        )
        go = str(site.directory / "go")
        group = site.client.submit(start_and_wait, go, resource_dict={"cores": 2, "num_nodes": 2})
        others = [site.client.submit(start_and_wait, f"{go}{number}") for number in range(2)]
        wanted = [f"{go}.n1", f"{go}.n2"]
        site.cluster.wait_for(lambda: all(map(os.path.exists, wanted)), LIMIT)
        site.cluster.wait_for(lambda: len(site.on_nodes(MARK)) == 4, LIMIT)
        (agent,) = site.agents()
        site.cluster.on("n1", ["kill", "-KILL", agent["pid"]])
        site.cluster.wait_for(lambda: not site.on_nodes(MARK), LIMIT)
        assert site.cluster.state(job) == "RUNNING"
        assert not any(future.done() for future in (group, *others))

    def test_one_agent_on_each_node(self, site: Site) -> None:
        """The simple way inside an allocation: each takes its own node."""
        script = "srun --ntasks-per-node=1 {agent}"
        job = site.job("--nodes=3", agent="--idle-timeout=3", script=script)
        site.cluster.wait_for(lambda: len(site.agents()) == 3, LIMIT)
        assert {agent["host"] for agent in site.agents()} == {"n1", "n2", "n3"}
        assert site.client.submit(where).result(LIMIT)
        pair = site.client.submit(ranks, resource_dict={"cores": 1}).result(LIMIT)
        assert pair
        assert site.ended(job) == "COMPLETED"


# -- MPI ---------------------------------------------------------------------------------


class TestMpi:
    @pytest.mark.parametrize(("count", "nodes"), [(2, 1), (2, 2), (4, 2), (3, 2)])
    def test_ranks_over_nodes(self, site: Site, count: int, nodes: int) -> None:
        site.job("--nodes=2", "--ntasks-per-node=2", agent="--time=300 --idle-timeout=1")
        wishes = {"cores": count, "num_nodes": nodes}
        first = site.client.submit(ranks, 1, resource_dict=wishes).result(LIMIT)
        second = site.client.submit(ranks, 2, resource_dict=wishes).result(LIMIT)
        assert [(rank, size) for _, _, rank, size in first] == [(n, count) for n in range(count)]
        assert len({host for host, *_ in first}) == nodes
        assert first == second  # the group was kept warm

    def test_a_rank_that_fails(self, site: Site) -> None:
        """The error names it, the others do not hang, and the agent takes the next task."""
        site.job("--nodes=2", "--ntasks-per-node=1", agent="--time=300 --idle-timeout=1")
        wishes = {"cores": 2, "num_nodes": 2, "retries": 0}
        failures = {
            how: site.client.submit(fail_on, 1, how, resource_dict=wishes).exception(LIMIT)
            for how in ("raise", "exit", "kill")
        }
        assert isinstance(failures["raise"], LookupError)
        assert isinstance(failures["exit"], errors.FsbrokerError | SystemExit)
        assert isinstance(failures["kill"], errors.WorkerLost)
        assert "Rank 1 of 2 ended (killed by signal 9 (SIGKILL))" in str(failures["kill"])
        found = site.client.submit(ranks, resource_dict=wishes).result(LIMIT)
        assert [host for host, *_ in found] == ["n1", "n2"]

    @pytest.mark.openmpi
    def test_the_wrong_pmi_is_named(self, site: Site) -> None:
        """pmi2 with Open MPI: it says so itself, or each rank finds itself alone."""
        variables = find("openmpi").settings
        job = site.job("--ntasks=2", agent="--time=300 --idle-timeout=1 --pmi=pmi2", **variables)
        future = site.client.submit(ranks, resource_dict={"cores": 2})
        error = future.exception(LIMIT)
        assert isinstance(error, errors.RankFailed), site.output(job)
        assert "--mpi=pmi2" in str(error)
        site.ended(job)
        site.job("--ntasks=2", agent="--time=300 --idle-timeout=1", **variables)
        found = site.client.submit(ranks, "found by itself", resource_dict={"cores": 2})
        assert [size for *_, size in found.result(LIMIT)] == [2, 2]
