"""Where processes that an agent did not start itself connect to it: ranks, and relays.

    rank --connect()--> the door --accept()--> agent

On the agent's own node that is a Unix socket in a directory of the user's. Processes of
other nodes cannot reach it: for those alone the door is a TCP port, of the agent's address
in the job's network, chosen by the kernel, open while somebody is expected. Whoever comes
says the token first, which only the processes of this launch have in their environment; not
a byte of anybody else is unpickled, for that would be to run his code.
"""

from __future__ import annotations

import hmac
import os
import secrets
import select
import socket
import struct
from contextlib import suppress
from typing import NamedTuple

from fsbroker.errors import NodeFailed

TOKEN = "FSBROKER_TOKEN"  # noqa: S105 (the name of the variable)

WORK, LIFE = b"W", b"L"
"""What a connection is for: messages; or only to tell, by its end, that one side is gone."""

_TOKEN_BYTES = 32
_GREETING = _TOKEN_BYTES + 1

Address = str | tuple[str, int]
"""Path of a Unix socket, or host and port."""


class Arrival(NamedTuple):
    """Somebody who has said the token."""

    peer: socket.socket
    purpose: bytes


class Door:
    """Listens at a path, or on a port that one of the job's other nodes can reach.

    Attributes:
        address: for `connect`. token: for the environment of those who are expected.

    Args:
        path: of a Unix socket.
        node: name of a node; with it, ``path`` is not used.

    Raises:
        NodeFailed: the node's name cannot be resolved, or there is no way to it.
    """

    def __init__(self, path: str, node: str | None = None) -> None:
        self.token = secrets.token_hex(_TOKEN_BYTES // 2)
        self.address: Address = path
        if node is None:
            self._listener = socket.socket(socket.AF_UNIX)
            os.fchmod(self._listener.fileno(), 0o600)  # Linux gives the name this mode
            self._listener.bind(path)
        else:
            family, own = _own_address(node)
            self._listener = socket.socket(family)
            self._listener.bind((own, 0))
            self.address = self._listener.getsockname()[:2]
        self._listener.listen(4096)
        self._listener.setblocking(False)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._silent: dict[int, tuple[socket.socket, bytearray]] = {}
        self._path = path if node is None else ""

    def fileno(self) -> int:
        """Readable when `accept` has something to do."""
        return self._poll.fileno()

    def accept(self) -> list[Arrival]:
        """Those who have come and belong to us."""
        found = []
        for descriptor, _ in self._poll.poll(0):
            if descriptor == self._listener.fileno():
                self._let_in()
            elif arrival := self._listen_to(descriptor):
                found.append(arrival)
        return found

    def _let_in(self) -> None:
        with suppress(BlockingIOError):
            while True:
                peer, _ = self._listener.accept()
                if self._path and _uid_of(peer) != os.getuid():
                    peer.close()
                    continue
                peer.setblocking(False)
                self._silent[peer.fileno()] = (peer, bytearray())
                self._poll.register(peer, select.EPOLLIN)

    def _listen_to(self, descriptor: int) -> Arrival | None:
        """Whom this is, once he has said it all: nothing is taken of what follows."""
        peer, said = self._silent[descriptor]
        try:
            heard = peer.recv(_GREETING - len(said))
        except OSError:
            heard = b""
        said += heard
        if heard and len(said) < _GREETING:
            return None
        self._poll.unregister(peer)
        del self._silent[descriptor]
        if not hmac.compare_digest(said[:_TOKEN_BYTES], self.token.encode()):
            peer.close()
            return None
        return Arrival(peer, bytes(said[_TOKEN_BYTES:]))

    def close(self) -> None:
        """Nobody is expected any more."""
        self._listener.close()
        for peer, _ in self._silent.values():
            peer.close()
        self._silent.clear()
        self._poll.close()
        if self._path:
            with suppress(FileNotFoundError):
                os.unlink(self._path)


def connect(address: Address, token: str, purpose: bytes) -> socket.socket:
    """Connect to an agent's door, and say who we are."""
    if isinstance(address, str):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(address)
    else:
        host, port = address
        peer = socket.create_connection((host, port))
        lively(peer)
    peer.sendall(token.encode() + purpose)
    return peer


def lively(peer: socket.socket) -> None:
    """Have a TCP connection send at once, and end when the other node is gone."""
    if peer.family != socket.AF_UNIX:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("KEEPIDLE", 20), ("KEEPINTVL", 10), ("KEEPCNT", 4)):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"), value)


def _own_address(node: str) -> tuple[socket.AddressFamily, str]:
    """The address by which another node reaches this one: that of the way to it.

    Not that of our own name, which many systems map to the loopback interface.
    """
    try:
        family, kind, protocol, _, there = socket.getaddrinfo(node, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(there)  # of a datagram socket: nothing is sent
            return family, probe.getsockname()[0]
    except OSError as error:
        raise NodeFailed(
            f"There is no way to another node of the job ({error})",
            node,
            "Start one agent on each node: srun --ntasks-per-node=1 fsbroker agent ...",
        ) from error


def _uid_of(peer: socket.socket) -> int:
    credentials = struct.Struct("3i")
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return int(credentials.unpack(found)[1])
