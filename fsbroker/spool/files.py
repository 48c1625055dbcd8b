"""Every file call of the protocol, and its clock.

All paths are relative to the spool's root. Nothing else in fsbroker touches a spool
path, so that a model file system can stand in for this class in the simulation
(`tests/sim`), with crashes, stale caches and replies that lie.

`OSError` passes through where the protocol decides by it (ENOENT, EEXIST, EIO, ...);
what only the user can mend (no space, no permission, read-only) is raised as a
`SpoolError` that names the path and the cure.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from fsbroker.errors import FileRefused, SpoolError, SpoolFull, SpoolUnwritable
from fsbroker.spool.watch import file_system

if TYPE_CHECKING:
    from fsbroker.spool.signatures import Keyring

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

SHARED = stat.S_ISVTX | stat.S_ISGID
"""The mode bits of ``users/`` by which a spool is known to be shared (`sharing.py`)."""
MOST_NAMES = 3
"""Links that a published file has at most: its name, a temporary one, and an archived one."""
PASSING = (errno.ESTALE, errno.EINTR)
"""Errors that go away when the path is looked up again, unless there is trouble."""
RETRIES = 5
"""More of those than a few mean trouble."""

_FULL = {
    errno.ENOSPC: "Free some space or inodes ('fsbroker gc' shows what the spool holds)",
    errno.EDQUOT: "Your quota is used up; free some space ('fsbroker gc' shows what can go)",
}
_UNWRITABLE = {
    errno.EACCES: "Check the owner and mode of the spool",
    errno.EPERM: "Check the owner and mode of the spool",
    errno.EROFS: "The file system is mounted read-only",
}


_NO_FILE = {errno.ELOOP: "a link", errno.ENXIO: "a socket"}
"""What opening says of things that are no files."""


def explain(error: OSError, path: str) -> SpoolError | None:
    """The error to show for an `OSError` that only the user can mend, else None."""
    number = error.errno or 0
    if number in _FULL:
        return SpoolFull(f"Cannot write ({os.strerror(number)})", path, _FULL[number])
    if number in _UNWRITABLE:
        return SpoolUnwritable(f"Cannot use ({os.strerror(number)})", path, _UNWRITABLE[number])
    return None


class Lock(Protocol):
    """A lock that is held."""

    def release(self) -> None: ...


class OpenFile:
    """A file of the spool, opened for reading and checked through its descriptor.

    Attributes:
        size: bytes at the time of opening.
    """

    __slots__ = ("_fd", "owner", "path", "size")

    def __init__(self, fd: int, path: str, status: os.stat_result) -> None:
        self._fd = fd
        self.path = path
        self.size = status.st_size
        self.owner = status.st_uid

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; fewer only at the end of the file."""
        data = self._pread(length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        while data and (missing := length - sum(map(len, parts))) > 0:
            data = self._pread(missing, offset + length - missing)
            parts.append(data)
        return b"".join(parts)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset``; the number of bytes read."""
        done = 0
        with self._named():
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if not count:
                    break
                done += count
        return done

    def _pread(self, length: int, offset: int) -> bytes:
        with self._named():
            return os.pread(self._fd, length, offset)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of a descriptor do not tell its path, nor that the name is gone."""
        try:
            yield
        except OSError as error:
            # ESTALE: another NFS client has removed it
            number = errno.ENOENT if error.errno == errno.ESTALE else error.errno or errno.EIO
            raise OSError(number, os.strerror(number), self.path) from error

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # At the interpreter's end this module's names are gone: only builtins are left.
        try:  # noqa: SIM105 - so is `suppress`
            self.close()
        except (OSError, AttributeError, TypeError):
            pass  # a file system that is gone; nothing was written


class Files:
    """The real file system and the real clock.

    Args:
        root: the spool's directory.
        lock_class: "flock", "soft" or "none": how `try_lock` excludes. It is for order
            only; no rule of the protocol rests on it.

        keyring: who must have signed what is read; None: files are not signed.

    Attributes:
        owners: whether owners and modes of this file system tell who wrote a file.
        ticks: what a listing does not show may be there all the same (`freshen`).
        pause: fewest seconds between two looks where nobody tells of changes (`watch`).
    """

    def __init__(
        self, root: str, lock_class: str = "flock", keyring: Keyring | None = None
    ) -> None:
        self.root = os.path.abspath(root)
        self.lock_class = lock_class
        self.keyring = keyring
        self.owners = keyring is None or keyring.owners
        self.pause = 0.0
        self._prefix = self.root + "/"
        self.uid = os.getuid()
        self.shared = is_shared(self.root)
        self.ticks = file_system(self.root) == "nfs"  # "nfs4" tells of each change

    # -- clock and chance ----------------------------------------------------------------

    def monotonic(self) -> float:
        """Seconds; to compare with own readings only."""
        return time.monotonic()

    def wall_time(self) -> float:
        """Seconds since the epoch: to be shown and to sort by, never to decide by."""
        return time.time()

    def token(self) -> str:
        """16 random hex digits."""
        return secrets.token_hex(8)

    # -- reading -------------------------------------------------------------------------

    def names(self, directory: str) -> list[str]:
        """The names in a directory, in no order, those that begin with a dot left out.

        A listing is fresh on NFS where looking up a fixed name is not.
        """
        found = self._retry(os.listdir, directory)
        return [name for name in found if name[0] != "."]

    def open(self, path: str, owner: int | None = None) -> OpenFile:
        """Open for reading without following links; only a regular file that is one's own.

        Args:
            owner: whose it must be, if not this user's.

        Raises:
            FileRefused: a link, a FIFO, a device, a file of somebody else, or one that others
                may have written.
            FileNotFoundError: it is not there.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = self._retry(lambda name: os.open(name, flags), path)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise FileRefused(f"Not a regular file ({_NO_FILE[error.errno]})", path) from error
            raise
        status = os.fstat(fd)
        wanted = self.uid if owner is None else owner
        wrong = _suspicion(status, wanted if self.owners else None)
        if wrong:
            os.close(fd)
            raise FileRefused(f"Not opened: {wrong}", path, "Remove it from the spool")
        return OpenFile(fd, path, status)

    def readlink(self, path: str) -> str:
        return self._retry(os.readlink, path)

    def age(self, path: str, now: str) -> float:
        """Seconds between the changes of two files, both by the file server's clock."""
        return os.lstat(self._prefix + now).st_mtime - os.lstat(self._prefix + path).st_mtime

    def status(self, path: str) -> os.stat_result:
        """Of the name itself: links are not followed."""
        return self._retry(os.lstat, path)

    def size(self, path: str) -> int:
        return self.status(path).st_size

    # -- writing -------------------------------------------------------------------------

    def write_new(self, path: str, chunks: Sequence[Buffer], sync: bool) -> None:
        """Create a file with this content; it must not exist. Errors of fsync and close count."""
        mode = 0o640 if self.shared else None
        self._retry(lambda name: _write(name, chunks, sync, mode), path)

    def link(self, source: str, path: str) -> None:
        """A second name for a file, if the name is free (`FileExistsError`)."""
        target = self._prefix + path
        self._retry(lambda name: os.link(name, target, follow_symlinks=False), source)

    def symlink(self, content: str, path: str) -> None:
        """Create a record: whole, and only if the name is free (`FileExistsError`)."""
        self._retry(lambda name: os.symlink(content, name), path)

    def rename(self, source: str, path: str) -> None:
        target = self._prefix + path
        self._retry(lambda name: os.rename(name, target), source)

    def unlink(self, path: str) -> None:
        self._retry(os.unlink, path)

    def mkdir(self, path: str) -> None:
        """Create a directory; it may exist. In a shared spool the group may look into it."""
        with suppress(FileExistsError):
            self._retry(lambda name: os.mkdir(name, 0o700), path)
            if self.shared:
                self.set_mode(path, 0o2750)

    def set_mode(self, path: str, mode: int) -> None:
        """Say who may use a file or directory: never left to a umask."""
        if not self.owners:  # it seems to be somebody else's, who alone could
            return
        self._retry(lambda name: os.chmod(name, mode), path)

    def rmdir(self, path: str) -> None:
        self._retry(os.rmdir, path)

    def sync_directory(self, path: str) -> None:
        """Make the names of a directory durable."""
        self._retry(_sync_directory, path)

    def touch(self, path: str) -> None:
        """Make a file, a link or a directory young, by the file server's clock (`age`)."""
        self._retry(partial(os.utime, follow_symlinks=False), path)

    def freshen(self, directory: str) -> None:
        """See to it that the next listing shows all, where that takes a change by ourselves.

        An NFS v3 client judges by the directory's time, and misses the second of two
        changes in one tick of the server's clock until there is a third.
        """
        if self.ticks:
            self.touch_directory(directory)

    def touch_directory(self, path: str) -> None:
        """Change a directory's time, so that NFS v3 clients look at it again."""
        self._retry(os.utime, path)

    # -- locks ---------------------------------------------------------------------------

    def try_lock(self, path: str) -> Lock | None:
        """The lock if nobody holds it, else None; also where the file system has no locks."""
        if self.lock_class == "none":
            return _NoLock()
        import filelock

        # Without `fallback_to_soft` a host whose flock fails would lock by other means than
        # the rest, and exclude nobody.
        kind = (
            partial(filelock.FileLock, fallback_to_soft=False)
            if self.lock_class == "flock"
            else filelock.StrictSoftFileLock
        )
        lock = kind(self._prefix + path, timeout=0, mode=0o600, thread_local=False, blocking=False)
        try:
            lock.acquire()
        except (filelock.Timeout, NotImplementedError):
            return None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINTR):
                return None
            raise
        return _OwnLock(lock)

    # -- private -------------------------------------------------------------------------

    def _retry(self, call: Callable[[str], T], path: str) -> T:
        for attempt in range(RETRIES):
            try:
                return call(self._prefix + path)
            except OSError as error:
                if error.errno in PASSING and attempt < RETRIES - 1:
                    continue
                if told := explain(error, self._prefix + path):
                    raise told from error
                error.filename = self._prefix + path  # calls on descriptors do not tell it
                raise
        raise AssertionError("unreachable")


