"""A spool that goes away, fills up or cannot be written, and agents that do not start."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fsbroker import ClusterExecutor
from fsbroker.client import loop, trouble
from fsbroker.errors import (
    FileDamaged,
    SpoolError,
    SpoolFull,
    SpoolMissing,
    SpoolUnwritable,
    TaskLost,
)
from fsbroker.launch import local
from fsbroker.spool.container import Container
from fsbroker.spool.spool import open_spool

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    """What is 30 seconds for a user is one for a test."""
    monkeypatch.setattr(trouble, "PATIENCE", 1.0)
    monkeypatch.setattr(loop, "CHECK_EVERY", 0.2)
    monkeypatch.setattr(local, "PAUSE", 0.1)


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MB of its own."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(point)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=True)


def remount(point: Path, how: str) -> None:
    end = time.monotonic() + PATIENCE
    while subprocess.run(["mount", "-o", f"remount,{how}", str(point)], check=False).returncode:
        assert time.monotonic() < end, "an agent writes all the time"
        time.sleep(0.05)


def fill(point: Path) -> Path:
    path = point / "ballast"
    with suppress(OSError), open(path, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return path


def held(opened):
    while not os.path.exists(opened):
        time.sleep(0.02)
    return "held"


def test_spool_deleted_while_waiting(tmp_path):
    executor = ClusterExecutor(tmp_path / "spool", backend="none")
    futures = [executor.submit(pow, n, 2) for n in range(3)]
    executor._loop.flush(PATIENCE)
    shutil.rmtree(tmp_path / "spool")
    for future in futures:
        with pytest.raises(SpoolMissing) as caught:
            future.result(PATIENCE)
        assert str(tmp_path / "spool") in str(caught.value)
        assert caught.value.cure
    executor.shutdown()


@pytest.mark.filterwarnings("ignore:fsbroker cannot watch:RuntimeWarning")
def test_submit_to_a_spool_that_was_deleted(tmp_path):
    executor = ClusterExecutor(tmp_path / "spool", backend="none")
    shutil.rmtree(tmp_path / "spool")
    with pytest.raises(SpoolMissing, match=str(tmp_path)):
        executor.submit(pow, 1, 2).result(PATIENCE)
    executor.shutdown()


def test_spool_that_is_back_in_time(tmp_path):
    """Trouble that passes costs nothing."""
    root, away = tmp_path / "spool", tmp_path / "away"
    executor = ClusterExecutor(root, max_workers=1, idle_timeout=2, watch="polling")
    assert executor.submit(pow, 2, 2).result(PATIENCE) == 4
    area = root / "users" / f"u{os.getuid()}"
    (area / "tasks").rename(away)
    future = executor.submit(pow, 3, 2)
    with pytest.raises(TimeoutError):
        future.result(0.3)
    away.rename(area / "tasks")
    assert future.result(PATIENCE) == 9
    executor.shutdown()


def test_task_file_removed_by_hand(tmp_path):
    executor = ClusterExecutor(tmp_path / "spool", backend="none")
    future = executor.submit(pow, 1, 2)
    executor._loop.flush(PATIENCE)
    for path in (tmp_path / "spool").rglob("tasks/*.h5"):
        path.unlink()
    with pytest.raises(TaskLost):
        future.result(PATIENCE)
    executor.shutdown()


def test_news_can_be_read_but_not_what_has_none(tmp_path, monkeypatch):
    """Agents are listed all the time, all streams only now and then: that fails for ever."""
    monkeypatch.setattr(loop, "CHECK_EVERY", 2.0)
    executor = ClusterExecutor(
        tmp_path / "spool", backend="none", watch="polling", refresh_rate=0.1
    )
    future = executor.submit(pow, 2, 3)
    executor._loop.flush(PATIENCE)
    results = tmp_path / "spool" / "users" / f"u{os.getuid()}" / "results"
    results.rename(tmp_path / "away")
    results.touch()
    with pytest.raises(SpoolError, match="results"):
        future.result(PATIENCE)
    results.unlink()
    (tmp_path / "away").rename(results)
    with ClusterExecutor(tmp_path / "spool", max_workers=1) as again:
        assert again.submit(pow, 2, 3).result(PATIENCE) == 8


def test_spool_unmounted_while_waiting(disk):
    executor = ClusterExecutor(disk / "spool", backend="none")
    future = executor.submit(pow, 1, 2)
    executor._loop.flush(PATIENCE)
    subprocess.run(["umount", "-l", str(disk)], check=True)
    try:
        with pytest.raises(SpoolMissing) as caught:
            future.result(PATIENCE)
    finally:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], check=True)
    assert str(disk) in str(caught.value)
    assert "mounted" in str(caught.value)
    executor.shutdown()


def test_submit_to_a_read_only_spool(disk):
    executor = ClusterExecutor(disk / "spool", backend="none")
    remount(disk, "ro")
    with pytest.raises(SpoolUnwritable, match="read-only") as caught:
        executor.submit(pow, 1, 2).result(PATIENCE)
    assert str(disk) in str(caught.value)
    remount(disk, "rw")
    with executor:
        executor.submit(pow, 1, 2)
        executor.shutdown(cancel_futures=True)


def test_read_only_while_waiting(disk, monkeypatch):
    started = threading.Event()
    # An agent that runs would keep its output open, and the disk from being remounted.
    monkeypatch.setattr(local.LocalLauncher, "submit", lambda *_: started.set())
    executor = ClusterExecutor(disk / "spool", max_workers=1)
    future = executor.submit(pow, 2, 2)
    assert started.wait(PATIENCE)
    remount(disk, "ro")
    monkeypatch.undo()
    monkeypatch.setattr(trouble, "PATIENCE", 1.0)
    with pytest.raises(SpoolUnwritable, match="read-only") as caught:
        future.result(PATIENCE)
    assert str(disk) in str(caught.value)
    executor.shutdown()


def test_submit_to_a_full_spool(disk):
    executor = ClusterExecutor(disk / "spool", backend="none")
    ballast = fill(disk)
    with pytest.raises(SpoolFull) as caught:
        executor.submit(sum, list(range(10000))).result(PATIENCE)
    assert str(disk) in str(caught.value)
    assert "space" in str(caught.value)
    ballast.unlink()
    future = executor.submit(sum, list(range(10000)))
    executor._loop.flush(PATIENCE)
    assert not future.done()
    executor.shutdown(cancel_futures=True)


def test_full_while_waiting(disk, tmp_path):
    executor = ClusterExecutor(disk / "spool", max_workers=1, idle_timeout=2)
    future = executor.submit(held, str(tmp_path / "opened"))
    executor._loop.flush(PATIENCE)
    fill(disk)
    (tmp_path / "opened").touch()
    with pytest.raises(SpoolError) as caught:
        future.result(PATIENCE)
    assert str(disk) in str(caught.value)
    assert "space" in str(caught.value)
    executor.shutdown()


def test_agents_that_do_not_start(tmp_path, monkeypatch):
    """The futures get what the last of them said."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import sys; sys.exit('no licence for this node')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    executor = ClusterExecutor(tmp_path / "spool", max_workers=1)
    futures = [executor.submit(pow, n, 2) for n in range(3)]
    for future in futures:
        with pytest.raises(SpoolError, match="no licence for this node") as caught:
            future.result(PATIENCE)
        assert str(tmp_path / "spool") in str(caught.value)
    executor.shutdown()


