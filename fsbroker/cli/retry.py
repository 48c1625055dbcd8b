"""Try failed and cancelled tasks anew.

Each gets a new row in a new task file, from the stored function and arguments: the code
that made it is not needed. With a task go the failed ones that it depends on, without
which it could only fail again, and those that failed because it did.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NamedTuple

from fsbroker import cli
from fsbroker.cli import agents, choice
from fsbroker.cli.output import print_json, print_table
from fsbroker.client.again import Again
from fsbroker.client.history import History, Phase, Row
from fsbroker.config import Config
from fsbroker.launch.local import LocalLauncher
from fsbroker.needs import Shape, parse_shape
from fsbroker.spool.layout import parse_stem
from fsbroker.spool.spool import Spool, open_spool


class Answer(NamedTuple):
    """What became of one task. ``done``: it will run again."""

    key: str
    function: str
    done: bool
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice.add_keys(parser, "a task")
    parser.add_argument(
        "--agents",
        action="store_true",
        help="start an agent on this machine if none that is present can run them",
    )


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    history = History(spool)
    named = choice.chosen(options, history)
    if options.tag is not None and not options.keys:
        named = [row for row in named if row.phase in Again.RETRIED]
    again = Again(spool, history)
    rows = again.with_others(row for row in named if row.phase in Again.RETRIED)
    stems = again.publish(rows)
    answers = [_answer(row, named) for row in _distinct([*named, *rows])]
    hint = _who_runs(spool, stems, start=options.agents) if stems else ""
    if options.json:
        told = [answer._asdict() for answer in answers]
        print_json({"tasks": told, "task_files": stems, "agents": hint})
    else:
        table = [(one.key[:12], one.function, one.text) for one in answers]
        print_table(("key", "function", "what happened"), table)
        print(f"\n{hint}" if hint else "", end="\n" if hint else "")
    return cli.OK if all(answer.done for answer in answers) else cli.NOTHING_TO_DO


def _distinct(rows: Iterable[Row]) -> list[Row]:
    return list({row.key: row for row in rows}.values())


def _answer(row: Row, named: list[Row]) -> Answer:
    key, function, phase = row.key.hex(), row.tasks.function(row.number), row.phase
    if phase not in Again.RETRIED:
        what = "has a value" if phase is Phase.DONE else f"is {phase.value}"
        return Answer(key, function, False, f"left alone, it {what}")
    why = "" if row in named else ": it goes with one that was named"
    return Answer(key, function, True, f"tried anew in round {row.round + 1}{why}")


def _who_runs(spool: Spool, stems: list[str], *, start: bool) -> str:
    """The agents that can run the new rows; without any, how to start one."""
    names = [name for stem in stems if (name := parse_stem(stem))]
    lacking = [
        name for name in names if not any(seen.can_run(name) for seen in agents.present(spool))
    ]
    if not lacking:
        able = [str(seen) for seen in agents.present(spool) if any(map(seen.can_run, names))]
        return f"to be run by {', '.join(able)}"
    shapes = [parse_shape(name.shape) or Shape() for name in lacking]
    cores = max(shape.cores * shape.threads for shape in shapes)
    if start:
        launcher = LocalLauncher(spool, Config(max_workers=cores))
        return f"started an agent with {cores} cores (pid {launcher.submit()})"
    command = f"fsbroker agent --spool {spool.files.root} --cores {cores}"
    return f"no agent that is present can run all of them; start one: {command}"
