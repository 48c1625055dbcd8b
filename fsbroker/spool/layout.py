"""Every name and path in a spool; nothing else knows one.

    SPOOL/
      spool.yaml                       format, lock class, durability, sharing; what was measured
      nested/                          the spool of what tasks submitted; in the area, if shared
      users/<area>/                    one area per user
        tasks/<stem>.h5                live task files
        claims/<stem>/<n>              the log of a task file
        locks/<00..63>                 lock files, by hash of the stem
        agents/<agent>.<beat>.<n>      presence: beat, number of published result files
        results/<agent>/<n>.h5         an agent's stream of result files, or its seal
        packs/<tier>.<token>.h5        merged result files
        archive/<stem>.h5              finished task files
        archive/<tier>.<token>.h5      many of them in one
        blobs/<name>.h5                arrays of 1 MB and more
        jobs/<n>                       the log of queue jobs
        jobs/<digest>.settings         what they are submitted with
        logs/<key>/<agent>.<generation>/<rank>.out, .err   what each rank wrote
        logs/agents/<token>.log        what local agents say
        logs/jobs/<n>/                 script and output of a queue job
        logs/programs/run-*/stdout, stderr                 what `fsbroker.run` had written
        cancel/<stem>.<row>            requests to end a row; hints that a log has news
        quarantine/ tmp/

A name that does not match its pattern is ignored, wherever it came from: editors,
backups and NFS's own `.nfs...` files leave such names.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

FORMAT = 1
"""Version of the on-disk format (docs/format.md)."""

SPOOL_FILE = "spool.yaml"
USERS = "users"
"""The directory of all areas."""
NESTED = "nested"
"""The directory, in a spool, of the spool of its tasks."""
LOCKS = 64
DIRECTORIES = (
    "tasks",
    "claims",
    "locks",
    "agents",
    "results",
    "packs",
    "archive",
    "blobs",
    "jobs",
    "logs",
    "cancel",
    "quarantine",
    "tmp",
)

MAX_ROWS = 4096
MAX_PRIORITY = 9999


class Stem(NamedTuple):
    """What the name of a task file tells before it is opened.

    Names sort in the order in which agents take them: higher priority first, then age.

    Attributes:
        priority: 0 to 9999, the higher the sooner.
        born: the client's clock at publication, nanoseconds; to sort by, nothing else.
        token: random, so that no two files share a name.
        shape: resources of every row (`Resources.shape`).
        environment: digest of the interpreter that the rows need.
        rows: number of rows.
        waiting: number of rows with dependencies that had no outcome at publication.
    """

    priority: int
    born: int
    token: str
    shape: str
    environment: str
    rows: int
    waiting: int

    def __str__(self) -> str:
        return (
            f"{MAX_PRIORITY - self.priority:04d}-{self.born:016x}-{self.token}-"
            f"{self.shape}-{self.environment}-{self.rows}-{self.waiting}"
        )


_STEM = re.compile(
    r"(\d{4})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-z_]{1,80})-([0-9a-z]{1,16})-(\d{1,4})-(\d{1,4})"
)
_PRESENCE = re.compile(r"([0-9a-f]{16})\.(\d{1,12})\.(\d{1,9})")
_NUMBER = re.compile(r"\d{8}")
_STREAM_FILE = re.compile(r"(\d{8})\.h5")
_PACK = re.compile(r"(\d{2})\.([0-9a-f]{16})\.h5")
_CANCEL = re.compile(r"(.{1,200})\.(\d{1,4})")
_AGENT = re.compile(r"[0-9a-f]{16}")
_BLOB = re.compile(r"[0-9a-f]{40}\.h5")
_KEY = re.compile(r"[0-9a-f]{40}")
_ATTEMPT = re.compile(r"([0-9a-f]{16})\.(\d{1,5})")
_OUTPUT = re.compile(r"(\d{1,5})\.(out|err)")
_SETTINGS = re.compile(r"([0-9a-f]{16})\.settings")
_GRAVE = re.compile(r"log-[0-9a-f]{16}")
_AREA = re.compile(r"u(\d{1,10})")


@lru_cache(4096)
def parse_stem(stem: str) -> Stem | None:
    match = _STEM.fullmatch(stem)
    if match is None:
        return None
    rank, born, token, shape, environment, rows, waiting = match.groups()
    return Stem(
        MAX_PRIORITY - int(rank), int(born, 16), token, shape, environment, int(rows), int(waiting)
    )


class Presence(NamedTuple):
    """What an agent says of itself by the name of its presence file."""

    agent: str
    beat: int
    published: int

    def __str__(self) -> str:
        return f"{self.agent}.{self.beat}.{self.published}"


def parse_presence(name: str) -> Presence | None:
    match = _PRESENCE.fullmatch(name)
    return Presence(match[1], int(match[2]), int(match[3])) if match else None


def parse_record(name: str) -> int | None:
    return int(name) if _NUMBER.fullmatch(name) else None


def parse_stream_file(name: str) -> int | None:
    match = _STREAM_FILE.fullmatch(name)
    return int(match[1]) if match else None


def parse_pack(name: str) -> int | None:
    """The tier of a pack or an archive bundle."""
    match = _PACK.fullmatch(name)
    return int(match[1]) if match else None


def parse_cancel(name: str) -> tuple[str, int] | None:
    match = _CANCEL.fullmatch(name)
    return (match[1], int(match[2])) if match and parse_stem(match[1]) else None


def is_merged(area: str, path: str) -> bool:
    """Whether a merged file of this area may name this path as one that it replaces."""
    directory, _, name = path.removeprefix(f"{area}/").rpartition("/")
    parent, _, agent = directory.partition("/")
    if parent == "results":
        return is_agent(agent) and parse_stream_file(name) is not None
    if directory == "archive" and is_task_file(name):
        return True
    return directory in ("packs", "archive") and parse_pack(name) is not None


def is_agent(name: str) -> bool:
    return _AGENT.fullmatch(name) is not None


def is_blob(name: str) -> bool:
    return _BLOB.fullmatch(name) is not None


def is_key(name: str) -> bool:
    return _KEY.fullmatch(name) is not None


def parse_attempt(name: str) -> tuple[str, int] | None:
    """The agent and generation of a directory of stdout and stderr."""
    match = _ATTEMPT.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def parse_output(name: str) -> tuple[int, str] | None:
    """The rank, and "out" or "err"."""
    match = _OUTPUT.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def parse_settings(name: str) -> str | None:
    """The digest of the settings of queue jobs."""
    match = _SETTINGS.fullmatch(name)
    return match[1] if match else None


def is_grave(name: str) -> bool:
    """The log of a retired task file, on its way out (under ``tmp/``)."""
    return _GRAVE.fullmatch(name) is not None


def is_area(name: str) -> bool:
    return _AREA.fullmatch(name) is not None


def uid_of(name: str) -> int | None:
    """Whose area this is, by its name under ``users/``."""
    match = _AREA.fullmatch(name)
    return int(match[1]) if match else None


def area_of(uid: int) -> str:
    """The area of a user: by uid, so that two clients of one user never make two."""
    return f"{USERS}/u{uid}"


def is_task_file(name: str) -> bool:
    return name.endswith(".h5") and parse_stem(name.removesuffix(".h5")) is not None


def signed_name(path: str) -> str:
    """What a signature binds a file to: what it is within its area, wherever it moves there.

    A task file is archived, alone and inside of a bundle (``path:stem``); an agent's presence
    has its beat in the name.
    """
    path, _, inner = path.partition(":")
    directory, _, name = path.split("/", 2)[-1].partition("/")
    stem = inner or name.removesuffix(".h5")
    if parse_stem(stem):
        return f"tasks/{stem}"
    presence = parse_presence(name)
    return f"agents/{presence.agent}" if presence else f"{directory}/{name}"


_PATTERNS: Mapping[str, Sequence[Callable[[str], object]]] = {
    "tasks": [is_task_file],
    "claims": [parse_stem, parse_record],
    "agents": [parse_presence],
    "results": [is_agent, parse_stream_file],
    "packs": [parse_pack],
    "archive": [lambda name: is_task_file(name) or parse_pack(name) is not None],
    "blobs": [is_blob],
    "jobs": [lambda name: parse_record(name) is not None or parse_settings(name) is not None],
    "cancel": [parse_cancel],
}
"""Which names belong into a directory of an area, and into those in it; else any."""


class Area:
    """The paths of one user's area, relative to the spool."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tasks = f"{path}/tasks"
        self.claims = f"{path}/claims"
        self.agents = f"{path}/agents"
        self.results = f"{path}/results"
        self.packs = f"{path}/packs"
        self.archive = f"{path}/archive"
        self.blobs = f"{path}/blobs"
        self.jobs = f"{path}/jobs"
        self.logs = f"{path}/logs"
        self.agent_logs = f"{path}/logs/agents"
        self.program_logs = f"{path}/logs/programs"
        self.cancel = f"{path}/cancel"
        self.quarantine = f"{path}/quarantine"
        self.tmp = f"{path}/tmp"  # noqa: S108 - of the spool, private to its owner

    def directory_of(self, path: str) -> str:
        """Which of the area's directories a path of it lies in."""
        return f"{self.path}/{self._names(path)[0]}"

    def fits(self, path: str) -> bool:
        """Whether a path of it is made of names that belong there."""
        directory, *names = self._names(path)
        patterns = _PATTERNS.get(directory, ())
        found = (belongs(name) for belongs, name in zip(patterns, names, strict=False))
        return all(one is not None and one is not False for one in found)

    def agent_of(self, path: str) -> str:
        """Whose result file this is; "" of any other file."""
        directory, *names = self._names(path)
        return names[0] if directory == "results" and names else ""

    def _names(self, path: str) -> list[str]:
        return path.removeprefix(f"{self.path}/").split("/")

    def task_file(self, stem: str) -> str:
        return f"{self.tasks}/{stem}.h5"

    def log(self, stem: str) -> str:
        return f"{self.claims}/{stem}"

    def record(self, stem: str, number: int) -> str:
        return f"{self.claims}/{stem}/{number:08d}"

    def lock(self, name: str) -> str:
        return f"{self.path}/locks/{zlib.crc32(name.encode()) % LOCKS:02d}"

    def presence(self, presence: Presence) -> str:
        return f"{self.agents}/{presence}"

    def stream(self, agent: str) -> str:
        return f"{self.results}/{agent}"

    def stream_file(self, agent: str, number: int) -> str:
        return f"{self.results}/{agent}/{number:08d}.h5"

    def pack(self, tier: int, token: str) -> str:
        return f"{self.packs}/{tier:02d}.{token}.h5"

    def archived(self, stem: str) -> str:
        return f"{self.archive}/{stem}.h5"

    def bundle(self, tier: int, token: str) -> str:
        return f"{self.archive}/{tier:02d}.{token}.h5"

    def blob(self, name: str) -> str:
        return f"{self.blobs}/{name}"

    def job_record(self, number: int) -> str:
        return f"{self.jobs}/{number:08d}"

    def job_settings(self, digest: str) -> str:
        return f"{self.jobs}/{digest}.settings"

    def job_directory(self, number: int) -> str:
        """Where the script and the output of a queue job lie."""
        return f"{self.logs}/jobs/{number:08d}"

    def job_script(self, number: int) -> str:
        """By the name that pysqa gives it."""
        return f"{self.job_directory(number)}/run_queue.sh"

    def job_output(self, number: int) -> str:
        """What a queue job wrote; job templates call it ``{{directory}}/output``."""
        return f"{self.job_directory(number)}/output"

    def cancel_request(self, stem: str, row: int) -> str:
        return f"{self.cancel}/{stem}.{row}"

    def task_logs(self, key: bytes, agent: str, generation: int) -> str:
        return f"{self.logs}/{key.hex()}/{agent}.{generation}"

    def quarantined(self, path: str, token: str) -> str:
        return f"{self.quarantine}/{token}.{path.rpartition('/')[2]}"

    def temporary(self, token: str) -> str:
        return f"{self.tmp}/{token}"
