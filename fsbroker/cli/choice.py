"""Which spool, and which tasks, a command is about."""

from __future__ import annotations

import argparse
import string
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fsbroker.errors import FsbrokerError

if TYPE_CHECKING:
    from fsbroker.client.history import History, Row

MOST_SHOWN = 10
"""Tasks that an ambiguous key's error names."""


class NotFound(FsbrokerError):
    """The spool has no such task."""


class NothingNamed(FsbrokerError):
    """No task was named."""


class Ambiguous(FsbrokerError):
    """Several tasks have keys that begin like this."""


def history(options: argparse.Namespace) -> History:
    """The history of the spool that was named.

    Raises:
        SpoolError: it cannot be read.
    """
    from fsbroker.client.history import History
    from fsbroker.spool.spool import open_spool

    return History(open_spool(options.spool))


def add_keys(parser: argparse.ArgumentParser, what: str) -> None:
    """KEY... and --tag."""
    parser.add_argument("keys", nargs="*", metavar="KEY", help=f"{what}: its key, or how it begins")
    parser.add_argument("--tag", help="all tasks with this tag")


def add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="its key, or how it begins")


def chosen(options: argparse.Namespace, history: History) -> list[Row]:
    """The tasks named by KEY... and --tag, in that order, each once.

    Raises:
        NothingNamed: neither a key nor a tag. NotFound, Ambiguous: a key, or the tag.
    """
    if not options.keys and options.tag is None:
        raise NothingNamed("Name the tasks: KEY..., or --tag")
    rows = [find(history, prefix) for prefix in options.keys]
    if options.tag is not None:
        tagged = history.tagged(options.tag)
        if not tagged:
            raise NotFound("No task has this tag", repr(options.tag))
        rows += tagged
    return list({row.key: row for row in rows}.values())


def tagged_or_found(history: History, names: Iterable[str]) -> list[Row]:
    """The tasks of tags and keys, each once; what is a tag is not looked for among keys.

    Raises:
        NotFound, Ambiguous: neither a tag nor one key.
    """
    rows = [row for name in names for row in history.tagged(name) or [find(history, name)]]
    return list({row.key: row for row in rows}.values())


def find(history: History, prefix: str) -> Row:
    """The task whose key begins like this.

    Raises:
        NotFound: none does. Ambiguous: several do.
    """
    wanted = prefix.strip().lower()
    if not wanted or len(wanted) > 40 or set(wanted) - set(string.hexdigits):
        raise NotFound("Not a key", repr(prefix), "A key has 40 hex digits, or the first of them")
    keys = history.matching(wanted)
    if not keys:
        raise _not_found(history, wanted)
    if len(keys) > 1:
        raise _ambiguous(history, prefix, keys)
    row = history.find(keys[0])
    assert row is not None
    return row


def _not_found(history: History, prefix: str) -> NotFound:
    status = history.orphan(prefix)
    if status is not None:
        what = f"The task file of this task was removed; its outcome ({status.name.lower()}) stands"
        return NotFound(what, prefix)
    return NotFound("No task has this key", prefix, "'fsbroker tasks' lists what there is")


def _ambiguous(history: History, prefix: str, keys: list[bytes]) -> Ambiguous:
    lines = []
    for key in keys[:MOST_SHOWN]:
        row = history.find(key)
        if row is not None:
            name = row.tasks.function(row.number)
            lines.append(f"\n  {key.hex()}  {row.phase.value:<9}  {name}")
    if len(keys) > MOST_SHOWN:
        lines.append(f"\n  ... and {len(keys) - MOST_SHOWN} more")
    what = f"{len(keys)} keys begin like this"
    return Ambiguous(what, prefix, f"Give more digits:{''.join(lines)}")
