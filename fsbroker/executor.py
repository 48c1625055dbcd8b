"""`ClusterExecutor`: the standard library's Executor over a spool.

    submit -> client.submitter (address) -> client.loop (outbox, thread) -> spool -> agents
    attach, futures -> client.loop -> futures of tasks that are in the spool already

What works behind it is imported when the first executor is made: `import fsbroker` stands
in scripts that only submit now and then, and must not take the time that numpy and h5py do.
"""

from __future__ import annotations

import concurrent.futures
import math
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fsbroker.errors import ResourceError
from fsbroker.future import Future

if TYPE_CHECKING:
    from fsbroker.client.agents import Agents
    from fsbroker.client.deferral import Deferral
    from fsbroker.client.loop import ClientLoop, Habits
    from fsbroker.client.submitter import Preset, Submitter
    from fsbroker.config import Config
    from fsbroker.needs import Allowance, Capacity, Resources
    from fsbroker.parts import Batch
    from fsbroker.report.plan import Plan, Wish
    from fsbroker.spool.spool import Spool


class ClusterExecutor(concurrent.futures.Executor):
    """Runs functions through a spool: a directory that clients and agents share.

    What is submitted is in the spool before the interpreter ends, and runs on without it;
    the same call in a new session finds its task again, running or done.

    Args:
        spool: the directory; created if it does not exist. Default: the setting of this name.
        backend: "local" starts agents as processes of this machine; "allocation" one on all
            nodes of the queue job or Flux instance that this process runs in; "slurm" and
            "flux" submit queue jobs with agents in them; "none" starts none (somebody else's
            agents serve the spool).
        max_workers: cores of each local agent (default: all that this process may use), of
            that of an allocation (default: all of its cores), or of each queue job that
            drains the spool (default: what its largest task needs).
        resource_dict: defaults for every call (`Resources`).
        init_function: called once in each worker, before the first call; what the dict that
            it returns says of parameters fills those that calls leave out.
        options: other settings, by the names of `fsbroker.config.Config`: ``tag``, ``watch``,
            ``idle_timeout``, ``agents``, ``block_allocation``, ``max_jobs``, ``job_time``, ...
            With ``plot_dependency_graph=True``, or a file named by
            ``plot_dependency_graph_filename`` or ``export_workflow_filename``, nothing runs
            and no spool is needed: the calls are drawn, or written as a workflow file, at the
            end. Futures are done at once, and their results are None.
            What is not given here comes from the environment and from settings files
            (``fsbroker config show``).

    Raises:
        ResourceError: a wrong argument or resource, or one that cannot be granted here.
        SpoolError: the spool cannot be created or used.
        MissingProgram: this backend needs something that is not installed.
    """

    def __init__(
        self,
        spool: str | os.PathLike[str] | None = None,
        backend: str | None = None,
        max_workers: int | None = None,
        resource_dict: Mapping[str, Any] | None = None,
        *,
        init_function: Preset | None = None,
        **options: Any,
    ) -> None:
        from fsbroker.client.loop import ClientLoop
        from fsbroker.client.submitter import Submitter, Terms
        from fsbroker.config import load
        from fsbroker.launch.local import available_cores
        from fsbroker.launch.settings import in_task
        from fsbroker.needs import Resources, merged
        from fsbroker.spool.spool import create

        named = {"backend": backend, "max_workers": max_workers}
        self._config = in_task(load(spool=spool and os.fspath(spool), **named, **options))
        keep = self._config.keep
        site_keys = _site_keys(self._config)
        defaults = merged(Resources(cache="reuse" if keep else "off"), self._config.resource_dict)
        defaults = merged(defaults, resource_dict, site_keys)
        terms = Terms(
            defaults,
            self._config.tag,
            site_keys,
            init_function,
            dependencies=not self._config.disable_dependencies,
            log_sizes=self._config.log_obj_size,
        )
        # Libraries ask a pool for it, to choose their chunks.
        self._max_workers = self._config.max_workers or available_cores()
        self._closed = False
        self._pid = os.getpid()
        self._spool: Spool | None = None
        self._back = _Backend()
        self._loop: ClientLoop | Plan
        self._submitter: Submitter | Plan
        if wish := _wish(self._config):
            self._plan(wish, defaults, site_keys)
            return
        made = self._spool = create(_directory(self._config, spool), durable=keep)
        with _removed_on_failure(made, keep=keep):
            back = self._back = _backend(made, self._config)
            others = _deferral(made, self._config)
            loop = self._loop = ClientLoop(made, back.agents, _habits(self._config), others)
            self._submitter = Submitter(loop, back.capacity, terms)
        # Collected without `shutdown`, it takes no more calls; futures still resolve.
        self._finalizer = weakref.finalize(self, loop.close)
        self._finalizer.atexit = not keep  # nothing of it may stay

    def _plan(self, wish: Wish, defaults: Resources, site_keys: frozenset[str]) -> None:
        """Run nothing: note the calls, and draw or write them at the end."""
        from fsbroker.report.plan import Plan

        plan = self._loop = self._submitter = Plan(wish, defaults, site_keys)
        # A script that ends without `shutdown` gets its drawing too.
        self._finalizer = weakref.finalize(self, plan.close)

    @property
    def _root(self) -> str | None:
        """The directory of the spool; None: it only plans."""
        return self._spool and self._spool.files.root

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
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Results of ``fn`` for the items of the iterables, in their order; as `map`.

        A few thousand calls are submitted at once, others as results are taken. Whoever ends
        the iterator early cancels what is left. Calls that are left at `shutdown`, because
        nobody has come to take results, are submitted then.

        Args:
            timeout: seconds from now until the results must be there.
            chunksize: accepted, for the standard library has it. Calls travel together
                anyhow, as many as there are, and each has a key of its own.
            buffersize: how many calls may be submitted whose results were not taken. With
                it no more than those are ever submitted.

        Raises:
            TimeoutError: (from the iterator) a result was not there in time.
        """
        from fsbroker.mapping import Stream

        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = math.inf if timeout is None else time.monotonic() + timeout
        return Stream(self._loop, partial(self.submit, fn), iterables, buffersize).results(end)

    def batched(self, iterable: Iterable[concurrent.futures.Future[Any]], n: int) -> list[Batch]:
        """Futures of lists of ``n`` values, those that are there first; the last may be shorter.

        A batch is done as soon as its futures are, in a list that keeps the order of
        ``iterable``. A call with a batch among its arguments is submitted then, by this process.
        Those that fail come last: a batch with one among them raises its exception.
        """
        from fsbroker.parts import batched

        return batched(iterable, n)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: until all have ended. Without it they go on, and their futures resolve.
            cancel_futures: cancel what no agent has begun.
        """
        if os.getpid() != self._pid:
            self._closed = True
            return
        try:
            if not cancel_futures:
                self._loop.drain()  # what `map` still has
        finally:
            self._closed = True
            self._end(wait, cancel_futures)

    def _end(self, wait: bool, cancel_futures: bool) -> None:
        if cancel_futures:
            self._loop.cancel_all()
        self._loop.close()
        if wait:
            self._loop.wait()

    def _resize(self, allowed: Allowance) -> None:
        """Have the agents that this executor started use more, or less, from now on."""
        if self._back.agents is not None:
            self._back.agents.resize(allowed)
        capacity = self._submitter.capacity
        if allowed.cores and capacity is not None:
            source = f"max_workers={allowed.cores}"
            self._submitter.capacity = capacity._replace(cores=allowed.cores, cores_from=source)

    def job_script(self, resource_dict: Mapping[str, Any] | None = None) -> str:
        """The job script that a task with these resources would be run by; submits nothing.

        A job for the task alone, or, with ``block_allocation``, one that drains the spool. What
        only a submission gives it is 0: its number, its token, and the task's name.

        Raises:
            ResourceError: wrong resources, or a backend without queue jobs.
        """
        resources = self._submitter.resources(resource_dict)
        if self._back.script is None:
            where = f"backend={self._config.backend!r}"
            raise ResourceError("Only queue jobs have a script", where, 'Use "slurm" or "flux"')
        return self._back.script(resources)

    def futures(self, tag: str | None = None) -> list[Future]:
        """Futures of the tasks with a tag (default: this executor's), without resubmitting.

        Raises:
            RuntimeError: in a forked child.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(self._why_closed())
        from fsbroker.client.history import keys_with_tag

        wanted = self._config.tag if tag is None else tag
        keys = keys_with_tag(self._spool, wanted) if self._spool else ()
        return self._loop.futures_of(keys)


def attach(
    spool: str | os.PathLike[str], key: bytes | str, *, backend: str | None = None
) -> Future:
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
    from fsbroker.config import load
    from fsbroker.spool.spool import open_spool

    binary = _key(key)
    config = load(spool=os.fspath(spool), backend=backend)
    opened = open_spool(spool)
    loop: ClientLoop = ClientLoop(opened, _backend(opened, config).agents)
    (future,) = loop.futures_of([binary])
    loop.close()
    return future


class _Backend(NamedTuple):
    """Who starts agents, the most that a task can ask for, and what only queue jobs have.

    Attributes:
        script: the job script for a task.
    """

    agents: Agents | None = None
    capacity: Capacity | None = None
    script: Callable[[Resources], str] | None = None


def _habits(config: Config) -> Habits:
    from fsbroker.client.loop import Habits
    from fsbroker.spool.watch import LAST_DELAY

    slowest = config.refresh_rate or LAST_DELAY
    return Habits(config.watch, slowest, config.log_obj_size, config.keep)


def _directory(config: Config, given: str | os.PathLike[str] | None) -> str:
    """Of the spool; a private one is named after this process, so that it can be swept up."""
    if not config.keep:
        if given is not None:
            cure = "Leave the spool out, or keep it"
            raise ResourceError("A spool that is not kept is a temporary directory", given, cure)
        from fsbroker.agent import scratch

        scratch.sweep()
        return scratch.make(_shared_by_nodes() if config.backend == "allocation" else None)
    if config.spool is None:
        raise ResourceError("No spool is named", "spool", "Give a directory, or set FSBROKER_SPOOL")
    return config.spool


@contextmanager
def _removed_on_failure(spool: Spool, *, keep: bool) -> Iterator[None]:
    """An executor that did not come to be leaves no private spool."""
    try:
        yield
    except BaseException:
        if not keep:
            shutil.rmtree(spool.files.root, ignore_errors=True)
        raise


def _shared_by_nodes() -> str | None:
    """A directory that all nodes of the allocation see; None: this node is the only one."""
    alone = os.environ.get("SLURM_JOB_NUM_NODES") == "1" and "SLURMD_NODENAME" in os.environ
    if alone and "FLUX_URI" not in os.environ:
        return None
    here = os.getcwd()
    return here if os.access(here, os.W_OK) else os.path.expanduser("~")


def _wish(config: Config) -> Wish | None:
    """What is to be drawn or written in place of running anything; None: everything runs."""
    drawing, workflow = config.plot_dependency_graph_filename, config.export_workflow_filename
    if not config.plot_dependency_graph and drawing is None and workflow is None:
        return None
    from fsbroker.report.plan import Wish

    return Wish(config.plot_dependency_graph, drawing, workflow)


def _deferral(spool: Spool, config: Config) -> Deferral | None:
    """Whose results may be used as well, in a shared spool."""
    if not config.trust or (spool.files.owners and not spool.files.shared):
        return None
    from fsbroker.agent.session import without_workers
    from fsbroker.client.deferral import Deferral
    from fsbroker.spool.neighbours import Neighbours
    from fsbroker.spool.presence import CLIENT
    from fsbroker.spool.trust import Trusted

    neighbours = Neighbours(spool, Trusted(config.trust))
    return Deferral(neighbours, lambda: without_workers(spool, CLIENT))


def _site_keys(config: Config) -> frozenset[str]:
    """Keys of resources that the job template of the site adds."""
    from fsbroker.launch.settings import has_queue, scheduler_of

    return scheduler_of(config).site_keys() if has_queue(config) else frozenset()


def _backend(spool: Spool, config: Config) -> _Backend:
    from fsbroker.launch.settings import check_nesting, scheduler_of

    if config.backend != "allocation":  # which sees what it is in
        check_nesting(config, config.backend)
    if config.backend == "none":
        return _Backend()
    if config.backend == "local":
        from fsbroker.launch.local import LocalLauncher

        local = LocalLauncher(spool, config)
        return _Backend(local, local.capacity)
    if config.backend == "allocation":
        return _in_allocation(spool, config)
    from fsbroker.launch.queue import QueueLauncher

    queue = QueueLauncher(spool, scheduler_of(config), config)
    return _Backend(queue, queue.capacity, queue.script)


def _in_allocation(spool: Spool, config: Config) -> _Backend:
    from fsbroker.agent.slots import Slots
    from fsbroker.launch.allocation import AllocationLauncher, allotment

    wanted = allotment(config.max_workers, config.nodes_per_job)
    agents = AllocationLauncher(spool, config, wanted)
    return _Backend(agents, agents.capacity._replace(fits=Slots(wanted.nodes).could_fit))


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


__all__ = ["ClusterExecutor", "attach"]
