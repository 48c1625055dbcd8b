"""Damage that passes the checksums: what a hostile writer would write.

A file is taken apart (header, sections, tables, JSON), something inside is changed, and it is
put together again with right checksums. Bytes that are nothing of that sort are changed as bytes.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np

from fsbroker.spool import streams, taskfile
from fsbroker.task import Encoding

TABLES = {
    ("tasks", "rows"): taskfile.ROWS,
    ("tasks", "dependencies"): taskfile.DEPENDENCIES,
    ("results", "rows"): streams.RESULTS,
    ("pack", "rows"): streams.RESULTS,
}
NUMBERS = (-1, 0, 1, 2, 255, 256, 4096, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1)
WORDS = (
    *(
        "",
        ".",
        "..",
        "../../../etc/passwd",
        "/dev/zero",
        "a\nb",
        "\0",
        "\x1b[2J",
        "\udcff",
        "0" * 400,
    ),
    *("O", "|O", "<f8", "<M8[ns]", "|V0", "<U999999999", "f8,i4", "(9,9)f8", "<c16", ">i2", "|b1"),
    *("C", "F", "tasks", "results", "pack", "archive", "blob", "array", "value", "tuple", "dict"),
    *("bytes", "complex", "scalar", "int", "int64", "rows", "$", "n", "v", "intent", "claim"),
)
TEXTS = (
    *(b"null", b"true", b"-1", b"1e999", b"NaN", b'""', b"[]", b"{}", b"1e400", b'"\\ud800"'),
    *(b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b'{"$":"array","n":0}', b'{"$":"value","n":1}'),
    *(b'{"$":"tuple","v":' * 2000, b'{"$":"scalar","dtype":"float64","v":1}', b" 0-4095,0-4095"),
    *(b"&a [*a]", b"!!python/object/apply:os.system [x]", b"!!binary aaaa", b"1:" * 500, b"<<: 1"),
)


LARGEST = 1 << 16
"""Bytes of an input."""

_ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What taking apart a file comes to that mutations have broken already."""


def mutate(data: bytes, rng: Random) -> bytes:
    """Something like it."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _changed(data, rng)[:LARGEST]
    return data


def _changed(data: bytes, rng: Random) -> bytes:
    if data.startswith(b"fsbroker ") and rng.random() < 0.95:
        with suppress(*_ODD):
            return _container(data, rng)
    if data[:1] in b"[{" and rng.random() < 0.6:
        with suppress(*_ODD):
            return json.dumps(_json(json.loads(data), rng)).encode()
    return _bytes(data, rng)


# -- bytes -------------------------------------------------------------------------------


def _bytes(data: bytes, rng: Random) -> bytes:
    at, to = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    to = min(to, at + rng.choice((0, 1, 4, 64, 4096)))
    new = rng.choice(
        (
            b"",
            rng.randbytes(rng.randint(1, 8)),
            rng.choice(TEXTS),
            rng.choice(WORDS).encode(errors="surrogateescape"),
            str(rng.choice(NUMBERS)).encode(),
            data[at:to] * rng.choice((2, 50)),
            bytes([byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]]),
        )
    )
    return data[:at] + new + data[to:]


# -- JSON --------------------------------------------------------------------------------


def _json(value: Any, rng: Random) -> Any:
    """With one node replaced, taken away, doubled or put elsewhere."""
    inner = isinstance(value, (list, dict)) and len(value) > 0
    if not inner or rng.random() < 0.15:
        return _hostile(value, rng)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(keys)
    choice = rng.random()
    if choice < 0.7:
        value[key] = _json(value[key], rng)
    elif choice < 0.8:
        del value[key]
    elif isinstance(value, dict):
        value[rng.choice(WORDS)] = value[key]
    else:
        value.extend([value[key]] * rng.choice((1, 3, 200)))
    return value


def _hostile(value: Any, rng: Random) -> Any:
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-1, 1, 8, -8, 4096, 2**32, 2**62))
    return rng.choice(
        (
            rng.choice(NUMBERS),
            -rng.choice(NUMBERS),
            rng.choice(WORDS),
            rng.choice((None, True, False, 1.5, float("nan"), float("inf"), 2**70, 10**400)),
            [],
            {},
            [value],
            {"a": value},
            [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 40)))],
        )
    )


# -- containers --------------------------------------------------------------------------


def taken_apart(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The header and the content of each section."""
    line, _, rest = data.partition(b"\n")
    header = json.loads(rest[: int(line.split()[3], 16)])
    contents = {
        name: data[offset : offset + length]
        for name, (offset, length, _) in header["sections"].items()
    }
    return header, contents


