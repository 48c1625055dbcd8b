"""The results of a spool: one's own and, where it is shared, those of others.

    ls       results, the latest first
    show     what is known of a key: who computed it, when, where, with what; plain values
    stats    how much there is of whom
    prune    remove one's own results and what belongs to them (see fsbroker gc)
    share    with --group: let groups use the spool; without: let them see one's own results
    unshare  nobody else sees one's own results any more
    verify   read everything, and compare what several users have under one key

No command unpickles anything. Nothing of another user is ever changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from fsbroker import cli
from fsbroker.cli import output
from fsbroker.cli.choice import NotFound, NothingNamed
from fsbroker.cli.output import moment, parse_limit, parse_span, plain, print_json, span
from fsbroker.errors import SpoolError
from fsbroker.spool import sharing
from fsbroker.spool import spool as spools
from fsbroker.spool.census import Census
from fsbroker.spool.files import Files, ForeignFiles
from fsbroker.spool.gc import usage
from fsbroker.spool.layout import Area, area_of
from fsbroker.spool.neighbours import users
from fsbroker.spool.spool import Spool, open_spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.trust import Trusted, group_number, name_of
from fsbroker.task import Encoding, Status, Value

LIMIT = 50
SHORTEST = 4
"""Hex digits that name a key."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=sorted(_ACTIONS))
    parser.add_argument("key", nargs="?", help="for show: a key, or how it begins")
    parser.add_argument("--user", help="ls, stats: of this user only")
    parser.add_argument("--limit", type=parse_limit, default=LIMIT, help="ls: 0 for all")
    parser.add_argument("--group", action="append", default=[], help="share; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="prune: show what would go")
    parser.add_argument("--tagged", action="store_true", help="prune: those with a tag, too")
    parser.add_argument(
        "--older-than", type=parse_span, default=parse_span("30d"), metavar="TIME", help="prune"
    )


def run(options: argparse.Namespace) -> int:
    return _ACTIONS[options.action](options)


# -- whose -------------------------------------------------------------------------------


class _Owner(NamedTuple):
    """A user's area, as far as we may look into it."""

    uid: int
    files: Files
    area: Area

    @property
    def name(self) -> str:
        return name_of(self.uid)

    @property
    def is_self(self) -> bool:
        return not isinstance(self.files, ForeignFiles)


def _owners(spool: Spool, only: str | None) -> Iterator[_Owner]:
    """Oneself first, then all others whose area can be read."""
    yield from (
        owner
        for owner in (_Owner(spool.files.uid, spool.files, spool.area), *_others(spool))
        if only in (None, owner.name, str(owner.uid))
    )


def _others(spool: Spool) -> Iterator[_Owner]:
    for uid in users(spool):
        found = _Owner(uid, ForeignFiles(spool.files, uid), Area(area_of(uid)))
        try:
            sharing.check_area(found.files, found.area)
        except (OSError, SpoolError):
            continue
        yield found


class _Result(NamedTuple):
    """An outcome, and the file that it stands in, open as long as it is looked at."""

    owner: _Owner
    file: ResultFile
    row: int

    @property
    def key(self) -> bytes:
        return bytes(self.file.rows["key"][self.row].tobytes())

    def record(self) -> dict[str, Any]:
        row, origin = self.file.rows[self.row], self.file.origin(self.row)
        return {
            "key": self.key.hex(),
            "user": self.owner.name,
            "status": Status(int(row["status"])).name.lower(),
            "started": float(row["started"]),
            "wall": float(row["wall"]),
            "encoding": Encoding(int(row["encoding"])).name.lower(),
            "host": origin.get("host", ""),
            "agent": origin.get("agent", ""),
            "job": origin.get("job", ""),
            "python": origin.get("version", ""),
            "fsbroker": origin.get("fsbroker", ""),
            "through": origin.get("through", []),
            "path": self.file.path,
        }


def _results(spool: Spool, only: str | None = None) -> Iterator[_Result]:
    for owner in _owners(spool, only):
        for file in Census(owner.files, owner.area).result_files():
            for row in range(len(file.rows)):
                yield _Result(owner, file, row)


# -- actions -----------------------------------------------------------------------------


def _ls(options: argparse.Namespace) -> int:
    records = [result.record() for result in _results(open_spool(options.spool), options.user)]
    records.sort(key=lambda record: record["started"], reverse=True)
    shown = list(islice(records, options.limit or None))
    if options.json:
        print_json(shown)
        return cli.OK
    output.print_table(
        ("key", "user", "status", "stored as", "started", "runtime", "host"),
        (
            (
                record["key"][:12],
                record["user"],
                record["status"],
                record["encoding"],
                moment(record["started"]) if record["started"] else "-",
                span(record["wall"]),
                record["host"] or "-",
            )
            for record in shown
        ),
    )
    if len(shown) < len(records):
        print(f"... and {len(records) - len(shown)} more (--limit 0 shows all)")
    return cli.OK


def _show(options: argparse.Namespace) -> int:
    wanted = (options.key or "").lower()
    if len(wanted) < SHORTEST:
        raise NothingNamed("Name a key", wanted, f"Its first {SHORTEST} digits or more")
    found = [
        {**result.record(), "value": _value(result)}
        for result in _results(open_spool(options.spool))
        if result.key.hex().startswith(wanted)
    ]
    if not found:
        raise NotFound("No result with this key", wanted)
    if options.json:
        print_json(found)
        return cli.OK
    for record in found:
        for name, value in record.items():
            told = moment(value) if name == "started" and value else value
            told = span(value) if name == "wall" else told
            told = " <- ".join(value) if name == "through" else told
            print(f"{name:<9} {plain(told)}")
        print()
    return cli.OK


def _value(result: _Result) -> str:
    """A plain value in its stored form; what is pickled is not looked into."""
    stored = result.file.value(result.row)
    if stored.encoding != Encoding.PLAIN:
        return f"a pickle of {output.size(len(stored.data))}"
    arrays = "".join(f"; array {ref.dtype} {ref.shape}" for ref in stored.arrays)
    return stored.data.decode("ascii", "replace") + arrays


def _stats(options: argparse.Namespace) -> int:
    spool, trusted = open_spool(options.spool), _trusted()
    told = [_share_of(owner, trusted) for owner in _owners(spool, options.user)]
    if options.json:
        print_json(told)
        return cli.OK
    head = ("user", "results", "plain", "size", "trust", "others see it")
    lines = ({**one, "bytes": output.size(one["bytes"])}.values() for one in told)
    output.print_table(head, map(tuple, lines))
    return cli.OK


def _share_of(owner: _Owner, trusted: Trusted) -> dict[str, Any]:
    """How much of a spool is a user's."""
    tables = [file.rows["encoding"] for file in Census(owner.files, owner.area).result_files()]
    used = usage(owner.files, owner.area, ("results", "packs", "blobs"))
    return {
        "user": owner.name,
        "results": sum(map(len, tables)),
        "plain": sum(int((table == Encoding.PLAIN).sum()) for table in tables),
        "bytes": sum(one.bytes for one in used.values()),
        "trust": "self" if owner.is_self else trusted.of(owner.uid).name.lower(),
        "open": "yes" if sharing.is_open(owner.files, owner.area) else "no",
    }


def _trusted() -> Trusted:
    from fsbroker.config import load

    return Trusted(load().trust)


def _prune(options: argparse.Namespace) -> int:
    from fsbroker.cli import gc

    options.results = True
    return gc.run(options)


def _share(options: argparse.Namespace) -> int:
    spool = spools.share(options.spool, [group_number(name) for name in options.group])
    return _tell_state(spool, options)


def _unshare(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    sharing.close_area(spool.files, spool.area)
    return _tell_state(spool, options)


def _tell_state(spool: Spool, options: argparse.Namespace) -> int:
    is_open = sharing.is_open(spool.files, spool.area)
    if options.json:
        print_json({"spool": spool.files.root, "open": is_open})
    else:
        who = "the group sees your results" if is_open else "nobody else sees your results"
        print(f"{plain(spool.files.root)}: {who}")
    return cli.OK


def _verify(options: argparse.Namespace) -> int:
    found = _Verified()
    for owner in _owners(open_spool(options.spool), options.user):
        census = Census(owner.files, owner.area)
        for file in census.result_files():
            for row in range(len(file.rows)):
                found.add(_Result(owner, file, row))
        found.trouble += map(str, census.unreadable.values())
    if options.json:
        print_json({"results": found.count, "trouble": found.trouble})
    else:
        for line in found.trouble:
            print(plain(line))
        print(f"{found.count} results read, {len(found.trouble)} found wrong")
    return cli.ERROR if found.trouble else cli.OK


class _Verified:
    """What reading all results has shown: how many, and what is wrong."""

    def __init__(self) -> None:
        self.count = 0
        self.trouble: list[str] = []
        self._values: dict[bytes, tuple[str, Value]] = {}

    def add(self, result: _Result) -> None:
        self.count += 1
        try:
            stored = result.file.value(result.row)
        except SpoolError as error:
            self.trouble.append(str(error))
            return
        done = result.file.rows["status"][result.row] == Status.DONE
        if done and stored.encoding == Encoding.PLAIN:
            self._compare(result, stored)

    def _compare(self, result: _Result, stored: Value) -> None:
        """Two users who have different plain values for one key: one of them is wrong."""
        name, other = self._values.setdefault(result.key, (result.owner.name, stored))
        if other != stored and name != result.owner.name:
            told = f"{name} and {result.owner.name} have different values"
            self.trouble.append(f"{result.key.hex()}: {told}")


_ACTIONS = {
    "ls": _ls,
    "show": _show,
    "stats": _stats,
    "prune": _prune,
    "share": _share,
    "unshare": _unshare,
    "verify": _verify,
}
