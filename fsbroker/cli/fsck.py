"""Check every file, record, key and outcome of a spool; with --repair, mend what can be mended.

Repair deletes no result: what is bad goes to quarantine/, tasks whose outcomes went with
it run again, and what is lost for ever is listed. Some repairs wait until no agent is at work.
Only your own files are read; those of others are listed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from fsbroker import cli
from fsbroker.cli.output import plain, print_json
from fsbroker.errors import SpoolError
from fsbroker.spool import fsck
from fsbroker.spool.fsck import Finding, Kind, Weight
from fsbroker.spool.layout import SPOOL_FILE
from fsbroker.spool.mend import Repaired, mend
from fsbroker.spool.spool import Spool, open_to_check, renew_settings

SHOWN = 10
"""Findings of one kind that are printed, and keys of one finding; --json has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")


def run(options: argparse.Namespace) -> int:
    spool, broken = open_to_check(options.spool)
    repaired = _repair(spool, broken) if options.repair else Repaired([], [])
    findings, _ = fsck.survey(spool.files, spool.area)
    if broken is not None and not options.repair:
        findings.insert(0, _settings(broken))
    if options.json:
        told = {
            "repaired": [_shown(one) for one in repaired.done],
            "trouble": repaired.trouble,
            "findings": [_shown(one) for one in findings],
        }
        print_json(told)
    else:
        _print(repaired, findings)
    return _verdict(findings)


def _repair(spool: Spool, broken: SpoolError | None) -> Repaired:
    if broken is not None:
        renew_settings(spool)
    found = mend(spool.files, spool.area)
    return found if broken is None else found._replace(done=[_settings(broken), *found.done])


def _settings(error: SpoolError) -> Finding:
    return Finding(Kind.SETTINGS, SPOOL_FILE, error.what)


def _verdict(findings: Sequence[Finding]) -> int:
    worst = max((one.kind.weight for one in findings), default=Weight.NOTE)
    return {Weight.LOST: cli.UNFIT, Weight.MENDABLE: cli.FLAWED, Weight.NOTE: cli.OK}[worst]


def _shown(one: Finding) -> dict[str, Any]:
    return {
        "kind": one.kind.name.lower(),
        "weight": one.kind.weight.name.lower(),
        "path": one.path,
        "what": one.what,
        "keys": list(one.keys),
    }


def _print(repaired: Repaired, findings: Sequence[Finding]) -> None:
    if repaired.done:
        print("repaired:")
        _print_kinds(repaired.done)
    for trouble in repaired.trouble:
        print(f"not repaired: {plain(trouble)}")
    if findings:
        _print_kinds(findings)
    if _verdict(findings) == cli.OK:
        print("the spool is sound")


def _print_kinds(findings: Sequence[Finding]) -> None:
    for kind in Kind:
        mine = [one for one in findings if one.kind is kind]
        if not mine:
            continue
        print(f"{kind.words} ({len(mine)})")
        for one in mine[:SHOWN]:
            print(f"  {plain(one.path)}{f': {plain(one.what)}' if one.what else ''}")
            for key in one.keys[:SHOWN]:
                print(f"    {key}")
        if len(mine) > SHOWN:
            print(f"  ... and {len(mine) - SHOWN} more (--json shows all)")
