"""The cores, GPUs and memory of an agent, node by node, and who holds them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import count, islice
from typing import NamedTuple

from fsbroker.needs import Shape
from fsbroker.nodes import Node

NO_LIMIT = 1 << 60
"""MB of a node whose memory nobody counts."""


class Share(NamedTuple):
    """What a worker holds of one node: that node's number, and ranks to run there."""

    node: int
    ranks: int
    cores: tuple[int, ...]
    gpus: tuple[str, ...]
    memory: int


class Slot(NamedTuple):
    """What a worker holds.

    Attributes:
        nodes: names, in the order of its ranks; empty outside of a queue job.
        brokers: the same nodes as Flux numbers them.
        cpus: cores to stay on; None where the agent shares the machine with others, and
            where another node's scheduler sees to it.
    """

    shape: Shape
    shares: tuple[Share, ...]
    nodes: tuple[str, ...] = ()
    cpus: tuple[int, ...] | None = None
    brokers: tuple[int, ...] = ()

    @property
    def gpus(self) -> tuple[str, ...]:
        """Ids of devices, on each of its nodes."""
        return self.shares[0].gpus


class _Room(NamedTuple):
    """Part of a node."""

    cores: int
    gpus: int
    memory: int

    def holds(self, need: _Room) -> int:
        """How often ``need`` fits in."""
        wanted = [(has, each) for has, each in zip(self, need, strict=True) if each]
        return min(has // each for has, each in wanted)

    def plus(self, other: _Room) -> _Room:
        return _Room(*(mine + more for mine, more in zip(self, other, strict=True)))

    def minus(self, other: _Room) -> _Room:
        return _Room(*(mine - less for mine, less in zip(self, other, strict=True)))


Placement = Sequence[tuple[int, int]]
"""Numbers of nodes, and how many ranks go to each."""


class Slots:
    """Gives out an agent's resources.

    A task whose ranks fit on one node runs on one, the fullest that holds it, so that
    large tasks find the others empty.

    Args:
        nodes: what the agent may use; its own node is the first.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        own = sorted(os.sched_getaffinity(0))
        # Two agents that share a machine would pin their workers to the same cores.
        self._pinned = len(own) == nodes[0].cores
        self._cores = [list(range(node.cores)) for node in nodes]
        if self._pinned:
            self._cores[0] = own
        self._more = count(max(self._cores[0], default=-1) + 1)
        self._gpus = [list(node.gpus) for node in nodes]
        self._empty = [_Room(node.cores, len(node.gpus), node.memory or NO_LIMIT) for node in nodes]
        self._free = list(self._empty)
        self.cores = sum(node.cores for node in nodes)

    def resize(self, cores: int) -> None:
        """Have so many cores on the own node; fewer count as workers give theirs back."""
        more = cores - self._empty[0].cores
        if not more:
            return
        self._pinned = False
        self._cores[0] += islice(self._more, max(0, more))
        self._empty[0] = self._empty[0].plus(_Room(more, 0, 0))
        self._free[0] = self._free[0].plus(_Room(more, 0, 0))
        self.cores += more

    def could_fit(self, shape: Shape) -> bool:
        """It fits when nothing else runs."""
        return self._place(shape.dealt(), self._empty) is not None

    def room(self, shape: Shape, idle: Iterable[Slot] = ()) -> int:
        """How many tasks of this shape fit at once, if these slots were given back first."""
        shape, free = shape.dealt(), list(self._free)
        for share in (share for slot in idle for share in slot.shares):
            free[share.node] = free[share.node].plus(_held(share))
        if shape.nodes == 0 and not shape.exclusive and self._fits_one_node(shape):
            return sum(room.holds(_need(shape, shape.cores)) for room in free)
        found = 0
        while (placement := self._place(shape, free)) is not None:
            for number, ranks in placement:
                free[number] = free[number].minus(self._need(shape, number, ranks))
            found += 1
        return found

    def take(self, shape: Shape) -> Slot | None:
        """Resources for a worker of this shape, if they are free now."""
        dealt = shape.dealt()
        placement = self._place(dealt, self._free)
        if placement is None:
            return None
        shares = tuple(self._take(dealt, number, ranks) for number, ranks in placement)
        nodes = [self._nodes[share.node] for share in shares]
        names = tuple(node.name for node in nodes if node.name)
        brokers = tuple(node.broker for node in nodes if node.broker is not None)
        alone = self._pinned and [share.node for share in shares] == [0]
        return Slot(shape, shares, names, shares[0].cores if alone else None, brokers)

    def _take(self, shape: Shape, number: int, ranks: int) -> Share:
        """The first free cores and GPUs of a node, for so many ranks."""
        need = self._need(shape, number, ranks)
        cores, gpus = self._cores[number], self._gpus[number]
        share = Share(
            number, ranks, tuple(cores[: need.cores]), tuple(gpus[: need.gpus]), need.memory
        )
        del cores[: need.cores]
        del gpus[: need.gpus]
        self._free[number] = self._free[number].minus(need)
        return share

    def give_back(self, slot: Slot) -> None:
        for share in slot.shares:
            at = share.node
            self._free[at] = self._free[at].plus(_held(share))
            self._cores[at] = sorted([*self._cores[at], *share.cores])
            self._gpus[at] = sorted([*self._gpus[at], *share.gpus])

    # -- where ranks go --------------------------------------------------------------------

    def _place(self, shape: Shape, free: Sequence[_Room]) -> Placement | None:
        holds = [
            room.holds(_need(shape, 1)) if room == empty or not shape.exclusive else 0
            for room, empty in zip(free, self._empty, strict=True)
        ]
        if shape.nodes:
            return _spread(holds, _even(shape.cores, shape.nodes))
        if self._fits_one_node(shape):
            return _spread(holds, [shape.cores])
        return _fewest(holds, shape.cores)

    def _fits_one_node(self, shape: Shape) -> bool:
        return any(room.holds(_need(shape, shape.cores)) for room in self._empty)

    def _need(self, shape: Shape, number: int, ranks: int) -> _Room:
        """What so many ranks take from a node: all of its cores, if nobody may be beside them."""
        need = _need(shape, ranks)
        return need._replace(cores=self._empty[number].cores) if shape.exclusive else need


def _need(shape: Shape, ranks: int) -> _Room:
    """What some ranks of a task need."""
    memory = -(-shape.memory * ranks // shape.cores)
    return _Room(ranks * shape.threads, ranks * shape.gpus, memory)


def _held(share: Share) -> _Room:
    return _Room(len(share.cores), len(share.gpus), share.memory)


def _even(ranks: int, nodes: int) -> list[int]:
    """Ranks for each of so many nodes, the larger shares first."""
    return [ranks // nodes + (number < ranks % nodes) for number in range(nodes)]


def _spread(holds: Sequence[int], shares: Sequence[int]) -> Placement | None:
    """A node for each share: the fullest that hold the largest; None if there are too few.

    The first nodes get the larger shares: so launchers deal out ranks.
    """
    able = [number for number in range(len(holds)) if holds[number] >= shares[0]]
    if len(able) < len(shares) or not shares[-1]:
        return None
    fullest = sorted(able, key=lambda number: holds[number])[: len(shares)]
    return list(zip(sorted(fullest), shares, strict=True))


def _fewest(holds: Sequence[int], ranks: int) -> Placement | None:
    """As few nodes as hold all ranks; None if all do not."""
    for nodes in range(2, min(len(holds), ranks) + 1):
        if placement := _spread(holds, _even(ranks, nodes)):
            return placement
    return None
