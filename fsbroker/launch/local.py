"""Agents as processes of this machine.

They outlive the client: in their own session, with their output in the spool, they finish
what is pending and end when idle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from fsbroker.client.session import ClientSession
from fsbroker.resources import Shape, parse_shape
from fsbroker.spool import presence
from fsbroker.spool.spool import Spool

IDLE_TIMEOUT = 120.0
"""Seconds after which an agent without work ends."""
FAILURES = 3
"""Agents that end at once, with an error, one after the other, before the user is told."""
PAUSE = 2.0
"""Seconds between two such starts."""


class LocalLauncher:
    """Sees to it that ``agents`` agents of ``cores`` cores each run on this machine."""

    def __init__(
        self, spool: Spool, cores: int, agents: int = 1, idle_timeout: float = IDLE_TIMEOUT
    ) -> None:
        self._spool = spool
        self._cores = cores
        self._agents = agents
        self._idle_timeout = idle_timeout
        self._started: list[tuple[subprocess.Popen[bytes], str]] = []
        self._failures = 0
        self._last_start = 0.0

    def submit(self, cores: int | None = None) -> int:
        """Start one agent; its pid."""
        files, area, _ = self._spool
        files.mkdir(f"{area.logs}/agents")
        log = f"{files.root}/{area.logs}/agents/{files.token()}.log"
        command = [
            sys.executable,
            "-m",
            "fsbroker.agent",
            f"--spool={files.root}",
            f"--cores={cores or self._cores}",
            f"--idle-timeout={self._idle_timeout}",
        ]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        output = os.open(log, flags, 0o600)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": _python_path()},
            )
        finally:
            os.close(output)
        self._started.append((process, log))
        self._last_start = time.monotonic()
        return process.pid

    def active(self, ids: Iterable[int]) -> set[int]:
        """Those of the processes that live."""
        return {pid for pid in ids if presence.process_start(pid)}

    def cancel(self, ids: Iterable[int]) -> None:
        """End these agents; they give back what they have not started."""
        import signal

        for pid in ids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def ensure(self, session: ClientSession[Any], shapes: Iterable[str]) -> str | None:
        """Start what is missing; a text if agents cannot be started."""
        needed = max((_cores_of(shape) for shape in shapes), default=1)
        cores = max(self._cores, needed)
        self._reap()
        if self._failures >= FAILURES:
            self._failures = 0
            return f"{FAILURES} agents ended at once; the last one said: {self._last_words}"
        running = self._running(session, needed)
        pause = PAUSE if self._failures else 0.0
        if running < self._agents and time.monotonic() - self._last_start >= pause:
            for _ in range(self._agents - running):
                self.submit(cores)
        return None

    def _running(self, session: ClientSession[Any], needed: int) -> int:
        """Agents of this machine and interpreter with enough cores: seen, or just started."""
        pids = {process.pid for process, _ in self._started}
        for one in presence.listing(self._spool.files, self._spool.area):
            described = presence.about(self._spool.files, self._spool.area, one)
            if (
                described
                and described.get("place") == "local"
                and described.get("python") == sys.executable
                and described.get("cores", 0) >= needed
                and presence.is_alive_process(described)
            ):
                pids.add(described["pid"])
        return len(pids)

    def _reap(self) -> None:
        for entry in list(self._started):
            process, log = entry
            code = process.poll()
            if code is None:
                continue
            self._started.remove(entry)
            if code == 0:
                self._failures = 0
            else:
                self._failures += code > 0
                self._last_words = f"{_tail(log)} (exit code {code}, {log})"


def _cores_of(shape: str) -> int:
    parsed = parse_shape(shape) or Shape()
    return parsed.cores * parsed.threads


def _tail(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()[-500:].strip()


def _python_path() -> str:
    """So that the agent imports the fsbroker that this client runs."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    rest = os.environ.get("PYTHONPATH")
    return f"{here}{os.pathsep}{rest}" if rest else here
