"""The records that travel between client, spool and agent. All are immutable.

    Resources   what a task needs to run, as the user asked for it
    Payload     one Python object in its stored form (arguments or a value)
    Dependency  a place in the arguments that another task's value will fill
    Status      how a row ended
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

KEY_BYTES = 20


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
