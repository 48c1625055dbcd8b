"""The queue job of an agent in the log of queue jobs: its end, and who comes after it.

An agent that ends says so: with that, nobody has to ask the scheduler about its job. If
there is work left, it has its successor submitted: by the command that clients submit with,
as a child process, since an agent has none of what that needs.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from threading import Thread

from fsbroker.environment import differences, versions
from fsbroker.errors import SpoolError
from fsbroker.spool.jobs import VERSIONS, Cause, JobLog, QueueJob
from fsbroker.spool.spool import Spool

SUBMITTING = 45.0
"""Seconds for a successor to be submitted: the agent's job burns meanwhile."""

CHARGED = (Cause.MEMORY, Cause.FAILED)
"""Ends of jobs that a task may be to blame for: the others cost no attempt."""


class QueueJobs:
    """What an agent has to do with the log of queue jobs.

    Args:
        number: of its own job in that log; None if it is in none.
    """

    def __init__(self, spool: Spool, number: int | None) -> None:
        self._spool = spool
        self._number = number
        self._log = JobLog(spool.files, spool.area)

    def evidence(self, ids: set[str]) -> dict[str, tuple[str, str] | None]:
        """For those of the jobs that the log knows: "dead" or "silent", and what to say of it.

        An agent may outlive its job; that is for seals to settle. None: it is not over.
        """
        with suppress(OSError, SpoolError):
            self._log.refresh()
        # Of jobs with one id the latest: a scheduler that was set up anew counts from 1 again.
        return {job.id: _evidence(job) for job in self._log.jobs.values() if job.id in ids}

    def compare(self) -> None:
        """Say what this node has otherwise than the client, in the background.

        Once for all jobs that are submitted with the same settings: their nodes are alike.
        """
        if self._number is not None:
            Thread(target=self._compare, args=(self._number,), daemon=True).start()

    def _compare(self, number: int) -> None:
        log = JobLog(self._spool.files, self._spool.area)
        with suppress(OSError, SpoolError):
            log.refresh()
            job = log.jobs.get(number)
            if job is not None and job.settings not in log.compared:
                client = log.settings(job.settings).get(VERSIONS, {})
                found = differences(client, versions())
                log.differ(job, found and f"on {platform.node()} {found}")

    def mismatch(self, what: str) -> None:
        """The agent cannot do the work that its job was submitted for."""
        self._end("MISMATCH", what, Cause.FAILED, failure=True)

    def over(self, why: str, *, failure: bool) -> None:
        """The agent has left; a failure if it did nothing of what its job was for."""
        self._end("COMPLETED", why, Cause.DONE, failure=failure)

    def _end(self, word: str, reason: str, cause: Cause, *, failure: bool) -> None:
        if self._number is None:
            return
        with suppress(OSError, SpoolError):
            self._log.refresh()
            job = self._log.jobs.get(self._number)
            if job is not None:
                self._log.ended(job, word, reason, "the agent", cause, failure=failure)

    def succeed(self, rows: set[str], patience: float) -> None:
        """Have submitted what the work that is left needs, if no other job will see to it.

        Args:
            rows: that nobody has taken.
            patience: seconds that are left for it.
        """
        job = self._log.jobs.get(-1 if self._number is None else self._number)
        if job is None or self._log.paused or self._log.no_submit or patience <= 0:
            return
        there = {other.row for other in self._log.open()}
        jobs = self._log.jobs.values()
        refused = {other.row for other in jobs if other.cause == Cause.REFUSED}
        if "" in there or rows <= there | refused:
            return
        root = self._spool.files.root
        argv = [sys.executable, "-m", "fsbroker.launch", f"--spool={root}", job.settings]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                timeout=min(patience, SUBMITTING),
                check=False,
            )


def _evidence(job: QueueJob) -> tuple[str, str] | None:
    if not job.is_over:
        return None
    said = f"its job {job.id} {job.cause} ({job.state}, {job.reason}; told by {job.source})"
    return "dead" if job.cause in CHARGED else "silent", said
