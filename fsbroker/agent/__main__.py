"""``python -m fsbroker.agent``: how launchers start an agent."""

from __future__ import annotations

import argparse
import os
import platform
import sys

from fsbroker.agent.loop import Agent, Plan
from fsbroker.environment import environment
from fsbroker.errors import FsbrokerError
from fsbroker.spool.spool import open_spool


def main(arguments: list[str] | None = None) -> int:
    """Run an agent; the exit code: 0 idle or told to end, 1 an error, 3 taken for dead."""
    parser = argparse.ArgumentParser(prog="fsbroker agent", description="Run tasks of a spool.")
    parser.add_argument("--spool", default=os.environ.get("FSBROKER_SPOOL"))
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gpus", default="", help="ids of the GPUs to use, with commas between")
    parser.add_argument("--memory", type=int, default=0, help="MB; 0 for no limit")
    parser.add_argument("--idle-timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--lease", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--place", default="local")
    parser.add_argument("--watch", choices=("auto", "watchdog", "polling"), default="auto")
    options = parser.parse_args(arguments)
    if not options.spool:
        parser.error("name the spool with --spool or FSBROKER_SPOOL")
    plan = Plan(
        cores=options.cores,
        gpus=tuple(filter(None, options.gpus.split(","))),
        memory=options.memory,
        idle_timeout=options.idle_timeout,
        place=options.place,
        watch=options.watch,
        lease=options.lease,
    )
    origin = {
        "host": platform.node(),
        "python": sys.executable,
        "version": platform.python_version(),
        "job": os.environ.get("SLURM_JOB_ID") or os.environ.get("FLUX_JOB_ID") or "",
    }
    try:
        return Agent(open_spool(options.spool), plan, environment(), origin).run()
    except FsbrokerError as error:
        print(f"fsbroker agent: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
