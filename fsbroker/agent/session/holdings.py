"""What one agent knows of its area, and which rows are its own.

Every other part of the session has this one in its hands: the task files and outcomes as
this agent sees them, and the records with which it takes rows and gives them back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool.index import Results
from fsbroker.spool.live import LiveFile, LiveFiles
from fsbroker.spool.log import Kind, Range, Retired, fitting, ranges_of, rows_of
from fsbroker.spool.spool import Spool
from fsbroker.task import Encoding, Outcome, Status, Value

NOTHING = Value(Encoding.PLAIN, b"null")

Row = tuple[str, int]
"""A row by its task file and number."""


class Claim(NamedTuple):
    """Rows that this agent owns now, ascending; inputs come before their dependents."""

    live: LiveFile
    rows: tuple[Range, ...]


class Holdings:
    """The rows of one agent.

    Attributes:
        agent: its id, 16 hex digits, never used again.
        live, results: what it knows of the spool.
        alone: no other agent was present at the last look.
        held: rows owned and not published, by task file.
        published: rows that were owned and published, by task file.
        claimed: the task files of those rows.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.agent: str = spool.files.token()
        self.live = LiveFiles(spool.files, spool.area)
        self.results = Results(spool.files, spool.area, durable=spool.durable)
        self.alone = False
        self.held: dict[str, set[int]] = {}
        self.published: dict[str, set[int]] = {}
        self.claimed: dict[str, LiveFile] = {}
        self._settled: set[Row] = set()

    # -- what is there -------------------------------------------------------------------

    @contextmanager
    def reading(self, live: LiveFile) -> Iterator[None]:
        """Go on with the next task file if this one ends meanwhile, or cannot be read."""
        try:
            yield
        except (Retired, FileNotFoundError):
            self.forget(live)
        except (FileDamaged, FileRefused) as error:
            self.live.set_aside(live.stem, error)

    def forget(self, live: LiveFile) -> None:
        """It was retired."""
        self.live.forget(live.stem)
        self.results.forget(live.stem)
        for known in (self.held, self.published, self.claimed):
            known.pop(live.stem, None)

    def outcome(
        self,
        live: LiveFile,
        row: int,
        status: Status,
        value: Value,
        error: dict[str, str] | None = None,
        **measured: Any,
    ) -> Outcome:
        """An outcome of a held row, with what its task file and log say of it."""
        entry, fold = live.file.rows[row], live.log.fold
        return Outcome(
            stem=live.stem,
            row=row,
            key=entry["key"].tobytes(),
            descriptor=entry["descriptor"].tobytes(),
            round=int(entry["round"]),
            generation=fold.generation[row],
            attempt=fold.attempts[row],
            ranks=int(entry["ranks"]),
            status=status,
            value=value,
            error=error,
            **measured,
        )

    # -- to own --------------------------------------------------------------------------

    def own(self, live: LiveFile, rows: Iterable[int]) -> Claim | None:
        """Claim the rows, as many from the first as one record holds; None if it was no use."""
        ranges = tuple(fitting(ranges_of(rows)))
        if not live.log.append(Kind.CLAIM, self.agent, ranges):
            return None
        if any(live.log.fold.owner_of(row) != self.agent for row in rows_of(ranges)):
            return None  # chosen by an older fold: such a claim has no effect
        return self.note_owned(live, ranges)

    def note_owned(self, live: LiveFile, ranges: tuple[Range, ...]) -> Claim:
        """The log says that these rows are mine."""
        rows = set(rows_of(ranges))
        self.claimed[live.stem] = live
        self.held.setdefault(live.stem, set()).update(rows)
        self.published.get(live.stem, set()).difference_update(rows)
        self._settled.difference_update((live.stem, row) for row in rows)
        return Claim(live, ranges)

    def release(
        self, live: LiveFile, rows: Sequence[int], reason: str, *, charge: bool = False
    ) -> None:
        """Give rows back; with ``charge`` it cost them an attempt."""
        about = f"{'charge' if charge else 'free'} {reason}"[:200]
        self.append_all(live, Kind.RELEASE, rows, about)
        self.held.get(live.stem, set()).difference_update(rows)

    def release_all(self, reason: str, besides: Collection[Row] = ()) -> None:
        """Give back what was not published, at no attempt."""
        for stem, rows in list(self.held.items()):
            left = [row for row in sorted(rows) if (stem, row) not in besides]
            if left:
                self.release(self.claimed[stem], left, reason)

    def append_all(self, live: LiveFile, kind: Kind, rows: Sequence[int], about: str = "") -> None:
        """Append records until all rows are in one; what others append meanwhile is read."""
        left = ranges_of(rows)
        with suppress(Retired):
            while left:
                part = fitting(left, about)
                if live.log.append(kind, self.agent, part, about):
                    left = left[len(part) :]
                else:
                    live.log.refresh()

    # -- doubt ---------------------------------------------------------------------------

    def settle_doubt(self, live: LiveFile) -> None:
        """A record of mine failed, or may come yet: once its number is taken, it is known."""
        if live.log.doubtful is not None:
            live.log.refresh()
            if live.log.fold.next > live.log.doubtful:
                self.reconcile(live)
                live.log.doubtful = None

    def reconcile(self, live: LiveFile) -> None:
        """Give back rows that the log says are mine though I was told that the claim failed."""
        known = self.held.get(live.stem, set()) | self.published.get(live.stem, set())
        unknown = [row for row in live.log.fold.owned_by(self.agent) if row not in known]
        if unknown:
            live.log.doubtful = live.log.fold.next - 1  # should an error come between
            self.release(live, unknown, "")
            live.log.doubtful = None

    # -- to have published ---------------------------------------------------------------

    def note_published(self, rows: Iterable[Row]) -> None:
        for stem, row in rows:
            self.held.get(stem, set()).discard(row)
            self.published.setdefault(stem, set()).add(row)

    def note_settled(self, rows: Iterable[Row]) -> None:
        """They were published, and who offered them was told of an error."""
        self._settled.update(rows)

    def was_published(self, first: Row) -> bool:
        stem, row = first
        # Who was told of an error offers it again, when its file may long be retired.
        return first in self._settled or row in self.published.get(stem, ())
