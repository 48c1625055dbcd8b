"""What others see of an agent: its presence, and the stream of its result files.

An outcome is published once. After an error nobody knows whether a result file is there or
may come yet, so what it held is kept until that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from fsbroker.agent.session.holdings import Holdings, Row
from fsbroker.errors import SpoolError
from fsbroker.spool import presence, streams
from fsbroker.spool.container import Image
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Log, rows_of
from fsbroker.spool.streams import Bulk, Sealed, Stream
from fsbroker.task import Outcome


class Publisher:
    """The presence and the stream of one agent.

    Attributes:
        beat_done: the last beat succeeded.

    Args:
        origin: what its result files say of where they come from.
        described: what its presence file says (`presence.describe`).
    """

    def __init__(
        self, holdings: Holdings, origin: Mapping[str, Any], described: dict[str, Any]
    ) -> None:
        self._holdings = holdings
        self._files, self._area, self._durable = holdings.spool
        self._origin = {**origin, "agent": holdings.agent}
        self._stream = Stream(self._files, self._area, holdings.agent)
        self._presence = presence.Self(self._files, self._area, holdings.agent, described)
        self._unsure: Sequence[Outcome | Bulk] = ()
        self._own: list[Outcome] = []
        self.beat_done = True

    def open(self) -> None:
        """Be ready to publish, and be seen."""
        self._stream.create()
        self._presence.appear()

    def beat(self) -> None:
        """Say that this agent lives, and how much it has published.

        Raises:
            Sealed: it was taken for dead.
        """
        self.beat_done = False
        if not self._presence.beat(self._stream.next):
            self._check_sealed()
            self._presence.appear()
        self.beat_done = True

    def _check_sealed(self) -> None:
        if streams.is_sealed(self._files, self._area, self._holdings.agent):
            raise Sealed(self._holdings.agent)

    def vanish(self) -> None:
        """Be seen no longer."""
        self._presence.vanish()

    def close(self) -> None:
        """Nothing more will come."""
        self._stream.close()
        self.vanish()

    # -- outcomes ------------------------------------------------------------------------

    def publish(self, outcomes: Sequence[Outcome | Bulk]) -> None:
        """Make outcomes of held rows known, for ever.

        Raises:
            Sealed: this agent was taken for dead; its outcomes are void.
        """
        if self._stream.settle(durable=self._durable):
            self._holdings.note_published(_rows(self._unsure))
            self._holdings.note_settled(map(_first_row, self._unsure))
        outcomes = [one for one in outcomes if not self._holdings.was_published(_first_row(one))]
        if not outcomes:
            return
        self._unsure = outcomes
        made = streams.build(self._files.token(), outcomes, self._origin)
        # A power loss must not keep an outcome and lose the claim of its row (rule 2).
        claimed = self._holdings.claimed
        logs = [claimed[stem].log for stem in {one.stem for one in outcomes} if stem in claimed]
        logs = [log for log in logs if log.unsynced]
        self._publish_behind(made, logs)
        for log in logs:
            log.unsynced = False
        self._holdings.note_published(_rows(outcomes))
        with suppress(OSError, SpoolError):
            self.beat()  # the outcomes are out; the next beat tells of them, too

    def _publish_behind(self, made: Image, logs: Sequence[Log]) -> None:
        """Publish when these logs are durable, or gone."""
        paths = [log.path for log in logs]
        while True:
            try:
                self._stream.publish(made, durable=self._durable, first=paths)
                return
            except FileNotFoundError:
                self._check_sealed()  # others have ended a task file, and so its log
                left = [path for path in paths if self._is_there(path)]
                if left == paths:
                    raise
                paths = left  # a purge took one; the outcomes are worth as much without it

    def _is_there(self, path: str) -> bool:
        try:
            self._files.names(path)
        except FileNotFoundError:
            return False
        return True

    def doubtful(self) -> set[Row]:
        """Rows that may be published, or may be yet."""
        return set(_rows(self._unsure)) if self._stream.is_unsure else set()

    def end(self, live: LiveFile, made: Mapping[int, Outcome]) -> bool:
        """End rows that no worker runs: claimed and published like any other."""
        claim = self._holdings.own(live, made)
        if claim is not None:
            self.publish_own([made[row] for row in rows_of(claim.rows)])
        return claim is not None

    def publish_own(self, outcomes: Sequence[Outcome] = ()) -> None:
        """Outcomes that no worker made: kept until they could be published."""
        self._own += outcomes
        if self._own:
            self.publish(self._own)
            self._own = []

    # -- logs of tasks -------------------------------------------------------------------

    def write_logs(
        self, live: LiveFile, row: int, outputs: Iterable[tuple[int, bytes, bytes]]
    ) -> str:
        """Keep what the ranks of a row wrote (rank, stdout, stderr); the directory."""
        key, agent = live.file.key(row), self._holdings.agent
        directory = self._area.task_logs(key, agent, live.log.fold.generation[row])
        self._files.mkdir(directory.rpartition("/")[0])
        try:
            self._files.mkdir(directory)
        except FileNotFoundError:  # gc found the parent empty in this moment
            self._files.mkdir(directory.rpartition("/")[0])
            self._files.mkdir(directory)
        for rank, stdout, stderr in outputs:
            for name, content in (("out", stdout), ("err", stderr)):
                with suppress(FileExistsError):
                    self._files.write_new(f"{directory}/{rank}.{name}", [content], sync=False)
        return f"{self._files.root}/{directory}"


def _first_row(outcome: Outcome | Bulk) -> Row:
    return next(_rows([outcome]))


def _rows(outcomes: Iterable[Outcome | Bulk]) -> Iterator[Row]:
    for outcome in outcomes:
        if isinstance(outcome, Bulk):
            for row in range(outcome.first, outcome.first + len(outcome.texts)):
                yield outcome.stem, row
        else:
            yield outcome.stem, outcome.row
