"""The agent's side of MPI groups: workers of several ranks.

    agent --control--> guardian --> mpiexec --> ranks
      ^------------ connection of each rank -------'

Every rank connects to the agent by itself, gets the call and reports how it ended for it:
no outcome ever needs the ranks to agree, so one that fails cannot make the others hang
longer than `GRACE`. A group is kept for the next call after one that went well on all
ranks. After any failure it is ended: messages that were sent but not received would reach
the next task.

In a queue job the site's launcher starts the ranks, also on other nodes of the job. They are
no descendants of the agent's guardian then: each has one of its own, which ends all that the
rank has started when its connection to the agent ends.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import secrets
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

from fsbroker import pickling
from fsbroker.agent import capture, messages
from fsbroker.agent.door import LIFE, TOKEN, Door, lively
from fsbroker.agent.launchers import (
    Launch,
    fill,
    mpi_of,
    pmi_for,
    pmi_offered,
)
from fsbroker.agent.memory import Excess
from fsbroker.agent.messages import (
    Aborting,
    ArrayRef,
    Call,
    Ended,
    Hello,
    NotReady,
    Output,
    Prepared,
    Returned,
    Value,
)
from fsbroker.agent.processes import CHUNK, Process, Settings, environment, exit_text
from fsbroker.agent.workers import PACKAGE_ROOT, TURN, Connection, Lost, Report, Sent
from fsbroker.environment import mpi_library
from fsbroker.errors import FsbrokerError, MissingProgram, OutOfMemory, RankFailed, WorkerLost
from fsbroker.task import Encoding, Payload, Status

GRACE = 2.0
"""Seconds that the other ranks have to end when one has failed: they may wait for it."""

START_LIMIT = 60.0
"""Seconds for all ranks to say hello."""

TAIL = 2000
"""Characters of the launcher's last words in an error."""

_LONGEST_PATH = 90  # of the directory of a socket: the kernel takes 107 bytes in all

_numbers = count()


# -- launching ---------------------------------------------------------------------------


def find_launcher(template: Sequence[str], settings: Settings, ranks: int) -> list[str]:
    """The command that starts the ranks, without the program that they run.

    Raises:
        MissingProgram: it is not installed.
    """
    gpus, memory = len(settings.gpus), settings.memory
    launch = Launch(
        ranks,
        settings.threads,
        settings.nodes,
        gpus,
        memory,
        _pmi(settings),
        brokers=settings.brokers,
    )
    filled = fill(template, launch)
    # Beside the interpreter first: there is the MPI that mpi4py loads first, too.
    beside = os.path.join(os.path.dirname(settings.python), filled[0])
    path = settings.environment.get("PATH", os.environ.get("PATH"))
    found = shutil.which(beside) or shutil.which(filled[0], path=path)
    if found is None:
        raise MissingProgram(
            "Tasks with several cores need an MPI launcher, which is not installed",
            filled[0],
            "Load the site's MPI module and `pip install 'fsbroker[mpi]'`,"
            " or `pip install mpi4py mpich`.",
        )
    return [found, *filled[1:]]


def _pmi(settings: Settings) -> str:
    """What to give to srun's ``--mpi``: what the site says, or what mpi4py's MPI speaks."""
    if settings.pmi or not any("{pmi}" in argument for argument in settings.launcher):
        return settings.pmi
    return _pmi_of(settings.python, tuple(environment(settings, os.environ).items()))


@lru_cache(8)
def _pmi_of(python: str, variables: tuple[tuple[str, str], ...]) -> str:
    said = mpi_library(python, dict(variables))
    return pmi_for(mpi_of(said), pmi_offered())  # the ranks say what is wrong, if it is


class _Place:
    """A directory for one group, for this user alone, with the door that ranks come to.

    Open MPI keeps its files there too: where a group was killed, they would stay.
    """

    def __init__(self, settings: Settings) -> None:
        self.path = os.path.join(settings.scratch, f"mpi-{next(_numbers)}")
        if len(os.fsencode(self.path)) > _LONGEST_PATH:
            self.path = tempfile.mkdtemp(prefix="fsb-", dir="/tmp")
        else:
            os.mkdir(self.path, 0o700)
        self.door = Door(os.path.join(self.path, "agent"), next(iter(settings.elsewhere), None))

    def remove(self) -> None:
        self.door.close()
        shutil.rmtree(self.path, ignore_errors=True)


