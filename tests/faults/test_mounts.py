"""Real file systems that are full, late, forgetful or lie; and work that goes on on them."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from fsbroker.executor import ClusterExecutor
from fsbroker.spool.spool import create, open_spool
from tests.faults import clients
from tests.faults.audit import check, outcomes
from tests.faults.batches import Batches, prefix_of
from tests.faults.processes import DEADLINE, Processes, wait_until
from tests.faults.tasks import fails_behind, hold, runs_of, task, value_of
from tests.testbed.faultfs import FaultFS

PATIENT = {"retries": 200}


@contextmanager
def at_work(spool, folder):
    """Processes and batches of work in a spool."""
    with Processes(spool, folder) as processes:
        executor = ClusterExecutor(spool, backend="none", resource_dict=PATIENT)
        try:
            yield processes, Batches(executor, processes)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


# -- full ----------------------------------------------------------------------------------


@contextmanager
def small_disk(point, options):
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


def _write(disk):
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def _touch(disk):
    with suppress(OSError):
        for number in range(10_000):
            (disk / f"ballast{number}").touch()


@pytest.mark.powerloss  # the group of those who may mount
@pytest.mark.parametrize(
    ("options", "fill"),
    [
        pytest.param("size=4m,mode=700", _write, id="bytes"),
        pytest.param("size=16m,nr_inodes=300,mode=700", _touch, id="inodes"),
    ],
)
def test_a_full_disk_while_agents_claim_and_publish(tmp_path, options, fill):
    """No space: the agent says so and ends, and its rows are there for the next one."""
    with (
        small_disk(tmp_path / "disk", options) as disk,
        at_work(disk / "spool", tmp_path) as (processes, batches),
    ):
        batches.submit("a")
        fill(disk)
        agent = processes.agent()
        assert agent.wait(DEADLINE) == 1
        said = processes.output(agent)
        assert "Free some space or inodes" in said
        assert str(disk / "spool") in said
        for ballast in disk.glob("ballast*"):
            ballast.unlink()
        batches.finish()


@pytest.mark.powerloss
def test_a_full_disk_while_an_error_is_reported(tmp_path):
    """The task fails when nothing can be written: its future is told all the same, later."""
    with (
        small_disk(tmp_path / "disk", "size=4m,mode=700") as disk,
        at_work(disk / "spool", tmp_path) as (processes, batches),
    ):
        gate = str(tmp_path / "gate")
        future = batches._executor.submit(fails_behind, processes.journal, "f", gate)
        agent = processes.agent()
        wait_until(lambda: runs_of(processes.journal))
        _write(disk)
        open(gate, "w").close()
        assert agent.wait(DEADLINE) == 1
        assert "space" in processes.output(agent)
        (disk / "ballast").unlink()
        other = processes.agent()
        with pytest.raises(ValueError, match="f"):
            future.result(DEADLINE)
        processes.ends(other)


# -- lies, stale handles, slowness ----------------------------------------------------------


LIES = [
    ("link", "*/tasks/*", "lie:EEXIST"),
    ("link", "*/results/*", "lie:EIO"),
    ("symlink", "*/claims/*", "lie:EEXIST"),
    ("rename", "*/agents/*", "lie:ENOENT"),
    ("unlink", "*", "lie:ENOENT"),
]
STALE = [
    ("open", "*/tasks/*", "ESTALE", 9),
    ("open", "*/results/*", "ESTALE", 9),
    ("read", "*/results/*", "ESTALE", 2),
    ("readdir", "*/claims/*", "ESTALE", 9),
    ("readlink", "*", "ESTALE", 9),
    ("getattr", "*/claims/*", "ESTALE", 5),
]
FLAKY = [
    ("write", "*/tmp/*", "EIO", 2),
    ("fsync", "*/tmp/*", "EIO", 2),
    ("link", "*/results/*", "EIO", 2),
    ("symlink", "*/claims/*", "EIO", 3),
    ("readdir", "*/tasks", "EIO", 3),
]


@pytest.fixture
def faulty(tmp_path):
    """A file system that fails as it is told, and processes at work in a spool on it."""
    with FaultFS(tmp_path) as disk, at_work(disk.path / "spool", tmp_path) as (processes, batches):
        yield disk, processes, batches


@pytest.mark.fuse
@pytest.mark.parametrize("rules", [LIES, STALE, FLAKY], ids=["lies", "stale", "EIO"])
def test_a_file_system_that_lies_and_fails(faulty, rules):
    """What was done counts as done, whatever the reply; what was not is tried again."""
    disk, processes, batches = faulty
    for rule in rules:
        disk.rule(*rule)
    for number in range(3):
        batches.submit(prefix_of(number))
        processes.ends(processes.agent())
    batches.finish(exact=True)


@pytest.mark.fuse
def test_trouble_that_passes(tmp_path, faulty):
    """All calls of a running agent fail for seconds: its task runs on, and counts once."""
    disk, processes, batches = faulty
    gate = tmp_path / "gate"
    future = batches._executor.submit(hold, processes.journal, "held", str(gate))
    batches.expect([future], [value_of("held")])
    agent = processes.agent()
    wait_until(lambda: runs_of(processes.journal))
    for call in ("open", "create", "readdir", "link", "symlink", "rename", "fsync"):
        disk.rule(call, "*", "EIO")
    gate.touch()
    time.sleep(3)
    assert agent.poll() is None, processes.output(agent)
    disk.calm()
    assert future.result(DEADLINE) == value_of("held")
    processes.ends(agent)
    batches.finish(exact=True)


@pytest.mark.fuse
def test_a_slow_file_system(faulty):
    """20 ms for each call: what is done for 400 tasks does not cost 400 calls."""
    disk, processes, batches = faulty
    for call in ("open", "create", "link", "symlink", "unlink", "rename", "readdir"):
        disk.rule(call, "*", "delay:0.02")
    batches.submit("slow", 400)
    processes.ends(processes.agent())
    disk.calm()
    batches.finish(exact=True)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_directories_full_of_strange_names(batches, processes):
    """A hundred thousand names that mean nothing, where agents and clients list."""
    spool = create(processes.spool)
    for name in ("agents", "results", "tasks", "packs"):
        folder = processes.spool / spool.area.path / name
        for number in range(25_000):
            (folder / f"strange{number}").touch()
    batches.submit("a", 20)
    batches.finish(exact=True)


# -- caches of other hosts ------------------------------------------------------------------

CACHES = "entry_timeout=6,negative_timeout=6,attr_timeout=6"


@contextmanager
def two_hosts(folder):
    """One directory as two hosts see it: what they have looked up they believe for 6 s."""
    (folder / "behind").mkdir()
    points = [folder / "a", folder / "b"]
    for point in points:
        point.mkdir()
        subprocess.run(["bindfs", "-o", CACHES, folder / "behind", point], check=True)
    try:
        yield points
    finally:
        for point in points:
            subprocess.run(["umount", "--lazy", point], check=True)


@pytest.mark.fuse
def test_two_hosts_that_believe_old_names_and_sizes(tmp_path):
    """And whose locks exclude nobody of the other host."""
    with (
        two_hosts(tmp_path) as (here, there),
        at_work(here / "spool", tmp_path) as (processes, _),
    ):
        spool = create(here / "spool")
        executor = ClusterExecutor(here / "spool", backend="none")
        agents = [
            processes.agent(spool=place / "spool", cores=1, idle_timeout=3, lease=60)
            for place in (here, there)
        ]
        names = [f"t{number}" for number in range(300)]
        futures = [executor.submit(task, processes.journal, name) for name in names]
        tail = executor.submit(task, processes.journal, "tail", 0.0, *futures[:3])
        for name, future in zip(names, futures, strict=True):
            assert future.result(DEADLINE) == value_of(name)
        assert tail.result(DEADLINE)[0] == "tail"
        executor.shutdown()
        for agent in agents:
            processes.ends(agent)
        check(spool, processes.journal, {*names, "tail"}, exact=True)


# -- read-only, strange names, damage -------------------------------------------------------


STRANGE = (".nfs000000000001", ".DS_Store", "notes~", "#core#", "sub")


def test_strange_names_everywhere(batches, processes):
    """What editors, NFS and other programs leave; also in a log that is to be deleted."""
    spool = create(processes.spool)
    batches.submit("a")
    area = processes.spool / spool.area.path
    for folder in [area, *(path for path in area.rglob("*") if path.is_dir())]:
        for name in STRANGE:
            (folder / name).mkdir() if name == "sub" else (folder / name).touch()
    batches.finish(exact=True)


@pytest.mark.parametrize("damage", ["flipped", "torn", "empty"])
def test_a_result_that_was_damaged_is_never_loaded(tmp_path, damage):
    """Who wants it again gets the right value, from another run, or is told of the file."""
    with at_work(tmp_path / "spool", tmp_path) as (processes, _):
        script = ["client", str(tmp_path / "spool"), processes.journal, "a", "3"]
        first = processes.start(*script)
        processes.ends(processes.agent(idle_timeout=1))
        processes.ends(first)
        spool = open_spool(tmp_path / "spool")
        for path in (tmp_path / "spool" / spool.area.results).rglob("*.h5"):
            if not path.is_symlink():
                _damage(path, damage)
        again = processes.start(*script)
        processes.ends(processes.agent(idle_timeout=3))
        status, said = again.wait(DEADLINE), processes.output(again)
        right = [str(value) for value in clients.values("a", 3)]
        found = [line for line in said.splitlines() if line.startswith("['a")]
        assert set(found) <= set(right)
        if status:
            assert "FileDamaged" in said or "TaskLost" in said, said
            assert "/results/" in said or str(tmp_path / "spool") in said
        else:
            assert found == right


def _damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        at = data.index(b'["a')
        data[at + 2] ^= 4
    kept = {"flipped": len(data), "torn": len(data) // 2, "empty": 0}[how]
    path.write_bytes(data[:kept])


@pytest.mark.parametrize("value", ["TRUE", "FALSE", "BEST_EFFORT"])
def test_how_hdf5_locks_makes_no_difference(batches, processes, monkeypatch, value):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", value)
    batches.submit("a")
    batches.finish(exact=True)
    script = "import h5py, sys; [h5py.File(p)['rows'][()] for p in sys.argv[1:]]"
    spool = open_spool(processes.spool)
    paths = [str(path) for path in processes.spool.rglob("results/*/*.h5") if not path.is_symlink()]
    assert paths
    assert outcomes(spool)
    subprocess.run([sys.executable, "-c", script, *paths], check=True)
