"""What work is left: whether an agent should stay, and whether another should come."""

from __future__ import annotations

from contextlib import suppress

from fsbroker.agent.session.holdings import Holdings, Row
from fsbroker.errors import SpoolError
from fsbroker.spool import presence
from fsbroker.spool.log import Retired, State


class Prospects:
    """The work that is left for one agent, or for those after it.

    Args:
        only: the one row that it may claim.
    """

    def __init__(self, holdings: Holdings, only: Row | None = None) -> None:
        self._holdings = holdings
        self._files, self._area, _ = holdings.spool
        self._live = holdings.live
        self._only = only

    def only_is_over(self) -> bool:
        """The one row that this agent is for has ended, or somebody else runs it."""
        if self._only is None:
            return False
        stem, row = self._only
        live = self._live.get(stem)
        if live is None:
            self._live.poll(afresh=True)
            live = self._live.get(stem)
        if live is None:
            return True
        try:
            live.log.refresh()
            ended = self._holdings.results.ended(stem, live.file.keys)[row]
        except (Retired, FileNotFoundError):
            return True
        if ended or live.log.fold.state[row] == State.ALIASED:
            return True
        owner = live.log.fold.owner_of(row)
        listed = {one.agent for one in presence.listing(self._files, self._area)}
        return owner is not None and owner != self._holdings.agent and owner in listed

    def only_is_ready(self) -> bool:
        """The one row that this agent is for could run, and does not: it does not fit here."""
        if self._only is None or (live := self._live.get(self._only[0])) is None:
            return False
        return bool(live.log.fold.state[self._only[1]] == State.READY)

    def ready_rows(self) -> set[str]:
        """Work that nobody has taken, as "<task file>.<row>"."""
        found: set[str] = set()
        self._live.poll(afresh=True)
        for live in self._live:
            with suppress(Retired, OSError, SpoolError):
                live.log.refresh()
                rows = live.log.fold.rows_in(State.READY)
                found.update(f"{live.stem}.{row}" for row in rows)
        return found
