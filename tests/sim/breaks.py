"""The protocol with one rule left out: each must be caught.

A simulation that never fails proves nothing. Each break is a context manager that
patches the one place where its rule stands, with the scenario in which it shows soonest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fsbroker.agent import session
from fsbroker.agent.session.cancelling import Cancelling
from fsbroker.agent.session.dependencies import Dependencies
from fsbroker.agent.session.holdings import Holdings
from fsbroker.agent.session.waiting import Waiting
from fsbroker.client.session import ClientSession
from fsbroker.spool import gc, layout, log, neighbours, packs, streams, trust
from fsbroker.spool.container import Image
from fsbroker.spool.layout import Stem
from fsbroker.spool.live import give_birth
from fsbroker.task import Status
from tests.sim.model import LINK, ForeignModelFiles, Kind, ModelFiles, Mount, Node
from tests.sim.scheduler import Strike
from tests.sim.world import Scenario

Undo = tuple[Any, str, Any]


@contextmanager
def replaced(*changes: Undo) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, new in changes:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old)


@dataclass(frozen=True)
class Break:
    """A rule left out.

    Attributes:
        changes: what is patched.
        scenario: where it shows; none for any.
        seeds: within how many it must be caught.
    """

    name: str
    changes: Callable[[], tuple[Undo, ...]]
    scenario: Callable[[], Scenario] | None = None
    seeds: int = 600

    @contextmanager
    def applied(self) -> Iterator[None]:
        with replaced(*self.changes()):
            yield


# -- durability --------------------------------------------------------------------------------


def power() -> Scenario:
    """Power losses in the middle of the work, on a disk that loses all it may."""
    return Scenario(ordered=False, strikes=[(150, Strike.POWER), (400, Strike.POWER)])


def no_file_sync() -> tuple[Undo, ...]:
    write = ModelFiles.write_new

    def unsynced(self: ModelFiles, path: str, chunks: Any, sync: bool) -> None:
        write(self, path, chunks, sync=False)

    return ((ModelFiles, "write_new", unsynced),)


def no_directory_sync() -> tuple[Undo, ...]:
    return ((ModelFiles, "sync_directory", lambda self, path: None),)


# -- records -------------------------------------------------------------------------------------


def two_steps(files: ModelFiles, text: str, path: str) -> None:
    """As `open(O_EXCL)` and `write` do: for a moment the record is there, and empty."""
    parent, name = files._free(path)
    node = Node(LINK, "", True, files.clock.now)
    files.disk.add(parent, name, node, files.clock.now)
    files._others()
    node.data = text


def record_in_two_steps() -> tuple[Undo, ...]:
    link = ModelFiles.symlink

    def symlink(self: ModelFiles, content: str, path: str) -> None:
        if "/claims/" not in path:
            link(self, content, path)
            return
        self._step("symlink", path)
        two_steps(self, content, path)

    return ((ModelFiles, "symlink", symlink),)


def append_without_folding() -> tuple[Undo, ...]:
    """Who finds its number taken takes the next one, without a look at what stands there."""
    create = log.Log._create

    def unread(self: log.Log, number: int, record: log.Record) -> bool:
        while not create(self, number, record):
            number += 1
            self.fold.next = number
        return True

    return ((log.Log, "_create", unread),)


def believe_eexist() -> tuple[Undo, ...]:
    """ "It is there, so my request was done, and only its reply was lost." """

    def create(self: log.Log, number: int, record: log.Record) -> bool:
        try:
            self._files.symlink(record.text(), self._area.record(self.stem, number))
        except FileExistsError:
            return True
        return True

    return ((log.Log, "_create", create),)


# -- streams, seals, packs -------------------------------------------------------------------------


def zombie() -> Scenario:
    """An agent sleeps for minutes, is taken over, and wakes."""
    return Scenario(
        agents=3, jobs=8, burst=1.0, strikes=[(n, Strike.STOP) for n in (60, 120, 180, 260)]
    )


def no_seal() -> tuple[Undo, ...]:
    return ((streams, "seal", lambda files, area, agent, by: 0),)


def zombie_and_power() -> Scenario:
    strikes = [(60, Strike.STOP), (120, Strike.STOP), (180, Strike.STOP)]
    strikes += [(n, Strike.POWER) for n in (600, 800, 1000)]
    return Scenario(
        agents=3, jobs=8, burst=1.0, latency=0.005, ordered=False, strikes=strikes, steps=1100
    )


def seal_not_durable() -> tuple[Undo, ...]:
    """No fsync covers a seal: neither its maker's, nor that of whoever reads the stream."""
    sync = ModelFiles.sync_directory

    def not_of_seals(self: ModelFiles, path: str) -> None:
        entries = self.disk.directories[path].entries if "/results/" in path else {}
        if all(node.kind != LINK for node in entries.values()):
            sync(self, path)

    return ((ModelFiles, "sync_directory", not_of_seals),)


