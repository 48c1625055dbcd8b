"""What must hold after every step, judged from the server's truth.

`Truth` hears of each change of a name on the disk, reads what was published with it, and
keeps its own fold of every log. It never uses what an actor believes. Actors tell it what
they did in the world outside of the spool: an execution, a future that was resolved, a
publication that returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool.container import Container
from fsbroker.spool.layout import Area, parse_pack, parse_record, parse_stem, parse_stream_file
from fsbroker.spool.log import Fold, Kind, Record, State, parse, rows_of
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import Status
from tests.sim.model import DIRECTORY, FILE, LINK, Clock, ModelDisk, Node


class Violation(BaseException):
    """A rule does not hold; not an `Exception`, so that no code under test swallows it."""


class Glass:
    """Shows one file to the real readers: no faults, no caches, no scheduling."""

    uid = 1000
    keyring = None

    def __init__(self, data: bytes | str, path: str) -> None:
        self.data = data
        self.path = path
        self.size = len(data)
        self.owner = self.uid

    def open(self, _: str) -> Glass:
        return self

    def read(self, offset: int, length: int) -> bytes:
        data = self.data[offset : offset + length]
        assert isinstance(data, bytes)
        return data

    def close(self) -> None:
        pass


class Task(NamedTuple):
    """A task file, as it was published."""

    keys: list[bytes]
    needs: list[list[bytes]]
    rounds: list[int]
    waiting: list[int]

    def new_fold(self) -> Fold:
        return Fold(len(self.keys), self.waiting)


class Published:
    """An outcome, and the files that it stands in."""

    __slots__ = (
        "acknowledged",
        "agent",
        "generation",
        "key",
        "places",
        "round",
        "since",
        "status",
        "text",
    )

    def __init__(self, key: bytes, status: int, text: bytes, generation: int, round_: int) -> None:
        self.key = key
        self.status = status
        self.text = text
        self.generation = generation
        self.round = round_
        self.agent = ""
        self.places: set[str] = set()
        self.acknowledged = False
        self.since = 0.0

    def same(self, other: Published) -> bool:
        return (self.key, self.status, self.text, self.generation, self.round) == (
            other.key, other.status, other.text, other.generation, other.round
        )  # fmt: skip


Row = tuple[str, int]
WILL_RUN = (State.READY, State.WAITING, State.CLAIMED)


class Truth:
    """The invariants, and what is needed to judge them.

    Attributes:
        tasks: every task file that ever had its final name.
        folds: of the logs that are there.
        owned: (stem, row, agent, generation) of every valid claim.
        accepted: task files whose publication returned to the client.
        outcomes: every outcome that stands somewhere.
        executions: key -> values that its executions made.
        collecting: task files that were live when a gc looked (files that come later, and
            want what it takes, are told so by an error); collected: whether there was one.
        gone: outcomes that it removed.
        wanted: the lowest round whose failure may reach a ticket.
        never: rows that a client was told will never run.
        early: claims of rows whose task file is to come.
        neighbours: what holds in the areas of users who are trusted; adopted: values that were
            taken over from there.
    """

    def __init__(self, disk: ModelDisk, area: Area, clock: Clock) -> None:
        self.neighbours: list[Truth] = []
        self.adopted: dict[bytes, set[bytes]] = {}
        self.early: dict[str, Node] = {}
        self.disk = disk
        self.clock = clock
        self.area = area
        self.tasks: dict[str, Task] = {}
        self.folds: dict[str, Fold] = {}
        self.owned: set[tuple[str, int, str, int]] = set()
        self.accepted: dict[str, None] = {}
        self.outcomes: dict[Row, Published] = {}
        self.ended_keys: dict[bytes, int] = {}
        self.executions: dict[bytes, list[bytes]] = {}
        self.executed: set[tuple[str, int, str, int]] = set()
        self.never: set[Row] = set()
        self.resolved: dict[Any, tuple[int, bytes]] = {}
        self.wanted: dict[Any, int] = {}
        self.collecting: set[str] | None = None
        self.collected = False
        self.gone: list[Published] = []
        self._base = area.path + "/"
        self._added = {
            "tasks": self._task_added,
            "claims": self._record_added,
            "results": self._result_added,
            "packs": self._pack_added,
        }
        self._removed = {
            "tasks": self._task_removed,
            "claims": self._log_removed,
            "results": self._result_removed,
            "packs": self._pack_removed,
            "archive": self._archive_removed,
        }

    # -- changes on the disk ---------------------------------------------------------------

    def added(self, directory: str, name: str, node: Node) -> None:
        kind, _, inner = directory.removeprefix(self._base).partition("/")
        if kind in self._added:
            self._added[kind](inner, name, node)

    def removed(self, directory: str, name: str, node: Node) -> None:
        kind, _, inner = directory.removeprefix(self._base).partition("/")
        if kind in self._removed:
            self._removed[kind](inner, name, node)

    def replaced(self, directory: str, name: str, _: Node, __: Node) -> None:
        raise Violation(f"{directory}/{name} was replaced")

    # -- task files --------------------------------------------------------------------------

    def _task_added(self, _: str, name: str, node: Node) -> None:
        stem = name.removesuffix(".h5")
        if stem in self.folds and self.folds[stem].retired:
            return  # a request that came very late; whoever finds it buries it again
        if self.area.log(stem) not in self.disk.directories:
            raise Violation(f"task file {stem} was linked without a log")
        self._register(stem, node)
        if early := self.early.pop(stem, None):
            self._fold(stem, self.folds[stem], early)

    def _register(self, stem: str, node: Node) -> None:
        if stem not in self.tasks:
            self.tasks[stem] = _read_task(node, stem)
        self.folds.setdefault(stem, self.tasks[stem].new_fold())

    def _task_removed(self, _: str, name: str, __: Node) -> None:
        stem = name.removesuffix(".h5")
        if not self.folds[stem].retired:
            raise Violation(f"task file {stem} was removed before it was retired")
        if not self._archived(stem):
            raise Violation(f"task file {stem} was removed before it was archived")

    # -- logs ----------------------------------------------------------------------------------

    def _record_added(self, stem: str, name: str, node: Node) -> None:
        number = parse_record(name)
        if not stem or number is None:
            return
        fold = self.folds.get(stem)
        if fold is None and number == 0:
            self._note_early(stem, node)
            return
        if fold is None:
            raise Violation(f"a record in the log of {stem}, which is no task file")
        if number != fold.next:
            raise Violation(f"record {number} of {stem} was appended behind {fold.next - 1}")
        self._fold(stem, fold, node)
        # A power loss may have left records behind a hole, which was filled just now.
        log = self.disk.directories[self.area.log(stem)].entries
        while (later := log.get(f"{fold.next:08d}")) is not None:
            self._fold(stem, fold, later)

    def _note_early(self, stem: str, node: Node) -> None:
        """The claim of rows whose task file is to come: of what is put off."""
        record = parse(str(node.data))
        if record is None or record.kind is not Kind.CLAIM:
            raise Violation(f"{node.data!r} in the log of {stem}, which is no task file")
        self.early[stem] = node

    def _fold(self, stem: str, fold: Fold, node: Node) -> None:
        """Apply the next record, and judge it."""
        if node.kind == FILE:
            self._check_checkpoint(stem, fold, node)
            fold.apply(None)
            return
        assert isinstance(node.data, str)
        record = parse(node.data)
        if record is None:
            raise Violation(f"record {fold.next} of {stem} is unreadable: {node.data!r}")
        fold.apply(record)
        if record.kind is Kind.CLAIM:
            self._note_owner(stem, fold, record)
        elif record.kind is Kind.RECOVER:
            self._check_sealed(record.about.partition(" ")[0], f"{stem} was recovered")
        elif record.kind is Kind.RETIRE:
            self._check_ended(stem, fold)

    def _note_owner(self, stem: str, fold: Fold, record: Record) -> None:
        for row in rows_of(record.rows):
            if fold.owner_of(row) == record.by:
                self.owned.add((stem, row, record.by, fold.generation[row]))

    def _check_checkpoint(self, stem: str, fold: Fold, node: Node) -> None:
        theirs = _read_checkpoint(node)
        # None: torn by a power loss, which readers see through
        if theirs is not None and theirs.to_json() != fold.to_json():
            raise Violation(f"checkpoint {fold.next} of {stem} differs from the fold")

    def _check_ended(self, stem: str, fold: Fold) -> None:
        for row, state in enumerate(fold.state):
            if (stem, row) in self.outcomes or state in (State.CANCELLED, State.ALIASED):
                continue
            raise Violation(f"{stem} was retired while row {row} is {State(state).name}")

    def _log_removed(self, stem: str, name: str, node: Node) -> None:
        if node.kind == DIRECTORY and not self.folds[name].retired:
            raise Violation(f"the log of {name} was removed before the retire record")
        if stem and self.folds[stem].next and not self.folds[stem].retired:
            raise Violation(f"record {name} of {stem} was removed")

    # -- streams and packs -----------------------------------------------------------------------

    def _stream(self, agent: str) -> dict[int, Node]:
        node = self.disk.directories.get(self.area.stream(agent))
        entries = node.entries if node else {}
        return {
            number: inner
            for name, inner in entries.items()
            if (number := parse_stream_file(name)) is not None
        }

    def _is_sealed(self, stream: dict[int, Node]) -> bool:
        return bool(stream) and stream[max(stream)].kind == LINK

    def _check_sealed(self, agent: str, why: str) -> None:
        if not self._is_sealed(self._stream(agent)):
            raise Violation(f"{why} though the stream of {agent} is not sealed")

    def _result_added(self, agent: str, name: str, node: Node) -> None:
        number = parse_stream_file(name)
        if not agent or number is None or node.kind == LINK:
            return
        stream = self._stream(agent)
        del stream[number]
        if self._is_sealed(stream) and max(stream) < number:
            raise Violation(f"{agent} published number {number} above its seal")
        for row, made in _read_results(node, name).items():
            self._first_publication(row, made, agent, f"results/{agent}/{name}")

    def _first_publication(self, row: Row, made: Published, agent: str, path: str) -> None:
        if row in self.outcomes:
            raise Violation(f"a second outcome of {row} in {path}: {made.text!r}")
        if _is_adopted(row[0]):
            self._check_adopted(made)
            self._note(row, made, path)
            return
        if (*row, agent, made.generation) not in self.owned:
            raise Violation(f"{agent} published an outcome of {row}, which it does not own")
        needs = self.tasks[row[0]].needs[row[1]]
        self._note(row, made, path)
        made.agent = agent
        if made.status == Status.DONE and made.text not in self.executions.get(made.key, ()):
            self._check_adopted(made)  # in the place of what was put off
        elif made.status == Status.DONE and any(need not in self.ended_keys for need in needs):
            raise Violation(f"the outcome of {row} was published before those of its inputs")

    def _check_adopted(self, made: Published) -> None:
        """A copy is of a value that stands, or stood, in the area of somebody who is trusted."""
        origins = [
            one
            for truth in self.neighbours
            for one in (*truth.outcomes.values(), *truth.gone)
            if one.key == made.key and one.status == Status.DONE and one.text == made.text
        ]
        if made.status != Status.DONE or not origins:
            raise Violation(f"an outcome was taken over that nobody trusted has: {made.text!r}")
        self.adopted.setdefault(made.key, set()).add(made.text)

    def _note(self, row: Row, made: Published, path: str) -> None:
        self.outcomes[row] = made
        made.places.add(path)
        made.since = self.clock.now
        if self.ended_keys.get(made.key) != Status.DONE:
            self.ended_keys[made.key] = made.status

    def _result_removed(self, agent: str, name: str, node: Node) -> None:
        number = parse_stream_file(name)
        if not agent or number is None:
            return
        stream = self._stream(agent)
        if node.kind == LINK:
            if not any(above > number and one.kind == FILE for above, one in stream.items()):
                raise Violation(f"the seal {name} of {agent} was removed")
            return  # a void one, below a result
        if not stream or max(stream) < number:
            raise Violation(f"the highest file {name} of {agent} was removed")
        self._forget(node, f"results/{agent}/{name}")

    def _pack_added(self, _: str, name: str, node: Node) -> None:
        for row, made in _read_results(node, name).items():
            known = self.outcomes.get(row) or self._returned(row, made)
            if known is None:
                raise Violation(f"pack {name} has an outcome of {row} that nobody published")
            if not known.same(made):
                raise Violation(f"pack {name} tells another outcome of {row}")
            known.places.add(f"packs/{name}")

    def _returned(self, row: Row, made: Published) -> Published | None:
        """An outcome that gc removed while somebody was packing it: it is there again."""
        known = next((one for one in self.gone if one.same(made)), None)
        if known is not None:
            self.gone.remove(known)
            self.outcomes[row] = known
        return known

    def _pack_removed(self, _: str, name: str, node: Node) -> None:
        self._forget(node, f"packs/{name}")

    def _archive_removed(self, _: str, name: str, __: Node) -> None:
        stem = name.removesuffix(".h5")
        if parse_stem(stem) is None or self._archived(stem):
            return  # a bundle, merged into a larger one; or a copy of what a bundle holds
        if self.collecting is None:
            raise Violation(f"the archived task file {name} was removed")
        self.accepted.pop(stem, None)

    def _forget(self, node: Node, path: str) -> None:
        for row in _read_results(node, path):
            known = self.outcomes[row]
            known.places.discard(path)
            if known.places:
                continue
            if self.collecting is not None:
                self._check_unwanted(row, known)
                self.gone.append(self.outcomes.pop(row))
            else:
                raise Violation(f"the last copy of the outcome of {row} was removed: {path}")

    def _check_unwanted(self, row: Row, made: Published) -> None:
        """gc may take an outcome for ever, but not one that a live task file names."""
        for stem, fold in self.folds.items():
            if fold.retired or stem not in (self.collecting or ()):
                continue
            if stem == row[0]:
                raise Violation(f"gc removed the outcome of {row}, whose file is live")
            for number, needs in enumerate(self.tasks[stem].needs):
                if made.key in needs and (stem, number) not in self.outcomes:
                    raise Violation(f"gc removed what row {number} of {stem} waits for")

    def looks_up(self, keys: Iterable[bytes]) -> set[Row]:
        """The rows that a client must find, if it looks now: with a value, or about to run."""
        wanted = set(keys)
        ended = self.outcomes.items()
        found = {row for row, made in ended if made.key in wanted and made.status == Status.DONE}
        for stem, fold in self.folds.items():
            if not fold.retired and stem in self.accepted:
                found.update(
                    (stem, row)
                    for row, key in enumerate(self.tasks[stem].keys)
                    if key in wanted and fold.state[row] in WILL_RUN
                )
        return found

    def makes(self, keys: Iterable[bytes], known: set[Row], lag: float) -> None:
        """A client makes new rows, having looked up what must be found.

        Another row of the key, made since, may have got a value: that is no fault.

        Args:
            lag: seconds for which nobody can know of a change (a tick of an NFS v3 server).
        """
        latest = self.clock.now - lag
        values = {
            made.key
            for row in known
            if (made := self.outcomes.get(row))
            and made.status == Status.DONE
            and made.since <= latest
        }
        if not self.collected and (again := values.intersection(keys)):
            raise Violation(f"{again} were submitted anew, though they have values")

    # -- what actors tell ------------------------------------------------------------------------

    def execute(self, row: Row, agent: str, generation: int, local: Iterable[bytes]) -> bytes:
        """An agent runs a row: may it? The value that this execution makes.

        Args:
            local: keys whose values it has made itself, in the same claim.
        """
        stem, number = row
        mark = (stem, number, agent, generation)
        if mark not in self.owned:
            raise Violation(f"{agent} executes {row}, which was never its own")
        if mark in self.executed:
            raise Violation(f"{agent} executes {row} a second time after one claim")
        if row in self.never:
            raise Violation(f"{row} is executed, though a client was told that it is cancelled")
        fold = self.folds.get(stem)
        if fold is not None and number in fold.cancelled:
            raise Violation(f"{row} is executed, though it was cancelled before any claim")
        missing = [
            key
            for key in self.tasks[stem].needs[number]
            if key not in local and self.ended_keys.get(key) != Status.DONE
        ]
        if missing:
            raise Violation(f"{row} is executed before its inputs have values")
        self.executed.add(mark)
        values = self.executions.setdefault(self.tasks[stem].keys[number], [])
        user = self.area.path.rpartition("/")[2]
        key = self.tasks[stem].keys[number].hex()[:6]
        values.append(f'["{user}","{key}",{len(values)}]'.encode())
        return values[-1]

    def tell_cancelled(self, row: Row) -> None:
        """A client was told that a row will never run."""
        stem, number = row
        ended = self.outcomes.get(row)
        if number not in self.folds[stem].cancelled and not (
            ended and ended.status == Status.CANCELLED
        ):
            raise Violation(f"a client was told that {row} is cancelled, and its log is not")
        self.never.add(row)

    def offered(self, keys: Iterable[bytes]) -> set[bytes]:
        """What those who are trusted have of these keys, and will not lose to a gc."""
        wanted = set(keys)
        return {
            made.key
            for truth in self.neighbours
            if not truth.collected
            for made in truth.outcomes.values()
            if made.key in wanted and made.status == Status.DONE
        }

    def taken_over(self, keys: Iterable[bytes]) -> list[Row]:
        """A client was told that it has these values now: the rows in which they stand."""
        wanted = set(keys)
        found = {
            made.key: row
            for row, made in self.outcomes.items()
            if made.key in wanted and made.status == Status.DONE
        }
        if (missing := wanted - found.keys()) and not self.collected:
            raise Violation(f"{missing} were taken over, and are not there")
        return list(found.values())

    def acknowledge(self, rows: Iterable[Row]) -> None:
        """A durable publication returned: these outcomes must survive everything."""
        for row in rows:
            if row not in self.outcomes:
                raise Violation(f"the publication of {row} returned, but it is not there")
            self.outcomes[row].acknowledged = True

    def accept(self, stem: str) -> None:
        """The publication of a task file returned."""
        self.accepted[stem] = None

    def resolve(self, ticket: Any, key: bytes, status: int, text: bytes) -> None:
        """A future got its outcome."""
        first = self.wanted.get(ticket, 0)
        if ticket in self.resolved:
            raise Violation(f"{ticket} was resolved twice")
        matching = [
            made
            for made in (*self.outcomes.values(), *self.gone)
            if made.key == key
            and made.status == status
            and made.text == text
            and (made.round >= first or status == Status.DONE)
        ]
        if not matching:
            raise Violation(f"{ticket} was resolved with what nobody published: {text!r}")
        made_here = text in self.executions.get(key, ())
        if status == Status.DONE and not made_here and text not in self.adopted.get(key, ()):
            raise Violation(f"{ticket} was resolved with what no execution made: {text!r}")
        matching[0].acknowledged = True
        self.resolved[ticket] = (status, text)

    # -- power loss -------------------------------------------------------------------------------

    def power_loss(self) -> None:
        """Look at everything anew: what was promised must still be there."""
        before, accepted = self.outcomes, self.accepted
        self.outcomes, self.ended_keys, self.folds = {}, {}, {}
        self._read_tasks(accepted)
        self._read_streams()
        self._read_packs()
        for row, made in before.items():
            if made.acknowledged:
                self._check_survived(row, made)
        for row, made in self.outcomes.items():
            self._check_claim_survived(row, made)
        for stem, fold in self.folds.items():
            if fold.retired:
                self._check_ended(stem, fold)

    def _read_tasks(self, accepted: Iterable[str]) -> None:
        live = self.disk.directories[self.area.tasks].entries
        for name, node in live.items():
            stem = name.removesuffix(".h5")
            if not node.data:
                raise Violation(f"the power loss left task file {stem} empty")
            if self.area.log(stem) not in self.disk.directories and not self._archived(stem):
                raise Violation(f"the power loss left task file {stem} without its log")
            self._register(stem, node)
            self._read_log(stem)
        for stem in accepted:
            if f"{stem}.h5" not in live and not self._archived(stem):
                raise Violation(f"the power loss took the accepted task file {stem}")

    def _archived(self, stem: str) -> bool:
        if self.disk.find(self.area.archived(stem)) is not None:
            return True
        archive = self.disk.directories[self.area.archive].entries
        mark = stem.encode()
        return any(
            mark in node.data
            for name, node in archive.items()
            if parse_pack(name) is not None and isinstance(node.data, bytes)
        )

    def _read_log(self, stem: str) -> None:
        node = self.disk.directories.get(self.area.log(stem))
        if node is None:
            self.folds[stem].retired = True
            return
        fold = self.folds[stem] = _newest_checkpoint(node) or self.folds[stem]
        while (record := node.entries.get(f"{fold.next:08d}")) is not None:
            self._fold_again(fold, record)
        for row, state in enumerate(fold.state):
            if state == State.CLAIMED:
                owner = fold.agents[fold.owner[row]]
                self.owned.add((stem, row, owner, fold.generation[row]))

    def _fold_again(self, fold: Fold, node: Node) -> None:
        record = parse(node.data) if isinstance(node.data, str) else None
        if record and record.kind is Kind.RECOVER:
            agent = record.about.partition(" ")[0]
            self._check_sealed(agent, "after the power loss, rows are recovered")
        fold.apply(record)

    def _read_streams(self) -> None:
        for agent in self.disk.listing(self.area.results):
            for number, node in sorted(self._stream(agent).items()):
                if node.kind == FILE:
                    path = f"results/{agent}/{number:08d}.h5"
                    for row, made in _read_results(node, path).items():
                        made.agent = agent
                        self._note_again(row, made, path)

    def _read_packs(self) -> None:
        for name in self.disk.listing(self.area.packs):
            node = self.disk.find(f"{self.area.packs}/{name}")
            assert node is not None
            for row, made in _read_results(node, name).items():
                self._note_again(row, made, f"packs/{name}")

    def _note_again(self, row: Row, made: Published, path: str) -> None:
        known = self.outcomes.get(row)
        if known is None:
            self._note(row, made, path)
            return
        if not known.same(made):
            raise Violation(f"after the power loss, {row} has two outcomes")
        known.places.add(path)

    def _check_survived(self, row: Row, made: Published) -> None:
        found = self.outcomes.get(row)
        if found is None or not found.same(made):
            raise Violation(f"the power loss took the outcome of {row}, which was acknowledged")
        found.acknowledged = True
        found.agent = made.agent

    def _check_claim_survived(self, row: Row, made: Published) -> None:
        fold = self.folds.get(row[0])
        if fold is None or fold.retired or not made.agent:
            return
        if fold.state[row[1]] != State.CLAIMED or fold.generation[row[1]] != made.generation:
            raise Violation(f"the power loss kept the outcome of {row}, but took its claim")

    # -- the end ---------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Nothing goes on any more: every accepted row must have ended."""
        for text in self.unfinished():
            raise Violation(f"never ended: {text}")

    def unfinished(self) -> Iterator[str]:
        """The rows without an outcome, and why they have none."""
        for stem, fold in self.folds.items():
            for row, state in enumerate(fold.state):
                if (stem, row) in self.outcomes or fold.retired or state == State.ALIASED:
                    continue
                yield f"row {row} of {stem}: {State(state).name} {fold.owner_of(row) or ''}"


