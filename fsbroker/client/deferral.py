"""Calls that a trusted user is already having computed: put off, never given up.

    pending(keys)      those that others will bring to an end, by all we can tell
    lane(lane, user)   task files for such calls
    look()             takes over what has ended, gives back what nobody else will end

A call is put off while a row of its key stands in the area of a user whose code is trusted, and
that row was neither cancelled nor put off itself nor has it ended, and either an agent that is not
known to be dead holds it, or it has been seen for less than `UNTAKEN` without one. All of this is
read from the other's area; nothing is written there. Whatever the judgement, it only decides *when*
a row may run in the own area: if it is wrong, a call runs in both areas, with one outcome in each.

The row of such a call is there, and *held*: by an agent that the client has for that, which runs
nothing. What others have made of it, that one publishes as its outcome; what is due here it gives
back. A client that is killed, or silent for long, is to other agents one of them that has died:
they take its rows, and run them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from fsbroker.client.session import Lane
from fsbroker.errors import SpoolError
from fsbroker.spool import presence
from fsbroker.spool.container import Image
from fsbroker.spool.layout import Stem
from fsbroker.spool.live import LiveFile, LiveFiles
from fsbroker.spool.log import Retired, State
from fsbroker.spool.neighbours import Neighbour, Neighbours
from fsbroker.spool.streams import Sealed
from fsbroker.spool.taskfile import PUT_OFF
from fsbroker.spool.trust import Trust, name_of

if TYPE_CHECKING:
    from fsbroker.agent.session import AgentSession

UNTAKEN = 60.0
"""Seconds for which a call waits for a task of somebody else that no agent has taken."""
SILENCE = presence.LEASE
"""Seconds of silence after which somebody else's agent is taken for dead."""

Place = tuple[LiveFile, int]
"""A row, and the task file that it stands in."""


class Deferral:
    """What others are computing, from the point of view of one client.

    Args:
        hold: makes an agent of this client's own, to hold rows with.

    Attributes:
        neighbours: the others.
        ended: nothing more is put off: the client is about to end.
    """

    def __init__(self, neighbours: Neighbours, hold: Callable[[], AgentSession]) -> None:
        self.neighbours = neighbours
        self._hold = hold
        self._views: dict[int, _View] = {}
        self._holder: AgentSession | None = None
        self._lanes: dict[tuple[Lane, str], Lane] = {}
        self._unsure: set[str] = set()
        self._due: set[tuple[str, int]] = set()
        self.ended = False

    def pending(self, keys: Iterable[bytes]) -> dict[bytes, str]:
        """Those of the keys that need not be run here for now, and who has them computed."""
        wanted = [] if self.ended else list(keys)
        found: dict[bytes, str] = {}
        for neighbour in self.neighbours if wanted else ():
            if neighbour.trust < Trust.CODE:
                continue  # only its outcome would tell whether we can take it
            view = self._views.setdefault(neighbour.uid, _View(neighbour))
            try:
                found = dict.fromkeys(view.pending(wanted), name_of(neighbour.uid)) | found
            except Exception as error:  # what somebody else wrote may be anything
                self.neighbours.refuse(f"{neighbour.area.path} (tasks)", error)
        return found

    # -- putting off ---------------------------------------------------------------------

    def lane(self, lane: Lane, user: str) -> Lane:
        """Task files for calls that this user has computed."""
        if self._holder is None:
            holder = self._hold()
            holder.join()
            self._holder = holder
        told = zip(PUT_OFF, (self._holder.agent, user), strict=True)
        put_off = lane._replace(meta=(*lane.meta, *told), holder=self)
        return self._lanes.setdefault((lane, user), put_off)

    def bring(self, stem: Stem, made: Image, waiting: Sequence[int]) -> None:
        """As `session.Holder` says."""
        assert self._holder is not None
        self._unsure.add(str(stem))  # after an error it may be there all the same
        self._holder.bring(stem, made, waiting)
        if self._holder.holdings.held.get(str(stem)):
            self._unsure.discard(str(stem))

    # -- what became of it ---------------------------------------------------------------

    def look(self) -> set[str]:
        """Take over what has ended, give back what nobody else will end; the latter's shapes."""
        freed: set[str] = set()
        if self._holder is not None:
            try:
                self._look(self._holder, freed)
            except Sealed:  # we were taken for dead
                freed.update(self._holder.holdings.held)
                self._forget()
            except (OSError, SpoolError):
                pass  # another time
        return {stem.split("-")[3] for stem in freed}

    def _look(self, holder: AgentSession, freed: set[str]) -> None:
        holder.beat()
        holder.publisher.publish_own()  # what could not be before: it is not to be given back
        self._settle(holder, freed)
        for stem, row in holder.cancelling.requests():
            self._cancel(holder, stem, [row])
        held = self._held(holder)
        # Before their outcomes: what ends meanwhile is found by its own.
        pending = self.pending(held)
        left = self._take_over(holder, held)
        due = (place for key, place in left.items() if key not in pending)
        self._due.update((live.stem, row) for live, row in due)
        self._give_back(holder, freed)
        self._leave_without_rows(holder)

    def _settle(self, holder: AgentSession, freed: set[str]) -> None:
        """Task files whose publication failed, and which are there: they are as any other."""
        holder.live.poll(afresh=True) if self._unsure else None
        for stem in list(self._unsure):
            live = holder.live.get(stem)
            if live is not None:
                with holder.holdings.reading(live):
                    live.log.refresh()
                    holder.holdings.reconcile(live)
                    freed.add(stem)
                    self._unsure.discard(stem)

    def _held(self, holder: AgentSession) -> dict[bytes, Place]:
        """The rows that are put off, by key."""
        found: dict[bytes, Place] = {}
        for stem, rows in list(holder.holdings.held.items()):
            live = holder.holdings.claimed[stem]
            with holder.holdings.reading(live):
                left = [row for row in rows if (stem, row) not in self._due]
                found |= {live.file.key(row): (live, row) for row in left}
        return found

    def _take_over(self, holder: AgentSession, held: dict[bytes, Place]) -> dict[bytes, Place]:
        """Publish what others have of these rows as their outcomes; the rows that are left."""
        calls = {key: live.descriptor(row) for key, (live, row) in held.items()}
        outcomes = []
        for copy in self.neighbours.copies(calls):
            live, row = held.pop(copy.key)
            own = copy._replace(stem=live.stem, row=row, round=live.round(row), generation=0)
            outcomes.append(own)
        holder.publisher.publish_own(outcomes)
        return held

    def _give_back(self, holder: AgentSession, freed: set[str]) -> None:
        """For agents to run. What may have been given back is never published here."""
        for stem in sorted({stem for stem, _ in self._due}):
            rows = sorted(row for one, row in self._due if one == stem)
            live = holder.holdings.claimed.get(stem)
            if live is not None:
                holder.holdings.release(live, rows, "nobody else will end it")
                freed.add(stem)
            self._due.difference_update((stem, row) for row in rows)

    # -- the end -------------------------------------------------------------------------

    def cancel(self, stem: str, rows: Iterable[int]) -> set[int]:
        """End rows that are put off as cancelled; those of these rows that were."""
        ended: set[int] = set()
        if self._holder is not None:
            try:
                ended = self._cancel(self._holder, stem, rows)
            except Sealed:
                self._forget()
            except (OSError, SpoolError):
                pass  # the next look publishes it; until then nobody is to rest on it
        return ended

    def _cancel(self, holder: AgentSession, stem: str, rows: Iterable[int]) -> set[int]:
        holder.publisher.publish_own()  # else a row that is to end with a value has two ends
        held = holder.holdings.held.get(stem, set())
        wanted = {row for row in rows if row in held and (stem, row) not in self._due}
        if wanted:
            holder.cancelling.end_held(stem, sorted(wanted))
            self._leave_without_rows(holder)
        return wanted

    def end(self) -> None:
        """Give everything back: nobody here will look any more."""
        holder = self._holder
        self._forget()
        if holder is not None:
            with suppress(OSError, SpoolError, Sealed):
                try:
                    holder.publisher.publish_own()
                finally:
                    holder.abandon("its client has ended")
                holder.leave()

    def _leave_without_rows(self, holder: AgentSession) -> None:
        if not any(holder.holdings.held.values()):
            holder.leave()
            self._forget()

    def _forget(self) -> None:
        self._holder = None
        self._lanes.clear()
        self._unsure.clear()
        self._due.clear()


