"""Agents on the nodes of the job that a client runs in: one for all of them.

    in a job of SLURM      srun --nodes=N agent             a step of the job
    in a Flux instance     flux run --nodes=N flux start agent     an instance below this one

So the scheduler keeps the books between agents, and with all else that the user starts in the
job: an agent has what it takes for itself, and a second one waits until that is free. What
an agent starts does not stand in these books again: steps of SLURM overlap its own, and the
instance of Flux is its own. Inside of a task the allocation is that of the task: `local`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from fsbroker.config import Config
from fsbroker.errors import ResourceError, SchedulerError
from fsbroker.launch.local import LocalLauncher
from fsbroker.launch.scheduler import run
from fsbroker.launch.settings import check_nesting
from fsbroker.needs import Capacity
from fsbroker.nodes import SPECIAL_STEPS, Node, ask_flux, limited, slurm_nodes
from fsbroker.spool.layout import Presence
from fsbroker.spool.spool import Spool

_GPUS = re.compile(r"\bgres[:/]gpu(?:[:=][a-z]\w*)?[:=](\d+)")
"""In what ``scontrol show job`` says: ``TresPerNode=gres:gpu:2``, ``gres/gpu:a100=4``."""


class Allotment(NamedTuple):
    """What an agent is to have of an allocation.

    Attributes:
        kind: "slurm" or "flux". job: id of the former's.
        nodes: for the agent; their names only where it has all nodes.
        part: the agent leaves cores of these nodes to others.
    """

    kind: str
    job: str
    nodes: Sequence[Node]
    part: bool = False

    def command(self) -> list[str]:
        """What an agent's command is preceded by."""
        return _srun(self) if self.kind == "slurm" else _flux_run(self)


