"""Putting values that were computed elsewhere into a spool, as if they had been here.

    Finished -> look up -> task file, claimed from its first record on -> result file -> retired

By the protocol, with a client and an agent of its own: for whoever dies halfway, agents
recover what is left, and run it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fsbroker.agent.session import AgentSession, without_workers
from fsbroker.client.session import ClientSession, Lane
from fsbroker.keys import Call, Function
from fsbroker.spool import blobs, taskfile
from fsbroker.spool.layout import MAX_ROWS, Stem
from fsbroker.spool.spool import Spool
from fsbroker.spool.taskfile import Arguments, FunctionEntry, TaskRow
from fsbroker.task import Outcome, Payload, Status, Value


class Finished(NamedTuple):
    """A call, and the value that it gave.

    Attributes:
        lane: which task files it may stand in (`submitter.lane_of`).
        started: seconds since the epoch. wall: seconds.
    """

    lane: Lane
    function: Function
    call: Call
    value: Payload
    started: float = 0.0
    wall: float = 0.0


def missing(spool: Spool, keys: list[bytes]) -> set[bytes]:
    """Those of the keys that have no value in the spool, and no task that will have one."""
    session: ClientSession[bytes] = ClientSession(spool, bytes)
    outcomes, running = session.look_up(keys) if keys else ({}, {})
    done = {key for key, found in outcomes.items() if found.status == Status.DONE}
    return set(keys) - done - running.keys()


def deposit(spool: Spool, finished: Iterable[Finished], origin: Mapping[str, Any]) -> int:
    """Publish values of keys that are `missing`; how many that were. Dependencies come first.

    Args:
        origin: what the result files say of where they come from, with the host.
    """
    each = {one.call.key: one for one in finished}
    wanted = missing(spool, list(each))
    rounds = _rounds(spool, list(wanted))
    agent = without_workers(spool, "", **origin)
    agent.join()
    try:
        for part in _files([one for key, one in each.items() if key in wanted]):
            _publish(spool, agent, part, rounds)
        agent.tidy()
    finally:
        agent.leave()
    return len(wanted)


def _rounds(spool: Spool, keys: list[bytes]) -> dict[bytes, int]:
    """The round of each key that was tried here before, and failed."""
    session: ClientSession[bytes] = ClientSession(spool, bytes)
    outcomes, _ = session.look_up(keys) if keys else ({}, {})
    return {key: found.round + 1 for key, found in outcomes.items()}


def _files(finished: Sequence[Finished]) -> Iterator[list[Finished]]:
    """In pieces that can share a task file, in their order."""
    part: list[Finished] = []
    for one in finished:
        if part and (one.lane != part[0].lane or len(part) == MAX_ROWS):
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _publish(
    spool: Spool, agent: AgentSession, part: Sequence[Finished], rounds: Mapping[bytes, int]
) -> None:
    files, lane = spool.files, part[0].lane
    entries: dict[bytes, FunctionEntry] = {}
    rows = [_row(spool, one, entries, rounds.get(one.call.key, 0)) for one in part]
    made = taskfile.build(files.token(), rows, lane.limits, dict(lane.meta))
    waiting = [number for number, row in enumerate(rows) if row.arguments.dependencies]
    born = int(files.wall_time() * 1e9)
    size = (len(rows), len(waiting))
    stem = Stem(lane.priority, born, made.token, lane.shape, lane.environment, *size)
    agent.bring(stem, made, waiting)
    # What is not ours, after a power loss or as we slept, others run.
    held = sorted(agent.holdings.held.get(str(stem), ()))
    agent.publish([_outcome(spool, str(stem), place, rows[place], part[place]) for place in held])


def _row(spool: Spool, one: Finished, entries: dict[bytes, FunctionEntry], again: int) -> TaskRow:
    key, descriptor, payload = one.call
    function = one.function
    entry = entries.setdefault(
        function.digest,
        FunctionEntry(function.digest, function.name, function.source, function.pickle),
    )
    stored = _stored(spool, payload, shared=True)
    return TaskRow(key, descriptor, Arguments(*stored, payload.dependencies), entry, again)


def _outcome(spool: Spool, stem: str, place: int, row: TaskRow, one: Finished) -> Outcome:
    return Outcome(
        stem=stem,
        row=place,
        key=row.key,
        descriptor=row.descriptor,
        round=row.round,
        generation=0,
        attempt=0,
        ranks=one.lane.limits.ranks,
        status=Status.DONE,
        value=_stored(spool, one.value, shared=False),
        started=one.started,
        wall=one.wall,
    )


def _stored(spool: Spool, payload: Payload, *, shared: bool) -> Value:
    files, area, durable = spool
    arrays = tuple(
        blobs.store(files, area, array, durable=durable, shared=shared) for array in payload.arrays
    )
    return Value(payload.encoding, payload.data, arrays)
