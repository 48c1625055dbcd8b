"""File calls that fail: for a while they are tried again, while the workers run on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from fsbroker.agent.session import AgentSession
from fsbroker.errors import SpoolError
from fsbroker.spool.spool import Spool

PATIENCE = 30.0
"""Seconds of failing file calls after which the agent gives up: what its workers run may be
worth hours, and a file server that comes back after some seconds is an everyday thing."""
RETRY = 0.05
LONGEST_RETRY = 2.0
"""Seconds between tries while they fail: the first, and the longest."""


class Trouble:
    """How long something has failed without a success."""

    def __init__(self, spool: Spool, session: AgentSession) -> None:
        self._files = spool.files
        self._session = session
        self._since: float | None = None
        self._retry_after = RETRY

    def tried(self, step: Callable[[], object]) -> bool:
        """Take a step; where file calls fail, False after a pause.

        Raises:
            SpoolError: they have failed for too long, or there is no spool any more.
        """
        try:
            step()
            self._since, self._retry_after = None, RETRY
        except OSError as error:
            self._endure(error)
            return False
        return True

    def _endure(self, error: OSError) -> None:
        now = time.monotonic()
        since = self._since = self._since or now
        if now - since > PATIENCE or self._spool_is_gone():
            raise SpoolError(f"File calls fail ({error})", self._files.root) from error
        time.sleep(self._retry_after)
        self._retry_after = min(2 * self._retry_after, LONGEST_RETRY)
        with suppress(OSError, SpoolError):
            self._session.beat()  # who is silent for long is taken for dead

    def _spool_is_gone(self) -> bool:
        try:
            return not self._files.names("")
        except FileNotFoundError:
            return True
        except OSError:
            return False
