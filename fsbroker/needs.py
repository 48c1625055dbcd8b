"""What a task needs to run: the resource dictionary of a call, checked.

    Resources   one call's wishes, with defaults filled in
    Shape       the part of them that an agent must have free, as it stands in file names
    Capacity    the most that agents of one kind can ever have free
    Allowance   what an agent may use of it, as its client tells while both run

Wishes that no agent can grant are refused before anything is submitted: a task that
nobody can run would wait for ever.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from fsbroker.errors import ResourceError

CACHE_MODES = ("reuse", "refresh", "off")
USUAL_PRIORITY = 5000


class Shape(NamedTuple):
    """What a running task holds of its agent.

    Attributes:
        cores: MPI ranks. threads: per rank. gpus: per rank. memory: MB, 0 if not stated.
        nodes: 0 if not stated. exclusive: 1 if nothing else may run beside it.
        queue: digest of what the task asks of the site (`Resources.site`); "" if nothing.
    """

    cores: int = 1
    threads: int = 1
    gpus: int = 0
    memory: int = 0
    nodes: int = 0
    exclusive: int = 0
    queue: str = ""

    def __str__(self) -> str:
        ranks = f"c{self.cores}t{self.threads}g{self.gpus}"
        rest = f"m{self.memory}n{self.nodes}x{self.exclusive}"
        return f"{ranks}{rest}q{self.queue}" if self.queue else ranks + rest

    def dealt(self) -> Shape:
        """What is dealt out to nodes: ranks; or each core, of a single rank over several nodes."""
        if self.nodes <= self.cores:
            return self
        return self._replace(cores=self.threads, threads=1)


_SHAPE = re.compile(r"c(\d+)t(\d+)g(\d+)m(\d+)n(\d+)x(\d+)(?:q([0-9a-f]{8}))?")


def parse_shape(text: str) -> Shape | None:
    """The shape in the name of a task file; None for anything else."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        return None
    cores, threads, gpus, memory, nodes, exclusive = map(int, match.groups()[:6])
    return Shape(cores, threads, gpus, memory, nodes, exclusive, match[7] or "")


@dataclass(frozen=True)
class Resources:
    """What one call asks for. The names are the keys of ``resource_dict``.

    Attributes:
        cores: MPI ranks; the function runs on each, and the result is the list of all
            ranks' returns.
        threads_per_core: threads per rank (``OMP_NUM_THREADS``).
        gpus_per_core: GPUs per rank.
        memory_max: GB for the whole task.
        num_nodes: nodes to spread the ranks over; of a single rank, the cores of the programs
            that it starts (``threads_per_core``).
        exclusive: nothing else runs on these nodes.
        run_time_max: seconds; a task that takes longer is killed and fails.
        priority: 0 to 9999, the higher the sooner. Below 5000 the task's own queue job asks for
            less than others, too; schedulers let nobody ask for more.
        retries: how often the task is tried again when its worker dies.
        cwd: directory to run in; default: where the client was.
        cache: "reuse" a stored value, "refresh" it, or "off": a key of its own each time.
        cache_key: name to store the value under, in place of the key made from the call.
        error_log_file: file that failures are appended to.
        partition: of the cluster (Flux: queue) that the task must run in. account, qos,
            constraint: of its queue job.
        slurm_cmd_args: more arguments for the scheduler's submit command.
        submission_template: the job script, as a Jinja template.
        openmpi_oversubscribe: there may be more ranks than cores.
        site: other keys, which the site's own job template knows, with their values.
    """

    cores: int = 1
    threads_per_core: int = 1
    gpus_per_core: int = 0
    memory_max: float | None = None
    num_nodes: int | None = None
    exclusive: bool = False
    run_time_max: float | None = None
    priority: int = USUAL_PRIORITY
    retries: int = 2
    cwd: str | None = None
    cache: str = "reuse"
    cache_key: str | None = None
    error_log_file: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    slurm_cmd_args: tuple[str, ...] = ()
    submission_template: str | None = None
    openmpi_oversubscribe: bool = False
    site: tuple[tuple[str, Any], ...] = ()

    @property
    def queue(self) -> dict[str, Any]:
        """What the task asks of the site: its queue job must be submitted with it."""
        named = {name: getattr(self, name) for name in QUEUE_KEYS}
        return {name: value for name, value in named.items() if value} | dict(self.site)

    @property
    def shape(self) -> Shape:
        """What an agent must have free."""
        return Shape(
            self.cores,
            self.threads_per_core,
            self.gpus_per_core,
            round((self.memory_max or 0) * 1024),
            self.num_nodes or 0,
            int(self.exclusive),
            queue_digest(self.queue),
        )

    def check(self) -> None:
        """Refuse what is wrong only together.

        Raises:
            ResourceError: more nodes than ranks, or than cores of the only rank.
        """
        nodes, alone = self.num_nodes or 0, self.cores == 1
        if nodes > (self.threads_per_core if alone else self.cores):
            where = f"num_nodes={nodes} with cores={self.cores}"
            cure = "Each node needs a rank: ask for as many cores, or for fewer nodes"
            raise ResourceError("A task wants more nodes than it has ranks", where, cure)
        if nodes > 1 and alone and self.gpus_per_core:
            where = f"num_nodes={nodes} with gpus_per_core={self.gpus_per_core}"
            cure = "Ask for as many cores as nodes: GPUs go with ranks"
            raise ResourceError("One rank has the GPUs of one node", where, cure)


