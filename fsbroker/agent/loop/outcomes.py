"""What has ended and is not known yet: outcomes between the workers and a result file.

One result file takes all that has ended while the one before was being written. What a task
wrote is kept beside its outcome, and told of in its error.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from fsbroker.agent.crew import bulk_of
from fsbroker.agent.failures import brief
from fsbroker.agent.loop.rhythm import Every
from fsbroker.agent.messages import Ended, Output, Returned
from fsbroker.agent.session import NOTHING, AgentSession
from fsbroker.errors import FileDamaged, FsbrokerError, SpoolError
from fsbroker.spool.live import LiveFile
from fsbroker.spool.streams import Bulk
from fsbroker.spool.taskfile import TaskFile
from fsbroker.task import Encoding, Outcome, Status, Value

GATHER = 0.01
"""Seconds between result files while more results are coming."""
TAIL = 2000
"""Bytes of stderr that an error shows."""


class Outcomes:
    """The outcomes of one agent that are not published.

    Attributes:
        gathering: when the next result file is due.
    """

    def __init__(self, session: AgentSession) -> None:
        self._session = session
        self._waiting: list[Outcome | Bulk] = []
        self.gathering = Every(GATHER)

    def is_empty(self) -> bool:
        return not self._waiting

    def publish(self) -> None:
        """Make them known; after an error they are kept, for the next time."""
        if self._waiting:
            self._session.publish(self._waiting)
            self._waiting = []
        self.gathering.done()

    # -- how rows end --------------------------------------------------------------------

    def returned(self, live: LiveFile, rows: Sequence[int], message: Returned) -> None:
        """Quick rows returned values."""
        self._waiting.append(bulk_of(live, rows, message))

    def ended(self, live: LiveFile, row: int, message: Ended) -> None:
        """One row returned or raised."""
        outputs = message.outputs or (Output(0, message.stdout, message.stderr),)
        told = self.keep(live, row, outputs)
        self._end(
            live,
            row,
            Status(message.status),
            message.value,
            None if message.error is None else message.error | told,
            started=message.started,
            wall=message.wall,
            cpu=message.cpu,
            peak_memory=message.peak_memory,
        )

    def cancel(self, live: LiveFile, row: int) -> None:
        self._end(live, row, Status.CANCELLED, NOTHING)

    def fail(self, live: LiveFile, row: int, error: dict[str, str]) -> None:
        self._end(live, row, Status.FAILED, NOTHING, error)

    def fail_all(self, live: LiveFile, rows: Iterable[int], reason: FsbrokerError) -> None:
        """Rows that cannot even be given to a worker end with the reason."""
        for row in rows:
            self.fail(live, row, brief(reason))

    def keep(self, live: LiveFile, row: int, outputs: Iterable[Output]) -> dict[str, str]:
        """Keep what the task wrote; what its error tells of that."""
        written = [one for one in outputs if one.stdout or one.stderr]
        told: dict[str, str] = {}
        if written:
            # Without space for them the outcome still counts, and its error has the tail.
            with suppress(OSError, SpoolError):
                told["log"] = self._session.publisher.write_logs(live, row, written)
            stderr = next((one.stderr for one in written if one.stderr), b"")
            told["tail"] = stderr[-TAIL:].decode(errors="replace")
        return told

    def _end(
        self,
        live: LiveFile,
        row: int,
        status: Status,
        value: Value,
        error: dict[str, str] | None = None,
        **measured: Any,
    ) -> None:
        outcome = self._session.holdings.outcome(live, row, status, value, error, **measured)
        self._waiting.append(outcome)
        if error is not None and live.file.meta.get("error_log_file"):
            _append_error(live.file.meta["error_log_file"], live.file, row, error)


def _append_error(path: str, tasks: TaskFile, row: int, error: dict[str, str]) -> None:
    """What ``error_log_file`` asks for; trouble with that file is not the task's."""
    with suppress(OSError, FileDamaged), open(path, "a", opener=_private) as file:
        encoding, data, _ = tasks.arguments(row)
        shown = data.decode() if encoding == Encoding.PLAIN else f"a pickle of {len(data)} bytes"
        heading = f"{tasks.function_name(row)}: {error['type']}: {error['message']}"
        file.write(f"{heading}\narguments: {shown[:TAIL]}\n{error['traceback']}\n")


def _private(path: str, flags: int) -> int:
    """For the user alone, whatever the umask: there are arguments in it."""
    return os.open(path, flags, 0o600)
