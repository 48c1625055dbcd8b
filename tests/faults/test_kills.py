"""SIGKILL at every named point (`points.py`): a fresh process finishes what was begun.

In each group one process after the other is killed in the same spool, so that each
finds what the one before it has left. In the end every future has the right value, each
row one outcome, and no task ran more often than its log allows.
"""

from __future__ import annotations

import pytest

from fsbroker.environment import environment
from fsbroker.executor import ClusterExecutor
from fsbroker.spool.index import Results
from fsbroker.spool.log import CHECKPOINT_EVERY, Kind
from fsbroker.spool.spool import create, open_spool
from fsbroker.task import Status
from tests.faults import clients, points
from tests.faults.audit import check, outcomes
from tests.faults.parts import agent, found_in, key_of, row, run_claim, submit, want
from tests.faults.processes import DEADLINE, Processes, wait_until
from tests.faults.tasks import kill_worker, task, value_of

COUNT = 5
LEFT = ("claims", "tmp")
"""What holds leftovers of killed processes: harmless, but not nothing."""


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


class Batches:
    """Tasks that were submitted in one process, each batch under its own prefix."""

    def __init__(self, executor, processes):
        self._executor = executor
        self._processes = processes
        self._expected = []
        self.names = set()

    def submit(self, prefix, count=COUNT):
        journal = self._processes.journal
        futures = clients.submit(self._executor, journal, prefix, count)
        self.expect(futures, clients.values(prefix, count))

    def expect(self, futures, values):
        self._expected += zip(futures, values, strict=True)
        self.names |= {value[0] for value in values}
        self._executor._loop.flush(DEADLINE)

    def finish(self, *, exact=False):
        """A clean agent ends it all; how often tasks ran again."""
        self._processes.ends(self._processes.agent())
        for future, value in self._expected:
            assert future.result(DEADLINE) == value
        spool = open_spool(self._processes.spool)
        again = check(spool, self._processes.journal, self.names, exact=exact)
        assert spool.files.names(spool.area.tasks) == []
        left = {name: len(spool.files.names(f"{spool.area.path}/{name}")) for name in LEFT}
        print(f"{len(self.names)} tasks, {again} ran again; left over for gc: {left}")


@pytest.fixture
def batches(executor, processes):
    return Batches(executor, processes)


def prefix_of(number):
    return f"p{number}n"


def test_agent(batches, processes):
    for number, point in enumerate(points.AGENT):
        batches.submit(prefix_of(number))
        processes.dies_at(point, processes.agent(point))
        print("killed", point.name)
    batches.finish()


def test_agent_that_ends_task_files(batches, processes):
    for number, point in enumerate(points.RETIRE):
        batches.submit(prefix_of(number))
        processes.dies_at(point, processes.agent(point))
        print("killed", point.name)
    batches.finish()  # not exactly once: it ends what the last one left while its own tasks run


HOLDING = [
    point
    for point in points.AGENT
    if point.name in ("after claim record", "before link of a second result file")
]
"""Where agents die with rows in hand: all they claimed, or only some of them."""


def test_agent_that_recovers(batches, processes):
    for number, point in enumerate(points.RECOVER):
        batches.submit(prefix_of(number))
        holding = HOLDING[number // 2 % 2]
        processes.dies_at(holding, processes.agent(holding))
        processes.mark(holding).unlink()
        processes.dies_at(point, processes.agent(point))
        print("killed", point.name)
    batches.finish()


def test_records_of_rows(batches, executor, processes):
    for number, point in enumerate(points.ROWS):
        prefix = prefix_of(number)
        if "ready" in point.name:
            # in two files, so that no claim takes both
            first = executor.submit(task, processes.journal, f"{prefix}a")
            batches.expect([first], [value_of(f"{prefix}a")])
            second = executor.submit(task, processes.journal, f"{prefix}b", 0.0, first)
            batches.expect([second], [value_of(f"{prefix}b", value_of(f"{prefix}a"))])
        elif "release" in point.name:
            futures = [executor.submit(kill_worker, processes.journal, f"{prefix}k", 1)]
            batches.expect(futures, [value_of(f"{prefix}k")])
        else:
            many = range(150)
            names = [f"{prefix}m{one}" for one in many]
            futures = [executor.submit(task, processes.journal, name, 0.0) for name in names]
            batches.expect(futures, [value_of(name) for name in names])
            write_records(processes)
        processes.dies_at(point, processes.agent(point))
        print("killed", point.name)
    batches.finish()


def write_records(processes):
    """Claim and give back a row of the newest file, until the next record is a checkpoint."""
    session = agent(open_spool(processes.spool), environment=environment())
    live = session.live.poll()[-1]
    live.log.refresh()
    while live.log.fold.next < CHECKPOINT_EVERY:
        assert live.log.append(Kind.CLAIM, session.agent, [(0, 1)])
        session.release(live, [0], "")
    session.leave()


def test_agent_that_packs(processes):
    spool = create(processes.spool)
    expected = {}
    for number, point in enumerate(points.PACKS):
        expected |= publish_by_hand(spool, prefix_of(number), 10)
        processes.dies_at(point, processes.agent(point))
        print("killed", point.name)
    before = outcomes(spool)
    for _ in range(2):
        processes.ends(processes.agent())
        assert outcomes(spool) == before
        assert found_in(Results(spool.files, spool.area)) == expected
    assert spool.files.names(spool.area.packs)
    assert spool.files.names(spool.area.tasks) == []


def publish_by_hand(spool, prefix, count):
    """Tasks with one result file each, in a stream that is sealed; what they must give."""
    names = [f"{prefix}{number}" for number in range(count)]
    submit(spool, [row(name) for name in names])
    session = agent(spool)
    session.live.poll()
    while claim := session.claim(want(1), thorough=True):
        session.publish(run_claim(session, claim))
    session.leave()
    return {key_of(name): (Status.DONE, b"%d" % at) for at, name in enumerate(names)}


def test_client(batches, processes):
    for number, point in enumerate(points.CLIENT):
        prefix = prefix_of(number)
        processes.dies_at(point, processes.client(prefix, COUNT, point))
        batches.submit(prefix)
        print("killed", point.name)
    batches.finish(exact=True)  # found again where they were there, made anew where not


@pytest.mark.parametrize("point", points.ALIAS, ids=lambda point: point.name)
def test_client_that_finds_its_rows_elsewhere(batches, processes, point):
    pause = str(processes.folder / "pause")
    late = processes.client("a", COUNT, point, pause=pause)
    wait_until((processes.folder / "pause.paused").exists)
    batches.submit("a")
    (processes.folder / "pause.go").touch()
    processes.dies_at(point, late)
    batches.finish()


def test_client_that_cancels(batches, processes):
    """Whatever is left of a cancelled task, the next client that wants it gets its value."""
    for number, point in enumerate(points.CANCEL):
        prefix = prefix_of(number)
        processes.dies_at(point, processes.client(prefix, 1, point, cancel=True))
        batches.submit(prefix, 1)
        print("killed", point.name)
    batches.finish(exact=True)
