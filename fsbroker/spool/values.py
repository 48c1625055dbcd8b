"""How arguments and values stand in a file: texts, pickles and arrays.

    <name>          JSON array of all plain payloads, one to a line
    <name>_pickle   all pickles, one behind the other
    arrays/<dtype>  all arrays of one dtype, one behind the other
    array_index     for each array: dtype, first byte, shape, order, checksum, blob

A table row points to its payload by offset, length and checksum, and to its arrays by
the first of them and their number, so each is read by itself.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from fsbroker import plain
from fsbroker.errors import FileDamaged
from fsbroker.spool import forms
from fsbroker.spool.container import Container
from fsbroker.spool.layout import is_blob
from fsbroker.task import ArrayRef, Blob, Encoding, Value

if TYPE_CHECKING:
    import numpy as np

SEPARATOR = b",\n"

COLUMNS = [
    ("encoding", "u1"),
    ("offset", "u8"),
    ("length", "u8"),
    ("checksum", "u4"),
    ("first_array", "u4"),
    ("arrays", "u2"),
]
"""The columns of a table that point to a payload."""


class ArrayEntry(NamedTuple):
    """One array in `array_index`. ``start``: its first byte; ``blob``: "" if it stands here."""

    dtype: str
    start: int
    shape: tuple[int, ...]
    order: str
    checksum: int
    blob: str

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.dtype[2:]) * math.prod(self.shape)


def array_index(file: Container) -> list[ArrayEntry]:
    """The arrays of a file.

    Raises:
        FileDamaged: there is one that cannot be an array, or is no blob.
    """
    if "array_index" not in file:
        return []
    found = file.json("array_index", [_ENTRY])
    return [ArrayEntry(dtype, start, tuple(shape), *rest) for dtype, start, shape, *rest in found]


def _is_order(text: Any) -> bool:
    return text in ("C", "F")


def _is_blob_or_none(name: Any) -> bool:
    return type(name) is str and (not name or is_blob(name))


_ENTRY = (
    plain.is_array_type,
    forms.natural,
    [forms.natural],
    _is_order,
    forms.natural,
    _is_blob_or_none,
)


class ValueWriter:
    """Gathers payloads, and gives the sections and columns that hold them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._texts: list[bytes] = []
        self._text_length = 1
        self._pickles: list[bytes] = []
        self._pickle_length = 0
        self._pools: dict[str, list[bytes]] = {}
        self._pool_lengths: dict[str, int] = {}
        self._index: list[list[Any]] = []
        self.columns: list[tuple[int, int, int, int, int, int]] = []

    def add(self, value: Value) -> None:
        """Add the payload of the next row."""
        encoding, data, arrays = value
        first = len(self._index)
        for array in arrays:
            self._add_array(array)
        if encoding == Encoding.PICKLE:
            offset = self._pickle_length
            self._pickles.append(data)
            self._pickle_length += len(data)
        else:
            offset = self._text_length
            self._texts.append(data)
            self._text_length += len(data) + len(SEPARATOR)
        self.columns.append((encoding, offset, len(data), zlib.crc32(data), first, len(arrays)))

    def add_texts(self, texts: Sequence[bytes]) -> None:
        """Add plain payloads without arrays, for as many rows."""
        lengths = list(map(len, texts))
        steps = map(len(SEPARATOR).__add__, lengths)
        offsets = list(accumulate(steps, initial=self._text_length))
        self._text_length = offsets.pop()
        self._texts.extend(texts)
        first = len(self._index)
        rows = len(lengths)
        self.columns.extend(
            zip(
                (int(Encoding.PLAIN),) * rows,
                offsets,
                lengths,
                map(zlib.crc32, texts),
                (first,) * rows,
                (0,) * rows,
                strict=True,
            )
        )

    def _add_array(self, array: ArrayRef) -> None:
        dtype, shape, order, data = array
        if isinstance(data, Blob):
            self._index.append([dtype, 0, shape, order, 0, data.name])
            return
        start = self._pool_lengths.get(dtype, 0)
        self._pools.setdefault(dtype, []).append(data)
        self._pool_lengths[dtype] = start + len(data)
        self._index.append([dtype, start, shape, order, zlib.crc32(data), ""])

    def sections(self) -> dict[str, bytes | np.ndarray]:
        """The sections, to be written beside the table."""
        texts = [b"[" + SEPARATOR.join(self._texts) + b"]"] if self._texts else []
        return _sections(self._name, texts, self._pickles, self._index, self._pools)

    def fill(self, table: np.ndarray) -> None:
        """Write the columns into the table's rows, which stand in the order of `add`."""
        import numpy as np

        if self.columns:
            columns = np.array(self.columns, dtype=np.uint64).T
            for (name, _), column in zip(COLUMNS, columns, strict=True):
                table[name] = column


