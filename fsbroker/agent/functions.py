"""The functions that a worker has loaded, and the surroundings that each expects.

A *preset* (``init_function``) runs once, before the first row. What its dict returns stays in
the worker, and fills those parameters of later functions that a call leaves out; the number
of the worker does so from the start.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from fsbroker.agent.messages import Function
from fsbroker.errors import CodeChanged, TaskError
from fsbroker.task import WORKER_ID


class Functions:
    """Loads each function once, and puts the worker into its directory and ``sys.path``.

    Attributes:
        preset: digest of the function that is still to run before the first row.
    """

    def __init__(self, number: int = 0) -> None:
        self.preset: bytes | None = None
        self._memory: dict[str, Any] = {WORKER_ID: number}
        self._known: dict[bytes, Function] = {}
        self._loaded: dict[bytes, Callable[..., Any]] = {}
        self._entries: tuple[str, ...] = ()
        self._used = False

    def add(self, function: Function) -> None:
        self._known[function.digest] = function

    def name(self, digest: bytes) -> str:
        return self._known[digest].name

    def run_preset(self, digest: bytes) -> None:
        """Keep what a preset returns; one that fails runs again before the next row.

        Raises:
            TaskError: it returned no dict.
            Exception: whatever it raises.
        """
        function, directory = self.enter(digest)
        os.close(directory)
        found = function()
        if not isinstance(found, Mapping):
            where = f"{self.name(digest)} returned {type(found).__name__}"
            cure = 'For example {"name of a parameter": value}; {} for nothing.'
            raise TaskError("An init_function must return a dict", where, cure)
        self._memory.update(found)
        self.preset = None

    def enter(self, digest: bytes) -> tuple[Callable[..., Any], int]:
        """The function, and a descriptor of the directory that we are in now, to be closed.

        Raises:
            TaskError: the directory is missing.
            CodeChanged: see `_check`.
            Exception: whatever the import of the user's modules raises.
        """
        function = self._known[digest]
        directory = _change_directory(function.cwd)
        try:
            self._use_path(function.path)
            return self._load(function), directory
        except BaseException:
            os.close(directory)
            raise

    def _use_path(self, entries: tuple[str, ...]) -> None:
        if entries != self._entries:
            others = [entry for entry in sys.path if entry not in {*self._entries, *entries}]
            sys.path[:] = [*entries, *others]
            self._entries = entries

    def _load(self, function: Function) -> Callable[..., Any]:
        if function.digest not in self._loaded:
            from fsbroker import pickling

            stale, self._used = self._used, True
            importlib.invalidate_caches()  # modules written since we last looked
            loaded = pickling.load_function(function.pickle)
            _check(loaded, function, stale)
            self._loaded[function.digest] = filling(loaded, self._memory)
        return self._loaded[function.digest]


def filling(function: Callable[..., Any], memory: Mapping[str, Any]) -> Callable[..., Any]:
    """A function whose parameters are filled from ``memory``, where a call leaves them out."""
    wanted = _places(function, memory)
    if not wanted:
        return function

    @wraps(function)
    def filled(*args: Any, **kwargs: Any) -> Any:
        given = len(args)
        for name, place in wanted.items():
            if given <= place and name not in kwargs:
                kwargs[name] = memory[name]
        return function(*args, **kwargs)

    return filled


def _places(function: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, int]:
    """Parameters of these names: from how many positional arguments on they have a value."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins do not tell
        return {}
    found = {}
    for place, one in enumerate(parameters):
        if one.name in names and one.kind == one.POSITIONAL_OR_KEYWORD:
            found[one.name] = place
        elif one.name in names and one.kind == one.KEYWORD_ONLY:
            found[one.name] = sys.maxsize
    return found


def _change_directory(path: str) -> int:
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TaskError(
            f"Cannot enter the directory that the task was submitted in ({error.strerror})",
            path,
            "It must be reachable on the nodes where agents run.",
        ) from error
    os.fchdir(directory)
    return directory


def _check(loaded: Callable[..., Any], function: Function, stale: bool) -> None:
    """Compare the function with the one that was submitted, before it first runs.

    A module that was edited between the submission and now, or after this worker
    imported it, would give the result of another function than the key says. In the
    second case a fresh worker may do.

    Raises:
        CodeChanged: they differ; its attribute ``stale`` tells whether this worker had
            loaded functions before.
    """
    from fsbroker import keys

    if not keys.verify(loaded, function.digest):
        error = CodeChanged(
            where=f"{function.name} in {_file_of(loaded)}",
            cure="Was a module edited after the client imported it, or after the submission?"
            " Restart the session (or reload the module) and submit again.",
        )
        error.stale = stale  # type: ignore[attr-defined]
        raise error


def _file_of(loaded: Callable[..., Any]) -> str:
    module = sys.modules.get(getattr(loaded, "__module__", None) or "")
    return getattr(module, "__file__", None) or "the session"
