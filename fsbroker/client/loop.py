"""The client's one thread: publishes what was submitted, delivers what has ended.

    submit() --put--> outbox --take all--> look up, bind, publish one task file
                                           list for news, read result files --> futures

Group commit: `submit` only puts a call into the outbox. The thread takes everything that
is there and publishes it as one task file. A lone call leaves at once; while a file
is being written the next one fills up. There is no timer and no batch size.

One thread does both directions, so that the two never compete for the interpreter, and one
queue wakes it: for calls, and for news from the watch. What it knows is under one lock;
users' callbacks are called after that was let go.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fsbroker.client.deferral import Deferral
from fsbroker.client.outcomes import Reader, log_sizes
from fsbroker.client.session import MISSED, ClientSession, Lane
from fsbroker.errors import (
    FormatTooNew,
    FsbrokerError,
    KeyConflict,
    ResultLost,
    SpoolError,
    SpoolMissing,
    TaskLost,
)
from fsbroker.future import Future
from fsbroker.keys import UNKNOWN
from fsbroker.needs import Allowance
from fsbroker.spool.blobs import store
from fsbroker.spool.files import explain
from fsbroker.spool.index import Found
from fsbroker.spool.layout import MAX_ROWS
from fsbroker.spool.log import State
from fsbroker.spool.neighbours import Neighbours
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import Arguments, FunctionEntry, TaskRow
from fsbroker.spool.watch import LAST_DELAY, Watch, watch
from fsbroker.task import Payload, Status

if TYPE_CHECKING:
    from concurrent.futures import Future as AnyFuture

    from fsbroker.keys import Call, Function
    from fsbroker.mapping import Stream

CHECK_EVERY = 2.0
UNREADABLE = 30
"""Checks in a row that cannot read an outcome after which its task counts as lost."""
"""Seconds between looks at what no news will ever tell of: agents that died, lost files."""
PATIENCE = 30.0
"""Seconds of failing file calls after which the futures are told."""
RETRY = 0.2
"""Seconds between tries while they fail."""
STOP = 5.0
"""Seconds that an ending interpreter waits for the thread."""
LOCK_PATIENCE = 0.5
"""Seconds that one client waits for another that is publishing."""
LOCK_RETRY = 0.001
LARGEST_FILE = 64 << 20
"""Bytes of arguments in one task file."""
FLUSH = 30.0
"""Seconds to wait until the outbox is published: at the interpreter's end, and to cancel."""


ROOTS: set[str] = set()
"""The spools that futures of this process are of."""


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


class Habits(NamedTuple):
    """How a client goes about it.

    Attributes:
        watch: how to see news (`watch`). slowest: the most seconds between two looks.
        log_sizes: log how many bytes values have.
        keep: False: the spool is this client's alone, and is removed when it ends.
    """

    watch: str = "auto"
    slowest: float = LAST_DELAY
    log_sizes: bool = False
    keep: bool = True


class Agents(Protocol):
    """Who sees to it that agents run (`fsbroker.launch`)."""

    def resize(self, allowed: Allowance) -> None:
        """Have the agents use more, or less, from now on."""

    def release(self) -> None:
        """The client has ended: let go of agents that live no longer than it does."""

    def ensure(
        self, session: ClientSession[Any], shapes: Iterable[str]
    ) -> Mapping[str, FsbrokerError]:
        """Start agents if none can run these shapes; what is wrong if they cannot start.

        Returns:
            The error of each row, "<stem>.<row>", that no agent will run; "" for all rows.

        Raises:
            OSError, SpoolError: file calls fail, which may pass.
        """


