"""`ClusterExecutor`: the standard library's Executor over a spool.

    submit -> keys (address) -> client.loop (outbox, thread) -> spool -> agents
"""

from __future__ import annotations

import concurrent.futures
import getpass
import os
import platform
import secrets
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fsbroker import keys
from fsbroker.environment import environment, own_path
from fsbroker.client.loop import Attach, ClientLoop, Order, Submitted
from fsbroker.client.session import Lane
from fsbroker.errors import ResourceError, SpoolError
from fsbroker.future import Future
from fsbroker.launch.local import LocalLauncher
from fsbroker.pickling import ForeignFutures
from fsbroker.resources import Resources, merged
from fsbroker.spool.spool import Spool, create, open_spool
from fsbroker.spool.taskfile import Limits

BACKENDS = ("local", "none")


class ClusterExecutor(concurrent.futures.Executor):
    """Runs functions through a spool: a directory that clients and agents share.

    What is submitted is in the spool before the interpreter ends, and runs on without it;
    the same call in a new session finds its task again, running or done.

    Args:
        spool: the directory; created if it does not exist.
        backend: "local" starts agents as processes of this machine; "none" starts none
            (somebody else's agents serve the spool).
        max_workers: cores of each agent; default: all of this machine.
        resource_dict: defaults for every call (`Resources`).
        agents: how many local agents share the work.
        tag: a name under which `futures` finds these tasks again.
        watch: how to see news: "auto", "watchdog" or "polling".
        idle_timeout: seconds after which an agent without work ends.

    Raises:
        ResourceError: a wrong argument or resource.
        SpoolError: the spool cannot be created or used.
    """

    def __init__(
        self,
        spool: str | os.PathLike[str],
        backend: str = "local",
        max_workers: int | None = None,
        resource_dict: Mapping[str, Any] | None = None,
        *,
        agents: int = 1,
        tag: str = "",
        watch: str = "auto",
        idle_timeout: float = 120.0,
    ) -> None:
        if backend not in BACKENDS:
            raise ResourceError("Unknown backend", repr(backend), f"Valid: {', '.join(BACKENDS)}")
        cores = _positive("max_workers", max_workers or os.cpu_count() or 1)
        self._resources = merged(Resources(), resource_dict)
        self._tag = tag
        self._spool = create(spool)
        launcher = None
        if backend == "local":
            agents = _positive("agents", agents)
            launcher = LocalLauncher(self._spool, cores, agents, idle_timeout)
        self._max_workers = cores
        self._loop = ClientLoop(self._spool, launcher, watch)
        self._orders: dict[Any, tuple[Resources, Order]] = {}
        self._closed = False
        self._pid = os.getpid()
        self._finalizer = weakref.finalize(self, self._loop.close)
        self._finalizer.atexit = False
        self._resources_here, self._order = self._order_for(None)

    def submit(  # type: ignore[override]
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Future:
        """Have ``fn(*args, **kwargs)`` run; a future of its result.

        Futures anywhere in the arguments stand for their results. A call whose value is
        in the spool gives it at once, one that is pending or running is attached to, one
        that failed or was cancelled is tried again.

        Raises:
            CannotPickle, ResourceError: nothing was submitted.
            RuntimeError: after `shutdown`, or in a forked child.
        """
        if self._closed or os.getpid() != self._pid:
            raise RuntimeError(self._why_closed())
        if resource_dict is None:
            resources, order = self._resources_here, self._order
        else:
            resources, order = self._order_for(resource_dict)
        function = keys.identify(fn)
        preset = b"" if order.cache != "off" else secrets.token_bytes(16)
        try:
            call = function.call(args, kwargs, resources.cores, preset, resources.cache_key)
        except ForeignFutures as foreign:
            return self._submit_later(foreign.futures, fn, args, kwargs, resource_dict)
        future = Future(call.key, self._loop)
        self._loop.put(Submitted(future, call, function, order))
        if self._loop.thread is None:
            self._loop.start()
        return future

    def _why_closed(self) -> str:
        if self._closed:
            return "cannot schedule new futures after shutdown"
        return "this executor belongs to the parent process; create one in the child"

    def _submit_later(
        self,
        foreign: list[concurrent.futures.Future[Any]],
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resource_dict: Mapping[str, Any] | None,
    ) -> Future:
        """Futures of other executors: wait for their values here, then submit with them."""
        raise NotImplementedError

    def _order_for(self, wishes: Mapping[str, Any] | None) -> tuple[Resources, Order]:
        """Resources of a call, and the lane of task files that they lead to."""
        resources = merged(self._resources, wishes)
        context = (resources, os.getcwd(), tuple(sys.path))
        known = self._orders.get(context)
        if known is None:
            known = self._orders[context] = (resources, self._make_order(resources))
        return known

    def _make_order(self, resources: Resources) -> Order:
        import cloudpickle

        meta = {
            "user": getpass.getuser(),
            "host": platform.node(),
            "python": platform.python_version(),
            "cloudpickle": cloudpickle.__version__,
            "tag": self._tag,
            "cwd": resources.cwd or os.getcwd(),
            "path": own_path(),
            "error_log_file": resources.error_log_file or "",
        }
        limits = Limits(resources.cores, resources.run_time_max or 0.0, resources.retries)
        lane = Lane(
            resources.priority, str(resources.shape), environment(), limits, _frozen(meta)
        )
        return Order(lane, resources.cache)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: until all have ended. Without it they go on, and their futures resolve.
            cancel_futures: cancel what no agent has begun.
        """
        self._closed = True
        if os.getpid() != self._pid:
            return
        if cancel_futures:
            self._loop.flush(FLUSH)
            self._loop.cancel_all()
        self._loop.close()
        if wait:
            self._loop.wait()

    def futures(self, tag: str | None = None) -> list[Future]:
        """Futures of the tasks with a tag (default: this executor's), without resubmitting."""
        from fsbroker.client.history import keys_with_tag

        wanted = self._tag if tag is None else tag
        return self._loop.futures_of(keys_with_tag(self._spool, wanted))


FLUSH = 60.0
"""Seconds that `shutdown` waits for the outbox before it cancels what is in it."""


def attach(spool: str | os.PathLike[str], key: bytes | str) -> Future:
    """A future of a task that is in the spool, from any session of its user.

    Args:
        key: as `Future.key` gives it, or its 40 hex digits (or the first of them).

    Raises:
        SpoolMissing: there is no spool.
        TaskLost: (from the future) the spool has no such task.
    """
    opened = open_spool(spool)
    loop = ClientLoop(opened, LocalLauncher(opened, os.cpu_count() or 1))
    if isinstance(key, str):
        key = bytes.fromhex(key)
    (future,) = loop.futures_of([key])
    loop.close()
    return future


def _positive(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ResourceError(f"{name} must be an integer above 0", f"got {value!r}")
    return value


def _frozen(meta: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in meta.items())


__all__ = ["Attach", "ClusterExecutor", "Iterable", "Spool", "SpoolError", "attach"]
