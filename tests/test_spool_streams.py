"""Streams, seals, packs, look-ups: each outcome once, found wherever it stands (6, 14)."""

import errno
import os

import pytest

from fsbroker.errors import FileDamaged
from fsbroker.spool import index, packs, streams, tiers
from fsbroker.spool import spool as spools
from fsbroker.spool.index import Results
from fsbroker.spool.presence import Self
from fsbroker.spool.streams import Sealed, Stream, entries, is_seal, seal
from fsbroker.task import Status
from tests.faults.parts import found_in, key_of, lying, news, outcome, plain, stem_of

ME, YOU = "a" * 16, "b" * 16


@pytest.fixture
def spool(tmp_path):
    return spools.create(tmp_path / "spool", durable=False)


def stream(spool, agent=ME):
    made = Stream(spool.files, spool.area, agent)
    made.create()
    return made


def publish(spool, into, *names, stem="stem", first=0, **more):
    results = [
        outcome(stem_of(stem), first + number, name, plain(f'"{name}"'), **more)
        for number, name in enumerate(names)
    ]
    into.publish(streams.build(spool.files.token(), results, {"agent": into.agent}), durable=False)


def values(spool, results=None):
    found = found_in(results or Results(spool.files, spool.area))
    return {key: value for key, (_, value) in found.items()}


def test_a_sealed_stream_takes_nothing_more(spool):
    mine = stream(spool)
    publish(spool, mine, "one")
    assert seal(spool.files, spool.area, ME, by=YOU) == 1
    with pytest.raises(Sealed):
        publish(spool, mine, "late")
    assert values(spool) == {key_of("one"): b'"one"'}
    assert spool.files.names(spool.area.tmp) == []


def test_sealing_again_finds_the_seal(spool):
    publish(spool, stream(spool), "one")
    assert [seal(spool.files, spool.area, ME, by=by) for by in (YOU, ME, YOU)] == [1, 1, 1]
    assert entries(spool.files, spool.area, ME) == [0, 1]


def test_a_result_that_was_faster_than_the_seal_counts(spool):
    """The sealer lists, the agent publishes, the sealer's seal meets a result."""
    mine = stream(spool)
    files, liar = lying(spool)
    real = files.symlink

    def published_before(content, path):
        files.symlink = real
        publish(spool, mine, "in time")
        real(content, path)

    files.symlink = published_before
    assert seal(liar.files, liar.area, ME, by=YOU) == 1
    assert values(spool) == {key_of("in time"): b'"in time"'}
    assert is_seal(spool.files, spool.area, ME, 1)


@pytest.mark.parametrize("reply", ["before", "after"])
def test_replies_that_lie_do_not_fool_a_sealer(spool, reply):
    stream(spool)
    files, liar = lying(spool)
    getattr(files, reply)["symlink"] = [OSError(errno.EIO, "a lie")]
    assert seal(liar.files, liar.area, ME, by=YOU) == 0
    assert entries(spool.files, spool.area, ME) == [0]


def test_a_seal_is_durable_whatever_the_setting(spool):
    stream(spool)
    files, liar = lying(spool)
    seal(liar.files, liar.area, ME, by=YOU)
    assert files.calls[-1] == ("sync_directory", spool.area.stream(ME))


def test_a_seal_below_a_result_is_void(spool):
    mine = stream(spool)
    for name in ("one", "two", "three"):
        publish(spool, mine, name)
    spool.files.unlink(spool.area.stream_file(ME, 1))  # as a packer does
    spool.files.symlink("seal x y", spool.area.stream_file(ME, 1))
    publish(spool, mine, "four")
    assert seal(spool.files, spool.area, ME, by=YOU) == 4
    assert set(values(spool)) == {key_of("one"), key_of("three"), key_of("four")}


# -- packs -------------------------------------------------------------------------------


def fill(spool, count, agent=ME):
    mine = stream(spool, agent)
    for number in range(count):
        publish(spool, mine, f"{agent}{number}", first=number, stem=f"stem of {agent}")
    return mine


def test_packs_say_what_their_inputs_said(spool):
    fill(spool, 12)
    before = values(spool)
    assert packs.cycle(spool.files, spool.area)
    assert values(spool) == before  # pack and inputs
    packs.cycle(spool.files, spool.area)
    assert entries(spool.files, spool.area, ME) == [11]
    assert values(spool) == before  # the pack, and the highest file
    assert len(before) == 12


def test_the_highest_file_stays_until_the_stream_is_sealed(spool):
    mine = fill(spool, 12)
    for _ in range(3):
        packs.cycle(spool.files, spool.area)
    publish(spool, mine, "next", first=12)
    assert entries(spool.files, spool.area, ME) == [11, 12]
    mine.close()
    fill(spool, 9, YOU)
    for _ in range(3):
        packs.cycle(spool.files, spool.area)
    assert entries(spool.files, spool.area, ME) == [13]
    assert is_seal(spool.files, spool.area, ME, 13)
    assert len(values(spool)) == 22


