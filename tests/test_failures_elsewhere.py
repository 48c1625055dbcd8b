"""What fails in executorlib 1.11.0, and does not here: the rows that no other test is about.

`tests/test_parity.py` has the whole table.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import TimeoutError as FuturesTimeoutError
from pathlib import Path

import numpy as np
import pytest

from fsbroker import ClusterExecutor
from fsbroker.errors import ResultLost, TaskError, TaskLost, WorkerLost
from fsbroker.spool import container
from fsbroker.spool.blobs import SMALLEST
from tests.test_keys.test_processes import in_kernel

PATIENCE = 30.0


@pytest.fixture
def spool(tmp_path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(scope="module")
def exe(tmp_path_factory):
    with ClusterExecutor(tmp_path_factory.mktemp("spool"), max_workers=2) as executor:
        yield executor


def square(x):
    return x * x


def fail(x):
    raise ValueError(x)


# -- keys ------------------------------------------------------------------------------------


CELL = """
def f(x, path="{data}/ipykernel_7/run{run}/x.dat"):
    return open(path).read(), x
import fsbroker
with fsbroker.ClusterExecutor({spool!r}, max_workers=1) as exe:
    print("key", exe.submit(f, 1).result(30))
"""


def test_a_path_that_is_edited_between_runs_of_a_notebook(spool, tmp_path):
    for run in range(8):
        directory = tmp_path / "ipykernel_7" / f"run{run}"
        directory.mkdir(parents=True)
        (directory / "x.dat").write_text(f"data of run {run}")
    cells = [CELL.format(data=tmp_path, run=run, spool=str(spool)) for run in range(8)]
    assert in_kernel(cells) == [f"key ('data of run {run}', 1)" for run in range(8)]


def test_an_imported_module_that_is_edited(spool, tmp_path):
    """Each session gets the value of the code that is there; what is unchanged is not run."""
    script = """
        import sys
        sys.path.insert(0, sys.argv[2])
        import fsbroker, edited
        with fsbroker.ClusterExecutor(sys.argv[1], max_workers=1) as exe:
            print(exe.submit(edited.f, 3).result(30))
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    found = []
    for factor in (2, 5, 2):
        (tmp_path / "edited.py").write_text(f"def f(x):\n    return x * {factor}\n")
        words = [sys.executable, tmp_path / "script.py", spool, tmp_path]
        # Python takes bytecode of the same second for that of the edited module.
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, timeout=60, env=env
        )
        found.append(int(done.stdout))
    assert found == [6, 15, 6]


@pytest.mark.parametrize(
    ("function", "arguments", "value"),
    [
        (max, (1, 3), 3),
        (min, ([4, 2],), 2),
        (dict, ([("a", 1)],), {"a": 1}),
        (int, ("7",), 7),
        (np.linalg.norm, ([3.0, 4.0],), 5.0),
        (np.add, (1, 2), 3),
        (str.upper, ("a",), "A"),
    ],
)
def test_functions_without_a_signature(exe, function, arguments, value):
    assert exe.submit(function, *arguments).result(PATIENCE) == value


# -- cached values ---------------------------------------------------------------------------


def test_a_failure_is_an_exception_for_every_executor(exe):
    assert isinstance(exe.submit(fail, 1).exception(PATIENCE), ValueError)
    key = exe.submit(fail, 1).key
    with ClusterExecutor(exe._spool.files.root, max_workers=1) as other:
        assert isinstance(other.submit(fail, 1).exception(PATIENCE), ValueError)
        (attached,) = other._loop.futures_of([key])
        assert isinstance(attached.exception(PATIENCE), ValueError)


def test_the_same_task_right_after_its_result(exe):
    for attempt in range(20):
        for _ in range(3):
            assert exe.submit(square, attempt).result(PATIENCE) == attempt**2


@pytest.mark.parametrize("damage", [b"", b"\x89HDF\r\n", None], ids=["empty", "cut", "wrong"])
def test_damaged_results_are_computed_again(spool, damage, tmp_path):
    """A future never hangs, and never gives what is not the value."""
    with ClusterExecutor(spool, max_workers=1) as exe:
        assert [exe.submit(square, n).result(PATIENCE) for n in range(3)] == [0, 1, 4]
    streams = (spool / "users" / f"u{os.getuid()}" / "results").rglob("*.h5")
    for path in [path for path in streams if path.is_file() and not path.is_symlink()]:
        content = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(damage if damage is not None else content[::-1])
    with ClusterExecutor(spool, max_workers=1) as exe:
        futures = [exe.submit(square, n) for n in range(4)]
        for _ in range(3):
            errors = [future.exception(PATIENCE) for future in futures]
            assert {type(error) for error in errors} <= {type(None), TaskLost}
            futures = [exe.submit(square, n) for n in range(4)]
        assert [future.result(PATIENCE) for future in futures] == [0, 1, 4, 9]


