"""How much to claim: enough to keep workers busy, not more than a fair share."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fsbroker.agent.crew import Crew, kind_of
from fsbroker.agent.loop.feeding import Feeder
from fsbroker.agent.loop.pace import CLAIM_TIME, UNIT_TIME, Pace
from fsbroker.agent.session import AgentSession
from fsbroker.needs import Shape, parse_shape
from fsbroker.spool.live import LiveFile

DRAIN_AFTER = 5.0
"""Seconds for which younger tasks may pass one that does not fit yet."""


class Appetite:
    """What one agent wants of each task file.

    Args:
        queue: what its job has of the site (`Shape.queue`).
    """

    def __init__(
        self, session: AgentSession, crew: Crew, pace: Pace, feeder: Feeder, queue: str
    ) -> None:
        self._session = session
        self._crew = crew
        self._pace = pace
        self._feeder = feeder
        self._queue = queue
        self._blocked: dict[str, float] = {}

    def want(self, live: LiveFile, ready: Sequence[int]) -> int:
        """How many ready rows of a file to claim now.

        Enough to keep the free workers busy for a moment, as far as it is known how long
        this function takes; one for each of them while it is not known. Never more than a
        fair share of what is left, but for what is not worth a claim.
        """
        shape = parse_shape(live.name.shape)
        if shape is None or not self._suits(shape):
            return 0
        kind, room = kind_of(live), self._crew.room(shape)
        assert kind is not None
        if self._must_drain(live, room):
            return 0
        duration = self._pace.of(live, ready[0])
        if duration > UNIT_TIME:
            return room - len(self._feeder)
        workers = max(room, len(self._crew.of(kind)))
        least = int(workers * UNIT_TIME / duration) + 1
        most = int(workers * CLAIM_TIME / duration) + 1
        return min(most, max(least, self._fair_share(live, len(ready))))

    def _suits(self, shape: Shape) -> bool:
        """Such tasks fit when nothing else runs, and ask for no other partition, account, ..."""
        return self._crew.slots.could_fit(shape) and shape.queue in ("", self._queue)

    def _must_drain(self, live: LiveFile, room: int) -> bool:
        """A file whose tasks found no room for long has the next cores: younger ones wait.

        Otherwise small tasks would take each core as it becomes free, and a task that
        needs several at once would never run.
        """
        now = time.monotonic()
        for stem in [stem for stem in self._blocked if self._session.live.get(stem) is None]:
            del self._blocked[stem]
        if room > 0:
            self._blocked.pop(live.stem, None)
        else:
            self._blocked.setdefault(live.stem, now)
        return any(
            stem < live.stem and now - since > DRAIN_AFTER for stem, since in self._blocked.items()
        )

    def _fair_share(self, live: LiveFile, ready: int) -> int:
        """Half of what would be this agent's part of all that is left; all if it is alone."""
        agents = len(self._session.results.present())
        if agents <= 1:
            return ready
        others = sum(one.name.rows for one in self._session.live if one.stem > live.stem)
        return -(-(ready + others) // (2 * agents))
