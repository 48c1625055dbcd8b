"""Rows that are to be given back: at once, or where that fails now, later, but surely."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from fsbroker.agent.session.holdings import Holdings
from fsbroker.errors import SpoolError
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Retired


class Debt(NamedTuple):
    """Rows that are to be given back, as `Holdings.release` does."""

    live: LiveFile
    rows: Sequence[int]
    reason: str
    charge: bool


class Debts:
    """What one agent owes to the logs."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._owed: deque[Debt] = deque()

    def give_back(
        self, live: LiveFile, rows: Sequence[int], reason: str, *, charge: bool = False
    ) -> None:
        """Release rows; with ``charge`` it cost them an attempt."""
        self._owed.append(Debt(live, list(rows), reason, charge))
        with suppress(OSError, SpoolError):
            self.pay()

    def pay(self) -> None:
        """Release what could not be released before."""
        while self._owed:
            live, rows, reason, charge = self._owed[0]
            with suppress(Retired):
                self._holdings.release(live, rows, reason, charge=charge)
            self._owed.popleft()
