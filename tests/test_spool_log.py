"""The log: dense, append-only, and the only thing that says who owns a row (rules 2-5)."""

import errno
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsbroker.spool import spool as spools
from fsbroker.spool.log import (
    CHECKPOINT_EVERY,
    LONGEST,
    Fold,
    Kind,
    Log,
    Record,
    Retired,
    State,
    fitting,
    parse,
    ranges_of,
    rows_of,
)
from tests.faults.parts import lying, stem_of

ME, YOU = "a" * 16, "b" * 16
STEM = stem_of("log")
KINDS = [kind for kind in Kind if kind not in (Kind.RETIRE, Kind.ALIAS, Kind.LOST, Kind.RECOVER)]


@pytest.fixture
def spool(tmp_path):
    spool = spools.create(tmp_path / "spool", durable=False)
    spool.files.mkdir(spool.area.log(STEM))
    return spool


def log_of(spool, rows=100):
    return Log(spool.files, spool.area, STEM, Fold(rows))


def folded(*records, rows=8, waiting=()):
    fold = Fold(rows, waiting)
    for kind, by, ranges, *about in records:
        fold.apply(Record(kind, by, "t", ranges, *about))
    return fold


@given(
    st.sampled_from(list(Kind)),
    st.lists(st.integers(0, 4095), unique=True, max_size=40),
    st.text(max_size=60),
)
def test_records_round_trip(kind, rows, about):
    about = {Kind.ALIAS: f"{STEM} 7", Kind.LOST: f"3 {about}"}.get(kind, about)
    record = Record(kind, ME, "token", ranges_of(sorted(rows)), about)
    assert parse(record.text()) == record
    assert list(rows_of(record.rows)) == sorted(rows)


@pytest.mark.parametrize("text", ["", "claim", "claim a t 1-", "steal a t 1 -", "claim a t x -"])
def test_anything_else_is_no_record(text):
    assert parse(text) is None


@given(st.sets(st.integers(0, 4095), max_size=1500), st.text(max_size=80))
def test_records_fit_in_a_link(rows, about):
    left = list(ranges_of(sorted(rows)))
    seen = []
    while left:
        part = fitting(left, about)
        assert part
        assert len(Record(Kind.RECOVER, ME, "t" * 16, tuple(part), about).text()) <= LONGEST
        seen += rows_of(part)
        left = left[len(part) :]
    assert seen == sorted(rows)


# -- the fold ----------------------------------------------------------------------------


def test_a_claim_is_all_or_nothing():
    fold = folded((Kind.CLAIM, ME, ((0, 4),)), (Kind.CLAIM, YOU, ((3, 6),)))
    assert fold.owned_by(ME) == [0, 1, 2, 3]
    assert fold.owned_by(YOU) == []
    assert fold.next == 2


def test_only_the_owner_gives_back_and_only_charges_count():
    fold = folded(
        (Kind.CLAIM, ME, ((0, 4),)),
        (Kind.RELEASE, YOU, ((0, 1),), "free "),
        (Kind.RELEASE, ME, ((1, 2),), "free "),
        (Kind.RELEASE, ME, ((2, 3),), "charge it died"),
    )
    assert fold.owned_by(ME) == [0, 3]
    assert list(fold.generation[:4]) == [0, 1, 1, 0]
    assert list(fold.attempts[:4]) == [0, 0, 1, 0]
    assert fold.history == {2: ["it died"]}


def test_recovery_splits_until_the_row_that_kills_is_alone():
    fold = folded((Kind.CLAIM, ME, ((0, 4),)), (Kind.RECOVER, YOU, ((0, 4),), f"{ME} dead x"))
    assert list(fold.limit[:4]) == [2] * 4
    assert list(fold.attempts[:4]) == [0] * 4
    for turn in range(2):
        fold.apply(Record(Kind.CLAIM, ME, "t", ((0, 2 - turn),)))
        fold.apply(Record(Kind.RECOVER, YOU, "t", ((0, 2 - turn),), f"{ME} dead x"))
    assert list(fold.limit[:4]) == [1, 1, 2, 2]
    assert list(fold.attempts[:4]) == [1, 0, 0, 0]  # charged only when it was held alone


def test_silence_is_no_evidence_for_a_charge():
    fold = folded((Kind.RECOVER, YOU, ((0, 1),), f"{ME} dead x"))
    for _ in range(3):
        fold.apply(Record(Kind.CLAIM, ME, "t", ((0, 1),)))
        fold.apply(Record(Kind.RECOVER, YOU, "t", ((0, 1),), f"{ME} silent x"))
    assert fold.attempts[0] == 0
    assert fold.generation[0] == 3


