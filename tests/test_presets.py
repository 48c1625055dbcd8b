"""`init_function` and the number of the worker: what fills parameters that calls leave out."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path

import cloudpickle
import pytest

from fsbroker import ClusterExecutor, SingleNodeExecutor, errors
from fsbroker.agent.functions import filling
from fsbroker.client.again import Again
from fsbroker.client.history import History
from fsbroker.spool.census import Census
from fsbroker.spool.spool import open_spool

cloudpickle.register_pickle_by_value(sys.modules[__name__])

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSBROKER_IDLE_TIMEOUT", "2")
    return tmp_path


def noting(path, values):
    """An init_function that notes who calls it."""

    def init():
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return values

    return init


def use(i, j, k=0):
    return os.getpid(), (i, j, k)


def calls(path) -> list[int]:
    return [int(line) for line in Path(path).read_text().split()]


# -- what is filled ----------------------------------------------------------------------


def star(*args, **kwargs):
    return args, kwargs


def keyword_only(i, *, k=0):
    return i, k


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "found"),
    [
        (lambda i, j, k: (i, j, k), (1,), {}, (1, "j", "k")),
        (lambda i, j, k: (i, j, k), (1, 2), {}, (1, 2, "k")),
        (lambda i, j, k: (i, j, k), (1,), {"k": 3}, (1, "j", 3)),
        (lambda i, j=5: (i, j), (1,), {}, (1, "j")),  # before a default
        (lambda i, j=5: (i, j), (1, None), {}, (1, None)),
        (keyword_only, (1,), {}, (1, "k")),
        (keyword_only, (1,), {"k": 2}, (1, 2)),
        (star, (1,), {"a": 2}, ((1,), {"a": 2})),  # no parameter of that name
        (sum, ([1, 2],), {}, 3),
        (max, (1, 2), {}, 2),  # tells nothing of its parameters
        (int, ("7",), {}, 7),
    ],
)
def test_parameters_that_are_filled(function, args, kwargs, found):
    memory = {"j": "j", "k": "k", "unused": 0}
    assert filling(function, memory)(*args, **kwargs) == found


def test_a_function_without_such_parameters_is_called_directly():
    assert filling(star, {"j": 1}) is star


# -- where and when it runs --------------------------------------------------------------


def test_it_runs_once_in_each_worker(tmp_path):
    init = noting(tmp_path / "calls", {"j": 4, "k": 3})
    with SingleNodeExecutor(max_workers=2, init_function=init) as exe:
        found = [one.result() for one in [exe.submit(use, i) for i in range(200)]]
    assert [values for _, values in found] == [(i, 4, 3) for i in range(200)]
    workers = {pid for pid, _ in found}
    assert Counter(calls(tmp_path / "calls")) == dict.fromkeys(workers, 1)


def on_a_rank(i, j):
    from mpi4py import MPI

    return os.getpid(), MPI.COMM_WORLD.Get_rank(), i + j


@pytest.mark.mpich
def test_it_runs_once_on_each_rank(tmp_path):
    init = noting(tmp_path / "calls", {"j": 10})
    options = {"resource_dict": {"cores": 2}, "max_workers": 1, "block_allocation": True}
    with SingleNodeExecutor(init_function=init, **options) as exe:
        found = [exe.submit(on_a_rank, i).result() for i in range(3)]
    assert [[one[1:] for one in ranks] for ranks in found] == [
        [(0, 10 + i), (1, 10 + i)] for i in range(3)
    ]
    pids = {one[0] for ranks in found for one in ranks}
    assert Counter(calls(tmp_path / "calls")) == dict.fromkeys(pids, 1)
    assert len(pids) == 2


def fail_on(rank, i):
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == rank:
        raise ValueError(i)
    return i


@pytest.mark.mpich
def test_a_block_on_two_ranks_after_an_exception():
    """Each later task has its own values, of both ranks."""
    options = {"resource_dict": {"cores": 2}, "max_workers": 1, "block_allocation": True}
    with SingleNodeExecutor(**options) as exe:
        for rank in (0, 1):
            assert exe.submit(fail_on, None, 1).result() == [1, 1]
            assert isinstance(exe.submit(fail_on, rank, 2).exception(PATIENCE), ValueError)
            assert [exe.submit(fail_on, None, i).result() for i in (3, 4)] == [[3, 3], [4, 4]]


def test_two_presets_share_a_spool(tmp_path):
    """Workers of the one never run what the other was given with."""
    with (
        ClusterExecutor("spool", max_workers=1, init_function=lambda: {"j": 1}) as one,
        ClusterExecutor("spool", max_workers=1, init_function=lambda: {"j": 2}) as two,
        ClusterExecutor("spool", max_workers=1) as bare,
    ):
        futures = [exe.submit(use, i) for i in range(3) for exe in (one, two)]
        missing = bare.submit(use, 0).exception(PATIENCE)
        assert [one.result()[1][1] for one in futures] == [1, 2] * 3
    assert isinstance(missing, TypeError)
    assert "missing 1 required positional argument: 'j'" in str(missing)


# -- what it is part of ------------------------------------------------------------------


def test_a_changed_preset_is_another_call():
    """executorlib's cache gives the values of the old one."""

    def make(value):
        return lambda: {"j": value}

    found = {}
    for value in (1, 2, 1):
        with ClusterExecutor("spool", max_workers=1, init_function=make(value)) as exe:
            future = exe.submit(use, 0)
            found.setdefault(value, []).append((future.key, future.result()))
    assert found[1][0] == found[1][1]  # the stored one, of the same process
    assert found[1][0][0] != found[2][0][0]
    assert [values[0][1][1] for values in found.values()] == [(0, 1, 0), (0, 2, 0)]


