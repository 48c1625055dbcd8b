"""What happened in a spool: every task, live or ended, with what became of it.

    task files (live, archived) + logs + result files and packs -> History -> TaskRecord

Read from the files alone, without their agents and without the user's code: nothing here
unpickles anything. A history is a snapshot. Task files are read before outcomes, so a task
that ends meanwhile is seen in one of its states, never in none.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fsbroker.spool.census import Census, Entry, fold_of
from fsbroker.spool.layout import Stem, parse_attempt, parse_record
from fsbroker.spool.log import Fold, Record, State, parse
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import KEY_BYTES, Status

_LEAN = np.dtype(
    [
        ("row", "u2"),
        ("generation", "u2"),
        ("attempt", "u1"),
        ("status", "u1"),
        ("source", "u2"),
        ("started", "f8"),
        ("wall", "f8"),
        ("cpu", "f8"),
        ("peak_memory", "u8"),
    ]
)
"""What is kept of each outcome: a history of a million tasks must fit in memory."""


class Phase(enum.Enum):
    """Where a task stands, as its user sees it."""

    WAITING = "waiting"
    """For the tasks that it depends on."""
    PUT_OFF = "put-off"
    """Somebody else is computing it: its client holds it, until it is clear what comes of that."""
    READY = "ready"
    """For an agent."""
    RUNNING = "running"
    """An agent has claimed it: it runs, or is about to."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ALIASED = "aliased"
    """Another row of the same key runs in its place."""
    REMOVED = "removed"
    """It has ended, and its result was removed since (or it was an alias)."""


_PHASES = tuple(Phase)
_CODE = {phase: code for code, phase in enumerate(_PHASES)}
ENDED = (Phase.DONE, Phase.FAILED, Phase.CANCELLED)
_OF_STATE = {
    State.WAITING: Phase.WAITING,
    State.READY: Phase.READY,
    State.CLAIMED: Phase.RUNNING,
    State.CANCELLED: Phase.CANCELLED,
    State.ALIASED: Phase.ALIASED,
}
_OF_STATUS = {
    Status.DONE: Phase.DONE,
    Status.FAILED: Phase.FAILED,
    Status.CANCELLED: Phase.CANCELLED,
}


class Ending(NamedTuple):
    """How a row ended.

    Attributes:
        path, place: the result file or pack, and the row in it.
        origin: what the file says of the agent that published it.
        error: as of `task.Outcome`. started: seconds since the epoch. wall, cpu: seconds.
        peak_memory: bytes.
    """

    path: str
    place: int
    status: Status
    generation: int
    attempt: int
    started: float
    wall: float
    cpu: float
    peak_memory: int
    origin: dict[str, Any]
    error: dict[str, str] | None


@dataclass(frozen=True)
class TaskRecord:
    """One task, as `fsbroker tasks` lists it.

    Attributes:
        key: 40 hex digits. round: how often it was tried anew before.
        stem, row: its task file, and the row in it.
        submitted, started: seconds since the epoch, by the clocks of the client and of the
            agent; ``started`` is None before it has ended.
        wall, cpu: seconds. peak_memory: bytes.
        attempts: that were charged to it. generation: how often it was taken over.
        agent, host: who holds it or published its outcome; "" if nobody.
        error: type and message of a failure.
    """

    key: str
    round: int
    function: str
    state: str
    tag: str
    stem: str
    row: int
    submitted: float
    started: float | None
    wall: float | None
    cpu: float | None
    peak_memory: int | None
    attempts: int
    generation: int
    agent: str
    host: str
    error: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class _Source(NamedTuple):
    """A result file or pack."""

    path: str
    origins: list[dict[str, Any]]
    errors: dict[int, dict[str, str]]


class _Part(NamedTuple):
    """The outcomes of one task file in one result file."""

    source: _Source
    rows: np.ndarray
    indices: np.ndarray


