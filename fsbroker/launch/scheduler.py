"""What fsbroker wants of a scheduler: three verbs, and why a job ended.

    Request --submit--> id      active(ids) -> states      cancel(ids)      ending(id)

`slurm.py` and `flux.py` speak to the site's schedulers, `local.py` to this machine. All of
their commands run here, with a limit of time, and with what they wrote kept for the error.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from fsbroker.errors import MissingProgram, SchedulerError
from fsbroker.needs import USUAL_PRIORITY
from fsbroker.spool.jobs import Cause

PATIENCE = 30.0
"""Seconds for one command: a controller that is down lets its clients wait for ten."""
SHOWN = 600
"""Characters of what a command wrote that an error shows."""


@dataclass(frozen=True)
class Request:
    """A queue job to be submitted.

    Attributes:
        name: at most 15 characters: more are cut off by squeue.
        comment: what runs there, with the token of the job (`spool.jobs`).
        directory: where script and output lie; it exists, and the nodes see it.
        command: the agent, as an argument list.
        ranks, threads: of its cores: so many tasks of so many CPUs.
        nodes: 0 if the scheduler may choose. memory: MB of all, 0 if not stated.
        gpus: of all. exclusive: nobody else on its nodes.
        seconds: time limit; 0 for the site's.
        after: jobs that must have ended before it starts.
        setup: shell lines before the agent.
        queue: keys for the site: partition, account, ..., and those of its own template.
        arguments: more arguments of the submit command.
        priority: of its one task.
        directory_on_nodes: where the nodes have that directory, if it is elsewhere there.
    """

    name: str
    comment: str
    directory: str
    command: tuple[str, ...]
    ranks: int = 1
    threads: int = 1
    nodes: int = 0
    memory: int = 0
    gpus: int = 0
    exclusive: bool = False
    seconds: float = 0.0
    after: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    queue: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    priority: int = USUAL_PRIORITY
    directory_on_nodes: str = ""

    @property
    def shell(self) -> str:
        """The last line of the job script: the agent takes the shell's place, for its signals."""
        return "exec " + shlex.join(self.command)


class Status(NamedTuple):
    """A job that the scheduler knows.

    Attributes:
        state: "pending", "running" or "over".
        word: the scheduler's own name for it.
        reason: why it waits, or how it ended; "" if nothing is said.
        comment: as it was submitted with.
        stuck: it waits for what will never come, though nobody holds it by hand.
    """

    state: str
    word: str
    reason: str = ""
    comment: str = ""
    stuck: bool = False


class Ending(NamedTuple):
    """How a job ended, in the scheduler's words, who says so, and what that means."""

    word: str
    reason: str
    source: str
    cause: Cause = Cause.UNKNOWN


class Scheduler(Protocol):
    """The scheduler of a site.

    Attributes:
        launcher: of MPI ranks in its jobs: a row of `agent.launchers.TABLE`.
        out_of_memory: what the output of a job has that was ended for its memory; None if
            the scheduler writes no such thing.
    """

    name: str
    launcher: str
    out_of_memory: re.Pattern[str] | None

    def site_keys(self) -> frozenset[str]:
        """Keys of calls' resources that the site's job template knows beyond ours."""

    def script(self, request: Request) -> str:
        """The job script that `submit` would submit.

        Raises:
            ResourceError: the site's template cannot be filled in, or a limit is broken.
        """

    def submit(self, request: Request) -> str:
        """Submit a job; its id.

        Raises:
            ResourceError: it was refused for what it asks for.
            SchedulerError: it may have been submitted or not.
            MissingProgram: there is no such scheduler here.
        """

    def active(self, ids: Collection[str] | None = None) -> dict[str, Status]:
        """The jobs of this user that the scheduler tells of, in one query.

        Args:
            ids: those that are asked for: what is missing then is not known any more. All
                when left out.

        Raises:
            SchedulerError: nothing is known.
        """

    def cancel(self, ids: Collection[str]) -> None:
        """End jobs; those that are over already are no error.

        Raises:
            SchedulerError: it is not known whether they will end.
        """

    def ending(self, job: str) -> Ending | None:
        """How a job ended; None if the scheduler does not know it any more.

        Raises:
            SchedulerError: that is not known, or it has not ended: a listing without it was wrong.
        """


def run(argv: Sequence[str], *, directory: str | None = None) -> str:
    """What a command of the scheduler prints.

    Raises:
        MissingProgram: it is not installed.
        SchedulerError: it failed, or gave no answer in time.
    """
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            cwd=directory,
            env=_own_variables(),
        )
    except FileNotFoundError as error:
        raise MissingProgram(
            "A command of the scheduler is not installed here",
            argv[0],
            "Submit from a login node, or load the site's module for it.",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(f"No answer within {PATIENCE:g} s", argv[0]) from error
    except OSError as error:
        raise SchedulerError(f"It cannot be run ({error.strerror})", argv[0]) from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
        what = f"It ended with {done.returncode} and said: {said[-SHOWN:] or 'nothing'}"
        raise SchedulerError(what, shlex.join(argv[:2]))
    return done.stdout.decode(errors="replace")


def id_in(said: str, form: str) -> str:
    """The job id that a submit command printed, on a line of its own.

    Args:
        said: what it printed; wrappers of a site may greet before or after.
        form: regular expression of the line, whose first group is the id.

    Raises:
        SchedulerError: there is none.
    """
    for line in reversed(said.splitlines()):
        if found := re.fullmatch(form, line.strip()):
            return found[1]
    raise SchedulerError(
        f"A job was submitted without an id; it said: {said[-SHOWN:] or 'nothing'}"
    )


_DEFAULTS = ("SBATCH_", "SQUEUE_", "SCANCEL_", "SACCT_")


def _own_variables() -> dict[str, str]:
    """Without the defaults that users have for their own commands: they would hide jobs.

    Flux writes its ids with a letter that not every locale has, unless it is told not to.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DEFAULTS)}
    return {**kept, "FLUX_F58_FORCE_ASCII": "1"}
