"""How ranks are started: a table of launchers, each a template of arguments.

    TABLE["srun"], or the site's own (``mpi:`` in the configuration)
      --fill--> ["srun", "--ntasks=4", ...], to which the program is appended

Templates are data, so that a site can write its own. An argument is left out where a value
that it names is not set, and is taken apart at its blanks (as a shell does) before values
are filled in: ``"-hosts {nodelist}"`` gives two arguments, or none. The values (TEXT has
no blanks):

    {ranks} {threads}           of the launch, and of each rank
    {nodes} {nodelist}          how many nodes, and their names with commas between
    {brokers}                   the same nodes by the ranks of Flux's processes there
    {slots}                     the same as Open MPI writes it: n1:2,n2:2
    {ranks_per_node}            on each node; the last may have fewer
    {gpus}                      of each rank
    {memory}                    MB on each node
    {pmi}                       how srun and its ranks find each other
    {oversubscribe:TEXT}        TEXT if there may be more ranks than cores
    {no_gpus:TEXT}              TEXT if no GPU is wanted

An agent sets ``Settings.launcher`` to the row for its allocation (``srun`` in a SLURM job,
``flux`` in a Flux instance, else ``mpiexec``) and ``Settings.nodes`` to the names of the
slot's nodes. Ranks of groups, and workers on other nodes as one rank there, start by
``fill(settings.launcher, Launch(...))``; programs of tasks by `fsbroker.mpi_command`, which
fills in the same template. `on_this_node` is for ``mpiexec`` alone.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fsbroker.errors import MissingProgram, ResourceError

TABLE: Mapping[str, tuple[str, ...]] = {
    # What the MPI standard asks of every MPI.
    "mpiexec": ("mpiexec", "-n {ranks}"),
    "mpich": ("mpiexec", "-n {ranks}", "-hosts {nodelist}", "-ppn {ranks_per_node}"),
    "openmpi": (
        "mpiexec",
        "-n {ranks}",
        "--host {slots}",
        "{oversubscribe:--oversubscribe}",
    ),
    # The agent keeps the books, of steps as well as of its own children, so each step may have
    # all of the job, and we confine it (see `confined`). SLURM's own books are no help: with
    # --exact, a program would wait for the cores that the step of its own worker holds; with
    # --exact and --overlap, steps that run at once all get the first core and the first GPU of
    # the node (measured, 22.05).
    "srun": (
        "srun",
        "--ntasks={ranks}",
        "--nodes={nodes}",
        "--nodelist={nodelist}",
        "--ntasks-per-node={ranks_per_node}",
        "--overlap",
        "--cpu-bind=none",
        "{oversubscribe:--overcommit}",
        "--mpi={pmi}",
        "--mem=0",  # of the job's, and taking none from other steps
        "{no_gpus:--gres=none}",  # else all of the job's
        # One that ends well must not end the others; one that fails must.
        "--wait=0",
        "--kill-on-bad-exit=1",
        "--quiet",
    ),
    "flux": (
        "flux",
        "run",
        "--ntasks={ranks}",
        "--cores-per-task={threads}",
        "--nodes={nodes}",
        "--requires=rank:{brokers}",
        # The agent's books say which cores and GPUs, and Flux's do not know of all that runs.
        "-o cpu-affinity=off",
        "-o gpu-affinity=off",
        # As srun's --wait and --kill-on-bad-exit.
        "-o exit-timeout=none",
        "-o exit-on-error",
    ),
}

ON_A_NODE: Mapping[str, tuple[str, ...]] = {
    "srun": TABLE["srun"],
    # Not `flux run`: that would take a core from those that ranks need there.
    "flux": ("flux", "exec", "--rank={brokers}", "--noinput", "--quiet"),
}
"""How a process comes to run on another node without holding anything there."""

NESTED = (
    "flux",
    "run",
    "--ntasks=1",
    "--cores-per-task={threads}",
    "--gpus-per-task={gpus}",
    "--requires=rank:{brokers}",
    "flux",
    "start",
)
"""How it comes to run in a Flux instance of its own, which holds what it may use."""


@dataclass(frozen=True)
class Launch:
    """What is to be started.

    Attributes:
        ranks: how many. threads: of each.
        nodes: names of the nodes; empty: this one only. brokers: as Flux numbers them.
        gpus: of each rank.
        memory: MB of all ranks together; 0: not stated.
        pmi: srun's ``--mpi``, see `pmi_for`; empty: the site's default.
        oversubscribe: there may be more ranks than cores.
    """

    ranks: int
    threads: int = 1
    nodes: tuple[str, ...] = ()
    gpus: int = 0
    memory: int = 0
    pmi: str = ""
    oversubscribe: bool = False
    brokers: tuple[int, ...] = ()

    def values(self) -> dict[str, Any]:
        """What stands for the names in a template; None for what is not set."""
        count = max(1, len(self.nodes))
        each = -(-self.ranks // count)
        return {
            "ranks": self.ranks,
            "threads": self.threads,
            "nodes": count,
            "nodelist": ",".join(self.nodes) or None,
            "brokers": ",".join(map(str, self.brokers)) or None,
            "slots": ",".join(f"{node}:{each}" for node in self.nodes) or None,
            "ranks_per_node": each if self.nodes else None,
            "gpus": self.gpus or None,
            "memory": -(-self.memory // count) or None,
            "pmi": self.pmi or None,
            "oversubscribe": _Text() if self.oversubscribe else None,
            "no_gpus": None if self.gpus else _Text(),
        }


class _Text:
    """``{name:TEXT}`` becomes TEXT."""

    def __format__(self, text: str) -> str:
        return text


def fill(template: Sequence[str], launch: Launch) -> list[str]:
    """The arguments that start the ranks; the program is to be appended.

    The first is the launcher as the template names it: the caller looks for it in the
    places that count for him.

    Raises:
        ResourceError: the template names what does not exist.
    """
    values = launch.values()
    found = []
    for argument in template:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(argument) if name]
            if all(values[name] is not None for name in names):
                found += [part.format(**values) for part in shlex.split(argument)]
        except (KeyError, ValueError, IndexError) as error:
            raise ResourceError(
                f"A launcher's argument cannot be filled in ({error})",
                repr(argument),
                f"It may name {', '.join(f'{{{name}}}' for name in values)}.",
            ) from None
    return found


def command(template: Sequence[str], launch: Launch, program: str) -> list[str]:
    """The arguments that start a program's ranks, with the launcher that fits its MPI.

    Raises:
        MissingProgram: the launcher is not installed.
    """
    launcher = template[0].split()[0]
    path = shutil.which(program) or program
    if launcher == "srun" and not launch.pmi:
        launch = replace(launch, pmi=pmi_for(library_of(path), pmi_offered()))
    found = fill(template, launch)
    names = mpiexecs(path, launcher) if launcher.startswith("mpiexec") else [launcher]
    found[0] = next(filter(None, map(shutil.which, names)), "")
    if not found[0]:
        raise MissingProgram("The launcher of MPI programs is not installed", launcher)
    return found


# -- which MPI ---------------------------------------------------------------------------

_PMI = {"cray": "cray_shasta", "mpich": "pmi2", "openmpi": "pmix"}

_LIBRARIES = {
    "cray": re.compile(r"\blibmpi_(cray|gnu|amd|intel)\w*\.so|CRAY MPICH"),
    "mpich": re.compile(r"\blibmpi(ch)?\.so\.12\b|MPICH|Intel\(R\) MPI"),
    "openmpi": re.compile(r"\blibmpi\.so\.(20|40)\b|Open MPI"),
}


def mpi_of(text: str) -> str | None:
    """The MPI that a text names: "cray", "mpich" (with all of its ABI) or "openmpi".

    Args:
        text: ``MPI.Get_library_version()``, or what `ldd` says of a program.
    """
    return next((name for name, sign in _LIBRARIES.items() if sign.search(text)), None)


def pmi_for(mpi: str | None, offered: str) -> str:
    """What to give to srun's ``--mpi`` for ranks of this MPI; empty: leave it to the site.

    The wrong one gives as many groups of one rank as there should be ranks, or an abort.

    Args:
        mpi: see `mpi_of`.
        offered: what ``srun --mpi=list`` says.
    """
    wanted = _PMI.get(mpi or "", "")
    return wanted if wanted in offered.split() else ""


@functools.cache
def pmi_offered() -> str:
    """What ``srun --mpi=list`` says; empty where that fails."""
    return _said("srun", "--mpi=list")


@functools.cache
def library_of(program: str) -> str | None:
    """The MPI that a program is linked with; of a script, the one that mpi4py loads."""
    return mpi_of(_said("ldd", program)) or mpi_of(_said(sys.executable, "-c", _ASK_MPI4PY))


_ASK_MPI4PY = (
    "import mpi4py; mpi4py.rc.initialize = False\n"
    "from mpi4py import MPI; print(MPI.Get_library_version())"
)


def mpiexecs(program: str, name: str) -> list[str]:
    """Where to look for the ``mpiexec`` of a program, the likeliest first.

    Another MPI's would start as many groups of one rank as there should be ranks. Without
    a library to go by, the one beside the interpreter fits what mpi4py loads.
    """
    linked = re.search(r"=> (\S*)/libmpi\S*\.so", _said("ldd", program))
    # As the file system has it: some have /lib as another name of /usr/lib.
    prefix = re.match(r"(.+)/lib\w*(/|$)", os.path.realpath(linked[1])) if linked else None
    if prefix is None:
        return [os.path.join(sys.prefix, "bin", name), name]
    named = f"mpiexec.{library_of(program)}"
    return [f"{prefix[1]}/bin/{named}", f"{prefix[1]}/bin/mpiexec", named, name]


def _said(*argv: str) -> str:
    """All that a program prints; empty if it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr  # of srun --mpi=list, releases differ in where


# -- environment -------------------------------------------------------------------------

_ON_THIS_NODE = {
    # Open MPI 4 and 5: more ranks than cores are the agent's business, and two groups on
    # a node must not both be bound to its first cores.
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    # Inside a queue job both would go through srun to all nodes of the job, and wait for
    # cores that the agent itself holds.
    "HYDRA_LAUNCHER": "fork",
    "HYDRA_RMK": "user",
    "OMPI_MCA_plm": "isolated",
    "OMPI_MCA_ras": "simulator",
    "PRTE_MCA_plm": "^slurm,lsf,pals",
    "PRTE_MCA_ras": "^slurm,lsf,flux,pbs,gridengine",
}

_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def on_this_node() -> dict[str, str]:
    """Variables with which ``mpiexec`` stays on this node, whatever job it runs in."""
    return {**_ON_THIS_NODE, **_AS_ROOT} if os.geteuid() == 0 else dict(_ON_THIS_NODE)
