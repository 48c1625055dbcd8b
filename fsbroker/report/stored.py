"""Calls as they stand in a spool: tasks, with what they depend on.

    rows -> all that they depend on, dependencies first -> task files -> StoredCall -> Call

Parameters' names are read from the function's text, and pickled arguments stay closed:
nothing of the tasks is imported or unpickled.
"""

from __future__ import annotations

import ast
import inspect
import pickletools
import textwrap
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, NamedTuple

from fsbroker import plain
from fsbroker.client.history import History, Row
from fsbroker.errors import FileDamaged, TaskLost
from fsbroker.report.calls import Argument, Call, Called, Form, Leaf, Reader, Ref
from fsbroker.report.graph import WIDEST, Node, Shape
from fsbroker.report.shown import cut
from fsbroker.spool.census import Census
from fsbroker.spool.spool import Spool
from fsbroker.spool.taskfile import FunctionEntry, TaskFile
from fsbroker.task import ArrayRef, Dependency, Encoding, Value

ARGUMENTS = "arguments"
"""The port of arguments that are pickled."""


class StoredCall(NamedTuple):
    """One task.

    Attributes:
        row: what became of it. arguments: in their stored form.
        dependencies: what the arguments refer to.
    """

    row: Row
    function: FunctionEntry
    arguments: Value
    dependencies: tuple[Dependency, ...]

    @property
    def is_closed(self) -> bool:
        """Whether its arguments are pickled."""
        return self.arguments.encoding == Encoding.PICKLE

    @property
    def is_importable(self) -> bool:
        """Whether others find the function by its name."""
        return not self.function.name.startswith("__main__.") and _is_by_name(self.function.pickle)


class Stored:
    """Tasks and all that they depend on.

    Attributes:
        rows: each after those that it depends on.
        missing: keys that others depend on, whose task files were removed.
    """

    def __init__(self, spool: Spool, history: History, named: Iterable[Row]) -> None:
        self._spool = spool
        self._history = history
        self.missing: dict[bytes, None] = {}
        self.rows = self._with_dependencies(named)
        keys = [*self.missing, *(row.key for row in self.rows)]
        self.numbers = {key: number for number, key in enumerate(keys)}

    def _with_dependencies(self, named: Iterable[Row]) -> list[Row]:
        done: dict[bytes, Row] = {}
        stack = [(row, False) for row in reversed(list(named))]
        while stack:
            row, inputs_done = stack.pop()
            if inputs_done:
                done.setdefault(row.key, row)
            elif row.key not in done:
                stack.append((row, True))
                stack += [(other, False) for other in self._dependencies(row)]
        return list(done.values())

    def _dependencies(self, row: Row) -> list[Row]:
        found = {key: self._history.find(key) for key in row.tasks.dependencies(row.number)}
        self.missing |= {key: None for key, other in found.items() if other is None}
        return [other for other in found.values() if other is not None]

    def read(self) -> list[StoredCall]:
        """The tasks with their functions and arguments: each task file is opened once.

        Raises:
            TaskLost: a task file was removed meanwhile.
        """
        wanted: dict[str, list[Row]] = {}
        for row in self.rows:
            wanted.setdefault(row.tasks.stem, []).append(row)
        files, area, _ = self._spool
        found: dict[bytes, StoredCall] = {}
        for entry in Census(files, area).task_files() if wanted else ():
            for row in wanted.pop(entry.stem, ()):
                found[row.key] = _read(entry.tasks, row)
            if not wanted:
                break
        if wanted:
            raise TaskLost("The task file was removed meanwhile", ", ".join(wanted))
        return [found[row.key] for row in self.rows]

    def calls(self, calls: Sequence[StoredCall], form: Form) -> list[Call]:
        """What refers to what; keys that are missing come first, as calls of nothing.

        Args:
            form: what is kept of values; arrays are `StoredArray`.
        """
        reader = Reader(self.numbers, form)
        lost = [Call(Called(key.hex(), None, False), ()) for key in self.missing]
        return [*lost, *(self._call(reader, one) for one in calls)]

    def _call(self, reader: Reader, stored: StoredCall) -> Call:
        called = called_of(stored.function)
        if stored.is_closed:
            refs = [Ref(self.numbers[key], path) for key, path in stored.dependencies]
            sources = [Argument("", str(place), ref) for place, ref in enumerate(refs)]
            return Call(called, (*sources, Argument("", ARGUMENTS, Leaf("(pickled)", object()))))
        args, kwargs = arguments_of(stored)
        try:
            return reader.call(called, args, kwargs)
        except TypeError:  # the text is not that of this function, or the call was wrong
            return reader.call(called._replace(signature=None), args, kwargs)

    def nodes(self) -> list[Node]:
        """A box for each call, with the task's state."""
        lost = [Node(Shape.BOX, key.hex()[:12], "removed", "removed") for key in self.missing]
        return [*lost, *map(_node, self.rows)]


