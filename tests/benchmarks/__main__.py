"""``./run bench``, or ``python -m tests.benchmarks``: one table of all budgets and peers."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time

from tests.benchmarks.budgets import SECTIONS, Benchmark, Plan
from tests.benchmarks.peers import PEERS
from tests.benchmarks.runner import Runner
from tests.benchmarks.table import lines, profile

PACKAGES = ("fsbroker", "h5py", "numpy", "loky", "executorlib", "distributed", "parsl")


def options(arguments):
    plan = Plan()
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    add = parser.add_argument
    add("--repeats", type=int, default=plan.repeats, help="of each number, in turns with its peers")
    add("--workers", type=int, default=plan.workers)
    add("--tasks", type=int, default=plan.tasks, help="short tasks of a throughput sample")
    add("--lone", type=int, default=plan.lone, help="lone tasks of a round-trip sample")
    add("--links", type=int, default=plan.links, help="links of the chain")
    add("--megabytes", type=int, default=plan.megabytes, help="of the array")
    add("--cached", type=int, default=plan.cached, help="calls made again")
    add("--pending", type=int, default=plan.pending, help="tasks that wait for an agent")
    add("--seconds", type=float, default=plan.seconds, help="of work for each point of METG")
    add("--large", action="store_true", help="1,000,000 pending tasks")
    add("--quick", action="store_true", help="small numbers: whether it works, no more")
    add("--peers", default=",".join(PEERS), help=f"of: {', '.join(PEERS)}")
    add("--only", default=",".join(SECTIONS), help=f"of: {', '.join(SECTIONS)}")
    add("--directory", default=tempfile.gettempdir(), help="on the file system to measure")
    add("--timeout", type=float, default=300.0, help="seconds for one sample")
    add("--json", metavar="FILE", help="write the rows there, too")
    add("--profile", action="store_true", help="CPU time of each thread, under the table")
    add("--quiet", action="store_true", help="do not say what is being measured")
    return parser.parse_args(arguments)


def plan_of(chosen):
    plan = Plan(
        workers=chosen.workers,
        repeats=chosen.repeats,
        tasks=chosen.tasks,
        lone=chosen.lone,
        links=chosen.links,
        megabytes=chosen.megabytes,
        cached=chosen.cached,
        pending=1_000_000 if chosen.large else chosen.pending,
        seconds=chosen.seconds,
        peers=("fsbroker", *(name for name in chosen.peers.split(",") if name != "fsbroker")),
    )
    if chosen.quick:
        plan.repeats, plan.tasks, plan.lone, plan.links = 1, 200, 5, 5
        plan.megabytes, plan.cached, plan.pending, plan.seconds = 2, 50, 500, 0.02
    return plan


def conditions(directory):
    """What the numbers depend on."""
    from fsbroker.spool.watch import file_system

    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "file_system": file_system(directory),
        "load": os.getloadavg()[0],
        "packages": versions,
    }


def main(arguments=None):
    chosen = options(arguments)
    unknown = {*chosen.peers.split(",")} - {*PEERS}, {*chosen.only.split(",")} - {*SECTIONS}
    if any(unknown):
        sys.exit(f"unknown: {', '.join(set().union(*unknown))}")
    began = time.monotonic()

    def say(what):
        if not chosen.quiet:
            print(f"[{time.monotonic() - began:5.0f} s] {what}", file=sys.stderr, flush=True)

    benchmark = Benchmark(Runner(chosen.directory, chosen.timeout, say), plan_of(chosen))
    about = conditions(chosen.directory)
    rows = [row for name in chosen.only.split(",") for row in SECTIONS[name](benchmark)]
    where = "{cores} cores, Python {python}, {file_system}, load {load:.1f} at the start"
    print(where.format(**about))
    print(", ".join(about["packages"]))
    print("\n".join(lines(rows)))
    if chosen.profile:
        for title, samples in benchmark.profiles.items():
            print("\n".join(("", *profile(f"CPU time a task: {title}", samples))))
    if chosen.json:
        with open(chosen.json, "w") as file:
            found = {"conditions": about, "rows": [row.as_json() for row in rows]}
            json.dump(found | {"profiles": benchmark.profiles}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
