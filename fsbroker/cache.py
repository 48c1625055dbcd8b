"""What a cache holds, and ending what it waits for: the functions that executorlib has for that.

A cache directory is a spool here. Files of executorlib's own cache that lie in it are read too
(``fsbroker import-cache`` puts them into the spool, where the same calls find them).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Future as AnyFuture
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fsbroker import executorlib_files, keys, pickling
from fsbroker.client.ending import end
from fsbroker.client.history import History, Row
from fsbroker.client.outcomes import Reader
from fsbroker.client.session import ClientSession
from fsbroker.errors import FsbrokerError, NotInCache, ResourceError, SpoolMissing
from fsbroker.executorlib_files import Recorded, Reference
from fsbroker.spool.census import Census
from fsbroker.spool.jobs import JobLog, QueueJob
from fsbroker.spool.spool import Spool, open_spool
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import KEY_BYTES, Dependency, Status

Directory = str | os.PathLike[str]

ATTEMPTS = 4
"""Times that a spool is read anew because its files were merged meanwhile."""


# -- what is there -----------------------------------------------------------------------


def get_cache_data(cache_directory: Directory) -> list[dict[str, Any]]:
    """Every call that has ended, with what came of it: ``pandas.DataFrame(get_cache_data(...))``.

    Returns: dicts with ``function``, ``input_args``, ``input_kwargs``, ``output`` or ``error``,
    ``runtime`` (s) and ``filename``. What cannot be read is left out, with a warning.
    """
    found = [_told(recorded) for recorded in _recorded(cache_directory)]
    with suppress(SpoolMissing):
        return [*_contents(open_spool(cache_directory)), *found]
    return found


def _recorded(directory: Directory) -> Iterator[Recorded]:
    for path in executorlib_files.paths(directory):
        try:
            yield executorlib_files.read(path)
        except FsbrokerError as error:
            warnings.warn(str(error), stacklevel=4)


def _told(recorded: Recorded) -> dict[str, Any]:
    args, kwargs = recorded.arguments
    return {
        "function": recorded.function,
        "input_args": tuple(_shown(one, recorded.path) for one in args),
        "input_kwargs": {name: _shown(one, recorded.path) for name, one in kwargs.items()},
        **recorded.result,
        "runtime": recorded.runtime,
        "filename": recorded.path,
    }


def _shown(argument: Any, path: str) -> Any:
    """An argument; for a future of another call, the value that this had."""
    if not isinstance(argument, Reference):
        return argument
    with suppress(FsbrokerError, OSError, LookupError, TypeError):
        value = executorlib_files.read(argument.path(os.path.dirname(path))).result["output"]
        for item in argument.selector:
            value = value[item]
        return value
    return argument


def _contents(spool: Spool) -> list[dict[str, Any]]:
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):  # a result file went into a pack as we came to it
            return _Contents(spool).read()
    return _Contents(spool).read()


class _Contents:
    """The calls in a spool that have ended, with arguments and values."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._session: ClientSession[bytes] = ClientSession(spool, bytes)
        self._session.live.poll()
        self._session.results.poll(deep=True)
        self._reader = Reader(spool, self._session.results)

    def read(self) -> list[dict[str, Any]]:
        """In the order of submission."""
        history = History(self._spool)
        wanted = [(row.tasks.stem, row.number) for row in history if _has_ended(row)]
        rows: dict[str, list[int]] = {}
        for stem, number in wanted:
            rows.setdefault(stem, []).append(number)
        census = Census(self._spool.files, self._spool.area)
        found = {}
        for entry in census.task_files():
            for number in rows.get(entry.stem, ()):
                found[entry.stem, number] = self._call(entry.tasks, number)
        for path, error in {**history.unreadable, **census.unreadable}.items():
            warnings.warn(f"Cannot be read ({error}): {path}", stacklevel=3)
        return [
            {**found[stem, number], **self._result(Row(history.tasks[stem], number))}
            for stem, number in wanted
            if (stem, number) in found
        ]

    def _call(self, file: TaskFile, number: int) -> dict[str, Any]:
        function, (args, kwargs) = file.function(number), self._arguments(file, number)
        try:
            loaded: object = pickling.load_function(function.pickle)
        except Exception:  # its module is not here, or raises
            loaded = function.name
        return {"function": loaded, "input_args": args, "input_kwargs": kwargs}

    def _arguments(self, file: TaskFile, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = [self._input(one) for one, _ in file.dependencies(number)]
        try:
            stored = self._reader.payload(file.arguments(number))
            return pickling.decode_call(*stored, values)
        except Exception as error:  # unpickling runs the user's code
            return (error,), {}

    def _input(self, wanted: Dependency) -> Any:
        """The value that stood in for a future; the future's key where it is gone."""
        found = self._session.results.value(wanted.key)
        if found is None or found[0].status != Status.DONE:
            return wanted
        value = self._reader.value(found[1])
        for item in wanted.selector:
            value = value[item]
        return value

    def _result(self, row: Row) -> dict[str, Any]:
        ending = row.tasks.ending(row.number)
        assert ending is not None
        file = self._session.results.file(ending.path)
        ((value, error),) = self._reader.resolve(file, [ending.place])
        return {
            **({"output": value} if error is None else {"error": error}),
            "runtime": ending.wall,
            "filename": f"{self._spool.files.root}/{ending.path}",
        }


def _has_ended(row: Row) -> bool:
    ending = row.tasks.ending(row.number)
    return ending is not None and ending.status != Status.CANCELLED


# -- one call ----------------------------------------------------------------------------


def get_future_from_cache(cache_directory: Directory, cache_key: str) -> AnyFuture[Any]:
    """A future of a call that is in the cache: done, failed, running or waiting.

    Args:
        cache_key: the name that was given to the call in its ``resource_dict``, its key
            (`Future.key`) as 40 hex digits, or the name of one of executorlib's files
            without ``_o.h5``.

    Raises:
        NotInCache: there is none.
    """
    path = os.path.join(os.fspath(cache_directory), cache_key + executorlib_files.ENDING)
    with suppress(SpoolMissing):
        for key in _keys(cache_key):
            if _is_known(open_spool(cache_directory), key):
                from fsbroker.executor import attach

                return attach(cache_directory, key)
    if os.path.basename(cache_key) == cache_key and os.path.exists(path):
        return _future_of(executorlib_files.read(path))
    raise NotInCache("No call with this key", f"{cache_key} in {os.fspath(cache_directory)}")


def _keys(cache_key: str) -> list[bytes]:
    """What a text may mean: the digits of a key, or a name."""
    found = [keys.named(cache_key)]
    with suppress(ValueError):
        found.insert(0, bytes.fromhex(cache_key))
    return [key for key in found if len(key) == KEY_BYTES]


def _is_known(spool: Spool, key: bytes) -> bool:
    session: ClientSession[bytes] = ClientSession(spool, bytes)
    return any(session.look_up([key]))


def _future_of(recorded: Recorded) -> AnyFuture[Any]:
    future: AnyFuture[Any] = AnyFuture()
    if "error" in recorded.result:
        future.set_exception(recorded.result["error"])
    else:
        future.set_result(recorded.result["output"])
    return future


# -- ending ------------------------------------------------------------------------------


def terminate_tasks_in_cache(
    cache_directory: Directory,
    pysqa_config_directory: str | None = None,
    backend: str | None = None,
) -> None:
    """Have no task of the cache run any more, and end its queue jobs.

    Args:
        pysqa_config_directory: for the scheduler; default: what the jobs were submitted with.
        backend: end only queue jobs of this scheduler, "slurm" or "flux".

    Raises:
        SpoolMissing: there is no spool. ResourceError: there is no such backend.
        SchedulerError: the scheduler did not take it.
    """
    _terminate(open_spool(cache_directory), None, (pysqa_config_directory, backend))


def terminate_task_in_cache(
    cache_directory: Directory,
    cache_key: str,
    pysqa_config_directory: str | None = None,
    backend: str | None = None,
) -> None:
    """Have one task not run, or end, and the queue job that is there for it alone.

    Args and errors are those of `terminate_tasks_in_cache`; ``cache_key`` is as of
    `get_future_from_cache`.

    Raises:
        NotInCache: there is no such task.
    """
    wanted = (pysqa_config_directory, backend)
    _terminate(open_spool(cache_directory), _keys(cache_key), wanted)


def _terminate(
    spool: Spool, only: list[bytes] | None, settings: tuple[str | None, str | None]
) -> None:
    if settings[1] not in (None, "slurm", "flux"):
        raise ResourceError("No such scheduler", repr(settings[1]), 'Known: "slurm", "flux"')
    history = History(spool)
    rows = list(history) if only is None else list(filter(None, map(history.find, only)))
    if only is not None and not rows:
        raise NotInCache("No task with this key", spool.files.root)
    session: ClientSession[bytes] = ClientSession(spool, bytes)
    for row in rows:
        end(spool, session, row)
    log = JobLog(spool.files, spool.area)
    log.refresh()
    own = {f"{row.tasks.stem}.{row.number}" for row in rows}
    for job in log.jobs.values():
        if job.id and not job.is_over and (only is None or job.row in own):
            _end_job(log, job, *settings)


def _end_job(log: JobLog, job: QueueJob, directory: str | None, backend: str | None) -> None:
    from fsbroker.launch.settings import config_of, scheduler_of

    if backend in (None, job.scheduler):
        config = config_of(log.settings(job.settings))
        if directory is not None:
            config = replace(config, pysqa_config_directory=directory)
        scheduler_of(config).cancel([job.id])


__all__ = [
    "get_cache_data",
    "get_future_from_cache",
    "terminate_task_in_cache",
    "terminate_tasks_in_cache",
]