class _NoLock:
    def release(self) -> None:
        pass


class _OwnLock:
    def __init__(self, lock: Lock) -> None:
        self._lock = lock

    def release(self) -> None:
        # What was done under it is done, whatever has become of the lock (a server that forgot it).
        with suppress(OSError):
            self._lock.release()


class ForeignFiles(Files):
    """The files of another user's area, for reading: they must be that user's.

    Nothing there is ours to change, a directory's times neither: where a reader touches its own
    to see its news (NFS v3), it waits here until the owner's next change.

    Args:
        files: of the same spool. owner: the other user's uid.
    """

    def __init__(self, files: Files, owner: int) -> None:
        super().__init__(files.root, files.lock_class, files.keyring)
        self.uid = owner

    def open(self, path: str, owner: int | None = None) -> OpenFile:
        try:
            return super().open(path, owner)
        except SpoolUnwritable as error:  # one file that is closed to us hides no others
            raise FileRefused("Its owner lets nobody else read it", path) from error

    def touch_directory(self, path: str) -> None:
        pass


def _suspicion(status: os.stat_result, owner: int | None) -> str:
    """Why an open file is not used; empty if it is what its owner has published.

    Args:
        owner: None: the file system does not tell, signatures do.
    """
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if owner is None:
        return ""
    if status.st_uid != owner:
        return f"a file of another user (uid {status.st_uid}, not {owner})"
    if status.st_mode & 0o022:
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):04o})"
    if status.st_nlink > MOST_NAMES:
        return f"it has {status.st_nlink} names"
    return ""


def is_shared(root: str) -> bool:
    """Whether a spool is for others, too, by the mode of ``users/`` in it."""
    try:
        return os.lstat(f"{root}/users").st_mode & SHARED == SHARED
    except OSError:
        return False


def _write(name: str, chunks: Sequence[Buffer], sync: bool, mode: int | None = None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600)
    try:
        if mode is not None:
            os.fchmod(fd, mode)
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(fd, rest) :]
        if sync:
            os.fsync(fd)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            os.unlink(name)
        raise
    os.close(fd)


def _sync_directory(name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