@pytest.mark.parametrize("kind", [Kind.RELEASE, Kind.RECOVER])
def test_a_row_that_kills_many_agents_leaves_the_log_readable(kind):
    """Columns of result files hold attempts up to 255, generations up to 65535."""
    fold = Fold(1)
    fold.generation[0] = 65_400
    by, about = (ME, "charge x") if kind is Kind.RELEASE else (YOU, f"{ME} dead x")
    for _ in range(300):
        fold.apply(Record(Kind.CLAIM, ME, "t", ((0, 1),)))
        fold.apply(Record(kind, by, "t", ((0, 1),), about))
    assert (fold.attempts[0], fold.generation[0]) == (255, 65535)
    assert fold.rows_in(State.READY) == [0]


def test_recovery_takes_only_from_the_agent_that_it_names():
    fold = folded((Kind.CLAIM, ME, ((0, 4),)), (Kind.RECOVER, YOU, ((0, 4),), f"{YOU} dead x"))
    assert fold.owned_by(ME) == [0, 1, 2, 3]


def test_waiting_rows_are_claimed_and_come_back_waiting():
    fold = folded((Kind.CLAIM, ME, ((0, 2),)), (Kind.RELEASE, ME, ((0, 2),), "free "), waiting=[1])
    assert fold.rows_in(State.WAITING) == [1]
    fold.apply(Record(Kind.READY, ME, "t", ((0, 2),)))
    fold.apply(Record(Kind.CLAIM, ME, "t", ((0, 2),)))
    fold.apply(Record(Kind.RELEASE, ME, "t", ((0, 2),), "free "))
    assert fold.rows_in(State.READY) == list(range(8))


def test_cancel_counts_only_before_every_claim():
    fold = folded((Kind.CLAIM, ME, ((0, 1),)), (Kind.CANCEL, YOU, ((0, 2),)))
    assert fold.cancelled == {1}
    assert fold.owned_by(ME) == [0]
    fold.apply(Record(Kind.CLAIM, ME, "t", ((1, 2),)))
    fold.apply(Record(Kind.RELEASE, ME, "t", ((0, 2),), "free "))
    assert fold.state[1] == State.CANCELLED  # for ever
    assert fold.state[0] == State.READY


def test_aliased_rows_are_not_claimed():
    fold = folded((Kind.ALIAS, YOU, ((2, 3),), "other 7"), (Kind.CLAIM, ME, ((0, 8),)))
    assert fold.aliases == {2: ("other", 7)}
    assert fold.owned_by(ME) == []


def test_lost_reopens_only_the_generation_that_was_lost():
    fold = folded((Kind.CLAIM, ME, ((0, 1),)), (Kind.LOST, YOU, ((0, 1),), "1 gone"))
    assert fold.owned_by(ME) == [0]
    fold.apply(Record(Kind.LOST, YOU, "t", ((0, 1),), "0 gone"))
    assert fold.rows_in(State.READY) == list(range(8))


def test_nothing_follows_retire():
    fold = folded((Kind.RETIRE, ME, ()), (Kind.CLAIM, ME, ((0, 1),)))
    assert fold.owned_by(ME) == []
    assert fold.next == 2


def test_rows_that_do_not_exist_have_no_effect():
    fold = folded((Kind.CLAIM, ME, ((0, 9),)), (Kind.CLAIM, ME, ((4, 4),)))
    assert fold.owned_by(ME) == []


RECORDS = st.builds(
    Record,
    st.sampled_from([kind for kind in Kind if kind is not Kind.LOST]),
    st.sampled_from([ME, YOU]),
    st.just("t"),
    st.lists(st.integers(0, 7), unique=True, min_size=1).map(sorted).map(ranges_of),
    st.sampled_from([f"{ME} dead x", f"{YOU} silent y", "charge because", "free "]),
).map(lambda one: one._replace(about=f"{STEM} 3") if one.kind is Kind.ALIAS else one)


@settings(max_examples=200, deadline=None)
@given(st.lists(RECORDS, max_size=40), st.integers(0, 40))
def test_a_checkpoint_anywhere_changes_nothing(records, at):
    whole, part = Fold(8, [5, 6]), Fold(8, [5, 6])
    for number, record in enumerate(records):
        if number == at:
            part = Fold.from_json(part.to_json().encode())
        whole.apply(record)
        part.apply(record)
        owners = [whole.owner_of(row) for row in range(8)]
        assert sorted(r for a in (ME, YOU) for r in whole.owned_by(a)) == [
            row for row, owner in enumerate(owners) if owner
        ]
    assert part.to_json() == whole.to_json()


# -- on disk -----------------------------------------------------------------------------


def test_what_one_appends_another_reads(spool):
    mine, yours = log_of(spool), log_of(spool)
    assert mine.append(Kind.CLAIM, ME, [(0, 10)])
    assert yours.refresh()
    assert yours.fold.owned_by(ME) == list(range(10))
    assert not yours.refresh()


def test_who_has_not_read_all_cannot_append(spool):
    mine, yours = log_of(spool), log_of(spool)
    assert mine.append(Kind.CLAIM, ME, [(0, 10)])
    assert not yours.append(Kind.CLAIM, YOU, [(0, 10)])
    assert yours.fold.owned_by(YOU) == []
    yours.refresh()
    assert yours.append(Kind.CLAIM, YOU, [(10, 20)])


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, errno.ENOENT])
def test_an_append_that_was_done_counts_whatever_the_reply(spool, number):
    files, liar = lying(spool)
    files.after["symlink"] = [OSError(number, "a lie")]
    assert log_of(liar).append(Kind.CLAIM, ME, [(0, 10)])


