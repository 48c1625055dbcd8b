"""An agent's side of the protocol: no processes, no waiting, one thread.

    join -> (beat, recover, claim, publish, resolve, tidy)* -> leave

The loop around it (`loop.py`) feeds workers with what `claim` returns and hands their
outcomes to `publish`. The simulation drives the same object without workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from fsbroker.agent.queuejob import QueueJobs
from fsbroker.agent.waiting import Waiting
from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew, SpoolError, TaskLost
from fsbroker.spool import archive, packs, presence, streams
from fsbroker.spool.container import Image
from fsbroker.spool.index import Results
from fsbroker.spool.layout import Presence, Stem, parse_cancel
from fsbroker.spool.live import LiveFile, LiveFiles, bury, delete_log, give_birth
from fsbroker.spool.log import (
    CLAIMABLE,
    Fold,
    Kind,
    Log,
    Range,
    Retired,
    State,
    fitting,
    ranges_of,
    rows_of,
)
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import Bulk, Sealed, Stream
from fsbroker.task import Encoding, Outcome, Status, Value

LOCK_PATIENCE = 0.2
"""Seconds after which an agent goes on without a lock that somebody holds."""
NOTHING = Value(Encoding.PLAIN, b"null")
GRAVE_REST = 60.0
"""Seconds for which a log that was taken away stays whole: NFS clients find a directory
under its old name for 30 s, and would begin an empty log anew."""
LONGEST_CHAIN = 256
"""Rows that may be claimed before their inputs exist, because the claimer makes these."""


class Claim(NamedTuple):
    """Rows that this agent owns now, ascending; inputs come before their dependents."""

    live: LiveFile
    rows: tuple[Range, ...]


Want = Callable[[LiveFile, Sequence[int]], int]
"""How many of a file's ready rows the agent wants now; 0 if they do not fit."""


