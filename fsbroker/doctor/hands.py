"""One side of a measurement: file calls on one mount, done when the other side says so.

    python -m fsbroker.doctor.hands DIRECTORY

reads requests from stdin, a JSON object a line, ``{"call": name, "args": [...], "more": {...}}``,
and answers each with ``{"value": ...}``, or ``{"error": ...}``. So any launcher that passes on
stdin and stdout can start it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fsbroker.environment import environment
from fsbroker.spool.files import Files, Lock
from fsbroker.spool.watch import file_system

PACKAGES = ("fsbroker", "cloudpickle", "filelock", "h5py", "mpi4py", "numpy")
PAUSE = 0.005
"""Seconds between two looks for a name."""


class Hands:
    """The calls. Paths are relative to the directory that is measured."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._files = Files(root)
        self._locks: dict[str, Lock] = {}

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path)

    # -- who and where -------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        umask = os.umask(0o077)
        os.umask(umask)
        return {
            "host": platform.node(),
            "uid": os.getuid(),
            "umask": umask,
            "python": sys.executable,
            "environment": environment(),
            "packages": {name: _version(name) for name in PACKAGES},
            "file_system": file_system(self.root),
        }

    def clock(self) -> float:
        return time.time()

    # -- files ---------------------------------------------------------------------------

    def mkdir(self, path: str) -> None:
        os.mkdir(self._at(path), 0o700)

    def write(self, path: str, text: str) -> None:
        """A new file."""
        with open(self._at(path), "x") as file:
            file.write(text)

    def replace(self, path: str, texts: list[str], times: int) -> None:
        """Rename over a name, again and again, with these contents in turn."""
        for number in range(times):
            self.write(f"{path}.new", texts[number % len(texts)])
            os.rename(self._at(f"{path}.new"), self._at(path))

    def reread(self, path: str, texts: list[str], times: int) -> dict[str, int]:
        """How often a file that is being replaced was missing, or neither old nor new."""
        found = {"missing": 0, "torn": 0}
        for _ in range(times):
            try:
                with open(self._at(path)) as file:
                    found["torn"] += file.read() not in texts
            except FileNotFoundError:
                found["missing"] += 1
        return found

    def status(self, path: str) -> dict[str, float]:
        found = os.lstat(self._at(path))
        return {
            "links": found.st_nlink,
            "uid": found.st_uid,
            "mode": stat.S_IMODE(found.st_mode),
            "changed": found.st_mtime,
        }

    def link(self, source: str, path: str) -> None:
        os.link(self._at(source), self._at(path))

    def symlink(self, text: str, path: str) -> None:
        os.symlink(text, self._at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    # -- who comes first -----------------------------------------------------------------

    def race(self, kind: str, directory: str, mark: str, names: list[str]) -> list[str]:
        """Create all of these names; those that the file system said were ours.

        Args:
            kind: "create" (exclusively), "link" or "symlink". mark: what tells our files.
        """
        if kind == "link":
            self.write(f"{directory}/{mark}", mark)
        won = []
        for name in names:
            with suppress(FileExistsError):
                self._create(kind, directory, mark, name)
                won.append(name)
        return won

    def _create(self, kind: str, directory: str, mark: str, name: str) -> None:
        path = f"{directory}/{name}"
        if kind == "create":
            self.write(path, mark)
        elif kind == "link":
            self.link(f"{directory}/{mark}", path)
        else:
            self.symlink(mark, path)

    def owners(self, directory: str, names: list[str]) -> dict[str, str]:
        """Whose mark each name has."""
        return {name: self._mark(self._at(f"{directory}/{name}")) for name in names}

    def _mark(self, path: str) -> str:
        if os.path.islink(path):
            return os.readlink(path)
        try:
            with open(path) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    # -- locks ---------------------------------------------------------------------------

    def lock(self, kind: str, path: str) -> bool:
        """Whether the lock could be taken now; it is held until `unlock`."""
        self._files.lock_class = kind
        lock = self._files.try_lock(path)
        if lock is not None:
            self._locks[path] = lock
        return lock is not None

    def unlock(self, path: str) -> None:
        self._locks.pop(path).release()

    def hdf5(self, path: str, mode: str, *, hold: bool = False) -> str:
        """Open with h5py; the error, or "". ``hold``: leave it open until the end."""
        import h5py

        try:
            file = h5py.File(self._at(path), mode)
        except OSError as error:
            return str(error)
        if hold:
            self._held = file
        else:
            file.close()
        return ""

    # -- what is seen --------------------------------------------------------------------

    def listed(self, directory: str) -> list[str]:
        return sorted(os.listdir(self._at(directory)))

    def touch(self, directory: str) -> None:
        os.utime(self._at(directory))

    def remember_absent(self, path: str) -> bool:
        """Look for a name that is not there yet, so that a cache may hold that."""
        return os.path.exists(self._at(path))

    def see(self, directory: str, name: str, how: str, patience: float) -> float | None:
        """Seconds until a name is there by "list" or "exists"; None: not in ``patience``."""
        began = time.monotonic()
        looks: dict[str, Callable[[], bool]] = {
            "list": lambda: name in os.listdir(self._at(directory)),
            "exists": lambda: os.path.exists(self._at(f"{directory}/{name}")),
        }
        while not looks[how]():
            if time.monotonic() - began > patience:
                return None
            time.sleep(PAUSE)
        return time.monotonic() - began

    def fill(self, directory: str, count: int, seconds: float) -> int:
        """Make so many files, as far as the time allows; how many."""
        until = time.monotonic() + seconds
        for number in range(count):
            if time.monotonic() > until:
                return number
            self.write(f"{directory}/{number:06d}", "")
        return count

    def time_listing(self, directory: str) -> float:
        """Seconds for one listing."""
        began = time.perf_counter()
        os.listdir(self._at(directory))
        return time.perf_counter() - began

    def room(self) -> dict[str, int]:
        found = os.statvfs(self.root)
        return {
            "bytes": found.f_bavail * found.f_frsize,
            "inodes": found.f_favail if found.f_files else -1,
            "name": os.pathconf(self.root, "PC_NAME_MAX"),
        }


def _version(name: str) -> str:
    if name == "fsbroker":
        from fsbroker import __version__

        return __version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def serve(root: str) -> None:
    """Answer what comes, until nothing does."""
    hands = Hands(root)
    _say({"value": "ready"})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            value = getattr(hands, request["call"])(*request["args"], **request["more"])
        except Exception as error:
            _say({"error": f"{type(error).__name__}: {error}"})
        else:
            _say({"value": value})


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
