"""Measurements with tasks: throughput, round trip, chain, the shortest useful task.

Each function here runs in a process of its own and returns a dictionary of numbers.
"""

from __future__ import annotations

import os
import statistics
import time

from tests.benchmarks import processes, work
from tests.benchmarks.peers import PEERS
from tests.benchmarks.trace import mark

WARM_UP = 10
"""Tasks before the clock runs: agents, workers and imports are there."""
LONGEST_TASK = 0.128
"""Seconds: where the search for the shortest useful task begins."""
MOST_TASKS = 20_000
"""In one point of that search."""


class WrongValue(Exception):
    """A pool gave something else than the function returns."""


def compare(found, expected):
    if found != expected:
        raise WrongValue(f"{found!r:.200} instead of {expected!r:.200}")


def warm(submit, workers):
    """All workers have started and run something, with arguments that no measurement uses."""
    first = [submit(work.successor, -1 - number) for number in range(WARM_UP * workers)]
    compare([future.result() for future in first], [-n for n in range(WARM_UP * workers)])
    for number in range(WARM_UP):
        compare(submit(work.successor, -1000 - number).result(), -999 - number)


def throughput(peer, directory, workers, tasks):
    """Tasks a second: one submit for each, every value compared before the clock stops."""
    with PEERS[peer].open(directory, workers) as submit:
        warm(submit, workers)
        spent, inodes = processes.cpu_by_thread(), _inodes(directory)
        mark("begin")
        start = time.perf_counter()
        futures = [submit(work.successor, number) for number in range(tasks)]
        submitted = time.perf_counter()
        values = [future.result() for future in futures]
        compare(values, list(range(1, tasks + 1)))
        end = time.perf_counter()
        mark("end")
        cpu_us = processes.cpu_since(spent, tasks)
        created = len(_inodes(directory) - inodes)
    return {
        "per_second": tasks / (end - start),
        "submit_us": (submitted - start) / tasks * 1e6,
        "inodes": created,
        "cpu_us": cpu_us,
        "compared": tasks,
    }


def _inodes(directory):
    """What stands in a directory; two names of one file count once."""
    found = set()
    for path, folders, files in os.walk(directory):
        for name in folders + files:
            try:
                found.add(os.lstat(os.path.join(path, name)).st_ino)
            except FileNotFoundError:
                continue
    return found


def executions(peer, directory, workers, tasks):
    """How often functions really ran, told by what they leave behind. Not timed."""
    path = f"{directory}/executions"
    with PEERS[peer].open(directory, workers) as submit:
        futures = [submit(work.counted, number, path) for number in range(tasks)]
        compare([future.result() for future in futures], list(range(1, tasks + 1)))
    return {"executions": os.path.getsize(path), "compared": tasks}


def round_trip(peer, directory, workers, tasks, pause=0.01):
    """Seconds from a submit to its value, while nothing else is going on."""
    times = []
    with PEERS[peer].open(directory, workers) as submit:
        warm(submit, workers)
        spent = processes.cpu_by_thread()
        mark("begin")
        for number in range(tasks):
            time.sleep(pause)
            start = time.perf_counter()
            value = submit(work.successor, number).result()
            times.append(time.perf_counter() - start)
            compare(value, number + 1)
        mark("end")
        cpu_us = processes.cpu_since(spent, tasks)
        if os.environ.get("FSBROKER_BENCHMARK_LINGER"):
            time.sleep(float(os.environ["FSBROKER_BENCHMARK_LINGER"]))
            mark("quiet")
    return {
        "median": statistics.median(times),
        "best": min(times),
        "worst": max(times),
        "cpu_us": cpu_us,
        "compared": tasks,
    }


def chain(peer, directory, workers, links):
    """Seconds for each link of a chain in which every task needs the value of the one before."""
    with PEERS[peer].open(directory, workers) as submit:
        warm(submit, workers)
        start = time.perf_counter()
        future = submit(work.successor, 0)
        for _ in range(links - 1):
            given = future if PEERS[peer].takes_futures else future.result()
            future = submit(work.successor, given)
        value = future.result()
        end = time.perf_counter()
        compare(value, links)
    return {"per_link": (end - start) / links, "compared": 1}


def shortest_task(peer, directory, workers, seconds):
    """The shortest task at which the pool is still half busy (METG), and the curve behind it.

    Tasks get shorter by halves; between the last two points a straight line is drawn, the
    axis of durations logarithmic. Half of its best is meant: on a machine that others use,
    no pool has its cores for itself.
    """
    per_loop = work.seconds_per_loop()
    curve, duration, offset = [], LONGEST_TASK, 0
    with PEERS[peer].open(directory, workers) as submit:
        warm(submit, workers)
        while duration > 1e-6:
            tasks = int(min(MOST_TASKS, max(8 * workers, seconds * workers / duration)))
            loops = max(1, int(duration / per_loop))
            took = _spin(submit, tasks, loops, offset)
            offset += tasks
            curve.append((loops * per_loop, tasks * loops * per_loop / workers / took))
            if curve[-1][1] < 0.5 * _best(curve):
                break
            duration /= 2
    crossing = _crossing(curve, 0.5 * _best(curve))
    return {"metg": crossing, "curve": curve, "best": _best(curve), "compared": offset}


def _best(curve):
    return max(busy for _, busy in curve)


def _spin(submit, tasks, loops, offset):
    start = time.perf_counter()
    futures = [submit(work.spin, offset + number, loops) for number in range(tasks)]
    values = [future.result() for future in futures]
    took = time.perf_counter() - start
    compare(values, [offset + number + 1 for number in range(tasks)])
    return took


def _crossing(curve, level):
    if len(curve) < 2 or curve[-1][1] >= level:
        return curve[-1][0]
    (long, busy), (short, idle) = curve[-2:]
    return short * (long / short) ** ((level - idle) / (busy - idle))
