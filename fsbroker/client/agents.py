"""That agents run for what waits; where none can, its futures are told why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from fsbroker.client.session import ClientSession
from fsbroker.client.trouble import Patience, told
from fsbroker.client.waiting import Waiting
from fsbroker.errors import FsbrokerError, SpoolError
from fsbroker.future import Future
from fsbroker.needs import Allowance
from fsbroker.spool.spool import Spool


class Agents(Protocol):
    """Who sees to it that agents run (`fsbroker.launch`)."""

    def resize(self, allowed: Allowance) -> None:
        """Have the agents use more, or less, from now on."""

    def release(self) -> None:
        """The client has ended: let go of agents that live no longer than it does."""

    def ensure(
        self, session: ClientSession[Any], shapes: Iterable[str]
    ) -> Mapping[str, FsbrokerError]:
        """Start agents if none can run these shapes; what is wrong if they cannot start.

        Returns:
            The error of each row, "<stem>.<row>", that no agent will run; "" for all rows.

        Raises:
            OSError, SpoolError: file calls fail, which may pass.
        """


class Staffing:
    """Has agents for the futures that wait.

    Args:
        agents: None if somebody else starts them.
    """

    def __init__(
        self,
        spool: Spool,
        session: ClientSession[Future],
        waiting: Waiting,
        agents: Agents | None,
    ) -> None:
        self._files = spool.files
        self._session = session
        self._waiting = waiting
        self._agents = agents
        self._patience = Patience()

    def ensure(self) -> None:
        """Start agents where there are none; fail the futures of tasks that none will run."""
        if self._agents is None or not self._waiting.firsts:
            return
        wrong: Mapping[str, Exception] = {}
        try:
            wrong = self._agents.ensure(self._session, self._waiting.shapes)
        except (OSError, SpoolError) as error:
            # What is read may be there still, so this is no trouble of the turn.
            if self._patience.is_over(self._files.monotonic()):
                wrong = {"": error}
                self._patience.renew()
        else:
            self._patience.renew()
        if wrong:
            self._tell(wrong)

    def _tell(self, wrong: Mapping[str, Exception]) -> None:
        for future in list(self._waiting.firsts.values()):
            error = wrong.get(f"{future.stem}.{future.row}") or wrong.get("")
            if error is not None:
                self._waiting.fail([future], told(error, self._files.root))
