"""Calls that a trusted user is already having computed: put off, never given up.

    Deferral.taken_over(calls)   what others have of them; those that they will bring to an end,
                                 by all we can tell, are put off
    Deferral.without(calls)      those that are not put off, nor wait for one that is
    Deferral.look()              which of those that were put off have ended, or are not any more

A call is put off while a row of its key stands in the area of a user whose code is trusted, and
that row was neither cancelled nor has it ended, and either an agent that is not known to be dead
holds it, or it has been seen for less than `UNTAKEN` without one. All of this is read from the
other's area; nothing is written there. Whatever the judgement, it only decides *when* a row is
published in the own area: if it is wrong, a call runs in both areas, with one outcome in each.

Until then the call is in the memory of its client, which publishes it when it ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from fsbroker.errors import SpoolError
from fsbroker.spool import presence
from fsbroker.spool.index import Found
from fsbroker.spool.live import LiveFile, LiveFiles
from fsbroker.spool.log import Retired, State
from fsbroker.spool.neighbours import Neighbour, Neighbours
from fsbroker.spool.trust import Trust

if TYPE_CHECKING:
    from fsbroker.client.outbox import Submitted
    from fsbroker.future import Future

_DEFERRALS: weakref.WeakSet[Deferral] = weakref.WeakSet()

UNTAKEN = 60.0
"""Seconds for which a call waits for a task of somebody else that no agent has taken."""
SILENCE = presence.LEASE
"""Seconds of silence after which somebody else's agent is taken for dead."""


class Deferral:
    """What others are computing, from the point of view of one client.

    Args:
        adopt: takes over what others have of calls, given their descriptors by key.

    Attributes:
        calls: what is put off, by key, in the order of submission.
        ended: nothing is put off any more: the client is about to end.
    """

    def __init__(
        self,
        neighbours: Neighbours,
        adopt: Callable[[Mapping[bytes, bytes]], dict[bytes, Found]],
    ) -> None:
        self._neighbours = neighbours
        self._adopt = adopt
        self._views: dict[int, _View] = {}
        self.calls: dict[bytes, Submitted] = {}
        self.ended = False
        _DEFERRALS.add(self)

    def taken_over(self, wanted: Mapping[bytes, Submitted]) -> dict[bytes, Found]:
        """Values that others have of these calls; what they are computing is put off.

        Their tasks are looked at first: what ends meanwhile is found by its outcome.
        """
        pending = self._pending(wanted)
        found: dict[bytes, Found] = {}
        with suppress(OSError, SpoolError):  # they are computed here, then
            found = self._adopt({key: item.call.descriptor for key, item in wanted.items()})
        put_off = pending - found.keys()
        self.calls |= {key: item for key, item in wanted.items() if key in put_off}
        return found

    def look(self) -> tuple[list[tuple[Future, Found]], list[Submitted]]:
        """What was put off: futures whose outcomes are there, and calls that are due here."""
        calls = self._take()
        found = self.taken_over(calls)
        rest = [(item, 0) for key, item in calls.items() if key not in found]
        ended = [(calls[key].future, where) for key, where in found.items()]
        return ended, [item for item, _ in self.without(rest)]

    def _take(self) -> dict[bytes, Submitted]:
        """What was put off and is still wanted: it is no longer put off."""
        taken, self.calls = self.calls, {}
        return {key: item for key, item in taken.items() if item.future.is_pending()}

    def without(self, calls: Iterable[tuple[Submitted, int]]) -> list[tuple[Submitted, int]]:
        """Those that are not put off. Whatever depends on one that is, is put off with it.

        For the rows of dependencies must be there first (W7); another client of this process
        may have put them off.
        """
        return [entry for entry in calls if not self._waits(entry[0])]

    def _waits(self, item: Submitted) -> bool:
        inputs = [one.key for one in item.call.payload.dependencies]
        if any(key in other.calls for other in list(_DEFERRALS) for key in inputs):
            self.calls[item.call.key] = item
        return item.call.key in self.calls

    def _pending(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those of the keys that need not be run here for now."""
        wanted = [] if self.ended else list(keys)
        found: set[bytes] = set()
        for neighbour in self._neighbours if wanted else ():
            if neighbour.trust < Trust.CODE:
                continue  # only its outcome would tell whether we can take it
            view = self._views.setdefault(neighbour.uid, _View(neighbour))
            try:
                found |= view.pending(wanted)
            except Exception as error:  # what somebody else wrote may be anything
                self._neighbours.refuse(f"{neighbour.area.path} (tasks)", error)
        return found


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
            if not ended and fold.state[row] not in stopped and row not in fold.cancelled:
                return fold.owner_of(row) or ""
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
