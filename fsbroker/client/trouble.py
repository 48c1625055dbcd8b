"""File calls that fail: for a while they are tried again, then whoever waits is told."""

from __future__ import annotations

from fsbroker.errors import FsbrokerError, SpoolMissing
from fsbroker.spool.files import explain

PATIENCE = 30.0
"""Seconds of failing file calls after which the futures are told."""
RETRY = 0.2
"""Seconds between tries while they fail."""


class Patience:
    """How long something has failed without a success."""

    def __init__(self) -> None:
        self._since: float | None = None

    def is_over(self, now: float) -> bool:
        """It failed again: whether it has for too long."""
        self._since = self._since or now
        return now - self._since >= PATIENCE

    def renew(self) -> None:
        """It succeeded, or the futures were told."""
        self._since = None


def told(error: Exception, root: str) -> Exception:
    """The error that futures get when the spool cannot be used any more."""
    if isinstance(error, FsbrokerError):
        return error
    path = getattr(error, "filename", None) or root
    if isinstance(error, OSError) and (known := explain(error, path)):
        return known
    reason = getattr(error, "strerror", None) or str(error)
    return SpoolMissing(
        f"The spool cannot be used ({reason})",
        path,
        "Is its file system mounted? What it held goes on when it is back: submit again, or "
        "attach by key. If it was deleted, its tasks are lost.",
    )
