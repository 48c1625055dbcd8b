"""The client's one thread: publishes what was submitted, delivers what has ended.

    submit() --put--> outbox --take all--> look up, bind, publish one task file
                                           list for news, read result files --> futures

Group commit: `submit` only puts a call into the outbox. The thread takes everything that
is there and publishes it as one task file. A lone call leaves at once; while a file
is being written the next one fills up. There is no timer and no batch size.

One thread does both directions, so that the two never compete for the interpreter, and one
queue wakes it: for calls, and for news from the watch.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fsbroker.client.outcomes import resolve
from fsbroker.client.session import ClientSession, Lane
from fsbroker.spool.watch import Watch, watch
from fsbroker.errors import FsbrokerError, KeyConflict, SpoolError, SpoolMissing, TaskLost
from fsbroker.future import PENDING, Future
from fsbroker.spool.blobs import store
from fsbroker.spool.index import Found
from fsbroker.spool.layout import MAX_ROWS
from fsbroker.spool.log import State
from fsbroker.spool.spool import Spool
from fsbroker.spool.taskfile import Arguments, FunctionEntry, TaskRow
from fsbroker.task import Payload, Status

if TYPE_CHECKING:
    from fsbroker.keys import Call, Function

CHECK_EVERY = 2.0
"""Seconds between looks at what no news will ever tell of: agents that died, lost files."""
PATIENCE = 30.0
"""Seconds of failing file calls after which the futures are told."""
LARGEST_FILE = 64 << 20
"""Bytes of arguments in one task file."""
FLUSH_AT_EXIT = 30.0
"""Seconds that an ending interpreter waits for the outbox to be published."""


class Order(NamedTuple):
    """How a call is to be treated.

    Attributes:
        lane: which task files it may share. cache: "reuse", "refresh" or "off".
    """

    lane: Lane
    cache: str


class Submitted(NamedTuple):
    """A call in the outbox."""

    future: Future
    call: Call
    function: Function
    order: Order


class Attach(NamedTuple):
    """A future that wants a task which exists."""

    future: Future


class Agents(Protocol):
    """Who sees to it that agents run (`fsbroker.launch`)."""

    def ensure(self, session: ClientSession[Any], shapes: Iterable[str]) -> str | None:
        """Start agents if none can run these shapes; what is wrong if they cannot start."""


class ClientLoop:
    """The thread between an executor's futures and the spool."""

    def __init__(self, spool: Spool, agents: Agents | None, method: str = "auto") -> None:
        self.spool = spool
        self._agents = agents
        self._method = method
        self._outbox: SimpleQueue[Submitted | Attach | None] = SimpleQueue()
        self.put: Callable[[Submitted | Attach | None], None] = self._outbox.put
        self.lock = threading.RLock()
        self._idle = threading.Condition(self.lock)
        self._session: ClientSession[Future] = ClientSession(spool, _key_of)
        self._open: dict[bytes, Future] = {}
        self._shapes: dict[str, None] = {}
        self._entries: dict[bytes, FunctionEntry] = {}
        self.thread: threading.Thread | None = None
        self._closing = False
        self._watch: Watch | None = None
        self._last_check = 0.0
        self._trouble_since: float | None = None
        self._pid = os.getpid()

    # -- called by user threads ----------------------------------------------------------

    def start(self) -> None:
        """Start the thread; it ends after `close`, when every future has ended."""
        with self.lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="fsbroker", daemon=True)
                self.thread.start()
                _LOOPS.add(self)

    def close(self) -> None:
        """Nothing more will be put."""
        self._closing = True
        self.put(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Until every future has ended; False after ``timeout`` seconds."""
        with self._idle:
            return self._idle.wait_for(self._is_idle, timeout)

    def flush(self, timeout: float) -> None:
        """Until everything in the outbox is in the spool."""
        if self.thread is None or os.getpid() != self._pid:
            return
        done = threading.Event()
        self.put(_Flush(done))  # type: ignore[arg-type]
        until = time.monotonic() + timeout
        # A thread that is just ending answers no more: everything is in the spool then.
        while self.thread is not None and time.monotonic() < until:
            if done.wait(0.05):
                return

    def _is_idle(self) -> bool:
        return not self._open and self._outbox.empty()

    def cancel(self, future: Future) -> bool:
        """See `Future.cancel`."""
        with self.lock:
            if future.done():
                return future.cancelled()
            wanting = [one for one in self._family(future) if not one.done()]
            if len(wanting) == 1 and future._stem is not None:
                if not self._session.cancel(future._stem, future._row):
                    return False
            if not future.cancel_here():
                return False
            if len(wanting) <= 1:
                self._forget(future)
            return True

    def cancel_all(self) -> None:
        """Cancel what no agent has claimed."""
        for future in list(self._open.values()):
            for one in list(self._family(future)):
                one.cancel()

    def _family(self, future: Future) -> list[Future]:
        """All futures of one key: twins share the list of the first one."""
        return future._twins if future._twins is not None else [future]

    def _forget(self, future: Future) -> None:
        key = future.key
        if key is not None and self._open.get(key) in self._family(future):
            first = self._open.pop(key)
            self._session.unbind(first)
            self._idle.notify_all()

    def is_claimed(self, future: Future) -> bool:
        with self.lock:
            first = self._open.get(future.key) if future.key else None
            if first is None or first._stem is None:
                return False
            return self._session.state(first._stem, first._row) == State.CLAIMED

    def futures_of(self, keys: Iterable[bytes]) -> list[Future]:
        """Futures of tasks that exist."""
        futures = [Future(key, self) for key in keys]
        for future in futures:
            self.put(Attach(future))
        self.start()
        return futures

    # -- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        directory = f"{self.spool.files.root}/{self.spool.area.agents}"
        self._watch = watch(directory, lambda: self.put(None), self._method)
        try:
            while not (self._closing and self._is_idle()):
                self._turn(self._watch)
        finally:
            self._watch.stop()
            with self._idle:
                self.thread = None
                self._idle.notify_all()

    def _turn(self, watching: Watch) -> None:
        delay = min(watching.delay, CHECK_EVERY) if self._open else watching.delay
        items = self._take(delay)
        try:
            with self.lock:
                calls = [item for item in items if isinstance(item, (Submitted, Attach))]
                if calls:
                    watching.reset()
                    self._accept(calls)
                found = self._look() if self._open else False
                watching.reset() if found else watching.waited()
                self._idle.notify_all()
            self._trouble_since = None
        except (OSError, SpoolError) as error:
            self._in_trouble(error)
        for item in items:
            if isinstance(item, _Flush):
                item.done.set()

    def _take(self, delay: float) -> list[Any]:
        """Everything in the outbox; waits for the first of it."""
        get = self._outbox.get
        try:
            items = [get(timeout=delay)]
        except Empty:
            return []
        try:
            for _ in range(self._outbox.qsize()):
                items.append(get(block=False))
        except Empty:
            pass
        return items

    def _in_trouble(self, error: Exception) -> None:
        """File calls fail: go on trying for a while, then tell everybody who waits."""
        now = self.spool.files.monotonic()
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since < PATIENCE:
            threading.Event().wait(0.2)
            return
        root = self.spool.files.root
        told = error if isinstance(error, SpoolError) else SpoolMissing(str(error), root)
        self._fail(list(self._open.values()), told)
        self._trouble_since = None

    # -- towards the spool ---------------------------------------------------------------

    def _accept(self, calls: Sequence[Submitted | Attach]) -> None:
        """Bind each call to what exists, or to a new row."""
        new: list[Submitted] = []
        for item in calls:
            future = item.future
            assert future.key is not None
            first = self._open.setdefault(future.key, future)
            if first is not future:
                self._join(first, future)
            elif future._state == PENDING:
                new.append(item)
            else:
                del self._open[future.key]
        try:
            self._bind(new)
        except (OSError, SpoolError) as error:
            unbound = [item.future for item in new if item.future._stem is None]
            self._fail(unbound, error)

    def _join(self, first: Future, future: Future) -> None:
        if first._twins is None:
            first._twins = [first]
        first._twins.append(future)
        future._twins = first._twins

    def _bind(self, calls: Sequence[Submitted | Attach]) -> None:
        keys = [_key_of(item.future) for item in calls]
        outcomes, running = self._session.look_up(keys) if keys else ({}, {})
        if not outcomes and not running and not any(isinstance(item, Attach) for item in calls):
            self._publish([(item, 0) for item in calls])  # type: ignore[misc]
            return
        fresh: list[tuple[Submitted, int]] = []
        ended: list[tuple[Future, Found]] = []
        for item, key in zip(calls, keys, strict=True):
            found = outcomes.get(key)
            if key in running:
                self._bind_to(item.future, running[key])
            elif isinstance(item, Attach):
                self._attach(item.future, found, ended)
            elif found is None or found.status != Status.DONE or item.order.cache != "reuse":
                fresh.append((item, found.round + 1 if found else 0))
            elif found.descriptor != item.call.descriptor:
                self._fail([item.future], _conflict(key))
            else:
                ended.append((item.future, found))
        self._deliver_found(ended)
        self._publish(fresh)

    def _attach(
        self, future: Future, found: Found | None, ended: list[tuple[Future, Found]]
    ) -> None:
        if found is not None:
            ended.append((future, found))
        else:
            where = f"{_key_of(future).hex()} in {self.spool.files.root}"
            self._fail([future], TaskLost("The spool has no task with this key", where))

    def _bind_to(self, future: Future, row: tuple[str, int]) -> None:
        future._stem, future._row = row
        self._session.bind(row, future)
        self._shapes.setdefault(row[0].split("-")[3])

    def _publish(self, calls: Sequence[tuple[Submitted, int]]) -> None:
        """New rows as task files: those of dependencies before those of their dependents."""
        lanes: dict[Lane, list[tuple[Submitted, int]]] = {}
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

    def _publish_lanes(self, lanes: dict[Lane, list[tuple[Submitted, int]]]) -> None:
        for lane, calls in lanes.items():
            start = 0
            while start < len(calls):
                end = self._fill(calls, start)
                self._publish_file(lane, calls[start:end])
                start = end

    def _fill(self, calls: Sequence[tuple[Submitted, int]], start: int) -> int:
        """Where the next task file ends: at its most rows, or bytes."""
        payloads = [item.call.payload for item, _ in calls[start : start + MAX_ROWS]]
        sizes = [len(payload.data) for payload in payloads]
        if sum(sizes) <= LARGEST_FILE:
            return start + len(sizes)
        end = start + 1
        while sum(sizes[: end - start + 1]) <= LARGEST_FILE:
            end += 1
        return end

    def _publish_file(self, lane: Lane, calls: Sequence[tuple[Submitted, int]]) -> None:
        rows, futures = [], []
        for item, again in calls:
            try:
                rows.append(self._row(item, again))
            except (FsbrokerError, OSError) as error:
                self._fail([item.future], error)
            else:
                futures.append(item.future)
        if not rows:
            return
        for number, future in enumerate(futures):
            future._row = number
        stem = self._session.publish(lane, rows, futures)
        for future in futures:
            if future._stem is None:
                future._stem = stem
        self._shapes.setdefault(lane.shape)
        self._ensure_agents()

    def _row(self, item: Submitted, again: int) -> TaskRow:
        key, descriptor, payload = item.call
        entry = self._entries.get(item.function.digest) or self._entry(item.function)
        arguments = self._stored(payload) if payload.arrays else payload
        return TaskRow(key, descriptor, arguments, entry, again)  # type: ignore[arg-type]

    def _entry(self, function: Function) -> FunctionEntry:
        entry = FunctionEntry(function.digest, function.name, function.source, function.pickle)
        self._entries[function.digest] = entry
        return entry

    def _stored(self, payload: Payload) -> Arguments:
        files, area, durable = self.spool
        arrays = tuple(store(files, area, array, durable=durable) for array in payload.arrays)
        return Arguments(payload.encoding, payload.data, arrays, payload.dependencies)

    # -- back from the spool -------------------------------------------------------------

    def _look(self) -> bool:
        """Deliver news; now and then look after what has none. True if there was any."""
        found = False
        for ended in self._session.poll():
            found = True
            self._deliver(ended.file, ended.tickets)
        now = self.spool.files.monotonic()
        if self._open and now - self._last_check > CHECK_EVERY:
            self._last_check = now
            self._check()
        return found

    def _check(self) -> None:
        checked = self._session.check()
        for ended in checked.ended:
            self._deliver(ended.file, ended.tickets)
        self._deliver_found(checked.elsewhere)
        for future in checked.lost:
            where = f"{_key_of(future).hex()} in {self.spool.files.root}"
            cure = "Submit it again"
            self._fail([future], TaskLost("The task's file was removed before it ended", where, cure))
        self._ensure_agents()

    def _ensure_agents(self) -> None:
        if self._agents is None or not self._open:
            return
        wrong = self._agents.ensure(self._session, self._shapes)
        if wrong is not None:
            error = SpoolError("No agent can run the tasks", self.spool.files.root, wrong)
            self._fail(list(self._open.values()), error)

    def _deliver_found(self, found: Sequence[tuple[Future, Found]]) -> None:
        files: dict[str, list[tuple[int, Future]]] = {}
        for future, where in found:
            files.setdefault(where.place.path, []).append((where.place.row, future))
        for path, tickets in files.items():
            self._deliver(self._session.results.file(path), tickets)

    def _deliver(self, file: Any, tickets: list[tuple[int, Future]]) -> None:
        resolved = resolve(self.spool, file, [index for index, _ in tickets])
        pop = self._open.pop
        for (_, future), (value, error) in zip(tickets, resolved, strict=True):
            pop(future.key, None)  # type: ignore[arg-type]
            if future._twins is None:
                future.deliver(value, error)
            else:
                for one in future._twins:
                    one.deliver(value, error)
        if not self._open:
            self._shapes.clear()

    def _fail(self, futures: Sequence[Future], error: BaseException) -> None:
        for future in futures:
            self._open.pop(_key_of(future), None)
            self._session.unbind(future)
            for one in self._family(future):
                one.deliver(None, error)


class _Flush(NamedTuple):
    done: threading.Event


def _key_of(future: Future) -> bytes:
    assert future.key is not None
    return future.key


def _conflict(key: bytes) -> KeyConflict:
    return KeyConflict(
        "Another call was stored under this cache_key",
        key.hex(),
        'Choose another cache_key, or resource_dict={"cache": "refresh"} to replace its value',
    )


_LOOPS: weakref.WeakSet[ClientLoop] = weakref.WeakSet()


@atexit.register
def _flush_at_exit() -> None:
    """What was submitted is in the spool before the interpreter ends; agents finish it."""
    for loop in list(_LOOPS):
        loop.flush(FLUSH_AT_EXIT)
