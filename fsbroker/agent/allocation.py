"""What the queue job that an agent runs in has been given: its nodes, its end, its name.

    variables of the job, this machine --> Allocation (nodes, GPUs, memory, seconds left)

What the variables tell is read from them without a single process: an agent starts on
thousands of nodes at once. Only where they do not tell when the job ends, the scheduler is
asked, once and beside the work (`Allocation.ask`, `walltime.py`).

An agent in the job's script has all of the job's nodes; one that ``srun`` or ``flux run``
started has its part of its own node, for there are others like it, unless it is told that the
whole step is its own.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from fsbroker.nodes import (
    SPECIAL_STEPS,
    Node,
    ask_flux,
    counted,
    memory_of,
    node_names,
    slurm_nodes,
)
from fsbroker.spool.presence import process_start

_GPU_LISTS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")

_SUPERVISOR = re.compile(r"slurmstepd: \[(?P<job>\d+)(?:\+\d+)?\.(?P<step>\w+)")
"""How slurmstepd titles itself: ``slurmstepd: [17.batch]``, ``slurmstepd: [17.0]``."""

_FLUX_UNLIMITED = str(2**32 - 1)


class Machine(NamedTuple):
    """What a process sees of its machine, beside its variables.

    Attributes:
        cpus: that it may run on. bound: those are not all that the machine has.
        age: seconds since the process started that the job's step began with.
        lifeline: that process, and the one above it: slurmstepd.
        supervisor: title of the latter.
    """

    cpus: int
    bound: bool = False
    age: float = 0.0
    lifeline: tuple[int, ...] = ()
    supervisor: str = ""


@dataclass(frozen=True)
class Allocation:
    """What a queue job was given, as far as this agent may use it.

    Attributes:
        kind: "slurm", "flux", or "" outside of a job.
        job: its id.
        restarts: how often the scheduler has started this job again under the same id.
        nodes: the agent's own first.
        seconds: until the job's end; inf where there is none, or it is not known.
        ask: the command that prints the time left, where only the scheduler knows it.
        lifeline: processes of this machine without which the job is over.
        launcher: of MPI ranks, a name in `launchers.TABLE`.
    """

    kind: str
    job: str
    restarts: int
    nodes: tuple[Node, ...]
    seconds: float = math.inf
    ask: tuple[str, ...] = ()
    lifeline: tuple[int, ...] = ()
    launcher: str = "mpiexec"

    @property
    def place(self) -> str:
        """What started the agent, as its presence file says it."""
        return f"{self.kind}:{self.job}" if self.kind else "local"


def current(limit: float = 0.0, *, whole: bool = False) -> Allocation:
    """This process' allocation.

    Args:
        limit: seconds that the job was submitted with, where the submitter said so.
        whole: of a step of SLURM that has more nodes than this, all are the agent's.
    """
    here = machine(int(os.environ.get("SLURM_TASK_PID", "0")))
    return read(os.environ, here, limit, whole=whole)


def machine(task: int) -> Machine:
    """This machine as seen by this process, in a step that began with the process ``task``."""
    cpus = len(os.sched_getaffinity(0))
    ticks = process_start(task) or process_start(os.getpid())
    began = int(ticks) / os.sysconf("SC_CLK_TCK")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    above = _parent(task)
    return Machine(cpus, cpus < (os.cpu_count() or cpus), age, (task, above), _title(above))


def _parent(pid: int) -> int:
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
    return 0


def _title(pid: int) -> str:
    """Command line of a process; "" where it may not be seen."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
        return file.read().replace("\0", " ")
    return ""


def read(
    variables: Mapping[str, str], here: Machine, limit: float = 0.0, *, whole: bool = False
) -> Allocation:
    """The allocation that the variables of a process speak of; see `current`."""
    # First: Flux runs in jobs of SLURM, not the other way round.
    if variables.get("FLUX_JOB_ID") or variables.get("FLUX_ENCLOSING_ID"):
        return _flux(variables, here, limit)
    # A shell of salloc has a job, but runs on no node of it: it is as if it had none.
    if variables.get("SLURM_JOB_ID") and variables.get("SLURMD_NODENAME"):
        return _slurm(variables, here, limit, whole=whole)
    return Allocation("", "", 0, (Node("", here.cpus),))


# -- SLURM -------------------------------------------------------------------------------


def _slurm(variables: Mapping[str, str], here: Machine, limit: float, *, whole: bool) -> Allocation:
    job, name = variables["SLURM_JOB_ID"], variables["SLURMD_NODENAME"]
    step = _in_step(variables, here)
    own = Node(name, _own_cores(variables, here, step), _gpus(variables))
    own = own._replace(memory=memory_of(variables, own.cores))
    others = () if step and not whole else _other_nodes(variables, own, whole=whole)
    nodes = (own, *others)
    seconds = _seconds_left(variables, here, limit)
    # A step that began late has less left than the submitter's limit says.
    known = "SLURM_JOB_END_TIME" in variables or (limit > 0 and not step)
    ask = () if known else ("squeue", "--noheader", "--jobs", job, "--format=%L")
    restarts = int(variables.get("SLURM_RESTART_COUNT", 0))
    return Allocation("slurm", job, restarts, nodes, seconds, ask, here.lifeline, "srun")


