"""Wishes are checked before anything is submitted."""

from __future__ import annotations

import os

import pytest

from fsbroker import ClusterExecutor
from fsbroker.errors import ResourceError
from fsbroker.launch import local
from fsbroker.launch.local import available_cores, physical_memory, visible_gpus
from fsbroker.needs import (
    VALID_KEYS,
    Capacity,
    Resources,
    Shape,
    merged,
    parse_shape,
)

CORES = 2


@pytest.fixture(scope="module")
def exe(tmp_path_factory):
    spool = tmp_path_factory.mktemp("resources")
    with ClusterExecutor(spool, max_workers=CORES, idle_timeout=1) as executor:
        yield executor


def nothing_was_submitted(executor) -> bool:
    executor._loop.flush(10)
    return not list(executor.futures("")) and executor._loop._waiting.is_empty()


@pytest.mark.parametrize("unknown", ["core", "gpu", "walltime", "Cores", "", 1, None])
def test_unknown_keys_are_refused_with_the_valid_ones(exe, unknown):
    with pytest.raises(ResourceError) as caught:
        exe.submit(pow, 2, 3, resource_dict={unknown: 1})
    for key in VALID_KEYS:
        assert key in str(caught.value)
    assert repr(unknown) in str(caught.value)


def test_a_near_miss_is_named(exe):
    with pytest.raises(ResourceError, match="Did you mean 'threads_per_core'"):
        exe.submit(pow, 2, 3, resource_dict={"thread_per_core": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cores", "2"),
        ("cores", 2.0),
        ("cores", True),
        ("cores", 0),
        ("cores", -1),
        ("cores", None),
        ("threads_per_core", [1]),
        ("gpus_per_core", -1),
        ("num_nodes", 0),
        ("exclusive", 1),
        ("exclusive", "yes"),
        ("run_time_max", 0),
        ("run_time_max", "1h"),
        ("run_time_max", float("nan")),
        ("run_time_max", float("inf")),
        ("memory_max", -1),
        ("priority", 10000),
        ("retries", 256),
        ("cwd", ""),
        ("cwd", 1),
        ("cwd", "a\0b"),
        ("cache_key", b"x"),
        ("cache", "never"),
        ("cache", []),
        ("error_log_file", 3),
    ],
)
def test_wrong_values_are_refused(exe, key, value):
    with pytest.raises(ResourceError, match=f"Resource {key!r} must be") as caught:
        exe.submit(pow, 2, 3, resource_dict={key: value})
    assert repr(value) in str(caught.value)
    with pytest.raises(ResourceError, match=repr(key)):
        merged(Resources(), {key: value})


def test_a_name_for_what_is_not_kept(exe):
    with pytest.raises(ResourceError, match="refresh"):
        exe.submit(pow, 2, 3, resource_dict={"cache": "off", "cache_key": "name"})


@pytest.mark.parametrize("wrong", [[("cores", 1)], "cores", 3])
def test_only_dictionaries(exe, wrong):
    with pytest.raises(ResourceError, match="not a dictionary"):
        exe.submit(pow, 2, 3, resource_dict=wrong)


@pytest.mark.parametrize(
    ("wishes", "limit"),
    [
        ({"cores": CORES + 1}, f"max_workers={CORES}"),
        ({"threads_per_core": CORES + 1}, f"max_workers={CORES}"),
        ({"cores": 2, "threads_per_core": CORES}, f"max_workers={CORES}"),
        ({"gpus_per_core": 200}, "GPUs"),
        ({"num_nodes": 2, "cores": 2}, "this machine"),
        ({"memory_max": 1e9}, "this host's memory"),
    ],
)
def test_what_is_impossible_here_is_refused_with_the_limit(exe, tmp_path, wishes, limit):
    with pytest.raises(ResourceError, match="there are") as caught:
        exe.submit(pow, 2, 3, resource_dict=wishes)
    assert limit in str(caught.value)
    assert nothing_was_submitted(exe)
    with pytest.raises(ResourceError, match="there are"):
        ClusterExecutor(tmp_path / "s", max_workers=CORES, resource_dict=wishes)
    # Somebody else's agents may have it.
    ClusterExecutor(tmp_path / "s", backend="none", resource_dict=wishes).shutdown()


