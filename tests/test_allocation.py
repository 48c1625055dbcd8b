"""What agents read from the variables of their job, on variables recorded in real jobs."""

from __future__ import annotations

import math
import os
import subprocess
import time

import pytest

from fsbroker.agent import allocation
from fsbroker.agent.allocation import Allocation, Machine, seconds_of
from fsbroker.agent.loop.ending import ALONE, IDLE, TOLD, Ending
from fsbroker.agent.slots import Slots
from fsbroker.agent.walltime import LAST_MOMENT, Walltime
from fsbroker.needs import Shape
from fsbroker.nodes import Node, counted, flux_nodes, limited, node_names

# Recorded from SLURM 22.05.8: `sbatch -N2 -n3`, in the job's script.
SCRIPT = {
    "SLURMD_NODENAME": "n1",
    "SLURM_CPUS_ON_NODE": "2",
    "SLURM_GTIDS": "0",
    "SLURM_JOB_CPUS_PER_NODE": "2,1",
    "SLURM_JOB_ID": "4",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "3",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2,1",
    "SLURM_TASK_PID": "2090",
}

# The same: the second rank of `srun -N3 --ntasks-per-node=1` in a job with 3 x 2 cores and
# `--gres=gpu:2`.
STEP = {
    "CUDA_VISIBLE_DEVICES": "0,1",
    "GPU_DEVICE_ORDINAL": "0,1",
    "ROCR_VISIBLE_DEVICES": "0,1",
    "SLURMD_NODENAME": "n2",
    "SLURM_CPUS_ON_NODE": "2",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_JOB_CPUS_PER_NODE": "2(x3)",
    "SLURM_JOB_ID": "2",
    "SLURM_JOB_NODELIST": "n[1-3]",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_STEP_GPUS": "0,1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-3]",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_TASK_PID": "32712",
}

# The same: the shell of `salloc -N2`, on the machine of whoever called it.
SHELL = {
    "SLURM_JOB_CPUS_PER_NODE": "1(x2)",
    "SLURM_JOB_ID": "5",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_TASKS_PER_NODE": "1(x2)",
}

BATCH = Machine(2, supervisor="slurmstepd: [4.batch]")


