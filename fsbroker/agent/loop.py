"""The agent: claims rows, has workers run them, publishes what they return.

    spool --claim--> units --assign--> workers --report--> outcomes --publish--> spool

One thread, one selector. Each turn does first what keeps workers busy, then what makes
results known: reports of workers are read, free workers fed, then everything that has
ended is published as one result file, while the workers run on. So under load results
gather while the file before them is being written; a lone result leaves at once.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from fsbroker.agent import scratch
from fsbroker.agent.allocation import Allocation
from fsbroker.agent.crew import Crew, Doom, Member, Unit, bulk_of, kind_of, units_of
from fsbroker.agent.failures import TIME_IS_OVER, given_up
from fsbroker.agent.launchers import TABLE
from fsbroker.agent.leash import Leash
from fsbroker.agent.messages import Ended, Output, Prepared, Returned
from fsbroker.agent.processes import Settings
from fsbroker.agent.queuejob import QueueJobs
from fsbroker.agent.session import AgentSession
from fsbroker.agent.slots import Slot, Slots
from fsbroker.agent.walltime import MARGIN, Walltime
from fsbroker.agent.workers import Lost
from fsbroker.errors import (
    DependencyFailed,
    FileDamaged,
    FormatTooNew,
    FsbrokerError,
    OutOfMemory,
    SpoolError,
)
from fsbroker.needs import Shape, parse_shape
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Retired, rows_of
from fsbroker.spool.presence import describe
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import Bulk, Sealed
from fsbroker.spool.taskfile import TaskFile
from fsbroker.spool.watch import watch
from fsbroker.task import Encoding, Outcome, Status, Value

BEAT_EVERY = 2.0
"""Seconds between beats."""
LOOK_AFTER_EVERY = 1.0
"""Seconds between looks at other agents, requests to cancel, and time limits."""
LOOK_AFTER_AT_LEAST = 5.0
"""The same for an agent that has found nothing to do for a while."""
DRAIN_AFTER = 5.0
"""Seconds for which younger tasks may pass one that does not fit yet."""
TIDY_EVERY = 30.0
"""Seconds between two tidyings of an agent that is never idle."""
GATHER = 0.01
"""Seconds between result files while more results are coming."""
UNIT_TIME = 0.02
"""Seconds of work that a worker is given in one piece, and has in reserve."""
CLAIM_TIME = 0.3
"""Seconds of work for each worker in one claim."""
MOST_ROWS = 1024
"""Rows in one unit."""
TAIL = 2000
"""Bytes of stderr that an error shows."""
BAD_STARTS = 3
"""Workers that end before they are ready, one after the other: the agent gives up."""
JUDGE_AFTER = 1.0
"""Seconds from the loss of a worker in a queue job to its judgement: nodes of a job that is
cancelled are told one after the other."""

PATIENCE = 30.0
"""Seconds of failing file calls after which the agent gives up: what its workers run may be
worth hours, and a file server that comes back after some seconds is an everyday thing."""
RETRY = 0.05
LONGEST_RETRY = 2.0
"""Seconds between tries while they fail: the first, and the longest."""

_TOLD = "the agent was told to end"
_GONE = "the agent's queue job is gone"
"""Ends that others have brought about. The scheduler knows whether the job comes again, under
the same id; and who cancels all of his jobs does not want others in their place."""

IDLE = "the agent was idle"
_ALONE = "the client is gone, whose spool this is"

_NOTHING = Value(Encoding.PLAIN, b"null")


@dataclass(frozen=True)
class Plan:
    """What an agent was started with.

    Attributes:
        allocation: the nodes that it may use, and until when.
        place: what started it: "local", or a queue job: "slurm:123".
        margin: seconds before the end of its job from which on it claims nothing.
        idle_timeout: seconds without work after which it ends.
        launcher: template that MPI ranks are started by. pmi: srun's ``--mpi``; "": found.
        oversubscribe: programs of tasks may start more ranks than they have cores.
        nested: tasks of one rank have Flux instances of their own.
        watch: how to see news: "auto", "watchdog" or "polling".
        lease: seconds of silence after which another agent is taken for dead.
        job: number of its queue job in the spool's log of them.
        queue: what its job has of the site (`Shape.queue`).
        only: the one row that it runs, as task file and number; None: any.
        workers: that may be busy at once; 0: as many as fit.
        first_worker: the least of their numbers.
        leashed: the client that started it may say more, on stdin.
        private: the spool is that client's alone, and goes with it.
    """

    allocation: Allocation
    place: str = "local"
    margin: float = MARGIN
    idle_timeout: float = 120.0
    launcher: tuple[str, ...] = TABLE["mpiexec"]
    pmi: str = ""
    oversubscribe: bool = False
    nested: bool = False
    watch: str = "auto"
    lease: float = 30.0
    job: int | None = None
    queue: str = ""
    only: tuple[str, int] | None = None
    workers: int = 0
    first_worker: int = 0
    leashed: bool = False
    private: bool = False


class Debt(NamedTuple):
    """Rows that are to be given back, as `Holdings.release` does."""

    live: LiveFile
    rows: Sequence[int]
    reason: str
    charge: bool


class Agent:
    """An agent of one area."""

    def __init__(self, spool: Spool, plan: Plan, environment: str, origin: dict[str, Any]) -> None:
        self._spool = spool
        self._plan = plan
        self._slots = Slots(plan.allocation.nodes)
        described = describe(place=plan.place, cores=self._slots.cores, **origin)
        self._jobs = QueueJobs(spool, plan.job)
        self.session = AgentSession(
            spool,
            environment,
            origin,
            described,
            plan.lease,
            jobs=self._jobs,
            only=plan.only,
        )
        self._selector = selectors.DefaultSelector()
        self._walltime = Walltime(plan.allocation, plan.margin)
        self._crew = Crew(self._slots, self._settings, self._selector, plan.first_worker)
        self._crew.limit = plan.workers
        self._leash = Leash() if plan.leashed else None
        scratch.sweep()
        self._scratch = scratch.make()
        self._units: deque[Unit] = deque()
        self._durations: dict[bytes, float] = {}
        self._outcomes: list[Outcome | Bulk] = []
        self._blocked: dict[str, float] = {}
        self._fresh_tried: set[tuple[str, int]] = set()
        self._last_poll = 0.0
        self._last_publish = 0.0
        self._last_beat = 0.0
        self._last_look = 0.0
        self._last_tidy = 0.0
        self._look_after_every = LOOK_AFTER_EVERY
        self._last_work = time.monotonic()
        self._bad_starts = 0
        self._suspects: deque[tuple[float, Member, Lost]] = deque()
        self._debts: deque[Debt] = deque()
        self._trouble_since: float | None = None
        self._retry_after = RETRY
        self._over = ""
        self._too_new: FormatTooNew | None = None
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def _settings(self, slot: Slot) -> Settings:
        files, area, durable = self._spool
        nested = self._plan.nested and slot.shape.cores == len(slot.nodes) == 1
        return Settings(
            spool=files.root,
            area=area.path,
            scratch=self._scratch,
            cpus=None if nested else slot.cpus,
            threads=slot.shape.threads,
            gpus=slot.gpus,
            memory=slot.shape.memory,
            durable=durable,
            key=files.keyring.public if files.keyring else "",
            node=self._plan.allocation.nodes[0].name,
            nodes=slot.nodes,
            brokers=slot.brokers,
            shared=f"{files.root}/{area.tmp}",
            launcher=self._plan.launcher,
            pmi=self._plan.pmi,
            oversubscribe=self._plan.oversubscribe,
            nested=nested,
        )

    # -- life ----------------------------------------------------------------------------

    def run(self) -> int:
        """Work until there is nothing left to do; the exit code."""
        files, area, _ = self._spool
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        if self._leash is not None:
            self._selector.register(self._leash, selectors.EVENT_READ, self._leash)
        directory = f"{files.root}/{area.tasks}"
        self._watch = watch(directory, self._wake, self._plan.watch, pause=files.pause)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._told_to_end)
        try:
            while not (self._tried(self.session.join) or self._over):
                pass
            self._wake()  # of what is there already nobody will tell
            self._jobs.compare()
            if self._walltime.ask():
                self._selector.register(self._walltime, selectors.EVENT_READ, self._walltime)
            while not self._over:
                self._tried(self._turn)
            self._wind_up()
            if (newer := self.session.live.newer()) is not None:
                raise newer
        except Sealed:
            return 3
        except FormatTooNew as error:
            self._refuse(error)
            raise
        except (OSError, SpoolError):
            self._give_up()
            raise
        finally:
            self._watch.stop()
            self._walltime.close()
            self._crew.close()
            scratch.remove(self._scratch)
        return 0

    def _told_to_end(self, *_: object) -> None:
        self._over = self._over or _TOLD
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._wake_writer, b"\0")

    def _heed(self, leash: Leash) -> None:
        """The client changes what we may use, or is gone."""
        for allowed in leash.read():
            if allowed.cores:
                self._slots.resize(allowed.cores)
            self._crew.limit = allowed.workers
        if leash.cut:
            self._selector.unregister(leash)
            self._check_leash()

    def _check_leash(self) -> None:
        if self._plan.private and self._leash and (self._leash.cut or self._leash.is_orphan()):
            self._over = _ALONE

    def _wind_up(self) -> None:
        """Publish what has ended, give back the rest and say why, vanish.

        Quick: from SIGTERM to SIGKILL some sites give five seconds.
        """
        if self._over == _ALONE:
            self._crew.close()
            shutil.rmtree(self._spool.files.root, ignore_errors=True)
            return
        self._publish()
        self._crew.close()
        self.session.leave(self._over)
        if self._over in (_TOLD, _GONE):
            return
        # A job whose agent cannot run its one task would be submitted again for ever.
        newer = self._too_new or self.session.live.newer()
        failure = newer is not None or (
            self._over == IDLE and self.session.prospects.only_is_ready()
        )
        self._jobs.over(str(newer or self._over), failure=failure)
        if newer is None:
            self._jobs.succeed(self.session.prospects.ready_rows(), self._walltime.until_end())

    def _tried(self, step: Callable[[], object]) -> bool:
        """Take a step; where file calls fail, False after a pause. Workers run on meanwhile."""
        try:
            step()
            self._trouble_since, self._retry_after = None, RETRY
        except OSError as error:
            now = time.monotonic()
            since = self._trouble_since = self._trouble_since or now
            if now - since > PATIENCE or self._spool_is_gone():
                raise SpoolError(f"File calls fail ({error})", self._spool.files.root) from error
            time.sleep(self._retry_after)
            self._retry_after = min(2 * self._retry_after, LONGEST_RETRY)
            with suppress(OSError, SpoolError):
                self.session.beat()  # who is silent for long is taken for dead
            return False
        return True

    def _spool_is_gone(self) -> bool:
        try:
            return not self._spool.files.names("")
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def _give_up(self) -> None:
        """What cannot be published runs again elsewhere, at no attempt: it did not fail."""
        with suppress(OSError, SpoolError, Sealed):
            self.session.abandon("the agent could not use the spool")

    def _refuse(self, error: FormatTooNew) -> None:
        """Leave in order, so that nobody is charged for what this version cannot read."""
        if not self._over:
            self._over, self._too_new = str(error), error
            self._wind_up()

    def _turn(self) -> None:
        self._pay()
        events = self._selector.select(self._patience())
        woken = False
        for key, _ in events:
            if isinstance(key.data, Member):
                self._hear(key.data)
            elif isinstance(key.data, Leash):
                self._heed(key.data)
            elif isinstance(key.data, Walltime):
                self._selector.unregister(key.data)
                key.data.hear()
            elif key.data is not None:
                key.data.attend()  # a relay: what it tells of workers is heard in the next turn
            else:
                woken = True
                with suppress(BlockingIOError):
                    os.read(self._wake_reader, 4096)
        self._feed()
        if self._outcomes and self._is_due():
            self._publish()
        self._judge()
        self._watch_the_clock()
        if not self._over:
            self._find_work(woken)
            self._look_after()

    def _patience(self) -> float:
        """Seconds until something has to be done that nobody will tell of."""
        if self._outcomes:
            return max(0.0, self._last_publish + GATHER - time.monotonic())
        if self._hungry() and self._units:
            return 0.0
        delay = self._watch.delay if self._hungry() else LOOK_AFTER_EVERY
        if self._suspects:
            delay = min(delay, max(0.0, self._suspects[0][0] - time.monotonic()))
        return min(delay, self._look_after_every, self._walltime.next_change())

    def _is_due(self) -> bool:
        """Nothing more is coming soon, or it was waited for long enough."""
        if not self._crew.busy():
            return True
        return time.monotonic() - self._last_publish >= GATHER

    # -- work ----------------------------------------------------------------------------

    def _hungry(self) -> bool:
        return not self._units and self._crew.room(Shape()) > 0

    def _find_work(self, woken: bool) -> None:
        """Claim, while there is room for more than what is held."""
        if not self._has_room() or self._walltime.until_margin() <= 0:
            return
        now = time.monotonic()
        if woken or (self._hungry() and now - self._last_poll >= self._watch.delay):
            self._last_poll = now
            if self.session.live.poll():
                self._watch.reset()
        claimed = self._claim(thorough=False)
        if not claimed and self._hungry() and not self._crew.busy():
            claimed = self.session.resolve() and self._claim(thorough=True)
        if claimed:
            self._last_work = time.monotonic()
            self._look_after_every = LOOK_AFTER_EVERY
            self._watch.reset()
        elif self._hungry():
            self._watch.waited()

    def _has_room(self) -> bool:
        return len(self._units) <= self._slots.cores

    def _claim(self, *, thorough: bool) -> bool:
        time_left = self._walltime.for_a_task()
        claim = self.session.claim(self._want, thorough=thorough, time_left=time_left)
        if claim is None:
            return False
        live = claim.live
        rows = self._refused(live, list(rows_of(claim.rows)))
        try:
            self._units.extend(list(units_of(live, rows, self._unit_size(live, rows))))
        except FileDamaged as error:
            self._fail(Unit(live, rows, simple=False), error)
        except OSError:
            self._give_back(live, rows, "its task file could not be read")
            raise
        self._feed()
        return True

    def _refused(self, live: LiveFile, rows: Sequence[int]) -> list[int]:
        """End rows that were cancelled or have failed too often; the others."""
        fold, kept = live.log.fold, []
        for row in rows:
            attempts, history = fold.attempts[row], fold.history.get(row, [])
            error = given_up(attempts, int(live.file.rows["retries"][row]), history)
            if error is not None:
                self._end(live, row, Status.FAILED, _NOTHING, error)
            else:
                kept.append(row)
        return kept

    def _want(self, live: LiveFile, ready: Sequence[int]) -> int:
        """How many ready rows of a file to claim now.

        Enough to keep the free workers busy for a moment, as far as it is known how long
        this function takes; one for each of them while it is not known. Never more than a
        fair share of what is left, but for what is not worth a claim.
        """
        shape = parse_shape(live.name.shape)
        if shape is None or not self._slots.could_fit(shape):
            return 0
        if shape.queue not in ("", self._plan.queue):
            return 0  # it asked for another partition, account, ...
        kind, room = kind_of(live), self._crew.room(shape)
        assert kind is not None
        if self._must_drain(live, room):
            return 0
        duration = self._durations.get(live.file.function_digest(ready[0]))
        if duration is None or duration > UNIT_TIME:
            return room - len(self._units)
        workers = max(room, len(self._crew.of(kind)))
        least = int(workers * UNIT_TIME / duration) + 1
        most = int(workers * CLAIM_TIME / duration) + 1
        return min(most, max(least, self._fair_share(live, len(ready))))

    def _must_drain(self, live: LiveFile, room: int) -> bool:
        """A file whose tasks found no room for long has the next cores: younger ones wait.

        Otherwise small tasks would take each core as it becomes free, and a task that
        needs several at once would never run.
        """
        now = time.monotonic()
        for stem in [stem for stem in self._blocked if self.session.live.get(stem) is None]:
            del self._blocked[stem]
        if room > 0:
            self._blocked.pop(live.stem, None)
        else:
            self._blocked.setdefault(live.stem, now)
        return any(
            stem < live.stem and now - since > DRAIN_AFTER for stem, since in self._blocked.items()
        )

    def _fair_share(self, live: LiveFile, ready: int) -> int:
        """Half of what would be this agent's part of all that is left; all if it is alone."""
        agents = len(self.session.results.present())
        if agents <= 1:
            return ready
        others = sum(one.name.rows for one in self.session.live if one.stem > live.stem)
        return -(-(ready + others) // (2 * agents))

    def _unit_size(self, live: LiveFile, rows: Sequence[int]) -> int:
        if not rows:
            return 1
        duration = self._durations.get(live.file.function_digest(rows[0]))
        if duration is None:
            return 1
        share = -(-len(rows) // self._slots.cores)
        return max(1, min(MOST_ROWS, share, int(UNIT_TIME / duration)))

    def _feed(self) -> None:
        """Give units to workers that are free, or soon will be."""
        now = time.monotonic()
        while self._units:
            unit = self._units[0]
            try:
                member = self._member_for(unit)
                if member is None:
                    return
                member.assign(unit, self._value, now)
            except FormatTooNew:
                raise  # the agent's shortcoming, not the task's
            except FsbrokerError as error:
                self._fail(unit, error)
            self._units.popleft()

    def _member_for(self, unit: Unit) -> Member | None:
        kind = kind_of(unit.live)
        assert kind is not None
        member = self._crew.idle(kind)
        if member is not None or not unit.simple:
            return member
        duration = self._durations.get(unit.live.file.function_digest(unit.rows[0]))
        if duration is None or duration > UNIT_TIME:
            return None
        reserve = UNIT_TIME / duration
        soon = [one for one in self._crew.of(kind) if self._is_quick(one, reserve)]
        return min(soon, key=Member.rows_left, default=None)

    def _is_quick(self, member: Member, rows: float) -> bool:
        """It has fewer rows left than these, and does not run what may take long.

        Rows that were given to a worker are not taken back: they would wait for that one.
        """
        if member.rows_left() >= rows:
            return False
        current = member.current()
        if current is None:
            return True
        live, row = current
        duration = self._durations.get(live.file.function_digest(row), UNIT_TIME)
        return duration < UNIT_TIME

    def _value(self, key: bytes) -> Value:
        value = self.session.dependencies.value(key)
        if value is None:
            raise DependencyFailed("The value of a dependency is not in the spool", key.hex())
        return value

    def _fail(self, unit: Unit, reason: FsbrokerError) -> None:
        """Rows that cannot even be given to a worker end with the reason."""
        error = {"type": type(reason).__name__, "message": str(reason), "traceback": ""}
        for row in unit.rows:
            self._end(unit.live, row, Status.FAILED, _NOTHING, dict(error))

    # -- reports -------------------------------------------------------------------------

    def _hear(self, member: Member) -> None:
        member.heard = time.monotonic()
        for message in member.worker.receive():
            if isinstance(message, Returned):
                live, rows = member.report(message)
                self._learn(live, rows[0], sum(_doubles(message.wall)) / len(rows))
                self._outcomes.append(bulk_of(live, rows, message))
            elif isinstance(message, Ended):
                self._ended(member, message)
            elif isinstance(message, Prepared):
                member.prepared = True
            else:
                self._suspect(member, message)
                return
        if member.worker.ready:
            self._bad_starts = 0
        if not member.worker.alive and not member.rows_left():
            self._crew.dismiss(member)

    def _learn(self, live: LiveFile, row: int, duration: float) -> None:
        """How long the function takes: a moving average, at least the cost of handing over."""
        digest = live.file.function_digest(row)
        duration = max(duration, 5e-6)
        known = self._durations.get(digest, duration)
        self._durations[digest] = known + 0.5 * (duration - known)

    def _ended(self, member: Member, message: Ended) -> None:
        live, (row,) = member.report(message)
        if self._deserves_fresh_worker(live, row, message):
            self._units.appendleft(Unit(live, [row], False))
            member.worker.stop()
            return
        self._learn(live, row, message.wall)
        outputs = message.outputs or (Output(0, message.stdout, message.stderr),)
        error = self._with_logs(live, row, outputs, message.error)
        self._end(
            live,
            row,
            Status(message.status),
            message.value,
            error,
            started=message.started,
            wall=message.wall,
            cpu=message.cpu,
            peak_memory=message.peak_memory,
        )

    def _deserves_fresh_worker(self, live: LiveFile, row: int, message: Ended) -> bool:
        """The worker had imported an older version of the task's module: once more, elsewhere."""
        if message.error is None or "stale" not in message.error:
            return False
        tried = (live.stem, row) in self._fresh_tried
        self._fresh_tried.add((live.stem, row))
        return not tried

    def _with_logs(
        self,
        live: LiveFile,
        row: int,
        outputs: Sequence[Output],
        error: dict[str, str] | None,
    ) -> dict[str, str] | None:
        """Keep what the task wrote, and tell in its error where."""
        written = [one for one in outputs if one.stdout or one.stderr]
        if written:
            # Without space for them the outcome still counts, and its error has the tail.
            with suppress(OSError, SpoolError):
                directory = self.session.publisher.write_logs(live, row, written)
                if error is not None:
                    error["log"] = directory
            if error is not None:
                stderr = next((one.stderr for one in written if one.stderr), b"")
                error["tail"] = stderr[-TAIL:].decode(errors="replace")
        return error

    def _suspect(self, member: Member, lost: Lost) -> None:
        """A worker is gone. In a queue job that may be the job's end, of which we hear soon."""
        if self._plan.allocation.kind and member.doom is None:
            self._crew.mute(member)
            self._suspects.append((time.monotonic() + JUDGE_AFTER, member, lost))
        else:
            self._lost(member, lost)

    def _judge(self) -> None:
        now = time.monotonic()
        while self._suspects and self._suspects[0][0] <= now:
            self._lost(*self._suspects.popleft()[1:])

    def _lost(self, member: Member, lost: Lost) -> None:
        """A worker is gone: the row that it ran is charged, the others run elsewhere.

        At the agent's end nothing is charged: SLURM signals all processes of a job, in no order.
        """
        if self._over:
            self._crew.dismiss(member)
            return
        current = member.current()
        units = member.take_all()
        self._crew.dismiss(member)
        if not lost.ready and member.doom is None:
            self._bad_starts += 1
            if self._bad_starts >= BAD_STARTS:
                self._fail_all(units, lost)
                return
            self._units.extendleft(reversed(units))
            return
        if current is not None:
            live, row = current
            self._charge(live, row, member, lost)
            begun = _without(units.pop(0), live, row)
            if begun.rows:
                # Quick rows are reported in bunches: some may have run, and will again.
                self._give_back(live, begun.rows, lost.reason)
        self._give_up_chains(units)

    def _charge(self, live: LiveFile, row: int, member: Member, lost: Lost) -> None:
        """Try the row again, or end it when it has no attempt left."""
        error = {"type": type(lost.error).__name__, "message": str(lost.error), "traceback": ""}
        if lost.rank is not None:
            error["rank"] = str(lost.rank)
        told = self._with_logs(live, row, lost.outputs, error) or error
        fold = live.log.fold
        doom = member.doom
        if doom is not None and (doom.live, doom.row) != (live, row):
            # The doomed row ended in time; this one was running by chance.
            self._give_back(live, [row], "")
        elif doom is not None and doom.status == Status.CANCELLED:
            self._end(live, row, Status.CANCELLED, _NOTHING)
        elif doom is not None:
            told |= {"type": "TimeLimitExceeded", "message": doom.reason}
            self._end(live, row, Status.FAILED, _NOTHING, told)
        elif isinstance(lost.error, OutOfMemory):  # so would be a second try
            self._end(live, row, Status.FAILED, _NOTHING, told)
        elif fold.attempts[row] >= int(live.file.rows["retries"][row]):
            history = [*fold.history.get(row, ()), lost.reason]
            told["message"] = f"{lost.error} (attempts: {'; '.join(history)})"
            self._end(live, row, Status.FAILED, _NOTHING, told)
        else:
            self._give_back(live, [row], lost.reason, charge=True)

    def _give_up_chains(self, units: Sequence[Unit]) -> None:
        """What a lost worker had left: simple rows go to another, chains back to the log.

        The values that a chain's later rows need went with the worker.
        """
        for unit in units:
            if not unit.rows:
                continue
            if unit.simple or (len(unit.rows) == 1 and not unit.live.name.waiting):
                self._units.appendleft(unit)
            else:
                self._give_back(unit.live, unit.rows, "")

    def _fail_all(self, units: Sequence[Unit], lost: Lost) -> None:
        """Workers do not start here: say so to whoever waits, with what they wrote."""
        error = {"type": type(lost.error).__name__, "message": str(lost.error), "traceback": ""}
        for unit in units:
            for row in unit.rows:
                told = self._with_logs(unit.live, row, lost.outputs, dict(error)) or error
                self._end(unit.live, row, Status.FAILED, _NOTHING, told)
        self._bad_starts = 0

    # -- outcomes ------------------------------------------------------------------------

    def _end(
        self,
        live: LiveFile,
        row: int,
        status: Status,
        value: Value,
        error: dict[str, str] | None = None,
        **measured: Any,
    ) -> None:
        self._outcomes.append(
            self.session.holdings.outcome(live, row, status, value, error, **measured)
        )
        if error is not None and live.file.meta.get("error_log_file"):
            _append_error(live.file.meta["error_log_file"], live.file, row, error)

    def _publish(self) -> None:
        if self._outcomes:
            self.session.publish(self._outcomes)
            self._outcomes = []
        self._last_publish = self._last_beat = time.monotonic()

    # -- now and then --------------------------------------------------------------------

    def _look_after(self) -> None:
        """Beat, other agents, requests, time limits, tidying; and the end when idle."""
        now = time.monotonic()
        if now - self._last_beat >= BEAT_EVERY:
            self.session.beat()
            self._last_beat = now
        if now - self._last_look < self._look_after_every:
            return
        self._last_look = now
        self._check_leash()
        if self._walltime.has_no_answer():
            self._selector.unregister(self._walltime)
            self._walltime.close()
        if self._walltime.is_orphan():
            self._over = _GONE
            return
        self._enforce_limits(now)
        self._cancel_running()
        found = self.session.recover()
        if not self._crew.busy() and not self._outcomes and self.session.prospects.only_is_over():
            self._over = "its task has ended"
            return
        if self._crew.busy() or self._units:
            self._last_work = now
            if not self.session.resolve() and now - self._last_tidy > TIDY_EVERY:
                self._tidy()
            return
        found |= self._tidy()
        found |= self.session.resolve(thorough=True)
        found |= self._claim(thorough=True)
        if found:
            self._last_work = now
            self._look_after_every = LOOK_AFTER_EVERY
            return
        self._look_after_every = min(LOOK_AFTER_AT_LEAST, 1.5 * self._look_after_every)
        if (
            now - self._last_work > self._plan.idle_timeout
            and not self.session.recovery.others_hold_rows()
        ):
            self._over = IDLE

    def _watch_the_clock(self) -> None:
        """Near the end of the job: give back what has not started, and at last everything."""
        if self._walltime.until_margin() > 0:
            return
        self._give_back_queued()
        idle = not (self._crew.busy() or self._outcomes)
        if idle or self._walltime.until_last_moment() <= 0:
            self._over = self._over or TIME_IS_OVER

    def _give_back_queued(self) -> None:
        while self._units:
            unit = self._units.popleft()
            self._give_back(unit.live, unit.rows, TIME_IS_OVER)

    def _give_back(
        self, live: LiveFile, rows: Sequence[int], reason: str, *, charge: bool = False
    ) -> None:
        """Release rows; where that fails now, later, but surely."""
        self._debts.append(Debt(live, list(rows), reason, charge))
        with suppress(OSError, SpoolError):
            self._pay()

    def _pay(self) -> None:
        while self._debts:
            live, rows, reason, charge = self._debts[0]
            with suppress(Retired):
                self.session.holdings.release(live, rows, reason, charge=charge)
            self._debts.popleft()

    def _tidy(self) -> bool:
        self._last_tidy = time.monotonic()
        return self.session.tidy()

    def _enforce_limits(self, now: float) -> None:
        for member in self._crew.members:
            current = member.current()
            if current is None or member.doom:
                continue
            live, row = current
            limit = float(live.file.rows["time_limit"][row])
            begun = member.worker.ready and member.prepared
            if limit and begun and now - member.heard > limit:
                reason = f"longer than run_time_max = {limit:g} s"
                self._kill(member, Doom(Status.FAILED, reason, live, row))

    def _kill(self, member: Member, doom: Doom) -> None:
        member.doom = doom
        member.worker.kill()

    def _cancel_running(self) -> None:
        requests = set(self.session.cancelling.requests())
        for unit in [unit for unit in self._units if requests]:
            self._cancel_queued(unit, requests)
        for member in self._crew.members if requests else ():
            current = member.current()
            if current is not None and (current[0].stem, current[1]) in requests:
                self._kill(member, Doom(Status.CANCELLED, "cancelled", *current))

    def _cancel_queued(self, unit: Unit, requests: set[tuple[str, int]]) -> None:
        """Rows of a unit that no worker has yet: they simply do not go to one."""
        wanted = [row for row in unit.rows if (unit.live.stem, row) in requests]
        if not wanted or not unit.simple:
            return  # a chain's other rows need the row: it is killed when it runs
        self._units.remove(unit)
        for row in wanted:
            self._end(unit.live, row, Status.CANCELLED, _NOTHING)
        left = [row for row in unit.rows if row not in wanted]
        self._units.extend(units_of(unit.live, left, MOST_ROWS))


def _without(unit: Unit, live: LiveFile, row: int) -> Unit:
    if unit.live is not live:
        return unit
    return Unit(live, [one for one in unit.rows if one != row], unit.simple)


def _doubles(data: bytes) -> array[float]:
    return array("d", data)


def _private(path: str, flags: int) -> int:
    """For the user alone, whatever the umask: there are arguments in it."""
    return os.open(path, flags, 0o600)


def _append_error(path: str, tasks: TaskFile, row: int, error: dict[str, str]) -> None:
    """What ``error_log_file`` asks for; trouble with that file is not the task's."""
    with suppress(OSError, FileDamaged), open(path, "a", opener=_private) as file:
        encoding, data, _ = tasks.arguments(row)
        shown = data.decode() if encoding == Encoding.PLAIN else f"a pickle of {len(data)} bytes"
        heading = f"{tasks.function_name(row)}: {error['type']}: {error['message']}"
        file.write(f"{heading}\narguments: {shown[:TAIL]}\n{error['traceback']}\n")
