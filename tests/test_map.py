"""`map` over more calls than there should be futures."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import weakref
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FuturesTimeoutError

import pytest

from fsbroker import ClusterExecutor, Future
from fsbroker.client.history import History, Phase
from fsbroker.mapping import AHEAD
from fsbroker.spool.spool import open_spool

FEW = 200
"""What is ahead in these tests, where not the true number is asked for."""
MANY = FEW + 100
PATIENCE = 30.0


@pytest.fixture(scope="module")
def exe(tmp_path_factory):
    with ClusterExecutor(tmp_path_factory.mktemp("spool"), max_workers=2) as executor:
        yield executor


@pytest.fixture(autouse=True)
def ahead(monkeypatch):
    monkeypatch.setattr("fsbroker.mapping.AHEAD", FEW)


def double(x):
    return 2 * x


@pytest.fixture
def alive(exe, idle, monkeypatch) -> weakref.WeakSet[Future]:
    """The futures that somebody holds."""
    alive: weakref.WeakSet[Future] = weakref.WeakSet()

    def keeping(submit):
        def submitting(*arguments):
            future = submit(*arguments)
            alive.add(future)
            return future

        return submitting

    for executor in (exe, idle):
        monkeypatch.setattr(executor, "submit", keeping(executor.submit))
    return alive


AT_ONCE = 3
"""What is ahead, and what was taken a moment ago and is in the hands of the client's thread."""


class Taken:
    """Counts what was taken of an iterable."""

    def __init__(self, items) -> None:
        self.count = 0
        self._items = iter(items)

    def __iter__(self):
        for item in self._items:
            self.count += 1
            yield item


def test_futures_do_not_pile_up(exe, alive):
    most, calls = 0, Taken(range(20 * FEW))
    for place, value in enumerate(exe.map(double, calls)):
        assert value == 2 * place
        assert calls.count <= place + FEW + 1
        most = max(most, len(alive))
    assert calls.count == 20 * FEW
    assert FEW <= most <= AT_ONCE * FEW


def test_buffersize(exe, alive):
    calls = Taken(itertools.count())
    results = exe.map(double, calls, buffersize=10)
    assert calls.count == 10
    assert [next(results) for _ in range(1000)] == [2 * n for n in range(1000)]
    assert calls.count == 1010
    assert len(alive) <= AT_ONCE * 10
    results.close()


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), ("4", TypeError)])
def test_wrong_buffersize(idle, size, error):
    with pytest.raises(error, match="buffersize"):
        idle.map(double, [1], buffersize=size)


def test_end_before_the_end_cancels_what_is_left(exe, idle, alive):
    results = exe.map(double, itertools.count())
    assert next(results) == 0
    results.close()
    assert list(results) == []
    alive.clear()
    pending = idle.map(double, range(MANY), timeout=0.01)
    futures = list(alive)
    with pytest.raises(FuturesTimeoutError):
        next(pending)
    assert len(futures) == FEW
    assert all(future.cancelled() for future in futures)


def test_lists_are_taken_as_they_are(idle):
    items = list(range(MANY))
    results = idle.map(double, items)
    items.clear()
    idle._loop.drain()
    assert idle._loop.feeds == set()
    assert idle._loop.pending() == MANY
    results.close()


@pytest.mark.parametrize("wait", [True, False])
def test_calls_whose_results_nobody_takes(tmp_path, wait):
    """They may be made for their effects: by the time the executor ends they are in the spool."""
    exe = ClusterExecutor(tmp_path / "spool", max_workers=2)
    exe.map(double, range(MANY))
    results = exe.map(double, range(MANY, 2 * MANY))
    exe.shutdown(wait=wait)
    assert list(results) == [2 * n for n in range(MANY, 2 * MANY)]
    again = ClusterExecutor(tmp_path / "spool", backend="none", tag="again")
    try:
        assert list(again.map(double, range(2 * MANY), timeout=PATIENCE))[-1] == 2 * (2 * MANY - 1)
    finally:
        again.shutdown(wait=False, cancel_futures=True)


def test_shutdown_that_cancels(idle):
    results = idle.map(double, range(MANY))
    idle.shutdown(wait=True, cancel_futures=True)
    with pytest.raises(CancelledError):
        list(results)


def test_shutdown_that_cancels_after_some_results(tmp_path):
    """They do not look like all."""
    with ClusterExecutor(tmp_path / "spool", max_workers=2) as executor:
        results = executor.map(double, range(MANY))
        executor._loop.wait()
        executor.shutdown(cancel_futures=True)
    taken = itertools.islice(results, FEW)
    assert list(taken) == [2 * n for n in range(FEW)]
    with pytest.raises(CancelledError):
        next(results)


def test_script_that_ends_without_taking_results(tmp_path):
    script = f"""
        from fsbroker import ClusterExecutor
        ClusterExecutor({str(tmp_path / "spool")!r}, backend="none").map(abs, range({AHEAD + 100}))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
    history = History(open_spool(tmp_path / "spool"))
    assert history.counts()[Phase.READY] == AHEAD + 100
