"""Being told that a directory changed.

On a local file system `watchdog` tells at once. Elsewhere, and where the kernel has no
watches left, nobody tells: the loop then polls, at first often and then ever less
(rule 16). Both give the same guarantees, since every wake-up only leads to a listing.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import logging

LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "overlay", "ramfs"}
"""File systems whose changes all pass through this kernel."""

_USED_UP = (errno.ENOSPC, errno.EMFILE, errno.ENFILE)
"""What inotify answers when a user has all the watches, or instances, that he may have."""
_CURE = (
    " The kernel's limits are in /proc/sys/fs/inotify: ask for a higher max_user_watches or "
    "max_user_instances."
)

FIRST_DELAY = 0.01
LAST_DELAY = 5.0
GROWTH = 1.5


class Watch(Protocol):
    """Calls back when there may be news."""

    delay: float
    """Seconds after which to look without having been told."""

    def reset(self) -> None:
        """Something happened: look often again."""

    def waited(self) -> None:
        """Nothing happened: look less often."""

    def stop(self) -> None: ...


class Polling:
    """Nobody tells: look after a while, adaptively."""

    def __init__(self, slowest: float = LAST_DELAY, pause: float = 0.0) -> None:
        self._fastest = max(pause, min(FIRST_DELAY, slowest))
        self._slowest = max(pause, slowest)
        self.reset()

    def reset(self) -> None:
        self.delay = self._fastest

    def waited(self) -> None:
        self.delay = min(self._slowest, self.delay * GROWTH)

    def stop(self) -> None:
        pass


class Watchdog:
    """The kernel tells, through the watchdog package.

    Raises:
        OSError: no inotify watches are left.
    """

    def __init__(
        self, directory: str, wake: Callable[[], None], slowest: float = LAST_DELAY
    ) -> None:
        import logging

        from watchdog.events import (
            DirCreatedEvent,
            FileCreatedEvent,
            FileDeletedEvent,
            FileMovedEvent,
            FileSystemEvent,
            FileSystemEventHandler,
        )
        from watchdog.observers import Observer

        class Handler(FileSystemEventHandler):
            def on_any_event(self, _: FileSystemEvent) -> None:
                wake()

        self.delay = slowest
        # Names that come and go; not who opens and reads files, or we wake ourselves.
        events = [FileCreatedEvent, FileMovedEvent, FileDeletedEvent, DirCreatedEvent]

        logging.getLogger("watchdog.observers.inotify").addFilter(_is_trouble)
        self._observer = Observer()
        self._observer.daemon = True
        self._observer.schedule(Handler(), directory, recursive=False, event_filter=events)
        self._observer.start()

    def reset(self) -> None:
        pass

    def waited(self) -> None:
        pass

    def stop(self) -> None:
        self._observer.stop()


def _is_trouble(record: logging.LogRecord) -> bool:
    """Not so: what watchdog logs as an error if something happens just while we `stop` it."""
    return "called when the thread is inactive" not in str(record.msg)


def watch(
    directory: str,
    wake: Callable[[], None],
    method: str = "auto",
    slowest: float = LAST_DELAY,
    pause: float = 0.0,
) -> Watch:
    """The best watch for a directory.

    Args:
        wake: called from another thread when something changed.
        method: "auto", "watchdog" or "polling".
        slowest: the most seconds between two looks, where nobody tells.
        pause: the fewest.
    """
    if method == "polling" or (method == "auto" and file_system(directory) not in LOCAL):
        return Polling(slowest, pause)
    try:
        return Watchdog(directory, wake, slowest)
    except OSError as error:
        cure = _CURE if error.errno in _USED_UP else ""
        what = f"fsbroker cannot watch {directory} ({error}) and polls instead.{cure}"
        warnings.warn(what, RuntimeWarning, stacklevel=2)
        return Polling(slowest, pause)


def file_system(directory: str) -> str:
    """Type of the file system that holds a directory; "" if that cannot be told."""
    path = os.path.realpath(directory)
    best, kind = "", ""
    try:
        with open("/proc/self/mounts") as mounts:
            for line in mounts:
                point, name = line.split()[1:3]
                point = point.encode().decode("unicode_escape")
                inside = path == point or path.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, name
    except OSError:
        pass
    return kind
