"""The private SLURM cluster: that it does what real ones do, and leaves nothing behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.testbed import mpi, users
from tests.testbed import slurm as testbed
from tests.testbed.slurm import Cluster

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]

# Rank 0 prints where all ranks are.
RANK = """
import socket
from mpi4py import MPI
nodes = MPI.COMM_WORLD.gather(socket.gethostname())
if nodes:
    print(*nodes)
"""
TWO_RANKS_ON_EACH = "n1 n1 n2 n2\n"

# What a job writes, from when on it ignores that it is asked to end.
STUBBORN = "--wrap=sh -c 'trap \"\" TERM; while :; do echo $(hostname); sleep 0.1; done'; true"


def processes_of(directory):
    """The names of all processes on this machine that know the cluster in that directory."""
    names = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == f"{directory}/slurm.conf":
                names.append(process.name())
    return names


def written(path):
    return path.read_text().split() if path.exists() else []


def test_a_step_spans_all_nodes(slurm):
    assert sorted(slurm.run(["srun", "--nodes=3", "hostname"]).stdout.split()) == slurm.nodes


@pytest.mark.parametrize(
    "command",
    [
        "readlink /proc/self/ns/pid",
        "readlink /proc/self/ns/ipc",
        "cat /proc/sys/kernel/random/boot_id",
        "stat --format=%d /dev/shm",
    ],
)
def test_nodes_are_different_machines(slurm, command):
    said = slurm.run(["srun", "--nodes=3", *command.split()]).stdout.split()
    here = subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
    assert len({*said, here.strip()}) == 4


def test_a_batch_job_writes_where_it_was_told(slurm, tmp_path):
    job = slurm.sbatch(f"--output={tmp_path}/%j", "--wrap=hostname")
    slurm.wait_for(lambda: slurm.state(job) == "COMPLETED")
    assert (tmp_path / str(job)).read_text() == "n1\n"


def test_a_test_and_its_children_find_the_cluster(slurm):
    said = subprocess.run(["sinfo", "--noheader", "--format=%N"], capture_output=True, check=True)
    assert said.stdout == b"n[1-3]\n"


def test_a_failed_command_says_why(slurm):
    with pytest.raises(RuntimeError, match=r"sbatch ended with 1: .*partition"):
        slurm.sbatch("--partition=none", "--wrap=true")


def test_a_wait_that_is_over_shows_the_logs(slurm):
    with pytest.raises(TimeoutError, match=r"--- slurmctld\.log"):
        slurm.wait_for(lambda: False, limit=0)


def test_a_cancelled_job_leaves_its_orphans(slurm, tmp_path):
    """As under proctrack/linuxproc; `restore` ends them."""
    out = tmp_path / "out"
    job = slurm.sbatch(f"--output={out}", STUBBORN)
    slurm.wait_for(lambda: written(out))
    slurm.run(["scancel", job])
    slurm.wait_for(lambda: slurm.state(job) == "CANCELLED")
    before = len(written(out))
    slurm.wait_for(lambda: len(written(out)) > before)
    slurm.restore()
    assert slurm.on("n1", ["ps", "-e", "-o", "comm="]).split() == ["node.sh", "cat", "slurmd", "ps"]


def test_a_cluster_beside_it_with_other_settings(slurm, tmp_path):
    out = tmp_path / "out"
    with Cluster(nodes=1, cpus=4, proctrack="pgid") as other:
        assert other.run(["srun", "--ntasks=4", "hostname"]).stdout.split() == ["n1"] * 4
        job = other.sbatch(f"--output={out}", STUBBORN)
        other.wait_for(lambda: written(out))
        other.run(["scancel", job])
        other.wait_for(lambda: "sh" not in processes_of(other.directory))
        assert slurm.node_states() == dict.fromkeys(slurm.nodes, "idle")
        os.kill(other._machines["n1"].first, signal.SIGKILL)  # it stops all the same
    assert processes_of(other.directory) == []
    assert not other.directory.exists()


def test_ports_that_somebody_uses_are_left_alone():
    claim, taken = testbed._claim_ports()
    with claim, socket.create_server(("127.0.0.1", taken)):
        claim.close()
        claim, port = testbed._claim_ports()
        claim.close()
        assert port != taken


def test_no_port_is_open_to_others(slurm):
    daemons = {
        process.pid
        for process in psutil.process_iter()
        if process.name() in ("slurmctld", "slurmd")
        and process.environ()["SLURM_CONF"] == f"{slurm.directory}/slurm.conf"
    }
    listening = [
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.pid in daemons and connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"] * 4


def test_two_jobs_have_different_gpus(slurm, tmp_path):
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_JOB_GPUS")
    echo = "--wrap=echo " + " ".join(f"${{{name}:-none}}" for name in names) + "; sleep 100"
    outs = [tmp_path / str(number) for number in range(3)]
    for out, gpus in zip(outs, ("gpu:1", "gpu:1", "none"), strict=True):
        slurm.sbatch(f"--output={out}", "--mem=1", f"--gres={gpus}", echo)
    slurm.wait_for(lambda: all(map(written, outs)))
    assert [written(out) for out in outs] == [["0"] * 3, ["1"] * 3, ["none"] * 3]


def test_memory_is_handed_out(slurm):
    first = slurm.sbatch("--nodelist=n1", "--mem=1500", "--output=/dev/null", "--wrap=sleep 100")
    second = slurm.sbatch("--nodelist=n1", "--mem=1000", "--output=/dev/null", "--wrap=sleep 100")
    slurm.wait_for(lambda: slurm.jobs()[second].reason == "Resources")
    assert slurm.state(first) == "RUNNING"


@pytest.mark.users
def test_other_users_run_jobs(slurm, accounts):
    setting = f"SLURM_CONF={slurm.directory}/slurm.conf"
    done = users.run_as(accounts.a, ["env", setting, "srun", "id", "--user", "--name"])
    assert done.stdout.strip() == accounts.a.name, done.stderr


@pytest.mark.mpich
def test_mpich_through_pmi2(slurm):
    step = ["srun", "--mpi=pmi2", "--nodes=2", "--ntasks=4", sys.executable, "-c", RANK]
    assert slurm.run(step).stdout == TWO_RANKS_ON_EACH


@pytest.mark.openmpi
def test_open_mpi_through_pmix(slurm):
    step = ["srun", "--mpi=pmix", "--nodes=2", "--ntasks=4", sys.executable, "-c", RANK]
    env = {**slurm.environment(), **mpi.find("openmpi").settings}
    assert slurm.run(step, env=env).stdout == TWO_RANKS_ON_EACH


@pytest.mark.mpich
def test_mpiexec_starts_ranks_on_the_nodes_of_its_job(slurm, tmp_path):
    script, out = tmp_path / "rank.py", tmp_path / "out"
    script.write_text(RANK)
    command = f"{mpi.find('mpich').mpiexec} -n 4 {sys.executable} {script}"
    job = slurm.sbatch("--nodes=2", "--ntasks=4", f"--output={out}", f"--wrap={command}")
    slurm.wait_for(lambda: slurm.state(job) == "COMPLETED")
    assert out.read_text() == TWO_RANKS_ON_EACH


def test_a_controller_that_was_away_knows_its_jobs_again(slurm, tmp_path):
    out = tmp_path / "out"
    job = slurm.sbatch(f"--output={out}", STUBBORN)
    slurm.wait_for(lambda: written(out))
    slurm.stop_controller()
    before = len(written(out))
    assert "Unable to contact" in slurm.run(["squeue"], check=False).stderr
    assert len(written(out)) > before
    slurm.start_controller()
    assert slurm.state(job) == "RUNNING"


def test_a_job_of_a_lost_node_runs_again_beside_its_first_instance(slurm, tmp_path):
    both = ["--open-mode=append", f"--output={tmp_path}/%j", "--nodes=1", STUBBORN]
    again = slurm.sbatch("--requeue", "--exclude=n3", *both)
    never = slurm.sbatch("--no-requeue", "--nodelist=n3", *both)
    slurm.wait_for(lambda: written(tmp_path / str(again)) and written(tmp_path / str(never)))
    slurm.kill_node("n1")
    slurm.power_off("n3")
    slurm.wait_for(lambda: slurm.state(never) == "NODE_FAIL")
    assert slurm.node_states() == {"n1": "down*", "n2": "idle", "n3": "down*"}
    lost = written(tmp_path / str(never))
    slurm.wait_for(lambda: "n2" in written(tmp_path / str(again)))
    assert {"n1", "n2"} == set(written(tmp_path / str(again))[-20:])
    assert written(tmp_path / str(never)) == lost
    assert slurm.jobs()[again].nodes == "n2"


def test_restored_it_is_as_new(slurm):
    slurm.sbatch("--hold", "--output=/dev/null", "--wrap=true")
    slurm.sbatch("--nodes=3", "--output=/dev/null", STUBBORN)
    slurm.run(["scontrol", "update", "node=n3", "state=drain", "reason=test"])
    slurm.stop_controller()
    slurm.kill_node("n1")
    slurm.power_off("n2")
    slurm.restore()
    assert slurm.run(["squeue", "--noheader"]).stdout == ""
    assert sorted(slurm.run(["srun", "--nodes=3", "hostname"]).stdout.split()) == slurm.nodes


def test_it_ends_with_the_process_that_started_it(slurm, tmp_path):
    program = """if 1:
        import time
        from tests.testbed.slurm import Cluster
        cluster = Cluster(nodes=1)
        cluster.start()
        cluster.sbatch("--output=/dev/null", "--wrap=setsid sleep 1000 & sleep 1000")
        cluster.wait_for(lambda: "sleep" in cluster.on("n1", ["ps", "-e"]))
        print(cluster.directory, flush=True)
        time.sleep(1000)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE
    ) as owner:
        directory = Path(os.fsdecode(owner.stdout.readline().strip()))
        running = processes_of(directory)
        owner.kill()
    assert {"munged", "slurmctld", "slurmd", "sleep"} <= set(running)
    slurm.wait_for(lambda: processes_of(directory) == [])
    testbed._sweep_once.__wrapped__()
    assert not directory.exists()


def test_a_cluster_that_does_not_come_up_says_why_and_goes(slurm):
    cluster = Cluster(nodes=1, proctrack="none")
    with pytest.raises(RuntimeError, match=r"(?s)slurmd does not start:.*proctrack/none"):
        cluster.start()
    assert not cluster.directory.exists()


def test_a_command_can_be_run_with_a_cluster():
    program = [sys.executable, "-m", "tests.testbed.slurm", "--nodes=1", "srun", "hostname"]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"n1\n"


def test_where_it_cannot_run_it_says_why(monkeypatch):
    assert testbed.missing() is None
    with monkeypatch.context() as here:
        here.setattr(os, "geteuid", lambda: 1000)
        assert testbed.missing() == "only root can make the namespaces of pretend nodes"
    program = "from tests.testbed.slurm import missing; print(missing())"
    unable = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run(
        [*unable, sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout == b"unshare: unshare failed: Operation not permitted\n"
    monkeypatch.setattr(testbed, "PROGRAMS", ["no-such-program"])
    assert testbed.missing() == "the program no-such-program is not installed"