QUEUE_KEYS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "slurm_cmd_args",
    "submission_template",
)
VALID_KEYS = tuple(field.name for field in fields(Resources) if field.name != "site")


def queue_digest(queue: Mapping[str, Any]) -> str:
    """8 hex digits for what tasks ask of the site; "" for nothing."""
    if not queue:
        return ""
    text = json.dumps(queue, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=4).hexdigest()


def merged(
    base: Resources, wishes: Mapping[str, Any] | None, site_keys: Collection[str] = ()
) -> Resources:
    """``base`` with the keys of a resource dictionary in place of its own.

    Args:
        site_keys: more keys, which the site's job template knows.

    Raises:
        ResourceError: an unknown key, or a value of the wrong type or out of range.
    """
    if wishes is None:
        return base
    if not isinstance(wishes, Mapping):
        raise ResourceError(
            "resource_dict is not a dictionary", type(wishes).__name__, 'For example {"cores": 2}'
        )
    known: dict[str, Any] = {}
    site = dict(base.site)
    for given, value in wishes.items():
        key = "partition" if given == "queue" else given
        if key in _RULES:
            _check(key, value, _RULES[key])
            known[key] = tuple(value) if isinstance(value, list) else value
        elif key in site_keys:
            _check(key, value, _SITE_VALUE)
            site[key] = value
        else:
            raise _unknown(key, site_keys)
    found = replace(base, **known, site=tuple(sorted(site.items())))
    if found.cache == "off" and found.cache_key is not None:
        raise ResourceError(
            'cache_key with "cache": "off"',
            repr(found.cache_key),
            'Without a cache there is nothing to name. To replace a value: "cache": "refresh"',
        )
    return found


def _unknown(key: object, site_keys: Collection[str]) -> ResourceError:
    valid = (*VALID_KEYS, *sorted(site_keys))
    near = difflib.get_close_matches(str(key), valid, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return ResourceError("Unknown resource", repr(key), f"{hint}Valid: {', '.join(valid)}")


class _Rule(NamedTuple):
    """What a value must be, in code and in words."""

    holds: Callable[[Any], bool]
    wanted: str
    optional: bool = False


def _integer(low: int, high: int, *, optional: bool = False) -> _Rule:
    # bool is an int to Python, but `cores=True` is a mistake.
    wanted = f"an integer from {low} to {high}"
    return _Rule(lambda value: type(value) is int and low <= value <= high, wanted, optional)


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def _are_lines(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_line, value))


def _is_site_value(value: Any) -> bool:
    return type(value) in (bool, int, float) or _is_line(value)


_NUMBER = _Rule(_is_positive, "a number above 0", optional=True)
_TEXT = _Rule(_is_text, "a string", optional=True)
# It becomes a line of a job script: a line break would begin another one.
_LINE = _Rule(_is_line, "one line of text", optional=True)
_SITE_VALUE = _Rule(_is_site_value, "a number, True, False or one line of text")

_BOOL = _Rule(lambda value: type(value) is bool, "True or False")

