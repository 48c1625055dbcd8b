"""Tasks that are submitted, claimed and ended by hand: the real sessions without workers."""

from __future__ import annotations

import os
from hashlib import blake2b
from typing import NamedTuple

from fsbroker.agent.session import NOTHING, AgentSession
from fsbroker.client.session import ClientSession, Lane
from fsbroker.environment import environment
from fsbroker.spool.log import rows_of
from fsbroker.spool.presence import describe
from fsbroker.spool.spool import create
from fsbroker.spool.taskfile import Arguments, FunctionEntry, Limits, TaskRow
from fsbroker.task import Dependency, Encoding, Status, Value

FAILURE = {"type": "ValueError", "message": "no", "traceback": "Traceback: no"}


def key_of(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=20).digest()


class Job(NamedTuple):
    """A task by its name, with the names that it depends on."""

    name: str
    needs: tuple[str, ...] = ()
    round: int = 0
    arrays: tuple = ()


class ByHand:
    """A spool, a client, and agents that do what the test says."""

    def __init__(self, root: os.PathLike[str] | str) -> None:
        self.root = str(root)
        self.spool = create(root, durable=False)
        self.files, self.area, _ = self.spool
        self.client: ClientSession[bytes] = ClientSession(self.spool, bytes)

    def submit(self, *jobs: Job | str, tag: str = "", shape: str = "c1t1g0m0n0x0") -> str:
        """Publish one task file; its stem."""
        meta = (("tag", tag), ("user", "ada"), ("host", "desk"))
        lane = Lane(5000, shape, environment(), Limits(), meta)
        rows = [_row(job if isinstance(job, Job) else Job(job)) for job in jobs]
        return self.client.publish(lane, rows, [row.key for row in rows])

    def agent(self, **described) -> AgentSession:
        about = describe(**{"place": "local", "cores": 4, "version": "3.x", **described})
        session = AgentSession(self.spool, environment(), {"host": "node7"}, about)
        session.join()
        return session

    def claim(self, agent: AgentSession, count: int = 100):
        agent.live.poll()

        def want(live, ready):
            return min(count, len(ready)) if live.file.rows.size else 0  # read it, as agents do

        return agent.claim(want, thorough=True)

    def end(self, agent: AgentSession, claim, failing=(), values=None) -> None:
        """Publish the outcomes of claimed rows, inputs before their dependents: one file."""
        outcomes = []
        failures = {key_of(name) for name in failing}
        for row in rows_of(claim.rows):
            key, needs = claim.live.file.key(row), claim.live.file.dependencies(row)
            failed = key in failures or any(need.key in failures for need, _ in needs)
            if failed:
                failures.add(key)
            value = NOTHING if failed else (values or Value(Encoding.PLAIN, b"%d" % row))
            status = Status.FAILED if failed else Status.DONE
            error = FAILURE if failed else None
            outcomes.append(
                agent.holdings.outcome(claim.live, row, status, value, error, started=1e9, wall=2.0)
            )
        agent.publish(outcomes)

    def run(self, agent: AgentSession | None = None, failing=(), values=None) -> AgentSession:
        """Run everything, and retire what has ended."""
        agent = agent or self.agent()
        while True:
            claim = self.claim(agent)
            if claim is not None:
                self.end(agent, claim, failing, values)
            elif not agent.resolve(thorough=True):
                break
        agent.tidy()
        return agent

    def paths(self) -> set[str]:
        """Everything in the area but locks, relative to the spool."""
        top = f"{self.root}/{self.area.path}"
        return {
            os.path.relpath(os.path.join(directory, name), self.root)
            for directory, directories, names in os.walk(top)
            for name in (*directories, *names)
            if "/locks" not in directory
        }

    def make_old(self, path: str, days: float = 2.0) -> None:
        """Have a path look this old to the file server."""
        name = f"{self.root}/{path}"
        past = os.lstat(name).st_mtime - days * 86400
        os.utime(name, (past, past), follow_symlinks=False)

    def make_all_old(self, days: float = 2.0) -> None:
        for path in self.paths():
            self.make_old(path, days)


def _row(job: Job) -> TaskRow:
    key = key_of(job.name)
    function = FunctionEntry(key, f"module.{job.name}", f"def {job.name}(): ...", b"pickle")
    needs = tuple(Dependency(key_of(name)) for name in job.needs)
    arguments = Arguments(Encoding.PLAIN, b"[1]", job.arrays, needs)
    return TaskRow(key, key, arguments, function, job.round)
