"""A client's side of the protocol: no threads, no waiting.

    submit -> each call is bound: to an outcome that exists, to a row that will run, or to
              a new row
    poll   -> which bound rows have ended

The executor's thread (`loop.py`) drives it; the simulation does so without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from fsbroker.errors import SpoolError
from fsbroker.spool import taskfile
from fsbroker.spool.container import Image
from fsbroker.spool.index import Found, Results
from fsbroker.spool.layout import Stem
from fsbroker.spool.live import LiveFile, LiveFiles, give_birth
from fsbroker.spool.log import (
    OPEN,
    Fold,
    Kind,
    Log,
    Range,
    Retired,
    State,
    fitting,
    ranges_of,
    rows_of,
)
from fsbroker.spool.neighbours import Neighbours
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import FunctionEntry, Limits, TaskRow
from fsbroker.task import Status

Ticket = TypeVar("Ticket")
"""What the caller wants back when a row ends: a future."""

MISSED = 4
"""Listings in a row without a task file after which it is gone, though its log is there."""
UNREADABLE = 30
"""Checks in a row that cannot tell what an ended row came to, after which it counts as lost."""
NUDGE_AFTER = 0.05
"""Seconds after which a directory with a new name is touched: an NFS v3 client misses the
second of two changes in one tick of the server's clock, until there is a third."""


class Holder(Protocol):
    """Who has tasks that are put off (`deferral`)."""

    def bring(self, stem: Stem, made: Image, waiting: Sequence[int]) -> None:
        """Publish a task file whose rows are held from the first record on."""


class Lane(NamedTuple):
    """What all tasks of one task file have in common.

    Attributes:
        priority: 0 to 9999, the higher the sooner.
        shape: resources, as they stand in the file's name.
        environment: digest of the interpreter.
        meta: attributes of the file, as (name, JSON value) pairs.
        preset: what workers call before the first of these tasks (``init_function``).
        holder: has them until they are due; None: agents may take them at once.
    """

    priority: int
    shape: str
    environment: str
    limits: Limits
    meta: tuple[tuple[str, Any], ...] = ()
    preset: FunctionEntry | None = None
    holder: Holder | None = None


class Ended(NamedTuple, Generic[Ticket]):
    """Tickets whose outcomes stand in one result file."""

    file: ResultFile
    tickets: list[tuple[int, Ticket]]
    """Index of the row in the file, and the ticket."""


class Checked(NamedTuple, Generic[Ticket]):
    """What a look at all bound rows found; the next poll tells of those that ended in place.

    Attributes:
        elsewhere: tickets whose row is not there, with an outcome of their key.
        lost: tickets whose row is gone from the spool, without any outcome.
        unreadable: tickets whose row is gone, and why it cannot be told for long what became of it.
    """

    elsewhere: list[tuple[Ticket, Found]]
    lost: list[Ticket]
    unreadable: list[tuple[Ticket, Exception]]


def _ignore(*_: Any) -> None:
    pass


