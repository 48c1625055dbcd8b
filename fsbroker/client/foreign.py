"""Calls that hold futures which only this process can wait for.

    submit -> ForeignFutures -> Deferred --all done--> address with their values -> outbox

Those are futures of other executors, futures of ours that have no key yet because they wait
themselves, futures that compute a value anew (their key would stand for the old one), and
batches, of which nobody knows yet what will be in them.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future as AnyFuture
from contextlib import suppress
from typing import Any

from fsbroker.client.loop import ClientLoop
from fsbroker.client.outbox import Submitted
from fsbroker.future import Future, addressed_in
from fsbroker.parts import content_of
from fsbroker.pickling import Foreign, ForeignFutures, dependency_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Address = Callable[[Arguments, Foreign], Submitted]
"""Makes the call with the values of foreign futures, by ``id(future)``."""


class Deferred:
    """One such call, until its futures are done.

    Attributes:
        future: what `submit` returns; it has no key yet.

    Args:
        address: raises `ForeignFutures` for futures inside the values, too.
    """

    def __init__(
        self,
        loop: ClientLoop,
        address: Address,
        arguments: Arguments,
    ) -> None:
        self.future = Future(None, loop)
        self.future.addressed = AnyFuture()
        self._loop = loop
        self._address = address
        self._arguments = arguments
        self._futures: dict[int, AnyFuture[Any]] = {}
        self._lock = threading.Lock()
        self._missing = 0

    def wait_for(self, futures: Sequence[AnyFuture[Any]]) -> None:
        """Begin: these are the futures that stand in the way."""
        self._arguments = _snapshot(self._arguments, futures)
        self._loop.defer(self.future)
        self._wait_for(futures)

    def _wait_for(self, futures: Sequence[AnyFuture[Any]]) -> None:
        self._missing = len(futures) + 1
        self._futures |= {id(future): future for future in futures}
        for future in futures:
            addressed = getattr(future, "addressed", None)
            if addressed is not None and not addressed.done():
                addressed.add_done_callback(self._one_is_done)
            elif self._stands_for_itself(future):
                self._one_is_done(None)
            else:
                future.add_done_callback(self._one_is_done)
        self._one_is_done(None)

    def _stands_for_itself(self, future: AnyFuture[Any]) -> bool:
        with addressed_in(self._loop.root):
            return dependency_of(future) is not None

    def _one_is_done(self, future: AnyFuture[Any] | None) -> None:
        """Called by whichever thread resolved it; what goes wrong here is the call's error."""
        failed = future is not None and (future.cancelled() or future.exception() is not None)
        with self._lock:
            self._missing -= 1
            if self._missing and not failed:
                return
        if not self.future.done():
            self._go_on()

    def _go_on(self) -> None:
        try:
            with addressed_in(self._loop.root):
                item = self._address(self._arguments, self._values())
        except ForeignFutures as inside:
            self._wait_for(inside.futures)
        except BaseException as error:
            self._loop.arrive(self.future, None, error)
        else:
            self._loop.arrive(self.future, item, None)

    def _values(self) -> Foreign:
        """What is done has a value, or raises; what has a key by now stands for itself."""
        return {
            number: content_of(future)
            for number, future in self._futures.items()
            if dependency_of(future) is None and future.done()
        }


def _snapshot(arguments: Arguments, futures: Sequence[AnyFuture[Any]]) -> Arguments:
    """The arguments as they are now: the caller may change them before they are stored."""
    known: dict[int, Any] = {id(future): future for future in futures}
    with suppress(Exception):  # not everything that can be pickled can be copied
        return copy.deepcopy(arguments, known)
    return arguments
