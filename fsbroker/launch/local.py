"""Agents as processes of this machine.

They outlive the client: in their own session, with their output in the spool, they finish
what is pending and end when idle. Those of a private spool end with the client. Those of a client
inside of a task have what the task has, and end with its worker at the latest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from fsbroker.config import Config
from fsbroker.errors import SpoolError
from fsbroker.launch.settings import key_options, mpi_options
from fsbroker.needs import Allowance, Capacity, Shape, parse_shape
from fsbroker.nodes import cores_of, own_slot
from fsbroker.spool import presence
from fsbroker.spool.files import explain
from fsbroker.spool.layout import Presence
from fsbroker.spool.spool import Spool

if TYPE_CHECKING:
    from fsbroker.client.session import ClientSession

FAILURES = 3
"""Agents that end soon, one after the other, before the user is told."""
SOON = 10.0
"""Seconds: an agent that lived longer was not stopped by how it was started."""
PAUSE = 1.0
"""Seconds between two starts when the one before failed."""
LETTING_GO = 5.0
"""Seconds that the agents of a private spool have to end."""
LAST_WORDS = 800
"""Characters of an agent's output that an error shows."""

_MOST_WORKERS = 1000
"""Numbers of workers that each agent has for itself."""
_NO_FAILURE = (0, 3)
"""Exit codes of agents that were idle or told to end, or that somebody took for dead."""


class _Started(NamedTuple):
    process: subprocess.Popen[bytes]
    log: str
    at: float
    first_worker: int


