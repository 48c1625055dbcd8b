"""List tasks, the last submitted first."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Iterator
from itertools import islice

from fsbroker import cli
from fsbroker.cli import choice
from fsbroker.cli.output import age, parse_limit, print_json, print_table, span
from fsbroker.client.history import History, Phase, Row, TaskRecord

LIMIT = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    states = [phase.value for phase in Phase]
    parser.add_argument("--state", action="append", choices=states, help="may be given again")
    parser.add_argument("--tag")
    parser.add_argument("--function", metavar="NAME", help="or a pattern, such as '*.relax'")
    parser.add_argument(
        "--limit",
        type=parse_limit,
        default=LIMIT,
        help=f"at most so many, 0 for all; default {LIMIT}",
    )


def run(options: argparse.Namespace) -> int:
    history = choice.history(options)
    rows = _selected(history, options)
    shown = list(islice(rows, options.limit or None))
    records = [row.tasks.record(row.number) for row in shown]
    if options.json:
        print_json([record.as_json() for record in records])
        return cli.OK
    head = ("key", "function", "state", "tag", "age", "runtime", "attempts", "agent")
    print_table(head, map(_line, records))
    more = sum(1 for _ in rows)
    if more:
        print(f"... and {more} more (--limit 0 shows all)")
    return cli.OK


def _selected(history: History, options: argparse.Namespace) -> Iterator[Row]:
    for row in history.newest():
        tasks = row.tasks
        if (
            (options.tag is None or tasks.tag == options.tag)
            and (not options.state or row.phase.value in options.state)
            and (options.function is None or _is_named(tasks.function(row.number), options))
        ):
            yield row


def _is_named(function: str, options: argparse.Namespace) -> bool:
    """The whole name, its last part, or a pattern."""
    wanted = options.function
    return fnmatch.fnmatchcase(function, wanted) or function.rpartition(".")[2] == wanted


def _line(record: TaskRecord) -> tuple[object, ...]:
    return (
        record.key[:12],
        record.function,
        record.state,
        record.tag or "-",
        age(record.submitted),
        span(record.wall),
        record.attempts,
        f"{record.agent[:8]}@{record.host}" if record.host else record.agent[:8] or "-",
    )
