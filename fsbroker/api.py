"""What stands in ``executorlib.api``, for scripts and libraries that import it.

Its sockets are not here: agents and clients meet in the spool, and nothing listens.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from queue import Empty, Queue
from types import FrameType
from typing import Any

import cloudpickle

from fsbroker.errors import WorkerLost as ExecutorlibSocketError
from fsbroker.executorlib import TestClusterExecutor

_SOCKETS = (
    *("get_command_path", "interface_bootup", "interface_connect", "interface_receive"),
    *("interface_send", "interface_shutdown", "MpiExecSpawner", "SocketInterface"),
    "SubprocessSpawner",
)


def cloudpickle_register(ind: int = 2) -> None:
    """Have functions of a module travel by value: of the one that so many calls up called.

    Args:
        ind: 1 for the module that calls this function.
    """
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - what inspect.stack uses, without files
    for _ in range(ind):
        if frame is not None and frame.f_back is not None:
            frame = frame.f_back
    module = inspect.getmodule(frame) if frame is not None else None
    if module is not None:
        cloudpickle.register_pickle_by_value(module)


def cancel_items_in_queue(que: Queue[Any]) -> None:
    """Cancel the futures of the dictionaries in a queue, which is empty then."""
    with suppress(Empty):
        while True:
            item = que.get_nowait()
            if isinstance(item, dict) and "future" in item:
                item["future"].cancel()
            que.task_done()


def __getattr__(name: str) -> Any:
    if name in _SOCKETS:
        message = (
            f"executorlib.api.{name} has no counterpart: fsbroker has no sockets between client "
            "and workers. A worker that keeps its state is an executor with an init_function."
        )
        raise ImportError(message)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


__all__ = [
    "ExecutorlibSocketError",
    "TestClusterExecutor",
    "cancel_items_in_queue",
    "cloudpickle_register",
]
