"""What is measured between two sides of a directory: facts, no judgement.

Both sides are `Partner`s, or the first is this process' own `Hands` behind the same two verbs.
Each probe works in a directory of its own below the one that is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from fsbroker.doctor.hands import Hands
from fsbroker.doctor.partners import CallFailed

RACES = 150
REPLACEMENTS = 200
TICK_TRIES = 30
LISTED = 500
FILL_TIME = 1.0
"""Names in the directory whose listing is timed; fewer where making them takes a second."""
LIST_PATIENCE = 10.0
EXISTS_PATIENCE = 2.0
"""Seconds; fsbroker never asks for a fixed name, so more need not be known."""
STUCK = 0.5
"""Seconds without a name in a listing after which it counts as missed."""
LONGEST_NAME = 210
"""Characters of the longest name that fsbroker makes."""
LONGEST_RECORD = 900
LOCK_CLASSES = ("flock", "soft")
KINDS = (("create", "create"), ("link", "link"), ("symlink", "symlink"), ("link", "symlink"))
"""How both sides race; the last pair is a result against a seal."""


class Side(Protocol):
    """Who does file calls for a probe.

    Attributes:
        about: as of `Hands.about`.
    """

    about: dict[str, Any]

    def ask(self, name: str, *args: Any, **more: Any) -> None: ...
    def answer(self) -> Any: ...
    def call(self, name: str, *args: Any, **more: Any) -> Any: ...


class Own:
    """This process, as a side: what it is asked for is done when the answer is fetched."""

    def __init__(self, root: str) -> None:
        self._hands = Hands(root)
        self.about = self._hands.about()

    def ask(self, name: str, *args: Any, **more: Any) -> None:
        self._asked = (name, args, more)

    def answer(self) -> Any:
        name, args, more = self._asked
        return self.call(name, *args, **more)

    def call(self, name: str, *args: Any, **more: Any) -> Any:
        try:
            return getattr(self._hands, name)(*args, **more)
        except OSError as error:
            raise CallFailed(f"{type(error).__name__}: {error}") from error


class Pair(NamedTuple):
    """Two sides, and what they are called."""

    name: str
    first: Side
    second: Side


class Races(NamedTuple):
    """Who got names that both sides wanted.

    Attributes:
        doubled: names that both were told to have. lied: names whose content is that of
            another than who was told to have it. refused: the error where it cannot be done.
    """

    doubled: int = 0
    lied: int = 0
    refused: str = ""


def races(pair: Pair, directory: str) -> dict[str, Races]:
    """By the kinds of creation. The sides begin at opposite ends, and meet."""
    found = {}
    for first, second in KINDS:
        name = first if first == second else f"{first} against {second}"
        found[name] = _race(pair, f"{directory}/{first}-{second}", (first, second))
    return found


def _race(pair: Pair, directory: str, kinds: tuple[str, str]) -> Races:
    pair.first.call("mkdir", directory)
    names = [f"n{number:04d}" for number in range(RACES)]
    marks = ("first", "second")
    try:
        pair.second.ask("race", kinds[1], directory, marks[1], names[::-1])
        won = [set(pair.first.call("race", kinds[0], directory, marks[0], names))]
        won.append(set(pair.second.answer()))
    except CallFailed as error:
        return Races(refused=error.what)
    lied = 0
    # What is created first and written later may be read before that: only these are born whole.
    for side in (pair.first, pair.second) if "create" not in kinds else ():
        pair_owners = side.call("owners", directory, names)
        for name, mark in pair_owners.items():
            told = [one for one, names_won in zip(marks, won, strict=True) if name in names_won]
            lied += mark not in told
    return Races(len(won[0] & won[1]), lied)


def replacing(pair: Pair, directory: str) -> dict[str, int]:
    """Whether a reader ever misses a file over which another one is renamed."""
    pair.first.call("mkdir", directory)
    path, texts = f"{directory}/file", ["old" * 300, "new" * 300]
    pair.first.call("replace", path, texts, 1)
    pair.second.ask("reread", path, texts, REPLACEMENTS)
    pair.first.call("replace", path, texts, REPLACEMENTS)
    found: dict[str, int] = pair.second.answer()
    return found


def links(pair: Pair, directory: str) -> dict[str, Any]:
    """Whether a second name is counted, and the first one's owner is who made it."""
    pair.first.call("mkdir", directory)
    pair.first.call("write", f"{directory}/one", "text")
    pair.first.call("link", f"{directory}/one", f"{directory}/two")
    status = pair.first.call("status", f"{directory}/one")
    return {"links": status["links"], "uid": status["uid"]}


def locks(pair: Pair, directory: str) -> dict[str, str]:
    """What is wrong with each class of lock; "" if it excludes and is let go."""
    pair.first.call("mkdir", directory)
    return {kind: _lock(pair, kind, f"{directory}/{kind}") for kind in LOCK_CLASSES}


