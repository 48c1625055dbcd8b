"""Who may look into a spool: modes and owners, and what is refused.

    private   root, users/ and areas 0700, files 0600
    group     root 2750, users/ 3770 (whoever is in the group makes an area of his own, and
              nobody removes another's), areas 2750 and files 0640 of the spool's group
    project   the same for several groups, by POSIX ACLs that new directories inherit

``users/`` is sticky and setgid in a shared spool, and sticky in no other: by that everybody
knows which it is, before anything was read. In a shared area the group sees what it takes to
use results and to wait for them (`READABLE`); all else is behind directories of mode 0700.

Whoever made the spool owns ``users/``, and may remove areas there, as root may. He cannot write
into them, nor have anybody run his code: owners are checked at every file that is opened.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence

from fsbroker.errors import SpoolError, SpoolUnsafe, SpoolUnwritable
from fsbroker.spool.files import SHARED, Files
from fsbroker.spool.layout import DIRECTORIES, Area

READABLE = frozenset({"tasks", "claims", "agents", "results", "packs", "blobs"})
"""Directories of an area that the group of a shared spool may look into."""
ROOT, USERS, AREA, FILE = 0o2750, SHARED | 0o770, 0o2750, 0o640
"""Modes in a shared spool."""
PRIVATE = 0o700

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ACL = "system.posix_acl_"
_OWNER, _GROUP_OWNER, _GROUP, _MASK, _OTHER = 0x01, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF


class Sharing(enum.Enum):
    """Whom a spool is for, as ``spool.yaml`` says it."""

    PRIVATE = "private"
    GROUP = "group"
    PROJECT = "project"


# -- refusing ----------------------------------------------------------------------------


def check_root(files: Files) -> int:
    """Refuse a directory in which others could put things; the uid of the spool's owner.

    Raises:
        SpoolUnwritable: it is somebody else's.
        SpoolUnsafe: what is wrong, and the command that mends it.
    """
    if not files.owners:
        return files.uid
    root = os.stat(files.root)
    if not files.shared and root.st_uid not in (files.uid, 0):
        raise SpoolUnwritable(
            f"This directory is private to user {root.st_uid}, and you are user {files.uid}",
            files.root,
            "Use one of your own, or ask for 'fsbroker cache share'",
        )
    if root.st_mode & _OTHERS_WRITE and not root.st_mode & stat.S_ISVTX:
        raise _refused(root, files.root, "chmod go-w")
    return root.st_uid if files.shared else files.uid


def check_users(files: Files, owner: int) -> None:
    """Refuse ``users/`` where somebody could take another's area away.

    Args:
        owner: of the spool.
    """
    status, path = files.status("users"), f"{files.root}/users"
    if not stat.S_ISDIR(status.st_mode):
        raise SpoolUnsafe("Not a directory (a link?)", path, "Remove it, or use another spool")
    if not files.owners:
        return
    if status.st_uid not in (owner, files.uid, 0):
        raise SpoolUnsafe(f"User {status.st_uid} owns it, and {owner} the spool", path)
    if status.st_mode & _OTHERS_WRITE and status.st_mode & SHARED != SHARED:
        raise _refused(status, path, "'fsbroker cache share' sets its mode, or chmod go-w")


def check_area(files: Files, area: Area) -> None:
    """Refuse an area that somebody else made, or may write in."""
    status, path = files.status(area.path), f"{files.root}/{area.path}"
    if not stat.S_ISDIR(status.st_mode):
        raise SpoolUnsafe("Not a directory (a link?)", path, "Remove it, or use another spool")
    if files.owners and status.st_uid != files.uid:
        raise SpoolUnsafe(f"The area of user {files.uid} is owned by {status.st_uid}", path)
    # Where anybody may put a link anywhere, none may be where files are made and removed.
    names = sorted(READABLE) if files.owners else DIRECTORIES
    for name in ("", *names):
        inner = f"{area.path}/{name}".rstrip("/")
        try:
            status = files.status(inner)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode) or (files.owners and status.st_uid != files.uid):
            raise SpoolUnsafe("Not a directory of the area's owner", f"{files.root}/{inner}")
        if files.owners and status.st_mode & _OTHERS_WRITE:
            raise _refused(status, f"{files.root}/{inner}", "chmod go-w")


def _refused(status: os.stat_result, path: str, cure: str) -> SpoolUnsafe:
    mode = stat.S_IMODE(status.st_mode)
    return SpoolUnsafe(f"Others may write in this directory (mode {mode:04o})", path, cure)


# -- setting modes -----------------------------------------------------------------------


def mode_of(files: Files, name: str) -> int:
    """The mode of a directory of an area; "" is the area itself."""
    if not files.shared:
        return PRIVATE
    # setgid also where only the owner looks: files are made in tmp/, and keep their group.
    return AREA if not name or name in READABLE else PRIVATE | stat.S_ISGID


def open_root(files: Files, groups: Sequence[int]) -> None:
    """Let groups into a spool, and have them make areas there.

    Args:
        groups: numbers; the first one owns what is made, the others are let in by ACLs.

    Raises:
        SpoolError: the user is not in the first group, or there are no ACLs.
    """
    owner = os.stat(files.root).st_uid
    if owner != files.uid:
        raise SpoolUnwritable(f"Only user {owner}, who made it, can share it", files.root)
    for path, mode, rights in (("", ROOT, 5), ("users", USERS, 7)):
        try:
            os.chown(f"{files.root}/{path}", -1, groups[0])
        except PermissionError as error:
            raise SpoolError(
                f"You are not in group {groups[0]}", files.root, "Only members can share with it"
            ) from error
        _let_in(f"{files.root}/{path}", groups[1:], rights)
        files.set_mode(path, mode)
    files.shared = True


def open_area(files: Files, area: Area) -> None:
    """Let the group see the results in one's own area, also those from before."""
    for path in _directories(files, area):
        _give(files, path, AREA)
        for name in files.names(path):
            inner = f"{path}/{name}"
            if stat.S_ISREG(files.status(inner).st_mode):
                _give(files, inner, FILE)
    for name in (*DIRECTORIES, ""):
        _give(files, f"{area.path}/{name}".rstrip("/"), mode_of(files, name))


