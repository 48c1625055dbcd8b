"""Running rows: the inner loop of a worker.

    Slice, Call --> Runner --> the user's function --> Reporter --> Returned, Ended

Rows of microseconds are reported in bunches, so that neither side handles a message for
each; a row that has been done for a moment never waits for a long one behind it.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import socket
import sys
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

from fsbroker import pickling, plain
from fsbroker.agent import capture, messages
from fsbroker.agent.failures import Failure, describe
from fsbroker.agent.functions import Functions
from fsbroker.agent.messages import Ended, Returned
from fsbroker.errors import CannotPickle, DependencyFailed, FileDamaged, ResultNotPicklable
from fsbroker.task import Encoding, Payload, Status, Value

FLUSH_AFTER = 0.002
"""Seconds after the last report from which on the end of a row calls for the next."""

WATCH_EVERY = 0.02
"""Seconds that a row which has ended may wait for the end of a longer one behind it."""

clock = time.perf_counter


class Plain(NamedTuple):
    """A plain value, as text: taken at once, for the function may change the object later."""

    text: bytes


class Special(NamedTuple):
    """A row that failed, wrote something, or returned what is not plain text."""

    status: Status
    value: Value
    error: dict[str, str] | None
    started: float
    ended: float
    stdout: bytes = b""
    stderr: bytes = b""


Row = tuple[Any, float, float]
"""What a row returned (an atom, or a `Plain`), when it started and when it ended."""


# -- reporting ---------------------------------------------------------------------------


class Usage:
    """CPU time and memory of this process and of the programs that it waited for."""

    def __init__(self) -> None:
        self._status = open("/proc/self/status", "rb", buffering=0)  # noqa: SIM115
        self._children = 0
        self.begin()

    def begin(self) -> None:
        """From here on counts."""
        with suppress(OSError), open("/proc/self/clear_refs", "wb", buffering=0) as file:
            file.write(b"5")  # the peak starts again at what is in use now
        self._children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        self._mark, self._cpu = clock(), _cpu()

    def rate(self) -> float:
        """CPU seconds per second since the last call."""
        now, cpu = clock(), _cpu()
        rate = (cpu - self._cpu) / max(now - self._mark, 1e-9)
        self._mark, self._cpu = now, cpu
        return rate

    def peak(self) -> int:
        """Bytes; getrusage would count what the agent used before it started us."""
        self._status.seek(0)
        text = self._status.read()
        start = text.find(b"VmHWM:") + 6
        own = int(text[start : text.index(b"kB", start)])
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        # The kernel keeps only the largest child of all times: smaller ones do not show.
        return max(own, children if children > self._children else 0) * 1024


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Reporter:
    """Collects what rows gave, and sends it to the agent.

    The loop only appends to ``rows``, which is atomic, so it needs no lock.

    Attributes:
        rows: what is to be sent, in the order of the rows.
        due: when the next report is, on `clock`.
    """

    def __init__(self, connection: socket.socket, rank: int = 0) -> None:
        self.rows: list[Row | Special] = []
        self.due = 0.0
        self._next = 0
        self._connection = connection
        self._rank = rank
        self._usage = Usage()
        self._sending = threading.Lock()
        self._in_slice = threading.Event()
        self._process = os.getpid()
        self._watcher: threading.Thread | None = None

    def begin(self, first: int, count: int) -> None:
        """The next row is number ``first``, of ``count``."""
        self._next = first
        self._usage.begin()
        self.due = clock() + FLUSH_AFTER
        if count > 1:
            self._watch()

    def prepared(self) -> None:
        """The preset has run."""
        with self._sending:
            self._connection.sendall(messages.frame(messages.Prepared()))

    def end(self) -> None:
        """The slice is done."""
        self._in_slice.clear()
        self.flush()

    def flush(self) -> None:
        """Send what there is."""
        if os.getpid() != self._process:  # a fork that the task made and let return
            os._exit(1)
        with self._sending:
            rows = self.rows[:]
            del self.rows[: len(rows)]
            if rows:
                self._connection.sendall(self._report(rows))
            self.due = clock() + FLUSH_AFTER

    def _watch(self) -> None:
        """Report rows that have ended while a longer one runs.

        By a thread, for a timer signal would interrupt the task's system calls. It sleeps
        unless a slice of several rows is running: tasks that fork run alone as a rule.
        """
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._flush_late, daemon=True)
            self._watcher.start()
        self._in_slice.set()

    def _flush_late(self) -> None:
        while self._in_slice.wait():
            time.sleep(WATCH_EVERY)
            if self.rows and clock() > self.due:
                self.flush()

    def _report(self, rows: list[Row | Special]) -> bytes:
        measured = _Measured(self._usage.rate(), self._usage.peak(), time.time() - clock())
        report = self._bunch(rows, measured)
        if report is None:
            parts = []
            for special, group in itertools.groupby(map(_settled, rows), _is_special):
                if special:
                    parts += [self._single(row, measured) for row in group]
                else:
                    parts.append(self._bunch(list(group), measured) or b"")
            report = b"".join(parts)
        return report

    def _bunch(self, rows: list[Any], measured: _Measured) -> bytes | None:
        """The report of rows that returned plain values; None if there are others."""
        if set(map(len, rows)) != {3}:
            return None
        values, started, ended = zip(*rows, strict=True)
        texts = _texts(values)
        if texts is None:
            return None
        wall = array("d", map(float.__sub__, ended, started))
        first, self._next = self._next, self._next + len(rows)
        return messages.frame(
            Returned(
                first,
                len(rows),
                texts[0],
                texts[1].tobytes(),
                array("d", map(measured.epoch.__add__, started)).tobytes(),
                wall.tobytes(),
                array("d", map(measured.rate.__mul__, wall)).tobytes(),
                measured.peak,
            )
        )

    def _single(self, row: Special, measured: _Measured) -> bytes:
        number, self._next = self._next, self._next + 1
        wall = row.ended - row.started
        return messages.frame(
            Ended(
                row=number,
                rank=self._rank,
                status=row.status,
                value=row.value,
                error=row.error,
                started=measured.epoch + row.started,
                wall=wall,
                cpu=measured.rate * wall,
                peak_memory=measured.peak,
                stdout=row.stdout,
                stderr=row.stderr,
            )
        )


class _Measured(NamedTuple):
    """What holds for all rows of one report: CPU time is shared out by wall time."""

    rate: float
    peak: int
    epoch: float


def _texts(values: tuple[Any, ...]) -> tuple[bytes, array[int]] | None:
    if Plain not in set(map(type, values)):
        return plain.encode_many(list(values))
    texts = [_text(value) for value in values]
    if None in texts:
        return None
    found = [text for text in texts if text is not None]
    return b",\n".join(found), array("I", map(len, found))


def _text(value: Any) -> bytes | None:
    if type(value) is Plain:
        return value.text
    payload = plain.encode(value)
    return None if payload is None else payload.data


def _settled(row: Any) -> Any:
    """The row, as a special one if its atom has no text (a string with lone surrogates)."""
    if _is_special(row) or _text(row[0]) is not None:
        return row
    value, started, ended = row
    payload = pickling.encode(value)
    return Special(Status.DONE, Value(payload.encoding, payload.data), None, started, ended)


def _is_special(row: Row | Special) -> bool:
    return type(row) is Special


# -- running -----------------------------------------------------------------------------


class _Stream(io.TextIOWrapper):
    """Writes each line at once, so that it can be read if the worker is killed."""

    wrote = False

    def write(self, text: str, /) -> int:
        self.wrote = True
        return super().write(text)


class Streams:
    """The worker's stdout and stderr, and whether a row wrote to them.

    Attributes:
        out, err: what `sys.stdout` and `sys.stderr` are.
        syscall: seconds that a system call takes, at least. A row that was faster has made
            none: the streams' ``wrote`` tells whether it wrote anything.
    """

    def __init__(self) -> None:
        # Our own descriptors: a task may close 1 and 2, or open something else there.
        self._files = (os.dup(1), os.dup(2))
        self.out, self.err = _stream(1), _stream(2)
        sys.stdout, sys.stderr = self.out, self.err
        self.syscall = min(self._time_a_call() for _ in range(100))

    def _time_a_call(self) -> float:
        started = clock()
        os.lseek(self._files[0], 0, os.SEEK_END)
        return clock() - started

    def written(self) -> bool:
        """Whether anything was written since `take`, by this process or another."""
        try:
            self.out.flush()
            self.err.flush()
        except (ValueError, OSError):  # a task closed them
            pass
        return any(os.lseek(file, 0, os.SEEK_END) for file in self._files)

    def take(self) -> tuple[bytes, bytes]:
        """What was written."""
        self.out.wrote = self.err.wrote = False
        if not self.written():
            return b"", b""
        return capture.take(self._files[0]), capture.take(self._files[1])


def _stream(descriptor: int) -> _Stream:
    binary = open(descriptor, "wb", closefd=False)  # noqa: SIM115
    return _Stream(binary, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class Runner:
    """Does what the agent's messages say."""

    def __init__(self, reporter: Reporter, arrays: Arrays, number: int = 0) -> None:
        self._reporter = reporter
        self._arrays = arrays
        self._functions = Functions(number)
        self._streams = Streams()
        self._kept: dict[int, Payload | Failure] = {}

    def handle(self, message: messages.Message) -> None:
        if isinstance(message, messages.Slice):
            self._run_slice(message)
        elif isinstance(message, messages.Call):
            self._run_call(message)
        elif isinstance(message, messages.Function):
            self._functions.add(message)
        elif isinstance(message, messages.Preset):
            self._functions.preset = message.function
        elif isinstance(message, messages.Forget):
            for row in message.rows:
                self._kept.pop(row, None)
        elif isinstance(message, messages.Stop):
            sys.exit(0)

    def _enter(self, digest: bytes) -> tuple[Callable[..., Any], int]:
        if self._functions.preset is not None:
            self._functions.run_preset(self._functions.preset)
            self._reporter.prepared()
        return self._functions.enter(digest)

    # -- many rows -----------------------------------------------------------------------

    def _run_slice(self, message: messages.Slice) -> None:
        self._reporter.begin(message.first, message.count)
        started = clock()
        try:
            function, directory = self._enter(message.function)
            rows = _rows_of(message)
        except BaseException as error:
            self._failed(error, message.function, started)
            self._reporter.rows += self._reporter.rows[-1:] * (message.count - 1)
        else:
            self._run_rows(function, rows, message.function, directory)
            os.close(directory)
        self._reporter.end()

    def _run_rows(
        self, function: Callable[..., Any], rows: list[Any], digest: bytes, directory: int
    ) -> None:
        reporter, streams, atoms = self._reporter, self._streams, plain.ATOMS
        out, err, syscall = streams.out, streams.err, streams.syscall
        report = reporter.rows.append
        for arguments in rows:
            started = clock()
            try:
                value = function(*arguments)
                ended = clock()
            except BaseException as error:
                self._failed(error, digest, started)
                os.fchdir(directory)
                continue
            quick = ended - started < syscall and not (out.wrote or err.wrote)
            if type(value) in atoms and (quick or not streams.written()):
                report((value, started, ended))
            else:
                self._returned(value, digest, started, ended)
            if not quick:
                os.fchdir(directory)  # where this row went is none of the next one's business
            if ended > reporter.due:
                reporter.flush()

    def _returned(
        self, value: Any, digest: bytes, started: float, ended: float
    ) -> Payload | Failure:
        """Report a row that returned anything; how it ended in fact."""
        try:
            payload = self._encode(value, digest)
            stored = self._arrays.store(payload)
        except BaseException as error:  # a user's __reduce__ may do anything
            return self._failed(error, digest, started)
        stdout, stderr = self._streams.take()
        if stored.encoding == Encoding.PLAIN and not (stored.arrays or stdout or stderr):
            self._reporter.rows.append((Plain(stored.data), started, ended))
        else:
            row = Special(Status.DONE, stored, None, started, ended, stdout, stderr)
            self._reporter.rows.append(row)
        return payload

    def _encode(self, value: Any, digest: bytes) -> Payload:
        try:
            payload = pickling.encode(value)
        except pickling.ForeignFutures:
            what, cause = "The function returned a future", None
        except CannotPickle as error:
            what, cause = f"The function returned what cannot be stored ({error.what})", error
        else:
            if not payload.dependencies:
                return payload
            what, cause = "The function returned a future", None
        where = self._functions.name(digest) + (f", {cause.where}" if cause else "")
        raise ResultNotPicklable(what, where, "Return the numbers that it is made of.") from cause

    def _failed(self, error: BaseException, digest: bytes, started: float) -> Failure:
        ended = clock()
        failure = describe(error, self._functions.name(digest))
        try:
            value = self._arrays.store(failure.payload)
        except Exception:  # no space for an array in the exception
            value = Value(Encoding.PLAIN, b"null")
        stdout, stderr = self._streams.take()
        self._reporter.rows.append(
            Special(Status.FAILED, value, failure.error, started, ended, stdout, stderr)
        )
        return failure

    # -- one row -------------------------------------------------------------------------

    def _run_call(self, message: messages.Call) -> None:
        self._reporter.begin(message.row, 1)
        started = clock()
        try:
            function, directory = self._enter(message.function)
            os.close(directory)
            inputs = [self._input(each) for each in message.inputs]
            arguments = self._arrays.fetch(message.arguments)
            args, kwargs = pickling.decode_call(
                arguments.encoding, arguments.data, arguments.arrays, inputs
            )
            started = clock()
            value = function(*args, **kwargs)
            ended = clock()
        except BaseException as error:
            result: Payload | Failure = self._failed(error, message.function, started)
        else:
            result = self._returned(value, message.function, started, ended)
        if message.keep:
            self._kept[message.row] = _frozen(result)
        self._reporter.end()

    def _input(self, wanted: messages.Input) -> Any:
        payload = self._payload(wanted)
        value = pickling.decode(payload.encoding, payload.data, payload.arrays)
        try:
            for item in wanted.selector:
                value = value[item]
        except Exception as error:
            path = "".join(f"[{item!r}]" for item in wanted.selector)
            raise DependencyFailed(f"The value of a dependency has no item {path}") from error
        return value

    def _payload(self, wanted: messages.Input) -> Payload:
        if wanted.value is not None:
            return self._arrays.fetch(wanted.value)
        kept = self._kept.get(wanted.row if wanted.row is not None else -1)
        if isinstance(kept, Payload):
            return kept
        if kept is None:
            raise DependencyFailed("The value of a dependency is not in this worker")
        raise DependencyFailed(
            f"A task that this one depends on failed"
            f" ({kept.error['type']}: {kept.error['message']})"
        ) from _cause(kept)