def shared_memory_of(pids: Iterable[int]) -> set[str]:
    """The shared memory files of processes: those of an MPI library stay after a kill."""
    found = set()
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            found.update(re.findall(r" (/dev/shm/\S+)$", maps.read(), re.MULTILINE))
    return found


# -- what happened -----------------------------------------------------------------------

_ABORTED = (
    re.compile(rb"application called MPI_Abort\(.*?, (?P<code>-?\d+)\) - process (?P<rank>\d+)"),
    re.compile(rb"MPI_ABORT was invoked on rank (?P<rank>\d+) [^.]*?errorcode (?P<code>-?\d+)"),
)
_KILLED = (
    re.compile(rb"process rank (?P<rank>\d+) .*?on signal (?P<signal>\d+)", re.DOTALL),
    re.compile(rb"PID (?P<pid>\d+) RUNNING AT.*?EXIT CODE: (?P<signal>\d+)", re.DOTALL),
)
_SRUN_KILLED = re.compile(rb"srun: error: \S+: tasks? (?P<rank>\d+)\S*: (?P<how>[^\n(]*)")
_SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}


class Death(NamedTuple):
    """What the launcher says of the rank that ended the group."""

    rank: int | None
    how: str


def read_death(said: bytes, pids: Mapping[int, int]) -> Death | None:
    """What a launcher's text tells of the rank that died first.

    Args:
        said: its stderr and stdout.
        pids: rank of each process.
    """
    for pattern in _KILLED:
        if found := pattern.search(said):
            parts = found.groupdict()
            rank = int(parts["rank"]) if "rank" in parts else pids.get(int(parts["pid"]))
            number = int(parts["signal"])
            # Hydra gives the exit code of a rank that ended by itself in the same place.
            by_signal = "rank" in parts or b"(signal %d)" % number in said
            return Death(rank, exit_text(-number if by_signal else number))
    if found := _SRUN_KILLED.search(said):
        how = found["how"].decode(errors="replace").strip()
        by = _SIGNALS.get(how)
        return Death(int(found["rank"]), exit_text(-by) if by else how.removeprefix("Exited with "))
    return None


def read_abort(said: bytes) -> tuple[int, str] | None:
    """The rank that called ``MPI_Abort``, and how, from what MPI libraries print then."""
    for pattern in _ABORTED:
        if found := pattern.search(said):
            return int(found["rank"]), f"called MPI_Abort({int(found['code'])})"
    return None


def gather(reports: Sequence[Ended]) -> Ended:
    """The one outcome of a row, from those of all ranks.

    Its value is the list of the ranks' values; if any rank failed, it is what the lowest
    of those raised. Ranks that reported nothing may be missing then.
    """
    reports = sorted(reports, key=lambda report: report.rank)
    failed = next((report for report in reports if report.status != Status.DONE), None)
    outputs = (Output(report.rank, report.stdout, report.stderr) for report in reports)
    whole = failed or reports[0]._replace(value=_join([report.value for report in reports]))
    return whole._replace(
        error={**failed.error, "rank": str(failed.rank)} if failed and failed.error else None,
        started=min(report.started for report in reports),
        wall=max(report.wall for report in reports),
        cpu=sum(report.cpu for report in reports),
        peak_memory=sum(report.peak_memory for report in reports),
        stdout=b"",
        stderr=b"",
        outputs=tuple(output for output in outputs if output.stdout or output.stderr),
    )


def _join(values: Sequence[Value]) -> Value:
    """The stored form of a list of values; their arrays are not touched, they may be blobs."""
    if not any(value.arrays for value in values):
        payload = pickling.join([Payload(Encoding(v.encoding), v.data) for v in values])
        return Value(payload.encoding, payload.data)
    import numpy as np

    references: dict[int, ArrayRef] = {}
    payloads = []
    stand_ins: list[Any] = []  # holds them, so that their ids stay theirs
    for value in values:
        own = tuple(np.empty(0) for _ in value.arrays)
        stand_ins += own
        references.update(zip(map(id, own), value.arrays, strict=True))
        payloads.append(Payload(Encoding(value.encoding), value.data, own))
    joined = pickling.join(payloads)
    arrays = tuple(references[id(item)] for item in joined.arrays)
    return Value(joined.encoding, joined.data, arrays)


# -- the group ---------------------------------------------------------------------------


