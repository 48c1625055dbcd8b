"""Having a task not run, or end: whether it waits, or runs already.

One that no agent has claimed will never run. For one that is claimed a request is left,
which its agent finds within seconds: it kills the worker. Tasks that depend on a
cancelled one fail.
"""

from __future__ import annotations

import enum
from contextlib import suppress
from typing import Any

from fsbroker.client.history import ENDED, Phase, Row
from fsbroker.client.session import ClientSession
from fsbroker.spool.log import State
from fsbroker.spool.spool import Spool


class Ending(enum.Enum):
    """What came of it."""

    OVER = enum.auto()
    """It had ended before."""
    CANCELLED = enum.auto()
    """It will not run."""
    LATE = enum.auto()
    """It ended while we looked."""
    ASKED = enum.auto()
    """Its agent was asked to end it."""


def end(spool: Spool, session: ClientSession[Any], row: Row) -> Ending:
    """Have a task not run, or end."""
    stem, number = row.tasks.stem, row.number
    if row.phase in (*ENDED, Phase.REMOVED):
        return Ending.OVER
    if session.cancel(stem, number):
        return Ending.CANCELLED
    if session.state(stem, number) is not State.CLAIMED:
        return Ending.LATE
    with suppress(FileExistsError):
        spool.files.symlink(f"cancel {session.ident}", spool.area.cancel_request(stem, number))
    # A row that its agent gives back meanwhile is cancelled in the log: the request is for
    # the owner, whoever that is, and only a row that is claimed has one.
    session.cancel(stem, number)
    return Ending.ASKED


def owner(session: ClientSession[Any], row: Row) -> str | None:
    """The agent that holds a row, as far as its log was read."""
    live = session.live.get(row.tasks.stem)
    return live.log.fold.owner_of(row.number) if live is not None else None
