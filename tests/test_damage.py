"""Result files that are damaged while their task files are live."""

from __future__ import annotations

from pathlib import Path

from fsbroker.spool.streams import entries
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
