"""What the open work of an area needs: read from the spool, by whoever submits jobs.

task files, logs, results --> Work (rows that wait for an agent, by kind)
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.needs import Shape, parse_shape
from fsbroker.spool import presence
from fsbroker.spool.index import Results
from fsbroker.spool.live import LiveFile, LiveFiles
from fsbroker.spool.log import Retired, State
from fsbroker.spool.spool import Spool


@dataclass
class Work:
    """Open rows of one shape.

    Attributes:
        queue: what they ask of the site.
        limits: seconds that each may run; 0 if it has no limit.
        ready: rows, as "<stem>.<row>", that an agent could take now.
        waiting: rows whose inputs are not there, as far as their log says, with the rows
            that will make them.
        held: number of rows that agents hold.
    """

    shape: Shape
    queue: Mapping[str, Any] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    ready: list[str] = field(default_factory=list)
    waiting: dict[str, list[str]] = field(default_factory=dict)
    held: int = 0


class Demand:
    """The open work of an area, as far as was read; each look reads what is new."""

    def __init__(self, spool: Spool, environment: str) -> None:
        files, area, durable = spool
        self._environment = environment
        self._live = LiveFiles(files, area)
        self._results = Results(files, area, durable=durable)
        self._spool = spool
        self._observer = presence.Observer(files, area)
        self._job_of: dict[str, str] = {}

    def look(self, ended: Collection[str] = (), *, inputs: bool) -> list[Work]:
        """All open work that this interpreter's agents can do, by shape.

        Args:
            ended: ids of queue jobs that are over: what their agents hold is open.
            inputs: also which rows make what the waiting ones need.
        """
        self._live.poll(afresh=True)
        self._results.poll(deep=True)
        for _ in self._results.news():
            pass  # only what has ended matters here
        agents = self._living(ended)
        found: dict[Shape, Work] = {}
        for live in self._live:
            shape = parse_shape(live.name.shape)
            if shape is None or live.name.environment != self._environment:
                continue
            try:
                live.log.refresh()
                self._add(found, shape, live, agents)
            except (Retired, FileNotFoundError):
                self._live.forget(live.stem)
            except (FileDamaged, FileRefused) as error:
                self._live.set_aside(live.stem, error)
        if inputs:
            self._name_inputs(found)
        return list(found.values())

    def jobs(self) -> set[str]:
        """Ids of the queue jobs whose agents were seen."""
        return {job for job in self._job_of.values() if job}

    def _living(self, ended: Collection[str]) -> set[str]:
        """Agents that are neither of a job that is over nor silent for long."""
        files, area, _ = self._spool
        present = self._results.present()
        silent = self._observer.poll(present, (), prompt=True)
        for one in present:
            if one.agent not in self._job_of and (told := presence.about(files, area, one)):
                self._job_of[one.agent] = str(told.get("job") or "")
        living = {one.agent for one in present if self._job_of.get(one.agent) not in ended}
        return living.difference(silent)

    def _add(
        self, found: dict[Shape, Work], shape: Shape, live: LiveFile, agents: set[str]
    ) -> None:
        fold, work = live.log.fold, None
        for row in self._open_rows(live):
            state = fold.state[row]
            if work is None:
                work = found.setdefault(shape, Work(shape, _queue(live)))
            name = f"{live.stem}.{row}"
            work.limits[name] = float(live.file.rows["time_limit"][row])
            if state == State.WAITING:
                work.waiting[name] = []
            elif state == State.READY or fold.owner_of(row) not in agents:
                work.ready.append(name)  # or it is held by one that is gone
            elif not live.is_put_off(row):
                work.held += 1

    def _open_rows(self, live: LiveFile) -> list[int]:
        ended = self._results.ended(live.stem, live.file.keys)
        over = (State.ALIASED, State.CANCELLED)
        states = enumerate(live.log.fold.state)
        return [row for row, state in states if not ended[row] and state not in over]

    def _name_inputs(self, found: dict[Shape, Work]) -> None:
        if not any(work.waiting for work in found.values()):
            return
        makers: dict[bytes, str] = {}
        for live in self._live:
            with suppress(FileNotFoundError, FileDamaged, FileRefused):
                rows = self._open_rows(live)
                makers.update((live.file.keys[row], f"{live.stem}.{row}") for row in rows)
        for work in found.values():
            for name in work.waiting:
                stem, _, row = name.rpartition(".")
                live_file = self._live.get(stem)
                if live_file is not None:
                    needed = {key for (key, _), _ in live_file.file.dependencies(int(row))}
                    work.waiting[name] = [makers[key] for key in needed if key in makers]


def _queue(live: LiveFile) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(live.file.meta.get("queue") or "{}")
    return found
