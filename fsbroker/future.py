"""The future that knows its key."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Any

from fsbroker.task import Dependency

if TYPE_CHECKING:
    from fsbroker.client.loop import ClientLoop


class Future(concurrent.futures.Future):  # type: ignore[type-arg]
    """A `concurrent.futures.Future` of a task in a spool.

    It stays usable after its executor is closed. When the client ends first, the task
    goes on; `fsbroker.attach` with the same key gives a future of it again.

    Attributes:
        key: content address of the task, 20 bytes; None while a future of another
            executor among its arguments is not done.
    """

    def __init__(self, key: bytes | None, loop: ClientLoop) -> None:
        super().__init__()
        self.key = key
        self._loop = loop
        self._twins: list[Future] | None = None
        self._stem: str | None = None
        self._row = 0

    @property
    def dependency(self) -> Dependency | None:
        """What stands for this future in the arguments of another task."""
        return Dependency(self.key) if self.key is not None else None

    def cancel(self) -> bool:
        """Make sure that the task does not run; False if it runs, or has ended.

        The task itself is cancelled when no other future of this client wants it.
        """
        return self._loop.cancel(self)

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
        """Resolve, unless it was cancelled meanwhile."""
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except concurrent.futures.InvalidStateError:
            pass
