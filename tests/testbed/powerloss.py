"""A real file system whose power can be cut at any file call.

    with PowerLossDisk("ext4") as disk:
        publish(disk.path / "result")
        disk.crash()                     # power off and on again
        ... look at disk.path: it holds what a power loss leaves ...

or, to go through a function call by call:

    for step in itertools.count(1):
        with PowerLossDisk("xfs") as disk:
            cut = disk.run(publish, disk.path / "result", cut_before=step)
            disk.crash()
            ...
        if not cut:
            break

The file system lies in a sparse image on a loop device. The GOINGDOWN ioctl
shuts it down without flushing its log: what was not synced is gone, as after
a power cut, and every later call fails with EIO until it is mounted again. A
disk is made, cut and mounted again in about 0.05 s.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import glob
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.testbed import leftovers

GOINGDOWN = 0x8004587D
"""XFS_IOC_GOINGDOWN; ext4 knows it by the same number as EXT4_IOC_SHUTDOWN."""
WITHOUT_LOG_FLUSH = struct.pack("I", 2)

MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
# No commit by the clock during a test: what survives follows from its syncs alone.
OPTIONS = {"ext4": "loop,noatime,commit=3600", "xfs": "loop,noatime"}
SIZE = 320 << 20  # mkfs.xfs refuses less than 300 MB; the image is sparse

WRITING_CALLS = [
    "open",
    "write",
    "writev",
    "pwrite",
    "fsync",
    "fdatasync",
    "link",
    "symlink",
    "unlink",
    "remove",
    "rename",
    "replace",
    "mkdir",
    "rmdir",
    "truncate",
    "ftruncate",
    "close",
]
PREFIX = "fsbroker-powerloss"


class PowerCutError(BaseException):
    """Ends the interrupted function; a BaseException, as no handler in it may go on."""


class PowerLossDisk:
    """A freshly made ext4 or xfs; `path` is where it is mounted.

    Attributes:
        path: the mount point; the same before and after a crash.
        off: True from a cut until the file system is mounted again.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.off = False

    def __enter__(self) -> PowerLossDisk:
        _sweep_once()
        self._work = Path(tempfile.mkdtemp(prefix=leftovers.prefix(PREFIX)))
        self._work.chmod(0o755)  # other users may be asked to write here
        self._image, self.path = self._work / "image", self._work / "disk"
        self.path.mkdir()
        try:
            with self._image.open("wb") as image:
                image.truncate(SIZE)
            _run(*MKFS[self.kind], self._image)
            # So that it goes from the mount namespaces of others, too, which would keep the
            # old state of the disk alive: those that follow what is mounted here.
            _run("mount", "--bind", self._work, self._work)
            _run("mount", "--make-shared", self._work)
            self._mount()
        except BaseException:
            _works("umount", self._work)
            shutil.rmtree(self._work)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._let_go()
        # Lazily if need be: a test that failed may have left processes on it.
        if not _works("umount", self.path):
            _works("umount", "--lazy", self.path)
        # Never through a mount that stayed: only what this class made is removed.
        self.path.rmdir()
        self._image.unlink()
        _works("umount", "--lazy", self._work)
        self._work.rmdir()

    def cut(self) -> None:
        """Cut the power: whatever was not synced is lost, and every call fails with EIO."""
        root = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(root, GOINGDOWN, WITHOUT_LOG_FLUSH)
        finally:
            os.close(root)
        self.off = True

    def crash(self) -> Path:
        """Cut the power, if it is still on, and switch it on again.

        Returns:
            `path`, with what is left.

        Raises:
            RuntimeError: another process still has a file open on the disk. A
                power loss would have ended it: kill it first. (This process'
                own descriptors lead to /dev/null from now on.)
        """
        if not self.off:
            self.cut()
        self._let_go()
        if not _works("umount", self.path):
            pids = sorted({pid for pid, _ in _open_on(self.path)})
            message = f"{self.path} is still in use by process {pids}"
            raise RuntimeError(message)
        self._mount()
        self.off = False
        return self.path

    def run(self, function: Callable[..., object], *args: Any, cut_before: int) -> bool:
        """Run `function(*args)` and cut the power before its n-th file call on this disk.

        Calls that are made through the `os` module count (WRITING_CALLS),
        from any thread; those of the built-in `open` and of C libraries do not.

        Args:
            function: what to interrupt.
            args: its arguments.
            cut_before: the number of the call, from 1.

        Returns:
            True if the power was cut, False if the function came to its end before.
        """
        with self._counting(cut_before):
            try:
                function(*args)
            except BaseException:
                # Clean-up on a dead disk may replace PowerCutError with an EIO.
                if not self.off:
                    raise
        return self.off

    def _let_go(self) -> None:
        """Take the disk from descriptors of this process that nobody closed.

        They are not closed, as their owner may still do that: by then the
        number could belong to another file.
        """
        gc.collect()
        null = os.open(os.devnull, os.O_RDWR)
        for pid, fd in _open_on(self.path):
            if pid == os.getpid():
                os.dup2(null, fd, inheritable=False)
        os.close(null)

    def _mount(self) -> None:
        _run("mount", "-o", OPTIONS[self.kind], self._image, self.path)
        self._device = os.stat(self.path).st_dev
        self.path.chmod(0o777)

    @contextmanager
    def _counting(self, cut_before: int) -> Iterator[None]:
        calls = 0

        def counted(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            if not self.off and self._is_here(*args, *kwargs.values()):
                calls += 1
                if calls == cut_before:
                    self.cut()
            if self.off and call is not real_close:  # descriptors go even without power
                raise PowerCutError
            return call(*args, **kwargs)

        real_close = os.close
        counting = {name: functools.partial(counted, getattr(os, name)) for name in WRITING_CALLS}
        with mock.patch.multiple(os, **counting):
            yield

    def _is_here(self, *args: Any) -> bool:
        """Whether an argument is a path or a descriptor on this disk."""
        for arg in args:
            if isinstance(arg, (str, bytes, os.PathLike)):
                if os.fsdecode(arg).startswith(f"{self.path}{os.sep}") or arg == self.path:
                    return True
            elif type(arg) is int and arg > 2:
                try:
                    if os.fstat(arg).st_dev == self._device:
                        return True
                except OSError:
                    continue  # a number that is no descriptor: flags, a mode
        return False


@functools.cache
def missing() -> str | None:
    """Why no power can be cut here; None if it can."""
    for program in ("mkfs.ext4", "mkfs.xfs", "mount", "umount"):
        if shutil.which(program, path=_path()) is None:
            return f"the program {program} is not installed"
    if os.geteuid() != 0:
        return "only root can mount file systems"
    for kind in MKFS:
        try:
            with PowerLossDisk(kind) as disk:
                disk.crash()
        except (OSError, RuntimeError) as error:
            return f"{kind}: {error}"
    return None


@functools.cache
def _sweep_once() -> None:
    """Unmount and remove what sessions that were killed have left behind."""
    for work in leftovers.of_dead(PREFIX):
        _works("umount", "--lazy", work / "disk")
        _works("umount", "--lazy", work)
        if not (work / "disk").is_mount():
            shutil.rmtree(work, ignore_errors=True)


def _path() -> str:
    # A user's PATH lacks the system programs on Debian.
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _run(*argv: object) -> None:
    done = _attempt(*argv)
    if done.returncode != 0:
        message = f"{argv[0]}: {done.stderr.strip() or done.returncode}"
        raise RuntimeError(message)


def _works(*argv: object) -> bool:
    return _attempt(*argv).returncode == 0


def _attempt(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(arg) for arg in argv],
        env={**os.environ, "PATH": _path(), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )


def _open_on(path: Path) -> Iterator[tuple[int, int]]:
    """Process and descriptor of each file that is open below a path."""
    # Not by Path.glob, which minds processes that end while it looks.
    for link in map(Path, glob.glob("/proc/[0-9]*/fd/*")):
        try:
            # By name: a file system that is shut down answers no stat.
            if os.readlink(link).startswith(f"{path}/") or os.readlink(link) == str(path):
                yield int(link.parts[2]), int(link.name)
        except OSError:
            continue  # it ended while we looked
