"""Starting the processes of workers, in the environment that their slot prescribes.

Each is started below a guardian (see there) from a fresh interpreter, never by a fork of
the agent: the agent is large, and has locks and files open that a copy would share.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from fsbroker.agent import capture
from fsbroker.agent.guardian import KILL_AFTER
from fsbroker.agent.launchers import TABLE, on_this_node
from fsbroker.agent.memory import Excess
from fsbroker.errors import OutOfMemory
from fsbroker.nodes import SLOT, job_of, slot_in
from fsbroker.spool.layout import Area

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

GPU_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)
_AMD_DRIVER = "/dev/kfd"

_OF_ANOTHER_LAUNCH = (
    "PMI_",
    "PMIX_",
    "PALS_",
    "HYDI_",
    "MPI_LOCAL",
    "OMPI_COMM_",
    "OMPI_APP_",
    "OMPI_ARGV",
    "OMPI_COMMAND",
    "OMPI_FILE_LOCATION",
    "OMPI_FIRST_RANKS",
    "OMPI_NUM_APP_CTX",
    "OMPI_UNIVERSE_SIZE",
    "OMPI_MCA_ess",
    "OMPI_MCA_orte_",
    "OMPI_MCA_initial_wdir",
    "OMPI_MCA_pmix",
    "PRTE_LAUNCHED",
    "PRTE_MCA_ess",
    "SLURM_STEP",
    "SLURM_SRUN_COMM_",
    "SLURM_LAUNCH_NODE_",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_GTIDS",
    "SLURM_TASK_PID",
    "SLURM_PMI",
    "FLUX_TASK_",
    "FLUX_PMI_",
    "FLUX_KVS_NAMESPACE",
)
"""What srun, Hydra, Open MPI, PRRTE and Flux give to the ranks they start. An agent that one
of them started has these too, and would pass itself off as a rank of that launch. What a
user prefers (``OMPI_MCA_btl`` and the like) stays."""

_SRUN_OPTIONS = (
    "SLURM_MEM_PER_",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NNODES",
    "SLURM_CPUS_PER_TASK",
    "SRUN_CPUS_PER_TASK",
    "SLURM_TRES_PER_TASK",
    "SLURM_GPUS",
    "SLURM_GRES",
    "SLURM_EXACT",
    "SLURM_EXCLUSIVE",
    "SLURM_MPI_TYPE",
    "SLURM_CPU_BIND",
    "SLURM_MEM_BIND",
    "SLURM_DISTRIBUTION",
)
"""What srun takes for its options: of the job, where the task has only a part of it."""


@dataclass(frozen=True)
class Settings:
    """Where and how a worker runs: what two tasks must share to run in the same one.

    Attributes:
        spool: root of the spool.
        area: path of the user's area, relative to the spool.
        scratch: directory of the agent on the node, 0700, for sockets and captured output.
        python: the interpreter.
        cpus: cores to run on, shared out among the ranks of an MPI group; None: any.
        threads: of each process, for OpenMP and the BLAS libraries.
        gpus: ids of the devices that are visible; none are if it is empty.
        durable: whether arrays that a worker publishes are fsynced.
        key: public key that its files are signed with; empty: they are not.
        memory: MB for all processes of the worker and what they start; 0: no limit.
        node: name of the agent's own node in its queue job; "" outside of one.
        nodes: names of the nodes that it runs on; empty: this one only.
        brokers: the same nodes as Flux numbers them; empty outside of a Flux instance.
        shared: a directory that all of these nodes see.
        environment: variables to set beyond these.
        launcher: template of the command that starts ranks, see `fsbroker.agent.launchers`.
        pmi: srun's ``--mpi``; empty: what fits the MPI library.
        oversubscribe: programs may start more ranks than there are cores.
        number: of the worker; no two that live have the same.
        nested: it runs in a Flux instance of its own, below that of the agent.
    """

    spool: str
    area: str
    scratch: str
    python: str = sys.executable
    cpus: tuple[int, ...] | None = None
    threads: int = 1
    gpus: tuple[str, ...] = ()
    durable: bool = True
    key: str = ""
    memory: int = 0
    node: str = ""
    nodes: tuple[str, ...] = ()
    brokers: tuple[int, ...] = ()
    shared: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = TABLE["mpiexec"]
    pmi: str = ""
    oversubscribe: bool = False
    number: int = 0
    nested: bool = False

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Those of its nodes that are not the agent's own."""
        return tuple(node for node in self.nodes if node != self.node)


def environment(settings: Settings, base: Mapping[str, str]) -> dict[str, str]:
    """The variables of a worker, from those of the agent."""
    slot = {
        "ranks": 1,  # those of a group find out how many they are
        "threads": settings.threads,
        "gpus": settings.gpus,
        "memory": settings.memory,
        "nodes": settings.nodes,
        "brokers": settings.brokers,
        "cpus": settings.cpus,
        "launcher": settings.launcher,
        "pmi": settings.pmi,
        "oversubscribe": settings.oversubscribe,
        "logs": f"{settings.spool}/{Area(settings.area).program_logs}",
        "spools": [*(slot_in(base) or {"spools": ()})["spools"], settings.spool],
        "nested": settings.nested,
    }
    return {**task_environment(slot, base), **settings.environment}


