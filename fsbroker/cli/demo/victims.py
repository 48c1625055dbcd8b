"""Who is killed half way, by SIGKILL, so that nobody can prepare for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fsbroker.agent.guardian import descendants
from fsbroker.cli.demo.tasklog import Line, TaskLog
from fsbroker.spool import presence
from fsbroker.spool.spool import open_spool


class Target(NamedTuple):
    """A process to kill.

    Attributes:
        processes: those whose tasks end with it.
    """

    name: str
    pid: int
    processes: frozenset[int]


def client(log: TaskLog, spool: str, pid: int) -> Target | None:  # noqa: ARG001
    """The process that submitted the tasks. None runs on its behalf: agents are their own."""
    return Target("the client", pid, frozenset())


def agent(log: TaskLog, spool: str, pid: int) -> Target | None:  # noqa: ARG001
    """The agent that began a scan last; None if no agent runs one."""
    working = _newest_scan(log)
    for found in agents(spool):
        below = descendants(found)
        if working is not None and working.pid in below:
            return Target("the agent", found, frozenset(below))
    return None


def rank(log: TaskLog, spool: str, pid: int) -> Target | None:  # noqa: ARG001
    """A rank of the scan that began last."""
    working = _newest_scan(log)
    if working is None:
        return None
    name = f"rank {working.rank} of {working.size} in the task `{working.task}`"
    ranks = frozenset(line.pid for line in log.in_progress()[working.task])
    return Target(name, working.pid, ranks)


VICTIMS: dict[str, Callable[[TaskLog, str, int], Target | None]] = {
    "client": client,
    "agent": agent,
    "rank": rank,
}


def _newest_scan(log: TaskLog) -> Line | None:
    lines = [
        line
        for lines in log.in_progress().values()
        if len(lines) == lines[0].size > 1
        for line in lines
    ]
    return max(lines, key=lambda line: (line.time, line.rank), default=None)


def agents(spool: str) -> list[int]:
    """Pids of the agents that live on this machine, by their presence in the spool."""
    files, area, _ = open_spool(spool)
    described = (presence.about(files, area, one) for one in presence.listing(files, area))
    return [one["pid"] for one in described if one and presence.is_alive_process(one)]
