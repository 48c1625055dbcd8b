"""What a task needs to run: the resource dictionary of a call, checked.

    Resources   one call's wishes, with defaults filled in
    Shape       the part of them that an agent must have free, as it stands in file names
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from fsbroker.errors import ResourceError

CACHE_MODES = ("reuse", "refresh", "off")


class Shape(NamedTuple):
    """What a running task holds of its agent.

    Attributes:
        cores: MPI ranks. threads: per rank. gpus: per rank. memory: MB, 0 if not stated.
        nodes: 0 if not stated. exclusive: 1 if nothing else may run beside it.
    """

    cores: int = 1
    threads: int = 1
    gpus: int = 0
    memory: int = 0
    nodes: int = 0
    exclusive: int = 0

    def __str__(self) -> str:
        return f"c{self.cores}t{self.threads}g{self.gpus}m{self.memory}n{self.nodes}x{self.exclusive}"


_SHAPE = re.compile(r"c(\d+)t(\d+)g(\d+)m(\d+)n(\d+)x(\d+)")


def parse_shape(text: str) -> Shape | None:
    match = _SHAPE.fullmatch(text)
    return Shape(*map(int, match.groups())) if match else None


@dataclass(frozen=True)
class Resources:
    """What one call asks for. The names are the keys of ``resource_dict``.

    Attributes:
        cores: MPI ranks; the function runs on each, and the result is the list of all
            ranks' returns.
        threads_per_core: threads per rank (``OMP_NUM_THREADS``).
        gpus_per_core: GPUs per rank.
        memory_max: GB for the whole task.
        num_nodes: nodes to spread the ranks over.
        exclusive: nothing else runs on these nodes.
        run_time_max: seconds; a task that takes longer is killed and fails.
        priority: 0 to 9999, the higher the sooner.
        retries: how often the task is tried again when its worker dies.
        cwd: directory to run in; default: where the client was.
        cache: "reuse" a stored value, "refresh" it, or "off": a key of its own each time.
        cache_key: name to store the value under, in place of the key made from the call.
        error_log_file: file that failures are appended to.
    """

    cores: int = 1
    threads_per_core: int = 1
    gpus_per_core: int = 0
    memory_max: float | None = None
    num_nodes: int | None = None
    exclusive: bool = False
    run_time_max: float | None = None
    priority: int = 5000
    retries: int = 2
    cwd: str | None = None
    cache: str = "reuse"
    cache_key: str | None = None
    error_log_file: str | None = None

    @property
    def shape(self) -> Shape:
        return Shape(
            self.cores,
            self.threads_per_core,
            self.gpus_per_core,
            round((self.memory_max or 0) * 1024),
            self.num_nodes or 0,
            int(self.exclusive),
        )


VALID_KEYS = tuple(field.name for field in fields(Resources))

_INTEGERS = {
    "cores": (1, 4096),
    "threads_per_core": (1, 4096),
    "gpus_per_core": (0, 256),
    "num_nodes": (1, 65535),
    "priority": (0, 9999),
    "retries": (0, 255),
}
_NUMBERS = ("memory_max", "run_time_max")
_TEXTS = ("cwd", "cache_key", "error_log_file")
_OPTIONAL = ("memory_max", "num_nodes", "run_time_max", "cwd", "cache_key", "error_log_file")


def merged(base: Resources, wishes: Mapping[str, Any] | None) -> Resources:
    """``base`` with the keys of a resource dictionary in place of its own.

    Raises:
        ResourceError: an unknown key, or a value of the wrong type or out of range.
    """
    if not wishes:
        return base
    if not isinstance(wishes, Mapping):
        raise ResourceError(
            "resource_dict is not a dictionary", type(wishes).__name__, 'For example {"cores": 2}'
        )
    for key, value in wishes.items():
        if key not in VALID_KEYS:
            raise _unknown(key)
        _check(key, value)
    return replace(base, **wishes)


def _unknown(key: object) -> ResourceError:
    near = difflib.get_close_matches(str(key), VALID_KEYS, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return ResourceError("Unknown resource", repr(key), f"{hint}Valid: {', '.join(VALID_KEYS)}")


def _check(key: str, value: Any) -> None:
    if value is None and key in _OPTIONAL:
        return
    if key in _INTEGERS:
        low, high = _INTEGERS[key]
        if type(value) is not int or not low <= value <= high:
            raise _wrong(key, value, f"an integer from {low} to {high}")
    elif key in _NUMBERS:
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise _wrong(key, value, "a number above 0")
    elif key in _TEXTS:
        if not isinstance(value, str) or not value or "\0" in value:
            raise _wrong(key, value, "a string")
    elif key == "exclusive":
        if type(value) is not bool:
            raise _wrong(key, value, "True or False")
    elif value not in CACHE_MODES:
        raise _wrong(key, value, f"one of {', '.join(map(repr, CACHE_MODES))}")


def _wrong(key: str, value: object, wanted: str) -> ResourceError:
    return ResourceError(f"Resource {key!r} must be {wanted}", f"got {value!r}")
