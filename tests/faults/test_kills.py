"""SIGKILL at every named point (`points.py`): a fresh process finishes what was begun.

In each group one process after the other is killed in the same spool, so that each
finds what the one before it has left. In the end every future has the right value, each
row one outcome, and no task ran more often than its log allows.
"""

from __future__ import annotations

import pytest

from fsbroker.environment import environment
from fsbroker.spool.index import Results
from fsbroker.spool.log import CHECKPOINT_EVERY, Kind
from fsbroker.spool.spool import create, open_spool
from fsbroker.task import Status
from tests.faults import points
from tests.faults.audit import outcomes
from tests.faults.batches import COUNT, prefix_of
from tests.faults.parts import agent, found_in, key_of, row, run_claim, submit, want
from tests.faults.processes import wait_until
from tests.faults.tasks import kill_worker, task, value_of


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
        session.holdings.release(live, [0], "")
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


def test_client_that_puts_off(batches, processes, long):
    """Agents take what it held; nobody takes what it ended."""
    for number, point in enumerate(points.HOLD if long else points.HOLD[1::2]):
        prefix = prefix_of(number)
        putter = processes.start(
            "putter", str(processes.spool), processes.journal, prefix, str(COUNT), point=point
        )
        processes.dies_at(point, putter)
        batches.submit(prefix)
        print("killed", point.name)
    batches.finish(exact=True)


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
