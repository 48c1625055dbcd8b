"""executorlib's executors on one machine: the talk's listings, parameters, and how they end."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import cloudpickle
import psutil
import pytest

import fsbroker
from fsbroker import api, errors
from fsbroker.executorlib import BaseExecutor, Options
from fsbroker.launch.local import visible_gpus
from tests.testbed import listings

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(listings)

FACES = [getattr(fsbroker, f"{name}Executor") for name in ("SingleNode", "SlurmJob", "FluxJob",
         "SlurmCluster", "FluxCluster")]  # fmt: skip
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Where cluster executors put their directory, and all that is temporary."""
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("FSBROKER_IDLE_TIMEOUT", "1")
    visible_gpus.cache_clear()
    return tmp_path


def private_spools(home) -> list[Path]:
    return [one.parent for one in home.glob("tmp/*/spool.yaml")]


def nap(seconds):
    time.sleep(seconds)
    return seconds


def until(condition, limit=PATIENCE):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def agent_of(executor) -> psutil.Process:
    (started,) = executor._back.agents._started
    return psutil.Process(started.process.pid)


# -- listings ----------------------------------------------------------------------------


@pytest.fixture(
    params=[
        fsbroker.SingleNodeExecutor,
        pytest.param(api.TestClusterExecutor, marks=pytest.mark.long),
    ]
)
def face(request):
    return request.param


def test_the_test_executor_keeps_its_directory(home):
    assert listings.sums(api.TestClusterExecutor) == [2, 4, 6, 8]
    assert (home / "executorlib_cache/spool.yaml").exists()


@pytest.mark.parametrize("name", listings.EXPECTED)
def test_a_listing_of_the_talk(face, name):
    assert listings.LISTINGS[name](face) == listings.EXPECTED[name]


@pytest.mark.mpich
def test_the_talks_mpi(face, home):
    found = listings.mpi(face)
    assert [one[:3] for one in found] == [(3, 2, 0), (3, 2, 1)]
    assert {one[3:] for one in found} == {(str(home / "a/b/c"), "1")}


@pytest.mark.mpich
def test_the_talks_gpus(face, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")  # pretended
    assert listings.gpus(face) == [(0, "3,5"), (1, "3,5")]


# -- parameters --------------------------------------------------------------------------

NAMES = list(inspect.signature(Options).parameters)
TAKEN = {
    "SingleNodeExecutor": 16,
    "SlurmClusterExecutor": 17,
    "SlurmJobExecutor": 17,
    "FluxClusterExecutor": 17,
    "FluxJobExecutor": 20,
}
"""How many parameters executorlib 1.11.0 has."""


@pytest.mark.parametrize("face", FACES)
def test_parameters_are_executorlibs_in_its_order(face):
    *own, more = inspect.signature(face).parameters.values()
    assert [one.name for one in own][:4] == NAMES[:4]
    assert [one.name for one in own] == [name for name in NAMES if name not in face._lacks]
    assert (len(own), more.kind) == (TAKEN[face.__name__], inspect.Parameter.VAR_KEYWORD)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_workers": 0}, "max_workers must be an integer of at least 1: 0"),
        ({"max_workers": "2"}, "max_workers must be an integer"),
        ({"max_cores": True}, "max_cores must be an integer"),
        ({"restart_limit": -1}, "restart_limit must be an integer of at least 0"),
        ({"pmi_mode": "pmix"}, "SlurmJobExecutor, .* have it. Here MPI ranks are started by mpi"),
        ({"pysqa_config_directory": "x"}, "SlurmClusterExecutor, FluxClusterExecutor have it"),
        ({"flux_executor": 1}, "FluxJobExecutor have it"),
        ({"flux_log_files": True}, "FluxJobExecutor have it"),
        ({"flux_executor_nesting": True}, "a task opens executors on its own cores as it is"),
        ({"refresh_rate": 0}, "refresh_rate must be a number of seconds"),
        ({"maxworkers": 2}, "Unknown setting 'maxworkers'.* Did you mean 'max_workers'"),
        ({"resource_dict": {"cores": "2"}}, "'cores' must be an integer from 1"),
        ({"resource_dict": {"core": 2}}, "Did you mean 'cores'. Valid: cores, threads_per_core"),
        ({"resource_dict": ["cores"]}, "not a dictionary: list"),
        ({"resource_dict": {"cores": 3}, "max_cores": 2}, "wants 3 cores, and there are 2"),
        ({"resource_dict": {"threads_per_core": 3}, "max_cores": 2}, "wants 3 cores, and there"),
        ({"resource_dict": {"num_nodes": 2, "cores": 2}}, "wants 2 nodes, and there are 1"),
        ({"resource_dict": {"gpus_per_core": 1}}, "wants 1 GPUs, and there are 0"),
        ({"resource_dict": {"slurm_cmd_args": ["-x"]}}, 'backend="slurm"'),
        ({"resource_dict": {"submission_template": "x"}}, 'backend="slurm"'),
        ({"resource_dict": {"cache_key": "a"}}, "Without a cache there is nothing to name"),
        (
            {"resource_dict": {"cache_directory": "a"}, "cache_directory": "b"},
            "Two cache directories",
        ),
        ({"disable_dependencies": True, "plot_dependency_graph": True}, "no graph without"),
    ],
)
def test_what_cannot_be_granted_is_refused_with_the_alternative(given, said, monkeypatch, home):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(errors.ResourceError, match=said):
        fsbroker.SingleNodeExecutor(**given)
    assert not private_spools(home)


