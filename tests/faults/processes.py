"""Starting agents and clients of these tests, and seeing to it that none is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from tests.faults.points import Point

REPOSITORY = Path(__file__).parents[2]
DEADLINE = 40.0
"""Seconds that any single thing here may take on a busy machine."""


class Processes:
    """The processes of one test; all are killed when it ends.

    Args:
        spool: the directory that they serve. folder: where their output and marks go.
    """

    def __init__(self, spool: Path, folder: Path) -> None:
        self.spool = spool
        self.folder = folder
        self.journal = str(folder / "journal")
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.wait()

    def agent(
        self, point: Point | None = None, *, before: Sequence[str] = (), **options: object
    ) -> subprocess.Popen[bytes]:
        """An agent, which kills itself at ``point``.

        Args:
            before: the command that starts it: strace, faketime, unshare.
            options: of its command line.
        """
        known = {"cores": 2, "idle_timeout": 0.2, "lease": 3.0, "spool": self.spool, **options}
        given = [f"--{name.replace('_', '-')}={value}" for name, value in known.items()]
        return self.start("agent", *given, point=point, before=before)

    def client(
        self,
        prefix: str,
        count: int,
        point: Point | None = None,
        *,
        pause: str = "",
        cancel: bool = False,
        before: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """A client of its own (`clients.main`)."""
        arguments = ["client", str(self.spool), self.journal, prefix, str(count)]
        arguments += ["cancel"] * cancel
        return self.start(*arguments, point=point, pause=pause, before=before)

    def start(
        self,
        *arguments: str,
        point: Point | None = None,
        pause: str = "",
        before: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        if point is not None:
            mark = str(self.mark(point))
            step = {"step": asdict(point.step), "nth": point.nth, "mark": mark}
            env["FSBROKER_TEST_STEP"] = json.dumps(step)
        if pause:
            env["FSBROKER_TEST_PAUSE"] = pause
        with (self.folder / f"output.{len(self._started)}").open("wb") as output:
            process = subprocess.Popen(
                [*before, sys.executable, "-m", "tests.faults.entry", *arguments],
                env=env,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._started.append(process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"output.{self._started.index(process)}").read_text()

    def mark(self, point: Point) -> Path:
        return self.folder / f"reached {point.name}".replace("/", "|")

    def dies_at(self, point: Point, process: subprocess.Popen[bytes]) -> None:
        """Wait until it has killed itself there.

        Raises:
            AssertionError: it ended without having been there, or did not end.
        """
        try:
            status = process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            status = None
        reached = self.mark(point).exists()
        assert reached, f"not reached: {point.name} (status {status})\n{self.output(process)}"
        assert status == -signal.SIGKILL

    def ends(self, process: subprocess.Popen[bytes], status: int = 0) -> None:
        assert process.wait(DEADLINE) == status, self.output(process)


def wait_until(what: Callable[[], object], deadline: float = DEADLINE) -> None:
    """Until something is true that another process does; never to win a race."""
    end = time.monotonic() + deadline
    while not what():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.01)
