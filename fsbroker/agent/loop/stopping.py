"""Rows that must not run on: they are over their time limit, or somebody cancels them."""

from __future__ import annotations

import time
from collections.abc import Collection

from fsbroker.agent.crew import Crew, Doom, Member
from fsbroker.agent.loop.feeding import Feeder
from fsbroker.agent.loop.outcomes import Outcomes
from fsbroker.agent.session import AgentSession
from fsbroker.agent.session.holdings import Row
from fsbroker.task import Status


class Stopper:
    """Stops rows of one agent."""

    def __init__(
        self, session: AgentSession, crew: Crew, feeder: Feeder, outcomes: Outcomes
    ) -> None:
        self._cancelling = session.cancelling
        self._crew = crew
        self._feeder = feeder
        self._outcomes = outcomes

    def enforce_limits(self) -> None:
        """Kill workers whose row takes longer than it may."""
        now = time.monotonic()
        for member in self._crew.members:
            current = member.current()
            if current is None or member.doom:
                continue
            live, row = current
            limit = float(live.file.rows["time_limit"][row])
            begun = member.worker.ready and member.prepared
            if limit and begun and now - member.heard > limit:
                reason = f"longer than run_time_max = {limit:g} s"
                _kill(member, Doom(Status.FAILED, reason, live, row))

    def heed_requests(self) -> None:
        """End the rows that somebody wants to end, running or not."""
        requests = set(self._cancelling.requests())
        if requests:
            for live, row in self._feeder.withdraw(requests):
                self._outcomes.cancel(live, row)
            self._kill_running(requests)

    def _kill_running(self, requests: Collection[Row]) -> None:
        for member in self._crew.members:
            current = member.current()
            if current is not None and (current[0].stem, current[1]) in requests:
                _kill(member, Doom(Status.CANCELLED, "cancelled", *current))


def _kill(member: Member, doom: Doom) -> None:
    member.doom = doom
    member.worker.kill()
