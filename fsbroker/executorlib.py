"""executorlib's executors, as thin faces over `ClusterExecutor`.

    parameters --_options--> Options --settings--> ClusterExecutor

What executorlib's constructors take stands once, in `Options`; a face says which of it it
has, where its tasks run, and how many of them at once. Anything else is `ClusterExecutor`'s,
whose settings are accepted too. Nothing is ignored: what cannot be granted is refused with
what to do instead. docs/migration.md goes through it line by line.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fsbroker.errors import ResourceError
from fsbroker.executor import ClusterExecutor
from fsbroker.needs import Allowance, Resources, merged

if TYPE_CHECKING:
    from fsbroker.future import Future

DEFAULT_DIRECTORY = "executorlib_cache"
"""Where executorlib's cluster executors keep their files if nothing is said."""


@dataclass(frozen=True)
class Options:
    """The parameters of executorlib's executors, in its order and with its defaults.

    Attributes:
        max_workers: tasks that run at once; of a cluster executor: queue jobs at once.
        cache_directory: the spool. Without it single-node executors and those in an
            allocation cache nothing, and leave nothing.
        max_cores: cores in use at once.
        resource_dict: what every call needs; see `fsbroker.needs.Resources`.
        pysqa_config_directory: a site's own ``queue.yaml`` and templates.
        pmi_mode: for ``srun --mpi=``; None: found out.
        flux_executor: refused; ``FLUX_URI`` names the instance.
        flux_executor_nesting: each task has a Flux instance of its own.
        flux_log_files: what tasks and agents print is kept; it always is in a spool.
        hostname_localhost: nothing connects by host name.
        block_allocation: queue jobs stay, and run one task after the other.
        init_function: see `ClusterExecutor`.
        disable_dependencies: refuse futures among arguments.
        refresh_rate: the most seconds between two looks for news; None: adaptive.
        plot_dependency_graph, plot_dependency_graph_filename, export_workflow_filename:
            run nothing, and draw or export the calls.
        log_obj_size: log how many bytes arguments and values have.
        wait: whether the end of a ``with`` block waits for all tasks.
        restart_limit: how often a task is tried again when its worker dies.
        openmpi_oversubscribe: there may be more ranks than cores.
    """

    max_workers: int | None = None
    cache_directory: str | None = None
    max_cores: int | None = None
    resource_dict: Mapping[str, Any] | None = None
    pysqa_config_directory: str | None = None
    pmi_mode: str | None = None
    flux_executor: Any = None
    flux_executor_nesting: bool = False
    flux_log_files: bool = False
    hostname_localhost: bool | None = None
    block_allocation: bool = False
    init_function: Callable[[], Mapping[str, Any]] | None = None
    disable_dependencies: bool = False
    refresh_rate: float | None = None
    plot_dependency_graph: bool = False
    plot_dependency_graph_filename: str | None = None
    export_workflow_filename: str | None = None
    log_obj_size: bool = False
    wait: bool = True
    restart_limit: int = 0
    openmpi_oversubscribe: bool = False

    def check(self) -> None:
        """Refuse what is wrong by itself, or only together.

        Raises:
            ResourceError: with the alternative.
        """
        for name, least in (("max_workers", 1), ("max_cores", 1), ("restart_limit", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ResourceError(f"{name} must be an integer of at least {least}", repr(value))
        if self.flux_executor is not None:
            cure = "Set FLUX_URI, or leave it out for the instance that this process is in."
            raise ResourceError("Agents are started by `flux run`", "flux_executor", cure)
        if self.flux_log_files and self.cache_directory is None:
            cure = "Give a cache_directory: `fsbroker logs` shows what is kept there."
            raise ResourceError("Without a directory no output is kept", "flux_log_files", cure)
        if self.disable_dependencies and self.recorded:
            cure = "Leave disable_dependencies out."
            raise ResourceError("There is no graph without dependencies", "a drawing", cure)

    @property
    def recorded(self) -> dict[str, Any]:
        """What has calls recorded and not run."""
        names = (
            "plot_dependency_graph",
            "plot_dependency_graph_filename",
            "export_workflow_filename",
        )
        return {name: value for name in names if (value := getattr(self, name))}


class BaseExecutor(ClusterExecutor):
    """What executorlib's executors have beyond those of the standard library.

    Args:
        args, kwargs: `Options`, those that ``_parameters`` names, and settings of
            `ClusterExecutor` by name.

    Raises:
        ResourceError: a parameter that this executor has not, or that cannot be granted.
    """

    _backend_name: ClassVar[str] = "local"
    _directory: ClassVar[str | None] = None
    """Of the spool, if none is named; None: a temporary one."""
    _lacks: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        known = [one for one in fields(Options) if one.name not in cls._lacks]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        own = [
            inspect.Parameter(one.name, kind, default=one.default, annotation=one.type)
            for one in known
        ]
        more = inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)
        cls.__signature__ = inspect.Signature([*own, more])  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._given = _bound(type(self), args, kwargs)
        options = self._options = _options(self._given)
        options.check()
        self._refuse(options)
        self._beside: dict[str, BaseExecutor] = {}
        directory = options.cache_directory or self._directory
        settings = {
            "keep": directory is not None,
            **self._sizes(options),
            **_passed_on(options),
            **self._given.get("settings", {}),
        }
        super().__init__(
            directory,
            self._backend_name,
            resource_dict=_defaults(options, self._lacks),
            init_function=options.init_function,
            **settings,
        )
        self._max_workers = options.max_workers or self._max_workers

    def _refuse(self, options: Options) -> None:
        """What this kind of executor cannot grant."""

    def _sizes(self, options: Options) -> dict[str, Any]:
        """How many tasks run at once, in the settings' words."""
        cores = options.max_cores
        if cores is None and options.max_workers is not None:
            # Workers are what is limited: a call may still have more cores than one.
            cores = max(options.max_workers * _cores_of_each(options), _available())
        return {"max_workers": cores, "workers": options.max_workers}

    # -- what executorlib's executors have -----------------------------------------------

    def submit(  # type: ignore[override]
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Future:
        """See `ClusterExecutor.submit`; a ``cache_directory`` of the call's own is one, too."""
        if not isinstance(resource_dict, Mapping):
            return super().submit(fn, *args, resource_dict=resource_dict, **kwargs)
        _make_directory(resource_dict)
        home = self._home(resource_dict.get("cache_directory"))
        wishes = _said(resource_dict)
        return ClusterExecutor.submit(home, fn, *args, resource_dict=wishes, **kwargs)

    def _home(self, directory: str | None) -> BaseExecutor:
        """The executor whose spool is this directory; one more for each, made when first named."""
        if directory is None or self._root in (None, os.path.abspath(directory)):
            return self
        path = os.path.abspath(directory)
        if path not in self._beside:
            self._beside[path] = type(self)(**_flat({**self._given, "cache_directory": path}))
        return self._beside[path]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `ClusterExecutor.shutdown`."""
        for one in (self, *self._beside.values()):
            ClusterExecutor.shutdown(one, wait, cancel_futures=cancel_futures)

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown(wait=self._options.wait)

    @property
    def max_workers(self) -> int | None:
        """As given, or set last; None: as many as fit. It may be set while tasks run."""
        return self._options.max_workers

    @max_workers.setter
    def max_workers(self, count: int) -> None:
        options = replace(self._options, max_workers=count)
        options.check()
        self._options = options
        self._max_workers = count
        self._resize(self._allowance(options))

    def _allowance(self, options: Options) -> Allowance:
        return Allowance(self._sizes(options)["max_workers"], options.max_workers or 0)

    @property
    def info(self) -> dict[str, Any] | None:
        """What calls get, and how many run at once; None after `shutdown`."""
        if self._closed:
            return None
        named = ("max_workers", "max_cores", "block_allocation", "init_function")
        return {
            **vars(self._submitter.resources(None)),
            **{name: getattr(self._options, name) for name in named},
            "cache_directory": self._root,
            "backend": self._backend_name,
        }

    @property
    def future_queue(self) -> Pending | None:
        """What has not ended, as a queue that can be looked at; None after `shutdown`."""
        return None if self._closed else Pending(self)

    def __len__(self) -> int:
        return self._loop.pending()

    def __bool__(self) -> bool:
        return True  # also without a pending call


class Pending:
    """The calls of an executor that have not ended; like a `queue.Queue`, but nobody may take.

    Args:
        executor: whose calls they are.
    """

    def __init__(self, executor: BaseExecutor) -> None:
        self._executor = executor

    def qsize(self) -> int:
        """How many there are."""
        return len(self._executor)

    def empty(self) -> bool:
        """Whether there is none."""
        return not self.qsize()

    def full(self) -> bool:
        """Never: calls go into the spool."""
        return False


_OF_FLUX = {"flux_executor", "flux_executor_nesting", "flux_log_files"}
_OF_CLUSTERS = {"pysqa_config_directory"}


class SingleNodeExecutor(BaseExecutor):
    """Runs tasks on this machine. Parameters: `Options`."""

    _lacks = frozenset({*_OF_FLUX, *_OF_CLUSTERS, "pmi_mode"})


class TestClusterExecutor(BaseExecutor):
    """What a cluster executor does, on this machine: the spool stays, with all results."""

    __test__ = False  # for pytest: its name begins with "Test"
    _directory = DEFAULT_DIRECTORY
    _lacks = frozenset({*_OF_FLUX, *_OF_CLUSTERS, "pmi_mode", "restart_limit"})


class _JobExecutor(BaseExecutor):
    """Runs tasks in the queue job, or Flux instance, that this process is in."""

    _backend_name = "allocation"

    def _refuse(self, options: Options) -> None:
        _refuse_localhost(options)

    def _sizes(self, options: Options) -> dict[str, Any]:
        return {"max_workers": options.max_cores, "workers": options.max_workers}

    def _allowance(self, options: Options) -> Allowance:
        return Allowance(workers=options.max_workers or 0)


class SlurmJobExecutor(_JobExecutor):
    """Runs tasks on all nodes of the SLURM job that this process is in. Parameters: `Options`."""

    _lacks = frozenset({*_OF_FLUX, *_OF_CLUSTERS})


class FluxJobExecutor(_JobExecutor):
    """Runs tasks in the Flux instance that this process is in. Parameters: `Options`."""

    _lacks = frozenset(_OF_CLUSTERS)


class _ClusterExecutor(BaseExecutor):
    """Runs tasks in queue jobs: one for each, or, with ``block_allocation``, some that stay."""

    _directory = DEFAULT_DIRECTORY
    _lacks = frozenset({*_OF_FLUX, "restart_limit"})

    def _refuse(self, options: Options) -> None:
        _refuse_localhost(options)
        if options.max_cores is not None and not options.block_allocation:
            cure = "Use max_workers (queue jobs at once), or block_allocation=True."
            where = f"max_cores={options.max_cores}"
            raise ResourceError("Each task has a job of its own size", where, cure)

    def _sizes(self, options: Options) -> dict[str, Any]:
        jobs, each = options.max_workers, _cores_of_each(options)
        if not options.block_allocation:
            return {"max_jobs": jobs}
        if jobs is None and options.max_cores is not None:
            jobs = max(1, options.max_cores // each)
        return {"max_jobs": jobs, "max_workers": each, "block_allocation": True}

    def _allowance(self, options: Options) -> Allowance:
        return Allowance(workers=options.max_workers or 0)


class SlurmClusterExecutor(_ClusterExecutor):
    """Runs tasks in jobs of SLURM, from a login node. Parameters: `Options`."""

    _backend_name = "slurm"


class FluxClusterExecutor(_ClusterExecutor):
    """Runs tasks in jobs of Flux. Parameters: `Options`."""

    _backend_name = "flux"


# -- from parameters to settings ---------------------------------------------------------


def _bound(
    face: type[BaseExecutor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters that were given, by name; other settings under ``settings``.

    Raises:
        TypeError: as Python says it.
        ResourceError: a parameter that only other executors have.
    """
    for name in sorted(face._lacks.intersection(kwargs)):  # noqa: SLF001 - a face's own
        faces = (*_FACES, TestClusterExecutor)
        having = [one.__name__ for one in faces if name not in one._lacks]  # noqa: SLF001
        where = f"{name}={kwargs[name]!r}"
        cure = f"{', '.join(having)} have it. {_INSTEAD.get(name, '')}".rstrip()
        raise ResourceError(f"Not a parameter of {face.__name__}", where, cure)
    return dict(inspect.signature(face).bind(*args, **kwargs).arguments)


_INSTEAD = {
    "pmi_mode": "Here MPI ranks are started by mpiexec; the setting `mpi` has its arguments.",
    "pysqa_config_directory": "Here nothing is submitted.",
    "restart_limit": 'Here it is resource_dict={"retries": ...}.',
    "flux_executor_nesting": "Elsewhere a task opens executors on its own cores as it is.",
}


def _options(given: Mapping[str, Any]) -> Options:
    """The record of what was given; a directory among the resources is the executor's."""
    wishes = given.get("resource_dict") or {}
    if not isinstance(wishes, Mapping):
        merged(Resources(), wishes)  # which says what is wrong
    options = Options(**{name: value for name, value in given.items() if name != "settings"})
    inner = wishes.get("cache_directory")
    if inner is None or inner == options.cache_directory:
        return options
    if options.cache_directory is not None:
        where = f"{options.cache_directory!r} and {inner!r}"
        cure = "Leave one of them out."
        raise ResourceError("Two cache directories for one executor", where, cure)
    return replace(options, cache_directory=inner)


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as arguments by name."""
    found = {**given, **given.get("settings", {})}
    found.pop("settings", None)
    return {**found, "resource_dict": _said(found.get("resource_dict") or {})}


def _defaults(options: Options, lacks: frozenset[str]) -> Mapping[str, Any]:
    """Resources of every call."""
    wishes = options.resource_dict or {}
    _make_directory(wishes)
    found: dict[str, Any] = {}
    if "restart_limit" not in lacks:
        found["retries"] = options.restart_limit
    if options.openmpi_oversubscribe:
        found["openmpi_oversubscribe"] = True
    return {**found, **_said(wishes)}


def _said(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy, without what is no resource here, and without None where that means nothing."""
    bare = Resources()
    return {
        name: value
        for name, value in wishes.items()
        if name != "cache_directory" and (value is not None or getattr(bare, name, 0) is None)
    }


def _make_directory(wishes: Mapping[str, Any]) -> None:
    """Have the directory that tasks run in; what goes wrong, the task will say."""
    cwd = wishes.get("cwd")
    if isinstance(cwd, str) and cwd:
        with suppress(OSError):
            os.makedirs(cwd, exist_ok=True)


def _passed_on(options: Options) -> dict[str, Any]:
    """What `ClusterExecutor` has under the same name; what was not said is left to its files."""
    names = (
        *("pysqa_config_directory", "pmi_mode", "refresh_rate"),
        *("log_obj_size", "disable_dependencies", "flux_executor_nesting"),
    )
    values = {name: getattr(options, name) for name in names}
    said = {name: None if value is False else value for name, value in values.items()}
    return {**said, **options.recorded}


def _refuse_localhost(options: Options) -> None:
    if options.hostname_localhost:
        cure = "Leave it out: no worker connects to the client, and nodes do by their addresses."
        raise ResourceError(
            "Nodes cannot reach each other as localhost", "hostname_localhost", cure
        )


def _cores_of_each(options: Options) -> int:
    """Cores that a call takes which asks for nothing more."""
    wishes = options.resource_dict or {}
    named = {name: wishes[name] for name in ("cores", "threads_per_core") if wishes.get(name)}
    needs = merged(Resources(), named)
    return needs.cores * needs.threads_per_core


def _available() -> int:
    return len(os.sched_getaffinity(0))


_FACES = (
    SingleNodeExecutor,
    SlurmJobExecutor,
    SlurmClusterExecutor,
    FluxJobExecutor,
    FluxClusterExecutor,
)

__all__ = [
    "BaseExecutor",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "Options",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
    "TestClusterExecutor",
]
