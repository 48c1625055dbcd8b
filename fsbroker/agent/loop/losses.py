"""Workers that are gone: which row is charged for it, and where the others go.

suspect --(in a queue job: a second later)--> the row that ran: charged, or ended
                                              rows behind it: to another worker, or back
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from fsbroker.agent.crew import Crew, Member, Unit
from fsbroker.agent.failures import brief
from fsbroker.agent.loop.debts import Debts
from fsbroker.agent.loop.ending import Ending
from fsbroker.agent.loop.feeding import Feeder
from fsbroker.agent.loop.outcomes import Outcomes
from fsbroker.agent.workers import Lost
from fsbroker.errors import OutOfMemory, WorkerLost
from fsbroker.spool.live import LiveFile
from fsbroker.task import Status

BAD_STARTS = 3
"""Workers that end before they are ready, one after the other, until that costs an attempt."""
JUDGE_AFTER = 1.0
"""Seconds from the loss of a worker in a queue job to its judgement: nodes of a job that is
cancelled are told one after the other."""


class Suspect(NamedTuple):
    """A worker that is gone, to be judged when its time has come."""

    due: float
    member: Member
    lost: Lost


class Judge:
    """Judges the losses of one agent.

    Attributes:
        after: seconds from a loss to its judgement.
    """

    def __init__(
        self, crew: Crew, feeder: Feeder, outcomes: Outcomes, debts: Debts, ending: Ending
    ) -> None:
        self._crew = crew
        self._feeder = feeder
        self._outcomes = outcomes
        self._debts = debts
        self._ending = ending
        self._suspects: deque[Suspect] = deque()
        self._bad_starts = 0
        self.after = 0.0

    def note_start(self) -> None:
        """A worker was ready: they do start here."""
        self._bad_starts = 0

    def suspect(self, member: Member, lost: Lost) -> None:
        """A worker is gone. In a queue job that may be the job's end, of which we hear soon."""
        if self.after and member.doom is None:
            self._crew.mute(member)
            self._suspects.append(Suspect(time.monotonic() + self.after, member, lost))
        else:
            self._judge(member, lost)

    def judge(self) -> None:
        """Those whose time has come."""
        now = time.monotonic()
        while self._suspects and self._suspects[0].due <= now:
            _, member, lost = self._suspects.popleft()
            self._judge(member, lost)

    def until_due(self, most: float) -> float:
        """Seconds until there is one to judge, at most so many."""
        if not self._suspects:
            return most
        return min(most, max(0.0, self._suspects[0].due - time.monotonic()))

    def _judge(self, member: Member, lost: Lost) -> None:
        """The row that it ran is charged, the others run elsewhere.

        At the agent's end nothing is charged: SLURM signals all processes of a job, in no order.
        """
        if self._ending.has_come():
            self._crew.dismiss(member)
            return
        current = member.current()
        units = member.take_all()
        self._crew.dismiss(member)
        if not lost.ready and member.doom is None:
            self._not_started(member, units, lost)
            return
        if current is not None:
            live, row = current
            self._charge(live, row, member, lost)
            begun = _without(units.pop(0), live, row)
            if begun.rows:
                # Quick rows are reported in bunches: some may have run, and will again.
                self._debts.give_back(live, begun.rows, lost.reason)
        self._give_up_chains(units)

    def _not_started(self, member: Member, units: Sequence[Unit], lost: Lost) -> None:
        """That is nobody's fault; if it goes on like that, say so to whoever waits.

        What was killed may start another time, or elsewhere: it is charged like any loss.
        """
        self._bad_starts += 1
        if self._bad_starts < BAD_STARTS:
            self._feeder.put_first(units)
            return
        self._bad_starts = 0
        for unit in units:
            for row in unit.rows:
                if isinstance(lost.error, WorkerLost):
                    self._charge(unit.live, row, member, lost)
                    continue
                told = self._outcomes.keep(unit.live, row, lost.outputs)
                self._outcomes.fail(unit.live, row, brief(lost.error) | told)

    def _charge(self, live: LiveFile, row: int, member: Member, lost: Lost) -> None:
        """Try the row again, or end it when it has no attempt left."""
        error = _error_of(lost) | self._outcomes.keep(live, row, lost.outputs)
        fold = live.log.fold
        doom = member.doom
        if doom is not None and (doom.live, doom.row) != (live, row):
            # The doomed row ended in time; this one was running by chance.
            self._debts.give_back(live, [row], "")
        elif doom is not None and doom.status == Status.CANCELLED:
            self._outcomes.cancel(live, row)
        elif doom is not None:
            late = {"type": "TimeLimitExceeded", "message": doom.reason}
            self._outcomes.fail(live, row, error | late)
        elif isinstance(lost.error, OutOfMemory):  # so would be a second try
            self._outcomes.fail(live, row, error)
        elif fold.attempts[row] >= int(live.file.rows["retries"][row]):
            history = "; ".join([*fold.history.get(row, ()), lost.reason])
            error["message"] = f"{lost.error} (attempts: {history})"
            self._outcomes.fail(live, row, error)
        else:
            self._debts.give_back(live, [row], lost.reason, charge=True)

    def _give_up_chains(self, units: Sequence[Unit]) -> None:
        """What a lost worker had left: simple rows go to another, chains back to the log.

        The values that a chain's later rows need went with the worker.
        """
        for unit in units:
            if not unit.rows:
                continue
            if unit.simple or (len(unit.rows) == 1 and not unit.live.name.waiting):
                self._feeder.put_first([unit])
            else:
                self._debts.give_back(unit.live, unit.rows, "")


def _error_of(lost: Lost) -> dict[str, str]:
    error = brief(lost.error)
    return error if lost.rank is None else error | {"rank": str(lost.rank)}


def _without(unit: Unit, live: LiveFile, row: int) -> Unit:
    if unit.live is not live:
        return unit
    return Unit(live, [one for one in unit.rows if one != row], unit.simple)
