"""MPI groups, under real MPICH and real Open MPI: right values, and no failure that hangs."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from fsbroker import errors, pickling
from fsbroker.agent import mpi
from fsbroker.agent.messages import Ended, Output
from fsbroker.agent.mpi import MpiWorker
from fsbroker.agent.processes import Settings
from fsbroker.agent.rows import Arrays
from fsbroker.agent.workers import Lost
from fsbroker.task import Encoding, Status, Value
from tests.test_workers import (
    Bench,
    Unpicklable,
    WorkerContract,
    add,
    settings,
)
from tests.testbed.mpi import find

__all__ = ["settings"]

cloudpickle.register_pickle_by_value(sys.modules[__name__])

BOTH = [
    pytest.param("mpich", marks=pytest.mark.mpich),
    pytest.param("openmpi", marks=pytest.mark.openmpi),
]


def under(flavour: str, settings: Settings) -> Settings:
    """Settings for groups of that MPI."""
    found = find(flavour)
    # Only what makes mpi4py load it: the rest is the group's own business.
    variables = {name: value for name, value in found.settings.items() if name[:4] == "MPI4"}
    return replace(
        settings,
        environment={**settings.environment, **variables},
        launcher=(str(found.mpiexec), "-n", "{ranks}"),
    )


@pytest.fixture(params=BOTH)
def flavour(request: Any) -> str:
    return str(request.param)


@pytest.fixture
def group(settings: Settings, flavour: str) -> Iterator[Callable[[int], Bench]]:
    """Makes a bench with a group of so many ranks."""
    with contextlib.ExitStack() as stack:

        def make(ranks: int) -> Bench:
            bench = Bench(lambda given: MpiWorker(given, ranks), under(flavour, settings))
            stack.callback(bench.wait_until_none_is_left)
            stack.callback(lambda: bench.worker.close())  # noqa: PLW0108 (it may be another by then)
            return bench

        yield make


class TestMpiContract(WorkerContract):
    """The contract that serial workers have, for groups of two."""

    def each(self, value: Any) -> Any:
        return [value, value]

    constructor = "mpi.MpiWorker(settings, 2)"

    @pytest.fixture
    def bench(self, group: Callable[[int], Bench]) -> Bench:
        return group(2)

    @pytest.fixture
    def settings(self, settings: Settings, flavour: str) -> Settings:
        return under(flavour, settings)


# -- functions that run on all ranks -----------------------------------------------------


def sum_of(number: float) -> tuple[float, int, int]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    return world.allreduce(number * (world.rank + 1)), world.rank, world.size


def on_rank(which: int, what: Callable[[], Any]) -> Any:
    """Do it on one rank; the others wait in a collective that it never enters."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == which:
        return what()
    MPI.COMM_WORLD.barrier()
    return "not reached"


def fail_on(*which: int) -> None:
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.rank
    print("rank", rank)
    if rank in which:
        raise LookupError(f"rank {rank}")


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    from mpi4py import MPI

    MPI.COMM_WORLD.Abort(7)


def check_sum(bench: Bench, ranks: int) -> None:
    number = random.random()
    found = bench.value(bench.call(sum_of, number))
    total = pytest.approx(number * ranks * (ranks + 1) / 2)
    assert found == [(total, rank, ranks) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 4])
