"""A file system in memory that behaves as badly as real ones were seen to do.

    ModelDisk    what the server holds: names, contents, and which of them are durable
    Host         what one client machine believes: caches, clocks, its kind of mount
    ModelFiles   one process's file calls (the methods of `fsbroker.spool.files.Files`)

Every call of `ModelFiles` is a point where the scheduler may run somebody else, and
where a fault may strike: an error before the effect, an error *after* it (a reply that
lies), or an effect that comes later than its error.

Measured facts that the model follows (Linux 6.1: NFS v3 and v4.2, ext4 and xfs):

* a name looked up and not found stays absent for 30 s, whatever happens on the server,
  until the client lists the directory and sees that it changed; then it asks whether the
  directory has changed;
* listings are fresh on v4; on v3 two changes within one tick of the server's clock look
  like one, so the second stays unseen until the directory changes again;
* creating a name always asks the server; a rename or link *of* a name cached as absent
  fails without asking;
* what a client has open and another one removes is gone on v3, and mostly still there on v4;
* a client that was cut off loses its locks, and does not know;
* a power loss takes names that no fsync of their directory covered, and turns files that
  were not fsynced into empty ones.
"""

from __future__ import annotations

import enum
import errno
import os
import random
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from fsbroker.errors import FileRefused, SpoolFull

Buffer = bytes | bytearray | memoryview

NEGATIVE = 30.0
"""Seconds for which a client believes that a name is absent (measured on v3 and v4.2)."""

LOCK_LEASE = 13.8
"""Seconds without a call after which a server gives a lock to another client (v4, measured)."""

TICK = 0.01
"""Resolution of a v3 server's timestamps, seconds."""

FILE, LINK, DIRECTORY = 1, 2, 3

NEVER = 1 << 60


class NotYours(BaseException):
    """Something of another user was to be changed; not an `Exception`, so nobody catches it."""


class Killed(BaseException):
    """SIGKILL: nothing of the process runs on; not an `Exception`, so nobody catches it."""


