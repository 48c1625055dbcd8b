"""Claimed rows on their way to the workers.

    claim --take--> units --feed--> workers
                      ^---put_first---'       what a worker that is gone had left

Units that no worker has yet can still be withdrawn, or given back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence

from fsbroker.agent.crew import Crew, Member, Unit, kind_of, units_of
from fsbroker.agent.failures import given_up
from fsbroker.agent.loop.debts import Debts
from fsbroker.agent.loop.outcomes import Outcomes
from fsbroker.agent.loop.pace import UNIT_TIME, Pace
from fsbroker.agent.session import AgentSession, Claim
from fsbroker.agent.session.holdings import Row
from fsbroker.errors import DependencyFailed, FileDamaged, FormatTooNew, FsbrokerError
from fsbroker.needs import Shape
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import rows_of
from fsbroker.task import Value

MOST_ROWS = 1024
"""Rows in one unit."""


class Feeder:
    """The units that no worker has yet, the next one first."""

    def __init__(
        self, session: AgentSession, crew: Crew, pace: Pace, outcomes: Outcomes, debts: Debts
    ) -> None:
        self._dependencies = session.dependencies
        self._crew = crew
        self._pace = pace
        self._outcomes = outcomes
        self._debts = debts
        self._units: deque[Unit] = deque()

    def __len__(self) -> int:
        return len(self._units)

    def has_room(self) -> bool:
        """There may be more claims: no more units wait than workers could take."""
        return len(self._units) <= self._crew.slots.cores

    def is_hungry(self) -> bool:
        """There is a place for a worker, and nothing for it to do."""
        return not self._units and self._crew.room(Shape()) > 0

    # -- what comes ----------------------------------------------------------------------

    def take(self, claim: Claim) -> None:
        """Have the rows of a claim run, but those that no longer need to."""
        live = claim.live
        rows = self._refused(live, rows_of(claim.rows))
        try:
            self._units.extend(list(units_of(live, rows, self._unit_size(live, rows))))
        except FileDamaged as error:
            self._outcomes.fail_all(live, rows, error)
        except OSError:
            self._debts.give_back(live, rows, "its task file could not be read")
            raise

    def put_first(self, units: Sequence[Unit]) -> None:
        """They were with a worker: they are next."""
        self._units.extendleft(reversed(units))

    def _refused(self, live: LiveFile, rows: Iterable[int]) -> list[int]:
        """End rows that were cancelled or have failed too often; the others."""
        fold, kept = live.log.fold, []
        for row in rows:
            attempts, history = fold.attempts[row], fold.history.get(row, [])
            error = given_up(attempts, int(live.file.rows["retries"][row]), history)
            if error is not None:
                self._outcomes.fail(live, row, error)
            else:
                kept.append(row)
        return kept

    def _unit_size(self, live: LiveFile, rows: Sequence[int]) -> int:
        if not rows:
            return 1
        share = -(-len(rows) // self._crew.slots.cores)
        return max(1, min(MOST_ROWS, share, int(UNIT_TIME / self._pace.of(live, rows[0]))))

    # -- what goes -----------------------------------------------------------------------

    def withdraw(self, wanted: Collection[Row]) -> Iterator[tuple[LiveFile, int]]:
        """Take rows from the units, and tell which were there.

        Not from a chain, whose other rows need each of its own: that is killed when it runs.
        """
        for unit in [unit for unit in self._units if unit.simple]:
            live = unit.live
            mine = [row for row in unit.rows if (live.stem, row) in wanted]
            if mine:
                left = [row for row in unit.rows if row not in mine]
                rest = list(units_of(live, left, MOST_ROWS))  # may fail: then all stay
                self._units.remove(unit)
                self._units.extend(rest)
                yield from ((live, row) for row in mine)

    def give_back(self, reason: str) -> None:
        """All of them, at no attempt."""
        while self._units:
            unit = self._units.popleft()
            self._debts.give_back(unit.live, unit.rows, reason)

    def feed(self) -> None:
        """Give units to workers that are free, or soon will be."""
        now = time.monotonic()
        while self._units:
            unit = self._units[0]
            try:
                member = self._member_for(unit)
                if member is None:
                    return
                member.assign(unit, self._value, now)
            except FormatTooNew:
                raise  # the agent's shortcoming, not the task's
            except FsbrokerError as error:
                self._outcomes.fail_all(unit.live, unit.rows, error)
            self._units.popleft()

    def _member_for(self, unit: Unit) -> Member | None:
        kind = kind_of(unit.live)
        assert kind is not None
        member = self._crew.idle(kind)
        if member is not None or not unit.simple:
            return member
        duration = self._pace.of(unit.live, unit.rows[0])
        if duration > UNIT_TIME:
            return None
        reserve = UNIT_TIME / duration
        soon = [one for one in self._crew.of(kind) if self._is_quick(one, reserve)]
        return min(soon, key=Member.rows_left, default=None)

    def _is_quick(self, member: Member, rows: float) -> bool:
        """It has fewer rows left than these, and does not run what may take long.

        Rows that were given to a worker are not taken back: they would wait for that one.
        """
        if member.rows_left() >= rows:
            return False
        current = member.current()
        return current is None or self._pace.of(*current) < UNIT_TIME

    def _value(self, key: bytes) -> Value:
        value = self._dependencies.value(key)
        if value is None:
            raise DependencyFailed("The value of a dependency is not in the spool", key.hex())
        return value