class ClientLoop:
    """The thread between an executor's futures and the spool.

    Args:
        habits: what differs from the rule.
        neighbours: whose results are used as well; None: nobody's.
    """

    def __init__(
        self,
        spool: Spool,
        agents: Agents | None,
        habits: Habits | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.spool = spool
        self._habits = habits or Habits()
        self._keep = self._habits.keep
        self.root = spool.files.root
        ROOTS.add(self.root)
        self.pid = os.getpid()
        self._agents = agents
        self._outbox: SimpleQueue[Submitted | Attach | None] = SimpleQueue()
        self.put: Callable[[Submitted | Attach | None], None] = self._outbox.put
        self.lock = threading.RLock()
        self._idle = threading.Condition(self.lock)
        self._session: ClientSession[Future] = ClientSession(spool, _key_of, _moved, neighbours)
        self._reader = Reader(spool, self._session.results)
        self._open: dict[bytes, Future] = {}
        self._named: dict[bytes, bytes] = {}
        self._unbound: list[Submitted | Attach] = []
        self._deferred: set[Future] = set()
        self._deferral = Deferral(neighbours) if neighbours is not None else None
        self._callbacks: deque[Future] = deque()
        self._calling = 0
        self._shapes: dict[str, None] = {}
        self._entries: dict[bytes, FunctionEntry] = {}
        self.feeds: set[Stream] = set()
        """What is to be submitted as results are taken, or by `drain`."""
        self.thread: threading.Thread | None = None
        self._released = threading.Event()
        if self._keep:
            self._released.set()
        self._closing = False
        self._stopping = False
        self._last_check = 0.0
        self._last_look = 0.0
        self._unread: dict[Future, int] = {}
        self._trouble_since: float | None = None
        self._without_agents_since: float | None = None

    # -- called by user threads ----------------------------------------------------------

    def is_own_process(self) -> bool:
        """False in a forked child, where the thread does not exist and locks mean nothing."""
        return os.getpid() == self.pid

    def start(self) -> None:
        """Start the thread; it ends after `close`, when every future has ended."""
        with self.lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name="fsbroker", daemon=True)
                self.thread.start()
                _LOOPS.add(self)

    def send(self, item: Submitted | Attach) -> None:
        """Put a call into the outbox."""
        self.put(item)
        if self.thread is None:
            self.start()

    def close(self) -> None:
        """Nothing more will be put."""
        self._closing = True
        self.put(None)
        if self.thread is None and self.is_own_process():
            self._release()

    def finish(self) -> None:
        """See to what must be there when the interpreter has ended."""
        self.drain()
        self.hurry()
        if not self._keep:  # nobody will ever see what comes of it later
            self.close()
            self.wait()
        self.flush(FLUSH)
        self.stop(STOP)

    def _release(self) -> None:
        """Once: what is this client's alone goes with it."""
        with self.lock:
            keep, self._keep = self._keep, True
        if not keep and self._agents is not None:
            self._agents.release()
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)
            self._released.set()

    def stop(self, timeout: float) -> None:
        """End the thread, whatever it still waits for."""
        thread = self.thread
        self._stopping = True
        self.put(None)
        if thread is not None:
            thread.join(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Until every future has ended; False after ``timeout`` seconds.

        In a callback, which runs in the thread that it would wait for, it does nothing.
        """
        if self._is_in_thread():
            return False
        self.flush(timeout)
        with self._idle:
            ended = self._idle.wait_for(self._has_no_future, timeout)
        return ended and (not self._closing or self._released.wait(timeout))

    def drain(self) -> None:
        """Have everything submitted that was put off."""
        for feed in list(self.feeds):
            feed.fill()

    def flush(self, timeout: float | None) -> None:
        """Until everything in the outbox is in the spool."""
        if not self.is_own_process() or self._is_in_thread() or not self._is_running():
            return
        done = threading.Event()
        self.put(_Flush(done))  # type: ignore[arg-type]
        until = math.inf if timeout is None else time.monotonic() + timeout
        # A thread that has just ended answers no more: everything is in the spool then.
        while self._is_running() and time.monotonic() < until:
            if done.wait(0.05):
                return

    def pending(self) -> int:
        """How many futures have not ended."""
        with self.lock:
            families = [len(self._family(first)) for first in self._open.values()]
            return self._outbox.qsize() + sum(families) + len(self._deferred)

    def hurry(self) -> None:
        """Publish what was put off because others compute it: nobody here will wait for them."""
        with self.lock, suppress(OSError, SpoolError):
            if self._deferral is not None:
                self._deferral.ended = True
                self._look_after_put_off()

    def unpublished(self) -> int:
        """How many calls are not in the spool, after a `flush`, because file calls fail."""
        return len(self._unbound) + len(self._deferral.calls if self._deferral else ())

    def _is_in_thread(self) -> bool:
        return threading.current_thread() is self.thread

    def _is_running(self) -> bool:
        return self.thread is not None

    def _has_no_future(self) -> bool:
        return not (self._open or self._deferred or self._callbacks or self._calling)

    def _is_idle(self) -> bool:
        return self._has_no_future() and self._outbox.empty()

    def defer(self, future: Future) -> None:
        """This future will be put when it has a key."""
        with self.lock:
            self._deferred.add(future)

    def arrive(self, future: Future, item: Submitted | None, error: BaseException | None) -> None:
        """A deferred future has its key, or never will."""
        with self._idle:
            if item is not None and future.is_pending():
                future.key = item.call.key
                self.send(item)  # deferred until it is accepted: somebody may wait for all
            else:
                self._deferred.discard(future)
                self._settle(future, None, error)
            self._idle.notify_all()
        self._call_back()
        future.tell_addressed()

    def cancel(self, future: Future) -> bool:
        """See `Future.cancel`."""
        if not self.is_own_process():
            return False
        with self.lock:
            if not self._cancel(future):
                return future.cancelled()
        future.call_back()
        return True

    def _cancel(self, future: Future) -> bool:
        if future.done():
            return False
        first = self._first_of(future)
        alone = first if first is not None and len(self._family(first)) == 1 else None
        if alone is not None and not self._take_back(alone):
            return False
        if not future.cancel_here():
            return False
        if future.twins is not None:
            future.twins.remove(future)
        if alone is not None:
            self._forget(alone)
        self._deferred.discard(future)
        self._idle.notify_all()
        return True

    def _take_back(self, first: Future) -> bool:
        """Its task will not run."""
        return first.stem is None or bool(self._cancel_rows(first.stem, [first.row]))

    def _cancel_rows(self, stem: str, rows: Sequence[int]) -> set[int]:
        try:
            return self._session.cancel_rows(stem, rows)
        except (OSError, SpoolError):
            return set()  # what cannot be cancelled now may run

    def cancel_all(self) -> None:
        """Cancel what no agent has claimed."""
        if not self.is_own_process():
            return
        for feed in list(self.feeds):
            feed.give_up()
        ended = [future for future in self._unsent() if future.cancel_here()]
        self.flush(FLUSH)
        with self._idle:
            ended += [future for future in self._deferred if future.cancel_here()]
            self._deferred.clear()
            ended += self._cancel_open(self._open.values())
            self._idle.notify_all()
        for future in ended:
            future.call_back()

    def cancel_many(self, futures: Iterable[AnyFuture[Any]]) -> None:
        """As each one's own `cancel`, but with one record for many rows of a task file."""
        wanted = list(futures)
        with self._idle:
            alone = {one for one in wanted if isinstance(one, Future) and self._is_alone(one)}
            ended = self._cancel_open(alone)
            self._idle.notify_all()
        for future in ended:
            future.call_back()
        for other in wanted:
            if other not in alone:
                other.cancel()

    def _is_alone(self, future: Future) -> bool:
        """It stands for its key, and no other future does."""
        return self._first_of(future) is future and len(self._family(future)) == 1

    def _unsent(self) -> list[Future]:
        """Empties the outbox; the futures in it."""
        found = []
        for item in self._take(0.0):
            if isinstance(item, (Submitted, Attach)):
                found.append(item.future)
            elif item is not None:
                self.put(item)
        return found

    def _cancel_open(self, open_ones: Iterable[Future]) -> list[Future]:
        """One record for all rows of a task file, where one each would be thousands."""
        files: dict[str | None, list[Future]] = {}
        for first in open_ones:
            files.setdefault(first.stem, []).append(first)
        ended = []
        for stem, firsts in files.items():
            rows = [first.row for first in firsts]
            done = set(rows) if stem is None else self._cancel_rows(stem, rows)
            for first in firsts:
                if first.row in done:
                    ended += [one for one in self._family(first) if one.cancel_here()]
                    self._forget(first)
        return ended

    def _first_of(self, future: Future) -> Future | None:
        """The open future that stands for all of its key; None if this one is not among them."""
        first = self._open.get(future.key) if future.key is not None else None
        if first is future or (first is not None and future in self._family(first)):
            return first
        return None

    def _family(self, future: Future) -> list[Future]:
        """All futures of one key that want it: twins share the list of the first one."""
        return future.twins if future.twins is not None else [future]

    def _forget(self, first: Future) -> None:
        self._open.pop(_key_of(first), None)
        self._unbind(first)
        self._idle.notify_all()

    def _unbind(self, first: Future) -> None:
        if first.stem is not None:
            self._session.unbind(first.stem, first.row, first)

    def is_claimed(self, future: Future) -> bool:
        if not self.is_own_process():
            return False
        with self.lock:
            first = self._first_of(future)
            if first is None or first.stem is None:
                return False
            try:
                return self._session.state(first.stem, first.row) == State.CLAIMED
            except (OSError, SpoolError):
                return False

    def futures_of(self, keys: Iterable[bytes]) -> list[Future]:
        """Futures of tasks that exist."""
        futures = [Future(key, self) for key in keys]
        for future in futures:
            self.send(Attach(future))
        return futures

    # -- the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        directory = f"{self.root}/{self.spool.area.agents}"
        watching = watch(
            directory,
            lambda: self.put(None),
            self._habits.watch,
            self._habits.slowest,
            self.spool.files.pause,
        )
        try:
            while not self._has_ended():
                self._turn(watching)
        except BaseException as error:
            # Nothing that goes wrong here may leave futures that nobody will resolve.
            with self._idle:
                self.thread = None
                self._fail(list(self._open.values()), error)
            self._call_back()
            raise
        finally:
            watching.stop()
            if self._closing or self._stopping:
                self._release()

    def _has_ended(self) -> bool:
        """Whether the thread may end; then it counts as ended.

        It looks into the outbox after it has said so, and `send` looks whether it runs after
        it has put: whichever comes second sees the other.
        """
        if not self._stopping and not (self._closing and self._is_idle()):
            return False
        with self._idle:
            thread, self.thread = self.thread, None
            self._idle.notify_all()
            if self._stopping or self._outbox.empty():
                return True
            self.thread = thread
            return False

    def _turn(self, watching: Watch) -> None:
        delay = min(watching.delay, CHECK_EVERY) if self._open else watching.delay
        items = self._take(delay)
        # Right behind a submission there is no news of it: it must not wait for a look.
        told = None in items or not items
        told |= self.spool.files.monotonic() - self._last_look > delay
        try:
            with self.lock:
                calls = [item for item in items if isinstance(item, (Submitted, Attach))]
                if calls or self._unbound:
                    watching.reset()
                    self._accept(calls)
                found = self._look() if self._open and told else False
                watching.reset() if found or not told else watching.waited()
                self._idle.notify_all()
            self._trouble_since = None
        except (OSError, SpoolError) as error:
            self._in_trouble(error)
        self._call_back()
        for item in items:
            if isinstance(item, _Flush):
                item.done.set()

    def _call_back(self) -> None:
        """Call what users asked to be called, without any lock: they may do anything."""
        while self._callbacks:
            with self.lock:
                future = self._callbacks.popleft() if self._callbacks else None
                self._calling += 1
            if future is not None:
                future.call_back()  # which lets no exception through
            with self._idle:
                self._calling -= 1
                self._idle.notify_all()

    def _take(self, delay: float) -> list[Any]:
        """Everything in the outbox; waits for the first of it."""
        get = self._outbox.get
        try:
            items = [get(timeout=delay)]
        except Empty:
            return []
        with suppress(Empty):
            items.extend(get(block=False) for _ in range(self._outbox.qsize()))
        return items

    def _in_trouble(self, error: Exception) -> None:
        """File calls fail: go on trying for a while, then tell everybody who waits."""
        now = self.spool.files.monotonic()
        self._trouble_since = self._trouble_since or now
        if now - self._trouble_since < PATIENCE and not isinstance(error, FormatTooNew):
            threading.Event().wait(RETRY)
            return
        with self._idle:
            self._unbound.clear()
            self._fail(list(self._open.values()), _told(error, self.root))
            self._idle.notify_all()
        self._trouble_since = None

    # -- towards the spool ---------------------------------------------------------------

    def _accept(self, calls: Sequence[Submitted | Attach]) -> None:
        """Bind each call to what exists, or to a new row."""
        new = [item for item in self._unbound if item.future.is_pending()]
        self._named.clear()
        for item in calls:
            future = item.future
            if self._deferred:
                self._deferred.discard(future)
            if not future.is_pending():
                continue
            first = self._open.setdefault(_key_of(future), future)
            unbound = first is not future and first.stem is None
            if unbound and (_is_fresh(item) or not self._agree(item, first)):
                # Before the first one is bound, it is not known what becomes of it.
                new = self._bind_all(new)
                first = self._open.setdefault(_key_of(future), future)
            if first is future:
                new.append(item)
                if isinstance(item, Submitted) and item.call.descriptor is not item.call.key:
                    self._named[item.call.key] = item.call.descriptor
            elif self._agree(item, first):
                self._join(first, future)
            else:
                self._settle(future, None, _conflict(_key_of(future)))
        self._bind_all(new)
        self._ensure_agents()

    def _bind_all(self, new: list[Submitted | Attach]) -> list[Submitted | Attach]:
        """Bind; what file calls failed for, without an error that is for sure, is kept."""
        self._unbound = new
        if not new:
            return []
        try:
            with self._in_order():
                self._bind(new)
        except SpoolError as error:
            left = [item.future for item in new if item.future.stem is None]
            self._fail([future for future in left if future.is_pending()], error)
        except OSError:
            self._unbound = [
                item for item in new if item.future.stem is None and item.future.is_pending()
            ]
            raise
        self._unbound = []
        return []

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Of clients that submit the same at the same moment, the second finds the first's rows.

        As with agents, the lock is for order only: who does not get it soon goes on without.
        """
        files, area, _ = self.spool
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

    def _agree(self, item: Submitted | Attach, first: Future) -> bool:
        """Whether a call is the one that was stored under the name that it gives itself."""
        if isinstance(item, Attach) or item.call.descriptor == item.call.key:
            return True
        if first.stem is not None:
            known = self._session.descriptor(first.stem, first.row)
        else:
            known = self._named.get(item.call.key)
        return known is None or _same(known, item.call.descriptor)

    def _join(self, first: Future, future: Future) -> None:
        if first.twins is None:
            first.twins = [first]
        first.twins.append(future)
        future.twins = first.twins

    def _bind(self, calls: Sequence[Submitted | Attach]) -> None:
        keys = [_key_of(item.future) for item in calls]
        outcomes, running = self._session.look_up(keys) if keys else ({}, {})
        outcomes |= self._taken_over(calls, outcomes, running)
        if not outcomes and not running and not any(isinstance(item, Attach) for item in calls):
            new = [(item, 0) for item in calls]
            self._publish(self._deferral.without(new) if self._deferral else new)  # type: ignore[arg-type]
            return
        fresh: list[tuple[Submitted, int]] = []
        ended: list[tuple[Future, Found]] = []
        for item, key in zip(calls, keys, strict=True):
            found = outcomes.get(key)
            if key in running:
                self._bind_to(item.future, running[key])
                if not self._agree(item, item.future):
                    self._fail([item.future], _conflict(key))
            elif isinstance(item, Attach):
                self._attach(item.future, found, ended)
            elif found is None or found.status != Status.DONE or item.order.cache != "reuse":
                fresh.append((item, found.round + 1 if found else 0))
            elif not _same(found.descriptor, item.call.descriptor):
                self._fail([item.future], _conflict(key))
            else:
                ended.append((item.future, found))
        gone = dict(self._deliver_found(ended))
        if gone:
            fresh += self._computed_anew(gone, calls, outcomes)
        self._publish(self._deferral.without(fresh) if self._deferral else fresh)

    # -- what others have, or will have --------------------------------------------------

    def _taken_over(
        self,
        calls: Sequence[Submitted | Attach],
        outcomes: Mapping[bytes, Found],
        running: Container[bytes],
    ) -> dict[bytes, Found]:
        """Values that others have of calls that would have to run here.

        What they are computing is put off. Their tasks are looked at first: what ends
        meanwhile is found by its outcome.
        """
        if self._deferral is None:
            return {}
        done = {key for key, found in outcomes.items() if found.status == Status.DONE}
        wanted = {
            item.call.key: item
            for item in calls
            if isinstance(item, Submitted)
            and item.order.cache == "reuse"
            and item.call.key not in done
            and item.call.key not in running
        }
        pending = self._deferral.pending(wanted)
        found = self._adopt(wanted.values())
        put_off = pending - found.keys()
        self._deferral.calls |= {key: item for key, item in wanted.items() if key in put_off}
        return found

    def _adopt(self, calls: Iterable[Submitted]) -> dict[bytes, Found]:
        with suppress(OSError, SpoolError):  # they are computed here, then
            return self._session.adopt({one.call.key: one.call.descriptor for one in calls})
        return {}

    def _look_after_put_off(self) -> None:
        """Deliver what others have finished; publish what they will not, and what hangs on it."""
        if self._deferral is None or not self._deferral.calls:
            return
        calls = self._deferral.take()
        pending = self._deferral.pending(calls)
        found = self._adopt(calls.values())
        put_off = pending - found.keys()
        self._deferral.calls = {key: item for key, item in calls.items() if key in put_off}
        self._fail_gone(
            self._deliver_found([(calls[key].future, where) for key, where in found.items()])
        )
        rest = [(item, 0) for key, item in calls.items() if key not in found]
        if due := self._deferral.without(rest):
            self._bind_all([*self._unbound, *(item for item, _ in due)])

    def _computed_anew(
        self,
        gone: dict[Future, ResultLost],
        calls: Sequence[Submitted | Attach],
        outcomes: Mapping[bytes, Found],
    ) -> list[tuple[Submitted, int]]:
        """Calls whose stored values are gone; who only attached is told so."""
        found = []
        for item in calls:
            if item.future in gone and isinstance(item, Submitted):
                found.append((item, outcomes[item.call.key].round + 1))
            elif item.future in gone:
                self._fail([item.future], gone[item.future])
        return found

    def _attach(
        self, future: Future, found: Found | None, ended: list[tuple[Future, Found]]
    ) -> None:
        if found is not None:
            ended.append((future, found))
        else:
            where = f"{_key_of(future).hex()} in {self.spool.files.root}"
            self._fail([future], TaskLost("The spool has no task with this key", where))

    def _bind_to(self, future: Future, row: tuple[str, int]) -> None:
        future.stem, future.row = row
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
            future.row = number
        stem = self._session.publish(lane, rows, futures)
        for future in futures:
            if future.stem is None:
                future.stem = stem
        self._shapes.setdefault(lane.shape)

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
        now = self._last_look = self.spool.files.monotonic()
        if now - self._last_check > CHECK_EVERY:
            self._last_check = now
            self._check()
        found = False
        for ended in self._session.poll():
            found = True
            self._fail_gone(self._deliver(ended.file, ended.tickets))
        return found

    def _check(self) -> None:
        self._look_after_put_off()
        checked = self._session.check()
        self._fail_gone(self._deliver_found(checked.elsewhere))
        self._read_again()
        for future in checked.lost:
            self._lose(future, "The task's file was removed before it ended")
        self._ensure_agents()

    def _ensure_agents(self) -> None:
        if self._agents is None or not self._open:
            return
        wrong: Mapping[str, Exception] = {}
        try:
            wrong = self._agents.ensure(self._session, self._shapes)
        except (OSError, SpoolError) as error:
            # What is read may be there still, so this is no trouble of the turn.
            now = self.spool.files.monotonic()
            self._without_agents_since = self._without_agents_since or now
            if now - self._without_agents_since > PATIENCE:
                wrong = {"": error}
                self._without_agents_since = None
        else:
            self._without_agents_since = None
        for future in list(self._open.values()) if wrong else ():
            told = wrong.get(f"{future.stem}.{future.row}") or wrong.get("")
            if told is not None:
                self._fail([future], _told(told, self.root))

    def _read_again(self) -> None:
        """What ended and could not be read: look where it stands by now."""
        unread, self._unread = self._unread, {}
        for future, times in unread.items():
            sure = times > MISSED or future.stem is None
            found = None
            with suppress(OSError, SpoolError):
                found = self._session.outcome(future, future.stem or "", future.row, sure=sure)
            if found is not None:
                self._fail_gone(self._deliver_found([(future, found)]))
            if (found is None and future.is_pending()) or future in self._unread:
                self._unread[future] = times + 1
                if times > UNREADABLE:
                    del self._unread[future]
                    self._lose(future, "The task's result cannot be read, or was removed")

    def _lose(self, future: Future, what: str) -> None:
        where = f"{_key_of(future).hex()} in {self.spool.files.root}"
        self._fail([future], TaskLost(what, where, "Submit it again"))

    def _fail_gone(self, gone: Sequence[tuple[Future, ResultLost]]) -> None:
        for future, error in gone:
            self._fail([future], error)

    def _deliver_found(
        self, found: Sequence[tuple[Future, Found]]
    ) -> list[tuple[Future, ResultLost]]:
        """As `_deliver`, from wherever the outcomes stand."""
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

    def _put_off(self, tickets: Sequence[tuple[int, Future]]) -> None:
        """What cannot be read now, or went into a pack, is looked for again in a while."""
        self._unread |= dict.fromkeys((future for _, future in tickets), 0)
        with suppress(OSError, SpoolError):
            self._session.results.look_again()

    def _deliver(
        self, file: ResultFile, tickets: list[tuple[int, Future]]
    ) -> list[tuple[Future, ResultLost]]:
        """Resolve futures; those whose stored value is gone are left to the caller."""
        gone: list[tuple[Future, ResultLost]] = []
        try:
            resolved = self._reader.resolve(file, [index for index, _ in tickets])
        except OSError:
            self._put_off(tickets)
            return gone
        if self._habits.log_sizes:
            log_sizes(file, [(index, _key_of(future)) for index, future in tickets])
        pop = self._open.pop
        for (_, future), (value, error) in zip(tickets, resolved, strict=True):
            if isinstance(error, ResultLost):
                gone.append((future, error))
                continue
            pop(future.key, None)  # type: ignore[arg-type]
            if future.twins is None:
                if future.deliver(value, error):
                    self._callbacks.append(future)
            else:
                for one in future.twins:
                    self._settle(one, value, error)
        if not self._open:
            self._shapes.clear()
        return gone

    def _settle(self, future: Future, value: Any, error: BaseException | None) -> None:
        if future.deliver(value, error):
            self._callbacks.append(future)

    def _fail(self, futures: Sequence[Future], error: BaseException) -> None:
        for future in futures:
            self._open.pop(_key_of(future), None)
            self._unbind(future)
            for one in self._family(future):
                self._settle(one, None, error)


class _Flush(NamedTuple):
    done: threading.Event


def _key_of(future: Future) -> bytes:
    assert future.key is not None
    return future.key


def _moved(future: Future, stem: str, row: int) -> None:
    future.stem, future.row = stem, row


def _is_fresh(item: Submitted | Attach) -> bool:
    return isinstance(item, Submitted) and item.order.cache == "refresh"


def _same(descriptor: bytes, other: bytes) -> bool:
    """Whether two calls under one name are the same, as far as that can be told."""
    return descriptor == other or UNKNOWN in (descriptor, other)


def _told(error: Exception, root: str) -> Exception:
    """The error that futures get when the spool cannot be used any more."""
    if isinstance(error, FsbrokerError):
        return error
    path = getattr(error, "filename", None) or root
    if isinstance(error, OSError) and (told := explain(error, path)):
        return told
    reason = getattr(error, "strerror", None) or str(error)
    return SpoolMissing(
        f"The spool cannot be used ({reason})",
        path,
        "Is its file system mounted? What it held goes on when it is back: submit again, or "
        "attach by key. If it was deleted, its tasks are lost.",
    )


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
        if loop.is_own_process():
            loop.finish()
            if loop.unpublished():
                lost = f"{loop.unpublished()} calls are not in the spool {loop.root}"
                print(f"fsbroker: {lost}, which cannot be used", file=sys.stderr)
    _release_hdf5()


def _release_hdf5() -> None:
    """Have HDF5 let go of h5py's converters: it would call them when Python is gone.

    h5py does that at exit, but not where the flush above was the first to import it: then
    its handler came too late, and the process would end with a segmentation fault.
    """
    release = getattr(sys.modules.get("h5py"), "_unregister_converters", None)
    if release is not None:
        release()
