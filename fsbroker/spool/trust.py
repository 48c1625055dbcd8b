"""Whose results a reader takes: unpickling somebody's file runs that person's code.

    trust: [alice, "@lab", "bob:plain", "@project:plain"]

A name is a user's, or with "@" a group's; a number is a uid. ``:plain`` takes nothing but plain
data (numbers, texts, lists, dicts, arrays), which is read without running code; it may still be
wrong. The list comes from the reader's own settings or the site's, never from a spool.
"""

from __future__ import annotations

import enum
import grp
import os
import pwd
from collections.abc import Iterable
from functools import lru_cache

from fsbroker.errors import ConfigError

PLAIN = ":plain"


class Trust(enum.IntEnum):
    """What is taken from a user."""

    NOTHING = 0
    PLAIN = 1
    CODE = 2


class Trusted:
    """A trust list.

    Raises:
        ConfigError: a user or group in it does not exist.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._users: dict[int, Trust] = {}
        self._groups: dict[int, Trust] = {}
        for entry in entries:
            name, level = _level(entry)
            table = self._groups if name.startswith("@") else self._users
            number = _group(name[1:], entry) if name.startswith("@") else _user(name, entry)
            table[number] = max(level, table.get(number, Trust.NOTHING))

    def __bool__(self) -> bool:
        return bool(self._users or self._groups)

    def of(self, uid: int) -> Trust:
        """What is taken from this user."""
        found = self._users.get(uid, Trust.NOTHING)
        if found < Trust.CODE and self._groups:
            memberships = (self._groups.get(gid, Trust.NOTHING) for gid in _groups_of(uid))
            found = max(found, *memberships, Trust.NOTHING)
        return found


def name_of(uid: int) -> str:
    """The user's name, or the number where this host does not know it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_number(name: str) -> int:
    """The number of a group.

    Raises:
        ConfigError: there is none of that name.
    """
    return _group(name, name)


def _level(entry: str) -> tuple[str, Trust]:
    if entry.endswith(PLAIN):
        return entry.removesuffix(PLAIN), Trust.PLAIN
    return entry, Trust.CODE


def _user(name: str, entry: str) -> int:
    try:
        return int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError("trust: there is no such user", entry, _cure()) from None


def _group(name: str, entry: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError("There is no such group", entry, _cure()) from None


def _cure() -> str:
    return "Entries are user, @group, user:plain or @group:plain"


@lru_cache(256)
def _groups_of(uid: int) -> frozenset[int]:
    """As the kernel would see it at a login; nobody's for an unknown user."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return frozenset()
    return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