class MpiWorker:
    """A group of MPI ranks that run one call after the other, all of them the same.

    Give it one `Call` at a time. A call that failed on any rank is followed by the end of
    the group: `alive` is False when its outcome is there.

    Attributes:
        ready: all ranks have said hello. Work may be sent before.
        alive: it can take work.
        pids: of the ranks.

    Raises:
        MissingProgram: no launcher is installed.
    """

    def __init__(self, settings: Settings, ranks: int) -> None:
        self.settings = settings
        self.ranks = ranks
        self.ready = False
        self.alive = True
        self.pids: dict[int, int] = {}
        self._gone = False
        self._launcher = find_launcher(settings.launcher, settings, ranks)
        self._output = self._own_output = os.path.join(settings.scratch, f"group-{next(_numbers)}")
        if settings.elsewhere:
            self._output = os.path.join(settings.shared, f"group-{secrets.token_hex(8)}")
        self._poll = select.epoll()
        self._place = _Place(settings)
        self._poll.register(self._place.door, select.EPOLLIN)
        self._guarded = bool(settings.nodes)
        self._lives: dict[int, socket.socket] = {}
        self._guarded_ranks = 0
        self._excess: OutOfMemory | None = None
        self._shared: set[str] = set()
        self._peers: dict[int, Connection] = {}
        self._rank_of: dict[int, int] = {}
        self._queue: list[bytes] = []
        self._calls: list[int] = []
        self._reports: dict[int, dict[int, Ended]] = {}
        self._trouble: FsbrokerError | None = None
        self._failed = False
        self._killed = False
        self._aborted: tuple[int, str] | None = None
        self._died: list[int] = []
        self._process = self._launch()
        self._poll.register(self._process, select.EPOLLIN)

    def _launch(self) -> Process:
        plan = {
            "connect": self._place.door.address,
            "guarded": self._guarded,
            "memory": -(-self.settings.memory // self.ranks),
            "output": self._output,
            "spool": self.settings.spool,
            "area": self.settings.area,
            "durable": self.settings.durable,
            "key": self.settings.key,
            "cpus": self.settings.cpus,
            "number": self.settings.number,
        }
        rank = [self.settings.python, "-m", "fsbroker.agent.worker", "rank", json.dumps(plan)]
        guardian = [sys.executable, "-m", "fsbroker.agent.guardian", "{control}"]
        guardian.append(str(self.settings.memory))
        variables = environment(self.settings, os.environ)
        for name in ("OMPI_MCA_orte_tmpdir_base", "PRTE_MCA_prte_tmpdir_base"):
            variables[name] = self._place.path
        variables[TOKEN] = self._place.door.token  # not an argument: `ps` shows those to everybody
        process = Process(
            [*guardian, *self._launcher, *rank], variables, PACKAGE_ROOT, self._own_output
        )
        process.kill(after=START_LIMIT)
        return process

    def fileno(self) -> int:
        """Readable when `receive` has something to do."""
        return self._poll.fileno()

    def send(self, *sent: Sent) -> None:
        self._calls += [message.row for message in sent if isinstance(message, Call)]
        frames = [messages.frame(message) for message in sent]
        if self.ready:
            self._send(frames)
        else:
            self._queue += frames

    def _send(self, frames: list[bytes]) -> None:
        for peer in self._peers.values():
            peer.send(frames)

    def receive(self) -> list[Report]:
        """The outcomes of calls that have ended on all ranks; `Lost` at last.

        After an outcome of a failed call there is no `Lost`: the group is gone already.
        """
        if self._gone:
            return []
        ended = self._process.ended()  # before we read: what ranks said before counts
        found: list[Report] = []
        # In the order in which they became ready: the first rank to die is the culprit.
        for descriptor, _ in self._poll.poll(0):
            found += self._attend(descriptor, math.inf if ended else TURN)
        if ended:
            found.append(self._end(ended))
        return found

    def _attend(self, descriptor: int, at_most: float) -> list[Report]:
        if not self.ready and descriptor == self._place.door.fileno():
            self._let_in()
            self._begin_if_complete()
            return []
        if descriptor in self._lives:
            self._hear_guardian(descriptor)
            return []
        peer = self._peers.get(descriptor)
        if peer is None:  # the process: it has been asked
            return []
        peer.flush()
        heard = [self._hear(descriptor, message) for message in peer.receive(at_most)]
        found: list[Report] = [one for one in heard if one is not None]
        if not peer.open:
            self._hang_up(descriptor)
        return found

    def _let_in(self) -> None:
        for peer, purpose in self._place.door.accept():
            lively(peer)
            if purpose == LIFE:
                self._guarded_ranks += 1
                self._lives[peer.fileno()] = peer
                self._poll.register(peer, select.EPOLLIN)
            else:
                self._peers[peer.fileno()] = Connection(peer, self._poll)

    def _hear_guardian(self, descriptor: int) -> None:
        """A rank used too much memory, or it has ended, and all that it had started."""
        life = self._lives[descriptor]
        said = b""
        with suppress(OSError):
            said = life.recv(CHUNK, socket.MSG_DONTWAIT)
        if said:
            rank = Excess.unpack(said)
            self._excess = OutOfMemory(f"A rank of the task {rank}", os.uname().nodename)
        else:
            self._poll.unregister(life)
            self._lives.pop(descriptor).close()

    def _hang_up(self, descriptor: int) -> None:
        self._peers.pop(descriptor, None)
        rank = self._rank_of.pop(descriptor, None)
        if rank is not None:
            self._died.append(rank)
            self._process.kill(after=GRACE)

    def _hear(self, descriptor: int, message: messages.Message) -> Prepared | Ended | None:
        if isinstance(message, Hello):
            self._welcome(descriptor, message)
        elif isinstance(message, Aborting) and descriptor in self._rank_of:
            self._aborted = (self._rank_of[descriptor], f"called MPI_Abort({message.code})")
        elif isinstance(message, NotReady):
            self._refuse(pickle.loads(message.error))
        elif isinstance(message, Prepared):
            return message
        elif isinstance(message, Ended) and descriptor in self._rank_of:
            return self._collect(message)
        elif isinstance(message, Returned) and descriptor in self._rank_of:
            return self._collect(_one_row(message, self._rank_of[descriptor]))
        return None

    def _welcome(self, descriptor: int, hello: Hello) -> None:
        if hello.size != self.ranks:
            self._refuse(self._wrong_size(hello))
        else:
            self._rank_of[descriptor] = hello.rank
            self.pids[hello.rank] = hello.pid
            self._begin_if_complete()

    def _begin_if_complete(self) -> None:
        if len(self.pids) < self.ranks or self._guarded_ranks < self.ranks * self._guarded:
            return
        self.ready = True
        self._process.kill(after=math.inf)
        self._place.door.close()
        self._shared = shared_memory_of(self.pids.values())  # before a task has any
        self._send(self._queue)
        self._queue = []

    def _refuse(self, error: FsbrokerError) -> None:
        """The group cannot work: the first error says why."""
        self._trouble = self._trouble or error
        self.kill()

    def _wrong_size(self, hello: Hello) -> RankFailed:
        return RankFailed(
            f"{self.ranks} MPI ranks were started, but a rank found {hello.size}: mpi4py loaded"
            f" {hello.library}, the ranks were started by {hello.launched_by}",
            self._launcher[0],
            "Let mpi4py load the MPI of this launcher (MPI4PY_MPIABI, MPI4PY_LIBMPI,"
            " LD_LIBRARY_PATH), put that MPI's mpiexec first on PATH, or have srun speak its"
            f" PMI ({' '.join(self._launcher[1:])}).",
        )

    def _collect(self, report: Ended) -> Ended | None:
        reports = self._reports.setdefault(report.row, {})
        reports[report.rank] = report
        if report.status != Status.DONE and not self._died:
            self._failed = True
            self.alive = False
        complete = len(reports) == self.ranks
        if self._failed:  # the outcome follows in `_end`
            self._process.kill(after=0.0 if complete else GRACE)
        elif complete:
            self._calls.remove(report.row)
            return gather(list(self._reports.pop(report.row).values()))
        return None

    # -- the end -------------------------------------------------------------------------

    def _end(self, ended: str) -> Report:
        """The last report, when nothing of the group is left."""
        self.alive = False
        self._gone = True
        if self._failed:
            return self._failed_call()
        outputs = self.captured()
        launcher = b"\n".join(self._process.captured())
        if not self.ready:
            return Lost(ended, self._not_started(ended, launcher), False, None, outputs)
        if excess := self._excess or self._process.out_of_memory():
            return Lost(ended, excess, True, None, outputs)
        everything = b"\n".join([launcher, *(output.stderr for output in outputs)])
        aborted = self._aborted or read_abort(everything)
        if aborted and self._calls:
            return self._aborted_call(*aborted, outputs)
        rank, how = self._first_death(launcher, ended)
        name = "A rank" if rank is None else f"Rank {rank}"
        error = WorkerLost(f"{name} of {self.ranks} ended ({how})", os.uname().nodename)
        return Lost(how, error, True, rank, outputs)

    def _first_death(self, launcher: bytes, ended: str) -> Death:
        if self._killed:
            return Death(None, ended)
        ranks = {pid: rank for rank, pid in self.pids.items()}
        found = read_death(launcher, ranks) or Death(None, ended)
        if self._died:  # launchers name any of those that they killed then
            return found._replace(rank=self._died[0])
        return found

    def _failed_call(self) -> Ended:
        row = next(row for row, reports in self._reports.items() if _any_failed(reports))
        reports = self._reports.pop(row)
        self._calls.remove(row)
        outcome = gather(list(reports.values()))
        missing = [output for output in self.captured() if output.rank not in reports]
        outputs = sorted((*outcome.outputs, *missing), key=lambda output: output.rank)
        return outcome._replace(outputs=tuple(outputs))

    def _aborted_call(self, rank: int, how: str, outputs: tuple[Output, ...]) -> Ended:
        """A task that aborts MPI has failed; no accident that a second attempt may undo."""
        row = self._calls.pop(0)
        error = RankFailed(f"Rank {rank} of {self.ranks} {how}", os.uname().nodename)
        shown = {
            "type": "fsbroker.errors.RankFailed",
            "message": str(error),
            "traceback": "",
            "rank": str(rank),
        }
        value = Value(Encoding.PICKLE, pickle.dumps(error, protocol=pickling.PROTOCOL))
        return Ended(row, rank, Status.FAILED, value, shown, 0.0, 0.0, 0.0, 0, b"", b"", outputs)

    def _not_started(self, ended: str, said: bytes) -> FsbrokerError:
        if self._trouble is not None:
            return self._trouble
        tail = said.decode(errors="replace").strip()[-TAIL:]
        return RankFailed(
            f"{self.ranks} MPI ranks did not start ({ended})",
            " ".join(self._launcher),
            "Does mpi4py load the MPI of this launcher (MPI4PY_MPIABI, MPI4PY_LIBMPI), and does"
            " srun speak its PMI (--mpi, see `srun --mpi=list`)?"
            f" The launcher's last words:\n{tail}",
        )

    def captured(self) -> tuple[Output, ...]:
        """What the ranks have written in the call that is running."""
        outputs = (
            Output(
                rank,
                capture.read_file(f"{self._output}.{rank}.out"),
                capture.read_file(f"{self._output}.{rank}.err"),
            )
            for rank in range(self.ranks)
        )
        return tuple(output for output in outputs if output.stdout or output.stderr)

    def stop(self) -> None:
        """Have it end when it has done all that was sent; `Lost` follows."""
        self.alive = False
        self.send(messages.Stop())

    def kill(self, after: float = 0.0) -> None:
        """Have it killed with all that it started; `Lost` follows when that is done."""
        self.alive = False
        self._killed = not self._died
        self._process.kill(after)

    def close(self) -> None:
        """Let go of it: if it still lives, it is killed."""
        self._gone = True
        self._process.close()
        self._place.remove()
        for peer in self._peers.values():
            peer.close()
        for life in self._lives.values():
            life.close()
        self._poll.close()
        files = [f"{self._output}.{r}.{end}" for r in range(self.ranks) for end in ("out", "err")]
        for path in (*files, *self._shared):
            with suppress(FileNotFoundError):
                os.unlink(path)


def _one_row(report: Returned, rank: int) -> Ended:
    """A rank's short report of a call, in the long form."""
    started, wall, cpu = (
        struct.unpack("d", packed)[0] for packed in (report.started, report.wall, report.cpu)
    )
    value = Value(Encoding.PLAIN, report.text)
    return Ended(
        report.first,
        rank,
        Status.DONE,
        value,
        None,
        started,
        wall,
        cpu,
        report.peak_memory,
        b"",
        b"",
    )


def _any_failed(reports: Mapping[int, Ended]) -> bool:
    return any(report.status != Status.DONE for report in reports.values())
