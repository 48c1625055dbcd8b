"""From accepted calls to task files.

calls -> lanes -> at most `MAX_ROWS` rows and `LARGEST_FILE` bytes -> session.publish

The rows of dependencies are there before those of their dependents (rule W7).
"""

from __future__ import annotations

from collections.abc import Sequence

from fsbroker.client.outbox import Submitted
from fsbroker.client.session import ClientSession, Lane
from fsbroker.client.waiting import Waiting
from fsbroker.errors import FsbrokerError
from fsbroker.future import Future
from fsbroker.keys import Function
from fsbroker.spool.blobs import store
from fsbroker.spool.layout import MAX_ROWS
from fsbroker.spool.spool import Spool
from fsbroker.spool.taskfile import Arguments, FunctionEntry, TaskRow
from fsbroker.task import Payload

LARGEST_FILE = 64 << 20
"""Bytes of arguments in one task file."""

Round = int
"""How often a key was computed before: 0 for the first time."""
Row = tuple[Submitted, Round]
"""A call that is to be a new row."""


class Publisher:
    """Makes new rows known, and binds their futures to them."""

    def __init__(self, spool: Spool, session: ClientSession[Future], waiting: Waiting) -> None:
        self._spool = spool
        self._session = session
        self._waiting = waiting
        self._entries: dict[bytes, FunctionEntry] = {}

    def publish(self, calls: Sequence[Row]) -> None:
        """New rows as task files: those of dependencies before those of their dependents."""
        lanes: dict[Lane, list[Row]] = {}
        home: dict[bytes, Lane] = {}
        several = len({id(item.order.lane) for item, _ in calls}) > 1
        for entry in calls:
            item = entry[0]
            lane = item.order.lane
            if several:
                elsewhere = (home.get(one.key, lane) for one in item.call.payload.dependencies)
                if any(other is not lane for other in elsewhere):
                    self._publish_lanes(lanes)
                    lanes, home = {}, {}
                home[item.call.key] = lane
            lanes.setdefault(lane, []).append(entry)
        self._publish_lanes(lanes)

    def _publish_lanes(self, lanes: dict[Lane, list[Row]]) -> None:
        for lane, calls in lanes.items():
            start = 0
            while start < len(calls):
                end = _fill(calls, start)
                self._publish_file(lane, calls[start:end])
                start = end

    def _publish_file(self, lane: Lane, calls: Sequence[Row]) -> None:
        rows, futures = [], []
        for item, again in calls:
            try:
                rows.append(self._row(item, again))
            except (FsbrokerError, OSError) as error:
                self._waiting.fail([item.future], error)
            else:
                futures.append(item.future)
        if not rows:
            return
        for number, future in enumerate(futures):
            future.row = number
        stem = self._session.publish(lane, rows, futures)
        for future in futures:
            if future.stem is None:
                future.stem = stem
        if lane.holder is None:
            self._waiting.shapes.setdefault(lane.shape)

    def _row(self, item: Submitted, again: Round) -> TaskRow:
        key, descriptor, payload = item.call
        entry = self._entries.get(item.function.digest) or self._entry(item.function)
        arguments = self._stored(payload) if payload.arrays else payload
        return TaskRow(key, descriptor, arguments, entry, again)  # type: ignore[arg-type]

    def _entry(self, function: Function) -> FunctionEntry:
        entry = FunctionEntry(function.digest, function.name, function.source, function.pickle)
        self._entries[function.digest] = entry
        return entry

    def _stored(self, payload: Payload) -> Arguments:
        files, area, durable = self._spool
        arrays = tuple(store(files, area, array, durable=durable) for array in payload.arrays)
        return Arguments(payload.encoding, payload.data, arrays, payload.dependencies)


def _fill(calls: Sequence[Row], start: int) -> int:
    """Where the next task file ends: at its most rows, or bytes."""
    payloads = [item.call.payload for item, _ in calls[start : start + MAX_ROWS]]
    sizes = [len(payload.data) for payload in payloads]
    if sum(sizes) <= LARGEST_FILE:
        return start + len(sizes)
    end = start + 1
    while sum(sizes[: end - start + 1]) <= LARGEST_FILE:
        end += 1
    return end
