"""What a spool tells of its tasks, wherever their files have gone."""

from __future__ import annotations

import itertools
import os

import pytest

from fsbroker.client.again import Again
from fsbroker.client.history import History, Phase, keys_with_tag, records_of
from fsbroker.spool import archive, packs, tiers
from fsbroker.spool.archive import cycle as archive_cycle
from fsbroker.spool.census import Census
from fsbroker.spool.files import Files
from fsbroker.spool.log import Kind
from tests.testbed.byhand import ByHand, Job, key_of


@pytest.fixture(autouse=True)
def agents_do_not_bundle(monkeypatch):
    """Here the tests do, to see each step."""
    monkeypatch.setattr(archive, "cycle", lambda *_: False)


@pytest.fixture
def hand(tmp_path):
    return ByHand(tmp_path / "a spool")


def phases(hand) -> dict[str, Phase]:
    return {row.tasks.function(row.number): row.phase for row in History(hand.spool)}


def bundle(hand) -> None:
    """Both cycles: the bundle, and the end of its inputs."""
    assert archive_cycle(hand.files, hand.area)
    archive_cycle(hand.files, hand.area)


def archived(hand) -> list[str]:
    return os.listdir(f"{hand.root}/{hand.area.archive}")


# -- states --------------------------------------------------------------------------------


def test_each_state_is_told_from_the_files(hand):
    hand.submit("good", "bad", tag="t")
    hand.run(failing=["bad"])
    hand.submit("held")
    agent = hand.agent()
    assert hand.claim(agent)
    stem = hand.submit("free", "unwanted", Job("late", ("free",)))
    assert hand.client.cancel(stem, 1)
    assert phases(hand) == {
        "module.good": Phase.DONE,
        "module.bad": Phase.FAILED,
        "module.held": Phase.RUNNING,
        "module.free": Phase.READY,
        "module.unwanted": Phase.CANCELLED,
        "module.late": Phase.WAITING,
    }


def test_a_record_tells_who_ran_it_and_how_it_failed(hand):
    hand.submit("bad", tag="t")
    agent = hand.run(failing=["bad"])
    (row,) = History(hand.spool)
    record = row.tasks.record(row.number)
    assert (record.key, record.tag, record.state) == (key_of("bad").hex(), "t", "failed")
    assert (record.agent, record.host, record.wall) == (agent.agent, "node7", 2.0)
    assert record.error == "ValueError: no"


def test_the_highest_round_counts(hand):
    hand.submit("bad")
    hand.run(failing=["bad"])
    hand.submit(Job("bad", round=1))
    assert phases(hand) == {"module.bad": Phase.READY}
    hand.run()
    assert phases(hand) == {"module.bad": Phase.DONE}
    assert len(History(hand.spool).rows(key_of("bad"))) == 2


def test_a_row_left_to_an_older_one_is_not_counted(hand):
    hand.submit("same")
    agent = hand.agent()
    claim = hand.claim(agent)
    hand.submit("same")  # a second client that did not look: its row is an alias
    counts = History(hand.spool).counts()
    assert (counts[Phase.RUNNING], counts[Phase.READY], counts[Phase.ALIASED]) == (1, 0, 0)
    hand.end(agent, claim)
    assert phases(hand) == {"module.same": Phase.DONE}


def test_the_log_of_a_row_names_claim_and_release(hand):
    stem = hand.submit("one", "two")
    agent = hand.agent()
    claim = hand.claim(agent)
    agent.holdings.release(claim.live, [1], "worker died", charge=True)
    assert [record.kind for record in records_of(hand.spool, stem, 0)] == [Kind.CLAIM]
    assert [record.kind for record in records_of(hand.spool, stem, 1)] == [Kind.CLAIM, Kind.RELEASE]


# -- keys ----------------------------------------------------------------------------------


def test_a_prefix_of_any_length_finds_its_keys(hand):
    hand.submit("one", "two", "three")
    history = History(hand.spool)
    for name in ("one", "two", "three"):
        digits = key_of(name).hex()
        for length in (5, 6, 39, 40):
            assert history.matching(digits[:length]) == [key_of(name)]
    assert len(history.matching("")) == 3
    assert history.matching("0" * 40) == []


def test_a_key_that_ends_with_zeros_keeps_them(hand, monkeypatch):
    key = b"\x12" * 18 + b"\0\0"
    monkeypatch.setattr("tests.testbed.byhand.key_of", lambda _: key)
    hand.submit("odd")
    history = History(hand.spool)
    assert history.matching("1212") == [key]
    assert history.find(key).key == key


# -- tags and the archive ------------------------------------------------------------------


def test_keys_with_a_tag_come_in_the_order_of_submission_from_everywhere(hand):
    names = [f"n{number}" for number in range(20)]
    agent = hand.agent()
    for name in names[:16]:
        hand.submit(name, tag="series")
        hand.submit(f"other {name}", tag="other")
    hand.run(agent)
    bundle(hand)
    for name in names[16:18]:
        hand.submit(name, tag="series")
    hand.run(agent)
    hand.submit(Job("n3", round=1), *names[18:], tag="series")
    kinds = {len(name.split(".")) for name in archived(hand)}
    assert kinds == {2, 3}, "there must be single files and bundles to read"
    assert keys_with_tag(hand.spool, "series") == [key_of(name) for name in names]
    assert keys_with_tag(hand.spool, "nothing") == []


