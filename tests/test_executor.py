"""The contract of `concurrent.futures.Executor`, and what this one adds to it."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

import fsbroker
from fsbroker import ClusterExecutor
from fsbroker.errors import (
    CannotPickle,
    DependencyFailed,
    KeyConflict,
    RemoteTraceback,
    ResourceError,
    TaskCancelled,
    TaskError,
    TaskLost,
)

PATIENCE = 30.0
"""Seconds after which a test takes something for hanging."""


@pytest.fixture(scope="module")
def spool(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("a spool's 'home'")


@pytest.fixture(scope="module")
def exe(spool):
    with ClusterExecutor(spool, max_workers=2, idle_timeout=3) as executor:
        yield executor


def square(x):
    return x * x


def until(condition, what="it"):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)


class Counted:
    """A function that leaves a mark each time it runs, and may fail as often as told."""

    def __init__(self, directory: Path) -> None:
        self.marks = directory / "marks"
        self.failures = directory / "failures"

    def function(self):
        marks, failures = str(self.marks), str(self.failures)

        def counted(value):
            with open(marks, "a") as file:
                file.write("x")
            if os.path.exists(failures):
                raise ValueError(value)
            return value, os.stat(marks).st_size

        return counted

    @property
    def runs(self) -> int:
        return self.marks.stat().st_size if self.marks.exists() else 0


@pytest.fixture
def counted(tmp_path):
    return Counted(tmp_path)


class Gate:
    """Holds a task until it is opened, and tells when it has begun."""

    def __init__(self, directory: Path) -> None:
        self.begun, self.opened = directory / "begun", directory / "opened"

    def function(self):
        begun, opened = str(self.begun), str(self.opened)

        def gated(value=None):
            open(begun, "w").close()
            while not os.path.exists(opened):
                time.sleep(0.01)
            return value

        return gated

    def wait_for_begin(self):
        until(self.begun.exists, "the task's begin")

    def open(self):
        self.opened.touch()


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.open()


# -- the standard library's contract -----------------------------------------------------


def test_result_can_be_asked_for_again(exe):
    future = exe.submit(square, 7)
    assert (future.result(PATIENCE), future.result(), future.exception()) == (49, 49, None)
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert not future.cancel()


def test_keyword_arguments(exe):
    assert exe.submit(lambda a, *, b: (a, b), 1, b=2).result(PATIENCE) == (1, 2)
    assert exe.submit(lambda fn: fn, fn=3).result(PATIENCE) == 3


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map_keeps_the_order(exe, chunksize):
    assert list(exe.map(square, range(20), chunksize=chunksize)) == [n * n for n in range(20)]
    assert list(exe.map(lambda a, b: a - b, [5, 6], [1, 2, 3])) == [4, 4]
    assert list(exe.map(square, [])) == []


def test_map_refuses_chunks_of_nothing(exe):
    with pytest.raises(ValueError, match="chunksize"):
        exe.map(square, [1], chunksize=0)


def test_map_timeout(exe, gate):
    results = exe.map(gate.function(), [1], timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)


def test_map_raises_at_the_item_that_failed(exe):
    results = exe.map(lambda x: 1 // x, [1, 0, 2])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_result_timeout(idle):
    future = idle.submit(square, 1)
    for ask in (future.result, future.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            ask(timeout=0.01)


def test_wait(exe, gate):
    slow, fast = exe.submit(gate.function()), exe.submit(square, 11)
    done, pending = wait([slow, fast], PATIENCE, FIRST_COMPLETED)
    assert (done, pending) == ({fast}, {slow})
    gate.open()
    assert wait([slow, fast], PATIENCE).not_done == set()


def test_as_completed_gives_each_future_once(exe):
    futures = [exe.submit(square, n) for n in range(100, 150)]
    futures += [exe.submit(square, 100)]  # the same task as the first
    assert set(as_completed(futures, PATIENCE)) == set(futures)
    assert len(list(as_completed([*futures, futures[0]]))) == len(futures)


def test_callbacks_before_and_after(exe):
    called = []
    future = exe.submit(square, 201)
    future.add_done_callback(called.append)
    future.result(PATIENCE)
    until(lambda: called, "the callback")
    future.add_done_callback(called.append)
    assert called == [future, future]


def test_callback_that_raises_does_no_harm(exe):
    future = exe.submit(square, 202)
    called = []
    future.add_done_callback(lambda _: 1 // 0)
    future.add_done_callback(called.append)
    until(lambda: called, "the second callback")
    assert exe.submit(square, 203).result(PATIENCE) == 203**2


def test_callback_may_submit_and_cancel(exe, idle):
    found = []
    pending = idle.submit(square, 1)

    def callback(future):
        found.append(exe.submit(square, future.result()))
        found.append(pending.cancel())

    exe.submit(square, 3).add_done_callback(callback)
    until(lambda: len(found) == 2, "the callback")
    assert (found[0].result(PATIENCE), found[1]) == (81, True)


def test_callback_may_wait_for_a_thread_that_needs_the_executor(exe):
    """Callbacks run without the loop's lock: otherwise this could never end."""
    found = []

    def callback(future):
        other = exe.submit(square, 205)
        thread = threading.Thread(target=lambda: found.append((other.cancel(), other.running())))
        thread.start()
        thread.join(PATIENCE)
        found.append(thread.is_alive())

    exe.submit(square, 204).add_done_callback(callback)
    until(lambda: len(found) == 2, "the callback")
    assert found[1] is False


