"""A file system whose calls fail, wait or lie as told: a directory, passed on through FUSE.

    with FaultFS(tmp_path) as disk:
        disk.rule("link", "*/tasks/*", "lie:EEXIST")     # done, and reported as not done
        disk.rule("open", "*", "ESTALE", times=3)        # not done, three times
        disk.rule("readdir", "*", "delay:0.2")
        ... use disk.path ...

The kernel remembers nothing (names, attributes) unless `negative` says for how many
seconds it believes that a name is absent. Only root can mount.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = (
    *("getattr", "readdir", "open", "create", "read", "write", "truncate", "fsync", "fsyncdir"),
    *("flush", "release", "rename", "link", "symlink", "readlink", "unlink", "mkdir", "rmdir"),
    *("utimens", "chmod", "statfs"),
)
STATUS = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
SPACE = ("f_bsize", "f_blocks", "f_bavail", "f_bfree", "f_namemax")


class FaultFS:
    """Such a file system, mounted; `path` is where."""

    def __init__(self, folder: Path, negative: float = 0.0) -> None:
        self.path, self._real = folder / "mounted", folder / "behind"
        self._rules = folder / "rules"
        self._negative = negative

    def __enter__(self) -> FaultFS:
        self.path.mkdir()
        self._real.mkdir()
        self.calm()
        options = [str(self._real), str(self.path), str(self._rules), str(self._negative)]
        here = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *options],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(here)},
        )
        end = time.monotonic() + 20
        while not self.path.is_mount():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the FUSE file system was not mounted")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=False)
        self._process.kill()  # it may wait for ever for who still has a file open
        self._process.wait()

    def rule(self, call: str, pattern: str, what: str, times: int = 1 << 30) -> None:
        """From now on this call, for paths that match, fails, lies or waits."""
        self._tell(self._rules.read_text() + f"{call} {pattern} {what} {times}\n")

    def calm(self) -> None:
        """No rules."""
        self._tell("")

    def _tell(self, text: str) -> None:
        """In one step: they are read all the time."""
        new = self._rules.with_suffix(".new")
        new.write_text(text)
        new.replace(self._rules)


@functools.cache
def missing() -> str | None:
    """Why there is no FUSE here; None if there is."""
    if importlib.util.find_spec("mfusepy") is None:
        return "the Python package mfusepy is not installed"
    if os.geteuid() != 0:
        return "only root can mount"
    return None if os.path.exists("/dev/fuse") else "there is no /dev/fuse"


class Rules:
    """What is told, by a file that may change at any time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}

    def strike(self, call: str, path: str) -> int:
        """Wait, or raise what was told; the errno to report after the call, or 0."""
        lie = 0
        with open(self._path) as file:
            lines = file.read().splitlines()
        for line in lines:
            name, pattern, what, times = line.split()
            if name != call or not fnmatch.fnmatch(path, pattern) or self._over(line, int(times)):
                continue
            kind, _, rest = what.rpartition(":")
            if kind == "delay":
                time.sleep(float(rest))
            elif kind == "lie":
                lie = getattr(errno, rest)
            else:
                raise OSError(getattr(errno, rest), "as told")
        return lie

    def _over(self, line: str, times: int) -> bool:
        with self._lock:
            self._used[line] = self._used.get(line, 0) + 1
            return self._used[line] > times


class Through:
    """The calls themselves, on the real directory."""

    def __init__(self, root: str) -> None:
        self._root = root

    def _at(self, path: str) -> str:
        return self._root + path

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        status = os.lstat(self._at(path))
        times = {
            f"st_{name}": getattr(status, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")
        }
        return {name: getattr(status, name) for name in STATUS} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._at(path))]

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~os.O_CREAT)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        os.truncate(self._at(path), length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        os.fsync(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def rename(self, old: str, new: str, *flags: int) -> None:
        os.rename(self._at(old), self._at(new))

    def link(self, target: str, source: str) -> None:
        os.link(self._at(source), self._at(target))

    def symlink(self, target: str, source: str) -> None:
        os.symlink(source, self._at(target))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def utimens(self, path: str, times: Any = None) -> None:
        os.utime(self._at(path), ns=times, follow_symlinks=False)

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._at(path))
        return {name: getattr(found, name) for name in SPACE}


def _struck(call: str, rules: Rules, real: Callable[..., Any], error: Any) -> Callable[..., Any]:
    def strike(self: Any, path: str, *args: Any) -> Any:
        try:
            lie = rules.strike(call, path)
            found = real(path, *args)
        except OSError as trouble:
            raise error(trouble.errno) from trouble
        if lie:
            raise error(lie)
        return found

    return strike


def main() -> None:
    import mfusepy

    root, mount, path, negative = sys.argv[1:]
    rules, through = Rules(path), Through(root)
    members: dict[str, Any] = {
        call: _struck(call, rules, getattr(through, call), mfusepy.FuseOSError) for call in CALLS
    }
    kind = type("Struck", (mfusepy.Operations,), members | {"use_ns": True})
    caches = {"entry_timeout": 0, "attr_timeout": 0, "negative_timeout": negative}
    mfusepy.FUSE(kind(), mount, foreground=True, allow_other=True, **caches)


if __name__ == "__main__":
    main()
