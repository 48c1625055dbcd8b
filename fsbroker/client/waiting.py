"""The futures that have not ended: which of them stands for which task, and how they end.

    keyless --key--> first of its key, bound to a task; later ones are its twins
    deliver, fail, cancel -> no longer here -> `call_back`, when no lock is held

Users' threads and the client's own meet here, under one lock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from fsbroker.client.session import ClientSession
from fsbroker.future import Future


class Waiting:
    """The futures of one client that have not ended.

    Args:
        session: knows the rows that they are bound to.

    Attributes:
        lock: over these futures and over all that the client knows of the spool.
        changed: notified when futures have ended.
        firsts: by key, the future that stands for it; its `twins` want the same.
        keyless: they wait themselves for what makes their key.
        shapes: resources that their tasks want, in the order in which they came.
        callbacks: those that have ended, and whose users want to be told.
    """

    def __init__(self, session: ClientSession[Future]) -> None:
        self._session = session
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.firsts: dict[bytes, Future] = {}
        self.keyless: set[Future] = set()
        self.shapes: dict[str, None] = {}
        self.callbacks: deque[Future] = deque()
        self._calling = 0

    def is_empty(self) -> bool:
        """Every future has ended, and whoever asked for it was told."""
        return not (self.firsts or self.keyless or self.callbacks or self._calling)

    def count(self) -> int:
        """How many futures have not ended."""
        return sum(len(family(first)) for first in self.firsts.values()) + len(self.keyless)

    def first_of(self, future: Future) -> Future | None:
        """The one that stands for its key; None if this future is not among those of the key."""
        first = self.firsts.get(future.key) if future.key is not None else None
        if first is future or (first is not None and future in family(first)):
            return first
        return None

    def forget(self, first: Future) -> None:
        """Nobody waits for its key any more."""
        self.firsts.pop(key_of(first), None)
        if first.stem is not None:
            self._session.unbind(first.stem, first.row, first)

    def settle(self, future: Future, value: Any, error: BaseException | None) -> None:
        """Resolve this one future; `call_back` is due after that."""
        if future.deliver(value, error):
            self.callbacks.append(future)

    def fail(self, firsts: Iterable[Future], error: BaseException) -> None:
        """Resolve these and their twins with an error."""
        for first in firsts:
            self.forget(first)
            for one in family(first):
                self.settle(one, None, error)

    def fail_all(self, error: BaseException) -> None:
        """As `fail`, whoever has a key."""
        self.fail(list(self.firsts.values()), error)

    def call_back(self) -> None:
        """Call what users asked to be called, without any lock: they may do anything."""
        while self.callbacks:
            with self.lock:
                future = self.callbacks.popleft() if self.callbacks else None
                self._calling += 1
            if future is not None:
                future.call_back()  # which lets no exception through
            with self.changed:
                self._calling -= 1
                self.changed.notify_all()


def key_of(future: Future) -> bytes:
    """Of a future that has one."""
    assert future.key is not None
    return future.key


def family(first: Future) -> list[Future]:
    """All futures of one key that want it: twins share the list of the first one."""
    return first.twins if first.twins is not None else [first]


def join(first: Future, future: Future) -> None:
    """Have another future want what the first one of the key wants."""
    if first.twins is None:
        first.twins = [first]
    first.twins.append(future)
    future.twins = first.twins
