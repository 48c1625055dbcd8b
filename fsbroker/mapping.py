"""`Executor.map`: results of many calls in their order, while only some of the calls are pending.

    iterables --as results are taken--> submit -> ahead: futures in order -> results

The standard library submits all calls at once, and a million futures are 2 GB. Here so many
are ahead of what was taken as keep agents busy. Calls that nobody came to take the results of
are submitted all the same, at the executor's end: they may be made for their effects.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from concurrent.futures import Future as AnyFuture
from typing import Any, Protocol

AHEAD = 16384
"""Calls that are submitted before the results of those before them are taken: four task files."""


class Feeds(Protocol):
    """What a stream needs of the client's loop."""

    feeds: set[Stream]

    def cancel_many(self, futures: Iterable[AnyFuture[Any]]) -> None:
        """Cancel what has not begun."""


class Stream:
    """The calls of one `map`.

    Args:
        feeds: the loop, which has the rest submitted at the executor's end.
        submit: submits the call with these arguments.
        iterables: as of `map`.
        ahead: how many calls may be ahead of what is taken; None: as many as do good, and all
            of them at the executor's end.
    """

    def __init__(
        self,
        feeds: Feeds,
        submit: Callable[..., AnyFuture[Any]],
        iterables: Iterable[Iterable[Any]],
        ahead: int | None,
    ) -> None:
        self._feeds = feeds
        self._submit = submit
        self._calls = zip(*map(_as_it_is, iterables), strict=False)
        self._most = AHEAD if ahead is None else ahead
        self._ahead: deque[AnyFuture[Any]] = deque()
        self._lock = threading.Lock()
        self.fill(self._most)
        if ahead is None and len(self._ahead) == AHEAD:
            feeds.feeds.add(self)

    def fill(self, most: float = math.inf) -> None:
        """Submit calls, as long as there are any, until so many are ahead."""
        with self._lock:
            while len(self._ahead) < most:
                arguments = next(self._calls, None)
                if arguments is None:
                    self._feeds.feeds.discard(self)
                    return
                self._ahead.append(self._submit(*arguments))

    def results(self, end: float) -> Iterator[Any]:
        """The results, in order; what is left is cancelled when this ends early.

        Args:
            end: when they have to be there, on the monotonic clock.
        """
        try:
            while self._ahead:
                self.fill(self._most + 1)
                yield _result(self._ahead, end)
        finally:
            self.close()

    def give_up(self) -> None:
        """Submit no more; whoever takes results learns where they end."""
        cancelled: AnyFuture[Any] = AnyFuture()
        cancelled.cancel()
        with self._lock:
            self._feeds.feeds.discard(self)
            self._calls = iter(())  # type: ignore[assignment]
            self._ahead.append(cancelled)

    def close(self) -> None:
        """Submit no more, and cancel what is ahead."""
        with self._lock:
            self._feeds.feeds.discard(self)
            self._calls = iter(())  # type: ignore[assignment]
            left, self._ahead = self._ahead, deque()
        self._feeds.cancel_many(left)


def _as_it_is(items: Iterable[Any]) -> Iterable[Any]:
    """A list may change before all of it was submitted."""
    return list(items) if isinstance(items, MutableSequence) else items


def _result(ahead: deque[AnyFuture[Any]], end: float) -> Any:
    """The next result. No name holds on to its future, which may be large."""
    if end == math.inf:
        return ahead.popleft().result()
    value = ahead[0].result(max(0.0, end - time.monotonic()))
    ahead.popleft()
    return value
