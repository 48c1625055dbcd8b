"""A client in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fsbroker.executor import ClusterExecutor
from tests.faults.tasks import task


def main(arguments: Sequence[str]) -> int:
    """Submit a chain and independent tasks, print their values as they come."""
    spool, journal, prefix, count, *cancel = arguments
    with ClusterExecutor(spool, backend="none") as executor:
        futures = submit(executor, journal, prefix, int(count))
        executor._loop.flush(60)
        print("submitted", flush=True)
        if cancel:
            futures.pop(0).cancel()
        for future in futures:
            print(future.result(60), flush=True)
    return 0


def submit(executor: ClusterExecutor, journal: str, prefix: str, count: int) -> list:
    """`count` tasks, the last third in a chain behind the first."""
    futures = []
    for number in range(count):
        inputs = [futures[-1]] if futures and number >= count - count // 3 else []
        futures.append(executor.submit(task, journal, f"{prefix}{number}", 0.0, *inputs))
    return futures


def values(prefix: str, count: int) -> list:
    """What those futures must give."""
    found: list = []
    for number in range(count):
        inputs = [found[-1]] if found and number >= count - count // 3 else []
        found.append([f"{prefix}{number}", *inputs])
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
