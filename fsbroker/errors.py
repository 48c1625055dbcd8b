"""Every error a user can meet.

Each says what happened, where (the path, task, host or program) and what to do
about it. All of them pickle, so that they travel from a worker through a result
file to the future that raises them.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any


class FsbrokerError(Exception):
    """Something went wrong in fsbroker.

    Args:
        what: what happened; the class docstring's first line when left out.
        where: the path, task, host or program that it happened to.
        cure: what the user can do about it.
    """

    def __init__(self, what: str = "", where: object = "", cure: str = "") -> None:
        self.what = what or (type(self).__doc__ or "").partition("\n")[0].rstrip(".")
        self.where = str(where)
        self.cure = cure
        super().__init__(self.what, self.where, self.cure)

    def __str__(self) -> str:
        text = f"{self.what}: {self.where}" if self.where else self.what
        return f"{text}. {self.cure}" if self.cure else text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.where, self.cure), self.__dict__


# -- the spool ---------------------------------------------------------------------------


class SpoolError(FsbrokerError):
    """The spool cannot be used."""


class SpoolMissing(SpoolError):
    """The spool directory, or a part of it, is not there."""


class SpoolUnwritable(SpoolError):
    """The spool cannot be written (read-only, or no permission)."""


class SpoolFull(SpoolError):
    """No space, inodes or quota left for the spool."""


class SpoolUnsafe(SpoolError):
    """A directory of the spool is somebody else's, or others may write in it."""


class FileDamaged(SpoolError):
    """A file of the spool does not hold what was written."""


class FileRefused(SpoolError):
    """A file of the spool is not what fsbroker would have written there."""


class SignatureRefused(FileRefused):
    """Nobody whose signature is taken has signed this file."""


class FormatTooNew(FileRefused):
    """The file was written by a newer fsbroker."""


# -- what the user asked for -------------------------------------------------------------


class ResourceError(FsbrokerError, ValueError):
    """A resource request cannot be met."""


class ConfigError(ResourceError):
    """A setting is unknown, wrong, or not taken from where it stands."""


class KeyConflict(FsbrokerError):
    """Another call was stored under the same cache_key."""


class WorkflowError(FsbrokerError, ValueError):
    """A workflow cannot be drawn, written, read or run."""


class CannotPickle(FsbrokerError, TypeError):
    """The function or its arguments cannot be pickled."""


class NotInCache(FsbrokerError, FileNotFoundError):
    """The cache has no such call."""


class MissingExtra(FsbrokerError, ImportError):
    """An optional package is not installed."""


class MissingProgram(FsbrokerError):
    """A program is not on PATH."""


class SchedulerError(FsbrokerError):
    """A command of the site's scheduler failed, or gave no answer in time."""


class MissingDirectory(FsbrokerError):
    """The directory to run a program in is not there."""


# -- how a task can end ------------------------------------------------------------------


class TaskError(FsbrokerError):
    """The task did not return a value."""


class WorkerLost(TaskError):
    """The process that ran the task died (signal, out of memory, exit)."""


class RankFailed(TaskError):
    """A rank of an MPI task failed."""


class ProgramFailed(TaskError):
    """A program did not end with exit code 0."""


class TimeLimitExceeded(TaskError, TimeoutError):
    """The task ran longer than its run_time_max."""


class OutOfMemory(TaskError, MemoryError):
    """The task used more memory than its memory_max, or than its queue job had."""


class WalltimeExceeded(TaskError, TimeoutError):
    """The queue job that ran the task reached its time limit."""


class NodeFailed(TaskError):
    """A node of the queue job that ran the task failed."""


class JobVanished(TaskError):
    """The queue job that was to run the task is gone, and the scheduler cannot tell why."""


class EnvironmentMismatch(TaskError):
    """Python or a package on the node is not what the client has."""


class DependencyFailed(TaskError):
    """A task that this one depends on did not return a value."""


class ResultNotPicklable(TaskError):
    """The function returned something that cannot be stored."""


class CodeChanged(TaskError):
    """The worker imports other code than the task was submitted with."""


class TaskLost(TaskError):
    """The task's file was removed from the spool before it had an outcome."""


class ResultLost(TaskLost):
    """The task's stored value was removed, or is damaged."""


class TaskCancelled(TaskError, CancelledError):
    """The task was cancelled."""


class RemoteTraceback(Exception):
    """The traceback of the worker, as the cause of the exception that it raised there."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
