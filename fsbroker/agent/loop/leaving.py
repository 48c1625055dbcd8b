"""What an agent does last: nobody shall wait for it, nor miss its work."""

from __future__ import annotations

import shutil
from contextlib import suppress

from fsbroker.agent.crew import Crew
from fsbroker.agent.loop.ending import ALONE, IDLE, Ending
from fsbroker.agent.loop.outcomes import Outcomes
from fsbroker.agent.queuejob import QueueJobs
from fsbroker.agent.session import AgentSession
from fsbroker.agent.walltime import Walltime
from fsbroker.errors import SpoolError
from fsbroker.spool.streams import Sealed


class Leaving:
    """The leave of one agent."""

    def __init__(
        self,
        session: AgentSession,
        crew: Crew,
        outcomes: Outcomes,
        jobs: QueueJobs,
        ending: Ending,
    ) -> None:
        self._session = session
        self._crew = crew
        self._outcomes = outcomes
        self._jobs = jobs
        self._ending = ending

    def wind_up(self, walltime: Walltime) -> None:
        """Publish what has ended, give back the rest and say why, vanish.

        Quick: from SIGTERM to SIGKILL some sites give five seconds.
        """
        if self._ending.reason == ALONE:
            self._crew.close()
            shutil.rmtree(self._session.holdings.spool.files.root, ignore_errors=True)
            return
        self._outcomes.publish()
        self._crew.close()
        self._session.leave(self._ending.reason)
        if not self._ending.is_ordered():
            self._close_job(walltime)

    def give_up(self) -> None:
        """What cannot be published runs again elsewhere, at no attempt: it did not fail."""
        with suppress(OSError, SpoolError, Sealed):
            self._session.abandon("the agent could not use the spool")

    def _close_job(self, walltime: Walltime) -> None:
        """Say how the queue job ends, and have the next one submitted.

        A job whose agent cannot run its one task would be submitted again for ever.
        """
        prospects = self._session.prospects
        newer = self._ending.newer or self._session.live.newer()
        idle = self._ending.reason == IDLE
        failure = newer is not None or (idle and prospects.only_is_ready())
        self._jobs.over(str(newer or self._ending.reason), failure=failure)
        if newer is None:
            self._jobs.succeed(prospects.ready_rows(), walltime.until_end())
