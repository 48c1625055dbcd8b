"""What workers report: rows that have ended, or the worker's own end."""

from __future__ import annotations

import time
from array import array

from fsbroker.agent.crew import Crew, Member, Unit
from fsbroker.agent.loop.feeding import Feeder
from fsbroker.agent.loop.losses import Judge
from fsbroker.agent.loop.outcomes import Outcomes
from fsbroker.agent.loop.pace import Pace
from fsbroker.agent.messages import Ended, Prepared, Returned
from fsbroker.agent.session.holdings import Row
from fsbroker.spool.live import LiveFile


class Hearing:
    """Takes the reports of one agent's workers."""

    def __init__(
        self, crew: Crew, pace: Pace, outcomes: Outcomes, feeder: Feeder, judge: Judge
    ) -> None:
        self._crew = crew
        self._pace = pace
        self._outcomes = outcomes
        self._feeder = feeder
        self._judge = judge
        self._fresh_tried: set[Row] = set()

    def hear(self, member: Member) -> None:
        """Take what has come from a worker."""
        member.heard = time.monotonic()
        for message in member.worker.receive():
            if isinstance(message, Returned):
                self._returned(member, message)
            elif isinstance(message, Ended):
                self._ended(member, message)
            elif isinstance(message, Prepared):
                member.prepared = True
            else:
                self._judge.suspect(member, message)
                return
        if member.worker.ready:
            self._judge.note_start()
        if not member.worker.alive and not member.rows_left():
            self._crew.dismiss(member)

    def _returned(self, member: Member, message: Returned) -> None:
        live, rows = member.report(message)
        self._pace.learn(live, rows[0], sum(array("d", message.wall)) / len(rows))
        self._outcomes.returned(live, rows, message)

    def _ended(self, member: Member, message: Ended) -> None:
        live, (row,) = member.report(message)
        if self._deserves_fresh_worker(live, row, message):
            self._feeder.put_first([Unit(live, [row], False)])
            member.worker.stop()
            return
        self._pace.learn(live, row, message.wall)
        self._outcomes.ended(live, row, message)

    def _deserves_fresh_worker(self, live: LiveFile, row: int, message: Ended) -> bool:
        """The worker had imported an older version of the task's module: once more, elsewhere."""
        if message.error is None or "stale" not in message.error:
            return False
        tried = (live.stem, row) in self._fresh_tried
        self._fresh_tried.add((live.stem, row))
        return not tried
