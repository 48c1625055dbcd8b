"""Start agents for what is open in the spool: on this machine, or in queue jobs.

Without --jobs as many as the open work needs beside the jobs that are there, within max_jobs.
Other settings come from the environment and from settings files (`fsbroker config show`).
What stands behind -- goes to the scheduler's submit command:

    fsbroker launch slurm --jobs 2 --time 1h -- --partition=short --account=chem
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from typing import Any

from fsbroker import cli
from fsbroker.cli import choice
from fsbroker.cli.output import parse_span, print_json, print_table
from fsbroker.config import Config, Partition, load
from fsbroker.environment import environment
from fsbroker.launch.demand import Demand
from fsbroker.launch.local import LocalLauncher, available_cores
from fsbroker.launch.queue import QueueLauncher
from fsbroker.launch.settings import scheduler_of
from fsbroker.spool.spool import Spool, open_spool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("backend", choices=("slurm", "flux", "local"))
    parser.add_argument("flags", nargs="*", help="of the submit command, behind --")
    parser.add_argument("--jobs", type=_count, metavar="N", help="so many more")
    parser.add_argument("--time", type=parse_span, help="of each job, such as 1h")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the job script, submit nothing"
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of jobs")
    return int(text)


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    local = options.backend == "local"
    if local and (options.flags or options.time is not None):
        raise choice.NothingNamed("Agents of this machine are in no queue", "--time, flags")
    config = _settings(options)
    started = _local(spool, config, options) if local else _queue(spool, config, options)
    if options.json:
        print_json(started)
    elif options.dry_run:
        print("\n".join(started["scripts"]))
    elif not started["jobs"]:
        print("nothing is open that these agents could run, or it has its jobs (fsbroker jobs)")
    else:
        print_table(("job", "id"), [(one["job"], one["id"]) for one in started["jobs"]])
    return cli.OK if started["jobs"] or started["scripts"] else cli.NOTHING_TO_DO


def _settings(options: argparse.Namespace) -> Config:
    """What is in force, with the command line's word above that of files and partitions."""
    found = load(
        spool=options.spool,
        backend=options.backend,
        block_allocation=True,
        job_time=options.time,
    )
    # One line: an option and its value may stand apart.
    more = (shlex.join(options.flags),) if options.flags else ()

    def overruled(one: Partition) -> Partition:
        flags = one.slurm_cmd_args
        return replace(
            one,
            job_time=one.job_time if options.time is None else None,
            slurm_cmd_args=None if flags is None else (*flags, *more),
        )

    return replace(
        found,
        slurm_cmd_args=(*found.slurm_cmd_args, *more),
        partitions={name: overruled(one) for name, one in found.partitions.items()},
    )


def _queue(spool: Spool, config: Config, options: argparse.Namespace) -> dict[str, list[Any]]:
    launcher = QueueLauncher(spool, scheduler_of(config), config)
    if options.dry_run:
        return {"jobs": [], "scripts": launcher.scripts(options.jobs)}
    jobs = launcher.launch(options.jobs)
    return {"jobs": [{"job": job.number, "id": job.id} for job in jobs], "scripts": []}


def _local(spool: Spool, config: Config, options: argparse.Namespace) -> dict[str, list[Any]]:
    cores = config.max_workers or available_cores()
    launcher = LocalLauncher(spool, config)
    work = Demand(spool, environment()).look(inputs=False)
    needed = launcher.needed(str(one.shape) for one in work if one.ready and not one.shape.queue)
    if not needed:
        return {"jobs": [], "scripts": []}
    cores = max(cores, needed)
    if options.dry_run:
        return {"jobs": [], "scripts": [shlex.join(launcher.command(cores))]}
    pids = [launcher.submit(cores) for _ in range(options.jobs or config.agents)]
    return {"jobs": [{"job": "local", "id": pid} for pid in pids], "scripts": []}