class ValueMerger:
    """Puts the payloads of several files behind one another, without looking at them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._texts: list[bytes] = []
        self._text_length = 0
        self._pickles: list[bytes] = []
        self._pickle_length = 0
        self._pools: dict[str, list[bytes]] = {}
        self._pool_lengths: dict[str, int] = {}
        self._index: list[list[Any]] = []

    def add(self, file: Container, table: np.ndarray) -> None:
        """Add all payloads of a file; the columns of its table are shifted in place.

        Raises:
            FileDamaged, FileRefused: it cannot be merged; nothing of it was added.
        """
        is_text = table["encoding"] == Encoding.PLAIN
        text, pickles = file.read(self._name), file.read(f"{self._name}_pickle")
        index, pools = array_index(file), _pools(file)
        table["offset"] += (is_text * self._text_length + ~is_text * self._pickle_length).astype(
            "u8"
        )
        table["first_array"] += len(self._index)
        if text:
            self._texts.append(text[1:-1])
            self._text_length += len(text) - 2 + len(SEPARATOR)
        self._pickles.append(pickles)
        self._pickle_length += len(pickles)
        for dtype, start, *rest in index:
            self._index.append([dtype, start + self._pool_lengths.get(dtype, 0), *rest])
        for dtype, data in pools.items():
            self._pools.setdefault(dtype, []).append(data)
            self._pool_lengths[dtype] = self._pool_lengths.get(dtype, 0) + len(data)

    def sections(self) -> dict[str, bytes | np.ndarray]:
        texts = [b"[" + SEPARATOR.join(self._texts) + b"]"] if self._texts else []
        return _sections(self._name, texts, self._pickles, self._index, self._pools)


def _pools(file: Container) -> dict[str, bytes]:
    """All arrays that stand in a file, by dtype."""
    found = {}
    for section in file.sections:
        kind, _, dtype = section.partition("/")
        if kind == "arrays":
            found[dtype] = file.read(section)
            if not plain.is_array_type(dtype) or len(found[dtype]) % int(dtype[2:]):
                raise FileDamaged(f"There are no such arrays: {section}", file.path)
    return found


def _sections(
    name: str,
    texts: Sequence[bytes],
    pickles: Sequence[bytes],
    index: Sequence[Sequence[Any]],
    pools: dict[str, list[bytes]],
) -> dict[str, bytes | np.ndarray]:
    import numpy as np

    found: dict[str, bytes | np.ndarray] = {name: b"".join(texts)}
    found[f"{name}_pickle"] = b"".join(pickles)
    if index:
        found["array_index"] = json.dumps(index, separators=(",", ":")).encode()
        for dtype, parts in pools.items():
            found[f"arrays/{dtype}"] = np.frombuffer(b"".join(parts), np.dtype(dtype))
    return found


class ValueReader:
    """Reads payloads from a file that `ValueWriter` filled."""

    def __init__(self, file: Container, name: str) -> None:
        self._file = file
        self._name = name

    @cached_property
    def _index(self) -> list[ArrayEntry]:
        return array_index(self._file)

    def read(self, row: Any) -> Value:
        """The payload that a table row points to."""
        section = self._name if row["encoding"] == Encoding.PLAIN else f"{self._name}_pickle"
        data = self._file.read_part(
            section, int(row["offset"]), int(row["length"]), int(row["checksum"])
        )
        arrays = tuple(map(self._array, self._entries(row)))
        return Value(int(row["encoding"]), data, arrays)

    def _entries(self, row: Any) -> list[ArrayEntry]:
        """The arrays that a table row points to."""
        first, count = int(row["first_array"]), int(row["arrays"])
        entries = self._index[first : first + count] if count else []
        stored = sum(entry.size for entry in entries if not entry.blob)
        there = sum(section.length for section in self._file.sections.values())
        if len(entries) < count or stored > there:  # more than there is: one of them many times
            raise FileDamaged("A row points to an array that is not there", self._file.path)
        return entries

    def fingerprint(self, row: Any) -> tuple[Any, ...]:
        """What two stored values differ in if they differ, without reading them: checksums.

        Of arrays: dtype, shape, order, checksum, and the name of their blob.
        """
        shown = [
            (dtype, *shape, order, crc, blob)
            for dtype, _, shape, order, crc, blob in self._entries(row)
        ]
        return (int(row["encoding"]), int(row["length"]), int(row["checksum"]), *shown)

    def text(self) -> bytes:
        """All plain payloads, as one JSON array in the order of their rows."""
        return self._file.read(self._name) or b"[]"

    def _array(self, entry: ArrayEntry) -> ArrayRef:
        if entry.blob:
            return ArrayRef(entry.dtype, entry.shape, entry.order, Blob(entry.blob))
        data = self._file.read_part(
            f"arrays/{entry.dtype}", entry.start, entry.size, entry.checksum
        )
        return ArrayRef(entry.dtype, entry.shape, entry.order, data)
