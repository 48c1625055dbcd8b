"""Locks that keep agents from trying for the same record: for order, not for truth.

The log decides without them, too, so who has waited for long goes on without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from fsbroker.spool.live import LiveFile
from fsbroker.spool.spool import Spool

PATIENCE = 0.2
"""Seconds after which an agent goes on without a lock that somebody holds."""


class Turns:
    """Whose turn it is to append to the log of a task file.

    Args:
        purpose: what the locks' names begin with.
    """

    def __init__(self, spool: Spool, purpose: str = "") -> None:
        self._files, self._area, _ = spool
        self._purpose = purpose
        self._contested: WeakKeyDictionary[LiveFile, float] = WeakKeyDictionary()

    @contextmanager
    def take(self, live: LiveFile) -> Iterator[bool]:
        """Whether it is this agent's turn now; if so, until the end of the block."""
        lock = self._files.try_lock(self._area.lock(self._purpose + live.stem))
        if lock is None:
            yield self._patience_is_over(live)
            return
        try:
            yield True
        finally:
            self._contested.pop(live, None)
            lock.release()

    def _patience_is_over(self, live: LiveFile) -> bool:
        now = self._files.monotonic()
        return now - self._contested.setdefault(live, now) > PATIENCE