def packer_takes_highest() -> tuple[Undo, ...]:
    def all_of_them(files: Any, area: layout.Area) -> list[str]:
        paths = [
            area.stream_file(agent, number)
            for agent in sorted(files.names(area.results))
            if layout.is_agent(agent)
            for number in streams.entries(files, area, agent)
        ]
        return [path for path in paths if packs.is_file(files, path)]

    return ((packs, "packable", all_of_them),)


# -- look-ups and gc ----------------------------------------------------------------------------


def busy() -> Scenario:
    """Clients that want the same, and stop between two calls; agents that go on meanwhile."""
    strikes = [(n, Strike.STOP) for n in range(20, 600, 20)]
    return Scenario(agents=2, clients=3, jobs=4, burst=0.0, strikes=strikes, steps=600)


def packs_before_tasks() -> tuple[Undo, ...]:
    """Results first, then tasks: what ends between the two looks is found by neither."""

    def look_up(self: ClientSession[Any], keys: list[bytes]) -> Any:
        self.results.poll(deep=True)
        found = {key: self.results.find(key) for key in self.results.known(keys)}
        self.live.poll()
        running = {}
        candidates = self._may_run(self.live.holding(keys, besides=self._own))
        for key, places in candidates.items():
            row = self._first_running(places)
            if row is not None:
                running[key] = row
        return {key: one for key, one in found.items() if one is not None}, running

    return ((ClientSession, "look_up", look_up),)


def collector() -> Scenario:
    return Scenario(agents=2, clients=1, jobs=14, burst=3.0, collectors=2, steps=600)


def gc_takes_inputs() -> tuple[Undo, ...]:
    return ((gc, "_dependencies", lambda entry: set()),)


# -- outside of publish and claim -----------------------------------------------------------------


def packs_leave_a_row_out() -> tuple[Undo, ...]:
    order = packs._sorted_distinct
    return ((packs, "_sorted_distinct", lambda rows: order(rows)[:-1]),)


def packing() -> Scenario:
    """Power losses, now and then, while much is packed."""
    strikes = [(n, Strike.POWER) for n in (700, 1100, 1500)]
    return Scenario(agents=3, jobs=14, ordered=False, strikes=strikes, steps=1800)


def packs_not_durable() -> tuple[Undo, ...]:
    """Inputs are deleted behind a pack that no fsync covers."""
    sync = ModelFiles.sync_directory

    def not_of_packs(self: ModelFiles, path: str) -> None:
        if not path.endswith("/packs"):
            sync(self, path)

    return ((ModelFiles, "sync_directory", not_of_packs),)


def gc_buries_the_living() -> tuple[Undo, ...]:
    """Every log counts as that of a finished task file."""

    def logs(self: Any) -> Iterator[gc.Item]:
        for stem in self._files.names(self._area.claims):
            yield self._item(gc.Kind.RETIRED, self._area.log(stem))

    return ((gc._Survey, "_logs_of_retired", logs),)


def cancelling() -> Scenario:
    return Scenario(agents=2, clients=2, jobs=14, burst=1.0, cancels=True, steps=400)


def cancel_is_not_written() -> tuple[Undo, ...]:
    return ((ClientSession, "cancel_rows", lambda self, stem, rows: set(rows)),)


def cancel_after_the_claim() -> tuple[Undo, ...]:
    """Whoever appended the record believes in it, also where a claim stood before it."""
    cancel = ClientSession.cancel_rows

    def believing(self: ClientSession[Any], stem: str, rows: Any) -> set[int]:
        cancel(self, stem, rows)
        live = self.live.get(stem)
        return set(rows) if live is not None else set()

    return ((ClientSession, "cancel_rows", believing),)


def nobody_ends_cancelled_rows() -> tuple[Undo, ...]:
    return ((Cancelling, "end_rows", lambda self, live: None),)


def failing() -> Scenario:
    return Scenario(agents=2, jobs=14, failures=True, steps=400)


def failures_count_as_values() -> tuple[Undo, ...]:
    settle = Waiting.settle
    return ((Waiting, "settle", lambda self, key, *, done: settle(self, key, done=True)),)


def what_is_not_there_has_failed() -> tuple[Undo, ...]:
    """A dependency without an outcome counts as cancelled, though a live row may give it one."""

    def status(self: Dependencies, key: bytes) -> Status:
        found = self._results.find(key)
        return Status(found.status) if found is not None else Status.CANCELLED

    return ((Dependencies, "_status", status),)


def ending() -> Scenario:
    """Task files that end, and power losses; on a disk that loses all it may."""
    strikes = [(n, Strike.POWER) for n in range(150, 900, 75)]
    return Scenario(jobs=8, ordered=False, strikes=strikes, steps=1000)


