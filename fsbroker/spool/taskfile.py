"""Task files: many tasks of one shape, priority and environment; written once.

Sections (docs/format.md):

    rows           table: one row a task
    dependencies   table: the futures in the arguments, row by row
    selectors      JSON array: which part of a dependency's value is wanted
    functions      JSON array: name, digest and source of each distinct function; the preset last
    functions_pickle, arguments, arguments_pickle, arrays/<dtype>, array_index
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fsbroker.errors import FileDamaged
from fsbroker.spool import forms
from fsbroker.spool.container import Container, Image, image
from fsbroker.spool.files import Files, OpenFile
from fsbroker.spool.layout import Stem, parse_stem
from fsbroker.spool.values import COLUMNS, ValueReader, ValueWriter
from fsbroker.task import KEY_BYTES, ArrayRef, Dependency, Encoding, Value

ROWS = np.dtype(
    [
        ("key", f"V{KEY_BYTES}"),
        ("descriptor", f"V{KEY_BYTES}"),
        ("round", "u2"),
        ("function", "u2"),
        ("ranks", "u2"),
        ("retries", "u1"),
        ("time_limit", "f8"),
        ("first_dependency", "u4"),
        ("dependencies", "u2"),
        *COLUMNS,
    ]
)
"""One task. ``time_limit`` in seconds, 0 for none; ``retries``: further attempts allowed."""

DEPENDENCIES = np.dtype([("key", f"V{KEY_BYTES}"), ("row", "i4"), ("selector", "i4")])
"""One dependency. ``row``: its row in the same file, or -1; ``selector``: index, or -1."""


PUT_OFF = ("put_off", "put_off_for")
"""Meta of rows that were put off: the agent that holds them from the first record on; for whom."""


def _text_or_none(value: Any) -> bool:
    return value is None or type(value) is str


def _index_or_name(value: Any) -> bool:
    return type(value) in (int, str)


_FUNCTIONS = [
    {
        "name": str,
        "digest": forms.digest,
        "source": str,
        "offset": forms.natural,
        "length": forms.natural,
    }
]
_TEXTS = (
    *("tag", "user", "host", "python", "cloudpickle", "cwd", "error_log_file", "queue"),
    *PUT_OFF,
)
_META = {"?path": [str]} | {f"?{name}": _text_or_none for name in _TEXTS}


class FunctionEntry(NamedTuple):
    """A function as it stands in a task file."""

    digest: bytes
    name: str
    source: str
    pickle: bytes


class Arguments(NamedTuple):
    """The arguments of one task: a `task.Payload` whose arrays are in their stored form."""

    encoding: int
    data: bytes
    arrays: tuple[ArrayRef, ...] = ()
    dependencies: tuple[Dependency, ...] = ()


class TaskRow(NamedTuple):
    """One task on its way into a task file."""

    key: bytes
    descriptor: bytes
    arguments: Arguments
    function: FunctionEntry
    round: int = 0


class Limits(NamedTuple):
    """What holds for each task of a file: MPI ranks, seconds (0: none), further attempts."""

    ranks: int = 1
    time_limit: float = 0.0
    retries: int = 2


def build(
    token: str,
    rows: Sequence[TaskRow],
    limits: Limits,
    meta: Mapping[str, Any],
    preset: FunctionEntry | None = None,
) -> Image:
    """The image of a task file with these rows, in this order.

    Args:
        preset: the function that a worker calls before the first of them.
    """
    keys, descriptors, arguments, functions, rounds = zip(*rows, strict=True)
    encodings, texts, arrays, dependencies = zip(*arguments, strict=True)
    table = np.zeros(len(rows), ROWS)
    table["key"] = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
    table["descriptor"] = np.frombuffer(b"".join(descriptors), f"V{KEY_BYTES}")
    table["round"] = rounds
    table["ranks"], table["time_limit"], table["retries"] = limits
    sections: dict[str, bytes | np.ndarray] = {"rows": table}
    sections |= _functions(functions, table, preset)
    if preset is not None:
        meta = {**meta, "preset": preset.digest.hex()}
    sections |= _dependencies(keys, dependencies, table)
    writer = ValueWriter("arguments")
    if set(encodings) == {Encoding.PLAIN} and not any(arrays):
        writer.add_texts(texts)
    else:
        for value in zip(encodings, texts, arrays, strict=True):
            writer.add(Value(*value))
    writer.fill(table)
    sections |= writer.sections()
    return image(token, "tasks", meta, sections)


def _functions(
    functions: Sequence[FunctionEntry], table: np.ndarray, preset: FunctionEntry | None
) -> dict[str, bytes | np.ndarray]:
    distinct = {id(function): function for function in functions}
    numbers = {same: number for number, same in enumerate(distinct)}
    if len(distinct) > 1:
        table["function"] = [numbers[id(function)] for function in functions]
    entries, pickles, offset = [], [], 0
    for function in (*distinct.values(), *([preset] if preset else ())):
        entries.append(
            {
                "name": function.name,
                "digest": function.digest.hex(),
                "source": function.source,
                "offset": offset,
                "length": len(function.pickle),
            }
        )
        pickles.append(function.pickle)
        offset += len(function.pickle)
    return {"functions": json.dumps(entries).encode(), "functions_pickle": b"".join(pickles)}


def _dependencies(
    keys: Sequence[bytes], dependencies: Sequence[tuple[Dependency, ...]], table: np.ndarray
) -> dict[str, bytes | np.ndarray]:
    if not any(dependencies):
        return {}
    rows = {key: row for row, key in enumerate(keys)}
    entries: list[tuple[bytes, int, int]] = []
    selectors: list[Sequence[int | str]] = []
    for row, wanted in enumerate(dependencies):
        table["first_dependency"][row] = len(entries)
        table["dependencies"][row] = len(wanted)
        for key, selector in wanted:
            entries.append((key, rows.get(key, -1), len(selectors) if selector else -1))
            if selector:
                selectors.append(selector)
    found: dict[str, bytes | np.ndarray] = {"dependencies": np.array(entries, DEPENDENCIES)}
    if selectors:
        found["selectors"] = json.dumps(selectors).encode()
    return found


class TaskFile:
    """A task file, opened for reading.

    Attributes:
        stem: its name without the extension. name: what that tells.
        rows: table of `ROWS`.
        meta: as given to `build`.
    """

    def __init__(self, files: Files, path: str, stem: str, file: OpenFile | None = None) -> None:
        self._file = Container(files, path, "tasks", file=file)
        self.stem = stem
        name = parse_stem(stem)
        if name is None:
            raise FileDamaged("The name is not that of a task file", self._file.path)
        self.name: Stem = name
        self.meta = self._file.meta
        self.rows = self._file.table("rows", ROWS)
        self._check()
        self._arguments = ValueReader(self._file, "arguments")

    def _check(self) -> None:
        """See that what rows say of themselves, and of one another, can be."""
        rows = self.rows
        if len(rows) != self.name.rows:
            raise FileDamaged("Another number of rows than its name says", self._file.path)
        if (
            not forms.fits(self.meta, _META)
            or not (np.abs(rows["time_limit"]) < forms.FAR).all()
            or not rows["ranks"].all()
        ):
            raise self._wrong("A row")

    def _wrong(self, what: str) -> FileDamaged:
        return FileDamaged(f"{what} is not what fsbroker writes", self._file.path)

    @cached_property
    def dependency_table(self) -> np.ndarray:
        table = self._file.table("dependencies", DEPENDENCIES)
        ends = self.rows["first_dependency"].astype("u8") + self.rows["dependencies"]
        rows, selectors = table["row"], table["selector"]
        if (
            ends[self.rows["dependencies"] > 0].max(initial=0) > len(table)
            or ((rows < -1) | (rows >= len(self.rows))).any()
            or ((selectors < -1) | (selectors >= len(self._selectors))).any()
        ):
            raise self._wrong("A dependency")
        return table

    @cached_property
    def _selectors(self) -> list[list[int | str]]:
        if "selectors" not in self._file:
            return []
        selectors: list[list[int | str]] = self._file.json("selectors", [[_index_or_name]])
        return selectors

    @cached_property
    def _function_list(self) -> list[dict[str, Any]]:
        functions: list[dict[str, Any]] = self._file.json("functions", _FUNCTIONS)
        if self.rows["function"].max(initial=0) >= len(functions):
            raise self._wrong("A row's function")
        return functions

    @cached_property
    def _function_pickles(self) -> bytes:
        return self._file.read("functions_pickle")

    @cached_property
    def keys(self) -> list[bytes]:
        """The key of each row."""
        data = self.rows["key"].tobytes()
        return [data[at : at + KEY_BYTES] for at in range(0, len(data), KEY_BYTES)]

    def key(self, row: int) -> bytes:
        key: bytes = self.rows["key"][row].tobytes()
        return key

    def function(self, row: int) -> FunctionEntry:
        """The function of a row."""
        return self._function(self._function_list[self.rows["function"][row]])

    @cached_property
    def preset(self) -> FunctionEntry | None:
        """What a worker calls before the first row; older files have none."""
        return self._function(self._function_list[-1]) if self.meta.get("preset") else None

    def _function(self, entry: dict[str, Any]) -> FunctionEntry:
        pickle = self._function_pickles[entry["offset"] : entry["offset"] + entry["length"]]
        return FunctionEntry(bytes.fromhex(entry["digest"]), entry["name"], entry["source"], pickle)

    def function_digest(self, row: int) -> bytes:
        return self._function_digests[int(self.rows["function"][row])]

    @cached_property
    def _function_digests(self) -> list[bytes]:
        return [bytes.fromhex(entry["digest"]) for entry in self._function_list]

    def function_name(self, row: int) -> str:
        name: str = self._function_list[self.rows["function"][row]]["name"]
        return name

    def arguments(self, row: int) -> Value:
        """The stored arguments of a row."""
        return self._arguments.read(self.rows[row])

    @cached_property
    def simple(self) -> np.ndarray:
        """Which rows have nothing but a plain list of positional arguments, and one rank."""
        rows = self.rows
        found: np.ndarray = (
            (rows["encoding"] == Encoding.PLAIN)
            & (rows["arrays"] == 0)
            & (rows["dependencies"] == 0)
            & (rows["ranks"] == 1)
        )
        text = np.frombuffer(self._text, np.uint8)
        ends = rows["offset"][found].astype("f8") + rows["length"][found]
        if ends.max(initial=0) > len(text) or (rows["offset"][found] >= len(text)).any():
            raise self._wrong("The place of a row's arguments")
        found[found] = text[rows["offset"][found]] == ord("[")
        return found

    def plain_text(self, first: int, end: int) -> bytes:
        """Arguments of consecutive simple rows, as one JSON array."""
        begin = int(self.rows["offset"][first])
        finish = int(self.rows["offset"][end - 1]) + int(self.rows["length"][end - 1])
        return b"[" + self._text[begin:finish] + b"]"

    @cached_property
    def _text(self) -> bytes:
        return self._arguments.text()

    def dependencies(self, row: int) -> list[tuple[Dependency, int]]:
        """The dependencies of a row: each with its row in this file, or -1."""
        first, count = self.rows["first_dependency"][row], self.rows["dependencies"][row]
        found = []
        for key, own_row, selector in self.dependency_table[first : first + count]:
            selected = tuple(self._selectors[selector]) if selector >= 0 else ()
            found.append((Dependency(key.tobytes(), selected), int(own_row)))
        return found

    def close(self) -> None:
        self._file.close()
