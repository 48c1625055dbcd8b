"""Login sessions that end and begin again, on a real SLURM: the spool and the queue are all.

Each session is a process of its own, with its own host name, working directory, script path,
hash seed and path of the virtual environment. Tasks note each run in one append-only file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsbroker import ClusterExecutor
from fsbroker.spool.jobs import JobLog, QueueJob
from fsbroker.spool.spool import open_spool
from tests.testbed.slurm import Cluster

pytestmark = pytest.mark.slurm

LIMIT = 60.0
REPOSITORY = Path(__file__).resolve().parents[2]

WORKFLOW = '''
import json, os, sys, time
from concurrent.futures import CancelledError
from fsbroker import ClusterExecutor

def note(directory, name):
    file = os.open(f"{directory}/runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{name}\\n".encode())
    os.close(file)

def part(directory, name, gate):
    """Runs until the gate is open."""
    note(directory, name)
    while not os.path.exists(f"{directory}/{gate}"):
        time.sleep(0.05)
    return name

def whole(directory, *parts):
    note(directory, "+".join(parts))
    return "(" + "+".join(parts) + ")"

def work(directory, number, seconds):
    note(directory, number)
    time.sleep(seconds)
    return number

def say(**words):
    print(json.dumps(words), flush=True)

def hear():
    return sys.stdin.readline().strip()

directory, options = sys.argv[1], json.loads(sys.argv[2])
executor = ClusterExecutor(f"{directory}/spool", backend="slurm", tag="workflow", **options)
submit = executor.submit
'''

DAG = """
parts = [submit(part, directory, name, "open") for name in "abc"]
pair = submit(whole, directory, *parts[:2])
futures = {"a": parts[0], "b": parts[1], "c": parts[2], "ab": pair}
futures["all"] = submit(whole, directory, pair, parts[2])
futures["long"] = submit(part, directory, "long", "never")
futures["after"] = submit(whole, directory, futures["long"])
say(keys={name: future.key.hex() for name, future in futures.items()})
"""

COLLECT = """
hear()
wanted = [name for name in futures if name not in ("long", "after")]
say(results={name: futures[name].result(60) for name in wanted})
"""

CONTINUE = """
while not all(futures[name].running() for name in ("a", "b", "c", "long")):
    time.sleep(0.05)
say(cancelled=futures["after"].cancel())
try:
    say(result=futures["long"].result(60))
except CancelledError as error:
    say(error=str(error))
hear()
futures["d"] = submit(part, directory, "d", "open")
futures["more"] = submit(whole, directory, futures["all"], futures["d"])
"""

RESULTS = {"a": "a", "b": "b", "c": "c", "ab": "(a+b)", "all": "((a+b)+c)"}
MORE = {**RESULTS, "d": "d", "more": "(((a+b)+c)+d)"}
RUNS = ["a", "b", "c", "a+b", "(a+b)+c", "long"]


class Session:
    """A client process on a login node of its own."""

    def __init__(self, home: Path, name: str, script: str, **options: Any) -> None:
        self.home = home / name
        self.home.mkdir()
        file = self.home / f"{name}.py"
        file.write_text(WORKFLOW + script)
        os.symlink(sys.prefix, self.home / "venv")
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONHASHSEED": str(sum(name.encode())),
        }
        self.python = self.home / "venv" / "bin" / "python"
        self.process = self._start(file, home, json.dumps(options), stdin=subprocess.PIPE)

    def _start(self, *arguments: object, **more: Any) -> subprocess.Popen[str]:
        shell = f'hostname {self.home.name}; exec "$@"'
        return subprocess.Popen(
            ["unshare", "--uts", "sh", "-c", shell, "sh", self.python, *map(str, arguments)],
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            **more,
        )

    def command(self, *arguments: object) -> str:
        """What a command of fsbroker prints here."""
        program = "import sys; from fsbroker.cli import main; sys.exit(main())"
        out, _ = self._start("-c", program, *arguments).communicate(timeout=LIMIT)
        return out

    def hear(self) -> Any:
        """The next that it says."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the session has ended"
        ((_, said),) = json.loads(line).items()
        return said

    def tell(self) -> None:
        """It may go on."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


class Site:
    """A directory that login nodes and compute nodes share."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.sessions: list[Session] = []

    def session(self, name: str, script: str, **options: Any) -> Session:
        self.sessions.append(Session(self.directory, name, script, **options))
        return self.sessions[-1]

    def runs(self) -> list[str]:
        path = self.directory / "runs"
        return path.read_text().split() if path.exists() else []

    def open_gate(self) -> None:
        (self.directory / "open").touch()

    def jobs(self) -> list[QueueJob]:
        files, area, _ = open_spool(self.directory / "spool")
        log = JobLog(files, area)
        log.refresh()
        return list(log.jobs.values())

    def queue(self) -> list[int]:
        """Jobs that run or wait."""
        jobs = self.cluster.jobs().values()
        return [job.id for job in jobs if job.state in ("PENDING", "RUNNING")]

    def wait_for_runs(self, *names: str) -> None:
        self.cluster.wait_for(lambda: set(names) <= set(self.runs()), LIMIT)

    def results(self) -> list[Any]:
        """Of all tasks, as a client without agents of its own finds them."""
        with ClusterExecutor(self.directory / "spool", backend="none") as executor:
            return [future.result(LIMIT) for future in executor.futures("workflow")]


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path) -> Iterator[Site]:
    made = Site(slurm, tmp_path)
    yield made
    for session in made.sessions:
        session.kill()


