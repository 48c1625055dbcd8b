"""Result files, and the streams that they form.

An agent publishes its results as ``results/<agent>/00000000.h5``, 00000001.h5, ... and
never skips a number. Whoever believes the agent dead puts a *seal*, a symbolic link, at
the next number; `link` and `symlink` exclude each other there, so from then on the agent
can never publish again, however long it slept (rule 6).

A stream is sealed when its highest entry is a seal. A seal below a result is void: it was
put into a gap that a packer had left, by somebody with an old listing. Packers leave the
highest file of a stream that is not sealed, so the highest entry tells for ever.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fsbroker.errors import FileDamaged
from fsbroker.spool import forms
from fsbroker.spool.container import Container, Image, image, token_of
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, parse_stem, parse_stream_file
from fsbroker.spool.publish import publish
from fsbroker.spool.values import COLUMNS, ValueMerger, ValueReader, ValueWriter
from fsbroker.task import KEY_BYTES, Encoding, Outcome, Status, Value

RESULTS = np.dtype(
    [
        ("key", f"V{KEY_BYTES}"),
        ("descriptor", f"V{KEY_BYTES}"),
        ("file", "u2"),
        ("row", "u2"),
        ("round", "u2"),
        ("generation", "u2"),
        ("attempt", "u1"),
        ("status", "u1"),
        ("ranks", "u2"),
        ("source", "u2"),
        ("started", "f8"),
        ("wall", "f8"),
        ("cpu", "f8"),
        ("peak_memory", "u8"),
        *COLUMNS,
    ]
)
"""One outcome. ``file``: index into the task file names; ``source``: into the origins.

