"""Write tasks that have ended, and all that they depend on, with their data, as an RO-Crate.

A directory with the calls as a Python Workflow Definition, drawn too; function, arguments,
value, versions, host and times of each task; arrays in HDF5, the rest in JSON. What only
Python can read is a pickle, and is marked so. 'fsbroker import' puts the values into another
spool. Nothing of the tasks is imported or unpickled.
"""

from __future__ import annotations

import argparse
import sys

from fsbroker import cli
from fsbroker.cli import choice
from fsbroker.cli.output import plain, print_json
from fsbroker.client.history import History
from fsbroker.report import crate
from fsbroker.report.metadata import About
from fsbroker.spool.spool import open_spool

NO_LICENSE = "No license was stated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "named", nargs="+", metavar="TAG|KEY", help="a tag, or a task: its key, or how it begins"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIRECTORY", required=True, help="it must not be there yet"
    )
    parser.add_argument("--name", help="of the crate; default: what was named")
    parser.add_argument("--description", default="Tasks that fsbroker ran, with their data")
    parser.add_argument("--license", default=NO_LICENSE, metavar="URL")


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    history = History(spool)
    rows = choice.tagged_or_found(history, options.named)
    about = About(options.name or ", ".join(options.named), options.description, options.license)
    try:
        done = crate.export(spool, history, rows, options.output, about)
    except crate.NotEnded as error:
        print(f"fsbroker export: {error}", file=sys.stderr)
        return cli.NOT_ENDED
    if options.json:
        print_json({"directory": options.output, **done._asdict()})
        return cli.OK
    print(f"{done.tasks} tasks in {options.output}")
    if done.pickled:
        print(f"{done.pickled} values are pickles: who reads them runs code")
    if done.shown_only:
        print("workflow.json shows, but cannot run:")
        print("\n".join(f"  {plain(what)}" for what in done.shown_only))
    return cli.OK
