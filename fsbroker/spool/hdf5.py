"""Building HDF5 images in memory, through h5py's low-level interface.

A file of a few datasets and attributes takes 0.3 ms this way, and 0.7 ms through
`h5py.File`: a lone task's round trip has two of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5f, h5p, h5s, h5t

from fsbroker.spool.files import Buffer

_LINKS = h5p.create(h5p.LINK_CREATE)
_LINKS.set_create_intermediate_group(True)


def build(
    kind: str, meta: Mapping[str, Any], sections: Mapping[str, bytes | np.ndarray]
) -> tuple[list[Buffer], dict[str, int]]:
    """The image of an HDF5 file, in pieces, and the offset of each dataset in it."""
    total = sum(memoryview(content).nbytes for content in sections.values())
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(total + (64 << 10), False)
    # HDF5 refuses a name that another thread has open, though nothing is on disk.
    file = h5f.create(b"image-%d" % threading.get_ident(), h5f.ACC_TRUNC, fapl=access)
    _attribute(file, "kind", kind)
    for name, value in meta.items():
        _attribute(file, name, value)
    offsets = {}
    for name, content in sections.items():
        offsets[name] = _dataset(file, name, content)
    h5f.flush(file)
    body = file.get_file_image()
    file.close()
    return [body], offsets


def _dataset(file: h5f.FileID, name: str, content: bytes | np.ndarray) -> int:
    if isinstance(content, bytes) and name.endswith("_pickle"):
        content = np.frombuffer(content, np.uint8)
    if isinstance(content, bytes):
        kind, space = _string(len(content)), h5s.create(h5s.SCALAR)
        content = np.frombuffer(content, f"S{len(content)}").reshape(())
    else:
        kind, space = _numeric(content.dtype), h5s.create_simple(content.shape)
    dataset = h5d.create(file, name.encode(), kind, space, lcpl=_LINKS)
    dataset.write(h5s.ALL, h5s.ALL, content, kind)
    offset: int = dataset.get_offset()
    return offset


def _attribute(file: h5f.FileID, name: str, value: Any) -> None:
    data = (value if isinstance(value, str) else json.dumps(value)).encode() or b" "
    kind = _string(len(data))
    attribute = h5a.create(file, name.encode(), kind, h5s.create(h5s.SCALAR))
    attribute.write(np.frombuffer(data, f"S{len(data)}").reshape(()), kind)


def _string(length: int) -> h5t.TypeID:
    kind = h5t.C_S1.copy()
    kind.set_size(length)
    kind.set_strpad(h5t.STR_NULLPAD)
    kind.set_cset(h5t.CSET_UTF8)
    return kind


@lru_cache(64)
def _numeric(dtype: np.dtype[Any]) -> h5t.TypeID:
    return h5t.py_create(dtype)