def _in_step(variables: Mapping[str, str], here: Machine) -> bool:
    """Whether ``srun`` started us, and not the job's script.

    Not by SLURM_STEP_ID alone: a job that was submitted from within a step has inherited
    that step's variables (measured with SLURM 22.05).
    """
    title = _SUPERVISOR.search(here.supervisor)
    step = title["step"] if title else variables.get("SLURM_STEP_ID", "")
    return step.isdigit() and int(step) < SPECIAL_STEPS


def _own_cores(variables: Mapping[str, str], here: Machine, step: bool) -> int:
    """Cores of this agent on its own node: what SLURM gave, or less where it is bound to less."""
    cores = int(variables.get("SLURM_CPUS_ON_NODE", here.cpus))
    if step:
        # Agents side by side on one node share what the step has there.
        counts = counted(variables.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        at = int(variables.get("SLURM_NODEID", 0))
        cores = max(1, cores // counts[min(at, len(counts) - 1)])
    return min(cores, here.cpus) if here.bound else cores


def _other_nodes(variables: Mapping[str, str], own: Node, *, whole: bool) -> tuple[Node, ...]:
    """The job's nodes, or those of a whole step, but this one.

    Their GPUs count from 0: SLURM tells only this one's ids.
    """
    nodes = slurm_nodes(variables)
    there = node_names(variables["SLURM_STEP_NODELIST"]) if whole else [one.name for one in nodes]
    gpus = tuple(map(str, range(len(own.gpus))))
    return tuple(
        one._replace(gpus=gpus) for one in nodes if one.name in there and one.name != own.name
    )


def _gpus(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Ids of this node's devices that the job has, as programs must name them."""
    if not int(variables.get("SLURM_GPUS_ON_NODE", 0)):
        return ()
    text = next((variables[name] for name in _GPU_LISTS if name in variables), "")
    return tuple(filter(None, text.split(",")))


def _seconds_left(variables: Mapping[str, str], here: Machine, limit: float) -> float:
    if "SLURM_JOB_END_TIME" in variables:  # newer than 22.05
        return int(variables["SLURM_JOB_END_TIME"]) - time.time()
    return limit - here.age if limit else math.inf


# -- Flux --------------------------------------------------------------------------------


def _flux(variables: Mapping[str, str], here: Machine, limit: float) -> Allocation:
    """A part of one node in a step; all nodes of the instance in the script of a batch job.

    A step holds its cores in the instance itself, so what it starts there would wait for
    them; the script of a batch job has an instance of its own, and holds nothing in it.
    """
    own = Node(platform.node(), here.cpus, _flux_gpus(variables))
    step = variables.get("FLUX_JOB_ID", "")
    return Allocation(
        kind="flux",
        job=variables.get("FLUX_ENCLOSING_ID") or step,
        restarts=0,
        nodes=(own,) if step else _instance(variables, own),
        seconds=limit - here.age if limit else math.inf,
        ask=("flux", "job", "timeleft"),
        launcher="mpiexec" if step else "flux",
    )


def _instance(variables: Mapping[str, str], own: Node) -> tuple[Node, ...]:
    """The instance's nodes, this one first; only this one where Flux does not tell."""
    try:
        nodes = ask_flux()
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return (own,)
    here = re.search(r"/local-(\d+)$", variables.get("FLUX_URI", ""))
    broker = int(here[1]) if here else 0
    return tuple(sorted(nodes, key=lambda node: (node.broker != broker, node.broker)))


def _flux_gpus(variables: Mapping[str, str]) -> tuple[str, ...]:
    text = variables.get("CUDA_VISIBLE_DEVICES", "")
    # Flux hides all devices from a task without GPUs by the id -1.
    return tuple(each for each in text.split(",") if each.isdigit())


# -- time ----------------------------------------------------------------------------------


def seconds_of(text: str) -> float:
    """Time left, as ``squeue`` (``1-02:03:04``, ``UNLIMITED``) or Flux (seconds) prints it.

    Raises:
        ValueError: it says no time.
    """
    text = text.strip()
    if text in ("UNLIMITED", _FLUX_UNLIMITED):
        return math.inf
    days, dash, clock = text.rpartition("-")
    parts: Sequence[float] = [float(part) for part in clock.split(":")]
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + part
    if dash and len(parts) < 3:  # d-h, d-h:m
        seconds *= 60 ** (3 - len(parts))
    return 86400 * int(days or 0) + seconds
