"""Measurements of what is stored: arrays, cached calls, pending tasks; and of starts.

Each function here runs in a process of its own and returns a dictionary of numbers.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from tests.benchmarks import processes, work
from tests.benchmarks.peers import PEERS
from tests.benchmarks.tasks import WrongValue, compare, warm

# -- arrays ------------------------------------------------------------------------------


def array(peer, directory, workers, megabytes, durable=True):
    """Seconds for one array to reach a function and for its value to come back."""
    import numpy as np

    if peer == "fsbroker":
        from fsbroker.spool.spool import create

        create(f"{directory}/spool", durable=durable)
    times = []
    with PEERS[peer].open(directory, workers) as submit:
        warm(submit, workers)
        for seed in range(3):
            given = _array(megabytes, seed)
            start = time.perf_counter()
            value = submit(work.negative, given).result()
            times.append(time.perf_counter() - start)
            if not np.array_equal(value, -given):
                raise WrongValue("another array than the function returns")
    return {"seconds": statistics.median(times), "compared": len(times)}


def array_file(directory, megabytes, durable=True):
    """Seconds for numpy.save and numpy.load of such an array."""
    import numpy as np

    times = []
    for seed in range(3):
        given, path = _array(megabytes, seed), f"{directory}/{seed}.npy"
        start = time.perf_counter()
        with open(path, "wb") as file:
            np.save(file, given)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        value = np.load(path)
        times.append(time.perf_counter() - start)
        compare(bool(np.array_equal(value, given)), True)
    return {"seconds": statistics.median(times), "compared": len(times)}


def _array(megabytes, seed):
    import numpy as np

    return np.random.default_rng(seed).random(megabytes << 17)


# -- cached calls ------------------------------------------------------------------------


def calls(directory, workers, tasks):
    """Seconds for a session that submits calls and reads all values: new ones, or cached."""
    import fsbroker.executor  # noqa: F401 - what a session imports is another budget's

    start = time.perf_counter()
    with PEERS["fsbroker"].open(directory, workers) as submit:
        futures = [submit(work.successor, number) for number in range(tasks)]
        compare([future.result() for future in futures], list(range(1, tasks + 1)))
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "compared": tasks}


# -- pending tasks -----------------------------------------------------------------------


def pending_client(directory, tasks):
    """Bytes that a client holds for each task that waits for an agent."""
    with PEERS["fsbroker"].open(directory, 1, backend="none") as submit:
        submit(work.successor, -1)
        _wait_for_rows(directory, 1)
        before = processes.memory()
        futures = [submit(work.successor, number) for number in range(tasks)]
        _wait_for_rows(directory, tasks + 1)
        after = processes.memory()
        compare(any(future.done() for future in futures), False)
    return {"bytes": (after - before) / tasks, "compared": tasks}


def _wait_for_rows(directory, rows, seconds=600.0):
    """Until so many tasks stand in the spool: the names of task files tell."""
    from fsbroker.spool.layout import parse_stem
    from fsbroker.spool.spool import open_spool

    files, area, _ = open_spool(f"{directory}/spool")
    until = time.monotonic() + seconds
    found = 0
    while found < rows:
        if time.monotonic() > until:
            raise WrongValue(f"only {found} of {rows} tasks came into the spool")
        stems = (parse_stem(name.removesuffix(".h5")) for name in files.names(area.tasks))
        found = sum(stem.rows for stem in stems if stem)
        time.sleep(0.02)


def future_objects(directory, kind, tasks):
    """Bytes of one Future object, and of the key by which fsbroker's is known."""
    from concurrent.futures import Future as Plain

    from fsbroker.future import Future

    before = processes.memory()
    if kind == "fsbroker":
        futures = [Future(os.urandom(20), None) for _ in range(tasks)]
    else:
        futures = [Plain() for _ in range(tasks)]
    after = processes.memory()
    return {"bytes": (after - before) / len(futures), "compared": tasks}


def pending_agent(directory, tasks, claims=50):
    """Bytes that an agent holds for each pending task, and seconds of a claim.

    The agent's session without its workers: it claims single rows, and then looks at every
    file, as an idle agent does now and then; that is when it holds most.
    """
    from fsbroker.agent.session import AgentSession
    from fsbroker.environment import environment
    from fsbroker.spool.presence import describe
    from fsbroker.spool.spool import open_spool

    spool = open_spool(f"{directory}/spool")
    session = AgentSession(spool, environment(), {}, describe(place="benchmark", cores=1))
    session.join()
    before = processes.memory()
    session.live.poll()
    times = []
    for _ in range(claims):
        start = time.perf_counter()
        session.live.poll()
        claim = session.claim(lambda _live, _ready: 1)
        times.append(time.perf_counter() - start)
        compare(claim is not None, True)
    working = processes.memory()
    session.tidy()
    idle = processes.memory()
    session.leave()
    return {
        "claim": statistics.median(times),
        "bytes": (idle - before) / tasks,
        "bytes_working": (working - before) / tasks,
        "compared": claims,
    }


# -- starts ------------------------------------------------------------------------------


def start_import(directory, module):
    """Seconds of an import in a fresh interpreter."""
    text = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return {"seconds": float(done.stdout.split()[-1]), "compared": 0}


def start_agent(directory):
    """Seconds from the start of an agent's process to its presence, and to its first claim."""
    from fsbroker.spool.spool import open_spool

    with PEERS["fsbroker"].open(directory, 1, backend="none") as submit:
        future = submit(work.successor, 1)
        _wait_for_rows(directory, 1)
        files, area, _ = open_spool(f"{directory}/spool")
        (log,) = files.names(area.claims)
        start = time.perf_counter()
        agent = subprocess.Popen(
            [sys.executable, "-m", "fsbroker.agent", f"--spool={directory}/spool", "--cores=1"]
        )
        try:
            present = _until(lambda: files.names(area.agents)) - start
            claimed = _until(lambda: files.names(f"{area.claims}/{log}")) - start
            compare(future.result(60), 2)
            ended = time.perf_counter() - start
        finally:
            agent.terminate()
            agent.wait()
    return {"presence": present, "claim": claimed, "value": ended, "compared": 1}


def _until(is_true, seconds=60.0):
    until = time.perf_counter() + seconds
    while not is_true() and time.perf_counter() < until:
        time.sleep(0.001)
    return time.perf_counter()
