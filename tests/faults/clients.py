"""Clients, and an agent's bare session, in processes of their own (`entry`)."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from unittest import mock

from fsbroker.executor import ClusterExecutor
from fsbroker.spool.spool import open_spool
from tests.faults.parts import Everybody, agent, run_claim, want
from tests.faults.tasks import task, value_of


def client(arguments: Sequence[str]) -> int:
    """Submit a chain and independent tasks, print their values as they come."""
    spool, journal, prefix, count, *cancel = arguments
    with ClusterExecutor(spool, backend="none") as executor:
        futures = submit(executor, journal, prefix, int(count))
        executor._loop.flush(60)
        print("submitted", flush=True)
        if cancel:
            futures.pop(0).cancel()
        for future in futures:
            print(future.result(60), flush=True)
    return 0


def submit(executor: ClusterExecutor, journal: str, prefix: str, count: int) -> list:
    """`count` tasks, the last third in a chain behind the first."""
    futures = []
    for number in range(count):
        inputs = [futures[-1]] if futures and number >= count - count // 3 else []
        futures.append(executor.submit(task, journal, f"{prefix}{number}", 0.0, *inputs))
    return futures


def putter(arguments: Sequence[str]) -> int:
    """Put tasks off, cancel the last one, and give the others back."""
    spool, journal, prefix, count = arguments
    others = Everybody(open_spool(spool))
    with (
        mock.patch("fsbroker.executor._deferral", return_value=others),
        mock.patch("fsbroker.client.loop.CHECK_EVERY", 0.05),
        ClusterExecutor(spool, backend="none") as executor,
    ):
        futures = submit(executor, journal, prefix, int(count))
        executor._loop.flush(60)
        print(futures[-1].cancel(), flush=True)
        others.gone = True
        print(futures[0].result(60))
    return 0


def chaos(arguments: Sequence[str]) -> int:
    """Tasks of 0 to 200 ms, a third behind others; started again, it wants the same ones."""
    spool, journal, count, seed = arguments
    chance = random.Random(seed)
    patient = {"retries": 200}
    futures: list = []
    expected: list = []
    with ClusterExecutor(spool, backend="none", resource_dict=patient) as executor:
        for number in range(int(count)):
            behind = (
                chance.sample(range(number), 2) if number > 2 and chance.random() < 1 / 3 else []
            )
            delay = chance.choice([0.0, 0.0, 0.01, 0.05, 0.2])
            inputs = [futures[one] for one in behind]
            futures.append(executor.submit(task, journal, f"t{number}", delay, *inputs))
            expected.append(value_of(f"t{number}", *(expected[one] for one in behind)))
            if number % 50 == 49:
                executor._loop.flush(60)  # several task files
        for future, value in zip(futures, expected, strict=True):
            found = future.result(100)
            if found != value:
                print(f"wrong value: {found} instead of {value}")
                return 1
    return 0


def claimer(arguments: Sequence[str]) -> int:
    """An agent's session that claims row by row, as fast as it can, and runs nothing."""
    root, environment = arguments
    session = agent(open_spool(root), environment=environment)
    session.live.poll()
    print("joined", flush=True)
    sys.stdin.readline()
    while claim := session.claim(want(1), thorough=True):
        session.publish(run_claim(session, claim))
    print(*sorted(row for rows in session.holdings.published.values() for row in rows))
    return 0


def values(prefix: str, count: int) -> list:
    """What those futures must give."""
    found: list = []
    for number in range(count):
        inputs = [found[-1]] if found and number >= count - count // 3 else []
        found.append(value_of(f"{prefix}{number}", *inputs))
    return found
