"""Finished task files, bundled: one file in place of hundreds.

    retire -> archive/<stem>.h5 -> archive/01.<token>.h5 -> archive/02.<token>.h5 ...

A bundle holds the bytes of task files as they were, each a section under its stem, so a
task file is read inside a bundle as it is read alone, through a `Window`.

The rules are those of packs (`tiers.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from fsbroker.spool.container import Container, image
from fsbroker.spool.files import Files, OpenFile
from fsbroker.spool.layout import Area, parse_pack, parse_stem
from fsbroker.spool.publish import publish
from fsbroker.spool.tiers import FAN, MOST_INPUTS, UNREADABLE, Tiers

LARGEST = 256 << 20
"""Bytes; bundles above are not merged any further, and none is built of more: its
builder, an agent, holds it in memory twice."""
SECTION = "tasks/"


class Window(OpenFile):
    """A part of an open file, read as if it were a file of its own."""

    __slots__ = ("_file", "_offset")

    def __init__(self, file: OpenFile, path: str, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self.path = path
        self.owner = file.owner
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        return self._file.read(self._offset + offset, max(0, min(length, self.size - offset)))

    def read_into(self, buffer: memoryview, offset: int) -> int:
        length = max(0, min(len(buffer), self.size - offset))
        return self._file.read_into(buffer[:length], self._offset + offset)

    def close(self) -> None:
        """The file around it stays open, for its other windows."""


# -- reading -----------------------------------------------------------------------------


def opened(files: Files, path: str) -> Iterator[tuple[str, OpenFile]]:
    """The task files that a file of the archive holds: one, or a bundle of many.

    They can be read until the next one is asked for.
    """
    stem = _stem_of(path)
    with files.open(path) as file:
        if stem is not None:
            yield stem, file
            return
        bundle = Container(files, path, "archive", file=file)
        for name, section in bundle.sections.items():
            inner = name.removeprefix(SECTION)
            if parse_stem(inner):
                yield inner, Window(file, f"{path}:{inner}", section.offset, bundle.length(name))


def listing(files: Files, area: Area) -> list[str]:
    """Paths of all files in the archive, those of single task files first."""
    names = [
        name for name in files.names(area.archive) if parse_pack(name) is not None or _stem_of(name)
    ]
    names.sort(key=lambda name: (parse_pack(name) is not None, name))
    return [f"{area.archive}/{name}" for name in names]


def _stem_of(path: str) -> str | None:
    name = path.rpartition("/")[2]
    stem = name.removesuffix(".h5")
    return stem if stem != name and parse_stem(stem) else None


# -- bundling ----------------------------------------------------------------------------


def cycle(files: Files, area: Area) -> bool:
    """One round of bundling; True if something was merged."""
    lock = files.try_lock(area.lock("archive"))
    if lock is None:
        return False
    try:
        bundles = Tiers(files, area.archive, LARGEST)
        bundles.drop_inputs()
        inputs = _singles(files, area, bundles.inputs())
        if len(inputs) >= FAN and _publish(files, area, inputs, 1):
            return True
        due = bundles.due()
        return due is not None and _publish(files, area, due[1], due[0])
    finally:
        lock.release()


def rewrite(files: Files, area: Area, path: str, keep: Callable[[str], bool]) -> bool:
    """Put a bundle with only some of its task files in its place; False if there is nothing to."""
    tier = parse_pack(path.rpartition("/")[2])
    kept = [stem for stem, _ in opened(files, path) if keep(stem)]
    if tier is None:
        return False
    if kept and not _publish(files, area, [path], tier, keep):
        return False
    files.unlink(path)
    return True


def _singles(files: Files, area: Area, bundled: set[str]) -> list[str]:
    """Task files that stand alone in the archive, as many as fit in one bundle."""
    singles = [path for path in listing(files, area) if _stem_of(path) and path not in bundled]
    live = {name.removesuffix(".h5") for name in files.names(area.tasks)}
    # One whose live name still stands would be linked here again by who finishes its burial.
    buried = [path for path in singles if _stem_of(path) not in live]
    return _fitting(files, buried[:MOST_INPUTS]) if len(buried) >= FAN else []


def _fitting(files: Files, paths: Sequence[str]) -> list[str]:
    """The first of them that fit in one bundle."""
    room, found = LARGEST, []
    for path in paths:
        with suppress(FileNotFoundError):
            room -= files.size(path)
            if room < 0:
                break
            found.append(path)
    return found


def _publish(
    files: Files,
    area: Area,
    inputs: Sequence[str],
    tier: int,
    keep: Callable[[str], bool] = lambda _: True,
) -> bool:
    """Publish a bundle of all task files in these files."""
    sections: dict[str, bytes | np.ndarray] = {}
    merged = []
    for path in inputs:
        with suppress(*UNREADABLE):
            found = {
                f"{SECTION}{stem}": _checked(files, file)
                for stem, file in opened(files, path)
                if keep(stem)
            }
            sections |= found
            merged.append(path)
    if not sections:
        return False
    made = image(files.token(), "archive", {"inputs": merged}, sections)
    return publish(files, area, made, area.bundle(tier, made.token), durable=True)


def _checked(files: Files, file: OpenFile) -> np.ndarray:
    """The bytes of a task file, none of whose sections is damaged."""
    inner = Container(files, file.path, "tasks", file=Window(file, file.path, 0, file.size))
    for name in inner.sections:
        inner.read(name)
    return np.frombuffer(file.read(0, file.size), np.uint8)
