"""One seed: a scenario, run to its end, judged.

A run has two parts. In the first, agents and clients live through what the seed draws:
kills, stops, a file system that errs, lies and forgets. In the second nothing bad
happens any more, a fresh agent and a client that wants everything are added, and all
must come to its end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from fsbroker.client.session import Lane
from fsbroker.spool import container, log, neighbours, packs, presence, tiers
from fsbroker.spool.files import Buffer
from fsbroker.spool.layout import DIRECTORIES, USERS, Area, area_of
from fsbroker.spool.neighbours import Neighbours
from fsbroker.spool.spool import Spool
from fsbroker.spool.taskfile import Limits
from fsbroker.spool.trust import Trusted
from fsbroker.task import Status
from tests.sim import actors
from tests.sim.invariants import Row, Truth, Violation
from tests.sim.model import (
    NEGATIVE,
    NEVER,
    ForeignModelFiles,
    Host,
    Kind,
    ModelDisk,
    ModelFiles,
    Mount,
    Node,
    NotYours,
)
from tests.sim.scheduler import Actor, Scheduler, Strike, Stuck

FIRST = 1000
"""The uid of the first user."""
LANE = Lane(100, "c1", actors.ENVIRONMENT, Limits())


class SeedFailed(AssertionError):
    """A run broke a rule, or did not come to its end."""


class Job(NamedTuple):
    number: int
    key: bytes
    needs: tuple[int, ...]
    failures: int
    seconds: float


@dataclass
class Scenario:
    """What a seed draws before anything runs.

    Attributes:
        agents, clients, collectors, retriers: how many start.
        burst: mean number of calls between changes of actor.
        latency: seconds of a file call.
        ordered: how the disk keeps names through a power loss (`ModelDisk`).
        strikes: what hits, and at which call.
        steps: calls after which the trouble ends.
        leavers: agents give up now and then, with rows in hand; others come.
        trust: for each user, by uid, the trust list; each has agents and clients.
    """

    trust: dict[int, list[str]] = field(default_factory=lambda: {FIRST: []})
    agents: int = 2
    clients: int = 1
    hosts: int = 2
    jobs: int = 8
    burst: float = 3.0
    latency: float = 0.0003
    ordered: bool = True
    durable: bool = True
    mount: Mount = field(default_factory=Mount)
    strikes: list[tuple[int, Strike]] = field(default_factory=list)
    steps: int = 800
    cancels: bool = False
    failures: bool = False
    collectors: int = 0
    retriers: int = 0
    leavers: bool = False


def draw(chance: random.Random) -> Scenario:
    """A scenario of any sort."""
    pick = chance.choice
    scenario = Scenario(
        agents=pick((1, 2, 2, 3)),
        clients=pick((1, 1, 2)),
        hosts=pick((1, 2, 3)),
        jobs=pick((2, 4, 8, 14)),
        burst=pick((0.0, 1.0, 3.0, 10.0, 40.0)),
        latency=pick((0.00005, 0.0005, 0.005)),
        ordered=chance.random() < 0.5,
        mount=_mount(chance),
        steps=pick((300, 600, 1000)),
        cancels=chance.random() < 0.3,
        failures=chance.random() < 0.3,
        collectors=pick((0, 0, 0, 0, 0, 1)),
    )
    scenario.leavers = chance.random() < 0.2
    if chance.random() < 0.15:
        _add_users(scenario, chance)
    scenario.retriers = pick((0, 1)) if scenario.failures or scenario.cancels else 0
    kinds = chance.choices((Strike.KILL, Strike.STOP, Strike.PAUSE, Strike.FULL), k=pick((0, 1, 3)))
    if chance.random() < 0.25:
        kinds.append(Strike.POWER)
    if chance.random() < 0.1:
        kinds += [Strike.STOP] * 15
    scenario.strikes = sorted(
        ((chance.randrange(scenario.steps), kind) for kind in kinds), key=lambda one: one[0]
    )
    return scenario


def _add_users(scenario: Scenario, chance: random.Random) -> None:
    """One or two more, of whom some trust others; each has fewer agents."""
    uids = range(FIRST, FIRST + chance.choice((2, 2, 3)))
    scenario.agents = 1
    scenario.trust = {
        uid: [
            f"{other}{chance.choice(('', ':plain'))}"
            for other in uids
            if other != uid and chance.random() < 0.7
        ]
        for uid in uids
    }


def _mount(chance: random.Random) -> Mount:
    kind = chance.choice((Kind.LOCAL, Kind.LOCAL, Kind.V3, Kind.V4))
    network = kind is not Kind.LOCAL
    return Mount(
        kind,
        absent=chance.choice((NEGATIVE, NEGATIVE, 1.0, 0.0, None)),
        locks=chance.choice(("good", "good", "nobody", "local", "refused", "sticky", "leased")),
        calm=chance.choice((0, 0, 30, 100)),
        # The sessions of v4.1 answer a repeated request as they did the first time.
        lies=kind is Kind.V3 or (kind is Kind.V4 and chance.random() < 0.5),
        late=network and chance.random() < 0.3,
    )


class World:
    """Everything of one run.

    Attributes:
        closing: no more work will come: idle agents may leave.
        trace: lines of what happened, if wanted.
        refusals: how often something of another user could not be read.
    """

    def __init__(self, seed: int, scenario: Scenario | None = None, *, trace: bool = False) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.scenario = scenario or draw(self.chance)
        self.trace: list[str] | None = [] if trace else None
        self.disk = ModelDisk(self.scenario.ordered)
        self.scheduler = Scheduler(self.disk, self.chance, self.scenario.burst)
        self.scheduler.on_power_loss = self._after_power_loss
        self.scheduler.on_death = self._after_death
        self.truths = {uid: self._truth(uid) for uid in self.scenario.trust}
        for uid, truth in self.truths.items():
            trusted = self.trusted(uid)
            truth.neighbours = [self.truths[one] for one in self.truths if trusted.of(one)]
        self.closing = False
        self.boots = 0
        self.processes: dict[int, Actor] = {}
        self.clients: list[actors.Client] = []
        self.hosts = [self._host(number) for number in range(self.scenario.hosts)]
        self.by_number = self._draw_jobs()
        self.jobs = {job.key: job for job in self.by_number}
        self.hopeless: set[int] = set()
        for job in self.by_number:
            if job.failures == NEVER or self.hopeless.intersection(job.needs):
                self.hopeless.add(job.number)
        self.job_keys = [job.key for job in self.by_number]
        self.refusals = 0
        self._names = 0
        self._make_areas()

    # -- the scenario ------------------------------------------------------------------------

    def _host(self, number: int) -> Host:
        chance = self.chance
        return Host(
            f"host{number}",
            self.scenario.mount,
            rate=chance.choice((1.0, 0.97, 1.03)),
            offset=chance.uniform(0, 1e5),
            skew=chance.choice((0.0, 0.0, 3600.0, -7200.0)),
        )

    def _draw_jobs(self) -> list[Job]:
        chance, jobs = self.chance, []
        chained = chance.random()
        for number in range(self.scenario.jobs):
            needs: tuple[int, ...] = ()
            if number and chance.random() < chained:
                count = chance.choice((1, 1, 1, 2))
                needs = tuple(sorted({chance.randrange(number) for _ in range(count)}))
            failures = 0
            if self.scenario.failures and chance.random() < 0.3:
                failures = chance.choice((1, NEVER))
            seconds = chance.choice((0.0, 0.0, 0.01, 1.0, 30.0))
            jobs.append(Job(number, b"%04dkey" % number + b"." * 13, needs, failures, seconds))
        return jobs

    def _truth(self, uid: int) -> Truth:
        return Truth(self.disk, Area(area_of(uid)), self.scheduler)

    def _make_areas(self) -> None:
        for uid in self.truths:
            files = ModelFiles(self.disk, Host("installer"), self.scheduler, self.chance)
            files.clock, files.uid = _Still(self.scheduler), uid
            files.mkdir(USERS)
            files.mkdir(area_of(uid))
            for name in DIRECTORIES:
                files.mkdir(f"{area_of(uid)}/{name}")
        for directory in list(self.disk.directories):
            files.sync_directory(directory)
        self.disk.watcher = self if len(self.truths) > 1 else self.truths[FIRST]

    # -- changes on the disk: each `Truth` takes what is in its area --------------------------

    def added(self, directory: str, name: str, node: Node) -> None:
        for truth in self.truths.values():
            truth.added(directory, name, node)

    def removed(self, directory: str, name: str, node: Node) -> None:
        for truth in self.truths.values():
            truth.removed(directory, name, node)

    def replaced(self, directory: str, name: str, old: Node, new: Node) -> None:
        self.truths[FIRST].replaced(directory, name, old, new)

    # -- what actors need ------------------------------------------------------------------------

    def spool(self, files: ModelFiles) -> Spool:
        area = self.truths[files.uid].area
        return Spool(files, area, self.scenario.durable)  # type: ignore[arg-type]

    def trusted(self, uid: int) -> Trusted:
        return Trusted(self.scenario.trust[uid])

    def foreign(self, files: ModelFiles, owner: int) -> ForeignModelFiles:
        """Another user's area, as a process sees it."""
        made = ForeignModelFiles(files, owner)
        if self.trace is not None:
            actor = next(one for one in self.scheduler.actors if one.files is files)
            _traced(made, actor, self)
        return made

    def refused(self, path: str, error: Exception) -> None:
        """All users are honest: nothing that they have is refused, but when file calls fail."""
        self.refusals += 1
        if not isinstance(error, OSError):
            raise Violation(f"{path} was not taken over: {error!r}") from error

    def replace(self, actor: Actor) -> None:
        """An agent has given up: another one comes."""
        self._start_agent(actor.files.uid).wake += self.chance.choice((0.0, 1.0, 30.0))

    def lane(self) -> Lane:
        return LANE

    def sleep(self, actor: Actor, seconds: float) -> None:
        self.scheduler.sleep(actor, seconds)

    def note(self, actor: Actor, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.scheduler.now:10.4f} {actor.name:9} {text}")

    def execute(
        self, actor: Actor, row: Row, agent: str, generation: int, local: dict[bytes, bytes]
    ) -> tuple[bytes, bool]:
        """Run a row of the world outside: the value, and whether it is an error instead."""
        self.note(actor, f"EXECUTE {row} generation {generation}")
        truth = self.truths[actor.files.uid]
        text = truth.execute(row, agent, generation, local)
        key = truth.tasks[row[0]].keys[row[1]]
        return text, len(truth.executions[key]) <= self.jobs[key].failures

    def described(self, actor: Actor) -> dict[str, Any]:
        pid = len(self.processes) + 1
        self.processes[pid] = actor
        return {
            "host": actor.host.name,
            "boot": f"{actor.host.name}-{self.boots}",
            "namespace": "1",
            "pid": pid,
            "process_start": str(pid),
        }

    def is_dead_process(self, described: dict[str, Any]) -> bool:
        running = self.scheduler.running
        assert running is not None
        if described["boot"] != f"{running.host.name}-{self.boots}":
            return False
        return not self.processes[described["pid"]].alive

    # -- the run -------------------------------------------------------------------------------

    def run(self) -> None:
        with in_simulation(self):
            try:
                self._trouble()
                self._calm()
                for truth in self.truths.values():
                    truth.at_rest()
                    self._judge(truth)
            except Stuck as failure:
                rows = (text for truth in self.truths.values() for text in truth.unfinished())
                left = "; ".join([*rows, *self._waiting()])
                raise SeedFailed(f"seed {self.seed}: {failure}; {left}") from failure
            except (Violation, NotYours) as failure:
                raise SeedFailed(f"seed {self.seed}: {failure}") from failure
            finally:
                self.scheduler.end()

    def _trouble(self) -> None:
        self.scheduler.strikes = list(self.scenario.strikes)
        for uid in self.truths:
            for _ in range(self.scenario.agents):
                self._start_agent(uid)
            for _ in range(self.scenario.clients):
                self._start_client(uid)
            for _ in range(self.scenario.collectors):
                self._start(uid, "gc", actors.collector)
            for _ in range(self.scenario.retriers):
                self._start(uid, "retry", actors.retrier)
        self.scheduler.run_steps(self.scenario.steps)

    def _start(self, uid: int, kind: str, main: Callable[..., None], *plan: Any) -> Actor:
        self._names += 1
        host = self.chance.choice(self.hosts)
        actor = self.scheduler.spawn(f"{kind}{self._names}", host, main, self, *plan)
        actor.files.latency = self.scenario.latency
        actor.files.uid, actor.files.home = uid, self.truths[uid].area.path + "/"
        if self.trace is not None:
            _traced(actor.files, actor, self)
        return actor

    def _start_agent(self, uid: int) -> Actor:
        return self._start(uid, "agent", actors.agent)

    def _start_client(self, uid: int) -> Actor:
        """A client that wants some of the jobs, in some batches; several want the same ones."""
        chance = self.chance
        numbers = [job.number for job in self.by_number if chance.random() < 0.7]
        batches: list[list[int]] = []
        while numbers:
            count = chance.choice((1, 2, 5, 20))
            batches.append(numbers[:count])
            numbers = numbers[count:]
        cancels = [
            job.number for job in self.by_number if self.scenario.cancels and chance.random() < 0.3
        ]
        return self._start(uid, "client", actors.client, batches, chance.choice((0, 2)), cancels)

    def _after_death(self, actor: Actor) -> None:
        """Somebody was killed: another one comes, sooner or later."""
        self.note(actor, "KILLED")
        if actor.name.startswith(("gc", "retry")):
            return
        start = self._start_agent if actor.name.startswith("agent") else self._start_client
        start(actor.files.uid).wake += self.chance.choice((0.0, 1.0, 30.0))

    def _after_power_loss(self) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.scheduler.now:10.4f} POWER LOSS")
        self.boots += 1
        for host in self.hosts:
            host.forget()
        for uid, truth in self.truths.items():
            truth.power_loss()
            for _ in range(self.scenario.agents):
                self._start_agent(uid)
            self._start_client(uid)

    def _calm(self) -> None:
        self.scheduler.strikes = []
        self.disk.full = False
        for host in self.hosts:
            host.mount = replace(host.mount, calm=0, lies=False, late=False)
        for actor in self.scheduler.actors:
            actor.files.calm = NEVER
            actor.wake = min(actor.wake, self.scheduler.now + 60.0)
        for uid in self.truths:
            self._start_agent(uid)
            everything = [[job.number for job in self.by_number]]
            self._start(uid, "last", actors.client, everything, 2 * len(self.by_number))
        limit = 40_000
        while any(not actor.name.startswith("agent") for actor in self.scheduler.actors):
            limit -= self.scheduler.run_steps(20)
            if limit < 0:
                raise Stuck(f"not at rest after 40000 calls (at {self.scheduler.now:.0f} s)")
        self.closing = True
        self.scheduler.run(40_000)

    def _waiting(self) -> Iterator[str]:
        for one in self.clients:
            if one.actor.alive:
                yield f"{one.actor.name} waits for {list(one.open.items())}, has {one.batches}"

    def _judge(self, truth: Truth) -> None:
        """What must have come out: a value for each job that can have one."""
        for job in self.by_number:
            ended = truth.ended_keys.get(job.key)
            deprived = truth.collected and ended == Status.FAILED  # gc took its input
            if job.number not in self.hopeless and ended != Status.DONE and not deprived:
                raise Violation(f"job {job.number} has no value, but {ended}")


