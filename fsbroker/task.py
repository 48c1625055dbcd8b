"""The records that travel between client, spool and agent. All are immutable.

Resources   what a task needs to run, as the user asked for it
Payload     one Python object in its stored form (arguments or a value)
Dependency  a place in the arguments that another task's value will fill
Status      how a row ended
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

KEY_BYTES = 20
WORKER_ID = "executorlib_worker_id"
"""A parameter of this name is filled with the number of the worker; executorlib's name for it."""


class Encoding(enum.IntEnum):
    """How the bytes of a payload are to be read."""

    PLAIN = 1
    """JSON text, with tags for what JSON lacks: read without running code."""
    PICKLE = 2
    """A pickle; unpickling it runs code."""


class Status(enum.IntEnum):
    """How a row ended: the states that a published outcome can have."""

    DONE = 1
    FAILED = 2
    CANCELLED = 3


class Dependency(NamedTuple):
    """The value of another task, or a part of it.

    Attributes:
        key: content address of the task, 20 bytes.
        selector: items to take from its value, outermost first: ``(0, "energy")``
            stands for ``value[0]["energy"]``.
    """

    key: bytes
    selector: tuple[int | str, ...] = ()


class Payload(NamedTuple):
    """One Python object in its stored form.

    Attributes:
        encoding: how ``data`` is to be read.
        data: JSON text (ASCII) or pickle bytes, without arrays and dependencies, which
            it refers to by their position in the two tuples below.
        arrays: the numeric arrays of the object, of any shape.
        dependencies: the futures in the object.
    """

    encoding: Encoding
    data: bytes
    arrays: tuple[np.ndarray, ...] = ()
    dependencies: tuple[Dependency, ...] = ()


class Blob(NamedTuple):
    """A large array that stands in a file of its own under ``blobs/``."""

    name: str


class ArrayRef(NamedTuple):
    """A numeric array in its stored form: its bytes, or the blob that holds them.

    ``order`` is "C" or "F"; the bytes are in that memory order.
    """

    dtype: str
    shape: tuple[int, ...]
    order: str
    data: bytes | Blob


class Value(NamedTuple):
    """A payload whose arrays are in their stored form, and whose dependencies are known."""

    encoding: int
    data: bytes
    arrays: tuple[ArrayRef, ...] = ()


class Outcome(NamedTuple):
    """How one row of a task file ended.

    Attributes:
        stem, row: the task file, and the row in it.
        key, descriptor: content address, and digest of what it was made from; 20 bytes.
        round: how often the key was tried anew before.
        generation: how often the row was taken over before.
        attempt: attempts charged to the row before this one.
        ranks: MPI ranks that ran it.
        value: what it returned; for a failed row the pickled exception, or a plain None.
        error: for a failed row: "type", "message", "traceback", and where known "rank",
            "log" (directory of stdout and stderr), "tail" (last lines of stderr).
        started: seconds since the epoch. wall, cpu: seconds. peak_memory: bytes.
        origin: where it comes from, if not from whoever publishes it.
    """

    stem: str
    row: int
    key: bytes
    descriptor: bytes
    round: int
    generation: int
    attempt: int
    ranks: int
    status: int
    value: Value
    error: dict[str, str] | None = None
    started: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0
    peak_memory: int = 0
    origin: Mapping[str, Any] | None = None
