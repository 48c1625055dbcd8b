"""The rows of one task file that wait for dependencies, as one agent sees them."""

from __future__ import annotations

from collections.abc import Iterable

from fsbroker.spool.taskfile import TaskFile


class Waiting:
    """Which rows each dependency keeps waiting.

    Args:
        rows: the rows that wait.
    """

    def __init__(self, file: TaskFile, rows: Iterable[int]) -> None:
        self._rows: dict[bytes, list[int]] = {}
        self._missing: dict[int, int] = {}
        self._ready: list[int] = []
        self._failed: list[int] = []
        for row in rows:
            keys = {dependency.key for dependency, _ in file.dependencies(row)}
            self._missing[row] = len(keys)
            for key in keys:
                self._rows.setdefault(key, []).append(row)

    def keys(self) -> set[bytes]:
        """The dependencies that are not settled."""
        return set(self._rows)

    def settle(self, key: bytes, *, done: bool) -> None:
        """A dependency has ended, with a value or without."""
        for row in self._rows.pop(key):
            if row not in self._missing:
                continue  # failed by another dependency
            if not done:
                del self._missing[row]
                self._failed.append(row)
                continue
            self._missing[row] -= 1
            if not self._missing[row]:
                del self._missing[row]
                self._ready.append(row)

    @property
    def has_news(self) -> bool:
        return bool(self._ready or self._failed)

    def take(self) -> tuple[list[int], list[int]]:
        """Rows that became ready, and rows that never will, ascending; each only once."""
        ready, failed = sorted(self._ready), sorted(self._failed)
        self._ready, self._failed = [], []
        return ready, failed
