"""Trying ended tasks anew, from what is stored of them: without the code that made them.

The next round of a key is a new row of a new task file. It holds the same bytes: function,
arguments, dependencies, resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fsbroker.client.history import History, Phase, Row
from fsbroker.client.session import ClientSession, Lane
from fsbroker.errors import TaskLost
from fsbroker.spool.census import Census
from fsbroker.spool.layout import MAX_ROWS
from fsbroker.spool.spool import Spool
from fsbroker.spool.taskfile import (
    PUT_OFF,
    Arguments,
    FunctionEntry,
    Limits,
    TaskFile,
    TaskRow,
)

Place = tuple[str, int]
"""A task file's stem, and a row in it."""


class Again:
    """Opens new rounds of tasks of a history."""

    RETRIED = (Phase.FAILED, Phase.CANCELLED, Phase.REMOVED)
    """The states that a task may be tried anew from."""

    def __init__(self, spool: Spool, history: History) -> None:
        self._spool = spool
        self._history = history
        self._functions: dict[bytes, FunctionEntry] = {}

    # -- which ---------------------------------------------------------------------------

    def with_others(self, rows: Iterable[Row]) -> list[Row]:
        """These rows, with those that have to go with them: dependencies come first.

        Failed dependencies, without which they would fail again at once, and what failed
        because one of them did: dependents that have failed.
        """
        dependents = self._dependents()
        wanted: dict[bytes, Row] = {}
        left = list(rows)
        while left:
            row = left.pop()
            if row.key in wanted:
                continue
            wanted[row.key] = row
            left += [other for other in self._dependencies(row) if other.phase in self.RETRIED]
            left += [other for other in dependents.get(row.key, ()) if other.phase is Phase.FAILED]
        return list(self._ordered(wanted))

    def _dependents(self) -> dict[bytes, list[Row]]:
        """The failed rows that depend on a key."""
        found: dict[bytes, list[Row]] = {}
        for row in self._history:
            if row.phase is Phase.FAILED:
                for key in row.tasks.dependencies(row.number):
                    found.setdefault(key, []).append(row)
        return found

    def _dependencies(self, row: Row) -> list[Row]:
        found = map(self._history.find, row.tasks.dependencies(row.number))
        return [other for other in found if other is not None]

    def _ordered(self, wanted: dict[bytes, Row]) -> Iterator[Row]:
        """Every row after those that it depends on."""
        done: set[bytes] = set()
        stack = [(row, False) for row in reversed(wanted.values())]
        while stack:
            row, inputs_done = stack.pop()
            if inputs_done:
                yield row
            elif row.key not in done:
                done.add(row.key)
                stack.append((row, True))
                inputs = (wanted.get(key) for key in row.tasks.dependencies(row.number))
                stack += [(one, False) for one in inputs if one is not None]

    # -- how -----------------------------------------------------------------------------

    def publish(self, rows: list[Row]) -> list[str]:
        """Give each row its next round; the stems of the new task files.

        Args:
            rows: every one after those that it depends on.

        Raises:
            TaskLost: the task file of one was removed meanwhile; nothing was published.
        """
        session: ClientSession[bytes] = ClientSession(self._spool, bytes)
        found = self._read(rows)
        stems = []
        for lane, part in _runs(rows, found):
            made = [found[_place(row)][1] for row in part]
            stems.append(session.publish(lane, made, [row.key for row in part]))
        return stems

    def _read(self, rows: list[Row]) -> dict[Place, tuple[Lane, TaskRow]]:
        """The rows to publish, with their lanes: each task file is opened once."""
        wanted: dict[str, list[Row]] = {}
        for row in rows:
            wanted.setdefault(row.tasks.stem, []).append(row)
        files, area, _ = self._spool
        found: dict[Place, tuple[Lane, TaskRow]] = {}
        for entry in Census(files, area).task_files() if wanted else ():
            for row in wanted.pop(entry.stem, ()):
                found[_place(row)] = self._again(entry.tasks, row)
            if not wanted:
                break
        if wanted:
            raise TaskLost("The task file was removed meanwhile", ", ".join(wanted))
        return found

    def _again(self, file: TaskFile, row: Row) -> tuple[Lane, TaskRow]:
        number, entry = row.number, file.rows[row.number]
        limits = Limits(int(entry["ranks"]), float(entry["time_limit"]), int(entry["retries"]))
        name = file.name
        meta = _frozen({name: file.meta[name] for name in file.meta if name not in PUT_OFF})
        lane = Lane(name.priority, name.shape, name.environment, limits, meta, file.preset)
        dependencies = tuple(dependency for dependency, _ in file.dependencies(number))
        function = file.function(number)
        made = TaskRow(
            file.key(number),
            entry["descriptor"].tobytes(),
            Arguments(*file.arguments(number), dependencies),
            # One object for each function: a task file holds it once.
            self._functions.setdefault(function.digest, function),
            row.round + 1,
        )
        return lane, made


def _place(row: Row) -> Place:
    return row.tasks.stem, row.number


def _runs(
    rows: list[Row], found: dict[Place, tuple[Lane, TaskRow]]
) -> Iterator[tuple[Lane, list[Row]]]:
    """Rows in their order, in pieces that can share a task file."""
    part: list[Row] = []
    last: Lane | None = None
    for row in rows:
        lane = found[_place(row)][0]
        if last is not None and (lane != last or len(part) == MAX_ROWS):
            yield last, part
            part = []
        part.append(row)
        last = lane
    if last is not None:
        yield last, part


def _frozen(meta: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Hashable, as `Lane` wants it."""
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value) for name, value in meta.items()
    )
