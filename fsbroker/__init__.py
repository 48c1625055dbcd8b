"""Python functions on clusters, through a shared directory and the site's own scheduler."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsbroker.cache import (
        get_cache_data,
        get_future_from_cache,
        terminate_task_in_cache,
        terminate_tasks_in_cache,
    )
    from fsbroker.executor import ClusterExecutor, attach
    from fsbroker.executorlib import (
        BaseExecutor,
        FluxClusterExecutor,
        FluxJobExecutor,
        SingleNodeExecutor,
        SlurmClusterExecutor,
        SlurmJobExecutor,
    )
    from fsbroker.future import Future
    from fsbroker.parts import get_item_from_future, split_future
    from fsbroker.program import Completed, TaskResources, mpi_command, resources, run

__version__ = "0.1.0"

__all__ = [
    "BaseExecutor",
    "ClusterExecutor",
    "Completed",
    "FluxClusterExecutor",
    "FluxJobExecutor",
    "Future",
    "SingleNodeExecutor",
    "SlurmClusterExecutor",
    "SlurmJobExecutor",
    "TaskResources",
    "attach",
    "get_cache_data",
    "get_future_from_cache",
    "get_item_from_future",
    "mpi_command",
    "resources",
    "run",
    "split_future",
    "terminate_task_in_cache",
    "terminate_tasks_in_cache",
]

_FACES = ("Base", "SingleNode", "SlurmCluster", "SlurmJob", "FluxCluster", "FluxJob")
_MODULES = {
    "ClusterExecutor": "executor",
    "attach": "executor",
    "Future": "future",
    "get_cache_data": "cache",
    "get_future_from_cache": "cache",
    "get_item_from_future": "parts",
    "split_future": "parts",
    "terminate_task_in_cache": "cache",
    "terminate_tasks_in_cache": "cache",
    **{f"{face}Executor": "executorlib" for face in _FACES},
}


def __getattr__(name: str) -> object:
    # On first use: agents and workers, which start by the thousand, use none of these.
    if name not in __all__:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    found = getattr(import_module(f"fsbroker.{_MODULES.get(name, 'program')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
