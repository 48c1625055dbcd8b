"""Making the n-th file call of a process fail, or kill it there, by strace.

A run without faults is recorded first: which calls of each kind touch the spool, by their
number among all of that kind. Python's own start opens a hundred files; what fails there
tells nothing about fsbroker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat",
    "getdents64",
    "readlink",
    "pread64",
    "write",
    "fsync",
    "close",
    "linkat",
    "symlink",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
)
CHANGING = ("openat", "write", "fsync", "linkat", "symlink", "mkdir")
LOOKING = ("openat", "getdents64", "readlink", "pread64")
SIGKILL = "SIGKILL"
FAULTS = {
    "EIO": CALLS,
    "ENOSPC": CHANGING,
    "EDQUOT": CHANGING,
    "ESTALE": LOOKING,
    "EINTR": ("openat", "write", "fsync"),
    SIGKILL: tuple(call for call in CALLS if call != "close"),
}
"""What can strike, and at which calls a file system gives it."""


@dataclass(frozen=True)
class Strike:
    """One fault at one call.

    Attributes:
        last: how many further calls of the kind fail, too; 0: only this one.
    """

    fault: str
    call: str
    nth: int
    last: int = 0

    def command(self, *, threads: bool = False) -> list[str]:
        """What to start the process with; ``threads`` and children are struck, too."""
        when = f"{self.nth}..{self.nth + self.last}" if self.last else f"{self.nth}"
        what = "signal=SIGKILL" if self.fault == SIGKILL else f"error={self.fault}"
        command = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={self.call}"]
        command += ["-f"] * threads
        return [*command, "-e", f"inject={self.call}:{what}:when={when}"]

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} {self.nth}"


def recorder(output: Path) -> list[str]:
    """What to start the process with that is recorded."""
    return ["strace", "-qq", "-y", "-s", "300", "-o", str(output), "-e", f"trace={','.join(CALLS)}"]


def recorded(output: Path, spool: Path) -> dict[str, list[int]]:
    """The numbers of the calls of each kind that touch the spool."""
    counts: dict[str, int] = {}
    found: dict[str, list[int]] = {call: [] for call in CALLS}
    for line in output.read_text().splitlines():
        match = re.match(r"(\w+)\(", line)
        if match is None or match[1] not in found:
            continue
        call = match[1]
        counts[call] = counts.get(call, 0) + 1
        if f"{spool}/" in line or f"{spool}>" in line:
            found[call].append(counts[call])
    return found


def chosen(numbers: Sequence[int], most: int | None) -> list[int]:
    """All of them, or some, evenly."""
    if most is None or len(numbers) <= most:
        return list(numbers)
    step = len(numbers) / most
    return [numbers[int(step * (at + 0.5))] for at in range(most)]
