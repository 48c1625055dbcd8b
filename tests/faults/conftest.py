"""What tests of faults have in common: processes to strike, and work that must survive it."""

import pytest

from fsbroker.executor import ClusterExecutor
from tests.faults.batches import Batches
from tests.faults.processes import Processes


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path / "spool", tmp_path) as processes:
        yield processes


@pytest.fixture
def executor(processes):
    # More agents die here with the same row in hand than a real task may cost.
    patient = {"retries": 200}
    executor = ClusterExecutor(processes.spool, backend="none", resource_dict=patient)
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def batches(executor, processes):
    return Batches(executor, processes)
