"""Rows that wait for others: which are ready by now, and which never will be.

Every agent looks, and the first to see it says so in the log: rows become ready for anybody
to claim. Rows whose dependencies failed end with that, and what depends on them with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from weakref import WeakKeyDictionary

from fsbroker.agent.session.holdings import NOTHING, Holdings
from fsbroker.agent.session.publishing import Publisher
from fsbroker.agent.session.turns import Turns
from fsbroker.agent.session.waiting import Waiting
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Kind, Retired, State
from fsbroker.task import Outcome, Status, Value


class Dependencies:
    """The rows that wait, as one agent sees them."""

    def __init__(self, holdings: Holdings, publisher: Publisher) -> None:
        self._holdings = holdings
        self._publisher = publisher
        self._live = holdings.live
        self._results = holdings.results
        self._turns = Turns(holdings.spool, "resolve-")
        self._waiting: WeakKeyDictionary[LiveFile, Waiting] = WeakKeyDictionary()
        self._failed_rows = False

    def resolve(self, *, thorough: bool) -> bool:
        """As `AgentSession.resolve`."""
        found = self._resolve_once(thorough=thorough)
        while self._failed_rows:  # what depends on them fails with them, at once
            self._failed_rows = False
            self._resolve_once(thorough=False)
        return found

    def _resolve_once(self, *, thorough: bool) -> bool:
        files = [live for live in self._live if live.name.waiting]
        if files:
            self._results.poll(deep=thorough)
        news = {key for file in self._results.news() if files for key in file.keys}
        found = False
        for live in files:
            with self._holdings.reading(live):
                found |= self._resolve_in(live, news, thorough)
        return found

    def _resolve_in(self, live: LiveFile, news: set[bytes], thorough: bool) -> bool:
        waiting = self._waiting.get(live)
        if waiting is None or thorough:
            live.log.refresh()
            rows = live.log.fold.rows_in(State.WAITING)
            waiting = self._waiting[live] = Waiting(live.file, rows)
            news = waiting.keys()
        for key in waiting.keys() & news:
            status = self._status(key)
            if status is not None:
                waiting.settle(key, done=status == Status.DONE)
        if not waiting.has_news:
            return False
        with self._turns.take(live) as mine:
            # If not, somebody else says the same at this moment, or we do in a while.
            return self._write_ready(live, waiting) if mine else True

    def _write_ready(self, live: LiveFile, waiting: Waiting) -> bool:
        live.log.refresh()
        ready, failed = waiting.take()
        fold = live.log.fold
        ready = [row for row in ready if fold.state[row] == State.WAITING]
        self._holdings.append_all(live, Kind.READY, ready)
        failed = [row for row in failed if fold.state[row] in (State.WAITING, State.READY)]
        if failed:
            self._fail(live, failed)
        return bool(ready or failed)

    def _status(self, key: bytes) -> Status | None:
        """How a dependency ended; None while it may still run.

        A failure counts only when no live row tries the key anew, and a key that has
        neither a row nor an outcome will never have one: files of dependencies are
        linked before those of their dependents.
        """
        found = self._results.find(key)
        if found is not None and found.status == Status.DONE:
            return Status.DONE
        self._live.poll(afresh=True)
        for live, row in self._live.holding([key]).get(key, ()):
            with suppress(Retired, FileNotFoundError):
                live.log.refresh()
                ended = self._results.ended(live.stem, live.file.keys)[row]
                if not ended and live.log.fold.state[row] not in (State.CANCELLED, State.ALIASED):
                    return None
        self._results.poll(deep=True)
        found = self._results.find(key)
        if found is None and self._live.newer() is not None:
            return None  # its row may stand where this version cannot look
        return Status(found.status) if found is not None else Status.CANCELLED

    def _fail(self, live: LiveFile, rows: Sequence[int]) -> None:
        # Made before the claim: whatever fails here must not leave claimed rows behind.
        made = {row: self._failed(live, row) for row in rows}
        self._failed_rows |= self._publisher.end(live, made)

    def _failed(self, live: LiveFile, row: int) -> Outcome:
        error = {"type": "DependencyFailed", "message": "", "traceback": ""}
        for (key, _), _ in live.file.dependencies(row):
            found = self._results.find(key)
            if found is not None and found.status == Status.DONE:
                continue
            error["key"] = key.hex()
            error["message"] = (
                f"{key.hex()} was cancelled, or its task file was removed"
                if found is None
                else f"{key.hex()} failed"
            )
            break
        return self._holdings.outcome(live, row, Status.FAILED, NOTHING, error)

    def value(self, key: bytes) -> Value | None:
        """The stored value of a task that has one."""
        found = self._results.value(key)
        if found is None:
            self._results.poll(deep=True)
            found = self._results.value(key)
        return found[1] if found is not None and found[0].status == Status.DONE else None
