"""Whose mounts, accounts and files are whose, when a test session was killed.

Everything that outlives a process bears its number and the time that process
started (numbers are used again), so that the next session can tell what
belongs to nobody any more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def owner() -> str:
    """This process: its number and its start in clock ticks since boot."""
    return f"{os.getpid()}.{_start(os.getpid())}"


def alive(owner: str) -> bool:
    """Whether the process that `owner()` named still runs."""
    pid, _, start = owner.partition(".")
    return pid.isdigit() and _start(int(pid)) == start


def prefix(name: str) -> str:
    """How the names of this session's temporary directories begin."""
    return f"{name}-{owner()}-"


def of_dead(name: str) -> Iterator[Path]:
    """The temporary directories that sessions left which are no more."""
    for path in Path(tempfile.gettempdir()).glob(f"{name}-*-*"):
        if not alive(path.name.removeprefix(f"{name}-").partition("-")[0]):
            yield path


def _start(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The program's name, in brackets, may hold anything, blanks too.
    return stat.rpartition(")")[2].split()[19]