class TestSlurm:
    def test_a_script_has_all_nodes_of_its_job(self) -> None:
        found = allocation.read(SCRIPT, BATCH)
        assert found.place == "slurm:4"
        assert found.nodes == (Node("n1", 2), Node("n2", 1))
        assert found.restarts == 0

    def test_a_rank_of_a_step_has_its_own_node(self) -> None:
        here = Machine(2, supervisor="slurmstepd: [2.0]")
        assert allocation.read(STEP, here).nodes == (Node("n2", 2, ("0", "1")),)

    def test_a_whole_step_is_one_agents(self) -> None:
        here = Machine(2, supervisor="slurmstepd: [2.0]")
        variables = {**STEP, "SLURM_STEP_NODELIST": "n[2-3]", "SLURM_JOB_CPUS_PER_NODE": "2(x2),4"}
        found = allocation.read(variables, here, whole=True)
        assert found.nodes == (Node("n2", 2, ("0", "1")), Node("n3", 4, ("0", "1")))

    def test_ranks_side_by_side_share_their_node(self) -> None:
        variables = {**STEP, "SLURM_STEP_TASKS_PER_NODE": "1,2", "SLURM_STEP_NUM_TASKS": "3"}
        (node,) = allocation.read(variables, Machine(2)).nodes
        assert node.cores == 1

    def test_a_job_submitted_from_a_step_is_none(self) -> None:
        """sbatch passes the step's variables on: recorded."""
        inherited = {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n1"}
        found = allocation.read({**SCRIPT, **inherited}, BATCH)
        assert [node.name for node in found.nodes] == ["n1", "n2"]

    def test_a_shell_of_salloc_is_on_no_node_of_its_job(self) -> None:
        found = allocation.read(SHELL, Machine(8))
        assert found.place == "local"
        assert found.nodes == (Node("", 8),)

    def test_memory_is_what_the_job_asked_for(self) -> None:
        found = allocation.read({**SCRIPT, "SLURM_MEM_PER_NODE": "300"}, BATCH)
        assert [node.memory for node in found.nodes] == [300, 300]
        found = allocation.read({**SCRIPT, "SLURM_MEM_PER_CPU": "100"}, BATCH)
        assert [node.memory for node in found.nodes] == [200, 100]

    def test_a_bound_process_has_the_cores_that_it_is_bound_to(self) -> None:
        assert allocation.read(SCRIPT, BATCH._replace(cpus=1)).nodes[0].cores == 2
        assert allocation.read(SCRIPT, BATCH._replace(cpus=1, bound=True)).nodes[0].cores == 1

    def test_a_requeued_job_tells_so(self) -> None:
        assert allocation.read({**SCRIPT, "SLURM_RESTART_COUNT": "2"}, BATCH).restarts == 2

    def test_the_end_is_told_by_slurm(self) -> None:
        variables = {**SCRIPT, "SLURM_JOB_END_TIME": str(int(time.time()) + 100)}
        found = allocation.read(variables, BATCH)
        assert found.seconds == pytest.approx(100, abs=5)
        assert not found.ask

    def test_the_end_is_told_by_the_submitter(self) -> None:
        found = allocation.read(SCRIPT, BATCH._replace(age=7.0), limit=60.0)
        assert found.seconds == 53.0
        assert not found.ask

    def test_else_the_scheduler_is_to_be_asked(self) -> None:
        """A step may begin long after its job, so what the submitter says is not enough."""
        assert allocation.read(SCRIPT, BATCH).seconds == math.inf
        step = allocation.read(STEP, Machine(2, supervisor="slurmstepd: [2.0]"), limit=60.0)
        for found, job in ((allocation.read(SCRIPT, BATCH), "4"), (step, "2")):
            assert found.ask == ("squeue", "--noheader", "--jobs", job, "--format=%L")


# Recorded from Flux: in a task of `flux run`, and in the script of `flux batch`.
FLUX_STEP = {
    "FLUX_JOB_ID": "ƒMonvPh",
    "FLUX_JOB_NNODES": "2",
    "FLUX_JOB_SIZE": "2",
    "FLUX_TASK_LOCAL_ID": "0",
    "FLUX_TASK_RANK": "1",
    "FLUX_URI": "local:///tmp/flux-gR5xvk/local-1",
}
FLUX_SCRIPT = {
    "FLUX_ENCLOSING_ID": "ƒR8XK2X",
    "FLUX_URI": "local:///tmp/flux-ZOX2FC/local-0",
}


class TestFlux:
    def test_a_task_of_a_step(self) -> None:
        found = allocation.read({**FLUX_STEP, "CUDA_VISIBLE_DEVICES": "1,3"}, Machine(4))
        assert found.place == "flux:ƒMonvPh"
        assert found.nodes == (Node(os.uname().nodename, 4, ("1", "3")),)
        assert found.launcher == "mpiexec"
        assert found.ask == ("flux", "job", "timeleft")

    def test_a_script(self) -> None:
        variables = {**FLUX_SCRIPT, "CUDA_VISIBLE_DEVICES": "-1"}
        found = allocation.read(variables, Machine(4, age=5.0), limit=60.0)
        assert found.place == "flux:ƒR8XK2X"
        assert found.launcher == "flux"
        assert found.nodes[0].gpus == ()
        assert found.seconds == 55.0


# Recorded from Flux 0.88: an instance of five nodes that are not alike.
RESOURCES = """{"version":1,"execution":{"R_lite":[
{"rank":"0-2","children":{"gpu":"0-1","core":"0-1,6"}},{"rank":"3-4","children":{"core":"0-3"}}],
"starttime":0.0,"expiration":0.0,"nodelist":["f[1,4-5],g[2-3]"]}}"""


class TestWhatSchedulersWrite:
    def test_the_resources_of_a_flux_instance(self) -> None:
        assert flux_nodes(RESOURCES) == [
            *(Node(name, 3, ("0", "1"), broker=n) for n, name in enumerate(("f1", "f4", "f5"))),
            *(Node(name, 4, broker=n) for n, name in enumerate(("g2", "g3"), 3)),
        ]

    @pytest.mark.parametrize(
        ("has", "most", "gets"),
        [([2, 2, 2], 5, [2, 2, 1]), ([1, 4], 4, [1, 3]), ([4, 1], 4, [3, 1]), ([2, 2], 1, [1])],
    )
    def test_fewer_cores_than_there_are(self, has: list[int], most: int, gets: list[int]) -> None:
        nodes = [Node(str(number), cores) for number, cores in enumerate(has)]
        assert [node.cores for node in limited(nodes, most)] == gets

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("n1", ["n1"]),
            ("n[1-2,07-08],gpu1", ["n1", "n2", "n07", "n08", "gpu1"]),
            ("r[1-2]n[09-10]", ["r1n09", "r1n10", "r2n09", "r2n10"]),
            ("a[1]-ib,b", ["a1-ib", "b"]),
        ],
    )
    def test_names_of_nodes(self, text: str, names: list[str]) -> None:
        assert node_names(text) == names

    @pytest.mark.parametrize(
        "text", ["n[1-2", "n[1:2]", "n1,,n2", "n]1[", ",n1", "n[1-]", "n[a-b]"]
    )
    def test_lists_that_only_slurm_can_read(self, text: str) -> None:
        with pytest.raises(ValueError):
            node_names(text)

    def test_numbers_for_each_node(self) -> None:
        assert counted("2(x3),1") == [2, 2, 2, 1]
        assert counted("128") == [128]

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("1:30\n", 90),
            ("2:00:01", 7201),
            ("1-02:03:04", 93784),
            ("1-02", 93600),
            ("UNLIMITED\n", math.inf),
            ("59\n", 59),  # Flux, recorded
            ("4294967295\n", math.inf),
        ],
    )
    def test_time_left(self, text: str, seconds: float) -> None:
        assert seconds_of(text) == seconds

    @pytest.mark.parametrize("text", ["", "INVALID", "slurm_load_jobs error: Invalid job id"])
    def test_no_time(self, text: str) -> None:
        with pytest.raises(ValueError):
            seconds_of(text)