def close_area(files: Files, area: Area) -> None:
    """Nobody else sees anything of one's own area from now on."""
    files.set_mode(area.path, PRIVATE)


def is_open(files: Files, area: Area) -> bool:
    """Whether the group may look into an area."""
    return bool(files.shared and files.status(area.path).st_mode & stat.S_IXGRP)


def _directories(files: Files, area: Area) -> Iterator[str]:
    """Those that the group may look into, and what is in them, the outermost first."""
    for name in DIRECTORIES:
        if name in READABLE:
            path = f"{area.path}/{name}"
            yield path
            for inner in files.names(path):
                if stat.S_ISDIR(files.status(f"{path}/{inner}").st_mode):
                    yield f"{path}/{inner}"


def _give(files: Files, path: str, mode: int) -> None:
    """What would have come from ``users/``, had it been shared before: group, ACL and mode."""
    gid = files.status("users").st_gid
    if files.status(path).st_gid != gid:
        os.chown(f"{files.root}/{path}", -1, gid, follow_symlinks=False)
    _inherit(f"{files.root}/users", f"{files.root}/{path}")
    files.set_mode(path, mode)  # last: it bounds what the ACL allows


# -- several groups ----------------------------------------------------------------------


def _let_in(path: str, groups: Sequence[int], rights: int) -> None:
    """Name more groups in a directory's ACL, and have all that is made in it inherit them."""
    if not groups:
        return
    try:
        os.setxattr(path, f"{_ACL}access", _acl(groups, rights))
        os.setxattr(path, f"{_ACL}default", _acl(groups, 5))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        raise SpoolError(
            "The file system has no POSIX ACLs, so a spool has one group there",
            path,
            "Name one group that all are in, or use a directory of another file system",
        ) from error


def _inherit(users: str, path: str) -> None:
    try:
        acl = os.getxattr(users, f"{_ACL}default")
    except OSError:
        return  # one group, or no ACLs at all
    os.setxattr(path, f"{_ACL}access", acl)
    if os.path.isdir(path):
        os.setxattr(path, f"{_ACL}default", acl)


def _acl(groups: Sequence[int], rights: int) -> bytes:
    """As Linux keeps them (``posix_acl_xattr``): version 2, entries by tag and number."""
    entries = [
        (_OWNER, 7, _NOBODY),
        (_GROUP_OWNER, rights, _NOBODY),
        *((_GROUP, rights, gid) for gid in sorted(groups)),
        (_MASK, rights, _NOBODY),
        (_OTHER, 0, _NOBODY),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
