"""Merging old result files into packs, with a sorted key index (`tiers.py`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from fsbroker.spool.container import Container, Image, image
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, is_agent
from fsbroker.spool.publish import publish
from fsbroker.spool.streams import ResultFile, entries
from fsbroker.spool.tiers import FAN, MOST_INPUTS, UNREADABLE, Tiers, is_file
from fsbroker.spool.values import ValueMerger
from fsbroker.task import KEY_BYTES

LARGEST = 1 << 30
"""Bytes; packs above are not merged any further."""

MOST_STEMS = 65535
"""Task files of one pack: what their column holds."""


def cycle(files: Files, area: Area) -> bool:
    """One round of packing; True if something was merged."""
    lock = files.try_lock(area.lock("packs"))
    if lock is None:
        return False
    try:
        packs = Tiers(files, area.packs, LARGEST)
        packs.drop_inputs()
        packed = packs.inputs()
        inputs = [path for path in packable(files, area) if path not in packed][:MOST_INPUTS]
        if len(inputs) >= FAN and _merge(files, area, inputs, tier=1):
            return True
        due = packs.due()
        return due is not None and _merge(files, area, due[1], tier=due[0])
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
    return [path for path in found if is_file(files, path)]


def _merge(files: Files, area: Area, inputs: Sequence[str], tier: int) -> bool:
    opened: list[ResultFile] = []
    stems: set[str] = set()
    try:
        for path in inputs:
            with suppress(*UNREADABLE):
                file = _whole(files, path)
                stems.update(file.files)
                if len(stems) > MOST_STEMS:
                    break
                opened.append(file)
        if len(opened) < 2:
            return False
        made = _merged(files.token(), opened)
        if made is None:
            return False
    finally:
        for file in opened:
            file.close()
    return publish(files, area, made, area.pack(tier, made.token), durable=True)


def _whole(files: Files, path: str) -> ResultFile:
    """A result file or pack, none of whose sections is damaged: the others would go with it."""
    with Container(files, path) as file:
        file.verify()
    return ResultFile(files, path)


def _merged(token: str, inputs: Sequence[ResultFile]) -> Image | None:
    """Their rows and values in one file, but for those that turn out to be damaged."""
    stems: dict[str, int] = {}
    origins: dict[str, int] = {}
    errors: dict[int, dict[str, str]] = {}
    tables: list[np.ndarray] = []
    values = ValueMerger("values")
    merged = []
    for file in inputs:
        table = file.rows.copy()
        try:
            texts = [json.dumps(origin, sort_keys=True) for origin in file.origins]
            told = dict(file.errors())
            file.add_to(values, table)
        except UNREADABLE:
            continue
        table["file"] = _renumbered(file.files, stems)[table["file"]]
        table["source"] = _renumbered(texts, origins)[table["source"]]
        before = sum(map(len, tables))
        errors |= {before + index: error for index, error in told.items()}
        tables.append(table)
        merged.append(file.path)
    if len(merged) < 2:
        return None
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
    return image(token, "pack", {"inputs": merged}, sections)


def _renumbered(names: Sequence[str], numbers: dict[str, int]) -> np.ndarray:
    """The number of each name in the merged list, to which new names are added."""
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], "u2")


def _sorted_distinct(rows: np.ndarray) -> np.ndarray:
    """Indices of the rows by key; of copies of one outcome (two packers) only the first."""
    names = rows["file"].astype("u8") << 32 | rows["row"].astype("u8") << 16 | rows["generation"]
    _, first = np.unique(names, return_index=True)
    keys = np.frombuffer(rows["key"].tobytes(), f"S{KEY_BYTES}")[first]
    return first[np.argsort(keys, kind="stable")]