@pytest.mark.parametrize(
    ("face", "given", "said"),
    [
        (fsbroker.FluxJobExecutor, {"flux_executor": object()}, "FLUX_URI"),
        (fsbroker.FluxJobExecutor, {"flux_log_files": True}, "Give a cache_directory"),
        (fsbroker.SlurmJobExecutor, {"hostname_localhost": True}, "Leave it out"),
        (fsbroker.SlurmClusterExecutor, {"hostname_localhost": True}, "Leave it out"),
        (fsbroker.SlurmClusterExecutor, {"max_cores": 4}, "Use max_workers"),
        (fsbroker.FluxClusterExecutor, {"restart_limit": 1}, '"retries"'),
    ],
)
def test_what_other_executors_refuse(face, given, said):
    with pytest.raises(errors.ResourceError, match=said):
        face(**given)


def test_resources_of_a_call_win_and_nothing_is_changed():
    shared = {"cores": 1, "threads_per_core": 2, "cwd": None, "exclusive": None}
    kept = dict(shared)
    own = {"threads_per_core": 1}
    given = {"max_cores": 2, "resource_dict": shared}
    with fsbroker.SingleNodeExecutor(**given) as one, fsbroker.SingleNodeExecutor(**given) as two:
        threads = [
            exe.submit(os.getenv, "OMP_NUM_THREADS", resource_dict=wishes).result()
            for exe, wishes in ((one, None), (two, own), (two, None))
        ]
    assert threads == ["2", "1", "2"]
    assert (shared, own) == (kept, {"threads_per_core": 1})


GRANTED = [
    {"run_time_max": 20},
    {"priority": 9},
    {"num_nodes": 1},
    {"exclusive": True},
    {"error_log_file": "log"},
    {"openmpi_oversubscribe": True},
]
REFUSED = [{"gpus_per_core": 1}, {"slurm_cmd_args": ["-x"]}, {"cores": "2"}, {"cores": 99}]