def test_agents_that_are_killed_are_replaced(tmp_path):
    executor = ClusterExecutor(tmp_path / "spool", max_workers=1, idle_timeout=2)
    assert executor.submit(pow, 2, 2).result(PATIENCE) == 4
    launcher = executor._loop._agents
    assert isinstance(launcher, local.LocalLauncher)
    launcher._started[0].process.kill()
    assert executor.submit(pow, 3, 2).result(PATIENCE) == 9
    executor.shutdown()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_thread_reaches_the_futures(tmp_path, monkeypatch):
    executor = ClusterExecutor(tmp_path / "spool", backend="none")

    def broken(_):
        raise AssertionError("a bug")

    monkeypatch.setattr(executor._loop._binder, "_bind", broken)
    future = executor.submit(pow, 1, 2)
    with pytest.raises(AssertionError, match="a bug"):
        future.result(PATIENCE)
    monkeypatch.undo()
    again = executor.submit(pow, 1, 2)
    executor._loop.flush(PATIENCE)
    assert again.stem is not None
    executor.shutdown(cancel_futures=True)


def test_a_damaged_task_file_ends_its_tasks_and_not_the_agent(tmp_path):
    executor = ClusterExecutor(tmp_path / "s", backend="none")
    future = executor.submit(abs, -1)
    wait_until(lambda: future.stem)
    opened = open_spool(tmp_path / "s")
    path = opened.area.task_file(future.stem)
    with Container(opened.files, path, "tasks") as container:
        section = container.sections["arguments"]
    with open(f"{opened.files.root}/{path}", "r+b") as file:
        file.seek(section.offset)
        file.write(b"\xff" * section.length)
    with ClusterExecutor(tmp_path / "s", max_workers=1, idle_timeout=2.0) as other:
        good = other.submit(abs, -2)
        with pytest.raises(FileDamaged, match="arguments"):
            future.result(timeout=PATIENCE)
        assert good.result(timeout=PATIENCE) == 2
    executor.shutdown()


def wait_until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