def allotment(cores: int | None = None, nodes: int = 1) -> Allotment:
    """What this process' allocation has for an agent.

    Args:
        cores: the most that it is to have, on as few nodes as have them; None: all.
        nodes: the fewest, with ``cores``.

    Raises:
        ResourceError: there is no allocation, or it has not so many nodes.
        SchedulerError: the scheduler does not tell.
    """
    all_of_it = _here()
    if nodes > len(all_of_it.nodes):
        where = f"nodes_per_job={nodes}; the allocation has {len(all_of_it.nodes)} nodes"
        raise ResourceError("An agent wants more nodes than there are", where)
    if cores is None or cores >= sum(node.cores for node in all_of_it.nodes):
        return all_of_it
    smallest = min(all_of_it.nodes, key=lambda node: node.cores)
    count = max(nodes, -(-cores // smallest.cores))
    if count > len(all_of_it.nodes):  # which are not alike
        return all_of_it._replace(nodes=limited(all_of_it.nodes, cores))
    return all_of_it._replace(nodes=[_part(smallest, -(-cores // count))] * count, part=True)


def _part(node: Node, cores: int) -> Node:
    """Of its GPUs and memory as much as of its cores."""
    gpus = node.gpus[: len(node.gpus) * cores // node.cores]
    return Node("", cores, gpus, node.memory * cores // node.cores)


def _here() -> Allotment:
    """All of the allocation."""
    # First: Flux runs in jobs of SLURM, not the other way round.
    if os.environ.get("FLUX_URI"):
        return _in_flux()
    job = os.environ.get("SLURM_JOB_ID", "")
    if job and "SLURM_JOB_NODELIST" in os.environ:
        gpus = tuple(map(str, range(_gpus_of_job(job))))
        return Allotment(
            "slurm", job, [node._replace(gpus=gpus) for node in slurm_nodes(os.environ)]
        )
    raise ResourceError(
        "This process runs in no allocation",
        'backend="allocation"',
        "Start it in a queue job (sbatch, salloc, flux batch, flux alloc) or under `flux start`,"
        ' or use "local", "slurm" or "flux".',
    )


def _in_flux() -> Allotment:
    if os.environ.get("FLUX_JOB_ID"):
        raise ResourceError(
            "A step of Flux has no instance of its own to start agents in",
            f"FLUX_JOB_ID={os.environ['FLUX_JOB_ID']}",
            "Start it by `flux batch` or `flux alloc`, or as `flux run ... flux start python ...`.",
        )
    try:
        return Allotment("flux", "", ask_flux())
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        said = str(getattr(error, "stderr", "") or error).strip()
        what = f"Flux does not tell its nodes ({said})"
        raise SchedulerError(what, os.environ["FLUX_URI"]) from error


def _gpus_of_job(job: str) -> int:
    """Of each node. Only on the job's nodes the variables tell."""
    if "SLURM_GPUS_ON_NODE" in os.environ or "SLURMD_NODENAME" in os.environ:
        return int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
    found = _GPUS.search(run(["scontrol", "show", "job", job]))
    return int(found[1]) if found else 0


def _srun(wanted: Allotment) -> list[str]:
    """A step with one process on each node, of which that on the first becomes the agent."""
    count = len(wanted.nodes)
    return [
        "srun",
        f"--nodes={count}",
        f"--ntasks={count}",
        "--ntasks-per-node=1",
        "--cpu-bind=none",
        "--mpi=none",
        "--wait=0",
        "--kill-on-bad-exit=1",
        "--quiet",
        *_books(wanted),
    ]


def _books(wanted: Allotment) -> list[str]:
    """What a step takes from others; all that its nodes have if nothing is said."""
    step = int(os.environ.get("SLURM_STEP_ID", SPECIAL_STEPS))
    if step < SPECIAL_STEPS:
        return ["--overlap"]  # our own step holds already what the agent is to have
    if not wanted.part:
        return []
    one = wanted.nodes[0]
    return [
        "--exact",
        f"--cpus-per-task={one.cores}",
        f"--gres=gpu:{len(one.gpus)}" if one.gpus else "--gres=none",
        *([f"--mem={one.memory}"] if one.memory else []),
    ]


def _flux_run(wanted: Allotment) -> list[str]:
    count, one = len(wanted.nodes), wanted.nodes[0]
    part = [
        f"--cores-per-task={one.cores}",
        *([f"--gpus-per-task={len(one.gpus)}"] if one.gpus else []),
    ]
    size = [f"--nodes={count}", f"--ntasks={count}"]
    return ["flux", "run", *size, *(part if wanted.part else ["--exclusive"]), "flux", "start"]


class AllocationLauncher(LocalLauncher):
    """Sees to it that one agent has all nodes of the allocation, or the cores it may have."""

    def __init__(self, spool: Spool, config: Config, wanted: Allotment) -> None:
        check_nesting(config, wanted.kind)
        self._wanted = wanted
        nodes, cores = wanted.nodes, config.max_workers
        there = sum(node.cores for node in nodes)
        most = min(cores or there, there)
        launcher = "srun" if wanted.kind == "slurm" else "flux"
        super().__init__(spool, replace(config, max_workers=most, agents=1), launcher)
        self.capacity = Capacity(
            most,
            f"max_workers={cores}" if most == cores else f"{there} cores of the allocation",
            sum(len(node.gpus) for node in nodes),
            sum(node.memory for node in nodes) if all(node.memory for node in nodes) else 0,
            len(nodes),
            nodes_from="what an agent has of the allocation",
        )

    def command(self, cores: int | None = None) -> list[str]:  # noqa: ARG002 - it has its nodes
        return [
            *self._wanted.command(),
            *self._agent,
            "--whole",
            f"--cores={self._allowed.cores}",
            *self._options,
        ]

    def needed(self, shapes: Iterable[str]) -> int:
        """1 if there is work: what does not fit waits for the agents it was meant for."""
        return int(any(True for _ in shapes))

    def _running(self, present: Iterable[Presence], needed: int) -> int:  # noqa: ARG002
        """Agents that this client has started. If others are there, they wait for its end."""
        return len(self._started)
