"""From a call to what gives its outcome: each is bound to what exists, or to a new row.

call -> twin of a future of the same key, which waits already
     -> an outcome: in the spool, or that of somebody who is trusted (`deferral`)
     -> a row that will run
     -> a new row (`publishing`), put off if others compute it (`deferral`)
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from fsbroker.client.deferral import Deferral
from fsbroker.client.delivery import Delivery
from fsbroker.client.outbox import Attach, Submitted
from fsbroker.client.publishing import Publisher, Row
from fsbroker.client.session import ClientSession
from fsbroker.client.waiting import Waiting, join, key_of
from fsbroker.errors import KeyConflict, ResultLost, SpoolError
from fsbroker.future import Future
from fsbroker.keys import UNKNOWN
from fsbroker.spool.index import Found
from fsbroker.spool.spool import Spool
from fsbroker.task import Status

LOCK_PATIENCE = 0.5
"""Seconds that one client waits for another that is publishing."""
LOCK_RETRY = 0.001


class Binder:
    """Binds the calls of one client.

    Args:
        delivery: resolves the futures of calls whose outcome is there.
        deferral: what others compute; None: nobody's results are used.

    Attributes:
        unbound: calls for which file calls failed, to be tried again.
    """

    def __init__(
        self,
        spool: Spool,
        session: ClientSession[Future],
        waiting: Waiting,
        delivery: Delivery,
        deferral: Deferral | None,
    ) -> None:
        self._spool = spool
        self._session = session
        self._waiting = waiting
        self._delivery = delivery
        self._deferral = deferral
        self._publisher = Publisher(spool, session, waiting)
        self._named: dict[bytes, bytes] = {}
        self.unbound: list[Submitted | Attach] = []

    def accept(self, calls: Sequence[Submitted | Attach]) -> None:
        """Bind each call to what exists, or to a new row.

        Raises:
            OSError: file calls fail, which may pass; what is not bound is kept.
        """
        firsts, keyless = self._waiting.firsts, self._waiting.keyless
        new = [item for item in self.unbound if item.future.is_pending()]
        self._named.clear()
        for item in calls:
            future = item.future
            if keyless:
                keyless.discard(future)
            if not future.is_pending():
                continue
            first = firsts.setdefault(key_of(future), future)
            unbound = first is not future and first.stem is None
            if unbound and (_is_fresh(item) or not self._agree(item, first)):
                # Before the first one is bound, it is not known what becomes of it.
                new = self._bind_all(new)
                first = firsts.setdefault(key_of(future), future)
            if first is future:
                new.append(item)
                if isinstance(item, Submitted) and item.call.descriptor is not item.call.key:
                    self._named[item.call.key] = item.call.descriptor
            elif self._agree(item, first):
                join(first, future)
            else:
                self._waiting.settle(future, None, _conflict(key_of(future)))
        self._bind_all(new)

    def look_after_put_off(self) -> None:
        """Take over what others have finished; have agents for what they will not."""
        for shape in self._deferral.look() if self._deferral is not None else ():
            self._waiting.shapes.setdefault(shape)

    def _bind_all(self, new: list[Submitted | Attach]) -> list[Submitted | Attach]:
        """Bind; what file calls failed for, without an error that is for sure, is kept."""
        self.unbound = new
        if not new:
            return []
        try:
            with _in_order(self._spool):
                self._bind(new)
        except SpoolError as error:
            left = [item.future for item in new if item.future.stem is None]
            self._waiting.fail([future for future in left if future.is_pending()], error)
        except OSError:
            self.unbound = [
                item for item in new if item.future.stem is None and item.future.is_pending()
            ]
            raise
        self.unbound = []
        return []

    def _bind(self, calls: Sequence[Submitted | Attach]) -> None:
        keys = [key_of(item.future) for item in calls]
        outcomes, running = self._session.look_up(keys) if keys else ({}, {})
        taken, put_off = self._of_others(calls, outcomes, running)
        outcomes |= taken
        if not outcomes and not running and not any(isinstance(item, Attach) for item in calls):
            self._publish([(item, 0) for item in calls], put_off)  # type: ignore[misc]
            return
        fresh: list[Row] = []
        ended: list[tuple[Future, Found]] = []
        for item, key in zip(calls, keys, strict=True):
            found = outcomes.get(key)
            if key in running:
                self._bind_to(item.future, running[key])
                if not self._agree(item, item.future):
                    self._waiting.fail([item.future], _conflict(key))
            elif isinstance(item, Attach):
                self._attach(item.future, found, ended)
            elif found is None or found.status != Status.DONE or item.order.cache != "reuse":
                fresh.append((item, found.round + 1 if found else 0))
            elif not _same(found.descriptor, item.call.descriptor):
                self._waiting.fail([item.future], _conflict(key))
            else:
                ended.append((item.future, found))
        gone = dict(self._delivery.deliver(ended))
        if gone:
            fresh += self._computed_anew(gone, calls, outcomes)
        self._publish(fresh, put_off)

    def _publish(self, calls: list[Row], put_off: Mapping[bytes, str]) -> None:
        """As new rows; of some, a user who has them computed is known."""
        self._publisher.publish(
            [(self._put_off(item, put_off.get(item.call.key)), again) for item, again in calls]
            if put_off
            else calls
        )

    def _put_off(self, item: Submitted, user: str | None) -> Submitted:
        if user is None or self._deferral is None:
            return item
        lane = self._deferral.lane(item.order.lane, user)
        return item._replace(order=item.order._replace(lane=lane))

    def _of_others(
        self,
        calls: Sequence[Submitted | Attach],
        outcomes: Mapping[bytes, Found],
        running: Container[bytes],
    ) -> tuple[dict[bytes, Found], dict[bytes, str]]:
        """Of calls that would have to run here: values that others have, and who computes them."""
        if self._deferral is None:
            return {}, {}
        done = {key for key, found in outcomes.items() if found.status == Status.DONE}
        wanted = {
            item.call.key: item.call.descriptor
            for item in calls
            if isinstance(item, Submitted)
            and item.order.cache == "reuse"
            and item.call.key not in done
            and item.call.key not in running
        }
        # Their tasks are looked at first: what ends meanwhile is found by its outcome.
        pending = self._deferral.pending(wanted)
        found: dict[bytes, Found] = {}
        with suppress(OSError, SpoolError):  # they are computed here, then
            found = self._session.adopt(wanted)
        return found, pending

    def _computed_anew(
        self,
        gone: dict[Future, ResultLost],
        calls: Sequence[Submitted | Attach],
        outcomes: Mapping[bytes, Found],
    ) -> list[Row]:
        """Calls whose stored values are gone; who only attached is told so."""
        found = []
        for item in calls:
            if item.future in gone and isinstance(item, Submitted):
                found.append((item, outcomes[item.call.key].round + 1))
            elif item.future in gone:
                self._waiting.fail([item.future], gone[item.future])
        return found

    def _attach(
        self, future: Future, found: Found | None, ended: list[tuple[Future, Found]]
    ) -> None:
        if found is not None:
            ended.append((future, found))
        else:
            self._delivery.lose(future, "The spool has no task with this key")

    def _bind_to(self, future: Future, row: tuple[str, int]) -> None:
        future.stem, future.row = row
        self._session.bind(row, future)
        self._waiting.shapes.setdefault(row[0].split("-")[3])

    def _agree(self, item: Submitted | Attach, first: Future) -> bool:
        """Whether a call is the one that was stored under the name that it gives itself."""
        if isinstance(item, Attach) or item.call.descriptor == item.call.key:
            return True
        if first.stem is not None:
            known = self._session.descriptor(first.stem, first.row)
        else:
            known = self._named.get(item.call.key)
        return known is None or _same(known, item.call.descriptor)


@contextmanager
def _in_order(spool: Spool) -> Iterator[None]:
    """Of clients that submit the same at the same moment, the second finds the first's rows.

    As with agents, the lock is for order only: who does not get it soon goes on without.
    """
    files, area, _ = spool
    path, end = area.lock("submit"), files.monotonic() + LOCK_PATIENCE
    lock = None
    with suppress(OSError):
        while (lock := files.try_lock(path)) is None and files.monotonic() < end:
            time.sleep(LOCK_RETRY)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _is_fresh(item: Submitted | Attach) -> bool:
    return isinstance(item, Submitted) and item.order.cache == "refresh"


def _same(descriptor: bytes, other: bytes) -> bool:
    """Whether two calls under one name are the same, as far as that can be told."""
    return descriptor == other or UNKNOWN in (descriptor, other)


def _conflict(key: bytes) -> KeyConflict:
    return KeyConflict(
        "Another call was stored under this cache_key",
        key.hex(),
        'Choose another cache_key, or resource_dict={"cache": "refresh"} to replace its value',
    )
