"""How many tasks are in which state, which agents are there, and what the spool holds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from fsbroker import cli
from fsbroker.cli import agents
from fsbroker.cli.output import plain, print_json, print_table, size, span
from fsbroker.client.history import History, Phase
from fsbroker.spool import gc
from fsbroker.spool.spool import open_spool

WINDOWS = (60.0, 600.0, 3600.0)
"""Seconds over which throughput is counted."""
PENDING = (Phase.WAITING, Phase.PUT_OFF, Phase.READY, Phase.RUNNING)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 4 if some tasks failed or were cancelled, with 5 if some have not ended",
    )


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    found = History(spool)
    told = {
        "spool": spool.files.root,
        "area": spool.area.path,
        "tasks": {phase.value: count for phase, count in found.counts().items()},
        "agents": [seen.as_json() for seen in agents.present(spool)],
        "ended": _throughput(found),
        "directories": {
            name: {"files": used.files, "bytes": used.bytes}
            for name, used in gc.usage(spool.files, spool.area).items()
        },
        "unreadable": {path: str(error) for path, error in found.unreadable.items()},
    }
    print_json(told) if options.json else _print(told)
    return verdict(found.counts()) if options.check else cli.OK


def _throughput(history: History) -> dict[str, int]:
    """How many tasks ended in the last seconds, by the clocks of agents and of this host."""
    times = [tasks.ended_at() for tasks in history.tasks.values()]
    ages = time.time() - np.concatenate([np.zeros(0), *times])
    return {f"{window:.0f}": int((ages <= window).sum()) for window in WINDOWS}


def verdict(counts: Mapping[Phase, int]) -> int:
    """The exit code for so many tasks in each phase."""
    if counts[Phase.FAILED] or counts[Phase.CANCELLED]:
        return cli.SOME_FAILED
    return cli.NOT_ENDED if any(counts[phase] for phase in PENDING) else cli.OK


def _print(told: dict[str, Any]) -> None:
    print(f"spool {plain(told['spool'])}, {told['area']}\n")
    shown = {
        state: count
        for state, count in told["tasks"].items()
        if count or state not in (Phase.ALIASED.value, Phase.REMOVED.value)
    }
    print_table(("state", "tasks"), shown.items())
    print(f"\n{_speed(told)}\n")
    _print_agents(told["agents"])
    print()
    used = told["directories"]
    rows = [(name, one["files"], size(one["bytes"])) for name, one in used.items() if one["files"]]
    total = [sum(one[what] for one in used.values()) for what in ("files", "bytes")]
    print_table(("directory", "files", "size"), [*rows, ("all", total[0], size(total[1]))])
    for path, error in told["unreadable"].items():
        print(f"\ncannot be read: {path}: {error}")


def _speed(told: dict[str, Any]) -> str:
    """How fast it goes, and for how long still."""
    parts = [f"{told['ended'][f'{w:.0f}']} in the last {span(w)}" for w in WINDOWS]
    text = f"ended: {', '.join(parts)}"
    pending = sum(told["tasks"][phase.value] for phase in PENDING)
    window = next((w for w in WINDOWS if told["ended"][f"{w:.0f}"]), None)
    if pending and window is not None:
        rate = told["ended"][f"{window:.0f}"] / window
        text += f"; at that rate the other {pending} take {span(pending / rate)}"
    return text


def _print_agents(found: list[dict[str, Any]]) -> None:
    if not found:
        print("no agent is present")
        return
    head = ("agent", "host", "pid", "place", "cores", "life", "beat", "result files")
    columns = ("agent", "host", "pid", "place", "cores", "life", "beat", "published")
    print_table(head, [[one[column] for column in columns] for one in found])