class _View:
    """The tasks and agents of one other user."""

    def __init__(self, neighbour: Neighbour) -> None:
        self._neighbour = neighbour
        self._files, self._area = neighbour.files, neighbour.area
        self._live = LiveFiles(self._files, self._area)
        self._observer = presence.Observer(self._files, self._area, SILENCE)
        self._untaken: dict[tuple[str, int], float] = {}

    def pending(self, keys: list[bytes]) -> set[bytes]:
        self._live.poll()
        rows = self._live.holding(keys)
        owners = {place: self._owner(*place) for places in rows.values() for place in places}
        dead = self._dead({owner for owner in owners.values() if owner})
        return {
            key
            for key, places in rows.items()
            if any(self._will_end(place, owners[place], dead) for place in places)
        }

    def _owner(self, live: LiveFile, row: int) -> str | None:
        """Who holds a row: "" for nobody; None if nobody will ever run it."""
        with suppress(Retired, OSError, SpoolError):
            live.log.refresh()
            fold = live.log.fold
            ended = self._neighbour.results.ended(live.stem, live.file.keys)[row]
            stopped = (State.CANCELLED, State.ALIASED)
            if ended or fold.state[row] in stopped or row in fold.cancelled:
                return None
            # Who is put off as well may wait for us.
            return None if live.is_put_off(row) else fold.owner_of(row) or ""
        return None

    def _dead(self, owners: set[str]) -> set[str]:
        """Agents that are dead by now; an agent that left without its rows is silent."""
        present = presence.listing(self._files, self._area)
        absent = owners - {one.agent for one in present}
        silent = self._observer.poll(present, absent, prompt=True)
        return {*silent, *self._observer.dead_processes(present)}

    def _will_end(self, place: tuple[LiveFile, int], owner: str | None, dead: set[str]) -> bool:
        if owner is None:
            return False
        name = (place[0].stem, place[1])
        if owner:
            self._untaken.pop(name, None)
            return owner not in dead
        now = self._files.monotonic()
        return now - self._untaken.setdefault(name, now) < UNTAKEN
