"""Result files that are damaged, or cannot be read for a moment."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fsbroker.spool import index
from fsbroker.spool.log import State
from fsbroker.spool.streams import ResultFile, entries
from tests.testbed.byhand import ByHand, key_of


def damage(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"")


def test_another_agent_is_the_first_to_stumble_over_it(tmp_path):
    """It leaves the file to the agent that published it: only that one reopens its rows."""
    spool = ByHand(tmp_path)
    stem = spool.submit("x", "y", "z")
    owner = spool.agent()
    for _ in "xy":
        spool.end(owner, spool.claim(owner, 1))
    path = tmp_path / spool.area.stream_file(owner.agent, 0)
    damage(path)

    other = spool.agent()
    other.tidy()
    assert path.exists()
    assert entries(spool.files, spool.area, owner.agent) == [0, 1]

    owner.beat()
    owner.tidy()
    assert not path.exists()
    assert len(list((tmp_path / spool.area.quarantine).iterdir())) == 1
    spool.run(other)
    other.results.poll(deep=True)
    found = [other.results.find_row(key_of(name), stem, row) for row, name in enumerate("xyz")]
    assert all(found)
    assert not (tmp_path / spool.area.task_file(stem)).exists()


@pytest.fixture
def passing(monkeypatch):
    """The first opening of a result file fails as one of a file that another host removed."""
    opened = []

    class Flaky(ResultFile):
        def __init__(self, files, path):
            opened.append(path)
            if len(opened) == 1:
                raise FileNotFoundError(errno.ENOENT, "Stale file handle", path)
            super().__init__(files, path)

    monkeypatch.setattr(index, "ResultFile", Flaky)
    return opened


def test_a_file_that_cannot_be_found_for_a_moment_is_read_later(tmp_path, passing):
    """It is listed, so it was not packed: a server that starts again answers ESTALE."""
    spool = ByHand(tmp_path)
    spool.submit("x", "y")
    agent = spool.agent()
    for _ in "xy":
        spool.end(agent, spool.claim(agent, 1))
    agent.beat()
    with pytest.raises(OSError, match="is listed"):
        list(spool.client.poll())
    tickets = [ticket for ended in spool.client.poll() for _, ticket in ended.tickets]
    assert tickets == [key_of("x"), key_of("y")]
    assert len(passing) == 3


def test_what_was_read_is_not_forgotten_for_it(tmp_path, passing):
    spool = ByHand(tmp_path)
    stem = spool.submit("x")
    passing.append("nothing fails yet")
    spool.run()
    results = spool.client.results
    results.poll(deep=True)
    assert results.find_row(key_of("x"), stem, 0)
    passing.clear()
    with pytest.raises(OSError, match="is listed"):
        results.look_again()
    assert results.find_row(key_of("x"), stem, 0)


def test_a_dead_agents_stream_is_not_judged_by_it(tmp_path, passing):
    """Its rows would run twice."""
    spool = ByHand(tmp_path)
    stem = spool.submit("x", "y", "z")
    dead, other = spool.agent(), spool.agent()
    passing.append("nothing fails yet")
    for _ in "xy":
        spool.end(dead, spool.claim(dead, 1))
    spool.claim(dead, 1)
    passing.clear()
    with pytest.raises(OSError, match="is listed"):
        other.recovery._recover_from(dead.agent, "dead", "killed")
    assert [spool.client.state(stem, row) for row in range(3)] == [State.CLAIMED] * 3
    other.recovery._recover_from(dead.agent, "dead", "killed")
    states = [spool.client.state(stem, row) for row in range(3)]
    assert states == [State.CLAIMED, State.CLAIMED, State.READY]  # the two have ended
