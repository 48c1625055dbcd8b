"""From a stored outcome to the value, or the exception, that a future gives.

An exception is the one that the task raised, with the traceback of the worker as its
cause. That of a task whose dependency failed has the dependency's as its cause, and so on
down to the one that began it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from fsbroker import errors, pickling, plain
from fsbroker.errors import (
    DependencyFailed,
    FileDamaged,
    FileRefused,
    FsbrokerError,
    RemoteTraceback,
    ResultLost,
    SpoolError,
    TaskCancelled,
    TaskError,
)
from fsbroker.spool.blobs import read_arrays, size_of
from fsbroker.spool.index import Results
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import Encoding, Status, Value

MANY = 16
"""From so many rows on, all values of a file are parsed in one go."""
DEPTH = 16
"""Failed dependencies that one error shows, each the cause of the one before."""

Resolved = tuple[Any, BaseException | None]


def log_sizes(file: ResultFile, rows: Iterable[tuple[int, bytes]]) -> None:
    """Log the bytes of values, given their rows and keys: at the level that shows by default."""
    logger = logging.getLogger("fsbroker")
    for index, key in rows:
        with suppress(OSError, FileDamaged):
            value = file.value(index)
            size = len(value.data) + sum(map(size_of, value.arrays))
            logger.warning("value of %s: %d bytes", key.hex(), size)


class Reader:
    """Reads outcomes of one area.

    Args:
        results: what the client knows of the spool, for errors of dependencies.
    """

    def __init__(self, spool: Spool, results: Results) -> None:
        self._files, self._area, _ = spool
        self._results = results

    def resolve(self, file: ResultFile, indices: list[int]) -> list[Resolved]:
        """What the futures of these rows of a result file give: value, or exception.

        Raises:
            OSError: the file cannot be read now; its rows may stand in a pack.
        """
        if len(indices) >= MANY:
            with suppress(Exception):  # then one by one, to tell which of them is damaged
                texts = file.plain_texts()
                if texts is not None:
                    values = plain.decode_many(texts[1:-1])
                    return [(values[index], None) for index in indices]
        return [self._resolve_one(file, index) for index in indices]

    def value(self, value: Value) -> Any:
        """The object that a stored value stands for."""
        encoding, data, arrays = self.payload(value)
        if encoding == Encoding.PLAIN:
            return plain.decode(data, arrays)
        return pickling.decode(encoding, data, arrays)

    def payload(self, value: Value) -> tuple[int, bytes, list[Any]]:
        """A stored value, with its arrays read: what `pickling.decode` takes."""
        try:
            arrays = read_arrays(self._files, self._area, value.arrays)
            return value.encoding, value.data, arrays
        except (FileNotFoundError, FileDamaged) as error:
            raise _lost(error) from error

    def _resolve_one(self, file: ResultFile, index: int) -> Resolved:
        try:
            stored = file.value(index)
        except (FileDamaged, FileRefused) as error:
            return None, _lost(error)
        try:
            status = file.rows["status"][index]
            if status == Status.DONE:
                return self.value(stored), None
            if status == Status.CANCELLED:
                return None, TaskCancelled("The task was cancelled", file.keys[index].hex())
            return None, self._failure(file, index, DEPTH)
        except FileDamaged as error:
            where = error.where or f"{file.path} (task {file.keys[index].hex()})"
            return None, FileDamaged(error.what, where, error.cure)
        except Exception as error:  # unpickling runs the user's code: anything
            return None, error

    def _failure(self, file: ResultFile, index: int, depth: int) -> BaseException:
        """The exception of a failed task, with where it happened as its cause."""
        error = file.error(index) or {}
        try:
            exception: object = self.value(file.value(index))
        except Exception:  # the worker could unpickle it, this client cannot
            exception = None
        if not isinstance(exception, BaseException):
            exception = _stand_in(error)
        remote = RemoteTraceback(_report(error, file.origin(index)))
        exception.__cause__ = remote
        if isinstance(exception, DependencyFailed):
            cause = self._failed_dependency(file, index, error, depth - 1)
            if cause is not None:
                exception.__cause__ = cause
        return exception

    def _failed_dependency(
        self, file: ResultFile, index: int, error: dict[str, str], depth: int
    ) -> BaseException | None:
        """The exception of the task that this one waited for in vain."""
        if depth <= 0:
            return None
        if "key" in error:
            key = bytes.fromhex(error["key"])
            return self._exception_of(key, depth) or TaskCancelled(
                "The task was cancelled, or its task file was removed", key.hex()
            )
        causes = (self._exception_of(key, depth) for key in self._inputs(file, index))
        return next((cause for cause in causes if cause is not None), None)

    def _exception_of(self, key: bytes, depth: int) -> BaseException | None:
        found = self._results.find(key)
        if found is None or found.status == Status.DONE:
            return None
        if found.status == Status.CANCELLED:
            return TaskCancelled("The task was cancelled", key.hex())
        with suppress(FileNotFoundError):  # it goes into a pack at this moment
            return self._failure(self._results.file(found.place.path), found.place.row, depth)
        return None

    def _inputs(self, file: ResultFile, index: int) -> list[bytes]:
        """Keys of the dependencies of a row, until its task file is bundled with others."""
        row = file.rows[index]
        stem = file.files[row["file"]]
        for path in (self._area.task_file(stem), self._area.archived(stem)):
            with suppress(OSError, SpoolError):
                tasks = TaskFile(self._files, path, stem)
                return [key for (key, _), _ in tasks.dependencies(int(row["row"]))]
        return []


def _lost(error: Exception) -> ResultLost:
    lost = ResultLost(cure=f"{error}. Submit it again: it is computed anew")
    lost.__cause__ = error
    return lost


def _stand_in(error: dict[str, str]) -> FsbrokerError:
    """Our own errors by their name; any other type by its text."""
    kind = getattr(errors, error.get("type", "").removeprefix("fsbroker.errors."), None)
    message = error.get("message", "")
    if isinstance(kind, type) and issubclass(kind, FsbrokerError):
        return kind(message)
    return TaskError(f"{error.get('type', 'Exception')}: {message}")


def _report(error: dict[str, str], origin: dict[str, Any]) -> str:
    lines = [error.get("traceback", "").rstrip()]
    lines.append(f"on host {origin.get('host', '?')}, agent {origin.get('agent', '?')}")
    if origin.get("job"):
        lines.append(f"in queue job {origin['job']}")
    if "rank" in error:
        lines.append(f"rank {error['rank']}")
    if error.get("log"):
        lines.append(f"output in {error['log']}")
    if error.get("tail"):
        lines += ["last lines of stderr:", error["tail"].rstrip()]
    return "\n".join(line for line in lines if line) + "\n"
