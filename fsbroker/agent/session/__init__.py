"""An agent's side of the protocol: no processes, no waiting, one thread.

    join -> (beat, recover, claim, publish, resolve, tidy)* -> leave

The loop around it (`agent/loop`) feeds workers with what `claim` returns and hands their
outcomes to `publish`. The simulation drives the same object without workers.

Where it is done, each module importing from those below it only:

    tidying        what has ended is put away: task files, results
    quarantine     files that cannot be read are put aside
    cancelling     cancelled rows are ended, and requests to end rows that run are heard
    dependencies   rows that wait: ready by now, or failed (`waiting` keeps count)
    recovery       rows of agents that have died are taken from them
    claiming       which rows this agent takes
    prospects      what work is left
    publishing     what others see of this agent: its presence, its outcomes
    turns          locks, so that not all try for the same record
    holdings       what this agent knows, and which rows are its own
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from typing import Any

from fsbroker.agent.queuejob import QueueJobs
from fsbroker.agent.session.cancelling import Cancelling
from fsbroker.agent.session.claiming import Claiming, Want, bring
from fsbroker.agent.session.dependencies import Dependencies
from fsbroker.agent.session.holdings import NOTHING, Claim, Holdings, Row
from fsbroker.agent.session.prospects import Prospects
from fsbroker.agent.session.publishing import Publisher
from fsbroker.agent.session.recovery import Recovery
from fsbroker.agent.session.tidying import Tidying
from fsbroker.environment import environment
from fsbroker.spool import presence
from fsbroker.spool.container import Image
from fsbroker.spool.layout import Stem
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import Bulk
from fsbroker.task import Outcome

__all__ = ["NOTHING", "AgentSession", "Claim", "Want"]


class AgentSession:
    """One agent in one area: the acts of its life; what else it can be asked, its parts answer.

    Attributes:
        agent: its id, 16 hex digits, never used again.
        live, results: what it knows of the spool.

    Args:
        environment: which rows it can run (`Stem.environment`).
        origin: what its result files say of where they come from.
        described: what its presence file says (`presence.describe`).
        lease: seconds of silence after which another agent is taken for dead.
        jobs: what is known of queue jobs that have ended.
        only: the one row that it may claim: its task file and number.
    """

    def __init__(  # noqa: PLR0913 - settings, the last two by name
        self,
        spool: Spool,
        environment: str,
        origin: dict[str, Any],
        described: dict[str, Any],
        lease: float = presence.LEASE,
        *,
        jobs: QueueJobs | None = None,
        only: Row | None = None,
    ) -> None:
        self.holdings = Holdings(spool)
        self.agent, self.live = self.holdings.agent, self.holdings.live
        self.results = self.holdings.results
        self.publisher = Publisher(self.holdings, origin, described)
        self.dependencies = Dependencies(self.holdings, self.publisher)
        self.cancelling = Cancelling(self.holdings, self.publisher)
        self.recovery = Recovery(self.holdings, described, lease, jobs or QueueJobs(spool, None))
        self.prospects = Prospects(self.holdings, only)
        self._claiming = Claiming(self.holdings, environment, only)
        self._tidying = Tidying(self.holdings, self.cancelling)

    def join(self) -> None:
        """Be ready to publish, and be seen, before the first claim."""
        self.publisher.open()

    def beat(self) -> None:
        """Say that this agent lives, and how much it has published.

        Raises:
            Sealed: it was taken for dead.
        """
        self.publisher.beat()

    def recover(self) -> bool:
        """Take rows from agents that have died, for anybody to claim; True if there were any."""
        return self.recovery.recover(prompt=self.publisher.beat_done)

    def claim(
        self, want: Want, *, thorough: bool = False, time_left: float = math.inf
    ) -> Claim | None:
        """Own some rows, of the first task file that has any that are wanted.

        Args:
            thorough: look also at files that had no ready rows when last read.
            time_left: seconds; rows that may take longer are for others.
        """
        return self._claiming.claim(want, thorough=thorough, time_left=time_left)

    def bring(self, stem: Stem, made: Image, waiting: Sequence[int]) -> None:
        """Publish a task file all of whose rows are this agent's, from the first record on.

        Args:
            waiting: the rows that have dependencies.
        """
        bring(self.holdings, stem, made, waiting)

    def publish(self, outcomes: Sequence[Outcome | Bulk]) -> None:
        """Make outcomes of held rows known, for ever.

        Raises:
            Sealed: this agent was taken for dead; its outcomes are void.
        """
        self.publisher.publish(outcomes)

    def resolve(self, *, thorough: bool = False) -> bool:
        """Look for rows that wait no longer, and say so in their logs; True if there were any.

        Args:
            thorough: also look for dependencies that were cancelled or do not exist.
        """
        return self.dependencies.resolve(thorough=thorough)

    def tidy(self) -> bool:
        """End cancelled rows, retire task files, pack results; True if there was anything."""
        self.publisher.publish_own()
        return self._tidying.tidy()

    def leave(self, reason: str = "") -> None:
        """Give back what was not published, close the own stream, and vanish."""
        self.holdings.release_all(reason)
        self.publisher.close()

    def abandon(self, reason: str) -> None:
        """Give back what nobody will run here, at no attempt.

        But not what may be published: after an error of that, only who has sealed the
        stream knows, and recovers the rest.
        """
        self.holdings.release_all(reason, besides=self.publisher.doubtful())


def without_workers(spool: Spool, place: str, **origin: Any) -> AgentSession:
    """An agent that runs nothing: it has rows whose outcomes come from elsewhere.

    Args:
        place: what stands behind it, as its presence file says it.
        origin: what its result files say of where they come from, besides the host.
    """
    described = presence.describe(place=place, cores=0)
    return AgentSession(spool, environment(), {"host": platform.node(), **origin}, described)