def test_shutdown_in_a_callback_does_not_wait_for_itself(tmp_path):
    executor = ClusterExecutor(tmp_path / "s", max_workers=1, idle_timeout=1)
    ended = threading.Event()

    def callback(_):
        executor.shutdown(wait=True)
        ended.set()

    executor.submit(square, 1).add_done_callback(callback)
    assert ended.wait(PATIENCE)


def test_shutdown_waits_for_callbacks(tmp_path):
    called = []
    with ClusterExecutor(tmp_path / "s", max_workers=1, idle_timeout=1) as executor:
        executor.submit(square, 1).add_done_callback(lambda _: (time.sleep(0.2), called.append(1)))
    assert called == [1]


def test_submit_after_shutdown(tmp_path):
    executor = ClusterExecutor(tmp_path / "s", backend="none")
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(square, [1])


def test_futures_after_the_with_block(spool):
    with ClusterExecutor(spool, max_workers=2, idle_timeout=3) as executor:
        futures = [executor.submit(square, n) for n in range(300, 310)]
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [n * n for n in range(300, 310)]


def test_exception_in_the_with_block(spool):
    futures = []

    def work():
        with ClusterExecutor(spool, max_workers=2, idle_timeout=3) as executor:
            futures.append(executor.submit(square, 311))
            raise KeyError

    with pytest.raises(KeyError):
        work()
    (future,) = futures
    assert future.result() == 311**2


def test_shutdown_without_wait(spool, gate):
    executor = ClusterExecutor(spool, max_workers=2, idle_timeout=3)
    future = executor.submit(gate.function(), 5)
    executor.shutdown(wait=False)
    assert not future.done()
    gate.open()
    assert future.result(PATIENCE) == 5


def test_executor_that_was_collected(spool, gate):
    futures = [ClusterExecutor(spool, max_workers=2, idle_timeout=3).submit(gate.function(), 6)]
    gc.collect()
    gate.open()
    assert futures[0].result(PATIENCE) == 6


def test_shutdown_that_cancels(tmp_path, gate):
    executor = ClusterExecutor(tmp_path / "s", max_workers=1, idle_timeout=1)
    running = executor.submit(gate.function(), 7)
    gate.wait_for_begin()
    # Behind a task that runs, on one core: nobody can begin these.
    pending = [executor.submit(lambda n: n, n) for n in range(100)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in pending)
    gate.open()
    assert running.result(PATIENCE) == 7
    executor.shutdown(wait=True)


def test_submit_from_many_threads(exe):
    def work(thread):
        return [exe.submit(square, thread * 1000 + n) for n in range(50)]

    with ThreadPoolExecutor(8) as threads:
        futures = [one for many in threads.map(work, range(8)) for one in many]
    expected = [(thread * 1000 + n) ** 2 for thread in range(8) for n in range(50)]
    assert [future.result(PATIENCE) for future in futures] == expected


