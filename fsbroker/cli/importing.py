"""Put the values of an exported crate into a spool, under the keys that they had.

A script whose tasks are in the crate finds their values in this spool and runs none. All is
checked first; what is damaged, or of another user, is refused. Values that are pickles run
code when they are read: import nothing that you would not run.
"""

from __future__ import annotations

import argparse

from fsbroker import cli
from fsbroker.cli.output import print_json
from fsbroker.report import arrival
from fsbroker.spool.spool import create


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIRECTORY", help="what 'fsbroker export' wrote")


def run(options: argparse.Namespace) -> int:
    crate = arrival.Crate(options.directory)
    done = arrival.deliver(create(options.spool), crate)
    if options.json:
        print_json(done._asdict())
        return cli.OK
    pickled = f", {done.pickled} of them pickles" if done.pickled else ""
    print(f"{done.imported} values imported{pickled}")
    if done.present:
        print(f"{done.present} were here already")
    if done.failed:
        print(f"{done.failed} tasks of the crate have no value: they failed or were cancelled")
    return cli.OK
