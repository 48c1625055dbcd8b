"""Why a task is in the state it is in, and what has to happen next: from the files alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsbroker import cli
from fsbroker.cli import agents, choice
from fsbroker.cli.output import age, moment, plain, print_json, size, span
from fsbroker.client.history import ENDED, History, Phase, Row, outputs_of, records_of
from fsbroker.needs import Shape, parse_shape
from fsbroker.spool.log import Kind, Record
from fsbroker.spool.spool import Spool, open_spool

MOST_BLOCKERS = 10
"""Tasks that are shown of those that all others wait for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    choice.add_key(parser)


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    history = History(spool)
    told = Explanation(spool, history).of(choice.find(history, options.key))
    print_json(told) if options.json else _print(told)
    return cli.OK


class Blocker(NamedTuple):
    """A task without a value that others wait for.

    Attributes:
        row: None if the spool has no task with this key.
        depth: how many dependencies lie between it and the one that was asked about.
    """

    key: bytes
    row: Row | None
    depth: int

    @property
    def state(self) -> str:
        return self.row.phase.value if self.row is not None else "missing"


class Explanation:
    """Explains the tasks of one history."""

    def __init__(self, spool: Spool, history: History) -> None:
        self._spool = spool
        self._history = history
        self._agents = agents.present(spool)

    def of(self, row: Row) -> dict[str, Any]:
        tasks, number = row
        record = tasks.record(number)
        ending = tasks.ending(number)
        return {
            **record.as_json(),
            "next": self.next(row),
            "task_file": tasks.path,
            "user": tasks.meta.get("user", ""),
            "submitted_from": tasks.meta.get("host", ""),
            "priority": tasks.name.priority,
            "environment": tasks.name.environment,
            "resources": _resources(row),
            "dependencies": [self._dependency(key) for key in tasks.dependencies(number)],
            "blockers": [self._blocker(one) for one in self.blockers(row)],
            "history": self._log(row),
            "result": f"{ending.path} row {ending.place}" if ending else "",
            "failure": ending.error if ending else None,
            "outputs": [self._absolute(path) for path in outputs_of(self._spool, row.key).values()],
            "other_rows": [self._other(one) for one in self._history.rows(row.key)[:-1]],
        }

    def _absolute(self, path: str) -> str:
        return f"{self._spool.files.root}/{path}"

    def _other(self, row: Row) -> dict[str, Any]:
        record = row.tasks.record(row.number)
        return {"round": row.round, "state": record.state, "error": record.error}

    # -- what it waits for ---------------------------------------------------------------

    def _dependency(self, key: bytes) -> dict[str, Any]:
        return self._blocker(Blocker(key, self._history.find(key), 0))

    def _blocker(self, one: Blocker) -> dict[str, Any]:
        state = one.state
        if one.row is None and self._history.orphan(one.key.hex()) is not None:
            state = "done"  # its task file was removed, its outcome was not
        function = one.row.tasks.function(one.row.number) if one.row is not None else ""
        return {"key": one.key.hex(), "function": function, "state": state, "depth": one.depth}

    def blockers(self, row: Row) -> list[Blocker]:
        """The tasks that have no value and wait for no other: where the waiting begins."""
        return [one for one in self._unfinished(row) if not self._waits(one)]

    def _waits(self, one: Blocker) -> bool:
        """It waits for others, which are among the unfinished as well."""
        return one.row is not None and one.row.phase is Phase.WAITING and self._open(one.row) != []

    def _open(self, row: Row) -> list[tuple[bytes, Row | None]]:
        """The dependencies of a row that have no value."""
        found = []
        for key in row.tasks.dependencies(row.number):
            other = self._history.find(key)
            if other is None and self._history.orphan(key.hex()) is not None:
                continue
            if other is None or other.phase is not Phase.DONE:
                found.append((key, other))
        return found

    def _unfinished(self, row: Row) -> Iterator[Blocker]:
        """Everything without a value that a row depends on, the nearest first, each once."""
        seen = {row.key}
        level, depth = [row], 1
        while level:
            following = []
            for key, other in [one for waiting in level for one in self._open(waiting)]:
                if key not in seen:
                    seen.add(key)
                    yield Blocker(key, other, depth)
                    if other is not None and other.phase is Phase.WAITING:
                        following.append(other)
            level, depth = following, depth + 1

    # -- what happened -------------------------------------------------------------------

    def _log(self, row: Row) -> list[dict[str, Any]]:
        records = records_of(self._spool, row.tasks.stem, row.number)
        return [
            {"what": record.kind.value, "by": record.by, "text": self._told(record, row)}
            for record in records
        ]

    def _told(self, record: Record, row: Row) -> str:
        """One record in words."""
        who = agents.named(self._agents, record.by)
        rest = record.about.partition(" ")[2]
        taken = "put off" if record.by == row.tasks.meta.get("put_off") else "claimed"
        cost = ", which cost an attempt" if record.about.startswith("charge") else ""
        return {
            Kind.CLAIM: f"{taken} by {who}",
            Kind.RELEASE: f"given back by {who}{cost}{f': {rest}' if rest else ''}",
            Kind.RECOVER: f"taken back by {who}: {rest.partition(' ')[2]}",
            Kind.READY: "all dependencies have values",
            Kind.CANCEL: "cancelled before it was claimed",
            Kind.ALIAS: f"left to another row of the same key ({record.about})",
            Kind.LOST: f"to be run again, its outcome cannot be read: {rest}",
        }.get(record.kind, record.kind.value)

    # -- what has to happen --------------------------------------------------------------

    def next(self, row: Row) -> str:
        """What has to happen for the task to go on; for one that has ended, what can be done."""
        return {
            Phase.WAITING: self._next_waiting,
            Phase.PUT_OFF: self._next_put_off,
            Phase.READY: self._next_ready,
            Phase.RUNNING: self._next_running,
            Phase.DONE: self._next_done,
            Phase.FAILED: self._next_failed,
            Phase.CANCELLED: self._next_cancelled,
            Phase.ALIASED: self._next_aliased,
            Phase.REMOVED: self._next_removed,
        }[row.phase](row)

    def _next_waiting(self, row: Row) -> str:
        missing = self._open(row)
        if not missing:
            who = "an agent has to notice it" if self._agents else self._no_agent(row)
            return f"all its dependencies have values; {who}"
        parts = [self._state_of(one) for one in self.blockers(row)[:MOST_BLOCKERS]]
        many = "dependency" if len(missing) == 1 else "dependencies"
        text = f"waits for {len(missing)} {many}; to happen first: {'; '.join(parts)}"
        return text if self._able(row) else f"{text}; {self._no_agent(row)}"

    def _state_of(self, one: Blocker) -> str:
        key = one.key.hex()[:12]
        if one.row is None:
            return f"{key} is not in the spool, so this task will fail"
        name = f"{key} ({one.row.tasks.function(one.row.number)})"
        fold = one.row.tasks.fold
        if one.row.phase is Phase.RUNNING and fold is not None:
            owner = fold.owner_of(one.row.number) or ""
            return f"{name} is claimed by {agents.named(self._agents, owner)}"
        if one.row.phase in ENDED:
            return f"{name} is {one.row.phase.value}, so this task will fail"
        return f"{name} is {one.row.phase.value}"

    def _next_put_off(self, row: Row) -> str:
        user, fold = row.tasks.meta.get("put_off_for") or "another user", row.tasks.fold
        owner = (fold.owner_of(row.number) if fold is not None else None) or ""
        since = age(row.tasks.name.born / 1e9)
        text = f"{user} was computing it {since} ago: that value is taken over, or it runs here"
        if any(seen.agent == owner and seen.life != agents.DEAD for seen in self._agents):
            return f"{text}, as {agents.named(self._agents, owner)} finds out"
        return f"{text}; its client is gone, so the next agent runs it; start one if none is there"

    def _next_ready(self, row: Row) -> str:
        able = self._able(row)
        if not able:
            return f"may be claimed at any time, but {self._no_agent(row)}"
        before = self._ready_before(row)
        queue = f"{before} ready tasks stand before it" if before else "it is the next one"
        return f"waits for a free worker of {', '.join(map(str, able))}; {queue}"

    def _able(self, row: Row) -> list[agents.Seen]:
        return [seen for seen in self._agents if seen.can_run(row.tasks.name)]

    def _no_agent(self, row: Row) -> str:
        what = "no agent that is present can run it" if self._agents else "no agent is present"
        shape = parse_shape(row.tasks.name.shape) or Shape()
        cores, python = shape.cores * shape.threads, row.tasks.name.environment
        command = f"fsbroker agent --spool {self._spool.files.root} --cores {cores}"
        return f"{what}: start one ({command}) with an interpreter {python}"

    def _ready_before(self, row: Row) -> int:
        """Ready rows that agents take first."""
        ready = 0
        for tasks in self._history.tasks.values():
            if tasks.fold is not None and tasks.stem <= row.tasks.stem:
                own = tasks.stem == row.tasks.stem
                ready += sum(
                    1
                    for number in range(row.number if own else len(tasks.rows))
                    if tasks.phase(number) is Phase.READY
                )
        return ready

    def _next_running(self, row: Row) -> str:
        fold = row.tasks.fold
        owner = (fold.owner_of(row.number) if fold is not None else None) or ""
        who = agents.named(self._agents, owner)
        if any(seen.agent == owner and seen.life != agents.DEAD for seen in self._agents):
            return f"runs, or is about to, in {who}; nothing has to happen"
        return f"held by {who}: the next agent takes it over; start one if none is there"

    def _next_done(self, _: Row) -> str:
        return "has a value; nothing has to happen"

    def _next_failed(self, row: Row) -> str:
        text = f"has failed; 'fsbroker retry {row.key.hex()[:12]}' tries it anew"
        roots = [
            one
            for key in row.tasks.dependencies(row.number)
            if (one := self._history.find(key)) is not None and one.phase is not Phase.DONE
        ]
        names = [f"{one.key.hex()[:12]} ({one.phase.value})" for one in roots]
        return f"{text}, with what it depends on: {', '.join(names)}" if names else text

    def _next_cancelled(self, row: Row) -> str:
        again = f"'fsbroker retry {row.key.hex()[:12]}' has it run after all"
        if row.tasks.ending(row.number) is not None:
            return f"was cancelled; {again}"
        return f"was cancelled, the next agent tells those who wait for it; {again}"

    def _next_aliased(self, row: Row) -> str:
        fold = row.tasks.fold
        stem, other = fold.aliases[row.number] if fold is not None else ("?", 0)
        return f"row {other} of {stem} has the same key and runs in its place"

    def _next_removed(self, _: Row) -> str:
        return "has ended; its result was removed. Submit it again, or retry it, to have it anew"


