"""Two clients of one server, one caller at a time, and a clock that is set by hand."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.sim.model import DIRECTORY, Host, ModelDisk, ModelFiles, Mount, Node


class Alone:
    """A clock for one caller at a time: nobody else ever runs."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.left = 1 << 60
        self.requests: list[Callable[[], None]] = []

    def switch(self) -> None:
        raise AssertionError("nobody to switch to")

    def later(self, _: float, effect: Callable[[], None]) -> None:
        self.requests.append(effect)


def two_clients(mount: Mount) -> tuple[ModelFiles, ModelFiles, Alone]:
    """Of one directory, ``d``."""
    disk, clock, chance = ModelDisk(), Alone(), random.Random(1)
    pair = [ModelFiles(disk, Host(name, mount), clock, chance) for name in ("a", "b")]
    for files in pair:
        files.latency = 0.0
    disk.add(disk.root, "d", Node(DIRECTORY, b"", True, clock.now), clock.now)
    clock.now += 1
    return pair[0], pair[1], clock


def seconds_until(clock: Alone, look: Callable[[], bool], step: float = 0.1) -> float:
    """How long it takes; infinite, where it is longer than anybody waited when measuring."""
    start = clock.now
    while not look():
        clock.now += step
        if clock.now - start > 80:
            return float("inf")
    return clock.now - start


def finds(call: Callable[[str], object], path: str) -> bool:
    try:
        call(path)
    except FileNotFoundError:
        return False
    return True
