"""Agents in queue jobs: submitted as the open work needs them, by whoever is there.

    Demand (open work) --plan--> Wanted --intent--> job log --submit--> scheduler
                                            ^---- states, endings ------'

A client's thread does this, or an agent that ends (`__main__.py`), or a command. None of
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
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fsbroker.config import Config
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
from fsbroker.launch.refusals import Refusals
from fsbroker.launch.scheduler import Ending, Request, Scheduler, Status
from fsbroker.launch.script import is_plain
from fsbroker.launch.settings import config_of, key_options, mpi_options, scheduler_of, settings_of
from fsbroker.needs import Allowance, Capacity, Resources
from fsbroker.spool.jobs import Cause, JobLog, QueueJob
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
OUTPUT = 1 << 16
"""Bytes of it that are read, at its end."""

_MISMATCH = re.compile(
    r"^MISMATCH|exit code 12[67]:|(?:ModuleNotFound|Import)Error: |and the client has "
)
"""Jobs whose Python is not there, lacks a package, or is another than the client's."""


class QueueLauncher:
    """Sees to it that queue jobs run what is open in an area.

    Attributes:
        capacity: the scheduler decides what a task may ask for.
        log: of the area's queue jobs.
    """

    def __init__(self, spool: Spool, scheduler: Scheduler, config: Config) -> None:
        if not spool.files.owners:
            what = "Job scripts lie in the spool, are not signed, and somebody else may write them"
            cure = 'Start agents in jobs of your own (backend="none"), or take another spool.'
            raise ResourceError(what, f"owners=False with {spool.files.root}", cure)
        self._spool = spool
        self._scheduler = scheduler
        self._config = config
        self._demand = Demand(spool, environment())
        self.log = JobLog(spool.files, spool.area)
        self.capacity = Capacity(1 << 20, "the scheduler", 1 << 20, 0, 1 << 16, has_queue=True)
        self._settings = ""
        self._told = False
        self._started: set[str] = set()
        self._idle: set[int] = set()
        self._last_query = -QUERY_EVERY
        self._queries = 0
        self._asked = 0.0
        self._wrong: FsbrokerError | None = None
        self._refusals = Refusals()
        self._hopeless: Mapping[str, FsbrokerError] = {}
        self._unanswered: set[int] = set()
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
        found = cls(spool, scheduler_of(config), config)
        found.log.refresh()
        found._refusals.heed(found.log.jobs.values())
        return found

    # -- for the client's loop -----------------------------------------------------------

    def resize(self, allowed: Allowance) -> None:
        """Have so many jobs at once."""
        self._config = replace(self._config, max_jobs=allowed.workers or None)
        self._settings = ""  # agents that submit the next jobs are to know

    def release(self) -> None:
        """Jobs go on without the client."""

    def ensure(
        self, session: ClientSession[Any], shapes: Iterable[str]
    ) -> Mapping[str, FsbrokerError]:
        """See to jobs in the background; what is wrong, for rows that no job will run."""
        with self._lock:
            self._asked = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fsbroker-jobs", daemon=True)
                self._thread.start()
            wrong, self._wrong = self._wrong, None
        if any(shapes) and not session.results.present():
            self._wake.set()
        return {"": wrong} if wrong else self._hopeless

    def _run(self) -> None:
        while True:
            try:
                self.step()
            except (SchedulerError, OSError, SpoolError):
                pass  # another time: what is read and submitted already goes on
            except ResourceError:
                pass  # `_hopeless` has it
            except FsbrokerError as error:
                self._wrong = error
            except Exception as error:
                # Nobody would see to jobs any more, and futures would wait for ever.
                self._wrong = SchedulerError(f"Submitting failed ({error!r})", "fsbroker.launch")
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
            ResourceError: the scheduler refuses a job; the others have been submitted. It is
                not asked again for jobs of this shape.
            MissingProgram, JobVanished, EnvironmentMismatch: no job will run.
        """
        self.log.refresh()
        work = self._look(inputs=bool(self._refusals) or not self._config.block_allocation)
        self._started.update(self._demand.jobs())
        self._tell_differences()
        if self.log.open() and time.monotonic() - self._last_query >= QUERY_EVERY:
            self._query()
        if self.log.failures >= FAILURES:
            self.log.pause(self._last_failure().reason)
        if self.log.paused:
            if work and not self.log.open():
                raise self._explanation()
            return 0
        self._drop_idle(work)
        self._unanswered &= {job.number for job in self.log.open() if not job.id}
        if self._unanswered:
            return 0  # the scheduler is away: one intent to be settled is enough
        count, refused = 0, None
        # Anew after each: others may have submitted what was missing a moment ago.
        while missing := wanted(self._refusals.left(work), self.log.open(), self._config):
            try:
                count += self._submit(missing[0]) is not None
            except ResourceError as error:
                self._refusals.add(missing[0], work, error)
                refused = refused or error
        self._hopeless = self._refusals.rows(work)
        if refused:
            raise refused
        return count

    @property
    def may_submit(self) -> bool:
        """Nothing that was granted elsewhere was refused to this process."""
        return not self._refusals.are_of_this_place(self.log.jobs)

    def launch(self, count: int | None) -> list[QueueJob]:
        """Submit pilots for what is open now; those that were submitted.

        Args:
            count: so many more; None: what is missing beside the jobs that are there.

        Raises:
            FsbrokerError: as `step`, and if submission is paused.
        """
        found: list[QueueJob] = []
        work = self._look_now()
        while missing := self._missing(work, count, found):
            job = self._submit(missing[0])
            found += [] if job is None else [job]
        return found

    def scripts(self, count: int | None) -> list[str]:
        """The job scripts that `launch` would submit, each once."""
        missing = self._missing(self._look_now(), count, [])
        return list(dict.fromkeys(map(self._script, missing)))

    def script(self, wishes: Resources) -> str:
        """The job script for a task with these wishes.

        What only a submission gives it is 0: its number and token, and the task's name.
        """
        work = Work(wishes.shape, wishes.queue, {"0.0": wishes.run_time_max or 0.0}, ["0.0"])
        (one,) = wanted([work], [], self._config)
        return self._script(one._replace(priority=wishes.priority) if one.row else one)

    def _look_now(self) -> list[Work]:
        self.log.refresh()
        if self.log.paused:
            raise self._explanation()
        if self.log.open():
            self._query()
        return self._look(inputs=False)

    def _look(self, *, inputs: bool) -> list[Work]:
        open_ids = {job.id for job in self.log.open()}
        ended = {job.id for job in self.log.jobs.values() if job.id} - open_ids
        return self._demand.look(ended, inputs=inputs)

    def _missing(
        self, work: Iterable[Work], count: int | None, found: list[QueueJob]
    ) -> list[Wanted]:
        if count is None:
            return wanted(work, self.log.open(), self._config)
        if len(found) == count:
            return []
        return wanted(work, found, replace(self._config, min_jobs=count, max_jobs=count))

    def _script(self, one: Wanted) -> str:
        job = self._described(one, "0" * 16)
        return self._scheduler.script(self._request(job, one))

    def _tell_differences(self) -> None:
        """Warn once of what the nodes have otherwise than this client."""
        if said := self.log.compared.get(self._settings, "") if not self._told else "":
            self._told = True
            where = f"The nodes' environment ({self._config.python or sys.executable})"
            warnings.warn(f"{where} is not this client's: {said}", RuntimeWarning, stacklevel=2)

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
                self._over(job, "CANCELLED", why, Cause.CANCELLED)

    def _described(self, one: Wanted, token: str) -> QueueJob:
        return QueueJob(
            0,
            token,
            self._scheduler.name,
            queue=one.shape.queue,
            cores=one.shape.cores * one.shape.threads,
            seconds=one.seconds,
            row=one.row,
            settings=self._settings,
            born=round(self._spool.files.wall_time(), 1),
        )

    def _submit(self, one: Wanted) -> QueueJob | None:
        """Submit a job; None if another writer came between."""
        if not self._settings:
            self._settings = self.log.keep_settings(settings_of(self._config))
            if self._config.submit_from_jobs is False:
                self.log.cannot_submit("the setting submit_from_jobs is false")
        job = self.log.intend(self._described(one, self._spool.files.token()))
        if job is None:
            return None
        relative = self._spool.area.job_directory(job.number)
        self._spool.files.mkdir(relative.rpartition("/")[0])
        self._spool.files.mkdir(relative)
        for name in (self._spool.area.job_script, self._spool.area.job_output):
            # Who writes them keeps the mode that they have, and would else go by the umask.
            self._spool.files.write_new(name(job.number), [], sync=False)
        try:
            self.log.submitted(job, self._scheduler.submit(self._request(job, one)))
        except (ResourceError, MissingProgram) as error:
            self._refusals.met(job.number)
            self._over(job, "REFUSED", str(error)[:400], Cause.REFUSED)
            raise
        except SchedulerError:
            self._unanswered.add(job.number)
            raise
        return self.log.jobs[job.number]

    def _request(self, job: QueueJob, one: Wanted) -> Request:
        """What is asked of the scheduler for a job."""
        config = self._config.in_partition(one.queue.get("partition"))
        relative = self._spool.area.job_directory(job.number)
        shape, pilot = one.shape.dealt(), not one.row
        name = f"fsb-{config.project}"[: 14 - len(str(job.number))]
        return Request(
            name=f"{name}-{job.number}",
            comment=f"fsbroker {job.token} {'task ' + one.row if one.row else 'pilot'}",
            directory=_plain(f"{self._spool.files.root}/{relative}"),
            directory_on_nodes=_plain(f"{self._root_on_nodes}/{relative}"),
            command=self._command(job, config),
            ranks=max(1, shape.nodes) if pilot else shape.cores,
            threads=-(-shape.cores // max(1, shape.nodes)) if pilot else shape.threads,
            nodes=max(1, shape.nodes) if pilot else shape.nodes,
            memory=shape.memory,
            gpus=shape.gpus if pilot else shape.gpus * shape.cores,
            exclusive=bool(shape.exclusive),
            seconds=one.seconds,
            after=one.after,
            setup=config.setup,
            queue=one.queue,
            arguments=config.slurm_cmd_args,
            priority=one.priority,
        )

    @property
    def _root_on_nodes(self) -> str:
        return self._config.spool_on_nodes or self._spool.files.root

    def _command(self, job: QueueJob, config: Config) -> tuple[str, ...]:
        here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        beside = os.path.basename(here) not in ("site-packages", "dist-packages")
        path = [f"PYTHONPATH={here}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")]
        return (
            *(("env", *path) if beside else ()),
            config.python or sys.executable,
            "-m",
            "fsbroker.agent",
            f"--spool={self._root_on_nodes}",
            f"--job={job.number}",
            f"--expect={environment()}",
            *key_options(self._spool),
            f"--idle-timeout={config.idle_timeout:g}",
            *([f"--time={job.seconds:g}"] if job.seconds else []),
            *([f"--queue={job.queue}"] if job.queue else []),
            *([f"--row={job.row}"] if job.row else []),
            f"--first-worker={job.number * job.cores}",
            *mpi_options(config, self._scheduler.launcher),
        )

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
            self._over(job, "NOT_SUBMITTED", said, Cause.UNKNOWN)

    def _judge(self, job: QueueJob, status: Status | None) -> None:
        """End in the log what is over, or will never start."""
        if status is not None and status.stuck:
            with suppress(SchedulerError):
                self._scheduler.cancel([job.id])
            self._end(job, Ending(status.word, status.reason, "the queue"))
        elif status is None or status.state == "over":
            ending = self._scheduler.ending(job.id)
            if ending is None and status is not None:
                ending = Ending(status.word, status.reason, "the queue")
            ending = ending or Ending("VANISHED", "the scheduler has no record of it", "")
            self._end(job, self._for_memory(job, ending))

    def _for_memory(self, job: QueueJob, ending: Ending) -> Ending:
        """The same, or that it was for memory, which some schedulers say in the output alone."""
        words = self._scheduler.out_of_memory
        if words is None or ending.cause not in (Cause.FAILED, Cause.UNKNOWN):
            return ending
        said = words.search(self._output(job))
        return ending._replace(source="its output", cause=Cause.MEMORY) if said else ending

    def _end(self, job: QueueJob, ending: Ending) -> None:
        failure = job.id not in self._started
        self.log.ended(job, *ending, failure=failure)

    def _over(self, job: QueueJob, word: str, why: str, cause: Cause) -> None:
        """End a job that no agent was meant to be seen of."""
        self.log.ended(job, word, why, "fsbroker", cause, failure=False)

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
        text = self._output(job)[-LAST_WORDS:].strip()
        return f"it said: {text}" if text else "it wrote nothing"

    def _output(self, job: QueueJob) -> str:
        path = f"{self._spool.files.root}/{self._spool.area.job_output(job.number)}"
        with suppress(OSError), open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - OUTPUT))
            return file.read().decode(errors="replace")
        return ""


_RESUME = "When that is mended: `fsbroker jobs resume`, and submit again"


def _plain(path: str) -> str:
    if is_plain(path):
        return path
    cure = "Use a spool whose path has only letters, digits and - _ . / + = @ : , ~"
    raise ResourceError("Job scripts cannot name this directory", path, cure)