``started`` in seconds since the epoch, ``wall`` and ``cpu`` in seconds, ``peak_memory``
in bytes.
"""

MOST_ROWS = 1 << 20
"""More than a result file has; packs may have more."""


class Bulk(NamedTuple):
    """Consecutive rows of one task file that all returned plain values.

    Attributes:
        stem: the task file. first: its first row.
        task_rows: their rows in its table.
        generation, attempts: of each row.
        texts: their values.
        started, wall, cpu: seconds, of each row. peak_memory: bytes, of the worker.
    """

    stem: str
    first: int
    task_rows: np.ndarray
    generation: Sequence[int]
    attempts: Sequence[int]
    texts: Sequence[bytes]
    started: Sequence[float]
    wall: Sequence[float]
    cpu: Sequence[float]
    peak_memory: int


def build(token: str, results: Sequence[Outcome | Bulk], origin: Mapping[str, Any]) -> Image:
    """The image of a result file.

    Args:
        origin: where the results come from that do not say so (host, agent, queue job, versions).
    """
    writer = ValueWriter("values")
    own = json.dumps(origin)
    stems: dict[str, int] = {}
    sources: dict[str, int] = {}
    errors: dict[str, dict[str, str]] = {}
    tables = []
    for result in results:
        file = stems.setdefault(result.stem, len(stems))
        if isinstance(result, Bulk):
            source = sources.setdefault(own, len(sources))
            tables.append(_bulk_rows(result, file, source))
            writer.add_texts(result.texts)
        else:
            if result.error is not None:
                errors[str(len(writer.columns))] = result.error
            told = own if result.origin is None else json.dumps(result.origin)
            source = sources.setdefault(told, len(sources))
            tables.append(_single_row(result, file, source))
            writer.add(result.value)
    table = np.concatenate(tables)
    writer.fill(table)
    sections: dict[str, bytes | np.ndarray] = {
        "rows": table,
        "files": json.dumps(list(stems)).encode(),
        "origins": f"[{','.join(sources)}]".encode(),
    }
    if errors:
        sections["errors"] = json.dumps(errors).encode()
    return image(token, "results", dict(origin), sections | writer.sections())


def _bulk_rows(bulk: Bulk, file: int, source: int) -> np.ndarray:
    rows = np.zeros(len(bulk.texts), RESULTS)
    for column in ("key", "descriptor", "round", "ranks"):
        rows[column] = bulk.task_rows[column]
    rows["file"], rows["source"] = file, source
    rows["row"] = np.arange(bulk.first, bulk.first + len(rows))
    rows["generation"], rows["attempt"] = bulk.generation, bulk.attempts
    rows["status"] = Status.DONE
    rows["started"], rows["wall"], rows["cpu"] = bulk.started, bulk.wall, bulk.cpu
    rows["peak_memory"] = bulk.peak_memory
    return rows


def _single_row(result: Outcome, file: int, source: int) -> np.ndarray:
    row = np.zeros(1, RESULTS)
    row["key"] = np.frombuffer(result.key, f"V{KEY_BYTES}")
    row["descriptor"] = np.frombuffer(result.descriptor, f"V{KEY_BYTES}")
    row["file"], row["source"] = file, source
    for column in ("row", "round", "generation", "attempt", "status", "ranks"):
        row[column] = getattr(result, column)
    for column in ("started", "wall", "cpu", "peak_memory"):
        row[column] = getattr(result, column)
    return row


_TIMES = ("started", "wall", "cpu")
_IS_STATUS = np.isin(np.arange(256), list(Status))
"""By the value of its column. `np.isin` itself costs more than the rest of the check."""


def _is_error(row: str, error: Any) -> bool:
    return (
        row.isdecimal()
        and len(row) < 10
        and forms.fits(error, {"?key": forms.digest})
        and all(type(text) is str for text in error.values())
    )


class ResultFile:
    """A result file or a pack, opened for reading.

    Attributes:
        path: relative to the spool.
        rows: table of `RESULTS`; sorted by key in a pack.
        files: stems of the task files that the rows belong to.
        origins: where the results come from.
    """

    def __init__(self, files: Files, path: str) -> None:
        self._file = Container(files, path, "results", "pack")
        self.path = path
        self.meta = self._file.meta
        self.rows = self._file.table("rows", RESULTS)
        self.files: list[str] = self._file.json("files", [str])
        self._check()
        self._values = ValueReader(self._file, "values")

    def _check(self) -> None:
        """See that rows tell of rows that there can be, in ways that there are."""
        rows, sizes = self.rows, [stem.rows for stem in map(parse_stem, self.files) if stem]
        if (
            len(sizes) < len(self.files)
            or (rows["file"] >= len(sizes)).any()
            or (rows["row"] >= np.array(sizes, "u2")[rows["file"]]).any()
            or not _IS_STATUS[rows["status"]].all()
            or not all((np.abs(rows[time]) < forms.FAR).all() for time in _TIMES)
            or (self._file.kind == "results" and len(rows) >= MOST_ROWS)
        ):
            raise FileDamaged("An outcome is not what fsbroker writes", self.path)

    @cached_property
    def origins(self) -> list[dict[str, Any]]:
        origins: list[dict[str, Any]] = self._file.json("origins", [dict])
        if (self.rows["source"] >= len(origins)).any():
            raise FileDamaged("An outcome has no origin", self.path)
        return origins

    @cached_property
    def _errors(self) -> dict[str, dict[str, str]]:
        if "errors" not in self._file:
            return {}
        errors: dict[str, dict[str, str]] = self._file.json("errors", dict)
        if not all(_is_error(name, error) for name, error in errors.items()):
            raise FileDamaged("An error is not what fsbroker writes", self.path)
        return errors

    @cached_property
    def keys(self) -> list[bytes]:
        data = self.rows["key"].tobytes()
        return [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]

    def value(self, index: int) -> Value:
        return self._values.read(self.rows[index])

    def fingerprint(self, index: int) -> tuple[Any, ...]:
        """As `ValueReader.fingerprint`, with how the row ended."""
        return (int(self.rows["status"][index]), *self._values.fingerprint(self.rows[index]))

    def error(self, index: int) -> dict[str, str] | None:
        return self._errors.get(str(index))

    def errors(self) -> Iterator[tuple[int, dict[str, str]]]:
        """All rows that have one."""
        for index, error in self._errors.items():
            yield int(index), error

    def add_to(self, merger: ValueMerger, table: np.ndarray) -> None:
        """Add the values, for the merged file; ``table`` is a copy of the rows."""
        merger.add(self._file, table)

    def plain_texts(self) -> bytes | None:
        """All values as one JSON array in row order, if all are plain, done, without arrays."""
        rows = self.rows
        if (
            self._file.kind != "results"  # in a pack the rows are sorted, the texts are not
            or (rows["encoding"] != Encoding.PLAIN).any()
            or (rows["status"] != Status.DONE).any()
            or rows["arrays"].any()
        ):
            return None
        return self._values.text()

    def outcome(self, index: int) -> Outcome:
        """One row with its value."""
        row = self.rows[index]
        numbers = {
            column: row[column].item()
            for column in ("row", "round", "generation", "attempt", "ranks", "status")
        }
        return Outcome(
            stem=self.files[row["file"]],
            key=row["key"].tobytes(),
            descriptor=row["descriptor"].tobytes(),
            value=self.value(index),
            error=self.error(index),
            started=float(row["started"]),
            wall=float(row["wall"]),
            cpu=float(row["cpu"]),
            peak_memory=int(row["peak_memory"]),
            **numbers,
        )

    def origin(self, index: int) -> dict[str, Any]:
        return self.origins[int(self.rows["source"][index])]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sealed(Exception):
    """Somebody took this agent for dead and closed its stream: its work is not wanted."""


class Stream:
    """An agent's own stream: the only one that it publishes in."""

    def __init__(self, files: Files, area: Area, agent: str) -> None:
        self._files = files
        self._area = area
        self.agent = agent
        self.next = 0
        self._unsure: Image | None = None

    @property
    def is_unsure(self) -> bool:
        """The last publication failed, as far as was told: it may have been done, or be yet."""
        return self._unsure is not None

    def create(self) -> None:
        """Make the directory, durably: its loss would lose every result in it."""
        self._files.mkdir(self._area.stream(self.agent))
        self._files.sync_directory(self._area.results)

    def publish(self, made: Image, *, durable: bool, first: Sequence[str] = ()) -> None:
        """Publish under the next number; ``first`` as in `publish.publish`.

        Raises:
            Sealed: the number holds a seal; nothing of this agent will be published again.
        """
        path = self._area.stream_file(self.agent, self.next)
        self._unsure = made
        if not publish(self._files, self._area, made, path, durable=durable, first=first):
            raise Sealed(self.agent)
        self._unsure = None
        self.next += 1

    def settle(self, *, durable: bool) -> bool:
        """After a publication that failed: whether it was done all the same, and now is.

        An error of the last fsync leaves the file under its name; it would be taken for
        a seal by the next publication, and its outcomes would be published twice.
        """
        if self._unsure is None:
            return False
        path = self._area.stream_file(self.agent, self.next)
        if token_of(self._files, path) != self._unsure.token:
            return False
        if durable:
            self._files.sync_directory(self._area.stream(self.agent))
        self._unsure = None
        self.next += 1
        return True

    def close(self) -> None:
        """Seal the own stream: nothing more will come."""
        seal(self._files, self._area, self.agent, by=self.agent)


