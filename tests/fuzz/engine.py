"""Many inputs for one target, within limits of time and memory; what they find."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from tests.fuzz.mutate import mutate

SECONDS = 3.0
"""CPU time for one input."""
MEMORY = 512 << 20
"""Bytes that reading may need beside what the process has."""


class TooSlow(BaseException):
    """An input took more than its time; not an `Exception`, which readers may catch."""


class Finding(NamedTuple):
    """An input that broke a reader, and where.

    Attributes:
        what: type of the exception and the innermost line of fsbroker: told apart by it.
    """

    what: str
    trace: str
    data: bytes

    def save(self, directory: str, target: str) -> str:
        name = f"{target}-{hashlib.blake2b(self.what.encode(), digest_size=4).hexdigest()}"
        path = os.path.join(directory, name)
        with open(path, "wb") as file:
            file.write(self.data)
        with open(f"{path}.txt", "w") as file:
            file.write(f"{self.what}\n{self.trace}")
        return path


class _Limits:
    """Bounds memory and CPU time of what is inside."""

    def __enter__(self) -> None:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, self._before[1]))
        self._handler = signal.signal(signal.SIGPROF, _too_slow)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._handler)
        resource.setrlimit(resource.RLIMIT_AS, self._before)


def _too_slow(*_: object) -> None:
    raise TooSlow


def tried(read: Callable[[bytes], None], data: bytes) -> Finding | None:
    """What an input comes to."""
    try:
        with _Limits():
            read(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return Finding(_told(error), traceback.format_exc()[-4000:], data)
    return None


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/fsbroker/" in frame.filename]
    last = (ours or frames)[-1]
    return f"{type(error).__name__} in {os.path.basename(last.filename)} {last.name}: {last.line}"


class Run:
    """One target under fire.

    Args:
        keep: directory where findings are put.
    """

    def __init__(self, name: str, target: Any, keep: str) -> None:
        self.name = name
        self._target = target
        self._keep = keep
        self._start = time.monotonic()
        self._told = self._start
        self.count = 0
        self.findings: dict[str, str] = {}

    def one(self, data: bytes) -> None:
        self.count += 1
        found = tried(self._target.read, data)
        if found is not None and found.what not in self.findings:
            self.findings[found.what] = found.save(self._keep, self.name)
            print(f"{self.name}: FOUND {found.what}", flush=True)
        if time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            self.report()

    def report(self) -> None:
        minutes = (time.monotonic() - self._start) / 60
        print(
            f"{self.name}: {minutes:.1f} min, {self.count} inputs, {len(self.findings)} findings",
            flush=True,
        )

    def at_random(self, seconds: float, seed: int) -> None:
        """Mutations of the seeds, and of their mutations."""
        rng, pool = Random(seed), list(self._target.seeds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = mutate(rng.choice(pool), rng)
            self.one(data)
            if rng.random() < 0.01:
                pool[len(self._target.seeds) :] = [data, *pool[len(self._target.seeds) :]][:50]

    def guided(self, seconds: float, seed: int) -> None:
        """What reaches new lines is kept and changed further (libFuzzer); ends the process."""
        import atheris

        end = time.monotonic() + seconds

        def one(data: bytes) -> None:
            self.one(data)
            if time.monotonic() > end:
                self.report()
                os._exit(bool(self.findings))

        def changed(data: bytes, most: int, number: int) -> bytes:
            return mutate(data, Random(number))[:most]

        directory = tempfile.mkdtemp()
        for number, data in enumerate(self._target.seeds):
            with open(f"{directory}/{number}", "wb") as file:
                file.write(data)
        options = ["-max_len=65536", "-rss_limit_mb=0", "-timeout=600", "-len_control=0"]
        atheris.Setup(
            [sys.argv[0], f"-seed={seed}", *options, directory], one, custom_mutator=changed
        )
        atheris.Fuzz()


def in_memory() -> str | None:
    """Where a file costs no disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def guided_is_possible() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True
