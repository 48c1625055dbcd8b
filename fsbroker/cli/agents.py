"""The agents of a spool, as far as this host can tell of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fsbroker.needs import parse_shape
from fsbroker.spool import presence
from fsbroker.spool.layout import Presence, Stem
from fsbroker.spool.spool import Spool

ALIVE, DEAD, UNKNOWN = "alive", "dead", "unknown"


@dataclass(frozen=True)
class Seen:
    """An agent that is present.

    Attributes:
        life: "alive" or "dead" for one of this host and boot; "unknown" for others, whose
            beats only those who wait can judge.
        place: what started it: "local", or a queue job; "client" for one that holds what it
            has put off.
        version: of its Python.
        beat, published: how often it said that it lives; its result files.
    """

    agent: str
    host: str
    pid: int
    place: str
    cores: int
    version: str
    life: str
    beat: int
    published: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        what = "client" if self.place == presence.CLIENT else "agent"
        return f"{what} {self.agent} on {self.host} (pid {self.pid}, {self.life})"

    def can_run(self, name: Stem) -> bool:
        """It is not dead, and large enough, with the interpreter that the rows need."""
        shape = parse_shape(name.shape)
        version = "".join(self.version.split(".")[:2])
        return (
            self.life != DEAD
            and (shape is None or shape.cores * shape.threads <= self.cores)
            and name.environment.endswith(version)
        )


def present(spool: Spool) -> list[Seen]:
    """All that are listed, those of this host first."""
    found = []
    for one in presence.listing(spool.files, spool.area):
        described = presence.about(spool.files, spool.area, one)
        if described is None:  # it beat while we looked: look again
            described = _again(spool, one.agent)
        found.append(_seen(one, described or {}))
    return sorted(found, key=lambda seen: (seen.life == UNKNOWN, seen.host, seen.agent))


def _again(spool: Spool, agent: str) -> dict[str, Any] | None:
    for one in presence.listing(spool.files, spool.area):
        if one.agent == agent:
            return presence.about(spool.files, spool.area, one)
    return None


def _seen(one: Presence, described: dict[str, Any]) -> Seen:
    life = UNKNOWN
    if described and presence.is_alive_process(described):
        life = ALIVE
    elif described and presence.is_dead_process(described):
        life = DEAD
    return Seen(
        agent=one.agent,
        host=str(described.get("host", "?")),
        pid=int(described.get("pid", 0)),
        place=str(described.get("place", "?")),
        cores=int(described.get("cores", 0)),
        version=str(described.get("version", "")),
        life=life,
        beat=one.beat,
        published=one.published,
    )


def named(agents: list[Seen], agent: str) -> str:
    """An agent for people: where it runs, or that it is not there."""
    for seen in agents:
        if seen.agent == agent:
            return str(seen)
    return f"agent {agent}, which is not present (it has ended, or is dead)"