def put_together(header: dict[str, Any], contents: dict[str, bytes], rng: Random | None) -> bytes:
    """A file with these sections; with ``rng`` something in its header is not right."""
    size, body = 2048, b"".join(contents.values())
    while True:
        at, table = size, {}
        for name, content in contents.items():
            table[name] = [at, len(content), zlib.crc32(content)]
            at += len(content)
        text = json.dumps({**header, "sections": table}, separators=(",", ":")).encode()
        if len(text) + 100 < size:
            break
        size *= 2
    if rng is not None:
        text = json.dumps(_json(json.loads(text), rng), separators=(",", ":")).encode()
    length, checksum = len(text), zlib.crc32(text)
    head = b"fsbroker 1 %d %08x %08x\n" % (size, length, checksum)
    return (head + text).ljust(size) + body


def _container(data: bytes, rng: Random) -> bytes:
    header, contents = taken_apart(data)
    choice = rng.random()
    if choice < 0.25 or not contents:
        return put_together(header, contents, rng)
    name = rng.choice(list(contents))
    if choice < 0.3:
        contents[rng.choice((*WORDS, *contents))] = contents[name]
    else:
        contents[name] = _section(header["kind"], name, contents[name], rng)
    if rng.random() < 0.9:
        _correct(header["kind"], contents)
    return put_together(header, contents, None)


def _section(kind: str, name: str, content: bytes, rng: Random) -> bytes:
    dtype = TABLES.get((kind, name))
    if dtype is not None and rng.random() < 0.9 and len(content) >= dtype.itemsize:
        return _table(
            np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype), rng
        )
    return _changed(content, rng)


def _table(rows: np.ndarray, rng: Random) -> bytes:
    if rng.random() < 0.1:
        return rows.repeat(rng.choice((0, 2, 5000))).tobytes()
    rows = rows.copy()
    row, column = rng.randrange(len(rows)), rng.choice(rows.dtype.names)
    size = rows.dtype[column].itemsize
    old = int.from_bytes(rows[column][row].tobytes(), "little")
    new = rng.choice((rng.choice(NUMBERS), old + 1, old - 1, rng.getrandbits(64)))
    if size == 8 and rows.dtype[column].kind == "f":
        rows[column][row] = rng.choice((np.nan, np.inf, -1.0, 1e300, 1e-300))
    else:
        raw = (new % 2 ** (8 * size)).to_bytes(size, "little")
        rows[column][row] = np.frombuffer(raw, rows.dtype[column])[0]
    return rows.tobytes()


def _correct(kind: str, contents: dict[str, bytes]) -> None:
    """Right checksums for what rows and the index of arrays point to."""
    name = "arguments" if kind == "tasks" else "values"
    dtype = TABLES.get((kind, "rows"))
    if dtype is None or len(contents.get("rows", b"1")) % dtype.itemsize:
        return
    rows = np.frombuffer(contents["rows"], dtype).copy()
    for row in rows[:64]:
        section = name if row["encoding"] == Encoding.PLAIN else f"{name}_pickle"
        offset, length = int(row["offset"]), int(row["length"])
        row["checksum"] = zlib.crc32(contents.get(section, b"")[offset : offset + length])
    contents["rows"] = rows.tobytes()
    with suppress(*_ODD):
        index = json.loads(contents["array_index"])
        for entry in index:
            with suppress(*_ODD):
                data = contents[f"arrays/{entry[0]}"]
                length = int(entry[0][2:])
                for extent in entry[2]:
                    length *= extent
                entry[4] = zlib.crc32(data[entry[1] : entry[1] + length])
        contents["array_index"] = json.dumps(index).encode()
