"""What must be done before the interpreter has ended: nothing that was submitted is lost."""

from __future__ import annotations

import atexit
import sys
import weakref
from typing import Protocol


class Exiting(Protocol):
    """What is asked of a client's loop at the interpreter's end."""

    root: str

    def is_own_process(self) -> bool:
        """False in a forked child."""

    def finish(self) -> None:
        """See to what must be there when the interpreter has ended."""

    def unpublished(self) -> int:
        """How many calls are not in the spool."""


_LOOPS: weakref.WeakSet[Exiting] = weakref.WeakSet()


def finish_at_exit(loop: Exiting) -> None:
    """Have this loop finish when the interpreter ends, if it still exists."""
    _LOOPS.add(loop)


@atexit.register
def _finish() -> None:
    """What was submitted is in the spool before the interpreter ends; agents finish it."""
    for loop in list(_LOOPS):
        if loop.is_own_process():
            loop.finish()
            if loop.unpublished():
                lost = f"{loop.unpublished()} calls are not in the spool {loop.root}"
                print(f"fsbroker: {lost}, which cannot be used", file=sys.stderr)
    _release_hdf5()


def _release_hdf5() -> None:
    """Have HDF5 let go of h5py's converters: it would call them when Python is gone.

    h5py does that at exit, but not where the flush above was the first to import it: then
    its handler came too late, and the process would end with a segmentation fault.
    """
    release = getattr(sys.modules.get("h5py"), "_unregister_converters", None)
    if release is not None:
        release()
