"""How much time an agent has left in its queue job.

        claims what fits        claims nothing, gives back      gives back all,
                                what has not started            and ends
start ------------------------> end - margin ----------------> end - LAST_MOMENT --> end
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from typing import IO

from fsbroker.agent.allocation import Allocation, seconds_of
from fsbroker.nodes import PATIENCE
from fsbroker.spool.presence import process_start

MARGIN = 30.0
"""Seconds before the job's end from which on an agent claims nothing."""
LAST_MOMENT = 5.0
"""Seconds before the job's end at which running tasks are given back: a turn of the loop,
one publish, and a clock of the scheduler that is a little ahead of ours."""


class Walltime:
    """The time that is left, from one reading of the job's end on a monotonic clock.

    Attributes:
        margin: seconds before the end from which on nothing is claimed; of a short job, half.
    """

    def __init__(self, allocation: Allocation, margin: float = MARGIN) -> None:
        self.margin = max(min(margin, allocation.seconds / 2), LAST_MOMENT)
        self._end = time.monotonic() + allocation.seconds
        self._lifeline = {pid: born for pid in allocation.lifeline if (born := process_start(pid))}
        self._question = allocation.ask
        self._give_up_at = time.monotonic() + PATIENCE
        self._asked: subprocess.Popen[bytes] | None = None

    def for_a_task(self) -> float:
        """Seconds that a task which starts now can have at most.

        None as long as the scheduler has not answered: who states no limit need not wait.
        """
        if self._question:
            return 0.0
        return self.until_last_moment()

    def until_last_moment(self) -> float:
        """Seconds until everything has to be given back."""
        return self.until_end() - LAST_MOMENT

    def until_end(self) -> float:
        """Seconds until the scheduler ends the job: the successor is submitted in the last."""
        return self._end - time.monotonic()

    def until_margin(self) -> float:
        """Seconds for which this agent still claims; 0 or less when it must not any more."""
        return self._end - self.margin - time.monotonic()

    def next_change(self) -> float:
        """Seconds until claiming, or everything, has to end; inf if nothing has to."""
        margin = self.until_margin()
        return margin if margin > 0 else max(0.0, self.until_last_moment())

    def is_orphan(self) -> bool:
        """The job's script, or slurmstepd above it, is gone: the job has ended without us.

        Where SLURM does not follow processes by cgroups, an agent that a script started is
        adopted by init when the script is killed, and is told nothing (measured: it lived
        on after ``scancel`` and after the time limit).
        """
        return any(process_start(pid) != born for pid, born in self._lifeline.items())

    # -- the scheduler's word --------------------------------------------------------------

    def ask(self) -> bool:
        """Start to ask the scheduler, if only it knows the end; True if an answer will come."""
        if self._question:
            with suppress(OSError):  # there is no such command here
                self._asked = subprocess.Popen(
                    self._question,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
        if self._asked is None:
            self._question = ()
        return self._asked is not None

    def has_no_answer(self) -> bool:
        """The scheduler was asked long ago."""
        return self._asked is not None and time.monotonic() > self._give_up_at

    def fileno(self) -> int:
        """Readable when the scheduler has answered."""
        return self._stdout().fileno()

    def hear(self) -> None:
        """Take the scheduler's answer. If it has none, we go on without."""
        with suppress(ValueError):
            left = seconds_of(os.read(self.fileno(), 4096).decode(errors="replace"))
            self._end = min(self._end, time.monotonic() + left)
        self.close()

    def close(self) -> None:
        """Ask no longer."""
        self._question = ()
        if self._asked is not None:
            self._asked.kill()
            self._asked.wait()
            self._stdout().close()
            self._asked = None

    def _stdout(self) -> IO[bytes]:
        assert self._asked is not None
        assert self._asked.stdout is not None
        return self._asked.stdout
