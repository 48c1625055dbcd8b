"""What gc removes, and above all what it must not."""

from __future__ import annotations

import os

import numpy as np
import pytest

from fsbroker.agent.session import tidying
from fsbroker.client.session import ClientSession
from fsbroker.spool import archive, blobs, gc, packs, streams, tiers
from fsbroker.spool.files import Files
from fsbroker.spool.gc import Kind, Wishes
from fsbroker.spool.index import Results
from fsbroker.task import Encoding, Status, Value
from tests.testbed.byhand import ByHand, Job, key_of

EVERYTHING = Wishes(older_than=86400.0, results=True, tagged=True)
DEFAULT = Wishes(older_than=86400.0)


@pytest.fixture
def hand(tmp_path, monkeypatch):
    monkeypatch.setattr(tidying, "GRAVE_REST", -1.0)  # no log rests in tmp/ beside what is tested
    return ByHand(tmp_path / "a spool")


def collect(hand, wishes=DEFAULT, files=None) -> list[Kind]:
    """Remove what may go; the kinds of it."""
    rubbish = gc.survey(files or hand.files, hand.area, wishes)
    assert gc.remove(files or hand.files, hand.area, rubbish) == []
    return sorted((item.kind for item in rubbish.items), key=lambda kind: kind.name)


def has_value(hand, name) -> bool:
    results = Results(hand.files, hand.area)
    results.poll(deep=True)
    found = results.find(key_of(name))
    return found is not None and found.status == Status.DONE


def packed(hand, *names, agent=None):
    """Tasks whose outcomes stand in a pack, and no more in the stream."""
    agent = agent or hand.agent()
    for name in names:
        hand.submit(name)
        hand.end(agent, hand.claim(agent))
    agent.leave()
    while packs.cycle(hand.files, hand.area):
        pass
    packs.cycle(hand.files, hand.area)
    hand.run()  # retires the task files
    assert os.listdir(f"{hand.root}/{hand.area.packs}")


# -- nothing that is wanted ------------------------------------------------------------------


def test_a_survey_changes_nothing(hand):
    packed(hand, *(f"f{number}" for number in range(12)))
    hand.files.write_new(hand.area.temporary("f" * 16), [b"x"], sync=False)
    hand.make_all_old()
    before = hand.paths()
    assert gc.survey(hand.files, hand.area, EVERYTHING).items
    assert hand.paths() == before


def test_no_result_goes_by_default(hand):
    names = [f"f{number}" for number in range(12)]
    packed(hand, *names)
    hand.submit("later")
    hand.run()
    hand.make_all_old(1000)
    collect(hand, Wishes(older_than=0.0, tagged=True))
    assert all(has_value(hand, name) for name in [*names, "later"])


def test_nothing_young_goes(hand):
    hand.submit("one")
    hand.run()
    hand.files.write_new(hand.area.temporary("f" * 16), [b"x"], sync=False)
    blobs.write_array(hand.files, hand.area, np.zeros(4), durable=False)
    assert collect(hand, EVERYTHING) == []


def test_pending_tasks_survive_everything(hand):
    held = hand.submit("held")
    agent = hand.agent()
    claim = hand.claim(agent)
    agent.publisher.write_logs(claim.live, 0, [(0, b"out", b"")])
    hand.files.symlink("cancel me", hand.area.cancel_request(held, 0))
    hand.submit("ready", Job("waits", ("held",)))
    before = hand.paths()
    hand.make_all_old(1000)
    assert collect(hand, EVERYTHING) == []
    assert hand.paths() == before


# -- what was left over ----------------------------------------------------------------------


def test_old_temporary_files_and_graves_go(hand):
    for token in ("a" * 16, "b" * 16):
        hand.files.write_new(hand.area.temporary(token), [b"x"], sync=False)
    grave = hand.area.temporary(f"log-{'c' * 16}")
    hand.files.mkdir(grave)
    hand.files.symlink("retire", f"{grave}/00000000")
    hand.make_old(hand.area.temporary("a" * 16))
    hand.make_old(grave)
    assert collect(hand) == [Kind.TEMPORARY, Kind.TEMPORARY]
    assert os.listdir(f"{hand.root}/{hand.area.tmp}") == ["b" * 16]


