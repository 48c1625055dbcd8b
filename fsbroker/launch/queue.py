"""Agents in queue jobs: submitted as the open work needs them, by whoever is there.

    Demand (open work) --plan--> Wanted --intent--> job log --submit--> scheduler
                                            ^---- states, endings ------'

A client's thread does this, or an agent that ends (`successor.py`), or a command. None of
them knows more than the spool and the scheduler say, so any of them may take over.

A client asks with `ensure`, which never waits for the scheduler: a controller that is down
delays jobs, and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fsbroker.config import Config, Partition
from fsbroker.environment import environment
from fsbroker.errors import (
    EnvironmentMismatch,
    FsbrokerError,
    JobVanished,
    MissingProgram,
    ResourceError,
    SchedulerError,
    SpoolError,
)
from fsbroker.launch.demand import Demand, Work
from fsbroker.launch.plan import Wanted, wanted
from fsbroker.launch.scheduler import Ending, Request, Scheduler, Status
from fsbroker.launch.script import is_plain
from fsbroker.needs import Capacity
from fsbroker.spool.jobs import JobLog, QueueJob
from fsbroker.spool.spool import Spool

if TYPE_CHECKING:
    from fsbroker.client.session import ClientSession

QUERY_EVERY = 30.0
"""Seconds between two questions to the scheduler, however many jobs and tasks there are."""
LOOK_EVERY = 2.0
"""Seconds between two looks at what is open."""
NOBODY_ASKS = 15.0
"""Seconds without `ensure` after which the thread ends."""
UNSETTLED = 90.0
"""Seconds after which an intent that the scheduler has no job for was never submitted."""
FAILURES = 3
"""Jobs in a row that end before an agent of theirs was seen: then no more are submitted."""
LAST_WORDS = 800
"""Characters of a job's output that an error shows."""

_MISMATCH = re.compile(
    r"^MISMATCH|exit code 12[67]:|(?:ModuleNotFound|Import)Error: |and the client has "
)
"""Jobs whose Python is not there, lacks a package, or is another than the client's."""
_HOPELESS = ("held", "DependencyNeverSatisfied", "JobLaunchFailure", "BadConstraints")
"""Reasons of pending jobs that will not start by themselves."""


