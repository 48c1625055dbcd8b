"""The guardian: a small process above each worker, which ends all that the worker started.

    agent --control socket--> guardian --> worker, or mpiexec --> whatever tasks start

Tasks start programs, and those start others, some in sessions of their own. When a
worker ends, by itself, by a signal, because its agent wants it or because its agent is
gone, none of them must be left. Only a child subreaper can find them all: orphans
become its children. The worker itself cannot be that one, for it may be the one killed;
nor the agent, for the same reason. A death signal (PR_SET_PDEATHSIG) reaches the
direct child only, and a thread that watches a socket stands still while C code holds the
interpreter lock.

The guardian is the worker's own process, forked before it has loaded anything or started
a thread, so it costs about one megabyte. The agent tells it over the control socket
when to kill (`KILL_AFTER`: seconds from now); when the agent's end closes, that is at once.
It kills as well when the tree uses too much memory, and tells the agent so (`memory.Excess`).
It ends as its child ended, after everything else has: so the control socket, of which it
holds the only other end, tells the agent that the tree is gone.

Programs are asked to end (SIGTERM) before they are killed: srun and flux have processes on
other nodes, which nobody would end after a SIGKILL.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from fsbroker.agent.memory import Meter

KILL_AFTER = struct.Struct("<d")

PATIENCE = 2.0
"""Seconds from SIGTERM to SIGKILL for programs: srun and mpiexec tell other nodes."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""A queue system sends these to all processes of a job; the agent decides what they mean."""


def split(control: int, others: Sequence[int] = (), memory: int = 0, patience: float = 0.0) -> None:
    """Leave a guardian behind: returns in a new process, which is to be the worker.

    Args:
        control: descriptor of the socket from the agent.
        others: descriptors for the worker alone.
        memory: MB that the worker and all that it starts may use; 0: no limit.
        patience: seconds from SIGTERM to SIGKILL; with 0, SIGKILL at once.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guardian = os.getpid()
    child = os.fork()
    if child:
        for descriptor in others:
            os.close(descriptor)
        _end_like(_Guardian(control, child, memory, patience).watch())
    os.close(control)
    die_with_parent()
    if os.getppid() != guardian:  # it died before the kernel knew of our wish
        os._exit(1)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


class _Guardian:
    def __init__(self, control: int, child: int, memory: int, patience: float) -> None:
        for ignored in _IGNORED:
            signal.signal(ignored, signal.SIG_IGN)
        self._child = child
        self._patience = patience
        self._kill_at = math.inf
        self._meter = Meter(memory)
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._wake_up = _pipe_that_wakes_on(signal.SIGCHLD)
        self._poll.register(self._wake_up, select.POLLIN)

    def watch(self) -> int:
        """Wait for the child's end, or bring it about; its wait status."""
        while (status := self._reap()) is None:
            if time.monotonic() >= self._kill_at:
                self._kill()
            self._measure()
            for descriptor, _ in self._poll.poll(self._milliseconds()):
                if descriptor == self._control:
                    self._listen()
                else:
                    os.read(descriptor, 4096)
        self._end_descendants()
        return status

    def _milliseconds(self) -> float | None:
        wake_at = min(self._kill_at, self._meter.next)
        if wake_at == math.inf:
            return None
        return max(0.0, wake_at - time.monotonic()) * 1000 + 1

    def _measure(self) -> None:
        now = time.monotonic()
        if now >= self._meter.next:
            excess = self._meter.look(family(os.getpid()), now)
            if excess is not None:
                self._meter.next = math.inf
                self._patience = 0.0  # it may be filling what is left
                self._kill_at = 0.0
                with suppress(OSError):  # the agent is gone
                    os.write(self._control, excess.pack())

    def _listen(self) -> None:
        try:
            wish = os.read(self._control, KILL_AFTER.size)
        except ConnectionError:
            wish = b""
        if wish:
            self._kill_at = time.monotonic() + float(KILL_AFTER.unpack(wish)[0])
        else:
            self._poll.unregister(self._control)
            self._kill_at = 0.0

    def _reap(self) -> int | None:
        """Collect processes that have ended, adopted ones too; the child's status if it has."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == self._child:
                return status
            if pid == 0:
                return None

    def _kill(self) -> None:
        if self._patience:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)
            self._kill_at = time.monotonic() + self._patience
            self._patience = 0.0
        else:
            self._kill_at = math.inf
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)

    def _end_descendants(self) -> None:
        """Ask what the child has left behind to end, and kill what does not."""
        _signal_all(signal.SIGTERM)
        with suppress(KeyError):  # the agent is gone
            self._poll.unregister(self._control)
        deadline = time.monotonic() + PATIENCE
        with suppress(ChildProcessError):  # nothing is left
            while (left := deadline - time.monotonic()) > 0:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                if self._poll.poll(left * 1000):
                    os.read(self._wake_up, 4096)
        kill_descendants()


def _pipe_that_wakes_on(number: signal.Signals) -> int:
    """The end to read from; select.poll() is not interrupted by a signal handler alone."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(number, lambda *_: None)
    return reading


# -- killing a tree ----------------------------------------------------------------------


def kill_descendants() -> None:
    """Kill all processes below this one, which must be a subreaper, until none is left.

    Whatever was forked while we looked becomes our child when its parent dies, and is
    found in the next turn.
    """
    with suppress(ChildProcessError):
        while True:
            _signal_all(signal.SIGKILL)
            os.waitpid(-1, 0)


def _signal_all(number: signal.Signals) -> None:
    for pid in descendants(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def family(pid: int) -> list[int]:
    """Processes below a process; some may be missing that are started or end meanwhile.

    Reads about one file for each, not one for each process of the node.
    """
    if not os.path.exists("/proc/thread-self/children"):  # not every kernel has these
        return descendants(pid)
    found = [pid]
    for parent in found:  # grows while it is walked
        with suppress(OSError):  # it has ended
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:
                    found += map(int, file.read().split())
    return found[1:]


def descendants(pid: int) -> list[int]:
    """All processes below a process."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(_parent(name), []).append(int(name))
    found = [pid]
    for parent in found:  # grows while it is walked
        found += children.get(parent, ())
    return found[1:]


def _parent(name: str) -> int:
    try:
        with open(f"/proc/{name}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):  # it has ended
        return 0


def _end_like(status: int) -> None:
    """End as the process with this wait status ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker's core is the one to keep
        with suppress(OSError):  # SIGKILL has no other handler
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> None:
    """``python -m fsbroker.agent.guardian CONTROL MEMORY COMMAND...``: guard any program."""
    control, memory, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    split(control, memory=memory, patience=PATIENCE)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, programs count on it
    os.execvp(command[0], command)  # noqa: S606 (from a list, never through a shell)


if __name__ == "__main__":
    main()
