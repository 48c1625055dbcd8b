"""The queue jobs of an area: one log, that clients and agents write.

    jobs/<n>                a record: a symbolic link with JSON as its target
    jobs/<digest>.settings  what jobs are submitted with, for who submits the next

Before a job is submitted, an `intent` says so, with a random token that the job carries.
As in the logs of task files (`log.py`), record n is appended only by one who has folded all
before it: of two who see that one job is missing, one appends the intent, and the other
then reads it. What became of an intent whose writer died, the scheduler tells: whether
it has a job with the token.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fsbroker.errors import FileDamaged, SpoolError
from fsbroker.spool import forms
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, parse_record

LONGEST = 900
"""Bytes of a record, as in the logs of task files."""
LARGEST_SETTINGS = 1 << 20
VERSIONS = "versions"
"""The key in stored settings that tells what the client has, which submitted with them."""


class Kind(enum.Enum):
    """What a record says."""

    INTENT = "intent"
    """``by`` is going to submit a job."""
    JOB = "job"
    """It was submitted: ``id``."""
    END = "end"
    """It is over: ``state``, ``reason``, ``source``, ``cause``; whether it was a ``failure``."""
    PAUSE = "pause"
    """No more jobs: ``reason``."""
    RESUME = "resume"
    """Jobs again."""
    NO_SUBMIT = "no-submit"
    """Compute nodes of this site cannot submit: ``reason``."""
    COMPARED = "compared"
    """What a node has otherwise than the client that has submitted its job: ``reason``."""


class Cause(enum.Enum):
    """Why a job ended, whichever scheduler says it in whichever words."""

    DONE = "its own will"
    FAILED = "failure"
    MEMORY = "lack of memory"
    TIME = "its time limit"
    NODE = "failure of a node"
    CANCELLED = "cancellation"
    REFUSED = "refusal"
    UNKNOWN = "unknown causes"

    def __str__(self) -> str:
        """As the history of a task tells of it, and as it is known again there."""
        return f"ended by {self.value}"


@dataclass(frozen=True)
class QueueJob:
    """One job, as far as the log tells.

    Attributes:
        number: of its intent.
        token: random; the job carries it in its comment.
        scheduler: "slurm" or "flux".
        queue: what the tasks that it runs ask of the site (`Shape.queue`).
        cores: of all its nodes. seconds: time limit, 0 if the site's.
        row: the only one that it runs, "<stem>.<row>"; "" for one that drains the spool.
        born: when the intent was written, by its writer's clock.
        id: the scheduler's; "" before it was submitted.
        state, reason, source: how it ended, in the scheduler's words, and who said so; "" before.
        cause: what that means.
        failure: it ended before it did any work.
    """

    number: int
    token: str
    scheduler: str
    queue: str = ""
    cores: int = 1
    seconds: float = 0.0
    row: str = ""
    settings: str = ""
    born: float = 0.0
    id: str = ""
    state: str = ""
    reason: str = ""
    source: str = ""
    cause: Cause = Cause.UNKNOWN
    failure: bool = False

    @property
    def is_over(self) -> bool:
        return bool(self.state)


_SAID_LATER = ("number", "id", "state", "reason", "source", "cause", "failure")
"""What an intent cannot tell of its job."""


def _is_settings(value: Any) -> bool:
    return type(value) is str and _DIGEST.fullmatch(value) is not None


def _is_row(value: Any) -> bool:
    """A task file and a row of it: one word, no path."""
    return type(value) is str and _ROW.fullmatch(value) is not None


def _is_id(value: Any) -> bool:
    """One word, that no scheduler's command takes for an option."""
    return type(value) is str and _ID.fullmatch(value) is not None


_DIGEST = re.compile(r"[0-9a-f]{0,16}")
_ROW = re.compile(r"[\w-]{1,200}\.[0-9]{1,5}|")
_ID = re.compile(r"[^\s\-][^\s]*|")
_RECORD = {
    "?kind": str,
    "?by": str,
    "?of": int,
    "?token": str,
    "?scheduler": str,
    "?queue": str,
    "?cores": forms.natural,
    "?seconds": forms.number,
    "?row": _is_row,
    "?settings": _is_settings,
    "?born": forms.number,
    "?id": _is_id,
    "?state": str,
    "?reason": str,
    "?source": str,
    "?cause": str,
}
"""A record; whatever else stands in it has no effect."""