# -- slots -------------------------------------------------------------------------------

THREE = [Node("a", 4, ("6", "7"), 1000), Node("b", 4, ("0", "1"), 1000), Node("c", 2)]


def shares(slots: Slots, shape: Shape) -> list[tuple[int, int]] | None:
    """Which node each part of a task goes to, and how many ranks; None if it has to wait."""
    slot = slots.take(shape)
    return None if slot is None else [(share.node, share.ranks) for share in slot.shares]


class TestSlots:
    def test_the_fullest_node_that_holds_a_task(self) -> None:
        slots = Slots(THREE)
        assert shares(slots, Shape(1)) == [(2, 1)]
        assert shares(slots, Shape(4)) == [(0, 4)]
        assert shares(slots, Shape(1)) == [(2, 1)]
        assert shares(slots, Shape(1, 3)) == [(1, 1)]

    def test_a_task_for_one_node_waits_for_one(self) -> None:
        slots = Slots(THREE)
        for shape in (Shape(3), Shape(3)):
            slots.take(shape)
        assert shares(slots, Shape(4)) is None
        assert slots.room(Shape(4)) == 0
        assert slots.room(Shape(1)) == 4

    def test_one_that_no_node_holds_is_spread(self) -> None:
        slots = Slots(THREE)
        slot = slots.take(Shape(5))
        assert slot is not None
        assert slot.nodes == ("a", "b")
        assert slot.cpus is None
        assert [len(share.cores) for share in slot.shares] == [3, 2]
        assert slots.room(Shape(5)) == 0
        slots.give_back(slot)
        assert slots.room(Shape(5)) == 1

    def test_nodes_that_a_task_asks_for(self) -> None:
        slots = Slots(THREE)
        assert slots.room(Shape(4, nodes=2)) == 2
        assert shares(slots, Shape(3, nodes=2)) == [(0, 2), (2, 1)]
        assert shares(Slots(THREE), Shape(3, nodes=3)) == [(0, 1), (1, 1), (2, 1)]
        assert not slots.could_fit(Shape(4, nodes=4))
        assert not slots.could_fit(Shape(2, nodes=3))  # each node has a rank

    def test_one_rank_has_cores_of_several_nodes(self) -> None:
        slots = Slots(THREE)
        slot = slots.take(Shape(1, 4, nodes=2))
        assert slot is not None
        assert slot.shape == Shape(1, 4, nodes=2)
        assert [(share.node, len(share.cores)) for share in slot.shares] == [(0, 2), (2, 2)]
        assert slots.room(Shape(1, 4, nodes=2)) == 1
        assert not slots.could_fit(Shape(1, 7, nodes=3))
        slots.give_back(slot)
        assert slots.room(Shape(1)) == slots.cores

    def test_exclusive_takes_whole_nodes(self) -> None:
        slots = Slots(THREE)
        small = slots.take(Shape(1))
        assert slots.room(Shape(2, nodes=2, exclusive=1)) == 1
        assert shares(slots, Shape(2, nodes=2, exclusive=1)) == [(0, 1), (1, 1)]
        assert slots.room(Shape(1)) == 1
        assert slots.room(Shape(1, exclusive=1)) == 0
        assert small is not None
        assert slots.room(Shape(1, exclusive=1), [small]) == 1

    def test_gpus_and_memory_of_each_node(self) -> None:
        slots = Slots(THREE)
        assert slots.room(Shape(2, gpus=1)) == 2
        slot = slots.take(Shape(1, gpus=2))
        assert slot is not None
        assert slot.gpus == ("6", "7")
        assert slots.room(Shape(1, memory=600)) == 4  # c has no limit: its cores count
        assert not slots.could_fit(Shape(1, gpus=3))
        assert shares(Slots(THREE), Shape(3, memory=1200)) == [(0, 2), (1, 1)]

    def test_what_is_given_back_is_free(self) -> None:
        slots = Slots(THREE)
        shapes = [Shape(2, 2, 1, 500), Shape(5), Shape(1)]
        taken = [slot for shape in shapes if (slot := slots.take(shape))]
        assert slots.room(Shape(1), taken) == slots.cores
        for slot in taken:
            slots.give_back(slot)
        assert slots.room(Shape(1)) == slots.cores
        assert slots.room(Shape(2, gpus=1, memory=500)) == 2


