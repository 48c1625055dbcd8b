"""SLURM: sbatch through pysqa; squeue, scontrol, sacct and scancel by themselves.

What each of them says and leaves out was measured with SLURM 22.05 (deploy/slurm).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence

from fsbroker.errors import MissingProgram, ResourceError, SchedulerError
from fsbroker.launch.scheduler import Ending, Request, Status, run
from fsbroker.launch.script import Pysqa
from fsbroker.spool.jobs import Cause

# Of options that stand twice sbatch takes the last: users' arguments may overrule ours, but
# the comment has the token by which a job is found whose submission gave no answer.
TEMPLATE = """\
#!/bin/bash
#SBATCH --job-name={{job_name}}
#SBATCH --chdir={{directory}}
#SBATCH --output={{directory}}/output
#SBATCH --open-mode=append
#SBATCH --ntasks={{ranks}}
#SBATCH --cpus-per-task={{threads}}
{%- if nodes %}
#SBATCH --nodes={{nodes}}
{%- endif %}
{%- if exclusive %}
#SBATCH --exclusive
{%- endif %}
{%- if memory and nodes %}
#SBATCH --mem={{ (memory / nodes) | round(0, "ceil") | int }}M
{%- elif memory %}
#SBATCH --mem-per-cpu={{ (memory / cores) | round(0, "ceil") | int }}M
{%- endif %}
{%- if gpus %}
#SBATCH --gpus={{gpus}}
{%- endif %}
{%- if time %}
#SBATCH --time={{time}}
{%- endif %}
{%- if nice %}
#SBATCH --nice={{nice}}
{%- endif %}
{%- if after %}
#SBATCH --dependency=afterany:{{ after | join(":") }}
{%- endif %}
{%- for name, value in [("partition", partition), ("account", account), ("qos", qos),
                        ("constraint", constraint)] if value %}
#SBATCH --{{name}}={{value}}
{%- endfor %}
{%- for argument in arguments %}
#SBATCH {{argument}}
{%- endfor %}
#SBATCH --comment="{{comment}}"

