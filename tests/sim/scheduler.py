"""Who runs next: actors as greenlets in one thread, in virtual time, all drawn from a seed.

An actor is a plain function that runs the real protocol code. It gives up the thread
inside file calls (`ModelFiles`) and in `sleep`; nothing else can interleave. So a run
is a function of its seed, and costs no more than its file calls.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from heapq import heappop, heappush
from math import log
from typing import Any

from greenlet import getcurrent, greenlet

from tests.sim.model import Host, Killed, ModelDisk, ModelFiles

ALWAYS = float("inf")


class Stuck(AssertionError):
    """The actors do not come to an end."""


class Strike(enum.Enum):
    """What may hit a run from outside."""

    KILL = "kill"
    """SIGKILL of one actor, in the middle of a file call."""
    STOP = "stop"
    """SIGSTOP of one actor for minutes: everybody else will think that it died."""
    PAUSE = "pause"
    """The file server answers nobody for a minute."""
    FULL = "full"
    """The disk is full for a while."""
    POWER = "power"
    """Everything dies, and what was not durable is gone."""


@dataclass
class Actor:
    """A process.

    Attributes:
        wake: time from which it can run.
        important: never struck by `Strike.KILL` (the last client, the referee).
    """

    name: str
    host: Host
    files: ModelFiles
    task: greenlet
    wake: float = 0.0
    important: bool = False

    @property
    def alive(self) -> bool:
        return not self.files.dead and not self.task.dead


class Scheduler:
    """Runs actors until all have ended.

    Args:
        burst: mean number of calls before another actor may be picked.

    Attributes:
        now: true time, seconds.
        left: calls until the running actor must give way.
        steps: calls so far, counted at each change of actor.
    """

    def __init__(self, disk: ModelDisk, chance: random.Random, burst: float = 3.0) -> None:
        self.disk = disk
        self.chance = chance
        self.burst = burst
        self.now = 1000.0
        self.left = 0
        self.steps = 0
        self.actors: list[Actor] = []
        self.strikes: list[tuple[int, Strike]] = []
        self.on_power_loss: Callable[[], None] | None = None
        self.on_death: Callable[[Actor], None] | None = None
        self.running: Actor | None = None
        self._hub = getcurrent()
        self._late: list[tuple[float, int, Callable[[], None]]] = []

    def spawn(self, name: str, host: Host, main: Callable[..., Any], *args: Any) -> Actor:
        """Start a process: ``main(actor, *args)``."""
        files = ModelFiles(self.disk, host, self, self.chance)
        task = greenlet(lambda: _until_killed(main, actor, args), self._hub)
        actor = Actor(name, host, files, task, self.now)
        self.actors.append(actor)
        return actor

    # -- for the code that runs in actors ------------------------------------------------

    def switch(self) -> None:
        self._hub.switch()

    def later(self, delay: float, effect: Callable[[], None]) -> None:
        """A request that is still on its way to the server."""
        heappush(self._late, (self.now + delay, self.steps, effect))

    def sleep(self, actor: Actor, seconds: float) -> None:
        actor.wake = self.now + max(seconds, 0.0) / actor.host.rate
        self._hub.switch()
        if actor.files.dead:
            raise Killed

    # -- the loop ------------------------------------------------------------------------

    def run(self, limit: int = 50_000, until: float = ALWAYS) -> None:
        """Step actors until none is left, or until a time.

        Raises:
            Stuck: more than ``limit`` further calls.
        """
        last = self.steps + limit
        while self.now < until:
            if self._late:
                self._deliver()
            if self.strikes:
                self._strike()
            actor = self._pick()
            if actor is None:
                if not self._advance(until):
                    return
                continue
            self._step(actor)
            if self.steps > last:
                raise Stuck(f"not at rest after {limit} calls (at {self.now:.0f} s)")

    def run_steps(self, count: int) -> int:
        """Step actors for so many calls; the number really made."""
        first = self.steps
        with suppress(Stuck):
            self.run(count)
        return max(1, self.steps - first)

    def end(self) -> None:
        """Unwind what is left."""
        for actor in list(self.actors):
            self.kill(actor)

    def _step(self, actor: Actor) -> None:
        burst = int(-log(1.0 - self.chance.random()) * self.burst) if self.burst else 0
        if self.strikes:
            burst = min(burst, max(0, self.strikes[0][0] - self.steps))
        self.left = burst
        self.running = actor
        actor.task.switch()
        self.steps += burst - self.left
        if actor.task.dead:
            self.actors.remove(actor)

    def _pick(self) -> Actor | None:
        now = self.now
        ready = [actor for actor in self.actors if actor.wake <= now]
        if len(ready) > 1:
            return ready[int(self.chance.random() * len(ready))]
        return ready[0] if ready else None

    def _advance(self, until: float) -> bool:
        """Let time pass until somebody wakes up; False if nobody ever will."""
        wake = min((actor.wake for actor in self.actors), default=ALWAYS)
        if wake == ALWAYS:
            return False
        if self._late:
            wake = min(wake, self._late[0][0])
        self.now = max(self.now, min(wake, until))
        return True

    def _deliver(self) -> None:
        while self._late and self._late[0][0] <= self.now:
            heappop(self._late)[2]()

    # -- strikes -------------------------------------------------------------------------

    def _strike(self) -> None:
        while self.strikes and self.strikes[0][0] <= self.steps:
            _, strike = self.strikes.pop(0)
            _STRIKES[strike](self)

    def kill(self, actor: Actor) -> None:
        """SIGKILL: its greenlet unwinds, but none of its file calls has an effect any more."""
        actor.files.dead = True
        if actor in self.actors:
            self.actors.remove(actor)
        if actor.task:
            actor.task.throw(Killed)

    def _kill_one(self) -> None:
        mortal = [actor for actor in self.actors if not actor.important]
        if mortal:
            actor = self.chance.choice(mortal)
            self.kill(actor)
            if self.on_death:
                self.on_death(actor)

    def _stop_one(self) -> None:
        if self.actors:
            actor = self.chance.choice(self.actors)
            actor.wake = self.now + self.chance.choice((1.0, 20.0, 200.0, 200.0, 1000.0))

    def _pause(self) -> None:
        self.now += self.chance.choice((5.0, 60.0, 200.0))

    def _fill(self) -> None:
        self.disk.full = not self.disk.full
        if self.disk.full:
            self.strikes.append((self.steps + self.chance.randrange(5, 40), Strike.FULL))
            self.strikes.sort(key=lambda strike: strike[0])

    def power_loss(self) -> None:
        for actor in list(self.actors):
            self.kill(actor)
        self._late.clear()
        self.disk.full = False
        self.disk.power_loss(self.chance)
        if self.on_power_loss:
            self.on_power_loss()


_STRIKES: dict[Strike, Callable[[Scheduler], None]] = {
    Strike.KILL: Scheduler._kill_one,
    Strike.STOP: Scheduler._stop_one,
    Strike.PAUSE: Scheduler._pause,
    Strike.FULL: Scheduler._fill,
    Strike.POWER: Scheduler.power_loss,
}


def _until_killed(main: Callable[..., Any], actor: Actor, args: tuple[Any, ...]) -> None:
    try:
        main(actor, *args)
    except Killed:
        actor.files.dead = True
