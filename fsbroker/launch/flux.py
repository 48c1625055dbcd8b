"""Flux: its commands, from any Python; pysqa would need Flux's bindings in the client's own.

A job carries its comment in its name, which a listing shows: of what else a job can be given,
it shows only a memo, and that takes a second command, before which a submitter may die. Ids
are in the form that people know (base 58), with an "f" in place of Flux's letter.

What the commands say and leave out was measured with Flux 0.88.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from fsbroker.errors import MissingProgram, ResourceError, SchedulerError
from fsbroker.launch.scheduler import Ending, Request, Status, id_in, run
from fsbroker.launch.script import keys_of, words
from fsbroker.spool.jobs import Cause

TEMPLATE = """\
#!/bin/bash
#FLUX: --job-name={{ (job_name ~ " " ~ comment) | quote }}
#FLUX: --cwd={{directory}}
#FLUX: --output={{directory}}/output
#FLUX: --nslots={{ranks}}
#FLUX: --cores-per-slot={{threads}}
{%- if nodes %}
#FLUX: --nodes={{nodes}}
{%- endif %}
{%- if exclusive %}
#FLUX: --exclusive
{%- endif %}
{%- if gpus %}
#FLUX: --gpus-per-slot={{ (gpus / ranks) | round(0, "ceil") | int }}
{%- endif %}
{%- if seconds %}
#FLUX: --time-limit={{seconds}}s
#FLUX: --signal=SIGTERM@{{ [10, seconds / 2] | min }}s
{%- endif %}
{%- if urgency < 16 %}
#FLUX: --urgency={{urgency}}
{%- endif %}
{%- for job in after %}
#FLUX: --dependency=afterany:{{job}}
{%- endfor %}
{%- for option, value in [("queue", partition), ("setattr=bank", account),
                          ("requires", constraint)] if value %}
#FLUX: --{{option}}={{ value | quote }}
{%- endfor %}
{%- for argument in arguments %}
#FLUX: {{ argument | quote }}
{%- endfor %}

