"""What a worker must have in common with the client to run its functions."""

from __future__ import annotations

import site
import sys
import sysconfig
from functools import lru_cache


@lru_cache(1)
def environment() -> str:
    """The interpreters that can load this one's pickles: implementation and minor version."""
    name = sys.implementation.name
    return f"{name[:8]}{sys.version_info[0]}{sys.version_info[1]}"


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
