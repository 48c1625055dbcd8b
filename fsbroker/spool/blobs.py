"""Arrays of 1 MB and more: one file each, so that they are written and read without copies.

A blob is named by the digest of its content where it is an argument, so that tasks with the
same array share it, and at random where it is a value. It is published before the file
that refers to it; one that nothing refers to is left over from a crash and found by gc.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool.container import LARGEST_READ, Container, image
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area
from fsbroker.spool.publish import publish
from fsbroker.task import ArrayRef, Blob

if TYPE_CHECKING:
    import numpy as np

SMALLEST = 1 << 20
"""Bytes from which on an array becomes a blob."""


def write_array(
    files: Files, area: Area, array: np.ndarray, *, durable: bool, shared: bool = True
) -> Blob:
    """Publish an array of any shape, in C or F order.

    Args:
        shared: name it by the digest of its content, so that tasks with the same array share
            it; otherwise at random, which costs no second look at every byte.
    """
    content = array if array.flags.c_contiguous else array.T
    order = "C" if content is array else "F"
    if shared:
        name = f"{_digest(files, content, order)}.h5"
    else:
        name = f"{files.token()}{files.token()}{files.token()[:8]}.h5"
    made = image(files.token(), "blob", {"order": order}, {"array": content})
    path = area.blob(name)
    while not publish(files, area, made, path, durable=durable):
        # The same array is there, and nothing may refer to it any more: gc spares what is
        # young. If gc has just moved it away, it is published anew.
        with suppress(FileNotFoundError):
            files.touch(path)
            break
    return Blob(name)


def _digest(files: Files, content: np.ndarray, order: str) -> str:
    from hashlib import blake2b

    # A file that the user has not signed is never in the way of one that he signs.
    key = files.keyring.public.encode() if files.keyring else b""
    kind = f"{content.dtype.str} {content.shape} {order}".encode()
    digest = blake2b(kind, digest_size=20, key=key)
    digest.update(memoryview(content).cast("B"))
    return digest.hexdigest()


def read_arrays(files: Files, area: Area, refs: Sequence[ArrayRef]) -> list[np.ndarray]:
    """All arrays of one value.

    Raises:
        FileRefused: together they do not fit in memory here (a small file can name one many times).
    """
    total = sum(map(size_of, refs))
    if total > LARGEST_READ:
        raise FileRefused(f"Its arrays are {total} bytes, more than fit in memory", area.blobs)
    return [read_array(files, area, ref) for ref in refs]


def read_array(files: Files, area: Area, ref: ArrayRef) -> np.ndarray:
    """The array, writable and in its own memory."""
    import numpy as np

    shape = ref.shape if ref.order == "C" else ref.shape[::-1]
    if isinstance(ref.data, Blob):
        content = _read_blob(files, area.blob(ref.data.name), shape, np.dtype(ref.dtype))
    else:
        content = np.frombuffer(bytearray(ref.data), np.dtype(ref.dtype)).reshape(shape)
    return content if ref.order == "C" else content.T


def size_of(ref: ArrayRef) -> int:
    """Bytes of an array."""
    import numpy as np

    return np.dtype(ref.dtype).itemsize * math.prod(ref.shape)


def _read_blob(files: Files, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    import numpy as np

    size = dtype.itemsize * math.prod(shape)
    with Container(files, path, "blob") as file:
        if file.length("array") != size:
            raise FileDamaged("The blob has another size than its row says", file.path)
        try:
            content = np.empty(shape, dtype)
        except (MemoryError, ValueError) as error:
            raise FileRefused(f"An array of {size} bytes cannot be had here", file.path) from error
        file.fill("array", memoryview(content).cast("B"))
    return content


def store(
    files: Files, area: Area, array: np.ndarray, *, durable: bool, shared: bool = True
) -> ArrayRef:
    """The stored form of an array: its bytes if it is small, else a blob."""
    order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
    if order == "C":
        import numpy as np

        array = np.ascontiguousarray(array).reshape(array.shape)
    if array.nbytes >= SMALLEST:
        data: bytes | Blob = write_array(files, area, array, durable=durable, shared=shared)
    else:
        data = array.tobytes(order)  # type: ignore[arg-type]
    return ArrayRef(array.dtype.str, array.shape, order, data)
