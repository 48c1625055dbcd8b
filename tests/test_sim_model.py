"""The model file system does what local ones were measured to do (ext4 and xfs after a power
loss), replies that lie, and the scheduler. Its NFS is in `test_sim_nfs.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from fsbroker.errors import FileRefused, SpoolFull
from tests.sim.alone import Alone, two_clients
from tests.sim.model import (
    ForeignModelFiles,
    Host,
    Killed,
    Kind,
    ModelDisk,
    ModelFiles,
    Mount,
    NotYours,
)
from tests.sim.scheduler import Actor, Scheduler


def fill_up(files: ModelFiles) -> None:
    for _ in range(20):
        files.write_new("d/x", [b"1"], sync=True)
        files.unlink("d/x")


def test_a_local_file_that_was_unlinked_can_be_read_on():
    writer, _, _ = two_clients(Mount())
    writer.write_new("d/x", [b"1"], sync=False)
    file = writer.open("d/x")
    writer.unlink("d/x")
    assert file.read(0, 1) == b"1"


# -- the calls themselves ------------------------------------------------------------------


def test_open_refuses_a_link():
    files, _, _ = two_clients(Mount())
    files.symlink("anything", "d/record")
    with pytest.raises(FileRefused):
        files.open("d/record")


def test_nothing_is_replaced_but_by_rename():
    files, _, _ = two_clients(Mount())
    files.write_new("d/x", [b"1"], sync=False)
    files.write_new("d/y", [b"2"], sync=False)
    for call in (lambda: files.link("d/x", "d/y"), lambda: files.write_new("d/y", [], sync=False)):
        with pytest.raises(FileExistsError):
            call()
    files.rename("d/x", "d/y")
    assert files.open("d/y").read(0, 9) == b"1"


def test_a_full_disk_is_an_error_that_names_the_path():
    files, _, _ = two_clients(Mount())
    files.disk.full = True
    with pytest.raises(SpoolFull, match="d/x"):
        fill_up(files)


def test_a_directory_with_names_in_it_stays():
    files, _, _ = two_clients(Mount())
    files.write_new("d/x", [b"1"], sync=False)
    with pytest.raises(OSError, match="not empty"):
        files.rmdir("d")
    files.unlink("d/x")
    files.rmdir("d")
    with pytest.raises(FileNotFoundError):
        files.names("d")


def test_locks_exclude_or_not_as_the_mount_says():
    for kind, second in (("good", False), ("nobody", True), ("local", True), ("refused", False)):
        one, other, _ = two_clients(Mount(locks=kind))
        assert (one.try_lock("d/lock") is not None) == (kind != "refused")
        assert (other.try_lock("d/lock") is not None) == second


def test_a_dead_holder_frees_its_lock_unless_the_file_system_forgets_to():
    for kind, freed in (("good", True), ("sticky", False)):
        one, other, _ = two_clients(Mount(locks=kind))
        assert one.try_lock("d/lock")
        one.dead = True
        assert (other.try_lock("d/lock") is not None) == freed


# -- replies that lie ----------------------------------------------------------------------


def lying(late: bool = False) -> tuple[ModelFiles, Alone]:
    files, _, clock = two_clients(Mount(calm=1, lies=True, late=late))
    return files, clock


def test_an_error_may_stand_for_a_thing_done_and_for_a_thing_not_done():
    files, _ = lying()
    outcomes = set()
    for number in range(300):
        name = f"d/{number}"
        try:
            files.symlink("content", name)
        except OSError:
            outcomes.add(files.disk.find(name) is not None)
    assert outcomes == {True, False}


def test_a_thing_may_be_done_after_its_error():
    files, clock = lying(late=True)
    for number in range(300):
        try:
            files.symlink("content", f"d/{number}")
        except OSError:
            if clock.requests:
                break
    assert files.disk.find(f"d/{number}") is None
    clock.requests[0]()
    assert files.disk.find(f"d/{number}") is not None


def test_a_late_request_takes_no_name_that_another_has_by_then():
    files, clock = lying(late=True)
    for number in range(300):
        try:
            files.symlink("late", f"d/{number}")
        except OSError:
            if clock.requests:
                break
    other = ModelFiles(files.disk, Host("other"), clock, files.chance)
    other.symlink("first", f"d/{number}")
    clock.requests[0]()
    assert files.disk.find(f"d/{number}").data == "first"


# -- users ---------------------------------------------------------------------------------


def two_users() -> tuple[ModelFiles, ModelFiles]:
    """Of whom the first has a file, ``d/a/x``, and an empty directory."""
    first, second, _ = two_clients(Mount())
    first.mkdir("d/a")
    first.mkdir("d/a/empty")
    first.home, second.home, second.uid = "d/a/", "d/b/", 1001
    first.write_new("d/a/x", [b"1"], sync=False)
    return first, second


def test_what_another_user_has_is_read_by_who_says_whose_it_is():
    _, second = two_users()
    with pytest.raises(FileRefused, match="A file of user 1000"):
        second.open("d/a/x")
    assert ForeignModelFiles(second, 1000).open("d/a/x").read(0, 1) == b"1"
    assert second.status("d/a").st_uid == 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.write_new("d/a/y", [], sync=False),
        lambda files: files.symlink("", "d/a/y"),
        lambda files: files.link("d/a/x", "d/a/y"),
        lambda files: files.rename("d/a/x", "d/b/x"),
        lambda files: files.unlink("d/a/x"),
        lambda files: files.mkdir("d/a/y"),
        lambda files: files.rmdir("d/a/empty"),
        lambda files: files.touch("d/a/x"),
        lambda files: ModelFiles.touch_directory(files, "d/a"),
        lambda files: files.try_lock("d/a/lock"),
    ],
)
def test_nothing_of_another_user_is_changed(change):
    for files in (two_users()[1], ForeignModelFiles(two_users()[1], 1000)):
        with pytest.raises(NotYours):
            change(files)


def test_another_users_area_dies_with_the_process_that_reads_it():
    _, second = two_users()
    foreign = ForeignModelFiles(second, 1000)
    second.dead = True
    with pytest.raises(Killed):
        foreign.open("d/a/x")


# -- power loss ----------------------------------------------------------------------------


def write(files: ModelFiles, sync: bool) -> None:
    files.write_new("d/t", [b"content"], sync=sync)


def after_power_loss(ordered: bool, *calls: Callable[[ModelFiles], None]) -> dict[str, bytes]:
    """What is left, at worst."""
    disk = ModelDisk(ordered)
    files = ModelFiles(disk, Host("a"), Alone(), random.Random(1))
    files.mkdir("d")
    files.sync_directory("")
    files.sync_directory("d")
    for call in calls:
        call(files)
    disk.power_loss(random.Random(1), worst=True)
    return {name: disk.find(f"d/{name}").data for name in disk.listing("d")}


BOTH = pytest.mark.parametrize("ordered", [True, False], ids=["journal", "posix"])


@BOTH
def test_power_loss_after_write_and_rename_leaves_nothing(ordered):
    left = after_power_loss(
        ordered, lambda f: write(f, False), lambda f: f.rename("d/t", "d/final")
    )
    assert left == {}


def test_power_loss_after_write_fsync_rename_leaves_the_temporary_name():
    calls = (lambda f: write(f, True), lambda f: f.rename("d/t", "d/final"))
    assert after_power_loss(True, *calls) == {"t": b"content"}
    # POSIX does not even promise that: the fsync of a file does not cover its name
    assert after_power_loss(False, *calls) == {}


@BOTH
def test_power_loss_after_the_whole_publication_leaves_it_whole(ordered):
    left = after_power_loss(
        ordered,
        lambda f: write(f, True),
        lambda f: f.link("d/t", "d/final"),
        lambda f: f.unlink("d/t"),
        lambda f: f.sync_directory("d"),
    )
    assert left == {"final": b"content"}


@BOTH
def test_power_loss_without_fsync_of_the_file_leaves_an_empty_one(ordered):
    left = after_power_loss(
        ordered,
        lambda f: write(f, False),
        lambda f: f.rename("d/t", "d/final"),
        lambda f: f.sync_directory("d"),
    )
    assert left == {"final": b""}


@BOTH
def test_power_loss_after_replacing_a_durable_file_leaves_the_old_one(ordered):
    left = after_power_loss(
        ordered,
        lambda f: f.write_new("d/final", [b"old"], sync=True),
        lambda f: f.sync_directory("d"),
        lambda f: write(f, False),
        lambda f: f.rename("d/t", "d/final"),
    )
    assert left["final"] == b"old"


def test_a_second_fsync_of_the_file_covers_its_new_name_on_ext4_and_xfs():
    calls = (
        lambda f: write(f, True),
        lambda f: f.link("d/t", "d/final"),
        lambda f: f.disk.sync(f.disk.find("d/t")),
    )
    assert after_power_loss(True, *calls) == {"t": b"content", "final": b"content"}


def test_a_journal_loses_changes_from_the_end_only():
    for seed in range(50):
        disk = ModelDisk(ordered=True)
        files = ModelFiles(disk, Host("a"), Alone(), random.Random(seed))
        files.mkdir("d")
        for number in range(10):
            files.symlink("record", f"d/{number}")
        disk.power_loss(random.Random(seed))
        left = disk.listing("d")
        assert left == [str(number) for number in range(len(left))]


def test_two_power_losses_in_a_row_keep_what_the_first_left():
    disk = ModelDisk(ordered=False)
    files = ModelFiles(disk, Host("a"), Alone(), random.Random(1))
    files.mkdir("d")
    files.symlink("record", "d/0")
    files.sync_directory("d")
    files.sync_directory("")
    disk.power_loss(random.Random(1), worst=True)
    files.symlink("record", "d/1")
    disk.power_loss(random.Random(1), worst=True)
    assert disk.listing("d") == ["0"]
    assert disk.find("d/0").links == 1


# -- the scheduler ---------------------------------------------------------------------------


def trace_of(seed: int) -> list[str]:
    disk, chance, trace = ModelDisk(), random.Random(seed), []
    scheduler = Scheduler(disk, chance)

    def main(actor: Actor, count: int) -> None:
        actor.files.mkdir("d")
        for number in range(count):
            actor.files.symlink(actor.name, f"d/{actor.name}{number}")
            trace.append(f"{actor.name}{number}")
            scheduler.sleep(actor, chance.random())

    for name in "abc":
        scheduler.spawn(name, Host(name), main, 10)
    scheduler.run()
    return trace


def test_a_seed_replays_and_another_one_differs():
    assert trace_of(1) == trace_of(1)
    assert trace_of(1) != trace_of(2)


def test_the_killed_do_nothing_any_more():
    disk = ModelDisk()
    scheduler = Scheduler(disk, random.Random(1), burst=0)
    unwound = []

    def main(actor: Actor) -> None:
        try:
            for number in range(10):
                actor.files.symlink("", str(number))
        finally:
            unwound.append(actor)
            with pytest.raises(Killed):
                actor.files.symlink("", "cleanup")

    actor = scheduler.spawn("a", Host("a"), main)
    for _ in range(5):
        scheduler._step(actor)
    left = disk.listing("")
    scheduler.kill(actor)
    scheduler.run()
    assert unwound
    assert disk.listing("") == left
    assert 0 < len(left) < 10


def test_racing_creators_have_one_winner():
    for seed in range(100):
        disk, chance, won = ModelDisk(), random.Random(seed), []
        scheduler = Scheduler(disk, chance, burst=1)

        def main(actor: Actor, won: list[str] = won) -> None:
            actor.files.names("")
            try:
                actor.files.symlink(actor.name, "x")
                won.append(actor.name)
            except FileExistsError:
                pass

        for name in "abc":
            scheduler.spawn(name, Host(name, Mount(Kind.V4)), main)
        scheduler.run()
        assert len(won) == 1
        assert disk.find("x").data == won[0]
