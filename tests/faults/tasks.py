"""What the tasks of these tests do: leave one line each time they run, and give a value."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Any


def note(journal: str, name: str) -> None:
    """One line in the journal: `name` runs now. Never the broker's own records."""
    fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{name} {os.getpid()}\n".encode())
    os.close(fd)


def value_of(name: str, *inputs: Any) -> list[Any]:
    """What the task of this name must give: its name, and those of its inputs."""
    return [name, *(value[0] for value in inputs)]


def task(journal: str, name: str, delay: float = 0.0, *inputs: Any) -> list[Any]:
    note(journal, name)
    time.sleep(delay)
    return value_of(name, *inputs)


def kill_worker(journal: str, name: str, times: int) -> list[Any]:
    """The worker dies in the middle, the first `times` times."""
    note(journal, name)
    with open(journal) as file:
        runs = sum(line.split()[0] == name for line in file)
    if runs <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return value_of(name)


def runs_of(journal: str) -> dict[str, int]:
    """How often each task ran."""
    found: dict[str, int] = {}
    if os.path.exists(journal):
        with open(journal) as file:
            for line in file:
                name = line.split()[0]
                found[name] = found.get(name, 0) + 1
    return found


def hold(journal: str, name: str, gate: str) -> list[Any]:
    """Runs until a file is there."""
    note(journal, name)
    deadline = time.monotonic() + 60
    while not os.path.exists(gate) and time.monotonic() < deadline:
        with suppress(OSError):  # EINVAL, where a test makes the clock jump
            time.sleep(0.01)
    return value_of(name)


def fails_behind(journal: str, name: str, gate: str) -> None:
    """Fails when a file is there."""
    hold(journal, name, gate)
    raise ValueError(name)


def mpi_task(journal: str, name: str, gate: str) -> list[Any]:
    """Each rank says that it runs; all wait for a file, then talk to each other."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        note(journal, name)
    note(f"{journal}.{name}", f"rank{comm.rank}")
    deadline = time.monotonic() + 60
    while not os.path.exists(gate) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [*value_of(name), comm.allreduce(comm.rank + 1)]