def test_logs_of_retired_task_files_go(hand):
    stem = hand.submit("one")
    hand.run()
    hand.files.mkdir(hand.area.log(stem))  # as if the agent had died before it deleted it
    hand.files.symlink("retire", hand.area.record(stem, 0))
    born = hand.submit("being born")
    os.unlink(f"{hand.root}/{hand.area.task_file(born)}")
    assert collect(hand) == [Kind.RETIRED]
    assert os.listdir(f"{hand.root}/{hand.area.claims}") == [born]


def test_presence_goes_with_the_seal_when_no_row_is_left(hand):
    for name in ("sealed", "holds a row", "alive"):
        hand.submit(name)
    agents = {}
    for name in ("holds a row", "sealed", "alive"):
        agents[name] = hand.agent()
        claim = hand.claim(agents[name], 1)
        if name == "sealed":
            hand.end(agents[name], claim)
    for name in ("sealed", "holds a row"):
        streams.seal(hand.files, hand.area, agents[name].agent, by="0" * 16)
    assert collect(hand) == [Kind.PRESENCE]
    left = {name.split(".")[0] for name in os.listdir(f"{hand.root}/{hand.area.agents}")}
    assert left == {agents["holds a row"].agent, agents["alive"].agent}


def test_requests_go_when_their_rows_have_ended(hand):
    ended = hand.submit("ended")
    live = hand.submit("half", "held")
    hand.run()
    agent = hand.agent()
    again = hand.submit(Job("half", round=1), Job("held", round=1))
    hand.end(agent, hand.claim(agent, 1))
    assert hand.claim(agent)
    for stem, row in ((ended, 0), (live, 1), (again, 0), (again, 1)):
        hand.files.symlink("cancel", hand.area.cancel_request(stem, row))
    assert collect(hand) == [Kind.REQUEST] * 3
    assert os.listdir(f"{hand.root}/{hand.area.cancel}") == [f"{again}.1"]


def test_output_of_ended_tasks_goes_with_its_directory(hand):
    hand.submit("ended")
    agent = hand.agent()
    claim = hand.claim(agent)
    agent.publisher.write_logs(claim.live, 0, [(0, b"out", b"err"), (1, b"", b"")])
    hand.end(agent, claim)
    directory = f"{hand.area.logs}/{key_of('ended').hex()}"
    assert collect(hand) == []
    (attempt,) = os.listdir(f"{hand.root}/{directory}")
    hand.make_old(f"{directory}/{attempt}")
    assert collect(hand) == [Kind.OUTPUT]
    assert not os.path.exists(f"{hand.root}/{directory}")


def test_output_of_agents_goes_when_none_is_there(hand):
    hand.files.mkdir(hand.area.agent_logs)
    path = f"{hand.area.agent_logs}/{'a' * 16}.log"
    hand.files.write_new(path, [b"x"], sync=False)
    hand.make_old(path)
    agent = hand.agent()
    assert collect(hand) == []
    agent.leave()
    assert collect(hand) == [Kind.AGENT_OUTPUT]


# -- finished task files -----------------------------------------------------------------------


def archive_of(hand, *, bundled: bool) -> dict[str, str]:
    """Finished task files, half of them tagged: stems by name."""
    stems = {f"f{n}": hand.submit(f"f{n}", tag="keep" if n % 2 else "") for n in range(8)}
    hand.run()
    if bundled:
        archive.cycle(hand.files, hand.area)
        archive.cycle(hand.files, hand.area)
    for path in archive.listing(hand.files, hand.area):
        hand.make_old(path)
    return stems


def in_archive(hand) -> set[str]:
    return {
        stem
        for path in archive.listing(hand.files, hand.area)
        for stem, _ in archive.opened(hand.files, path)
    }


@pytest.mark.parametrize("bundled", [False, True])
def test_tagged_task_files_stay_unless_they_are_given_up(hand, bundled):
    stems = archive_of(hand, bundled=bundled)
    assert set(collect(hand)) == {Kind.ARCHIVED}
    assert in_archive(hand) == {stem for name, stem in stems.items() if int(name[1]) % 2}
    for path in archive.listing(hand.files, hand.area):
        hand.make_old(path)
    collect(hand, Wishes(older_than=86400.0, tagged=True))
    assert in_archive(hand) == set()
    assert all(has_value(hand, name) for name in stems)


# -- arrays ------------------------------------------------------------------------------------


