"""Merging many files into fewer, in tiers: what packs and bundles have in common.

    <tier>.<token>.h5, whose meta names its inputs

Anybody may merge, at any time, twice: a merged file repeats what its inputs say. Inputs go
only when a *later* cycle finds the file whole, so that a reader with an old listing seldom
meets ENOENT; when it does, it lists again and finds the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
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
    """The merged files of one directory.

    Args:
        largest: bytes; files above are not merged any further.
    """

    def __init__(self, files: Files, directory: str, largest: int) -> None:
        self._files = files
        self._directory = directory
        self._largest = largest

    def paths(self) -> dict[int, list[str]]:
        """The merged files, by tier."""
        found: dict[int, list[str]] = {}
        for name in sorted(self._files.names(self._directory)):
            tier = parse_pack(name)
            if tier is not None:
                found.setdefault(tier, []).append(f"{self._directory}/{name}")
        return found

    def inputs(self) -> set[str]:
        """What has been merged already, by name."""
        found: set[str] = set()
        for path in chain.from_iterable(self.paths().values()):
            with suppress(*UNREADABLE):  # merged again, by who cannot read that they were
                found.update(inputs_of(self._files, path))
        return found

    def drop_inputs(self) -> None:
        """Delete what earlier cycles have merged."""
        for path in chain.from_iterable(self.paths().values()):
            with suppress(*UNREADABLE):
                left = [name for name in inputs_of(self._files, path) if self._exists(name)]
                if left and self._is_whole(path):
                    # Whoever linked the file may have died, or failed, before its fsync.
                    self._files.sync_directory(self._directory)
                    for name in left:
                        with suppress(FileNotFoundError):
                            self._files.unlink(name)

    def due(self) -> tuple[int, Sequence[str]] | None:
        """Merged files to be merged further, and the tier of the result."""
        for tier, paths in sorted(self.paths().items()):
            small = [path for path in paths if self._files.size(path) < self._largest // FAN]
            # An input of one that is still there would be merged a second time.
            settled = list(filter(self._is_settled, small))
            if len(settled) >= FAN:
                return min(tier + 1, LAST_TIER), settled[:FAN]
        return None

    def _is_settled(self, path: str) -> bool:
        with suppress(*UNREADABLE):
            return not any(map(self._exists, inputs_of(self._files, path)))
        return False

    def _exists(self, path: str) -> bool:
        try:
            self._files.size(path)
        except FileNotFoundError:
            return False
        return True

    def _is_whole(self, path: str) -> bool:
        with Container(self._files, path) as file:
            file.verify()
        return True


def inputs_of(files: Files, path: str) -> list[str]:
    """What a merged file was made of: what it names is deleted, so it names nothing else."""
    area = path.rpartition("/")[0].rpartition("/")[0]
    with Container(files, path, "pack", "archive") as file:
        inputs: Any = file.meta.get("inputs")
    if not forms.fits(inputs, [str]) or not all(is_merged(area, name) for name in inputs):
        raise FileDamaged("It names inputs that it cannot have", path)
    return list(inputs)