class AgentSession:
    """One agent in one area.

    Attributes:
        agent: its id, 16 hex digits, never used again.
        held: rows owned and not published, by task file.
        live, results: what it knows of the spool.

    Args:
        environment: which rows it can run (`Stem.environment`).
        origin: what its result files say of where they come from.
        described: what its presence file says (`presence.describe`).
        lease: seconds of silence after which another agent is taken for dead.
        jobs: what is known of queue jobs that have ended.
        only: the one row that it may claim: its task file and number.
    """

    def __init__(  # noqa: PLR0913 - settings, the last two by name
        self,
        spool: Spool,
        environment: str,
        origin: dict[str, Any],
        described: dict[str, Any],
        lease: float = presence.LEASE,
        *,
        jobs: QueueJobs | None = None,
        only: tuple[str, int] | None = None,
    ) -> None:
        self._files, self._area, self._durable = spool
        self.agent: str = self._files.token()
        self._environment = environment
        self._origin = {**origin, "agent": self.agent}
        self._described = described
        self._stream = Stream(self._files, self._area, self.agent)
        self._self = presence.Self(self._files, self._area, self.agent, described)
        self._observer = presence.Observer(self._files, self._area, lease)
        self._jobs = jobs or QueueJobs(spool, None)
        self._only = only
        self._beat_done = True
        self._time_left = math.inf
        self._alone = False
        self._failed_rows = False
        self._contested: dict[str, float] = {}
        self._unpublished: list[Outcome] = []
        self._unsure: Sequence[Outcome | Bulk] = ()
        self._settled: set[tuple[str, int]] = set()
        self._graves: list[tuple[float, str]] = []
        self._published: dict[str, set[int]] = {}
        self._claimed: dict[str, LiveFile] = {}
        self._waiting: dict[str, Waiting] = {}
        self.held: dict[str, set[int]] = {}
        self.live = LiveFiles(self._files, self._area)
        self.results = Results(self._files, self._area, durable=self._durable)

    # -- life ----------------------------------------------------------------------------

    def join(self) -> None:
        """Be ready to publish, and be seen, before the first claim."""
        self._stream.create()
        self._self.appear()

    def beat(self) -> None:
        """Say that this agent lives, and how much it has published.

        Raises:
            Sealed: it was taken for dead.
        """
        self._beat_done = False
        if not self._self.beat(self._stream.next):
            self._check_sealed()
            self._self.appear()
        self._beat_done = True

    def _check_sealed(self) -> None:
        if self._has_left(self.agent):
            raise Sealed(self.agent)

    def _has_left(self, agent: str) -> bool:
        """Its stream is sealed."""
        numbers = streams.entries(self._files, self._area, agent)
        return bool(numbers) and streams.is_seal(self._files, self._area, agent, numbers[-1])

    def leave(self, reason: str = "") -> None:
        """Give back what was not published, close the own stream, and vanish."""
        for stem, rows in list(self.held.items()):
            if rows:
                self.release(self._claimed[stem], sorted(rows), reason)
        self._stream.close()
        self._self.vanish()

    def abandon(self, reason: str) -> None:
        """Give back what nobody will run here, at no attempt.

        But not what may be published: after an error of that, only who has sealed the
        stream knows, and recovers the rest.
        """
        doubtful = set(_rows(self._unsure)) if self._stream.is_unsure else set()
        for stem, rows in list(self.held.items()):
            left = [row for row in sorted(rows) if (stem, row) not in doubtful]
            if left:
                self.release(self._claimed[stem], left, reason)

    # -- claiming ------------------------------------------------------------------------

    def claim(
        self, want: Want, *, thorough: bool = False, time_left: float = math.inf
    ) -> Claim | None:
        """Own some rows, of the first task file that has any that are wanted.

        Args:
            thorough: look also at files that had no ready rows when last read.
            time_left: seconds; rows that may take longer are for others.
        """
        self._time_left = time_left
        for live in self.live:
            if live.name.environment != self._environment:
                continue
            if self._only and live.stem != self._only[0]:
                continue
            try:
                claim = self._claim_in(live, want, thorough)
            except (Retired, FileNotFoundError):
                self._retired(live)
            except (FileDamaged, FileRefused) as error:
                self.live.set_aside(live.stem, error)
            else:
                if claim is not None:
                    return claim
        return None

    def _claim_in(self, live: LiveFile, want: Want, thorough: bool) -> Claim | None:
        self._settle_doubt(live)
        fold = live.log.fold
        if fold.next and not thorough and State.READY not in fold.state:
            return None
        # Without ready rows as far as was read: in case that there are some by now.
        ready: Sequence[int] = fold.rows_in(State.READY) if fold.next else ()
        if ready and not (ready := self._in_time(live, ready)):
            return None
        if not want(live, ready or (0,)):
            return None
        lock = None
        if not self._alone:
            lock = self._files.try_lock(self._area.lock(live.stem))
            if lock is None and not self._patience_is_over(live.stem):
                return None
        try:
            if thorough:
                self._files.freshen(live.log.path)
            return self._append_claim(live, want)
        finally:
            if lock is not None:
                self._contested.pop(live.stem, None)
                lock.release()

    def _patience_is_over(self, stem: str) -> bool:
        """The lock is for order, not for truth: the log decides without it, too."""
        now = self._files.monotonic()
        return now - self._contested.setdefault(stem, now) > LOCK_PATIENCE

    def _append_claim(self, live: LiveFile, want: Want) -> Claim | None:
        if live.log.is_blank() and (claim := self._claim_ready(live, want)):
            return claim
        if live.log.refresh():
            self._reconcile(live)
        return self._claim_ready(live, want)

    def _claim_ready(self, live: LiveFile, want: Want) -> Claim | None:
        fold = live.log.fold
        ready = self._in_time(live, fold.rows_in(State.READY))
        count = want(live, ready) if ready else 0
        if count <= 0:
            return None
        chosen = self._choose(live, ready, count)
        ranges = tuple(fitting(ranges_of(chosen)))
        return self._own(live, ranges)

    def _in_time(self, live: LiveFile, rows: Sequence[int]) -> Sequence[int]:
        """Those of the rows that end before the agent's time does, if they keep to their limit."""
        if self._only:
            rows = [row for row in rows if row == self._only[1]]
        if self._time_left == math.inf:
            return rows
        limits = live.file.rows["time_limit"]
        return [row for row in rows if limits[row] <= self._time_left]

    def _own(self, live: LiveFile, ranges: tuple[Range, ...]) -> Claim | None:
        if not live.log.append(Kind.CLAIM, self.agent, ranges):
            return None
        if any(live.log.fold.owner_of(row) != self.agent for row in rows_of(ranges)):
            return None  # chosen by an older fold: such a claim has no effect
        self._claimed[live.stem] = live
        self.held.setdefault(live.stem, set()).update(rows_of(ranges))
        self._published.get(live.stem, set()).difference_update(rows_of(ranges))
        self._settled.difference_update((live.stem, row) for row in rows_of(ranges))
        return Claim(live, ranges)

    def bring(self, stem: Stem, made: Image, waiting: Sequence[int]) -> LiveFile:
        """Publish a task file all of whose rows are this agent's: it has their outcomes already.

        The claim is in the log before the file can be seen, so nobody else begins to run them.
        If this agent dies before it publishes, they are recovered like all others.

        Args:
            waiting: the rows that have dependencies.
        """
        everything = ((0, stem.rows),)
        self._files.mkdir(self._area.log(str(stem)))
        log = Log(self._files, self._area, str(stem), Fold(stem.rows, waiting))
        log.append(Kind.CLAIM, self.agent, everything)
        give_birth(self._files, self._area, stem, made, durable=self._durable)
        self.live.poll(afresh=True)
        live = self.live.get(str(stem))
        if live is None:
            raise TaskLost("A task file vanished as it was published", str(stem))
        live.log.refresh()
        live.log.unsynced = True
        self._claimed[live.stem] = live
        self.held[live.stem] = set(rows_of(everything))
        return live

    def _choose(self, live: LiveFile, ready: Sequence[int], count: int) -> list[int]:
        """The first rows, no more than recovery allows together, and chains that hang on them."""
        fold = live.log.fold
        chosen: list[int] = []
        for row in ready[:count]:
            if fold.limit[row] <= len(chosen):
                break
            chosen.append(row)
            count = min(count, fold.limit[row])
        chosen = chosen[:count]
        if live.name.waiting and State.WAITING in fold.state and not self._only:
            room = min(LONGEST_CHAIN, min(fold.limit[row] for row in chosen) - len(chosen))
            chosen = sorted(chosen + self._chains(live, set(chosen), room))
        return chosen

    def _chains(self, live: LiveFile, chosen: set[int], room: int) -> list[int]:
        """Waiting rows that only wait for chosen ones, one for each: claimed in one piece."""
        if live.file.rows["ranks"][next(iter(chosen))] > 1:
            return []
        found: list[int] = []
        used: set[int] = set()
        limits = live.file.rows["time_limit"]
        left = self._time_left - max(float(limits[row]) for row in chosen)
        for row in live.log.fold.rows_in(State.WAITING):
            if len(found) >= room:
                break
            if limits[row] > left:
                continue
            inputs = {own for _, own in live.file.dependencies(row)}
            if inputs <= chosen and not inputs & used:
                used |= inputs
                chosen.add(row)
                found.append(row)
                left -= float(limits[row])
        return found

    def _settle_doubt(self, live: LiveFile) -> None:
        """A record of mine failed, or may come yet: once its number is taken, it is known."""
        if live.log.doubtful is not None:
            live.log.refresh()
            if live.log.fold.next > live.log.doubtful:
                self._reconcile(live)
                live.log.doubtful = None

    def _reconcile(self, live: LiveFile) -> None:
        """Give back rows that the log says are mine though I was told that the claim failed."""
        known = self.held.get(live.stem, set()) | self._published.get(live.stem, set())
        unknown = [row for row in live.log.fold.owned_by(self.agent) if row not in known]
        if unknown:
            live.log.doubtful = live.log.fold.next - 1  # should an error come between
            self.release(live, unknown, "")
            live.log.doubtful = None

    def release(
        self, live: LiveFile, rows: Sequence[int], reason: str, *, charge: bool = False
    ) -> None:
        """Give rows back; with ``charge`` it cost them an attempt."""
        about = f"{'charge' if charge else 'free'} {reason}"[:200]
        self._append_all(live, Kind.RELEASE, rows, about)
        self.held.get(live.stem, set()).difference_update(rows)

    def _append_all(self, live: LiveFile, kind: Kind, rows: Sequence[int], about: str = "") -> None:
        """Append records until all rows are in one; what others append meanwhile is read."""
        left = ranges_of(rows)
        with suppress(Retired):
            while left:
                part = fitting(left, about)
                if live.log.append(kind, self.agent, part, about):
                    left = left[len(part) :]
                else:
                    live.log.refresh()

    # -- outcomes ------------------------------------------------------------------------

    def publish(self, outcomes: Sequence[Outcome | Bulk]) -> None:
        """Make outcomes of held rows known, for ever.

        Raises:
            Sealed: this agent was taken for dead; its outcomes are void.
        """
        if self._stream.settle(durable=self._durable):
            self._note_published(self._unsure)
            self._settled.update(map(_first_row, self._unsure))
        outcomes = [one for one in outcomes if not self._was_published(one)]
        if not outcomes:
            return
        self._unsure = outcomes
        made = streams.build(self._files.token(), outcomes, self._origin)
        # A power loss must not keep an outcome and lose the claim of its row (rule 2).
        stems = {outcome.stem for outcome in outcomes}
        logs = [self._claimed[stem].log for stem in stems if stem in self._claimed]
        logs = [log for log in logs if log.unsynced]
        self._publish_behind(made, logs)
        for log in logs:
            log.unsynced = False
        self._note_published(outcomes)
        with suppress(OSError, SpoolError):
            self.beat()  # the outcomes are out; the next beat tells of them, too

    def _publish_behind(self, made: Image, logs: Sequence[Log]) -> None:
        """Publish when these logs are durable, or gone."""
        paths = [log.path for log in logs]
        while True:
            try:
                self._stream.publish(made, durable=self._durable, first=paths)
                return
            except FileNotFoundError:
                self._check_sealed()  # others have ended a task file, and so its log
                left = [path for path in paths if self._is_there(path)]
                if left == paths:
                    raise
                paths = left  # a purge took one; the outcomes are worth as much without it

    def _is_there(self, path: str) -> bool:
        try:
            self._files.names(path)
        except FileNotFoundError:
            return False
        return True

    def _note_published(self, outcomes: Sequence[Outcome | Bulk]) -> None:
        for stem, row in _rows(outcomes):
            self.held.get(stem, set()).discard(row)
            self._published.setdefault(stem, set()).add(row)

    def _was_published(self, outcome: Outcome | Bulk) -> bool:
        stem, row = first = _first_row(outcome)
        # Who was told of an error offers it again, when its file may long be retired.
        return first in self._settled or row in self._published.get(stem, ())

    def write_logs(
        self, live: LiveFile, row: int, outputs: Iterable[tuple[int, bytes, bytes]]
    ) -> str:
        """Keep what the ranks of a row wrote (rank, stdout, stderr); the directory."""
        key = live.file.key(row)
        directory = self._area.task_logs(key, self.agent, live.log.fold.generation[row])
        self._files.mkdir(directory.rpartition("/")[0])
        try:
            self._files.mkdir(directory)
        except FileNotFoundError:  # gc found the parent empty in this moment
            self._files.mkdir(directory.rpartition("/")[0])
            self._files.mkdir(directory)
        for rank, stdout, stderr in outputs:
            for name, content in (("out", stdout), ("err", stderr)):
                with suppress(FileExistsError):
                    self._files.write_new(f"{directory}/{rank}.{name}", [content], sync=False)
        return f"{self._files.root}/{directory}"

    def _publish_own(self, outcomes: Sequence[Outcome]) -> None:
        """Outcomes that no worker made: kept until they could be published."""
        self._unpublished += outcomes
        if self._unpublished:
            self.publish(self._unpublished)
            self._unpublished = []

    def input_value(self, key: bytes) -> Value | None:
        """The stored value of a task that has one."""
        found = self.results.value(key)
        if found is None:
            self.results.poll(deep=True)
            found = self.results.value(key)
        return found[1] if found is not None and found[0].status == Status.DONE else None

    # -- dependencies --------------------------------------------------------------------

    def resolve(self, *, thorough: bool = False) -> bool:
        """Look for rows that wait no longer, and say so in their logs; True if there were any.

        Args:
            thorough: also look for dependencies that were cancelled or do not exist.
        """
        found = self._resolve_once(thorough=thorough)
        while self._failed_rows:  # what depends on them fails with them, at once
            self._failed_rows = False
            self._resolve_once(thorough=False)
        return found

    def _resolve_once(self, *, thorough: bool) -> bool:
        files = [live for live in self.live if live.name.waiting]
        if files:
            self.results.poll(deep=thorough)
        news = {key for file in self.results.news() if files for key in file.keys}
        found = False
        for live in files:
            try:
                found |= self._resolve_in(live, news, thorough)
            except (Retired, FileNotFoundError):
                self._retired(live)
            except (FileDamaged, FileRefused) as error:
                self.live.set_aside(live.stem, error)
        return found

    def _resolve_in(self, live: LiveFile, news: set[bytes], thorough: bool) -> bool:
        waiting = self._waiting.get(live.stem)
        if waiting is None or thorough:
            live.log.refresh()
            rows = live.log.fold.rows_in(State.WAITING)
            waiting = self._waiting[live.stem] = Waiting(live.file, rows)
            news = waiting.keys()
        for key in waiting.keys() & news:
            status = self._dependency_status(key)
            if status is not None:
                waiting.settle(key, done=status == Status.DONE)
        if not waiting.has_news:
            return False
        name = f"resolve-{live.stem}"
        lock = self._files.try_lock(self._area.lock(name))
        if lock is None and not self._patience_is_over(name):
            return True  # somebody else says the same at this moment, or we do in a while
        try:
            return self._write_ready(live, waiting)
        finally:
            if lock is not None:
                self._contested.pop(name, None)
                lock.release()

    def _write_ready(self, live: LiveFile, waiting: Waiting) -> bool:
        live.log.refresh()
        ready, failed = waiting.take()
        fold = live.log.fold
        ready = [row for row in ready if fold.state[row] == State.WAITING]
        self._append_all(live, Kind.READY, ready)
        failed = [row for row in failed if fold.state[row] in (State.WAITING, State.READY)]
        if failed:
            self._fail(live, failed)
        return bool(ready or failed)

    def _dependency_status(self, key: bytes) -> Status | None:
        """How a dependency ended; None while it may still run.

        A failure counts only when no live row tries the key anew, and a key that has
        neither a row nor an outcome will never have one: files of dependencies are
        linked before those of their dependents.
        """
        found = self.results.find(key)
        if found is not None and found.status == Status.DONE:
            return Status.DONE
        self.live.poll(afresh=True)
        for live, row in self.live.holding([key]).get(key, ()):
            with suppress(Retired, FileNotFoundError):
                live.log.refresh()
                ended = self.results.ended(live.stem, live.file.keys)[row]
                if not ended and live.log.fold.state[row] not in (State.CANCELLED, State.ALIASED):
                    return None
        self.results.poll(deep=True)
        found = self.results.find(key)
        if found is None and self.live.newer() is not None:
            return None  # its row may stand where this version cannot look
        return Status(found.status) if found is not None else Status.CANCELLED

    def _fail(self, live: LiveFile, rows: Sequence[int]) -> None:
        """Rows whose dependencies failed end with that: claimed and published like any other."""
        # Made before the claim: whatever fails here must not leave claimed rows behind.
        made = {row: self._failed_dependency(live, row) for row in rows}
        claim = self._own(live, tuple(fitting(ranges_of(rows))))
        if claim is not None:
            self._publish_own([made[row] for row in rows_of(claim.rows)])
            self._failed_rows = True

    def _failed_dependency(self, live: LiveFile, row: int) -> Outcome:
        error = {"type": "DependencyFailed", "message": "", "traceback": ""}
        for (key, _), _ in live.file.dependencies(row):
            found = self.results.find(key)
            if found is not None and found.status == Status.DONE:
                continue
            error["key"] = key.hex()
            error["message"] = (
                f"{key.hex()} was cancelled, or its task file was removed"
                if found is None
                else f"{key.hex()} failed"
            )
            break
        return self.outcome(live, row, Status.FAILED, NOTHING, error)

    def outcome(
        self,
        live: LiveFile,
        row: int,
        status: Status,
        value: Value,
        error: dict[str, str] | None = None,
        **measured: Any,
    ) -> Outcome:
        """An outcome of a held row, with what its task file and log say of it."""
        entry, fold = live.file.rows[row], live.log.fold
        return Outcome(
            stem=live.stem,
            row=row,
            key=entry["key"].tobytes(),
            descriptor=entry["descriptor"].tobytes(),
            round=int(entry["round"]),
            generation=fold.generation[row],
            attempt=fold.attempts[row],
            ranks=int(entry["ranks"]),
            status=status,
            value=value,
            error=error,
            **measured,
        )

    # -- other agents --------------------------------------------------------------------

    def recover(self) -> bool:
        """Take rows from agents that have died, for anybody to claim; True if there were any."""
        present = [
            one for one in presence.listing(self._files, self._area) if one.agent != self.agent
        ]
        # The lock only spares others a number that is taken: without others, nothing.
        self._alone = not present
        processes = self._observer.dead_processes(present)
        told = self._told_of_jobs(present)
        # Whether its job is to blame or the task, only the scheduler knows: it is waited for.
        dead = {agent: evidence for agent, evidence in told.items() if evidence is not None}
        dead |= {agent: ("dead", "dead") for agent in processes if agent not in told}
        absent = self._absent_owners(present)
        for agent in self._observer.poll(present, absent, self._beat_done):
            dead.setdefault(agent, ("silent", "silent"))
        for agent in absent - dead.keys():
            if self._has_left(agent):  # its results were purged: it will publish no others
                dead[agent] = ("silent", "its result file is gone")
        for agent, (charge, why) in dead.items():
            self._recover_from(agent, charge, why)
        return bool(dead)

    def _told_of_jobs(self, present: Iterable[Presence]) -> dict[str, tuple[str, str] | None]:
        """Agents of queue jobs that are known: if these are over, the evidence and its text."""
        told = [(one.agent, self._observer.described(one.agent) or {}) for one in present]
        job_of = {agent: str(described["job"]) for agent, described in told if described.get("job")}
        if not job_of:
            return {}
        known = self._jobs.evidence(set(job_of.values()))
        found = {agent: known[job] for agent, job in job_of.items() if job in known}
        for agent, described in told:
            if self._comes_after(described):
                found[agent] = ("silent", f"its job {described['job']} was requeued")
        return found

    def _comes_after(self, described: Mapping[str, Any]) -> bool:
        """The same queue job has begun anew with this agent: that one was of a lost node."""
        if described.get("job") != self._described.get("job"):
            return False
        return int(described.get("restart", 0)) < int(self._described.get("restart", 0))

    def _absent_owners(self, present: Iterable[Presence]) -> set[str]:
        """Agents that hold rows in a log that this agent has read, and are not listed."""
        owners = set()
        for live in self.live:
            if "log" in live.__dict__:
                owners |= self._unfinished_owners(live)
        return owners - {one.agent for one in present} - {self.agent}

    def _unfinished_owners(self, live: LiveFile) -> set[str]:
        fold = live.log.fold
        if State.CLAIMED not in fold.state:
            return set()
        try:
            ended = self.results.ended(live.stem, live.file.keys)
        except FileNotFoundError:
            return set()  # retired meanwhile
        return {
            fold.agents[fold.owner[row]]
            for row, state in enumerate(fold.state)
            if state == State.CLAIMED and not ended[row]
        }

    def _recover_from(self, agent: str, evidence: str, told: str) -> None:
        """Seal, read the stream to the seal, reopen rows without outcome, remove the presence.

        In this order: whoever finds the presence of a dead agent does it all again.
        """
        streams.seal(self._files, self._area, agent, by=self.agent)
        self.live.poll(afresh=True)
        self.results.poll(deep=True)
        described = self._observer.described(agent) or {}
        reason = f"agent {agent} on {described.get('host', 'an unknown host')}: {told}"
        for live in self.live:
            try:
                live.log.refresh()
                self._reopen(live, f"{agent} {evidence} {reason}")
            except (Retired, FileNotFoundError):
                self._retired(live)
            except (FileDamaged, FileRefused) as error:
                self.live.set_aside(live.stem, error)
        presence.remove(self._files, self._area, agent)

    def _reopen(self, live: LiveFile, about: str) -> None:
        agent = about.partition(" ")[0]
        while True:
            ended = self.results.ended(live.stem, live.file.keys)
            rows = [row for row in live.log.fold.owned_by(agent) if not ended[row]]
            if not rows:
                return
            live.log.append(Kind.RECOVER, self.agent, fitting(ranges_of(rows), about), about)
            live.log.refresh()

    def only_is_over(self) -> bool:
        """The one row that this agent is for has ended, or somebody else runs it."""
        if self._only is None:
            return False
        stem, row = self._only
        live = self.live.get(stem)
        if live is None:
            self.live.poll(afresh=True)
            live = self.live.get(stem)
        if live is None:
            return True
        try:
            live.log.refresh()
            fold = live.log.fold
            if self.results.ended(stem, live.file.keys)[row] or fold.state[row] == State.ALIASED:
                return True
            owner = fold.owner_of(row)
        except (Retired, FileNotFoundError):
            return True
        listed = {one.agent for one in presence.listing(self._files, self._area)}
        return owner is not None and owner != self.agent and owner in listed

    def only_is_ready(self) -> bool:
        """The one row that this agent is for could run, and does not: it does not fit here."""
        if self._only is None or (live := self.live.get(self._only[0])) is None:
            return False
        return bool(live.log.fold.state[self._only[1]] == State.READY)

    def ready_rows(self) -> set[str]:
        """Work that nobody has taken, as "<task file>.<row>"."""
        found: set[str] = set()
        self.live.poll(afresh=True)
        for live in self.live:
            with suppress(Retired, OSError, SpoolError):
                live.log.refresh()
                rows = live.log.fold.rows_in(State.READY)
                found.update(f"{live.stem}.{row}" for row in rows)
        return found

    def others_hold_rows(self) -> bool:
        """Rows are held by agents that may be dead: somebody must stay and find out."""
        return any(
            self._unfinished_owners(live) - {self.agent}
            for live in self.live
            if "log" in live.__dict__
        )

    # -- tidying up ----------------------------------------------------------------------

    def tidy(self) -> bool:
        """End cancelled rows, retire task files, pack results; True if there was anything."""
        self._publish_own([])
        self.live.poll(afresh=True)
        self.results.poll()
        ended = []
        for live in self.live:
            with suppress(FileDamaged, FileRefused):
                if self._retire_if_ended(live):
                    ended.append(live)
        if ended:
            now = self._files.monotonic()
            graves = bury(self._files, self._area, [live.stem for live in ended])
            self._graves += [(now, grave) for grave in graves]
            for live in ended:
                self._retired(live)
        self._empty_graves()
        self._quarantine()
        self._sweep_requests()
        merged = packs.cycle(self._files, self._area) or archive.cycle(self._files, self._area)
        return merged or bool(ended)

    def _quarantine(self) -> None:
        """Put aside what cannot be read; rows whose outcomes went with it run again.

        Of its own rows an agent knows that they were published, so it reopens them. Rows of
        agents that have ended are reopened by recovery, like all without an outcome.
        """
        own = self._area.stream(self.agent) + "/"
        if any(path.startswith(own) for path in self.results.damaged):
            for stem, rows in list(self._published.items()):
                self._reopen_lost(stem, rows)
        damaged = [
            self._area.task_file(stem)
            for stem, error in self.live.unreadable.items()
            if not isinstance(error, FormatTooNew)
        ]
        for path in [*damaged, *self.results.damaged]:
            if not self._is_top(path):
                with suppress(FileNotFoundError):
                    self._files.rename(path, self._area.quarantined(path, self._files.token()))

    def _is_top(self, path: str) -> bool:
        """The highest file of a stream: it tells the next number, and stays."""
        directory, _, name = path.rpartition("/")
        return directory.startswith(self._area.results) and name == max(
            self._files.names(directory), default=""
        )

    def _reopen_lost(self, stem: str, rows: set[int]) -> None:
        live = self.live.get(stem)
        if live is None:
            return
        fold, ended = live.log.fold, self.results.ended(stem, live.file.keys)
        for row in [row for row in rows if not ended[row]]:
            about = f"{fold.generation[row]} its result file was damaged"
            self._append_all(live, Kind.LOST, [row], about)
            rows.discard(row)

    def _empty_graves(self) -> None:
        """Delete logs that no client can walk into any more (gc does it for other agents')."""
        now = self._files.monotonic()
        for buried, grave in list(self._graves):
            if now - buried > GRAVE_REST:
                self._graves.remove((buried, grave))
                with suppress(FileNotFoundError):
                    delete_log(self._files, grave)

    def _end_cancelled(self, live: LiveFile) -> None:
        """Publish that cancelled rows will not run, for everybody who waits for them."""
        cancelled = live.log.fold.rows_in(State.CANCELLED)
        if not cancelled:
            return
        made = {row: self.outcome(live, row, Status.CANCELLED, NOTHING) for row in cancelled}
        claim = self._own(live, tuple(fitting(ranges_of(cancelled))))
        if claim is not None:
            self._publish_own([made[row] for row in rows_of(claim.rows)])

    def _retire_if_ended(self, live: LiveFile) -> bool:
        """Append the last record; True if the file is to be buried (now, or still)."""
        try:
            live.log.refresh()
            self._end_cancelled(live)
            if not self._has_ended(live):
                return False
            if live.log.fold.aliases and self._durable:
                # Claims were made durable with their outcomes. A power loss must not keep
                # `retire` and lose the alias that it rests on, either.
                self._files.sync_directory(live.log.path)
            return live.log.append(Kind.RETIRE, self.agent, ())
        except Retired:
            return True
        except FileNotFoundError:
            self._retired(live)
        return False

    def _has_ended(self, live: LiveFile) -> bool:
        """No row will change any more. Rows that wait or are ready are asked first: cheap."""
        fold = live.log.fold
        if any(state in fold.state for state in CLAIMABLE):
            return False
        ended = self.results.ended(live.stem, live.file.keys)
        return all(
            done or state == State.ALIASED for state, done in zip(fold.state, ended, strict=False)
        )

    def _retired(self, live: LiveFile) -> None:
        self.live.forget(live.stem)
        self.results.forget(live.stem)
        for known in (self.held, self._claimed, self._published, self._waiting, self._contested):
            known.pop(live.stem, None)

    # -- requests ------------------------------------------------------------------------

    def _sweep_requests(self) -> None:
        """Forget requests to end rows that have ended."""
        for name in self._files.names(self._area.cancel):
            request = parse_cancel(name)
            if request is None:
                continue
            live = self.live.get(request[0])
            with suppress(FileNotFoundError):
                if live is None or self.results.ended(live.stem, live.file.keys)[request[1]]:
                    self._files.unlink(self._area.cancel_request(*request))

    def cancel_requests(self) -> list[tuple[str, int]]:
        """Held rows that somebody wants to end."""
        found = []
        for name in self._files.names(self._area.cancel):
            request = parse_cancel(name)
            if request is not None and request[1] in self.held.get(request[0], ()):
                found.append(request)
        return found


def _first_row(outcome: Outcome | Bulk) -> tuple[str, int]:
    return next(_rows([outcome]))


def _rows(outcomes: Iterable[Outcome | Bulk]) -> Iterator[tuple[str, int]]:
    for outcome in outcomes:
        if isinstance(outcome, Bulk):
            for row in range(outcome.first, outcome.first + len(outcome.texts)):
                yield outcome.stem, row
        else:
            yield outcome.stem, outcome.row