class Tasks:
    """The rows of one task file.

    Attributes:
        stem, name: of the task file. path: the file that it stands in.
        rows: its table (`taskfile.ROWS`). meta: its attributes.
        fold: of its log; None when it was retired.
    """

    def __init__(self, entry: Entry, fold: Fold | None) -> None:
        self.stem = entry.stem
        self.name: Stem = entry.tasks.name
        self.path = entry.path
        self.fold = fold
        self.rows = entry.tasks.rows
        self.meta = entry.tasks.meta
        self._functions = _functions_of(entry.tasks)
        self._dependencies = entry.tasks.dependency_table if self.name.waiting else None
        self._parts: list[_Part] = []

    @property
    def tag(self) -> str:
        return str(self.meta.get("tag", ""))

    def key(self, row: int) -> bytes:
        return bytes(self.rows["key"][row].tobytes())

    def function(self, row: int) -> str:
        return self._functions[int(self.rows["function"][row])]

    def dependencies(self, row: int) -> list[bytes]:
        """The keys that a row depends on, each once."""
        if self._dependencies is None:
            return []
        first, count = int(self.rows["first_dependency"][row]), int(self.rows["dependencies"][row])
        entries = self._dependencies["key"][first : first + count]
        return list(dict.fromkeys(entry.tobytes() for entry in entries))

    def add(self, part: _Part) -> None:
        self._parts.append(part)

    @cached_property
    def codes(self) -> np.ndarray:
        """The phase of each row, as an index into all phases. The log first, then outcomes."""
        if self.fold is None:
            codes = np.full(len(self.rows), _CODE[Phase.REMOVED], "u1")
        else:
            of_state = np.array([_CODE[_OF_STATE[state]] for state in State], "u1")
            codes = of_state[np.frombuffer(bytes(self.fold.state), "u1")]
            codes[self.fold.owned_by(self.meta.get("put_off") or "")] = _CODE[Phase.PUT_OFF]
        of_status = np.array([0, *(_CODE[_OF_STATUS[status]] for status in Status)], "u1")
        for part in self._parts:
            codes[part.rows["row"]] = of_status[part.rows["status"]]
        return codes

    def phase(self, row: int) -> Phase:
        return _PHASES[int(self.codes[row])]

    def ended_at(self) -> np.ndarray:
        """When rows ended, by their agents' clocks: to be shown, nothing else.

        A row's outcome may stand in its stream and in a pack at once.
        """
        times = np.full(len(self.rows), np.nan)
        for part in self._parts:
            times[part.rows["row"]] = part.rows["started"] + part.rows["wall"]
        ended: np.ndarray = times[~np.isnan(times)]
        return ended

    def ending(self, row: int) -> Ending | None:
        """The outcome of a row; the newest, if one was lost and run again."""
        found = [
            _ending(part, int(at))
            for part in self._parts
            for at in np.flatnonzero(part.rows["row"] == row)
        ]
        return max(found, key=lambda ending: ending.generation, default=None)

    def record(self, row: int) -> TaskRecord:
        ending, fold = self.ending(row), self.fold
        owner = fold.owner_of(row) if fold is not None else None
        return TaskRecord(
            key=self.key(row).hex(),
            round=int(self.rows["round"][row]),
            function=self.function(row),
            state=self.phase(row).value,
            tag=self.tag,
            stem=self.stem,
            row=row,
            submitted=self.name.born / 1e9,
            started=ending.started or None if ending else None,
            wall=ending.wall if ending and ending.started else None,
            cpu=ending.cpu if ending and ending.started else None,
            peak_memory=ending.peak_memory or None if ending else None,
            attempts=ending.attempt if ending else fold.attempts[row] if fold else 0,
            generation=ending.generation if ending else fold.generation[row] if fold else 0,
            agent=str(ending.origin.get("agent", "")) if ending else owner or "",
            host=str(ending.origin.get("host", "")) if ending else "",
            error=_shown(ending.error) if ending and ending.error else "",
        )


class Row(NamedTuple):
    """A row of a task file."""

    tasks: Tasks
    number: int

    @property
    def key(self) -> bytes:
        return self.tasks.key(self.number)

    @property
    def phase(self) -> Phase:
        return self.tasks.phase(self.number)

    @property
    def round(self) -> int:
        return int(self.tasks.rows["round"][self.number])


