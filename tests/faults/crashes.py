"""Every state of the disk that a power loss may leave of a story, as ALICE builds them.

    Recording     the real file calls, written down as they are made
    states        for each prefix of them, what may be left: trees of directories
    build         such a tree, as real directories and files

The model of persistence, which no file system is known to go below:

* a change of names (create, link, unlink, rename, mkdir, rmdir) is atomic, and durable once
  its directory was fsynced (of a rename: one of both) after it;
* changes of names that no fsync covers are kept or lost each by itself, in any combination,
  also two in one directory; those that are kept are applied in their order;
* the content of a file that was not fsynced is lost, half there, or there; its name tells
  nothing of that. A symbolic link's content is in its name;
* an fsync of a directory tells nothing of the directory's own name.

All combinations of n uncovered changes are 2^n: taken are all of them kept, none, each one
alone kept, each one alone lost, and each prefix. Names in `tmp/` mean nothing but for logs
that were moved there, so the others of these go together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fsbroker.spool.files import Files
from tests.sim.model import DIRECTORY, FILE, LINK, ModelDisk, Node


class Op(NamedTuple):
    """One call that was carried out.

    Attributes:
        promised: how many promises had been made when it was begun.
    """

    call: str
    path: str
    text: str
    data: bytes
    synced: bool
    promised: int


class Recording(Files):
    """The real file system; ``ops`` is what was done to it."""

    ops: list[Op]
    story: Any

    def write_new(self, path: str, chunks: Any, sync: bool) -> None:
        promised = len(self.story.promised)
        super().write_new(path, chunks, sync)
        self.ops.append(Op("write", path, "", b"".join(map(bytes, chunks)), sync, promised))

    def link(self, source: str, path: str) -> None:
        self._note("link", path, source, lambda: super(Recording, self).link(source, path))

    def symlink(self, content: str, path: str) -> None:
        self._note("symlink", path, content, lambda: super(Recording, self).symlink(content, path))

    def rename(self, source: str, path: str) -> None:
        self._note("rename", path, source, lambda: super(Recording, self).rename(source, path))

    def unlink(self, path: str) -> None:
        if path.startswith(".lock."):  # made by a lock, whose names mean nothing
            super().unlink(path)
            return
        self._note("unlink", path, "", lambda: super(Recording, self).unlink(path))

    def rmdir(self, path: str) -> None:
        self._note("unlink", path, "", lambda: super(Recording, self).rmdir(path))

    def mkdir(self, path: str) -> None:
        if not os.path.isdir(f"{self.root}/{path}"):
            self._note("mkdir", path, "", lambda: super(Recording, self).mkdir(path))

    def sync_directory(self, path: str) -> None:
        self._note("sync", path, "", lambda: super(Recording, self).sync_directory(path))

    def _note(self, call: str, path: str, text: str, do: Callable[[], None]) -> None:
        promised = len(self.story.promised)
        do()
        self.ops.append(Op(call, path, text, b"", False, promised))


# -- the states ------------------------------------------------------------------------------


class Shot(NamedTuple):
    """One state.

    Attributes:
        done: how many calls had been made. promised: how many promises.
        what: which uncovered changes were kept.
        tree: relative path -> directory (None), file (bytes) or symbolic link (str).
    """

    done: int
    promised: int
    what: str
    tree: dict[str, bytes | str | None]


def states(
    start: int, ops: Sequence[Op], promises: int, every: int = 1, first: int = 0
) -> Iterator[Shot]:
    """All of them, each tree once for each number of promises.

    Args:
        start: calls after which the power may fail; what they made is durable.
        every: 1 for all prefixes, 2 for every other, ...
        first: the shortest prefix.
    """
    seen = set()
    for done in range(max(start, first), len(ops) + 1, every):
        promised = ops[done].promised if done < len(ops) else promises
        open_changes = _uncovered(_driven(start, ops[:done]))
        for what, dropped in _choices(open_changes):
            for torn in (0, 1, 2):
                disk = _driven(start, ops[:done])
                journal = disk.journal
                disk._replay([one for at, one in enumerate(journal) if at not in dropped])
                tree = _tree(disk, torn)
                mark = (promised, hash(tuple(sorted((k, str(v)) for k, v in tree.items()))))
                if mark not in seen:
                    seen.add(mark)
                    yield Shot(done, promised, f"{what}, torn {torn}", tree)


def _driven(start: int, ops: Sequence[Op]) -> ModelDisk:
    """The model of a disk on which this was done."""
    disk = ModelDisk(ordered=False)
    for number, op in enumerate(ops):
        if number == start:
            _settle(disk)
        _DO[op.call](disk, op)
    if len(ops) == start:
        _settle(disk)
    return disk


def _settle(disk: ModelDisk) -> None:
    disk.journal.clear()
    disk._rebuild()
    for node in disk._reachable():
        node.synced = True


def _place(disk: ModelDisk, path: str) -> tuple[Node, str]:
    directory, _, name = path.rpartition("/")
    return disk.directories[directory], name


def _named(disk: ModelDisk, path: str) -> Node:
    parent, name = _place(disk, path)
    return parent.entries[name]


def _new(kind: int) -> Callable[[ModelDisk, Op], None]:
    def make(disk: ModelDisk, op: Op) -> None:
        data = op.text if kind == LINK else op.data
        node = Node(kind, data, op.synced or kind != FILE, 0.0)
        disk.add(*_place(disk, op.path), node, 0.0)

    return make


_DO: dict[str, Callable[[ModelDisk, Op], None]] = {
    "write": _new(FILE),
    "symlink": _new(LINK),
    "mkdir": _new(DIRECTORY),
    "link": lambda disk, op: disk.add(*_place(disk, op.path), _named(disk, op.text), 0.0),
    "rename": lambda disk, op: disk.move(*_place(disk, op.text), *_place(disk, op.path), 0.0),
    "unlink": lambda disk, op: disk.remove(*_place(disk, op.path), 0.0),
    "sync": lambda disk, op: disk.sync(disk.directories[op.path]),
}


def _uncovered(disk: ModelDisk) -> tuple[list[int], list[int]]:
    """Changes that may be lost, by their place in the journal: those that matter, and others."""
    matter, other = [], []
    for at, (parent, _, _, second, _) in enumerate(disk.journal):
        if at < parent.covered or (second is not None and at < second.covered):
            continue
        temporary = parent.path.endswith("/tmp") and second is None
        (other if temporary else matter).append(at)
    return matter, other


def _choices(open_changes: tuple[list[int], list[int]]) -> Iterator[tuple[str, set[int]]]:
    """What is lost."""
    matter, other = open_changes
    for also, rest in (("with tmp", set()), ("without tmp", set(other))):
        yield f"all kept {also}", rest
        yield f"none kept {also}", rest | set(matter)
    for at in matter:
        yield f"{at} alone lost", {at}
        yield f"{at} alone kept", set(matter) - {at}
        yield f"kept before {at}", {one for one in matter if one >= at}


def _tree(disk: ModelDisk, torn: int) -> dict[str, bytes | str | None]:
    """The names that can be reached, and their content."""
    found: dict[str, bytes | str | None] = {}
    for path, directory in disk.directories.items():
        if path:
            found[path] = None
        for name, node in directory.entries.items():
            if node.kind == LINK:
                found[directory.inner(name)] = str(node.data)
            elif node.kind == FILE:
                data = node.data
                assert isinstance(data, bytes)
                part = len(data) if node.synced else (0, len(data) // 2, len(data))[torn]
                found[directory.inner(name)] = data[:part]
    return found


def build(root: Path, tree: dict[str, bytes | str | None]) -> None:
    for path, content in sorted(tree.items()):
        if content is None:
            (root / path).mkdir(mode=0o700, parents=True, exist_ok=True)
        elif isinstance(content, str):
            os.symlink(content, root / path)
        else:
            (root / path).write_bytes(content)
            (root / path).chmod(0o600)