class QueueLauncher:
    """Sees to it that queue jobs run what is open in an area.

    Attributes:
        capacity: the scheduler decides what a task may ask for.
        log: of the area's queue jobs.
    """

    def __init__(self, spool: Spool, scheduler: Scheduler, config: Config) -> None:
        self._spool = spool
        self._scheduler = scheduler
        self._config = config
        self._demand = Demand(spool, environment())
        self.log = JobLog(spool.files, spool.area)
        self.capacity = Capacity(1 << 20, "the scheduler", 1 << 20, 0, 1 << 16, has_queue=True)
        self._settings = ""
        self._started: set[str] = set()
        self._idle: set[int] = set()
        self._last_query = -QUERY_EVERY
        self._queries = 0
        self._asked = 0.0
        self._wrong: FsbrokerError | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def of_settings(cls, spool: Spool, digest: str) -> QueueLauncher:
        """With settings that were stored when jobs were submitted before.

        Raises:
            SpoolError: they are not there.
        """
        log = JobLog(spool.files, spool.area)
        config = config_of(log.settings(digest))
        return cls(spool, scheduler_of(config), config)

    # -- for the client's loop -----------------------------------------------------------

    def ensure(self, session: ClientSession[Any], shapes: Iterable[str]) -> FsbrokerError | None:
        """See to jobs in the background; what is wrong, if no job can run what is open."""
        with self._lock:
            self._asked = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fsbroker-jobs", daemon=True)
                self._thread.start()
            wrong, self._wrong = self._wrong, None
        if any(shapes) and not session.results.present():
            self._wake.set()
        return wrong

    def _run(self) -> None:
        while True:
            try:
                self.step()
            except (SchedulerError, OSError, SpoolError):
                pass  # another time: what is read and submitted already goes on
            except FsbrokerError as error:
                self._wrong = error
            self._wake.clear()
            self._wake.wait(LOOK_EVERY)
            with self._lock:
                if time.monotonic() - self._asked > NOBODY_ASKS:
                    self._thread = None
                    return

    # -- one step ------------------------------------------------------------------------

    def step(self) -> int:
        """Look at what is open and at the jobs, submit what is missing; how many were.

        Raises:
            SchedulerError: the scheduler does not answer.
            MissingProgram, ResourceError, JobVanished, EnvironmentMismatch: no job of this
                kind will ever run.
        """
        self.log.refresh()
        open_ids = {job.id for job in self.log.open()}
        ended = {job.id for job in self.log.jobs.values() if job.id} - open_ids
        work = self._demand.look(ended, inputs=not self._config.block_allocation)
        self._started.update(self._demand.jobs())
        if self.log.open() and time.monotonic() - self._last_query >= QUERY_EVERY:
            self._query()
        if self.log.failures >= FAILURES:
            self.log.pause(self._last_failure().reason)
        if self.log.paused:
            if work and not self.log.open():
                raise self._explanation()
            return 0
        self._drop_idle(work)
        count = 0
        # Anew after each: others may have submitted what was missing a moment ago.
        while missing := wanted(work, self.log.open(), self._config):
            count += self._submit(missing[0])
        return count

    def _drop_idle(self, work: Iterable[Work]) -> None:
        """Jobs that wait in the queue for tasks that have ended otherwise, or were cancelled."""
        rows = {row for one in work for row in one.limits}
        wait = {row for one in work for row in one.ready}
        jobs = self.log.open()
        idle = {job.number for job in jobs if (job.row not in rows if job.row else not wait)}
        twice, self._idle = idle & self._idle, idle
        for number in twice:
            job = self.log.jobs[number]
            if job.id and job.id not in self._started and job.scheduler == self._scheduler.name:
                self._scheduler.cancel([job.id])
                why = "its task ended otherwise, or was cancelled"
                self.log.ended(job, "CANCELLED", why, "fsbroker", failure=False)

    def _submit(self, one: Wanted) -> bool:
        """Submit a job; False if another writer came between."""
        job = self.log.intend(
            QueueJob(
                0,
                self._spool.files.token(),
                self._scheduler.name,
                queue=one.shape.queue,
                cores=one.shape.cores * one.shape.threads,
                seconds=one.seconds,
                row=one.row,
                settings=self._settings or self._keep_settings(),
                born=round(self._spool.files.wall_time(), 1),
            )
        )
        if job is None:
            return False
        try:
            self.log.submitted(job, self._scheduler.submit(self.request(job, one)))
        except (ResourceError, MissingProgram) as error:
            self.log.ended(job, "REFUSED", str(error)[:400], self._scheduler.name, failure=True)
            raise
        return True

    def request(self, job: QueueJob, one: Wanted) -> Request:
        """What is asked of the scheduler for a job."""
        config, (files, area, _) = self._config, self._spool
        relative = area.job_directory(job.number)
        files.mkdir(relative.rpartition("/")[0])
        files.mkdir(relative)
        shape, partition = one.shape, config.partitions.get(str(one.queue.get("partition")))
        pilot = not one.row
        name = f"fsb-{config.project}"[: 14 - len(str(job.number))]
        setup = config.setup if partition is None or partition.setup is None else partition.setup
        more = partition.slurm_cmd_args if partition else None
        return Request(
            name=f"{name}-{job.number}",
            comment=f"fsbroker {job.token} {'task ' + one.row if one.row else 'pilot'}",
            directory=_plain(f"{files.root}/{relative}"),
            command=self._command(job, partition.python if partition else None),
            ranks=max(1, shape.nodes) if pilot else shape.cores,
            threads=-(-shape.cores // max(1, shape.nodes)) if pilot else shape.threads,
            nodes=max(1, shape.nodes) if pilot else shape.nodes,
            memory=shape.memory,
            gpus=shape.gpus if pilot else shape.gpus * shape.cores,
            exclusive=bool(shape.exclusive),
            seconds=one.seconds,
            after=one.after,
            setup=setup,
            queue=one.queue,
            arguments=config.slurm_cmd_args if more is None else more,
        )

    def _command(self, job: QueueJob, python: str | None) -> tuple[str, ...]:
        config = self._config
        here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        beside = os.path.basename(here) not in ("site-packages", "dist-packages")
        path = [f"PYTHONPATH={here}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")]
        launcher = [f"--launcher={next(iter(config.mpi))}"] if len(config.mpi) == 1 else []
        return (
            *(("env", *path) if beside else ()),
            python or config.python or sys.executable,
            "-m",
            "fsbroker.agent",
            f"--spool={config.spool_on_nodes or self._spool.files.root}",
            f"--job={job.number}",
            f"--expect={environment()}",
            f"--idle-timeout={config.idle_timeout:g}",
            *([f"--time={job.seconds:g}"] if job.seconds else []),
            *([f"--queue={job.queue}"] if job.queue else []),
            *([f"--row={job.row}"] if job.row else []),
            *([f"--pmi={config.pmi_mode}"] if config.pmi_mode else []),
            *launcher,
        )

    def _keep_settings(self) -> str:
        self._settings = self.log.keep_settings(settings_of(self._config))
        return self._settings

    # -- what became of jobs -------------------------------------------------------------

    def _query(self) -> None:
        """One question for all jobs."""
        self._last_query = time.monotonic()
        known = self._scheduler.active()
        self._queries += 1
        by_token = {
            word: job
            for job, status in known.items()
            for word in status.comment.split()
            if len(word) == 16
        }
        for job in self.log.open():
            if job.scheduler != self._scheduler.name:
                continue
            if not job.id:
                self._settle(job, by_token.get(job.token))
            else:
                self._judge(job, known.get(job.id))

    def _settle(self, job: QueueJob, found: str | None) -> None:
        """An intent without an answer: was it submitted?"""
        if found:
            self.log.submitted(job, found)
        elif abs(self._spool.files.wall_time() - job.born) > UNSETTLED and self._queries > 1:
            said = "the submit command gave no answer, and no job came of it"
            self.log.ended(job, "NOT_SUBMITTED", said, self._scheduler.name, failure=True)

    def _judge(self, job: QueueJob, status: Status | None) -> None:
        """End in the log what is over, or will never start."""
        if status is not None and status.state == "pending":
            if any(word in status.reason for word in _HOPELESS):
                with suppress(SchedulerError):
                    self._scheduler.cancel([job.id])
                self._end(job, Ending(status.word, status.reason, "the queue"))
        elif status is None or status.state == "over":
            ending = self._scheduler.ending(job.id)
            if ending is None and status is not None:
                ending = Ending(status.word, status.reason, "the queue")
            self._end(job, ending or Ending("VANISHED", "the scheduler has no record of it", ""))

    def _end(self, job: QueueJob, ending: Ending) -> None:
        failure = job.id not in self._started
        self.log.ended(job, ending.word, ending.reason, ending.source, failure=failure)

    def _last_failure(self) -> QueueJob:
        return [job for job in self.log.jobs.values() if job.failure][-1]

    def _explanation(self) -> FsbrokerError:
        """Why no job runs, as futures are told."""
        job = self._last_failure() if self.log.failures else None
        if job is None:
            return JobVanished("No queue jobs are submitted", self.log.paused, _RESUME)
        said = self._last_words(job)
        told = f"{job.state} {job.reason} {said}"
        kind = EnvironmentMismatch if _MISMATCH.search(told) else JobVanished
        where = f"job {job.id or job.number} ended as {job.state} ({job.reason}); {said}"
        what = f"{self.log.failures} queue jobs ended before they did any work; the last was"
        return kind(what, where, _RESUME)

    def _last_words(self, job: QueueJob) -> str:
        path = f"{self._spool.files.root}/{self._spool.area.job_directory(job.number)}/output"
        try:
            with open(path, errors="replace") as file:
                text = file.read()[-LAST_WORDS:].strip()
        except OSError:
            return "it wrote nothing"
        return f"it said: {text}" if text else "it wrote nothing"


