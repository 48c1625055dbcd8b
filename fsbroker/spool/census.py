"""All that an area holds: every task file and every result file, whoever moves them meanwhile.

For those who must see everything: history, explain, gc. Files move on while they are read
(live to archive to bundle; stream to pack to larger pack), so each walk goes the way of
the files, and lists again when one was gone: what has left one place is found in the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool import archive
from fsbroker.spool.files import Files, OpenFile
from fsbroker.spool.layout import Area, is_agent, parse_pack, parse_stem
from fsbroker.spool.log import Fold, Log, Retired
from fsbroker.spool.streams import ResultFile, entries, is_seal
from fsbroker.spool.taskfile import TaskFile

LISTINGS = 5
"""How often a place is listed again because something in it had moved."""


class Entry(NamedTuple):
    """A task file, open until the next one is asked for.

    Attributes:
        stem: its name. path: the file that it stands in, relative to the spool.
        live: it has not been retired, as far as the listing told.
        tasks: what it holds. raw: its bytes.
    """

    stem: str
    path: str
    live: bool
    tasks: TaskFile
    raw: OpenFile


def fold_of(files: Files, area: Area, entry: Entry) -> Fold | None:
    """What the log of a live task file says; None if it was retired meanwhile."""
    table, name = entry.tasks.rows, entry.tasks.name
    waiting = np.flatnonzero(table["dependencies"]) if name.waiting else ()
    log = Log(files, area, entry.stem, Fold(len(table), map(int, waiting)))
    try:
        log.refresh()
    except Retired:
        return None
    return log.fold


class Census:
    """Walks over an area.

    Attributes:
        unreadable: paths of files that are damaged, with the reason: what they hold is
            missing from what was found.
    """

    def __init__(self, files: Files, area: Area) -> None:
        self._files = files
        self._area = area
        self.unreadable: dict[str, Exception] = {}

    # -- task files ----------------------------------------------------------------------

    def live_stems(self) -> list[str]:
        """The live task files, in the order in which agents take them."""
        names = self._files.names(self._area.tasks)
        stems = (name.removesuffix(".h5") for name in names if name.endswith(".h5"))
        return sorted(stem for stem in stems if parse_stem(stem))

    def task_files(self) -> Iterator[Entry]:
        """Every task file once, the live ones first."""
        seen: set[str] = set()
        for stem in self.live_stems():
            with _moving():
                yield from self._entries(self._area.task_file(stem), seen, live=True)
        done: set[str] = set()
        for _ in range(LISTINGS):
            new = [path for path in archive.listing(self._files, self._area) if path not in done]
            for path in new:
                done.add(path)
                with _moving():
                    yield from self._entries(path, seen, live=False)
            if not new:
                return

    def _entries(self, path: str, seen: set[str], *, live: bool) -> Iterator[Entry]:
        """The task files in a file, but those that were seen before."""
        try:
            for stem, raw in archive.opened(self._files, path):
                if stem not in seen:
                    tasks = TaskFile(self._files, raw.path, stem, raw)
                    seen.add(stem)
                    yield Entry(stem, path, live, tasks, raw)
        except (FileDamaged, FileRefused) as error:
            self.unreadable[path] = error

    # -- result files --------------------------------------------------------------------

    def result_files(self) -> Iterator[ResultFile]:
        """Every result file and pack; an outcome may stand in several of them."""
        for agent in sorted(filter(is_agent, self._files.names(self._area.results))):
            for number in entries(self._files, self._area, agent):
                if not is_seal(self._files, self._area, agent, number):
                    yield from self._opened(self._area.stream_file(agent, number))
        done: set[str] = set()
        for _ in range(LISTINGS):
            new = [path for path in self.packs() if path not in done]
            for path in new:
                done.add(path)
                yield from self._opened(path)
            if not new:
                return

    def packs(self) -> list[str]:
        """The paths of all packs."""
        names = sorted(self._files.names(self._area.packs))
        return [f"{self._area.packs}/{name}" for name in names if parse_pack(name) is not None]

    def _opened(self, path: str) -> Iterator[ResultFile]:
        with _moving():
            try:
                with ResultFile(self._files, path) as file:
                    yield file
            except (FileDamaged, FileRefused) as error:
                self.unreadable[path] = error


@contextmanager
def _moving() -> Iterator[None]:
    """A file that has moved on will be met where it went.

    Nothing else tells that it has: one whose handle is stale may stand where it stood.
    """
    with suppress(FileNotFoundError):
        yield