# -- time --------------------------------------------------------------------------------


def of(seconds: float = math.inf, ask: tuple[str, ...] = (), lifeline: tuple[int, ...] = ()):
    return Allocation("slurm", "4", 0, (Node("n1", 2),), seconds, ask, lifeline)


class TestWalltime:
    def test_claiming_ends_before_running(self) -> None:
        left = Walltime(of(100.0), margin=40.0)
        assert 59 < left.until_margin() <= 60
        assert 59 < left.next_change() <= 60
        assert 94 < left.for_a_task() <= 100 - LAST_MOMENT
        late = Walltime(of(20.0), margin=40.0)
        assert 9 < late.until_margin() <= 10  # half of a short job
        late.margin = 40.0
        assert late.until_margin() < 0
        assert 14 < late.next_change() <= 20 - LAST_MOMENT
        assert Walltime(of(1.0), margin=0.0).next_change() == 0.0

    def test_a_job_without_an_end(self) -> None:
        assert Walltime(of()).for_a_task() == math.inf
        assert not Walltime(of()).ask()

    def test_the_scheduler_is_asked(self) -> None:
        left = Walltime(of(ask=("sh", "-c", "echo 1:00; exec sleep 60")))
        assert left.for_a_task() == 0.0
        assert left.ask()
        left.hear()
        assert 50 < left.for_a_task() <= 60 - LAST_MOMENT

    @pytest.mark.parametrize("command", ["exit 1", "echo INVALID"])
    def test_a_scheduler_that_does_not_know(self, command: str) -> None:
        left = Walltime(of(200.0, ask=("sh", "-c", command)))
        left.ask()
        left.hear()
        assert 190 < left.for_a_task() <= 200 - LAST_MOMENT

    def test_a_scheduler_that_is_not_there(self) -> None:
        left = Walltime(of(ask=("no-such-squeue",)))
        assert not left.ask()
        assert left.for_a_task() == math.inf

    def test_one_that_hangs_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        left = Walltime(of(ask=("sleep", "60")))
        left.ask()
        assert not left.has_no_answer()
        monkeypatch.setattr(time, "monotonic", lambda: math.inf)
        assert left.has_no_answer()
        process = left._asked
        left.close()
        assert process is not None
        assert process.returncode is not None

    def test_an_orphan_notices(self) -> None:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as script:
            left = Walltime(of(lifeline=(os.getpid(), script.pid)))
            assert not left.is_orphan()
        assert left.is_orphan()
        assert not Walltime(of(lifeline=(script.pid, 0))).is_orphan()  # never seen alive


def test_an_order_to_end_that_comes_late_is_no_idleness() -> None:
    """Else the agent of a job that is cancelled would submit the next one."""
    ending = Ending()
    ending.come(TOLD)
    ending.come(IDLE)
    assert ending.is_ordered()
    ending.come(ALONE)  # nobody else removes a private spool
    assert ending.reason == ALONE
