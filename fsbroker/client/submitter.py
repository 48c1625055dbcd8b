"""From a function and its arguments to a call in the outbox.

resource_dict -> Resources -> lane of task files
fn, arguments -> keys.identify, Function.call -> key, payload -> Submitted -> outbox
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future as AnyFuture
from dataclasses import replace
from typing import Any, NamedTuple

import cloudpickle

from fsbroker import keys
from fsbroker.client.foreign import Arguments, Deferred
from fsbroker.client.loop import ROOTS, ClientLoop
from fsbroker.client.outbox import Order, Submitted
from fsbroker.client.session import Lane
from fsbroker.environment import environment, own_path
from fsbroker.errors import CannotPickle, ResourceError
from fsbroker.future import Future, addressed_in
from fsbroker.keys import Call, Function
from fsbroker.needs import Capacity, Resources, merged
from fsbroker.pickling import Foreign, ForeignFutures
from fsbroker.spool.taskfile import FunctionEntry, Limits

Preset = Callable[[], Mapping[str, Any]]
"""An ``init_function``: called in each worker before the first call that runs there."""


class Terms(NamedTuple):
    """What holds for all calls of an executor.

    Attributes:
        defaults: resources of every call.
        tag: a name under which the tasks are found again.
        site_keys: more keys of resources, which the site's job template knows.
        preset: what workers call before the first of these calls.
        dependencies: whether futures may be among the arguments.
        log_sizes: log how many bytes the arguments have.
    """

    defaults: Resources
    tag: str = ""
    site_keys: frozenset[str] = frozenset()
    preset: Preset | None = None
    dependencies: bool = True
    log_sizes: bool = False


class Submitter:
    """What an executor does with each call. Any thread may use it.

    Args:
        loop: takes what is submitted.
        capacity: what no call may exceed; None if anything may be there.

    Attributes:
        capacity: see above; it may change.
    """

    def __init__(self, loop: ClientLoop, capacity: Capacity | None, terms: Terms) -> None:
        self._loop = loop
        self.capacity = capacity
        self._terms = terms
        self._preset = _entry(terms.preset, terms.defaults.cache) if terms.preset else None
        self._orders: dict[Any, Order] = {}
        self._lanes: dict[Lane, Lane] = {}
        self._resources = self.resources(None)
        self._order = self._order_for(self._resources)

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wishes: Mapping[str, Any] | None,
    ) -> Future:
        """Address a call and put it into the outbox.

        Raises:
            CannotPickle, ResourceError: nothing was submitted.
        """
        if wishes is None:
            resources, order = self._resources, self._order
        else:
            resources = self.resources(wishes)
            order = self._order_for(resources)
        loop = self._loop
        called = _Called(fn, _identify(fn, order.cache), resources, order.lane.preset)
        try:
            function, call = called.address((args, kwargs))
            if call.payload.dependencies and len(ROOTS) > 1:
                with addressed_in(loop.root):  # some may be of other spools
                    function, call = called.address((args, kwargs))
        except ForeignFutures as foreign:
            self._require_dependencies(foreign.futures)
            return self._defer(called, (args, kwargs), order, foreign.futures)
        if call.payload.dependencies:
            self._require_dependencies(call.payload.dependencies)
        if self._terms.log_sizes:
            _log_size(function, call)
        future = Future(call.key, loop)
        if order.cache == "refresh":
            future.fresh = True
        loop.put(Submitted(future, call, function, order))
        if loop.thread is None:
            loop.start()
        return future

    def _require_dependencies(self, found: Sequence[object]) -> None:
        if not self._terms.dependencies:
            where = f"{len(found)} futures among the arguments"
            cure = "Leave disable_dependencies out, or give results."
            raise ResourceError("Dependencies are disabled", where, cure)

    def _defer(
        self,
        called: _Called,
        arguments: Arguments,
        order: Order,
        futures: list[AnyFuture[Any]],
    ) -> Future:
        """Wait for futures that no agent knows, then submit with their values."""

        def address(arguments: Arguments, foreign: Foreign) -> Submitted:
            function, call = called.address(arguments, foreign)
            deferred.future.fresh = order.cache == "refresh"
            return Submitted(deferred.future, call, function, order)

        deferred = Deferred(self._loop, address, arguments)
        deferred.wait_for(futures)
        return deferred.future

    def resources(self, wishes: Mapping[str, Any] | None) -> Resources:
        """What a call with these wishes gets.

        Raises:
            ResourceError: they are wrong, or nobody here could grant them.
        """
        resources = merged(self._terms.defaults, wishes, self._terms.site_keys)
        resources.check()
        if self.capacity is not None:
            self.capacity.require(resources)
        return resources

    def _order_for(self, resources: Resources) -> Order:
        """The lane of task files that resources lead to, here and now."""
        # What only makes the key does not part calls that could share a task file.
        resources = replace(resources, cache_key=None)
        context = (resources, os.getcwd(), tuple(sys.path))
        known = self._orders.get(context)
        if known is None:
            lane = lane_of(resources, self._terms.tag, self._preset)
            lane = self._lanes.setdefault(lane, lane)
            known = self._orders[context] = Order(lane, resources.cache)
        return known


def lane_of(resources: Resources, tag: str, preset: FunctionEntry | None = None) -> Lane:
    """The task files that a call with these resources may stand in, from here and now."""
    cwd = os.path.abspath(resources.cwd or "")
    meta: dict[str, Any] = {
        "user": getpass.getuser(),
        "host": platform.node(),
        "python": platform.python_version(),
        "cloudpickle": cloudpickle.__version__,
        "tag": tag,
        "cwd": cwd,
        "path": own_path(),
        "error_log_file": os.path.join(cwd, log) if (log := resources.error_log_file) else "",
    }
    if resources.openmpi_oversubscribe:
        meta["oversubscribe"] = True
    if resources.queue:
        meta["queue"] = json.dumps(resources.queue)
    limits = Limits(resources.cores, resources.run_time_max or 0.0, resources.retries)
    shape = str(resources.shape)
    frozen = tuple(meta.items())
    return Lane(resources.priority, shape, environment(), limits, frozen, preset)


class _Called(NamedTuple):
    """A function, as it was when it was submitted."""

    fn: Callable[..., Any]
    function: Function
    resources: Resources
    preset: FunctionEntry | None

    def address(
        self, arguments: Arguments, foreign: Foreign | None = None
    ) -> tuple[Function, Call]:
        """The key of a call. Without a cache it is the call's own, and any content will do."""
        (args, kwargs), ranks, name = arguments, self.resources.cores, self.resources.cache_key
        if self.resources.cache != "off":
            preset = self.preset.digest if self.preset else b""
            return self.function, self.function.call(args, kwargs, ranks, preset, name, foreign)
        preset = secrets.token_bytes(16)
        try:
            return self.function, self.function.call(args, kwargs, ranks, preset, None, foreign)
        except CannotPickle:
            function = keys.opaque(self.fn)
            return function, function.call(args, kwargs, ranks, preset, None, foreign)


def _log_size(function: Function, call: Call) -> None:
    size = len(call.payload.data) + sum(array.nbytes for array in call.payload.arrays)
    # The level that shows by default: it was asked for.
    logging.getLogger("fsbroker").warning("arguments of %s: %d bytes", function.name, size)


def _entry(fn: Callable[..., Any], cache: str) -> FunctionEntry:
    function = _identify(fn, cache)
    return FunctionEntry(function.digest, function.name, function.source, function.pickle)


def _identify(fn: Callable[..., Any], cache: str) -> Function:
    try:
        return keys.identify(fn)
    except CannotPickle:
        if cache != "off":
            raise
        return keys.opaque(fn)
