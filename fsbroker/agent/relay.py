"""Serial workers on the job's other nodes: one process there starts them for the agent.

    agent --srun--> relay --> guardian, worker
      ^----- messages -----'             |
      '---------- a connection of its own, opened by the relay

A step of SLURM for each worker would be slow to start, and a large job would have
thousands. The relay opens the worker's connection to the agent and hands it over, so that
nothing of what the two say to each other passes through it. What it keeps is what an agent
has of its own workers: the control socket of their guardian, and the files with what they
print. When its connection to the agent ends, all of that ends.

This module has both sides: `Relay` and `RemoteProcess` are the agent's, `main` is the
program on the other node.
"""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import count

from fsbroker.agent import guardian, messages, scratch
from fsbroker.agent.door import TOKEN, WORK, Address, Door, connect, lively
from fsbroker.agent.launchers import NESTED, ON_A_NODE, Launch, fill
from fsbroker.agent.memory import Excess
from fsbroker.agent.messages import Drop, Gone, Kill, Start
from fsbroker.agent.processes import GPU_VARIABLES, Process, Settings, environment
from fsbroker.agent.workers import PACKAGE_ROOT, Connection, Report, SerialWorker, serial_process
from fsbroker.errors import MissingProgram, OutOfMemory

START_LIMIT = 60.0
"""Seconds for a relay to say that it is there."""

_numbers = count(1)


# -- the agent's side ----------------------------------------------------------------------


class RemoteProcess:
    """A worker's process on another node, as `Process` is one on this."""

    def __init__(self, relay: Relay, number: int, node: str) -> None:
        self._relay = relay
        self._number = number
        self._node = node
        self._gone: Gone | None = None
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._bell

    def end(self, gone: Gone) -> None:
        """It is gone, and all that it started."""
        self._gone = gone
        os.eventfd_write(self._bell, 1)

    def ended(self) -> str | None:
        return self._gone.reason if self._gone else None

    def out_of_memory(self) -> OutOfMemory | None:
        excess = self._gone.excess if self._gone else None
        return OutOfMemory(f"The task {Excess(*excess)}", self._node) if excess else None

    def captured(self) -> tuple[bytes, bytes]:
        return (self._gone.stdout, self._gone.stderr) if self._gone else (b"", b"")

    def kill(self, after: float = 0.0) -> None:
        self._relay.send(Kill(self._number, after))

    def close(self) -> None:
        self._relay.drop(self._number)
        os.close(self._bell)


class Relay:
    """The agent's connection to the relay of one node.

    Attributes:
        alive: it can start workers.

    Args:
        settings: of any worker there.
    """

    def __init__(self, settings: Settings) -> None:
        self.node = settings.nodes[0]
        self.alive = True
        self._poll = select.epoll()
        self._door: Door | None = Door("", self.node)
        self._poll.register(self._door, select.EPOLLIN)
        self._connection: Connection | None = None
        self._queue: list[bytes] = []
        self._processes: dict[int, RemoteProcess] = {}
        self._process = self._launch(settings, self._door)
        self._poll.register(self._process, select.EPOLLIN)

    def _launch(self, settings: Settings, door: Door) -> Process:
        launcher = _launcher(settings)
        program = shutil.which(launcher[0])
        if program is None:
            raise MissingProgram(
                f"Workers on {self.node} need a launcher, which is not installed",
                launcher[0],
                "Start one agent on each node of the job instead.",
            )
        relay = [settings.python, "-m", "fsbroker.agent.relay", json.dumps(door.address)]
        guardian = [sys.executable, "-m", "fsbroker.agent.guardian", "{control}", "0"]
        variables = environment(settings, os.environ)
        for name in ("SLURM_GRES", *(GPU_VARIABLES if settings.brokers else ())):
            variables.pop(name, None)  # Flux tells ids as they are on each node
        output = os.path.join(settings.scratch, f"relay-{next(_numbers)}")
        process = Process(
            [*guardian, program, *launcher[1:], *relay],
            {**variables, TOKEN: door.token},
            PACKAGE_ROOT,
            output,
        )
        process.kill(after=START_LIMIT)
        return process

    def fileno(self) -> int:
        """Readable when `attend` has something to do."""
        return self._poll.fileno()

    def start(self, settings: Settings, address: Address, token: str) -> RemoteProcess:
        """Start a worker that connects to a door with this address and token."""
        number = next(_numbers)
        process = self._processes[number] = RemoteProcess(self, number, self.node)
        self.send(Start(number, vars(settings), address, token))
        return process

    def drop(self, number: int) -> None:
        """Nobody asks for this process any more: it is killed if it lives."""
        if self._processes.pop(number, None):
            self.send(Drop(number))

    def send(self, message: messages.Message) -> None:
        if self._connection is None:
            self._queue.append(messages.frame(message))
        else:
            self._connection.send([messages.frame(message)])

    def attend(self) -> None:
        """Take what the relay says; the end of all its workers when it has ended."""
        ended = self._process.ended()
        self._let_in()
        if self._connection is not None:
            self._connection.flush()
            for message in self._connection.receive(math.inf):
                if isinstance(message, Gone) and message.number in self._processes:
                    self._processes[message.number].end(message)
        if ended and self.alive:
            self.alive = False
            said = b"\n".join(self._process.captured())
            for process in self._processes.values():
                process.end(Gone(0, f"the workers' relay on {self.node}: {ended}", b"", said))

    def _let_in(self) -> None:
        for peer, _ in self._door.accept() if self._door else ():
            lively(peer)
            self._connection = Connection(peer, self._poll)
            self._connection.send(self._queue)
            self._process.kill(after=math.inf)
        if self._connection is not None and self._door is not None:
            self._door.close()
            self._door = None

    def close(self) -> None:
        """End it, and all workers there."""
        self._process.close()
        if self._connection is not None:
            self._connection.close()
        if self._door is not None:
            self._door.close()
        self._poll.close()