{{setup}}
# Flux sends SIGHUP with every signal, which would kill an agent that SIGTERM lets end in peace.
trap "" HUP
{{command}}
"""
"""At the limit itself comes SIGALRM and, 5 s later, SIGKILL: so SIGTERM is asked for before."""

_ID = r"(f[1-9A-HJ-NP-Za-km-z]+)"
_REFUSED = re.compile(r"\bflux[- ]batch: error:", re.IGNORECASE)
_NO_ANSWER = ("ECONNRESET", "ECONNREFUSED", "EPIPE", "EIO", "ETIMEDOUT", "EHOSTUNREACH", "ENOSYS",
              "EAGAIN")  # fmt: skip
_LOST = re.compile(
    "Unable to connect|lost connection|"
    + "|".join(re.escape(os.strerror(getattr(errno, name))) for name in _NO_ANSWER)
)
"""What ``flux batch`` says when no answer came. All else it says is a refusal, be it its own
or that of a plugin of the site."""
_GONE = re.compile(rf"id {_ID}: job not found")
_OVER = re.compile(r"job is inactive|unknown job id")
_UNKNOWN = re.compile(r"JobID \S+ unknown$")
_CAUSES = {
    "COMPLETED": Cause.DONE,
    "FAILED": Cause.FAILED,
    "TIMEOUT": Cause.TIME,
    "CANCELED": Cause.CANCELLED,
}
_STATES = {"RUN": "running", "CLEANUP": "running", "INACTIVE": "over"}


class Flux:
    """The Flux instance that this process belongs to, or that of the system.

    Args:
        template: in place of fsbroker's own.
    """

    name = "flux"
    launcher = "flux"
    out_of_memory: re.Pattern[str] | None = None

    def __init__(self, template: str | None = None) -> None:
        self._template = template or TEMPLATE

    def site_keys(self) -> frozenset[str]:
        return keys_of([self._template])

    def script(self, request: Request) -> str:
        found = words(request)
        if request.exclusive and not request.nodes:
            if request.ranks > 1:
                cure = "Say how many with num_nodes, or leave exclusive out."
                raise ResourceError("Flux gives whole nodes only by number", request.name, cure)
            found["nodes"] = 1
        if request.memory and not request.exclusive:
            cure = 'Use exclusive=True (with num_nodes), or leave "memory_max" out.'
            what = "Flux hands out no memory"
            raise ResourceError(what, f"{request.memory} MB for {request.name}", cure)
        if qos := request.queue.get("qos"):
            cure = "Use partition (a queue of Flux), or an urgency in slurm_cmd_args."
            raise ResourceError("Flux has no qos", repr(qos), cure)
        return _filled(request.queue.get("submission_template") or self._template, found)

    def submit(self, request: Request) -> str:
        os.makedirs(request.directory, exist_ok=True)  # else it runs in /tmp
        path = os.path.join(request.directory, "run_queue.sh")
        text = self.script(request)
        with open(path, "w") as file:
            file.write(text)
        try:
            return id_in(run(["flux", "batch", path], directory=request.directory), _ID)
        except SchedulerError as error:
            if (gone := _GONE.search(error.what)) and gone[1] in request.after:
                # So long over that it is forgotten.
                after = tuple(job for job in request.after if job != gone[1])
                return self.submit(replace(request, after=after))
            if _REFUSED.search(error.what) and not _LOST.search(error.what):
                raise ResourceError("Flux refuses the job", error.what) from error
            raise

    def active(self, ids: Collection[str] | None = None) -> dict[str, Status]:
        # Without -c 0 it stops at 1000; with ids, all of them unknown is an error.
        said = run(["flux", "jobs", "-a", "--json", "-c", "0"])
        try:
            known = {job["jobid"]: _status(job) for job in _read(said)["jobs"]}
        except (ValueError, KeyError) as error:
            raise _unreadable(said) from error
        return {job: known[job] for job in known if ids is None or job in ids}

    def cancel(self, ids: Collection[str]) -> None:
        if not ids:
            return
        try:
            run(["flux", "cancel", *ids])
        except SchedulerError as error:
            if not all(_OVER.search(line) for line in error.what.splitlines()):
                raise

    def ending(self, job: str) -> Ending | None:
        try:
            said = run(["flux", "jobs", "--json", job])
        except SchedulerError as error:
            if _UNKNOWN.search(error.what):
                return None
            raise
        try:
            status = _status(_read(said))  # one job is told of without a list around it
        except (ValueError, KeyError) as error:
            raise _unreadable(said) from error
        if status.state != "over":
            raise SchedulerError(f"The job has not ended: it is {status.word}", job)
        lost = status.reason.startswith("exec: node failure")
        cause = Cause.NODE if lost else _CAUSES.get(status.word, Cause.UNKNOWN)
        return Ending(status.word, status.reason, "flux jobs", cause)


def _filled(template: str, found: Mapping[str, Any]) -> str:
    try:
        from jinja2 import Environment, TemplateError
    except ImportError as error:
        cure = "pip install 'fsbroker[queue]'"
        raise MissingProgram("Submitting queue jobs needs Jinja", "jinja2", cure) from error
    environment = Environment(keep_trailing_newline=True)  # noqa: S701 - shell text, no page
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    try:
        return environment.from_string(template).render(found)
    except (TemplateError, ValueError, TypeError) as error:
        where = "submission_template"
        raise ResourceError(f"The job script cannot be made ({error})", where) from error


def _read(said: str) -> Any:
    """The JSON in what was printed, after whatever else a site's wrapper prints."""
    return json.JSONDecoder().raw_decode(said[max(0, said.find("{")) :])[0]


def _unreadable(said: str) -> SchedulerError:
    return SchedulerError(f"The listing cannot be read: {said[:200] or 'nothing'}", "flux jobs")


def _status(job: Mapping[str, Any]) -> Status:
    state = _STATES.get(job["state"], "pending")
    reason = {"pending": _waiting, "running": lambda _: "", "over": _how}[state](job)
    comment = job.get("name", "").partition(" ")[2]
    return Status(state, job["status"], reason, comment)


def _waiting(job: Mapping[str, Any]) -> str:
    if job.get("urgency") == 0:
        return "held"
    return ", ".join(job.get("dependencies") or ())


def _how(job: Mapping[str, Any]) -> str:
    """The exception that ended it, and the exit code if it ran at all."""
    exception = job.get("exception") or {}
    told = [exception.get("type"), exception.get("note")] if exception.get("occurred") else []
    why = ": ".join(filter(None, told))
    code = f"exit code {job['returncode']}" if "waitstatus" in job else ""
    return ", ".join(filter(None, (why, code)))