def _resources(row: Row) -> dict[str, Any]:
    shape = parse_shape(row.tasks.name.shape) or Shape()
    entry = row.tasks.rows[row.number]
    return {
        **shape._asdict(),
        "time_limit": float(entry["time_limit"]),
        "retries": int(entry["retries"]),
    }


# -- for people --------------------------------------------------------------------------


def _print(told: dict[str, Any]) -> None:
    again = f", tried anew {told['round']} times" if told["round"] else ""
    print(f"{told['key']}\n  {plain(told['function'])}: {told['state']}{again}")
    print(f"  {plain(told['next'])}\n")
    for name, text in _facts(told):
        print(f"{name:<13} {plain(text)}")
    _print_list("dependencies", [_one(each) for each in told["dependencies"]])
    _print_list("what happened", [each["text"] for each in told["history"]])
    _print_list("other rows of this key", [_other(each) for each in told["other_rows"]])
    _print_failure(told["failure"])


def _facts(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "submitted",
        (
            f"{moment(told['submitted'])} ({age(told['submitted'])} ago)"
            f" by {told['user']} on {told['submitted_from']}"
        ),
    )
    wishes = {name: value for name, value in told["resources"].items() if value}
    yield "resources", ", ".join(f"{name} {value:g}" for name, value in wishes.items())
    yield "priority", str(told["priority"])
    if told["tag"]:
        yield "tag", told["tag"]
    if told["started"] is not None:
        yield (
            "ran",
            (
                f"{moment(told['started'])}, {span(told['wall'])}, CPU {span(told['cpu'])},"
                f" {size(told['peak_memory'] or 0)}"
            ),
        )
    if told["agent"]:
        yield "agent", f"{told['agent']}{' on ' + told['host'] if told['host'] else ''}"
    yield "attempts", f"{told['attempts']} charged, taken over {told['generation']} times"
    if told["result"]:
        yield "result", told["result"]
    yield "task file", f"{told['task_file']} row {told['row']}"
    for path in told["outputs"]:
        yield "output", path


def _one(each: dict[str, Any]) -> str:
    return f"{each['key'][:12]}  {each['state']:<9}  {each['function']}"


def _other(each: dict[str, Any]) -> str:
    error = f"  {each['error']}" if each["error"] else ""
    return f"round {each['round']}: {each['state']}{error}"


def _print_list(title: str, lines: list[str]) -> None:
    if lines:
        print(f"\n{title}")
        for line in lines:
            print(f"  {plain(line)}")


def _print_failure(failure: dict[str, str] | None) -> None:
    if failure is None:
        return
    print(f"\n{plain(failure.get('type', ''))}: {plain(failure.get('message', ''))}")
    for name in ("traceback", "tail"):
        if failure.get(name):
            print("last lines of stderr:" if name == "tail" else "", end="\n" * (name == "tail"))
            for line in failure[name].rstrip().splitlines():
                print(f"  {plain(line)}".rstrip())
