"""The results of the others in a shared spool: found, checked, and taken as copies of one's own.

    Neighbours.find(calls)    outcomes of these calls in the areas of users whom the reader trusts
    Neighbours.copies(calls)  what they would be as outcomes of one's own, with where they are from
    Neighbours.adopt(calls)   the same, published in the own area

A copy is what keeps everything else as it is for one user: agents find the inputs of their tasks
in their own area and need to trust nobody, and what somebody used stays, whatever its writer
does later. Nothing in another's area is changed; what is wrong there is told, not moved.

A result is bound to its call by the descriptor, a digest of function and arguments: the reader
computes it from his own call and takes nothing else under that key. That the value is what the
function gives nobody can prove without running it: this is what trust is about.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fsbroker.errors import FileRefused, SpoolError
from fsbroker.spool import sharing, streams
from fsbroker.spool.blobs import read_array, store
from fsbroker.spool.files import Files, ForeignFiles
from fsbroker.spool.index import Results
from fsbroker.spool.layout import MAX_ROWS, USERS, Area, Stem, area_of, uid_of
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.trust import Trust, Trusted, name_of
from fsbroker.task import Blob, Encoding, Outcome, Status, Value

UNKNOWN = bytes(20)
"""The descriptor of a call that can be compared with none (`fsbroker.keys`)."""


class Neighbour:
    """Another user's area.

    Attributes:
        uid: whose it is. trust: what is taken from there. files: to read it with.
        results: what is there.
    """

    def __init__(self, spool: Spool, uid: int, trust: Trust) -> None:
        self.uid = uid
        self.trust = trust
        self.files = ForeignFiles(spool.files, uid)
        self.area = Area(area_of(uid))
        # Nothing rests on these files once they are adopted: that is made durable.
        self.results = Results(self.files, self.area, durable=False)

    def poll(self) -> None:
        self.results.poll(deep=True)
        for _ in self.results.news():
            pass  # what is wanted is looked up


class Offer(NamedTuple):
    """An outcome in somebody's area."""

    neighbour: Neighbour
    file: ResultFile
    row: int


class Neighbours:
    """The areas of those whom a reader trusts.

    Attributes:
        refused: paths of what was not taken, with the reason; each is warned of once.
    """

    def __init__(self, spool: Spool, trusted: Trusted) -> None:
        self._spool = spool
        self._trusted = trusted
        self._known: dict[int, Neighbour] = {}
        self.refused: dict[str, Exception] = {}

    def __iter__(self) -> Iterator[Neighbour]:
        """Those who are there now and have anything to be taken."""
        for uid in users(self._spool):
            if uid not in self._known and (trust := self._trusted.of(uid)):
                found = Neighbour(self._spool, uid, trust)
                try:
                    sharing.check_area(found.files, found.area)
                except PermissionError:
                    continue  # not shared
                except (OSError, SpoolError) as error:
                    self.refuse(found.area.path, error)
                    continue
                self._known[uid] = found
            if uid in self._known:
                yield self._known[uid]

    def refuse(self, path: str, error: Exception) -> None:
        """Tell once why something is not taken."""
        if path not in self.refused:
            self.refused[path] = error
            warnings.warn(f"Not taken from the shared spool: {error}", RuntimeWarning, stacklevel=2)

    def find(self, calls: Mapping[bytes, bytes]) -> dict[bytes, Offer]:
        """Values of these calls; of several, that of the first user in order of uid.

        Args:
            calls: descriptors by key.
        """
        found: dict[bytes, Offer] = {}
        for neighbour in self:
            try:
                neighbour.poll()
                for key in neighbour.results.known([key for key in calls if key not in found]):
                    offer = self._offer(neighbour, key, calls[key])
                    if offer is not None:
                        found[key] = offer
            except Exception as error:  # what somebody else wrote may be anything
                self.refuse(neighbour.area.path, error)
            for path, damage in neighbour.results.damaged.items():
                self.refuse(path, damage)
        return found

    def _offer(self, neighbour: Neighbour, key: bytes, descriptor: bytes) -> Offer | None:
        found = neighbour.results.find(key)
        if found is None or found.status != Status.DONE:
            return None
        if found.descriptor != descriptor or descriptor == UNKNOWN:
            what = "It claims a key for another call than this one"
            self.refuse(found.place.path, FileRefused(what, f"{key.hex()} in {found.place.path}"))
            return None
        file = neighbour.results.file(found.place.path)
        pickled = file.rows["encoding"][found.place.row] != Encoding.PLAIN
        if pickled and neighbour.trust < Trust.CODE:
            return None
        return Offer(neighbour, file, found.place.row)

    def adopt(self, calls: Mapping[bytes, bytes]) -> list[bytes]:
        """Publish copies of what others have of these calls; the keys of those."""
        copies = self.copies(calls)
        self._publish(copies)
        return [outcome.key for outcome in copies]

    def copies(self, calls: Mapping[bytes, bytes]) -> list[Outcome]:
        """Values that others have of these calls, with their arrays in the own area."""
        found = []
        for offer in self.find(calls).values():
            try:
                found.append(self._copy(offer))
            except Exception as error:  # as above
                self.refuse(offer.file.path, error)
        return found

    def _copy(self, offer: Offer) -> Outcome:
        neighbour, file, row = offer
        outcome = file.outcome(row)
        encoding, data, refs = outcome.value
        files, area, durable = self._spool
        arrays = tuple(
            store(files, area, read_array(neighbour.files, neighbour.area, ref), durable=durable)
            if isinstance(ref.data, Blob)
            else ref
            for ref in refs
        )
        return outcome._replace(value=Value(encoding, data, arrays), origin=_origin(offer))

    def _publish(self, copies: Sequence[Outcome]) -> None:
        """As a stream that is complete from the beginning, so nobody need watch over it."""
        if not copies:
            return
        files, area, durable = self._spool
        stream = streams.Stream(files, area, files.token())
        stream.create()
        for first in range(0, len(copies), MAX_ROWS):
            named = _named(files, copies[first : first + MAX_ROWS])
            made = streams.build(files.token(), named, named[0].origin or {})
            stream.publish(made, durable=durable)
        stream.close()


def _named(files: Files, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes of a task file that never was.

    What another user wrote must not end a row of ours, whichever row it says that it is of.
    """
    born = int(files.wall_time() * 1e9)
    stem = str(Stem(0, born, files.token(), "c1", "adopted", len(outcomes), 0))
    return [
        outcome._replace(stem=stem, row=row, round=0, generation=0)
        for row, outcome in enumerate(outcomes)
    ]


def _origin(offer: Offer) -> dict[str, Any]:
    """Where a value is from: what its result file says, and through whom it came."""
    origin = offer.file.origin(offer.row)
    return {**origin, "through": [name_of(offer.neighbour.uid), *origin.get("through", [])]}


def users(spool: Spool) -> list[int]:
    """The uids of all others who have an area here."""
    found = (uid_of(name) for name in spool.files.names(USERS))
    return sorted(uid for uid in found if uid is not None and uid != spool.files.uid)
