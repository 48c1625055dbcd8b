"""Python functions on clusters, through a shared directory and the site's own scheduler."""

from fsbroker.executor import ClusterExecutor, attach
from fsbroker.future import Future
from fsbroker.program import Completed, TaskResources, mpi_command, resources, run

__version__ = "0.1.0"

__all__ = [
    "ClusterExecutor",
    "Completed",
    "Future",
    "TaskResources",
    "attach",
    "mpi_command",
    "resources",
    "run",
]
