"""Where the work runs, and what strikes it.

One process watches over clients and agents, kills what chance says, and starts others. One
client and one agent are spared: what they hold of memory and open files shall not grow.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from fsbroker.spool.spool import create
from tests.groups import GROUPS
from tests.soak.report import Watch
from tests.testbed.mpi import find
from tests.testbed.slurm import Cluster

REPOSITORY = Path(__file__).parents[2]
LEASE = 6.0
ASLEEP = 2 * LEASE
"""Seconds for which an agent is stopped: others take its rows before it wakes."""
END = 300.0
"""Seconds in which all must come to its end when nothing is killed any more."""
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of what was struck; the second one is that of `unshare` around it."""
ELSEWHERE = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
"""As on another host: who asks for its pid gets no answer, so only its silence tells."""


class Site:
    """Clients and agents on this machine; `paths` are those of one spool, as its hosts see it.

    Attributes:
        struck: how often what was struck. anomalies: what clients told; said: the rest of it.
    """

    name = "local"
    strikes = ("agent", "agent", "worker", "worker", "worker", "client", "rank", "sleep", "all")
    backend = "none"

    def __init__(self, folder: Path, paths: Sequence[Path], seed: int) -> None:
        self.folder = folder
        self.paths = list(paths)
        self.chance = random.Random(seed)
        self.struck: Counter[str] = Counter()
        self.tasks: Counter[str] = Counter()
        self.told = 0
        self.anomalies: list[str] = []
        self.said: list[str] = []
        self.options: dict[str, Any] = {"ranks": 2 if _has_mpi() else 0}
        self._asleep: list[tuple[float, int]] = []
        self._clients: dict[str, subprocess.Popen[bytes]] = {}
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._outputs: dict[str, int] = {}
        folder.mkdir(exist_ok=True)
        create(paths[0])
        self.watch = Watch(paths[0])

    # -- the hour --------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self._keep_running()
                self._wake()
                self._pause(self.chance.expovariate(1 / 2.0))
                self._strike(self.chance.choice(self.strikes))
            self._finish()
        finally:
            for process in (*self._clients.values(), *self._agents.values()):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for name in self._outputs:
                self._hear(name)

    def _pause(self, seconds: float) -> None:
        time.sleep(min(seconds, 10.0))
        self.watch.look({"agent": self._pid("spared", self._agents), "client": self._pid("b")})

    def _pid(self, name: str, among: dict[str, subprocess.Popen[bytes]] | None = None) -> int:
        process = (self._clients if among is None else among).get(name)
        return process.pid if process and process.poll() is None else 0

    def _finish(self) -> None:
        """Nothing is struck any more: the last waves end, then clean agents end the rest."""
        self._wake(everybody=True)
        (self.folder / "stop").touch()
        end = time.monotonic() + END
        while self._clients_run():
            if time.monotonic() > end:
                self.anomalies.append(f"clients did not end within {END:.0f} s")
                break
            self._keep_agents()
            self._pause(0.5)
        for name, process in self._clients.items():
            if process.poll():
                self.anomalies.append(f"client {name} ended with {process.returncode}")
        self._end_agents()

    def _clients_run(self) -> bool:
        """Whether any does; whoever was struck last has not ended, but is to start again."""
        for name, process in self._clients.items():
            if process.poll() in KILLED:
                self._clients[name] = self._client(name)
        return any(process.poll() is None for process in self._clients.values())

    def _end_agents(self) -> None:
        for process in self._agents.values():
            for pid in _family(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        last = self._agent("last", idle=LEASE + 2)
        try:
            last.wait(END)
        except subprocess.TimeoutExpired:
            self.anomalies.append("the last agent found no end")

    # -- processes -------------------------------------------------------------------------

    def _keep_running(self) -> None:
        for name in ("a", "b"):
            if self._pid(name) == 0:
                self._note_end(f"client {name}", self._clients.get(name))
                self._clients[name] = self._client(name)
        self._keep_agents()

    def _keep_agents(self) -> None:
        for name in ("spared", "1", "2"):
            process = self._agents.get(name)
            if process is None or process.poll() is not None:
                self._note_end(f"agent {name}", process)
                self._agents[name] = self._agent(name)

    def _note_end(self, name: str, process: subprocess.Popen[bytes] | None) -> None:
        """Who ends by himself has reasons: 3 is that of an agent that was taken for dead."""
        known = (0, 3, *KILLED)
        if process is not None and process.returncode not in known:
            self.anomalies.append(f"{name} ended with {process.returncode}")
        elif process is not None and process.returncode == 3:
            self.struck["taken for dead"] += 1

    def _client(self, name: str) -> subprocess.Popen[bytes]:
        spool = str(self.chance.choice(self.paths))
        options = json.dumps({"backend": self.backend, **self.options})
        return self._start(name, "tests.soak.work", spool, str(self.folder), name, options)

    def _agent(self, name: str, idle: float = 1000.0) -> subprocess.Popen[bytes]:
        spool = self.chance.choice(self.paths)
        cores = 2 if name != "spared" else 1
        options = [f"--spool={spool}", f"--cores={cores}", f"--idle-timeout={idle}"]
        before = ELSEWHERE if name == "2" and os.geteuid() == 0 else []
        options.append(f"--lease={LEASE}")
        return self._start(f"agent.{name}", "fsbroker.agent", *options, before=before)

    def _start(self, name: str, *module: str, before: Sequence[str] = ()):
        with (self.folder / f"{name}.output").open("ab") as output:
            self._outputs.setdefault(name, 0)
            return subprocess.Popen(
                [*before, sys.executable, "-m", *module],
                env={**os.environ, **self.environment(), "PYTHONPATH": str(REPOSITORY)},
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        return find("mpich").env() if _has_mpi() else {}

    def _hear(self, name: str) -> None:
        """What a process has said since it was last heard."""
        text = (self.folder / f"{name}.output").read_text(errors="replace")
        for line in text[self._outputs[name] :].splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "wave":
                self.tasks.update(json.loads(rest))
            elif kind == "told":
                self.told += 1
            elif kind == "ANOMALY":
                self.anomalies.append(f"{name}: {rest}")
            elif name in self._clients:
                self.said.append(f"{name}: {line}")
        self._outputs[name] = len(text)

    # -- strikes ---------------------------------------------------------------------------

    def _strike(self, what: str) -> None:
        how: dict[str, Callable[[], bool]] = {
            "agent": lambda: self._kill(self._mortal_agents()),
            "client": lambda: self._kill([self._pid("a")]),
            "worker": lambda: self._kill(self._children("worker serial")),
            "rank": lambda: self._kill(self._children("worker rank")),
            "sleep": self._stop,
            "all": self._kill_all,
            "job": self._cancel_job,
        }
        if how[what]():
            self.struck[what] += 1

    def _mortal_agents(self) -> list[int]:
        return [self._pid(name, self._agents) for name in ("1", "2")]

    def _children(self, words: str) -> list[int]:
        family = [pid for process in self._agents.values() for pid in _family(process.pid)]
        return [pid for pid in family if words in _command(pid)]

    def _kill(self, pids: Sequence[int]) -> bool:
        pids = [pid for pid in pids if pid]
        if not pids:
            return False
        with suppress(ProcessLookupError):
            os.kill(self.chance.choice(pids), signal.SIGKILL)
        return True

    def _kill_all(self) -> bool:
        for pid in (*self._mortal_agents(), self._pid("a"), *self._children("fsbroker.agent")):
            if pid and pid != self._pid("spared", self._agents):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return True

    def _stop(self) -> bool:
        """The whole of an agent's host, so to say."""
        pid = self._pid("1", self._agents)
        if not pid or self._asleep:
            return False
        self._asleep = [(time.monotonic() + ASLEEP, one) for one in _family(pid)]
        for _, one in self._asleep:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)
        return True

    def _wake(self, *, everybody: bool = False) -> None:
        if self._asleep and (everybody or time.monotonic() > self._asleep[0][0]):
            for _, one in self._asleep:
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGCONT)
            self._asleep = []

    def _cancel_job(self) -> bool:
        return False