def task_environment(slot: Mapping[str, Any], base: Mapping[str, str]) -> dict[str, str]:
    """The variables of a task and the programs that it starts, from those of its launch."""
    found = without_launch(base)
    if len(slot["nodes"]) <= 1:
        found.update(on_this_node())
    found.update(dict.fromkeys(THREAD_VARIABLES, str(slot["threads"])))
    for name in GPU_VARIABLES:
        found.pop(name, None)
    found.update(gpu_variables(slot["gpus"], os.path.exists(_AMD_DRIVER)))
    if "SLURM_JOB_ID" in base:
        found = {k: v for k, v in found.items() if not k.startswith(_SRUN_OPTIONS)}
        found.update(_srun_options(slot))
    found[SLOT] = json.dumps({**slot, "job": job_of(base)})
    return found


def _srun_options(slot: Mapping[str, Any]) -> dict[str, str]:
    """What a plain ``srun PROGRAM`` of a task needs: its size, and no wait for its own cores."""
    options = {
        "SLURM_OVERLAP": "1",
        "SLURM_CPU_BIND": "none",
        "SLURM_MEM_PER_NODE": "0",
        "SLURM_NTASKS": str(slot["ranks"] * slot["threads"]),
        "SLURM_NNODES": str(max(1, len(slot["nodes"]))),
    }
    return options if slot["gpus"] else {**options, "SLURM_GRES": "none"}


def without_launch(base: Mapping[str, str]) -> dict[str, str]:
    """The variables without those by which a launcher tells a rank who it is."""
    return {name: value for name, value in base.items() if not name.startswith(_OF_ANOTHER_LAUNCH)}


def gpu_variables(gpus: Sequence[str], amd: bool) -> dict[str, str]:
    if not gpus:
        return dict.fromkeys(GPU_VARIABLES, "")
    # Never both: HIP obeys CUDA_VISIBLE_DEVICES too, and counts from zero what
    # ROCR_VISIBLE_DEVICES leaves, so the same ids twice would hide most devices.
    return {"ROCR_VISIBLE_DEVICES" if amd else "CUDA_VISIBLE_DEVICES": ",".join(gpus)}


CHUNK = 64
"""Bytes: more than a guardian's message has."""


class Process:
    """A program below a guardian, in a session of its own.

    Args:
        command: the program, which finds its end of the control socket where
            ``{control}`` stands.
        directory: to start in.
        output: where stdout and stderr go: this path with ".out" and ".err".
        inherited: other descriptors for the program.

    Attributes:
        excess: why the guardian has killed it, if it was for its memory.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        directory: str,
        output: str,
        inherited: Sequence[int] = (),
    ) -> None:
        self.output = output
        # Whole messages: a wish is never read in halves.
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        out, err = capture.open_file(f"{output}.out"), capture.open_file(f"{output}.err")
        try:
            self._popen = subprocess.Popen(
                [part.replace("{control}", str(theirs.fileno())) for part in command],
                env=variables,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # out of reach of ctrl-C in the client's terminal
                pass_fds=(theirs.fileno(), *inherited),
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()
            os.close(out)
            os.close(err)
        self._exit: str | None = None
        self.excess: Excess | None = None

    def fileno(self) -> int:
        """Readable once the program and all that it started are gone."""
        return self._control.fileno()

    def kill(self, after: float = 0.0) -> None:
        """Have the guardian kill everything, ``after`` seconds from now (inf: not any more)."""
        with suppress(OSError):  # it is gone
            self._control.send(KILL_AFTER.pack(after), socket.MSG_DONTWAIT)

    def ended(self) -> str | None:
        """How the program ended; None while something of it is left."""
        if self._exit is None and self._is_gone():
            with suppress(OSError):  # what is left if it was the guardian that was killed
                os.killpg(self._popen.pid, signal.SIGKILL)
            # No long wait: the guardian's socket closes in the last steps of its exit.
            self._exit = exit_text(self._popen.wait())
            self._control.close()
        return self._exit

    def _is_gone(self) -> bool:
        try:
            while said := self._control.recv(CHUNK, socket.MSG_DONTWAIT):
                self.excess = Excess.unpack(said)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def out_of_memory(self) -> OutOfMemory | None:
        """Why the guardian has killed it, if it has."""
        if self.excess is None:
            return None
        return OutOfMemory(f"The task {self.excess}", os.uname().nodename)

    def captured(self) -> tuple[bytes, bytes]:
        """What stands in the files of stdout and stderr."""
        return capture.read_file(f"{self.output}.out"), capture.read_file(f"{self.output}.err")

    def close(self) -> None:
        """Let go of it: if something of it lives, it is killed. Removes the captured output."""
        self.kill()
        self._control.close()
        for ending in ("out", "err"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.output}.{ending}")


def exit_text(code: int) -> str:
    """How a process ended, from `subprocess`'s return code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"
    return f"killed by signal {-code} ({name})"
