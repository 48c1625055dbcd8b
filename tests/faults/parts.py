"""Small pieces of a spool: task rows, outcomes, sessions; and files whose replies lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fsbroker.agent.session import AgentSession, without_workers
from fsbroker.client.deferral import Deferral
from fsbroker.client.session import ClientSession, Lane
from fsbroker.spool import presence
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Stem
from fsbroker.spool.neighbours import Neighbours
from fsbroker.spool.spool import Spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import Arguments, FunctionEntry, Limits, TaskRow
from fsbroker.spool.trust import Trusted
from fsbroker.task import Dependency, Encoding, Outcome, Status, Value

ENVIRONMENT = "cpython3"
LANE = Lane(5000, "c1", ENVIRONMENT, Limits(retries=2), (("tag", "parts"),))
FUNCTION = FunctionEntry(b"F" * 20, "parts.double", "def double(x): ...", b"\x80pickle")
NOTHING = Value(Encoding.PLAIN, b"null")


def key_of(name: object) -> bytes:
    return hashlib.blake2b(str(name).encode(), digest_size=20).digest()


def stem_of(name: object, rows: int = 4096) -> str:
    """The name of a task file that this one stands for."""
    token = hashlib.blake2b(str(name).encode(), digest_size=8).hexdigest()
    return str(Stem(5000, 1, token, "c1", ENVIRONMENT, rows, 0))


def row(name: object, *inputs: object, arguments: Value | None = None) -> TaskRow:
    key = key_of(name)
    wanted = tuple(Dependency(key_of(name)) for name in inputs)
    return TaskRow(key, key[::-1], Arguments(*(arguments or plain("[1]")), wanted), FUNCTION)


def plain(text: str) -> Value:
    return Value(Encoding.PLAIN, text.encode())


def outcome(stem: str, number: int, name: object, value: Value = NOTHING, **more: Any) -> Outcome:
    key = key_of(name)
    known = {"round": 0, "generation": 0, "attempt": 0, "ranks": 1, "status": Status.DONE, **more}
    return Outcome(stem=stem, row=number, key=key, descriptor=key[::-1], value=value, **known)


def client(spool: Spool) -> ClientSession[bytes]:
    """A client whose tickets are the keys themselves."""
    return ClientSession(spool, lambda ticket: ticket)


def submit(spool: Spool, rows: Sequence[TaskRow], lane: Lane = LANE) -> str:
    """Publish rows; the stem of their task file."""
    return client(spool).publish(lane, rows, [one.key for one in rows])


def agent(
    spool: Spool,
    lease: float = 30.0,
    described: dict[str, Any] | None = None,
    environment: str = ENVIRONMENT,
) -> AgentSession:
    """An agent that has joined. Without ``described`` nobody can ask for its process."""
    session = AgentSession(spool, environment, {"host": "here"}, described or {}, lease)
    session.join()
    return session


def want(count: int) -> Callable[..., int]:
    return lambda live, ready: min(count, len(ready)) if live.file.rows.size else 0


def run_claim(session: AgentSession, claim) -> list[Outcome]:
    """The outcomes that workers would give for a claim: each row's value is its number."""
    return [
        session.holdings.outcome(claim.live, number, Status.DONE, plain(f"{number}"))
        for first, end in claim.rows
        for number in range(first, end)
    ]


def news(results, *, deep: bool = False) -> list[ResultFile]:
    """What a poll finds."""
    results.poll(deep=deep)
    return list(results.news())


def found_in(results) -> dict[bytes, tuple[int, bytes]]:
    """Status and value of every outcome that a fresh look finds, by key; each only once."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for file in news(results, deep=True):
        for index, key in enumerate(file.keys):
            one = file.outcome(index)
            assert found.setdefault(key, (one.status, one.value.data)) == (
                one.status,
                one.value.data,
            )
    return found


class Everybody(Deferral):
    """Others compute everything, so that all is put off; until they are gone."""

    gone = False

    def __init__(self, spool: Spool) -> None:
        nobody = Neighbours(spool, Trusted([]))
        super().__init__(nobody, lambda: without_workers(spool, presence.CLIENT))

    def pending(self, keys: Iterable[bytes]) -> dict[bytes, str]:
        return {} if self.gone else dict.fromkeys(keys, "everybody")


class LyingFiles(Files):
    """The real file system, with replies of one's choice.

    ``replies`` maps a call's name to exceptions, one for each of its next calls:
    ``before`` ones are raised instead of the call, ``after`` ones in spite of it.
    """

    def __init__(self, real: Files) -> None:
        super().__init__(real.root, real.lock_class)
        self.before: dict[str, list[Exception | None]] = {}
        self.after: dict[str, list[Exception | None]] = {}
        self.calls: list[tuple[str, str]] = []
        for name in ("write_new", "link", "symlink", "rename", "unlink", "sync_directory"):
            setattr(self, name, self._lying(name, getattr(self, name)))

    def _lying(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args[-1] if name in ("link", "symlink") else args[0]))
            self._raise(self.before, name)
            found = real(*args, **kwargs)
            self._raise(self.after, name)
            return found

        return call

    @staticmethod
    def _raise(replies: dict[str, list[Exception | None]], name: str) -> None:
        if replies.get(name):
            error = replies[name].pop(0)
            if error is not None:
                raise error


def lying(spool: Spool) -> tuple[LyingFiles, Spool]:
    files = LyingFiles(spool.files)
    return files, spool._replace(files=files)