class History:
    """All tasks of an area.

    Attributes:
        tasks: by stem, in the order of submission.
        unreadable: paths of damaged files, with the reason.
        outcomes: how many there are in all.
    """

    def __init__(self, spool: Spool) -> None:
        self._files, self._area, _ = spool
        census = Census(self._files, self._area)
        read = [self._read(entry) for entry in census.task_files()]
        read.sort(key=lambda tasks: (tasks.name.born, tasks.stem))
        self.tasks = {tasks.stem: tasks for tasks in read}
        self._orphans: list[tuple[np.ndarray, np.ndarray]] = []
        self.outcomes = 0
        for file in census.result_files():
            self._add(file)
        self.unreadable = census.unreadable

    def _read(self, entry: Entry) -> Tasks:
        return Tasks(entry, fold_of(self._files, self._area, entry) if entry.live else None)

    def _add(self, file: ResultFile) -> None:
        """Hand the outcomes of a file to the task files that they belong to."""
        source = _Source(file.path, file.origins, dict(file.errors()))
        order = np.argsort(file.rows["file"], kind="stable")
        bounds = np.searchsorted(file.rows["file"][order], np.arange(len(file.files) + 1))
        self.outcomes += len(order)
        for stem, first, end in zip(file.files, bounds, bounds[1:], strict=False):
            tasks = self.tasks.get(stem)
            rows = file.rows[order[first:end]]
            if tasks is not None:
                tasks.add(_Part(source, _lean(rows), order[first:end]))
            elif len(rows):
                keys = np.frombuffer(rows["key"].tobytes(), f"S{KEY_BYTES}")
                self._orphans.append((keys, rows["status"]))

    # -- all rows ------------------------------------------------------------------------

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Key, round, phase and place (file, row) of every row."""
        files = list(self.tasks.values())
        sizes = [len(tasks.rows) for tasks in files]
        keys = b"".join(tasks.rows["key"].tobytes() for tasks in files)
        places = np.zeros((sum(sizes), 2), "u4")
        places[:, 0] = np.repeat(np.arange(len(files)), sizes)
        places[:, 1] = np.concatenate([np.arange(size) for size in (0, *sizes)])
        rounds = np.concatenate([np.zeros(0, "u2"), *(tasks.rows["round"] for tasks in files)])
        codes = np.concatenate([np.zeros(0, "u1"), *(tasks.codes for tasks in files)])
        return np.frombuffer(keys, f"S{KEY_BYTES}"), rounds, codes, places

    @cached_property
    def _order(self) -> np.ndarray:
        """Rows by key; of each key, the one that counts is the last.

        The highest round counts. Of several rows of one round (two clients raced) one that
        was left to the other does not, and a value does before a failure.
        """
        keys, rounds, codes, _ = self._columns
        merit = np.zeros(len(_PHASES), "u1")
        for worth, phase in enumerate((Phase.CANCELLED, Phase.FAILED, Phase.RUNNING), start=2):
            merit[_CODE[phase]] = worth
        merit[[_CODE[phase] for phase in (Phase.WAITING, Phase.PUT_OFF, Phase.READY)]] = 1
        merit[_CODE[Phase.DONE]] = len(_PHASES)
        gone = np.isin(codes, [_CODE[Phase.ALIASED], _CODE[Phase.REMOVED]])
        order: np.ndarray = np.lexsort((merit[codes], rounds, ~gone, keys))
        return order

    @cached_property
    def _sorted_keys(self) -> np.ndarray:
        keys: np.ndarray = self._columns[0][self._order]
        return keys

    @cached_property
    def current(self) -> np.ndarray:
        """Numbers of the rows that count, one for each key, in the order of submission."""
        keys = self._sorted_keys
        last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]
        found: np.ndarray = np.sort(self._order[last])
        return found

    def row(self, number: int) -> Row:
        files = self._file_list
        file, row = self._columns[3][number]
        return Row(files[file], int(row))

    @cached_property
    def _file_list(self) -> list[Tasks]:
        return list(self.tasks.values())

    def counts(self) -> dict[Phase, int]:
        """How many keys are in each phase."""
        codes = self._columns[2][self.current]
        return {phase: int((codes == _CODE[phase]).sum()) for phase in _PHASES}

    # -- by key --------------------------------------------------------------------------

    def matching(self, prefix: str) -> list[bytes]:
        """The keys that begin with these hex digits, ascending."""
        low, high = _bounds(prefix)
        keys = self._sorted_keys
        first, end = np.searchsorted(keys, low, "left"), np.searchsorted(keys, high, "right")
        found = np.unique(keys[int(first[0]) : int(end[0])])
        # numpy takes trailing zeros off
        return [bytes(key).ljust(KEY_BYTES, b"\0") for key in found]

    def rows(self, key: bytes) -> list[Row]:
        """All rows of a key; the one that counts is the last."""
        keys, wanted = self._sorted_keys, np.frombuffer(key, f"S{KEY_BYTES}")
        first, end = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        return [self.row(number) for number in self._order[int(first[0]) : int(end[0])]]

    def orphan(self, prefix: str) -> Status | None:
        """How a task ended whose task file was removed since; None if there is none such."""
        low, high = _bounds(prefix)
        for keys, statuses in self._orphans:
            found = statuses[(keys >= low) & (keys <= high)]
            if len(found):
                return Status.DONE if (found == Status.DONE).any() else Status(int(found[0]))
        return None

    def find(self, key: bytes) -> Row | None:
        """The row of a key that counts."""
        rows = self.rows(key)
        return rows[-1] if rows else None

    def tagged(self, tag: str) -> list[Row]:
        """The current rows with a tag, in the order of submission."""
        return [row for row in self if row.tasks.tag == tag]

    def __iter__(self) -> Iterator[Row]:
        """The current rows, in the order of submission."""
        for number in self.current:
            yield self.row(number)

    def newest(self) -> Iterator[Row]:
        """The current rows, the last submitted first."""
        for number in self.current[::-1]:
            yield self.row(number)


def keys_with_tag(spool: Spool, tag: str) -> list[bytes]:
    """Keys of all tasks with a tag, live or ended, each once, in the order of submission."""
    files, area, _ = spool
    found = [
        (entry.tasks.name.born, entry.stem, entry.tasks.keys)
        for entry in Census(files, area).task_files()
        if entry.tasks.meta.get("tag", "") == tag
    ]
    return list(dict.fromkeys(key for _, _, keys in sorted(found) for key in keys))


def records_of(spool: Spool, stem: str, row: int) -> list[Record]:
    """What the log of a live task file says of a row, oldest first; nothing once it is retired."""
    files, area, _ = spool
    found = []
    with suppress(FileNotFoundError):
        for number in sorted(_numbers(files.names(area.log(stem)))):
            with suppress(OSError):  # a checkpoint is no link
                record = parse(files.readlink(area.record(stem, number)))
                if record is not None and any(a <= row < b for a, b in record.rows):
                    found.append(record)
    return found


def _numbers(names: list[str]) -> list[int]:
    return [number for name in names if (number := parse_record(name)) is not None]


def outputs_of(spool: Spool, key: bytes) -> dict[tuple[str, int], str]:
    """The directories with what a task wrote, by agent and generation; the oldest first."""
    files, area, _ = spool
    directory = f"{area.logs}/{key.hex()}"
    try:
        names = files.names(directory)
    except FileNotFoundError:
        return {}
    found = {f"{directory}/{name}": attempt for name in names if (attempt := parse_attempt(name))}
    oldest = sorted(found, key=lambda path: files.age(path, directory), reverse=True)
    return {found[path]: path for path in oldest}


def _bounds(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last key that can begin with these hex digits."""
    texts = (prefix.ljust(2 * KEY_BYTES, fill) for fill in "0f")
    low, high = (np.frombuffer(bytes.fromhex(text), f"S{KEY_BYTES}") for text in texts)
    return low, high


def _functions_of(file: TaskFile) -> list[str]:
    """The names of the functions, by number."""
    names: dict[int, str] = {}
    numbers, first = np.unique(file.rows["function"], return_index=True)
    for number, row in zip(numbers, first, strict=True):
        names[int(number)] = file.function_name(int(row))
    return [names.get(number, "") for number in range(max(names, default=-1) + 1)]


def _lean(rows: np.ndarray) -> np.ndarray:
    lean = np.empty(len(rows), _LEAN)
    for column in _LEAN.names or ():
        lean[column] = rows[column]
    return lean


def _ending(part: _Part, at: int) -> Ending:
    row, index, source = part.rows[at], int(part.indices[at]), part.source
    return Ending(
        path=source.path,
        place=index,
        status=Status(int(row["status"])),
        generation=int(row["generation"]),
        attempt=int(row["attempt"]),
        started=float(row["started"]),
        wall=float(row["wall"]),
        cpu=float(row["cpu"]),
        peak_memory=int(row["peak_memory"]),
        origin=source.origins[row["source"]],
        error=source.errors.get(index),
    )


def _shown(error: dict[str, str]) -> str:
    return f"{error.get('type', '?')}: {error.get('message', '')}".rstrip(": ")
