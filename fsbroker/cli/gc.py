"""Remove what nobody needs any more; first show what the spool holds.

Removed are temporary files left over from crashes, arrays that nothing refers to, what
agents left behind, and, if older than --older-than, finished task files and what tasks
wrote to stdout and stderr. Results stay, unless --results asks for their removal;
even then those that a task still to run depends on. Tasks with a tag keep their task
files and results, unless --tagged gives them up as well. Without its task file a task
can be neither explained nor retried.
"""

from __future__ import annotations

import argparse
from typing import Any

from fsbroker import cli
from fsbroker.cli.output import parse_span, plain, print_json, print_table, size
from fsbroker.spool import gc
from fsbroker.spool.gc import Item, Kind, Rubbish, Usage, Wishes
from fsbroker.spool.spool import Spool, open_spool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show what would go, and stop")
    parser.add_argument(
        "--older-than",
        type=parse_span,
        default=parse_span("30d"),
        metavar="TIME",
        help="for task files, output and results: 30d, 12h, 90m, ...; default 30d",
    )
    parser.add_argument("--results", action="store_true", help="results, too")
    parser.add_argument("--tagged", action="store_true", help="those of tasks with a tag, too")


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    wishes = Wishes(options.older_than, options.results, options.tagged)
    before = _total(spool)
    rubbish = gc.survey(spool.files, spool.area, wishes)
    trouble = [] if options.dry_run else _remove(spool, rubbish, wishes)
    after = before if options.dry_run else _total(spool)
    told = {
        "dry_run": options.dry_run,
        "before": _shown(before),
        "after": _shown(after),
        "items": [_shown_item(item) for item in rubbish.items],
        "notes": rubbish.notes,
        "trouble": trouble,
    }
    print_json(told) if options.json else _print(told, rubbish.items)
    return cli.ERROR if trouble else cli.OK


def _remove(spool: Spool, rubbish: Rubbish, wishes: Wishes) -> list[str]:
    trouble = gc.remove(spool.files, spool.area, rubbish)
    if any(item.kind in (Kind.RESULT, Kind.ARCHIVED) for item in rubbish.items):
        # Arrays that only those referred to are free now.
        again = gc.survey(spool.files, spool.area, wishes)
        blobs = [item for item in again.items if item.kind is Kind.BLOB]
        trouble += gc.remove(spool.files, spool.area, again._replace(items=blobs))
        rubbish.items.extend(blobs)
    return trouble


def _total(spool: Spool) -> Usage:
    return sum(gc.usage(spool.files, spool.area).values(), Usage())


def _shown(used: Usage) -> dict[str, int]:
    return {"files": used.files, "bytes": used.bytes}


def _shown_item(item: Item) -> dict[str, Any]:
    return {"kind": item.kind.name.lower(), "path": item.path, **_shown(item.size)}


def _print(told: dict[str, Any], items: list[Item]) -> None:
    before, after = told["before"], told["after"]
    print(f"the spool holds {before['files']} files, {size(before['bytes'])}\n")
    kinds: dict[Kind, Usage] = {}
    for item in items:
        kinds[item.kind] = kinds.get(item.kind, Usage()) + item.size
    if kinds:
        rows = [(kind.value, used.files, size(used.bytes)) for kind, used in kinds.items()]
        head = ("would go" if told["dry_run"] else "gone", "files", "size")
        print_table(head, rows)
    else:
        print("nothing to remove")
    for note in (*told["notes"], *told["trouble"]):
        print(plain(note))
    if told["dry_run"]:
        print("\na dry run: nothing was removed")
    elif kinds:
        print(f"\nnow it holds {after['files']} files, {size(after['bytes'])}")
