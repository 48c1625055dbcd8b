"""What an agent and its workers say to each other, over a socket.

    agent -> worker    Function, Preset, Slice, Call, Forget; Stop at last
    worker -> agent    Hello once (or NotReady), Prepared after a preset, then Returned and Ended,
                       in the order of the rows
    agent <-> relay    Start, Kill, Drop; Gone

Each message travels as a frame: its length (8 bytes, little endian), then the
pickle (protocol 5) of ``(name of the class, *fields)``. Numbers of many rows travel
packed, as ``array.array(...).tobytes()``.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, NamedTuple, get_args

from fsbroker.task import ArrayRef, Blob, Value

__all__ = [
    "Aborting",
    "ArrayRef",
    "Blob",
    "Call",
    "Drop",
    "Ended",
    "Forget",
    "Frames",
    "Function",
    "Gone",
    "Hello",
    "Input",
    "Kill",
    "Message",
    "NotReady",
    "Output",
    "Prepared",
    "Preset",
    "Returned",
    "Slice",
    "Start",
    "Stop",
    "Value",
    "frame",
]

_LENGTH = struct.Struct("<Q")


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


class Preset(NamedTuple):
    """This function comes before the first row; what its dict returns fills parameters."""

    function: bytes


class Slice(NamedTuple):
    """Rows of one function whose arguments are plain, positional and without arrays.

    ``text`` is a JSON array with one array of arguments for each row; the rows are
    numbered from ``first``.
    """

    function: bytes
    first: int
    count: int  # type: ignore[assignment] # the method of tuples is not missed
    text: bytes


class Call(NamedTuple):
    """One row: arguments with arrays, dependencies or pickles; the MPI task's only form."""

    function: bytes
    row: int
    arguments: Value
    inputs: tuple[Input, ...]
    keep: bool
    """Later rows of this worker need the value: keep it until a `Forget` names the row."""


class Forget(NamedTuple):
    """The values kept for these rows are no longer needed."""

    rows: tuple[int, ...]


class Stop(NamedTuple):
    """End in good order, as a Python program does: no more work will come."""


class Hello(NamedTuple):
    """A worker, or one rank of an MPI worker, is ready.

    ``library``: the MPI that mpi4py loaded; ``launched_by``: the MPI whose launcher
    started the rank, as its environment tells.
    """

    rank: int
    size: int
    pid: int
    library: str = ""
    launched_by: str = ""


class Aborting(NamedTuple):
    """A rank is about to call ``MPI_Abort``: after that, it may be killed like the others."""

    code: int


class NotReady(NamedTuple):
    """A rank cannot take part: ``error`` is the pickled `FsbrokerError` that says why."""

    error: bytes


class Prepared(NamedTuple):
    """The preset has run: from here on, time is the rows'."""


class Returned(NamedTuple):
    r"""Consecutive rows that returned plain values and printed nothing.

    ``text``: their values as JSON texts, joined by ``,\n``; ``lengths`` ("I"): bytes of
    each text; ``started`` ("d"): seconds since the epoch; ``wall``, ``cpu`` ("d"): seconds.
    """

    first: int
    count: int  # type: ignore[assignment] # the method of tuples is not missed
    text: bytes
    lengths: bytes
    started: bytes
    wall: bytes
    cpu: bytes
    peak_memory: int


class Output(NamedTuple):
    """What one rank of an MPI task wrote."""

    rank: int
    stdout: bytes
    stderr: bytes


class Ended(NamedTuple):
    """One row that returned, or failed.

    For a failed row, ``value`` is the pickled exception, or a plain None when it cannot
    be pickled, and ``error`` tells "type", "message" and "traceback"; "stale" where a
    fresh worker may succeed, "rank" where the row ran on several.
    ``peak_memory`` is in bytes; the times as in `Returned`. What the ranks of an MPI task
    wrote stands in ``outputs``, then ``stdout`` and ``stderr`` are empty.
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
    outputs: tuple[Output, ...] = ()


class Start(NamedTuple):
    """To a relay: start a serial worker, and connect it to a door (see `relay`)."""

    number: int
    settings: dict[str, Any]
    address: str | tuple[str, int]
    token: str


class Kill(NamedTuple):
    """To a relay: have a worker killed, so many seconds from now."""

    number: int
    after: float


class Drop(NamedTuple):
    """To a relay: nobody asks for this worker any more."""

    number: int


class Gone(NamedTuple):
    """From a relay: a worker has ended, and what it had not reported of its output.

    ``excess``: limit and use in bytes, if it was killed because it used too much memory.
    """

    number: int
    reason: str
    stdout: bytes
    stderr: bytes
    excess: tuple[float, float] | None = None


Message = (
    Function
    | Preset
    | Slice
    | Call
    | Forget
    | Stop
    | Hello
    | Aborting
    | NotReady
    | Prepared
    | Returned
    | Ended
    | Start
    | Kill
    | Drop
    | Gone
)

_TYPES = {kind.__name__: kind for kind in get_args(Message)}


def frame(message: Message) -> bytes:
    body = pickle.dumps((type(message).__name__, *message), protocol=5)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts the messages together again, from bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete."""
        self._bytes += data
        found: list[Message] = []
        start = 0
        with memoryview(self._bytes) as view:
            while (end := self._end(start)) <= len(view):
                name, *fields = pickle.loads(view[start + _LENGTH.size : end])
                found.append(_TYPES[name](*fields))
                start = end
        del self._bytes[:start]
        return found

    def _end(self, start: int) -> int:
        """Where the frame ends that begins there."""
        body = start + _LENGTH.size
        if len(self._bytes) < body:
            return body
        return body + int(_LENGTH.unpack_from(self._bytes, start)[0])