PILOTS = {"block_allocation": True, "max_jobs": 4, "idle_timeout": 3}
EACH = {"block_allocation": False}


@pytest.mark.parametrize("options", [EACH, PILOTS], ids=["each", "pilots"])
@pytest.mark.parametrize("dead", [True, False], ids=["killed", "alive"])
def test_another_session_goes_on(site: Site, options: dict[str, Any], dead: bool) -> None:
    """It attaches to what runs, cancels some of it, adds to it, and collects all."""
    one = site.session("one", DAG + COLLECT, **options)
    keys = one.hear()
    site.wait_for_runs("a", "b", "c", "long")
    if dead:
        one.kill()
    two = site.session("two", DAG + CONTINUE + COLLECT, **options)
    assert two.hear() == keys
    assert two.hear() is (options == EACH)  # a pilot has claimed it with what it waits for
    spool = f"--spool={site.directory}/spool"
    assert "asked" in two.command("cancel", spool, keys["long"])
    assert "cancelled" in two.hear()
    if options == EACH:  # of seven jobs two have gone
        site.cluster.wait_for(lambda: len(site.queue()) == 5, LIMIT)
    two.tell()
    site.open_gate()
    two.tell()
    assert two.hear() == MORE
    if not dead:
        one.tell()
        assert one.hear() == RESULTS
    assert sorted(site.runs()) == sorted([*RUNS, "d", "((a+b)+c)+d"])


SHORT = """
futures = [submit(work, directory, number, 1.0) for number in range(10)]
executor._loop.flush(30)
say(submitted=True)
hear()
"""


def test_work_goes_on_without_a_client(site: Site) -> None:
    """One short job after the other: each has the next one submitted."""
    short = {"block_allocation": True, "max_jobs": 1, "job_time": 12, "idle_timeout": 3}
    one = site.session("one", SHORT, **short)
    one.hear()
    site.wait_for_runs("0")
    one.kill()
    site.cluster.wait_for(lambda: len(site.runs()) == 10, LIMIT)
    assert sorted(site.results()) == list(range(10))
    site.cluster.wait_for(lambda: not site.queue(), LIMIT)
    assert sorted(map(int, site.runs())) == list(range(10))
    jobs = site.jobs()
    assert len(jobs) > 1
    assert all(job.state == "COMPLETED" for job in jobs), jobs


CHAIN = """
first = submit(part, directory, "first", "open")
while not first.running():
    time.sleep(0.05)
other = submit(work, directory, "other", 0)
executor._loop.flush(30)
second = submit(whole, directory, other)
third = submit(whole, directory, second)
executor._loop.flush(30)
say(submitted=True)
hear()
"""


def test_jobs_of_one_task_follow_each_other_without_a_client(site: Site) -> None:
    """No more than one job is allowed: none of the later tasks has its job yet, and of one
    even the agent that runs has not heard.
    """
    one = site.session("one", CHAIN, block_allocation=False, max_jobs=1)
    one.hear()
    site.wait_for_runs("first")
    one.kill()
    site.open_gate()
    wanted = ["first", "other", "(other)", "((other))"]
    assert sorted(site.results()) == sorted(wanted)
    assert site.runs() == ["first", "other", "other", "(other)"]
    site.cluster.wait_for(lambda: not site.queue(), LIMIT)
    assert len(site.jobs()) == 4


TWINS = """
held = [submit(part, directory, name, "open") for name in "pq"]
while not all(future.running() for future in held):
    time.sleep(0.05)
left = submit(work, directory, "left", 0)
executor._loop.flush(30)
say(submitted=True)
hear()
"""


def test_two_agents_that_end_together_have_one_successor(site: Site) -> None:
    """They have time for what runs, but not for more."""
    twins = {"block_allocation": True, "max_jobs": 2, "job_time": 16, "idle_timeout": 2}
    one = site.session("one", TWINS, **twins)
    one.hear()
    begun = time.monotonic()
    one.kill()
    while time.monotonic() < begun + 9:  # 8 s before the end nothing is claimed any more
        assert "left" not in site.runs()
        time.sleep(0.2)
    site.open_gate()
    assert sorted(map(str, site.results())) == ["left", "p", "q"]
    site.cluster.wait_for(lambda: not site.queue(), LIMIT)
    assert sorted(site.runs()) == ["left", "p", "q"]
    assert len(site.jobs()) == 3


def test_who_ends_all_jobs_has_ended_them(site: Site) -> None:
    """An agent that was told to end leaves it to the next client to go on."""
    pilots = {"block_allocation": True, "max_jobs": 1, "idle_timeout": 2}
    one = site.session("one", TWINS.replace('"pq"', '"p"'), **pilots)
    one.hear()
    site.wait_for_runs("p")
    one.kill()
    site.cluster.run(["scancel", "--user=root"])
    site.cluster.wait_for(lambda: not site.queue(), LIMIT)
    site.open_gate()
    time.sleep(3)  # in which a successor would come
    assert not site.queue()
    two = site.session("two", TWINS.replace('"pq"', '"p"').replace("running", "done"), **pilots)
    two.hear()
    assert sorted(map(str, site.results())) == ["left", "p"]
    assert sorted(site.runs()) == ["left", "p", "p"]
