"""How many queue jobs, and which: a function of the open work and of the jobs that are there.

    Work, open jobs, Config -> [Wanted]

Two ways. *Pilots* (``block_allocation``) drain the spool: as many as the work needs, within
``min_jobs`` and ``max_jobs``. *A job for each task* has what this task asks for; tasks whose
inputs are not there get theirs too, and the scheduler lets them wait, so that no
allocation burns meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fsbroker.config import Config
from fsbroker.launch.demand import Work
from fsbroker.needs import USUAL_PRIORITY, Shape
from fsbroker.spool.jobs import QueueJob
from fsbroker.spool.layout import parse_stem

START = 60.0
"""Seconds of a job's time limit beyond what its task may take: to start, and to end in peace."""
MOST_JOBS = 100
"""Open jobs where ``max_jobs`` is not set; sites have limits of their own."""


class Wanted(NamedTuple):
    """A queue job that is missing.

    Attributes:
        shape: what it must have. For a pilot its cores are ranks, and its GPUs those of all.
        queue: what its tasks ask of the site.
        seconds: time limit; 0 for the site's.
        row: the one row that it runs; "" for a pilot.
        after: ids of jobs that come first.
        priority: of that row.
    """

    shape: Shape
    queue: Mapping[str, Any]
    seconds: float = 0.0
    row: str = ""
    after: tuple[str, ...] = ()
    priority: int = USUAL_PRIORITY


def wanted(work: Iterable[Work], jobs: Sequence[QueueJob], config: Config) -> list[Wanted]:
    """The jobs to submit now."""
    # Each scheduler that serves the spool has jobs of its own.
    room = (config.max_jobs or MOST_JOBS) - sum(job.scheduler == config.backend for job in jobs)
    if room <= 0:
        return []
    found = _pilots(work, jobs, config) if config.block_allocation else _each(work, jobs, config)
    return found[:room]


def _pilots(work: Iterable[Work], jobs: Sequence[QueueJob], config: Config) -> list[Wanted]:
    kinds: dict[str, list[Work]] = {}
    for one in work:
        if one.ready:
            kinds.setdefault(one.shape.queue, []).append(one)
    found: list[tuple[int, list[Wanted]]] = []
    for queue, same in kinds.items():
        shape = _large_enough(same, config)
        needed = sum(_cores(one.shape) * (len(one.ready) + one.held) for one in same)
        count = max(1, config.min_jobs, -(-needed // _cores(shape)))
        there = sum(1 for job in jobs if job.queue == queue and job.cores >= _cores(shape))
        limits = [limit for one in same for limit in one.limits.values()]
        seconds = _seconds(limits, same[0].queue, config)
        found.append((there, [Wanted(shape, same[0].queue, seconds)] * (count - there)))
    # Those with the fewest jobs first: no partition's work starves for another's.
    found.sort(key=lambda kind: kind[0])
    return [one for _, missing in found for one in missing]


def _large_enough(work: Sequence[Work], config: Config) -> Shape:
    """What a pilot needs so that each of these tasks fits."""
    shapes = [one.shape for one in work]
    cores = max(config.max_workers or 1, *map(_cores, shapes))
    most = max(shapes, key=lambda shape: shape.gpus * shape.cores)
    together = cores // _cores(most)
    return Shape(
        cores,
        gpus=most.gpus * most.cores * together,
        memory=max(shape.memory * (cores // _cores(shape)) for shape in shapes),
        nodes=max(config.nodes_per_job, *(shape.nodes for shape in shapes)),
        exclusive=max(shape.exclusive for shape in shapes),
        queue=shapes[0].queue,
    )


def _each(work: Iterable[Work], jobs: Sequence[QueueJob], config: Config) -> list[Wanted]:
    made_by = {job.row: job for job in jobs if job.row}
    found = []
    for one in work:
        found += [_for_row(one, row, (), config) for row in one.ready if row not in made_by]
        for row, inputs in one.waiting.items():
            makers = [made_by[name] for name in inputs if name in made_by]
            # All inputs that are still to come must have jobs to wait for.
            if row not in made_by and len(makers) == len(inputs) and all(m.id for m in makers):
                found.append(_for_row(one, row, tuple(maker.id for maker in makers), config))
    return found


def _for_row(work: Work, row: str, after: tuple[str, ...], config: Config) -> Wanted:
    shape = work.shape
    seconds = _seconds([work.limits[row]], work.queue, config)
    name = parse_stem(row.rpartition(".")[0])
    priority = name.priority if name is not None else USUAL_PRIORITY
    return Wanted(shape, work.queue, seconds, row, after, priority)


def _seconds(limits: Sequence[float], queue: Mapping[str, Any], config: Config) -> float:
    """The time limit of a job in which the tasks fit; 0: the site's."""
    longest = max(limits, default=0.0)
    job_time = config.in_partition(queue.get("partition")).job_time
    if job_time is not None:
        return max(job_time, longest + START if longest else 0.0)
    return longest + START if longest and all(limits) else 0.0


def _cores(shape: Shape) -> int:
    return shape.cores * shape.threads
