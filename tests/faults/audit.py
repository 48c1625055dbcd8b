"""What a spool holds in the end, read file by file: every outcome, once."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import NamedTuple

from fsbroker.spool import archive, streams
from fsbroker.spool.index import Results
from fsbroker.spool.layout import is_agent, parse_pack, parse_stem
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import Status
from tests.faults.tasks import runs_of

Row = tuple[str, int]


class Seen(NamedTuple):
    """One outcome, with what tells it from another one of the same row."""

    key: bytes
    status: int
    generation: int
    attempt: int
    agent: str
    started: float
    value: bytes


def outcomes(spool: Spool) -> dict[Row, Seen]:
    """The outcome of each row that has one.

    Raises:
        AssertionError: a row has two, in streams, packs or between them.
    """
    files, area, _ = spool
    found: dict[Row, Seen] = {}
    places: dict[Row, str] = {}
    for agent in files.names(area.results):
        if is_agent(agent):
            for number in streams.entries(files, area, agent):
                if streams.is_seal(files, area, agent, number):
                    continue
                path = area.stream_file(agent, number)
                for row, seen in _read(ResultFile(files, path)):
                    assert row not in places, f"{row} in {places[row]} and in {path}"
                    places[row], found[row] = path, seen
    for name in filter(parse_pack, files.names(area.packs)):
        path = f"{area.packs}/{name}"
        with ResultFile(files, path) as file:
            rows = list(_read(file))
            assert len(dict(rows)) == len(rows), f"{path} has a row twice"
            for row, seen in rows:
                assert found.setdefault(row, seen) == seen, f"{path} says otherwise of {row}"
    return found


def _read(file: ResultFile):
    for index in range(len(file.rows)):
        one = file.outcome(index)
        agent = file.origin(index)["agent"]
        yield (
            (one.stem, one.row),
            Seen(
                one.key,
                one.status,
                one.generation,
                one.attempt,
                agent,
                one.started,
                one.value.data,
            ),
        )


def task_rows(spool: Spool) -> dict[Row, bytes]:
    """The key of every row of every task file, live or in the archive."""
    files, area, _ = spool
    found: dict[Row, bytes] = {}
    for name in files.names(area.tasks):
        stem = name.removesuffix(".h5")
        if stem == name or parse_stem(stem) is None:
            continue
        found |= _keys(TaskFile(files, f"{area.tasks}/{name}", stem))
    for path in archive.listing(files, area):
        for stem, file in archive.opened(files, path):
            found |= _keys(TaskFile(files, path, stem, file))
    return found


def _keys(file: TaskFile) -> dict[Row, bytes]:
    return {(file.stem, row): key for row, key in enumerate(file.keys)}


def check(spool: Spool, journal: str, names: set[str], *, exact: bool = False) -> int:
    """All of these tasks have one outcome each, and ran no more often than is recorded.

    Args:
        names: of the tasks (`tasks.task`): all that ran, none lost, none invented.
        exact: every task ran exactly once.

    Returns:
        How often tasks ran again.
    """
    found, rows = outcomes(spool), task_rows(spool)
    assert found.keys() <= rows.keys(), "an outcome without its task"
    ended = {seen.key for seen in found.values()}
    assert set(rows.values()) == ended, "a task without an outcome"
    allowed: dict[str, int] = defaultdict(int)
    for row, seen in found.items():
        assert rows[row] == seen.key
        if seen.status == Status.DONE:
            allowed[json.loads(seen.value)[0]] += 1 + seen.generation
    assert set(allowed) == names
    runs = runs_of(journal)
    assert set(runs) == names, "a value without a run, or the other way round"
    over = {name: (runs[name], allowed[name]) for name in names if runs[name] > allowed[name]}
    assert not over, f"ran more often than recorded: {over}"
    if exact:
        assert set(runs.values()) == {1}, {n: count for n, count in runs.items() if count > 1}
    done = {seen.key: seen for seen in found.values() if seen.status == Status.DONE}
    look_up_agrees(spool, done)
    return sum(runs.values()) - len(runs)


def look_up_agrees(spool: Spool, found: dict[bytes, Seen]) -> None:
    """A process that looks for the first time finds the same."""
    results = Results(spool.files, spool.area)
    results.poll(deep=True)
    for key, seen in found.items():
        place = results.find(key)
        assert place is not None
        assert results.file(place.place.path).value(place.place.row).data == seen.value
