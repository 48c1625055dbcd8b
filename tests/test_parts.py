"""Futures of parts of values, of batches, and futures wherever they stand in arguments."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from concurrent.futures import Future as AnyFuture
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fsbroker
from fsbroker import ClusterExecutor, get_item_from_future, split_future
from fsbroker.errors import DependencyFailed

PATIENCE = 30.0
"""Seconds after which a test takes something for hanging."""


@pytest.fixture(scope="module")
def spool(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="module")
def exe(spool):
    with ClusterExecutor(spool, max_workers=2, idle_timeout=3) as executor:
        yield executor


def add(a, b):
    return a + b


def same(x):
    return x


def fail(message="no"):
    raise ValueError(message)


# -- parts -------------------------------------------------------------------------------


def test_items_of_tuples_lists_and_dicts(exe):
    pair = split_future(exe.submit(same, (3, [4, 5])), 2)
    assert pair[0].result(PATIENCE) == 3
    assert split_future(pair[1], 2)[1].result(PATIENCE) == 5
    named = exe.submit(same, {"energy": -1.5, "forces": {"x": 1}})
    assert get_item_from_future(named, "energy").result(PATIENCE) == -1.5
    assert get_item_from_future(get_item_from_future(named, "forces"), "x").result(PATIENCE) == 1
    assert get_item_from_future(exe.submit(same, {(1, 2): "t"}), (1, 2)).result(PATIENCE) == "t"


def test_parts_are_dependencies_not_values(idle):
    """Nobody waits for the whole here: agents take the item out."""
    first, second = split_future(idle.submit(same, (1, {"x": 2})), 2)
    total = idle.submit(add, first, get_item_from_future(second, "x"))
    assert total.key is not None
    assert total.key != idle.submit(add, first, second).key
    again = split_future(idle.submit(same, (1, {"x": 2})), 2)
    assert idle.submit(add, again[0], get_item_from_future(again[1], "x")).key == total.key


def test_parts_as_arguments(exe):
    first, second = split_future(exe.submit(same, (1, {"x": 2})), 2)
    assert exe.submit(add, first, get_item_from_future(second, "x")).result(PATIENCE) == 3
    odd = get_item_from_future(exe.submit(same, {(1, 2): 7}), (1, 2))
    assert exe.submit(add, odd, 1).result(PATIENCE) == 8
    nested = exe.submit(sum, [first, get_item_from_future(second, "x"), 10])
    assert nested.result(PATIENCE) == 13


def test_parts_of_other_executors_futures(exe):
    with ThreadPoolExecutor(1) as threads:
        left, right = split_future(threads.submit(same, (1, 2)), 2)
        assert exe.submit(add, left, right).result(PATIENCE) == 3


def test_parts_that_are_not_there(exe):
    part = split_future(exe.submit(same, (1,)), 2)[1]
    with pytest.raises(IndexError):
        part.result(PATIENCE)
    assert isinstance(part.exception(), IndexError)
    missing = get_item_from_future(exe.submit(same, {"a": 1}), "b")
    assert isinstance(missing.exception(PATIENCE), KeyError)
    with pytest.raises(DependencyFailed, match=r"no item \['b'\]"):
        exe.submit(same, missing).result(PATIENCE)


def test_parts_of_what_failed(exe):
    parts = split_future(exe.submit(fail), 2)
    for part in parts:
        assert isinstance(part.exception(PATIENCE), ValueError)
    with pytest.raises(DependencyFailed):
        exe.submit(add, *parts).result(PATIENCE)


def test_cancelling_a_part_cancels_the_task(idle):
    whole = idle.submit(same, (1, 2))
    one, other = split_future(whole, 2)
    assert not one.done()
    assert not one.running()
    assert one.cancel()
    assert whole.cancelled()
    assert one.cancelled()
    assert other.cancelled()
    assert wait([one, other], PATIENCE).not_done == set()
    with pytest.raises(CancelledError):
        other.result()


def test_wait_and_as_completed(exe):
    whole = exe.submit(same, (1, 2, 3))
    parts = split_future(whole, 3)
    assert wait([whole, *parts], PATIENCE).not_done == set()
    assert {part.result() for part in as_completed(parts, PATIENCE)} == {1, 2, 3}
    pending = split_future(exe.submit(same, ("a", "b")), 2)
    assert sorted(part.result() for part in as_completed(pending, PATIENCE)) == ["a", "b"]


def test_a_part_is_done_when_the_whole_is(idle):
    """Also before the callback of the whole came to it, which another thread may be about to do."""
    whole: AnyFuture[Any] = AnyFuture()
    seen = []
    whole.add_done_callback(lambda _: seen.append(part.done()))  # before the part's own
    part = get_item_from_future(whole, 0)
    calls = []
    part.add_done_callback(calls.append)
    whole.set_result([5])
    assert (seen, part.result(0), calls) == ([True], 5, [part])


def test_timeout_of_a_part(idle):
    part = split_future(idle.submit(same, (1, 2)), 2)[0]
    with pytest.raises(TimeoutError if hasattr(asyncio, "TaskGroup") else Exception):
        part.result(0.01)
    assert not part.done()


def test_parts_in_a_forked_child(idle):
    part = split_future(idle.submit(same, (1, 2)), 2)[0]
    pid = os.fork()
    if not pid:
        try:
            part.result(PATIENCE)
        except RuntimeError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


# -- where futures may stand ---------------------------------------------------------------


@dataclass
class Mixed:
    energy: Any
    rest: dict[str, Any]


@dataclass(frozen=True)
class Point:
    x: Any


def unpack(obj: Mixed) -> Any:
    return obj.energy + obj.rest["more"][0] + obj.rest["point"].x


BUILDERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda f: [f, [f]],
    "tuple": lambda f: (f, (f, 1)),
    "dict": lambda f: {"a": f, "b": {"c": (f,)}},
    "dict with other keys": lambda f: {1: f},
    "set": lambda f: {f},
    "frozenset": lambda f: frozenset([f, 1]),
    "dataclass": lambda f: Mixed(f, {"more": [f]}),
    "frozen dataclass": Point,
    "parts": lambda f: split_future(f, 2),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_futures_anywhere(exe, build: Callable[[Any], Any]):
    future = exe.submit(same, (10, 20))
    assert exe.submit(same, build(future)).result(PATIENCE) == build_of(build)
    again = exe.submit(same, (10, 20))
    assert exe.submit(same, build(again)).key == exe.submit(same, build(future)).key


def build_of(build: Callable[[Any], Any]) -> Any:
    return [10, 20] if build is BUILDERS["parts"] else build((10, 20))


def test_dataclass_of_futures_and_parts(exe):
    first, second = split_future(exe.submit(same, (1, 2)), 2)
    mixed = Mixed(first, {"more": [second], "point": Point(exe.submit(add, first, second))})
    assert exe.submit(unpack, mixed).result(PATIENCE) == 6


# -- batches -------------------------------------------------------------------------------


class Gate:
    """Holds a task until it is opened."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "open"

    def function(self) -> Callable[[], str]:
        path = str(self._path)

        def slow() -> str:
            while not os.path.exists(path):
                time.sleep(0.005)
            return "slow"

        return slow

    def open(self) -> None:
        self._path.touch()


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path)
    yield gate
    gate.open()


