"""What the tasks do. Imported by every pool's workers, so that no peer pays for pickling it."""

from __future__ import annotations

import os
import time


def successor(number):
    """As good as no work, with a value that shows whose argument it had."""
    return number + 1


def counted(number, path):
    """Leaves one byte for each execution."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, b".")
    finally:
        os.close(fd)
    return number + 1


def spin(number, loops):
    """A known amount of work: wall time would count as work while the core is taken away."""
    for _ in range(loops):
        pass
    return number + 1


def negative(array):
    return -array


def seconds_per_loop(processes, loops=2_000_000, tries=5):
    """What one round of `spin` takes when as many processes as workers run it at once.

    The best of several tries: what other people's programs take is not the task's.
    """
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        children = [_forked_spin(loops) for _ in range(processes)]
        for child in children:
            os.waitpid(child, 0)
        times.append(time.perf_counter() - start)
    return min(times) / loops


def _forked_spin(loops):
    child = os.fork()
    if not child:
        spin(0, loops)
        os._exit(0)
    return child