def test_shutdown_races_with_submit(spool):
    """What `submit` has accepted is resolved, even if the executor closes at that moment."""
    for attempt in range(10):
        executor = ClusterExecutor(spool, max_workers=2, idle_timeout=3)
        accepted: list[fsbroker.Future] = []
        begun = threading.Event()

        def submit(executor=executor, accepted=accepted, attempt=attempt, begun=begun):
            with suppress(RuntimeError):
                for n in range(1000):
                    accepted.append(executor.submit(square, 5000 + 20 * attempt + n % 20))
                    begun.set()

        thread = threading.Thread(target=submit)
        thread.start()
        begun.wait(PATIENCE)
        executor.shutdown(wait=False)
        thread.join(PATIENCE)
        assert [future.result(PATIENCE) >= 0 for future in accepted]


def test_looks_like_a_pool_to_libraries(exe):
    assert exe._max_workers == 2
    assert isinstance(exe, concurrent.futures.Executor)
    assert isinstance(exe.submit(square, 1), concurrent.futures.Future)


# -- cancel ------------------------------------------------------------------------------


def test_cancel_what_is_pending(idle):
    future = idle.submit(square, 1)
    called = []
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel()
    assert (future.cancelled(), future.done(), called) == (True, True, [future])
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert wait([future], 0).done == {future}


def test_what_is_cancelled_does_not_run(tmp_path, counted):
    idle = ClusterExecutor(tmp_path / "s", backend="none")
    function = counted.function()
    cancelled = idle.submit(function, 1)
    idle.shutdown(wait=False)
    assert cancelled.cancel()
    with ClusterExecutor(tmp_path / "s", max_workers=2, idle_timeout=3) as executor:
        assert executor.submit(square, 400).result(PATIENCE) == 160000
    assert counted.runs == 0


def test_cancel_what_runs(exe, gate):
    future = exe.submit(gate.function(), 8)
    gate.wait_for_begin()
    until(future.running, "the claim")
    assert not future.cancel()
    gate.open()
    assert future.result(PATIENCE) == 8


def test_cancel_one_of_two_identical_tasks(exe, idle):
    first, second = idle.submit(square, 2), idle.submit(square, 2)
    assert first.key == second.key
    assert first.cancel()
    assert not second.done()
    third = idle.submit(square, 2)
    assert second.cancel()
    assert not third.done()
    with ClusterExecutor(idle._spool.files.root, max_workers=1, idle_timeout=1) as executor:
        assert executor.submit(square, 2).result(PATIENCE) == 4
    assert third.result(PATIENCE) == 4


def test_cancelled_task_runs_when_submitted_again(tmp_path, counted):
    idle = ClusterExecutor(tmp_path / "s", backend="none")
    function = counted.function()
    assert idle.submit(function, 1).cancel()
    idle.shutdown()
    with ClusterExecutor(tmp_path / "s", max_workers=2, idle_timeout=3) as executor:
        assert executor.submit(function, 1).result(PATIENCE) == (1, 1)


def test_cancelled_dependency_fails_its_dependents(tmp_path):
    idle = ClusterExecutor(tmp_path / "s", backend="none")
    first = idle.submit(square, 410)
    second = idle.submit(square, first)
    idle.shutdown(wait=False)
    assert first.cancel()
    with ClusterExecutor(tmp_path / "s", max_workers=2, idle_timeout=3) as executor:
        assert executor.submit(square, 411).result(PATIENCE)
        error = second.exception(PATIENCE)
    assert isinstance(error, DependencyFailed)
    assert isinstance(error.__cause__, TaskCancelled)