class ClientSession(Generic[Ticket]):
    """One client in one area.

    Args:
        key_of: the key of a ticket.
        moved: told when a ticket is bound to another row than that it was published with.
        neighbours: whose results may be used as well; None: nobody's.

    Attributes:
        ident: what its records in logs are signed with.
        live, results: what it knows of the spool.
    """

    def __init__(
        self,
        spool: Spool,
        key_of: Callable[[Ticket], bytes],
        moved: Callable[[Ticket, str, int], None] = _ignore,
        neighbours: Neighbours | None = None,
    ) -> None:
        self._key_of = key_of
        self._moved = moved
        self._neighbours = neighbours
        self._files, self._area, self._durable = spool
        self.ident: str = self._files.token()
        self.live = LiveFiles(self._files, self._area)
        self.results = Results(self._files, self._area, durable=self._durable)
        self._bound: dict[str, dict[int, Ticket] | list[Ticket | None]] = {}
        self._rounds: dict[str, dict[int, int]] = {}
        """Of those bound rows whose keys had been tried before."""
        self._own: set[str] = set()
        self._missing: dict[str, int] = {}
        self._nudge_at: float | None = None

    # -- submitting ----------------------------------------------------------------------

    def look_up(self, keys: list[bytes]) -> tuple[dict[bytes, Found], dict[bytes, tuple[str, int]]]:
        """What exists of these keys: current outcomes, and rows that will run.

        Tasks are looked at first, then fresh results, then packs (rule 14).
        """
        self.live.poll(afresh=True)
        candidates = self._may_run(self.live.holding(keys, besides=self._own))
        # Deep: an agent that came and went between two polls is in no listing of presences.
        self.results.poll(deep=True)
        outcomes = {}
        for key in self.results.known(keys):
            found = self.results.find(key)
            if found is not None:
                outcomes[key] = found
        running = {}
        for key, places in candidates.items():
            row = self._first_running(places)
            if row is not None:
                running[key] = row
        if running and self._durable:
            # Others may have linked these files a moment ago: before somebody relies on
            # them they must survive a power loss.
            self._files.sync_directory(self._area.tasks)
        return outcomes, running

    def adopt(self, calls: Mapping[bytes, bytes]) -> dict[bytes, Found]:
        """What others whom this user trusts have of these calls, taken over.

        Args:
            calls: descriptors by key.
        """
        if self._neighbours is None or not calls:
            return {}
        keys = self._neighbours.adopt(calls)
        if keys:
            self.results.poll(deep=True)
        return {key: found for key in keys if (found := self.results.find(key)) is not None}

    def _may_run(
        self, rows: dict[bytes, list[tuple[LiveFile, int]]]
    ) -> dict[bytes, list[tuple[LiveFile, int]]]:
        """Those of the live rows that neither were cancelled nor follow another one.

        Their outcomes are to be looked for after this: then a row whose file retires
        meanwhile is found by its outcome.
        """
        files = {live.stem: live for places in rows.values() for live, _ in places}
        for stem, live in list(files.items()):
            try:
                live.log.refresh()
            except (Retired, FileNotFoundError):
                self.live.forget(stem)
                del files[stem]
        found: dict[bytes, list[tuple[LiveFile, int]]] = {}
        for key, places in rows.items():
            for live, row in places:
                if live.stem in files and _may_run(live.log.fold, row):
                    found.setdefault(key, []).append((live, row))
        return found

    def _first_running(self, places: Sequence[tuple[LiveFile, int]]) -> tuple[str, int] | None:
        """The first of the rows that has no outcome."""
        for live, row in places:
            if not self.results.ended(live.stem, live.file.keys)[row]:
                return live.stem, row
        return None

    def publish(self, lane: Lane, rows: Sequence[TaskRow], tickets: Sequence[Ticket]) -> str:
        """Make new rows known, and bind their tickets; the stem of the task file.

        Rows that another client made at the same moment are left to the one whose file
        has the lower name (rule 8).
        """
        token, meta = self._files.token(), dict(lane.meta)
        made = taskfile.build(token, rows, lane.limits, meta, lane.preset)
        waiting = [number for number, row in enumerate(rows) if row.arguments.dependencies]
        stem = Stem(
            lane.priority,
            int(self._files.wall_time() * 1e9),
            made.token,
            lane.shape,
            lane.environment,
            len(rows),
            len(waiting),
        )
        if lane.holder is None:
            give_birth(self._files, self._area, stem, made, durable=self._durable)
        else:
            lane.holder.bring(stem, made, waiting)
        self._nudge_at = self._files.monotonic() + NUDGE_AFTER
        # The caller knows what it waits for: its own file need not be read for that.
        self._own.add(str(stem))
        self._bound[str(stem)] = list(tickets)
        if again := {number: row.round for number, row in enumerate(rows) if row.round}:
            self._rounds[str(stem)] = again
        if lane.holder is None:
            # The rows are published: whatever fails now must not make the caller do it again.
            try:
                self._alias(str(stem), rows)
            except (OSError, SpoolError):
                # The record may stand all the same: as for rows of others, `check` reads the log.
                self._bound[str(stem)] = self._open_rows(str(stem))
        return str(stem)

    def _alias(self, stem: str, new: Sequence[TaskRow]) -> None:
        """Leave to older files what they will run: in this round, or in a later one."""
        others = [live for live in self.live.poll() if live.stem != stem]
        mine = self.live.get(stem)
        if not others or mine is None:
            return
        targets: dict[int, tuple[str, int]] = {}
        rows = {one.key: row for row, one in enumerate(new)}
        candidates = self._may_run(self.live.holding(list(rows), besides=self._own))
        self.results.poll()
        for key, places in candidates.items():
            older = [place for place in places if place[0].stem < stem]
            running = self._first_running(
                [(live, row) for live, row in older if live.round(row) >= new[rows[key]].round]
            )
            if running is not None:
                targets[rows[key]] = running
        for first, end in _runs(targets):
            with suppress(Retired, FileNotFoundError):
                self._append_alias(mine, first, end, targets[first])

    def _append_alias(self, mine: LiveFile, first: int, end: int, target: tuple[str, int]) -> None:
        """Rows that follow each other stand for rows that do so, too: one record says it."""
        stem, number = target
        appended = False
        while not appended:
            mine.log.refresh()
            appended = mine.log.append(Kind.ALIAS, self.ident, [(first, end)], f"{stem} {number}")
        for row in range(first, end):
            if mine.log.fold.state[row] == State.ALIASED:
                self._rebind(mine.stem, row, mine.log.fold.aliases[row])

    def _rebind(self, stem: str, row: int, target: tuple[str, int]) -> None:
        tickets = self._bound[stem]
        ticket = tickets[row]
        if isinstance(tickets, list):
            tickets[row] = None
        else:
            del tickets[row]
        if ticket is not None:
            self.bind(target, ticket)
            self._moved(ticket, *target)

    def bind(self, row: tuple[str, int], ticket: Ticket) -> None:
        """Want the outcome of a row that exists already (`look_up`)."""
        stem, number = row
        self._bound.setdefault(stem, {})[number] = ticket
        live = self.live.get(stem)
        with suppress(OSError, SpoolError):
            if live is not None and (round_ := live.round(number)):
                self._rounds.setdefault(stem, {})[number] = round_

    # -- outcomes ------------------------------------------------------------------------

    def poll(self, *, deep: bool = False) -> Iterator[Ended[Ticket]]:
        """Tickets whose rows have ended since the last poll."""
        if self._nudge_at is not None and self._files.monotonic() >= self._nudge_at:
            self._nudge_at = None
            self._files.touch_directory(self._area.tasks)
        self.results.poll(deep=deep)
        for file in self.results.news():
            tickets = self._take(file)
            if tickets:
                yield Ended(file, tickets)

    def _take(self, file: ResultFile) -> list[tuple[int, Ticket]]:
        found: list[tuple[int, Ticket]] = []
        for number, stem in enumerate(file.files):
            tickets = self._bound.get(stem)
            if tickets is None:
                continue
            if len(file.files) == 1:
                indices: Any = range(len(file.rows))
                rows = file.rows["row"].tolist()
            else:
                indices = np.flatnonzero(file.rows["file"] == number)
                rows = file.rows["row"][indices].tolist()
                indices = indices.tolist()
            if isinstance(tickets, list):
                for index, row in zip(indices, rows, strict=True):
                    ticket = tickets[row]
                    if ticket is not None:
                        tickets[row] = None
                        found.append((index, ticket))
            else:
                for index, row in zip(indices, rows, strict=True):
                    ticket = tickets.get(row)
                    # Records are not signed: a forged alias may lead to another call's row.
                    if ticket is not None and file.keys[index] == self._key_of(ticket):
                        del tickets[row]
                        found.append((index, ticket))
        return found

    def check(self) -> Checked[Ticket]:
        """Look after rows that no new result file will ever tell of: now and then."""
        self.live.poll(afresh=True)
        # A task file without its log has ended; or a purge took the log, and nobody will run it.
        logs = set(self._files.names(self._area.claims))
        missing = {
            stem: self._missing.get(stem, 0) + 1
            for stem in self._bound
            if self.live.get(stem) is None or stem not in logs
        }
        self.results.poll(deep=True)
        elsewhere: list[tuple[Ticket, Found]] = []
        lost: list[Ticket] = []
        unreadable: list[tuple[Ticket, Exception]] = []
        for stem, tickets in list(self._bound.items()):
            if not any(tickets.values() if isinstance(tickets, dict) else tickets):
                del self._bound[stem]
                self._rounds.pop(stem, None)
                continue
            try:
                if stem not in missing:
                    elsewhere.extend(self._follow_aliases(stem))  # those before an error, too
                    continue
                found, gone = self._follow_key(stem, sure=self._is_gone(stem, missing[stem]))
                elsewhere += found
                lost += gone
            except (OSError, SpoolError) as error:  # another time; what was found is not lost
                if missing.get(stem, 0) > UNREADABLE:
                    unreadable += [(one, error) for one in self._open_rows(stem).values()]
                    del self._bound[stem]
        self._missing = missing
        self._own = {stem for stem in self._own if self.live.get(stem) is not None}
        return Checked(elsewhere, lost, unreadable)

    def _is_gone(self, stem: str, times: int) -> bool:
        """Whether a task file that listings miss is really not there.

        It is if its log is gone too. Otherwise the listing may be old, or a purge took the
        one file: then it must be missed in several listings made anew.
        """
        try:
            self._files.names(self._area.log(stem))
        except FileNotFoundError:
            return times > 1
        self._files.touch_directory(self._area.tasks)
        return times > MISSED and self.live.get(stem) is None

    def _open_rows(self, stem: str) -> dict[int, Ticket]:
        tickets = self._bound[stem]
        if isinstance(tickets, dict):
            return dict(tickets)
        return {row: ticket for row, ticket in enumerate(tickets) if ticket is not None}

    def _follow_key(
        self, stem: str, *, sure: bool
    ) -> tuple[list[tuple[Ticket, Found]], list[Ticket]]:
        """Rows of a task file that is not there: their outcomes stand elsewhere, or are lost.

        One listing that misses the file proves nothing; two do.
        """
        rows = self._open_rows(stem)
        found = {row: self.outcome(one, stem, row, sure=sure) for row, one in rows.items()}
        elsewhere, lost = [], []
        for row, ticket in rows.items():
            where = found[row]
            if where is not None:
                elsewhere.append((ticket, where))
            elif sure:
                lost.append(ticket)
            else:
                continue
            self.unbind(stem, row, ticket)
        return elsewhere, lost

    def outcome(self, ticket: Ticket, stem: str, row: int, *, sure: bool) -> Found | None:
        """Where the outcome of a row stands by now.

        Args:
            sure: that its own can be nowhere but where was looked: the current one of its
                key will do, but for a failure of an earlier round.
        """
        key = self._key_of(ticket)
        found = self.results.find_row(key, stem, row)
        if found is not None or not sure:
            return found
        found = self.results.find(key)
        first = self._rounds.get(stem, {}).get(row, 0)
        return found if found and (found.status == Status.DONE or found.round >= first) else None

    def unbind(self, stem: str, row: int, ticket: Ticket) -> None:
        """Nobody waits for this ticket any more."""
        self._own.discard(stem)
        tickets = self._bound.get(stem)
        if isinstance(tickets, dict):
            if tickets.get(row) is ticket:
                del tickets[row]
        elif tickets is not None and tickets[row] is ticket:
            tickets[row] = None

    def _follow_aliases(self, stem: str) -> Iterator[tuple[Ticket, Found]]:
        """Somebody left a row, to which we attached in that moment, to an older one.

        Of that one there may have been news already, which whoever left it had not seen.
        """
        live, tickets = self.live.get(stem), self._bound[stem]
        if live is None or isinstance(tickets, list):
            return
        with suppress(Retired, FileNotFoundError):
            live.log.refresh()
            for row, (older, number) in live.log.fold.aliases.items():
                ticket = tickets.get(row)
                if ticket is None:
                    continue
                # First, since it may fail: then the row is followed another time.
                found = self.outcome(ticket, older, number, sure=False)
                self._rebind(stem, row, (older, number))
                if found is not None:
                    self.unbind(older, number, ticket)
                    yield ticket, found

    # -- cancelling ----------------------------------------------------------------------

    def cancel(self, stem: str, row: int) -> bool:
        """Make sure that a row never runs; False if it was claimed before, or has ended."""
        return row in self.cancel_rows(stem, [row])

    def cancel_rows(self, stem: str, rows: Sequence[int]) -> set[int]:
        """Make sure that rows never run: those for which that was in time."""
        live = self.live.get(stem)
        if live is None:
            self.live.poll()
            live = self.live.get(stem)
        if live is None:
            return set()
        log = live.log
        try:
            # What was folded before may be old: then the number of the record is taken.
            left = self._open_of(log, rows)
            while left:
                part = fitting(ranges_of(left))
                if log.append(Kind.CANCEL, self.ident, part):
                    left = left[len(list(rows_of(part))) :]
                else:
                    log.refresh()
                    left = self._open_of(log, left)
            if self._durable:
                log.unsynced = True  # a record of somebody else may not be durable yet
                log.sync()
        except (Retired, FileNotFoundError):
            return set()
        return log.fold.cancelled.intersection(rows)

    def _open_of(self, log: Log, rows: Sequence[int]) -> list[int]:
        return sorted(row for row in rows if log.fold.state[row] in OPEN)

    def state(self, stem: str, row: int) -> State | None:
        """Where a row stands; None if its file has ended."""
        live = self._read(stem)
        return State(live.log.fold.state[row]) if live is not None else None

    def is_claimed(self, stem: str, row: int) -> bool:
        """An agent has it, to run it."""
        claimed = self.state(stem, row) is State.CLAIMED
        return claimed and (live := self.live.get(stem)) is not None and not live.is_put_off(row)

    def _read(self, stem: str) -> LiveFile | None:
        """A task file, with its log as it is now; None if it has ended."""
        live = self.live.get(stem)
        if live is None:
            self.live.poll()
            live = self.live.get(stem)
        with suppress(Retired, FileNotFoundError):
            if live is not None:
                live.log.refresh()
                return live
        return None

    def descriptor(self, stem: str, row: int) -> bytes | None:
        """What the key of a row was made from; None if its file is not there."""
        live = self.live.get(stem)
        if live is None:
            return None
        try:
            return live.descriptor(row)
        except FileNotFoundError:
            return None


def _runs(targets: Mapping[int, tuple[str, int]]) -> Iterator[Range]:
    """Rows as ranges within which their targets follow each other as they do."""
    first = end = None
    for row in sorted(targets):
        stem, number = targets[row]
        if end == row and targets[row - 1] == (stem, number - 1):
            end += 1
            continue
        if first is not None and end is not None:
            yield first, end
        first, end = row, row + 1
    if first is not None and end is not None:
        yield first, end


def _may_run(fold: Fold, row: int) -> bool:
    return fold.state[row] not in (State.CANCELLED, State.ALIASED) and row not in fold.cancelled
