"""How long functions take, as far as this agent has seen: what claims and units go by."""

from __future__ import annotations

import math

from fsbroker.spool.live import LiveFile

UNIT_TIME = 0.02
"""Seconds of work that a worker is given in one piece, and has in reserve."""
CLAIM_TIME = 0.3
"""Seconds of work for each worker in one claim."""
HANDING_OVER = 5e-6
"""Seconds that a row costs at least."""


class Pace:
    """The functions' durations: moving averages, in seconds."""

    def __init__(self) -> None:
        self._durations: dict[bytes, float] = {}

    def of(self, live: LiveFile, row: int) -> float:
        """How long the row's function takes; inf as long as that is not known."""
        return self._durations.get(live.file.function_digest(row), math.inf)

    def learn(self, live: LiveFile, row: int, duration: float) -> None:
        digest = live.file.function_digest(row)
        duration = max(duration, HANDING_OVER)
        known = self._durations.get(digest, duration)
        self._durations[digest] = known + 0.5 * (duration - known)