class _Still:
    """A clock for the installer: nobody else runs."""

    left = NEVER

    def __init__(self, scheduler: Scheduler) -> None:
        self.now = scheduler.now

    def switch(self) -> None:
        raise AssertionError

    def later(self, _: float, __: Callable[[], None]) -> None:
        raise AssertionError


_CALLS = (
    "names", "open", "readlink", "age", "size", "write_new", "link", "symlink", "rename",
    "unlink", "mkdir", "rmdir", "sync_directory", "touch_directory", "try_lock",
)  # fmt: skip


def _traced(files: ModelFiles, actor: Actor, world: World) -> None:
    """Write down each file call of an actor, with its result."""

    def traced(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            shown = [a if isinstance(a, str) else f"<{type(a).__name__}>" for a in arguments]
            text = f"{name}({', '.join(shown).replace(files.home, '')})"
            try:
                result = call(*arguments, **more)
            except BaseException as error:
                world.note(actor, f"{text} ! {type(error).__name__} {getattr(error, 'errno', '')}")
                raise
            world.note(actor, f"{text} -> {result if isinstance(result, str | list) else ''}")
            return result

        return run

    for name in _CALLS:
        setattr(files, name, traced(name, getattr(files, name)))


# -- the real code, made small --------------------------------------------------------------------


def _plain_body(_: str, __: Any, sections: dict[str, Any]) -> tuple[list[Buffer], dict[str, int]]:
    """The sections behind what tells the length: readers need no more, and HDF5 is slow."""
    chunks: list[Buffer] = []
    offsets, length = {}, len(container.SIGNATURE) + 28
    for name, content in sections.items():
        data = content if isinstance(content, bytes) else content.tobytes()
        chunks.append(data)
        offsets[name] = length
        length += len(data)
    superblock = container.SIGNATURE + bytes(20) + length.to_bytes(8, "little")
    return [superblock, *chunks], offsets


_contents_once = lru_cache(4096)(container._contents)
_presence_once = lru_cache(4096)(presence.parse_presence)
"""Functions of nothing but their arguments, which all actors call with the same ones."""


@contextmanager
def in_simulation(world: World) -> Iterator[None]:
    """Small checkpoints and packs, so that short runs have them; processes of the model."""
    changes = [
        (container, "_body", _plain_body),
        (container, "_contents", _contents_once),
        (presence, "parse_presence", _presence_once),
        (log, "CHECKPOINT_EVERY", 8),
        (packs, "FAN", 3),
        (tiers, "FAN", 3),
        (presence, "is_dead_process", world.is_dead_process),
        (neighbours, "ForeignFiles", world.foreign),
        (Neighbours, "refuse", world.refused),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