def test_cancel_of_many_is_not_quadratic_in_files(idle):
    futures = [idle.submit(square, n) for n in range(3000)]
    idle._loop.flush(PATIENCE)
    idle.shutdown(wait=True, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    area = Path(idle._spool.files.root) / idle._spool.area.claims
    assert sum(1 for _ in area.glob("*/*")) < 100


# -- futures as arguments ----------------------------------------------------------------


def test_futures_anywhere_in_the_arguments(exe):
    class Box:
        def __init__(self, content):
            self.content = content

    def total(a, b, *, c, box):
        return a, b[0][0], b[1]["x"], c["y"][1], box.content

    one, two, three = (exe.submit(square, n) for n in (1, 2, 3))
    future = exe.submit(total, one, ([two], {"x": three}), c={"y": (0, two)}, box=Box(three))
    assert future.result(PATIENCE) == (1, 4, 9, 4, 9)


def test_chain_of_futures(exe):
    future = exe.submit(lambda x: x + 1, 0)
    for _ in range(30):
        future = exe.submit(lambda x: x + 1, future)
    assert future.result(PATIENCE) == 31


def test_futures_of_other_executors(exe, gate):
    opened = threading.Event()

    def wait_for_it():
        assert opened.wait(PATIENCE)
        return 3

    with ThreadPoolExecutor(1) as threads:
        foreign = threads.submit(wait_for_it)
        nested = [{"x": (foreign, exe.submit(square, 2))}]
        future = exe.submit(lambda data: data[0]["x"], nested)
        nested.clear()  # the arguments are those of the moment of submission
        dependent = exe.submit(sum, future)
        assert (future.key, dependent.key, future.done()) == (None, None, False)
        assert not future.running()
        opened.set()
        assert future.result(PATIENCE) == (3, 4)
        assert dependent.result(PATIENCE) == 7
    assert future.key is not None
    # The value makes the key: the same call with the value itself is the same task.
    assert exe.submit(lambda data: data[0]["x"], [{"x": (3, exe.submit(square, 2))}]).key == (
        future.key
    )


def test_foreign_future_that_is_done_already(exe):
    foreign = concurrent.futures.Future()
    foreign.set_result(5)
    assert exe.submit(square, foreign).result(PATIENCE) == 25


def test_foreign_future_whose_value_is_one_of_ours(exe):
    foreign = concurrent.futures.Future()
    future = exe.submit(square, foreign)
    foreign.set_result(exe.submit(square, 2))
    assert future.result(PATIENCE) == 16


def test_foreign_future_that_fails(exe):
    never, failing = concurrent.futures.Future(), concurrent.futures.Future()
    future = exe.submit(lambda *args: args, [never], failing)
    dependent = exe.submit(square, future)
    failing.set_exception(KeyError("foreign"))
    for one in (future, dependent):
        with pytest.raises(KeyError, match="foreign"):
            one.result(PATIENCE)


def test_foreign_future_that_is_cancelled(exe):
    foreign = concurrent.futures.Future()
    future = exe.submit(square, foreign)
    foreign.cancel()
    assert isinstance(future.exception(PATIENCE), concurrent.futures.CancelledError)


def test_cancel_what_waits_for_a_foreign_future(exe, counted):
    foreign = concurrent.futures.Future()
    future = exe.submit(counted.function(), foreign)
    dependent = exe.submit(square, future)
    assert future.cancel()
    foreign.set_result(1)
    assert isinstance(dependent.exception(PATIENCE), concurrent.futures.CancelledError)
    assert exe.submit(square, 501).result(PATIENCE) == 501**2
    assert counted.runs == 0


def test_shutdown_waits_for_what_waits_for_foreign_futures(spool):
    foreign = concurrent.futures.Future()
    timer = threading.Timer(0.2, foreign.set_result, [502])
    timer.start()
    with ClusterExecutor(spool, max_workers=2, idle_timeout=3) as executor:
        future = executor.submit(square, foreign)
    assert future.done()
    assert future.result() == 502**2


def test_shutdown_cancels_what_waits_for_foreign_futures(spool):
    executor = ClusterExecutor(spool, backend="none")
    future = executor.submit(square, concurrent.futures.Future())
    executor.shutdown(wait=True, cancel_futures=True)
    assert future.cancelled()


def test_future_of_another_spool_is_foreign(exe, tmp_path):
    with ClusterExecutor(tmp_path / "other", max_workers=1, idle_timeout=1) as other:
        theirs = other.submit(square, 2)
        later = other.submit(square, concurrent.futures.Future())
        ours = exe.submit(square, [theirs][0])
        assert ours.result(PATIENCE) == 16
        waiting = exe.submit(square, later)
        assert later.cancel()
        assert isinstance(waiting.exception(PATIENCE), concurrent.futures.CancelledError)


# -- the cache ---------------------------------------------------------------------------


def test_value_is_not_computed_again(exe, spool, counted):
    function = counted.function()
    assert exe.submit(function, 1).result(PATIENCE) == (1, 1)
    assert exe.submit(function, 1).result(PATIENCE) == (1, 1)
    with ClusterExecutor(spool, backend="none") as other:
        assert other.submit(counted.function(), 1).result(PATIENCE) == (1, 1)
    assert counted.runs == 1


def test_refresh(exe, counted):
    function = counted.function()
    assert exe.submit(function, 1).result(PATIENCE) == (1, 1)
    fresh = exe.submit(function, 1, resource_dict={"cache": "refresh"})
    dependent = exe.submit(lambda pair: pair[1], fresh)
    assert dependent.result(PATIENCE) == 2
    assert fresh.result(PATIENCE) == (1, 2)
    assert exe.submit(function, 1).result(PATIENCE) == (1, 2)


def test_refresh_beside_a_hit(exe, counted):
    function = counted.function()
    exe.submit(function, 1).result(PATIENCE)
    with exe._loop.lock:  # so that the loop meets them together
        hit = exe.submit(function, 1)
        fresh = exe.submit(function, 1, resource_dict={"cache": "refresh"})
    assert fresh.result(PATIENCE) == (1, 2)
    assert hit.result(PATIENCE) == (1, 1)


def test_cache_off(exe, counted):
    function, off = counted.function(), {"cache": "off"}
    futures = [exe.submit(function, 1, resource_dict=off) for _ in range(3)]
    assert len({future.key for future in futures}) == 3
    assert {future.result(PATIENCE)[0] for future in futures} == {1}
    assert counted.runs == 3


def test_cache_off_for_what_has_no_canonical_form(exe, tmp_path):
    (tmp_path / "text").write_text("content")
    with open(tmp_path / "text") as file:  # cloudpickle takes one along, as it is now

        def read():
            return file.read()

        for call in ((read,), (lambda argument: argument.read(), file)):
            with pytest.raises(CannotPickle):
                exe.submit(*call)
            future = exe.submit(*call, resource_dict={"cache": "off"})
            assert future.result(PATIENCE) == "content"


def test_failed_task_runs_again(exe, counted):
    function = counted.function()
    counted.failures.touch()
    for run in (1, 2):
        with pytest.raises(ValueError, match="9"):
            exe.submit(function, 9).result(PATIENCE)
        assert counted.runs == run
    counted.failures.unlink()
    assert exe.submit(function, 9).result(PATIENCE) == (9, 3)


def test_failed_dependents_run_again(exe, counted):
    function = counted.function()
    counted.failures.touch()
    assert exe.submit(lambda pair: pair, exe.submit(function, 9)).exception(PATIENCE)
    counted.failures.unlink()
    assert exe.submit(lambda pair: pair, exe.submit(function, 9)).result(PATIENCE) == (9, 2)


@pytest.mark.parametrize("when", ["done", "pending", "together"])
def test_cache_key_with_other_arguments(exe, when, tmp_path):
    name = {"cache_key": f"name {tmp_path.name}"}
    gate = Gate(tmp_path)
    with exe._loop.lock if when == "together" else nullcontext():
        first = exe.submit(gate.function(), 1, resource_dict=name)
        if when == "done":
            gate.open()
            first.result(PATIENCE)
        elif when == "pending":
            gate.wait_for_begin()
        other = exe.submit(gate.function(), 2, resource_dict=name)
        same = exe.submit(gate.function(), 1, resource_dict=name)
    with pytest.raises(KeyConflict):
        other.result(PATIENCE)
    gate.open()
    assert (first.result(PATIENCE), same.result(PATIENCE)) == (1, 1)


def test_cache_key_of_another_client(exe, spool, gate):
    name = {"cache_key": f"shared {gate.begun}"}
    first = exe.submit(gate.function(), 1, resource_dict=name)
    gate.wait_for_begin()
    with ClusterExecutor(spool, backend="none") as other:
        assert isinstance(
            other.submit(gate.function(), 2, resource_dict=name).exception(PATIENCE), KeyConflict
        )
        gate.open()
        assert other.submit(gate.function(), 1, resource_dict=name).result(PATIENCE) == 1
    assert first.result(PATIENCE) == 1


def test_cache_key_can_be_replaced(exe, tmp_path):
    name = f"name {tmp_path.name}"
    assert exe.submit(square, 2, resource_dict={"cache_key": name}).result(PATIENCE) == 4
    refresh = {"cache_key": name, "cache": "refresh"}
    assert exe.submit(square, 3, resource_dict=refresh).result(PATIENCE) == 9
    assert exe.submit(square, 3, resource_dict={"cache_key": name}).result(PATIENCE) == 9


def test_cache_key_is_no_path(exe, spool):
    name = f"../../{spool.name}-escaped"
    assert exe.submit(square, 4, resource_dict={"cache_key": name}).result(PATIENCE) == 16
    around = spool.parent.parent  # not below it: other tests leave what cannot be walked there
    assert not [
        path for path in (*around.iterdir(), *spool.parent.iterdir()) if "-escaped" in path.name
    ]


def test_ranks_are_part_of_the_key(idle):
    one = idle.submit(square, 2)
    two = idle.submit(square, 2, resource_dict={"cores": 2})
    assert one.key != two.key


# -- attaching ---------------------------------------------------------------------------


def test_attach_to_what_is_done_running_pending_and_unknown(exe, spool, gate, tmp_path):
    done = exe.submit(square, 601)
    done.result(PATIENCE)
    running = exe.submit(gate.function(), 9)
    gate.wait_for_begin()
    assert fsbroker.attach(spool, done.key, backend="none").result(PATIENCE) == 601**2
    again = fsbroker.attach(spool, running.key.hex())
    assert not again.done()
    gate.open()
    assert again.result(PATIENCE) == 9

    idle = ClusterExecutor(tmp_path / "idle", backend="none")
    pending = idle.submit(square, 602)
    idle.shutdown(wait=False)
    idle._loop.flush(PATIENCE)
    # Nobody serves that spool: attaching starts an agent.
    assert fsbroker.attach(tmp_path / "idle", pending.key).result(PATIENCE) == 602**2
    assert pending.result(PATIENCE) == 602**2

    with pytest.raises(TaskLost, match="no task with this key"):
        fsbroker.attach(spool, bytes(20)).result(PATIENCE)


def test_attach_to_what_has_failed(exe, spool):
    failed = exe.submit(lambda: 1 // 0)
    failed.exception(PATIENCE)
    with pytest.raises(ZeroDivisionError):
        fsbroker.attach(spool, failed.key).result(PATIENCE)


@pytest.mark.parametrize("key", ["", "xyz", "00", b"1", None, 20])
def test_attach_refuses_what_is_no_key(spool, key):
    with pytest.raises(ResourceError, match="40 hex digits"):
        fsbroker.attach(spool, key)


def test_attach_without_a_spool(tmp_path):
    with pytest.raises(fsbroker.errors.SpoolMissing, match="No spool here"):
        fsbroker.attach(tmp_path, bytes(20))


def test_futures_by_tag(spool, counted):
    function = counted.function()
    with ClusterExecutor(spool, max_workers=2, tag="set one", idle_timeout=3) as executor:
        keys = {executor.submit(function, n).key for n in range(5)}
    with ClusterExecutor(spool, backend="none", tag="set one") as again:
        futures = again.futures()
        assert {future.key for future in futures} == keys
        assert sorted(future.result(PATIENCE)[0] for future in futures) == [0, 1, 2, 3, 4]
        assert again.futures("no such tag") == []
    with ClusterExecutor(spool, backend="none") as other:
        assert {future.key for future in other.futures(tag="set one")} == keys
    assert counted.runs == 5


# -- errors ------------------------------------------------------------------------------


def test_the_original_exception_with_where_it_happened(exe):
    class OwnError(ValueError):
        def __init__(self, code):
            super().__init__(f"code {code}")
            self.code = code

    def fail():
        import sys

        print("last words", file=sys.stderr)
        raise OwnError(17)

    error = exe.submit(fail).exception(PATIENCE)
    assert type(error).__name__ == "OwnError"
    assert error.code == 17
    assert isinstance(error.__cause__, RemoteTraceback)
    text = str(error.__cause__)
    assert "in fail" in text
    assert "raise OwnError(17)" in text or "OwnError: code 17" in text
    assert f"on host {os.uname().nodename}, agent " in text
    assert "last words" in text
    (path,) = [line.split("output in ")[1] for line in text.splitlines() if "output in" in line]
    assert (Path(path) / "0.err").read_text() == "last words\n"


def test_exceptions_that_cannot_travel(exe):
    class Unpicklable(Exception):
        def __init__(self):
            super().__init__("held fast")
            self.lock = threading.Lock()

    class Unloadable(Exception):
        def __init__(self, one, two):
            super().__init__("lost on the way")

    for kind, make in (("Unpicklable", Unpicklable), ("Unloadable", lambda: Unloadable(1, 2))):

        def fail(make=make):
            raise make()

        error = exe.submit(fail, resource_dict={"cache": "off"}).exception(PATIENCE)
        assert type(error) is TaskError
        assert kind in str(error)
        assert "held fast" in str(error) or "lost on the way" in str(error)
        assert "Traceback" in str(error.__cause__)


def test_exceptions_that_would_end_the_client(exe):
    def leave(kind):
        raise kind

    for kind in (SystemExit, KeyboardInterrupt):
        assert type(exe.submit(leave, kind).exception(PATIENCE)) is TaskError


def test_unpicklable_results_and_arguments(exe):
    error = exe.submit(lambda: (n for n in range(3))).exception(PATIENCE)
    assert isinstance(error, fsbroker.errors.ResultNotPicklable)
    with pytest.raises(CannotPickle):
        exe.submit(square, (n for n in range(3)))


def test_failed_dependencies_chain_to_the_original(exe):
    def fail():
        raise OverflowError("the beginning")

    first = exe.submit(fail)
    second = exe.submit(square, first)
    third = exe.submit(square, [second])
    error, depth = third.exception(PATIENCE), 0
    while isinstance(error, DependencyFailed):
        error, depth = error.__cause__, depth + 1
    assert isinstance(error, OverflowError)
    assert isinstance(error.__cause__, RemoteTraceback)
    assert depth == 2


def test_the_original_is_known_when_the_task_file_has_ended(tmp_path):
    spool = tmp_path / "spool"
    with ClusterExecutor(spool, max_workers=1, idle_timeout=0.5) as exe:
        last = exe.submit(square, exe.submit(lambda: 1 // 0))
        assert isinstance(last.exception(PATIENCE), DependencyFailed)
    live = spool / "users" / f"u{os.getuid()}" / "tasks"
    until(lambda: not list(live.iterdir()), "the end of the task file")
    error = fsbroker.attach(spool, last.key).exception(PATIENCE)
    assert isinstance(error, DependencyFailed)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_failed_dependency_that_ended_before(exe):
    def fail():
        raise OverflowError("long ago")

    first = exe.submit(fail)
    assert first.exception(PATIENCE)
    error = exe.submit(lambda x: x, first).exception(PATIENCE)
    assert isinstance(error, DependencyFailed)
    assert isinstance(error.__cause__, OverflowError)


def test_long_chain_of_failures_is_bounded(exe):
    future = exe.submit(lambda: 1 // 0, resource_dict={"cache": "off"})
    for _ in range(25):
        future = exe.submit(lambda x: x, future)
    error, depth = future.exception(PATIENCE), 0
    while error is not None and not isinstance(error, RemoteTraceback):
        error, depth = error.__cause__, depth + 1
    assert 2 <= depth <= 20


# -- several clients ---------------------------------------------------------------------


def test_three_executors_in_one_process(spool, counted):
    function = counted.function()
    executors = [ClusterExecutor(spool, max_workers=2, idle_timeout=3) for _ in range(3)]
    futures = [one.submit(function, n) for n in range(20) for one in executors]
    values = [future.result(PATIENCE)[0] for future in futures]
    for one in executors:
        one.shutdown()
    assert values == [n for n in range(20) for _ in executors]
    assert counted.runs == 20


def test_one_resource_dict_for_two_executors(tmp_path):
    wishes = {"cores": 1, "priority": 7000, "run_time_max": 60}
    before = dict(wishes)
    for name in "ab":
        with ClusterExecutor(
            tmp_path / name, max_workers=1, resource_dict=wishes, idle_timeout=1
        ) as executor:
            assert executor.submit(square, 2, resource_dict=wishes).result(PATIENCE) == 4
    assert wishes == before
