"""Python functions on clusters, through a shared directory and the site's own scheduler."""

from fsbroker.executor import ClusterExecutor, attach
from fsbroker.future import Future

__version__ = "0.1.0"

__all__ = ["ClusterExecutor", "Future", "attach"]
