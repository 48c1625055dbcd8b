"""The future that knows its key."""

from __future__ import annotations

import concurrent.futures
import threading
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING
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


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """A `concurrent.futures.Future` of a task in a spool.

    It stays usable after its executor is closed. When the client ends first, the task
    goes on; `fsbroker.attach` with the same key gives a future of it again.

    Attributes:
        key: content address of the task, 20 bytes; None while a future of another
            executor among its arguments is not done.
    """

    def __init__(self, key: bytes | None, loop: ClientLoop) -> None:
        # The base class makes a condition, a deque and two lists for each future: ten
        # objects that the garbage collector visits again and again while many tasks are
        # pending, and most of what `submit` costs. They are made when first asked for.
        self._state = PENDING
        self._result = None
        self._exception = None
        self._shared = False
        self.key = key
        self._loop = loop
        self._twins: list[Future] | None = None
        self._stem: str | None = None
        self._row = 0

    def __getattr__(self, name: str) -> Any:
        """What the base class would have made in ``__init__``, for whoever waits or calls back."""
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._shared = True
        return self.__dict__.setdefault(name, make())  # atomic: two threads get the same

    @property
    def dependency(self) -> Dependency | None:
        """What stands for this future in the arguments of another task."""
        return Dependency(self.key) if self.key is not None else None

    def cancel(self) -> bool:
        """Make sure that the task does not run; False if it runs, or has ended.

        The task itself is cancelled when no other future of this client wants it.
        """
        return self._loop.cancel(self)

    def done(self) -> bool:
        return self._state in DONE

    def result(self, timeout: float | None = None) -> Any:
        """What the task returned; as the base class, without its lock once that is there."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def running(self) -> bool:
        """An agent has claimed the task, and it has not ended. Reads the task's log."""
        return not self.done() and self._loop.is_claimed(self)

    def cancel_here(self) -> bool:
        """Only this future; the task is left alone."""
        done = super().cancel()
        if done:
            self.set_running_or_notify_cancel()
        return done

    def deliver(self, value: Any, error: BaseException | None) -> None:
        """Resolve, unless it was cancelled meanwhile. Under the loop's lock, as `cancel` is.

        The state is set first. Who makes the condition after that sees the state; for who
        made it before, the lock is taken and everybody notified.
        """
        if self._state != PENDING:
            return
        self._result = value
        self._exception = error  # type: ignore[assignment]
        self._state = FINISHED
        if self._shared:
            with self._condition:
                for waiter in self._waiters:
                    waiter.add_result(self) if error is None else waiter.add_exception(self)
                self._condition.notify_all()
            self._invoke_callbacks()
