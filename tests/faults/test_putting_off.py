"""Rows that a client holds because others compute them (`client/deferral.py`), by hand.

Whom it judges, and how, is in `tests/test_deferral.py`, with real accounts; here, what becomes of
the rows: whatever fails, and whoever dies, they are run or ended once.
"""

from __future__ import annotations

import errno
from itertools import count
from unittest import mock

import pytest

from fsbroker.launch.demand import Demand
from fsbroker.spool import presence, streams
from fsbroker.spool.index import Results
from fsbroker.spool.spool import create
from fsbroker.task import Status
from tests.faults.audit import outcomes
from tests.faults.parts import (
    ENVIRONMENT,
    LANE,
    Everybody,
    agent,
    client,
    found_in,
    key_of,
    lying,
    row,
    run_claim,
    want,
)

IO_ERROR = OSError(errno.EIO, "no answer")
SHAPE = "c1t1g0m0n0x0"
PLAIN = LANE._replace(shape=SHAPE)


class Put:
    """A call, and one that depends on it, of a client that has put both off."""

    def __init__(self, directory):
        self.real = create(directory)
        self.files, self.spool = lying(self.real)
        self.others = Everybody(self.spool)
        self.session = client(self.spool)
        self.lane = self.others.lane(PLAIN, "everybody")
        self.holder = self.others._holder.agent

    def publish(self, *names):
        rows = [row(name) for name in names] or [row("a"), row("b", "a")]
        return self.session.publish(self.lane, rows, [one.key for one in rows])

    def look(self):
        """A look after the others are gone."""
        self.others.gone = True
        return self.others.look()

    def agent(self):
        found = agent(self.real, lease=0.0)
        found.live.poll()
        return found

    def taken_by(self, heir):
        """Names of the rows that an agent gets."""
        claim = heir.claim(want(9), thorough=True)
        heir.publish(run_claim(heir, claim)) if claim else None
        return [] if claim is None else list(claim.rows)

    def recovered_by(self, heir):
        with mock.patch.object(self.real.files, "monotonic", count(1000.0, 0.5).__next__):
            while not heir.recover():
                heir.beat()

    def found(self):
        outcomes(self.real)  # no row has two
        return found_in(Results(self.real.files, self.real.area))

    def present(self):
        return {one.agent for one in presence.listing(self.real.files, self.real.area)}


@pytest.fixture
def put(tmp_path):
    return Put(tmp_path / "spool")


def test_nobody_takes_it_until_it_is_given_back(put):
    put.publish()
    one = put.agent()
    assert put.others.look() == set()
    assert put.taken_by(one) == []
    assert put.look() == {SHAPE}
    assert put.taken_by(one) == [(0, 2)]  # the second one with the first, which makes its input
    assert set(put.found()) == {key_of("a"), key_of("b")}


def test_its_holder_is_there_as_long_as_it_has_rows(put):
    put.publish()
    assert put.holder in put.present()
    put.look()
    assert put.holder not in put.present()
    assert streams.is_sealed(put.real.files, put.real.area, put.holder)
    assert put.others.lane(PLAIN, "everybody") != put.lane  # another one


def test_agents_and_jobs_do_not_wait_for_it(put):
    put.publish()
    one = put.agent()
    one.recover()
    one.claim(want(1), thorough=True)
    assert one.recovery.others_hold_rows()  # whether anybody is behind it is not known yet
    put.others.look()
    one.recover()
    assert not one.recovery.others_hold_rows()
    demand = Demand(put.real, ENVIRONMENT)
    (work,) = demand.look(inputs=True)
    assert (work.ready, work.waiting, work.held) == ([], {}, 0)
    put.look()
    (work,) = demand.look(inputs=True)
    assert (len(work.ready), len(work.waiting)) == (1, 1)


