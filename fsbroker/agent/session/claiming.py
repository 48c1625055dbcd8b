"""Which rows an agent takes: those that are ready, that fit, and that end in time."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from fsbroker.agent.session.holdings import Claim, Holdings, Row
from fsbroker.agent.session.turns import Turns
from fsbroker.spool.container import Image
from fsbroker.spool.layout import Stem
from fsbroker.spool.live import LiveFile, give_birth
from fsbroker.spool.log import Fold, Kind, Log, State, ranges_of

LONGEST_CHAIN = 256
"""Rows that may be claimed before their inputs exist, because the claimer makes these."""

Want = Callable[[LiveFile, Sequence[int]], int]
"""How many of a file's ready rows the agent wants now; 0 if they do not fit."""


class Claiming:
    """How one agent comes to rows.

    Args:
        environment: which rows it can run (`Stem.environment`).
        only: the one row that it may claim.
    """

    def __init__(self, holdings: Holdings, environment: str, only: Row | None = None) -> None:
        self._holdings = holdings
        self._environment = environment
        self._only = only
        self._turns = Turns(holdings.spool)
        self._time_left = math.inf

    def claim(self, want: Want, *, thorough: bool, time_left: float) -> Claim | None:
        """As `AgentSession.claim`."""
        self._time_left = time_left
        for live in self._holdings.live:
            if live.name.environment != self._environment:
                continue
            if self._only and live.stem != self._only[0]:
                continue
            with self._holdings.reading(live):
                claim = self._claim_in(live, want, thorough)
                if claim is not None:
                    return claim
        return None

    def _claim_in(self, live: LiveFile, want: Want, thorough: bool) -> Claim | None:
        self._holdings.settle_doubt(live)
        fold = live.log.fold
        if fold.next and not thorough and State.READY not in fold.state:
            return None
        # Without ready rows as far as was read: in case that there are some by now.
        ready: Sequence[int] = fold.rows_in(State.READY) if fold.next else ()
        if ready and not (ready := self._in_time(live, ready)):
            return None
        if not want(live, ready or (0,)):
            return None
        with self._turn(live) as mine:
            if not mine:
                return None
            if thorough:
                self._holdings.spool.files.freshen(live.log.path)
            return self._append_claim(live, want)

    def _turn(self, live: LiveFile) -> AbstractContextManager[bool]:
        # The lock only spares others a number that is taken: without others, nothing.
        return nullcontext(True) if self._holdings.alone else self._turns.take(live)

    def _append_claim(self, live: LiveFile, want: Want) -> Claim | None:
        if live.log.is_blank() and (claim := self._claim_ready(live, want)):
            return claim
        if live.log.refresh():
            self._holdings.reconcile(live)
        return self._claim_ready(live, want)

    def _claim_ready(self, live: LiveFile, want: Want) -> Claim | None:
        ready = self._in_time(live, live.log.fold.rows_in(State.READY))
        count = want(live, ready) if ready else 0
        if count <= 0:
            return None
        return self._holdings.own(live, self._choose(live, ready, count))

    # -- which rows ----------------------------------------------------------------------

    def _in_time(self, live: LiveFile, rows: Sequence[int]) -> Sequence[int]:
        """Those of the rows that end before the agent's time does, if they keep to their limit."""
        if self._only:
            rows = [row for row in rows if row == self._only[1]]
        if self._time_left == math.inf:
            return rows
        limits = live.file.rows["time_limit"]
        return [row for row in rows if limits[row] <= self._time_left]

    def _choose(self, live: LiveFile, ready: Sequence[int], count: int) -> list[int]:
        """The first rows, no more than recovery allows together, and chains that hang on them."""
        fold = live.log.fold
        chosen: list[int] = []
        for row in ready[:count]:
            if fold.limit[row] <= len(chosen):
                break
            chosen.append(row)
            count = min(count, fold.limit[row])
        chosen = chosen[:count]
        if live.name.waiting and State.WAITING in fold.state and not self._only:
            room = min(LONGEST_CHAIN, min(fold.limit[row] for row in chosen) - len(chosen))
            chosen = sorted(chosen + self._chains(live, set(chosen), room))
        return chosen

    def _chains(self, live: LiveFile, chosen: set[int], room: int) -> list[int]:
        """Waiting rows that only wait for chosen ones, one for each: claimed in one piece."""
        if live.file.rows["ranks"][next(iter(chosen))] > 1:
            return []
        found: list[int] = []
        used: set[int] = set()
        limits = live.file.rows["time_limit"]
        left = self._time_left - max(float(limits[row]) for row in chosen)
        for row in live.log.fold.rows_in(State.WAITING):
            if len(found) >= room:
                break
            if limits[row] > left:
                continue
            inputs = {own for _, own in live.file.dependencies(row)}
            if inputs <= chosen and not inputs & used:
                used |= inputs
                chosen.add(row)
                found.append(row)
                left -= float(limits[row])
        return found


def bring(holdings: Holdings, stem: Stem, made: Image, waiting: Sequence[int]) -> None:
    """As `AgentSession.bring`: it has their outcomes already, or will not run them.

    The claim is in the log before the file can be seen, so nobody else begins to run them.
    If this agent dies before it publishes, they are recovered like all others.
    """
    files, area, durable = holdings.spool
    files.mkdir(area.log(str(stem)))
    log = Log(files, area, str(stem), Fold(stem.rows, waiting))
    if not log.append(Kind.CLAIM, holdings.agent, ((0, stem.rows),)):
        raise OSError(errno.EIO, "A record could not be written", log.path)  # nobody else does
    give_birth(files, area, stem, made, durable=durable)
    holdings.live.poll(afresh=True)
    live = holdings.live.get(str(stem))
    if live is None:
        return  # this agent was taken for dead, and others have ended its rows
    with holdings.reading(live):
        live.log.refresh()
        live.log.unsynced = True
        holdings.note_owned(live, ranges_of(live.log.fold.owned_by(holdings.agent)))
