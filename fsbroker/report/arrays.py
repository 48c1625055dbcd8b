"""Arrays of a crate: HDF5 files in the container of a spool's files (docs/format.md).

Any HDF5 tool shows them, each as a dataset of its shape; fsbroker reads them by the
container's own table of contents, with checksums, and has HDF5 parse nothing.
"""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from fsbroker.errors import FileDamaged
from fsbroker.spool.container import Container, image
from fsbroker.spool.files import Files

KIND = "crate"
NAME = re.compile(r"arrays-\d{3,9}\.h5")
LARGEST = 256 << 20
"""Bytes of arrays in one file, but for one that is larger."""
MOST = 4096
"""Datasets in one file: its table of contents is one header."""
_DTYPE = re.compile(r"[<>|][biufc](1|2|4|8|16)")


class ArrayFiles:
    """Files with arrays, written one after the other into a directory.

    Attributes:
        names: of the files that were written.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._sections: dict[str, bytes | np.ndarray] = {}
        self._bytes = 0
        self.names: list[str] = []

    def add(self, name: str, array: np.ndarray) -> dict[str, Any]:
        """Put an array into the file that is being filled; where it stands, as JSON."""
        if self._bytes + array.nbytes > LARGEST or len(self._sections) == MOST:
            self.flush()
        self._bytes += array.nbytes
        # A dataset has one dimension at least; the shape below tells.
        self._sections[name] = np.ascontiguousarray(array).reshape(array.shape or (1,))
        file = f"arrays-{len(self.names):03d}.h5"
        about = {"file": file, "name": name, "dtype": array.dtype.str}
        return {**about, "shape": list(array.shape)}

    def flush(self) -> None:
        """Write what was added."""
        if not self._sections:
            return
        made = image(secrets.token_hex(8), KIND, {}, self._sections)
        self.names.append(f"arrays-{len(self.names):03d}.h5")
        with open(os.path.join(self._directory, self.names[-1]), "xb") as file:
            file.writelines(made.chunks)
            file.flush()
            os.fsync(file.fileno())
        self._sections, self._bytes = {}, 0


def stored_array(files: Files, about: Mapping[str, Any]) -> np.ndarray:
    """The array of a description that `ArrayFiles.add` made.

    Raises:
        FileDamaged: it is not there as described. FileRefused: a file of another user.
    """
    file, name, dtype, shape = (about.get(one) for one in ("file", "name", "dtype", "shape"))
    if not (isinstance(file, str) and NAME.fullmatch(file) and isinstance(name, str)):
        raise FileDamaged("An array has no file and name", str(about)[:200])
    if not (isinstance(dtype, str) and _DTYPE.fullmatch(dtype) and _is_shape(shape)):
        raise FileDamaged("An array has no dtype and shape", f"{file}, {name}")
    size = np.dtype(dtype).itemsize * math.prod(shape)  # type: ignore[arg-type]
    if not size:
        return np.empty(shape, np.dtype(dtype))  # type: ignore[arg-type]
    with Container(files, file, KIND) as container:
        if container.length(name) != size:
            raise FileDamaged("An array is not there as described", f"{file}, {name}")
        found = np.empty(shape, np.dtype(dtype))  # type: ignore[arg-type]
        container.fill(name, memoryview(found).cast("B"))
    return found


def _is_shape(shape: object) -> bool:
    return isinstance(shape, list) and all(type(one) is int and one >= 0 for one in shape)


def array(file: str, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    """An array of a crate; the crate's ``workflow.json`` names this function.

    Args:
        file: relative to the working directory, which has to be the crate's.
    """
    about = {"file": file, "name": name, "dtype": dtype, "shape": shape}
    return stored_array(Files(os.getcwd()), about)