def test_an_append_that_was_not_done_is_not_believed(spool):
    files, liar = lying(spool)
    files.before["symlink"] = [OSError(errno.EIO, "true")]
    log = log_of(liar)
    assert not log.append(Kind.CLAIM, ME, [(0, 10)])
    assert log.fold.next == 0
    log.refresh()
    assert log.append(Kind.CLAIM, ME, [(0, 10)])


def test_a_log_with_a_hole_is_read_to_the_hole(spool):
    mine, yours = log_of(spool), log_of(spool)
    for row in range(4):
        mine.append(Kind.CLAIM, ME, [(row, row + 1)])
    spool.files.unlink(spool.area.record(STEM, 2))
    yours.refresh()
    assert yours.fold.next == 2
    assert yours.fold.owned_by(ME) == [0, 1]


def test_a_log_that_is_gone_means_retired(spool):
    log = log_of(spool)
    spool.files.rmdir(spool.area.log(STEM))
    with pytest.raises(Retired):
        log.refresh()
    with pytest.raises(Retired):
        log.append(Kind.CLAIM, ME, [(0, 1)])
    assert not os.path.exists(f"{spool.files.root}/{spool.area.log(STEM)}")


def test_a_retire_record_means_retired(spool):
    log_of(spool).append(Kind.RETIRE, ME, [])
    with pytest.raises(Retired):
        log_of(spool).refresh()


def test_who_has_read_retire_appends_nothing(spool):
    log = log_of(spool)
    assert log.append(Kind.RETIRE, ME, [])
    with pytest.raises(Retired):
        log.append(Kind.CLAIM, ME, [(0, 1)])
    assert len(spool.files.names(log.path)) == 1


def test_a_log_that_was_never_read_is_blank_until_somebody_was_faster(spool):
    mine, yours = log_of(spool), log_of(spool)
    assert mine.is_blank()
    assert mine.append(Kind.CLAIM, ME, [(0, 1)])
    assert not mine.is_blank()
    assert yours.is_blank()
    assert not yours.append(Kind.CLAIM, YOU, [(0, 1)])
    assert not yours.is_blank()


def test_newcomers_read_from_the_last_checkpoint(spool, monkeypatch):
    mine = log_of(spool, rows=400)
    for row in range(2 * CHECKPOINT_EVERY + 10):
        assert mine.append(Kind.CLAIM, ME, [(row, row + 1)])
    read = []
    real = spool.files.readlink
    monkeypatch.setattr(spool.files, "readlink", lambda path: read.append(path) or real(path))
    newcomer = log_of(spool, rows=400)
    newcomer.refresh()
    assert newcomer.fold.to_json() == mine.fold.to_json()
    assert len(read) < CHECKPOINT_EVERY
    assert newcomer.append(Kind.CLAIM, YOU, [(300, 301)])


def test_a_checkpoint_that_cannot_be_read_is_replaced_by_the_records_before_it(spool):
    mine = log_of(spool, rows=400)
    for row in range(CHECKPOINT_EVERY + 3):
        assert mine.append(Kind.CLAIM, ME, [(row, row + 1)])
    path = f"{spool.files.root}/{spool.area.record(STEM, CHECKPOINT_EVERY)}"
    with open(path, "r+b") as file:
        file.write(b"\0" * 100)
    newcomer = log_of(spool, rows=400)
    newcomer.refresh()
    assert newcomer.fold.to_json() == mine.fold.to_json()


def test_eight_writers_never_own_a_row_twice(spool):
    """With no lock at all: only the numbers of the records keep them apart."""
    agents = [f"{number:016x}" for number in range(8)]
    barrier = threading.Barrier(8)

    def claim(agent):
        log = log_of(spool, rows=400)
        barrier.wait(30)
        while True:
            log.refresh()
            ready = log.fold.rows_in(State.READY)
            if not ready:
                return
            if log.append(Kind.CLAIM, agent, ranges_of(ready[:3])):
                claimed[agent].extend(ready[:3])

    claimed = {agent: [] for agent in agents}
    threads = [threading.Thread(target=claim, args=(agent,)) for agent in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log = log_of(spool, rows=400)
    log.refresh()
    assert sorted(row for rows in claimed.values() for row in rows) == list(range(400))
    assert {agent: log.fold.owned_by(agent) for agent in agents} == claimed


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_survive_the_disk(spool, kind):
    log_of(spool).append(kind, ME, [(0, 1), (5, 9)], "free why not")
    target = spool.files.readlink(spool.area.record(STEM, 0))
    record = parse(target)
    assert (record.kind, record.by, record.rows) == (kind, ME, ((0, 1), (5, 9)))
    assert record.about == "free why not"
