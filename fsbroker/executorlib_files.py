"""Reading the cache files of executorlib: ``<key>_o.h5``, one for each call that has ended.

Each is an HDF5 file of pickles: function, arguments, what it returned or raised. To read one
is to unpickle it, which runs code: only files of the user's own are read. What cannot be read
is an error that says so, never a value.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.future import LightFuture
from fsbroker.spool.layout import SPOOL_FILE, USERS
from fsbroker.task import Dependency

ENDING = "_o.h5"
DEFLATE = 1100
"""Bytes that one byte of a compressed dataset can stand for, and a little more."""
_HASH = re.compile(r"[0-9a-f]{32}")


class Recorded(NamedTuple):
    """One call, as executorlib stored it.

    Attributes:
        path: of the file.
        cache_key: the name that the user gave the call; None if executorlib made one.
        arguments: positional and by keyword; a future of another call is a `Reference`.
        cores: MPI ranks; None where the file does not say.
        result: ``{"output": value}`` or ``{"error": exception}``.
        ended: seconds since the epoch. runtime: seconds.
    """

    path: str
    cache_key: str | None
    function: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    cores: int | None
    result: dict[str, Any]
    ended: float
    runtime: float


class Reference(LightFuture):
    """What executorlib stores in place of a future: the other call's file, and an item.

    Attributes:
        dependency: what stands for it in a spool, once somebody has found out.
    """

    dependency: Dependency | None = None
    _file_name: str
    _selector: Any

    def path(self, directory: str) -> str:
        """The other file: where it was, or else in this directory."""
        if os.path.exists(self._file_name):
            return self._file_name
        return os.path.join(directory, os.path.basename(self._file_name))

    @property
    def selector(self) -> tuple[Any, ...]:
        """The items that are wanted of its value."""
        return () if self._selector is None else (self._selector,)


def paths(directory: str | os.PathLike[str]) -> Iterator[str]:
    """The files of calls that have ended, in a directory and those below."""
    for root, below, names in os.walk(os.path.abspath(os.fspath(directory))):
        below.sort()
        if SPOOL_FILE in names:
            below[:] = [name for name in below if name != USERS]
        yield from (os.path.join(root, name) for name in sorted(names) if name.endswith(ENDING))


def read(path: str) -> Recorded:
    """One file.

    Raises:
        FileRefused: it is not the user's own. FileDamaged: it cannot be read or unpickled.
    """
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise FileRefused("Not a file of your own", path, "Unpickling runs what others wrote")
    found = _unpickled(path)
    if "function" not in found or not found.keys() & {"output", "error"}:
        raise FileDamaged("No call that has ended stands in this file", path)
    name = os.path.basename(path).removesuffix(ENDING)
    return Recorded(
        path,
        None if _is_made(name, found["function"]) else name,
        found["function"],
        (tuple(found.get("input_args", ())), dict(found.get("input_kwargs", {}))),
        found.get("resource_dict", {}).get("cores"),
        {key: found[key] for key in ("output", "error") if key in found},
        status.st_mtime,
        float(found.get("runtime", 0.0)),
    )


def _unpickled(path: str) -> dict[str, Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            stored = {name: _bytes_of(file, name, DEFLATE * os.path.getsize(path)) for name in file}
        return {name: _Unpickler(io.BytesIO(data)).load() for name, data in stored.items()}
    except Exception as error:  # unpickling runs the user's code: anything
        reason = f"{type(error).__name__}: {error}"
        raise FileDamaged(f"Cannot be read ({reason})", path) from error


def _bytes_of(file: Any, name: str, most: int) -> bytes:
    """What stands in a dataset: in this file itself, and no more than it can hold.

    HDF5 follows links and external storage into whatever the reader may read, and makes
    gigabytes of a small compressed dataset.
    """
    import h5py

    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if (
        not isinstance(dataset, h5py.Dataset)
        or dataset.external
        or dataset.is_virtual
        or dataset.dtype.kind == "O"
        or dataset.nbytes > most
    ):
        raise ValueError(f"{name[:40]!r} is not what executorlib stores")
    content: bytes = dataset[()].tobytes()
    return content


class _Unpickler(pickle.Unpickler):
    """Does without executorlib, whose classes stand for futures in what it stored."""

    def find_class(self, module: str, name: str, /) -> Any:
        if module.startswith("executorlib.") and name == "FutureItem":
            return Reference
        return super().find_class(module, name)


def _is_made(name: str, function: Any) -> bool:
    """Whether executorlib made this name: the function's, and a hash."""
    prefix = getattr(function, "__name__", type(function).__name__)
    return name.startswith(prefix) and _HASH.fullmatch(name, len(prefix)) is not None
