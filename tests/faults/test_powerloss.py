"""A power loss at every file call: what was told done is done, the rest can be claimed.

And the test of the test: with one fsync left out, the same look at the disk must fail.
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from itertools import count
from unittest import mock

import pytest

from fsbroker.errors import SpoolError
from fsbroker.spool import files as spool_files
from fsbroker.spool import spool as spools
from fsbroker.spool import streams
from fsbroker.spool.index import Results
from fsbroker.spool.live import LiveFiles
from fsbroker.spool.log import Retired
from fsbroker.task import Status
from tests.faults.audit import outcomes, task_rows
from tests.faults.parts import LANE, agent, client, key_of, row, run_claim, want
from tests.testbed import powerloss
from tests.testbed.powerloss import PowerLossDisk

pytestmark = pytest.mark.powerloss

NAMES = ("a", "b", "c")
KEYS = [key_of(name) for name in NAMES]


class Story:
    """One client and one agent, from the first task to the last record.

    Attributes:
        promised: what has been told to somebody, as far as the story came: "spool",
            "accepted" (a key whose task is in the spool), "done" (a key with its value),
            "sealed".
    """

    def __init__(self, root, mutation=None):
        self.root = root
        self.mutation = mutation or nullcontext()
        self.promised = []

    def tell(self):
        spool = spools.create(self.root / "spool")
        self.promised.append(("spool", b""))
        with self.mutation:
            self._use(spool)

    def _use(self, spool):
        session = client(spool)
        session.publish(LANE, [row("a"), row("b"), row("c", "a")], KEYS)
        self.promised += [("accepted", key) for key in KEYS]
        one = agent(spool)
        one.live.poll()
        while claim := one.claim(want(1), thorough=True):
            one.publish(run_claim(one, claim))
            # A future is resolved by what its client reads, at this moment.
            for ended in session.poll(deep=True):
                self.promised += [("done", ticket) for _, ticket in ended.tickets]
            one.resolve(thorough=True)
        one.tidy()
        one.leave()
        self.promised.append(("sealed", one.agent.encode()))


def inspect(root, promised):
    """The disk after the crash keeps every promise.

    Raises:
        AssertionError: it does not.
    """
    if ("spool", b"") not in promised:
        return
    spool = spools.open_spool(root / "spool")
    no_empty_files(spool)
    found = {seen.key: seen for seen in outcomes(spool).values()}
    rows = set(task_rows(spool).values())
    claims_are_kept(spool)
    for what, about in promised:
        if what == "accepted":
            assert about in rows, "an accepted task is lost"
        elif what == "sealed":
            numbers = streams.entries(spool.files, spool.area, about.decode())
            top = streams.is_seal(spool.files, spool.area, about.decode(), numbers[-1])
            assert top, "a stream is open again"
        elif what == "done":
            assert about in found, "a task that was done is not done any more"
            assert found[about].status == Status.DONE
    finish(spool, {about for what, about in promised if what == "accepted"})
    for key, seen in found.items():
        after = [one for one in outcomes(spool).values() if one.key == key]
        assert after == [seen], "an outcome changed, or there are two"


def claims_are_kept(spool):
    """No outcome of a row that the log would give to somebody else."""
    for live in (files := LiveFiles(spool.files, spool.area)).poll():
        with suppress(Retired):
            live.log.refresh()
            for (stem, row), seen in outcomes(spool).items():
                if stem == live.stem:
                    assert live.log.fold.owner_of(row) == seen.agent, "a claim is lost"
    assert not files.unreadable


def no_empty_files(spool):
    """Never 0 bytes, at any final name."""
    for folder in ("tasks", "results", "packs", "archive", "agents"):
        for path, _, names in os.walk(f"{spool.files.root}/{spool.area.path}/{folder}"):
            for name in names:
                file = os.path.join(path, name)
                if not os.path.islink(file) and folder != "agents":
                    assert os.path.getsize(file) > 0, f"{file} is empty"


def finish(spool, keys):
    """Another agent, after the power came back: everything accepted ends with its value."""
    heir = agent(spool, lease=0.0)
    heir.live.poll()
    clock = count(1000.0, 0.5)
    with mock.patch.object(spool.files, "monotonic", clock.__next__):
        for _ in range(8):
            heir.beat()
            heir.recover()
            heir.resolve(thorough=True)
            while claim := heir.claim(want(9), thorough=True):
                heir.publish(run_claim(heir, claim))
            heir.tidy()
    results = Results(spool.files, spool.area)
    results.poll(deep=True)
    for key in keys:
        found = results.find(key)
        assert found is not None, "an accepted task never ends"
        assert found.status == Status.DONE
    assert spool.files.names(spool.area.tasks) == []


CHANGING = ["fsync", "link", "symlink", "rename"]
"""Cuts come before these calls: between two of them the disk stays what it is."""


def crash_before(kind, step, mutation=None):
    """Tell the story up to this call, and inspect the disk; False if it was shorter."""
    with PowerLossDisk(kind) as disk, mock.patch.object(powerloss, "WRITING_CALLS", CHANGING):
        story = Story(disk.path, mutation)
        cut = disk.run(story.tell, cut_before=step)
        inspect(disk.crash(), story.promised)
        return cut


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_every_promise_is_kept_at_every_step(kind):
    step = 1
    while crash_before(kind, step):
        step += 1
    print(f"{kind}: power cut at {step} steps")
    assert step > 30


WRITE, SYNC = spool_files._write, spool_files._sync_directory
MUTANTS = {
    "fsync of files": ("_write", lambda name, chunks, sync: WRITE(name, chunks, sync and False)),
    "fsync of directories": ("_sync_directory", lambda name: None),
    "fsync of tasks/": (
        "_sync_directory",
        lambda name: None if name.endswith("/tasks") else SYNC(name),
    ),
    "fsync of results/<agent>/": (
        "_sync_directory",
        lambda name: None if "/results/" in name else SYNC(name),
    ),
}


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_missing_sync_is_noticed(kind, mutant):
    """The journals of ext4 and xfs keep order, so that some other missing syncs do not show."""
    noticed = first_broken_promise(kind, *MUTANTS[mutant])
    assert noticed
    print(f"{kind} without {mutant}: {noticed}")


def first_broken_promise(kind, name, mutant):
    for step in range(7, 100):  # behind the creation of the spool
        try:
            if not crash_before(kind, step, mock.patch.object(spool_files, name, mutant)):
                return None
        except (SpoolError, AssertionError) as error:
            return f"step {step}: {type(error).__name__}: {error}".splitlines()[0]
    return None
