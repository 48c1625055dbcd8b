"""An agent, or a client, that kills itself at one named point of the protocol.

    python -m tests.faults.entry agent --spool S ...
    python -m tests.faults.entry KIND S ...         a function of `clients`

The production code has no hooks: its one object for file calls is replaced by a subclass
that recognises the step by its call, path and text (`points.Step`), says in a file that
the point was reached, and sends SIGKILL to itself. With FSBROKER_TEST_TRACE all calls
are written down instead; with FSBROKER_TEST_PAUSE a client stops after it has looked up
its calls, and before it publishes them.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from fsbroker.spool import spool
from fsbroker.spool.files import Files
from tests.faults.points import Step

CALLS = (
    "write_new",
    "link",
    "symlink",
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "sync_directory",
)
STEP = json.loads(os.environ.pop("FSBROKER_TEST_STEP", "null"))
PAUSE = os.environ.pop("FSBROKER_TEST_PAUSE", None)
TRACE = os.environ.pop("FSBROKER_TEST_TRACE", None)


class WatchedFiles(Files):
    """The real file system, up to one call."""

    left = STEP["nth"] if STEP else 0

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.step = Step(**STEP["step"]) if STEP else None
        for name in CALLS:
            setattr(self, name, self._watched(name, getattr(self, name)))

    def wall_time(self) -> float:
        """Asked for by a client that has looked for older rows, and is to publish new ones."""
        if PAUSE:
            _append(f"{PAUSE}.paused", "")
            _wait_for(f"{PAUSE}.go")
        return super().wall_time()

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            path, text = (args[1], args[0]) if name in ("link", "symlink") else (args[0], "")
            if name == "rename":
                path, text = args[1], args[0]
            elif name == "write_new":
                text = bytes(args[1][0][:400]).decode(errors="replace")
            if TRACE:
                _append(TRACE, f"{name} {path} {text}\n")
            if not self._is_it(name, path, text):
                return real(*args, **kwargs)
            if self.step.when == "before":
                _die()
            if self.step.when == "during":
                self._write_half(path, args[1])
            if self.step.when == "asleep before":
                _append(STEP["mark"], "reached\n")
                os.kill(os.getpid(), signal.SIGSTOP)
                return real(*args, **kwargs)
            try:
                real(*args, **kwargs)
            except OSError:
                WatchedFiles.left = 1  # it was not done: the next one counts
                raise
            _die()

        return call

    def _is_it(self, name: str, path: str, text: str) -> bool:
        step = self.step
        if step is None or step.call != name:
            return False
        if not re.search(step.path, path) or not re.search(step.text, text):
            return False
        WatchedFiles.left -= 1
        return WatchedFiles.left == 0

    def _write_half(self, path: str, chunks: Any) -> NoReturn:
        data = b"".join(map(bytes, chunks))
        with open(f"{self.root}/{path}", "xb") as file:
            file.write(data[: len(data) // 2])
        _die()


def _die() -> NoReturn:
    _append(STEP["mark"], "reached\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _append(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, text.encode())
    os.close(fd)


def _wait_for(path: str) -> None:
    deadline = time.monotonic() + 60
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)


def main() -> int:
    if STEP or TRACE or PAUSE:
        spool.Files = WatchedFiles  # type: ignore[misc]
    kind, *arguments = sys.argv[1:]
    if kind == "agent":
        from fsbroker.agent.__main__ import main as agent
        from fsbroker.agent.session import tidying

        tidying.GRAVE_REST = -1.0  # so that the deletion of a log is met, too

        return agent(arguments)
    from tests.faults import clients

    return getattr(clients, kind)(arguments)


if __name__ == "__main__":
    sys.exit(main())
