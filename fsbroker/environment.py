"""What a worker must have in common with the client to run its functions."""

from __future__ import annotations

import platform
import site
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from functools import lru_cache

PACKAGES = ("fsbroker", "cloudpickle", "numpy", "h5py", "mpi4py")
"""What functions and values pass through on their way."""
MPI_LIMIT = 10.0
"""Seconds for mpi4py to say which MPI it loads: an agent waits, and must not be taken for dead."""


@lru_cache(1)
def environment() -> str:
    """The interpreters that can load this one's pickles: implementation and minor version."""
    name = sys.implementation.name
    return f"{name[:8]}{sys.version_info[0]}{sys.version_info[1]}"


def versions() -> dict[str, str]:
    """Versions of Python, of `PACKAGES` and of the MPI library; those that are there."""
    from importlib import metadata

    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "mpi4py" in found and (mpi := mpi_library(sys.executable)):
        found["MPI"] = mpi.splitlines()[0].strip()[:60]
    return found


def mpi_library(python: str, variables: Mapping[str, str] | None = None) -> str:
    """What the MPI library says that mpi4py loads; "" if it says nothing. In another process."""
    program = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI"
    try:
        said = subprocess.run(
            [python, "-c", f"{program}; print(MPI.Get_library_version())"],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MPI_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout


def differences(client: Mapping[str, str], node: Mapping[str, str]) -> str:
    """What a node has otherwise than the client, in words; "" if nothing."""
    other = (name for name in client if node.get(name) != client[name])
    return ", ".join(f"{name} is {node.get(name, 'missing')}, not {client[name]}" for name in other)


def own_path() -> tuple[str, ...]:
    """Entries of ``sys.path`` that no installation provides: scripts' folders, PYTHONPATH."""
    return _own_path(tuple(sys.path))


@lru_cache(8)
def _own_path(entries: tuple[str, ...]) -> tuple[str, ...]:
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    installed |= {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    installed |= set(site.getsitepackages())
    found = []
    for entry in entries:
        inside = any(entry == one or entry.startswith(one + "/") for one in installed if one)
        if entry and not inside and not entry.endswith(".zip"):
            found.append(entry)
    return tuple(found)
