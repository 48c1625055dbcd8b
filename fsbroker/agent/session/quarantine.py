"""Files that cannot be read are put aside, so that nobody stumbles over them again."""

from __future__ import annotations

from contextlib import suppress

from fsbroker.agent.session.holdings import Holdings
from fsbroker.errors import FormatTooNew, SignatureRefused
from fsbroker.spool.log import Kind


class Quarantine:
    """What one agent puts aside.

    Of its own rows an agent knows that they were published, so it reopens those whose
    outcomes went with a file; therefore nobody else puts aside what an agent that is present
    has published. Rows of agents that have ended are reopened by recovery, like all without an
    outcome.
    """

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._files, self._area, _ = holdings.spool

    def put_aside(self) -> None:
        """Put aside what cannot be read; rows whose outcomes went with it run again."""
        holdings, results = self._holdings, self._holdings.results
        own = self._area.stream(holdings.agent) + "/"
        if any(path.startswith(own) for path in results.damaged):
            for stem, rows in list(holdings.published.items()):
                self._reopen_lost(stem, rows)
        unreadable = holdings.live.unreadable.items()
        damaged = {self._area.task_file(stem): error for stem, error in unreadable}
        for path, error in {**damaged, **results.damaged}.items():
            # For others to read: a newer fsbroker, or who finds that `sign` was set too early.
            if isinstance(error, FormatTooNew | SignatureRefused) or self._is_of_another(path):
                continue
            if not self._is_top(path):
                with suppress(FileNotFoundError):
                    self._files.rename(path, self._area.quarantined(path, self._files.token()))

    def _is_of_another(self, path: str) -> bool:
        """In the stream of another agent, which is present."""
        me, present = self._holdings.agent, self._holdings.results.present()
        others = [self._area.stream(one.agent) + "/" for one in present if one.agent != me]
        return path.startswith(tuple(others))

    def _is_top(self, path: str) -> bool:
        """The highest file of a stream: it tells the next number, and stays."""
        directory, _, name = path.rpartition("/")
        return directory.startswith(self._area.results) and name == max(
            self._files.names(directory), default=""
        )

    def _reopen_lost(self, stem: str, rows: set[int]) -> None:
        live = self._holdings.live.get(stem)
        if live is None:
            return
        fold, ended = live.log.fold, self._holdings.results.ended(stem, live.file.keys)
        for row in [row for row in rows if not ended[row]]:
            about = f"{fold.generation[row]} its result file was damaged"
            self._holdings.append_all(live, Kind.LOST, [row], about)
            rows.discard(row)
