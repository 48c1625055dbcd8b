"""What measurements mean: in plain words, with what fsbroker does about it.

Sides -> examine -> Report: findings, and the settings that fit this file system
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fsbroker.doctor import probes, purges
from fsbroker.doctor.hands import PACKAGES
from fsbroker.doctor.partners import PartnerFailed
from fsbroker.doctor.probes import Pair, Side
from fsbroker.spool.spool import LOCK_CLASSES, LONGEST_PAUSE

LITTLE_SPACE = 1 << 30
FEW_INODES = 10_000
SLOW_LISTING = 0.05
SHARE = 0.1
"""Of the time at most so much is spent listing."""
LATE = 1.0
"""Seconds to see a new file that are worth a word."""
OFF = 5.0
"""Seconds that clocks may differ without a word."""


class Level(enum.IntEnum):
    """How bad it is."""

    FINE = 0
    NOTE = 1
    WARNING = 2
    UNFIT = 3
    """A rule that the protocol rests on does not hold here."""


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        topic: what was measured. found: what was seen. does: what fsbroker does about it.
        facts: the numbers, for programs.
    """

    level: Level
    topic: str
    found: str
    does: str = ""
    facts: Any = None


class Report(NamedTuple):
    """All findings, and what is to be recorded.

    Attributes:
        lock: the class that excludes everywhere. nudge, pause: as of `spool.Settings`.
    """

    findings: list[Finding]
    lock: str
    nudge: bool
    pause: float

    @property
    def level(self) -> Level:
        return max((one.level for one in self.findings), default=Level.FINE)


class Sides(NamedTuple):
    """Who measures.

    Attributes:
        own: this process. others: by name. pairs: whom to measure against whom.
        root: the directory of the spool.
    """

    own: Side
    others: dict[str, Side]
    pairs: list[Pair]
    root: str


def examine(sides: Sides) -> Report:
    """Measure everything; a probe that fails is a finding, too."""
    examination = _Examination(sides)
    examination.run()
    lock = next((kind for kind in LOCK_CLASSES if examination.excludes.get(kind, True)), "none")
    return Report(examination.findings, lock, examination.nudge, examination.pause)


