"""The course of the demo: start the client, kill somebody half way, wait for the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from fsbroker.agent.workers import PACKAGE_ROOT
from fsbroker.cli.demo import tasklog
from fsbroker.cli.demo.plan import AGENTS, RANKS, Plan
from fsbroker.cli.demo.tasklog import TaskLog
from fsbroker.cli.demo.victims import Target, agents
from fsbroker.errors import FsbrokerError, SpoolMissing

POLL = 0.02
"""Seconds between looks at the tasks' log."""
LIMIT = 300.0
"""Seconds that any of the waits may take."""
GRACE = 10.0
"""Seconds for the agents to end."""

ChooseVictim = Callable[[TaskLog, str, int], Target | None]


class Course(NamedTuple):
    """What happened.

    Attributes:
        killed: who. killed_at: seconds since the epoch.
        at_kill, at_restart, at_end: the tasks' log at these times; only a client that was
            killed is started again.
        result: of the client that came to its end.
    """

    killed: Target
    killed_at: float
    at_kill: TaskLog
    at_restart: TaskLog | None
    at_end: TaskLog
    result: dict[str, Any]


class Demo:
    """The processes of one run, which all have ended when the ``with`` block ends.

    Args:
        directory: where the tasks run, and write their log.
    """

    def __init__(self, plan: Plan, directory: str) -> None:
        self._plan = plan
        self._directory = directory
        self._client: subprocess.Popen[str] | None = None
        self._started = time.monotonic()

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None and self._client.poll() is None:
            self._client.kill()
            self._client.wait()
        with suppress(SpoolMissing):
            self._end_agents()

    def run(self, choose: ChooseVictim) -> Course:
        """From the first client's start to the last one's end."""
        tasks = self._plan.tasks()
        pid = self._start_client()
        self._say(f"client {pid} submits {tasks} tasks; {AGENTS} agents of {RANKS} cores run them")
        killed, at_kill = self._wait_for_victim(choose)
        os.kill(killed.pid, signal.SIGKILL)
        killed_at = time.time()
        self._say(f"{self._counts(at_kill)}: SIGKILL to {killed.name}, pid {killed.pid}")
        at_restart = self._restart(at_kill) if killed.pid == pid else None
        result = self._result()
        at_end = tasklog.read(self._directory)
        self._say(f"{self._counts(at_end)}: the client has all results")
        return Course(killed, killed_at, at_kill, at_restart, at_end, result)

    def _start_client(self) -> int:
        inherited = os.environ.get("PYTHONPATH")
        path = f"{PACKAGE_ROOT}{os.pathsep}{inherited}" if inherited else PACKAGE_ROOT
        self._client = subprocess.Popen(
            [sys.executable, "-m", "fsbroker.cli.demo.client", json.dumps(self._plan)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": path},
        )
        return self._client.pid

    def _wait_for_victim(self, choose: ChooseVictim) -> tuple[Target, TaskLog]:
        """Until half of the scans have ended and there is somebody to kill."""
        assert self._client is not None
        half = len(self._plan.metals) // 2
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            if self._client.poll() is not None:
                raise FsbrokerError("The client ended before anybody was killed", self._directory)
            log = tasklog.read(self._directory)
            scans = sum(task.startswith("scan") for task in log.done())
            if half <= scans < len(self._plan.metals):
                found = choose(log, self._plan.spool, self._client.pid)
                if found is not None:
                    return found, log
            time.sleep(POLL)
        raise self._too_long()

    def _restart(self, before: TaskLog) -> TaskLog:
        """A second client with the same calls, after a while without any."""
        assert self._client is not None
        self._client.wait()
        log = self._wait_for_progress(len(before.done()))
        self._say(f"{self._counts(log)}, while there was no client: the agents went on")
        pid = self._start_client()
        self._say(f"client {pid} makes the same calls again")
        return log

    def _wait_for_progress(self, done: int) -> TaskLog:
        until = time.monotonic() + LIMIT
        while time.monotonic() < until:
            log = tasklog.read(self._directory)
            if len(log.done()) > done:
                return log
            time.sleep(POLL)
        raise self._too_long()

    def _result(self) -> dict[str, Any]:
        assert self._client is not None
        try:
            said, _ = self._client.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise self._too_long() from None
        if self._client.returncode:
            raise FsbrokerError("The client failed (see above)", self._directory)
        result: dict[str, Any] = json.loads(said)
        return result

    def _too_long(self) -> FsbrokerError:
        cure = f"What the agents wrote stands in {self._plan.spool}, in users/*/logs"
        return FsbrokerError(f"Nothing happened in {LIMIT:g} s", self._directory, cure)

    def _counts(self, log: TaskLog) -> str:
        return f"{len(log.done())} of {self._plan.tasks()} tasks done"

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)

    def _end_agents(self) -> None:
        """Have them end before their spool is removed."""
        for pid in agents(self._plan.spool):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while agents(self._plan.spool) and time.monotonic() < until:
            time.sleep(POLL)
