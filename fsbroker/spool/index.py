"""What has been published: new result files, and where the outcome of a key stands.

`Results` is one process's view of all streams and packs. It grows by listing: a poll
costs one listing of ``agents/``, and the reading of what is new. A deep poll also lists
``results/`` and ``packs/``, for streams whose agents came and went unseen.

Look-ups go tasks, then fresh results, then packs: a task file is retired only after
its outcomes are published, and a result file deleted only after its pack is, so what
has left one place is found in the next one. The other way round both could be missed.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew
from fsbroker.spool import forms
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, Presence, is_agent, parse_pack
from fsbroker.spool.presence import listing
from fsbroker.spool.streams import MOST_ROWS, RESULTS, ResultFile, entries, is_seal
from fsbroker.task import KEY_BYTES, Status, Value

T = TypeVar("T")

OPEN_FILES = 32
"""Result files kept open for reading values."""
ATTEMPTS = 3
"""How often a look-up starts again when a file moved into a pack under it."""


class Place(NamedTuple):
    """Where an outcome stands: a result file or pack, and the row in it."""

    path: str
    row: int


class Found(NamedTuple):
    """The current outcome of a key."""

    place: Place
    status: int
    round: int
    descriptor: bytes


class _StreamState:
    __slots__ = ("closed", "next")

    def __init__(self) -> None:
        self.next = 0
        self.closed = False


class _Pack:
    """The sorted keys of a pack."""

    def __init__(self, file: ResultFile) -> None:
        self.path = file.path
        self.keys = np.frombuffer(file.rows["key"].tobytes(), f"S{KEY_BYTES}")
        if (self.keys[1:] < self.keys[:-1]).any():
            raise FileDamaged("The keys of a pack are not sorted", file.path)

    def rows(self, key: bytes) -> range:
        wanted = np.frombuffer(key, f"S{KEY_BYTES}")[0]
        first = int(np.searchsorted(self.keys, wanted, "left"))
        return range(first, int(np.searchsorted(self.keys, wanted, "right")))

    def holding(self, keys: list[bytes]) -> list[bytes]:
        """Those of the keys that stand in this pack."""
        if not len(self.keys):
            return []
        wanted = np.frombuffer(b"".join(keys), f"S{KEY_BYTES}")
        at = np.searchsorted(self.keys, wanted)
        at[at == len(self.keys)] = 0
        return [keys[i] for i in np.flatnonzero(self.keys[at] == wanted)]


class Results:
    """All results of an area, as far as this process has looked.

    Attributes:
        damaged: paths of files that cannot be read, with the reason: not looked at again.
    """

    def __init__(self, files: Files, area: Area, *, durable: bool = True) -> None:
        self._files = files
        self._area = area
        self._durable = durable
        self._streams: dict[str, _StreamState] = {}
        self._present: dict[str, Presence] = {}
        self._unindexed: list[tuple[str, bytes]] = []
        self._paths: list[str] = []
        self._fresh: dict[bytes, int] = {}
        self._more: dict[bytes, list[int]] = {}
        self._packs: dict[str, _Pack] = {}
        self._news: deque[ResultFile] = deque()
        self._open: dict[str, ResultFile] = {}
        self._ended: dict[str, bytearray] = {}
        self._asked: set[str] = set()
        """Those of them for which older packs were looked through."""
        self._looked = False
        self.damaged: dict[str, FileDamaged | FileRefused] = {}

    # -- news ----------------------------------------------------------------------------

    def news(self) -> Iterator[ResultFile]:
        """The result files and packs that polls have found: each until it was dealt with."""
        while self._news:
            yield self._news[0]
            self._news.popleft()

    def poll(self, *, deep: bool = False) -> None:
        """Look for new results. Whoever asked for it, what it finds is `news` once."""
        present = {presence.agent: presence for presence in listing(self._files, self._area)}
        gone = self._present.keys() - present.keys()
        self._present = present
        missed = False
        for presence in present.values():
            state = self._streams.setdefault(presence.agent, _StreamState())
            if presence.published > state.next:
                missed |= self._read(presence.agent, presence.published)
        for agent in gone:
            missed |= self._read(agent, 0)
        if deep or missed or not self._looked:
            self._read_unlisted()
            self._read_packs()
            self._looked = True

    def _read_unlisted(self) -> None:
        self._files.freshen(self._area.results)
        for agent in self._files.names(self._area.results):
            if is_agent(agent) and not self._streams.setdefault(agent, _StreamState()).closed:
                self._read(agent, 0)

    def _read(self, agent: str, published: int) -> bool:
        """Read a stream on; True if a part of it has gone into a pack before it was seen."""
        state = self._streams.setdefault(agent, _StreamState())
        if state.closed:
            return False
        if published == state.next + 1 and self._read_next(agent, state):
            return False
        if not published:
            self._files.freshen(self._area.stream(agent))
        numbers = entries(self._files, self._area, agent)
        if numbers and numbers[-1] < published - 1:
            # Announced, yet not listed: two changes in one tick of an NFS v3 server.
            self._files.touch_directory(self._area.stream(agent))
            numbers = entries(self._files, self._area, agent)
        if numbers and numbers[-1] - state.next >= len([n for n in numbers if n >= state.next]):
            # A hole: packed, or made while the directory was read. A listing that begins
            # after the later ones were seen shows the earlier ones, unless they are packed.
            numbers = entries(self._files, self._area, agent)
        new = [number for number in numbers if number >= state.next]
        if self._durable and new and new[-1] >= published:
            # An agent announces what is durable. What it has not announced may be gone
            # after a power loss, and must not be acted on before it is safe.
            self._files.sync_directory(self._area.stream(agent))
        missed = False
        for number in new:
            try:
                file = self._result(agent, number, last=number == numbers[-1])
            except FileNotFoundError:
                _require_gone(self._files, [self._area.stream_file(agent, number)])
                file, missed = None, True
            if file is not None:
                self._news.append(file)
                self._index(file)
            missed |= number > state.next
            state.next = number + 1
        return missed

    def _read_next(self, agent: str, state: _StreamState) -> bool:
        """Read the one file that was announced, whose name was never looked for before."""
        try:
            file = self._opened(self._area.stream_file(agent, state.next))
        except (FileNotFoundError, FileDamaged, FileRefused):
            return False
        self._news.append(file)
        self._index(file)
        state.next += 1
        return True

    def _result(self, agent: str, number: int, *, last: bool) -> ResultFile | None:
        path = self._area.stream_file(agent, number)
        try:
            return self._opened(path)
        except FormatTooNew:
            raise  # who cannot read an outcome must not conclude that there is none
        except FileRefused as refused:
            if is_seal(self._files, self._area, agent, number):
                self._streams[agent].closed = last
                return None
            self.damaged[path] = refused
        except FileDamaged as error:
            self.damaged[path] = error
        return None

    def _opened(self, path: str) -> ResultFile:
        file = self._open.pop(path, None)
        if file is None:
            try:
                file = ResultFile(self._files, path)
            except FileDamaged:
                file = ResultFile(self._files, path)  # damaged only if it is so twice
        self._open[path] = file
        if len(self._open) > OPEN_FILES:
            del self._open[next(iter(self._open))]  # closed when nobody reads it any more
        return file

    def _index(self, file: ResultFile) -> None:
        for number, stem in enumerate(file.files):
            mine = file.rows if len(file.files) == 1 else file.rows[file.rows["file"] == number]
            self._mark_ended(stem, mine)
        self._unindexed.append((file.path, file.rows["key"].tobytes()))

    def _indexed(self) -> dict[bytes, int]:
        """The keys of all fresh files: made when a key is first asked for.

        One integer for a key, file and row in one: a million of them are not looked at by
        the garbage collector again and again.
        """
        for path, data in self._unindexed:
            keys = [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]
            base = len(self._paths) * MOST_ROWS
            self._paths.append(path)
            new = dict(zip(keys, range(base, base + len(keys)), strict=True))
            if len(new) == len(keys) and self._fresh.keys().isdisjoint(new):
                self._fresh.update(new)
                continue
            for place, key in enumerate(keys, base):
                if self._fresh.setdefault(key, place) != place:
                    self._more.setdefault(key, []).append(place)
        self._unindexed.clear()
        return self._fresh

    def _places(self, key: bytes) -> list[Place]:
        """Where the outcomes of a key stand in fresh files."""
        first = self._indexed().get(key)
        if first is None:
            return []
        found = [divmod(place, MOST_ROWS) for place in (first, *self._more.get(key, ()))]
        return [Place(self._paths[number], index) for number, index in found]

    def _read_packs(self) -> None:
        for _ in range(ATTEMPTS):
            if self._read_listed_packs():
                return
            self._files.touch_directory(self._area.packs)
        raise OSError(errno.EAGAIN, "Packs go into larger ones faster than they are read")

    def _read_listed_packs(self) -> bool:
        """Read the packs that are new; False if one went into a larger one meanwhile."""
        self._files.freshen(self._area.packs)
        names = self._files.names(self._area.packs)
        paths = {f"{self._area.packs}/{name}" for name in names if parse_pack(name) is not None}
        for path in self._packs.keys() - paths:
            del self._packs[path]
        whole = True
        for path in sorted(paths - self._packs.keys() - self.damaged.keys()):
            try:
                file = self._opened(path)
                self._packs[path] = _Pack(file)
            except FileNotFoundError:
                whole = False
                continue
            except FormatTooNew:
                raise
            except (FileDamaged, FileRefused) as error:
                self.damaged[path] = error
                continue
            self._forget_packed(file)
            for number, stem in enumerate(file.files):
                if stem in self._ended:
                    self._mark_ended(stem, file.rows[file.rows["file"] == number])
            self._news.append(file)
        return whole

    def _forget_packed(self, pack: ResultFile) -> None:
        """Look-ups will find these rows in the pack: the memory for them is free again."""
        inputs: Any = pack.meta.get("inputs")
        if forms.fits(inputs, [str]):
            self._drop(set(inputs))

    def _drop(self, paths: set[str]) -> None:
        """Forget what was known from these files."""
        self._unindexed = [entry for entry in self._unindexed if entry[0] not in paths]
        gone = {number for number, path in enumerate(self._paths) if path in paths}
        if not gone:
            return
        for number in gone:
            self._paths[number] = ""  # nobody looks for it any more
        kept = {
            key: first
            for key, first in self._fresh.items()
            if first // MOST_ROWS not in gone and key not in self._more
        }
        more: dict[bytes, list[int]] = {}
        for key, rest in self._more.items():
            left = [one for one in (self._fresh[key], *rest) if one // MOST_ROWS not in gone]
            if left:
                kept[key] = left[0]
                more[key] = left[1:]
        self._fresh, self._more = kept, more

    # -- the rows of a task file ---------------------------------------------------------

    def ended(self, stem: str, keys: list[bytes]) -> bytearray:
        """The `Status` of each row of a task file, 0 where it has no outcome yet.

        Args:
            keys: of its rows, in order.
        """
        if stem not in self._asked:
            self._settled(lambda: self._find_ended(stem, keys))
        return self._ended[stem]

    def _find_ended(self, stem: str, keys: list[bytes]) -> None:
        packs = [self._opened(pack.path) for pack in self._packs.values() if pack.holding(keys)]
        self._mark_ended(stem, np.zeros(0, RESULTS), len(keys))
        for pack in packs:
            if stem in pack.files:
                self._mark_ended(stem, pack.rows[pack.rows["file"] == pack.files.index(stem)])
        self._asked.add(stem)

    def _mark_ended(self, stem: str, rows: np.ndarray, size: int = 0) -> None:
        size = max(size, int(rows["row"].max()) + 1 if len(rows) else 0)
        marks = self._ended.setdefault(stem, bytearray())
        marks.extend(bytes(max(0, size - len(marks))))
        np.frombuffer(marks, np.uint8)[rows["row"]] = rows["status"]

    def forget(self, stem: str) -> None:
        """The task file was retired: nobody will ask for its rows again."""
        self._ended.pop(stem, None)
        self._asked.discard(stem)

    # -- look-ups ------------------------------------------------------------------------

    def known(self, keys: list[bytes]) -> set[bytes]:
        """Those of the keys with an outcome of any sort; call `poll` before."""
        found = self._indexed().keys() & set(keys)
        for pack in self._packs.values():
            found.update(pack.holding(keys))
        return found

    def find(self, key: bytes) -> Found | None:
        """The current outcome of a key: a value before a failure, then the highest round.

        Call `poll` before.
        """
        return self._settled(
            lambda: max(
                self._all(key),
                key=lambda found: (found.status == Status.DONE, found.round),
                default=None,
            )
        )

    def find_row(self, key: bytes, stem: str, row: int) -> Found | None:
        """The outcome of one row of a task file, whatever else its key has come to.

        Call `poll` before.
        """
        return self._settled(
            lambda: next(
                (one for one in self._all(key) if self._ended_with(one.place, stem, row)), None
            )
        )

    def _ended_with(self, place: Place, stem: str, row: int) -> bool:
        file = self._opened(place.path)
        mine = file.rows[place.row]
        return bool(mine["row"] == row) and file.files[mine["file"]] == stem

    def _all(self, key: bytes) -> Iterator[Found]:
        for place in self._places(key):
            yield self._found(place)
        for pack in list(self._packs.values()):
            for index in pack.rows(key):
                yield self._found(Place(pack.path, index))

    def _found(self, place: Place) -> Found:
        row = self._opened(place.path).rows[place.row]
        return Found(place, int(row["status"]), int(row["round"]), row["descriptor"].tobytes())

    def _settled(self, look: Callable[[], T]) -> T:
        """What a look-up finds, begun anew when a file went into a pack under it.

        Somebody with an old listing may have put a seal in its place.

        Raises:
            OSError: each time one did. Then nothing is known: not even that there is nothing.
        """
        for _ in range(ATTEMPTS):
            try:
                return look()
            except (FileNotFoundError, FileRefused):
                self.look_again()
        # Not that error: callers take it for the end of a task file.
        raise OSError(errno.EAGAIN, "Result files go into packs faster than they are read")

    def look_again(self) -> None:
        """A file went into a pack: forget what is gone, and look at the packs again.

        Raises:
            OSError: a file cannot be found that is there: nothing is forgotten.
        """
        self._open.clear()  # on NFS one that another client removed cannot be read any more
        gone, useless = set(), set()
        for path in filter(None, self._paths):
            try:
                self._opened(path)
            except FileNotFoundError:
                gone.add(path)
            except (FileDamaged, FileRefused):
                useless.add(path)
        _require_gone(self._files, gone)
        self._drop(gone | useless)
        self._read_packs()

    def value(self, key: bytes) -> tuple[Found, Value] | None:
        """The current outcome of a key with its value, wherever that stands by now."""
        return self._settled(lambda: self._with_value(self.find(key)))

    def _with_value(self, found: Found | None) -> tuple[Found, Value] | None:
        return found and (found, self.file(found.place.path).value(found.place.row))

    def file(self, path: str) -> ResultFile:
        """An open result file or pack.

        Raises:
            FileNotFoundError: it went into a pack; look the key up again.
        """
        return self._opened(path)

    def present(self) -> list[Presence]:
        """The agents that the last poll saw."""
        return list(self._present.values())


def _require_gone(files: Files, paths: Iterable[str]) -> None:
    """Of files that were listed and cannot be found: that they are listed no more.

    Raises:
        OSError: one is. So it was not packed, and the error passes (ESTALE where the file
            server began anew): who went on would miss its outcomes for ever.
    """
    names: dict[str, set[str]] = {}
    for path in paths:
        directory, _, name = path.rpartition("/")
        names.setdefault(directory, set()).add(name)
    for directory, sought in names.items():
        with suppress(FileNotFoundError):
            files.touch_directory(directory)
            if listed := sought.intersection(files.names(directory)):
                path = f"{directory}/{min(listed)}"
                raise OSError(errno.EAGAIN, "A file is listed, and cannot be found now", path)
