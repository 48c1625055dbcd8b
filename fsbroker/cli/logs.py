"""What a task wrote to stdout and stderr, by rank: of its last attempt."""

from __future__ import annotations

import argparse
import sys

from fsbroker import cli
from fsbroker.cli import choice
from fsbroker.cli.output import print_json
from fsbroker.client.history import History, Phase, Row, outputs_of
from fsbroker.spool.layout import parse_output
from fsbroker.spool.spool import Spool, open_spool

STREAMS = {"out": "stdout", "err": "stderr"}

Output = dict[tuple[int, str], bytes]
"""What was written, by rank and stream ("out", "err")."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice.add_key(parser)
    parser.add_argument("--rank", type=int, help="of this MPI rank only")
    streams = parser.add_mutually_exclusive_group()
    streams.add_argument("--stdout", dest="stream", action="store_const", const="out")
    streams.add_argument("--stderr", dest="stream", action="store_const", const="err")


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    row = choice.find(History(spool), options.key)
    directory = _newest(spool, row)
    written = _read(spool, directory) if directory is not None else {}
    wanted = {
        (rank, stream): content
        for (rank, stream), content in sorted(written.items(), key=_order)
        if options.rank in (None, rank) and options.stream in (None, stream) and content
    }
    if options.json:
        _print_json(spool, row, directory, wanted)
    elif wanted:
        _print(wanted)
    else:
        print(_why_nothing(row), file=sys.stderr)
    return cli.OK


def _order(item: tuple[tuple[int, str], bytes]) -> tuple[int, bool]:
    (rank, stream), _ = item
    return rank, stream == "err"


def _newest(spool: Spool, row: Row) -> str | None:
    """The directory of the attempt that gave the outcome; without one, of the last."""
    found = outputs_of(spool, row.key)
    ending = row.tasks.ending(row.number)
    if ending is not None:
        return found.get((str(ending.origin.get("agent", "")), ending.generation))
    return next(reversed(found.values()), None)


def _read(spool: Spool, directory: str) -> Output:
    written = {}
    for name in spool.files.names(directory):
        output = parse_output(name)
        if output is not None:
            with spool.files.open(f"{directory}/{name}") as file:
                written[output] = file.read(0, file.size)
    return written


def _print(written: Output) -> None:
    """As it was written; with titles if there are several."""
    for (rank, stream), content in written.items():
        if len(written) > 1:
            print(f"== rank {rank} {STREAMS[stream]}")
        _write(content)


def _write(content: bytes) -> None:
    text = content.decode(errors="replace")
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


def _print_json(spool: Spool, row: Row, directory: str | None, written: Output) -> None:
    ranks: dict[int, dict[str, str]] = {}
    for (rank, stream), content in written.items():
        ranks.setdefault(rank, {})[STREAMS[stream]] = content.decode(errors="replace")
    print_json(
        {
            "key": row.key.hex(),
            "state": row.phase.value,
            "directory": f"{spool.files.root}/{directory}" if directory else None,
            "ranks": [{"rank": rank, **texts} for rank, texts in ranks.items()],
        }
    )


def _why_nothing(row: Row) -> str:
    if row.phase is Phase.RUNNING:
        return "nothing yet: what a task writes is kept when it ends"
    if row.phase in (Phase.WAITING, Phase.PUT_OFF, Phase.READY):
        return f"nothing: the task is {row.phase.value}"
    return "nothing: it wrote nothing, or gc removed it"