def _node(row: Row) -> Node:
    name = row.tasks.function(row.number)
    record = row.tasks.record(row.number)
    lines = [name, record.key, record.state, record.error]
    if record.wall is not None:
        lines.append(f"{record.wall:.3g} s on {record.host}")
    label = cut(name.rpartition(".")[2], WIDEST)
    return Node(Shape.BOX, label, "\n".join(filter(None, lines)), record.state)


def _read(file: TaskFile, row: Row) -> StoredCall:
    dependencies = tuple(one for one, _ in file.dependencies(row.number))
    return StoredCall(row, file.function(row.number), file.arguments(row.number), dependencies)


# -- arguments ---------------------------------------------------------------------------


class _Flags(NamedTuple):
    writeable: bool = True


class StoredValue(Future):  # type: ignore[type-arg]
    """Stands for the value of another task, as its future did."""

    def __init__(self, dependency: Dependency) -> None:
        super().__init__()
        self.dependency = dependency


class StoredArray:
    """Stands for an array whose bytes are not looked at."""

    flags = _Flags()

    def __init__(self, ref: ArrayRef) -> None:
        self.ref = ref
        self.shape = ref.shape
        self.dtype = ref.dtype


def arguments_of(stored: StoredCall) -> tuple[list[Any], dict[str, Any]]:
    """Plain arguments, with `StoredValue` and `StoredArray` in the places of values and arrays."""
    arrays = [StoredArray(ref) for ref in stored.arguments.arrays]
    values = [StoredValue(dependency) for dependency in stored.dependencies]
    found = plain.decode(stored.arguments.data, arrays, values)
    if isinstance(found, list):
        return found, {}
    try:
        return list(found["args"]), dict(found["kwargs"])
    except (TypeError, LookupError, ValueError):
        raise FileDamaged("Stored arguments are not a list, nor args and kwargs") from None


# -- functions ---------------------------------------------------------------------------


def called_of(function: FunctionEntry) -> Called:
    """What a stored function's text tells of it."""
    signature = _signature(function.source)
    direct = signature is not None and not function.source[:1].isspace()
    return Called(function.name, signature, direct and _is_by_name(function.pickle))


@lru_cache(maxsize=1024)
def _signature(source: str) -> inspect.Signature | None:
    """The parameters in the text of a function; None if it is no plain definition."""
    try:
        body = ast.parse(textwrap.dedent(source)).body
    except (SyntaxError, ValueError, RecursionError):
        return None
    if len(body) != 1 or not isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    return inspect.Signature(_parameters(body[0].args))


def _parameters(args: ast.arguments) -> list[inspect.Parameter]:
    kinds = inspect.Parameter
    first = len(args.posonlyargs) + len(args.args) - len(args.defaults)
    found = []
    for place, one in enumerate((*args.posonlyargs, *args.args)):
        only = place < len(args.posonlyargs)
        kind = kinds.POSITIONAL_ONLY if only else kinds.POSITIONAL_OR_KEYWORD
        default = None if place >= first else kinds.empty
        found.append(inspect.Parameter(one.arg, kind, default=default))
    if args.vararg:
        found.append(inspect.Parameter(args.vararg.arg, kinds.VAR_POSITIONAL))
    found += [inspect.Parameter(one.arg, kinds.KEYWORD_ONLY) for one in args.kwonlyargs]
    if args.kwarg:
        found.append(inspect.Parameter(args.kwarg.arg, kinds.VAR_KEYWORD))
    return found


_REFERENCE = {"PROTO", "FRAME", "SHORT_BINUNICODE", "BINUNICODE", "MEMOIZE", "STACK_GLOBAL", "STOP"}


@lru_cache(maxsize=1024)
def _is_by_name(data: bytes) -> bool:
    """Whether a pickle does nothing but name something."""
    try:
        return all(code.name in _REFERENCE for code, _, _ in pickletools.genops(data))
    except Exception:  # not a pickle
        return False