class Node:
    """An inode.

    Attributes:
        synced: the content would survive a power loss (a symlink's always does: it stands
            in the inode).
        changed: counts the changes of a directory (the change attribute of NFS v4).
        covered: journal entries of this directory before this position are durable.
        path: where a directory stands. owner: whose it is (uid).
    """

    __slots__ = (
        "changed",
        "covered",
        "data",
        "entries",
        "kind",
        "links",
        "mtime",
        "owner",
        "path",
        "synced",
    )

    def __init__(self, kind: int, data: bytes | str, synced: bool, mtime: float) -> None:
        self.kind = kind
        self.data = data
        self.synced = synced
        self.mtime = mtime
        self.links = 0
        self.changed = 0
        self.covered = 0
        self.path = ""
        self.owner = 0
        self.entries: dict[str, Node] = {}

    def inner(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name


class Watcher(Protocol):
    """Who is told of changes on the disk, after their effect."""

    def added(self, directory: str, name: str, node: Node) -> None: ...
    def removed(self, directory: str, name: str, node: Node) -> None: ...
    def replaced(self, directory: str, name: str, old: Node, new: Node) -> None: ...


class Clock(Protocol):
    """What a file call needs of a scheduler.

    Attributes:
        now: true time, seconds.
        left: calls until the scheduler wants to be asked.
    """

    now: float
    left: int

    def switch(self) -> None: ...
    def later(self, delay: float, effect: Callable[[], None]) -> None: ...


class ModelDisk:
    """The truth.

    Args:
        ordered: power losses keep a prefix of all changes of names (the journal of ext4 and
            xfs, where any fsync commits everything before it); else each change that no
            fsync of its own directory covered is kept or lost by itself (all that POSIX
            promises; btrfs and striped metadata servers come near it).
    """

    def __init__(self, ordered: bool = True) -> None:
        self.ordered = ordered
        self.root = Node(DIRECTORY, b"", True, 0.0)
        self.root.links = 1
        self.directories: dict[str, Node] = {"": self.root}
        self.base: dict[Node, dict[str, Node]] = {}
        # (directory, name, node or None for a removal, second directory of a rename, new name)
        self.journal: list[tuple[Node, str, Node | None, Node | None, str]] = []
        self.committed = 0
        self.full = False
        self.locks: dict[str, object] = {}
        self.watcher: Watcher | None = None

    # -- changes of names; each is one atomic step ---------------------------------------

    def add(self, parent: Node, name: str, node: Node, now: float) -> None:
        self._enter(parent, name, node, now)
        node.links += 1
        self.journal.append((parent, name, node, None, ""))
        if self.watcher:
            self.watcher.added(parent.path, name, node)

    def remove(self, parent: Node, name: str, now: float) -> None:
        node = self._drop(parent, name, now)
        node.links -= 1
        self.journal.append((parent, name, None, None, ""))
        if self.watcher:
            self.watcher.removed(parent.path, name, node)

    def move(self, parent: Node, name: str, other: Node, new_name: str, now: float) -> None:
        node, old = parent.entries[name], other.entries.get(new_name)
        if old is node:  # POSIX: two names of one file: rename does nothing
            return
        self._drop(parent, name, now)
        self._enter(other, new_name, node, now)
        self.journal.append((parent, name, node, other, new_name))
        if old is not None:
            old.links -= 1
        if self.watcher:
            self.watcher.removed(parent.path, name, node)
            if old is not None:
                self.watcher.replaced(other.path, new_name, old, node)
            else:
                self.watcher.added(other.path, new_name, node)

    def _enter(self, parent: Node, name: str, node: Node, now: float) -> None:
        parent.entries[name] = node
        parent.changed += 1
        parent.mtime = now
        if node.kind == DIRECTORY:
            node.path = parent.inner(name)
            self.directories[node.path] = node
            assert all(child.kind != DIRECTORY for child in node.entries.values())

    def _drop(self, parent: Node, name: str, now: float) -> Node:
        node = parent.entries.pop(name)
        parent.changed += 1
        parent.mtime = now
        if node.kind == DIRECTORY:
            del self.directories[node.path]
        return node

    # -- durability ----------------------------------------------------------------------

    def sync(self, node: Node) -> None:
        """fsync of a file or a directory."""
        node.synced = True
        if node.kind == DIRECTORY:
            node.covered = len(self.journal)
        if self.ordered:
            self.committed = len(self.journal)

    def power_loss(self, chance: random.Random, worst: bool = False) -> None:
        """Go back to a state that the disk may be in after the power comes back.

        Args:
            worst: lose everything that can be lost.
        """
        kept = self._prefix(chance, worst) if self.ordered else self._chosen(chance, worst)
        self._replay(kept)
        for node in self._reachable():
            if node.kind == FILE and not node.synced:
                node.data = b"" if worst else _torn(node.data, chance)
                node.synced = True
        self.locks.clear()

    def _prefix(self, chance: random.Random, worst: bool) -> list:
        end = self.committed if worst else chance.randint(self.committed, len(self.journal))
        return self.journal[:end]

    def _chosen(self, chance: random.Random, worst: bool) -> list:
        odds = 0.0 if worst else chance.choice((0.0, 0.2, 0.5, 0.8))
        return [
            change
            for index, change in enumerate(self.journal)
            if index < change[0].covered
            or (change[3] is not None and index < change[3].covered)
            or (odds and chance.random() < odds)
        ]

    def _replay(self, kept: list) -> None:
        """Apply the kept changes to the state after the last power loss."""
        touched = {change[0]: None for change in self.journal}
        touched.update({change[3]: None for change in self.journal if change[3] is not None})
        for node in touched:
            node.entries = dict(self.base.get(node, ()))
        for parent, name, node, other, new_name in kept:
            if other is not None:
                parent.entries.pop(name, None)
                other.entries[new_name] = node
            elif node is None:
                parent.entries.pop(name, None)
            else:
                parent.entries[name] = node
        self.journal.clear()
        self.committed = 0
        self._rebuild()

    def _rebuild(self) -> None:
        self.directories = {"": self.root}
        self.base = {}
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            self.base[node] = dict(node.entries)
            node.covered = 0
            node.changed += 1
            for name, child in node.entries.items():
                child.links = 0
                if child.kind == DIRECTORY:
                    child.path = node.inner(name)
                    self.directories[child.path] = child
                    waiting.append(child)
        for directory in self.directories.values():
            for child in directory.entries.values():
                child.links += 1

    def _reachable(self) -> list[Node]:
        return [node for d in self.directories.values() for node in d.entries.values()]

    # -- for tests and invariants: no faults, no caches -----------------------------------

    def find(self, path: str) -> Node | None:
        directory, _, name = path.rpartition("/")
        parent = self.directories.get(directory)
        return parent.entries.get(name) if parent else None

    def listing(self, directory: str) -> list[str]:
        node = self.directories.get(directory)
        return sorted(node.entries) if node else []


def _torn(data: bytes | str, chance: random.Random) -> bytes:
    """What a file holds that was never fsynced: mostly nothing, or a part, or all of it."""
    assert isinstance(data, bytes)
    draw = chance.random()
    if draw < 0.6:
        return b""
    if draw < 0.8:
        return data[: chance.randrange(len(data) + 1)]
    return data


class Kind(enum.Enum):
    """What a mount is, by what it knows of changes that others make."""

    LOCAL = "local"
    """All of them, at once."""
    V3 = "nfs"
    """It compares a directory's time, whose ticks are coarse."""
    V4 = "nfs4"
    """It compares a number that counts the directory's changes."""


@dataclass
class Mount:
    """How a host sees the disk.

    Attributes:
        absent: seconds for which names that were not found are believed absent, without a
            look at their directory (``acdirmin``; 0: ``noac``); None: they are not
            remembered (``lookupcache=positive``).
        locks: "good", "nobody" (excludes nobody), "local" (only within the host),
            "refused" (no locks here), "sticky" (a dead holder keeps it) or "leased" (who is
            silent for `LOCK_LEASE` loses it).
        calm: mean number of calls between two faults; 0 for none.
        lies, late: faults may be replies that lie, effects that come after their error.
        cached, ticks: of the kind.
    """

    kind: Kind = Kind.LOCAL
    absent: float | None = NEGATIVE
    locks: str = "good"
    calm: int = 0
    lies: bool = False
    late: bool = False
    cached: bool = field(init=False)
    ticks: bool = field(init=False)

    def __post_init__(self) -> None:
        self.cached = self.kind is not Kind.LOCAL
        self.ticks = self.kind is Kind.V3


@dataclass
class Host:
    """One client machine: its kernel's caches, and its clocks.

    Attributes:
        rate, offset: of the monotonic clock; skew: of the wall clock, seconds.
        absent: directory -> name -> time until which the name is believed absent.
        seen: directory -> its change as last seen.
        listings: directory -> what was listed then (v3).
        records: symlinks read, until when they are believed to be there.
        known: directories looked up, until when, and the parent's change then: a client
            walks through them without asking, even after another one moved them.
    """

    name: str
    mount: Mount = field(default_factory=Mount)
    rate: float = 1.0
    offset: float = 0.0
    skew: float = 0.0
    absent: dict[str, dict[str, float]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    listings: dict[str, list[str]] = field(default_factory=dict)
    records: dict[str, tuple[str, float]] = field(default_factory=dict)
    known: dict[str, tuple[Node, float, int | None]] = field(default_factory=dict)

    def forget(self) -> None:
        """A boot."""
        for cache in (self.absent, self.seen, self.listings, self.records, self.known):
            cache.clear()

    def changed_here(self, directory: str, name: str) -> None:
        """This host changed the name itself."""
        if (names := self.absent.get(directory)) is not None:
            names.pop(name, None)
        self.listings.pop(directory, None)
        if self.known:
            self.known.pop(f"{directory}/{name}", None)


class ModelOpenFile:
    """Like `fsbroker.spool.files.OpenFile`."""

    __slots__ = ("_files", "_node", "owner", "path", "size")

    def __init__(self, files: ModelFiles, node: Node, path: str) -> None:
        self._files = files
        self._node = node
        self.path = path
        self.size = len(node.data)
        self.owner = files.uid

    def read(self, offset: int, length: int) -> bytes:
        files, node = self._files, self._node
        files.calm -= 1
        if files.calm < 0:
            files.fault("read", self.path)
        if node.links == 0 and files.has_lost_open_files():
            # Removed by another client: only its own host would have kept it (.nfs...).
            # The kernel says ESTALE, `OpenFile` what it means: the name is gone.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
        data = node.data[offset : offset + length]
        assert isinstance(data, bytes)
        return data

    def read_into(self, buffer: memoryview, offset: int) -> int:
        data = self.read(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        pass

    def __enter__(self) -> ModelOpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ModelLock:
    def __init__(self, disk: ModelDisk, place: str, owner: ModelFiles) -> None:
        self.disk = disk
        self.place = place
        self.owner = owner

    def is_lost(self, kind: str) -> bool:
        """Whether the server gives it to the next who asks."""
        if kind == "leased" and self.owner.clock.now - self.owner.called > LOCK_LEASE:
            return True
        return self.owner.dead and kind != "sticky"

    def release(self) -> None:
        if not self.owner.dead and self.disk.locks.get(self.place) is self:
            del self.disk.locks[self.place]


class Status(NamedTuple):
    """A part of `os.stat_result`."""

    st_mode: int
    st_uid: int


class ModelFiles:
    """One process's file calls: `fsbroker.spool.files.Files` on a `ModelDisk`.

    Attributes:
        uid: whose process it is. home: the only directory in which it may change anything.
        dead: the process was killed; every call raises `Killed` and does nothing.
        calm: calls until the next fault.
        called: when the last call was made.
    """

    lock_class = "flock"
    uid = 1000
    home = ""
    root = "/spool"
    keyring = None
    owners = True

    def __init__(self, disk: ModelDisk, host: Host, clock: Clock, chance: random.Random) -> None:
        self.disk = disk
        self.host = host
        self.clock = clock
        self.chance = chance
        self.dead = False
        self.latency = 0.0003
        self.calm = NEVER
        self.called = clock.now
        self.rest()

    # -- clock and chance ----------------------------------------------------------------

    def monotonic(self) -> float:
        return self.host.offset + self.host.rate * self.clock.now

    def wall_time(self) -> float:
        return 1.8e9 + self.host.skew + self.clock.now

    def token(self) -> str:
        return f"{self.chance.getrandbits(64):016x}"

    # -- reading -------------------------------------------------------------------------

    def names(self, directory: str) -> list[str]:
        """The names that were there all the time, and some of those that came and went."""
        node = self.disk.directories.get(directory)
        changed = node.changed if node else 0
        before = list(node.entries) if node else []
        self._step("names", directory)
        node = self._directory(directory)
        host = self.host
        if host.mount.cached and not self._has_changed(directory, node):
            known = host.listings.get(directory)
            if known is not None:
                return list(known)
        found = before
        if node.changed != changed:
            found = self._torn_listing(before, node.entries)
        if self.chance.random() < 0.5:
            found.reverse()
        if host.mount.ticks and node.changed == changed:
            host.listings[directory] = list(found)
        return found

    def open(self, path: str) -> ModelOpenFile:
        self._step("open", path)
        node = self._lookup(path)
        if node.kind != FILE:
            raise FileRefused("Not a regular file (a link)", path)
        if node.owner != self.uid:
            raise FileRefused(f"A file of user {node.owner}, not {self.uid}", path)
        return ModelOpenFile(self, node, path)

    def readlink(self, path: str) -> str:
        self._step("readlink", path)
        host = self.host
        if host.mount.cached:
            known = host.records.get(path)
            if known is not None and known[1] > self.clock.now:
                return known[0]
        node = self._lookup(path)
        if node.kind != LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        assert isinstance(node.data, str)
        if host.mount.cached:
            host.records[path] = (node.data, self.clock.now + NEGATIVE)
        return node.data

    def age(self, path: str, now: str) -> float:
        self._step("age", path)
        return self._lookup(now).mtime - self._lookup(path).mtime

    def size(self, path: str) -> int:
        self._step("size", path)
        return len(self._lookup(path).data)

    def status(self, path: str) -> Status:
        """Of a directory; what it takes to see whose it is, and that nobody else writes there."""
        self._step("status", path)
        return Status(stat.S_IFDIR | 0o2750, self._directory(path).owner)

    # -- writing -------------------------------------------------------------------------

    def write_new(self, path: str, chunks: Sequence[Buffer], sync: bool) -> None:
        fault = self._step("write_new", path)
        parent, name = self._free(path)
        node = self._made(FILE, b"".join(chunks))
        self.disk.add(parent, name, node, self.clock.now)
        if self.chance.random() < 0.1:
            # A process that is killed here leaves a part of the file under its temporary name.
            whole, node.data = node.data, node.data[: len(node.data) // 2]
            self._others()
            node.data = whole
        if fault:
            # An error of fsync or close: the real class removes what it wrote.
            if parent.entries.get(name) is node:
                self.disk.remove(parent, name, self.clock.now)
            raise fault
        if sync:
            self.disk.sync(node)

    def link(self, source: str, path: str) -> None:
        fault = self._step("link", path)
        node = self._known(source)
        parent, name = self._free(path)
        self._change(fault, path, lambda now: self._do_add(node, parent, name, now))

    def symlink(self, content: str, path: str) -> None:
        fault = self._step("symlink", path)
        parent, name = self._free(path)
        node = self._made(LINK, content)
        node.links = 1  # not yet a name, but there to be named
        self._change(fault, path, lambda now: self._do_symlink(node, parent, name, now))

    def rename(self, source: str, path: str) -> None:
        fault = self._step("rename", source)
        node = self._known(source)
        self._own(source)
        self._own(path)
        where, _, old_name = source.rpartition("/")
        directory, _, name = path.rpartition("/")
        parent, other = self._directory(where), self._directory(directory)
        self.host.changed_here(where, old_name)
        self._change(
            fault, path, lambda now: self._do_rename(node, (parent, old_name), (other, name), now)
        )

    def unlink(self, path: str) -> None:
        fault = self._step("unlink", path)
        node = self._lookup(path)
        if node.kind == DIRECTORY:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._remove(fault, path, node)

    def mkdir(self, path: str) -> None:
        fault = self._step("mkdir", path)
        try:
            parent, name = self._free(path)
        except FileExistsError:
            return
        self.disk.add(parent, name, self._made(DIRECTORY, b""), self.clock.now)
        if fault and fault.errno != errno.EEXIST:
            raise fault

    def rmdir(self, path: str) -> None:
        fault = self._step("rmdir", path)
        node = self._lookup(path)
        if node.kind != DIRECTORY:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if node.entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._remove(fault, path, node)

    def sync_directory(self, path: str) -> None:
        fault = self._step("sync_directory", path)
        node = self._directory(path)
        if fault:
            raise fault
        self.disk.sync(node)

    def touch(self, path: str) -> None:
        self._step("touch", path)
        self._own(path)
        self._lookup(path).mtime = self.clock.now

    def freshen(self, directory: str) -> None:
        if self.host.mount.ticks:
            self.touch_directory(directory)

    def touch_directory(self, path: str) -> None:
        self._step("touch_directory", path)
        self._own(path)
        node = self._directory(path)
        node.changed += 1
        node.mtime = self.clock.now

    # -- locks ---------------------------------------------------------------------------

    def try_lock(self, path: str) -> ModelLock | None:
        self._step("try_lock", path)
        self._own(path)
        kind = self.host.mount.locks
        if kind == "refused":
            return None
        place = f"{self.host.name}:{path}" if kind == "local" else path
        holder = self.disk.locks.get(place)
        if isinstance(holder, ModelLock) and kind != "nobody" and not holder.is_lost(kind):
            return None
        lock = ModelLock(self.disk, place, self)
        self.disk.locks[place] = lock
        return lock

    # -- the effects ---------------------------------------------------------------------

    def _made(self, kind: int, data: bytes | str) -> Node:
        node = Node(kind, data, kind != FILE, self.clock.now)
        node.owner = self.uid
        return node

    def _own(self, path: str) -> None:
        """What is to be changed must be the user's."""
        if not path.startswith(self.home):
            raise NotYours(f"{path} is changed by another user")

    def _remove(self, fault: OSError | None, path: str, node: Node) -> None:
        self._own(path)
        directory, _, name = path.rpartition("/")
        parent = self._directory(directory)
        self._change(fault, path, lambda now: self._do_remove(node, parent, name, now))

    def _do_add(self, node: Node, parent: Node, name: str, now: float) -> None:
        # A request carries file handles: of a file that still has a name, of a directory
        # wherever it stands by now.
        if node.links and parent.links and name not in parent.entries:
            self.disk.add(parent, name, node, now)

    def _do_symlink(self, node: Node, parent: Node, name: str, now: float) -> None:
        if parent.links and name not in parent.entries:
            node.links = 0
            self.disk.add(parent, name, node, now)

    def _do_rename(
        self, node: Node, source: tuple[Node, str], target: tuple[Node, str], now: float
    ) -> None:
        if source[0].entries.get(source[1]) is node and target[0].links:
            self.disk.move(*source, *target, now)

    def _do_remove(self, node: Node, parent: Node, name: str, now: float) -> None:
        if parent.entries.get(name) is node and not node.entries:
            self.disk.remove(parent, name, now)

    def _change(self, fault: OSError | None, path: str, effect: Callable[[float], None]) -> None:
        """Do it and say so; or do it and say otherwise; or say otherwise and do it later."""
        directory, _, name = path.rpartition("/")
        self.host.changed_here(directory, name)
        if fault is None:
            effect(self.clock.now)
            return
        if self.host.mount.late and self.chance.random() < 0.3:
            # A soft mount gave up, but the request is still on its way.
            fault = OSError(errno.EIO, os.strerror(errno.EIO), path)
            delay = self.chance.choice((0.001, 0.1, 5.0, 90.0))
            self.clock.later(delay, lambda: effect(self.clock.now))
        else:
            effect(self.clock.now)
        raise fault

    # -- what this host believes ---------------------------------------------------------

    def _directory(self, path: str) -> Node:
        """The directory, as this host believes."""
        if not self.host.mount.cached:
            node = self.disk.directories.get(path)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return node
        return self._believed_directory(path)

    def _believed_directory(self, path: str) -> Node:
        host, now = self.host, self.clock.now
        above, _, name = path.rpartition("/")
        known = host.known.get(path)
        if known is not None:
            node, until, seen = known
            # A handle of a directory that was deleted is stale, and makes the client ask.
            if node.links and until > now and host.seen.get(above) == seen:
                return node
            del host.known[path]
        found = self.disk.directories.get(path)
        if found is None or self._believed_absent(above, name):
            self._absent(path)
        assert found is not None
        host.known[path] = (found, now + NEGATIVE, host.seen.get(above))
        return found

    def _lookup(self, path: str) -> Node:
        directory, _, name = path.rpartition("/")
        parent = self._directory(directory)
        node = parent.entries.get(name)
        if self.host.mount.cached and self._believed_absent(directory, name):
            node = None
        if node is None:
            self._absent(path)
        assert node is not None
        return node

    def _known(self, path: str) -> Node:
        """What a link or a rename begins with: on v3 a name that was absent is not asked for."""
        directory, _, name = path.rpartition("/")
        if self.host.mount.ticks and name in self.host.absent.get(directory, ()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._lookup(path)

    def _believed_absent(self, directory: str, name: str) -> bool:
        names = self.host.absent.get(directory)
        until = names.get(name) if names else None
        if names is None or until is None:
            return False
        if until > self.clock.now:
            return True
        node = self.disk.directories.get(directory)
        if node is None or self._has_changed(directory, node):
            return False
        names[name] = self.clock.now + (self.host.mount.absent or 0.0)
        return True

    def _absent(self, path: str) -> None:
        """Say that the name was not found; remember it, as of when the server was asked."""
        directory, _, name = path.rpartition("/")
        parent = self.disk.directories.get(directory)
        mount = self.host.mount
        asked = mount.cached and not self._believed_absent(directory, name)
        if asked and parent is not None and mount.absent is not None:
            self._has_changed(directory, parent)
            self.host.absent.setdefault(directory, {})[name] = self.clock.now + mount.absent
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _has_changed(self, directory: str, node: Node) -> bool:
        """Whether a directory is another than this host last saw, as far as its kind can tell."""
        host = self.host
        stamp = int(node.mtime / TICK) if host.mount.ticks else node.changed
        if host.seen.get(directory) == stamp:
            return False
        host.seen[directory] = stamp
        host.listings.pop(directory, None)
        host.absent.pop(directory, None)
        return True

    def has_lost_open_files(self) -> bool:
        """Whether what is open here, and removed elsewhere, is gone.

        A server of v4 knows what its clients have open, until it is started anew.
        """
        kind = self.host.mount.kind
        return kind is Kind.V3 or (kind is Kind.V4 and self.chance.random() < 0.2)

    def _torn_listing(self, before: list[str], entries: dict[str, Node]) -> list[str]:
        """The directory changed while it was read: what came or went may be seen or not."""
        old = set(before)
        chance = self.chance
        found = [name for name in entries if name in old or chance.random() < 0.5]
        found += [name for name in before if name not in entries and chance.random() < 0.5]
        return found

    def _free(self, path: str) -> tuple[Node, str]:
        """The place of a new name; creating always asks the server about the name itself."""
        self._own(path)
        directory, _, name = path.rpartition("/")
        parent = self._directory(directory)
        self.host.changed_here(directory, name)
        if name in parent.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if self.disk.full and self.chance.random() < 0.9:
            raise SpoolFull("Cannot write (No space left on device)", path, "Free some space")
        return parent, name

    # -- scheduling and faults -----------------------------------------------------------

    def rest(self) -> None:
        """Draw the number of calls until the next fault."""
        calm = self.host.mount.calm
        self.calm = int(self.chance.expovariate(1 / calm)) if calm else NEVER

    def _step(self, call: str, path: str) -> OSError | None:
        """Let others run. The error to report after the effect, if any."""
        clock = self.clock  # as `_others`, which every call would have to call
        clock.now += self.latency
        clock.left -= 1
        if clock.left < 0:
            clock.switch()
        if self.dead:
            raise Killed
        self.called = clock.now
        self.calm -= 1
        if self.calm < 0:
            return self.fault(call, path)
        return None

    def _others(self) -> None:
        clock = self.clock
        clock.now += self.latency
        clock.left -= 1
        if clock.left < 0:
            clock.switch()
        if self.dead:
            raise Killed

    def fault(self, call: str, path: str) -> OSError | None:
        """Fail before the effect, or return the error to report after it."""
        self.rest()
        number = self.chance.choice((errno.EIO, errno.EIO, errno.ESTALE))
        if self.host.mount.lies and call in _LIES and self.chance.random() < 0.6:
            number = self.chance.choice(_LIES[call])
            return OSError(number, os.strerror(number), path)
        raise OSError(number, os.strerror(number), path)


_LIES = {
    "write_new": (errno.EIO,),
    "link": (errno.EEXIST, errno.EEXIST, errno.EIO, errno.ENOENT),
    "symlink": (errno.EEXIST, errno.EEXIST, errno.EIO),
    "rename": (errno.ENOENT, errno.ENOENT, errno.EIO),
    "unlink": (errno.ENOENT, errno.EIO),
    "mkdir": (errno.EEXIST, errno.EIO),
    "rmdir": (errno.ENOENT, errno.EIO),
    "sync_directory": (errno.EIO,),
}
"""Errors that a server's repeated reply reports for a call that it did carry out."""


class ForeignModelFiles(ModelFiles):
    """The files of another user's area: `fsbroker.spool.files.ForeignFiles` on a `ModelDisk`."""

    home = "nowhere"

    def __init__(self, files: ModelFiles, owner: int) -> None:
        self._process = files
        super().__init__(files.disk, files.host, files.clock, files.chance)
        self.uid = owner
        self.latency = files.latency

    @property
    def dead(self) -> bool:
        return self._process.dead

    @dead.setter
    def dead(self, _: bool) -> None:
        """It lives and dies with its process, and has its faults."""

    @property
    def calm(self) -> int:
        return self._process.calm

    @calm.setter
    def calm(self, calls: int) -> None:
        self._process.calm = calls

    def touch_directory(self, path: str) -> None:
        pass