def test_resources_of_calls(monkeypatch):
    """None of them hangs: they run, or are refused at once, or end at their limit."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with fsbroker.SingleNodeExecutor() as exe:
        granted = [exe.submit(sum, [1, 1], resource_dict=wishes) for wishes in GRANTED]
        for wishes in REFUSED:
            with pytest.raises(errors.ResourceError):
                exe.submit(sum, [1, 1], resource_dict=wishes)
        limited = exe.submit(time.sleep, 60, resource_dict={"run_time_max": 1})
        assert [one.result(PATIENCE) for one in granted] == [2] * len(GRANTED)
        assert isinstance(limited.exception(PATIENCE), errors.TimeLimitExceeded)


def divide(a, b):
    return a / b


def test_failures_are_logged_with_their_call(home):
    with fsbroker.SingleNodeExecutor(resource_dict={"error_log_file": "failures"}) as exe:
        for call in ((1, 0), (2, 0)):
            assert isinstance(exe.submit(divide, *call).exception(), ZeroDivisionError)
    text = (home / "failures").read_text()
    assert text.count("ZeroDivisionError: division by zero") == 4  # heading and traceback of each
    assert "test_executorlib.divide: ZeroDivisionError" in text
    assert re.findall("arguments: (.*)", text) == ["[1,0]", "[2,0]"]


def test_directory_of_a_call(home):
    with fsbroker.SingleNodeExecutor(resource_dict={"cwd": "here"}) as exe:
        found = exe.submit(os.getcwd), exe.submit(os.getcwd, resource_dict={"cwd": "there/new"})
        assert [one.result() for one in found] == [str(home / "here"), str(home / "there/new")]


def test_cache_directory_of_a_call(home):
    with fsbroker.SingleNodeExecutor() as exe:
        first = exe.submit(listings.calc_add, 1, 2, resource_dict={"cache_directory": "own"})
        again = exe.submit(listings.calc_add, first, 0)
        assert (first.result(), again.result()) == (3, 3)
    with fsbroker.SingleNodeExecutor(resource_dict={"cache_directory": "own"}) as exe:
        future = exe.submit(listings.calc_add, 1, 2)
        assert future.result() == 3
        assert future.stem is None  # it was there
    assert (home / "own/spool.yaml").exists()


def test_disabled_dependencies():
    with fsbroker.SingleNodeExecutor(disable_dependencies=True) as exe:
        future = exe.submit(sum, [1, 1])
        with pytest.raises(errors.ResourceError, match="Leave disable_dependencies out"):
            exe.submit(sum, [future, 1])
        assert future.result() == 2


def test_sizes_are_logged(caplog):
    with fsbroker.SingleNodeExecutor(log_obj_size=True) as exe, caplog.at_level(logging.WARNING):
        exe.submit(bytes.__mul__, b"x" * 3000, 2).result()
    said = [record.getMessage() for record in caplog.records if record.name == "fsbroker"]
    sizes = [int(text.rsplit(None, 2)[1]) for text in said]
    assert len(said) == 2
    assert 3000 < sizes[0] < 6000 < sizes[1]


def test_refresh_rate_bounds_the_time_between_looks():
    exe = fsbroker.SingleNodeExecutor(refresh_rate=0.05, watch="polling")
    assert exe._loop._habits.slowest == 0.05
    with exe:
        assert exe.submit(sum, [1, 1]).result() == 2


@pytest.mark.parametrize("localhost", [True, False])
def test_workers_do_not_connect_to_the_client(localhost):
    """What hostname_localhost is about in executorlib: its port is open to everybody."""
    with fsbroker.SingleNodeExecutor(hostname_localhost=localhost) as exe:
        assert exe.submit(sum, [1, 1]).result() == 2
        agent = agent_of(exe)
        processes = [psutil.Process(), agent, *agent.children(True)]
        assert len(processes) >= 3
        assert not [port for process in processes for port in ports_of(process)]


def ports_of(process):
    with suppress(psutil.NoSuchProcess):  # also one that has just ended, a zombie
        found = process.net_connections("inet")
        return [one for one in found if one.status == psutil.CONN_LISTEN]
    return []


# -- how many at once --------------------------------------------------------------------


class Crowd:
    """Tasks that wait until they are let go; how many have come."""

    def __init__(self, directory):
        self.directory = directory

    def join(self, executor, count, **wishes):
        directory = str(self.directory)

        def come(number):
            Path(directory, f"{number}").touch()
            while not Path(directory, "go").exists():
                time.sleep(0.02)
            Path(directory, f"{number}").unlink()

        return [executor.submit(come, number, resource_dict=wishes or None) for number in count]

    def there(self):
        return len(list(self.directory.glob("[0-9]*")))

    def go(self):
        (self.directory / "go").touch()


@pytest.fixture
def crowd(home):
    directory = home / "crowd"
    directory.mkdir()
    crowd = Crowd(directory)
    yield crowd
    crowd.go()


def settled(crowd):
    """How many tasks run once no more come."""
    until(crowd.there)
    seen = -1
    while seen != crowd.there():
        seen = crowd.there()
        time.sleep(1.0)
    return seen


@pytest.mark.parametrize(
    ("options", "wishes", "most"),
    [
        ({"max_workers": 1}, {}, 1),
        ({"max_cores": 3}, {}, 3),
        ({"max_cores": 4}, {"threads_per_core": 2}, 2),
        ({"max_cores": 4, "max_workers": 3}, {}, 3),
        ({"max_workers": 2, "resource_dict": {"threads_per_core": 2}}, {}, 2),
    ],
)
def test_how_many_tasks_run_at_once(crowd, options, wishes, most):
    with fsbroker.SingleNodeExecutor(**options) as exe:
        futures = crowd.join(exe, range(5), **wishes)
        assert settled(crowd) == most
        crowd.go()
        assert [one.result() for one in futures] == [None] * 5


def test_max_workers_is_changed_while_tasks_run(crowd):
    with fsbroker.SingleNodeExecutor(max_workers=1) as exe:
        futures = crowd.join(exe, range(6))
        assert settled(crowd) == 1
        exe.max_workers = 4
        until(lambda: crowd.there() == 4)
        assert (exe.max_workers, exe._max_workers, exe.info["max_workers"]) == (4, 4, 4)
        exe.max_workers = 2
        crowd.go()
        assert [one.result() for one in futures] == [None] * 6
        (crowd.directory / "go").unlink()
        futures = crowd.join(exe, range(6, 10))
        assert settled(crowd) == 2
        crowd.go()
        with pytest.raises(errors.ResourceError, match="max_workers must be"):
            exe.max_workers = 0


def test_what_an_executor_tells_of_itself(crowd):
    exe = fsbroker.SingleNodeExecutor(max_workers=2, resource_dict={"threads_per_core": 1})
    assert (len(exe), bool(exe), exe.future_queue.qsize()) == (0, True, 0)
    assert exe.future_queue.empty()
    assert not exe.future_queue.full()
    futures = crowd.join(exe, range(3))
    assert (len(exe), exe.future_queue.qsize()) == (3, 3)
    told = {"cores": 1, "threads_per_core": 1, "max_workers": 2, "backend": "local"}
    assert {name: exe.info[name] for name in told} == told
    crowd.go()
    exe.shutdown()
    assert (len(exe), exe.info, exe.future_queue) == (0, None, None)
    assert all(one.done() for one in futures)
    assert isinstance(exe, BaseExecutor)


# -- workers that die --------------------------------------------------------------------


def die_once(path):
    if not os.path.exists(path):
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@pytest.mark.parametrize("block", [True, False])
def test_a_worker_that_dies(home, block):
    with fsbroker.SingleNodeExecutor(block_allocation=block, max_workers=1) as exe:
        with pytest.raises(api.ExecutorlibSocketError, match="SIGKILL"):
            exe.submit(die_once, str(home / "first")).result(PATIENCE)
        assert exe.submit(sum, [1, 1]).result(PATIENCE) == 2
    with fsbroker.SingleNodeExecutor(block_allocation=block, restart_limit=1) as exe:
        assert exe.submit(die_once, str(home / "second")).result(PATIENCE) == "alive"


# -- private spools ----------------------------------------------------------------------


def test_without_a_directory_nothing_is_kept(home):
    with fsbroker.SingleNodeExecutor() as exe:
        first, second = exe.submit(os.times), exe.submit(os.times)
        assert first.key != second.key
        assert first.result() is not None
        (spool,) = private_spools(home)
        assert "durability: none" in (spool / "spool.yaml").read_text()
        agent = agent_of(exe)
    assert not spool.exists()
    assert not agent.is_running()
    assert second.result() is not None


def test_an_executor_that_was_never_used(home):
    exe = fsbroker.SingleNodeExecutor()
    (spool,) = private_spools(home)
    exe.shutdown()
    assert not spool.exists()


def test_shutdown_without_waiting(home):
    exe = fsbroker.SingleNodeExecutor()
    future = exe.submit(nap, 1.0)
    exe.shutdown(wait=False)
    assert not future.done()
    assert future.result(PATIENCE) == 1.0
    until(lambda: not private_spools(home))
    with fsbroker.SingleNodeExecutor(wait=False) as exe:
        future = exe.submit(nap, 0.5)
    assert not future.done()
    assert future.result(PATIENCE) == 0.5


def test_an_executor_that_is_collected(home):
    exe = fsbroker.SingleNodeExecutor()
    future = exe.submit(nap, 0.5)
    del exe
    gc.collect()
    assert future.result(PATIENCE) == 0.5
    until(lambda: not private_spools(home))


def test_cancelled_futures_at_the_end(crowd):
    exe = fsbroker.SingleNodeExecutor(max_workers=1)
    futures = crowd.join(exe, range(3))
    until(crowd.there)
    threading.Timer(0.5, crowd.go).start()
    exe.shutdown(cancel_futures=True)
    assert sorted(one.cancelled() for one in futures) == [False, True, True]


SCRIPT = """
import os, signal, sys, time
from fsbroker import SingleNodeExecutor

