"""The client's one thread: publishes what was submitted, delivers what has ended.

    submit --put--> outbox --take all--> binding -> publishing -> one task file
                                         spool news -> delivery -> waiting futures

One thread does both directions, so that the two never compete for the interpreter, and one
queue wakes it: for calls, and for news from the watch. What it knows is under one lock;
users' callbacks are called after that was let go.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future as AnyFuture
from typing import TYPE_CHECKING, Any, NamedTuple

from fsbroker.client.agents import Agents, Staffing
from fsbroker.client.binding import Binder
from fsbroker.client.cancelling import Canceller
from fsbroker.client.deferral import Deferral
from fsbroker.client.delivery import Delivery
from fsbroker.client.exit import finish_at_exit
from fsbroker.client.outbox import Attach, Flush, Item, Outbox, Submitted
from fsbroker.client.session import ClientSession
from fsbroker.client.trouble import RETRY, Patience, told
from fsbroker.client.waiting import Waiting, key_of
from fsbroker.errors import FormatTooNew, SpoolError
from fsbroker.future import Future
from fsbroker.spool.spool import Spool
from fsbroker.spool.watch import LAST_DELAY, Watch, watch

if TYPE_CHECKING:
    from fsbroker.mapping import Stream

CHECK_EVERY = 2.0
"""Seconds between looks at what no news will ever tell of: agents that died, lost files."""
STOP = 5.0
"""Seconds that an ending interpreter waits for the thread."""
FLUSH = 30.0
"""Seconds to wait until the outbox is published: at the interpreter's end, and to cancel."""

ROOTS: set[str] = set()
"""The spools that futures of this process are of."""


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


