"""What an agent was started with, and what it starts its workers with."""

from __future__ import annotations

from dataclasses import dataclass

from fsbroker.agent.allocation import Allocation
from fsbroker.agent.launchers import TABLE
from fsbroker.agent.processes import Settings
from fsbroker.agent.slots import Slot
from fsbroker.agent.walltime import MARGIN
from fsbroker.spool.spool import Spool


@dataclass(frozen=True)
class Plan:
    """What an agent was started with.

    Attributes:
        allocation: the nodes that it may use, and until when.
        place: what started it: "local", or a queue job: "slurm:123".
        margin: seconds before the end of its job from which on it claims nothing.
        idle_timeout: seconds without work after which it ends.
        launcher: template that MPI ranks are started by. pmi: srun's ``--mpi``; "": found.
        oversubscribe: programs of tasks may start more ranks than they have cores.
        nested: tasks of one rank have Flux instances of their own.
        watch: how to see news: "auto", "watchdog" or "polling".
        lease: seconds of silence after which another agent is taken for dead.
        job: number of its queue job in the spool's log of them.
        queue: what its job has of the site (`Shape.queue`).
        only: the one row that it runs, as task file and number; None: any.
        workers: that may be busy at once; 0: as many as fit.
        first_worker: the least of their numbers.
        leashed: the client that started it may say more, on stdin.
        private: the spool is that client's alone, and goes with it.
    """

    allocation: Allocation
    place: str = "local"
    margin: float = MARGIN
    idle_timeout: float = 120.0
    launcher: tuple[str, ...] = TABLE["mpiexec"]
    pmi: str = ""
    oversubscribe: bool = False
    nested: bool = False
    watch: str = "auto"
    lease: float = 30.0
    job: int | None = None
    queue: str = ""
    only: tuple[str, int] | None = None
    workers: int = 0
    first_worker: int = 0
    leashed: bool = False
    private: bool = False

    def settings(self, spool: Spool, scratch: str, slot: Slot) -> Settings:
        """Of a worker in this slot.

        Args:
            scratch: the agent's directory on this node.
        """
        files, area, durable = spool
        nested = self.nested and slot.shape.cores == len(slot.nodes) == 1
        return Settings(
            spool=files.root,
            area=area.path,
            scratch=scratch,
            cpus=None if nested else slot.cpus,
            threads=slot.shape.threads,
            gpus=slot.gpus,
            memory=slot.shape.memory,
            durable=durable,
            key=files.keyring.public if files.keyring else "",
            node=self.allocation.nodes[0].name,
            nodes=slot.nodes,
            brokers=slot.brokers,
            shared=f"{files.root}/{area.tmp}",
            launcher=self.launcher,
            pmi=self.pmi,
            oversubscribe=self.oversubscribe,
            nested=nested,
        )
