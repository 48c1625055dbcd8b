"""From an exported crate into a spool: values under the keys that they had.

    open_crate(path) -> checks of all that is there -> deliver(spool) -> a stream of its own

All is checked before anything is published: checksums, forms, and that no key has come to mean
another call. Results are published as an agent publishes its own: result files in a stream,
which is sealed at the end. They belong to no task file of this spool.

A pickle runs code when it is read. So files of other users are refused, as everywhere in a
spool: who wants theirs makes a copy that is his own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fsbroker import plain
from fsbroker.environment import environment
from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew, KeyConflict
from fsbroker.keys import UNKNOWN
from fsbroker.report.arrays import stored_array
from fsbroker.report.crate import FORMAT, METADATA, PICKLES, TASKS, digest_of
from fsbroker.spool import forms, streams
from fsbroker.spool.blobs import store
from fsbroker.spool.container import LARGEST_READ
from fsbroker.spool.files import Files, OpenFile
from fsbroker.spool.index import Results
from fsbroker.spool.layout import MAX_ROWS, Stem
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import Stream
from fsbroker.task import KEY_BYTES, Encoding, Outcome, Status, Value

CURE = "Export it again, or copy it again"
SHAPE = "c1t1g0m0n0x0"
LARGEST = 64 << 20
"""Bytes of values in one result file."""
_RANGES = {"round": 0xFFFF, "generation": 0xFFFF, "attempt": 0xFF, "ranks": 0xFFFF}
_TIMES = ("started", "wall", "cpu")


class Delivered(NamedTuple):
    """What became of a crate's tasks: how many were brought, and why others were not.

    Attributes:
        present: their keys have values here. failed: they have none. pickled: brought as pickles.
    """

    imported: int
    present: int
    failed: int
    pickled: int


class Crate:
    """An exported directory, whose files are what its metadata says.

    Raises:
        FileRefused: not a crate of fsbroker, or files of another user.
        FileDamaged: a file is missing or has another content.
        FormatTooNew: a newer fsbroker wrote it.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._files = Files(self.path)
        self._require_whole(self._listed())
        content = self._json(TASKS)
        version = content.get("format") if isinstance(content, dict) else None
        if type(version) is not int or not isinstance(content.get("tasks"), list):
            raise FileRefused("Not a crate of fsbroker", self._at(TASKS))
        if version > FORMAT:
            what = f"Format {version}, this fsbroker reads up to {FORMAT}"
            raise FormatTooNew(what, self._at(TASKS), "Use a newer fsbroker")
        self.tasks: list[dict[str, Any]] = [self._checked(task) for task in content["tasks"]]

    # -- files ---------------------------------------------------------------------------

    def _listed(self) -> dict[str, str]:
        """The files that the metadata names, with their SHA-256."""
        if not os.path.isdir(self.path) or METADATA not in os.listdir(self.path):
            raise FileRefused("Not an exported crate: it has no " + METADATA, self.path)
        content = self._json(METADATA)
        graph = content.get("@graph") if isinstance(content, dict) else None
        entities = [one for one in graph if isinstance(one, dict)] if type(graph) is list else []
        listed = [one for one in entities if one.get("@type") == "File"]
        found = {str(one.get("@id")): str(one.get("sha256")) for one in listed}
        if TASKS not in found:
            raise FileRefused("An RO-Crate, but not one of fsbroker", self.path)
        wrong = [name for name in found if not _is_inside(name)]
        if wrong:
            raise FileRefused(f"The crate names files outside of it: {wrong[0]!r}", self.path)
        return found

    def _require_whole(self, listed: Mapping[str, str]) -> None:
        for name, digest in listed.items():
            try:
                self._files.open(name).close()  # a regular file, and one's own
                found = digest_of(self._at(name))
            except FileNotFoundError:
                raise FileDamaged("A file of the crate is missing", self._at(name), CURE) from None
            except FileRefused as error:
                cure = "Make a copy of the crate that is yours, if you trust who made it"
                raise FileRefused(error.what, self._at(name), cure) from error
            if found != digest:
                raise FileDamaged("Not the content that was exported", self._at(name), CURE)

    def _json(self, name: str) -> Any:
        try:
            with self._files.open(name) as file:
                return json.loads(_content(file))
        except (ValueError, RecursionError) as error:
            raise FileDamaged(f"No JSON ({error})", self._at(name), CURE) from error

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    # -- tasks ---------------------------------------------------------------------------

    def _checked(self, task: Any) -> dict[str, Any]:
        try:
            self._check(task)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, FileDamaged):
                raise
            key = str(task.get("key") if isinstance(task, dict) else "?")[:40]
            what = f"A task is not as it was exported ({type(error).__name__}: {error})"
            raise FileDamaged(what, f"{self._at(TASKS)}, key {key}", CURE) from error
        found: dict[str, Any] = task
        return found

    def _check(self, task: Mapping[str, Any]) -> None:
        for name in ("key", "descriptor"):
            if len(bytes.fromhex(task[name])) != KEY_BYTES:
                raise ValueError(f"{name} is no key")
        for name, most in _RANGES.items():
            if type(task[name]) is not int or not 0 <= task[name] <= most:
                raise ValueError(f"{name} is {task[name]!r}")
        if not forms.natural(task["peak_memory"]):
            raise ValueError("peak_memory is no number of bytes")
        for name in _TIMES:
            if not forms.number(task[name]):
                raise ValueError(f"{name} is no time")
        if not isinstance(task["agent"], dict):
            raise TypeError("agent is no description")
        if Status[task["status"].upper()] is Status.DONE:
            self.value(task)

    def value(self, task: Mapping[str, Any]) -> tuple[Encoding, bytes, list[Any]]:
        """Encoding, data and arrays of a task's value.

        Raises:
            FileDamaged, LookupError, TypeError, ValueError: it is not as it was exported.
        """
        stored = task["value"]
        encoding = Encoding[stored["encoding"].upper()]
        arrays = [stored_array(self._files, about) for about in stored["arrays"]]
        if encoding is Encoding.PICKLE:
            if stored["file"] != f"{PICKLES}/{task['key']}.value":
                raise ValueError("the pickle's name is not that of its task")
            with self._files.open(stored["file"]) as file:
                return encoding, _content(file), arrays
        data = plain.to_text(stored["data"]).encode("ascii")
        plain.decode(data, arrays)
        return encoding, data, arrays


