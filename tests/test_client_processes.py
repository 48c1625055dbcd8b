"""Clients that end, fork, or share a spool: what only shows in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import fsbroker
from fsbroker import ClusterExecutor

PATIENCE = 30.0
HEAVY = ("h5py", "numpy", "filelock", "watchdog", "pandas", "yaml", "cloudpickle")


@pytest.fixture
def spool(tmp_path) -> Path:
    return tmp_path / "spool"


def script(text: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python program of its own; it finds its arguments in ``argv``."""
    head = "import sys, os, time, threading\nargv = sys.argv[1:]\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(text), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Its output, after it has ended with this code."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"the process does not end: {process.communicate()}")
    assert process.returncode == code, err
    return out, err


def until(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.01)


# -- importing ---------------------------------------------------------------------------


def test_import_loads_nothing_heavy():
    _, err = ended(
        subprocess.Popen(
            [sys.executable, "-X", "importtime", "-c", "import fsbroker"],
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines()}
    assert "fsbroker" in loaded
    assert not loaded.intersection(HEAVY)


# -- ending ------------------------------------------------------------------------------

HELD = """
    import fsbroker
    spool, begun, opened = argv
    def held():
        open(begun, "a").write("x")
        while not os.path.exists(opened):
            time.sleep(0.01)
        return "done"
    executor = fsbroker.ClusterExecutor(spool, max_workers=1, idle_timeout=2)
    future = executor.submit(held)
    print(future.key.hex(), flush=True)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("raise KeyError('uncaught')", 1),
        ("sys.exit(5)", 5),
        ("del executor, future", 0),
        ("executor.shutdown(wait=False)", 0),
        ("future.add_done_callback(print)", 0),
    ],
)
def test_a_script_ends_with_work_pending_and_the_work_goes_on(spool, tmp_path, end, code):
    begun, opened = tmp_path / "begun", tmp_path / "opened"
    out, err = ended(script(HELD + f"    {end}\n", spool, begun, opened), code)
    assert ("uncaught" in err) == (code == 1)
    assert "fsbroker" not in err.replace("import fsbroker", "")
    until(begun.exists, "the task's begin")
    opened.touch()
    assert fsbroker.attach(spool, out.strip()).result(PATIENCE) == "done"
    assert begun.read_text() == "x"


def test_a_script_whose_executor_lives_to_the_end_says_nothing(spool):
    """The files that it holds open are closed when modules have lost their names."""
    text = """
        import fsbroker
        def square(number):
            time.sleep(0.05)
            return number**2
        with fsbroker.ClusterExecutor(argv[0], max_workers=2, watch="polling") as executor:
            futures = [executor.submit(square, number) for number in range(20)]
            assert [future.result(30) for future in futures] == [n**2 for n in range(20)]
    """
    assert ended(script(text, spool)) == ("", "")


def test_everything_that_was_submitted_is_in_the_spool(spool):
    submitting = """
        import fsbroker
        executor = fsbroker.ClusterExecutor(argv[0], backend="none", tag="many")
        for n in range(3000):
            executor.submit(pow, n, 2)
    """
    ended(script(submitting, spool))
    with ClusterExecutor(spool, max_workers=1, idle_timeout=2) as executor:
        futures = executor.futures("many")
        assert sorted(future.result(PATIENCE) for future in futures) == [n**2 for n in range(3000)]


def test_client_killed_and_started_again_attaches(spool, tmp_path):
    begun, opened = tmp_path / "begun", tmp_path / "opened"
    first = script(HELD + "    future.result()\n", spool, begun, opened)
    until(begun.exists, "the task's begin")
    first.kill()
    ended(first, -signal.SIGKILL)
    second = script(HELD + "    print(future.result())\n", spool, begun, opened)
    assert second.stdout is not None
    key = second.stdout.readline()
    opened.touch()
    out, _ = ended(second)
    assert out.strip() == "done"
    assert fsbroker.attach(spool, key.strip()).result(PATIENCE) == "done"
    assert begun.read_text() == "x"


def test_local_agents_outlive_the_client_and_end_when_idle(spool, tmp_path):
    submitting = """
        import fsbroker
        executor = fsbroker.ClusterExecutor(argv[0], max_workers=1, idle_timeout=0.5)
        for n in range(20):
            executor.submit(pow, n, 3)
    """
    ended(script(submitting, spool))
    agents = spool / "users" / f"u{os.getuid()}" / "agents"
    until(lambda: list(agents.iterdir()), "the agent's start")
    until(lambda: not list(agents.iterdir()), "the agent's end")
    with ClusterExecutor(spool, backend="none") as executor:
        assert list(executor.map(pow, range(20), [3] * 20, timeout=PATIENCE)) == [
            n**3 for n in range(20)
        ]


# -- forks -------------------------------------------------------------------------------


def test_forked_child(spool, tmp_path):
    """It is refused, gets a clear error, and ends; the parent works on."""
    forking = """
        import fsbroker
        spool, opened = argv
        def held(path):
            while not os.path.exists(path):
                time.sleep(0.01)
            return 1
        executor = fsbroker.ClusterExecutor(spool, max_workers=1, idle_timeout=2)
        ready = executor.submit(pow, 2, 3)
        ready.result()
        [one.result() for one in [executor.submit(pow, n, 2) for n in range(50)]]
        pending = executor.submit(held, opened)
        stop = threading.Event()
        def busy():  # so that locks are held in the moment of a fork
            n = 0
            while not stop.is_set():
                executor.submit(pow, n % 50, 2).add_done_callback(id)
                time.sleep(0.0002)
                n += 1
        thread = threading.Thread(target=busy)
        thread.start()
        for n in range(10):
            pid = os.fork()
            if not pid:
                for refused in (
                    lambda: executor.submit(pow, 1, 1),
                    lambda: executor.futures(),
                    lambda: list(executor.map(pow, [1], [1])),
                    pending.result,
                    pending.exception,
                ):
                    try:
                        refused()
                    except RuntimeError as error:
                        assert "fork" in str(error), error
                    else:
                        raise AssertionError(refused)
                assert ready.result() == 8 and ready.exception() is None
                assert not pending.cancel() and not pending.running() and not pending.done()
                executor.shutdown()
                del executor, pending
                sys.exit(7)
            end = time.monotonic() + 20
            while not (status := os.waitpid(pid, os.WNOHANG)[1]):
                assert time.monotonic() < end, "the child does not end"
                time.sleep(0.01)
            assert os.waitstatus_to_exitcode(status) == 7
        stop.set()
        thread.join()
        open(opened, "w").close()
        assert pending.result(20) == 1
        assert executor.submit(pow, 3, 3).result(20) == 27
    """
    ended(script(forking, spool, tmp_path / "opened"))


def test_forked_child_may_have_an_executor_of_its_own(spool):
    forking = """
        import fsbroker
        with fsbroker.ClusterExecutor(argv[0], max_workers=1, idle_timeout=2) as executor:
            assert executor.submit(pow, 2, 2).result(20) == 4
            pid = os.fork()
            if not pid:
                with fsbroker.ClusterExecutor(argv[0], max_workers=1, idle_timeout=2) as own:
                    assert own.submit(pow, 2, 5).result(20) == 32
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert executor.submit(pow, 2, 5).result(20) == 32
    """
    ended(script(forking, spool))


def test_multiprocessing_pool_beside_an_executor(spool):
    pooled = """
        import fsbroker, multiprocessing
        with fsbroker.ClusterExecutor(argv[0], max_workers=1, idle_timeout=2) as executor:
            assert executor.submit(pow, 2, 2).result(20) == 4
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(abs, [-1, 2]) == [1, 2]
    """
    ended(script(pooled, spool))


# -- several clients ---------------------------------------------------------------------


def test_two_clients_submit_the_same_at_once(spool, tmp_path):
    """Each key runs once, whoever was first, and both get all values."""
    submitting = """
        import fsbroker
        spool, marks = argv
        def marked(n):
            with open(f"{marks}/{n}", "a") as file:
                file.write("x")
            return n * n
        with fsbroker.ClusterExecutor(spool, max_workers=1, idle_timeout=2) as executor:
            executor.submit(pow, 1, 1).result(20)  # agents are warm: the race is close
            print("ready", flush=True)
            for line in sys.stdin:
                first = int(line)
                futures = [executor.submit(marked, first + n) for n in range(50)]
                assert [one.result(20) for one in futures] == [
                    (first + n) ** 2 for n in range(50)
                ]
                print("done", flush=True)
    """
    clients = [script(submitting, spool, tmp_path) for _ in range(2)]
    pipes = [(client.stdin, client.stdout) for client in clients]
    assert [out.readline() for _, out in pipes] == ["ready\n", "ready\n"]
    for attempt in range(10):
        for into, _ in pipes:
            into.write(f"{1000 * attempt}\n")
            into.flush()
        assert [out.readline() for _, out in pipes] == ["done\n", "done\n"]
        marks = [tmp_path / str(1000 * attempt + n) for n in range(50)]
        assert [mark.read_text() for mark in marks] == ["x"] * 50
    for client in clients:
        ended(client)