class _Examination:
    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self.findings: list[Finding] = []
        self.excludes: dict[str, bool] = {}
        self.nudge = False
        self.pause = 0.0

    def run(self) -> None:
        steps: Sequence[Callable[[], Iterator[Finding]]] = (
            self._room,
            self._rights,
            self._names,
            self._links,
            self._races,
            self._replacing,
            self._locks,
            self._sight,
            self._listing,
            self._hdf5,
            self._clocks,
            self._versions,
            self._purge,
        )
        for step in steps:
            try:
                self.findings.extend(step())
            except PartnerFailed as error:
                topic = step.__name__.strip("_")
                self.findings.append(Finding(Level.WARNING, topic, f"not measured: {error}"))

    # -- one method for each topic -------------------------------------------------------

    def _room(self) -> Iterator[Finding]:
        room = self._sides.own.call("room")
        short = room["bytes"] < LITTLE_SPACE or 0 <= room["inodes"] < FEW_INODES
        inodes = f"{room['inodes']} inodes" if room["inodes"] >= 0 else "inodes are not counted"
        text = f"{room['bytes'] / 1e9:.3g} GB and {inodes} are free"
        does = "a full file system stops work with an error, and loses nothing" if short else ""
        yield Finding(Level.WARNING if short else Level.FINE, "room", text, does, room)

    def _rights(self) -> Iterator[Finding]:
        status, about = self._sides.own.call("status", "."), self._sides.own.about
        mode = int(status["mode"])
        facts = {"mode": f"{mode:04o}", "umask": f"{about['umask']:04o}", **status}
        if status["uid"] != about["uid"]:
            found = f"the directory belongs to user {status['uid']:.0f}, not to you"
            yield Finding(Level.WARNING, "rights", found, "it uses an area of its own", facts)
        elif mode & 0o022:
            found = f"others may write here (mode {mode:04o})"
            does = "your area in it is private; chmod 700 keeps others from removing it"
            yield Finding(Level.WARNING, "rights", found, does, facts)
        else:
            does = "whatever your umask, all that it makes is for you alone"
            yield Finding(Level.FINE, "rights", f"yours, mode {mode:04o}", does, facts)

    def _names(self) -> Iterator[Finding]:
        wrong = probes.long_names(self._sides.own, "names")
        if wrong:
            lengths = f"names of {probes.LONGEST_NAME}, links of {probes.LONGEST_RECORD} characters"
            found = f"{lengths}: {wrong}"
            yield Finding(Level.UNFIT, "names", found, "logs and task files need them")
        else:
            yield Finding(Level.FINE, "names", "long enough names and symbolic links")

    def _links(self) -> Iterator[Finding]:
        own = self._sides.own.about["uid"]
        for pair, name in probes.each(self._sides.pairs[:1], "links"):
            found = probes.links(pair, name)
            if found["uid"] != own:
                text = f"files that you make belong to user {found['uid']:.0f} (root_squash?)"
                does = "fsbroker refuses files of others: it would refuse its own"
                yield Finding(Level.UNFIT, "links", text, does, found)
            elif found["links"] != 2:
                text = f"a file with two names counts {found['links']:.0f}"
                does = "nothing: it compares what is inside, not the count"
                yield Finding(Level.NOTE, "links", text, does, found)
            else:
                yield Finding(Level.FINE, "links", "hard links, and their count is true")

    def _races(self) -> Iterator[Finding]:
        for pair, name in probes.each(self._sides.pairs, "races"):
            self._sides.own.call("mkdir", name)
            bad = []
            results = probes.races(pair, name)
            for kind, one in results.items():
                if one.refused:
                    bad.append(f"{kind}: {one.refused}")
                elif one.doubled or one.lied:
                    bad.append(
                        f"{kind}: {one.doubled} names given twice, {one.lied} to the wrong one"
                    )
            facts = {kind: one._asdict() for kind, one in results.items()}
            what = f"creating the same names at once, {pair.name}"
            if bad:
                does = "do not keep a spool here: that each name is given once is what all rests on"
                yield Finding(Level.UNFIT, "races", f"{what}: {'; '.join(bad)}", does, facts)
            else:
                yield Finding(Level.FINE, "races", f"{what}: each has one winner", "", facts)

    def _replacing(self) -> Iterator[Finding]:
        for pair, name in probes.each(self._sides.pairs, "replacing"):
            seen = probes.replacing(pair, name)
            if seen["missing"] or seen["torn"]:
                times = f"missed {seen['missing']} times, and read in parts {seen['torn']} times"
                text = f"a file that is replaced by a rename was {times}, {pair.name}"
                does = "nothing: it replaces no file but spool.yaml, in this command"
                yield Finding(Level.NOTE, "rename", text, does, seen)
            else:
                text = f"a rename over a file is seen whole, {pair.name}"
                yield Finding(Level.FINE, "rename", text, "", seen)

    def _locks(self) -> Iterator[Finding]:
        for pair, name in probes.each(self._sides.pairs, "locks"):
            for kind, wrong in probes.locks(pair, name).items():
                self.excludes[kind] = self.excludes.get(kind, True) and not wrong
                if wrong:
                    text = f"{kind} locks do not exclude, {pair.name}: {wrong}"
                    yield Finding(Level.NOTE, "locks", text, "they are not used", wrong)
        best = next((kind for kind in self.excludes if self.excludes[kind]), "none")
        if best == "none":
            text = "no kind of lock excludes"
            does = "it goes on without: agents meet more often over the same task, nothing else"
            yield Finding(Level.WARNING, "locks", text, does, self.excludes)
        else:
            does = "they keep agents out of each other's way; no result depends on them"
            yield Finding(Level.FINE, "locks", f"{best} locks exclude", does, self.excludes)

    def _sight(self) -> Iterator[Finding]:
        for pair, name in probes.each(self._sides.pairs, "sight"):
            yield self._seen(pair.name, probes.sight(pair, name))

    def _seen(self, who: str, seen: probes.Sight) -> Finding:
        facts = seen._asdict()
        if seen.missed:
            self.nudge = True
            times = f"in {seen.missed} of {seen.tries} tries"
            text = f"the second of two quick changes of a directory was not listed {times}, {who}"
            if seen.nudged:
                does = "readers change a directory before they conclude anything from it"
                return Finding(Level.NOTE, "sight", text, does, facts)
            does = "not even a change by the reader helps: tasks and results may stay unseen"
            return Finding(Level.UNFIT, "sight", text, does, facts)
        if seen.listed is None:
            text = f"new files are not listed within {probes.LIST_PATIENCE:g} s, {who}"
            does = "it waits; each step of the work may take that long"
            return Finding(Level.WARNING, "sight", text, does, facts)
        exists = "not" if seen.exists is None else f"{seen.exists:.2g} s"
        text = f"new files are listed after {seen.listed:.2g} s (by name: {exists}), {who}"
        late = Level.WARNING if seen.listed > LATE else Level.FINE
        return Finding(late, "sight", text, "it looks by listing, never by name", facts)

    def _listing(self) -> Iterator[Finding]:
        for number, side in enumerate((self._sides.own, *self._sides.others.values())):
            took = probes.listing(side, f"listing{number}")
            each = 1e6 * (took.full - took.empty) / max(1, took.names)
            lone = f"a listing takes {1e3 * took.empty:.2g} ms"
            text = f"{lone}, and {max(0.0, each):.2g} us for each name"
            if took.empty > SLOW_LISTING:
                self.pause = min(LONGEST_PAUSE, max(self.pause, round(took.empty / SHARE, 2)))
                does = f"it looks no more often than every {self.pause:g} s"
                yield Finding(Level.WARNING, "listing", text, does, took._asdict())
            else:
                yield Finding(Level.FINE, "listing", text, "", took._asdict())

    def _hdf5(self) -> Iterator[Finding]:
        for pair, name in probes.each(self._sides.pairs[:1], "hdf5"):
            said = probes.hdf5(pair, name)
            does = "nothing: it never has HDF5 open a file of the spool"
            text = (
                "HDF5 refuses to read what another process writes"
                if said
                else "HDF5 lets others read what is being written"
            )
            yield Finding(Level.FINE if said else Level.NOTE, "hdf5", text, does, said)

    def _clocks(self) -> Iterator[Finding]:
        offsets = {"the file server": (probes.server_offset(self._sides.own, "clock"), 0.0)}
        offsets |= {name: probes.clock_offset(side) for name, side in self._sides.others.items()}
        for name, (offset, unsure) in offsets.items():
            far = abs(offset) - unsure > OFF
            text = (
                f"the clock of {name} is {abs(offset):.2g} s {'ahead' if offset > 0 else 'behind'}"
            )
            does = "times that it shows are off; nothing is decided by them" if far else ""
            yield Finding(Level.WARNING if far else Level.FINE, "clocks", text, does, offset)

    def _versions(self) -> Iterator[Finding]:
        mine = self._sides.own.about
        for name, side in self._sides.others.items():
            theirs = side.about
            if theirs["environment"] != mine["environment"]:
                text = f"{name} has {theirs['environment']}, here is {mine['environment']}"
                does = "its agents will not run your tasks: set python (docs/configuration.md)"
                yield Finding(Level.WARNING, "versions", text, does, theirs)
                continue
            here, there = mine["packages"], theirs["packages"]
            other = [
                f"{package} {there[package] or 'missing'} (here {here[package] or 'missing'})"
                for package in PACKAGES
                if here[package] != there[package]
            ]
            if other:
                text = f"{name} has other versions: {', '.join(other)}"
                does = "values may not unpickle on the other side"
                yield Finding(Level.WARNING, "versions", text, does, theirs)
            else:
                text = f"{name} ({theirs['host']}) has the same Python and packages"
                yield Finding(Level.FINE, "versions", text, "", theirs)

    def _purge(self) -> Iterator[Finding]:
        kind = self._sides.own.about["file_system"]
        if kind in ("tmpfs", "ramfs"):
            text = f"{kind}: what lies here is in memory, and gone with this machine's power"
            yield Finding(Level.WARNING, "purge", text, "it cannot make anything durable here")
        told = purges.policy(os.path.realpath(self._sides.root))
        does = "fsbroker touch makes a spool's files young again; fsbroker fsck tells what went"
        if told:
            yield Finding(Level.WARNING, "purge", told, does)
        else:
            text = "no sign of a purge of old files; a site's own rules cannot be seen from here"
            yield Finding(Level.FINE, "purge", text, does)