def note(path, seconds=0.0):
    time.sleep(seconds)
    open(path, "w").close()

exe = SingleNodeExecutor()
exe.submit(note, "begun").result()
print(exe.info["cache_directory"], exe.submit(os.getpid).result(), exe.submit(os.getppid).result())
sys.stdout.flush()
"""


def run(home, rest) -> tuple[subprocess.CompletedProcess[str], str, list[int]]:
    script = home / "script.py"
    script.write_text(SCRIPT + rest)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                          check=False, timeout=60)  # fmt: skip
    spool, *pids = done.stdout.split()
    return done, spool, [int(pid) for pid in pids]


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ('exe.submit(note, "ended", 1.0)', 0),
        ('exe.submit(note, "ended", 1.0); raise ValueError("uncaught")', 1),
        ('exe.submit(note, "ended", 1.0); sys.exit(3)', 3),
    ],
)
def test_a_script_that_ends_without_shutdown(home, rest, code):
    """What it submitted is done, as with the pools of the standard library; nothing stays."""
    done, spool, pids = run(home, rest)
    assert done.returncode == code
    assert (home / "ended").exists()
    assert not os.path.exists(spool)
    until(lambda: not any(map(psutil.pid_exists, pids)), 10)


def test_a_client_that_is_killed(home):
    """Workers and agents end, and the spool is gone."""
    rest = 'exe.submit(note, "never", 30.0); time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)'
    _, spool, pids = run(home, rest)
    until(lambda: not any(map(psutil.pid_exists, pids)), 10)
    until(lambda: not os.path.exists(spool), 10)
    assert not (home / "never").exists()


def test_a_client_that_is_killed_while_its_child_lives(home):
    """The child has the line to the agent open, but it is not the parent."""
    rest = """
