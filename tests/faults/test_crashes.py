"""All that a power loss may leave, on any file system: built from the calls that were made.

`test_powerloss` cuts the power of ext4 and xfs, whose journals keep order. Here is what
POSIX promises and no more (`crashes.py`): after each of these states a fresh agent and a
fresh client find every promise kept, believe nothing half-written, and end the work.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from fsbroker.spool import packs, tiers
from fsbroker.spool import spool as spools
from tests.faults import crashes
from tests.faults.stories import Collecting, Holding, Packing, Recovery, Story, inspect

STORIES = {
    "publish, claim, end": Story,
    "recovery": Recovery,
    "holding": Holding,
    "packing": Packing,
    "gc": Collecting,
}
EVERY = {"publish, claim, end": 4, "recovery": 9, "holding": 9, "packing": 66, "gc": 40}
"""Prefixes of the calls in a short run: one in so many."""
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="fsbroker-crash-", dir=MEMORY))
    with mock.patch.object(tiers, "FAN", 3), mock.patch.object(packs, "FAN", 3):
        yield path
    shutil.rmtree(path)


def told(kind, folder, *changes):
    """The story with its calls, and how many of them made the spool."""
    crashes.Recording.ops = []
    story = crashes.Recording.story = kind(folder / "told")
    (folder / "told").mkdir()
    with mock.patch.object(spools, "Files", crashes.Recording), ExitStack() as stack:
        spools.create(story.root / "spool")
        start = len(crashes.Recording.ops)
        for change in changes:
            stack.enter_context(change)
        story.tell()
    return story, start, crashes.Recording.ops


def broken(shot, story, folder):
    """What is wrong after this power loss; None if nothing is."""
    root = folder / "left"
    root.mkdir()
    try:
        (root / "spool").mkdir()
        crashes.build(root / "spool", shot.tree)
        inspect(root, story.promised[: shot.promised])
    except Exception as error:
        last = error.__traceback__
        while last.tb_next:
            last = last.tb_next
        where = f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}"
        return f"after {shot.done} calls, {shot.what}: {type(error).__name__}: {error} ({where})"
    finally:
        shutil.rmtree(root)
    return None


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", STORIES)
def test_every_promise_is_kept_in_every_state(folder, name, long):
    story, start, ops = told(STORIES[name], folder)
    count, found = 0, []
    for shot in crashes.states(start, ops, len(story.promised), 1 if long else EVERY[name]):
        count += 1
        if wrong := broken(shot, story, folder):
            last = ops[shot.done - 1]
            found.append(f"{wrong}; behind {last.call} {last.path}")
    print(f"{name}: {len(ops) - start} calls, {count} states")
    assert not found, "\n".join(found[:20])
    assert count > 50


LEFT_OUT = {
    "tasks": (Story, "link", "/tasks/"),
    "claims": (Story, "link", "/tasks/"),
    "archive": (Story, "link", "/archive/"),
    "packs": (Packing, "unlink", "/results/"),
    "results": (Recovery, "symlink", "/results/"),
}
"""Directories, and the story and call behind which the loss of their names begins to matter."""


@pytest.mark.parametrize("directory", LEFT_OUT)
def test_a_missing_sync_is_noticed(folder, directory):
    """`results` are the streams, too: a seal that is not durable."""
    sync = crashes.Recording.sync_directory

    def left_out(self, path):
        if f"/{directory}" not in path:
            sync(self, path)

    change = mock.patch.object(crashes.Recording, "sync_directory", left_out)
    kind, call, path = LEFT_OUT[directory]
    story, start, ops = told(kind, folder, change)
    first = next(at for at, op in enumerate(ops) if op.call == call and path in op.path)
    shots = crashes.states(start, ops, len(story.promised), first=first)
    assert any(broken(shot, story, folder) for shot in shots)
