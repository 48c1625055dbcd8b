"""The log of a task file, and its fold.

All that happens to a task file after its birth is a record in one dense, append-only
log: the directory ``claims/<stem>``, whose entry ``<n>`` is a symbolic link with the
record as its target. `symlink` is the one call that creates a name with its content and
only if the name is free, so no reader sees a record half-written and no two writers
share a number. Only who has folded 0..n-1 appends n (rule 3).

Every 64th entry is a checkpoint: a file with the fold of all before it. Two writers
of one checkpoint write the same fold, so it does not matter who wins.
"""

from __future__ import annotations

import enum
import errno
import json
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from operator import le, lt
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool import forms
from fsbroker.spool.container import Container, image
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, is_agent, parse_record, parse_stem
from fsbroker.spool.publish import publish

CHECKPOINT_EVERY = 64
LONGEST = 900
"""Bytes of a record: a symbolic link holds 1024 on every file system in use."""
LISTINGS = 3
"""How often a log with a hole is listed before its dense beginning is taken as all."""

MOST_ATTEMPTS, MOST_GENERATIONS = 255, 65535
"""What their columns in logs and result files hold; counting stops there."""
MOST_OWNERS = 65535

Range = tuple[int, int]
"""Rows from the first number up to, not including, the second."""


class Kind(enum.Enum):
    """What a record says happened to its rows."""

    CLAIM = "claim"
    """``by`` will run them."""
    RELEASE = "release"
    """Their owner gives them back unrun; ``charge`` says whether it cost an attempt."""
    RECOVER = "recover"
    """Their owner ``about`` was sealed without outcomes for them."""
    READY = "ready"
    """All their dependencies have outcomes."""
    CANCEL = "cancel"
    """They shall never run."""
    ALIAS = "alias"
    """Another live row, ``about`` = "<stem> <row>", has the same key and will run.

    Of several rows it is the first that ``about`` names; the others follow as theirs do.
    """
    LOST = "lost"
    """Their outcome cannot be read any more: run them again."""
    RETIRE = "retire"
    """All rows have ended; nothing follows."""


class Record(NamedTuple):
    """One entry of a log. ``about`` is free text whose meaning the kind gives."""

    kind: Kind
    by: str
    token: str
    rows: tuple[Range, ...]
    about: str = ""

    def text(self) -> str:
        rows = ",".join(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in self.rows)
        return " ".join((self.kind.value, self.by, self.token, rows or "-", quote(self.about)))


def parse(text: str) -> Record | None:
    """The record in a link's target; None for anything else."""
    try:
        kind, by, token, rows, about = text.split(" ")
        record = Record(Kind(kind), by, token, tuple(_ranges(rows)), unquote(about))
    except ValueError:
        return None
    return record if _is_sound(record) else None


def _is_sound(record: Record) -> bool:
    """What it names can be: an owner's stream, for one, is a directory of that name."""
    if record.kind is Kind.CLAIM:
        return is_agent(record.by)
    if record.kind is Kind.ALIAS:
        stem, _, row = record.about.partition(" ")
        return parse_stem(stem) is not None and _ROW.fullmatch(row) is not None
    return record.kind is not Kind.LOST or _LOST.fullmatch(record.about) is not None


_ROW = re.compile(r"[0-9]{1,5}")
_LOST = re.compile(r"[0-9]{1,5}( .*)?", re.DOTALL)


def _ranges(text: str) -> Iterator[Range]:
    for part in text.split(",") if text != "-" else ():
        first, _, last = part.partition("-")
        yield int(first), int(last or first) + 1


def ranges_of(rows: Iterable[int]) -> tuple[Range, ...]:
    """Ascending rows as ranges."""
    found: list[Range] = []
    for row in rows:
        if found and found[-1][1] == row:
            found[-1] = (found[-1][0], row + 1)
        else:
            found.append((row, row + 1))
    return tuple(found)


def rows_of(ranges: Iterable[Range]) -> Iterator[int]:
    for first, end in ranges:
        yield from range(first, end)


class State(enum.IntEnum):
    """Where a row stands, as far as the log tells; outcomes stand in the streams."""

    WAITING = 0
    """For dependencies."""
    READY = 1
    """May be claimed."""
    CLAIMED = 2
    """``owner`` runs it, or has published its outcome."""
    CANCELLED = 3
    """Shall not run: whoever claims it publishes just that."""
    ALIASED = 4
    """Another row of the same key runs in its place."""


OPEN = (State.WAITING, State.READY)
CLAIMABLE = (*OPEN, State.CANCELLED)