def test_the_death_of_its_client_costs_no_attempt(put):
    with mock.patch.object(presence, "process_start", return_value="1"):
        killed = Put(put.real.files.root)
    stem = killed.publish("alone")
    heir = put.agent()
    assert heir.recover()
    live = heir.live.get(stem)
    assert (live.log.fold.attempts[0], live.log.fold.generation[0]) == (0, 1)
    assert put.taken_by(heir) == [(0, 1)]


def test_who_was_taken_for_dead_ends_nothing(put):
    stem = put.publish()
    heir = put.agent()
    put.recovered_by(heir)
    assert put.others.cancel(stem, [0]) == set()
    assert put.taken_by(heir) == [(0, 1)]
    again = put.others.lane(PLAIN, "everybody")
    assert again.holder is put.others  # it begins anew


def test_who_was_taken_for_dead_wants_agents(put):
    put.publish()
    put.recovered_by(put.agent())
    assert put.others.look() == {SHAPE}
    assert put.others.look() == set()


def test_a_task_file_that_is_there_after_an_error_is_given_back(put):
    put.files.after["sync_directory"] = [None, IO_ERROR]  # of the logs, of the task files
    with pytest.raises(OSError, match="no answer"):
        put.publish()
    _, running = put.session.look_up([key_of("a")])
    assert running  # its client, who tries again, attaches to it
    assert put.others.look() == {SHAPE}
    assert put.taken_by(put.agent()) == [(0, 2)]


def test_what_may_have_been_given_back_is_not_ended_here(put):
    stem = put.publish()
    put.files.after["symlink"] = [IO_ERROR]
    with mock.patch.object(put.files, "readlink", side_effect=IO_ERROR):
        assert put.look() == set()
    put.others.gone = False  # they are back, but an agent may have it
    assert put.others.cancel(stem, [0, 1]) == set()
    assert put.taken_by(put.agent()) == [(0, 2)]
    assert put.others.look() == {SHAPE}
    assert {status for status, _ in put.found().values()} == {Status.DONE}


def test_an_end_that_could_not_be_published_is_published_later(put):
    stem = put.publish()
    put.files.before["write_new"] = [IO_ERROR]
    assert put.others.cancel(stem, [0]) == set()
    assert put.found() == {}
    assert put.look() == {SHAPE}
    assert put.found()[key_of("a")][0] == Status.CANCELLED
    assert put.taken_by(put.agent()) == []  # the second one waits for the first


def test_a_row_has_one_end_whatever_failed_before(put):
    stem = put.publish("a")
    put.files.before["write_new"] = [IO_ERROR, IO_ERROR]
    assert put.others.cancel(stem, [0]) == put.others.cancel(stem, [0]) == set()
    put.others.look()
    assert len(put.found()) == 1


def test_a_file_whose_rows_could_not_be_claimed_is_not_published(put):
    put.files.before["symlink"] = [IO_ERROR]
    with pytest.raises(OSError, match="A record could not be written"):
        put.publish()
    assert put.real.files.names(put.real.area.tasks) == []


def test_who_sleeps_while_publishing_finds_his_rows_gone(put):
    """An agent has run them, and put the file away: the client looks for their outcomes."""
    link, heirs = put.files.link, []

    def sleep(source, path):
        link(source, path)
        if "/tasks/" in path:
            heirs.append(put.agent())
            put.recovered_by(heirs[0])
            put.taken_by(heirs[0])
            heirs[0].tidy()

    with mock.patch.object(put.files, "link", sleep):
        put.publish("a")
    assert put.others.look() == set()
    found = [ticket for _ in range(3) for ticket, _ in put.session.check().elsewhere]
    assert found == [key_of("a")]


def test_an_end_that_may_have_been_published_is_not_given_back(put):
    stem = put.publish("a")
    put.files.after["sync_directory"] = [None, IO_ERROR, IO_ERROR]  # of the log, the stream twice
    assert put.others.cancel(stem, [0]) == set()
    put.others.end()
    heir = put.agent()
    assert put.taken_by(heir) == []
    put.recovered_by(heir)
    assert put.taken_by(heir) == []
    assert [status for status, _ in put.found().values()] == [Status.CANCELLED]
