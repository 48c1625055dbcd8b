"""Programs inside tasks: they get what the task has, no more, and end with it."""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cloudpickle
import pytest

import fsbroker
from fsbroker import ClusterExecutor, cli, errors
from fsbroker.agent import launchers, processes
from fsbroker.agent.launchers import TABLE, Launch
from fsbroker.agent.memory import memory_of
from fsbroker.agent.mpi import MpiWorker
from fsbroker.agent.processes import Settings, environment
from fsbroker.agent.workers import SerialWorker
from fsbroker.launch.local import visible_gpus
from fsbroker.nodes import slot_in
from tests.test_mpi import BOTH, under
from tests.test_workers import MARK, Bench, settings, wait_for
from tests.testbed.mpi import find
from tests.testbed.slurm import Cluster

__all__ = ["settings"]

cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def exe(tmp_path_factory) -> Iterator[ClusterExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        visible_gpus.cache_clear()
        directory = tmp_path_factory.mktemp("programs")
        with ClusterExecutor(
            directory, max_workers=2, resource_dict={"cache": "off"}, idle_timeout=3
        ) as executor:
            yield executor
    visible_gpus.cache_clear()


# -- a compiled MPI program --------------------------------------------------------------

# Both MPIs, without the headers that neither of them brings everywhere.
SOURCE = """
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef OPENMPI
extern char ompi_mpi_comm_world;
typedef void *MPI_Comm;
#define WORLD ((MPI_Comm)&ompi_mpi_comm_world)
#else
typedef int MPI_Comm;
#define WORLD ((MPI_Comm)0x44000000)
#endif
int MPI_Init(int *, char ***), MPI_Finalize(void);
int MPI_Comm_rank(MPI_Comm, int *), MPI_Comm_size(MPI_Comm, int *), MPI_Barrier(MPI_Comm);

int main(int argc, char **argv)
{
    int rank, size;
    char host[256];
    cpu_set_t cpus;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(WORLD, &rank);
    MPI_Comm_size(WORLD, &size);
    gethostname(host, sizeof host);
    sched_getaffinity(0, sizeof cpus, &cpus);
    printf("%d %d %s %s gpus=%s cpus=%d\\n", rank, size, host, getenv("OMP_NUM_THREADS"),
           getenv("CUDA_VISIBLE_DEVICES"), CPU_COUNT(&cpus));
    fflush(stdout);
    MPI_Barrier(WORLD);
    MPI_Finalize();
    return 0;
}
"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Any:
    """Makes the program for one MPI; its path."""

    def build(flavour: str) -> str:
        if shutil.which("gcc") is None:
            pytest.skip("gcc is not installed")
        directory = tmp_path_factory.mktemp(flavour)
        (directory / "ranks.c").write_text(SOURCE)
        lib = Path(find(flavour).mpiexec).resolve().parents[1] / "lib"
        library = {"mpich": "-l:libmpi.so.12", "openmpi": "-l:libmpi.so.40"}[flavour]
        options = [f"-L{lib}", f"-Wl,-rpath,{lib}"] if lib != Path("/usr/lib") else []
        argv = ["gcc", "ranks.c", "-o", "ranks", f"-D{flavour.upper()}", *options, library]
        done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no MPI program can be compiled: {done.stderr.splitlines()[-1]}")
        return str(directory / "ranks")

    return build


def start(program: str) -> fsbroker.Completed:
    """On the first rank, where there are several."""
    if fsbroker.resources().ranks > 1:
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank:
            return None
    return fsbroker.run([program], mpi=True, check=True)


def lines(done: fsbroker.Completed | Exception) -> list[list[str]]:
    if isinstance(done, Exception):
        raise done
    return sorted(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("flavour", BOTH)
class TestMpiPrograms:
    def test_a_task_of_one_rank_gives_all_its_cores(self, exe, compiled, flavour: str) -> None:
        future = exe.submit(start, compiled(flavour), resource_dict={"threads_per_core": 2})
        found = lines(future.result())
        assert [line[:2] for line in found] == [["0", "2"], ["1", "2"]]
        assert {tuple(line[3:5]) for line in found} == {("1", "gpus=")}

    @pytest.mark.parametrize("groups_mpi", BOTH)
    def test_a_rank_starts_as_many(
        self, settings: Settings, compiled: Any, flavour: str, groups_mpi: str
    ) -> None:
        """Whichever MPI the ranks have: nothing of their launch reaches the program."""
        # By its name: with a path, it would be what the site wants for all programs.
        template = (Path(find(groups_mpi).mpiexec).name, "-n {ranks}")
        chosen = replace(under(groups_mpi, settings), launcher=template)
        bench = Bench(lambda given: MpiWorker(given, 2), chosen)
        value = bench.value(bench.call(start, compiled(flavour)))
        bench.worker.close()
        assert [line[:2] for line in lines(value[0])] == [["0", "2"], ["1", "2"]]
        assert value[1] is None

    def test_ranks_stay_on_the_tasks_cores_and_gpus(
        self, settings: Settings, compiled: Any, flavour: str
    ) -> None:
        core = max(os.sched_getaffinity(0))
        chosen = replace(settings, cpus=(core,), threads=2, gpus=("7",))
        bench = Bench(SerialWorker, chosen)
        found = lines(bench.value(bench.call(start, compiled(flavour))))
        bench.worker.close()
        assert [line[3:] for line in found] == [["1", "gpus=7", "cpus=1"]] * 2


# -- what a task has ---------------------------------------------------------------------


class TestResources:
    def test_a_task_knows_what_it_has(self, settings: Settings) -> None:
        chosen = replace(settings, threads=3, gpus=("1",), memory=2000, nodes=("a", "b"))
        bench = Bench(SerialWorker, chosen)
        found = bench.value(bench.call(fsbroker.resources))
        bench.worker.close()
        assert found == fsbroker.TaskResources(1, 3, ("1",), 2000, ("a", "b"), None)

    def test_a_program_of_a_task_may_ask(self, exe) -> None:
        ask = "import fsbroker; print(fsbroker.resources().threads_per_core)"
        argv = [sys.executable, "-c", ask]
        future = exe.submit(fsbroker.run, argv, resource_dict={"threads_per_core": 2})
        assert future.result().stdout == "2\n"

    def test_the_size_of_an_mpi_task(self, exe) -> None:
        found = exe.submit(fsbroker.resources, resource_dict={"cores": 2}).result()
        assert [each.ranks for each in found] == [2, 2]

    def test_outside_of_a_task(self) -> None:
        found = fsbroker.resources()
        assert found.cpus == tuple(sorted(os.sched_getaffinity(0)))
        assert (found.ranks, found.threads_per_core) == (1, len(found.cpus))
        assert found.gpus == visible_gpus()

    def test_in_a_job_that_a_task_has_submitted(self, settings: Settings) -> None:
        """It has the task's variables, and none of its cores."""
        variables = environment(settings, {"SLURM_JOB_ID": "7"})
        assert slot_in(variables)
        assert slot_in({**variables, "SLURM_JOB_ID": "8"}) is None
        assert slot_in({**environment(settings, {}), "SLURM_JOB_ID": "8"}) is None

    def test_no_module_takes_the_functions_place(self) -> None:
        for module in pkgutil.iter_modules(fsbroker.__path__):
            importlib.import_module(f"fsbroker.{module.name}")
        assert callable(fsbroker.resources)

    def test_gpus_of_tasks_that_run_at_once(self, exe, tmp_path: Path) -> None:
        def meet(name: str, other: str, directory: str) -> tuple[str, tuple[str, ...]]:
            Path(directory, name).touch()
            deadline = time.monotonic() + 30
            while not Path(directory, other).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert time.monotonic() < deadline
            return os.environ["CUDA_VISIBLE_DEVICES"], fsbroker.resources().gpus

        one = {"gpus_per_core": 1}
        futures = [
            exe.submit(meet, *names, str(tmp_path), resource_dict=one)
            for names in (("a", "b"), ("b", "a"))
        ]
        assert sorted(future.result() for future in futures) == [("3", ("3",)), ("5", ("5",))]
        assert exe.submit(meet, "c", "c", str(tmp_path)).result() == ("", ())


# -- commands ----------------------------------------------------------------------------


def slot(monkeypatch: pytest.MonkeyPatch, settings: Settings, ranks: int = 1) -> None:
    """Pretend to be in a task."""
    told = json.loads(processes.environment(settings, {})[processes.SLOT])
    monkeypatch.setenv(processes.SLOT, json.dumps({**told, "ranks": ranks}))


class TestCommand:
    @pytest.mark.parametrize(
        ("has", "asked", "expected"),
        [
            ((1, 4), {}, (4, 1)),
            ((1, 4), {"ranks": 2}, (2, 2)),
            ((1, 4), {"threads": 2}, (2, 2)),
            ((1, 4), {"ranks": 1}, (1, 4)),
            ((2, 2), {}, (2, 2)),
            ((2, 2), {"ranks": 4}, (4, 1)),
        ],
    )
    def test_cores_are_ranks_times_threads(
        self, monkeypatch, settings, has: Any, asked: Any, expected: Any
    ) -> None:
        slot(monkeypatch, replace(settings, threads=has[1], launcher=("sh", "{ranks}")), has[0])
        found = fsbroker.mpi_command(["prog", Path("x")], **asked)
        assert found[0].endswith("/sh")
        assert found[1] == str(expected[0])
        assert f"OMP_NUM_THREADS={expected[1]}" in found
        assert found[-2:] == ["prog", "x"]

    def test_no_more_than_the_task_has(self, monkeypatch, settings) -> None:
        slot(monkeypatch, replace(settings, threads=4))
        with pytest.raises(errors.ResourceError, match="more than the 4 cores"):
            fsbroker.mpi_command(["prog"], ranks=3, threads=2)
        with pytest.raises(errors.ResourceError, match="at least one"):
            fsbroker.mpi_command(["prog"], ranks=0)
        slot(monkeypatch, replace(settings, launcher=("true", "{ranks}"), oversubscribe=True))
        assert fsbroker.mpi_command(["prog"], ranks=8)[1] == "8"

    @pytest.mark.parametrize("argv", ["lmp -in x", []])
    def test_a_program_is_a_list(self, argv: Any) -> None:
        with pytest.raises(errors.ResourceError, match="given as a list"):
            fsbroker.mpi_command(argv)

    def test_a_launcher_that_is_missing(self, monkeypatch, settings) -> None:
        slot(monkeypatch, replace(settings, launcher=("no-such-launcher",)))
        with pytest.raises(errors.MissingProgram, match="no-such-launcher"):
            fsbroker.mpi_command(["prog"])


class TestTable:
    def test_a_plain_launch(self) -> None:
        for name in ("mpiexec", "mpich", "openmpi"):
            assert launchers.fill(TABLE[name], Launch(3)) == ["mpiexec", "-n", "3"]

    def test_nodes_in_each_launchers_words(self) -> None:
        launch = Launch(
            3,
            nodes=("n1", "n2"),
            oversubscribe=True,
            pmi="pmix",
            memory=1001,
            brokers=(4, 7),
        )
        filled = {name: " ".join(launchers.fill(row, launch)) for name, row in TABLE.items()}
        assert filled["mpich"] == "mpiexec -n 3 -hosts n1,n2 -ppn 2"
        assert filled["openmpi"] == "mpiexec -n 3 --host n1:2,n2:2 --oversubscribe"
        assert "--nodes=2 --nodelist=n1,n2 --ntasks-per-node=2" in filled["srun"]
        assert "--overcommit --mpi=pmix" in filled["srun"]
        assert "--gres=none" in filled["srun"]
        assert "--nodes=2 --requires=rank:4,7" in filled["flux"]

    def test_a_sites_own_row(self) -> None:
        own = ("run", "-c {threads}", "--gpus={gpus}", "--mem={memory}", "-k '{ranks} {nodes}'")
        found = launchers.fill(own, Launch(2, 4, memory=9))
        assert found == ["run", "-c", "4", "--mem=9", "-k", "2 1"]

    @pytest.mark.parametrize("argument", ["{rank}", "{ranks", "{}"])
    def test_a_mistake_is_named(self, argument: str) -> None:
        with pytest.raises(errors.ResourceError, match=re.escape(repr(argument))):
            launchers.fill(("run", argument), Launch(1))

    def test_pmi(self) -> None:
        offered = "MPI plugin types are...\n\tnone\n\tpmix\n\tpmi2\n"
        names = ("MPICH Version: 5", "Open MPI v4.1.4", "libmpi_cray.so.12 => x", "nothing")
        found = [launchers.pmi_for(launchers.mpi_of(name), offered) for name in names]
        assert found == ["pmi2", "pmix", "", ""]


class TestEnvironment:
    JOB = MappingProxyType({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CONF": "x"})

    def test_of_slurm_the_job_stays_and_the_step_goes(self) -> None:
        step = dict.fromkeys(
            ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_SRUN_COMM_PORT"), "1"
        )
        assert processes.without_launch({**self.JOB, **step}) == self.JOB

    def test_a_plain_srun_takes_what_the_task_has(self, settings: Settings) -> None:
        job = {**self.JOB, "SLURM_NTASKS": "64", "SLURM_MEM_PER_CPU": "1000", "SLURM_NNODES": "2"}
        found = processes.environment(replace(settings, threads=4), job)
        assert "SLURM_MEM_PER_CPU" not in found
        options = {name: found[f"SLURM_{name}"] for name in ("NTASKS", "NNODES", "OVERLAP", "GRES")}
        assert options == {"NTASKS": "4", "NNODES": "1", "OVERLAP": "1", "GRES": "none"}
        assert found.items() >= self.JOB.items()
        assert not any(name.startswith("SLURM_") for name in processes.environment(settings, {}))


# -- fsbroker.run ------------------------------------------------------------------------


class TestRun:
    @pytest.fixture(autouse=True)
    def temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where logs go outside of tasks."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def test_what_it_tells(self, exe, tmp_path: Path) -> None:
        script = "cat; pwd; echo trouble >&2; exit 3"
        done = exe.submit(fsbroker.run, ["sh", "-c", script], cwd=tmp_path, stdin="in\n").result()
        assert done.argv == ("sh", "-c", script)
        assert (done.returncode, done.stderr) == (3, "trouble\n")
        assert done.stdout == f"in\n{tmp_path}\n"
        assert Path(done.stdout_log).read_text() == done.stdout
        assert Path(done.stderr_log).read_text() == done.stderr

    def test_a_failure_is_an_error_if_wished(self, exe) -> None:
        argv = ["sh", "-c", "echo last words >&2; kill -9 $$"]
        with pytest.raises(errors.ProgramFailed, match=r"(?s)signal 9.*last words"):
            exe.submit(fsbroker.run, argv, check=True).result()
        assert exe.submit(fsbroker.run, ["true"], check=True).result().returncode == 0

    @pytest.mark.parametrize("mpi", [False, True])
    def test_a_missing_program(self, exe, tmp_path: Path, mpi: bool) -> None:
        (tmp_path / "script").write_text("not executable")
        for argv in (["no-such-program"], ["./script"]):
            with pytest.raises(errors.MissingProgram, match=argv[0]):
                exe.submit(fsbroker.run, argv, cwd=str(tmp_path), mpi=mpi).result()

    def test_a_program_beside_its_input(self, tmp_path: Path) -> None:
        (tmp_path / "script").write_text("#!/bin/sh\npwd\n")
        (tmp_path / "script").chmod(0o700)
        assert fsbroker.run(["./script"], cwd=tmp_path).stdout == f"{tmp_path}\n"

    def test_a_missing_directory(self, exe) -> None:
        with pytest.raises(errors.MissingDirectory, match="/no/such"):
            exe.submit(fsbroker.run, ["true"], cwd="/no/such").result()

    def test_much_output_loses_its_middle(self) -> None:
        done = fsbroker.run([sys.executable, "-c", "print('a' * 3000000)"])
        assert "bytes left out" in done.stdout
        assert len(done.stdout) < 2_200_000
        assert Path(done.stdout_log).stat().st_size == 3_000_001

    def test_its_key_is_the_same_in_every_session(self, tmp_path: Path) -> None:
        script = (
            "import sys, fsbroker\n"
            "exe = fsbroker.ClusterExecutor(sys.argv[1], backend='none')\n"
            "print(exe.submit(fsbroker.run, ['lmp', '-in', 'x'], cwd='/', stdin='a').key.hex())\n"
            "exe.shutdown(wait=False)\n"
        )
        keys = [
            subprocess.run(
                [sys.executable, "-c", script, str(tmp_path / "spool")],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for directory, seed in ((tmp_path, "1"), ("/", "2"))
        ]
        assert keys[0] == keys[1] != ""


# -- the end -----------------------------------------------------------------------------

DAEMON = """
import os, signal, sys, time
if os.fork():
    sys.exit()
os.setsid()
if os.fork():
    sys.exit()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("daemon.new", "w") as file:
    file.write(str(os.getpid()))
os.rename("daemon.new", "daemon")
time.sleep(1000)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class TestEnd:
    @pytest.mark.parametrize("how", ["limit", "cancel"])
    def test_daemons_of_programs_end_with_the_task(self, exe, tmp_path: Path, how: str) -> None:
        argv = ["sh", "-c", f'"{sys.executable}" -c "$0"; sleep 1000', DAEMON]
        limit = {"run_time_max": 1.0 if how == "limit" else 100.0}
        future = exe.submit(fsbroker.run, argv, cwd=str(tmp_path), resource_dict=limit)
        wait_for((tmp_path / "daemon").exists)
        pid = int((tmp_path / "daemon").read_text())
        if how == "limit":
            assert isinstance(future.exception(timeout=30), errors.TimeLimitExceeded)
        else:
            root = str(exe._spool.files.root)
            assert cli.main(["cancel", "--spool", root, future.key.hex()]) == 0
            with pytest.raises(errors.TaskCancelled):
                future.result(timeout=30)
        assert not is_alive(pid)

    def test_programs_are_asked_first(self, settings: Settings, tmp_path: Path) -> None:
        """As srun must be, which has processes on other nodes."""
        bench = Bench(SerialWorker, settings)
        script = "trap 'echo asked > asked; exit' TERM; echo > begun; while :; do sleep 0.1; done"
        bench.send(fsbroker.run, ["sh", "-c", script], cwd=str(tmp_path))
        wait_for((tmp_path / "begun").exists)
        bench.worker.kill()
        bench.lost()
        bench.worker.close()
        assert (tmp_path / "asked").read_text() == "asked\n"


class TestMemory:
    LIMIT = MappingProxyType({"memory_max": 0.3})

    @pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.mpich)])
    def test_too_much_ends_the_task_alone(self, exe, tmp_path: Path, cores: int) -> None:
        def fill(marks: str) -> None:
            with open(marks, "a") as file:
                file.write("x")
            held = bytearray(400 << 20)
            time.sleep(60)
            del held

        def go_on(file: str) -> int:
            while not os.path.exists(file):
                time.sleep(0.01)
            return os.getpid()

        marks = tmp_path / "marks"
        other = exe.submit(go_on, str(tmp_path / "go")) if cores == 1 else None
        future = exe.submit(fill, str(marks), resource_dict={"cores": cores, **self.LIMIT})
        error = future.exception(timeout=60)
        assert isinstance(error, errors.OutOfMemory)
        # How much both ranks have by the time somebody looks is not for us to say.
        used = re.search(r"used (\d+) MB, more than memory_max = 307 MB", str(error))
        assert used
        assert 307 < int(used[1]) < cores * 500
        assert marks.read_text() == "x" * cores  # no second try
        (tmp_path / "go").touch()
        assert other is None or other.result(timeout=30)

    def test_daemons_count(self, exe) -> None:
        script = "import time; x = bytearray(400 << 20); time.sleep(60)"
        argv = ["sh", "-c", f'setsid "{sys.executable}" -c "$0" & sleep 60', script]
        future = exe.submit(fsbroker.run, argv, resource_dict=self.LIMIT)
        assert isinstance(future.exception(timeout=60), errors.OutOfMemory)

    def test_what_is_shared_counts_once(self, exe) -> None:
        def share() -> float:
            held = b"x" * (120 << 20)
            children = []
            for _ in range(3):
                pid = os.fork()
                if not pid:
                    time.sleep(2)
                    os._exit(len(held) and 0)
                children.append(pid)
            seen = sum(memory_of([pid], math.inf) for pid in children)
            for pid in children:
                os.waitpid(pid, 0)
            return seen

        future = exe.submit(share, resource_dict={"memory_max": 0.3})
        assert future.result(timeout=60) > 0.3 * 2**30


# -- in a queue job ----------------------------------------------------------------------


def bench_in(directory: str, **chosen: Any) -> Bench:
    """An agent's worker, in a program that runs in a job."""
    for name in ("spool/users/u/tmp", "spool/users/u/blobs", "scratch"):
        os.makedirs(f"{directory}/{name}")
    places = {"spool": f"{directory}/spool", "scratch": f"{directory}/scratch"}
    return Bench(
        SerialWorker, Settings(area="users/u", environment={MARK: "in-job"}, **places, **chosen)
    )


def in_slurm(directory: str, program: str) -> None:
    """A task whose slot is both nodes of this job; what it found, as JSON."""
    hosts = subprocess.run(
        ["scontrol", "show", "hostnames"], capture_output=True, text=True, check=True
    )
    nodes = tuple(hosts.stdout.split())
    bench = bench_in(directory, threads=4, gpus=("1",), nodes=nodes, launcher=TABLE["srun"])
    found = {
        "compiled": lines(bench.value(bench.call(start, program))),
        "plain": bench.value(bench.call(fsbroker.run, ["srun", "hostname"])).stdout.split(),
    }
    sleep = ["sh", "-c", 'touch $(hostname); sleep "$0"', SLEEP]
    bench.send(fsbroker.run, sleep, cwd=directory, mpi=True)
    wait_for(lambda: all(os.path.exists(f"{directory}/{node}") for node in nodes))
    found["before the end"] = sleepers()
    bench.worker.kill()
    bench.lost()
    found["after the end"] = sleepers()
    bench.worker.close()
    Path(directory, "found").write_text(json.dumps(found))


SLEEP = "98765.4321"


def sleepers() -> int:
    """How many processes of the program there are on both nodes."""
    ask = ["srun", "--overlap", "--nodes=2", "--ntasks=2", "--mem=0", "--gres=none", "--quiet"]
    done = subprocess.run(
        [*ask, "sh", "-c", "pgrep -cx -f 'sleep 98765[.]4321'; true"],
        capture_output=True,
        text=True,
        check=True,
    )
    return sum(map(int, done.stdout.split()))


@pytest.mark.slurm
@pytest.mark.parametrize("flavour", BOTH)
@pytest.mark.parametrize("inside", ["batch script", "step"])
def test_a_task_of_one_rank_on_two_nodes(
    slurm: Cluster, compiled: Any, tmp_path: Path, flavour: str, inside: str
) -> None:
    """Also where the agent runs in a step, which has all of the first node's cores."""
    call = f"from tests.test_programs import in_slurm; in_slurm({str(tmp_path)!r}, "
    command = [sys.executable, "-c", f"{call}{compiled(flavour)!r})"]
    if inside == "step":
        command = ["srun", "--nodes=1", "--ntasks=1", "--cpus-per-task=2", "--exact", *command]
    job = slurm.sbatch(
        "--nodes=2",
        "--ntasks=4",
        "--gres=gpu:2",
        f"--chdir={tmp_path}",
        f"--output={tmp_path}/output",
        f"--export=ALL,PYTHONPATH={ROOT}",
        f"--wrap={shlex.join(command)}",
    )
    slurm.wait_for(lambda: slurm.state(job) not in ("PENDING", "RUNNING", "COMPLETING"))
    assert (tmp_path / "found").exists(), (tmp_path / "output").read_text()
    found = json.loads((tmp_path / "found").read_text())
    ranks = [(line[0], line[1], *line[3:5]) for line in found["compiled"]]
    assert ranks == [(str(rank), "4", "1", "gpus=1") for rank in range(4)]
    hosts = sorted(line[2] for line in found["compiled"])
    assert hosts == sorted(found["plain"])
    assert hosts[0] == hosts[1] != hosts[2] == hosts[3]
    assert (found["before the end"], found["after the end"]) == (4, 0)


def in_flux(directory: str, program: str) -> None:
    nodes = (os.uname().nodename,)
    bench = bench_in(directory, threads=2, nodes=nodes, launcher=TABLE["flux"])
    found = lines(bench.value(bench.call(start, program)))
    bench.worker.close()
    Path(directory, "found").write_text(json.dumps(found))


@pytest.mark.flux
def test_a_task_of_one_rank_in_flux(compiled: Any, tmp_path: Path) -> None:
    call = f"from tests.test_programs import in_flux; in_flux({str(tmp_path)!r}, "
    done = subprocess.run(
        ["flux", "start", sys.executable, "-c", f"{call}{compiled('mpich')!r})"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found").read_text())
    assert [line[:2] + line[3:5] for line in found] == [
        [str(rank), "2", "1", "gpus="] for rank in range(2)
    ]
