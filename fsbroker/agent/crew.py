"""The workers of an agent, and which rows each of them has.

assign -> Assignment (rows numbered for one worker) -> reports -> Outcome or Bulk
"""

from __future__ import annotations

import selectors
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Union

from fsbroker.agent.messages import Call, Ended, Forget, Function, Input, Preset, Returned, Slice
from fsbroker.agent.processes import Settings
from fsbroker.agent.slots import Slot, Slots
from fsbroker.agent.workers import SerialWorker
from fsbroker.errors import FsbrokerError
from fsbroker.needs import Allowance, Shape, parse_shape
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import ranges_of
from fsbroker.spool.streams import Bulk
from fsbroker.spool.taskfile import FunctionEntry, TaskFile
from fsbroker.task import Status

if TYPE_CHECKING:
    from fsbroker.agent.mpi import MpiWorker
    from fsbroker.agent.relay import Relay

Worker = Union[SerialWorker, "MpiWorker"]


class Kind(NamedTuple):
    """What two tasks must share to run in the same worker.

    Attributes:
        preset: digest of the ``init_function`` that it has run.
        oversubscribe: there may be more ranks than cores.
    """

    shape: Shape
    preset: bytes = b""
    oversubscribe: bool = False


def kind_of(live: LiveFile) -> Kind | None:
    """The kind of worker for all tasks of a file; None if its name tells of no shape."""
    shape, meta = parse_shape(live.name.shape), live.file.meta
    if shape is None:
        return None
    return Kind(shape, bytes.fromhex(meta.get("preset", "")), meta.get("oversubscribe", False))


class Unit(NamedTuple):
    """Rows of one task file that one worker must run in this order.

    ``simple`` rows are consecutive and have plain arguments only.
    """

    live: LiveFile
    rows: Sequence[int]
    simple: bool


class Doom(NamedTuple):
    """Why a worker is being killed, and the row that this is the end of."""

    status: Status
    reason: str
    live: LiveFile
    row: int


class Assignment:
    """Rows that a worker has, numbered from ``base`` in its own count."""

    __slots__ = ("base", "done", "unit")

    def __init__(self, base: int, unit: Unit) -> None:
        self.base = base
        self.unit = unit
        self.done = 0

    def left(self) -> Sequence[int]:
        return self.unit.rows[self.done :]


class Member:
    """One worker with the slot that it holds and the rows that it has.

    Attributes:
        heard: when it last reported, or was given its first row: monotonic seconds.
        prepared: its preset has run, if it has one.
    """

    def __init__(self, worker: Worker, slot: Slot, kind: Kind) -> None:
        self.worker = worker
        self.slot = slot
        self.kind = kind
        self.prepared = not kind.preset
        self.heard = 0.0
        self.doom: Doom | None = None
        self._assignments: deque[Assignment] = deque()
        self._functions: set[bytes] = set()
        self._next = 0

    def rows_left(self) -> int:
        return sum(len(one.unit.rows) - one.done for one in self._assignments)

    def is_idle(self) -> bool:
        return not self._assignments and self.worker.alive

    def current(self) -> tuple[LiveFile, int] | None:
        """The row that it runs."""
        if not self._assignments:
            return None
        first = self._assignments[0]
        return first.unit.live, first.unit.rows[first.done]

    def assign(self, unit: Unit, value: Callable[[bytes], object], now: float) -> None:
        """Send rows. ``value`` gives the stored value of a dependency."""
        assignment = Assignment(self._next, unit)
        messages = _slices(assignment) if unit.simple else _calls(assignment, value)
        sent = [*self._new_functions(unit), *messages]  # may fail: then nothing was assigned
        if not self._assignments:
            self.heard = now
        self._next += len(unit.rows)
        self._assignments.append(assignment)
        self._functions.update(one.digest for one in sent if isinstance(one, Function))
        self.worker.send(*sent)

    def _new_functions(self, unit: Unit) -> Iterator[Function | Preset]:
        """Those that the worker does not have yet; the preset first."""
        file = unit.live.file
        if (preset := file.preset) is not None and preset.digest not in self._functions:
            yield _sent(preset, file)
            yield Preset(preset.digest)
        for number in dict.fromkeys(file.rows["function"][list(unit.rows)].tolist()):
            row = int((file.rows["function"] == number).argmax())
            function = file.function(row)
            if function.digest not in self._functions:
                yield _sent(function, file)

    def report(self, message: Returned | Ended) -> tuple[LiveFile, Sequence[int]]:
        """The task rows that a report is of; they are no longer here."""
        number, count = (
            (message.first, message.count) if isinstance(message, Returned) else (message.row, 1)
        )
        assignment = self._assignments[0]
        at = number - assignment.base
        rows = assignment.unit.rows[at : at + count]
        assignment.done = at + count
        if assignment.done == len(assignment.unit.rows):
            self._assignments.popleft()
        return assignment.unit.live, rows

    def take_all(self) -> list[Unit]:
        """Everything that has not been reported."""
        units = [Unit(one.unit.live, one.left(), one.unit.simple) for one in self._assignments]
        self._assignments.clear()
        return units


