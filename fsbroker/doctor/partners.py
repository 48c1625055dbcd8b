"""Processes of `hands` on this host or another: started, asked, ended.

    with started(command, 2) as (first, second): first.call("about")

One launcher may start several of them (``srun --ntasks=2``): each request says whom it is for.
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

PATIENCE = 60.0
"""Seconds for one answer; the first may wait for a queue."""


class PartnerFailed(FsbrokerError):
    """The process on the other side gave no answer, or an error."""


class Crowd:
    """The processes behind one command."""

    def __init__(self, command: Sequence[str], count: int) -> None:
        self.command = shlex.join(command)
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self._answers: list[SimpleQueue[dict[str, Any]]] = [SimpleQueue() for _ in range(count)]
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError, KeyError, IndexError):  # what a login script says
                message = json.loads(line)
                self._answers[message["from"]].put(message)
        for answers in self._answers:
            answers.put({"error": "it has ended", "ended": True})

    def send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with self._lock, suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self, number: int, patience: float) -> Any:
        try:
            message = self._answers[number].get(timeout=patience)
        except Empty:
            raise PartnerFailed(f"No answer in {patience:g} s", self.command) from None
        if "error" in message:
            raise PartnerFailed(f"{message['error']}{self._last_words(message)}", self.command)
        return message["value"]

    def _last_words(self, message: dict[str, Any]) -> str:
        if "ended" not in message or self._process.stderr is None:
            return ""
        return f": {self._process.stderr.read()[-600:].strip()}"

    def end(self) -> None:
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()


class Partner:
    """One process on the other side."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self._number = number
        self.about: dict[str, Any] = {}

    def ask(self, name: str, *args: Any, **more: Any) -> None:
        """Have something done; `answer` waits for it."""
        self._crowd.send({"to": self._number, "call": name, "args": args, "more": more})

    def answer(self, patience: float = PATIENCE) -> Any:
        """Raises:
        PartnerFailed: it gave none, or an error.
        """
        return self._crowd.answer(self._number, patience)

    def call(self, name: str, *args: Any, **more: Any) -> Any:
        self.ask(name, *args, **more)
        return self.answer()


@contextmanager
def started(command: Sequence[str], count: int = 1) -> Iterator[list[Partner]]:
    """Start a command that runs `hands` so many times.

    Raises:
        PartnerFailed: it did not come up.
    """
    try:
        crowd = Crowd(command, count)
    except OSError as error:
        raise PartnerFailed(f"Cannot be started ({error.strerror})", shlex.join(command)) from error
    try:
        partners = [Partner(crowd, number) for number in range(count)]
        for partner in partners:
            partner.answer()
            partner.about = partner.call("about")
        yield partners
    finally:
        crowd.end()


def hands_in(directory: str, python: str = sys.executable) -> list[str]:
    """The command that runs `hands` on this machine."""
    return [python, "-m", "fsbroker.doctor.hands", directory]


def by_ssh(ssh: str, host: str, directory: str, python: str) -> list[str]:
    """The same on another host; ``ssh`` may be any command that takes a host and a command."""
    return [*shlex.split(ssh), host, shlex.join(hands_in(directory, python))]


def by_srun(flags: Sequence[str], directory: str, python: str) -> list[str]:
    """The same on two nodes at once."""
    step = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--quiet", "--unbuffered"]
    return [*step, *flags, *hands_in(directory, python)]
