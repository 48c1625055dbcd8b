"""What the demo's tasks write down themselves, so that nobody has to believe the broker.

Each rank of a task appends one line to ``tasks.log`` in its directory when it begins, and
one when it has ended:

    began 1763782801.204 4711 0 2 scan Al      event, time, pid, rank, ranks, task

The directory is no part of a task's key: a second client finds the same tasks.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

NAME = "tasks.log"


class Line(NamedTuple):
    """One event of one rank.

    Attributes:
        event: "began" or "ended". time: seconds since the epoch. size: number of ranks.
    """

    event: str
    time: float
    pid: int
    rank: int
    size: int
    task: str


@contextmanager
def running(task: str, rank: int = 0, size: int = 1) -> Iterator[None]:
    """Note that this rank begins the task, and that it ends it (unless it fails)."""
    _append("began", task, rank, size)
    yield
    _append("ended", task, rank, size)


def _append(event: str, task: str, rank: int, size: int) -> None:
    line = f"{event} {time.time():.3f} {os.getpid()} {rank} {size} {task}\n"
    # One write to a descriptor with O_APPEND: lines of several processes never mix.
    descriptor = os.open(NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(directory: str) -> TaskLog:
    """The log as it is now."""
    try:
        with open(os.path.join(directory, NAME)) as file:
            return TaskLog([_parse(line) for line in file if line.endswith("\n")])
    except FileNotFoundError:
        return TaskLog([])


def _parse(line: str) -> Line:
    event, when, pid, rank, size, task = line.rstrip("\n").split(" ", 5)
    return Line(event, float(when), int(pid), int(rank), int(size), task)


class TaskLog:
    """What the lines say of each task.

    Attributes:
        lines: in the order in which they were written.
        attempts: how often each task began: on the rank that began it most often.
        completions: how often each task ended on all of its ranks.
    """

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        began = Counter((line.task, line.rank) for line in lines if line.event == "began")
        ended = Counter((line.task, line.rank) for line in lines if line.event == "ended")
        sizes = {line.task: line.size for line in lines}
        self.attempts = {
            task: max(began[task, rank] for rank in range(size)) for task, size in sizes.items()
        }
        self.completions = {
            task: min(ended[task, rank] for rank in range(size)) for task, size in sizes.items()
        }

    def done(self) -> set[str]:
        """Tasks that have ended at least once."""
        return {task for task, times in self.completions.items() if times}

    def in_progress(self) -> dict[str, list[Line]]:
        """The processes that run a task now: for each such task, a "began" line of each rank."""
        open_lines: dict[tuple[str, int], Line] = {}
        for line in self.lines:
            if line.event == "began":
                open_lines[line.task, line.rank] = line
            else:
                open_lines.pop((line.task, line.rank), None)
        found: dict[str, list[Line]] = {}
        for line in open_lines.values():
            found.setdefault(line.task, []).append(line)
        return found