def _sent(function: FunctionEntry, file: TaskFile) -> Function:
    path, cwd = tuple(file.meta["path"]), file.meta["cwd"]
    return Function(function.digest, function.name, function.pickle, path, cwd)


def _slices(assignment: Assignment) -> Iterator[Slice]:
    """Consecutive rows, one slice for each run of the same function."""
    file, rows = assignment.unit.live.file, assignment.unit.rows
    functions = file.rows["function"][rows[0] : rows[-1] + 1].tolist()
    start = 0
    while start < len(rows):
        end = start
        while end < len(rows) and functions[end] == functions[start]:
            end += 1
        text = file.plain_text(rows[start], rows[end - 1] + 1)
        digest = file.function_digest(rows[start])
        yield Slice(digest, assignment.base + start, end - start, text)
        start = end


def _calls(assignment: Assignment, value: Callable[[bytes], object]) -> Iterator[Call | Forget]:
    """Rows one by one, with what fills their dependencies."""
    file, rows = assignment.unit.live.file, assignment.unit.rows
    numbers = {row: assignment.base + at for at, row in enumerate(rows)}
    dependencies = {row: file.dependencies(row) for row in rows}
    needed = {own for wanted in dependencies.values() for _, own in wanted if own in numbers}
    for row in rows:
        inputs = tuple(
            Input(None, numbers[own], selector)
            if own in numbers
            else Input(value(key), None, selector)  # type: ignore[arg-type]
            for (key, selector), own in dependencies[row]
        )
        digest = file.function_digest(row)
        yield Call(digest, numbers[row], file.arguments(row), inputs, row in needed)
    if needed:
        yield Forget(tuple(numbers[row] for row in sorted(needed)))


def units_of(live: LiveFile, rows: Sequence[int], size: int) -> Iterator[Unit]:
    """Claimed rows in pieces that one worker runs: at most ``size`` simple rows, or a chain."""
    chains = [
        chain for chain in _chains(live, rows) if len(chain) > 1 or not live.file.simple[chain[0]]
    ]
    chained = {row for chain in chains for row in chain}
    for first, end in ranges_of(row for row in rows if row not in chained):
        for start in range(first, end, size):
            yield Unit(live, range(start, min(end, start + size)), True)
    for chain in chains:
        yield Unit(live, chain, False)


def _chains(live: LiveFile, rows: Sequence[int]) -> Iterable[list[int]]:
    """Rows that wait for one another belong together; simple rows may be left out."""
    if not live.name.waiting:
        return ([row] for row in rows if not live.file.simple[row])
    chain_of: dict[int, list[int]] = {}
    for row in rows:
        parents = [own for _, own in live.file.dependencies(row) if own in chain_of]
        if not parents:
            chain_of[row] = [row]
            continue
        chain = chain_of[parents[0]]
        for parent in parents[1:]:
            other = chain_of[parent]
            if other is not chain:
                chain.extend(other)
                for one in other:
                    chain_of[one] = chain
        chain.append(row)
        chain_of[row] = chain
    distinct = {id(chain): chain for chain in chain_of.values()}
    return [sorted(chain) for chain in distinct.values()]


def bulk_of(live: LiveFile, rows: Sequence[int], message: Returned) -> Bulk:
    """A report of many rows, as it goes into a result file."""
    first, end = rows[0], rows[-1] + 1
    texts, at = [], 0
    for length in array("I", message.lengths):
        texts.append(message.text[at : at + length])
        at += length + 2
    fold = live.log.fold
    return Bulk(
        live.stem,
        first,
        live.file.rows[first:end],
        fold.generation[first:end],
        fold.attempts[first:end],
        texts,
        array("d", message.started),
        array("d", message.wall),
        array("d", message.cpu),
        message.peak_memory,
    )


