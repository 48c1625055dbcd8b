"""What an agent does every so often, without being asked."""

from __future__ import annotations

import time

BEAT_EVERY = 2.0
"""Seconds between beats."""
LOOK_AFTER_EVERY = 1.0
"""Seconds between looks at other agents, requests to cancel, and time limits."""
LOOK_AFTER_AT_LEAST = 5.0
"""The same for an agent that has found nothing to do for a while."""
TIDY_EVERY = 30.0
"""Seconds between two tidyings of an agent that is never idle."""


class Every:
    """Something that is due again some seconds after it was done; at first it is due at once.

    Attributes:
        seconds: between two times.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = 0.0

    def until_due(self) -> float:
        """Seconds; 0 or less when it is due."""
        return self._last + self.seconds - time.monotonic()

    def is_due(self) -> bool:
        return self.until_due() <= 0

    def done(self) -> None:
        self._last = time.monotonic()


class Rhythm:
    """When an agent beats, looks after others, tidies, and ends because it is idle.

    Attributes:
        idle: due when there was no work for the agent's idle timeout.
    """

    def __init__(self, idle_timeout: float) -> None:
        self.beat = Every(BEAT_EVERY)
        self.look = Every(LOOK_AFTER_EVERY)
        self.tidy = Every(TIDY_EVERY)
        self.idle = Every(idle_timeout)
        self.idle.done()

    def note_work(self) -> None:
        self.idle.done()
        self.look.seconds = LOOK_AFTER_EVERY

    def note_rest(self) -> None:
        """There is nothing to do: look less often."""
        self.look.seconds = min(LOOK_AFTER_AT_LEAST, 1.5 * self.look.seconds)
