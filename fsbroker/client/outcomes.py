"""From a stored outcome to the value, or the exception, that a future gives."""

from __future__ import annotations

from typing import Any

from fsbroker import errors, pickling, plain
from fsbroker.errors import FsbrokerError, RemoteTraceback, TaskCancelled, TaskError
from fsbroker.spool.blobs import read_array
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.task import Encoding, Status, Value

MANY = 16
"""From so many rows on, all values of a file are parsed in one go."""

Resolved = tuple[Any, BaseException | None]


def read(spool: Spool, value: Value) -> Any:
    """The object that a stored value stands for."""
    arrays = [read_array(spool.files, spool.area, ref) for ref in value.arrays]
    if value.encoding == Encoding.PLAIN:
        return plain.decode(value.data, arrays)
    return pickling.decode(value.encoding, value.data, arrays)


def resolve(spool: Spool, file: ResultFile, indices: list[int]) -> list[Resolved]:
    """What the futures of these rows of a result file give: value, or exception."""
    texts = file.plain_texts() if len(indices) >= MANY else None
    if texts is not None:
        values = plain.decode_many(texts[1:-1])
        return [(values[index], None) for index in indices]
    return [_resolve_one(spool, file, index) for index in indices]


def _resolve_one(spool: Spool, file: ResultFile, index: int) -> Resolved:
    try:
        status = file.rows["status"][index]
        if status == Status.DONE:
            return read(spool, file.value(index)), None
        if status == Status.CANCELLED:
            return None, TaskCancelled("The task was cancelled", file.keys[index].hex())
        return None, _failure(spool, file, index)
    except Exception as error:  # noqa: BLE001 - unpickling runs the user's code: anything
        return None, error


def _failure(spool: Spool, file: ResultFile, index: int) -> BaseException:
    """The exception of a failed task, with where it happened as its cause."""
    error = file.error(index) or {}
    try:
        exception = read(spool, file.value(index))
    except Exception:  # noqa: BLE001 - the worker could unpickle it, this client cannot
        exception = None
    if not isinstance(exception, BaseException):
        exception = _stand_in(error)
    exception.__cause__ = RemoteTraceback(_report(error, file.origin(index)))
    return exception


def _stand_in(error: dict[str, str]) -> FsbrokerError:
    """Our own errors by their name; any other type by its text."""
    kind = getattr(errors, error.get("type", ""), None)
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
