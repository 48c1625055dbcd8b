"""The harness itself: what a power cut leaves must follow from the syncs alone."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed.powerloss import PowerLossDisk

pytestmark = pytest.mark.powerloss

TEXT = b"R" * 5000


def write(path, *, sync):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, TEXT)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def publish(path):
    write(f"{path}/tmp", sync=True)
    os.link(f"{path}/tmp", f"{path}/final")
    os.unlink(f"{path}/tmp")
    sync_directory(path)


def names(path):
    return sorted(set(os.listdir(path)) - {"lost+found"})


def test_without_any_sync_nothing_is_left(power_loss_disk):
    write(power_loss_disk.path / "t", sync=False)
    assert names(power_loss_disk.crash()) == []


def test_what_was_synced_is_left(power_loss_disk):
    publish(power_loss_disk.path)
    path = power_loss_disk.crash()
    assert names(path) == ["final"]
    assert (path / "final").read_bytes() == TEXT


def test_a_name_without_its_content_is_left_empty(power_loss_disk):
    write(power_loss_disk.path / "t", sync=False)
    sync_directory(power_loss_disk.path)
    assert (power_loss_disk.crash() / "t").read_bytes() == b""


def test_a_disk_may_crash_again(power_loss_disk):
    publish(power_loss_disk.path)
    for _ in range(2):
        path = power_loss_disk.crash()
        assert names(path) == ["final"]
        write(path / "t", sync=False)


def test_each_file_call_can_be_the_last(power_loss_disk):
    """Nothing, then the temporary name, then the final one: never half a file."""
    seen = []
    for step in itertools.count(1):
        with PowerLossDisk(power_loss_disk.kind) as disk:
            cut = disk.run(publish, disk.path, cut_before=step)
            path = disk.crash()
            seen.append("".join(names(path)))
            for name in names(path):
                assert step < 4 or (path / name).read_bytes() == TEXT
        if not cut:
            break
    # open, write, fsync, close, link, unlink, open, fsync, close, and one run to the end
    assert len(seen) == 10
    assert [name for name, _ in itertools.groupby(seen)] == ["", "tmp", "final"]


def test_errors_of_the_function_are_not_taken_for_a_cut(power_loss_disk):
    with pytest.raises(FileNotFoundError):
        power_loss_disk.run(os.unlink, power_loss_disk.path / "no", cut_before=9)


def test_another_process_loses_its_writes_too(power_loss_disk):
    script = "import sys; f = open(sys.argv[1], 'w'); f.write('x'); f.flush(); print(flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script}; input()", power_loss_disk.path / "t"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        process.stdout.readline()
        power_loss_disk.cut()
        with pytest.raises(RuntimeError, match=f"in use by process .*{process.pid}"):
            power_loss_disk.crash()
        process.kill()
    assert names(power_loss_disk.crash()) == []


def test_nothing_stays_mounted_after_an_error():
    class TestError(Exception):
        pass

    with pytest.raises(TestError), PowerLossDisk("ext4") as disk:
        raise TestError
    assert str(disk.path) not in Path("/proc/self/mountinfo").read_text()
    assert not disk.path.exists()
