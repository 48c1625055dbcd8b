"""Futures that no task of their own stands behind: parts of a value, and batches of futures.

    split_future, get_item_from_future    future -> Part: an item of its value
    batched                               futures -> Batch, ...: those that are done next

A part of a task's value is known to agents: as an argument it is a dependency on that task
with the item to take from it, whoever submitted it. A batch is what this client saw end first:
a call with a batch among its arguments is submitted once the batch is full, as the call with
the list of these futures in its place, and has the key of that call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import Future as AnyFuture
from functools import partial
from typing import Any

from fsbroker.future import LightFuture
from fsbroker.pickling import dependency_of
from fsbroker.task import Dependency


def split_future(future: AnyFuture[Any], n: int) -> list[Part]:
    """Futures of the first ``n`` items of a future's value: a list, a tuple, an array."""
    return [Part(future, item) for item in range(n)]


def get_item_from_future(future: AnyFuture[Any], key: Any) -> Part:
    """A future of ``future.result()[key]``."""
    return Part(future, key)


class Part(LightFuture):
    """A future of one item of another future's value. Cancelled, it cancels the whole.

    Attributes:
        whole: the future of the value. It may be of another executor, or a part itself.
        item: the index or key of the item.
    """

    def __init__(self, whole: AnyFuture[Any], item: Any) -> None:
        self.whole = whole
        self.item = item
        self.addressed = getattr(whole, "addressed", None)
        self.planned = getattr(whole, "planned", False)
        whole.add_done_callback(self._settle)

    @property
    def dependency(self) -> Dependency | None:
        """What stands for this future in the arguments of another task; None for its value."""
        whole = dependency_of(self.whole)
        if whole is None or type(self.item) not in (int, str):
            return None
        return Dependency(whole.key, (*whole.selector, self.item))

    def cancel(self) -> bool:
        """Cancel the whole: its other parts are cancelled too."""
        return self.whole.cancel()

    def running(self) -> bool:
        """The whole is running."""
        return self.whole.running()

    def done(self) -> bool:
        """The whole is done."""
        if self.is_pending() and self.whole.done():
            self._settle(self.whole)  # its callback is on the way
        return super().done()

    def result(self, timeout: float | None = None) -> Any:
        """The item. Raises what the whole raises, or what taking the item from it raises."""
        self._wait(timeout)
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise; None for a value."""
        self._wait(timeout)
        return super().exception()

    def _wait(self, timeout: float | None) -> None:
        if not self.done():
            self.whole.exception(timeout)
            self._settle(self.whole)

    def _settle(self, whole: AnyFuture[Any]) -> None:
        """Take over what the whole came to. Called by its callback, and by whoever looks first."""
        # Not under our lock: `wait` holds those of all its futures, ours before the whole's.
        cancelled = whole.cancelled()
        value, error = (None, None) if cancelled else _item_of(whole, self.item)
        with self._condition:
            changed = self.cancel_here() if cancelled else self.deliver(value, error)
        if changed:
            self.call_back()


def _item_of(whole: AnyFuture[Any], item: Any) -> tuple[Any, BaseException | None]:
    error = whole.exception()
    if error is not None or getattr(whole, "planned", False):
        return None, error
    try:
        return whole.result()[item], None
    except Exception as wrong:  # whatever the value's class raises
        return None, wrong


class Batch(LightFuture):
    """A future of the values of those ``size`` of ``futures`` that are done next.

    Attributes:
        futures: the futures that this batch and others are of.
        size: how many it takes, the last one maybe fewer.
        members: those that it holds, in the order of ``futures``; () until it is done.
    """

    def __init__(self, futures: list[AnyFuture[Any]], size: int) -> None:
        self.futures = futures
        self.size = size
        self.members: tuple[AnyFuture[Any], ...] = ()

    def cancel(self) -> bool:
        """Cancel this batch; its futures go on."""
        if self.cancel_here():
            self.call_back()
        return self.cancelled()

    def fill(self, members: Iterable[AnyFuture[Any]]) -> None:
        """These are its futures, and all are done."""
        self.members = tuple(members)
        error = next(filter(None, map(_error_of, self.members)), None)
        values = [] if error is not None else [member.result() for member in self.members]
        with self._condition:
            changed = self.deliver(values, error)
        if changed:
            self.call_back()


def batched(futures: Iterable[AnyFuture[Any]], n: int) -> list[Batch]:
    """Batches of ``n`` futures, in the order in which they are done; the last may be shorter.

    A batch is done as soon as its futures are. Those that fail come last, so that they hold
    up no other: a batch with one among them raises its exception.
    """
    if n < 1:
        raise ValueError(f"A batch of {n} futures: at least 1")
    wanted = list(futures)
    filling = _Filling(wanted, n)
    for place, future in enumerate(wanted):
        future.add_done_callback(partial(filling.take, place))
    return filling.batches


class _Filling:
    """Deals futures out to batches as they are done."""

    def __init__(self, futures: list[AnyFuture[Any]], n: int) -> None:
        self.batches = [Batch(futures, n) for _ in range(0, len(futures), n)]
        self._futures, self._n = futures, n
        self._free = iter(list(self.batches))
        self._left = len(futures)
        self._good: list[int] = []
        self._failed: list[int] = []
        self._lock = threading.Lock()

    def take(self, place: int, future: AnyFuture[Any]) -> None:
        """The future at this place is done."""
        with self._lock:
            self._left -= 1
            (self._good if _error_of(future) is None else self._failed).append(place)
            full = list(self._full())
        for batch, places in full:
            batch.fill(self._futures[place] for place in places)

    def _full(self) -> Iterator[tuple[Batch, list[int]]]:
        if not self._left:
            self._good += sorted(self._failed)
        while len(self._good) >= self._n or (self._good and not self._left):
            places, self._good = self._good[: self._n], self._good[self._n :]
            yield next(self._free), sorted(places)


def _error_of(future: AnyFuture[Any]) -> BaseException | None:
    """Why a future that is done has no value."""
    return CancelledError() if future.cancelled() else future.exception()


def content_of(future: AnyFuture[Any]) -> Any:
    """What to put in place of a future that is done: its value, or a batch's futures."""
    value = future.result(0)
    return list(future.members) if isinstance(future, Batch) else value
