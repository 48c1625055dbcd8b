"""The MPI libraries of this machine, told apart by what their mpiexec says."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SAYS = {"mpich": ("HYDRA", "MPICH"), "openmpi": ("Open MPI", "OpenRTE", "PRRTE")}

SETTINGS = {
    # The `mpich` wheel lies in the interpreter's own prefix, where mpi4py looks
    # first; naming the ABI makes it look for the system's libmpi.so.12 instead.
    "mpich": {},
    "openmpi": {
        # Else mpi4py loads the wheel's MPICH, which does not speak to Open MPI's mpiexec.
        "MPI4PY_MPIABI": "openmpi",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        # More ranks than cores: for Open MPI 4, and for 5.
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    },
}


@dataclass(frozen=True)
class Mpi:
    """One MPI library: how to start its ranks, and in which environment."""

    flavour: str
    mpiexec: str
    settings: dict[str, str]

    def argv(self, ranks: int, *python: str) -> list[str]:
        """The command that runs this interpreter with `python` as its arguments on each rank."""
        return [self.mpiexec, "-n", str(ranks), sys.executable, *python]

    def env(self) -> dict[str, str]:
        """This process' environment with what the library needs; its mpiexec comes first."""
        path = f"{Path(self.mpiexec).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, **self.settings, "PATH": path}


@functools.cache
def find(flavour: str) -> Mpi:
    """The installed MPI of that flavour ("mpich" or "openmpi").

    Raises:
        LookupError: it is not installed.
    """
    names = (Path(sys.prefix, "bin", "mpiexec"), f"mpiexec.{flavour}", "mpiexec")
    for found in filter(None, (shutil.which(name) for name in names)):
        if _flavour(found) == flavour:
            return Mpi(flavour, found, SETTINGS[flavour])
    message = f"no mpiexec of {flavour} is installed"
    raise LookupError(message)


@functools.cache
def _flavour(mpiexec: str) -> str | None:
    said = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, check=False)
    for flavour, words in SAYS.items():
        if any(word in said.stdout + said.stderr for word in words):
            return flavour
    return None
