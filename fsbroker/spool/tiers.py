"""Merging many files into fewer, in tiers: what packs and bundles have in common.

    <tier>.<token>.h5, whose meta names its inputs

Anybody may merge, at any time, twice: a merged file repeats what its inputs say. Inputs go
only when a *later* cycle finds the file whole, so that a reader with an old listing seldom
meets ENOENT; when it does, it lists again and finds the file.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, islice
from typing import Any

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool import forms
from fsbroker.spool.container import Container
from fsbroker.spool.files import Files
from fsbroker.spool.layout import is_merged, parse_pack

FAN = 8
"""Files merged into one: of the first tier at least so many, of the others as many."""
MOST_INPUTS = 512
LAST_TIER = 99

UNREADABLE = (FileNotFoundError, FileDamaged, FileRefused)


class Tiers:
    """The merged files of one directory, looked at once: for one cycle.

    Args:
        largest: bytes; files above are not merged any further.
    """

    def __init__(self, files: Files, directory: str, largest: int) -> None:
        self._files = files
        self._directory = directory
        self._largest = largest

    @cached_property
    def _merged(self) -> dict[str, list[str]]:
        """The merged files that can be read, and what each was made of."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._files.names(self._directory)):
            path = f"{self._directory}/{name}"
            if parse_pack(name) is not None:
                with suppress(*UNREADABLE):  # merged again, by who cannot read that they were
                    found[path] = inputs_of(self._files, path)
        return found

    @cached_property
    def _left(self) -> dict[str, list[str]]:
        """The inputs of each that are still there, by one listing of each of their directories.

        To ask for each by its name would cost a call for every file of the past. Where one
        was deleted, somebody with an old listing of the stream may have put a seal since.
        """
        there: dict[str, set[str]] = {}
        for directory in sorted({name.rpartition("/")[0] for name in self.inputs()}):
            there[directory] = set()
            with suppress(FileNotFoundError):
                there[directory].update(self._files.names(directory))
        return {
            path: [name for name in inputs if _stands(name, there) and is_file(self._files, name)]
            for path, inputs in self._merged.items()
        }

    def inputs(self) -> set[str]:
        """What has been merged already, by name."""
        return set(chain.from_iterable(self._merged.values()))

    def drop_inputs(self) -> None:
        """Delete what earlier cycles have merged."""
        for path, left in self._left.items():
            with suppress(*UNREADABLE):
                if left and self._is_whole(path):
                    # Whoever linked the file may have died, or failed, before its fsync.
                    self._files.sync_directory(self._directory)
                    for name in left:
                        with suppress(FileNotFoundError):
                            self._files.unlink(name)

    def due(self) -> tuple[int, Sequence[str]] | None:
        """Merged files to be merged further, and the tier of the result."""
        tiers: dict[int, list[str]] = {}
        for path, left in self._left.items():
            if not left:  # an input that is still there would be merged a second time
                tiers.setdefault(parse_pack(path.rpartition("/")[2]) or 0, []).append(path)
        for tier, paths in sorted(tiers.items()):
            small = filter(self._is_small, paths) if len(paths) >= FAN else ()
            chosen = list(islice(small, FAN))
            if len(chosen) == FAN:
                return min(tier + 1, LAST_TIER), chosen
        return None

    def _is_small(self, path: str) -> bool:
        with suppress(FileNotFoundError):  # an input itself, and dropped just now
            return self._files.size(path) < self._largest // FAN
        return False

    def _is_whole(self, path: str) -> bool:
        with Container(self._files, path) as file:
            file.verify()
        return True


def _stands(path: str, there: dict[str, set[str]]) -> bool:
    directory, _, name = path.rpartition("/")
    return name in there[directory]


def inputs_of(files: Files, path: str) -> list[str]:
    """What a merged file was made of: what it names is deleted, so it names nothing else."""
    area = path.rpartition("/")[0].rpartition("/")[0]
    with Container(files, path, "pack", "archive") as file:
        inputs: Any = file.meta.get("inputs")
    if not forms.fits(inputs, [str]) or not all(is_merged(area, name) for name in inputs):
        raise FileDamaged("It names inputs that it cannot have", path)
    return list(inputs)


def is_file(files: Files, path: str) -> bool:
    """It is there, and certainly no seal (not even a void one)."""
    try:
        files.readlink(path)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False
