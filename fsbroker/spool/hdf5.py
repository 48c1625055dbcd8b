"""Building HDF5 images in memory, through h5py's low-level interface.

Only the *frame* of a file is built by HDF5: superblock, groups, attributes and datasets of
the right types and sizes, contiguous and without filters. What the datasets hold is put
in by us, at the offsets that HDF5 gave them. A frame is kept for the next file that looks
alike: a lone task's round trip has two files, and HDF5 takes a millisecond for one
when its code is cold.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from h5py import h5a, h5d, h5f, h5fd, h5p, h5s, h5t

from fsbroker.spool.files import Buffer

_LINKS = h5p.create(h5p.LINK_CREATE)
_LINKS.set_create_intermediate_group(True)
_LAYOUT = h5p.create(h5p.DATASET_CREATE)
_LAYOUT.set_alloc_time(h5d.ALLOC_TIME_EARLY)
_LAYOUT.set_fill_time(h5d.FILL_TIME_NEVER)

LARGE = 1 << 20
"""Bytes of a dataset from which on its content is written from where it stands, uncopied."""


class _Slot(NamedTuple):
    """A dataset: its name, shape and type, "S" and the length for a string."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | str


class _Frame(NamedTuple):
    """The bytes of a file without content, and where each dataset's content belongs.

    Of a large dataset nothing is kept: ``parts`` are the pieces between those.
    """

    parts: list[tuple[int, bytes]]
    offsets: dict[str, int]


def build(
    kind: str, meta: Mapping[str, Any], sections: Mapping[str, bytes | np.ndarray]
) -> tuple[list[Buffer], dict[str, int]]:
    """The image of an HDF5 file, in pieces, and the offset of each dataset in it."""
    attributes = tuple((name, _text(value)) for name, value in meta.items())
    slots = tuple(_slot(name, content) for name, content in sections.items())
    try:
        frame = _frame(kind, attributes, slots)
    except AttributeError as error:  # what h5py makes of a write that fails at the close
        raise OSError(errno.ENOMEM, "HDF5 could not lay out a file in memory") from error
    contents = {frame.offsets[name]: _bytes(content) for name, content in sections.items()}
    pieces: list[Buffer] = []
    for start, data in frame.parts:
        part = bytearray(data)
        for offset, content in contents.items():
            if start <= offset < start + len(part) and len(content) < LARGE:
                part[offset - start : offset - start + len(content)] = content
        pieces.append(part)
        after = contents.get(start + len(part))
        if after is not None:
            pieces.append(after)
    return pieces, frame.offsets


def _bytes(content: bytes | np.ndarray) -> memoryview:
    return memoryview(content).cast("B")


def _text(value: Any) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode() or b" "


def _slot(name: str, content: bytes | np.ndarray) -> _Slot:
    if not isinstance(content, bytes):
        return _Slot(name, content.shape, content.dtype)
    if name.endswith("_pickle"):
        return _Slot(name, (len(content),), np.dtype(np.uint8))
    return _Slot(name, (len(content),), "S")


@lru_cache(32)
def _frame(
    kind: str, attributes: tuple[tuple[str, bytes], ...], slots: tuple[_Slot, ...]
) -> _Frame:
    """Have HDF5 lay a file out, in memory: a full disk makes it crash.

    The file is sparse: what nobody writes takes no memory, however large a dataset is.
    """
    with open(os.memfd_create("fsbroker"), "w+b", buffering=0) as memory:
        access = h5p.create(h5p.FILE_ACCESS)
        access.set_fileobj_driver(h5fd.fileobj_driver, memory)
        # Closed is closed: somebody may hold on to a dataset (`gc.get_objects()` in a thread),
        # and HDF5 would write the rest of the file when he lets go.
        access.set_fclose_degree(h5f.CLOSE_STRONG)
        file = h5f.create(b"frame-%d" % memory.fileno(), h5f.ACC_TRUNC, fapl=access)
        _attribute(file, "kind", kind.encode())
        for name, text in attributes:
            _attribute(file, name, text)
        datasets = {slot.name: _dataset(file, slot) for slot in slots}
        offsets = {name: dataset.get_offset() for name, dataset in datasets.items()}
        sizes = {name: dataset.get_storage_size() for name, dataset in datasets.items()}
        datasets.clear()
        file.close()
        return _Frame(_parts(memory.fileno(), offsets, sizes), offsets)


def _parts(
    descriptor: int, offsets: Mapping[str, int], sizes: Mapping[str, int]
) -> list[tuple[int, bytes]]:
    """The file without its large datasets."""
    parts, start = [], 0
    large = sorted((offsets[name], size) for name, size in sizes.items() if size >= LARGE)
    for offset, size in [*large, (os.fstat(descriptor).st_size, 0)]:
        parts.append((start, os.pread(descriptor, offset - start, start)))
        start = offset + size
    return parts


def _dataset(file: h5f.FileID, slot: _Slot) -> h5d.DatasetID:
    if isinstance(slot.dtype, str):
        kind, space = _string(slot.shape[0]), h5s.create(h5s.SCALAR)
    else:
        kind, space = _numeric(slot.dtype), h5s.create_simple(slot.shape)
    return h5d.create(file, slot.name.encode(), kind, space, dcpl=_LAYOUT, lcpl=_LINKS)


def _attribute(file: h5f.FileID, name: str, text: bytes) -> None:
    kind = _string(len(text))
    attribute = h5a.create(file, name.encode(), kind, h5s.create(h5s.SCALAR))
    attribute.write(np.frombuffer(text, f"S{len(text)}").reshape(()), kind)


def _string(length: int) -> h5t.TypeID:
    kind = h5t.C_S1.copy()
    kind.set_size(length)
    kind.set_strpad(h5t.STR_NULLPAD)
    kind.set_cset(h5t.CSET_UTF8)
    return kind


@lru_cache(64)
def _numeric(dtype: np.dtype[Any]) -> h5t.TypeID:
    return h5t.py_create(dtype)
