"""What was submitted and is not yet accepted: calls, and futures of tasks that exist.

Group commit: `submit` only puts a call in. The client's thread takes everything that is
there and publishes it as one task file. A lone call leaves at once; while a file is being
written the next one fills up. There is no timer and no batch size.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from fsbroker.client.session import Lane
from fsbroker.future import Future

if TYPE_CHECKING:
    from fsbroker.keys import Call, Function


class Order(NamedTuple):
    """How a call is to be treated.

    Attributes:
        lane: which task files it may share. cache: "reuse", "refresh" or "off".
    """

    lane: Lane
    cache: str


class Submitted(NamedTuple):
    """A call in the outbox."""

    future: Future
    call: Call
    function: Function
    order: Order


class Attach(NamedTuple):
    """A future that wants a task which exists."""

    future: Future


class Flush(NamedTuple):
    """Whoever put it in wants to know when all that was put in before is in the spool."""

    done: threading.Event


Item = Submitted | Attach | Flush | None
"""None only wakes the thread: there may be news, or an end."""


class Outbox(SimpleQueue[Item]):
    """The one queue that wakes the client's thread. Any thread may put."""

    def take(self, delay: float) -> list[Item]:
        """Everything that is there; waits for the first of it."""
        get = self.get
        try:
            items = [get(timeout=delay)]
        except Empty:
            return []
        with suppress(Empty):
            items.extend(get(block=False) for _ in range(self.qsize()))
        return items

    def withdraw(self) -> list[Future]:
        """The futures that are there, which will not be accepted."""
        found = []
        for item in self.take(0.0):
            if isinstance(item, (Submitted, Attach)):
                found.append(item.future)
            elif item is not None:
                self.put(item)
        return found