class ClientLoop:
    """The thread between an executor's futures and the spool.

    Args:
        agents: has agents run; None: somebody else does.
        habits: what differs from the rule.
        deferral: whose results are used as well; None: nobody's.

    Attributes:
        put: puts into the outbox; `start` is due after that where there is no `thread`.
        lock: see `Waiting`.
        feeds: what is to be submitted as results are taken, or by `drain`.
    """

    def __init__(
        self,
        spool: Spool,
        agents: Agents | None,
        habits: Habits | None = None,
        deferral: Deferral | None = None,
    ) -> None:
        self.spool = spool
        self._habits = habits or Habits()
        self._keep = self._habits.keep
        self.root = spool.files.root
        ROOTS.add(self.root)
        self.pid = os.getpid()
        self._agents = agents
        self._outbox = Outbox()
        self.put: Callable[[Item], None] = self._outbox.put
        neighbours = deferral.neighbours if deferral is not None else None
        session: ClientSession[Future] = ClientSession(spool, key_of, _moved, neighbours)
        self._session = session
        waiting = self._waiting = Waiting(session)
        self.lock = waiting.lock
        self._delivery = Delivery(spool, session, waiting, log=self._habits.log_sizes)
        self._deferral = deferral
        self._binder = Binder(spool, session, waiting, self._delivery, deferral)
        self._canceller = Canceller(self._outbox, session, waiting, deferral)
        self._staffing = Staffing(spool, session, waiting, agents)
        self.feeds: set[Stream] = set()
        self.thread: threading.Thread | None = None
        self._released = threading.Event()
        if self._keep:
            self._released.set()
        self._closing = False
        self._stopping = False
        self._last_check = 0.0
        self._last_look = 0.0
        self._patience = Patience()

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
                finish_at_exit(self)

    def send(self, item: Submitted | Attach) -> None:
        """Put a call into the outbox."""
        self.put(item)
        if self.thread is None:
            self.start()

    def defer(self, future: Future) -> None:
        """This future will be put when it has a key."""
        with self.lock:
            self._waiting.keyless.add(future)

    def arrive(self, future: Future, item: Submitted | None, error: BaseException | None) -> None:
        """A deferred future has its key, or never will."""
        with self._waiting.changed:
            if item is not None and future.is_pending():
                future.key = item.call.key
                self.send(item)  # deferred until it is accepted: somebody may wait for all
            else:
                self._waiting.keyless.discard(future)
                self._waiting.settle(future, None, error)
            self._waiting.changed.notify_all()
        self._waiting.call_back()
        future.tell_addressed()

    def cancel(self, future: Future) -> bool:
        """See `Future.cancel`."""
        return self.is_own_process() and self._canceller.cancel(future)

    def cancel_all(self) -> None:
        """Cancel what no agent has claimed."""
        if not self.is_own_process():
            return
        for feed in list(self.feeds):
            feed.give_up()
        self._canceller.cancel_all(lambda: self.flush(FLUSH))

    def cancel_many(self, futures: Iterable[AnyFuture[Any]]) -> None:
        """As each one's own `cancel`, but with one record for many rows of a task file."""
        self._canceller.cancel_many(futures)

    def is_claimed(self, future: Future) -> bool:
        """See `Future.running`."""
        if not self.is_own_process():
            return False
        with self.lock:
            first = self._waiting.first_of(future)
            if first is None or first.stem is None:
                return False
            try:
                return self._session.is_claimed(first.stem, first.row)
            except (OSError, SpoolError):
                return False

    def futures_of(self, keys: Iterable[bytes]) -> list[Future]:
        """Futures of tasks that exist."""
        futures = [Future(key, self) for key in keys]
        for future in futures:
            self.send(Attach(future))
        return futures

    def pending(self) -> int:
        """How many futures have not ended."""
        with self.lock:
            return self._outbox.qsize() + self._waiting.count()

    # -- waiting, and the end ------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Until every future has ended; False after ``timeout`` seconds.

        In a callback, which runs in the thread that it would wait for, it does nothing.
        """
        if self._is_in_thread():
            return False
        self.flush(timeout)
        with self._waiting.changed:
            ended = self._waiting.changed.wait_for(self._waiting.is_empty, timeout)
        return ended and (not self._closing or self._released.wait(timeout))

    def flush(self, timeout: float | None) -> None:
        """Until everything in the outbox is in the spool."""
        if not self.is_own_process() or self._is_in_thread() or not self._is_running():
            return
        done = threading.Event()
        self.put(Flush(done))
        until = math.inf if timeout is None else time.monotonic() + timeout
        # A thread that has just ended answers no more: everything is in the spool then.
        while self._is_running() and time.monotonic() < until:
            if done.wait(0.05):
                return

    def drain(self) -> None:
        """Have everything submitted that was put off."""
        for feed in list(self.feeds):
            feed.fill()

    def close(self) -> None:
        """Nothing more will be put."""
        self._closing = True
        self.put(None)
        if self.thread is None and self.is_own_process():
            self._release()

    def stop(self, timeout: float) -> None:
        """End the thread, whatever it still waits for."""
        thread = self.thread
        self._stopping = True
        self.put(None)
        if thread is not None:
            thread.join(timeout)

    def finish(self) -> None:
        """See to what must be there when the interpreter has ended."""
        self.drain()
        self._hurry()
        if not self._keep:  # nobody will ever see what comes of it later
            self.close()
            self.wait()
        self.flush(FLUSH)
        self.stop(STOP)

    def unpublished(self) -> int:
        """How many calls are not in the spool, after a `flush`, because file calls fail."""
        return len(self._binder.unbound)

    def _hurry(self) -> None:
        """Leave to agents what was put off because others compute it: nobody here will look."""
        if self._deferral is not None:
            with self.lock:
                self._deferral.ended = True
                self._binder.look_after_put_off()
                self._staffing.ensure()

    def _release(self) -> None:
        """Once: what is this client's alone goes with it."""
        with self.lock:
            keep, self._keep = self._keep, True
        if not keep and self._agents is not None:
            self._agents.release()
        if not keep:
            shutil.rmtree(self.root, ignore_errors=True)
            self._released.set()

    def _is_in_thread(self) -> bool:
        return threading.current_thread() is self.thread

    def _is_running(self) -> bool:
        return self.thread is not None

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
            with self._waiting.changed:
                self.thread = None
                self._waiting.fail_all(error)
            self._waiting.call_back()
            raise
        finally:
            watching.stop()
            if self._deferral is not None:
                with self.lock:
                    self._deferral.end()
            if self._closing or self._stopping:
                self._release()

    def _has_ended(self) -> bool:
        """Whether the thread may end; then it counts as ended.

        It looks into the outbox after it has said so, and `send` looks whether it runs after
        it has put: whichever comes second sees the other.
        """
        if not self._stopping and not (self._closing and self._is_idle()):
            return False
        with self._waiting.changed:
            thread, self.thread = self.thread, None
            self._waiting.changed.notify_all()
            if self._stopping or self._outbox.empty():
                return True
            self.thread = thread
            return False

    def _is_idle(self) -> bool:
        return self._waiting.is_empty() and self._outbox.empty()

    def _turn(self, watching: Watch) -> None:
        delay = min(watching.delay, CHECK_EVERY) if self._waiting.firsts else watching.delay
        items = self._outbox.take(delay)
        # Right behind a submission there is no news of it: it must not wait for a look.
        due = None in items or not items
        due |= self.spool.files.monotonic() - self._last_look > delay
        try:
            with self.lock:
                calls = [item for item in items if isinstance(item, (Submitted, Attach))]
                if calls or self._binder.unbound:
                    watching.reset()
                    self._binder.accept(calls)
                    self._staffing.ensure()
                found = self._look() if self._waiting.firsts and due else False
                watching.reset() if found or not due else watching.waited()
                self._waiting.changed.notify_all()
            self._patience.renew()
        except (OSError, SpoolError) as error:
            self._in_trouble(error)
        self._waiting.call_back()
        for item in items:
            if isinstance(item, Flush):
                item.done.set()

    def _in_trouble(self, error: Exception) -> None:
        """File calls fail: go on trying for a while, then tell everybody who waits."""
        over = self._patience.is_over(self.spool.files.monotonic())
        if not over and not isinstance(error, FormatTooNew):
            threading.Event().wait(RETRY)
            return
        with self._waiting.changed:
            self._binder.unbound.clear()
            self._waiting.fail_all(told(error, self.root))
            self._waiting.changed.notify_all()
        self._patience.renew()

    def _look(self) -> bool:
        """Deliver news; now and then look after what has none. True if there was any.

        A check that fails is made again in the next turn, so that it cannot fail unnoticed;
        what there is of news is delivered all the same.
        """
        now = self._last_look = self.spool.files.monotonic()
        try:
            if now - self._last_check > CHECK_EVERY:
                self._check()
                self._last_check = now
        finally:
            found = self._delivery.poll()
        return found

    def _check(self) -> None:
        self._binder.look_after_put_off()
        self._delivery.check()
        self._staffing.ensure()


def _moved(future: Future, stem: str, row: int) -> None:
    future.stem, future.row = stem, row