class LocalLauncher:
    """Sees to it that as many agents run on this machine as the settings say.

    Args:
        launcher: of MPI ranks where the agents run: "srun", "flux", "mpiexec".

    Attributes:
        capacity: the most that a task can ask of one of them.
    """

    def __init__(self, spool: Spool, config: Config, launcher: str = "mpiexec") -> None:
        self._spool = spool
        self._allowed = Allowance(config.max_workers or available_cores(), config.workers or 0)
        self._agents = config.agents
        self._private = not config.keep
        idle_timeout = config.idle_timeout if config.keep else float("inf")
        self._options = [f"--idle-timeout={idle_timeout}", *mpi_options(config, launcher)]
        self._place = _place()
        self._gpus = visible_gpus()
        cores = self._allowed.cores
        self.capacity = Capacity(cores, f"max_workers={cores}", len(self._gpus), physical_memory())
        self._started: list[_Started] = []
        self._described: dict[str, dict[str, Any]] = {}
        self._failures = 0
        self._last_words = ""
        self._last_start = 0.0

    # -- the three verbs of a launcher ---------------------------------------------------

    def command(self, cores: int | None = None) -> list[str]:
        """How an agent is started."""
        return [
            *self._agent,
            f"--cores={cores or self._allowed.cores}",
            f"--gpus={','.join(self._gpus)}",
            f"--memory={self.capacity.memory}",
            f"--place={self._place}",
            *self._options,
        ]

    @property
    def _agent(self) -> list[str]:
        """What all agents of this launcher are started with."""
        return [
            sys.executable,
            "-m",
            "fsbroker.agent",
            f"--spool={self._spool.files.root}",
            *([f"--workers={self._allowed.workers}"] if self._allowed.workers else []),
            *key_options(self._spool),
        ]

    def submit(self, cores: int | None = None) -> int:
        """Start one agent; its pid.

        Raises:
            SpoolError: its output cannot be kept in the spool.
        """
        files, area, _ = self._spool
        files.mkdir(area.agent_logs)
        log = f"{files.root}/{area.agent_logs}/{files.token()}.log"
        output = _create(log)
        first = self._first_worker()
        leash = ["--leash", *(["--private"] if self._private else [])]
        try:
            process = subprocess.Popen(
                [*self.command(cores), *leash, f"--first-worker={first}"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": _python_path()},
            )
        finally:
            os.close(output)
        self._last_start = time.monotonic()
        self._started.append(_Started(process, log, self._last_start, first))
        return process.pid

    def _first_worker(self) -> int:
        """So that no two workers of these agents have the same number."""
        taken = {one.first_worker for one in self._started}
        return next(first for first in count(0, _MOST_WORKERS) if first not in taken)

    def active(self, ids: Iterable[int]) -> set[int]:
        """Those of the processes that live."""
        return {pid for pid in ids if presence.process_start(pid)}

    def cancel(self, ids: Iterable[int]) -> None:
        """End these agents; they give back what they have not started."""
        import signal

        for pid in ids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    # -- what an executor asks for -------------------------------------------------------

    def resize(self, allowed: Allowance) -> None:
        """Have the agents that were started here use more, or less, from now on."""
        self._allowed = allowed._replace(cores=allowed.cores or self._allowed.cores)
        for one in self._started:
            with suppress(OSError):  # it has ended
                assert one.process.stdin is not None
                one.process.stdin.write(allowed.line())
                one.process.stdin.flush()

    def release(self) -> None:
        """Let go of the agents: those of a private spool end, and are waited for."""
        for one in self._started if self._private else ():
            assert one.process.stdin is not None
            with suppress(OSError):
                one.process.stdin.close()
        for one in self._started if self._private else ():
            try:
                one.process.wait(LETTING_GO)
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()

    # -- what the client's loop asks for -------------------------------------------------

    def ensure(
        self, session: ClientSession[Any], shapes: Iterable[str]
    ) -> Mapping[str, SpoolError]:
        """Start what is missing; what is wrong if agents end as soon as they start.

        Who is present, the session's last poll has told.

        Raises:
            OSError, SpoolError: file calls fail, which may pass.
        """
        needed = self.needed(shapes)
        if not needed:
            return {}
        self._reap()
        if self._failures >= FAILURES:
            self._failures = 0
            return {"": self._explanation()}
        missing = self._agents - self._running(session.results.present(), needed)
        pause = PAUSE if self._failures else 0.0
        if missing > 0 and time.monotonic() - self._last_start >= pause:
            for _number in range(missing):
                self.submit(max(self._allowed.cores, needed))
        return {}

    def needed(self, shapes: Iterable[str]) -> int:
        """Cores of the largest task that this machine can run; 0 if there is none.

        What another session submitted may be larger than what this one would accept, and
        larger than this machine: that waits for the agents it was meant for.
        """
        most = max(self._allowed.cores, available_cores())
        sizes = [_cores_of(shape) for shape in shapes]
        return max((size for size in sizes if size <= most), default=0)

    def _running(self, present: Iterable[Presence], needed: int) -> int:
        """Agents of this machine and interpreter with enough cores: seen, or just started."""
        pids = {one.process.pid for one in self._started}
        for described in self._about(present):
            if (
                described.get("place") == self._place
                and described.get("python") == sys.executable
                and described.get("cores", 0) >= needed
                and presence.is_alive_process(described)
            ):
                pids.add(described["pid"])
        return len(pids)

    def _about(self, present: Iterable[Presence]) -> list[dict[str, Any]]:
        """What the agents that are present say of themselves: it never changes, so read once."""
        files, area, _ = self._spool
        known, self._described = self._described, {}
        for one in present:
            described = known.get(one.agent) or presence.about(files, area, one)
            if described:
                self._described[one.agent] = described
        return list(self._described.values())

    def _reap(self) -> None:
        for entry in list(self._started):
            code = entry.process.poll()
            lived = time.monotonic() - entry.at
            if code is None:
                if lived > SOON:
                    self._failures = 0
                continue
            self._started.remove(entry)
            if code in _NO_FAILURE or lived > SOON:
                self._failures = 0
            else:
                self._failures += 1
                self._last_words = f"{_tail(entry.log)}\n(exit code {code}, {entry.log})"

    def _explanation(self) -> SpoolError:
        """Where nothing can be written, agents leave no last words: so try it here."""
        files, area, _ = self._spool
        path = area.temporary(files.token())
        try:
            files.write_new(path, [bytes(4096)], sync=False)
            files.unlink(path)
        except SpoolError as error:
            return error
        said = f"{FAILURES} agents ended as soon as they started. The last one said: "
        return SpoolError("No agent can run the tasks", files.root, said + self._last_words)


def _place() -> str:
    """What started an agent, as its presence file says it.

    Agents outside of a task are none for what it submits: they may be full, and wait for it.
    """
    return "local" if own_slot() is None else f"task:{os.getpid()}"


def available_cores() -> int:
    """Cores that this process may use: of this machine, or of its task."""
    slot = own_slot()
    return len(os.sched_getaffinity(0)) if slot is None else cores_of(slot)


def physical_memory() -> int:
    """MB of this host, or of the task; 0 if that cannot be told."""
    if (slot := own_slot()) is not None and slot["memory"]:
        return int(slot["memory"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    except (ValueError, OSError):
        return 0


@lru_cache(1)
def visible_gpus() -> tuple[str, ...]:
    """Ids of the GPUs that a process of this machine may use."""
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if name in os.environ:
            ids = [each.strip() for each in os.environ[name].split(",")]
            return tuple(each for each in ids if each and not each.startswith("-"))
    try:
        devices = os.listdir("/dev")
    except OSError:
        return ()
    numbers = [match[1] for name in devices if (match := re.fullmatch(r"nvidia(\d+)", name))]
    return tuple(sorted(numbers, key=int))


def _create(path: str) -> int:
    """A new file for an agent's output: a descriptor, which the agent inherits."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise explain(error, path) or SpoolError(
            f"Cannot write an agent's log ({error.strerror})", path
        ) from error


def _cores_of(shape: str) -> int:
    parsed = parse_shape(shape) or Shape()
    return parsed.cores * parsed.threads


def _tail(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()[-LAST_WORDS:].strip() or "nothing"
    except OSError as error:
        return f"nothing that can be read ({error.strerror})"


def _python_path() -> str:
    """So that the agent imports the fsbroker that this client runs."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    rest = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join([here, *map(os.path.abspath, rest)])