child = os.fork()
if child == 0:
    os.close(1), os.close(2), time.sleep(30), os._exit(0)
open("child", "w").write(str(child))
os.kill(os.getpid(), signal.SIGKILL)
"""
    try:
        _, spool, pids = run(home, rest)
        until(lambda: not any(map(psutil.pid_exists, pids)), 10)
        until(lambda: not os.path.exists(spool), 10)
    finally:
        os.kill(int((home / "child").read_text()), signal.SIGKILL)


def test_what_a_killed_client_left_before_it_had_an_agent(home):
    gone = subprocess.run([sys.executable, "-c", LEFT], text=True, capture_output=True, check=False)
    assert os.path.exists(gone.stdout.strip())
    fsbroker.SingleNodeExecutor().shutdown()
    assert not os.path.exists(gone.stdout.strip())


LEFT = """
import os, fsbroker
exe = fsbroker.SingleNodeExecutor()
print(exe.info["cache_directory"], flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_directory_of_ones_own_is_never_removed(home):
    with pytest.raises(errors.ResourceError, match="Leave the spool out, or keep it"):
        fsbroker.ClusterExecutor(home / "mine", keep=False)
    with fsbroker.SingleNodeExecutor(cache_directory="mine", idle_timeout=1) as exe:
        assert exe.submit(listings.calc_add, 1, 1).result() == 2
    assert (home / "mine/spool.yaml").exists()
    assert "durability: fsync" in (home / "mine/spool.yaml").read_text()


# -- fsbroker.api ------------------------------------------------------------------------


def test_functions_travel_by_value():
    program = """
import json, sys
from fsbroker.api import cloudpickle_register
import cloudpickle
import own
own.register()
print(cloudpickle.list_registry_pickle_by_value())
"""
    Path("own.py").write_text(
        "from fsbroker.api import cloudpickle_register\n"
        "def register(): cloudpickle_register(ind=1)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", program], env=env, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.stdout.strip() == "{'own'}", done.stderr


def test_futures_in_a_queue_are_cancelled():
    waiting: queue.Queue = queue.Queue()
    futures = [fsbroker.Future.__base__() for _ in range(2)]
    for one in futures:
        waiting.put({"future": one})
    api.cancel_items_in_queue(waiting)
    assert all(one.cancelled() for one in futures)
    assert waiting.empty()
    waiting.join()


def test_sockets_have_no_counterpart():
    with pytest.raises(ImportError, match="an executor with an init_function"):
        from fsbroker.api import SocketInterface  # noqa: F401
    with pytest.raises(AttributeError):
        _ = api.nothing
    assert api.ExecutorlibSocketError is errors.WorkerLost
