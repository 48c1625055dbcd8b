"""Whether MPI ranks find each other where they are started as agents start them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence

from fsbroker.agent.launchers import TABLE, Launch, fill, library_of, pmi_for, pmi_offered
from fsbroker.doctor.verdict import Finding, Level
from fsbroker.errors import FsbrokerError
from fsbroker.launch.slurm import job_of

ASK = "from mpi4py import MPI; print('ranks', MPI.COMM_WORLD.size)"
RANKS = 2
PATIENCE = 60.0


def mpi(in_job: bool, flags: Sequence[str], python: str) -> Iterator[Finding]:
    """Start two ranks, here or in a job, and ask them how many they are."""
    if in_job:
        pmi = pmi_for(library_of(python), pmi_offered())
        command = job_of(RANKS, flags, pmi=pmi)
    else:
        command = fill(TABLE["mpiexec"], Launch(RANKS))
    yield _started([*command, python, "-c", ASK])


def _started(command: Sequence[str]) -> Finding:
    how = " ".join(command[: command.index("-c") - 1])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired, FsbrokerError) as error:
        text = f"{how} cannot start ranks ({error})"
        return Finding(Level.NOTE, "mpi", text, "tasks with several cores as MPI ranks will fail")
    said = [line for line in done.stdout.splitlines() if line.startswith("ranks ")]
    if said == [f"ranks {RANKS}"] * RANKS:
        return Finding(Level.FINE, "mpi", f"{RANKS} ranks, started by {how}, find each other")
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    missing = "No module named 'mpi4py'" in done.stderr
    text = "mpi4py is not installed" if missing else f"{how}: ranks do not find each other: {last}"
    does = "tasks of several ranks fail; all others run"
    return Finding(Level.NOTE if missing else Level.WARNING, "mpi", text, does)