def test_inputs_are_deleted_a_cycle_later(spool):
    fill(spool, 12)
    packs.cycle(spool.files, spool.area)
    assert entries(spool.files, spool.area, ME) == list(range(12))
    packs.cycle(spool.files, spool.area)
    assert entries(spool.files, spool.area, ME) == [11]


def test_a_damaged_pack_deletes_nothing(spool):
    fill(spool, 12)
    packs.cycle(spool.files, spool.area)
    (name,) = spool.files.names(spool.area.packs)
    path = f"{spool.files.root}/{spool.area.packs}/{name}"
    with open(path, "r+b") as file:
        file.seek(2048)  # behind the header
        file.write(b"\xff" * (os.path.getsize(path) - 2048))
    packs.cycle(spool.files, spool.area)
    assert entries(spool.files, spool.area, ME) == list(range(12))
    assert len(values(spool)) == 12


def test_two_packers_of_the_same_files_change_nothing(spool):
    fill(spool, 12)
    before = values(spool)
    inputs = packs.packable(spool.files, spool.area)
    for _ in range(2):
        packs._merge(spool.files, spool.area, inputs, tier=1)
    for _ in range(3):
        packs.cycle(spool.files, spool.area)
    assert values(spool) == before


def test_packs_merge_in_tiers(spool):
    before = {}
    for number in range(tiers.FAN):
        mine = fill(spool, tiers.FAN + 1, f"{number:016x}")
        mine.close()
        for _ in range(2):
            packs.cycle(spool.files, spool.area)
    before = values(spool)
    for _ in range(4):
        packs.cycle(spool.files, spool.area)
    names = spool.files.names(spool.area.packs)
    assert any(name.startswith("02.") for name in names)
    assert len(names) < tiers.FAN
    assert values(spool) == before
    assert len(before) == tiers.FAN * (packs.FAN + 1)


def test_a_seal_in_the_place_of_a_packed_file_stays(spool):
    """Whoever puts it there has an old listing; it is void, and no input of the pack."""
    mine = fill(spool, 12)
    for _ in range(2):
        packs.cycle(spool.files, spool.area)
    place = spool.area.stream_file(mine.agent, 3)
    spool.files.symlink("seal you token", place)
    for _ in range(2):
        packs.cycle(spool.files, spool.area)
    assert spool.files.readlink(place) == "seal you token"


def test_who_has_read_a_file_finds_its_outcomes_behind_a_seal_in_its_place(spool, monkeypatch):
    """Open files are few: of the others only the path is known."""
    monkeypatch.setattr(index, "OPEN_FILES", 1)
    mine = fill(spool, 12)
    reader = Results(spool.files, spool.area)
    before = {key: reader.find(key) for key in values(spool, reader)}
    for _ in range(2):
        packs.cycle(spool.files, spool.area)
    place = spool.area.stream_file(mine.agent, 3)
    assert place in {found.place.path for found in before.values()}
    spool.files.symlink("seal you token", place)
    for key, found in before.items():
        assert reader.find(key).round == found.round


def test_a_cycle_without_work_asks_for_no_single_input(spool, monkeypatch):
    fill(spool, 12).close()
    for _ in range(3):
        packs.cycle(spool.files, spool.area)
    asked = []
    for call in ("size", "status", "open"):
        real = getattr(spool.files, call)
        monkeypatch.setattr(
            spool.files, call, lambda path, real=real: (asked.append(path), real(path))[1]
        )
    assert not packs.cycle(spool.files, spool.area)
    assert asked == [f"{spool.area.packs}/{name}" for name in spool.files.names(spool.area.packs)]


def test_a_pack_that_was_merged_before_it_was_opened_is_found_in_the_larger_one(spool, monkeypatch):
    fill(spool, 12).close()
    before = values(spool)
    for _ in range(2):  # then the inputs are gone
        packs.cycle(spool.files, spool.area)
    (old,) = spool.files.names(spool.area.packs)
    new = f"{spool.area.packs}/02.{'c' * 16}.h5"
    real = spool.files.open

    def opened(path):
        if path.endswith(old) and not os.path.exists(f"{spool.files.root}/{new}"):
            spool.files.rename(path, new)
        return real(path)

    monkeypatch.setattr(spool.files, "open", opened)
    assert values(spool) == before


def test_the_row_that_was_waited_for_counts_and_not_the_latest_of_its_key(spool):
    mine = stream(spool)
    publish(spool, mine, "k", stem="first", status=Status.FAILED, error={"type": "E"})
    publish(spool, mine, "k", stem="second", round=1)
    results = Results(spool.files, spool.area)
    results.poll(deep=True)
    assert results.find(key_of("k")).status == Status.DONE
    assert results.find_row(key_of("k"), stem_of("first"), 0).status == Status.FAILED
    assert results.find_row(key_of("k"), "third", 0) is None


ROWS = 12


@pytest.fixture
def packed(spool):
    """A view of results of which all but the last are in a pack; and their stream."""
    mine = stream(spool)
    for number in range(ROWS):
        publish(spool, mine, f"{number}", first=number)
    for _ in range(2):  # then the inputs are gone
        packs.cycle(spool.files, spool.area)
    results = Results(spool.files, spool.area)
    results.poll(deep=True)
    return results, mine


