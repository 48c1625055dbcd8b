"""Return when tasks have ended: those that are named, or else all that are there now.

It starts no agents: `fsbroker launch` does, and so do executors.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import Counter
from collections.abc import Iterable

from fsbroker.cli import choice
from fsbroker.cli.output import parse_span, print_json, print_table
from fsbroker.cli.status import PENDING, verdict
from fsbroker.client.history import History, Phase, Row
from fsbroker.client.loop import CHECK_EVERY
from fsbroker.client.session import ClientSession
from fsbroker.spool.spool import Spool, open_spool
from fsbroker.spool.watch import watch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice.add_keys(parser, "a task")
    parser.add_argument(
        "--timeout", type=parse_span, metavar="TIME", help="such as 10m; then exit with 4 or 5"
    )


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    history = History(spool)
    named = options.keys or options.tag is not None
    rows = choice.chosen(options, history) if named else list(history)
    until = None if options.timeout is None else time.monotonic() + options.timeout
    if _wait([row for row in rows if row.phase in PENDING], spool, until):
        history = History(spool)
    counts = _counts(history, [row.key for row in rows])
    told = {phase.value: counts[phase] for phase in Phase}
    if options.json:
        print_json({"tasks": told})
    else:
        print_table(("state", "tasks"), [one for one in told.items() if one[1]])
    return verdict(counts)


def _counts(history: History, keys: Iterable[bytes]) -> Counter[Phase]:
    found = map(history.find, keys)
    return Counter(Phase.REMOVED if row is None else row.phase for row in found)


def _wait(rows: list[Row], spool: Spool, until: float | None) -> bool:
    """Until these have ended, or that moment; False if nothing had to be waited for.

    The client's own protocol does it, so that waiting costs the file system what a
    client's costs, and not a look at everything again and again.
    """
    session: ClientSession[bytes] = ClientSession(spool, bytes)
    for row in rows:
        session.bind((row.tasks.stem, row.number), row.key)
    left = {row.key for row in rows}
    wake = threading.Event()
    directory = f"{spool.files.root}/{spool.area.agents}"
    watching = watch(directory, wake.set, pause=spool.files.pause)
    try:
        checked = -CHECK_EVERY
        while left and (until is None or time.monotonic() < until):
            wake.clear()
            if time.monotonic() - checked >= CHECK_EVERY:
                checked = time.monotonic()
                found = session.check()
                left.difference_update([ticket for ticket, _ in found.elsewhere], found.lost)
            ended = {ticket for file in session.poll() for _, ticket in file.tickets}
            left -= ended
            watching.reset() if ended else watching.waited()
            delay = min(watching.delay, CHECK_EVERY)
            if left:
                wake.wait(
                    delay if until is None else max(0.0, min(delay, until - time.monotonic()))
                )
    finally:
        watching.stop()
    return bool(rows)
