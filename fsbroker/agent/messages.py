"""What an agent and its workers say to each other, over a Unix socket.

    agent -> worker    Functions, Slice, Call, then nothing until they are done
    worker -> agent    Hello once, then Returned and Ended, in the order of the rows

Each message travels as a frame: its length (4 bytes, little endian), then the
pickle (protocol 5) of ``(name of the class, *fields)``. Numbers of many rows travel
packed, as ``array.array(...).tobytes()``.
"""

from __future__ import annotations

from typing import NamedTuple

from fsbroker.task import ArrayRef, Blob, Value

__all__ = ["ArrayRef", "Blob", "Call", "Ended", "Function", "Hello", "Input", "Returned", "Slice", "Value"]


class Input(NamedTuple):
    """The value of a dependency, and which part of it is wanted.

    ``row`` is the row of the same worker that made the value, where it is not in a
    file yet (a chain claimed in one piece); then ``value`` is None.
    """

    value: Value | None
    row: int | None
    selector: tuple[int | str, ...]


class Function(NamedTuple):
    """A function that the worker will need: sent once to each worker.

    Attributes:
        digest: identity of the function (``fsbroker.keys``), 20 bytes.
        name: qualified name.
        pickle: how to load it.
        path: entries of the client's ``sys.path`` that are not part of an installation.
        cwd: the directory to run in.
    """

    digest: bytes
    name: str
    pickle: bytes
    path: tuple[str, ...]
    cwd: str


class Slice(NamedTuple):
    """Rows of one function whose arguments are plain, positional and without arrays.

    ``text`` is a JSON array with one array of arguments for each row; the rows are
    numbered from ``first``.
    """

    function: bytes
    first: int
    count: int
    text: bytes


class Call(NamedTuple):
    """One row: arguments with arrays, dependencies or pickles; the MPI task's only form."""

    function: bytes
    row: int
    arguments: Value
    inputs: tuple[Input, ...]
    keep: bool
    """A later row of this worker needs the value: keep it until then."""


class Hello(NamedTuple):
    """A worker, or one rank of an MPI worker, is ready."""

    token: str
    rank: int
    size: int
    pid: int


class Returned(NamedTuple):
    """Consecutive rows that returned plain values and printed nothing.

    ``text``: their values as JSON texts, joined by ``,\\n``; ``lengths`` ("I"): bytes of
    each text; ``started`` ("d"): seconds since the epoch; ``wall``, ``cpu`` ("d"): seconds.
    """

    first: int
    count: int
    text: bytes
    lengths: bytes
    started: bytes
    wall: bytes
    cpu: bytes
    peak_memory: int


class Ended(NamedTuple):
    """One row that returned, or failed.

    For a failed row, ``value`` is the pickled exception, or a plain None when it cannot
    be pickled, and ``error`` tells type, message and traceback.
    ``peak_memory`` is in bytes; the times as in `Returned`.
    """

    row: int
    rank: int
    status: int
    value: Value
    error: dict[str, str] | None
    started: float
    wall: float
    cpu: float
    peak_memory: int
    stdout: bytes
    stderr: bytes
