"""``python -m fsbroker.agent``: how launchers start an agent."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import replace

from fsbroker import __version__
from fsbroker.agent.allocation import current
from fsbroker.agent.launchers import TABLE
from fsbroker.agent.queuejob import QueueJobs
from fsbroker.agent.walltime import MARGIN
from fsbroker.environment import environment
from fsbroker.errors import FsbrokerError
from fsbroker.nodes import Node, limited
from fsbroker.spool.spool import open_spool


def main(arguments: list[str] | None = None) -> int:
    """Run an agent; the exit code: 0 idle or told to end, 1 an error, 3 taken for dead."""
    parser = argparse.ArgumentParser(prog="fsbroker agent", description="Run tasks of a spool.")
    parser.add_argument("--spool", default=os.environ.get("FSBROKER_SPOOL"))
    parser.add_argument("--cores", type=int, help="of this machine alone; default: all allotted")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="all nodes of the step are its own; --cores is of all of them",
    )
    parser.add_argument("--gpus", default="", help="with --cores: ids, with commas between")
    parser.add_argument("--memory", type=int, default=0, help="with --cores: MB; 0 for no limit")
    parser.add_argument(
        "--time", type=float, default=0.0, metavar="SECONDS", help="that the queue job was given"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN,
        metavar="SECONDS",
        help="before the job's end: nothing is claimed any more",
    )
    parser.add_argument("--idle-timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--lease", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--place", help='what started it: "local", or "slurm:123"')
    names = ", ".join(TABLE)
    parser.add_argument(
        "--launcher", type=_launcher, help=f"of MPI ranks: {names}, or a template as a JSON list"
    )
    parser.add_argument("--pmi", default="", help="srun's --mpi; default: what fits the MPI")
    parser.add_argument("--job", type=int, help="number of its queue job in the spool's log")
    parser.add_argument("--expect", default="", help="the environment that it was submitted for")
    parser.add_argument("--key", default="", help="public key that the client expects it to have")
    parser.add_argument("--queue", default="", help="digest of what its job has of the site")
    parser.add_argument("--row", help="the one task to run: its file and row, with a point between")
    parser.add_argument("--workers", type=int, default=0, help="busy at once; 0: all that fit")
    parser.add_argument("--first-worker", type=int, default=0, help="the least of their numbers")
    parser.add_argument("--leash", action="store_true", help="take wishes from stdin")
    parser.add_argument(
        "--private", action="store_true", help="with --leash: end with stdin, and remove the spool"
    )
    parser.add_argument("--oversubscribe", action="store_true", help="more ranks than cores")
    parser.add_argument("--nested", action="store_true", help="tasks have Flux instances")
    parser.add_argument("--watch", choices=("auto", "watchdog", "polling"), default="auto")
    options = parser.parse_args(arguments)
    if not options.spool:
        parser.error("name the spool with --spool or FSBROKER_SPOOL")
    if options.whole and int(os.environ.get("SLURM_PROCID", "0")) > 0:
        return 0  # the step holds its nodes until its last process ends, which is the first
    if options.expect not in ("", environment()):
        return _mismatch(options)
    # Only now what an interpreter that is not the right one may not have.
    from fsbroker.agent.loop import Agent
    from fsbroker.agent.loop.plan import Plan

    allocation = current(options.time, whole=options.whole)
    if options.cores and options.whole:
        allocation = replace(allocation, nodes=limited(allocation.nodes, options.cores))
    elif options.cores:
        gpus = tuple(filter(None, options.gpus.split(",")))
        own = Node(allocation.nodes[0].name, options.cores, gpus, options.memory)
        allocation = replace(allocation, nodes=(own,))
    plan = Plan(
        allocation=allocation,
        place=options.place or allocation.place,
        margin=options.margin,
        idle_timeout=options.idle_timeout,
        launcher=options.launcher or TABLE[allocation.launcher],
        pmi=options.pmi,
        oversubscribe=options.oversubscribe,
        nested=options.nested,
        watch=options.watch,
        lease=options.lease,
        job=options.job,
        queue=options.queue,
        only=_row(options.row) if options.row else None,
        workers=options.workers,
        first_worker=options.first_worker,
        leashed=options.leash,
        private=options.private,
    )
    origin = {
        "host": platform.node(),
        "fsbroker": __version__,
        "python": sys.executable,
        "version": platform.python_version(),
        "job": allocation.job,
        "restart": allocation.restarts,
    }
    try:
        return Agent(open_spool(options.spool, options.key), plan, environment(), origin).run()
    except FsbrokerError as error:
        print(f"fsbroker agent: {error}", file=sys.stderr)
    except OSError as error:
        print(f"fsbroker agent: cannot use {options.spool}: {error}", file=sys.stderr)
    return 1


def _mismatch(options: argparse.Namespace) -> int:
    here = f"{sys.executable} on {platform.node()} is {environment()}"
    what = f"{here}, and the client has {options.expect}: set `python` and `setup`"
    print(f"fsbroker agent: {what}", file=sys.stderr)
    with suppress(ImportError):  # then whoever reads the job's output tells it
        QueueJobs(open_spool(options.spool), options.job).mismatch(what)
    return 1


def _row(text: str) -> tuple[str, int]:
    stem, _, row = text.rpartition(".")
    return stem, int(row)


def _launcher(text: str) -> tuple[str, ...]:
    return TABLE[text] if text in TABLE else tuple(json.loads(text))


if __name__ == "__main__":
    sys.exit(main())
