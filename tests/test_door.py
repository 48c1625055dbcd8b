"""Who is let in, at a path and at a port: only who says the token, and before anything else."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsbroker.agent.door import LIFE, WORK, Arrival, Door, connect, lively
from fsbroker.errors import NodeFailed


@pytest.fixture(params=["path", "port"])
def door(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Door]:
    made = Door(str(tmp_path / "door"), None if request.param == "path" else "localhost")
    yield made
    made.close()


def arrivals(door: Door, patience: float = 5.0) -> list[Arrival]:
    """Who is let in by the next event or two: a connection, and what it says."""
    found: list[Arrival] = []
    while not found and select.select([door], [], [], patience)[0]:
        found += door.accept()
        patience = min(patience, 0.2)
    return found


def stranger(door: Door) -> socket.socket:
    family = socket.AF_UNIX if isinstance(door.address, str) else socket.AF_INET
    peer = socket.socket(family)
    peer.connect(door.address)
    return peer


def test_who_says_the_token_is_let_in(door: Door) -> None:
    for purpose in (WORK, LIFE):
        with connect(door.address, door.token, purpose) as visitor:
            visitor.sendall(b"more")
            ((peer, found),) = arrivals(door)
            assert found == purpose
            lively(peer)
            peer.setblocking(True)
            assert peer.recv(10) == b"more"
            peer.close()


@pytest.mark.parametrize("said", [b"0" * 33, b"x", b"0" * 1000])
def test_who_does_not_is_hung_up_on(door: Door, said: bytes) -> None:
    with stranger(door) as visitor:
        visitor.sendall(said)
        visitor.shutdown(socket.SHUT_WR)
        assert arrivals(door) == []
        visitor.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert visitor.recv(1) == b""


def test_a_token_in_pieces(door: Door) -> None:
    with stranger(door) as visitor:
        visitor.sendall(door.token.encode()[:10])
        assert arrivals(door, 0.2) == []
        visitor.sendall(door.token.encode()[10:] + WORK)
        ((peer, purpose),) = arrivals(door)
        assert purpose == WORK
        peer.close()


def test_the_port_is_of_the_way_to_the_other_node(door: Door) -> None:
    if not isinstance(door.address, str):
        assert door.address[0] == "127.0.0.1"
        assert door.address[1] > 0


def test_a_node_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed, match="no such node"):
        Door(str(tmp_path / "door"), "no such node")


def test_a_closed_door(door: Door) -> None:
    waiting = stranger(door)
    arrivals(door, 0.2)
    door.close()
    with pytest.raises(OSError), stranger(door):
        pass
    waiting.settimeout(5)
    assert waiting.recv(1) == b""
    waiting.close()