def _lock(pair: Pair, kind: str, path: str) -> str:
    try:
        for holder, other in ((pair.first, pair.second), (pair.second, pair.first)):
            if not holder.call("lock", kind, path):
                return "cannot be taken"
            both = other.call("lock", kind, path)
            holder.call("unlock", path)
            if both:
                other.call("unlock", path)
                return "both sides hold it at once"
    except CallFailed as error:
        return error.what
    return ""


def hdf5(pair: Pair, directory: str) -> str:
    """What a second process is told that opens a file which the first one writes."""
    pair.first.call("mkdir", directory)
    pair.first.call("hdf5", f"{directory}/file.h5", "w", hold=True)
    found: str = pair.second.call("hdf5", f"{directory}/file.h5", "r")
    return found


class Sight(NamedTuple):
    """When the second side sees what the first one makes, seconds; None: not in time.

    Attributes:
        listed: longest until a listing shows it. exists: until a look for its name does.
        missed: of so many tries, in which the second of two quick changes was not listed.
        nudged: whether it was when the directory had been changed by the reader.
    """

    listed: float | None
    exists: float | None
    missed: int
    tries: int
    nudged: bool


def sight(pair: Pair, directory: str) -> Sight:
    pair.first.call("mkdir", directory)
    listed: float | None = 0.0
    for number in range(5):
        took = _seen(pair, directory, f"n{number}", "list", LIST_PATIENCE)
        listed = None if took is None or listed is None else max(listed, took)
        if listed is None:
            break
    exists = _seen(pair, directory, "fixed", "exists", EXISTS_PATIENCE)
    missed, nudged = 0, True
    for number in range(TICK_TRIES):
        if _misses_second(pair, directory, number):
            missed += 1
            pair.second.call("touch", directory)
            seen = pair.second.call("see", directory, f"b{number}", "list", LIST_PATIENCE)
            nudged &= seen is not None
            if missed == 3:
                return Sight(listed, exists, missed, number + 1, nudged)
    return Sight(listed, exists, missed, TICK_TRIES, nudged)


def _seen(pair: Pair, directory: str, name: str, how: str, patience: float) -> float | None:
    pair.second.call("listed", directory)
    pair.second.call("remember_absent", f"{directory}/{name}")
    pair.first.call("write", f"{directory}/{name}", "")
    found: float | None = pair.second.call("see", directory, name, how, patience)
    return found


def _misses_second(pair: Pair, directory: str, number: int) -> bool:
    """Two changes with a listing between: does a listing show the second one?"""
    pair.first.call("write", f"{directory}/a{number}", "")
    pair.second.call("listed", directory)
    pair.first.call("write", f"{directory}/b{number}", "")
    return pair.second.call("see", directory, f"b{number}", "list", STUCK) is None


def clock_offset(side: Side) -> tuple[float, float]:
    """How far another host's clock is ahead of ours, and how sure that is; seconds."""
    best = (float("inf"), 0.0)
    for _ in range(7):
        before = time.time()
        there = side.call("clock")
        after = time.time()
        best = min(best, (after - before, there - (before + after) / 2))
    return best[1], best[0] / 2


def server_offset(side: Side, directory: str) -> float:
    """How far the file server's clock is ahead of ours, seconds."""
    side.call("mkdir", directory)
    before = time.time()
    side.call("write", f"{directory}/now", "")
    after = time.time()
    changed: float = side.call("status", f"{directory}/now")["changed"]
    return changed - (before + after) / 2


class Listing(NamedTuple):
    """Seconds for one listing of an empty directory, and of one with so many names."""

    empty: float
    full: float
    names: int


def listing(side: Side, directory: str) -> Listing:
    side.call("mkdir", directory)
    empty = sorted(side.call("time_listing", directory) for _ in range(5))[2]
    count = side.call("fill", directory, LISTED, FILL_TIME)
    full = sorted(side.call("time_listing", directory) for _ in range(3))[1]
    return Listing(empty, full, count)


def long_names(side: Side, directory: str) -> str:
    """What is wrong with the longest names and records that fsbroker makes; "" if nothing."""
    side.call("mkdir", directory)
    name, record = "n" * LONGEST_NAME, "r" * LONGEST_RECORD
    try:
        side.call("write", f"{directory}/{name}", "")
        side.call("symlink", record, f"{directory}/record")
        if side.call("readlink", f"{directory}/record") != record:
            return "a link comes back with another target"
    except CallFailed as error:
        return error.what
    return ""


def each(pairs: Sequence[Pair], name: str) -> Iterator[tuple[Pair, str]]:
    """The pairs, and a directory's name for each."""
    for number, pair in enumerate(pairs):
        yield pair, f"{name}{number}"