def test_a_default_left_out_is_not_the_default_given():
    """A preset may fill it; without one it is the same call."""
    with ClusterExecutor("spool", max_workers=1, init_function=lambda: {"k": 7}) as exe:
        left, given = exe.submit(use, 1, 2), exe.submit(use, 1, 2, k=0)
        assert left.key != given.key
        assert (left.result()[1], given.result()[1]) == ((1, 2, 7), (1, 2, 0))
        assert exe.submit(use, 1, j=2).key == left.key
    with ClusterExecutor("spool", backend="none") as exe:
        assert exe.submit(use, 1, 2).key == exe.submit(use, i=1, j=2, k=0).key
        exe.shutdown(wait=False, cancel_futures=True)


# -- when it goes wrong ------------------------------------------------------------------


def test_a_preset_that_fails_is_tried_again_for_the_next_task(tmp_path):
    there = tmp_path / "there"

    def init():
        return {"j": there.read_text()}

    with SingleNodeExecutor(max_workers=1, init_function=init) as exe:
        error = exe.submit(use, 1).exception(PATIENCE)
        assert isinstance(error, FileNotFoundError)
        assert "in init" in str(error.__cause__)
        there.write_text("now")
        assert exe.submit(use, 1).result()[1] == (1, "now", 0)


def test_a_preset_that_returns_no_dict():
    with SingleNodeExecutor(init_function=lambda: None) as exe:
        error = exe.submit(use, 1).exception(PATIENCE)
    assert isinstance(error, errors.TaskError)
    assert "must return a dict: " in str(error)
    assert "returned NoneType" in str(error)


def test_a_preset_that_kills_its_worker():
    with SingleNodeExecutor(init_function=lambda: os.kill(os.getpid(), 9)) as exe:
        errors_of = [exe.submit(use, i).exception(PATIENCE) for i in range(2)]
    assert [type(error) for error in errors_of] == [errors.WorkerLost] * 2


def test_its_time_is_not_the_tasks():
    def init():
        time.sleep(3)
        return {"j": 1}

    with SingleNodeExecutor(max_workers=1, init_function=init) as exe:
        wishes = {"run_time_max": 1.0}
        assert exe.submit(use, 1, resource_dict=wishes).result()[1] == (1, 1, 0)
        slow = exe.submit(lambda j: time.sleep(60 + j), resource_dict=wishes)
        assert isinstance(slow.exception(PATIENCE), errors.TimeLimitExceeded)


def test_a_retry_has_the_preset_too(tmp_path):
    """By somebody who has nothing but the spool."""
    there = tmp_path / "there"

    def read(j):
        return there.read_text() + j

    with ClusterExecutor("spool", max_workers=1, init_function=lambda: {"j": "!"}) as exe:
        future = exe.submit(read)
        assert isinstance(future.exception(PATIENCE), FileNotFoundError)
        there.write_text("read")
        spool = open_spool("spool")
        history = History(spool)
        again = Again(spool, history)
        assert again.publish(again.with_others([history.find(future.key)]))
        assert exe.futures()[0].result(PATIENCE) == "read!"
    census = Census(spool.files, spool.area)
    presets = [entry.tasks.preset for entry in census.task_files()]
    assert len(presets) == 2
    assert presets[0] == presets[1] == exe._submitter._preset


# -- the number of the worker --------------------------------------------------------------


def number(executorlib_worker_id):
    time.sleep(0.2)
    return executorlib_worker_id, os.getpid()


def test_each_worker_has_a_number():
    with SingleNodeExecutor(max_workers=3, block_allocation=True) as exe:
        found = [one.result() for one in [exe.submit(number) for _ in range(12)]]
        own = exe.submit(number, executorlib_worker_id=77).result()[0]
    assert {each for each, _ in found} == {0, 1, 2}
    assert len(set(found)) == 3  # and keeps it
    assert own == 77


def test_a_preset_has_the_number_too():
    def init(executorlib_worker_id):
        return {"device": f"gpu{executorlib_worker_id}"}

    def device_of(device, executorlib_worker_id):
        time.sleep(0.2)
        return device, executorlib_worker_id

    with SingleNodeExecutor(max_workers=2, init_function=init) as exe:
        found = {one.result() for one in [exe.submit(device_of) for _ in range(6)]}
    assert found == {("gpu0", 0), ("gpu1", 1)}


def test_agents_side_by_side_have_different_numbers():
    with ClusterExecutor("spool", max_workers=1, agents=2, tag="numbers") as exe:
        wishes = {"cache": "off"}
        found = [
            one.result() for one in [exe.submit(number, resource_dict=wishes) for _ in range(12)]
        ]
    workers = set(found)
    assert len({pid for _, pid in workers}) == len({each for each, _ in workers}) == 2
