"""Keep a spool from a site's purge of old files: give all of them the time of now.

Call it from time to time, more often than files may grow old there. Nothing else changes, and
agents and clients may be at work. For `fsbroker gc --older-than` all is young then.
"""

from __future__ import annotations

import argparse

from fsbroker import cli
from fsbroker.cli.output import print_json
from fsbroker.spool.spool import open_spool
from fsbroker.spool.touch import touch


def add_arguments(_: argparse.ArgumentParser) -> None:
    """None but those of all commands."""


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    done = touch(spool.files, spool.area)
    if options.json:
        print_json(done._asdict())
    else:
        others = f"; {done.foreign} of other users were not" if done.foreign else ""
        print(f"{done.own} files, links and directories are young again{others}")
    return cli.OK
