"""Creating and opening a spool.

``spool.yaml`` says what must be the same for everybody who uses the spool: the format
version, how locks are taken there, and whether files are made durable. It is published
like every other file, so that two first clients agree.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from fsbroker.errors import (
    ConfigError,
    FileDamaged,
    FileRefused,
    FormatTooNew,
    SpoolError,
    SpoolMissing,
)
from fsbroker.spool.files import Files, explain
from fsbroker.spool.layout import DIRECTORIES, FORMAT, SPOOL_FILE, Area, area_of

LOCK_CLASSES = ("flock", "soft", "none")
DURABILITIES = ("fsync", "none")


class Spool(NamedTuple):
    """An open spool.

    Attributes:
        files: its files. area: the user's own area.
        durable: files and names are synced before they count.
    """

    files: Files
    area: Area
    durable: bool


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
    files = Files(path)
    if SPOOL_FILE not in files.names(""):
        _write_settings(files, durable)
    return _opened(files, make=True)


def open_spool(root: str | os.PathLike[str]) -> Spool:
    """Open a spool that exists.

    Raises:
        SpoolMissing: there is none.
        FormatTooNew: a newer fsbroker made it.
    """
    path = os.path.abspath(os.fspath(root))
    if not os.path.isdir(path) or SPOOL_FILE not in os.listdir(path):
        raise SpoolMissing("No spool here", path, "Give the directory that holds spool.yaml")
    return _opened(Files(path), make=False)


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
        files = Files(os.fspath(root), "none")
        if not os.path.isdir(files.root) or "users" not in files.names(""):
            raise
        return Spool(files, Area(area_of(files.uid)), durable=True), error


def renew_settings(spool: Spool) -> None:
    """Put new settings in the place of damaged or missing ones: durable, and by measuring."""
    files, area, _ = spool
    if SPOOL_FILE in files.names(""):
        files.rename(SPOOL_FILE, area.quarantined(SPOOL_FILE, files.token()))
    _write_settings(files, durable=True)


def _opened(files: Files, *, make: bool) -> Spool:
    settings = _read_settings(files)
    files.lock_class = settings["lock"]
    area = Area(area_of(files.uid))
    if make or "users" not in files.names(""):
        files.mkdir("users")
    _make_area(files, area)
    return Spool(files, area, settings["durability"] != "none")


def _make_area(files: Files, area: Area) -> None:
    files.mkdir(area.path)
    there = set(files.names(area.path))
    missing = [name for name in DIRECTORIES if name not in there]
    for name in missing:
        files.mkdir(f"{area.path}/{name}")
    if missing:
        for directory in (area.path, "users", ""):
            files.sync_directory(directory)


def _write_settings(files: Files, durable: bool) -> None:
    import yaml

    settings = {
        "format": FORMAT,
        "lock": measure_lock(files),
        "durability": "fsync" if durable else "none",
    }
    text = yaml.safe_dump(settings, sort_keys=False).encode()
    temporary = f".spool.{files.token()}"
    files.write_new(temporary, [text], sync=True)
    with suppress(FileExistsError):
        files.link(temporary, SPOOL_FILE)
    with suppress(OSError):  # hidden, and nobody's: no reason to have no spool
        files.unlink(temporary)
    files.sync_directory("")


def _read_settings(files: Files) -> dict[str, str]:
    from fsbroker import yamlmap

    with files.open(SPOOL_FILE) as file:
        text = file.read(0, min(file.size, 1 << 16))
    path = f"{files.root}/{SPOOL_FILE}"
    try:
        settings = dict(yamlmap.parse(text, path))
        version = int(settings["format"])
        lock, durability = settings["lock"], settings["durability"]
    except (ConfigError, ValueError, TypeError, KeyError) as error:
        raise FileDamaged("The spool's settings cannot be read", path) from error
    if version > FORMAT:
        raise FormatTooNew(
            f"Format {version}, this fsbroker reads up to {FORMAT}", path, "Use a newer fsbroker"
        )
    if lock not in LOCK_CLASSES:
        raise FileDamaged(f"Unknown lock class {lock!r}; known: {', '.join(LOCK_CLASSES)}", path)
    if durability not in DURABILITIES:
        raise FileDamaged(f"Unknown durability; known: {', '.join(DURABILITIES)}", path)
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
