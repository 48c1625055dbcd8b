"""A power loss at every file call: what was told done is done, the rest can be claimed.

And the test of the test: with one fsync left out, the same look at the disk must fail.
"""

from __future__ import annotations

from unittest import mock

import pytest

from fsbroker.errors import SpoolError
from fsbroker.spool import files as spool_files
from tests.faults.stories import Story, inspect
from tests.testbed import powerloss
from tests.testbed.powerloss import PowerLossDisk

pytestmark = pytest.mark.powerloss


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
    "fsync of files": ("_write", lambda name, chunks, _, mode: WRITE(name, chunks, False, mode)),
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
