"""Live task files: their birth, their end, and a process's view of those between.

    birth    make the log's directory, link the task file
    end      last record `retire`, link into the archive, unlink the live name, delete the log

Agents never make a log's directory, so its absence means retired, to everybody. Each
step of the end may be done again by anybody who finds it undone.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np

from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew
from fsbroker.spool.container import Image
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, Stem, parse_record, parse_stem
from fsbroker.spool.log import Fold, Log
from fsbroker.spool.publish import publish
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import KEY_BYTES


def give_birth(files: Files, area: Area, stem: Stem, made: Image, *, durable: bool) -> None:
    """Publish a task file. The name holds a random token, so it is free."""
    files.mkdir(area.log(str(stem)))
    # A task file that outlived its log would be taken for retired.
    first = [area.claims]
    if not publish(files, area, made, area.task_file(str(stem)), durable=durable, first=first):
        raise FileRefused("The name of a new task file is taken", area.task_file(str(stem)))


def bury(files: Files, area: Area, stems: Sequence[str]) -> list[str]:
    """What follows the retire records, from whichever step it was left at.

    Returns: where the logs lie now, whole, to be deleted a minute later (`delete_log`).

    The archive must be durable before a live name goes, or a power loss takes both. The
    retire record itself need not be: without it the file is simply retired again.
    """
    for stem in stems:
        with suppress(FileExistsError, FileNotFoundError):
            files.link(area.task_file(stem), area.archived(stem))
    files.sync_directory(area.archive)
    for stem in stems:
        with suppress(FileNotFoundError):
            files.unlink(area.task_file(stem))
    files.sync_directory(area.tasks)
    graves = []
    for stem in stems:
        # The log leaves its place in one piece: somebody with an old fold, or with the old
        # directory in an NFS client's cache, could append to one that was emptied.
        grave = area.temporary(f"log-{files.token()}")
        with suppress(FileNotFoundError):
            files.rename(area.log(stem), grave)
            graves.append(grave)
    return graves


def delete_log(files: Files, path: str) -> None:
    """Delete a log's directory, the retire record last."""
    for name in sorted(files.names(path), key=lambda name: parse_record(name) or 0):
        with suppress(FileNotFoundError):
            files.unlink(f"{path}/{name}")
    with suppress(OSError):
        files.rmdir(path)


class LiveFile:
    """One live task file, read as far as it was needed."""

    def __init__(self, files: Files, area: Area, stem: str, name: Stem) -> None:
        self._files = files
        self._area = area
        self.stem = stem
        self.name = name

    @cached_property
    def file(self) -> TaskFile:
        """The tasks themselves.

        Raises:
            FileNotFoundError: it was retired.
        """
        path = self._area.task_file(self.stem)
        try:
            return TaskFile(self._files, path, self.stem)
        except FileDamaged:
            return TaskFile(self._files, path, self.stem)  # damaged only if it is so twice

    @cached_property
    def log(self) -> Log:
        waiting = np.flatnonzero(self.file.rows["dependencies"]) if self.name.waiting else ()
        return Log(self._files, self._area, self.stem, Fold(self.name.rows, map(int, waiting)))

    def is_put_off(self, row: int) -> bool:
        """Its client holds it, while somebody else computes its key (`client/deferral.py`)."""
        owner = self.log.fold.owner_of(row)
        return owner is not None and owner == self.file.meta.get("put_off")

    @cached_property
    def _sorted_keys(self) -> tuple[np.ndarray, np.ndarray]:
        keys = np.frombuffer(self.file.rows["key"].tobytes(), f"S{KEY_BYTES}")
        order = np.argsort(keys)
        return keys[order], order

    def round(self, row: int) -> int:
        """How often the row's key had been tried before."""
        return int(self.file.rows["round"][row])

    def descriptor(self, row: int) -> bytes:
        """What the row's key was made from."""
        return bytes(self.file.rows["descriptor"][row].tobytes())

    def holding(self, keys: list[bytes]) -> dict[bytes, int]:
        """Those of the keys that this file has, and their rows."""
        own, order = self._sorted_keys
        wanted = np.frombuffer(b"".join(keys), f"S{KEY_BYTES}")
        at = np.searchsorted(own, wanted)
        at[at == len(own)] = 0
        return {keys[i]: int(order[at[i]]) for i in np.flatnonzero(own[at] == wanted)}


class LiveFiles:
    """The live task files of an area, as one process sees them, in the order of their names.

    Attributes:
        unreadable: stems of task files that cannot be read, with the reason.
    """

    def __init__(self, files: Files, area: Area) -> None:
        self._files = files
        self._area = area
        self._live: dict[str, LiveFile] = {}
        self.unreadable: dict[str, Exception] = {}

    def poll(self, *, afresh: bool = False) -> list[LiveFile]:
        """Look which are there; those that were not there before.

        Args:
            afresh: something will be concluded from what is not there.
        """
        if afresh:
            self._files.freshen(self._area.tasks)
        names = self._files.names(self._area.tasks)
        there = {name[:-3] for name in names if name.endswith(".h5")}
        for stem in self._live.keys() - there:
            del self._live[stem]
        for stem in self.unreadable.keys() - there:
            del self.unreadable[stem]
        new = []
        for stem in sorted(there - self._live.keys() - self.unreadable.keys()):
            parsed = parse_stem(stem)
            if parsed is not None:
                self._live[stem] = LiveFile(self._files, self._area, stem, parsed)
                new.append(stem)
        if new:
            self._live = dict(sorted(self._live.items()))
        return [self._live[stem] for stem in new]

    def __iter__(self) -> Iterator[LiveFile]:
        return iter(list(self._live.values()))

    def __len__(self) -> int:
        return len(self._live)

    def get(self, stem: str) -> LiveFile | None:
        return self._live.get(stem)

    def forget(self, stem: str) -> None:
        """It was retired under us; or it is damaged, and not to be looked at again."""
        self._live.pop(stem, None)

    def set_aside(self, stem: str, error: Exception) -> None:
        """It cannot be read: keep the reason, and go on with the others."""
        self.unreadable[stem] = error
        self.forget(stem)

    def newer(self) -> FormatTooNew | None:
        """Why some task file is for a newer fsbroker; None if none is.

        Its tasks run where agents know the format, and may be those that others wait for.
        """
        refused = (one for one in self.unreadable.values() if isinstance(one, FormatTooNew))
        return next(refused, None)

    def holding(
        self, keys: list[bytes], besides: Container[str] = ()
    ) -> dict[bytes, list[tuple[LiveFile, int]]]:
        """The live rows of each of the keys that has any, in the order of their files.

        Args:
            besides: stems of files that need not be looked at.
        """
        found: dict[bytes, list[tuple[LiveFile, int]]] = {}
        for live in self:
            if live.stem in besides:
                continue
            try:
                rows = live.holding(keys)
            except FileNotFoundError:
                self.forget(live.stem)
                continue
            except (FileDamaged, FileRefused) as error:
                self.set_aside(live.stem, error)
                continue
            for key, row in rows.items():
                found.setdefault(key, []).append((live, row))
        return found
