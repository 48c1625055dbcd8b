"""The test groups: what some tests need of a machine, and why it is not there.

A test that needs more than Python says so with a marker (`@pytest.mark.nfs`).
Each group has one probe, which answers None, or the reason why its tests
cannot run here. Probes run only when a test of their group is about to, once
a session. `tests/conftest.py` turns a reason into a skip, or into a failure
where the group is named in FSBROKER_REQUIRE.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A marker, what it stands for, and the probe for it."""

    name: str
    needs: str
    probe: Callable[[], str | None]

    def missing(self) -> str | None:
        """Why the group cannot run here; None if it can."""
        return _ask_once(self.probe)


@functools.cache
def _ask_once(probe: Callable[[], str | None]) -> str | None:
    return probe()


def _without(*programs: str) -> str | None:
    """The reason that names the first program that is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    return None


def _fails(argv: Sequence[str], env: dict[str, str] | None = None) -> str | None:
    """The reason that a command gives for failing; None if it works."""
    try:
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}: {error}"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
    return f"{argv[0]} ended with {done.returncode}: {lines[-1]}"


def _mpi(flavour: str) -> str | None:
    from tests.testbed import mpi

    if importlib.util.find_spec("mpi4py") is None:
        return "mpi4py is not installed"
    try:
        found = mpi.find(flavour)
    except LookupError as error:
        return str(error)
    rank = "from mpi4py import MPI; assert MPI.COMM_WORLD.size == 2, MPI.COMM_WORLD.size"
    return _fails(found.argv(2, "-c", rank), found.env())


def _users() -> str | None:
    from tests.testbed import users

    return users.missing()


def _nfs() -> str | None:
    from tests.testbed import nfs

    return nfs.missing()


def _powerloss() -> str | None:
    from tests.testbed import powerloss

    return powerloss.missing()


def _strace() -> str | None:
    # Installed is not enough: many containers forbid ptrace.
    return _without("strace") or _fails(["strace", "-o", os.devnull, "true"])


def _fuse() -> str | None:
    from tests.testbed import faultfs

    return _without("bindfs", "fusermount3") or faultfs.missing()


def _kernel() -> str | None:
    for module in ("ipykernel", "jupyter_client"):
        if importlib.util.find_spec(module) is None:
            return f"the Python package {module} is not installed"
    return None


def _slurm() -> str | None:
    from tests.testbed import slurm

    return slurm.missing()


def _rocrate() -> str | None:
    from tests.testbed import validator

    return validator.missing()


GROUPS = {
    group.name: group
    for group in (
        Group("mpich", "MPICH: mpiexec and an mpi4py that loads it", lambda: _mpi("mpich")),
        Group("openmpi", "Open MPI: mpiexec and an mpi4py that loads it", lambda: _mpi("openmpi")),
        Group("users", "root, to act as three other users", _users),
        Group("nfs", "NFS client and server in a User-Mode Linux kernel", _nfs),
        Group("powerloss", "root, loop devices, mkfs.ext4 and mkfs.xfs", _powerloss),
        Group("strace", "strace, to make system calls fail", _strace),
        Group("fuse", "root, FUSE with mfusepy and bindfs", _fuse),
        Group("kernel", "a Jupyter kernel", _kernel),
        Group("slurm", "root, SLURM's programs and munge", _slurm),
        Group("flux", "the Flux scheduler", lambda: _without("flux")),
        Group("graphviz", "Graphviz's program dot", lambda: _without("dot")),
        Group("rocrate", "the package roc-validator, in an environment of its own", _rocrate),
    )
}


def required(names: str) -> frozenset[str]:
    """The groups in FSBROKER_REQUIRE, a comma-separated list.

    Raises:
        ValueError: a name that is no group, which would otherwise require nothing.
    """
    found = frozenset(name.strip() for name in names.split(",") if name.strip())
    if unknown := sorted(found - GROUPS.keys()):
        message = f"unknown in FSBROKER_REQUIRE: {', '.join(unknown)}; groups: {', '.join(GROUPS)}"
        raise ValueError(message)
    return found