class Crew:
    """All workers of an agent.

    Args:
        make: the settings of a worker in a slot.
        selector: what the agent waits with; a worker's data there is its `Member`.
        first: the least number that a worker of this agent has.

    Attributes:
        slots: what they may hold.
        limit: workers that may be busy at once; 0: as many as fit.
    """

    def __init__(
        self,
        slots: Slots,
        make: Callable[[Slot], Settings],
        selector: selectors.BaseSelector,
        first: int = 0,
    ) -> None:
        self._selector = selector
        self._make = make
        self._first = first
        self._relays: dict[str, Relay] = {}
        self.slots = slots
        self.limit = 0
        self.members: list[Member] = []

    def allow(self, allowed: Allowance) -> None:
        """From now on it may use this."""
        if allowed.cores:
            self.slots.resize(allowed.cores)
        self.limit = allowed.workers

    def room(self, shape: Shape) -> int:
        """How many more workers of this shape could be busy, if idle ones of others gave way."""
        idle = [one.slot for one in self.members if one.is_idle()]
        found = self.slots.room(shape, idle)
        busy = len(self.members) - len(idle)
        return min(found, max(0, self.limit - busy)) if self.limit else found

    def of(self, kind: Kind) -> list[Member]:
        """The busy workers of this kind."""
        return [one for one in self.members if one.kind == kind and not one.is_idle()]

    def idle(self, kind: Kind) -> Member | None:
        """An idle worker of this kind, started if there is room for it.

        Raises:
            MissingProgram: no worker of this shape can be started here.
        """
        if self.limit and sum(not one.is_idle() for one in self.members) >= self.limit:
            return None
        for member in self.members:
            if member.kind == kind and member.is_idle():
                return member
        while self.limit and len(self.members) >= self.limit:
            self._evict()
        slot = self.slots.take(kind.shape)
        while slot is None and self._evict():
            slot = self.slots.take(kind.shape)
        return self._start(slot, kind) if slot is not None else None

    def _evict(self) -> bool:
        """Stop an idle worker; its slot is free at once."""
        for member in self.members:
            if member.is_idle():
                self.dismiss(member)
                return True
        return False

    def _start(self, slot: Slot, kind: Kind) -> Member:
        taken = {one.worker.settings.number for one in self.members}
        number = next(free for free in count(self._first) if free not in taken)
        settings = replace(self._make(slot), number=number)
        if kind.oversubscribe:
            settings = replace(settings, oversubscribe=True)
        try:
            worker = self._worker(settings, slot.shape.cores)
        except (FsbrokerError, OSError):
            self.slots.give_back(slot)
            raise
        member = Member(worker, slot, kind)
        self.members.append(member)
        self._selector.register(worker, selectors.EVENT_READ, member)
        return member

    def mute(self, member: Member) -> None:
        """Hear a worker no more; it keeps its slot until it is dismissed."""
        self._selector.unregister(member.worker)

    def dismiss(self, member: Member) -> None:
        """Let go of a worker; killed if it still lives."""
        with suppress(KeyError):
            self._selector.unregister(member.worker)
        member.worker.close()
        self.members.remove(member)
        self.slots.give_back(member.slot)

    def busy(self) -> bool:
        return any(member.rows_left() for member in self.members)

    def _worker(self, settings: Settings, ranks: int) -> Worker:
        if ranks > 1:
            from fsbroker.agent.mpi import MpiWorker

            return MpiWorker(settings, ranks)
        if settings.nodes[:1] in ((), (settings.node,)) and not settings.nested:
            return SerialWorker(settings)
        from fsbroker.agent.relay import NestedWorker, RemoteWorker

        if settings.nested:
            return NestedWorker(settings)
        return RemoteWorker(settings, self._relay_to(settings))

    def _relay_to(self, settings: Settings) -> Relay:
        """The relay on a worker's node, started if there is none that lives."""
        from fsbroker.agent.relay import Relay

        node = settings.nodes[0]
        relay = self._relays.get(node)
        if relay is None or not relay.alive:
            if relay is not None:
                self._selector.unregister(relay)
                relay.close()
            relay = self._relays[node] = Relay(settings)
            self._selector.register(relay, selectors.EVENT_READ, relay)
        return relay

    def close(self) -> None:
        """Let go of all workers, and of what started them on other nodes."""
        for member in list(self.members):
            self.dismiss(member)
        for relay in self._relays.values():
            self._selector.unregister(relay)
            relay.close()
        self._relays.clear()
