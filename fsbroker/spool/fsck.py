"""Every file, record, key and outcome of an area, checked: what is wrong, and with what.

    names -> contents (checksums of all sections) -> rows against outcomes -> findings

It changes nothing; `mend.py` does, finding by finding. Whatever another process moves
meanwhile is looked for where it went, and what cannot be read for an I/O error is said to be
just that: only a checksum that fails on two fresh opens makes a file bad.
"""

from __future__ import annotations

import enum
import hashlib
import json
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew, SignatureRefused
from fsbroker.spool import archive, gc, presence, streams
from fsbroker.spool.census import Census, Entry
from fsbroker.spool.container import Container
from fsbroker.spool.files import Files, OpenFile
from fsbroker.spool.layout import (
    DIRECTORIES,
    Area,
    parse_record,
    parse_stem,
)
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Fold, Retired, State, parse
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import TaskFile
from fsbroker.spool.values import array_index
from fsbroker.task import Status

VOID = "void"
"""First word of a record that only fills a hole: no reader knows it, so it has no effect."""
DAY = gc.DAY


class Weight(enum.IntEnum):
    """What a finding means for who uses the spool."""

    NOTE = 0
    """To be known; nothing is wrong with what fsbroker stored."""
    MENDABLE = 1
    """Wrong, and repair mends it."""
    LOST = 2
    """Something is gone, or contradicts itself: nobody but the user can tell what to do."""


