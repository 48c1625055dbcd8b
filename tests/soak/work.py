"""The work: waves of tasks of all sorts, and the client that wants them.

Run as a process: ``python -m tests.soak.work SPOOL FOLDER NAME OPTIONS``. It goes on with the
wave in which it was killed; what is the same call has the same key, so nothing is lost or done
twice by that. Clients of one soak want the same tasks, but for those that they cancel.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fsbroker.errors import DependencyFailed, FsbrokerError, SchedulerError
from fsbroker.executor import ClusterExecutor
from fsbroker.future import Future
from fsbroker.launch import queue
from fsbroker.spool.jobs import JobLog
from tests.faults.tasks import kill_worker, note, task, value_of

PATIENCE = 300.0
"""Seconds in which a task must end, whatever is killed meanwhile."""
RETRIES = 254
"""As many as there can be: here agents die all the time with rows in hand."""


def fail(journal: str, name: str) -> None:
    note(journal, name)
    raise ValueError(name)


def large(journal: str, name: str) -> list[Any]:
    """An array that is stored by itself."""
    note(journal, name)
    return [name, np.arange(200_000.0)]


def ranks(journal: str, name: str) -> list[Any]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if comm.rank == 0:
        note(journal, name)
    return [name, comm.allreduce(comm.rank + 1)]


class Wanted(NamedTuple):
    """A future, and whether what became of it is right."""

    kind: str
    name: str
    future: Future
    is_right: Callable[[Any], bool]


class Waves:
    """What is submitted, wave by wave: the same in every process.

    Args:
        own: the client's name, for what only it wants.
        ranks: of an MPI task; 0 for none.
    """

    def __init__(self, executor: ClusterExecutor, journal: str, own: str, ranks: int) -> None:
        self._executor = executor
        self._journal = journal
        self._own = own
        self._ranks = ranks

    def submit(self, wave: int) -> Iterator[Wanted]:
        chance = random.Random(wave)
        yield from self._graph(f"w{wave}.", chance, 30)
        if wave:  # known by now, mostly
            yield from self._graph(f"w{wave - 1}.", random.Random(wave - 1), 10)
        yield from self._failing(f"w{wave}.")
        yield self._one("retried", kill_worker, f"w{wave}.retried", 1)
        name = f"w{wave}.large"
        yield Wanted("large", name, self._submit(large, name), lambda value: _is_large(value, name))
        if self._ranks:
            yield self._mpi(f"w{wave}.mpi")
        for number in range(2):
            yield self._cancelled(f"cancel.{self._own}.w{wave}.{number}")

    def _submit(self, function: Callable[..., Any], name: str, *more: Any, **wishes: Any) -> Future:
        return self._executor.submit(function, self._journal, name, *more, **wishes)

    def _one(self, kind: str, function: Callable[..., Any], name: str, *more: Any) -> Wanted:
        future = self._submit(function, name, *more)
        return Wanted(kind, name, future, lambda value: value == value_of(name))

    def _graph(self, prefix: str, chance: random.Random, count: int) -> Iterator[Wanted]:
        """Tasks of which a third waits for one or two of those before."""
        futures: list[Future] = []
        values: list[Any] = []
        for number in range(count):
            name = f"{prefix}{number}"
            behind = chance.sample(range(number), 2) if number > 2 and number % 3 == 0 else []
            delay = chance.choice([0.0, 0.0, 0.01, 0.05, 0.3])
            inputs = [futures[one] for one in behind]
            futures.append(self._submit(task, name, delay, *inputs))
            values.append(value_of(name, *(values[one] for one in behind)))
            kind = "chain" if behind else "serial"
            expected = values[-1]
            yield Wanted(kind, name, futures[-1], lambda value, e=expected: value == e)

    def _failing(self, prefix: str) -> Iterator[Wanted]:
        first = self._submit(fail, f"{prefix}fails")
        yield Wanted(
            "failing", f"{prefix}fails", first, lambda error: isinstance(error, ValueError)
        )
        behind = self._submit(task, f"{prefix}behind", 0.0, first)
        yield Wanted(
            "failing", f"{prefix}behind", behind, lambda error: isinstance(error, DependencyFailed)
        )

    def _mpi(self, name: str) -> Wanted:
        future = self._submit(ranks, name, resource_dict={"cores": self._ranks})
        each = [name, sum(range(self._ranks + 1))]
        return Wanted("MPI", name, future, lambda value: value == [each] * self._ranks)

    def _cancelled(self, name: str) -> Wanted:
        future = self._submit(task, name, 0.1)
        future.cancel()
        right = lambda value: isinstance(value, CancelledError) or value == [name]  # noqa: E731
        return Wanted("cancelled", name, future, right)


class Client:
    """A process that wants wave after wave, until it is told to stop."""

    def __init__(self, spool: str, folder: Path, name: str, options: dict[str, Any]) -> None:
        ranks = options.pop("ranks", 0)
        self._folder = folder
        self._progress = folder / f"{name}.wave"
        self._executor = ClusterExecutor(spool, resource_dict={"retries": RETRIES}, **options)
        self._waves = Waves(self._executor, str(folder / "journal"), name, ranks)
        self._counts: Counter[str] = Counter()

    def run(self) -> None:
        wave = int(self._progress.read_text()) if self._progress.exists() else 0
        while not (self._folder / "stop").exists():
            counts = self._wave(wave)
            wave += 1
            _replace(self._progress, str(wave))
            print("wave", json.dumps(counts), flush=True)
        self._executor.shutdown()

    def _wave(self, wave: int) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for wanted in list(self._waves.submit(wave)):
            counts[wanted.kind] += 1
            self._judge(wanted)
        return counts

    def _judge(self, wanted: Wanted) -> None:
        found: Any
        try:
            found = wanted.future.result(PATIENCE)
        except BaseException as error:
            found = error
        if isinstance(found, SchedulerError):  # killed jobs look like a site that is broken
            print("told", type(found).__name__, flush=True)
            self._resume()
        elif not wanted.is_right(found):
            kind = "no end" if isinstance(found, TimeoutError) else "wrong"
            print("ANOMALY", kind, wanted.name, repr(found)[:500], flush=True)
            self._explain(wanted.future)

    def _explain(self, future: Future) -> None:
        """What this client knows of it, and what another process finds: the report shows it."""
        loop = self._executor._loop
        with loop.lock:
            bound = loop._session._bound.get(future.stem or "")
        print(f"waits for row {future.row} of {future.stem}; of that file for: {bound}", flush=True)
        program = "import sys; from fsbroker.cli import main; sys.exit(main())"
        words = ["explain", future.key.hex() if future.key else "-", "--spool", loop.root]
        subprocess.run([sys.executable, "-c", program, *words], check=False)
        faulthandler.dump_traceback(sys.stdout)

    def _resume(self) -> None:
        files, area, _ = self._executor._loop.spool
        log = JobLog(files, area)
        log.refresh()
        log.resume()


def _is_large(value: Any, name: str) -> bool:
    return isinstance(value, list) and value[0] == name and float(value[1][-1]) == 199_999.0


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def main() -> None:
    spool, folder, name, options = sys.argv[1:]
    # Where jobs end every few seconds, nobody waits half a minute to hear of it.
    queue.QUERY_EVERY, queue.LOOK_EVERY, queue.NOBODY_ASKS = 2.0, 0.5, 5.0
    try:
        Client(spool, Path(folder), name, json.loads(options)).run()
    except FsbrokerError as error:
        print("ANOMALY", "client", type(error).__name__, str(error)[:500], flush=True)
        raise


if __name__ == "__main__":
    main()
