"""``fsbroker demo``: a small materials workflow, one of whose parts is killed half way.

__init__    the command: options, and the exit code
plan        what is computed, and with what
client      the child process that submits the workflow: what a user's script would be
metals      what the tasks compute
tasklog     what the tasks write down themselves, which is what the verdict rests on
supervisor  the course of events
victims     who is killed: the client, an agent, or an MPI rank
report      the table, and the checks
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import tempfile

from fsbroker.cli.demo.metals import EXPERIMENT
from fsbroker.cli.demo.plan import RANKS, Plan
from fsbroker.cli.demo.report import print_report
from fsbroker.cli.demo.supervisor import Demo
from fsbroker.cli.demo.victims import VICTIMS
from fsbroker.errors import MissingExtra, SpoolError

PACKAGES = ("ase", "scipy", "mpi4py")

FEWEST_POINTS = 2 * RANKS + 2
"""The equation of state has four parameters, and its fit begins with a parabola."""


def main(arguments: list[str]) -> int:
    """Run the demo; the exit code: 0 if all checks hold, otherwise 1.

    Raises:
        MissingExtra: ASE, SciPy or mpi4py is not installed.
        FsbrokerError: the demo did not come to its end.
    """
    options = _parse(arguments)
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            cure = "Install it with: pip install 'fsbroker[demo]'"
            raise MissingExtra("The demo needs a package that is not installed", package, cure)
    given = _new_directory(options.spool) if options.spool else None
    directory = tempfile.mkdtemp(prefix="fsbroker-demo-")
    spool = given or os.path.join(directory, "spool")
    plan = Plan(spool, options.metals, options.points, options.cells)
    with Demo(plan, directory) as demo:
        course = demo.run(VICTIMS[options.kill])
    good = print_report(plan, course)
    if given:
        print(f"\nThe spool is kept: {spool}")
    if good:
        shutil.rmtree(directory)
    else:
        print(f"\nWhat the tasks wrote is kept: {directory}")
    return 0 if good else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fsbroker demo",
        description="Lattice constants and bulk moduli of metals, by tasks that run on two MPI "
        "ranks each. Half way through, one of the processes is killed.",
    )
    parser.add_argument(
        "--kill", choices=sorted(VICTIMS), default="client", help="who is killed (default: client)"
    )
    parser.add_argument(
        "--spool", metavar="DIRECTORY", help="a new directory to use, which is kept then"
    )
    parser.add_argument(
        "--metals",
        type=_metals,
        default=tuple(EXPERIMENT),
        metavar="Al,Cu,...",
        help=f"which ones (default: {','.join(EXPERIMENT)})",
    )
    parser.add_argument(
        "--points", type=_points, default=24, help="volumes of each scan (default: 24)"
    )
    parser.add_argument(
        "--cells", type=int, default=5, help="unit cells along the edge of the box (default: 5)"
    )
    return parser.parse_args(arguments)


def _metals(text: str) -> tuple[str, ...]:
    metals = tuple(dict.fromkeys(text.split(",")))
    if unknown := [metal for metal in metals if metal not in EXPERIMENT]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(EXPERIMENT)}")
    return metals


def _points(text: str) -> int:
    if int(text) < FEWEST_POINTS:
        raise argparse.ArgumentTypeError(f"at least {FEWEST_POINTS}")
    return int(text)


def _new_directory(path: str) -> str:
    """A directory in which no earlier demo's results wait."""
    if os.path.exists(path) and os.listdir(path):
        raise SpoolError("The demo needs a new spool, this directory is in use", path)
    return os.path.abspath(path)
