"""An agent's directory on its node: sockets, and output of workers that is not reported yet."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress

from fsbroker.spool.presence import process_start, this_host


def make(parent: str | None = None) -> str:
    """A new directory, mode 0700; its name tells whose it is.

    Args:
        parent: where nobody sweeps, for other hosts see it too; None: among temporary files.
    """
    pid = os.getpid()
    return tempfile.mkdtemp(prefix=f"{_prefix()}{pid}-{process_start(pid)}-", dir=parent)


def remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def sweep() -> None:
    """Remove what agents that were killed have left here.

    Only those of this user and pid namespace: of others it cannot be told who lives.
    """
    parent, prefix = tempfile.gettempdir(), _prefix()
    for name in os.listdir(parent):
        if not name.startswith(prefix):
            continue
        pid, _, rest = name.removeprefix(prefix).partition("-")
        start = rest.partition("-")[0]
        path = os.path.join(parent, name)
        with suppress(OSError, ValueError):
            if os.lstat(path).st_uid == os.getuid() and process_start(int(pid)) != start:
                remove(path)


def _prefix() -> str:
    namespace = "".join(filter(str.isdigit, this_host().namespace))
    return f"fsbroker-{namespace}-"