class TestGroups:
    def test_a_warm_group_gives_right_values(self, group: Any, ranks: int) -> None:
        bench = group(ranks)
        check_sum(bench, ranks)
        pids = dict(bench.worker.pids)
        for _ in range(5):
            check_sum(bench, ranks)
        assert bench.worker.pids == pids
        assert len(pids) == ranks

    def test_a_rank_that_raises_does_not_hang_the_others(self, group: Any, ranks: int) -> None:
        def throw() -> None:
            raise LookupError("only here")

        report = self.quickly(group(ranks), on_rank, ranks - 1, throw)
        self.failed(report, ranks - 1, "LookupError", "only here")

    def test_the_lowest_failing_rank_is_the_one_shown(self, group: Any, ranks: int) -> None:
        report = self.quickly(group(ranks), fail_on, *range(1, ranks))
        self.failed(report, 1, "LookupError", "rank 1")
        assert report.outputs == tuple(
            Output(rank, b"rank %d\n" % rank, b"") for rank in range(ranks)
        )

    def test_sys_exit_on_one_rank(self, group: Any, ranks: int) -> None:
        report = self.quickly(group(ranks), on_rank, 1, lambda: sys.exit(5))
        self.failed(report, 1, "SystemExit", "5")

    def test_a_result_of_one_rank_that_cannot_be_pickled(self, group: Any, ranks: int) -> None:
        report = self.quickly(group(ranks), on_rank, 1, Unpicklable)
        self.failed(report, 1, "fsbroker.errors.ResultNotPicklable", "Unpicklable")

    def test_a_rank_that_aborts(self, group: Any, ranks: int) -> None:
        report = self.quickly(group(ranks), on_rank, 1, abort)
        self.failed(report, 1, "fsbroker.errors.RankFailed", "MPI_Abort(7)")

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_rank_that_is_killed(self, group: Any, ranks: int, which: int) -> None:
        bench = group(ranks)
        for _ in range(3):  # mpiexec kills the others: on a busy machine all ends are seen at once
            lost = self.quickly(bench, on_rank, which, kill_me)
            assert isinstance(lost, Lost)
            if lost.rank == which:
                break
        assert lost.rank == which
        assert "SIGKILL" in lost.reason
        assert f"Rank {which} of {ranks}" in str(lost.error)
        assert lost.ready

    def test_a_rank_killed_while_idle(self, group: Any, ranks: int) -> None:
        bench = group(ranks)
        check_sum(bench, ranks)
        os.kill(bench.worker.pids[1], signal.SIGKILL)
        lost = bench.lost()
        assert lost.rank == 1
        assert not bench.left()

    def quickly(self, bench: Bench, fn: Callable[..., Any], *args: Any) -> Any:
        """The report of a call that fails; with what must hold after each of those."""
        ranks = bench.worker.ranks
        check_sum(bench, ranks)
        started = time.monotonic()
        bench.send(fn, *args)
        (report,) = bench.wait(1)
        assert time.monotonic() - started < 10
        assert not bench.worker.alive
        assert not bench.left()
        assert bench.worker.receive() == []
        bench.worker.close()
        shown = replace_value(bench, report)
        bench.renew()
        check_sum(bench, ranks)
        return shown

    def failed(self, report: Any, rank: int, kind: str, text: str) -> None:
        assert report.status == Status.FAILED
        assert report.error["rank"] == str(rank)
        assert report.rank == rank
        assert report.error["type"] == kind
        assert text in report.error["message"]
        assert isinstance(report.value, BaseException)
        assert text in str(report.value)


def replace_value(bench: Bench, report: Any) -> Any:
    """The report with what it holds in place of its stored form."""
    return report._replace(value=bench.value(report)) if isinstance(report, Ended) else report


class TestSettings:
    def test_each_ranks_output_is_kept_apart(self, group: Any) -> None:
        report = group(2).call(fail_on)
        assert report.status == Status.DONE
        assert report.outputs == (Output(0, b"rank 0\n", b""), Output(1, b"rank 1\n", b""))

    def test_a_group_started_inside_a_queue_job_and_another_launch(
        self, group: Any, monkeypatch: Any
    ) -> None:
        for name, value in {
            "SLURM_JOB_ID": "77",
            "SLURM_NNODES": "2",
            "SLURM_NODELIST": "elsewhere[1-2]",
            "SLURM_JOB_NODELIST": "elsewhere[1-2]",
            "SLURM_TASKS_PER_NODE": "2(x2)",
            "PMI_RANK": "1",
            "PMI_SIZE": "7",
            "PMI_FD": "9",
            "PMIX_RANK": "3",
            "PMIX_NAMESPACE": "x",
            "OMPI_COMM_WORLD_SIZE": "5",
        }.items():
            monkeypatch.setenv(name, value)
        check_sum(group(2), 2)

    def test_a_killed_group_leaves_no_memory_and_no_files(
        self, group: Any, settings: Settings
    ) -> None:
        places = ("/dev/shm", "/tmp", settings.scratch)
        before = [set(os.listdir(place)) for place in places]
        bench = group(2)
        check_sum(bench, 2)
        held = set(bench.worker._shared)
        assert held
        bench.worker.kill()
        bench.lost()
        bench.worker.close()
        after = [set(os.listdir(place)) for place in places]
        # Others use the first two as well: only what this group had counts.
        assert not held & {f"/dev/shm/{name}" for name in after[0]}
        assert not [name for name in after[1] - before[1] if name.startswith(("ompi", "fsb-"))]
        assert after[2] == before[2]

    def test_a_long_scratch_path(self, settings: Settings, flavour: str, tmp_path: Path) -> None:
        scratch = tmp_path / ("long" * 30)
        scratch.mkdir()
        before = set(os.listdir(tempfile.gettempdir()))
        chosen = replace(under(flavour, settings), scratch=str(scratch))
        bench = Bench(lambda given: MpiWorker(given, 2), chosen)
        check_sum(bench, 2)
        bench.worker.close()
        bench.wait_until_none_is_left()
        left = set(os.listdir(tempfile.gettempdir())) - before
        assert not [name for name in left if name.startswith("fsb-")]

    def test_the_cores_are_shared_out(self, group: Any, settings: Settings, flavour: str) -> None:
        cores = tuple(sorted(os.sched_getaffinity(0))[:2])
        if len(cores) < 2:
            pytest.skip("one core only")
        chosen = replace(under(flavour, settings), cpus=cores)
        bench = Bench(lambda given: MpiWorker(given, 2), chosen)
        found = bench.value(bench.call(lambda: sorted(os.sched_getaffinity(0))))
        bench.worker.close()
        bench.wait_until_none_is_left()
        assert found == [[cores[0]], [cores[1]]]