{{setup}}
{{command}}
"""

_PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SUSPENDED",
            "RESV_DEL_HOLD", "SPECIAL_EXIT"}  # fmt: skip
_RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"}

_STUCK = (
    "held",
    "PartitionTimeLimit",
    "DependencyNeverSatisfied",
    "JobLaunchFailure",
    "BadConstraints",
)
"""Reasons of pending jobs that will not start by themselves. A job that somebody holds by hand
(JobHeldUser) is his to release; "launch failed requeued held" is what SLURM holds itself."""

_CAUSES = {
    "COMPLETED": Cause.DONE,
    "FAILED": Cause.FAILED,
    "OUT_OF_MEMORY": Cause.MEMORY,
    "TIMEOUT": Cause.TIME,
    "DEADLINE": Cause.TIME,
    "NODE_FAIL": Cause.NODE,
    "BOOT_FAIL": Cause.NODE,
    "CANCELLED": Cause.CANCELLED,
    "PREEMPTED": Cause.CANCELLED,
}

OUT_OF_MEMORY = re.compile(
    r"^slurmstepd\S*: error: .*(?:oom[_-]kill event|exceeded memory limit)", re.MULTILINE
)
"""The first is of cgroups. Where SLURM itself counts memory (jobacct_gather, OverMemoryKill) a
job that had too much is FAILED, and only its output says why."""

_REFUSED = re.compile(
    r"Batch job submission failed: (?!.*(?:Socket timed out|Unable to contact|"
    r"Zero Bytes were transmitted|Connection refused|Slurm temporarily unable|try again))"
    r"|sbatch: (?:unrecognized|invalid) option|sbatch: error: Invalid .* specification"
    r"|sbatch: fatal: \S+: line \d+: ",  # of the script: an option's quotes, for one
    re.IGNORECASE,
)
"""What sbatch says when the controller, or sbatch by itself, has said no. An answer that got
lost is no answer."""
_UNKNOWN = "Invalid job id specified"


class Slurm:
    """The SLURM of this site.

    Args:
        directory: a site's own pysqa configuration.
        template: in place of fsbroker's own.
    """

    name = "slurm"
    launcher = "srun"
    out_of_memory: re.Pattern[str] | None = OUT_OF_MEMORY

    def __init__(self, directory: str | None = None, template: str | None = None) -> None:
        self._pysqa = Pysqa("SLURM", template or TEMPLATE, directory)

    def site_keys(self) -> frozenset[str]:
        return self._pysqa.site_keys()

    def script(self, request: Request) -> str:
        return self._pysqa.script(request)

    def submit(self, request: Request) -> str:
        try:
            return str(self._pysqa.submit(request))
        except SchedulerError as error:
            if _REFUSED.search(error.what):
                raise ResourceError("SLURM refuses the job", error.what) from error
            raise

    def active(self, ids: Collection[str] | None = None) -> dict[str, Status]:
        listing = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}"]
        found = {}
        for line in run([*listing, "--format=%A|%T|%r|%k"]).splitlines():
            parts = line.split("|", 3)
            if len(parts) == 4 and parts[0].isdigit() and (ids is None or parts[0] in ids):
                job, word, reason, comment = parts
                state = _state(word)
                stuck = state == "pending" and any(one in reason for one in _STUCK)
                found[job] = Status(state, word, _said(reason), _said(comment), stuck)
        return found

    def cancel(self, ids: Collection[str]) -> None:
        if not ids:
            return
        try:
            run(["scancel", *ids])
        except SchedulerError as error:
            if _UNKNOWN not in error.what:
                raise

    def ending(self, job: str) -> Ending | None:
        return self._accounted(job) or self._remembered(job)

    def _accounted(self, job: str) -> Ending | None:
        """What the accounting says; None where a site has none, or it does not know the job."""
        listing = ["sacct", "--noheader", "--parsable2", "--format=State,ExitCode,Reason"]
        try:
            lines = run([*listing, f"--jobs={job}"]).splitlines()
        except (SchedulerError, MissingProgram):
            return None
        return read_sacct(lines)

    def _remembered(self, job: str) -> Ending | None:
        """What the controller still knows: for MinJobAge, five minutes by default."""
        try:
            text = run(["scontrol", "--oneliner", "show", "job", job])
        except SchedulerError as error:
            if _UNKNOWN in error.what:
                return None
            raise
        return read_scontrol(text)


def job_of(ranks: int, flags: Sequence[str], *, pmi: str = "", besides: str = "") -> list[str]:
    """How a program is started in a job of its own, and its output read.

    Args:
        pmi: for ``--mpi``. besides: a node that is not to be it.
    """
    more = [f"--mpi={pmi}"] if pmi else []
    more += [f"--exclude={besides}"] if besides else []
    return ["srun", f"--ntasks={ranks}", "--quiet", *more, *flags]


def read_sacct(lines: Collection[str]) -> Ending | None:
    """The ending in lines of ``sacct --parsable2 --format=State,ExitCode,Reason``.

    The first is of the job; one of its steps may know more (OUT_OF_MEMORY).
    """
    rows = [line.split("|") for line in lines if re.fullmatch(r"[A-Z][^|]*\|\d+:\d+\|[^|]*", line)]
    if not rows:
        return None
    state, code, reason = rows[0]
    if any(row[0].startswith("OUT_OF_ME") for row in rows):
        state = "OUT_OF_MEMORY"
    word = state.split()[0]  # "CANCELLED by 1000"
    if _state(word) != "over":
        return None
    why = "" if reason in ("None", "") else f"{reason}, "
    return Ending(word, f"{why}exit code {code}", "sacct", _CAUSES.get(word, Cause.UNKNOWN))


def read_scontrol(text: str) -> Ending:
    """The ending in the one line of ``scontrol --oneliner show job``.

    Raises:
        SchedulerError: there is none.
    """
    found = dict(re.findall(r"(?:^|\s)(JobState|Reason|ExitCode)=(\S+)", text))
    word = found.get("JobState", "")
    if not word or _state(word) != "over":
        raise SchedulerError(f"The job has not ended: it is {word or 'unknown'}", "scontrol")
    why = "" if found.get("Reason", "None") == "None" else f"{found['Reason']}, "
    how = f"{why}exit code {found.get('ExitCode', '?')}"
    return Ending(word, how, "scontrol", _CAUSES.get(word, Cause.UNKNOWN))


def _state(word: str) -> str:
    if word in _PENDING:
        return "pending"
    return "running" if word in _RUNNING else "over"


def _said(text: str) -> str:
    return "" if text in ("None", "(null)", "N/A") else text
