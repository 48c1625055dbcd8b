"""A spool that three users share, and these users' hands.

lab.a, lab.b, lab.c         a owns the spool; all are in its group
lab.do(lab.b, "publish", ...)   an action of `labmates.py` as b
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.testbed.users import Accounts, User, command_as

SCRIPT = (Path(__file__).parent / "labmates.py").read_text()


class Labmates:
    """A process for each user that does what it is told."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Labmates:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.communicate()

    def do(self, user: User, action: str, arguments: dict[str, Any]) -> Any:
        process = self._processes.get(user.name) or self._start(user)
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps([action, arguments], default=str) + "\n")
        process.stdin.flush()
        told = json.loads(process.stdout.readline())
        assert "done" in told, told["failed"]
        return told["done"]

    def _start(self, user: User) -> subprocess.Popen[str]:
        command = command_as(user, [self.accounts.python, "-c", SCRIPT])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, cwd=user.home, **pipes)
        self._processes[user.name] = process
        return process


class Lab:
    """A directory with a shared spool.

    Attributes:
        a, b, c: the users. spool: shared by a. marks: anybody may write there.
    """

    def __init__(self, mates: Labmates) -> None:
        self.accounts, self._mates = mates.accounts, mates
        self.a, self.b, self.c = self.accounts.a, self.accounts.b, self.accounts.c
        self.place = Path(tempfile.mkdtemp(dir=self.accounts.public))
        self.place.chmod(0o755)
        self.marks = self.place / "marks"
        self.marks.mkdir()
        self.marks.chmod(0o777)
        self.spool = self.home_of(self.a) / "spool"

    def home_of(self, user: User) -> Path:
        """A directory of that user, which others may enter."""
        path = self.place / user.name
        if not path.exists():
            path.mkdir()
            path.chmod(0o755)
            os.chown(path, user.uid, user.gid)
        return path

    def share(self) -> None:
        code = "from fsbroker.spool.spool import create; create(spool, durable=False)"
        assert self.attempt(self.a, code) == {"found": None}
        done = self.cli(self.a, "cache", "share", "--group", self.accounts.group)
        assert done.code == 0, done.err

    def cli(self, user: User, *arguments: object, spool: Path | None = None) -> SimpleNamespace:
        """`fsbroker ...` as a user: its exit code (`code`), `out` and `err`."""
        command, *rest = arguments
        words = [command, "--spool", spool or self.spool, *rest]
        done = self._mates.do(user, "command", {"arguments": list(map(str, words))})
        return SimpleNamespace(**done)

    def do(self, user: User, action: str, **arguments: Any) -> Any:
        """An action as a user; what it found."""
        return self._mates.do(user, action, {"spool": self.spool, **arguments})

    def attempt(self, user: User, code: str, **names: Any) -> Any:
        """Run a text as a user; ``found``, or ``error``."""
        return self.do(user, "attempt", code=code, marks=self.marks, **names)

    def command(self, user: User, text: str) -> list[str]:
        """For Popen: run a text as a user, with what is in `labmates.py`."""
        actions = SCRIPT.partition("if __name__")[0]
        return command_as(user, [self.accounts.python, "-c", f"{actions}\n{text}"])

    def area(self, user: User) -> Path:
        return self.spool / "users" / f"u{user.uid}"

    def publish(self, user: User, *results: Sequence[Any], **more: Any) -> Path:
        return Path(self.do(user, "publish", results=results, **more)["path"])

    def look(self, user: User, *calls: Sequence[Any], **more: Any) -> Any:
        return self.do(user, "look", calls=calls, **more)

    def remove(self) -> None:
        for _ in range(50):  # an agent that ends may still write there
            shutil.rmtree(self.place, ignore_errors=True)
            if not self.place.exists():
                return
            time.sleep(0.1)
        raise RuntimeError(f"somebody goes on to write in {self.place}")
