"""The agent's side of its workers; here those that run tasks of one process.

    worker = SerialWorker(settings)
    worker.send(function, slice)
    selector.register(worker, EVENT_READ) ... worker.receive() -> [Returned, Ended, ..., Lost]

Nothing here waits: what cannot be sent yet stays in a buffer, and a worker's descriptor is
ready when it has said something, when it can take more, or when it has ended.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket
from collections import deque
from itertools import count
from typing import NamedTuple, Protocol

from fsbroker.agent import messages
from fsbroker.agent.messages import (
    Call,
    Ended,
    Forget,
    Function,
    Hello,
    Output,
    Prepared,
    Preset,
    Returned,
    Slice,
    Stop,
)
from fsbroker.agent.processes import Process, Settings, environment
from fsbroker.errors import FsbrokerError, OutOfMemory, WorkerLost

CHUNK = 1 << 20
TURN = 16 << 20

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""Where workers start, so that they import the same fsbroker as the agent."""

_numbers = count()


class Lost(NamedTuple):
    """The worker is gone, and with it all rows that it has not reported.

    Attributes:
        reason: "killed by signal 9 (SIGKILL)", "exit code 3", ...
        error: for the outcome of a row that this is charged to.
        ready: whether it was ready for work before; if not, no task is to blame.
        rank: of an MPI group: the rank that died first, if that is known.
        outputs: what its processes had written since the last row that was reported.
    """

    reason: str
    error: FsbrokerError
    ready: bool
    rank: int | None
    outputs: tuple[Output, ...]


Sent = Function | Preset | Slice | Call | Forget | Stop
Report = Prepared | Returned | Ended | Lost


class Connection:
    """A socket to a worker process, with a buffer for what it does not take yet."""

    def __init__(self, peer: socket.socket, poll: select.epoll) -> None:
        self._peer = peer
        self._peer.setblocking(False)
        self._poll = poll
        self._poll.register(peer, select.EPOLLIN)
        self._out: deque[memoryview] = deque()
        self._frames = messages.Frames()
        self.open = True

    def fileno(self) -> int:
        return self._peer.fileno()

    def send(self, frames: list[bytes]) -> None:
        waiting = bool(self._out)
        self._out.extend(map(memoryview, frames))
        if not waiting:
            self.flush()

    def flush(self) -> None:
        """Send what the socket takes; have the rest called for when it takes more."""
        if not self.open:
            return
        waited = len(self._out) > 0
        try:
            while self._out:
                sent = self._peer.send(self._out[0])
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                else:
                    self._out.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it is gone; what it said before can still be read
            self._out.clear()
        if waited:
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._out else 0)
            self._poll.modify(self._peer, wanted)

    def receive(self, at_most: float = TURN) -> list[messages.Message]:
        """What has arrived; closes at the end of the stream.

        Args:
            at_most: bytes, about; the others have their turn then.
        """
        found: list[messages.Message] = []
        taken = 0
        while self.open and taken < at_most:
            try:
                data = self._peer.recv(CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.close()
            taken += len(data)
            found += self._frames.feed(data)
        return found

    def close(self) -> None:
        if self.open:
            self.open = False
            self._poll.unregister(self._peer)
            self._peer.close()


class WorkerProcess(Protocol):
    """What an agent has of a worker's process: of its own, or of another node's."""

    def fileno(self) -> int:
        """Readable once the program and all that it started are gone."""

    def ended(self) -> str | None:
        """How the program ended; None while something of it is left."""

    def out_of_memory(self) -> OutOfMemory | None:
        """Why it was killed, if it was for that."""

    def captured(self) -> tuple[bytes, bytes]:
        """What it has written to stdout and stderr."""

    def kill(self, after: float = 0.0) -> None:
        """Have it killed with all that it started, ``after`` seconds from now."""

    def close(self) -> None:
        """Let go of it: if something of it lives, it is killed."""


class SerialWorker:
    """A process that runs one row after the other.

    Attributes:
        settings: of the process.
        ready: it has said hello. Work may be sent before.
        alive: it can take work; False from the `Lost` on, or once it is to end.
    """

    ranks = 1

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ready = False
        self.alive = True
        self.pid = 0
        self._lost = False
        self._poll = select.epoll()
        self._connection: Connection | None = None
        self._queue: list[bytes] = []
        self._process = self._start()
        self._poll.register(self._process, select.EPOLLIN)

    def _start(self) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        self._connect(ours)
        return serial_process(self.settings, theirs)

    def _connect(self, peer: socket.socket) -> None:
        self._connection = Connection(peer, self._poll)
        self._connection.send(self._queue)

    def fileno(self) -> int:
        """Readable when `receive` has something to do."""
        return self._poll.fileno()

    def send(self, *sent: Sent) -> None:
        frames = [messages.frame(message) for message in sent]
        if self._connection is None:
            self._queue += frames
        else:
            self._connection.send(frames)

    def receive(self) -> list[Report]:
        """What the worker has said; its last word is `Lost`, once nothing of it is left."""
        if self._lost:
            return []
        ended = self._process.ended()  # before we read: what it said before counts
        found: list[Report] = []
        for message in self._heard(math.inf if ended else TURN):
            if isinstance(message, Hello):
                self.ready, self.pid = True, message.pid
            elif isinstance(message, Prepared | Returned | Ended):
                found.append(message)
        if ended:
            found.append(self._loss(ended))
        return found

    def _heard(self, at_most: float) -> list[messages.Message]:
        if self._connection is None:
            return []
        self._connection.flush()
        return self._connection.receive(at_most)

    def _loss(self, reason: str) -> Lost:
        self.alive = False
        self._lost = True
        error = self._process.out_of_memory() or WorkerLost(
            f"The process that ran the task ended ({reason})",
            next(iter(self.settings.nodes), os.uname().nodename),
        )
        return Lost(reason, error, self.ready, None, self.captured())

    def captured(self) -> tuple[Output, ...]:
        """What the row that is running has written so far."""
        stdout, stderr = self._process.captured()
        return (Output(0, stdout, stderr),) if stdout or stderr else ()

    def stop(self) -> None:
        """Have it end when it has done all that was sent; `Lost` follows."""
        self.alive = False
        self.send(Stop())

    def kill(self, after: float = 0.0) -> None:
        """Have it killed with all that it started; `Lost` follows when that is done."""
        self.alive = False
        self._process.kill(after)

    def close(self) -> None:
        """Let go of it: if it still lives, it is killed."""
        self._process.close()
        if self._connection is not None:
            self._connection.close()
        self._poll.close()


def serial_process(settings: Settings, connection: socket.socket) -> Process:
    """Start a serial worker with its end of a connection, which is closed here."""
    with connection:
        return Process(
            _command(settings, connection.fileno()),
            environment(settings, os.environ),
            PACKAGE_ROOT,
            os.path.join(settings.scratch, f"worker-{next(_numbers)}"),
            [connection.fileno()],
        )


def _command(settings: Settings, connection: int) -> list[str]:
    plan = {
        "spool": settings.spool,
        "area": settings.area,
        "durable": settings.durable,
        "key": settings.key,
        "cpus": settings.cpus,
        "number": settings.number,
    }
    module = [settings.python, "-m", "fsbroker.agent.worker"]
    numbers = [str(connection), str(settings.memory)]
    return [*module, "serial", "{control}", *numbers, json.dumps(plan)]