class Fold:
    """What the records 0..n-1 of a log say.

    Attributes:
        next: n, the number of the next record.
        state, owner, generation, attempts, limit: of each row. ``owner`` is an index into
            ``agents``. ``limit`` is the most rows that may be claimed together with it: a
            recovered slice is split until the row that kills agents is alone.
        unready: rows that were claimed while waiting, by who makes their inputs as well.
        cancelled: rows that were cancelled before any claim: they never run.
        aliases: row -> (stem, row) that runs in its place.
        history: row -> what happened to earlier attempts.
    """

    def __init__(self, rows: int, waiting: Iterable[int] = ()) -> None:
        self.next = 0
        self.retired = False
        self.agents: list[str] = []
        self._places: dict[str, int] = {}
        self.state = bytearray(bytes([State.READY]) * rows)
        for row in waiting:
            self.state[row] = State.WAITING
        self.owner = array("H", bytes(2 * rows))
        self.generation = array("H", bytes(2 * rows))
        self.attempts = bytearray(rows)
        self.limit = array("H", [rows]) * rows
        self.unready: set[int] = set()
        self.cancelled: set[int] = set()
        self.aliases: dict[int, tuple[str, int]] = {}
        self.history: dict[int, list[str]] = {}

    def apply(self, record: Record | None) -> None:
        """Fold the next record in. One that is not valid has no effect but its number."""
        self.next += 1
        if record is None or self.retired:
            return
        edges = [edge for span in record.rows for edge in span]
        ascending = all(map(lt, edges[::2], edges[1::2])) and all(map(le, edges[1::2], edges[2::2]))
        if ascending and (not edges or (edges[0] >= 0 and edges[-1] <= len(self.state))):
            getattr(self, f"_{record.kind.value}")(record)

    def rows_in(self, *states: State) -> list[int]:
        wanted = bytes(states)
        if not any(state in self.state for state in wanted):
            return []
        return [row for row, state in enumerate(self.state) if state in wanted]

    def owned_by(self, agent: str) -> list[int]:
        """Rows whose last claim is this agent's (with or without an outcome)."""
        index = self._places.get(agent)
        if index is None:
            return []
        return [
            row
            for row, state in enumerate(self.state)
            if state == State.CLAIMED and self.owner[row] == index
        ]

    def owner_of(self, row: int) -> str | None:
        return self.agents[self.owner[row]] if self.state[row] == State.CLAIMED else None

    # -- one method for each kind of record ----------------------------------------------

    def _index(self, agent: str) -> int:
        place = self._places.setdefault(agent, len(self.agents))
        if place == len(self.agents):
            self.agents.append(agent)
        return place

    def _claim(self, record: Record) -> None:
        # All or nothing: its writer has folded all before, so a claim that overlaps
        # another's was never appended by a correct agent.
        if any(self.state[row] not in CLAIMABLE for row in rows_of(record.rows)):
            return
        if len(self.agents) > MOST_OWNERS:
            return  # nobody knows so many: they do not fit in their column
        owner = self._index(record.by)
        self.unready.update(row for row in rows_of(record.rows) if self.state[row] == State.WAITING)
        for first, end in record.rows:
            count = end - first
            self.state[first:end] = bytes([State.CLAIMED]) * count
            self.owner[first:end] = array("H", [owner]) * count

    def _reopen(self, row: int, *, reason: str) -> None:
        if row in self.cancelled:
            self.state[row] = State.CANCELLED
        else:
            self.state[row] = State.WAITING if row in self.unready else State.READY
        self.unready.discard(row)
        self.generation[row] = min(self.generation[row] + 1, MOST_GENERATIONS)
        if reason:
            self.history.setdefault(row, []).append(reason)

    def _charge(self, row: int) -> None:
        # No row may make its log unreadable, however many agents it kills.
        self.attempts[row] = min(self.attempts[row] + 1, MOST_ATTEMPTS)

    def _release(self, record: Record) -> None:
        charge, _, reason = record.about.partition(" ")
        for row in rows_of(record.rows):
            if self.owner_of(row) == record.by:
                if charge == "charge":
                    self._charge(row)
                self._reopen(row, reason=reason)

    def _recover(self, record: Record) -> None:
        agent, _, rest = record.about.partition(" ")
        evidence, _, reason = rest.partition(" ")
        rows = [row for row in rows_of(record.rows) if self.owner_of(row) == agent]
        limit = max(1, len(rows) // 2)
        for row in rows:
            if evidence == "dead" and self.limit[row] == 1:
                self._charge(row)
            self.limit[row] = limit
            self._reopen(row, reason=reason)

    def _ready(self, record: Record) -> None:
        for row in rows_of(record.rows):
            if self.state[row] == State.WAITING:
                self.state[row] = State.READY

    def _cancel(self, record: Record) -> None:
        for row in rows_of(record.rows):
            if self.state[row] in OPEN:
                self.state[row] = State.CANCELLED
                self.cancelled.add(row)

    def _alias(self, record: Record) -> None:
        stem, _, target = record.about.partition(" ")
        for row in rows_of(record.rows):
            if self.state[row] in OPEN:
                self.state[row] = State.ALIASED
                self.aliases[row] = (stem, int(target) + row - record.rows[0][0])

    def _lost(self, record: Record) -> None:
        generation = int(record.about.partition(" ")[0])
        for row in rows_of(record.rows):
            if self.state[row] == State.CLAIMED and self.generation[row] == generation:
                self._reopen(row, reason=record.about.partition(" ")[2])

    def _retire(self, _: Record) -> None:
        self.retired = True

    # -- checkpoints ---------------------------------------------------------------------

    def to_json(self) -> str:
        """The whole fold, as ASCII text; `from_json` gives it back."""
        return json.dumps(
            {
                "next": self.next,
                "agents": self.agents,
                "state": self.state.hex(),
                "owner": self.owner.tolist(),
                "generation": self.generation.tolist(),
                "attempts": self.attempts.hex(),
                "limit": self.limit.tolist(),
                "unready": sorted(self.unready),
                "cancelled": sorted(self.cancelled),
                "aliases": [[row, *target] for row, target in self.aliases.items()],
                "history": list(self.history.items()),
                "retired": self.retired,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: bytes) -> Fold:
        """The fold that a checkpoint holds.

        Raises:
            FileDamaged: it cannot be one.
        """
        read = forms.parsed(text, _SAVED, "fold", "a checkpoint")
        try:
            fold = cls._restored(read)
        except (ValueError, OverflowError) as error:
            raise FileDamaged("A fold that cannot be", "a checkpoint") from error
        rows = range(len(fold.state))
        owners = [fold.owner[row] for row in rows if fold.state[row] == State.CLAIMED]
        named = (*fold.unready, *fold.cancelled, *fold.aliases, *fold.history)
        if (
            len(set(fold.agents)) < len(fold.agents)
            or {len(rows)}
            != set(map(len, (fold.attempts, fold.owner, fold.generation, fold.limit)))
            or max(fold.state, default=0) > max(State)
            or max(owners, default=-1) >= len(fold.agents)
            or not all(map(is_agent, fold.agents))
            or not all(row in rows for row in named)
            or not all(parse_stem(stem) for stem, _ in fold.aliases.values())
        ):
            raise FileDamaged("A fold that cannot be", "a checkpoint")
        return fold

    @classmethod
    def _restored(cls, read: dict[str, Any]) -> Fold:
        fold = cls(0)
        fold.next, fold.agents, fold.retired = read["next"], read["agents"], read["retired"]
        fold._places = {agent: place for place, agent in enumerate(fold.agents)}
        fold.state = bytearray.fromhex(read["state"])
        fold.attempts = bytearray.fromhex(read["attempts"])
        fold.owner = array("H", read["owner"])
        fold.generation = array("H", read["generation"])
        fold.limit = array("H", read["limit"])
        fold.unready = set(read["unready"])
        fold.cancelled = set(read["cancelled"])
        fold.aliases = {row: (stem, target) for row, stem, target in read["aliases"]}
        fold.history = dict(read["history"])
        return fold


_SAVED = {
    "next": forms.natural,
    "agents": [str],
    "retired": bool,
    "state": str,
    "attempts": str,
    "owner": [forms.natural],
    "generation": [forms.natural],
    "limit": [forms.natural],
    "unready": [forms.natural],
    "cancelled": [forms.natural],
    "aliases": [(forms.natural, str, forms.natural)],
    "history": [(forms.natural, [str])],
}


class Retired(Exception):
    """The task file has ended: its log is gone, or says so."""


class Log:
    """The log of one task file, as far as this process has read it.

    Attributes:
        fold: of the records read so far.
        path: its directory.
        unsynced: own records were appended since the log was last made durable.
    """

    def __init__(self, files: Files, area: Area, stem: str, fold: Fold) -> None:
        self._files = files
        self._area = area
        self.path = area.log(stem)
        self.stem = stem
        self.fold = fold
        self.unsynced = False
        self.doubtful: int | None = None
        self._overtaken = False

    def is_blank(self) -> bool:
        """Whether nothing is known of it: its first record may be tried without a listing."""
        return self.fold.next == 0 and not self._overtaken

    def refresh(self) -> bool:
        """Read what was appended since; True if that was anything.

        Raises:
            Retired: it has ended.
        """
        before = self.fold.next
        self._read_on()
        if self.fold.next == before and self._overtaken:
            # The next number is taken, yet the listing does not show it: two changes in
            # one tick of an NFS v3 server. Another change makes the client look again.
            self._files.touch_directory(self.path)
            self._read_on()
        self._overtaken = False
        if self.fold.retired:
            raise Retired(self.stem)
        return self.fold.next > before

    def _read_on(self) -> None:
        for _ in range(LISTINGS):
            numbers = self._numbers()
            start = self._newest_checkpoint(numbers)
            dense = self._read_from(numbers, start)
            if dense:
                break

    def _numbers(self) -> set[int]:
        try:
            names = self._files.names(self.path)
        except FileNotFoundError:
            raise Retired(self.stem) from None
        return {number for name in names if (number := parse_record(name)) is not None}

    def _newest_checkpoint(self, numbers: set[int]) -> int | None:
        newest = max(numbers, default=0) // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        while newest > self.fold.next and newest not in numbers:
            newest -= CHECKPOINT_EVERY
        return newest if newest > self.fold.next else None

    def _read_from(self, numbers: set[int], checkpoint: int | None) -> bool:
        """Fold what is there, from the checkpoint if there is one; False at a hole."""
        if checkpoint is not None:
            fold = self._read_checkpoint(checkpoint)
            if fold is not None:
                self.fold = fold
        while self.fold.next in numbers:
            try:
                self.fold.apply(self._record(self.fold.next))
            except FileNotFoundError:
                return False
        return self.fold.next > max(numbers, default=-1)

    def _read_checkpoint(self, number: int) -> Fold | None:
        try:
            with Container(self._files, self._area.record(self.stem, number), "checkpoint") as file:
                fold = Fold.from_json(file.read("fold"))
        except (FileNotFoundError, FileDamaged, FileRefused):
            return None  # the records before it say the same
        if len(fold.state) != len(self.fold.state):
            return None
        fold.next = number + 1
        return fold

    def _record(self, number: int) -> Record | None:
        try:
            return parse(self._files.readlink(self._area.record(self.stem, number)))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None  # a checkpoint, or a file that is no record
            raise

    def append(self, kind: Kind, by: str, rows: Sequence[Range], about: str = "") -> bool:
        """Append a record behind what has been folded; False if another was faster.

        After False, `refresh` and decide anew. The rows must fit in one record
        (`fitting`).

        Raises:
            Retired: the log is gone, or has ended.
        """
        if self.fold.retired:
            raise Retired(self.stem)
        due = self.fold.next and self.fold.next % CHECKPOINT_EVERY == 0
        if due and not self._append_checkpoint():
            return False
        record = Record(kind, by, self._files.token(), tuple(rows), about)
        if not self._create(self.fold.next, record):
            self._overtaken = True
            return False
        self.fold.apply(record)
        self.unsynced = True
        return True

    def _create(self, number: int, record: Record) -> bool:
        path, text = self._area.record(self.stem, number), record.text()
        try:
            self._files.symlink(text, path)
            return True
        except OSError as error:
            # The reply may lie both ways: only the content tells whose record it is.
            if error.errno != errno.EEXIST:
                self.doubtful = number  # it may also be done later (a soft mount gave up)
            try:
                return self._files.readlink(path) == text
            except OSError as unreadable:
                if unreadable.errno == errno.EINVAL:
                    return False
                if unreadable.errno != errno.ENOENT:
                    self.doubtful = number
                    raise error from None
            self._numbers()  # raises Retired if the whole log is gone
            return False

    def _append_checkpoint(self) -> bool:
        number = self.fold.next
        content = {"fold": self.fold.to_json().encode()}
        try:
            made = publish(
                self._files,
                self._area,
                image(self._files.token(), "checkpoint", {"stem": self.stem}, content),
                self._area.record(self.stem, number),
                durable=False,
            )
        except FileNotFoundError:
            raise Retired(self.stem) from None
        self.fold.next += made
        return made

    def sync(self) -> None:
        """Make own records durable: to be done before outcomes of claimed rows are linked."""
        if self.unsynced:
            try:
                self._files.sync_directory(self.path)
            except FileNotFoundError:
                raise Retired(self.stem) from None
            self.unsynced = False


def fitting(rows: Sequence[Range], about: str = "") -> Sequence[Range]:
    """As many of the ranges, from the first, as one record can hold."""
    room = LONGEST - 60 - len(quote(about))
    for count, (first, end) in enumerate(rows):
        room -= len(str(first)) + len(str(end)) + 2
        if room < 0:
            return rows[:count]
    return rows