def test_batches_hold_what_ends_first(exe, gate):
    """The slow one was submitted first; both batches before it are there while it runs."""
    slow = exe.submit(gate.function())
    fast = [exe.submit(same, number) for number in range(4)]
    batches = exe.batched([slow, *fast], 2)
    assert len(batches) == 3
    early = [batch.result(PATIENCE) for batch in batches[:2]]
    assert sorted(early[0] + early[1]) == [0, 1, 2, 3]
    assert not batches[2].done()
    gate.open()
    assert batches[2].result(PATIENCE) == ["slow"]


def test_a_call_with_a_batch_starts_when_it_is_full(exe, gate):
    slow = exe.submit(gate.function())
    fast = [exe.submit(same, number) for number in (1, 2)]
    first, last = (exe.submit(same, batch) for batch in exe.batched([slow, *fast], n=2))
    assert first.result(PATIENCE) == [1, 2]
    assert not last.done()
    gate.open()
    assert last.result(PATIENCE) == ["slow"]
    # It is the call with these futures, under the same key.
    assert first.key == exe.submit(same, fast).key
    assert last.key == exe.submit(same, [slow]).key


def test_quick_tasks_do_not_queue_behind_a_long_one(exe, gate):
    """A worker whose task may take long gets none of them in reserve."""
    assert exe.submit(same, 0).result(PATIENCE) == 0
    slow = exe.submit(gate.function())
    quick = [exe.submit(same, number) for number in range(40)]
    assert [future.result(PATIENCE) for future in quick] == list(range(40))
    assert not slow.done()


def test_what_fails_comes_last(exe):
    futures = [exe.submit(fail, "batch"), *(exe.submit(same, n) for n in range(4))]
    batches = exe.batched(futures, 3)
    assert len(batches[0].result(PATIENCE)) == 3
    assert str(batches[1].exception(PATIENCE)) == "batch"
    with pytest.raises(ValueError, match="batch"):
        exe.submit(sum, batches[1]).result(PATIENCE)
    assert exe.submit(sum, exe.batched(futures[1:], 4)[0]).result(PATIENCE) == 6


def test_batches_of_what_was_cancelled(idle):
    futures = [idle.submit(same, number) for number in range(3)]
    batches = idle.batched(futures, 2)
    for future in futures:
        assert future.cancel()
    for batch in batches:
        with pytest.raises(CancelledError):
            batch.result(PATIENCE)


def test_batches_of_nothing_and_of_no_size(idle):
    assert idle.batched([], 3) == []
    with pytest.raises(ValueError, match="at least 1"):
        idle.batched([idle.submit(same, 1)], 0)


def test_cancelling_a_batch_lets_its_futures_go_on(idle):
    future = idle.submit(same, 1)
    (batch,) = idle.batched([future], 1)
    assert batch.cancel()
    assert batch.cancelled()
    assert not future.done()


def test_batches_of_other_futures_parts_and_batches(exe):
    with ThreadPoolExecutor(1) as threads:
        futures = [threads.submit(same, 1), *split_future(exe.submit(same, (2, 3)), 2)]
        batches = exe.batched(futures, 3)
        assert sum(exe.submit(same, batches[0]).result(PATIENCE)) == 6
        assert exe.submit(same, exe.batched(batches, 1)[0]).result(PATIENCE) == [[1, 2, 3]]
        assert split_future(batches[0], 3)[0].result(PATIENCE) == 1


# -- coroutines ----------------------------------------------------------------------------


def test_futures_can_be_awaited(exe):
    async def main() -> Any:
        whole = exe.submit(same, (1, 2))
        first, second = split_future(whole, 2)
        (batch,) = exe.batched([whole], 1)
        with pytest.raises(ValueError, match="no"):
            await exe.submit(fail)
        return await whole, await asyncio.gather(first, second), await batch

    assert asyncio.run(main()) == ((1, 2), [1, 2], [(1, 2)])


def test_a_coroutine_that_is_cancelled_cancels_its_task(idle):
    future = idle.submit(same, 1)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(future, 0.01)

    asyncio.run(main())
    assert future.cancelled()


def test_names_stand_in_the_package():
    assert fsbroker.split_future is split_future
    assert fsbroker.get_item_from_future is get_item_from_future