def _is_adopted(stem: str) -> bool:
    name = parse_stem(stem)
    return name is not None and name.environment == "adopted"


def _read_checkpoint(node: Node) -> Fold | None:
    try:
        with Container(Glass(node.data, ""), "", "checkpoint") as file:  # type: ignore[arg-type]
            return Fold.from_json(file.read("fold"))
    except FileDamaged:
        return None


def _newest_checkpoint(log: Node) -> Fold | None:
    for name in sorted(log.entries, reverse=True):
        if log.entries[name].kind == FILE:
            fold = _read_checkpoint(log.entries[name])
            if fold is not None:
                fold.next = int(name) + 1
                return fold
    return None


def _read_task(node: Node, stem: str) -> Task:
    try:
        file = TaskFile(Glass(node.data, stem), stem, stem)  # type: ignore[arg-type]
    except (FileDamaged, FileRefused) as error:
        raise Violation(f"a task file was linked that cannot be read: {stem}") from error
    rows = range(len(file.rows))
    name = parse_stem(stem)
    assert name is not None
    waiting = np.flatnonzero(file.rows["dependencies"]).tolist() if name.waiting else []
    needs = [
        [dependency.key for dependency, _ in file.dependencies(row)] if row in waiting else []
        for row in rows
    ]
    return Task(file.keys, needs, file.rows["round"].tolist(), waiting)


def _read_results(node: Node, path: str) -> dict[Row, Published]:
    assert isinstance(node.data, bytes)
    try:
        return {row: Published(*made) for row, *made in _outcomes(node.data)}
    except (FileDamaged, FileRefused) as error:
        raise Violation(f"a result file that cannot be read: {path}") from error


@lru_cache(1024)
def _outcomes(data: bytes) -> list[tuple[Row, bytes, int, bytes, int, int]]:
    """What stands in a result file: read when it comes, when it goes, and in between."""
    file = ResultFile(Glass(data, ""), "")  # type: ignore[arg-type]
    columns = (file.rows[name].tolist() for name in _COLUMNS)
    return [
        ((file.files[stem], row), key, status, file.value(index).data, generation, round_)
        for index, (key, stem, row, status, generation, round_) in enumerate(
            zip(file.keys, *columns, strict=True)
        )
    ]


_COLUMNS = ("file", "row", "status", "generation", "round")
