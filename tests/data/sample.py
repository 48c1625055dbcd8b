"""Writes a sample spool of the format of this version: `python -m tests.data.sample DIRECTORY`."""

from __future__ import annotations

import os
import sys
import tarfile

import numpy as np

from fsbroker.agent.session import tidying
from fsbroker.spool import archive, blobs, packs
from fsbroker.spool.layout import FORMAT
from tests.testbed.byhand import ByHand, Job


def write(root: str) -> None:
    tidying.GRAVE_REST = -1.0
    hand = ByHand(root)
    agent = hand.agent()
    for number in range(12):
        hand.submit(f"f{number}", tag="sample")
        hand.end(agent, hand.claim(agent))
    while agent.tidy():
        pass
    agent.leave()
    packs.cycle(hand.files, hand.area)
    archive.cycle(hand.files, hand.area)
    hand.submit("failed")
    hand.run(failing=["failed"]).leave()
    array = blobs.store(hand.files, hand.area, np.zeros(1 << 17), durable=False)
    hand.submit(Job("g0", arrays=(array,)), *(f"g{number}" for number in range(1, 70)))
    holder = hand.agent(host="elsewhere")
    for _ in range(65):
        claim = hand.claim(holder, 1)
    holder.holdings.release(claim.live, [64], "it died", charge=True)
    hand.claim(holder, 1)


if __name__ == "__main__":
    write(f"{sys.argv[1]}/spool")
    with tarfile.open(f"{sys.argv[1]}/format-{FORMAT}.tar.gz", "w:gz") as packed:
        packed.add(f"{sys.argv[1]}/spool", "spool")
    print(os.path.getsize(f"{sys.argv[1]}/format-{FORMAT}.tar.gz"))
