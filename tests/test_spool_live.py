"""Birth and end of task files: every step may be the last, and anybody goes on (rule 5)."""

import errno
import os
from contextlib import suppress

import filelock
import pytest

from fsbroker.spool import presence
from fsbroker.spool import spool as spools
from fsbroker.spool.live import LiveFiles, bury
from fsbroker.spool.log import Kind, Retired
from fsbroker.spool.streams import Sealed
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import Status
from tests.faults.parts import (
    agent,
    client,
    found_in,
    key_of,
    lying,
    news,
    outcome,
    plain,
    row,
    run_claim,
    submit,
    want,
)


@pytest.fixture
def spool(tmp_path):
    return spools.create(tmp_path / "spool", durable=True)


def finish(spool, stem=None):
    """An agent that claims and publishes all there is, and has tidied up."""
    one = agent(spool)
    one.live.poll()
    while claim := one.claim(want(100), thorough=True):  # `want` reads the file, as agents do
        one.publish(run_claim(one, claim))
    one.tidy()
    return one


def area_names(spool, name):
    return spool.files.names(f"{spool.area.path}/{name}")


def test_the_log_is_durable_before_the_task_file_is_there(spool):
    files, liar = lying(spool)
    stem = submit(liar, [row("a")])
    calls = files.calls
    assert calls.index(("sync_directory", spool.area.claims)) < calls.index(
        ("link", spool.area.task_file(stem))
    )
    assert area_names(spool, "claims") == [stem]


def test_what_has_ended_goes_into_the_archive(spool):
    stem = submit(spool, [row("a"), row("b")])
    finish(spool)
    assert area_names(spool, "tasks") == []
    assert area_names(spool, "claims") == []
    # The log stays whole for a while, where nobody finds it by its old name.
    (grave,) = area_names(spool, "tmp")
    assert len(area_names(spool, f"tmp/{grave}")) == 2
    assert TaskFile(spool.files, spool.area.archived(stem), stem).keys == [key_of("a"), key_of("b")]
    assert found_in(agent(spool).results) == {
        key_of("a"): (Status.DONE, b"0"),
        key_of("b"): (Status.DONE, b"1"),
    }


class Stopped(Exception):
    pass


@pytest.mark.parametrize("calls", range(6))
def test_an_end_that_stopped_anywhere_is_brought_to_its_end(spool, calls):
    stem = submit(spool, [row("a")])
    one = agent(spool)
    one.live.poll()
    one.publish(run_claim(one, one.claim(want(1))))
    files, liar = lying(spool)
    ender = agent(liar)
    ender.live.poll()
    ender.results.poll(deep=True)
    left = [calls]

    def counted(real):
        def call(*args):
            if not left[0]:
                raise Stopped
            left[0] -= 1
            return real(*args)

        return call

    for name in ("link", "unlink", "rename", "symlink", "sync_directory"):
        setattr(files, name, counted(getattr(files, name)))
    with pytest.raises(Stopped):
        ender.tidy()
    finish(spool)
    assert area_names(spool, "tasks") == []
    assert area_names(spool, "archive") == [f"{stem}.h5"]
    assert set(area_names(spool, "claims")) <= {stem}
    bury(spool.files, spool.area, [stem])
    assert area_names(spool, "claims") == []


def test_nobody_appends_to_the_log_of_a_retired_file(spool):
    stem = submit(spool, [row("a")])
    late = agent(spool)
    late.live.poll()
    log = late.live.get(stem).log
    log.refresh()
    finish(spool)
    with pytest.raises(Retired):
        log.append(Kind.CLAIM, late.agent, [(0, 1)])
    assert late.claim(want(1), thorough=True) is None
    assert area_names(spool, "claims") == []


def test_a_file_that_an_agent_holds_is_not_retired(spool):
    submit(spool, [row("a"), row("b")])
    one, other = agent(spool), agent(spool)
    one.live.poll()
    claim = one.claim(want(1))
    one.publish(run_claim(one, claim))
    other.live.poll()
    held = other.claim(want(1))
    one.tidy()
    assert len(area_names(spool, "tasks")) == 1
    other.publish(run_claim(other, held))
    one.tidy()
    assert area_names(spool, "tasks") == []


def test_a_lock_that_the_server_forgot_takes_no_claim_away(spool, monkeypatch):
    stem = submit(spool, [row("a")])
    one, _ = agent(spool), agent(spool)
    one.live.poll()

    def forgotten(lock):
        os.close(lock._context.lock_file_fd)
        lock._context.lock_file_fd = None
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(filelock.FileLock, "_release", forgotten)
    claim = one.claim(want(1))
    assert claim is not None
    assert claim.live.stem == stem