def test_what_is_possible_runs(exe):
    wishes = {
        "threads_per_core": CORES,
        "memory_max": 0.5,
        "num_nodes": 1,
        "exclusive": True,
        "run_time_max": 60,
        "priority": 9999,
        "retries": 0,
    }
    future = exe.submit(os.getenv, "OMP_NUM_THREADS", resource_dict=wishes)
    assert future.result(30) == str(CORES)


def test_the_call_wins_over_the_executor(tmp_path):
    with ClusterExecutor(
        tmp_path / "s", max_workers=2, resource_dict={"cwd": "/"}, idle_timeout=1
    ) as executor:
        here = executor.submit(os.getcwd)
        there = executor.submit(os.getcwd, resource_dict={"cwd": str(tmp_path), "cache": "off"})
        assert (here.result(30), there.result(30)) == ("/", str(tmp_path))


def test_more_nodes_than_ranks_are_refused(tmp_path):
    with ClusterExecutor(tmp_path / "s", backend="none") as executor:
        for alone in ({"cores": 2}, {"threads_per_core": 2}):
            with pytest.raises(ResourceError, match="num_nodes=3 with cores="):
                executor.submit(pow, 2, 3, resource_dict={"num_nodes": 3, **alone})
        wishes = {"num_nodes": 2, "threads_per_core": 2, "gpus_per_core": 1}
        with pytest.raises(ResourceError, match="num_nodes=2 with gpus_per_core=1"):
            executor.submit(pow, 2, 3, resource_dict=wishes)
        assert nothing_was_submitted(executor)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_workers": 0},
        {"max_workers": "2"},
        {"max_workers": True},
        {"agents": 0},
        {"backend": "cluster"},
        {"watch": "never"},
        {"idle_timeout": 0},
        {"idle_timeout": "1"},
        {"tag": 5},
        {"resource_dict": {"cores": 0}},
    ],
)
def test_wrong_arguments_of_the_executor(tmp_path, wrong):
    with pytest.raises(ResourceError):
        ClusterExecutor(tmp_path / "s", **wrong)
    assert not (tmp_path / "s").exists()


def test_defaults():
    assert merged(Resources(), None) == merged(Resources(), {}) == Resources()
    base = merged(Resources(), {"cores": 3, "memory_max": 1.5})
    assert merged(base, {"memory_max": None}) == Resources(cores=3)


def test_shapes_survive_file_names():
    shape = merged(
        Resources(), {"cores": 3, "memory_max": 1.5, "exclusive": True, "gpus_per_core": 2}
    ).shape
    assert shape == Shape(3, 1, 2, 1536, 0, 1)
    assert parse_shape(str(shape)) == shape
    assert parse_shape("c1t1") is None


def test_gpus_that_are_visible(monkeypatch):
    for value, ids in (
        ("0,2", ("0", "2")),
        ("", ()),
        ("-1", ()),
        ("GPU-a, MIG-b", ("GPU-a", "MIG-b")),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        visible_gpus.cache_clear()
        assert visible_gpus() == ids
    visible_gpus.cache_clear()


def test_gpus_that_are_there_can_be_asked_for():
    capacity = Capacity(4, "max_workers=4", 2, 1024)
    capacity.require(merged(Resources(), {"gpus_per_core": 1, "cores": 2}))
    with pytest.raises(ResourceError, match="4 GPUs, and there are 2"):
        capacity.require(merged(Resources(), {"gpus_per_core": 2, "cores": 2}))


def test_the_machine_is_known():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    assert physical_memory() > 100


def test_tasks_of_others_that_do_not_fit_start_no_agent(tmp_path):
    """What another session submitted for a larger machine waits for that machine."""
    other = ClusterExecutor(tmp_path / "s", backend="none", resource_dict={"cores": 4000})
    key = other.submit(pow, 2, 3).key
    other._loop.flush(10)
    with ClusterExecutor(tmp_path / "s", max_workers=1) as executor:
        (future,) = executor._loop.futures_of([key])
        executor._loop.flush(10)
        launcher = executor._loop._agents
        assert isinstance(launcher, local.LocalLauncher)
        assert not launcher._started
        assert future.cancel()
    other.shutdown(cancel_futures=True)