def archive_not_durable() -> tuple[Undo, ...]:
    sync = ModelFiles.sync_directory

    def not_of_archive(self: ModelFiles, path: str) -> None:
        if not path.endswith("/archive"):
            sync(self, path)

    return ((ModelFiles, "sync_directory", not_of_archive),)


def leaving() -> Scenario:
    """Agents that are told to end, at any moment, on a file system whose replies lie."""
    mount = Mount(Kind.V4, calm=20, lies=True)
    return Scenario(agents=3, jobs=14, mount=mount, leavers=True, steps=800)


def leavers_give_back_what_may_be_published() -> tuple[Undo, ...]:
    return ((streams.Stream, "is_unsure", False),)


def sharing() -> Scenario:
    """Two users of one spool, who want the same; only the second one trusts the other."""
    return Scenario(agents=1, jobs=8, trust={1000: [], 1001: ["1000"]}, mount=Mount(Kind.V3))


def neighbourhood() -> Scenario:
    """The same on a local disk, with more to do and agents that come and go."""
    strikes = [(n, Strike.KILL) for n in range(200, 1000, 200)]
    trust = {1000: [], 1001: ["1000:plain"]}
    return Scenario(agents=1, clients=2, jobs=14, trust=trust, strikes=strikes, steps=1000)


def readers_touch_foreign_directories() -> tuple[Undo, ...]:
    return ((ForeignModelFiles, "touch_directory", ModelFiles.touch_directory),)


def copies_keep_the_name_of_their_row() -> tuple[Undo, ...]:
    return ((neighbours, "_named", lambda files, outcomes: outcomes),)


def neighbours_are_looked_at_once() -> tuple[Undo, ...]:
    poll = neighbours.Neighbour.poll

    def once(self: neighbours.Neighbour) -> None:
        if not self.results._looked:
            poll(self)

    return ((neighbours.Neighbour, "poll", once),)


def everybody_is_trusted() -> tuple[Undo, ...]:
    known = neighbours.Neighbours.__init__

    def trusting(self: Any, spool: Any, trusted: Any) -> None:
        known(self, spool, trust.Trusted(["1000", "1001"]))

    return (
        (neighbours.Neighbours, "__init__", trusting),
        (trust.Trusted, "__bool__", lambda self: True),
    )


def put_off_rows_are_held_without_a_record() -> tuple[Undo, ...]:
    """Who puts a call off believes that its row is his, and agents never hear of it."""

    def bring(holdings: Holdings, stem: Stem, made: Image, waiting: Sequence[int]) -> None:
        files, area, durable = holdings.spool
        files.mkdir(area.log(str(stem)))
        give_birth(files, area, stem, made, durable=durable)
        holdings.live.poll(afresh=True)
        live = holdings.live.get(str(stem))
        if live is not None:
            holdings.note_owned(live, ((0, stem.rows),))

    return ((session, "bring", bring),)


BREAKS = [
    Break("no fsync of files", no_file_sync, power),
    Break("no fsync of directories", no_directory_sync, power),
    Break("a record is created empty, then filled", record_in_two_steps),
    Break("a record is appended unread", append_without_folding),
    Break("EEXIST is believed", believe_eexist),
    Break("rows are claimed again without a seal", no_seal, zombie),
    Break("a seal is not durable", seal_not_durable, zombie_and_power),
    Break("a packer takes the highest file", packer_takes_highest),
    Break("look-ups end with the tasks", packs_before_tasks, busy),
    Break("gc takes what a task waits for", gc_takes_inputs, collector),
    Break("a pack leaves a row out", packs_leave_a_row_out, packing),
    Break("inputs go before their pack is durable", packs_not_durable, packing),
    Break("gc buries live task files", gc_buries_the_living, collector),
    Break("a cancellation is told and not written", cancel_is_not_written, cancelling),
    Break("a cancellation counts behind a claim", cancel_after_the_claim, cancelling),
    Break("nobody ends cancelled rows", nobody_ends_cancelled_rows, cancelling),
    Break("a failed dependency counts as a value", failures_count_as_values, failing),
    Break("a dependency that is to come has failed", what_is_not_there_has_failed, failing),
    Break("task files go before their archive is durable", archive_not_durable, ending),
    Break(
        "who leaves gives back what it may have published",
        leavers_give_back_what_may_be_published,
        leaving,
    ),
    Break("a reader touches foreign directories", readers_touch_foreign_directories, sharing),
    Break("a copy keeps the name of its row", copies_keep_the_name_of_their_row, sharing),
    Break("neighbours are looked at once", neighbours_are_looked_at_once, neighbourhood),
    Break("everybody is trusted", everybody_is_trusted, sharing),
    Break(
        "put-off rows are held without a record", put_off_rows_are_held_without_a_record, sharing
    ),
]
