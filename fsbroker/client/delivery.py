"""From outcomes in the spool to futures that have ended.

    poll  -> result files with rows that futures are bound to -> values, errors -> futures
    check -> rows that no news will tell of: they ended elsewhere, or are lost
    found -> outcomes that were there when their call was accepted, wherever they stand

What ended and cannot be read now is looked for again; after `UNREADABLE` looks it is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from fsbroker.client.outcomes import Reader, log_sizes
from fsbroker.client.session import MISSED, UNREADABLE, ClientSession
from fsbroker.client.waiting import Waiting, key_of
from fsbroker.errors import ResultLost, SpoolError, TaskLost
from fsbroker.future import Future
from fsbroker.spool.index import Found
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile

Gone = tuple[Future, ResultLost]
"""A future whose outcome is there, but whose value is not."""


class Delivery:
    """Resolves the futures of one client.

    Args:
        log: whether to log how many bytes values have.
    """

    def __init__(
        self, spool: Spool, session: ClientSession[Future], waiting: Waiting, *, log: bool
    ) -> None:
        self._root = spool.files.root
        self._session = session
        self._waiting = waiting
        self._log = log
        self._reader = Reader(spool, session.results)
        self._unread: dict[Future, int] = {}

    def poll(self) -> bool:
        """Deliver news. True if there was any."""
        found = False
        for ended in self._session.poll():
            found = True
            self._fail_gone(self._deliver(ended.file, ended.tickets))
        return found

    def check(self) -> None:
        """Look after what no news will ever tell of."""
        checked = self._session.check()
        self.deliver_all(checked.elsewhere)
        self._read_again()
        for future in checked.lost:
            self.lose(future, "The task's file was removed before it ended", "Submit it again")
        for future, error in checked.unreadable:
            self.lose(future, f"The task's result cannot be read ({error})", "Submit it again")

    def deliver_all(self, found: Iterable[tuple[Future, Found]]) -> None:
        """As `deliver`; those whose value is gone are told so."""
        self._fail_gone(self.deliver(found))

    def deliver(self, found: Iterable[tuple[Future, Found]]) -> list[Gone]:
        """Resolve from where the outcomes stand; those whose value is gone are left."""
        gone = []
        files: dict[str, list[tuple[int, Future]]] = {}
        for future, where in found:
            files.setdefault(where.place.path, []).append((where.place.row, future))
        for path, tickets in files.items():
            try:
                file = self._session.results.file(path)
            except (OSError, SpoolError):
                self._put_off(tickets)
            else:
                gone += self._deliver(file, tickets)
        return gone

    def lose(self, future: Future, what: str, cure: str = "") -> None:
        """Its task is in the spool no more, or never was."""
        self._waiting.fail(
            [future], TaskLost(what, f"{key_of(future).hex()} in {self._root}", cure)
        )

    def _deliver(self, file: ResultFile, tickets: list[tuple[int, Future]]) -> list[Gone]:
        gone: list[Gone] = []
        try:
            resolved = self._reader.resolve(file, [index for index, _ in tickets])
        except OSError:
            self._put_off(tickets)
            return gone
        if self._log:
            log_sizes(file, [(index, key_of(future)) for index, future in tickets])
        waiting = self._waiting
        pop, callbacks = waiting.firsts.pop, waiting.callbacks
        for (_, future), (value, error) in zip(tickets, resolved, strict=True):
            if isinstance(error, ResultLost):
                gone.append((future, error))
                continue
            pop(future.key, None)  # type: ignore[arg-type]
            if future.twins is None:  # `settle`, without a call for each of many
                if future.deliver(value, error):
                    callbacks.append(future)
            else:
                for one in future.twins:
                    waiting.settle(one, value, error)
        if not waiting.firsts:
            waiting.shapes.clear()
        return gone

    def _put_off(self, tickets: Sequence[tuple[int, Future]]) -> None:
        """What cannot be read now, or went into a pack, is looked for again in a while."""
        self._unread |= dict.fromkeys((future for _, future in tickets), 0)
        with suppress(OSError, SpoolError):
            self._session.results.look_again()

    def _read_again(self) -> None:
        """What ended and could not be read: look where it stands by now."""
        unread, self._unread = self._unread, {}
        for future, times in unread.items():
            sure = times > MISSED or future.stem is None
            found = None
            with suppress(OSError, SpoolError):
                found = self._session.outcome(future, future.stem or "", future.row, sure=sure)
            if found is not None:
                self.deliver_all([(future, found)])
            if (found is None and future.is_pending()) or future in self._unread:
                self._unread[future] = times + 1
                if times > UNREADABLE:
                    del self._unread[future]
                    what = "The task's result cannot be read, or was removed"
                    self.lose(future, what, "Submit it again")

    def _fail_gone(self, gone: Iterable[Gone]) -> None:
        for future, error in gone:
            self._waiting.fail([future], error)
