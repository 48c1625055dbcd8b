"""News of the spool: how an agent hears that there may be work.

A watch tells of it, from another thread or not at all; so the agent also looks after a while.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from fsbroker.spool.live import LiveFiles
from fsbroker.spool.spool import Spool
from fsbroker.spool.watch import watch


class News:
    """What an agent waits for beside its workers: readable after `wake`.

    Args:
        how: to see news (`watch`).

    Attributes:
        watch: tells after how many seconds to look, and is told what came of it.
    """

    def __init__(self, spool: Spool, live: LiveFiles, how: str) -> None:
        self._live = live
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._looked_at = 0.0
        directory = f"{spool.files.root}/{spool.area.tasks}"
        self.watch = watch(directory, self.wake, how, pause=spool.files.pause)

    def fileno(self) -> int:
        return self._reader

    def wake(self) -> None:
        """There may be news. For other threads and signal handlers too."""
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def attend(self) -> None:
        """It was heard."""
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def look_if_due(self, *, told: bool, hungry: bool) -> None:
        """See which task files there are, when told to, or when that was long ago."""
        now = time.monotonic()
        if told or (hungry and now - self._looked_at >= self.watch.delay):
            self._looked_at = now
            if self._live.poll():
                self.watch.reset()
