"""Have tasks not run, or end them.

One that no agent has claimed will never run. For one that is claimed a request is left,
which its agent finds within seconds: it kills the worker. Tasks that depend on a
cancelled one fail.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from fsbroker import cli
from fsbroker.cli import agents, choice
from fsbroker.cli.output import print_json, print_table
from fsbroker.client.ending import Ending, end, owner
from fsbroker.client.history import ENDED, History, Phase, Row
from fsbroker.client.session import ClientSession
from fsbroker.spool.spool import Spool, open_spool


class Answer(NamedTuple):
    """What became of one task.

    Attributes:
        done: it will not run any more, or was asked to end.
    """

    key: str
    function: str
    done: bool
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice.add_keys(parser, "a task")


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    history = History(spool)
    rows = choice.chosen(options, history)
    if options.tag is not None and not options.keys:
        rows = [row for row in rows if row.phase not in (*ENDED, Phase.REMOVED)]
    session: ClientSession[bytes] = ClientSession(spool, bytes)
    answers = [_cancel(spool, session, row) for row in rows]
    if options.json:
        print_json([answer._asdict() for answer in answers])
    else:
        table = [(one.key[:12], one.function, one.text) for one in answers]
        print_table(("key", "function", "what happened"), table)
    return cli.OK if all(answer.done for answer in answers) else cli.NOTHING_TO_DO


def _cancel(spool: Spool, session: ClientSession[bytes], row: Row) -> Answer:
    key, function = row.key.hex(), row.tasks.function(row.number)
    found = end(spool, session, row)
    if found is Ending.OVER:
        waits = row.phase is Phase.CANCELLED
        return Answer(key, function, waits, f"had ended before ({row.phase.value})")
    if found is Ending.ASKED:
        agent = owner(session, row)
        who = agents.named(agents.present(spool), agent) if agent else "nobody: it was given back"
        return Answer(key, function, True, f"asked {who} to end it")
    cancelled = found is Ending.CANCELLED
    text = "cancelled, it will not run" if cancelled else "ended while we looked"
    return Answer(key, function, cancelled, text)