def test_a_task_file_in_a_bundle_reads_as_it_did_alone(hand):
    for number in range(tiers.FAN):
        hand.submit(f"f{number}", Job(f"g{number}", (f"f{number}",)))
    hand.run()

    def contents():
        return {
            entry.stem: (
                entry.raw.read(0, entry.raw.size),
                entry.tasks.arguments(1),
                entry.tasks.function(1),
                entry.tasks.dependencies(1),
            )
            for entry in Census(hand.files, hand.area).task_files()
        }

    before = contents()
    bundle(hand)
    assert [name.count(".") for name in archived(hand)] == [2]
    assert contents() == before
    assert len(before) == tiers.FAN


def test_inputs_go_only_a_cycle_later(hand):
    for number in range(tiers.FAN):
        hand.submit(f"f{number}")
    hand.run()
    assert archive_cycle(hand.files, hand.area)
    assert len(archived(hand)) == tiers.FAN + 1
    assert len(History(hand.spool).tasks) == tiers.FAN, "each is seen once"
    archive_cycle(hand.files, hand.area)
    assert len(archived(hand)) == 1


def test_inputs_of_a_damaged_bundle_stay(hand):
    for number in range(tiers.FAN):
        hand.submit(f"f{number}")
    hand.run()
    assert archive_cycle(hand.files, hand.area)
    (made,) = [name for name in archived(hand) if name.count(".") == 2]
    path = f"{hand.root}/{hand.area.archive}/{made}"
    middle = os.path.getsize(path) // 2
    with open(path, "r+b") as file:
        file.seek(middle)
        file.write(bytes(middle))
    archive_cycle(hand.files, hand.area)
    assert len(archived(hand)) == tiers.FAN + 1


def test_bundles_merge_in_tiers(hand):
    agent = hand.agent()
    for start in range(tiers.FAN):
        for number in range(tiers.FAN):
            hand.submit(f"f{start} {number}")
        hand.run(agent)
        bundle(hand)
    archive_cycle(hand.files, hand.area)
    archive_cycle(hand.files, hand.area)
    assert [name.split(".")[0] for name in archived(hand)] == ["02"]
    assert len(History(hand.spool).tasks) == tiers.FAN**2


class MovingFiles(Files):
    """Has everything move on at the first file of the archive that is opened."""

    hand: ByHand
    moves: itertools.count

    def open(self, path):
        if path.startswith(self.hand.area.archive) and next(self.moves) == 0:
            bundle(self.hand)
        return super().open(path)


def test_no_task_is_missed_while_files_move(hand):
    for number in range(tiers.FAN):
        hand.submit(f"f{number}")
    hand.run()
    files = MovingFiles(hand.root)
    files.hand, files.moves = hand, itertools.count()
    stems = [entry.stem for entry in Census(files, hand.area).task_files()]
    assert next(files.moves) > 1, "nothing moved"
    assert len(stems) == len(set(stems)) == tiers.FAN


def test_outcomes_are_found_in_packs(hand):
    agent = hand.agent()
    for number in range(12):
        hand.submit(f"f{number}")
        hand.end(agent, hand.claim(agent), failing=["f3"])
    for _ in range(3):
        agent.tidy()
    assert os.listdir(f"{hand.root}/{hand.area.packs}"), "nothing was packed"
    assert len(os.listdir(f"{hand.root}/{hand.area.results}/{agent.agent}")) < 12
    counts = History(hand.spool).counts()
    assert (counts[Phase.DONE], counts[Phase.FAILED]) == (11, 1)


def test_an_outcome_that_stands_in_a_pack_and_in_its_stream_is_one(hand):
    agent = hand.agent()
    for number in range(12):
        hand.submit(f"f{number}")
        hand.end(agent, hand.claim(agent))
    assert packs.cycle(hand.files, hand.area)  # which leaves its inputs to the next one
    assert len(os.listdir(f"{hand.root}/{hand.area.results}/{agent.agent}")) == 12
    assert sum(len(tasks.ended_at()) for tasks in History(hand.spool).tasks.values()) == 12


# -- trying anew ---------------------------------------------------------------------------


def test_again_takes_inputs_and_dependents_along_in_order(hand):
    hand.submit("a", Job("b", ("a",)), Job("c", ("b",)), "other")
    hand.run(failing=["a", "other"])
    assert set(phases(hand).values()) == {Phase.FAILED}
    history = History(hand.spool)
    again = Again(hand.spool, history)
    for start in "abc":
        rows = again.with_others([history.find(key_of(start))])
        assert [row.tasks.function(row.number)[-1] for row in rows] == ["a", "b", "c"]
    again.publish(rows)
    assert phases(hand) == {
        "module.a": Phase.READY,
        "module.b": Phase.WAITING,
        "module.c": Phase.WAITING,
        "module.other": Phase.FAILED,
    }
    hand.run()
    assert [phases(hand)[f"module.{name}"] for name in "abc"] == [Phase.DONE] * 3


def test_again_keeps_what_was_stored(hand):
    hand.submit(Job("a", ("gone",)), tag="t", shape="c2t1g0m0n0x0")
    hand.run()
    (before,) = History(hand.spool)
    Again(hand.spool, History(hand.spool)).publish([before])
    (after,) = History(hand.spool)
    assert after.tasks.stem != before.tasks.stem
    assert (after.round, after.tasks.tag) == (1, "t")
    assert after.tasks.name.shape == "c2t1g0m0n0x0"
    columns = ["key", "descriptor", "ranks", "retries", "time_limit", "checksum"]
    assert after.tasks.rows[columns] == before.tasks.rows[columns]
    assert after.tasks.dependencies(0) == [key_of("gone")]
    entries = {entry.stem: entry for entry in Census(hand.files, hand.area).task_files()}
    assert entries[after.tasks.stem].tasks.meta == before.tasks.meta