_RESUME = "When that is mended: `fsbroker jobs resume`, and submit again"


_SUBMITTING = (
    "backend",
    "max_workers",
    "idle_timeout",
    "block_allocation",
    "min_jobs",
    "max_jobs",
    "nodes_per_job",
    "job_time",
    "project",
    "python",
    "setup",
    "spool_on_nodes",
    "pysqa_config_directory",
    "submission_template",
    "slurm_cmd_args",
    "pmi_mode",
    "openmpi_oversubscribe",
    "submit_from_jobs",
)


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that say how jobs are submitted, as JSON."""
    found: dict[str, Any] = {}
    for name in _SUBMITTING:
        value = getattr(config, name)
        found[name] = list(value) if isinstance(value, tuple) else value
    found["mpi"] = {name: list(argv) for name, argv in config.mpi.items()}
    found["partitions"] = {name: asdict(one) for name, one in config.partitions.items()}
    return found


def config_of(stored: Mapping[str, Any]) -> Config:
    """The settings that `settings_of` stored: those alone, whatever stands in files here."""
    lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    mpi = {name: tuple(argv) for name, argv in stored["mpi"].items()}
    partitions = {name: _partition(one) for name, one in stored["partitions"].items()}
    return Config(**{**stored, **lists, "mpi": mpi, "partitions": partitions})


def _partition(stored: Mapping[str, Any]) -> Partition:
    return Partition(
        stored["python"],
        stored["setup"] and tuple(stored["setup"]),
        stored["job_time"],
        stored["slurm_cmd_args"] and tuple(stored["slurm_cmd_args"]),
    )


def scheduler_of(config: Config) -> Scheduler:
    """The scheduler that the settings name."""
    if config.backend == "slurm":
        from fsbroker.launch.slurm import Slurm

        return Slurm(config.pysqa_config_directory, config.submission_template)
    from fsbroker.launch.flux import Flux

    return Flux()


def _plain(path: str) -> str:
    if is_plain(path):
        return path
    cure = "Use a spool whose path has only letters, digits and - _ . / + = @ : , ~"
    raise ResourceError("Job scripts cannot name this directory", path, cure)