class Kind(enum.Enum):
    """What can be found. Values: its weight, and the words for it."""

    FOREIGN = Weight.NOTE, "files of other users: not read, not touched"
    STRAY = Weight.NOTE, "names that are not fsbroker's: ignored"
    NEWER = Weight.NOTE, "written by a newer fsbroker: left to it"
    UNFINISHED = Weight.NOTE, "tasks held by agents that are gone: they will run again"
    UNSIGNED = (
        Weight.LOST,
        "not signed by you: left where they are, and not used while `sign` is on",
    )
    UNREADABLE = Weight.LOST, "cannot be read now (I/O error): look after the file system"
    SETTINGS = Weight.MENDABLE, "the spool's settings are gone or cannot be read"
    LEFTOVER = Weight.MENDABLE, "left over from crashes"
    DAMAGED = Weight.MENDABLE, "damaged files"
    HOLE = Weight.MENDABLE, "records that are gone from a log"
    UNCLAIMED = (
        Weight.MENDABLE,
        "tasks that have an outcome and would run again: their claim is gone",
    )
    NO_LOG = Weight.MENDABLE, "live task files whose log is gone"
    NO_TASKS = Weight.MENDABLE, "logs whose task file is gone: its tasks are lost"
    PARTLY = Weight.LOST, "task files damaged in part: tasks that need that part will fail"
    NO_BLOB = Weight.LOST, "arrays that are gone: what refers to them cannot be read"
    NO_RESULT = Weight.LOST, "tasks that ended and whose results are gone (purged, or gc --results)"
    TWO_VALUES = Weight.LOST, "keys with two different values"
    TWO_CALLS = Weight.LOST, "keys that stand for two different calls"
    TWICE = Weight.LOST, "tasks with two outcomes"

    def __init__(self, weight: Weight, words: str) -> None:
        self.weight = weight
        self.words = words


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        path: relative to the spool. what: more about it. keys: of the tasks that it is about.
        subject: what `mend` goes by: the stem of a task file, or the path of a file.
    """

    kind: Kind
    path: str
    what: str = ""
    keys: tuple[str, ...] = ()
    subject: str = ""


Row = tuple[str, int]


class Sound(NamedTuple):
    """What the readable files of an area hold.

    Attributes:
        rows: keys of the rows of each task file. folds: of the live ones with a log.
        archived: stems of those that ended. outcomes: who published each row's, by row.
        ended: keys with any outcome.
    """

    rows: dict[str, list[bytes]]
    folds: dict[str, Fold]
    archived: set[str]
    outcomes: dict[Row, str]
    ended: set[bytes]


def survey(files: Files, area: Area) -> tuple[list[Finding], Sound]:
    """Look at everything; what is wrong, and what there is."""
    check = _Check(files, area)
    return check.findings(), check.sound


def verify(files: Files, area: Area, path: str) -> Exception | None:
    """What is wrong with a file of one of our kinds; None if nothing is, or it is gone.

    Raises:
        OSError: it cannot be read now.
    """
    with suppress(FileNotFoundError):
        for attempt in (1, 2):  # damaged only if it is so on two fresh opens
            try:
                _read_all(files, area, path)
                break
            except FormatTooNew as error:
                return error
            except (FileDamaged, FileRefused) as error:
                if attempt == 2:
                    return error
    return None


def _read_all(files: Files, area: Area, path: str) -> None:
    directory = area.directory_of(path)
    if directory == area.jobs:
        _read_settings(files, path)
    elif directory in (area.tasks, area.archive):
        with Container(files, path, "tasks", "archive") as file:
            for stem, raw in archive.opened(files, path):
                _read_tasks(files, raw, stem)
            file.verify()
    else:
        kinds = {
            area.results: "results",
            area.packs: "pack",
            area.blobs: "blob",
            area.agents: "agent",
            area.claims: "checkpoint",
        }
        with Container(files, path, kinds[directory]) as file:
            file.verify()
            if file.kind == "checkpoint":
                _parsed(file, lambda: Fold.from_json(file.read("fold")))
        if file.kind in ("results", "pack"):
            _read_results(files, path)


def _parsed(file: Container, read: Callable[[], object]) -> None:
    """A section whose checksum is right may be nonsense all the same."""
    try:
        read()
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FileDamaged("What it holds makes no sense", file.path) from error


def _read_tasks(files: Files, raw: OpenFile, stem: str) -> None:
    with Container(files, raw.path, "tasks", file=raw) as file:
        tasks = TaskFile(files, raw.path, stem, raw)
        if len(tasks.rows) != tasks.name.rows:
            raise FileDamaged(f"{len(tasks.rows)} rows, the name says {tasks.name.rows}", raw.path)
        if len(tasks.rows):
            _parsed(file, lambda: tasks.function(len(tasks.rows) - 1))
        file.verify()


def _read_results(files: Files, path: str) -> None:
    with Container(files, path) as container, ResultFile(files, path) as file:
        if len(file.rows) and int(file.rows["file"].max()) >= len(file.files):
            raise FileDamaged("A row names a task file that is not listed", path)
        if container.kind == "pack" and file.keys != sorted(file.keys):
            raise FileDamaged("The keys are not in order", path)
        _parsed(container, lambda: (file.origins, list(file.errors())))


def _read_settings(files: Files, path: str) -> None:
    with files.open(path) as file:
        text = file.read(0, file.size)
    digest = path.rpartition("/")[2].removesuffix(".settings")
    if hashlib.blake2b(text, digest_size=8).hexdigest() != digest:
        raise FileDamaged("The checksum is not that of its name", path)


class _Check:
    """One look at everything."""

    def __init__(self, files: Files, area: Area) -> None:
        self._files = files
        self._area = area
        self._found: list[Finding] = []
        self._bad: set[str] = set()
        self._blobs: dict[str, set[str]] = {}
        self._values: dict[bytes, set[tuple[Any, ...]]] = {}
        self._calls: dict[bytes, set[bytes]] = {}
        self.sound = Sound({}, {}, set(), {}, set())

    def findings(self) -> list[Finding]:
        for name in DIRECTORIES:
            self._look_at_names(f"{self._area.path}/{name}")
        census = Census(self._files, self._area)
        # Outcomes before logs: a claim is there before its outcome is.
        for entry in census.task_files():
            self._note_tasks(entry)
        for file in census.result_files():
            self._note_results(file)
        for stem in census.live_stems():
            self._look_at_log(stem)
        self._look_at_logs()
        self._look_at_holes(self._area.jobs, _is_json)
        self._compare()
        self._look_for_leftovers()
        return self._found

    def _add(self, kind: Kind, path: str, what: object = "", **more: Any) -> None:
        self._found.append(Finding(kind, path, str(what), **more))

    # -- names and contents --------------------------------------------------------------

    def _look_at_names(self, directory: str) -> None:
        for name in self._names(directory):
            path = f"{directory}/{name}"
            with suppress(FileNotFoundError):
                status = self._files.status(path)
                if status.st_uid != self._files.uid:
                    self._add(Kind.FOREIGN, path, f"of user {status.st_uid}")
                elif not self._area.fits(path):
                    self._add(Kind.STRAY, path)
                elif stat.S_ISDIR(status.st_mode):
                    self._look_at_names(path)
                elif stat.S_ISREG(status.st_mode):
                    self._look_into(path)
                elif not stat.S_ISLNK(status.st_mode):
                    self._add(Kind.STRAY, path, "neither file nor link")

    def _names(self, directory: str) -> list[str]:
        try:
            return sorted(self._files.names(directory))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _look_into(self, path: str) -> None:
        area = self._area
        read = (area.tasks, area.archive, area.results, area.packs)
        if area.directory_of(path) not in (*read, area.blobs, area.agents, area.claims, area.jobs):
            return
        try:
            error = verify(self._files, self._area, path)
        except OSError as trouble:
            self._add(Kind.UNREADABLE, path, trouble)
            return
        if isinstance(error, FormatTooNew):
            self._add(Kind.NEWER, path, error.what)
        elif isinstance(error, SignatureRefused):
            self._bad.add(path)
            self._add(Kind.UNSIGNED, path, error.what)
        elif error is not None:
            self._bad.add(path)
            self._add(self._damage(path), path, getattr(error, "what", error))

    def _damage(self, path: str) -> Kind:
        """Task files whose tables can be read are of use still."""
        if self._area.directory_of(path) not in (self._area.tasks, self._area.archive):
            return Kind.DAMAGED
        try:
            for stem, raw in archive.opened(self._files, path):
                tasks = TaskFile(self._files, path, stem, raw)
                if len(tasks.rows) == tasks.name.rows and tasks.function(0):
                    return Kind.PARTLY
        except (OSError, FileDamaged, FileRefused, ValueError, LookupError):
            pass
        return Kind.DAMAGED

    # -- what there is -------------------------------------------------------------------

    def _note_tasks(self, entry: Entry) -> None:
        self.sound.rows[entry.stem] = entry.tasks.keys
        if not entry.live:
            self.sound.archived.add(entry.stem)
        for key, descriptor in zip(entry.tasks.keys, entry.tasks.rows["descriptor"], strict=True):
            self._calls.setdefault(key, set()).add(descriptor.tobytes())
        if entry.live:
            with suppress(FileDamaged):
                file = Container(self._files, entry.path, "tasks", file=entry.raw)
                self._note_blobs(file)

    def _note_results(self, file: ResultFile) -> None:
        with suppress(FileNotFoundError), Container(self._files, file.path) as container:
            self._note_blobs(container)
        for index, key in enumerate(file.keys):
            with suppress(FileDamaged, LookupError, ValueError):
                self._note_outcome(file, index, key)

    def _note_outcome(self, file: ResultFile, index: int, key: bytes) -> None:
        row = (file.files[file.rows["file"][index]], int(file.rows["row"][index]))
        agent = str(file.origin(index).get("agent", ""))
        generation = int(file.rows["generation"][index])
        known = self.sound.outcomes.setdefault(row, f"{agent}.{generation}")
        if known != f"{agent}.{generation}":
            self._add(Kind.TWICE, file.path, f"{row[0]}.{row[1]}", keys=(key.hex(),))
        self.sound.ended.add(key)
        self._calls.setdefault(key, set()).add(file.rows["descriptor"][index].tobytes())
        if file.rows["status"][index] == Status.DONE:
            self._values.setdefault(key, set()).add(self._fingerprint(file, index))

    def _fingerprint(self, file: ResultFile, index: int) -> tuple[Any, ...]:
        """Of a value; blobs have random names, and count by their content."""
        status, encoding, length, checksum, *arrays = file.fingerprint(index)
        shown = [(*rest, crc, self._content(blob)) for *rest, crc, blob in arrays]
        return (status, encoding, length, checksum, *shown)

    def _content(self, blob: str) -> str:
        try:
            with Container(self._files, self._area.blob(blob)) as file:
                return str(file.sections["array"].checksum)
        except (OSError, FileDamaged, FileRefused, KeyError):
            return blob

    def _note_blobs(self, file: Container) -> None:
        with suppress(FileDamaged):
            for entry in array_index(file):
                if entry.blob:
                    self._blobs.setdefault(entry.blob, set()).add(file.path)

    # -- logs ----------------------------------------------------------------------------

    def _look_at_log(self, stem: str) -> None:
        name, keys = parse_stem(stem), self.sound.rows.get(stem)
        if name is None or keys is None:
            return
        path, log = self._area.log(stem), LiveFile(self._files, self._area, stem, name).log
        try:
            log.refresh()
        except Retired:
            gone = not self._exists(path) and stem not in self._archived_stems()
            if gone and self._exists(self._area.task_file(stem)):
                self._add(Kind.NO_LOG, self._area.task_file(stem), subject=stem)
            return
        fold = self.sound.folds[stem] = log.fold
        open_rows = [row for row, state in enumerate(fold.state) if state in RUNS_AGAIN]
        again = [row for row in open_rows if (stem, row) in self.sound.outcomes]
        if again:
            named = tuple(keys[row].hex() for row in again)
            self._add(Kind.UNCLAIMED, path, f"{len(again)} tasks", keys=named, subject=stem)
        held = unfinished(self._files, self._area, stem, self.sound)
        for agent, rows in held.items():
            named = tuple(keys[row].hex() for row in rows)
            self._add(Kind.UNFINISHED, path, f"by agent {agent}", keys=named, subject=stem)

    def _archived_stems(self) -> set[str]:
        names = self._names(self._area.archive)
        return self.sound.archived | {name.removesuffix(".h5") for name in names}

    def _look_at_logs(self) -> None:
        live = set(Census(self._files, self._area).live_stems())
        with gc.Now(self._files, self._area) as age:
            for stem in filter(parse_stem, self._names(self._area.claims)):
                path = self._area.log(stem)
                self._look_at_holes(path, parse)
                known = stem in live or stem in self.sound.archived
                if known or self._is_bad(stem) or not self._exists(path):
                    continue
                if age(path) > DAY or not self._may_be_unborn(stem):
                    self._add(Kind.NO_TASKS, path, _lost_rows(stem), subject=stem)

    def _may_be_unborn(self, stem: str) -> bool:
        """A client makes the log, and may claim all rows, before it links the task file."""
        name, first = parse_stem(stem), self._area.record(stem, 0)
        names = self._names(self._area.log(stem))
        if names != [first.rpartition("/")[2]]:
            return not names
        with suppress(OSError):
            record = parse(self._files.readlink(first))
            return bool(name and record and record.rows == ((0, name.rows),))
        return False

    def _is_bad(self, stem: str) -> bool:
        return self._area.task_file(stem) in self._bad

    def _look_at_holes(self, path: str, read: Callable[[str], object]) -> None:
        numbers = {n for name in self._names(path) if (n := parse_record(name)) is not None}
        missing = [
            number for number in range(max(numbers, default=-1) + 1) if number not in numbers
        ]
        if missing and self._exists(path):
            again = {n for name in self._names(path) if (n := parse_record(name)) is not None}
            missing = [number for number in missing if number not in again]
        if missing:
            shown = ", ".join(f"{number:08d}" for number in missing[:10])
            self._add(Kind.HOLE, path, f"{len(missing)}: {shown}")
        for number in sorted(numbers):
            self._look_at_record(f"{path}/{number:08d}", read)

    def _look_at_record(self, path: str, read: Callable[[str], object]) -> None:
        try:
            text = self._files.readlink(path)
        except OSError:
            return  # a checkpoint, which was looked into; or gone
        if not (text.startswith(VOID) or read(text)):
            self._add(Kind.STRAY, path, f"says nothing: {text[:60]!r}")

    def _exists(self, path: str) -> bool:
        try:
            self._files.status(path)
        except FileNotFoundError:
            return False
        return True

    # -- what belongs together -----------------------------------------------------------

    def _compare(self) -> None:
        for stem in sorted(self.sound.archived - self.sound.folds.keys()):
            keys = self.sound.rows[stem]
            gone = tuple(key.hex() for key in dict.fromkeys(keys) if key not in self.sound.ended)
            if gone:
                self._add(Kind.NO_RESULT, stem, f"{len(gone)} tasks", keys=gone)
        for key, values in self._values.items():
            if len(values) > 1:
                self._add(Kind.TWO_VALUES, key.hex(), f"{len(values)} values", keys=(key.hex(),))
        for key, calls in self._calls.items():
            if len(calls) > 1:
                self._add(Kind.TWO_CALLS, key.hex(), f"{len(calls)} calls", keys=(key.hex(),))
        for name, users in sorted(self._blobs.items()):
            path = self._area.blob(name)
            for user in sorted(users) if not self._exists(path) else ():
                self._add(Kind.NO_BLOB, path, f"named by {user}", subject=user)

    def _look_for_leftovers(self) -> None:
        for item in leftovers(self._files, self._area).items:
            self._add(Kind.LEFTOVER, item.path, item.kind.value)


RUNS_AGAIN = (State.WAITING, State.READY)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _lost_rows(stem: str) -> str:
    name = parse_stem(stem)
    return f"{name.rows} tasks" if name else ""


def leftovers(files: Files, area: Area) -> gc.Rubbish:
    """Of what gc would remove, what no user can want."""
    rubbish = gc.survey(files, area, gc.Wishes())
    kinds = (gc.Kind.TEMPORARY, gc.Kind.RETIRED, gc.Kind.PRESENCE)
    return rubbish._replace(items=[item for item in rubbish.items if item.kind in kinds])


def unfinished(files: Files, area: Area, stem: str, sound: Sound) -> dict[str, list[int]]:
    """Rows of a live task file that are held by agents which are gone, by agent."""
    fold = sound.folds[stem]
    found: dict[str, list[int]] = {}
    for row in range(len(fold.state)):
        agent = fold.owner_of(row)
        if agent is not None and (stem, row) not in sound.outcomes:
            found.setdefault(agent, []).append(row)
    there = set(alive(files, area)) if found else set()
    return {agent: rows for agent, rows in found.items() if agent not in there}


def alive(files: Files, area: Area) -> Iterator[str]:
    """Agents that may be at work: present, not sealed, and not known to be dead."""
    for one in presence.listing(files, area):
        if streams.is_sealed(files, area, one.agent):
            continue
        described = presence.about(files, area, one)
        if not (described and presence.is_dead_process(described)):
            yield one.agent