# -- groups that cannot start ------------------------------------------------------------


def refused(settings: Settings, ranks: int = 2) -> errors.FsbrokerError:
    """Why a group is lost before it is ready."""
    bench = Bench(lambda given: MpiWorker(given, ranks), settings)
    bench.send(add, 1)
    started = time.monotonic()
    lost = bench.lost()
    assert time.monotonic() - started < 20
    assert not lost.ready
    assert not bench.left()
    bench.worker.close()
    return lost.error


@pytest.mark.mpich
@pytest.mark.openmpi
class TestMismatch:
    def test_open_mpis_launcher_and_mpich(self, settings: Settings) -> None:
        chosen = under("openmpi", settings)
        error = refused(replace(chosen, environment=settings.environment))
        for part in (str(find("openmpi").mpiexec), "MPI4PY_MPIABI"):
            assert part in str(error)

    def test_mpichs_launcher_and_open_mpi(self, settings: Settings) -> None:
        chosen = under("mpich", settings)
        error = refused(replace(chosen, environment=under("openmpi", settings).environment))
        for part in ("2 MPI ranks", "found 1", "Open MPI v", "MPICH", "MPI4PY_MPIABI"):
            assert part in str(error)


class TestStart:
    def launcher(self, path: Path, script: str) -> tuple[str, ...]:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        return (str(path), "{ranks}")

    def test_a_missing_launcher_is_named_with_its_cure(self, settings: Settings) -> None:
        chosen = replace(settings, launcher=("no-such-mpiexec", "-n", "{ranks}"))
        with pytest.raises(errors.MissingProgram, match=r"no-such-mpiexec.*fsbroker\[mpi\]"):
            MpiWorker(chosen, 2)

    def test_a_launcher_that_fails_is_quoted(self, settings: Settings, tmp_path: Path) -> None:
        script = "echo no slots for $1 >&2; exit 4"
        error = refused(replace(settings, launcher=self.launcher(tmp_path / "run", script)))
        assert "exit code 4" in str(error)
        assert "no slots for 2" in str(error)

    def test_a_group_that_does_not_come_up(
        self, settings: Settings, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(mpi, "START_LIMIT", 0.5)
        script = "echo waiting for nodes >&2; setsid sleep 1000 & sleep 1000"
        error = refused(replace(settings, launcher=self.launcher(tmp_path / "run", script)))
        assert "waiting for nodes" in str(error)

    def test_mpi4py_is_missing(self, settings: Settings, tmp_path: Path) -> None:
        (tmp_path / "mpi4py").mkdir()
        (tmp_path / "mpi4py" / "__init__.py").write_text(
            "raise ModuleNotFoundError('No module named mpi4py', name='mpi4py')"
        )
        variables = {**settings.environment, "PYTHONPATH": str(tmp_path)}
        launcher = self.launcher(tmp_path / "run", 'shift; "$@"')
        error = refused(replace(settings, environment=variables, launcher=launcher))
        assert isinstance(error, errors.MissingExtra)
        assert "fsbroker[mpi]" in str(error)

    def test_a_stranger_is_not_let_in(self, settings: Settings, tmp_path: Path) -> None:
        """Who connects without the token is no rank."""
        import socket

        from fsbroker.agent import messages

        chosen = replace(settings, launcher=self.launcher(tmp_path / "run", "exec sleep 1000"))
        bench = Bench(lambda given: MpiWorker(given, 1), chosen)
        assert os.stat(os.path.dirname(bench.worker._place.door.address)).st_mode & 0o77 == 0
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(bench.worker._place.door.address)
            stranger.sendall(messages.frame(messages.Hello(0, 1, 1)))
            stranger.settimeout(0.01)
            bench.until(lambda _: _hung_up(stranger))
        assert not bench.worker.ready
        bench.worker.close()
        bench.wait_until_none_is_left()


def _hung_up(peer: Any) -> bool:
    try:
        return bool(peer.recv(1) == b"")
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


# -- gathering ---------------------------------------------------------------------------


def test_values_of_ranks_become_a_list(settings: Settings) -> None:
    arrays = Arrays(settings.spool, settings.area, False)
    large = np.random.default_rng().random(200_000)
    values = [1, {"a": np.arange(3)}, {2}, (large, {large.size}), None]
    reports = [
        Ended(9, n, 1, arrays.store(pickling.encode(v)), None, n, 0.5 + n, 1.0, 10, b"", b"")
        for n, v in enumerate(values)
    ]
    random.shuffle(reports)
    whole = mpi.gather(reports)
    payload = arrays.fetch(whole.value)
    found = pickling.decode(payload.encoding, payload.data, payload.arrays)
    np.testing.assert_equal(found[1:4:2], values[1:4:2])
    assert [found[0], found[2], found[4]] == [1, {2}, None]
    assert (whole.started, whole.wall, whole.cpu, whole.peak_memory) == (0, 4.5, 5.0, 50)
    assert len(os.listdir(Path(settings.spool, "users/u/blobs"))) == 1


def test_what_launchers_say_of_a_death() -> None:
    hydra = (
        b"=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES\n"
        b"=   PID 71 RUNNING AT node1\n=   EXIT CODE: 9\n"
        b"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Killed (signal 9)\n"
    )
    assert mpi.read_death(hydra, {70: 0, 71: 1}) == (1, "killed by signal 9 (SIGKILL)")
    code = b"=   PID 70 RUNNING AT node1\n=   EXIT CODE: 3\n"
    assert mpi.read_death(code, {70: 0}) == (0, "exit code 3")
    orte = b"mpirun noticed that process rank 2 with PID 0 on node n exited on signal 11 (Seg"
    assert mpi.read_death(orte, {}) == (2, "killed by signal 11 (SIGSEGV)")
    assert mpi.read_death(b"nothing", {}) is None


def test_failures_need_not_be_reported_by_all() -> None:
    error = {"type": "ValueError"}
    value = Value(Encoding.PLAIN, b"null")
    reports = [
        Ended(1, 3, Status.FAILED, value, error, 0, 1, 1, 1, b"", b""),
        Ended(1, 1, Status.DONE, value, None, 0, 1, 1, 1, b"", b""),
        Ended(1, 2, Status.FAILED, value, error, 0, 1, 1, 1, b"", b"x"),
    ]
    whole = mpi.gather(reports)
    assert (whole.rank, whole.status) == (2, Status.FAILED)
    assert whole.error == {"type": "ValueError", "rank": "2"}
    assert whole.outputs == (Output(2, b"", b"x"),)


def test_ranks_beyond_the_cores_share_them() -> None:
    from fsbroker.agent.worker import _share

    assert [_share([4, 5, 6, 7], rank, 2) for rank in range(2)] == [[4, 5], [6, 7]]
    assert _share([4], 1, 2) == [4]
    assert _share(None, 0, 2) is None


@pytest.mark.mpich
def test_the_interpreters_own_launcher_is_found_first(settings: Settings) -> None:
    found = mpi.find_launcher(settings.launcher, settings, 3)
    beside = Path(sys.executable).parent / "mpiexec"
    expected = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert found == [expected, "-n", "3"]
    assert subprocess.run([found[0], "--version"], capture_output=True, check=False).returncode == 0