_RULES = {
    "cores": _integer(1, 4096),
    "threads_per_core": _integer(1, 4096),
    "gpus_per_core": _integer(0, 256),
    "num_nodes": _integer(1, 65535, optional=True),
    "priority": _integer(0, 9999),
    "retries": _integer(0, 254),  # one more attempt still fits its column
    "memory_max": _NUMBER,
    "run_time_max": _NUMBER,
    "cwd": _TEXT,
    "cache_key": _TEXT,
    "error_log_file": _TEXT,
    "partition": _LINE,
    "account": _LINE,
    "qos": _LINE,
    "constraint": _LINE,
    "slurm_cmd_args": _Rule(_are_lines, "a list of lines of text"),
    "submission_template": _TEXT,
    "exclusive": _BOOL,
    "openmpi_oversubscribe": _BOOL,
    "cache": _Rule(
        lambda value: type(value) is str and value in CACHE_MODES,
        f"one of {', '.join(map(repr, CACHE_MODES))}",
    ),
}


def _check(key: str, value: Any, rule: _Rule) -> None:
    if not (value is None and rule.optional) and not rule.holds(value):
        raise ResourceError(f"Resource {key!r} must be {rule.wanted}", f"got {value!r}")


# -- what is there -----------------------------------------------------------------------


class Allowance(NamedTuple):
    """What an agent may use.

    Attributes:
        cores: of its own node; 0: as before.
        workers: that may be busy at once; 0: as many as fit.
    """

    cores: int = 0
    workers: int = 0

    def line(self) -> bytes:
        """How it is told to an agent."""
        return json.dumps(self._asdict()).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Allowance:
        """One that was told."""
        return cls(**json.loads(line))


class Capacity(NamedTuple):
    """The most that one task can have, and what sets each limit.

    Attributes:
        cores: for ranks times threads.
        cores_from: what the number comes from, as an error names it.
        gpus: devices. memory: MB; 0 if not known. nodes: to spread ranks over.
        has_queue: there is a scheduler that can be asked for a partition and the like.
        nodes_from: what their number comes from, as an error names it.
        fits: whether nodes that stand empty hold a task; None: cores are all that counts.
    """

    cores: int
    cores_from: str
    gpus: int
    memory: int
    nodes: int = 1
    has_queue: bool = False
    nodes_from: str = "this machine"
    fits: Callable[[Shape], bool] | None = None

    def require(self, wanted: Resources) -> None:
        """Refuse what can never be granted.

        Raises:
            ResourceError: it names the wish, the limit, and where the limit comes from.
        """
        shape = wanted.shape
        cores, gpus = shape.cores * shape.threads, shape.cores * shape.gpus
        if cores > self.cores:
            asked = f"cores={shape.cores} with threads_per_core={shape.threads}"
            raise _too_much("cores", cores, self.cores, f"{asked}; the limit is {self.cores_from}")
        if gpus > self.gpus:
            asked = f"gpus_per_core={shape.gpus} on {shape.cores} cores"
            raise _too_much("GPUs", gpus, self.gpus, f"{asked}; the limit is what is visible here")
        if self.memory and shape.memory > self.memory:
            asked = f"memory_max={wanted.memory_max} GB; the limit is this host's memory"
            raise _too_much("MB of memory", shape.memory, self.memory, asked)
        if shape.queue and not self.has_queue:
            keys = ", ".join(wanted.queue)
            cure = 'Leave them out, or use backend="slurm" or "flux"'
            raise ResourceError("Agents here are in no queue", f"resource {keys}", cure)
        if shape.nodes > self.nodes:
            asked = f"num_nodes={shape.nodes}; the limit is {self.nodes_from}"
            raise _too_much("nodes", shape.nodes, self.nodes, asked)
        if self.fits is not None and not self.fits(shape):
            asked = f"{cores} cores, {gpus} GPUs; each rank, and its share, has to be on one node"
            cure = "Ask for more ranks with fewer threads, or for another num_nodes."
            raise ResourceError("No nodes of the allocation hold the task", asked, cure)


def _too_much(what: str, wanted: int, limit: int, asked: str) -> ResourceError:
    return ResourceError(f"A task wants {wanted} {what}, and there are {limit}", asked)
