"""What has ended is put away: task files are retired and buried, results packed.

Any agent does it for all, now and then, when nothing else is to do.
"""

from __future__ import annotations

from contextlib import suppress

from fsbroker.agent.session.cancelling import Cancelling
from fsbroker.agent.session.holdings import Holdings
from fsbroker.agent.session.quarantine import Quarantine
from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool import archive, packs
from fsbroker.spool.live import LiveFile, bury, delete_log
from fsbroker.spool.log import CLAIMABLE, Kind, Retired, State

GRAVE_REST = 60.0
"""Seconds for which a log that was taken away stays whole: NFS clients find a directory
under its old name for 30 s, and would begin an empty log anew."""


class Tidying:
    """What one agent tidies up."""

    def __init__(self, holdings: Holdings, cancelling: Cancelling) -> None:
        self._holdings = holdings
        self._cancelling = cancelling
        self._quarantine = Quarantine(holdings)
        self._files, self._area, self._durable = holdings.spool
        self._graves: list[tuple[float, str]] = []

    def tidy(self) -> bool:
        """As `AgentSession.tidy`."""
        self._holdings.live.poll(afresh=True)
        self._holdings.results.poll()
        ended = self._retire()
        if ended:
            self._bury(ended)
        self._forget_buried()
        self._empty_graves()
        self._quarantine.put_aside()
        self._cancelling.sweep_requests()
        merged = packs.cycle(self._files, self._area) or archive.cycle(self._files, self._area)
        return merged or bool(ended)

    # -- task files ----------------------------------------------------------------------

    def _retire(self) -> list[LiveFile]:
        """Those that are to be buried."""
        ended = []
        for live in self._holdings.live:
            with suppress(FileDamaged, FileRefused):
                if self._retire_if_ended(live):
                    ended.append(live)
        return ended

    def _retire_if_ended(self, live: LiveFile) -> bool:
        """Append the last record; True if the file is to be buried (now, or still)."""
        try:
            live.log.refresh()
            self._cancelling.end_rows(live)
            if not self._has_ended(live):
                return False
            if live.log.fold.aliases and self._durable:
                # Claims were made durable with their outcomes. A power loss must not keep
                # `retire` and lose the alias that it rests on, either.
                self._files.sync_directory(live.log.path)
            return live.log.append(Kind.RETIRE, self._holdings.agent, ())
        except Retired:
            return True
        except FileNotFoundError:
            self._holdings.forget(live)
        return False

    def _has_ended(self, live: LiveFile) -> bool:
        """No row will change any more. Rows that wait or are ready are asked first: cheap."""
        fold = live.log.fold
        if any(state in fold.state for state in CLAIMABLE):
            return False
        ended = self._holdings.results.ended(live.stem, live.file.keys)
        return all(
            done or state == State.ALIASED for state, done in zip(fold.state, ended, strict=False)
        )

    def _bury(self, ended: list[LiveFile]) -> None:
        now = self._files.monotonic()
        graves = bury(self._files, self._area, [live.stem for live in ended])
        self._graves += [(now, grave) for grave in graves]
        for live in ended:
            self._holdings.forget(live)

    def _forget_buried(self) -> None:
        """Let go of task files in which this agent had rows, and that others have buried."""
        known = self._holdings
        for stem, live in list(known.claimed.items()):
            if known.live.get(stem) is None and not known.held.get(stem):
                with known.reading(live):
                    live.log.refresh()  # what is not buried was missed in a listing

    def _empty_graves(self) -> None:
        """Delete logs that no client can walk into any more (gc does it for other agents')."""
        now = self._files.monotonic()
        for buried, grave in list(self._graves):
            if now - buried > GRAVE_REST:
                self._graves.remove((buried, grave))
                with suppress(FileNotFoundError):
                    delete_log(self._files, grave)
