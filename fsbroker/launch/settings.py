"""From the settings to a scheduler and to an agent's options; and to JSON and back.

Settings are stored with the jobs that are submitted with them, for who submits the next: a
script's arguments are in no file that an agent could read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from fsbroker.config import Config, Partition
from fsbroker.environment import versions
from fsbroker.errors import ResourceError
from fsbroker.launch.scheduler import Scheduler
from fsbroker.nodes import cores_of, own_slot
from fsbroker.spool.files import is_shared
from fsbroker.spool.jobs import VERSIONS
from fsbroker.spool.layout import NESTED, area_of
from fsbroker.spool.spool import Spool

IDLE_IN_TASK = 5.0
"""Seconds after which an agent inside of a task ends if it has no work."""
_OF_THE_CLIENT = (
    *("spool", "keep", "agents", "workers", "resource_dict"),
    *("tag", "watch", "refresh_rate", "log_obj_size", "disable_dependencies"),
    *("plot_dependency_graph", "plot_dependency_graph_filename", "export_workflow_filename"),
    *("trust", "sign", "keys", "owners", "settings"),
)
"""What says nothing of how jobs are submitted."""


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that say how jobs are submitted, and what nodes should have, as JSON."""
    names = [field.name for field in fields(Config) if field.name not in _OF_THE_CLIENT]
    found: dict[str, Any] = {name: getattr(config, name) for name in names}
    found["partitions"] = {name: asdict(one) for name, one in config.partitions.items()}
    found["mpi"] = dict(config.mpi)
    return {**found, VERSIONS: versions()}


def config_of(stored: Mapping[str, Any]) -> Config:
    """The settings that `settings_of` stored: those alone, whatever stands in files here."""
    stored = {name: value for name, value in stored.items() if name != VERSIONS}
    partitions = {name: Partition(**_tuples(one)) for name, one in stored["partitions"].items()}
    return Config(**{**_tuples(stored), "mpi": _tuples(stored["mpi"]), "partitions": partitions})


def _tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }


def in_task(config: Config) -> Config:
    """The settings of an executor that may have been opened inside of a task.

    It has the cores of the task, through an agent of its own, and not the spool of the
    task: tasks of that one, which are older, would come first, open executors in turn,
    and so on, each inside of the one before.
    """
    slot = own_slot()
    if slot is None or config.backend not in ("local", "allocation"):
        return config
    spool, above = config.spool, {os.path.realpath(one) for one in slot["spools"]}
    while spool is not None and os.path.realpath(spool) in above:
        # What several users share only its maker can add to; there it is in one's own area.
        place = f"{spool}/{area_of(os.getuid())}" if is_shared(spool) else spool
        spool = f"{place}/{NESTED}"
    if slot["nested"] and config.backend == "allocation":
        return replace(config, spool=spool)
    cores = min(config.max_workers or cores_of(slot), cores_of(slot))
    patience = min(config.idle_timeout, IDLE_IN_TASK)
    return replace(
        config,
        spool=spool,
        backend="local",
        max_workers=cores,
        agents=1,
        idle_timeout=patience,
    )


def has_queue(config: Config) -> bool:
    """Whether agents run in jobs that are submitted for them."""
    return config.backend in ("slurm", "flux")


def check_nesting(config: Config, kind: str) -> None:
    """Refuse Flux instances for tasks where agents run in something else.

    Args:
        kind: of what they run in.
    """
    if config.flux_executor_nesting and kind != "flux":
        raise ResourceError(
            "Only agents in Flux give tasks instances of their own",
            f"flux_executor_nesting with backend={config.backend!r}",
            'Use "flux", or "allocation" in a Flux instance.',
        )


def scheduler_of(config: Config) -> Scheduler:
    """The scheduler that the settings name."""
    if config.backend == "slurm":
        from fsbroker.launch.slurm import Slurm

        return Slurm(config.pysqa_config_directory, config.submission_template)
    from fsbroker.launch.flux import Flux

    if config.pysqa_config_directory is not None:
        where = f"pysqa_config_directory={config.pysqa_config_directory!r}"
        cure = "Give the template itself: submission_template."
        raise ResourceError("Flux is not driven through pysqa", where, cure)
    return Flux(config.submission_template)


def key_options(spool: Spool) -> list[str]:
    """How an agent is told that the client takes nothing but what this key has signed."""
    keyring = spool.files.keyring
    return [f"--key={keyring.public}"] if keyring and keyring.public else []


def mpi_options(config: Config, launcher: str) -> list[str]:
    """How an agent is told what the settings say of MPI, and of Flux inside of tasks.

    Args:
        launcher: of ranks where the agent runs: "srun", "flux", "mpiexec".
    """
    only = next(iter(config.mpi.values())) if len(config.mpi) == 1 else ()
    template = config.mpi.get(launcher, only)
    return [
        *([f"--pmi={config.pmi_mode}"] if config.pmi_mode else []),
        *([f"--launcher={json.dumps(template)}"] if template else []),
        *(["--oversubscribe"] if config.openmpi_oversubscribe else []),
        *(["--nested"] if config.flux_executor_nesting else []),
    ]
