"""`ClusterExecutor`: the standard library's Executor over a spool.

    submit -> client.submitter (address) -> client.loop (outbox, thread) -> spool -> agents
    attach, futures -> client.loop -> futures of tasks that are in the spool already

What works behind it is imported when the first executor is made: `import fsbroker` stands
in scripts that only submit now and then, and must not take the time that numpy and h5py do.
"""

from __future__ import annotations

import concurrent.futures
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fsbroker.errors import ResourceError
from fsbroker.future import Future

if TYPE_CHECKING:
    from fsbroker.client.loop import Agents, ClientLoop
    from fsbroker.resources import Capacity
    from fsbroker.spool.spool import Spool

BACKENDS = ("local", "none")


class ClusterExecutor(concurrent.futures.Executor):
    """Runs functions through a spool: a directory that clients and agents share.

    What is submitted is in the spool before the interpreter ends, and runs on without it;
    the same call in a new session finds its task again, running or done.

    Args:
        spool: the directory; created if it does not exist.
        backend: "local" starts agents as processes of this machine; "none" starts none
            (somebody else's agents serve the spool).
        max_workers: cores of each agent; default: all that this process may use.
        resource_dict: defaults for every call (`Resources`).
        agents: how many local agents share the work.
        tag: a name under which `futures` finds these tasks again.
        watch: how to see news: "auto", "watchdog" or "polling".
        idle_timeout: seconds after which an agent without work ends.

    Raises:
        ResourceError: a wrong argument or resource, or one that cannot be granted here.
        SpoolError: the spool cannot be created or used.
    """

    def __init__(  # noqa: PLR0913 - settings, given by name
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
        from fsbroker.client.loop import ClientLoop
        from fsbroker.client.submitter import Submitter
        from fsbroker.resources import Resources, merged
        from fsbroker.spool.spool import create

        _one_of("watch", watch, ("auto", "watchdog", "polling"))
        if type(idle_timeout) not in (int, float) or not idle_timeout > 0:
            raise ResourceError("idle_timeout must be a number above 0", f"got {idle_timeout!r}")
        if not isinstance(tag, str):
            raise ResourceError("tag must be a string", f"got {tag!r}")
        cores = len(os.sched_getaffinity(0)) if max_workers is None else max_workers
        self._max_workers = _positive("max_workers", cores)
        _positive("agents", agents)
        _one_of("backend", backend, BACKENDS)
        defaults = merged(Resources(), resource_dict)
        self._tag = tag
        self._spool = create(spool)
        launcher, capacity = _agents(self._spool, backend, cores, agents, idle_timeout)
        self._loop = ClientLoop(self._spool, launcher, watch)
        self._submitter = Submitter(self._loop, defaults, capacity, tag)
        self._closed = False
        self._pid = os.getpid()
        # Collected without `shutdown`, it takes no more calls; futures still resolve.
        self._finalizer = weakref.finalize(self, self._loop.close)
        self._finalizer.atexit = False

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

        Args:
            resource_dict: what this call needs, in place of the executor's defaults.

        Raises:
            CannotPickle, ResourceError: nothing was submitted.
            RuntimeError: after `shutdown`, or in a forked child.
        """
        if self._closed or os.getpid() != self._pid:
            raise RuntimeError(self._why_closed())
        return self._submitter.submit(fn, args, kwargs, resource_dict)

    def _why_closed(self) -> str:
        if os.getpid() != self._pid:
            return (
                f"This executor belongs to process {self._pid}, of which {os.getpid()} is a fork; "
                "create one here (on the same spool, if you like)"
            )
        return "cannot schedule new futures after shutdown"

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[Any]:
        """Results of ``fn`` for the items of the iterables, in their order; as `map`.

        Args:
            timeout: seconds from now until the results must be there.
            chunksize: accepted, for the standard library has it. Calls travel together
                anyhow, as many as there are, and each has a key of its own.
            more: what the standard library's `map` takes besides (``buffersize``).

        Raises:
            TimeoutError: (from the iterator) a result was not there in time.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        return super().map(fn, *iterables, timeout=timeout, chunksize=chunksize, **more)

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
            self._loop.cancel_all()
        self._loop.close()
        if wait:
            self._loop.wait()

    def futures(self, tag: str | None = None) -> list[Future]:
        """Futures of the tasks with a tag (default: this executor's), without resubmitting.

        Raises:
            RuntimeError: in a forked child.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(self._why_closed())
        from fsbroker.client.history import keys_with_tag

        wanted = self._tag if tag is None else tag
        return self._loop.futures_of(keys_with_tag(self._spool, wanted))


def attach(spool: str | os.PathLike[str], key: bytes | str, *, backend: str = "local") -> Future:
    """A future of a task that is in the spool, from any session of its user.

    Args:
        key: as `Future.key` gives it, or its 40 hex digits.
        backend: as of `ClusterExecutor`: whether to start agents here if the task still
            waits and none runs.

    Raises:
        ResourceError: this is not a key.
        SpoolMissing: there is no spool.
        TaskLost: (from the future) the spool has no such task.
    """
    from fsbroker.client.loop import ClientLoop
    from fsbroker.spool.spool import open_spool

    binary = _key(key)
    _one_of("backend", backend, BACKENDS)
    opened = open_spool(spool)
    launcher, _ = _agents(opened, backend, len(os.sched_getaffinity(0)))
    loop: ClientLoop = ClientLoop(opened, launcher)
    (future,) = loop.futures_of([binary])
    loop.close()
    return future


def _agents(
    spool: Spool, backend: str, cores: int, agents: int = 1, idle_timeout: float = 120.0
) -> tuple[Agents | None, Capacity | None]:
    """Who starts agents, and the most that these can have; None: nobody, and unknown."""
    if backend != "local":
        return None, None
    from fsbroker.launch.local import LocalLauncher

    launcher = LocalLauncher(spool, cores, agents, idle_timeout)
    return launcher, launcher.capacity


def _key(key: bytes | str) -> bytes:
    from fsbroker.task import KEY_BYTES

    try:
        binary = bytes.fromhex(key) if isinstance(key, str) else bytes(memoryview(key))
    except (TypeError, ValueError):
        binary = b""
    if len(binary) != KEY_BYTES:
        raise ResourceError(
            f"A key is {KEY_BYTES} bytes or {2 * KEY_BYTES} hex digits", f"got {key!r}"
        )
    return binary


def _positive(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise ResourceError(f"{name} must be an integer above 0", f"got {value!r}")
    return value


def _one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ResourceError(f"Unknown {name}", repr(value), f"Valid: {', '.join(valid)}")


__all__ = ["ClusterExecutor", "attach"]
