"""The cores, GPUs and memory of an agent, and who holds them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from fsbroker.resources import Shape


class Slot(NamedTuple):
    """What a worker holds.

    Attributes:
        cpus: cores to stay on; None where the agent shares the machine with others.
        gpus: ids of devices.
    """

    shape: Shape
    cores: tuple[int, ...]
    cpus: tuple[int, ...] | None
    gpus: tuple[str, ...]


class Slots:
    """Gives out an agent's resources.

    Args:
        cores: how many it may use.
        gpus: ids of its devices.
        memory: MB; 0 for no limit.
    """

    def __init__(self, cores: int, gpus: Sequence[str] = (), memory: int = 0) -> None:
        own = sorted(os.sched_getaffinity(0))
        # Two agents that share a machine would pin their workers to the same cores.
        self._pinned = len(own) == cores
        self._cores = own if self._pinned else list(range(cores))
        self._gpus = list(gpus)
        self._limit = memory
        self._memory = memory
        self.total = Shape(cores, 1, len(gpus), memory)

    def could_fit(self, shape: Shape) -> bool:
        """It fits when nothing else runs."""
        return (
            shape.cores * shape.threads <= self.total.cores
            and shape.cores * shape.gpus <= self.total.gpus
            and (not self._limit or shape.memory <= self._limit)
            and shape.nodes <= 1
        )

    def take(self, shape: Shape) -> Slot | None:
        """Resources for a worker of this shape, if they are free now."""
        wanted = self.total.cores if shape.exclusive else shape.cores * shape.threads
        devices = shape.cores * shape.gpus
        if (
            wanted > len(self._cores)
            or devices > len(self._gpus)
            or (self._limit and shape.memory > self._memory)
        ):
            return None
        cores = tuple(self._cores[:wanted])
        gpus = tuple(self._gpus[:devices])
        del self._cores[:wanted]
        del self._gpus[:devices]
        self._memory -= shape.memory
        return Slot(shape, cores, cores if self._pinned else None, gpus)

    def give_back(self, slot: Slot) -> None:
        self._cores = sorted([*self._cores, *slot.cores])
        self._gpus = sorted([*self._gpus, *slot.gpus])
        self._memory += slot.shape.memory
