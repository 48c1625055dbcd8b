"""Pools of several makers behind one interface: ``with PEERS[name](directory, workers) as submit``.

``submit(function, *arguments)`` returns something with ``result()``. Each uses processes
as workers, as many as it is told, and nothing of what it leaves outlives the block.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

from tests.benchmarks import processes


class Peer(NamedTuple):
    """A pool to compare with.

    Attributes:
        title: as the table shows it.
        package: what has to be installed.
        open: context manager of (directory, workers), gives `submit`.
        share: of the tasks that fsbroker gets, how many make a sample of a few seconds.
        takes_futures: a future may be an argument.
    """

    title: str
    package: str
    open: Callable
    share: float = 1.0
    takes_futures: bool = True

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


@contextmanager
def fsbroker(directory, workers, **options):
    from fsbroker.executor import ClusterExecutor

    options = {"idle_timeout": 60.0} | options
    executor = ClusterExecutor(f"{directory}/spool", max_workers=workers, **options)
    try:
        yield executor.submit
    finally:
        executor.shutdown(wait=False)
        end_agents()


def end_agents():
    """The agents that this process started; they would wait for more work."""
    agents = processes.agents(os.getpid())
    for pid in agents:
        os.kill(pid, signal.SIGTERM)
    processes.wait_for(agents, seconds=20)


@contextmanager
def process_pool(_, workers):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as executor:
        yield executor.submit


@contextmanager
def loky(_, workers):
    from loky import ProcessPoolExecutor

    executor = ProcessPoolExecutor(workers)
    try:
        yield executor.submit
    finally:
        executor.shutdown(wait=True, kill_workers=True)


@contextmanager
def executorlib_block(_, workers):
    from executorlib import SingleNodeExecutor

    with SingleNodeExecutor(max_workers=workers, block_allocation=True) as executor:
        yield executor.submit


@contextmanager
def executorlib_file(directory, _):
    """What its SlurmClusterExecutor does, with processes in the place of queue jobs.

    It starts a process for each task, and takes no limit on how many run at once.
    """
    from executorlib.api import TestClusterExecutor

    cache = f"{directory}/cache"
    with TestClusterExecutor(cache_directory=cache) as executor:
        yield executor.submit


@contextmanager
def dask(directory, workers):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=directory,
            silence_logs=40,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield lambda function, *arguments: client.submit(function, *arguments, pure=False)


@contextmanager
def parsl(directory, workers):
    import parsl as library
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    # Its own programs are started by name.
    os.environ["PATH"] = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    executor = HighThroughputExecutor(
        label="benchmark",
        address="127.0.0.1",
        max_workers_per_node=workers,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    library.load(Config(executors=[executor], run_dir=f"{directory}/parsl", strategy="none"))
    apps = {}

    def submit(function, *arguments):
        if function not in apps:
            apps[function] = library.python_app(function)
        return apps[function](*arguments)

    try:
        yield submit
    finally:
        library.dfk().cleanup()
        library.clear()


PEERS = {
    "fsbroker": Peer("fsbroker", "fsbroker", fsbroker),
    "process_pool": Peer(
        "ProcessPoolExecutor", "concurrent.futures", process_pool, takes_futures=False
    ),
    "loky": Peer("loky", "loky", loky, takes_futures=False),
    "executorlib_block": Peer(
        "executorlib, block allocation", "executorlib", executorlib_block, 0.25
    ),
    "executorlib_file": Peer("executorlib, file path", "executorlib", executorlib_file, 0.001),
    "dask": Peer("Dask distributed", "distributed", dask, 0.1),
    "parsl": Peer("Parsl HTEX", "parsl", parsl, 0.1),
}
