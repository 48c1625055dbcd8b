"""A client that wants the outcome of a row which another client has made."""

from __future__ import annotations

import errno

from fsbroker.client.session import UNREADABLE, ClientSession
from fsbroker.spool.log import State
from fsbroker.task import Status
from tests.testbed.byhand import ByHand, key_of

X = key_of("x")


def test_a_row_was_left_to_an_older_one_though_the_file_server_said_no(tmp_path):
    """The reply to the record was lost, and with it what the client would have done next."""
    first = ByHand(tmp_path)
    older = first.submit("x")
    second = ByHand(tmp_path)
    rebind, second.client._rebind = second.client._rebind, _fail
    newer = second.submit("x", "y")
    second.client._rebind = rebind
    agent = first.agent()
    claim = first.claim(agent)
    assert claim.live.stem == older
    first.end(agent, claim)

    assert not list(second.client.poll())  # and `newer` is live as long as y is
    assert second.client.state(newer, 0) == State.ALIASED
    [(key, found)] = second.client.check().elsewhere
    assert (key, found.status) == (X, Status.DONE)


def test_a_row_that_is_left_to_one_which_has_ended_long_ago(tmp_path):
    """Who left it had not seen that yet; who attached had, and will hear no news of it."""
    maker = ByHand(tmp_path)
    maker.submit("x", "never runs")
    agent = maker.agent()
    waiting: ClientSession[bytes] = ClientSession(maker.spool, bytes)
    claim = maker.claim(agent, 1)
    maker.client = ClientSession(maker.spool, bytes)
    maker.client.results.poll = lambda **_: None  # an old view, from here on
    maker.end(agent, claim, failing=["x"])
    assert not list(waiting.poll())

    leave = maker.client._alias

    def attach_before_it_is_left(stem, rows):
        outcomes, running = waiting.look_up([X])
        assert outcomes[X].status == Status.FAILED
        assert running[X] == (stem, 0)
        waiting.bind(running[X], X)
        leave(stem, rows)

    maker.client._alias = attach_before_it_is_left
    maker.submit("x")

    checked = waiting.check()
    assert [(key, found.status) for key, found in checked.elsewhere] == [(X, Status.FAILED)]
    assert not list(waiting.poll())
    assert not waiting.check().elsewhere


def test_one_of_two_rows_that_were_left_cannot_be_looked_for(tmp_path):
    """The other one is told of it at once, and that one later."""
    maker = ByHand(tmp_path)
    maker.submit("x", "y", "never runs")
    agent = maker.agent()
    waiting: ClientSession[bytes] = ClientSession(maker.spool, bytes)
    claim = maker.claim(agent, 2)
    maker.client = ClientSession(maker.spool, bytes)
    maker.client.results.poll = lambda **_: None
    maker.end(agent, claim, failing=["x", "y"])
    assert not list(waiting.poll())
    leave = maker.client._alias

    def attach_before_they_are_left(stem, rows):
        _, running = waiting.look_up([X, key_of("y")])
        for key, row in running.items():
            waiting.bind(row, key)
        leave(stem, rows)

    maker.client._alias = attach_before_they_are_left
    maker.submit("x", "y")

    look = waiting.results.find_row
    waiting.results.find_row = lambda key, *row: look(key, *row) if key == X else _fail()
    assert [key for key, _ in waiting.check().elsewhere] == [X]
    waiting.results.find_row = look
    assert [key for key, _ in waiting.check().elsewhere] == [key_of("y")]


def test_what_a_row_came_to_cannot_be_told(tmp_path):
    """Its task file has ended, and each look at its outcome fails: a minute later it is lost."""
    spool = ByHand(tmp_path)
    spool.submit("x")
    waiting: ClientSession[bytes] = ClientSession(spool.spool, bytes)
    _, running = waiting.look_up([X])
    waiting.bind(running[X], X)
    waiting.results.find_row = _fail
    waiting.results.news = lambda: iter(())  # it was missed
    spool.run()
    checks = [waiting.check() for _ in range(UNREADABLE + 1)]
    [(key, error)] = checks[-1].unreadable
    assert (key, str(error)) == (X, "[Errno 5] the reply was lost")
    assert not any(check.unreadable or check.lost or check.elsewhere for check in checks[:-1])


def _fail(*_: object) -> None:
    raise OSError(errno.EIO, "the reply was lost")
