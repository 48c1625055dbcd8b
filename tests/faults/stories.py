"""Small stories of clients and agents, and what must hold wherever a power loss cuts them off.

story.tell()                          the calls of the protocol, one after the other
inspect(directory, story.promised)    what was promised by then is kept, and work goes on
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from itertools import count
from unittest import mock

from fsbroker.spool import gc, streams
from fsbroker.spool import spool as spools
from fsbroker.spool.index import Results
from fsbroker.spool.live import LiveFiles
from fsbroker.spool.log import Retired
from fsbroker.task import Status
from tests.faults.audit import outcomes, task_rows
from tests.faults.parts import LANE, NOTHING, agent, client, key_of, row, run_claim, want

NAMES = ("a", "b", "c")
KEYS = [key_of(name) for name in NAMES]
MANY = [f"m{number}" for number in range(8)]


class Story:
    """One client and one agent, from the first task to the last record.

    Attributes:
        promised: what has been told to somebody, as far as the story came: "spool",
            "accepted" (a key whose task is in the spool), "done" (a key with its value),
            "sealed"; "collected" (a key that gc may have taken) takes the first two back.
    """

    def __init__(self, root, mutation=None):
        self.root = root
        self.mutation = mutation or nullcontext()
        self.promised = []

    def tell(self):
        spool = spools.create(self.root / "spool")
        self.promised.append(("spool", b""))
        with self.mutation:
            self._use(spool)

    def _use(self, spool):
        session = client(spool)
        session.publish(LANE, [row("a"), row("b"), row("c", "a")], KEYS)
        self.promised += [("accepted", key) for key in KEYS]
        one = agent(spool)
        self._work(one, session)
        one.tidy()
        self._leave(one)

    def _work(self, one, session):
        one.live.poll()
        while claim := one.claim(want(1), thorough=True):
            one.publish(run_claim(one, claim))
            # A future is resolved by what its client reads, at this moment.
            for ended in session.poll(deep=True):
                self.promised += [("done", ticket) for _, ticket in ended.tickets]
            one.resolve(thorough=True)

    def _leave(self, one):
        one.leave()
        self.promised.append(("sealed", one.agent.encode()))

    def _submit(self, session, names):
        session.publish(LANE, [row(name) for name in names], [key_of(name) for name in names])
        self.promised += [("accepted", key_of(name)) for name in names]


class Recovery(Story):
    """An agent dies with rows in hand, one of them published; another takes over."""

    def _use(self, spool):
        session = client(spool)
        self._submit(session, NAMES)
        dead = agent(spool)
        dead.live.poll()
        claim = dead.claim(want(9), thorough=True)
        dead.publish(run_claim(dead, claim)[:1])
        heir = agent(spool, lease=0.0)
        heir.live.poll()
        with mock.patch.object(spool.files, "monotonic", count(1000.0, 0.5).__next__):
            while not heir.recover():
                heir.beat()
        self.promised.append(("sealed", dead.agent.encode()))
        self._work(heir, session)
        heir.tidy()
        self._leave(heir)


class Holding(Story):
    """A client holds rows whose outcomes may come from elsewhere: one does, the others do not."""

    def _use(self, spool):
        session = client(spool)
        holder = agent(spool)
        lane = LANE._replace(holder=holder)
        session.publish(lane, [row("a"), row("b"), row("c", "a")], KEYS)
        self.promised += [("accepted", key) for key in KEYS]
        ((stem, _),) = holder.holdings.held.items()
        live = holder.holdings.claimed[stem]
        holder.publish([holder.holdings.outcome(live, 0, Status.DONE, NOTHING)])
        holder.holdings.release(live, [1, 2], "nobody else will end it")
        self._leave(holder)
        one = agent(spool)
        self._work(one, session)
        one.tidy()
        self._leave(one)


class Packing(Story):
    """Many result files become packs, many task files bundles, and their inputs go."""

    def _use(self, spool):
        session = client(spool)
        one = agent(spool)
        for name in MANY:
            self._submit(session, [name])
            self._work(one, session)
            one.tidy()
        for _ in range(4):
            one.tidy()
        self._leave(one)
        heir = agent(spool)
        while heir.tidy():
            pass
        self._leave(heir)


class Collecting(Story):
    """gc takes all that nobody needs; one result is an input of a task that is to come."""

    def _use(self, spool):
        session = client(spool)
        one = agent(spool)
        self._submit(session, [*MANY, "a"])
        self._work(one, session)
        one.tidy()
        self._leave(one)
        session.publish(LANE, [row("z", "a")], [key_of("z")])
        self.promised += [("accepted", key_of("z"))]
        self.promised += [("collected", key_of(name)) for name in [*MANY, "a"]]
        files, area, _ = spool
        wishes = gc.Wishes(older_than=-1.0, results=True)
        assert not gc.remove(files, area, gc.survey(files, area, wishes))
        two = agent(spool)
        self._work(two, session)
        two.tidy()
        self._leave(two)


def inspect(root, promised):
    """The disk after the crash keeps every promise.

    Raises:
        AssertionError: it does not.
    """
    if ("spool", b"") not in promised:
        return
    spool = spools.open_spool(root / "spool")
    no_empty_files(spool)
    found = {seen.key: seen for seen in outcomes(spool).values()}
    rows = set(task_rows(spool).values())
    claims_are_kept(spool)
    gone = {about for what, about in promised if what == "collected"}
    for what, about in promised:
        if about in gone:
            continue
        if what == "accepted":
            assert about in rows, "an accepted task is lost"
        elif what == "sealed":
            numbers = streams.entries(spool.files, spool.area, about.decode())
            top = streams.is_seal(spool.files, spool.area, about.decode(), numbers[-1])
            assert top, "a stream is open again"
        elif what == "done":
            assert about in found, "a task that was done is not done any more"
            assert found[about].status == Status.DONE
    finish(spool, {about for what, about in promised if what == "accepted"} - gone)
    for key, seen in found.items():
        after = [one for one in outcomes(spool).values() if one.key == key]
        assert after == [seen], "an outcome changed, or there are two"


def claims_are_kept(spool):
    """No outcome of a row that the log would give to somebody else."""
    for live in (files := LiveFiles(spool.files, spool.area)).poll():
        with suppress(Retired):
            live.log.refresh()
            for (stem, row), seen in outcomes(spool).items():
                if stem == live.stem:
                    assert live.log.fold.owner_of(row) == seen.agent, "a claim is lost"
    assert not files.unreadable


def no_empty_files(spool):
    """Never 0 bytes, at any final name."""
    for folder in ("tasks", "results", "packs", "archive", "agents"):
        for path, _, names in os.walk(f"{spool.files.root}/{spool.area.path}/{folder}"):
            for name in names:
                file = os.path.join(path, name)
                if not os.path.islink(file) and folder != "agents":
                    assert os.path.getsize(file) > 0, f"{file} is empty"


def finish(spool, keys):
    """Another agent, after the power came back: everything accepted ends with its value."""
    heir = agent(spool, lease=0.0)
    heir.live.poll()
    clock = count(1000.0, 0.5)
    with mock.patch.object(spool.files, "monotonic", clock.__next__):
        for _ in range(8):
            heir.beat()
            heir.recover()
            heir.resolve(thorough=True)
            while claim := heir.claim(want(9), thorough=True):
                heir.publish(run_claim(heir, claim))
            heir.tidy()
    results = Results(spool.files, spool.area)
    results.poll(deep=True)
    for key in keys:
        found = results.find(key)
        assert found is not None, "an accepted task never ends"
        assert found.status == Status.DONE
    assert spool.files.names(spool.area.tasks) == []
