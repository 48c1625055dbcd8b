"""A private SLURM cluster on this machine, up in a second.

    with Cluster(nodes=3) as cluster:
        cluster.run(["srun", "--nodes=3", "hostname"]).stdout    # n1, n2, n3
        job = cluster.sbatch("--wrap=sleep 60")
        cluster.kill_node("n1")

The programs are the real ones. What is pretended is the machines: the
controller and each node have a host name, process numbers, /dev/shm and
/etc/hosts of their own (namespaces; see deploy/slurm/node.sh), and share
files, users and network with this machine. Each node declares two GPUs, devices
like /dev/null. When a cluster stops, or the process that started it dies in
whichever way, the kernel ends all that ran in it.

    python -m tests.testbed.slurm [--nodes 3] [--cpus 2] [COMMAND...]

runs a command, or else a shell, with such a cluster, as root.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.testbed import leftovers

PREFIX = "fsb-slurm"
DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "slurm"
PROGRAMS = ["slurmctld", "slurmd", "munged", "srun", "unshare", "nsenter", "mount"]
SYSTEM_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
GPUS = 2
NULL = os.makedev(1, 3)
CONTROLLER = "controller"

# Below the ports that the kernel gives to whoever asks for any; a block for each cluster.
FIRST_PORT, LAST_PORT, PORTS = 20000, 30000, 50

# On a node: kills all processes but its first two, this shell, and slurmd with its steps.
STRAYS = """
for process in /proc/[0-9]*; do
    number=${process#/proc/}
    case $number in 1 | $1 | $$) continue ;; esac
    { read -r name <$process/comm; } 2>/dev/null || continue
    case $name in slurmd | slurmstepd) ;; *) kill -KILL $number 2>/dev/null ;; esac
