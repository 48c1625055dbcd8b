"""One file of each kind that a spool holds, made by the real sessions: `PIECES[kind](hand)`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fsbroker.spool import blobs, packs
from fsbroker.spool.layout import parse_pack
from fsbroker.task import Blob
from tests.testbed.byhand import ByHand, Job


def task_file(hand: ByHand) -> str:
    return hand.area.task_file(hand.submit("one", "two"))


def result_file(hand: ByHand) -> str:
    return _results(hand, 1)


def pack(hand: ByHand) -> str:
    _results(hand, 10)
    packs.cycle(hand.files, hand.area)
    return _only(hand, hand.area.packs)


def archived(hand: ByHand) -> str:
    stem = hand.submit("one")
    hand.run()
    return hand.area.archived(stem)


def bundle(hand: ByHand) -> str:
    for number in range(10):
        hand.submit(f"f{number}")
    while hand.run().tidy():
        pass
    return next(path for path in _all(hand, hand.area.archive) if parse_pack(path.split("/")[-1]))


def blob(hand: ByHand) -> str:
    stored = blobs.store(hand.files, hand.area, np.zeros(1 << 17), durable=False)
    assert isinstance(stored.data, Blob)
    hand.submit(Job("with an array", arrays=(stored,)))
    return hand.area.blob(stored.data.name)


def presence(hand: ByHand) -> str:
    hand.agent()
    return _only(hand, hand.area.agents)


def checkpoint(hand: ByHand) -> str:
    stem = hand.submit(*(f"f{number}" for number in range(70)))
    agent = hand.agent()
    for _ in range(66):
        hand.claim(agent, 1)
    return hand.area.record(stem, 64)


PIECES: dict[str, Callable[[ByHand], str]] = {
    piece.__name__.replace("_", " "): piece
    for piece in (task_file, result_file, pack, archived, bundle, blob, presence, checkpoint)
}
"""By kind: makes the file, and what it needs around it; its path, relative to the spool."""


def _results(hand: ByHand, count: int) -> str:
    agent = hand.agent()
    for number in range(count):
        hand.submit(f"f{number}")
        hand.end(agent, hand.claim(agent))
    return hand.area.stream_file(agent.agent, 0)


def _all(hand: ByHand, directory: str) -> list[str]:
    return [f"{directory}/{name}" for name in sorted(hand.files.names(directory))]


def _only(hand: ByHand, directory: str) -> str:
    (path,) = _all(hand, directory)
    return path
