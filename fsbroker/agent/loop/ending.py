"""Whether and why an agent ends."""

from __future__ import annotations

from fsbroker.errors import FormatTooNew

TOLD = "the agent was told to end"
GONE = "the agent's queue job is gone"
IDLE = "the agent was idle"
DONE = "its task has ended"
ALONE = "the client is gone, whose spool this is"


class Ending:
    """The end of one agent.

    Attributes:
        reason: "" while it goes on.
        newer: it met files that only a later version can read.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.newer: FormatTooNew | None = None

    def come(self, reason: str) -> None:
        """The first reason counts; but a private spool has to go, whatever else happens."""
        if not self.reason or reason == ALONE:
            self.reason = reason

    def has_come(self) -> bool:
        return self.reason != ""

    def is_ordered(self) -> bool:
        """Others have brought it about.

        The scheduler knows whether the job comes again, under the same id; and who cancels
        all of his jobs does not want others in their place.
        """
        return self.reason in (TOLD, GONE)
