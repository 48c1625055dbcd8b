"""Repairs what `fsck` has found, by the protocol's own means; no result is deleted.

    seal the streams of agents that are gone -> look again -> repair, finding by finding

A file that is bad goes to ``quarantine/``, what can be read of its outcomes into a pack before
that. Rows whose outcomes went with it run again, by a `lost` record. A hole in a log is filled
with a record that says nothing; a claim that went with it is made anew in its agent's name.
Whatever an agent that may live could be doing at this moment is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from fsbroker.errors import FileDamaged, FileRefused, SpoolError
from fsbroker.spool import fsck, gc, streams
from fsbroker.spool.files import Files
from fsbroker.spool.fsck import Finding, Kind, Sound
from fsbroker.spool.layout import Area, is_agent, parse_record, parse_stem
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Kind as RecordKind
from fsbroker.spool.log import Log, Range, Record, fitting, ranges_of
from fsbroker.spool.publish import publish
from fsbroker.spool.streams import ResultFile
from fsbroker.task import Blob

PASSES = 3
"""One repair may bring another to light: a task file that is set aside leaves its log."""
SEALER = "fsck"
"""Who closed a stream, as its seal says."""


class Busy(SpoolError):
    """An agent that may be at work has to do with it."""


class Repaired(NamedTuple):
    """What came of a repair.

    Attributes:
        done: findings that were mended. trouble: why others were not.
    """

    done: list[Finding]
    trouble: list[str]


def mend(files: Files, area: Area) -> Repaired:
    """Repair what can be repaired now."""
    done: list[Finding] = []
    trouble: list[str] = []
    for _ in range(PASSES):
        _seal_the_gone(files, area)
        findings, sound = fsck.survey(files, area)
        repair = _Repair(files, area, sound)
        before = len(done)
        trouble = []
        for finding in findings:
            try:
                if repair.repair(finding):
                    done.append(finding)
            except (OSError, SpoolError) as error:
                trouble.append(f"{finding.path}: {error}")
        if len(done) == before:
            break
    return Repaired(done, trouble)


def _seal_the_gone(files: Files, area: Area) -> None:
    """From now on no agent that is not seen will publish, should it only have slept."""
    alive = set(fsck.alive(files, area))
    for agent in filter(is_agent, files.names(area.results)):
        if agent not in alive and streams.entries(files, area, agent):
            streams.seal(files, area, agent, by=SEALER)
    _, sound = fsck.survey(files, area)
    for stem in sound.folds:
        for agent in fsck.unfinished(files, area, stem, sound):
            streams.seal(files, area, agent, by=SEALER)


class _Repair:
    def __init__(self, files: Files, area: Area, sound: Sound) -> None:
        self._files = files
        self._area = area
        self._sound = sound
        self._alive = set(fsck.alive(files, area))
        self._by: str = files.token()
        self._leftovers: gc.Rubbish | None = None
        self._ways: dict[Kind, Callable[[Finding], bool]] = {
            Kind.LEFTOVER: self._sweep,
            Kind.DAMAGED: self._set_aside,
            Kind.HOLE: self._fill,
            Kind.UNCLAIMED: self._claim_again,
            Kind.UNFINISHED: self._reopen,
            Kind.NO_LOG: self._give_a_log,
            Kind.NO_TASKS: self._bury_log,
            Kind.NO_BLOB: self._forget_values,
        }

    def repair(self, finding: Finding) -> bool:
        """Mend one; False if there is no way to.

        Raises:
            Busy: not while these agents live. OSError, SpoolError: it failed.
        """
        way = self._ways.get(finding.kind)
        return way is not None and way(finding)

    def _must_be_quiet(self) -> None:
        if self._alive:
            raise Busy("Agents are at work", ", ".join(sorted(self._alive)), "End them first")

    def _sweep(self, finding: Finding) -> bool:
        if self._leftovers is None:
            self._leftovers = fsck.leftovers(self._files, self._area)
        items = [item for item in self._leftovers.items if item.path == finding.path]
        rubbish = self._leftovers._replace(items=items)
        return bool(items) and not gc.remove(self._files, self._area, rubbish)

    # -- files ---------------------------------------------------------------------------

    def _set_aside(self, finding: Finding) -> bool:
        """Into quarantine; what can be read of a file of outcomes is published anew first."""
        path = finding.path
        directory, agent = self._area.directory_of(path), self._area.agent_of(path)
        if agent in self._alive:
            raise Busy("Its agent is at work, and sets it aside itself", agent)
        if directory in (self._area.results, self._area.packs):
            self._salvage(path)
        if directory == self._area.claims:
            self._must_be_quiet()
        self._files.rename(path, self._area.quarantined(path, self._files.token()))
        if directory == self._area.claims:  # a checkpoint: the records before it say the same
            self._files.symlink(self._void(), path)
        self._files.sync_directory(path.rpartition("/")[0])
        return True

    def _forget_values(self, finding: Finding) -> bool:
        """Outcomes whose array is gone stand in the way of those that would be computed anew."""
        directory = self._area.directory_of(finding.subject)
        if directory not in (self._area.results, self._area.packs):
            return False
        with suppress(FileNotFoundError):  # another array of the same file was missing, too
            self._set_aside(finding._replace(path=finding.subject))
        return True

    def _salvage(self, path: str) -> None:
        try:
            file = ResultFile(self._files, path)
        except (FileDamaged, FileRefused, ValueError):
            return  # nothing of it can be read
        with file:
            sound = [index for index in range(len(file.rows)) if self._is_sound(file, index)]
            if sound:
                kept = np.array(sorted(sound, key=file.keys.__getitem__), dtype=np.intp)
                made = gc.subset(self._files.token(), file, kept)
                target = self._area.pack(1, made.token)
                publish(self._files, self._area, made, target, durable=True)

    def _is_sound(self, file: ResultFile, index: int) -> bool:
        try:
            for array in file.value(index).arrays:
                if isinstance(array.data, Blob):
                    self._files.size(self._area.blob(array.data.name))
            file.error(index)
            file.origin(index)
        except (FileNotFoundError, FileDamaged, FileRefused, ValueError, LookupError):
            return False
        return True

    # -- logs ----------------------------------------------------------------------------

    def _void(self) -> str:
        return f"{fsck.VOID} {self._by} {self._files.token()} - purged"

    def _fill(self, finding: Finding) -> bool:
        """Later records count again. Any appender might do so: nobody is disturbed."""
        is_task_log = finding.path.startswith(self._area.claims)
        if is_task_log:
            self._must_be_quiet()  # what the record gave to somebody is not known
        names = self._files.names(finding.path)
        numbers = {number for name in names if (number := parse_record(name)) is not None}
        for number in sorted(set(range(max(numbers))) - numbers):
            with suppress(FileExistsError):
                text = self._void() if is_task_log else f'{{"kind":"{fsck.VOID}"}}'
                self._files.symlink(text, f"{finding.path}/{number:08d}")
        self._files.sync_directory(finding.path)
        if is_task_log:
            self._claim_again(finding._replace(subject=finding.path.rpartition("/")[2]))
        return True

    def _log(self, stem: str) -> Log:
        name = parse_stem(stem)
        assert name is not None
        log = LiveFile(self._files, self._area, stem, name).log
        log.refresh()
        return log

    def _published(self, log: Log) -> dict[str, list[int]]:
        """Rows that have an outcome and could be claimed, by the agent that published it."""
        found: dict[str, list[int]] = {}
        for row in log.fold.rows_in(*fsck.RUNS_AGAIN):
            origin = self._sound.outcomes.get((log.stem, row))
            if origin is not None:
                found.setdefault(origin.partition(".")[0], []).append(row)
        return found

    def _claim_again(self, finding: Finding) -> bool:
        self._must_be_quiet()
        log = self._log(finding.subject)
        for agent, rows in self._published(log).items():
            self._append(log, RecordKind.CLAIM, rows, agent)
        log.sync()
        return True

    def _reopen(self, finding: Finding) -> bool:
        """Their agents' streams are sealed: no outcome will come."""
        log = self._log(finding.subject)
        self._sound.folds[finding.subject] = log.fold
        held = fsck.unfinished(self._files, self._area, finding.subject, self._sound)
        generations: dict[int, list[int]] = {}
        for rows in held.values():
            for row in rows:
                generations.setdefault(log.fold.generation[row], []).append(row)
        for generation, rows in generations.items():
            about = f"{generation} its agent is gone, or its result was"
            self._append(log, RecordKind.LOST, sorted(rows), self._by, about)
        log.sync()
        return True

    def _append(
        self, log: Log, kind: RecordKind, rows: Sequence[int], by: str, about: str = ""
    ) -> None:
        left: Sequence[Range] = ranges_of(rows)
        while left:
            part = fitting(left, about)
            if not log.append(kind, by, part, about):
                raise Busy("Somebody else writes to this log", log.path, "Run fsck again")
            left = left[len(part) :]

    def _give_a_log(self, finding: Finding) -> bool:
        """A log that claims, in their agents' names, what has an outcome: made aside, whole."""
        self._must_be_quiet()
        stem = finding.subject
        claims: dict[str, list[int]] = {}
        for row in range(len(self._sound.rows[stem])):
            origin = self._sound.outcomes.get((stem, row))
            if origin is not None:
                claims.setdefault(origin.partition(".")[0], []).append(row)
        made = self._area.temporary(f"log-{self._files.token()}")
        self._files.mkdir(made)
        for number, (agent, ranges) in enumerate(_parts(claims)):
            record = Record(RecordKind.CLAIM, agent, self._files.token(), tuple(ranges))
            self._files.symlink(record.text(), f"{made}/{number:08d}")
        self._files.sync_directory(made)
        self._files.rename(made, self._area.log(stem))
        self._files.sync_directory(self._area.claims)
        return True

    def _bury_log(self, finding: Finding) -> bool:
        grave = self._area.temporary(f"log-{self._files.token()}")
        self._files.rename(finding.path, grave)
        return True


def _parts(claims: dict[str, list[int]]) -> list[tuple[str, Sequence[Range]]]:
    """Rows of each agent, in as many records as they need."""
    found: list[tuple[str, Sequence[Range]]] = []
    for agent, rows in claims.items():
        left: Sequence[Range] = ranges_of(rows)
        while left:
            part = fitting(left)
            found.append((agent, part))
            left = left[len(part) :]
    return found
