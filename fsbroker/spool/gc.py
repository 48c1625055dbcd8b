"""What may go from an area, and its removal. No result goes unless it was asked for.

    survey -> Rubbish, item by item (a dry run ends here) -> remove

Nothing here stops anybody's work. What may be somebody's work in progress (a temporary
file, a blob whose task file is being written) goes only when it is a day old, by the file
server's clock: its age is the difference to a file that was just made. What a live task
file names stays. Whatever cannot be read for certain, its part is left alone.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from fsbroker.errors import FileDamaged, FileRefused, SpoolError
from fsbroker.spool import archive, packs, presence, streams
from fsbroker.spool.census import Census, Entry, fold_of
from fsbroker.spool.container import Container, Image, image
from fsbroker.spool.files import Files
from fsbroker.spool.layout import (
    DIRECTORIES,
    Area,
    is_blob,
    is_grave,
    is_key,
    parse_attempt,
    parse_cancel,
    parse_pack,
    parse_stem,
)
from fsbroker.spool.live import bury, delete_log
from fsbroker.spool.log import State
from fsbroker.spool.publish import publish
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.values import ValueWriter, array_index
from fsbroker.task import KEY_BYTES

DAY = 86400.0
"""Seconds after which what nobody refers to is nobody's work in progress."""

_NESTED = {"claims": 1, "results": 1, "logs": 2, "tmp": 1}
"""How deep below these directories their files stand."""


class Usage(NamedTuple):
    """Inodes and bytes."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: object) -> Usage:
        assert isinstance(other, Usage)
        return Usage(self.files + other.files, self.bytes + other.bytes)


def usage(files: Files, area: Area, names: Iterable[str] = DIRECTORIES) -> dict[str, Usage]:
    """What each of these directories of an area holds."""
    return {name: _measure(files, f"{area.path}/{name}", _NESTED.get(name, 0)) for name in names}


def _measure(files: Files, path: str, depth: int) -> Usage:
    total = Usage()
    for name in _names(files, path):
        inner = f"{path}/{name}"
        with suppress(FileNotFoundError):
            total += Usage(1, files.size(inner))
            if depth:
                total += _measure(files, inner, depth - 1)
    return total


def _names(files: Files, path: str) -> list[str]:
    """The names in a directory; none if it is gone, or no directory."""
    try:
        return files.names(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


class Kind(enum.Enum):
    """Why something may go."""

    TEMPORARY = "temporary files left over from crashes"
    RETIRED = "logs of finished task files"
    OUTPUT = "stdout and stderr of ended tasks"
    EMPTY = "empty directories of stdout and stderr"
    ARCHIVED = "finished task files"
    BLOB = "arrays that nothing refers to"
    PRESENCE = "presence files of agents that have ended"
    AGENT_OUTPUT = "stdout and stderr of agents that have ended"
    REQUEST = "requests to cancel that are settled"
    RESULT = "results"


class Item(NamedTuple):
    """A file or directory that may go, or a part of a pack or bundle."""

    kind: Kind
    path: str
    size: Usage


class Wishes(NamedTuple):
    """What to remove.

    Attributes:
        older_than: seconds; for logs, finished task files and results.
        results: remove results as well.
        tagged: do not spare task files and results that have a tag.
    """

    older_than: float = 30 * DAY
    results: bool = False
    tagged: bool = False


class Rubbish(NamedTuple):
    """What a survey found.

    Attributes:
        items: what may go.
        spared: stems of task files that stay in the archive, keys whose results stay.
        notes: what was left alone, and why.
    """

    items: list[Item]
    spared: Spared
    notes: list[str]


class Spared(NamedTuple):
    """What the user or live task files want to keep."""

    stems: set[str]
    keys: set[bytes]
    live: set[str]


def survey(files: Files, area: Area, wishes: Wishes) -> Rubbish:
    """What may go; changes nothing."""
    with Now(files, area) as age:
        return _Survey(files, area, wishes, age).rubbish()


class Now:
    """The file server's clock: ages of files, as differences to one that is new."""

    def __init__(self, files: Files, area: Area) -> None:
        self._files = files
        self._path = area.temporary(files.token())

    def __enter__(self) -> Callable[[str], float]:
        self._files.write_new(self._path, [b""], sync=False)
        return self.age

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._files.unlink(self._path)

    def age(self, path: str) -> float:
        """Seconds since it was written; 0 if it is gone."""
        try:
            return self._files.age(path, self._path)
        except FileNotFoundError:
            return 0.0