def merge(spool, results):
    """The pack goes into a larger one."""
    (old,) = spool.files.names(spool.area.packs)
    new = f"02.{os.urandom(8).hex()}.h5"
    spool.files.rename(f"{spool.area.packs}/{old}", f"{spool.area.packs}/{new}")
    results._open.clear()  # as if others had been read meanwhile


def ended(results, rows):
    return list(results.ended(stem_of("stem"), [key_of(f"{number}") for number in range(rows)]))


def test_how_rows_ended_is_found_though_their_pack_was_merged_meanwhile(spool, packed):
    """Rows taken for open would run again; their dependents would be failed."""
    results, _ = packed
    results.forget(stem_of("stem"))
    merge(spool, results)
    assert ended(results, ROWS - 1) == [Status.DONE] * (ROWS - 1)


def test_how_rows_ended_is_found_in_packs_that_are_older_than_the_first_fresh_result(spool, packed):
    results, mine = packed
    results.forget(stem_of("stem"))
    publish(spool, mine, f"{ROWS}", first=ROWS)
    results.poll(deep=True)
    assert ended(results, ROWS + 1)[:-2] == [Status.DONE] * (ROWS - 1)


def test_packs_that_move_all_the_time_are_no_evidence(spool, packed, monkeypatch):
    results, _ = packed
    results.forget(stem_of("stem"))
    look_again = results.look_again
    monkeypatch.setattr(results, "look_again", lambda: [look_again(), merge(spool, results)])
    merge(spool, results)
    for look in (lambda: results.find(key_of("0")), lambda: ended(results, ROWS)):
        with pytest.raises(OSError, match="faster than they are read") as info:
            look()
        assert info.value.errno == errno.EAGAIN


def test_errors_and_generations_go_into_packs(spool):
    mine = fill(spool, 9)
    publish(spool, mine, "bad", first=9, status=Status.FAILED, error={"type": "E"}, generation=3)
    mine.close()
    for _ in range(2):
        packs.cycle(spool.files, spool.area)
    results = Results(spool.files, spool.area)
    results.poll(deep=True)
    found = results.find(key_of("bad"))
    assert "packs/" in found.place.path
    one = results.file(found.place.path).outcome(found.place.row)
    assert (one.status, one.error, one.generation) == (Status.FAILED, {"type": "E"}, 3)


# -- look-ups ----------------------------------------------------------------------------


def test_a_reader_with_an_old_listing_finds_what_moved(spool):
    fill(spool, 12)
    old = Results(spool.files, spool.area)
    old.poll(deep=True)
    for _ in range(2):
        packs.cycle(spool.files, spool.area)
    old._open.clear()  # as if the files had been closed long ago
    for number in range(12):
        found = old.find(key_of(f"{ME}{number}"))
        assert found is not None
        value = old.file(found.place.path).value(found.place.row)
        assert value.data == f'"{ME}{number}"'.encode()


def test_a_value_counts_before_a_failure_then_the_highest_round(spool):
    mine = stream(spool)
    publish(spool, mine, "k", status=Status.FAILED)
    publish(spool, mine, "k", status=Status.FAILED, round=1)
    results = Results(spool.files, spool.area)
    results.poll()
    assert results.find(key_of("k"))[1:3] == (Status.FAILED, 1)
    publish(spool, mine, "k", stem="other", round=0)
    results.poll(deep=True)
    assert results.find(key_of("k"))[1:3] == (Status.DONE, 0)


def test_a_poll_tells_only_news(spool):
    mine, me = stream(spool), Self(spool.files, spool.area, ME, {})
    me.appear()
    results = Results(spool.files, spool.area)
    assert news(results) == []
    publish(spool, mine, "one")
    assert news(results) == []  # the beat tells
    me.beat(1)
    assert [file.keys for file in news(results)] == [[key_of("one")]]
    assert news(results) == []
    publish(spool, mine, "two")
    me.vanish()
    assert [file.keys for file in news(results)] == [[key_of("two")]]


def test_which_rows_have_ended_wherever_they_stand(spool):
    fill(spool, 12)
    keys = [key_of(f"{ME}{number}") for number in range(12)] + [key_of("open")]
    for cycles in range(3):
        results = Results(spool.files, spool.area)
        results.poll(deep=True)
        assert list(results.ended(stem_of(f"stem of {ME}"), keys)) == [Status.DONE] * 12 + [0], (
            cycles
        )
        packs.cycle(spool.files, spool.area)


def test_a_damaged_result_is_set_aside_and_the_others_are_found(spool):
    fill(spool, 3)
    path = spool.area.stream_file(ME, 1)
    with open(f"{spool.files.root}/{path}", "r+b") as file:
        file.write(b"\0" * 50)
    results = Results(spool.files, spool.area)
    assert set(values(spool, results)) == {key_of(f"{ME}0"), key_of(f"{ME}2")}
    assert isinstance(results.damaged[path], FileDamaged)