def test_a_file_that_somebody_else_has_buried_is_let_go(spool):
    stem = submit(spool, [row("a"), row("b")])
    one, other = agent(spool), agent(spool)
    for each in (one, other):
        each.live.poll()
        each.publish(run_claim(each, each.claim(want(1))))
    one.tidy()
    assert area_names(spool, "tasks") == []
    assert len(open_files_of(stem)) == 1
    other.tidy()
    assert open_files_of(stem) == []


def open_files_of(stem):
    """Descriptors of this process."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in names if stem in name]


def test_a_dead_agent_is_sealed_before_its_rows_are_claimed_again(spool):
    submit(spool, [row("a"), row("b")])
    dead = agent(spool, described={**presence.describe(), "process_start": "0"})
    dead.live.poll()
    claim = dead.claim(want(2))
    results = run_claim(dead, claim)
    dead.publish(results[:1])
    heir = finish_recovering(spool)
    with pytest.raises(Sealed):
        dead.publish(results[1:])
    with pytest.raises(Sealed):
        dead.beat()
    found = found_in(client(spool).results)
    assert set(found) == {key_of("a"), key_of("b")}
    assert dead.agent not in {one.agent for one in presence.listing(spool.files, spool.area)}
    assert heir.agent != dead.agent


def finish_recovering(spool):
    heir = agent(spool)
    heir.live.poll()
    assert heir.recover()
    claim = heir.claim(want(5), thorough=True)
    assert claim.rows == ((1, 2),)
    assert claim.live.log.fold.generation[1] == 1
    heir.publish(run_claim(heir, claim))
    return heir


def test_strange_names_among_the_tasks_are_ignored(spool):
    stem = submit(spool, [row("a")])
    folder = f"{spool.files.root}/{spool.area.tasks}"
    for name in (f"{stem}.h5~", ".nfs0001", "x.h5", stem):
        open(f"{folder}/{name}", "w").close()
    os.mkdir(f"{folder}/{stem[:-1]}9.h5x")
    assert [live.stem for live in LiveFiles(spool.files, spool.area).poll()] == [stem]


def test_a_damaged_task_file_is_set_aside_and_the_others_run(spool):
    bad, good = submit(spool, [row("a")]), submit(spool, [row("b")])
    with open(f"{spool.files.root}/{spool.area.task_file(bad)}", "r+b") as file:
        file.write(b"\0" * 2000)
    one = finish(spool)
    (aside,) = spool.files.names(spool.area.quarantine)
    assert aside.endswith(f"{bad}.h5")
    assert set(found_in(agent(spool).results)) == {key_of("b")}
    assert good not in one.live.unreadable


def test_the_lower_name_runs_what_two_clients_submit(spool):
    keys = [key_of("a")]
    first, second = client(spool), client(spool)
    older = first.publish(lane(), [row("a")], keys)
    newer = second.publish(lane(), [row("a")], keys)
    one = finish(spool)
    assert [file.files for file in news(agent(spool).results, deep=True)] == [[older]]
    assert newer not in one.live.unreadable
    for session in (first, second):
        assert [ended.tickets for ended in session.poll(deep=True)] == [[(0, keys[0])]]


def lane():
    from tests.faults.parts import LANE

    return LANE


def test_who_is_told_of_a_cancellation_has_made_it_durable(spool):
    """Its record may be that of a client whose sync has failed."""
    stem = submit(spool, [row("a")])
    files, liar = lying(spool)
    files.after["sync_directory"] = [OSError(errno.EIO, "no answer")]
    with pytest.raises(OSError, match="no answer"):
        client(liar).cancel_rows(stem, [0])
    files, liar = lying(spool)
    assert client(liar).cancel_rows(stem, [0]) == {0}
    assert ("sync_directory", spool.area.log(stem)) in files.calls


def test_an_unwanted_outcome_is_not_published_twice(spool):
    """What `_reconcile` is for: a claim that was done though its reply said no."""
    stem = submit(spool, [row("a")])
    one = agent(spool)
    one.live.poll()
    log = one.live.get(stem).log
    log.refresh()
    log._create(0, log_record(one.agent))
    assert one.claim(want(1), thorough=True) is not None
    assert one.live.get(stem).log.fold.generation[0] == 1


def log_record(agent_id):
    from fsbroker.spool.log import Record

    return Record(Kind.CLAIM, agent_id, "token", ((0, 1),))


def test_failed_rows_keep_their_history(spool):
    stem = submit(spool, [row("a")])
    one = agent(spool)
    one.live.poll()
    claim = one.claim(want(1))
    one.holdings.release(claim.live, [0], "it died", charge=True)
    again = one.claim(want(1), thorough=True)
    made = one.holdings.outcome(again.live, 0, Status.FAILED, plain("null"), {"type": "WorkerLost"})
    assert (made.attempt, made.generation) == (1, 1)
    assert again.live.log.fold.history == {0: ["it died"]}
    assert outcome(stem, 0, "a").attempt == 0
