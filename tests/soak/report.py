"""What is left of a soak: the spool judged, and what has grown."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from fsbroker.spool import gc
from fsbroker.spool.spool import open_spool
from fsbroker.task import Status
from tests.faults.audit import outcomes, task_rows
from tests.faults.tasks import runs_of

GROWTH = 1.5
"""Times the first half's highest number of open files or memory, that the second may have."""
SLACK = {"files": 20, "MB": 60}


@dataclass
class Watch:
    """Memory, open files and directories, looked at now and then.

    Attributes:
        seen: of each process that was spared: its pid, MB and open files, in order.
        largest: the highest number of names in each directory of the area.
    """

    spool: Path
    seen: dict[str, list[tuple[int, float, int]]] = field(default_factory=dict)
    largest: Counter[str] = field(default_factory=Counter)

    def look(self, pids: Mapping[str, int]) -> None:
        for name, pid in pids.items():
            with suppress(psutil.Error):
                process = psutil.Process(pid) if pid else None
                if process is not None:
                    memory = process.memory_info().rss / 2**20
                    self.seen.setdefault(name, []).append((pid, memory, process.num_fds()))
        root = self.spool / "users" / f"u{os.getuid()}"
        for name in ("tasks", "claims", "agents", "results", "packs", "archive", "tmp", "jobs"):
            with suppress(FileNotFoundError):
                count = len(os.listdir(root / name))
                self.largest[name] = max(self.largest[name], count)

    def grown(self) -> tuple[list[str], list[str]]:
        """Lines for the report, and those of them that are too much."""
        lines, bad = [], []
        for name, samples in self.seen.items():
            pid = samples[-1][0]  # the last that was spared for long
            mine = [one for one in samples if one[0] == pid]
            for unit, at in (("MB", 1), ("files", 2)):
                values = [one[at] for one in mine[len(mine) // 10 :]]
                if len(values) < 4:
                    continue
                early, late = max(values[: len(values) // 2]), max(values[len(values) // 2 :])
                line = (
                    f"spared {name}: {early:.0f} {unit} in the first half, {late:.0f} in the second"
                )
                lines.append(line)
                if late > GROWTH * early + SLACK[unit]:
                    bad.append(line)
        return lines, bad


def judged(spool_path: Path, journal: str) -> tuple[list[str], list[str]]:
    """Lines for the report, and anomalies: lost, published twice, run more often than told."""
    spool = open_spool(spool_path)
    try:
        found = outcomes(spool)
    except AssertionError as error:
        return [], [f"published twice: {error}"]
    rows = task_rows(spool)
    ended = {seen.key for seen in found.values()}
    bad = [f"lost: row {row[1]} of {row[0]}" for row, key in rows.items() if key not in ended]
    allowed: dict[str, int] = defaultdict(int)
    for seen in found.values():
        if seen.status == Status.DONE:
            allowed[_name(seen.value)] += 1 + seen.generation
    runs = runs_of(journal)
    cancelled = [name for name in runs if name.startswith("cancel.")]
    over = {
        name: (count, allowed[name])
        for name, count in runs.items()
        if name in allowed and count > allowed[name] and name not in cancelled
    }
    bad += [f"ran {n} times, {m} are recorded: {name}" for name, (n, m) in over.items()]
    missing = [name for name in allowed if name and name not in runs]
    bad += [f"a value without a run: {name}" for name in missing]
    bad += [f"{live} is still live" for live in spool.files.names(spool.area.tasks)]
    taken_over = sum(1 for seen in found.values() if seen.generation)
    again = sum(count - 1 for count in runs.values())
    usage = gc.usage(spool.files, spool.area)
    total = sum(one.files for one in usage.values())
    left = ", ".join(f"{name} {one.files}" for name, one in usage.items() if one.files)
    return [
        f"outcomes: {len(found)} of {len(rows)} rows",
        f"recoveries: {taken_over} rows taken over or given back",
        f"runs: {sum(runs.values())}, {again} of them again",
        f"files and directories in the end: {total} ({left})",
    ], bad


def _name(value: bytes) -> str:
    """The task's name, which its value begins with; "" if it is no plain value."""
    try:
        found: Any = json.loads(value)
        while isinstance(found, list):
            found = found[0]
    except (ValueError, IndexError):
        return ""
    return found if isinstance(found, str) else ""
