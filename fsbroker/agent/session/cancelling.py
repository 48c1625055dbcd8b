"""Rows that somebody cancelled, and requests to end rows that run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from fsbroker.agent.session.holdings import NOTHING, Holdings, Row
from fsbroker.agent.session.publishing import Publisher
from fsbroker.spool.layout import parse_cancel
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import State
from fsbroker.task import Outcome, Status


class Cancelling:
    """What one agent does about them."""

    def __init__(self, holdings: Holdings, publisher: Publisher) -> None:
        self._holdings = holdings
        self._publisher = publisher
        self._files, self._area, _ = holdings.spool

    def end_rows(self, live: LiveFile) -> None:
        """Publish that cancelled rows will not run, for everybody who waits for them."""
        rows = live.log.fold.rows_in(State.CANCELLED)
        if rows:
            self._publisher.end(live, {row: self._cancelled(live, row) for row in rows})

    def end_held(self, stem: str, rows: Iterable[int]) -> None:
        """End rows that this agent holds, and that no worker has."""
        live = self._holdings.claimed[stem]
        self._publisher.publish_own([self._cancelled(live, row) for row in rows])

    def _cancelled(self, live: LiveFile, row: int) -> Outcome:
        return self._holdings.outcome(live, row, Status.CANCELLED, NOTHING)

    def requests(self) -> list[Row]:
        """Held rows that somebody wants to end."""
        held = self._holdings.held
        return [(stem, row) for stem, row in self._all() if row in held.get(stem, ())]

    def sweep_requests(self) -> None:
        """Forget requests to end rows that have ended."""
        for stem, row in self._all():
            live = self._holdings.live.get(stem)
            with suppress(FileNotFoundError):
                if live is None or self._holdings.results.ended(stem, live.file.keys)[row]:
                    self._files.unlink(self._area.cancel_request(stem, row))

    def _all(self) -> Iterator[Row]:
        for name in self._files.names(self._area.cancel):
            request = parse_cancel(name)
            if request is not None:
                yield request
