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


def seconds_per_loop(loops=500_000, tries=20):
    """What one round of `spin` takes on a core: the least of several, in CPU time.

    By the clock it would be longer wherever other people's programs run, too.
    """
    times = []
    for _ in range(tries):
        start = time.thread_time()
        spin(0, loops)
        times.append(time.thread_time() - start)
    return min(times) / loops
