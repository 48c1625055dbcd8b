"""How much memory a tree of processes uses, and when that is too much.

The guardian of each worker looks, wherever it runs: it reacts also while the agent is busy,
and knows its tree. Resource limits of the kernel (RLIMIT_AS, RLIMIT_DATA) are no help: they
hold for each process by itself, and for addresses instead of memory, of which Python with
threads, CUDA and MPI reserve much more than they use.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterable
from typing import NamedTuple

FILL_RATE = 10e9
"""Bytes in a second: about what a task can fill at most. How soon to look again."""
SOONEST, LATEST = 0.05, 1.0
"""Seconds between two looks."""

_RESIDENT = re.compile(rb"^(?:VmRSS|VmSwap):\s+(\d+) kB", re.MULTILINE)
_PROPORTIONAL = re.compile(rb"^(?:Pss|SwapPss):\s+(\d+) kB", re.MULTILINE)


class Excess(NamedTuple):
    """More than allowed: bytes."""

    limit: float
    used: float

    def pack(self) -> bytes:
        return struct.pack("<2d", *self)

    @classmethod
    def unpack(cls, data: bytes) -> Excess:
        return cls(*struct.unpack("<2d", data))

    def __str__(self) -> str:
        used, limit = (f"{number / 2**20:.0f} MB" for number in (self.used, self.limit))
        return f"used {used}, more than memory_max = {limit}"


class Meter:
    """Looks at a tree now and then: the sooner, the less there is left.

    Args:
        limit: MB; 0 for none.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit * 2.0**20
        self.next = 0.0 if limit else math.inf
        """When to look: monotonic seconds."""

    def look(self, pids: Iterable[int], now: float) -> Excess | None:
        """What is too much, if it is."""
        used = memory_of(pids, self._limit)
        if used > self._limit:
            return Excess(self._limit, used)
        self.next = now + min(LATEST, max(SOONEST, (self._limit - used) / FILL_RATE))
        return None


def memory_of(pids: Iterable[int], enough: float = 0.0) -> float:
    """Bytes that processes use, resident and swapped out.

    Each counts its part of what it shares with others (PSS). That takes the kernel a
    moment for large processes, which stand still meanwhile; so it is only asked where
    their sizes without regard to sharing come to more than ``enough``.
    """
    pids = list(pids)
    resident = sum(_sum(f"/proc/{pid}/status", _RESIDENT) for pid in pids)
    if resident <= enough:
        return resident
    return sum(
        _sum(f"/proc/{pid}/smaps_rollup", _PROPORTIONAL) or _sum(f"/proc/{pid}/status", _RESIDENT)
        for pid in pids
    )


def _sum(path: str, lines: re.Pattern[bytes]) -> float:
    """0 for a process that has ended, or may not be looked at."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        return 1024.0 * sum(map(int, lines.findall(os.read(descriptor, 1 << 14))))
    except OSError:
        return 0.0
    finally:
        os.close(descriptor)