def test_a_value_that_does_not_fit_in_memory_here(spool, monkeypatch):
    """A stored text or pickle is read in one piece; whoever waits for it is told."""
    with ClusterExecutor(spool, max_workers=1) as exe:
        monkeypatch.setattr(container, "LARGEST_READ", 1 << 20)
        error = exe.submit(str.upper, "a" * (2 << 20)).exception(PATIENCE)
        assert isinstance(error, ResultLost)
        assert "do not fit in memory" in str(error)
        assert exe.submit(square, 2).result(PATIENCE) == 4


def test_one_cached_submit_does_not_walk_the_cache(spool):
    """It makes as many file calls with a hundred result files as with ten."""
    calls: Counter[str] = Counter()
    watched = {"open", "os.listdir", "os.scandir", "os.link", "os.symlink", "os.mkdir"}

    def hook(event, arguments):
        if watching and event in watched and str(spool) in str(arguments[0]):
            calls[event] += 1

    watching = False
    sys.addaudithook(hook)

    def count(first: int, files: int) -> int:
        nonlocal watching
        with ClusterExecutor(spool, max_workers=1) as exe:
            for n in range(first, first + files):
                assert exe.submit(square, n).result(PATIENCE) == n * n
        with ClusterExecutor(spool, backend="none", watch="polling") as exe:
            assert exe.submit(square, first).result(PATIENCE) == first**2
            calls.clear()
            watching = True
            assert exe.submit(square, first + 1).result(PATIENCE) == (first + 1) ** 2
            watching = False
        return calls.total()

    few = count(0, 10)
    assert few > 0
    assert count(1000, 100) <= few + 4


# -- workers ---------------------------------------------------------------------------------


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_ends_a_worker_ends_its_task_alone(exe):
    once = {"retries": 0}
    ends = [
        (exe.submit(killed, resource_dict=once), WorkerLost),
        (exe.submit(sys.exit, 3, resource_dict=once), TaskError),
        (exe.submit(os._exit, 3, resource_dict=once), WorkerLost),
    ]
    others = [exe.submit(square, n) for n in range(100, 110)]
    for future, kind in ends:
        assert isinstance(future.exception(PATIENCE), kind)
    assert [future.result(PATIENCE) for future in others] == [n * n for n in range(100, 110)]


STILLBORN = """
import os, signal, sys
if "serial" in sys.orig_argv:
    with open({starts!r}, "a") as starts:
        starts.write(".")
    if os.path.getsize({starts!r}) <= 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("retries", [0, 1])
def test_three_workers_that_die_before_they_are_ready_cost_an_attempt(
    spool, tmp_path, monkeypatch, retries
):
    starts = tmp_path / "starts"
    (tmp_path / "sitecustomize.py").write_text(STILLBORN.format(starts=str(starts)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with ClusterExecutor(spool, max_workers=1) as exe:
        future = exe.submit(square, 3, resource_dict={"retries": retries})
        if retries:
            assert future.result(PATIENCE) == 9
            assert starts.stat().st_size == 5
        else:
            assert isinstance(future.exception(PATIENCE), WorkerLost)
            assert starts.stat().st_size >= 3


def test_three_clients_share_a_spool(spool):
    script = """
        import sys, fsbroker
        with fsbroker.ClusterExecutor(sys.argv[1], max_workers=1) as exe:
            futures = [exe.submit(abs, -n) for n in range(54)]
            assert [future.result(30) for future in futures] == [*range(54)]
    """
    words = [sys.executable, "-c", textwrap.dedent(script), spool]
    clients = [subprocess.Popen(words) for _ in range(3)]
    assert [client.wait(60) for client in clients] == [0, 0, 0]


# -- cost ------------------------------------------------------------------------------------


def test_a_large_array_is_stored_as_it_is(spool):
    """64 MB: not pickled, not compressed, in one piece, argument and value."""
    large = np.arange(8 << 20, dtype=float)
    assert large.nbytes == 64 << 20 > SMALLEST
    with ClusterExecutor(spool, max_workers=1) as exe:
        value = exe.submit(np.negative, large).result(PATIENCE)
    assert np.array_equal(value, -large)
    blobs = list((spool / "users" / f"u{os.getuid()}" / "blobs").iterdir())
    assert len(blobs) == 2
    for path in blobs:
        assert large.nbytes < path.stat().st_size < large.nbytes + 16384
    assert any(large.tobytes() in path.read_bytes() for path in blobs)


def test_waiting_takes_no_processor(spool):
    exe = ClusterExecutor(spool, backend="none")
    futures = [exe.submit(square, n) for n in range(100)]
    exe._loop.flush(PATIENCE)
    before, started = time.process_time(), time.monotonic()
    with pytest.raises(FuturesTimeoutError):
        futures[0].result(4)
    assert time.monotonic() - started >= 4
    assert time.process_time() - before < 0.4  # executorlib: two thirds of the time
    exe.shutdown(wait=False, cancel_futures=True)