class _Survey:
    """One look at everything."""

    def __init__(
        self, files: Files, area: Area, wishes: Wishes, age: Callable[[str], float]
    ) -> None:
        self._files = files
        self._area = area
        self._wishes = wishes
        self._age = age
        self._notes: list[str] = []
        self._blobs: set[str] = set()
        self._retired: set[str] = set()
        self._tagged: set[str] = set()
        self._spared: set[bytes] = set()
        self._open: dict[str, dict[int, tuple[bytes, str]]] = {}
        census = Census(files, area)
        self._unreadable = census.unreadable
        for entry in census.task_files():
            self._note_tasks(entry)
        for file in census.result_files():
            self._note_results(file)
        self._live = set(census.live_stems()) | self._open.keys()

    def _note_tasks(self, entry: Entry) -> None:
        tasks = entry.tasks
        self._note_blobs(Container(self._files, entry.path, "tasks", file=entry.raw))
        tagged = bool(tasks.meta.get("tag")) and not self._wishes.tagged
        if tagged:
            self._tagged.add(entry.stem)
        if entry.live or tagged:
            self._spared.update(tasks.keys)
            self._spared.update(_dependencies(entry))
        fold = fold_of(self._files, self._area, entry) if entry.live else None
        if fold is None:
            self._retired.add(entry.stem)
            return
        self._open[entry.stem] = {
            row: (key, fold.owner_of(row) or "")
            for row, key in enumerate(tasks.keys)
            if fold.state[row] != State.ALIASED
        }

    def _note_results(self, file: ResultFile) -> None:
        with suppress(FileNotFoundError), Container(self._files, file.path) as container:
            self._note_blobs(container)
        for number, stem in enumerate(file.files):
            open_rows = self._open.get(stem)
            if open_rows:
                for row in file.rows["row"][file.rows["file"] == number].tolist():
                    open_rows.pop(row, None)

    def _note_blobs(self, file: Container) -> None:
        """The blobs that a file refers to."""
        try:
            self._blobs.update(entry.blob for entry in array_index(file))
        except (FileDamaged, FileRefused) as error:
            self._unreadable[file.path] = error

    def rubbish(self) -> Rubbish:
        items = [
            *self._temporary(),
            *self._logs_of_retired(),
            *self._output(),
            *self._agent_output(),
            *self._archived(),
            *self._presence(),
            *self._requests(),
        ]
        if self._unreadable:
            names = ", ".join(sorted(self._unreadable))
            self._notes.append(f"arrays and results are left alone: cannot read {names}")
        else:
            items += self._unused_blobs()
            items += self._results() if self._wishes.results else ()
        return Rubbish(items, Spared(self._tagged, self._spared, self._live), self._notes)

    # -- one method for each kind --------------------------------------------------------

    def _item(self, kind: Kind, path: str, depth: int = 0) -> Item:
        size = Usage(1, 0)
        with suppress(FileNotFoundError):
            size = Usage(1, self._files.size(path))
        return Item(kind, path, size + _measure(self._files, path, depth))

    def _temporary(self) -> Iterator[Item]:
        for name in self._files.names(self._area.tmp):
            path = self._area.temporary(name)
            if self._age(path) > DAY:
                yield self._item(Kind.TEMPORARY, path)

    def _logs_of_retired(self) -> Iterator[Item]:
        """Whoever retired them did not come to delete their logs."""
        for stem in self._files.names(self._area.claims):
            if stem in self._retired and stem not in self._live:
                yield self._item(Kind.RETIRED, self._area.log(stem))

    def _output(self) -> Iterator[Item]:
        running = {key.hex() for rows in self._open.values() for key, _ in rows.values()}
        for name in self._files.names(self._area.logs):
            path = f"{self._area.logs}/{name}"
            if not is_key(name) or name in running:
                continue
            attempts = [one for one in _names(self._files, path) if parse_attempt(one)]
            if not attempts and self._age(path) > DAY:
                yield self._item(Kind.EMPTY, path)
            for attempt in attempts:
                inner = f"{path}/{attempt}"
                if self._age(inner) > self._wishes.older_than:
                    yield self._item(Kind.OUTPUT, inner)

    def _agent_output(self) -> Iterator[Item]:
        """Which agent writes to which of these files they do not tell."""
        if presence.listing(self._files, self._area):
            return
        for parent in (self._area.agent_logs, self._area.program_logs):
            for name in _names(self._files, parent):
                path = f"{parent}/{name}"
                if self._age(path) > self._wishes.older_than:
                    yield self._item(Kind.AGENT_OUTPUT, path)

    def _archived(self) -> Iterator[Item]:
        for path in archive.listing(self._files, self._area):
            if self._age(path) <= self._wishes.older_than or path in self._unreadable:
                continue  # what cannot be read may have a tag
            try:
                sizes = {stem: raw.size for stem, raw in archive.opened(self._files, path)}
            except (FileNotFoundError, FileDamaged, FileRefused):
                continue
            going = sizes.keys() - self._tagged - self._live
            if going:
                whole = len(going) == len(sizes)
                size = Usage(int(whole), sum(sizes[stem] for stem in going))
                yield Item(Kind.ARCHIVED, path, size)

    def _unused_blobs(self) -> Iterator[Item]:
        for name in self._files.names(self._area.blobs):
            path = self._area.blob(name)
            if is_blob(name) and name not in self._blobs and self._age(path) > DAY:
                yield self._item(Kind.BLOB, path)

    def _presence(self) -> Iterator[Item]:
        """Sealed, and without rows that somebody has still to take over."""
        owners = {owner for rows in self._open.values() for _, owner in rows.values()}
        for one in presence.listing(self._files, self._area):
            if one.agent not in owners and streams.is_sealed(self._files, self._area, one.agent):
                yield self._item(Kind.PRESENCE, self._area.presence(one))

    def _requests(self) -> Iterator[Item]:
        for name in self._files.names(self._area.cancel):
            request = parse_cancel(name)
            if request is None:
                continue
            stem, row = request
            open_rows = self._open.get(stem)
            gone = stem not in self._live or (open_rows is not None and row not in open_rows)
            if gone:
                yield self._item(Kind.REQUEST, self._area.cancel_request(stem, row))

    def _results(self) -> Iterator[Item]:
        paths = [*packs.packable(self._files, self._area), *Census(self._files, self._area).packs()]
        for path in paths:
            if self._age(path) <= self._wishes.older_than:
                continue
            with suppress(FileNotFoundError), ResultFile(self._files, path) as file:
                going = len(file.rows) - len(_kept(file, self._spared))
                is_pack = path.startswith(self._area.packs)
                # Of a stream's files only whole ones go: the others will be in a pack soon.
                if going == len(file.rows) or (is_pack and going):
                    yield Item(Kind.RESULT, path, _share(self._files, file, going))


