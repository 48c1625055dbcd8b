"""`fsbroker fsck` finds what was done to a spool, mends what can be, and deletes no result."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fsbroker import cli
from fsbroker.agent.session import NOTHING, Claim, tidying
from fsbroker.spool import blobs, fsck, packs, streams
from fsbroker.spool.container import Container
from fsbroker.spool.fsck import Kind, Weight
from fsbroker.spool.index import Results
from fsbroker.spool.live import LiveFiles
from fsbroker.spool.mend import mend
from fsbroker.spool.spool import open_spool
from fsbroker.spool.streams import Sealed
from fsbroker.spool.taskfile import TaskRow
from fsbroker.spool.values import Value
from fsbroker.task import Encoding, Status
from tests.testbed import byhand
from tests.testbed.byhand import ByHand, Job, key_of
from tests.testbed.pieces import PIECES
from tests.testbed.shell import Shell


@pytest.fixture
def hand(tmp_path, monkeypatch):
    monkeypatch.setattr(tidying, "GRAVE_REST", -1.0)
    return ByHand(tmp_path / "a spool")


@pytest.fixture
def shell(hand, capsys):
    return Shell(hand.root, capsys)


def look(hand):
    """What fsck finds, by kind: the paths."""
    found: dict[Kind, list[str]] = {}
    for one in fsck.survey(hand.files, hand.area)[0]:
        found.setdefault(one.kind, []).append(one.path)
    return found


def faults(hand):
    return {kind: paths for kind, paths in look(hand).items() if kind.weight > Weight.NOTE}


def outcome_of(hand, name):
    """The status and value of a task by a fresh look; None if it has none."""
    results = Results(hand.files, hand.area)
    results.poll(deep=True)
    found = results.value(key_of(name))
    return None if found is None else (Status(found[0].status), found[1].data)


def in_quarantine(hand):
    return [name.partition(".")[2] for name in hand.files.names(hand.area.quarantine)]


# -- a sound spool -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", PIECES)
def test_nothing_is_found_where_nothing_is_wrong(hand, shell, kind):
    PIECES[kind](hand)
    hand.submit("a", Job("b", ("a",)))
    hand.run(failing=["a"])
    assert faults(hand) == {}
    before = hand.paths()
    code, text = shell.run("fsck")
    assert code == cli.OK
    assert "the spool is sound" in text
    assert hand.paths() == before


def test_while_agents_work_nothing_is_taken_for_wrong(hand):
    hand.submit(*(f"f{number}" for number in range(20)))
    agent = hand.agent()
    for _ in range(6):
        claim = hand.claim(agent, 3)
        assert look(hand) == {}
        hand.end(agent, claim)
    assert look(hand) == {}


# -- bit flips and truncation ----------------------------------------------------------------


def flip_header(path: Path) -> None:
    text = bytearray(path.read_bytes())
    at = text.index(b'"sections"') + 3
    text[at] ^= 1
    path.write_bytes(text)


def flip_section(path: Path) -> None:
    """One bit of the content that fsbroker reads."""
    text = bytearray(path.read_bytes())
    at = content_of(path)
    text[at] ^= 4
    path.write_bytes(text)


def content_of(path: Path) -> int:
    from fsbroker.spool.files import Files

    with Container(Files(str(path.parent)), path.name) as file:
        name = "rows" if "rows" in file.sections else next(iter(file.sections))
        return file.sections[name].offset + file.sections[name].length // 2


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 if path.stat().st_size > 8192 else 1000)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES = [
    pytest.param(kind, damage, id=f"{kind}-{damage.__name__}")
    for kind in PIECES
    for damage in (flip_header, flip_section, cut, empty)
    if (kind, damage) != ("presence", flip_section)  # it has no sections
]


@pytest.mark.parametrize(("kind", "damage"), DAMAGES)
def test_damage_to_every_kind_of_file_is_found_and_the_spool_works_on(hand, shell, kind, damage):
    path = PIECES[kind](hand)
    hand.submit("another")
    real = Path(hand.root, path)
    damage(real)
    code, text = shell.run("fsck")
    assert code in (cli.FLAWED, cli.UNFIT)
    assert path in text
    found = faults(hand)
    assert (Kind.DAMAGED in found) == (kind != "bundle" or damage in (flip_header, empty))
    assert path in [*found.get(Kind.DAMAGED, []), *found.get(Kind.PARTLY, [])]
    damaged = real.read_bytes()

    for agent in list(fsck.alive(hand.files, hand.area)):  # of a test that has ended, say
        streams.seal(hand.files, hand.area, agent, by="test")
    code, told = shell.json("fsck", "--repair")
    assert told["trouble"] == []
    if Kind.DAMAGED in found:
        assert path in [one["path"] for one in told["repaired"]]
        (real,) = Path(hand.root, hand.area.quarantine).glob(f"*.{real.name}")
    assert real.read_bytes() == damaged  # nothing is deleted
    left = faults(hand)
    assert {one.weight for one in left} <= {Weight.LOST}, left

    hand.run()
    assert outcome_of(hand, "another") is not None
    assert {one.weight for one in faults(hand)} <= {Weight.LOST}


def test_damaged_arguments_leave_the_other_tasks_alone(hand, shell):
    path = Path(hand.root, PIECES["task file"](hand))
    text = bytearray(path.read_bytes())
    text[text.rindex(b"[1]")] ^= 1  # of the second task
    path.write_bytes(text)
    code, told = shell.json("fsck", "--repair")
    assert (code, told["repaired"]) == (cli.UNFIT, [])
    assert [one["kind"] for one in told["findings"]] == ["partly"]
    hand.run()
    assert outcome_of(hand, "one") is not None


def test_outcomes_that_a_damaged_file_still_shows_are_kept(hand):
    """One of three values is bad: the others stand, and that one runs again."""
    stem = hand.submit("two", "one", "three")  # not in the order of their keys
    agent = hand.agent()
    hand.end(agent, hand.claim(agent), values=Value(Encoding.PLAIN, b'"a long value"'))
    path = Path(hand.root, hand.area.stream_file(agent.agent, 0))
    text = bytearray(path.read_bytes())
    text[text.rindex(b"a long value")] ^= 1
    path.write_bytes(text)
    agent.leave()
    assert faults(hand) == {Kind.DAMAGED: [hand.area.stream_file(agent.agent, 0)]}
    mend(hand.files, hand.area)
    kept = [name for name in ("one", "two", "three") if outcome_of(hand, name)]
    assert len(kept) == 2
    hand.run()
    assert all(outcome_of(hand, name) for name in ("one", "two", "three"))
    assert faults(hand) == {}
    assert hand.files.names(hand.area.archive) == [f"{stem}.h5"]


def test_outcomes_with_a_failure_whose_text_is_damaged_run_again(hand):
    hand.submit("one", "two")
    agent = hand.agent()
    hand.end(agent, hand.claim(agent), failing=["two"])
    agent.leave()
    path = Path(hand.root, hand.area.stream_file(agent.agent, 0))
    text = bytearray(path.read_bytes())
    text[text.rindex(b"Traceback: no")] ^= 1
    path.write_bytes(text)
    assert mend(hand.files, hand.area).trouble == []
    hand.run()
    assert outcome_of(hand, "one") == (Status.DONE, b"0")
    assert outcome_of(hand, "two") == (Status.DONE, b"1")
    assert faults(hand) == {}


def test_a_damaged_value_does_not_end_the_agents_that_pack(hand):
    """It did: the merge read it, and its error went through everything."""
    agent = hand.agent()
    for number in range(10):
        hand.submit(f"f{number}")
        hand.end(agent, hand.claim(agent), values=Value(Encoding.PLAIN, b'"a long value"'))
    path = Path(hand.root, hand.area.stream_file(agent.agent, 3))
    text = bytearray(path.read_bytes())
    text[text.rindex(b"a long value")] ^= 1
    path.write_bytes(text)
    assert packs.cycle(hand.files, hand.area)
    packs.cycle(hand.files, hand.area)
    assert path.exists()
    assert outcome_of(hand, "f4") == (Status.DONE, b'"a long value"')


# -- what is missing ---------------------------------------------------------------------


def test_a_hole_in_a_log_is_filled_and_nothing_runs_twice(hand, shell):
    hand.submit(*(f"f{number}" for number in range(6)))
    agent = hand.agent()
    (stem,) = [live.stem for live in LiveFiles(hand.files, hand.area).poll()]
    for _ in range(3):
        hand.end(agent, hand.claim(agent, 2))
    os.unlink(f"{hand.root}/{hand.area.record(stem, 1)}")
    assert faults(hand)[Kind.HOLE] == [hand.area.log(stem)]
    code, told = shell.json("fsck", "--repair")
    assert code == cli.FLAWED  # an agent is at work
    assert told["trouble"]
    agent.publisher.vanish()
    code, _ = shell.run("fsck", "--repair")
    assert code == cli.OK
    published = dict(fsck.survey(hand.files, hand.area)[1].outcomes)
    hand.run()
    assert fsck.survey(hand.files, hand.area)[1].outcomes == published  # none ran again
    assert faults(hand) == {}


def test_rows_whose_claim_went_with_the_end_of_a_log_do_not_run_again(hand):
    hand.submit("one", "two")
    agent = hand.agent()
    stem = hand.claim(agent, 1).live.stem
    hand.end(agent, agent.claim(lambda *_: 0) or _claimed(agent, stem))
    os.unlink(f"{hand.root}/{hand.area.record(stem, 0)}")
    agent.publisher.vanish()
    assert faults(hand) == {Kind.UNCLAIMED: [hand.area.log(stem)]}
    mend(hand.files, hand.area)
    before = fsck.survey(hand.files, hand.area)[1].outcomes[stem, 0]
    hand.run()
    after = fsck.survey(hand.files, hand.area)[1].outcomes
    assert after[stem, 0] == before
    assert (stem, 1) in after


def _claimed(agent, stem):
    return Claim(agent.live.get(stem), ((0, 1),))


def test_a_task_file_without_its_log_gets_one_and_runs(hand):
    hand.submit("one", "two")
    agent = hand.agent()
    claim = hand.claim(agent, 1)
    hand.end(agent, claim)
    stem = claim.live.stem
    agent.publisher.vanish()
    shutil.rmtree(f"{hand.root}/{hand.area.log(stem)}")
    assert faults(hand) == {Kind.NO_LOG: [hand.area.task_file(stem)]}
    mend(hand.files, hand.area)
    assert faults(hand) == {}
    before = fsck.survey(hand.files, hand.area)[1].outcomes[stem, 0]
    hand.run()
    after = fsck.survey(hand.files, hand.area)[1].outcomes
    assert (after[stem, 0], len(after)) == (before, 2)


def test_a_log_without_its_task_file_is_told_and_buried(hand):
    stem = hand.submit("one", "two")
    agent = hand.agent()
    hand.claim(agent, 1)
    os.unlink(f"{hand.root}/{hand.area.task_file(stem)}")
    (found,) = [one for one in fsck.survey(hand.files, hand.area)[0] if one.kind is Kind.NO_TASKS]
    assert (found.path, found.what) == (hand.area.log(stem), "2 tasks")
    mend(hand.files, hand.area)
    assert hand.files.names(hand.area.claims) == []


def test_a_task_file_that_is_being_born_is_not_taken_for_lost(hand):
    stem = hand.submit("one")
    os.unlink(f"{hand.root}/{hand.area.task_file(stem)}")  # as before its link
    assert faults(hand) == {}
    claimed = hand.submit("other", "third")
    hand.claim(hand.agent())  # all of it, as who puts it off, or imports it
    os.unlink(f"{hand.root}/{hand.area.task_file(claimed)}")
    assert hand.files.names(hand.area.log(claimed)) == ["00000000"]
    assert faults(hand) == {}


def test_results_that_are_gone_are_listed_by_key(hand, shell):
    stem = hand.submit("one", "two")
    hand.run().leave()
    (agent,) = hand.files.names(hand.area.results)
    os.unlink(f"{hand.root}/{hand.area.stream_file(agent, 0)}")
    code, told = shell.json("fsck", "--repair")
    assert code == cli.UNFIT
    (found,) = [one for one in told["findings"] if one["kind"] == "no_result"]
    assert (found["path"], found["keys"]) == (stem, [key_of("one").hex(), key_of("two").hex()])
    hand.submit("one", "two")
    hand.run()
    assert faults(hand) == {}


def test_an_array_that_is_gone_is_told_with_who_names_it(hand):
    array = blobs.store(hand.files, hand.area, np.ones(1 << 17), durable=False)
    hand.submit("one")
    hand.run(values=Value(Encoding.PLAIN, b'{"$":"array","n":0}', (array,)))
    (name,) = hand.files.names(hand.area.blobs)
    assert faults(hand) == {}
    os.unlink(f"{hand.root}/{hand.area.blob(name)}")
    (found,) = [one for one in fsck.survey(hand.files, hand.area)[0] if one.kind.weight]
    assert found.kind is Kind.NO_BLOB
    assert "results/" in found.what
    hand.agent().tidy()
    for agent in fsck.alive(hand.files, hand.area):
        streams.seal(hand.files, hand.area, agent, by="test")
    mend(hand.files, hand.area)
    assert set(faults(hand)) == {Kind.NO_RESULT}  # nothing stands in the way of a new one


@pytest.mark.parametrize("text", [None, b"", b"format: 1\nlock: flock\n", b"\0" * 50])
def test_settings_that_are_gone_or_damaged_are_measured_anew(hand, shell, text):
    hand.submit("one")
    path = Path(hand.root, "spool.yaml")
    path.unlink() if text is None else path.write_bytes(text)
    assert shell.run("status")[0] in (cli.ERROR, cli.NOT_FOUND)
    code, told = shell.json("fsck")
    assert code == cli.FLAWED
    assert [one["kind"] for one in told["findings"]] == ["settings"]
    assert shell.run("fsck", "--repair")[0] == cli.OK
    assert open_spool(hand.root).durable
    hand.run()
    assert outcome_of(hand, "one") is not None


# -- contradictions ----------------------------------------------------------------------


def test_two_different_values_of_one_key_are_kept_and_told(hand):
    for number in (b"1", b"2"):
        hand.submit("one")
        hand.run(values=Value(Encoding.PLAIN, number))
    assert faults(hand) == {Kind.TWO_VALUES: [key_of("one").hex()]}
    mend(hand.files, hand.area)
    assert faults(hand) == {Kind.TWO_VALUES: [key_of("one").hex()]}


def test_the_same_value_twice_is_no_contradiction(hand):
    for _ in range(2):
        arrays = (
            blobs.store(hand.files, hand.area, np.ones(1 << 17), durable=False, shared=False),
            blobs.store(hand.files, hand.area, np.ones(3), durable=False),
        )
        hand.submit("one")
        hand.run(values=Value(Encoding.PLAIN, b'[{"$":"array","n":0}]', arrays))
    assert faults(hand) == {}


def test_one_key_of_two_calls_is_told(hand, monkeypatch):
    hand.submit("one")
    monkeypatch.setattr(byhand, "TaskRow", lambda key, _, *rest: TaskRow(key, b"2" * 20, *rest))
    hand.submit("one")
    assert faults(hand) == {Kind.TWO_CALLS: [key_of("one").hex()]}


def test_two_outcomes_of_one_row_are_told(hand):
    hand.submit("one", "two")
    first, second = hand.agent(), hand.agent()
    claim = hand.claim(first)
    hand.end(first, claim)
    second.live.poll()
    second.holdings.claimed[claim.live.stem] = claim.live  # as if there were no log
    hand.end(second, claim, values=Value(Encoding.PLAIN, b"7"))
    assert set(faults(hand)) == {Kind.TWICE, Kind.TWO_VALUES}


# -- what is not ours --------------------------------------------------------------------


def test_strange_names_are_told_and_left(hand):
    strange = [f"{hand.area.tasks}/notes.txt", f"{hand.area.results}/x", f"{hand.area.blobs}/a.h5"]
    for path in strange:
        Path(hand.root, path).write_text("mine")
    os.mkfifo(f"{hand.root}/{hand.area.packs}/01.{'a' * 16}.h5")
    strange.append(f"{hand.area.packs}/01.{'a' * 16}.h5")
    assert sorted(look(hand)[Kind.STRAY]) == sorted(strange)
    mend(hand.files, hand.area)
    assert all(os.path.lexists(f"{hand.root}/{path}") for path in strange)


@pytest.mark.skipif(os.getuid() != 0, reason="gives a file away")
def test_files_of_others_are_told_and_not_read(hand, shell):
    path = PIECES["result file"](hand)
    flip_header(Path(hand.root, path))
    os.chown(f"{hand.root}/{path}", 12345, 12345)
    assert look(hand)[Kind.FOREIGN] == [path]
    shell.run("fsck", "--repair")
    assert os.path.exists(f"{hand.root}/{path}")
    assert in_quarantine(hand) == []


def test_leftovers_go(hand):
    hand.files.write_new(hand.area.temporary("f" * 16), [b"x"], sync=False)
    assert faults(hand) == {}
    hand.make_old(hand.area.temporary("f" * 16))
    assert faults(hand) == {Kind.LEFTOVER: [hand.area.temporary("f" * 16)]}
    mend(hand.files, hand.area)
    assert faults(hand) == {}


@pytest.mark.parametrize("ended", [1, 0], ids=["with outcomes", "without any"])
def test_tasks_of_agents_that_are_gone_run_again(hand, ended):
    hand.submit("one", "two", "three")
    agent = hand.agent()
    if ended:
        hand.end(agent, hand.claim(agent, ended))
    stem = hand.claim(agent, 1).live.stem
    agent.publisher.vanish()
    (found,) = fsck.survey(hand.files, hand.area)[0]
    assert (found.kind, found.subject, len(found.keys)) == (Kind.UNFINISHED, stem, 1)
    mend(hand.files, hand.area)
    with pytest.raises(Sealed):  # should it only have slept
        agent.publish(
            [agent.holdings.outcome(agent.holdings.claimed[stem], ended, Status.DONE, NOTHING)]
        )
    hand.run()
    assert all(outcome_of(hand, name) for name in ("one", "two", "three"))
    assert faults(hand) == {}


def test_a_purged_record_of_queue_jobs_hides_no_later_ones(hand, shell):
    from fsbroker.spool.jobs import JobLog, QueueJob

    log = JobLog(hand.files, hand.area)
    for number in range(3):
        log.intend(QueueJob(0, f"{number:016x}", "slurm"))
    os.unlink(f"{hand.root}/{hand.area.job_record(1)}")
    hand.agent()  # which need not end for this
    assert shell.run("fsck")[0] == cli.FLAWED
    assert shell.run("fsck", "--repair")[0] == cli.OK
    again = JobLog(hand.files, hand.area)
    again.refresh()
    assert sorted(again.jobs) == [0, 2]


def test_repair_waits_for_agents_that_may_be_at_work(hand):
    hand.submit("one")
    stem = hand.claim(agent := hand.agent()).live.stem
    shutil.rmtree(f"{hand.root}/{hand.area.log(stem)}")
    done, trouble = mend(hand.files, hand.area)
    assert done == []
    assert agent.agent in trouble[0]
