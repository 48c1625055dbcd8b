"""Being told of changes: by the kernel, and by looking. Both keep one contract."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from fsbroker import ClusterExecutor
from fsbroker.spool import watch as watching
from fsbroker.spool.watch import FIRST_DELAY, LAST_DELAY, Polling, Watchdog, file_system, watch

PATIENCE = 20.0
LIMITS = Path("/proc/sys/fs/inotify")


class WatchContract:
    """What the loops of clients and agents rely on, whichever way they are told."""

    method: str

    @pytest.fixture
    def woken(self):
        return threading.Event()

    @pytest.fixture
    def watched(self, tmp_path, woken):
        found = watch(str(tmp_path), woken.set, self.method)
        yield found
        found.stop()

    def has_news(self, watched, woken) -> bool:
        """What a loop does: wait for as long as the watch says, then look."""
        found = woken.wait(watched.delay)
        woken.clear()
        return found or isinstance(watched, Polling)

    @pytest.mark.parametrize("change", ["create", "rename", "unlink", "link", "symlink", "mkdir"])
    def test_a_change_is_seen(self, tmp_path, watched, woken, change):
        (tmp_path / "there").touch()
        (tmp_path / "elsewhere").mkdir()
        until_quiet(woken)
        there, new = tmp_path / "there", tmp_path / "new"
        {
            "create": new.touch,
            "rename": lambda: there.rename(new),
            "unlink": there.unlink,
            "link": lambda: os.link(there, new),
            "symlink": lambda: new.symlink_to("target"),
            "mkdir": new.mkdir,
        }[change]()
        assert self.has_news(watched, woken)

    def test_each_of_many_changes_is_seen_in_time(self, tmp_path, watched, woken):
        path = tmp_path / "0"
        path.touch()
        until_quiet(woken)
        for number in range(1, 30):
            begun = time.monotonic()
            path = path.rename(tmp_path / str(number))
            assert self.has_news(watched, woken)
            assert time.monotonic() - begun < LAST_DELAY
            watched.reset()

    def test_delays_are_bounded(self, watched):
        for _ in range(100):
            assert 0 < watched.delay <= LAST_DELAY
            watched.waited()
        watched.reset()
        assert 0 < watched.delay <= LAST_DELAY

    def test_stop_may_be_called_again(self, watched):
        watched.stop()
        watched.stop()

    def test_an_executor_works_with_it(self, tmp_path):
        with ClusterExecutor(
            tmp_path / "spool", max_workers=1, idle_timeout=1, watch=self.method
        ) as executor:
            assert list(executor.map(pow, range(30), [2] * 30, timeout=PATIENCE)) == [
                n * n for n in range(30)
            ]


def until_quiet(woken):
    end = time.monotonic() + PATIENCE
    while woken.wait(0.1):
        woken.clear()
        assert time.monotonic() < end


class TestPolling(WatchContract):
    method = "polling"

    def test_it_looks_less_and_less_often_until_something_happens(self, watched):
        delays = []
        for _ in range(30):
            delays.append(watched.delay)
            watched.waited()
        assert delays == sorted(delays)
        assert (delays[0], delays[-1]) == (FIRST_DELAY, LAST_DELAY)
        watched.reset()
        assert watched.delay == FIRST_DELAY


class TestWatchdog(WatchContract):
    method = "watchdog"

    def test_it_is_what_it_says(self, watched):
        assert isinstance(watched, Watchdog)

    def test_reading_is_no_news(self, tmp_path, watched, woken):
        (tmp_path / "file").write_text("x")
        until_quiet(woken)
        (tmp_path / "file").read_text()
        list(tmp_path.iterdir())
        assert not woken.wait(0.2)


# -- which of the two --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "found"), [("ext4", Watchdog), ("nfs4", Polling), ("lustre", Polling), ("", Polling)]
)
def test_the_kernel_is_asked_only_where_it_knows(tmp_path, monkeypatch, kind, found):
    monkeypatch.setattr(watching, "file_system", lambda _: kind)
    chosen = watch(str(tmp_path), lambda: None)
    chosen.stop()
    assert type(chosen) is found


def test_file_system_of_a_directory(tmp_path):
    assert file_system("/proc") == "proc"
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert file_system(str(link)) == "proc"


def test_file_system_with_a_space_in_its_path(tmp_path):
    point = tmp_path / "a b"
    point.mkdir()
    mount = ["mount", "-t", "ramfs", "ramfs", str(point)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount")
    try:
        assert file_system(str(point)) == "ramfs"
        assert file_system(str(tmp_path / "a")) != "ramfs"
    finally:
        subprocess.run(["umount", str(point)], check=True)


# -- no watches left ---------------------------------------------------------------------


@pytest.fixture
def few_instances():
    """The limit is lowered, so that few others are disturbed, and briefly."""
    path = LIMITS / "max_user_instances"
    before = path.read_text()
    try:
        path.write_text("0")
    except OSError:
        pytest.skip("only root can lower the limit")
    yield
    path.write_text(before)


SCRIPT = """
import sys, warnings
from fsbroker import ClusterExecutor
from fsbroker.spool.watch import Polling, watch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = watch(sys.argv[1], lambda: None, "watchdog")
assert isinstance(found, Polling), found
(message,) = [str(one.message) for one in caught]
assert sys.argv[1] in message and "max_user_instances" in message, message
warnings.simplefilter("ignore")
with ClusterExecutor(sys.argv[1] + "/spool", max_workers=1, idle_timeout=1) as executor:
    assert executor.submit(pow, 2, 5).result(20) == 32
print("works")
"""


def test_without_inotify_instances_it_polls_and_says_so(tmp_path, few_instances):
    """In a process of its own: one that has an instance keeps it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "works\n", done.stderr


def test_without_watches_it_polls_and_says_so(tmp_path, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(watching, "Watchdog", no_space)
    with pytest.warns(RuntimeWarning, match="max_user_watches"):
        found = watch(str(tmp_path), lambda: None, "watchdog")
    assert isinstance(found, Polling)


def test_a_directory_that_is_gone_is_no_fault_of_the_limits(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert isinstance(watch(str(tmp_path / "gone"), lambda: None, "watchdog"), Polling)
    (message,) = [str(one.message) for one in caught]
    assert "gone" in message
    assert "max_user" not in message
