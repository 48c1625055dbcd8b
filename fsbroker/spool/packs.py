"""Merging old result files into packs, and finished task files into bundles.

Anybody may do it, at any time, twice: a pack repeats what its inputs say, so nothing
depends on who packs. Inputs go only when a *later* cycle finds the pack there, so that
a reader with an old listing meets ENOENT seldom; when it does, it looks again and
finds the pack.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain

import numpy as np

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool.container import Container, Image, image
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, is_agent, parse_pack
from fsbroker.spool.publish import publish
from fsbroker.spool.streams import ResultFile, entries
from fsbroker.spool.values import ValueMerger
from fsbroker.task import KEY_BYTES

FAN = 8
"""Files merged into one: of result files at least so many, of packs of one tier as many."""
LARGEST = 1 << 30
"""Bytes; packs above are not merged any further."""
MOST_INPUTS = 512


def cycle(files: Files, area: Area) -> bool:
    """One round of packing; True if something was merged."""
    lock = files.try_lock(area.lock("packs"))
    if lock is None:
        return False
    try:
        drop_inputs(files, chain.from_iterable(_packs(files, area).values()))
        return _pack_streams(files, area) or _merge_tier(files, area)
    finally:
        lock.release()


def packable(files: Files, area: Area) -> list[str]:
    """Result files that may go into a pack: all of sealed streams; else all but the highest.

    The highest file of a stream that is not sealed tells whoever seals it the next number.
    """
    found = []
    for agent in sorted(files.names(area.results)):
        if not is_agent(agent):
            continue
        numbers = entries(files, area, agent)
        # The top entry stays: as a seal for ever, as a file until a seal stands above it.
        found += [area.stream_file(agent, number) for number in numbers[:-1]]
    return [path for path in found if not _is_link(files, path)]


def _is_link(files: Files, path: str) -> bool:
    """A seal (maybe a void one)."""
    try:
        files.readlink(path)
    except OSError:
        return False
    return True


def _packs(files: Files, area: Area) -> dict[int, list[str]]:
    """The packs, by tier."""
    tiers: dict[int, list[str]] = {}
    for name in sorted(files.names(area.packs)):
        tier = parse_pack(name)
        if tier is not None:
            tiers.setdefault(tier, []).append(f"{area.packs}/{name}")
    return tiers


def inputs_of(files: Files, path: str) -> list[str]:
    with Container(files, path, "pack", "archive") as file:
        return list(file.meta["inputs"])


def drop_inputs(files: Files, merged: Iterable[str]) -> None:
    """Delete what packs (or bundles) of earlier cycles have merged."""
    for path in merged:
        with suppress(FileNotFoundError, FileDamaged, FileRefused):
            left = [name for name in inputs_of(files, path) if exists(files, name)]
            if left and _is_whole(files, path):
                # Whoever linked the file may have died, or failed, before its fsync.
                files.sync_directory(path.rpartition("/")[0])
                for name in left:
                    with suppress(FileNotFoundError):
                        files.unlink(name)


def exists(files: Files, path: str) -> bool:
    try:
        files.size(path)
    except FileNotFoundError:
        return False
    return True


def _is_whole(files: Files, path: str) -> bool:
    with Container(files, path) as file:
        for name in file.sections:
            file.read(name)
    return True


def _pack_streams(files: Files, area: Area) -> bool:
    packed = {
        name
        for paths in _packs(files, area).values()
        for path in paths
        for name in inputs_of(files, path)
    }
    inputs = [path for path in packable(files, area) if path not in packed][:MOST_INPUTS]
    return len(inputs) >= FAN and _merge(files, area, inputs, tier=1)


def _merge_tier(files: Files, area: Area) -> bool:
    for tier, paths in sorted(_packs(files, area).items()):
        small = [path for path in paths if files.size(path) < LARGEST // FAN]
        # An input of a pack that is still there would be merged a second time.
        settled = [
            path
            for path in small
            if not any(exists(files, name) for name in inputs_of(files, path))
        ]
        if len(settled) >= FAN:
            return _merge(files, area, settled[:FAN], tier=min(tier + 1, 99))
    return False


def _merge(files: Files, area: Area, inputs: Sequence[str], tier: int) -> bool:
    opened = []
    try:
        for path in inputs:
            with suppress(FileNotFoundError, FileDamaged, FileRefused):
                opened.append(ResultFile(files, path))
        if len(opened) < 2:
            return False
        made = _merged(files.token(), opened)
    finally:
        for file in opened:
            file.close()
    return publish(files, area, made, area.pack(tier, made.token), durable=True)


def _merged(token: str, inputs: Sequence[ResultFile]) -> Image:
    stems: dict[str, int] = {}
    origins: dict[str, int] = {}
    errors: dict[int, dict[str, str]] = {}
    tables: list[np.ndarray] = []
    values = ValueMerger("values")
    for file in inputs:
        table = file.rows.copy()
        table["file"] = _renumbered(file.files, stems)[table["file"]]
        texts = [json.dumps(origin, sort_keys=True) for origin in file.origins]
        table["source"] = _renumbered(texts, origins)[table["source"]]
        file.add_to(values, table)
        before = sum(map(len, tables))
        errors |= {before + index: error for index, error in file.errors()}
        tables.append(table)
    rows = np.concatenate(tables)
    order = _sorted_distinct(rows)
    sections: dict[str, bytes | np.ndarray] = {
        "rows": rows[order],
        "files": json.dumps(list(stems)).encode(),
        "origins": ("[" + ",".join(origins) + "]").encode(),
        **values.sections(),
    }
    if errors:
        moved = {int(old): new for new, old in enumerate(order)}
        kept = {str(moved[old]): error for old, error in errors.items() if old in moved}
        sections["errors"] = json.dumps(kept).encode()
    return image(token, "pack", {"inputs": [file.path for file in inputs]}, sections)


def _renumbered(names: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """The number of each name in the merged list, to which new names are added."""
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], "u2")


def _sorted_distinct(rows: np.ndarray) -> np.ndarray:
    """Indices of the rows by key; of copies of one outcome (two packers) only the first."""
    names = rows["file"].astype("u8") << 32 | rows["row"].astype("u8") << 16 | rows["generation"]
    _, first = np.unique(names, return_index=True)
    keys = np.frombuffer(rows["key"].tobytes(), f"S{KEY_BYTES}")[first]
    return first[np.argsort(keys, kind="stable")]
