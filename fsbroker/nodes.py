"""What nodes a job has, and what a task has of them, as schedulers and agents write it.

Agents read it in jobs (`agent.allocation`), clients before they start agents in one
(`launch.allocation`), and executors inside of tasks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

PATIENCE = 20.0
"""Seconds for an answer of a scheduler."""

SPECIAL_STEPS = 0xFFFFFFF0
"""Numbers of SLURM's steps from here on stand for a job's script, or the shell of ``salloc``."""

SLOT = "FSBROKER_SLOT"
"""The variable that tells a task, and each program that it starts, what it has."""


def own_slot() -> dict[str, Any] | None:
    """What the task has that this process is part of; None outside of tasks."""
    return slot_in(os.environ)


def slot_in(variables: Mapping[str, str]) -> dict[str, Any] | None:
    """What the task has that these variables are of; None in jobs that a task has submitted.

    Those inherit its variables, and have cores of their own.
    """
    slot = dict(json.loads(variables.get(SLOT, "{}")))
    return slot if slot and slot.get("job", "") == job_of(variables) else None


def job_of(variables: Mapping[str, str]) -> str:
    """The job of SLURM that a process belongs to; "" if none."""
    return variables.get("SLURM_JOB_ID", "")


def cores_of(slot: Mapping[str, Any]) -> int:
    """How many cores a process of a task has on its own node."""
    nodes = len(slot["nodes"]) if slot["ranks"] == 1 else 1
    return int(slot["threads"]) // max(1, nodes) or 1


class Node(NamedTuple):
    """What an agent may use of one node.

    Attributes:
        name: as the scheduler calls it; "" for this machine outside of a job.
        gpus: ids of devices. memory: MB; 0 for no limit.
        broker: rank of Flux's process there; None outside of a Flux instance.
    """

    name: str
    cores: int
    gpus: tuple[str, ...] = ()
    memory: int = 0
    broker: int | None = None


def limited(nodes: Sequence[Node], cores: int) -> tuple[Node, ...]:
    """Nodes with no more than so many cores in all: as evenly as they have them."""
    shares = dict.fromkeys(range(len(nodes)), 0)
    for place, number in enumerate(sorted(shares, key=lambda number: nodes[number].cores)):
        shares[number] = min(nodes[number].cores, -(-cores // (len(nodes) - place)))
        cores -= shares[number]
    return tuple(nodes[number]._replace(cores=share) for number, share in shares.items() if share)


# -- a process and its job -----------------------------------------------------------------


def slurm_nodes(variables: Mapping[str, str]) -> list[Node]:
    """The nodes of a SLURM job; their GPUs are told of in other ways."""
    names = _names(variables["SLURM_JOB_NODELIST"])
    counts = counted(variables["SLURM_JOB_CPUS_PER_NODE"])
    return [
        Node(name, cores, memory=memory_of(variables, cores))
        for name, cores in zip(names, counts, strict=True)
    ]


def _names(text: str) -> list[str]:
    try:
        return node_names(text)
    except ValueError:
        argv = ["scontrol", "show", "hostnames", text]
        said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE)
        return said.stdout.split()


def flux_nodes(written: str) -> list[Node]:
    """The nodes of a Flux instance, from what ``flux kvs get resource.R`` prints.

    Raises:
        ValueError, KeyError: it says something else.
    """
    execution = json.loads(written)["execution"]
    names = iter(node_names(",".join(execution["nodelist"])))
    found = []
    for part in execution["R_lite"]:
        has = {kind: tuple(_numbers(ids)) for kind, ids in part["children"].items()}
        for broker in _numbers(part["rank"]):
            node = Node(next(names), len(has["core"]), has.get("gpu", ()), broker=int(broker))
            found.append(node)
    return found


def ask_flux() -> list[Node]:
    """The nodes of the Flux instance that this process belongs to.

    Raises:
        OSError, subprocess.SubprocessError: there is no Flux, or it does not answer.
        ValueError, KeyError: it is not understood.
    """
    argv = ["flux", "kvs", "get", "resource.R"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return flux_nodes(said.stdout)


# -- what schedulers write ---------------------------------------------------------------

_RANGES = r"\[(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)\]"
_PIECE = re.compile(rf"{_RANGES}|([^\[\],]+)")
_NAME = re.compile(rf"(?:{_RANGES}|[^\[\],]+)+")


def node_names(text: str) -> list[str]:
    """A list of nodes as SLURM and Flux shorten it, spelled out: ``n[1-2,07-08],gpu1``.

    Raises:
        ValueError: it is written in another way.
    """
    found: list[str] = []
    at = 0
    while at < len(text):
        match = _NAME.match(text, at)
        if match is None or text[match.end() : match.end() + 1] not in ("", ","):
            message = f"not a list of nodes: {text!r}"
            raise ValueError(message)
        pieces = [
            _numbers(numbers) if numbers else [plain]
            for numbers, plain in _PIECE.findall(match.group())
        ]
        found += map("".join, product(*pieces))
        at = match.end() + 1
    return found


def _numbers(text: str) -> list[str]:
    """``1-2,07-08`` spelled out, as wide as the first number of each range is."""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers = range(int(first), int(last or first) + 1)
        found += [f"{number:0{len(first)}}" for number in numbers]
    return found


def counted(text: str) -> list[int]:
    """Numbers for one node after the other, as SLURM shortens them: ``2(x3),1``."""
    found: list[int] = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def memory_of(variables: Mapping[str, str], cores: int) -> int:
    """MB of the job on a node with so many of its cores; 0 where SLURM sets no limit."""
    if "SLURM_MEM_PER_CPU" in variables:
        return int(variables["SLURM_MEM_PER_CPU"]) * cores
    return int(variables.get("SLURM_MEM_PER_NODE", 0))