def stored(hand, number: float):
    """A blob's reference, and its path."""
    ref = blobs.store(hand.files, hand.area, np.full(1 << 18, number), durable=False)
    hand.make_old(hand.area.blob(ref.data.name))
    return ref, f"{hand.root}/{hand.area.blob(ref.data.name)}"


def test_only_arrays_that_nothing_refers_to_go(hand):
    kept = []
    ref, path = stored(hand, 1.0)
    kept.append(path)
    hand.submit(Job("archived", arrays=(ref,)), tag="t")
    ref, path = stored(hand, 2.0)
    kept.append(path)
    hand.run(values=Value(Encoding.PLAIN, b"null", (ref,)))
    ref, path = stored(hand, 3.0)
    kept.append(path)
    hand.submit(Job("live", arrays=(ref,)))
    _, gone = stored(hand, 4.0)
    assert collect(hand) == [Kind.BLOB]
    assert all(map(os.path.exists, kept))
    assert not os.path.exists(gone)


def test_arrays_of_packed_and_bundled_files_stay(hand):
    agent = hand.agent()
    paths = []
    for number in range(10):
        ref, path = stored(hand, number)
        value, value_path = stored(hand, -1.0 - number)
        paths += [path, value_path]
        hand.submit(Job(f"f{number}", arrays=(ref,)), tag="t")
        hand.end(agent, hand.claim(agent), values=Value(Encoding.PLAIN, b"null", (value,)))
    for _ in range(4):
        agent.tidy()
    archive.cycle(hand.files, hand.area)
    archive.cycle(hand.files, hand.area)
    assert collect(hand) == []
    assert all(map(os.path.exists, paths))


def test_arrays_stay_while_something_cannot_be_read(hand):
    _, path = stored(hand, 1.0)
    stem = hand.submit("one")
    with open(f"{hand.root}/{hand.area.task_file(stem)}", "r+b") as file:
        file.truncate(2100)  # behind the header
    rubbish = gc.survey(hand.files, hand.area, EVERYTHING)
    assert rubbish.items == []
    assert hand.area.task_file(stem) in rubbish.notes[0]
    assert os.path.exists(path)


class StoringFiles(Files):
    """Has a client store the same array again while gc removes it: before it is moved away."""

    hand: ByHand

    def rename(self, source, path):
        if source.startswith(self.hand.area.blobs):
            os.utime(f"{self.root}/{source}")
        super().rename(source, path)


def test_an_array_that_is_stored_again_meanwhile_stays(hand):
    _, path = stored(hand, 1.0)
    files = StoringFiles(hand.root)
    files.hand = hand
    assert collect(hand, files=files) == [Kind.BLOB]
    assert os.path.exists(path)
    assert os.listdir(f"{hand.root}/{hand.area.tmp}") == []


def test_storing_an_array_again_makes_it_young(hand):
    ref, path = stored(hand, 1.0)
    again = blobs.store(hand.files, hand.area, np.full(1 << 18, 1.0), durable=False)
    assert again == ref
    assert collect(hand) == []
    assert os.path.exists(path)


# -- results, when asked for -------------------------------------------------------------------


def test_results_that_were_asked_for_go_from_streams_and_packs(hand):
    names = [f"f{number}" for number in range(12)]
    packed(hand, *names)
    agent = hand.agent()
    for name in ("s1", "s2"):
        hand.submit(name)
        hand.run(agent)
    hand.make_all_old()
    assert Kind.RESULT in collect(hand, EVERYTHING)
    assert not any(has_value(hand, name) for name in [*names, "s1"])
    # The highest file of a stream tells its next number to whoever seals it.
    assert has_value(hand, "s2")


def test_results_stay_while_an_agent_packs_them(hand):
    packed(hand, *(f"f{number}" for number in range(12)))
    hand.make_all_old()
    lock = hand.files.try_lock(hand.area.lock("packs"))
    rubbish = gc.survey(hand.files, hand.area, EVERYTHING)
    trouble = gc.remove(hand.files, hand.area, rubbish)
    lock.release()
    assert any("Run gc again" in line for line in trouble)
    assert has_value(hand, "f3")


def test_results_that_live_task_files_name_stay(hand):
    names = [f"f{number}" for number in range(12)]
    packed(hand, *names)
    hand.submit(Job("dependent", ("f3", "f7")))
    hand.make_all_old()
    collect(hand, EVERYTHING)
    assert {name for name in names if has_value(hand, name)} == {"f3", "f7"}
    hand.run()
    assert has_value(hand, "dependent")
    assert not any(len(tiers.inputs_of(hand.files, path)) > 1 for path in _packs(hand))


