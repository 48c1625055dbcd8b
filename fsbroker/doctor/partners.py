"""Processes of `hands` on this host or another: started, asked, ended.

with started(command) as partner: partner.call("listed", ".")
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from fsbroker.errors import FsbrokerError
from fsbroker.launch import slurm

PATIENCE = 60.0
"""Seconds for one answer."""
QUEUE = 600.0
"""Seconds that a job may wait in its queue."""


class PartnerFailed(FsbrokerError):
    """The process on the other side gave no answer."""


class CallFailed(PartnerFailed):
    """What it was asked for failed there."""


class Partner:
    """The process behind a command.

    Attributes:
        about: what it said of itself (`Hands.about`).
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.about: dict[str, Any] = {}
        self.command = shlex.join(command)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._answers: SimpleQueue[dict[str, Any]] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):  # what a login script says
                self._answers.put(json.loads(line))
        self._answers.put({"ended": True})

    def ask(self, name: str, *args: Any, **more: Any) -> None:
        """Have something done; `answer` waits for it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            request = {"call": name, "args": args, "more": more}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self, patience: float = PATIENCE) -> Any:
        """What came of it.

        Raises:
            PartnerFailed: there was no answer. CallFailed: it could not be done.
        """
        try:
            message = self._answers.get(timeout=patience)
        except Empty:
            raise PartnerFailed(f"No answer in {patience:g} s", self.command) from None
        if "ended" in message:
            assert self._process.stderr is not None
            said = self._process.stderr.read()[-600:].strip()
            raise PartnerFailed(f"It has ended: {said}", self.command)
        if "error" in message:
            raise CallFailed(message["error"], self.command)
        return message["value"]

    def call(self, name: str, *args: Any, **more: Any) -> Any:
        """`ask`, and `answer`."""
        self.ask(name, *args, **more)
        return self.answer()

    def end(self) -> None:
        """Have it end, and wait until it has."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()


@contextmanager
def started(command: Sequence[str], patience: float = PATIENCE) -> Iterator[Partner]:
    """Start a command that runs `hands`.

    Args:
        patience: seconds until it is there; a job may wait in its queue.

    Raises:
        PartnerFailed: it did not come up.
    """
    try:
        partner = Partner(command)
    except OSError as error:
        raise PartnerFailed(f"Cannot be started ({error.strerror})", shlex.join(command)) from error
    try:
        partner.answer(patience)
        partner.about = partner.call("about")
        yield partner
    finally:
        partner.end()


def hands_in(directory: str, python: str = sys.executable) -> list[str]:
    """The command that runs `hands` on this machine."""
    return [python, "-m", "fsbroker.doctor.hands", directory]


def by_ssh(ssh: str, host: str, directory: str, python: str) -> list[str]:
    """The same on another host; ``ssh`` may be any command that takes a host and a command."""
    return [*shlex.split(ssh), host, shlex.join(hands_in(directory, python))]


def by_srun(flags: Sequence[str], directory: str, python: str, besides: str = "") -> list[str]:
    """The same on a node of a job, another one than ``besides``.

    A job for each: of the output of two ranks srun mixes what is longer than its buffers.
    """
    return [*slurm.job_of(1, flags, besides=besides), *hands_in(directory, python)]
