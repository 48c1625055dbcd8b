"""Who is alive.

An agent has one file in ``agents/`` and renames it to raise its beat; the number of its
published result files is in the name too. So one listing tells who lives and who has news.

Observers judge by their own monotonic clock, from changes of the beat that they saw
themselves. Silence counts only over prompt polls in which their own beat succeeded: a
file server that pauses, or an observer that slept, kills nobody. Wall clocks and file
times of other hosts are never compared, and a host name and pid alone prove nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool import forms
from fsbroker.spool.container import Container, image
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, Presence, parse_presence
from fsbroker.spool.publish import publish

LEASE = 30.0
"""Seconds of silence after which an agent of another host is taken for dead."""
PROMPT = 5.0
"""A poll later than this after the one before it says nothing about the time between."""
CLIENT = "client"
"""The place of a client that holds rows: of what it has put off (`client/deferral.py`)."""


class Host(NamedTuple):
    """What makes a pid mean something: the host, its boot, and the pid namespace."""

    name: str
    boot: str
    namespace: str


@lru_cache(1)
def this_host() -> Host:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = namespace = ""
    return Host(os.uname().nodename, boot, namespace)


def process_start(pid: int) -> str:
    """When a process of this host started, in clock ticks since boot; "" if there is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Self:
    """An agent's own presence."""

    def __init__(self, files: Files, area: Area, agent: str, about: dict[str, Any]) -> None:
        self._files = files
        self._area = area
        self._about = about
        self._now = Presence(agent, 0, 0)

    def appear(self) -> None:
        """Be seen: before the first claim, and again if somebody removed the file."""
        made = image(self._files.token(), "agent", self._about, {})
        publish(self._files, self._area, made, self._area.presence(self._now), durable=False)

    def beat(self, published: int) -> bool:
        """Raise the beat; False if the own file is gone (taken for dead, or purged)."""
        before, after = self._now, Presence(self._now.agent, self._now.beat + 1, published)
        self._now = after
        try:
            self._files.rename(self._area.presence(before), self._area.presence(after))
        except OSError:
            # It may have been done all the same: only a listing tells.
            seen = {
                presence.beat
                for presence in listing(self._files, self._area)
                if presence.agent == after.agent
            }
            if after.beat in seen:
                return True
            if before.beat in seen:
                self._now = before
                raise
            return False
        return True

    def vanish(self) -> None:
        with suppress(FileNotFoundError):
            self._files.unlink(self._area.presence(self._now))


def listing(files: Files, area: Area) -> list[Presence]:
    """Who is present. During a rename an agent may be missing, or be listed twice."""
    found: dict[str, Presence] = {}
    for name in files.names(area.agents):
        presence = parse_presence(name)
        if presence and (presence.agent not in found or presence.beat > found[presence.agent].beat):
            found[presence.agent] = presence
    return list(found.values())


def remove(files: Files, area: Area, agent: str) -> None:
    """Remove what is left of an agent's presence, after it was sealed and recovered."""
    for name in files.names(area.agents):
        presence = parse_presence(name)
        if presence and presence.agent == agent:
            with suppress(FileNotFoundError):
                files.unlink(area.presence(presence))


_ABOUT = {
    "?host": str,
    "?boot": str,
    "?namespace": str,
    "?pid": forms.natural,
    "?process_start": str,
}


def about(files: Files, area: Area, presence: Presence) -> dict[str, Any] | None:
    """What an agent says of itself; None if the file changed its name meanwhile."""
    try:
        with Container(files, area.presence(presence), "agent") as file:
            return file.meta if forms.fits(file.meta, _ABOUT) else None
    except (FileNotFoundError, FileDamaged, FileRefused):
        return None


def describe(**more: Any) -> dict[str, Any]:
    """This process, as a presence file shows it."""
    host = this_host()
    pid = os.getpid()
    return {
        "host": host.name,
        "boot": host.boot,
        "namespace": host.namespace,
        "pid": pid,
        "process_start": process_start(pid),
        **more,
    }


def is_alive_process(described: dict[str, Any]) -> bool:
    """The agent runs on this host and boot, now."""
    host = this_host()
    mine = (described.get("boot"), described.get("namespace")) == (host.boot, host.namespace)
    return mine and _start_of(described) == described.get("process_start")


def is_dead_process(described: dict[str, Any]) -> bool:
    """The agent ran on this host and boot, and its process has ended."""
    host = this_host()
    mine = (described.get("boot"), described.get("namespace")) == (host.boot, host.namespace)
    if not mine or not host.boot:
        return False
    return _start_of(described) != described.get("process_start")


def _start_of(described: dict[str, Any]) -> str:
    return process_start(described.get("pid", 0))


class _Watched:
    __slots__ = ("beat", "described", "heard", "silent")

    def __init__(self, beat: int, *, heard: bool = False) -> None:
        self.beat = beat
        self.heard = heard
        self.silent = 0.0
        self.described: dict[str, Any] | None = None


class Observer:
    """Judges who is dead, from one process's point of view.

    Args:
        lease: seconds of silence that it takes.
    """

    def __init__(self, files: Files, area: Area, lease: float = LEASE) -> None:
        self._files = files
        self._area = area
        self._lease = lease
        self._watched: dict[str, _Watched] = {}
        self._last_poll: float | None = None

    def poll(self, present: Iterable[Presence], held: Iterable[str], prompt: bool) -> list[str]:
        """The agents that are dead, by now.

        Args:
            present: a fresh listing.
            held: agents that hold rows: one that is not present is silent since it was
                first asked for.
            prompt: the observer's own beat succeeded since the last poll.
        """
        now = self._files.monotonic()
        passed = now - self._last_poll if self._last_poll is not None else 0.0
        self._last_poll = now
        counts = prompt and 0.0 <= passed <= PROMPT
        beats = {presence.agent: presence.beat for presence in present}
        for agent in held:
            beats.setdefault(agent, -1)
        dead = []
        for agent, beat in beats.items():
            watched = self._watched.get(agent)
            if watched is None or beat > watched.beat:
                before = watched
                watched = self._watched[agent] = _Watched(beat, heard=before is not None)
                watched.described = before.described if before else None
            elif counts:
                watched.silent += passed
            if watched.silent > self._lease:
                dead.append(agent)
        for agent in self._watched.keys() - beats.keys():
            del self._watched[agent]
        return dead

    def dead_processes(self, present: Iterable[Presence]) -> list[str]:
        """Agents of this host and boot whose process has ended: dead at once."""
        dead = []
        for presence in present:
            watched = self._watched.setdefault(presence.agent, _Watched(presence.beat))
            if watched.described is None:
                watched.described = about(self._files, self._area, presence)
            if watched.described and is_dead_process(watched.described):
                dead.append(presence.agent)
        return dead

    def hears(self, agent: str) -> bool:
        """It beats: that was seen, a moment ago."""
        watched = self._watched.get(agent)
        return watched is not None and watched.heard and watched.silent <= PROMPT

    def described(self, agent: str) -> dict[str, Any] | None:
        watched = self._watched.get(agent)
        return watched.described if watched else None
