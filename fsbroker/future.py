"""The future that knows its key, and what it shares with those of parts and batches (`parts`)."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fsbroker.task import Dependency

if TYPE_CHECKING:
    from fsbroker.client.loop import ClientLoop

DONE = (FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED)

_LAZY: dict[str, Any] = {
    "_condition": threading.Condition,
    "_waiters": list,
    "_done_callbacks": list,
}

_addressing = threading.local()


@contextmanager
def addressed_in(root: str) -> Iterator[None]:
    """While a call is addressed in a spool, futures of other spools are foreign to it."""
    before, _addressing.root = getattr(_addressing, "root", None), root
    try:
        yield
    finally:
        _addressing.root = before


class LightFuture(concurrent.futures.Future):  # type: ignore[type-arg]
    """A `concurrent.futures.Future` that makes its lock when somebody waits; can be awaited."""

    # The base class makes a condition, a deque and two lists for each future: ten
    # objects that the garbage collector visits again and again while many tasks are
    # pending, and most of what `submit` costs. They are made when first asked for.
    _state = PENDING
    _result: Any = None
    _exception: BaseException | None = None
    _shared = False

    addressed: concurrent.futures.Future[None] | None = None
    """Done as soon as the key is known, or will never be; None if it was from the start."""

    def __init__(self) -> None:
        """Nothing is made yet: the base class is not called."""

    def __getattr__(self, name: str) -> Any:
        """What the base class would have made in ``__init__``, for whoever waits or calls back."""
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._shared = True
        return self.__dict__.setdefault(name, make())  # atomic: two threads get the same

    def __deepcopy__(self, _: Any) -> LightFuture:
        return self  # it stands for its value wherever it is

    def __await__(self) -> Generator[Any, None, Any]:
        """The result, in a coroutine. One that is cancelled while it waits cancels the task."""
        import asyncio  # there already, where somebody awaits

        return asyncio.wrap_future(self).__await__()

    def is_pending(self) -> bool:
        """Neither cancelled nor resolved."""
        return self._state == PENDING

    def done(self) -> bool:
        """Cancelled, or resolved; as the base class, without its lock."""
        return self._state in DONE

    def cancel_here(self) -> bool:
        """Only this future, not the task; as `deliver`: callbacks are left to the caller."""
        with self._condition:
            if self._state != PENDING:
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        return True

    def deliver(self, value: Any, error: BaseException | None) -> bool:
        """Resolve, unless it was cancelled meanwhile. Under the loop's lock, as `cancel_here`.

        The state is set first. Who makes the condition after that sees the state; for who
        made it before, the lock is taken and everybody notified.

        Returns:
            Whether `call_back` is to be called, when no lock is held.
        """
        if self._state != PENDING:
            return False
        self._result = value
        self._exception = error
        self._state = FINISHED
        if not self._shared:
            return self.addressed is not None
        with self._condition:
            for waiter in self._waiters:
                waiter.add_result(self) if error is None else waiter.add_exception(self)
            self._condition.notify_all()
        return "_done_callbacks" in self.__dict__ or self.addressed is not None

    def call_back(self) -> None:
        """Tell everybody who asked for it. Callbacks may do anything: hold no lock."""
        self._invoke_callbacks()


class Future(LightFuture):
    """A `concurrent.futures.Future` of a task in a spool.

    It stays usable after its executor is closed. When the client ends first, the task
    goes on; `fsbroker.attach` with the same key gives a future of it again.

    Attributes:
        key: content address of the task, 20 bytes; None while a future of another
            executor among its arguments is not done.
        stem, row: the task file and the row in it that its outcome will be of; None and 0
            before the task is in the spool, and where an outcome was there already.
        twins: the futures of this client with the same key, this one too; None if alone.
    """

    fresh = False
    """Its task computes a value anew: the one that the spool has is not meant."""

    def __init__(self, key: bytes | None, loop: ClientLoop) -> None:
        self.key = key
        self._loop = loop
        self.twins: list[Future] | None = None
        self.stem: str | None = None
        self.row = 0

    @property
    def dependency(self) -> Dependency | None:
        """What stands for this future in the arguments of another task.

        None where only its value can: its key is not known yet, is that of an old value as
        well, or is one of another spool.
        """
        if self.key is None or (self.fresh and not self.done()):
            return None
        root = getattr(_addressing, "root", None)
        if root is not None and root != self._loop.root:
            return None
        return Dependency(self.key)

    def cancel(self) -> bool:
        """Make sure that the task does not run; False if it runs, or has ended.

        The task itself is cancelled when no other future of this client wants it.
        """
        return self._loop.cancel(self)

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned; as the base class, without its lock once that is there."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        self._require_own_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the task raised, with the remote traceback as its cause; None for a value."""
        self._require_own_process()
        return super().exception(timeout)

    def _require_own_process(self) -> None:
        """A forked child has no thread that could ever resolve its copy."""
        if self._loop.is_own_process():
            return
        if not self.done():
            raise RuntimeError(
                f"This future belongs to process {self._loop.pid}, of which {os.getpid()} is a "
                "fork; fsbroker.attach(spool, future.key) gives one of the same task here"
            )
        self.__dict__.pop("_condition", None)  # it may have been held at the fork

    def running(self) -> bool:
        """An agent has claimed the task, and it has not ended. Reads the task's log."""
        return not self.done() and self._loop.is_claimed(self)

    def call_back(self) -> None:
        """As for any future; calls that wait for the key are told first."""
        self.tell_addressed()
        self._invoke_callbacks()

    def tell_addressed(self) -> None:
        """Tell calls that wait for the key that it is known, or will never be."""
        if self.addressed is not None:
            with suppress(concurrent.futures.InvalidStateError):
                self.addressed.set_result(None)
