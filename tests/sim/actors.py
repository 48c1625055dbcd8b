"""What runs in the simulation: the real sessions in plain loops.

The loops stand in for those of the agent and of the executor. They do the same steps in
an order that the seed draws, and treat errors as those must: what the file system
refuses now is tried again later, `Sealed` ends the agent.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from fsbroker.agent.session import AgentSession, Claim
from fsbroker.client.again import Again
from fsbroker.client.deferral import Deferral
from fsbroker.client.history import History
from fsbroker.client.session import UNREADABLE, ClientSession, Ended, Lane
from fsbroker.errors import SpoolError, TaskLost
from fsbroker.spool import gc, presence
from fsbroker.spool.index import Found
from fsbroker.spool.layout import Area, area_of
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import rows_of
from fsbroker.spool.neighbours import Neighbours
from fsbroker.spool.streams import Sealed
from fsbroker.spool.taskfile import Arguments, FunctionEntry, TaskRow
from fsbroker.task import Dependency, Encoding, Outcome, Status, Value
from tests.sim.invariants import Violation
from tests.sim.model import TICK
from tests.sim.scheduler import Actor

if TYPE_CHECKING:
    from tests.sim.world import Job, World

LEASE = 10.0
"""Seconds of silence that make an agent dead: short, so that runs are short."""
LONGEST_NAP = 4.0
"""Below `presence.PROMPT`: a longer one would say nothing about the silence of others."""
ENVIRONMENT = "env"
FUNCTION = FunctionEntry(b"f" * 20, "f", "def f(): ...", b"pickle")
TROUBLE = (OSError, SpoolError)
NOTHING = Value(Encoding.PLAIN, b"null")
FAILURE = {"type": "ValueError", "message": "", "traceback": ""}


# -- agents ----------------------------------------------------------------------------------


class Agent:
    """A process that claims, runs and publishes."""

    def __init__(self, actor: Actor, world: World) -> None:
        self.actor = actor
        self.world = world
        self.truth = world.truths[actor.files.uid]
        self.chance = world.chance
        self.session = AgentSession(
            world.spool(actor.files),
            ENVIRONMENT,
            {"host": actor.host.name},
            world.described(actor),
            LEASE,
        )
        self.finished: list[Outcome] = []
        self.claims: list[Claim] = []
        self.nap = 0.01
        self.idle = 0
        self.joined = False

    def run(self) -> None:
        try:
            self._retry(self.session.join)
            self.joined = True
            while not self._may_leave():
                if self._gives_up():
                    return
                thorough, closing = self.nap >= LONGEST_NAP, self.world.closing
                busy = self._round(thorough=thorough)
                # A lock that somebody holds is waited for: one idle round tells nothing; nor
                # does one that began while work could still come.
                self.idle = self.idle + 1 if closing and thorough and not busy else 0
                self.nap = 0.01 if busy else min(4 * self.nap, LONGEST_NAP)
                self.world.sleep(self.actor, self.nap)
            self._retry(self.session.leave)
        except Sealed:
            pass  # taken for dead: its work is void

    def _retry(self, call) -> None:
        while True:
            try:
                return call()
            except TROUBLE as error:
                self.world.note(self.actor, f"trouble: {error!r}")
                self.world.sleep(self.actor, 0.5)
                with suppress(*TROUBLE):
                    if self.joined:
                        self.session.beat()  # a zombie learns by this that it was sealed

    def _gives_up(self) -> bool:
        """File calls failed for too long: it gives back what it may, and is gone."""
        scenario = self.world.scenario
        if not (scenario.leavers and self.finished and self.chance.random() < 0.2):
            return False
        with suppress(*TROUBLE):
            self.session.abandon("no use")
        self.actor.files.dead = True  # as far as others can ask
        self.world.replace(self.actor)
        return True

    def _may_leave(self) -> bool:
        if not self.world.closing or self.finished or self.idle < 2:
            return False
        try:
            return not self.session.recovery.others_hold_rows()
        except FileNotFoundError:
            return False

    def _round(self, *, thorough: bool) -> bool:
        busy = False
        try:
            self.session.beat()
            busy |= self._publish()
            for step in self._steps(thorough=thorough):
                busy |= bool(step())
        except TROUBLE as error:
            self.world.note(self.actor, f"trouble: {error!r}")
        return busy

    def _steps(self, *, thorough: bool) -> list:
        """What is done in this round, in an order that the seed draws."""
        session, chance = self.session, self.chance
        steps = [self._work]
        if thorough or chance.random() < 0.5:
            steps.append(lambda: session.resolve(thorough=thorough or chance.random() < 0.2))
        if chance.random() < 0.5:
            steps.append(session.recover)
        if thorough or chance.random() < 0.2:
            steps.append(self._tidy)
        chance.shuffle(steps)
        return steps

    def _tidy(self) -> bool:
        return self.session.tidy()

    # -- claiming and running ----------------------------------------------------------------

    def _work(self) -> bool:
        self.session.live.poll()
        most = self.chance.choice((1, 1, 2, 4, 100))
        thorough = self.nap >= LONGEST_NAP / 2
        claim = self.session.claim(lambda _, ready: min(most, len(ready)), thorough=thorough)
        if claim is None:
            return False
        self._run(claim)
        self._publish()
        return True

    def _run(self, claim: Claim) -> None:
        """Run the rows; beat meanwhile; sometimes give the rest back, or publish in parts."""
        local: dict[bytes, bytes] = {}
        rows = list(rows_of(claim.rows))
        # Whoever slept and was taken over may read of later ones, and runs on all the same.
        generations = {row: claim.live.log.fold.generation[row] for row in rows}
        while rows:
            row = rows.pop(0)
            outcome = self._outcome(claim.live, row, generations[row], local)
            if outcome is None:
                held = self.session.holdings
                self._retry(lambda row=row, held=held: held.release(claim.live, [row], "no input"))
                continue
            self.finished.append(outcome)
            if self.chance.random() < 0.1:
                self._retry(self._publish)
            if rows and self.chance.random() < 0.03:
                self._retry(lambda: self.session.holdings.release(claim.live, rows, "enough"))
                return

    def _outcome(
        self, live: LiveFile, row: int, generation: int, local: dict[bytes, bytes]
    ) -> Outcome | None:
        """Run one row. None if an input cannot be had now; if gc may have taken it, it fails."""
        for dependency, _ in self._retry(lambda: live.file.dependencies(row)):
            if dependency.key in local:
                continue
            if self._failed_here(dependency.key):
                return self.session.holdings.outcome(
                    live, row, Status.FAILED, NOTHING, dict(FAILURE)
                )
            if self._retry(lambda d=dependency: self.session.dependencies.value(d.key)) is None:
                if not self.truth.collected:
                    return None
                return self.session.holdings.outcome(
                    live, row, Status.FAILED, NOTHING, dict(FAILURE)
                )
        key = live.file.key(row)
        text, fails = self.world.execute(
            self.actor, (live.stem, row), self.session.agent, generation, local
        )
        self._last(self.world.jobs[key].seconds)
        if fails:
            return self.session.holdings.outcome(live, row, Status.FAILED, NOTHING, dict(FAILURE))
        local[key] = text
        return self.session.holdings.outcome(live, row, Status.DONE, Value(Encoding.PLAIN, text))

    def _failed_here(self, key: bytes) -> bool:
        return any(one.key == key and one.status == Status.FAILED for one in self.finished)

    def _last(self, seconds: float) -> None:
        """The function runs; the agent beats meanwhile."""
        while seconds > 0:
            self.world.sleep(self.actor, min(seconds, LONGEST_NAP))
            seconds -= LONGEST_NAP
            try:
                self.session.beat()
            except TROUBLE as error:
                self.world.note(self.actor, f"trouble: {error!r}")

    def _publish(self) -> bool:
        if not self.finished:
            return False
        outcomes = list(self.finished)
        rows = [(outcome.stem, outcome.row) for outcome in outcomes]
        self.session.publish(outcomes)
        self.truth.acknowledge(rows)
        self.finished.clear()
        return True


def agent(actor: Actor, world: World) -> None:
    Agent(actor, world).run()


def collector(actor: Actor, world: World) -> None:
    """Remove what nobody needs, several times: results at once, whatever their age."""
    files = actor.files
    truth, area = world.truths[files.uid], Area(area_of(files.uid))
    for _ in range(6):
        world.sleep(actor, world.chance.choice((0.05, 0.5, 3.0)))
        truth.collected = True
        truth.collecting = {stem for stem, fold in truth.folds.items() if not fold.retired}
        with suppress(*TROUBLE):
            rubbish = gc.survey(files, area, gc.Wishes(older_than=0.0, results=True))  # type: ignore[arg-type]
            gc.remove(files, area, rubbish)  # type: ignore[arg-type]


def retrier(actor: Actor, world: World) -> None:
    """`fsbroker retry`, several times: new rounds of what has failed, from what is stored."""
    spool = world.spool(actor.files)
    for _ in range(4):
        world.sleep(actor, world.chance.choice((0.05, 1.0, 10.0)))
        with suppress(*TROUBLE, TaskLost):
            history = History(spool)
            again = Again(spool, history)
            failed = (row for row in history if row.phase in Again.RETRIED)
            for stem in again.publish(again.with_others(failed)):
                world.truths[spool.files.uid].accept(stem)
                world.note(actor, f"tries anew: {stem}")


# -- clients ---------------------------------------------------------------------------------


class Ticket(NamedTuple):
    """A future: whose, of which job, the how-manyth."""

    client: str
    key: bytes
    number: int


class Client:
    """A process that submits jobs and waits for all of them.

    Args:
        batches: jobs (by number) to submit together.
        tries: how often a job that failed or was cancelled is submitted again.
        cancels: jobs to cancel after they were submitted.
    """

    def __init__(
        self,
        actor: Actor,
        world: World,
        batches: Iterable[Sequence[int]],
        tries: int = 1,
        cancels: Iterable[int] = (),
    ) -> None:
        self.actor = actor
        self.world = world
        self.truth = world.truths[actor.files.uid]
        self.batches = [list(batch) for batch in batches]
        self.tries = tries
        self.cancels = {world.job_keys[number] for number in cancels}
        spool = world.spool(actor.files)
        trusted = world.trusted(actor.files.uid)
        others = Neighbours(spool, trusted) if trusted else None
        self.session: ClientSession[Ticket] = ClientSession(
            spool, lambda ticket: ticket.key, self._moved, others
        )
        self.deferral = Deferral(others, self._hold) if others else None
        self.pending: dict[bytes, str] = {}
        self.open: dict[Ticket, tuple[str, int] | None] = {}
        self.status: dict[bytes, Status] = {}
        self.unread: list[tuple[Ticket, bool]] = []
        self.count = 0
        self.tried: dict[bytes, int] = {}
        self.looked: dict[Ticket, int] = {}

    def run(self) -> None:
        rounds, nap = 0, 0.01
        while self.batches or self.open:
            rounds += 1
            try:
                busy = self._round(rounds)
            except TROUBLE as error:
                self.world.note(self.actor, f"trouble: {error!r}")
                busy = False
            nap = 0.01 if busy else min(4 * nap, LONGEST_NAP)
            self.world.sleep(self.actor, nap)
        if self.deferral is not None:
            self.deferral.end()

    def _hold(self) -> AgentSession:
        """As `agent.session.without_workers`."""
        described = {**self.world.described(self.actor), "place": presence.CLIENT}
        spool = self.world.spool(self.actor.files)
        return AgentSession(spool, ENVIRONMENT, {"host": self.actor.host.name}, described)

    def _round(self, rounds: int) -> bool:
        chance = self.world.chance
        busy = False
        if self.batches and (not self.open or chance.random() < 0.5):
            self._submit(self.batches[0])
            self.batches.pop(0)
            busy = True
        if self.cancels and chance.random() < 0.3:
            self._cancel()
        for ended in self.session.poll(deep=chance.random() < 0.1):
            self._read(ended)
            busy = True
        if self.deferral is not None and chance.random() < 0.5:
            self.deferral.look()
        if rounds % 7 == 0:
            self._check()
        self._read_again()
        return busy

    # -- submitting --------------------------------------------------------------------------

    def _submit(self, batch: Sequence[int]) -> None:
        """Bind each job to its outcome, to a row that is there, or to a new row."""
        jobs = [self.world.by_number[number] for number in self._with_needs(batch)]
        open_keys = {ticket.key for ticket in self.open}
        jobs = [job for job in jobs if job.key not in open_keys]
        known = self.truth.looks_up([job.key for job in jobs])
        outcomes, running = self.session.look_up([job.key for job in jobs])
        outcomes |= self._adopted(jobs, outcomes, running)
        rows, tickets = [], []
        for job in jobs:
            found, wanted = outcomes.get(job.key), job.key in self._keys(batch)
            ticket = self._ticket(job.key)
            if found is not None and found.status == Status.DONE:
                if wanted:
                    self.open[ticket] = None
                    self.unread.append((ticket, False))
            elif job.key in running:
                if wanted:
                    self.session.bind(running[job.key], ticket)
                    self.open[ticket] = running[job.key]
            else:
                rows.append(self._row(job, found))
                tickets.append(ticket)
                self.truth.wanted[ticket] = rows[-1].round
        if rows:
            lag = 2 * TICK if self.actor.files.host.mount.ticks else 0.0
            self.truth.makes([row.key for row in rows], known, lag)
            for lane, part in groupby(zip(rows, tickets, strict=True), self._lane):
                self._publish(lane, *zip(*part, strict=True))

    def _publish(self, lane: Lane, rows: Sequence[TaskRow], tickets: Sequence[Ticket]) -> None:
        stem = self.session.publish(lane, rows, tickets)
        self.truth.accept(stem)
        for number, ticket in enumerate(tickets):
            self.open.setdefault(ticket, (stem, number))  # unless it was moved at once

    def _lane(self, item: tuple[TaskRow, Ticket]) -> Lane:
        """Rows that somebody else has computed are put off."""
        lane, user = self.world.lane(), self.pending.get(item[0].key)
        if user is None or self.deferral is None:
            return lane
        return self.deferral.lane(lane, user)

    def _adopted(
        self, jobs: list[Job], outcomes: Mapping[bytes, Found], running: Container[bytes]
    ) -> dict[bytes, Found]:
        """What others have of jobs that would have to run here."""
        done = {key for key, found in outcomes.items() if found.status == Status.DONE}
        wanted = {
            job.key: job.key for job in jobs if job.key not in done and job.key not in running
        }
        self.pending = self.deferral.pending(wanted) if self.deferral is not None else {}
        offered, refusals = self.truth.offered(wanted), self.world.refusals
        with suppress(*TROUBLE):  # they are computed here, then
            found = self.session.adopt(wanted)
            self.truth.acknowledge(self.truth.taken_over(found))
            sees_all = not self.actor.files.host.mount.ticks and refusals == self.world.refusals
            still = offered & self.truth.offered(wanted)
            sees_all &= not self.truth.collected  # the own gc may have taken the copy at once
            if sees_all and (missed := still - found.keys()):
                raise Violation(f"{missed} were not taken over, though somebody trusted has them")
            return found
        return {}

    def _moved(self, ticket: Ticket, stem: str, row: int) -> None:
        self.open[ticket] = (stem, row)

    def _keys(self, batch: Sequence[int]) -> set[bytes]:
        return {self.world.job_keys[number] for number in batch}

    def _with_needs(self, batch: Sequence[int]) -> list[int]:
        """The jobs and all that they need, inputs first."""
        found: dict[int, None] = {}

        def visit(number: int) -> None:
            for need in self.world.by_number[number].needs:
                visit(need)
            found[number] = None

        for number in batch:
            visit(number)
        return list(found)

    def _row(self, job: Job, found: Found | None) -> TaskRow:
        needs = tuple(Dependency(self.world.job_keys[need]) for need in job.needs)
        value = Value(Encoding.PLAIN, b"[]")
        round_ = found.round + 1 if found is not None else 0
        return TaskRow(job.key, job.key, Arguments(*value, needs), FUNCTION, round_)

    def _ticket(self, key: bytes) -> Ticket:
        self.count += 1
        return Ticket(self.actor.name, key, self.count)

    # -- outcomes ----------------------------------------------------------------------------

    def _resolve(self, ticket: Ticket, status: Status, text: bytes) -> None:
        if ticket in self.truth.resolved:
            return  # bound twice, after an error in the middle of a submission
        self.truth.resolve(ticket, ticket.key, status, text)
        self.open.pop(ticket, None)
        self.status[ticket.key] = status
        job = self.world.jobs[ticket.key]
        if status == Status.DONE or job.number in self.world.hopeless:
            return
        tried = self.tried.get(ticket.key, 0)
        if tried < self.tries:
            self.tried[ticket.key] = tried + 1
            self.batches.append([job.number])

    def _read(self, ended: Ended[Ticket]) -> None:
        """Tell the tickets; what cannot be read now (or went into a pack) is looked up later."""
        for index, ticket in ended.tickets:
            try:
                outcome = ended.file.outcome(index)
            except TROUBLE as error:
                self.world.note(self.actor, f"trouble: {error!r}")
                self.unread.append((ticket, True))
            else:
                self._resolve(ticket, Status(outcome.status), outcome.value.data)

    def _read_again(self) -> None:
        """What was found, or went into a pack under us: then the row's own, not the latest."""
        for entry in list(self.unread):
            (ticket, own), results = entry, self.session.results
            place = self.open[ticket]
            found = (
                results.find_row(ticket.key, *place) if own and place else results.find(ticket.key)
            )
            self.looked[ticket] = self.looked.get(ticket, 0) + 1
            if found is None and self.truth.collected and self.looked[ticket] > UNREADABLE:
                self.unread.remove(entry)  # gc took what had been found
                self._again(ticket)
            elif found is not None and self._read_found(ticket, found):
                self.unread.remove(entry)

    def _read_found(self, ticket: Ticket, found: Found) -> bool:
        try:
            outcome = self.session.results.file(found.place.path).outcome(found.place.row)
        except FileNotFoundError:
            self.session.results.look_again()
            return False
        self._resolve(ticket, Status(outcome.status), outcome.value.data)
        return True

    def _check(self) -> None:
        checked = self.session.check()
        self.unread += [(ticket, False) for ticket, _ in checked.elsewhere]
        if checked.unreadable:
            raise Violation(f"{self.actor.name} gave up: {checked.unreadable}")
        if checked.lost and self.truth.collected:
            for ticket in checked.lost:
                self._again(ticket)
        elif checked.lost:
            raise Violation(f"{self.actor.name} was told that {checked.lost} are lost")

    def _again(self, ticket: Ticket) -> None:
        """Its future is told that the task is lost; who wants it all the same submits it again."""
        self.open.pop(ticket, None)
        self.batches.append([self.world.jobs[ticket.key].number])

    def _cancel(self) -> None:
        for ticket, place in list(self.open.items()):
            if place is None or ticket.key not in self.cancels:
                continue
            self.cancels.discard(ticket.key)
            ended = self.deferral.cancel(place[0], [place[1]]) if self.deferral is not None else ()
            if ended or self.session.cancel(*place):
                self.world.note(self.actor, f"cancelled {place}")
                self.truth.tell_cancelled(place)
            return


def client(actor: Actor, world: World, *plan) -> None:
    one = Client(actor, world, *plan)
    world.clients.append(one)
    one.run()