class SlurmSite(Site):
    """Agents come in queue jobs, which clients submit; what is killed are these, and jobs."""

    name = "slurm"
    strikes = ("agent", "worker", "worker", "client", "rank", "job")
    backend = "slurm"

    def __init__(self, cluster: Cluster, folder: Path, paths: Sequence[Path], seed: int) -> None:
        super().__init__(folder, paths, seed)
        self._cluster = cluster
        pilots = {"block_allocation": True, "max_workers": 2, "max_jobs": 3, "idle_timeout": 5.0}
        self.options |= pilots

    def environment(self) -> dict[str, str]:
        return self._cluster.environment()

    def _keep_agents(self) -> None:
        pass

    def _jobs_agents(self) -> list[int]:
        """Agents of this spool, wherever they run: nodes share the kernel."""
        words = f"fsbroker.agent --spool={self.paths[0]}"
        return [one.pid for one in psutil.process_iter() if words in _command(one.pid)]

    def _mortal_agents(self) -> list[int]:
        return self._jobs_agents()

    def _children(self, words: str) -> list[int]:
        # Ranks are children of SLURM's daemons, not of their agent.
        mine = str(self.paths[0])
        found = [(one.pid, _command(one.pid)) for one in psutil.process_iter()]
        return [pid for pid, command in found if words in command and mine in command]

    def _cancel_job(self) -> bool:
        running = [job.id for job in self._cluster.jobs().values() if job.state == "RUNNING"]
        if running:
            self._cluster.run(["scancel", self.chance.choice(running)], check=False)
        return bool(running)

    def _end_agents(self) -> None:
        for job in self._cluster.jobs().values():
            if job.state in ("PENDING", "RUNNING"):
                self._cluster.run(["scancel", job.id], check=False)
        self._cluster.wait_for(lambda: not self._jobs_agents())
        super()._end_agents()


def _has_mpi() -> bool:
    return GROUPS["mpich"].missing() is None


def _family(pid: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def _command(pid: int) -> str:
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""
