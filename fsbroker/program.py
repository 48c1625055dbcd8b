"""Programs inside tasks: what the task has, how to start ranks on it, and running one.

    resources()              cores, GPUs, memory and nodes of the task that this process is part of
    mpi_command(argv)        the arguments that start a program's ranks on exactly these
    run(argv, ...)           run a program, keep what it writes; made to be submitted

All of them work outside of tasks too, with what this process may use: so a function that
starts programs can be tried before it is submitted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsbroker.errors import MissingDirectory, MissingProgram, ProgramFailed, ResourceError

__all__ = ["Completed", "TaskResources", "mpi_command", "resources", "run"]

TAIL = 2000
"""Characters of stderr that an error shows."""


@dataclass(frozen=True)
class TaskResources:
    """What a task has.

    Attributes:
        ranks: MPI ranks that its function runs on (``cores``).
        threads_per_core: threads of each rank; ``ranks * threads_per_core`` cores in all.
        gpus: ids of its devices, as ``CUDA_VISIBLE_DEVICES`` names them.
        memory: MB for all its processes; None: no limit.
        nodes: names of its nodes.
        cpus: numbers of its cores on this node; None: the agent leaves that to the kernel.
    """

    ranks: int
    threads_per_core: int
    gpus: tuple[str, ...]
    memory: int | None
    nodes: tuple[str, ...]
    cpus: tuple[int, ...] | None


def resources() -> TaskResources:
    """What the task has that this process is part of; outside of tasks, what it may use.

    Programs written in Python that a task starts may ask as well.
    """
    slot = _slot()
    cpus = slot["cpus"]
    return TaskResources(
        ranks=slot["ranks"],
        threads_per_core=slot["threads"],
        gpus=tuple(slot["gpus"]),
        memory=slot["memory"] or None,
        nodes=tuple(slot["nodes"]) or (os.uname().nodename,),
        cpus=None if cpus is None else tuple(cpus),
    )


def mpi_command(
    argv: Sequence[str | os.PathLike[str]], *, ranks: int | None = None, threads: int | None = None
) -> list[str]:
    """The arguments that run an MPI program on what the task has.

    Under the launcher of the agent: ``mpiexec`` on a plain machine, ``srun`` in a SLURM
    job, ``flux run`` in Flux. A task of one rank (``{"threads_per_core": 4}``) gives all its
    cores to the program: 4 ranks. A task of several ranks starts as many, with as many
    threads each; call it on one of them.

    Args:
        argv: the program and its arguments.
        ranks, threads: in place of these numbers. With one of them, the other is what
            the cores allow.

    Raises:
        ResourceError: more than the task has.
        MissingProgram: the launcher is not installed.
    """
    from fsbroker.agent import launchers

    program = _arguments(argv)
    slot = _slot()
    ranks, threads = _shared_out(slot, ranks, threads)
    start = launchers.Launch(
        ranks=ranks,
        threads=threads,
        nodes=tuple(slot["nodes"]),
        brokers=tuple(slot["brokers"]),
        gpus=len(slot["gpus"]) // ranks,
        memory=slot["memory"],
        pmi=slot["pmi"],
        oversubscribe=slot["oversubscribe"],
    )
    return [
        *launchers.command(_launcher(slot), start, program[0]),
        *_confined(slot, threads),
        *program,
    ]


def _launcher(slot: Mapping[str, Any]) -> Sequence[str]:
    """The template of the agent's launcher, or of one that does not wait for the task's own ranks.

    Raises:
        ResourceError: there is none.
    """
    from fsbroker.agent.launchers import TABLE

    if not slot["brokers"] or slot["ranks"] == 1:
        template: Sequence[str] = slot["launcher"]
        return template
    if len(slot["nodes"]) == 1:
        return TABLE["mpiexec"]
    raise ResourceError(
        "In Flux the ranks of a task hold their cores, so no program can be started on them",
        f"{slot['ranks']} ranks on {len(slot['nodes'])} nodes",
        "Have ranks on one node only, or one rank with threads_per_core (and num_nodes).",
    )


def _shared_out(slot: Mapping[str, Any], ranks: int | None, threads: int | None) -> tuple[int, int]:
    cores = slot["ranks"] * slot["threads"]
    if ranks is None:
        ranks = slot["ranks"] if slot["ranks"] > 1 else max(1, cores // (threads or 1))
    if ranks < 1 or (threads is not None and threads < 1):
        raise ResourceError("A program has at least one rank and one thread", f"ranks={ranks}")
    if threads is None:
        threads = max(1, cores // ranks)
    if ranks * threads > cores and not slot["oversubscribe"]:
        raise ResourceError(
            f"{ranks} ranks of {threads} threads need more than the {cores} cores of the task",
            cure=f'Submit with {{"threads_per_core": {ranks * threads}}},'
            " or with openmpi_oversubscribe.",
        )
    return ranks, threads


def _confined(slot: Mapping[str, Any], threads: int) -> list[str]:
    """What puts each rank where the task is; srun and flux do not hand that on, or overrule it."""
    from fsbroker.agent.processes import GPU_VARIABLES, THREAD_VARIABLES

    visible = {name: os.environ.get(name) for name in GPU_VARIABLES}
    hidden = [f"--unset={name}" for name, value in visible.items() if value is None]
    wanted = {name: value for name, value in visible.items() if value is not None}
    wanted.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    command = ["env", *hidden, *(f"{name}={value}" for name, value in wanted.items())]
    if slot["cpus"] is not None and len(slot["nodes"]) <= 1:
        command += ["taskset", "--cpu-list", ",".join(map(str, slot["cpus"]))]
    return command


# -- running a program -------------------------------------------------------------------


@dataclass(frozen=True)
class Completed:
    """How a program ended, and what it wrote.

    Attributes:
        argv: what was run.
        returncode: its exit code; -N if signal N killed it.
        stdout, stderr: what it wrote, without its middle if that is more than 2 MB; a line
            says then how much was left out.
        stdout_log, stderr_log: files with all of it, on the node or in the spool, until
            `fsbroker gc` removes old logs.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    stdout_log: str
    stderr_log: str


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: str | os.PathLike[str] | None = None,
    stdin: str | bytes = b"",
    mpi: bool = False,
    check: bool = False,
) -> Completed:
    """Run a program to its end: ``executor.submit(fsbroker.run, ["pw.x"], stdin=text)``.

    Args:
        argv: the program and its arguments; no shell reads them.
        cwd: directory to run in; default: the task's.
        stdin: what the program reads from its standard input.
        mpi: start it by `mpi_command`.
        check: raise an error if the exit code is not 0.

    Raises:
        MissingProgram: it is not there, or cannot be executed.
        MissingDirectory: ``cwd`` is not there.
        ProgramFailed: with ``check``.
    """
    from fsbroker.agent import capture

    directory = os.path.abspath(cwd or ".")
    if not os.path.isdir(directory):
        raise MissingDirectory(
            where=directory, cure="It must be reachable on the nodes where agents run."
        )
    program = _arguments(argv)
    _require(program[0], directory)
    command = mpi_command(program) if mpi else program
    logs = _log_directory()
    paths = [os.path.join(logs, name) for name in ("stdout", "stderr")]
    text = stdin.encode() if isinstance(stdin, str) else stdin
    returncode = _wait_for(command, directory, text, paths)
    stdout, stderr = (capture.read_file(path).decode(errors="replace") for path in paths)
    done = Completed(tuple(program), returncode, stdout, stderr, *paths)
    if check and returncode != 0:
        from fsbroker.agent.processes import exit_text

        raise ProgramFailed(
            f"The program ended with {exit_text(returncode)}",
            " ".join(done.argv),
            f"All that it wrote is in {logs}; stderr ends with:\n{stderr[-TAIL:]}",
        )
    return done