def _content(file: OpenFile) -> bytes:
    if file.size > LARGEST_READ:
        raise FileRefused(f"Its {file.size} bytes do not fit in memory here", file.path)
    return file.read(0, file.size)


def _is_inside(name: str) -> bool:
    return not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name


def deliver(spool: Spool, crate: Crate) -> Delivered:
    """Publish the values of a crate.

    Raises:
        KeyConflict: a key stands for another call here; nothing was published.
    """
    done = [task for task in crate.tasks if task["status"] == "done"]
    new = _new(spool, done)
    _Delivery(spool, crate).publish(new)
    pickled = sum(1 for task in new if task["value"]["encoding"] == "pickle")
    return Delivered(len(new), len(done) - len(new), len(crate.tasks) - len(done), pickled)


def _new(spool: Spool, tasks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose keys have no value yet."""
    results = Results(spool.files, spool.area, durable=spool.durable)
    results.poll(deep=True)
    new = {}
    for task in tasks:
        found = results.find(bytes.fromhex(task["key"]))
        if found is None or found.status != Status.DONE:
            new[task["key"]] = task
        elif UNKNOWN not in (mine := bytes.fromhex(task["descriptor"]), found.descriptor) and (
            mine != found.descriptor
        ):
            cure = "One of the two was stored with a cache_key; import into another spool"
            raise KeyConflict("The key stands for another call here", task["key"], cure)
    return list(new.values())


class _Delivery:
    """One import: a stream that no agent stands behind."""

    def __init__(self, spool: Spool, crate: Crate) -> None:
        self._spool = spool
        self._crate = crate
        self._stream = Stream(spool.files, spool.area, spool.files.token())

    def publish(self, tasks: list[dict[str, Any]]) -> None:
        if not tasks:
            return
        files, _, durable = self._spool
        self._stream.create()
        for origin, part in self._parts(tasks):
            made = streams.build(files.token(), part, origin)
            self._stream.publish(made, durable=durable)
        self._stream.close()

    def _parts(
        self, tasks: Iterable[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], list[Outcome]]]:
        """Outcomes of one origin each, as many as a result file takes."""
        by_origin: dict[str, list[dict[str, Any]]] = {}
        for task in tasks:
            by_origin.setdefault(json.dumps(task["agent"], sort_keys=True), []).append(task)
        for text, alike in by_origin.items():
            origin = {**json.loads(text), "imported": self._crate.path}
            part: list[Outcome] = []
            stem, size = self._stem(), 0
            for task in alike:
                if len(part) == MAX_ROWS or size > LARGEST:
                    yield origin, part
                    part, stem, size = [], self._stem(), 0
                part.append(self._outcome(task, stem, len(part)))
                size += len(part[-1].value.data)
            yield origin, part

    def _stem(self) -> str:
        """Of a task file that never was: these outcomes are nobody's who waits for a row."""
        token = self._spool.files.token()
        born = int(self._spool.files.wall_time() * 1e9)
        return str(Stem(0, born, token, SHAPE, environment(), MAX_ROWS, 0))

    def _outcome(self, task: Mapping[str, Any], stem: str, row: int) -> Outcome:
        encoding, data, arrays = self._crate.value(task)
        files, area, durable = self._spool
        refs = tuple(store(files, area, one, durable=durable, shared=False) for one in arrays)
        return Outcome(
            stem=stem,
            row=row,
            key=bytes.fromhex(task["key"]),
            descriptor=bytes.fromhex(task["descriptor"]),
            status=Status.DONE,
            value=Value(encoding, data, refs),
            **{name: task[name] for name in (*_RANGES, *_TIMES, "peak_memory")},
        )
