"""What the scheduler will not run: asked for once, and told to those who wait for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fsbroker.errors import FsbrokerError, ResourceError
from fsbroker.launch.demand import Work
from fsbroker.launch.plan import Wanted
from fsbroker.needs import Shape
from fsbroker.spool.jobs import Cause, QueueJob


class Refusals:
    """The refusals that a process has met, and those that it was told of.

    A client that comes later may ask again: there may be such a partition by now.
    """

    def __init__(self) -> None:
        self._errors: dict[Shape, ResourceError] = {}
        self._own: list[int] = []
        self._rows: set[str] = set()
        self._queues: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._errors)

    def heed(self, jobs: Iterable[QueueJob]) -> None:
        """Do not ask for what was refused to others, either."""
        refused = [job for job in jobs if job.cause == Cause.REFUSED]
        self._rows.update(job.row for job in refused if job.row)
        self._queues.update(job.queue for job in refused if not job.row)

    def met(self, number: int) -> None:
        """A job of this process was refused."""
        self._own.append(number)

    def add(self, job: Wanted, work: Iterable[Work], error: ResourceError) -> None:
        """Ask no more for what this job would have run."""
        for shape in {one.shape for one in work}:
            if shape == job.shape or (not job.row and shape.queue == job.shape.queue):
                self._errors[shape] = error

    def left(self, work: Iterable[Work]) -> list[Work]:
        """The work for which the scheduler may be asked."""
        return [
            replace(one, ready=[row for row in one.ready if row not in self._rows])
            for one in work
            if one.shape not in self._errors and one.shape.queue not in self._queues
        ]

    def rows(self, work: Iterable[Work]) -> dict[str, FsbrokerError]:
        """Rows that get no job, and those that need what they make; why."""
        found: dict[str, FsbrokerError] = {
            row: error
            for one in work
            if (error := self._errors.get(one.shape))
            for row in (*one.ready, *one.waiting)
        }
        waiting = {row: inputs for one in work for row, inputs in one.waiting.items()}
        while more := {
            row: found[name]
            for row, inputs in waiting.items()
            for name in inputs
            if name in found and row not in found
        }:
            found |= more
        return found

    def are_of_this_place(self, jobs: Mapping[int, QueueJob]) -> bool:
        """Whether the like of what was refused to this process was granted to another."""
        asked = {number: (job.queue, job.cores, job.seconds) for number, job in jobs.items()}
        granted = {asked[number] for number, job in jobs.items() if job.id}
        return any(asked[number] in granted for number in self._own)