def entries(files: Files, area: Area, agent: str) -> list[int]:
    """The numbers in a stream, ascending: result files and, maybe, seals."""
    try:
        names = files.names(area.stream(agent))
    except FileNotFoundError:
        return []
    return sorted(n for name in names if (n := parse_stream_file(name)) is not None)


def is_seal(files: Files, area: Area, agent: str, number: int) -> bool:
    try:
        return files.readlink(area.stream_file(agent, number)).startswith("seal ")
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return False
        raise


def is_sealed(files: Files, area: Area, agent: str) -> bool:
    numbers = entries(files, area, agent)
    return bool(numbers) and is_seal(files, area, agent, numbers[-1])


def seal(files: Files, area: Area, agent: str, *, by: str) -> int:
    """Close a stream for ever; the number of the seal.

    Durable on return, whatever the spool's setting: a seal that a power loss takes away
    would let the sleeper publish a second outcome.
    """
    directory = area.stream(agent)
    content = f"seal {by} {files.token()}"
    while True:
        numbers = entries(files, area, agent)
        top = numbers[-1] if numbers else -1
        if top >= 0 and is_seal(files, area, agent, top):
            files.sync_directory(directory)
            return top
        try:
            files.symlink(content, area.stream_file(agent, top + 1))
        except FileNotFoundError:
            # A power loss or a purge took the directory: a sleeper may still make it.
            files.mkdir(directory)
            files.sync_directory(area.results)
        except OSError:
            pass
        # Whoever won the number, the next listing tells; and that nothing stands higher.