def _wait_for(command: list[str], directory: str, text: bytes, paths: Sequence[str]) -> int:
    import subprocess

    from fsbroker.agent import capture

    first, second = map(capture.open_file, paths)
    with open(first, "ab") as out, open(second, "ab") as err:
        return subprocess.run(
            command, cwd=directory, input=text, stdout=out, stderr=err, check=False
        ).returncode


def _require(program: str, directory: str) -> None:
    """A launcher would only say so in its own words, with an exit code like a program's."""
    import shutil

    # As the kernel looks it up: with a slash in it, from the directory it runs in.
    path = os.path.join(directory, program) if os.sep in program else program
    if shutil.which(path) is None:
        raise MissingProgram(
            "A program is not there, or cannot be executed",
            path,
            "Give its path, or load its module before the agent starts (`setup`).",
        )


def _arguments(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(argv, (str, bytes)) or not argv:
        raise ResourceError("A program is given as a list", repr(argv), 'Like ["lmp", "-in", "x"]')
    return [os.fspath(part) for part in argv]


def _log_directory() -> str:
    """A new directory: in the spool, or outside of tasks in the node's temporary one."""
    import tempfile

    parent = _slot()["logs"]
    if parent:
        os.makedirs(parent, mode=0o700, exist_ok=True)
    return tempfile.mkdtemp(prefix="run-", dir=parent)


# -- the slot ----------------------------------------------------------------------------


def _slot() -> dict[str, Any]:
    """What the agent has told (`fsbroker.agent.processes.environment`), or the same from here."""
    from fsbroker.agent.launchers import TABLE
    from fsbroker.launch.local import visible_gpus
    from fsbroker.nodes import own_slot

    if (slot := own_slot()) is not None:
        return slot
    cpus = sorted(os.sched_getaffinity(0))
    return {
        "ranks": 1,
        "threads": len(cpus),
        "gpus": visible_gpus(),
        "memory": 0,
        "nodes": (),
        "brokers": (),
        "cpus": cpus,
        "launcher": TABLE["mpiexec"],
        "pmi": "",
        "oversubscribe": False,
        "logs": None,
        "spools": (),
        "nested": False,
    }