class JobLog:
    """The queue jobs of an area, as far as this process has read.

    Attributes:
        jobs: by number, also those that have ended.
        paused: why no more jobs are submitted; "" if they are.
        no_submit: why agents cannot submit here; "" if it is not known that they cannot.
        failures: jobs in a row that were failures.
        compared: what the nodes have otherwise than the client, "" for nothing; by settings.
    """

    def __init__(self, files: Files, area: Area) -> None:
        self._files = files
        self._area = area
        self._next = 0
        self.jobs: dict[int, QueueJob] = {}
        self.paused = ""
        self.no_submit = ""
        self.failures = 0
        self.compared: dict[str, str] = {}

    def refresh(self) -> None:
        """Read what was appended since."""
        self._files.freshen(self._area.jobs)
        found = (parse_record(name) for name in self._files.names(self._area.jobs))
        for number in sorted(n for n in found if n is not None and n >= self._next):
            if number > self._next:
                break  # made while the directory was read: the next listing has the hole
            self._apply(number, self._read(number))

    def _read(self, number: int) -> Mapping[str, Any]:
        try:
            text = self._files.readlink(self._area.job_record(number))
            record: dict[str, Any] = forms.parsed(text, _RECORD, "record", "a log of jobs")
        except (OSError, FileDamaged) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            return {}  # not one of ours: it has no effect
        return record

    def open(self) -> list[QueueJob]:
        """Those that have not ended."""
        return [job for job in self.jobs.values() if not job.is_over]

    # -- writing -------------------------------------------------------------------------

    def intend(self, job: QueueJob) -> QueueJob | None:
        """Say that a job will be submitted; None if somebody else wrote in this moment."""
        content = {
            name: value for name, value in vars(job).items() if value and name not in _SAID_LATER
        }
        return self.jobs[self._next - 1] if self._append(Kind.INTENT, content) else None

    def submitted(self, job: QueueJob, job_id: str) -> None:
        """Say under which id the scheduler has it."""
        while self.jobs[job.number].id != job_id:
            self._append(Kind.JOB, {"of": job.number, "id": job_id})

    def ended(  # noqa: PLR0913 - what there is to say of an end
        self,
        job: QueueJob,
        state: str,
        reason: str,
        source: str,
        cause: Cause,
        *,
        failure: bool,
    ) -> None:
        """Say how a job ended; once is enough, whoever finds it."""
        told: dict[str, Any] = {"of": job.number, "state": state, "reason": reason}
        told |= {"source": source, "cause": cause.name.lower()}
        while not self.jobs[job.number].is_over:
            if self._append(Kind.END, {**told, **({"failure": 1} if failure else {})}):
                return

    def pause(self, reason: str) -> None:
        while not self.paused:
            if self._append(Kind.PAUSE, {"reason": reason}):
                return

    def resume(self) -> None:
        """Submit jobs again, whatever became of earlier ones; compute nodes may try, too."""
        while self.paused or self.failures or self.no_submit:
            self._append(Kind.RESUME, {})

    def cannot_submit(self, reason: str) -> None:
        """Nobody can submit from this site's compute nodes: the next client will."""
        while not self.no_submit:
            if self._append(Kind.NO_SUBMIT, {"reason": reason}):
                return

    def differ(self, job: QueueJob, reason: str) -> None:
        """Say what the node of a job has otherwise than the client; "" for nothing."""
        while self.compared.get(job.settings) != reason:
            self._append(Kind.COMPARED, {"settings": job.settings, "reason": reason})

    def _append(self, kind: Kind, content: Mapping[str, Any]) -> bool:
        """Append a record behind what was read; False if another was faster, and is read now."""
        token = self._files.token()
        text = json.dumps({"kind": kind.value, "by": token, **content}, separators=(",", ":"))
        while len(text.encode()) > LONGEST:
            content = {**content, "reason": str(content["reason"])[:-50]}
            text = json.dumps({"kind": kind.value, "by": token, **content}, separators=(",", ":"))
        path = self._area.job_record(self._next)
        try:
            self._files.symlink(text, path)
        except OSError as error:
            # The reply may lie both ways: only the content tells whose record it is.
            try:
                there = self._read(self._next)
            except OSError:
                raise error from None
            if there.get("by") != token:
                # Not by a listing, which may be older than this record.
                self._apply(self._next, there)
                self.refresh()
                return False
        self._files.sync_directory(self._area.jobs)
        self._apply(self._next, json.loads(text))
        return True

    # -- the fold ------------------------------------------------------------------------

    def _apply(self, number: int, record: Mapping[str, Any]) -> None:
        self._next = number + 1
        known = {field: record[field] for field in QueueJob.__dataclass_fields__ if field in record}
        kind, of = record.get("kind"), record.get("of")
        with suppress(TypeError):
            if kind == Kind.INTENT.value:
                self.jobs[number] = QueueJob(number, **known)
            elif kind == Kind.JOB.value and of in self.jobs:
                self.jobs[of] = replace(self.jobs[of], id=str(record.get("id", "")))
            elif kind == Kind.END.value and of in self.jobs:
                failure = bool(record.get("failure"))
                cause = Cause.__members__.get(str(record.get("cause")).upper(), Cause.UNKNOWN)
                told = {**known, "failure": failure, "cause": cause}
                self.jobs[of] = replace(self.jobs[of], **told)
                if failure:
                    self.failures += 1
                elif self.jobs[of].id:  # one that was never submitted says nothing of the site
                    self.failures = 0
            elif kind == Kind.PAUSE.value:
                self.paused = str(record.get("reason") or "no reason given")
            elif kind == Kind.RESUME.value:
                self.paused, self.no_submit, self.failures = "", "", 0
            elif kind == Kind.NO_SUBMIT.value:
                self.no_submit = str(record.get("reason") or "no reason given")
            elif kind == Kind.COMPARED.value:
                self.compared[str(record.get("settings"))] = str(record.get("reason"))

    # -- what jobs are submitted with ----------------------------------------------------

    def keep_settings(self, settings: Mapping[str, Any]) -> str:
        """Store settings for those who submit later; the digest that names them."""
        text = json.dumps(settings, sort_keys=True).encode()
        digest = hashlib.blake2b(text, digest_size=8).hexdigest()
        path = self._area.job_settings(digest)
        temporary = self._area.temporary(self._files.token())
        self._files.write_new(temporary, [text], sync=True)
        with suppress(FileExistsError):
            self._files.link(temporary, path)
        self._files.unlink(temporary)
        return digest

    def settings(self, digest: str) -> dict[str, Any]:
        """What `keep_settings` stored.

        Raises:
            SpoolError: it is not there, or damaged.
        """
        path = self._area.job_settings(digest)
        try:
            with self._files.open(path) as file:
                text = file.read(0, min(file.size, LARGEST_SETTINGS))
        except FileNotFoundError:
            raise SpoolError("The settings of queue jobs are gone", path) from None
        if hashlib.blake2b(text, digest_size=8).hexdigest() != digest:
            raise SpoolError("The settings of queue jobs are damaged", path)
        found: dict[str, Any] = forms.parsed(text, dict, "settings", path)
        return found
