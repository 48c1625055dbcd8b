"""A client inside a job, as a program: ``python -m tests.testbed.in_allocation STORY DIRECTORY``.

Its stories are what the tests of ``backend="allocation"`` have run in jobs of SLURM and in Flux;
what they found stands in DIRECTORY/STORY.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsbroker import ClusterExecutor, errors

LIMIT = 60.0


def node() -> str:
    """The node that this process is on; of Flux's, which are one machine, the socket tells."""
    return os.environ.get("FLUX_URI", os.uname().nodename).rpartition("/")[2]


def meet(directory: str, name: int, hosts: int) -> str:
    """The node; returns once tasks on so many nodes have come."""
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/{node()}", "w"):
        pass
    while len(os.listdir(directory)) < hosts:
        time.sleep(0.05)
    return node() if name >= 0 else ""


def come(directory: str, name: str, others: int) -> list[str]:
    """Returns who is there, once so many have come."""
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/{name}", "w"):
        pass
    while len(os.listdir(directory)) < others:
        time.sleep(0.05)
    return sorted(os.listdir(directory))


def ranks() -> tuple[str, int, int]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    assert world.allreduce(world.rank) == sum(range(world.size))
    return node(), world.rank, world.size


def agents_of(spool: str) -> list[str]:
    """Who is present in another spool."""
    return [name for area in Path(spool, "users").iterdir() for name in os.listdir(area / "agents")]


def executor(directory: Path, spool: str = "spool", **options: Any) -> ClusterExecutor:
    return ClusterExecutor(directory / spool, "allocation", idle_timeout=2.0, **options)


def refusal(client: ClusterExecutor, **wishes: Any) -> str:
    try:
        client.submit(os.getpid, resource_dict=wishes)
    except errors.ResourceError as error:
        return str(error)
    return ""


def everything(directory: Path) -> dict[str, Any]:
    """Serial tasks on all nodes at once, ranks on two of them, and what does not fit."""
    with executor(directory) as client:
        tasks = [client.submit(meet, str(directory / "met"), n, 3) for n in range(6)]
        return {
            "hosts": sorted({task.result(LIMIT) for task in tasks}),
            "ranks": client.submit(ranks, resource_dict={"cores": 2, "num_nodes": 2}).result(LIMIT),
            "refused": [
                refusal(client, cores=7),
                refusal(client, threads_per_core=3),
                refusal(client, cores=4, num_nodes=4),
                refusal(client, partition="test"),
            ],
        }


def halves(directory: Path) -> dict[str, Any]:
    """Two clients with half of the cores each are at work at the same time."""
    here = str(directory / "come")
    with (
        executor(directory, "one", max_workers=2) as one,
        executor(directory, "two", max_workers=2) as two,
    ):
        tasks = [
            client.submit(come, here, f"{name}{n}", 4)
            for name, client in (("a", one), ("b", two))
            for n in range(2)
        ]
        return {
            "came": tasks[0].result(LIMIT),
            "refused": refusal(one, cores=3),
            "all": [task.result(LIMIT) == tasks[0].result(LIMIT) for task in tasks],
        }


def whole(directory: Path) -> dict[str, Any]:
    """Two that want all of it: the second waits until the first one's agent has ended."""
    with executor(directory, "one") as one, executor(directory, "two") as two:
        assert one.submit(os.getpid).result(LIMIT)
        before = agents_of(str(directory / "one"))
        seen = two.submit(agents_of, str(directory / "one")).result(LIMIT)
        return {"before": len(before), "seen": seen}


STORIES: dict[str, Callable[[Path], dict[str, Any]]] = {
    story.__name__: story for story in (everything, halves, whole)
}

if __name__ == "__main__":
    story, place = sys.argv[1], Path(sys.argv[2])
    found = STORIES[story](place)
    (place / f"{story}.json").write_text(json.dumps(found))
