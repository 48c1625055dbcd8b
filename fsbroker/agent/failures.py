"""What an exception of a task becomes: something that every client can read and raise."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import NamedTuple

from fsbroker import pickling
from fsbroker.errors import CodeChanged, FsbrokerError, TaskError
from fsbroker.spool.jobs import Cause
from fsbroker.task import Encoding, Payload

TIME_IS_OVER = "the time of the agent's queue job was over"
CUT_OFFS = 3
"""Queue jobs whose end cut a task off, after which it is not tried again."""

_KINDS = {
    str(Cause.MEMORY): "OutOfMemory",
    str(Cause.NODE): "NodeFailed",
    str(Cause.TIME): "WalltimeExceeded",
    TIME_IS_OVER: "WalltimeExceeded",
}
"""Errors by what the history of a row says last: of its agent's queue job, or by the agent."""

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep

NOTHING = Payload(Encoding.PLAIN, b"null")


class Failure(NamedTuple):
    """An exception in its stored form, and what to show of it."""

    payload: Payload
    error: dict[str, str]


def given_up(attempts: int, retries: int, history: Sequence[str]) -> dict[str, str] | None:
    """The error of a row that is not tried again, from what became of it; None: try it.

    Being cut off by the end of a queue job costs no attempt; but what was cut off again and
    again does not fit into any.
    """
    cut_off = sum(TIME_IS_OVER in reason or str(Cause.TIME) in reason for reason in history)
    if attempts <= retries and cut_off < CUT_OFFS:
        return None
    last = history[-1] if history else ""
    kinds = [kind for word, kind in _KINDS.items() if word in last]
    what = f"tried {attempts} times" if attempts > retries else f"cut off {cut_off} times"
    return {
        "type": kinds[0] if kinds else "WorkerLost",
        "message": f"{what}: {'; '.join(history)}",
        "traceback": "",
    }


def brief(error: FsbrokerError) -> dict[str, str]:
    """What to show of an error that no task has raised: it has no traceback."""
    return {"type": type(error).__name__, "message": str(error), "traceback": ""}


def describe(error: BaseException, where: str) -> Failure:
    """What to report of an exception.

    Args:
        error: what was raised.
        where: the function, for those errors that cannot tell it.
    """
    shown = {
        "type": _name(type(error)),
        "message": _message(error),
        "traceback": _traceback(error),
    }
    if isinstance(error, CodeChanged) and getattr(error, "stale", False):
        shown["stale"] = "1"
    return Failure(_stored(_raisable(error, where)), shown)


def _name(kind: type) -> str:
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"<the message cannot be shown: {type(broken).__name__}>"


def _traceback(error: BaseException) -> str:
    """The traceback with all causes, from the task's first frame on."""
    import traceback  # on first use: it costs a tenth of a worker's start

    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frames = frames.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, frames))
    except Exception as broken:  # out of memory, or a user's __str__
        return f"{_name(type(error))} <no traceback: {type(broken).__name__}>"


def _raisable(error: BaseException, where: str) -> BaseException:
    """What a future can raise without ending the client's program."""
    if isinstance(error, SystemExit):
        return TaskError(f"The task called sys.exit({error.code!r})", where)
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return TaskError(f"The task raised {type(error).__name__}", where)
    return error


def _stored(error: BaseException) -> Payload:
    """The pickled exception; None if it does not come back from a pickle as it was."""
    try:
        payload = pickling.encode(error)
        again = pickling.decode(payload.encoding, payload.data, payload.arrays)
    except BaseException:  # a user's __reduce__ or __init__ may do anything
        return NOTHING
    same = type(again) is type(error) and not payload.dependencies
    return payload if same else NOTHING


def dump(error: TaskError) -> bytes:
    """The pickle of an error of our own."""
    return pickle.dumps(error, protocol=pickling.PROTOCOL)
