"""Cancelling futures: of each whether it waits, and whether its task can be kept from running.

A task is cancelled when no other future of this client wants it and no agent has claimed it.
To end one that runs is for the command line (`ending`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future as AnyFuture
from contextlib import suppress
from typing import Any

from fsbroker.client.deferral import Deferral
from fsbroker.client.outbox import Outbox
from fsbroker.client.session import ClientSession
from fsbroker.client.waiting import Waiting, family
from fsbroker.errors import SpoolError
from fsbroker.future import Future


class Canceller:
    """Cancels futures of one client, called by its users' threads."""

    def __init__(
        self,
        outbox: Outbox,
        session: ClientSession[Future],
        waiting: Waiting,
        deferral: Deferral | None,
    ) -> None:
        self._outbox = outbox
        self._session = session
        self._waiting = waiting
        self._deferral = deferral

    def cancel(self, future: Future) -> bool:
        """See `Future.cancel`."""
        with self._waiting.lock:
            if not self._cancel(future):
                return future.cancelled()
        future.call_back()
        return True

    def cancel_all(self, flush: Callable[[], None]) -> None:
        """Cancel what no agent has claimed.

        Args:
            flush: sees to it that what the thread has taken has its place in the spool.
        """
        ended = [future for future in self._outbox.withdraw() if future.cancel_here()]
        flush()
        with self._waiting.changed:
            ended += [future for future in self._waiting.keyless if future.cancel_here()]
            self._waiting.keyless.clear()
            ended += self._cancel_firsts(self._waiting.firsts.values())
            self._waiting.changed.notify_all()
        for future in ended:
            future.call_back()

    def cancel_many(self, futures: Iterable[AnyFuture[Any]]) -> None:
        """As each one's own `cancel`, but with one record for many rows of a task file."""
        wanted = list(futures)
        with self._waiting.changed:
            alone = {one for one in wanted if isinstance(one, Future) and self._is_alone(one)}
            ended = self._cancel_firsts(alone)
            self._waiting.changed.notify_all()
        for future in ended:
            future.call_back()
        for other in wanted:
            if other not in alone:
                other.cancel()

    def _cancel(self, future: Future) -> bool:
        if future.done():
            return False
        first = self._waiting.first_of(future)
        alone = first if first is not None and len(family(first)) == 1 else None
        if alone is not None and not self._take_back(alone):
            return False
        if not future.cancel_here():
            return False
        if future.twins is not None:
            future.twins.remove(future)
        if alone is not None:
            self._waiting.forget(alone)
        self._waiting.keyless.discard(future)
        self._waiting.changed.notify_all()
        return True

    def _is_alone(self, future: Future) -> bool:
        """It stands for its key, and no other future does."""
        return self._waiting.first_of(future) is future and len(family(future)) == 1

    def _take_back(self, first: Future) -> bool:
        """Its task will not run."""
        return first.stem is None or bool(self._cancel_rows(first.stem, [first.row]))

    def _cancel_firsts(self, firsts: Iterable[Future]) -> list[Future]:
        """One record for all rows of a task file, where one each would be thousands."""
        files: dict[str | None, list[Future]] = {}
        for first in firsts:
            files.setdefault(first.stem, []).append(first)
        ended = []
        for stem, inside in files.items():
            rows = [first.row for first in inside]
            done = set(rows) if stem is None else self._cancel_rows(stem, rows)
            for first in inside:
                if first.row in done:
                    ended += [one for one in family(first) if one.cancel_here()]
                    self._waiting.forget(first)
        return ended

    def _cancel_rows(self, stem: str, rows: Sequence[int]) -> set[int]:
        ended = self._deferral.cancel(stem, rows) if self._deferral is not None else set()
        with suppress(OSError, SpoolError):  # what cannot be cancelled now may run
            ended |= self._session.cancel_rows(stem, [row for row in rows if row not in ended])
        return ended
