"""A spool that was copied elsewhere (scenario 54), and one that is kept from a purge."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fsbroker import ClusterExecutor, cli
from fsbroker.agent.session import AgentSession, tidying
from fsbroker.spool import fsck, presence
from fsbroker.spool.fsck import Weight
from fsbroker.spool.index import Results
from fsbroker.spool.mend import mend
from fsbroker.spool.spool import Spool, create, open_spool
from fsbroker.task import Status
from tests.faults.processes import DEADLINE, Processes, wait_until
from tests.faults.tasks import hold, runs_of, task, value_of
from tests.testbed.byhand import ByHand, key_of
from tests.testbed.pieces import PIECES
from tests.testbed.shell import Shell

DATA = Path(__file__).parent / "data"


def by_tar(source: Path, target: Path) -> None:
    """Files may vanish and change while tar reads: it says so, and goes on."""
    target.mkdir()
    packed = subprocess.run(
        ["tar", "-C", source, "-cf", "-", "."], stdout=-1, stderr=-1, check=False
    )
    assert packed.returncode in (0, 1), packed.stderr
    subprocess.run(["tar", "-C", target, "-xf", "-"], input=packed.stdout, check=True)


def by_copy(source: Path, target: Path) -> None:
    """File by file, as rsync does: links as links, what has vanished left out."""
    for directory, _, names in os.walk(source):
        there = target / Path(directory).relative_to(source)
        there.mkdir(mode=0o700)
        for name in names:
            try:
                shutil.copy2(Path(directory, name), there / name, follow_symlinks=False)
            except FileNotFoundError:
                continue


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path / "spool", tmp_path) as processes:
        yield processes


@pytest.mark.parametrize("move", [by_tar, by_copy])
def test_a_spool_that_was_copied_under_load_goes_on_elsewhere(processes, tmp_path, move):
    gate, journal = str(tmp_path / "gate"), processes.journal
    executor = ClusterExecutor(processes.spool, backend="none")
    names = [f"t{number}" for number in range(300)]
    held = executor.submit(hold, journal, "held", gate)
    futures = [executor.submit(task, journal, name, 0.002) for name in names]
    processes.agent(cores=2, idle_timeout=60, lease=30)
    assert futures[20].result(DEADLINE) == value_of("t20")
    move(processes.spool, tmp_path / "copy")
    done = [name for name, future in zip(names, futures, strict=True) if future.done()]
    Path(gate).touch()
    executor.shutdown()
    assert held.result() == value_of("held")

    copied = open_spool(tmp_path / "copy")
    assert str(processes.spool) not in _all_text(copied)  # no absolute path is needed
    with Processes(tmp_path / "copy", tmp_path) as others:
        # The agent lives, by its host, boot and pid: but not here, where nobody beats.
        others.agent(cores=2, idle_timeout=1, lease=1.0)
        with ClusterExecutor(tmp_path / "copy", backend="none") as executor:
            again = [executor.submit(task, journal, name, 0.002) for name in names]
            also = executor.submit(hold, journal, "held", gate)
            for name, future in zip(names, again, strict=True):
                assert future.result(DEADLINE) == value_of(name)
            assert also.result(DEADLINE) == value_of("held")
    runs = runs_of(journal)
    assert sum(runs[name] == 1 for name in done) >= len(done) // 2  # results came along
    mend(copied.files, copied.area)
    found = fsck.survey(copied.files, copied.area)[0]
    assert not [one for one in found if one.kind.weight > Weight.NOTE], found


def _all_text(spool: Spool) -> str:
    """The records and settings of a spool."""
    root = Path(spool.files.root)
    links = [os.readlink(path) for path in root.rglob("*") if path.is_symlink()]
    return "\n".join([*links, (root / "spool.yaml").read_text()])


def test_a_spool_at_rest_is_the_same_elsewhere(tmp_path):
    with ClusterExecutor(tmp_path / "spool", max_workers=1, idle_timeout=0.3) as executor:
        assert executor.submit(pow, 3, 4).result(DEADLINE) == 81
    files, area, _ = open_spool(tmp_path / "spool")
    wait_until(lambda: not presence.listing(files, area))
    os.rename(tmp_path / "spool", tmp_path / "moved")
    with ClusterExecutor(tmp_path / "moved", backend="none") as executor:
        assert executor.submit(pow, 3, 4).result(DEADLINE) == 81
    assert not (tmp_path / "spool").exists()


# -- touch -----------------------------------------------------------------------------------


def test_touch_makes_everything_young_and_disturbs_nobody(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tidying, "GRAVE_REST", -1.0)
    hand = ByHand(tmp_path / "spool")
    PIECES["checkpoint"](hand)
    PIECES["pack"](hand)
    hand.submit("later")
    leftover = hand.area.temporary("f" * 16)
    hand.files.write_new(leftover, [b"x"], sync=False)
    paths = [path for path in hand.paths() if not path.startswith(hand.area.tmp)]
    hand.make_all_old(100)
    os.utime(f"{hand.root}/spool.yaml", (0, 0))
    newest = max(os.lstat(f"{hand.root}/{path}").st_mtime for path in paths)
    before = {path: _content(f"{hand.root}/{path}") for path in paths}
    code, told = Shell(hand.root, capsys).json("touch")
    assert (code, told["foreign"]) == (cli.OK, 0)
    for path in [*paths, "spool.yaml"]:
        status = os.lstat(f"{hand.root}/{path}")
        assert min(status.st_mtime, status.st_atime) > newest + 86400, path
    assert os.lstat(f"{hand.root}/{leftover}").st_mtime < newest + 86400  # to be swept one day
    assert {path: _content(f"{hand.root}/{path}") for path in paths} == before
    hand.run()
    assert Results(hand.files, hand.area).poll() is None


def _content(path: str) -> object:
    if os.path.islink(path):
        return os.readlink(path)
    return os.path.isdir(path) or Path(path).read_bytes()


# -- a spool of format 1 -----------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path):
    """A spool that an fsbroker of format 1 has written (tests/data/README)."""
    with tarfile.open(DATA / "format-1.tar.gz") as packed:
        packed.extractall(tmp_path)
    root = tmp_path / "spool"
    os.rename(root / "users" / "u0", root / "users" / f"u{os.getuid()}")
    for path in root.rglob("*"):
        os.chown(path, os.getuid(), os.getgid(), follow_symlinks=False)
    return root


def test_a_spool_of_format_1_is_read_and_worked_on(sample):
    spool = open_spool(sample)
    found, sound = fsck.survey(spool.files, spool.area)
    assert not [one for one in found if one.kind.weight > Weight.NOTE]
    assert len(sound.outcomes) == 13
    results = Results(spool.files, spool.area)
    results.poll(deep=True)
    for number in range(12):
        where, value = results.value(key_of(f"f{number}"))
        assert (where.status, value.data) == (Status.DONE, b"0")
    assert results.find(key_of("failed")).status == Status.FAILED
    (stem,) = sound.folds
    fold = sound.folds[stem]
    assert (fold.next, len(fold.state)) == (68, 70)
    assert list(fold.history.values()) == [["it died"]]
    assert spool.files.names(spool.area.blobs)


def test_what_a_format_1_spool_left_open_is_finished(sample):
    hand = ByHand(sample)
    for one in presence.listing(hand.files, hand.area):
        presence.remove(hand.files, hand.area, one.agent)
    mend(hand.files, hand.area)
    create(sample)
    (stem,) = fsck.survey(hand.files, hand.area)[1].folds
    agent = AgentSession(hand.spool, stem.split("-")[4], {"host": "later"}, {})
    agent.join()
    while (claim := hand.claim(agent)) is not None:
        hand.end(agent, claim)
    agent.tidy()
    assert hand.files.names(hand.area.tasks) == []
