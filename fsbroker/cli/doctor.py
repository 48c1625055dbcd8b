"""Measure what the file system of a spool really does, and say what that means for fsbroker.

Without --peer and --slurm between two processes of this machine: of what other machines see
that says nothing. --slurm measures between two nodes of a job, and between them and here; what
stands behind -- goes to srun. What was found is recorded in spool.yaml: how to lock, whether
readers must change a directory before they believe its listing, how often to look. Clients
and agents that start from then on go by it.

    fsbroker doctor --spool S --slurm -- --partition=short
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any

from fsbroker import cli
from fsbroker.cli.output import plain, print_json
from fsbroker.doctor import partners
from fsbroker.doctor.launching import mpi
from fsbroker.doctor.partners import PartnerFailed
from fsbroker.doctor.probes import Own, Pair, Side
from fsbroker.doctor.verdict import Finding, Level, Report, Sides, examine
from fsbroker.errors import SpoolMissing
from fsbroker.spool.spool import create, read_settings, record

WORDS = {
    Level.FINE: "ok",
    Level.NOTE: "note",
    Level.WARNING: "WARNING",
    Level.UNFIT: "UNFIT",
}
VERDICTS = {
    Level.FINE: (cli.OK, "fsbroker works well here"),
    Level.NOTE: (cli.OK, "fsbroker works well here"),
    Level.WARNING: (cli.FLAWED, "fsbroker works here; see the warnings"),
    Level.UNFIT: (cli.UNFIT, "do not keep a spool here"),
}
VISIBLE = 35.0
"""Seconds until another machine sees a directory that was just made, at worst."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("flags", nargs="*", help="of srun, behind --")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--peer", metavar="HOST", help="measure with this host, by ssh")
    other.add_argument("--slurm", action="store_true", help="measure with two nodes of a job")
    parser.add_argument(
        "--ssh",
        default="ssh -o BatchMode=yes",
        metavar="COMMAND",
        help="that takes a host and a command; default: ssh -o BatchMode=yes",
    )
    parser.add_argument("--peer-spool", metavar="DIRECTORY", help="the spool, as others see it")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the others")
    parser.add_argument("--dry-run", action="store_true", help="measure, record nothing")


def run(options: argparse.Namespace) -> int:
    root = os.path.abspath(options.spool)
    if not os.path.isdir(os.path.dirname(root)):
        raise SpoolMissing("No such directory", os.path.dirname(root))
    os.makedirs(root, mode=0o700, exist_ok=True)
    with _directory(root) as name:
        report = _examined(options, root, name)
    recorded = _record(root, report) if not options.dry_run and report.level < Level.UNFIT else {}
    code, verdict = VERDICTS[report.level]
    if options.json:
        print_json(_shown(report, recorded, verdict))
    else:
        _print(report, recorded, verdict)
    return code


@contextmanager
def _directory(root: str) -> Iterator[str]:
    """A directory to measure in: a name that begins with a dot is never looked at."""
    name = f".doctor.{os.urandom(8).hex()}"
    os.mkdir(f"{root}/{name}", 0o700)
    try:
        yield name
    finally:
        shutil.rmtree(f"{root}/{name}", ignore_errors=True)
        with suppress(OSError):  # what another NFS client has open goes when it is closed
            shutil.rmtree(f"{root}/{name}")


def _examined(options: argparse.Namespace, root: str, name: str) -> Report:
    here, there = f"{root}/{name}", f"{options.peer_spool or root}/{name}"
    trouble = []
    with ExitStack() as stack:
        own = Own(here)
        local = stack.enter_context(partners.started(partners.hands_in(here)))
        pairs = [Pair("between two processes here", own, local)]
        others: dict[str, Side] = {}
        try:
            others = _others(options, there, stack)
        except PartnerFailed as error:
            trouble.append(
                Finding(Level.WARNING, "partners", f"nothing was measured with others: {error}")
            )
        names = list(others)
        pairs += [Pair(f"between here and {one}", own, others[one]) for one in names]
        pairs += [Pair(f"between {a} and {b}", others[a], others[b]) for a, b in pairwise(names)]
        report = examine(Sides(own, others, pairs, root))
    if not others:
        text = "measured on this machine alone"
        does = "nothing is known of other machines: use --slurm, or --peer HOST"
        level = Level.NOTE if own.about["file_system"] not in _SHARED else Level.WARNING
        trouble.append(Finding(level, "partners", text, does))
    findings = [*report.findings, *trouble, *mpi(options.slurm, options.flags, options.python)]
    return report._replace(findings=findings)


_SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "fuse", "fuse.sshfs")


def _others(options: argparse.Namespace, there: str, stack: ExitStack) -> dict[str, Side]:
    found: list[partners.Partner] = []
    if options.slurm:
        for _ in range(2):
            besides = found[0].about["host"] if found else ""
            command = partners.by_srun(options.flags, there, options.python, besides)
            found.append(stack.enter_context(partners.started(command, partners.QUEUE)))
    elif options.peer:
        command = partners.by_ssh(options.ssh, options.peer, there, options.python)
        found.append(stack.enter_context(partners.started(command)))
    else:
        return {}
    for one in found:
        _wait_for(one)
    names = [str(one.about["host"]) for one in found]
    if len(set(names)) < len(names) or names[0] == platform.node():
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return dict(zip(names, found, strict=True))


def _wait_for(partner: partners.Partner) -> None:
    """Until the other side has the directory: it may have looked for it before."""
    until = time.monotonic() + VISIBLE
    while True:
        try:
            partner.call("listed", ".")
        except PartnerFailed:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


def _record(root: str, report: Report) -> dict[str, Any]:
    spool = create(root)
    settings = read_settings(spool.files)
    settings = settings._replace(lock=report.lock, nudge=report.nudge, pause=report.pause)
    record(spool, settings)
    return settings._asdict()


def _shown(report: Report, recorded: dict[str, Any], verdict: str) -> dict[str, Any]:
    found = [{**one._asdict(), "level": one.level.name.lower()} for one in report.findings]
    return {
        "findings": found,
        "recorded": recorded,
        "level": report.level.name.lower(),
        "verdict": verdict,
    }


def _print(report: Report, recorded: dict[str, Any], verdict: str) -> None:
    for one in report.findings:
        print(f"{WORDS[one.level]:<8} {one.topic}: {plain(one.found)}")
        if one.does and one.level > Level.FINE:
            print(f"{'':<8} -> {plain(one.does)}")
    print(f"\n{verdict}")
    if recorded:
        said = ", ".join(f"{name} {value}" for name, value in recorded.items())
        print(f"recorded in spool.yaml: {said}")
