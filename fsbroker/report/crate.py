"""An executed workflow with its data, as an RO-Crate.

    DIR/
      ro-crate-metadata.json   what there is: a Process Run Crate, one CreateAction a task
      workflow.json            the calls, as a Python Workflow Definition
      workflow.svg             the same, drawn
      tasks.json               each task: function, arguments, value, versions, hosts, times
      arrays-000.h5, ...       numeric arrays of arguments and values
      pickles/<key>.<what>     values and arguments that only Python can read

The directory is there whole or not at all. `arrival` brings the values into another spool.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from fsbroker import __version__
from fsbroker.client.history import History, Phase, Row
from fsbroker.errors import TaskLost, WorkflowError
from fsbroker.report.arrays import ArrayFiles
from fsbroker.report.definition import Made, definition_of
from fsbroker.report.drawing import draw
from fsbroker.report.graph import graph_of
from fsbroker.report.jsonform import json_form
from fsbroker.report.metadata import About, metadata
from fsbroker.report.shown import shown
from fsbroker.report.stored import ARGUMENTS, Stored, StoredArray, StoredCall
from fsbroker.spool.blobs import read_array
from fsbroker.spool.index import Results
from fsbroker.spool.spool import Spool
from fsbroker.task import Encoding, Outcome, Status, Value

FORMAT = 1
METADATA = "ro-crate-metadata.json"
TASKS = "tasks.json"
WORKFLOW = "workflow.json"
DRAWING = "workflow.svg"
PICKLES = "pickles"
ARRAY = "fsbroker.report.arrays.array"
ATTEMPTS = 5


class NotEnded(WorkflowError):
    """Some tasks have no outcome yet."""


class Exported(NamedTuple):
    """What was written.

    Attributes:
        tasks: how many. pickled: values that are pickles.
        shown_only: what `workflow.json` shows but cannot run: functions that nobody can
            import, arguments that are pickled or have no form in JSON.
    """

    tasks: int
    pickled: int
    shown_only: list[str]


def export(
    spool: Spool, history: History, named: Sequence[Row], directory: str, about: About
) -> Exported:
    """Write these tasks, and all that they depend on, into a new directory.

    Args:
        about: name, description and license of the crate (`metadata.About`).

    Raises:
        WorkflowError: the directory is there. NotEnded: a task has no outcome yet.
        TaskLost: a task file was removed.
    """
    if os.path.lexists(directory):
        raise WorkflowError("There is something of this name", directory, "Name a new directory")
    stored = Stored(spool, history, named)
    _require_ended(stored)
    directory = os.path.abspath(directory)
    temporary = f"{directory}.{secrets.token_hex(4)}.part"
    os.makedirs(os.path.join(temporary, PICKLES))
    try:
        exported = _Crate(spool, temporary).write(stored, about)
        os.rename(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return exported


def _require_ended(stored: Stored) -> None:
    if stored.missing:
        keys = ", ".join(key.hex() for key in stored.missing)
        raise TaskLost("Task files that others depend on were removed", keys)
    ended = (Phase.DONE, Phase.FAILED, Phase.CANCELLED)
    left = [row.key.hex() for row in stored.rows if row.phase not in ended]
    if left:
        some = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        what = f"{len(left)} of {len(stored.rows)} tasks have no outcome (yet)"
        raise NotEnded(what, some, "'fsbroker wait' returns when they have")


class _Crate:
    def __init__(self, spool: Spool, directory: str) -> None:
        self._files, self._area, durable = spool
        self._directory = directory
        self._arrays = ArrayFiles(directory)
        self._pickles: list[str] = []
        self._described: dict[int, dict[str, Any]] = {}
        self._shown_only: dict[str, None] = {}
        self._results = Results(self._files, self._area, durable=durable)
        self._results.poll(deep=True)

    def write(self, stored: Stored, about: About) -> Exported:
        tasks = stored.read()
        entries = [self._entry(task) for task in tasks]
        self._arrays.flush()
        written = definition_of(stored.calls(tasks, self._form))
        for entry, node in zip(entries, written.nodes, strict=True):
            entry["node"] = node
        self._put(WORKFLOW, written.text())
        drawn = graph_of(stored.calls(tasks, lambda value, _: shown(value)), stored.nodes())
        draw(drawn, os.path.join(self._directory, DRAWING))
        content = {"format": FORMAT, "fsbroker": __version__, "tasks": entries}
        self._put(TASKS, json.dumps(content, indent=1).encode())
        if not self._pickles:
            os.rmdir(os.path.join(self._directory, PICKLES))
        names = [WORKFLOW, TASKS, DRAWING, *self._arrays.names, *self._pickles]
        parts = {name: self._facts(name) for name in names}
        self._put(METADATA, json.dumps(metadata(about, parts, entries), indent=1).encode())
        for task in tasks:
            if task.is_closed or not task.is_importable:
                self._shown_only[task.function.name] = None
        pickled = sum(1 for one in entries if (one["value"] or {}).get("encoding") == "pickle")
        return Exported(len(tasks), pickled, sorted(self._shown_only))

    # -- tasks ---------------------------------------------------------------------------

    def _entry(self, task: StoredCall) -> dict[str, Any]:
        row, function = task.row, task.function
        outcome, origin = self._outcome(row)
        meta = row.tasks.meta
        return {
            "key": row.key.hex(),
            "descriptor": outcome.descriptor.hex(),
            "function": {
                "name": function.name,
                "digest": function.digest.hex(),
                "source": function.source,
            },
            "status": Status(outcome.status).name.lower(),
            "tag": row.tasks.tag,
            "submitted": row.tasks.name.born / 1e9,
            "client": {name: meta.get(name) for name in ("user", "host", "python", "cloudpickle")},
            "agent": origin,
            **{name: getattr(outcome, name) for name in NUMBERS},
            "dependencies": [
                {"key": key.hex(), "selector": list(path)} for key, path in task.dependencies
            ],
            "arguments": self._stored(row.key, ARGUMENTS, task.arguments),
            "value": self._stored(row.key, "value", outcome.value)
            if outcome.status == Status.DONE
            else None,
            "error": outcome.error,
        }

    def _outcome(self, row: Row) -> tuple[Outcome, dict[str, Any]]:
        """The current outcome of a key, wherever it moves meanwhile."""
        for _ in range(ATTEMPTS):
            found = self._results.find(row.key)
            if found is None:
                break
            try:
                file = self._results.file(found.place.path)
                return file.outcome(found.place.row), file.origin(found.place.row)
            except FileNotFoundError:
                self._results.look_again()
        raise TaskLost("The outcome was removed meanwhile", row.key.hex())

    def _stored(self, key: bytes, what: str, value: Value) -> dict[str, Any]:
        """A payload as JSON, its arrays and pickles in files beside."""
        arrays = []
        for place, ref in enumerate(value.arrays):
            about = self._arrays.add(
                f"{key.hex()}/{what}/{place}", read_array(self._files, self._area, ref)
            )
            self._described[id(ref)] = about
            arrays.append(about)
        found: dict[str, Any] = {"encoding": Encoding(value.encoding).name.lower()}
        if value.encoding == Encoding.PICKLE:
            name = f"{PICKLES}/{key.hex()}.{what}"
            self._put(name, value.data)
            self._pickles.append(name)
            found["file"] = name
        else:
            found["data"] = json.loads(value.data)
        return {**found, "arrays": arrays}

    def _form(self, value: Any, where: str) -> Any:
        """What a leaf is in `workflow.json`: an array is read from its file."""
        if isinstance(value, StoredArray):
            return Made(ARRAY, self._described[id(value.ref)])
        try:
            return json_form(value, where)
        except WorkflowError:
            self._shown_only[where] = None  # `tasks.json` has it as it was
            return {"python": shown(value)}

    # -- files ---------------------------------------------------------------------------

    def _put(self, name: str, data: bytes) -> None:
        with open(os.path.join(self._directory, name), "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _facts(self, name: str) -> tuple[int, str]:
        path = os.path.join(self._directory, name)
        return os.path.getsize(path), digest_of(path)


NUMBERS = ("round", "generation", "attempt", "ranks", "started", "wall", "cpu", "peak_memory")
"""What is kept of an outcome as it is."""


def digest_of(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
