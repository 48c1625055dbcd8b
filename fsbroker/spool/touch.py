"""Making all files of an area young, for sites that delete what was not used for long.

No rule of the protocol rests on the time of a file, so nobody is disturbed. What gc counts by
age is young afterwards, too; leftovers in ``tmp/`` are left to grow old.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from fsbroker.spool.files import Files
from fsbroker.spool.layout import DIRECTORIES, SPOOL_FILE, Area

NOT_TOUCHED = ("tmp",)


class Touched(NamedTuple):
    """How many names were made young, and how many are not the user's."""

    own: int
    foreign: int


def touch(files: Files, area: Area) -> Touched:
    """Give every file, link and directory of an area the time of now."""
    own = foreign = 0
    for path in _paths(files, area):
        with suppress(FileNotFoundError):  # it has moved on, as a new name: young
            if files.status(path).st_uid == files.uid:
                files.touch(path)
                own += 1
            else:
                foreign += 1
    return Touched(own, foreign)


def _paths(files: Files, area: Area) -> Iterator[str]:
    yield from (SPOOL_FILE, "users", area.path)
    for name in DIRECTORIES:
        if name not in NOT_TOUCHED:
            yield from _below(files, f"{area.path}/{name}")


def _below(files: Files, path: str) -> Iterator[str]:
    """A path, and all that is in it if it is a directory."""
    with suppress(FileNotFoundError):
        is_directory = stat.S_ISDIR(files.status(path).st_mode)
        yield path
        for name in files.names(path) if is_directory else ():
            yield from _below(files, f"{path}/{name}")
