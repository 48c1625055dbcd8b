"""What stands behind an executor that runs nothing: it notes calls, and draws or writes them.

    submit -> Planned (done, its result is None) ... shutdown -> graph, workflow file

Futures are done at once, as those of executorlib are then, so that a script that prints
results goes on to its end.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fsbroker import workflow
from fsbroker.errors import WorkflowError
from fsbroker.future import LightFuture
from fsbroker.mapping import Stream
from fsbroker.needs import Capacity, Resources, merged
from fsbroker.report import drawing
from fsbroker.report.calls import Call, Called, Reader, called_of
from fsbroker.report.definition import definition_of
from fsbroker.report.graph import graph_of
from fsbroker.report.jsonform import json_form
from fsbroker.report.shown import shown
from fsbroker.report.whole import write_whole
from fsbroker.task import KEY_BYTES, Dependency


class Planned(LightFuture):
    """The future of a call that is only noted: done, and its result is None.

    Attributes:
        dependency: what stands for it in arguments.
    """

    planned = True

    def __init__(self) -> None:
        self.dependency = Dependency(secrets.token_bytes(KEY_BYTES))
        self.deliver(None, None)


class Wish(NamedTuple):
    """What is to come of the calls.

    Attributes:
        display: draw in the notebook, if there is no file for it.
        drawing, workflow: files; None: none.
    """

    display: bool = False
    drawing: str | None = None
    workflow: str | None = None


class Plan:
    """Takes the place of what an executor submits to, and of what it waits for.

    Args:
        defaults: resources of every call; they are checked, though nothing needs them.
        site_keys: more keys of resources.

    Raises:
        WorkflowError, MissingProgram: the drawing could not be made.
    """

    def __init__(
        self, wish: Wish, defaults: Resources, site_keys: frozenset[str] = frozenset()
    ) -> None:
        if wish.drawing is not None:
            drawing.check_drawable(wish.drawing)
        self._wish = wish
        self._defaults = defaults
        self._site_keys = site_keys
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()
        self.capacity: Capacity | None = None
        self.feeds: set[Stream] = set()
        self._numbers: dict[bytes, int] = {}
        self._shown = Reader(self._numbers, lambda value, _: shown(value))
        self._json = Reader(self._numbers, json_form)
        self.calls: list[Call] = []
        self.written: list[Call] = []

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wishes: Mapping[str, Any] | None,
    ) -> Any:
        """Note a call; a `Planned`.

        Raises:
            ResourceError: wrong resources. TypeError: the function does not take this.
            WorkflowError: a workflow file cannot hold it.
        """
        self.resources(wishes)
        called = called_of(fn)
        if self._wish.workflow is not None:
            _require_name(fn, called)
        future = Planned()
        with self._lock:
            drawn = self._shown.call(called, args, kwargs)
            if self._wish.workflow is not None:
                self.written.append(self._json.call(called, args, kwargs))
            self.calls.append(drawn)
            self._numbers[future.dependency.key] = len(self._numbers)
        return future

    def resources(self, wishes: Mapping[str, Any] | None) -> Resources:
        resources = merged(self._defaults, wishes, self._site_keys)
        resources.check()
        return resources

    def drain(self) -> None:
        """Note what `map` still has."""
        for feed in list(self.feeds):
            feed.fill()

    def futures_of(self, _: Iterable[bytes]) -> list[Any]:
        """Those of a spool: there is none."""
        return []

    def pending(self) -> int:
        """Calls that have not ended."""
        return 0

    def cancel_many(self, futures: Iterable[Any]) -> None:
        """Nothing runs."""

    def cancel_all(self) -> None:
        """Nothing runs."""

    def wait(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Draw and write what was noted: once.

        Raises:
            WorkflowError: no call was noted, or Graphviz failed. OSError: of the files.
        """
        with self._lock:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
        if self._wish.workflow is not None:
            write_whole(self._wish.workflow, definition_of(self.written).text())
        if self._wish.drawing is not None:
            drawing.draw(graph_of(self.calls), self._wish.drawing)
        elif self._wish.display:
            drawing.display(graph_of(self.calls))


def _require_name(fn: Callable[..., Any], called: Called) -> None:
    """Refuse a function that nobody could import by its name."""
    try:
        known = workflow.found(called.name)
    except (ImportError, AttributeError, ValueError):
        known = None
    if known is not fn and known != fn:  # a method of a class is made anew each time
        raise WorkflowError(
            "A workflow file names functions, and this one is not found by its name",
            called.name,
            "Define it at the top of a module",
        )