class RemoteWorker(SerialWorker):
    """A serial worker on another node."""

    def __init__(self, settings: Settings, relay: Relay) -> None:
        self._relay = relay
        super().__init__(settings)

    def _start(self) -> RemoteProcess:
        self._door: Door | None = Door("", self._relay.node)
        self._poll.register(self._door, select.EPOLLIN)
        return self._relay.start(self.settings, self._door.address, self._door.token)

    def receive(self) -> list[Report]:
        """What the worker has said; its last word is `Lost`, once nothing of it is left."""
        for peer, _ in self._door.accept() if self._door else ():
            lively(peer)
            self._connect(peer)
            self._shut()
        return super().receive()

    def _shut(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None

    def close(self) -> None:
        """Let go of it: if it still lives, it is killed."""
        self._shut()
        super().close()


class NestedWorker(RemoteWorker):
    """A serial worker in a Flux instance of its own, with a relay there for it alone."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Relay(settings))
        self._poll.register(self._relay, select.EPOLLIN)

    def receive(self) -> list[Report]:
        """As `RemoteWorker`; what the relay tells is heard first."""
        self._relay.attend()
        return super().receive()

    def close(self) -> None:
        """Let go of it, and end the instance."""
        super().close()
        self._relay.close()


def _launcher(settings: Settings) -> list[str]:
    """What starts a relay."""
    first, broker = settings.nodes[:1], settings.brokers[:1]
    where = Launch(1, settings.threads, first, brokers=broker)
    if settings.nested:
        return fill(NESTED, replace(where, gpus=len(settings.gpus)))
    # With all GPUs that the job has there: which of them a worker sees, it is told.
    return fill(ON_A_NODE["flux" if settings.brokers else "srun"], replace(where, gpus=1))


# -- the other node's side -----------------------------------------------------------------


class _Host:
    """Starts workers for an agent on another node, and tells when they have ended."""

    def __init__(self, agent: socket.socket, directory: str) -> None:
        self._agent = agent
        self._directory = directory
        self._devices = _devices(os.environ)
        self._poll = select.epoll()
        self._poll.register(agent, select.EPOLLIN)
        self._workers: dict[int, Process] = {}
        self._numbers: dict[int, int] = {}

    def serve(self) -> None:
        """Until the agent hangs up; then all workers are killed."""
        frames = messages.Frames()
        try:
            while True:
                for descriptor, _ in self._poll.poll():
                    if descriptor != self._agent.fileno():
                        self._end(self._numbers.get(descriptor, 0))
                        continue
                    data = self._agent.recv(1 << 16)
                    if not data:
                        return
                    for message in frames.feed(data):
                        self._obey(message)
        finally:
            for process in self._workers.values():
                process.close()

    def _obey(self, message: messages.Message) -> None:
        if isinstance(message, Start):
            self._start(message)
        elif isinstance(message, Kill) and message.number in self._workers:
            self._workers[message.number].kill(message.after)
        elif isinstance(message, Drop) and message.number in self._workers:
            self._forget(message.number)

    def _start(self, message: Start) -> None:
        wanted = Settings(**message.settings)
        gpus = tuple(self._devices.get(number, number) for number in wanted.gpus)
        settings = replace(wanted, gpus=gpus, scratch=self._directory)
        if wanted.nested:  # Flux has chosen them, and its only broker here is the first
            gpus = tuple(self._devices.values()) if wanted.gpus else ()
            settings = replace(settings, gpus=gpus, brokers=(0,))
        try:
            peer = connect(message.address, message.token, WORK)
        except OSError as error:  # as a rule, the agent does not want it any more
            gone = Gone(message.number, f"no way to the agent: {error}", b"", b"")
            self._agent.sendall(messages.frame(gone))
            return
        process = serial_process(settings, peer)
        self._workers[message.number] = process
        self._numbers[process.fileno()] = message.number
        self._poll.register(process, select.EPOLLIN)

    def _end(self, number: int) -> None:
        if number not in self._workers:
            return  # dropped in this turn
        process = self._workers[number]
        descriptor = process.fileno()
        reason = process.ended()  # closes the descriptor if it has
        if reason is None:
            return
        del self._numbers[descriptor]
        gone = Gone(number, reason, *process.captured(), process.excess)
        self._agent.sendall(messages.frame(gone))
        self._workers.pop(number).close()

    def _forget(self, number: int) -> None:
        process = self._workers.pop(number)
        del self._numbers[process.fileno()]
        process.close()


def _devices(variables: Mapping[str, str]) -> dict[str, str]:
    """Ids of this node's GPUs, by the numbers that the agent counts them with."""
    text = next((variables[name] for name in GPU_VARIABLES if variables.get(name)), "")
    return {str(number): name for number, name in enumerate(filter(None, text.split(",")))}


def main() -> None:
    """``python -m fsbroker.agent.relay ADDRESS``."""
    guardian.die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # what they mean, the agent decides
        signal.signal(number, signal.SIG_IGN)
    address = json.loads(sys.argv[1])
    agent = connect(address, os.environ.pop(TOKEN), WORK)
    scratch.sweep()
    directory = scratch.make()
    try:
        _Host(agent, directory).serve()
    finally:
        scratch.remove(directory)


if __name__ == "__main__":
    main()
