"""Arrays and frames, by values and types: strides, byte order and blocks tell of their history.

Nothing here imports numpy or pandas before an object of theirs is at hand.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from fsbroker.keys.stream import Stream

if TYPE_CHECKING:
    import numpy as np


def write(stream: Stream, obj: Any) -> bool:
    """Write an object of numpy or pandas; False: it is none, or one to be taken apart."""
    kind = type(obj)
    numpy = sys.modules.get("numpy")
    if numpy is None or not _is_numeric_library(kind):
        return False
    if isinstance(obj, numpy.ndarray):
        _array_like(stream, obj)
    elif isinstance(obj, numpy.generic):
        _array(stream, numpy.asarray(obj), b"scalar")
    elif _library_of(kind) == "pandas":
        return _pandas(stream, obj)
    else:
        return False
    return True


def _is_numeric_library(kind: type) -> bool:
    return any(_library_of(base) in ("numpy", "pandas") for base in kind.__mro__)


def _library_of(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


# -- numpy -------------------------------------------------------------------------------


def _array_like(stream: Stream, obj: Any) -> None:
    import numpy as np

    kind = type(obj)
    if kind is not np.ndarray and kind is not np.memmap:
        stream.value(kind)
        stream.mapping({k: v for k, v in vars(obj).items() if v is not obj})
    _array(stream, np.asarray(obj), b"array")


def _array(stream: Stream, obj: np.ndarray, tag: bytes) -> None:
    """Shape, type and the bytes of the values in C order, little endian."""
    dtype = obj.dtype
    stream.put_text(tag, str(obj.shape))
    if dtype.names is not None:  # by field: the padding between them is undefined
        for name in dtype.names:
            stream.put_text(b"field", name)
            _array(stream, obj[name], tag)
    elif dtype.kind not in "biufcmMSUV":  # objects, and the strings of numpy 2
        stream.put_text(b"dtype", str(dtype))
        stream.sequence(obj.ravel().tolist())
    elif dtype.kind in "fc" and dtype.itemsize not in (2, 4, 8, 16 * (dtype.kind == "c")):
        stream.put_text(b"dtype", dtype.str)  # long double: some of its bytes are undefined
        stream.sequence([repr(item) for item in obj.ravel()])
    else:
        stream.put_text(b"dtype", dtype.newbyteorder("<").str)
        stream.put_bytes(_bytes_of(obj))


def _bytes_of(obj: np.ndarray) -> Any:
    import numpy as np

    packed = np.ascontiguousarray(obj, dtype=obj.dtype.newbyteorder("<")).reshape(-1)
    return packed.view(np.uint8) if packed.size and packed.itemsize else b""


# -- pandas ------------------------------------------------------------------------------


def _pandas(stream: Stream, obj: Any) -> bool:
    """By values, types, index and columns: the blocks inside depend on the history."""
    import pandas as pd

    kind = type(obj)
    if kind is pd.DataFrame:
        stream.put_text(b"frame", str(obj.shape))
        _index(stream, obj.columns)
        for place in range(obj.shape[1]):
            _column(stream, obj.iloc[:, place])
        _index(stream, obj.index)
    elif kind is pd.Series:
        stream.put(b"series")
        stream.value(obj.name)
        _column(stream, obj)
        _index(stream, obj.index)
    elif isinstance(obj, pd.Index):
        _index(stream, obj)
        return True
    else:
        return False
    stream.mapping(obj.attrs)
    return True


def _index(stream: Stream, index: Any) -> None:
    stream.put_text(b"index", str(getattr(index, "freqstr", None)), str(index.nlevels))
    stream.value(list(index.names))
    for level in range(index.nlevels):
        _column(stream, index.get_level_values(level))


def _column(stream: Stream, column: Any) -> None:
    import numpy as np

    stream.put_text(b"column", str(column.dtype))
    if hasattr(column.dtype, "categories"):
        stream.put_text(b"categories", str(getattr(column.dtype, "ordered", "")))
        _column(stream, column.dtype.categories)
    _array(stream, np.asarray(column), b"values")