def _dependencies(entry: Entry) -> set[bytes]:
    if not entry.tasks.rows["dependencies"].any():
        return set()
    data = entry.tasks.dependency_table["key"].tobytes()
    return {data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)}


def _kept(file: ResultFile, keys: set[bytes]) -> np.ndarray:
    """The rows that stay.

    Among the keys are those of live rows: one whose outcome went would be run again.
    """
    return np.array([index for index, key in enumerate(file.keys) if key in keys], dtype=np.intp)


def _share(files: Files, file: ResultFile, going: int) -> Usage:
    """About what the removal of so many rows of a file gives back."""
    size = files.size(file.path)
    return Usage(int(going == len(file.rows)), size * going // max(1, len(file.rows)))


# -- removal -----------------------------------------------------------------------------


def remove(files: Files, area: Area, rubbish: Rubbish) -> list[str]:
    """Remove what a survey found, unless somebody has come to want it; what went wrong."""
    trouble = []
    with Now(files, area) as age:
        removal = _Removal(files, area, rubbish.spared, age)
        for item in rubbish.items:
            try:
                removal.remove(item)
            except FileNotFoundError:
                continue  # somebody else was faster
            except (OSError, SpoolError) as error:
                trouble.append(f"{item.path} stays: {error}")
    return trouble


class _Removal:
    def __init__(
        self, files: Files, area: Area, spared: Spared, age: Callable[[str], float]
    ) -> None:
        self._files = files
        self._area = area
        self._spared = spared
        self._age = age
        self._seen = set(spared.live)

    def remove(self, item: Item) -> None:
        name = item.path.rpartition("/")[2]
        if item.kind is Kind.TEMPORARY and is_grave(name):
            delete_log(self._files, item.path)
        elif item.kind is Kind.RETIRED:
            bury(self._files, self._area, [name])
        elif item.kind is Kind.OUTPUT:
            self._remove_output(item.path)
        elif item.kind is Kind.EMPTY:
            self._remove_empty(item.path)
        elif item.kind is Kind.ARCHIVED:
            self._remove_archived(item.path)
        elif item.kind is Kind.BLOB:
            self._remove_blob(item.path)
        elif item.kind is Kind.RESULT:
            self._remove_results(item.path)
        else:
            self._files.unlink(item.path)

    def _remove_output(self, path: str) -> None:
        for name in self._files.names(path):
            self._files.unlink(f"{path}/{name}")
        self._remove_empty(path)
        self._remove_empty(path.rpartition("/")[0])

    def _remove_empty(self, path: str) -> None:
        with suppress(OSError):  # somebody has just put something into it
            self._files.rmdir(path)

    def _remove_archived(self, path: str) -> None:
        if parse_stem(path.rpartition("/")[2].removesuffix(".h5")):
            self._files.unlink(path)
        else:
            keep = self._spared.stems | self._spared.live
            archive.rewrite(self._files, self._area, path, keep.__contains__)

    def _remove_blob(self, path: str) -> None:
        """A client that stores the same array again makes the blob young (`blobs.store`).

        It may do so between our look and the removal: so move the blob away first, where
        nobody finds it to make it young, and look again.
        """
        aside = self._area.temporary(self._files.token())
        self._files.rename(path, aside)
        if self._age(aside) <= DAY:
            with suppress(FileExistsError):
                self._files.link(aside, path)
        self._files.unlink(aside)

    def _remove_results(self, path: str) -> None:
        self._look_again()
        lock = self._files.try_lock(self._area.lock("packs"))
        if lock is None:
            raise SpoolError("An agent packs results at this moment", path, "Run gc again")
        try:
            with ResultFile(self._files, path) as file:
                kept = _kept(file, self._spared.keys)
                tier = parse_pack(path.rpartition("/")[2])
                if len(kept) and not (tier and self._put_in_place(file, kept, tier)):
                    return
            self._files.unlink(path)
        finally:
            lock.release()

    def _look_again(self) -> None:
        """Spare what task files name that were born since."""
        census = Census(self._files, self._area)
        if set(census.live_stems()) <= self._seen:
            return
        for entry in census.task_files():
            if not entry.live:
                return
            if entry.stem not in self._seen:
                self._seen.add(entry.stem)
                self._spared.live.add(entry.stem)
                self._spared.keys.update(entry.tasks.keys, _dependencies(entry))

    def _put_in_place(self, file: ResultFile, kept: np.ndarray, tier: int) -> bool:
        """Publish a pack with only some of the rows of another."""
        made = subset(self._files.token(), file, kept)
        return publish(
            self._files, self._area, made, self._area.pack(tier, made.token), durable=True
        )


def subset(token: str, file: ResultFile, kept: np.ndarray) -> Image:
    """A pack with only some of the rows of a result file or pack."""
    writer = ValueWriter("values")
    errors = {}
    for new, index in enumerate(kept.tolist()):
        writer.add(file.value(index))
        error = file.error(index)
        if error is not None:
            errors[str(new)] = error
    rows = file.rows[kept]
    writer.fill(rows)
    sections: dict[str, bytes | np.ndarray] = {
        "rows": rows,
        "files": json.dumps(file.files).encode(),
        "origins": json.dumps(file.origins).encode(),
        **writer.sections(),
    }
    if errors:
        sections["errors"] = json.dumps(errors).encode()
    return image(token, "pack", {"inputs": [file.path]}, sections)