def _packs(hand) -> list[str]:
    return [f"{hand.area.packs}/{name}" for name in os.listdir(f"{hand.root}/{hand.area.packs}")]


def test_outcomes_of_live_rows_stay(hand):
    """Without its outcome a claimed row would be run again."""
    stem = hand.submit(*(f"f{number}" for number in range(12)), "held")
    agent = hand.agent()
    for _ in range(12):
        hand.end(agent, hand.claim(agent, 1))
    assert hand.claim(agent)
    for _ in range(3):
        agent.tidy()
    hand.make_all_old()
    collect(hand, EVERYTHING)
    assert all(has_value(hand, f"f{number}") for number in range(12))
    assert hand.client.state(stem, 12) is not None


def test_results_of_tagged_tasks_stay_unless_they_are_given_up(hand):
    agent = hand.agent()
    for name in ("kept", "plain", "last"):
        hand.submit(name, tag="t" if name == "kept" else "")
        hand.run(agent)
    hand.make_all_old()
    collect(hand, Wishes(older_than=86400.0, results=True))
    assert (has_value(hand, "kept"), has_value(hand, "plain")) == (True, False)
    hand.make_all_old()
    collect(hand, EVERYTHING)
    assert not has_value(hand, "kept")


def test_a_task_born_after_the_survey_keeps_what_it_names(hand):
    packed(hand, *(f"f{number}" for number in range(12)))
    hand.make_all_old()
    rubbish = gc.survey(hand.files, hand.area, EVERYTHING)
    hand.submit(Job("newborn", ("f3",)))
    gc.remove(hand.files, hand.area, rubbish)
    assert has_value(hand, "f3")
    assert not has_value(hand, "f4")


def test_a_pack_keeps_values_and_errors_of_what_stays(hand):
    agent = hand.agent()
    array = np.arange(10.0)
    for number in range(12):
        hand.submit(f"f{number}", tag="t" if number in (2, 5) else "")
        ref = blobs.store(hand.files, hand.area, array + number, durable=False)
        value = Value(Encoding.PLAIN, b'{"@":0}', (ref,))
        hand.end(agent, hand.claim(agent), failing=["f5"], values=value)
    agent.leave()
    while packs.cycle(hand.files, hand.area):
        pass
    hand.run()
    hand.make_all_old()
    collect(hand, Wishes(older_than=86400.0, results=True))
    results = Results(hand.files, hand.area)
    results.poll(deep=True)
    done, failed = results.find(key_of("f2")), results.find(key_of("f5"))
    file = results.file(done.place.path)
    (ref,) = file.outcome(done.place.row).value.arrays
    assert np.array_equal(blobs.read_array(hand.files, hand.area, ref), array + 2)
    assert file.error(failed.place.row)["message"] == "no"
    assert file.origin(failed.place.row)["agent"] == agent.agent
    assert results.find(key_of("f3")) is None


# -- usage -------------------------------------------------------------------------------------


def test_usage_counts_every_inode_once(hand):
    packed(hand, *(f"f{number}" for number in range(12)))
    hand.submit("live")
    used = sum(gc.usage(hand.files, hand.area).values(), gc.Usage())
    top = f"{hand.root}/{hand.area.path}"
    inodes = sum(len(dirs) + len(names) for _, dirs, names in os.walk(top))
    assert used.files == inodes - len(os.listdir(top))
    assert used.bytes > 0


@pytest.mark.parametrize("bound", ["published", "found"])
def test_the_failure_of_an_earlier_round_is_no_answer_to_another_try(hand, bound):
    """Whose outcome was removed before it was read: it is lost, and not what failed before."""
    hand.submit("a")
    hand.run(failing=["a"])
    stem = hand.submit(Job("a", round=1))
    client = hand.client
    if bound == "found":
        client = ClientSession(hand.spool, bytes)
        _, running = client.look_up([key_of("a")])
        client.bind(running[key_of("a")], key_of("a"))
    hand.files.unlink(hand.area.task_file(stem))
    hand.files.rmdir(hand.area.log(stem))
    for _ in range(2):
        checked = client.check()
    assert (checked.elsewhere, checked.lost) == ([], [key_of("a")])
