"""Creating and opening a spool.

``spool.yaml`` says what must be the same for everybody who uses the spool: the format
version, how locks are taken there, whether files are made durable, and whom it is for
(`sharing.py`). It is published like every other file, so that two first clients agree.

What ``fsbroker doctor`` has measured is recorded there, too: by a rename over the file, which
nothing else in a spool does. Nobody reads it twice, and no rule of the protocol rests on what
it says of locks and looks, so that old and new readers get on with each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from fsbroker.errors import (
    ConfigError,
    FileDamaged,
    FileRefused,
    FormatTooNew,
    SpoolError,
    SpoolMissing,
    SpoolUnsafe,
    SpoolUnwritable,
)
from fsbroker.spool import sharing
from fsbroker.spool.files import RETRIES, Files, explain
from fsbroker.spool.layout import DIRECTORIES, FORMAT, SPOOL_FILE, Area, area_of
from fsbroker.spool.sharing import Sharing
from fsbroker.spool.signatures import keyring

LOCK_CLASSES = ("flock", "soft", "none")
SHARINGS = tuple(one.value for one in Sharing)
DURABILITIES = {"fsync": True, "none": False}
LONGEST_PAUSE = 60.0
"""Seconds between two looks: more would be no broker."""


class Spool(NamedTuple):
    """An open spool.

    Attributes:
        files: its files. area: the user's own area.
        durable: files and names are synced before they count.
    """

    files: Files
    area: Area
    durable: bool


class Settings(NamedTuple):
    """What ``spool.yaml`` says.

    Attributes:
        lock: how `Files.try_lock` excludes. durable: sync files and names.
        nudge: readers change a directory before they conclude anything from its listing.
        pause: fewest seconds between two looks where nobody tells of changes.
        sharing: whom the spool is for (`Sharing`).
    """

    lock: str
    durable: bool
    nudge: bool = False
    pause: float = 0.0
    sharing: str = Sharing.PRIVATE.value


def create(root: str | os.PathLike[str], *, durable: bool = True) -> Spool:
    """Open a spool, creating what is missing; ``durable`` counts for a new one only.

    Raises:
        SpoolUnwritable, SpoolFull: it cannot be created.
        FormatTooNew: a newer fsbroker made it.
    """
    path = os.path.abspath(os.fspath(root))
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        if told := explain(error, path):
            raise told from error
        raise SpoolMissing("Cannot create the spool", path, str(error)) from error
    files = Files(path, keyring=keyring())
    owner = sharing.check_root(files)
    if SPOOL_FILE not in files.names(""):
        _write_settings(files, durable)
    return _opened(files, owner, make=True)


def open_spool(root: str | os.PathLike[str], key: str = "") -> Spool:
    """Open a spool that exists.

    Args:
        key: public key that this user must have (`signatures.keyring`).

    Raises:
        SpoolMissing: there is none.
        FormatTooNew: a newer fsbroker made it.
    """
    path = os.path.abspath(os.fspath(root))
    missing = SpoolMissing("No spool here", path, "Give the directory that holds spool.yaml")
    if not os.path.isdir(path):
        raise missing
    files = Files(path, keyring=keyring(key))
    owner = sharing.check_root(files)
    if SPOOL_FILE not in files.names(""):
        raise missing
    return _opened(files, owner, make=False)


def open_to_check(root: str | os.PathLike[str]) -> tuple[Spool, SpoolError | None]:
    """Open a spool, also one whose ``spool.yaml`` is gone or damaged: then with the reason.

    Raises:
        SpoolMissing: there is none. FormatTooNew: a newer fsbroker made it.
    """
    try:
        return open_spool(root), None
    except FormatTooNew:
        raise
    except (SpoolMissing, FileDamaged, FileRefused) as error:
        files = Files(os.fspath(root), "none", keyring())
        if not os.path.isdir(files.root) or "users" not in files.names(""):
            raise
        return Spool(files, Area(area_of(files.uid)), durable=True), error


def renew_settings(spool: Spool) -> None:
    """Put new settings in the place of damaged or missing ones: durable, and by measuring."""
    files, area, _ = spool
    if SPOOL_FILE in files.names(""):
        files.rename(SPOOL_FILE, area.quarantined(SPOOL_FILE, files.token()))
    _write_settings(files, durable=True)


def share(root: str | os.PathLike[str], groups: Sequence[int]) -> Spool:
    """Let groups use a spool, created if need be, and see the results in one's own area.

    Args:
        groups: numbers, the main one first; none: only one's own area is opened.

    Raises:
        SpoolUnwritable: somebody else made the spool. SpoolError: see `sharing.open_root`.
    """
    spool = create(root)
    if groups:
        sharing.open_root(spool.files, groups)
        kind = Sharing.GROUP if len(groups) == 1 else Sharing.PROJECT
        record(spool, read_settings(spool.files)._replace(sharing=kind.value))
    if not spool.files.shared:
        raise SpoolUnwritable("This spool is private", spool.files.root, "Name a --group")
    sharing.open_area(spool.files, spool.area)
    return spool


def _opened(files: Files, owner: int, *, make: bool) -> Spool:
    settings = read_settings(files)
    files.lock_class = settings.lock
    files.ticks |= settings.nudge
    files.pause = settings.pause
    area = Area(area_of(files.uid))
    if make or "users" not in files.names(""):
        files.mkdir("users")
    sharing.check_users(files, owner)
    if files.shared != (settings.sharing != Sharing.PRIVATE.value):
        raise SpoolUnsafe(
            f"The spool is {settings.sharing}, and users/ is {'' if files.shared else 'not '}"
            "sticky and setgid",
            f"{files.root}/users",
            "Its owner mends that by 'fsbroker cache share --group GROUP'",
        )
    _make_area(files, area)
    return Spool(files, area, settings.durable)


def _make_area(files: Files, area: Area) -> None:
    if area.path.rpartition("/")[2] not in files.names("users"):
        files.mkdir(area.path)
        files.set_mode(area.path, sharing.mode_of(files, ""))
    sharing.check_area(files, area)
    there = set(files.names(area.path))
    missing = [name for name in DIRECTORIES if name not in there]
    for name in missing:
        files.mkdir(f"{area.path}/{name}")
        files.set_mode(f"{area.path}/{name}", sharing.mode_of(files, name))
    if missing:
        for directory in (area.path, "users", ""):
            files.sync_directory(directory)


def _write_settings(files: Files, durable: bool) -> None:
    kind = Sharing.GROUP if files.shared else Sharing.PRIVATE
    settings = Settings(measure_lock(files), durable, sharing=kind.value)
    temporary = _written(files, settings)
    with suppress(FileExistsError):
        files.link(temporary, SPOOL_FILE)
    with suppress(OSError):  # hidden, and nobody's: no reason to have no spool
        files.unlink(temporary)
    files.sync_directory("")


def record(spool: Spool, settings: Settings) -> None:
    """Have all who open the spool from now on go by these settings."""
    files = spool.files
    files.rename(_written(files, settings), SPOOL_FILE)
    files.sync_directory("")


def _written(files: Files, settings: Settings) -> str:
    """A temporary file with the settings."""
    import yaml

    content: dict[str, Any] = {
        "format": FORMAT,
        "lock": settings.lock,
        "durability": "fsync" if settings.durable else "none",
        "sharing": settings.sharing,
    }
    if settings.nudge:
        content["nudge"] = True
    if settings.pause:
        content["pause"] = settings.pause
    temporary = f".spool.{files.token()}"
    files.write_new(temporary, [yaml.safe_dump(content, sort_keys=False).encode()], sync=True)
    return temporary


def _content(files: Files) -> bytes:
    """What stands in ``spool.yaml``, the one file that others put another in the place of.

    An NFS client that has opened the one before it finds that gone: there is one by now.
    """
    owner = sharing.check_root(files)
    for last in (*(RETRIES - 1) * [False], True):
        try:
            with files.open(SPOOL_FILE, owner) as file:
                return file.read(0, min(file.size, 1 << 16))
        except FileNotFoundError:
            if last:
                raise
    raise AssertionError("unreachable")


def read_settings(files: Files) -> Settings:
    """What ``spool.yaml`` says; keys that this version does not know are for others.

    Raises:
        FileDamaged: it makes no sense. FormatTooNew: a newer fsbroker made the spool.
    """
    from fsbroker import yamlmap

    text = _content(files)
    path = f"{files.root}/{SPOOL_FILE}"
    try:
        said = dict(yamlmap.parse(text, path))
        version = int(said["format"])
        if version > FORMAT:
            what = f"Format {version}, this fsbroker reads up to {FORMAT}"
            raise FormatTooNew(what, path, "Use a newer fsbroker")
        settings = Settings(
            str(said["lock"]),
            DURABILITIES[said["durability"]],
            bool(said.get("nudge", False)),
            float(said.get("pause", 0.0)),
            str(said.get("sharing", Sharing.PRIVATE.value)),
        )
    except (ConfigError, ValueError, TypeError, KeyError) as error:
        raise FileDamaged("The spool's settings cannot be read", path) from error
    if not 0 <= settings.pause <= LONGEST_PAUSE:
        raise FileDamaged(f"Unlikely pause {settings.pause}", path)
    if settings.lock not in LOCK_CLASSES:
        known = ", ".join(LOCK_CLASSES)
        raise FileDamaged(f"Unknown lock class {settings.lock!r}; known: {known}", path)
    if settings.sharing not in SHARINGS:
        known = ", ".join(SHARINGS)
        raise FileDamaged(f"Unknown sharing {settings.sharing!r}; known: {known}", path)
    return settings


def measure_lock(files: Files) -> str:
    """The first lock class that excludes a second holder in this directory."""
    name = f".lock.{files.token()}"
    for kind in ("flock", "soft"):
        files.lock_class = kind
        first = files.try_lock(name)
        if first is None:
            continue
        second = files.try_lock(name)
        first.release()
        if second is None:
            break
        second.release()
    else:
        kind = "none"
    files.lock_class = kind
    with suppress(FileNotFoundError):
        files.unlink(name)
    return kind
