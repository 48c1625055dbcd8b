"""Tasks that open executors: what the tests of all backends have run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import fsbroker
from fsbroker import ClusterExecutor, errors
from tests.testbed.in_allocation import LIMIT, come, node


def cores() -> tuple[str, int, list[int]]:
    """The node of a task, how many cores it has, and those that it may run on."""
    return node(), fsbroker.resources().threads_per_core, sorted(os.sched_getaffinity(0))


def below(spool: str, backend: str, depth: int, name: int) -> list[Any]:
    """What tasks have, one below the other: each has submitted the next, and waited for it."""
    if depth == 0:
        return [[name, *cores()]]
    with ClusterExecutor(spool, backend) as executor:
        inner = executor.submit(below, spool, backend, depth - 1, name)
        return [[name, *cores()], *inner.result(LIMIT)]


def crowd(spool: str, backend: str, wanted: int, directory: str) -> dict[str, Any]:
    """An executor of a task: what it has, what it refuses, and tasks on all of it at once."""
    with ClusterExecutor(spool, backend, max_workers=64) as executor:
        refused = ""
        try:
            executor.submit(cores, resource_dict={"threads_per_core": wanted + 1})
        except errors.ResourceError as error:
            refused = str(error)
        tasks = [executor.submit(come, directory, f"{n}", wanted) for n in range(wanted)]
        return {
            "refused": refused,
            "came": [task.result(LIMIT) for task in tasks],
            "below": [executor.submit(cores).result(LIMIT), cores()],
            "spools": sorted(str(path.parent) for path in Path(spool).rglob("spool.yaml")),
        }


def level() -> int:
    """How many Flux instances are above that of this process."""
    found = subprocess.run(
        ["flux", "getattr", "instance-level"], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def levels(spool: str, depth: int, number: int) -> list[list[int]]:
    """The levels of tasks, one below the other, and the cores of their instances."""
    listing = ["flux", "resource", "list", "--no-header", "--states=all", "--format={ncores}"]
    listed = subprocess.run(listing, capture_output=True, text=True, check=True)
    mine = [level(), int(listed.stdout), number]
    if depth == 0:
        return [mine]
    with ClusterExecutor(spool, "allocation", flux_executor_nesting=True) as executor:
        threads = {"threads_per_core": int(listed.stdout)}
        inner = executor.submit(levels, spool, depth - 1, number, resource_dict=threads)
        return [mine, *inner.result(LIMIT)]