def _rows_of(message: messages.Slice) -> list[Any]:
    rows = plain.decode(message.text)
    if type(rows) is not list or len(rows) != message.count:
        raise FileDamaged("The number of rows is not what was announced")
    return rows


def _frozen(result: Payload | Failure) -> Payload | Failure:
    """The value as it is now: whoever decodes a read-only array gets a copy of it."""
    if isinstance(result, Failure) or not result.arrays:
        return result
    copies = tuple(item.copy(order="K") for item in result.arrays)
    for item in copies:
        item.flags.writeable = False
    return result._replace(arrays=copies)


def _cause(failure: Failure) -> BaseException | None:
    payload = failure.payload
    found = pickling.decode(payload.encoding, payload.data, payload.arrays)
    return found if isinstance(found, BaseException) else None


class Arrays:
    """Brings the arrays of payloads into their stored form and back.

    The spool's code is loaded when the first one occurs: most workers never see any.
    """

    def __init__(self, spool: str, area: str, durable: bool, key: str = "") -> None:
        self._spool = spool
        self._area = area
        self._durable = durable
        self._key = key

    def store(self, payload: Payload) -> Value:
        arrays: tuple[messages.ArrayRef, ...] = ()
        if payload.arrays:
            from fsbroker.spool import blobs

            files, area = self._place
            arrays = tuple(
                blobs.store(files, area, item, durable=self._durable, shared=False)
                for item in payload.arrays
            )
        return Value(payload.encoding, payload.data, arrays)

    def fetch(self, value: Value) -> Payload:
        arrays: tuple[Any, ...] = ()
        if value.arrays:
            from fsbroker.spool import blobs

            files, area = self._place
            arrays = tuple(blobs.read_arrays(files, area, value.arrays))
        return Payload(Encoding(value.encoding), value.data, arrays)

    @cached_property
    def _place(self) -> tuple[Any, Any]:
        from fsbroker.spool.files import Files
        from fsbroker.spool.layout import Area
        from fsbroker.spool.signatures import keyring

        return Files(self._spool, keyring=keyring(self._key)), Area(self._area)