done
exit 0
"""

T = TypeVar("T")


class Job(NamedTuple):
    """A line of squeue."""

    id: int
    state: str
    reason: str
    nodes: str
    name: str


@dataclass
class Machine:
    """The controller or a node, switched on."""

    process: subprocess.Popen[str]
    first: int
    """The number of its first process, as others see it."""
    keeper: int
    """The number that the process which keeps it running has on the machine itself."""


class Cluster:
    """A controller and nodes n1, n2, ...; `directory` holds all their files.

    Args:
        nodes: how many.
        cpus: of each node; the machine need not have them. A node has 1000 MB for each.
        proctrack: how SLURM finds the processes of a job; see deploy/slurm/slurm.conf.in.
        gather: "linux" has SLURM kill jobs that use more memory than they have.
    """

    def __init__(
        self, nodes: int = 3, cpus: int = 2, proctrack: str = "linuxproc", gather: str = "none"
    ) -> None:
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._cpus = cpus
        self._proctrack = proctrack
        self._gather = gather
        self._machines: dict[str, Machine] = {}

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when a job step has run on all nodes.

        Raises:
            RuntimeError: it did not come up; with the ends of the logs.
        """
        _sweep_once()
        self.directory = Path(tempfile.mkdtemp(prefix=leftovers.prefix(PREFIX)))
        self.directory.chmod(0o755)  # other users may submit jobs
        self._claim, self._port = _claim_ports()
        self._end_of_life, self._life = os.pipe()
        try:
            self._configure()
            for name in (CONTROLLER, *self.nodes):
                self._switch_on(name)
            self._start_munge()
            self.start_controller()
            for name in self.nodes:
                self.start_node(name)
            self.wait_for(self._ready)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything, jobs and their orphans too, and remove the directory."""
        for name in list(self._machines):
            self.power_off(name)
        os.close(self._end_of_life)
        os.close(self._life)
        self._claim.close()
        shutil.rmtree(self.directory)

    def environment(self) -> dict[str, str]:
        """This process' environment, for programs outside of jobs."""
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PMI"))}
        return {**outer, "PATH": SYSTEM_PATH, "SLURM_CONF": str(self.directory / "slurm.conf")}

    def run(
        self, argv: Sequence[object], *, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that knows the cluster; its output is captured as text.

        Args:
            argv: the command.
            check: whether it must succeed.
            options: for `subprocess.run`.

        Raises:
            RuntimeError: it failed; with what it wrote to stderr.
        """
        settings = {"env": self.environment(), "timeout": 60, **options}
        done = subprocess.run(
            [str(arg) for arg in argv], capture_output=True, text=True, check=False, **settings
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done

    def on(self, machine: str, argv: Sequence[object], **options: Any) -> str:
        """Run a command on a node or on "controller", as ssh would; what it wrote to stdout.

        Process numbers are those of the machine: `on("n1", ["kill", "-STOP", pid])`.
        """
        first = self._machines[machine].first
        enter = ["nsenter", f"--target={first}", "--pid", "--uts", "--ipc", "--mount", "--"]
        return self.run([*enter, *argv], **options).stdout

    def sbatch(self, *arguments: object, **options: Any) -> int:
        """Submit a batch job; its number."""
        return int(self.run(["sbatch", "--parsable", *arguments], **options).stdout)

    def jobs(self) -> dict[int, Job]:
        """All jobs by number, also those that ended in the last ten minutes."""
        listing = ["squeue", "--noheader", "--states=all", "--format=%A|%T|%r|%N|%j"]
        rows = (line.split("|", 4) for line in self.run(listing).stdout.splitlines())
        return {int(row[0]): Job(int(row[0]), *row[1:]) for row in rows}

    def state(self, job: int) -> str:
        """The state of one job: "PENDING", "RUNNING", "COMPLETED", ..."""
        return self.jobs()[job].state

    def node_states(self) -> dict[str, str]:
        """The state of each node: "idle", "allocated", "down", "down*", ..."""
        listing = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
        return dict(line.split() for line in self.run(listing).stdout.splitlines())

    def wait_for(self, condition: Callable[[], T], limit: float = 60) -> T:
        """Ask until the answer is true, and return it.

        Raises:
            TimeoutError: it was not for `limit` seconds; with the ends of the logs.
        """
        end = time.monotonic() + limit
        while not (answer := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {limit} s: {condition}\n{self._logs()}")
            time.sleep(0.1)
        return answer

    def stop_controller(self) -> None:
        """Stop slurmctld; it saves its state. Jobs run on."""
        self._end("slurmctld", CONTROLLER, "TERM")

    def start_controller(self) -> None:
        """Start slurmctld, and wait until it answers."""
        self._daemon(CONTROLLER, "slurmctld")
        # SLURM's own commands pause for a second when they are refused.
        self.wait_for(lambda: not _free(self._port))
        self.run(["sinfo"])

    def kill_node(self, name: str) -> None:
        """Kill a node's slurmd; what runs there runs on, as on a node that lost its network."""
        self._end("slurmd", name, "KILL")

    def power_off(self, name: str) -> None:
        """Kill everything on a node at once."""
        machine = self._machines.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.kill(machine.first, signal.SIGKILL)
        machine.process.wait()

    def start_node(self, name: str) -> None:
        """Start a node's slurmd, and the node itself if it was off."""
        if name not in self._machines:
            self._switch_on(name)
        self._daemon(name, "slurmd")

    def restore(self) -> None:
        """Cancel all jobs, kill their orphans, and bring controller and nodes back."""
        if not self._runs("slurmctld", CONTROLLER):
            self.start_controller()
        if jobs := self.run(["squeue", "--noheader", "--format=%A"]).stdout.split():
            # Some may end by themselves meanwhile.
            self.run(["scancel", *jobs], check=False)
        for name in self.nodes:
            if name in self._machines:
                self._kill_strays(name)
            if name not in self._machines or not self._runs("slurmd", name):
                self.start_node(name)
        self.wait_for(self._at_rest)

    def _configure(self) -> None:
        of_nodes = [f"{kind}-{node}" for kind in ("spool", "tmp") for node in self.nodes]
        for name in ("munge", "state", "gpus", *of_nodes):
            (self.directory / name).mkdir()
        (self.directory / "munge" / "key").touch(mode=0o600)
        (self.directory / "munge" / "key").write_bytes(os.urandom(128))
        for number in range(GPUS):
            # SLURM wants devices, and does not care which: these are like /dev/null.
            os.mknod(self.directory / "gpus" / f"gpu{number}", 0o666 | stat.S_IFCHR, NULL)
        hosts = "".join(f"127.0.0.1 {name}\n" for name in (CONTROLLER, *self.nodes))
        (self.directory / "hosts").write_text(f"{Path('/etc/hosts').read_text()}\n{hosts}")
        words = {
            "DIR": self.directory,
            "NODES": len(self.nodes),
            "PORT": self._port,
            "PROCTRACK": self._proctrack,
            "GATHER": self._gather,
            "CPUS": self._cpus,
            "MEMORY": 1000 * self._cpus,
            "NODELINES": "\n".join(
                f"NodeName={name} NodeAddr=127.0.0.1 Port={self._port + number}"
                for number, name in enumerate(self.nodes, start=1)
            ),
        }
        text = (DEPLOY / "slurm.conf.in").read_text()
        for word, value in words.items():
            text = text.replace(f"@{word}@", str(value))
        (self.directory / "slurm.conf").write_text(text)
        gpus = f"Name=gpu File={self.directory}/gpus/gpu[0-{GPUS - 1}]\n"
        (self.directory / "gres.conf").write_text(gpus)

    def _switch_on(self, name: str) -> None:
        namespaces = [
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
            "--ipc",
            "--mount",
            "--propagation=slave",
        ]
        with (self.directory / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                ["unshare", *namespaces, str(DEPLOY / "node.sh"), str(self.directory), name],
                stdin=self._end_of_life,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment(),
            )
        assert process.stdout
        with process.stdout as stdout:
            numbers = stdout.readline().split()
        if not numbers:
            process.wait()
            raise RuntimeError(f"{name} does not start:\n{self._logs()}")
        self._machines[name] = Machine(process, *map(int, numbers))

    def _start_munge(self) -> None:
        munge = self.directory / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={munge / file}" for option, file in files.items()]
        # --force: it does not like directories below /tmp.
        argv = ["munged", "--force", f"--log-file={self.directory / 'munge.log'}", *options]
        self.on(CONTROLLER, argv)

    def _daemon(self, machine: str, program: str) -> None:
        try:
            self.on(machine, [program])
        except RuntimeError as error:  # which goes into the background, and says why in its log
            raise RuntimeError(f"{program} does not start:\n{self._logs()}") from error

    def _ready(self) -> bool:
        step = ["srun", "--quiet", "--immediate=5", f"--nodes={len(self.nodes)}", "true"]
        return self.run(step, check=False).returncode == 0

    def _at_rest(self) -> bool:
        states = self.node_states()
        for name in states:
            if states[name] in ("down", "drained"):  # by hand: else they come back by themselves
                self.run(["scontrol", "update", f"node={name}", "state=resume"], check=False)
        busy = self.run(["squeue", "--noheader"]).stdout
        return not busy and set(states.values()) == {"idle"}

    def _pid(self, machine: str) -> int:
        """The number that the daemon of a machine has there; 0 if it never started."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.directory / f"{machine}.pid").read_text())
        return 0

    def _runs(self, daemon: str, machine: str) -> bool:
        comm = f"/proc/{self._pid(machine)}/comm"
        return self.on(machine, ["cat", comm], check=False).strip() == daemon

    def _end(self, daemon: str, machine: str, how: str) -> None:
        self.on(machine, ["sh", "-c", f"kill -{how} {self._pid(machine)}"])
        self.wait_for(lambda: not self._runs(daemon, machine))

    def _kill_strays(self, name: str) -> None:
        """Kill what is on a node and is neither SLURM's nor the node's own."""
        self.on(name, ["sh", "-c", STRAYS, "sh", self._machines[name].keeper])

    def _logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text().splitlines()[-5:])
            for path in sorted(self.directory.glob("*.log"))
        )


def _claim_ports() -> tuple[socket.socket, int]:
    """The first of PORTS ports that no other cluster has, and what keeps others from them.

    That is a name in the network namespace, in which the ports are too; the kernel
    frees it when its holder ends.
    """
    for port in range(FIRST_PORT, LAST_PORT, PORTS):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0{PREFIX}-{port}")
        except OSError:
            claim.close()
            continue
        if _free(port):
            return claim, port
        claim.close()
    raise RuntimeError(f"no free block of {PORTS} ports from {FIRST_PORT} to {LAST_PORT}")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@functools.cache
def _sweep_once() -> None:
    """Remove the directories of sessions that were killed; their processes are gone."""
    for directory in leftovers.of_dead(PREFIX):
        shutil.rmtree(directory, ignore_errors=True)


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    for program in PROGRAMS:
        if shutil.which(program, path=SYSTEM_PATH) is None:
            return f"the program {program} is not installed"
    if os.geteuid() != 0:
        return "only root can make the namespaces of pretend nodes"
    # Some containers keep even root from it.
    namespaces = ["--pid", "--fork", "--uts", "--mount", "--mount-proc"]
    done = subprocess.run(
        ["unshare", *namespaces, "true"], capture_output=True, text=True, check=False
    )
    return done.stderr.strip() or None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.testbed.slurm")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    if reason := missing():
        raise SystemExit(f"no private SLURM cluster: {reason}")
    with Cluster(asked.nodes, asked.cpus) as cluster:
        command = asked.command or [os.environ.get("SHELL", "/bin/sh")]
        return subprocess.run(command, env=cluster.environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
