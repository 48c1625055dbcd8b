"""The program of a worker: ``python -m fsbroker.agent.worker``.

    serial CONTROL SOCKET MEMORY PLAN    below a guardian, with its end of a socket pair
    rank PLAN                            started by an MPI launcher; connects to the agent

It says `Hello` before it has loaded what it needs to run rows: the agent sends work
meanwhile. While a task runs, the main thread is the task's, so nothing here watches over
the process; that is the guardian's.

What a task leaves behind in the process (threads, changed modules, environment
variables) stays for the tasks after it, as in any process pool. The directory,
``sys.path`` and stdout are put right before each.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from fsbroker.agent import guardian

if TYPE_CHECKING:
    import socket

    from fsbroker.agent.messages import Hello

CHUNK = 1 << 18


def main() -> None:
    """Become a worker; the command line stands above."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the directory we were started in, so that `fsbroker` is found
    kind, *arguments = sys.argv[1:]
    sys.argv[1:] = []
    if kind == "serial":
        control, connection, memory = map(int, arguments[:3])
        _serial(control, connection, memory, arguments[3])
    else:
        _rank(arguments[0])


def _serial(control: int, connection: int, memory: int, text: str) -> None:
    guardian.split(control, [connection], memory)
    import json
    import socket

    plan = json.loads(text)
    _ignore(signal.SIGINT, signal.SIGTERM)
    _settle(plan["cpus"])
    with socket.socket(fileno=connection) as agent:
        agent.set_inheritable(False)
        from fsbroker.agent.messages import Hello

        _work(agent, plan, Hello(0, 1, os.getpid()))


def _work(agent: socket.socket, plan: dict[str, Any], hello: Hello) -> None:
    from fsbroker.agent import messages

    agent.sendall(messages.frame(hello))
    from fsbroker.agent.rows import Arrays, Reporter, Runner

    arrays = Arrays(plan["spool"], plan["area"], plan["durable"], plan["key"])
    runner = Runner(Reporter(agent, hello.rank), arrays, plan["number"])
    frames = messages.Frames()
    while data := agent.recv(CHUNK):
        for message in frames.feed(data):
            runner.handle(message)


# -- the process -------------------------------------------------------------------------


def _settle(cpus: list[int] | None) -> None:
    """Make this process one in which other people's code can run."""
    import faulthandler

    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    _write_at_once()
    faulthandler.enable(file=2)  # a segmentation fault leaves a traceback in stderr


def _ignore(*numbers: signal.Signals) -> None:
    """A queue system signals all processes of a job; what that means, the agent decides.

    By handlers, not SIG_IGN, which programs would inherit; forked children of a task get
    the usual meaning back: `multiprocessing` ends its own by SIGTERM.
    """
    for number in numbers:
        usual = signal.signal(number, lambda *_: None)
        os.register_at_fork(after_in_child=lambda n=number, u=usual: signal.signal(n, u))


def _write_at_once() -> None:
    """Have what C code prints reach the file line by line: it belongs to the row that runs."""
    import ctypes

    libc = ctypes.CDLL(None)
    line_buffered = 1
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, line_buffered, ctypes.c_size_t(0))


# -- ranks of an MPI group ---------------------------------------------------------------


def _rank(text: str) -> None:
    # The launcher is our parent, and ends with the guardian above it.
    guardian.die_with_parent()
    import json

    from fsbroker.agent import door

    plan = json.loads(text)
    token = os.environ.pop(door.TOKEN)
    if plan["guarded"]:
        # The agent's guardian is on another branch of the tree of processes, or another node.
        life = door.connect(plan["connect"], token, door.LIFE)
        guardian.split(life.detach(), memory=plan["memory"])
    with door.connect(plan["connect"], token, door.WORK) as agent:
        hello = _join_mpi(agent)
        _leave_launch(hello.size)
        _redirect(f"{plan['output']}.{hello.rank}")
        _ignore(signal.SIGINT)  # by SIGTERM, launchers end their ranks
        _settle(_share(plan["cpus"], hello.rank, hello.size))
        _work(agent, plan, hello)


def _join_mpi(agent: socket.socket) -> Hello:
    """Initialize MPI, or tell the agent why that is not possible and end."""
    import pickle

    from fsbroker.agent import messages
    from fsbroker.errors import MissingExtra, RankFailed

    try:
        from mpi4py import MPI
    except Exception as error:
        reason: Exception
        if isinstance(error, ModuleNotFoundError):
            cure = "`pip install 'fsbroker[mpi]'` where the agents run."
            reason = MissingExtra("Tasks with several cores need mpi4py", sys.prefix, cure)
        else:
            cure = "See MPI4PY_LIBMPI in mpi4py's documentation."
            reason = RankFailed(f"mpi4py finds no MPI library ({error})", sys.prefix, cure)
        agent.sendall(messages.frame(messages.NotReady(pickle.dumps(reason))))
        sys.exit(1)
    world, library = MPI.COMM_WORLD, MPI.Get_library_version().splitlines()[0].strip("\0 ")
    _announce_aborts(MPI, agent)
    return messages.Hello(world.rank, world.size, os.getpid(), library, _launched_by())


def _announce_aborts(mpi: Any, agent: socket.socket) -> None:
    """Have `Abort` say which rank calls it: all ranks are killed then, in no order."""
    from fsbroker.agent import messages

    class World(mpi.Intracomm):  # type: ignore[misc]
        """All ranks of the task."""

        def Abort(self, errorcode: int = 0) -> None:  # noqa: N802 (mpi4py's name)
            agent.sendall(messages.frame(messages.Aborting(errorcode)))
            super().Abort(errorcode)

    mpi.COMM_WORLD = World(mpi.COMM_WORLD)


def _launched_by() -> str:
    """The launcher, as the variables tell that it gives to ranks."""
    signs = {
        "OMPI_COMM_WORLD_SIZE": "Open MPI's mpiexec",
        "PMIX_RANK": "a launcher that speaks PMIx",
        "PMI_RANK": "a launcher that speaks PMI, like MPICH's and Intel MPI's mpiexec",
        "SLURM_PROCID": "srun",
    }
    return next((name for sign, name in signs.items() if sign in os.environ), "no MPI launcher")


def _leave_launch(ranks: int) -> None:
    """Have programs that a task starts not take themselves for ranks of this launch."""
    from fsbroker.agent.processes import task_environment
    from fsbroker.nodes import own_slot

    slot = {**(own_slot() or {}), "ranks": ranks}
    wanted = task_environment(slot, os.environ)
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _redirect(path: str) -> None:
    """Have stdout and stderr go to this rank's own files, and no input from the launcher."""
    from fsbroker.agent import capture

    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.close(nothing)
    for target, ending in ((1, "out"), (2, "err")):
        descriptor = capture.open_file(f"{path}.{ending}")
        os.dup2(descriptor, target)
        os.close(descriptor)


def _share(cpus: list[int] | None, rank: int, size: int) -> list[int] | None:
    """This rank's part of the group's cores; all of them if there are not enough."""
    if cpus is None or len(cpus) < size:
        return cpus
    each = len(cpus) // size
    return cpus[rank * each : (rank + 1) * each]


if __name__ == "__main__":
    # Users' pickles look for their own names in `__main__`: let them find none of ours.
    from types import ModuleType

    from fsbroker.agent import worker  # noqa: PLW0406 (this file, but not as `__main__`)

    sys.modules["__main__"] = ModuleType("__main__")
    worker.main()
