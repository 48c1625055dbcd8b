"""From the settings to a scheduler and to an agent's options; and to JSON and back.

Settings are stored with the jobs that are submitted with them, for who submits the next: a
script's arguments are in no file that an agent could read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from fsbroker.config import Config, Partition
from fsbroker.environment import versions
from fsbroker.launch.scheduler import Scheduler
from fsbroker.spool.jobs import VERSIONS

_OF_THE_CLIENT = (
    *("spool", "keep", "agents", "workers", "resource_dict"),
    *("tag", "watch", "refresh_rate", "log_obj_size", "disable_dependencies"),
    *("plot_dependency_graph", "plot_dependency_graph_filename", "export_workflow_filename"),
    *("trust", "settings"),
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


def scheduler_of(config: Config) -> Scheduler:
    """The scheduler that the settings name."""
    if config.backend == "slurm":
        from fsbroker.launch.slurm import Slurm

        return Slurm(config.pysqa_config_directory, config.submission_template)
    from fsbroker.launch.flux import Flux

    return Flux(config.submission_template)


def mpi_options(config: Config, launcher: str) -> list[str]:
    """How an agent is told what the settings say of MPI.

    Args:
        launcher: of ranks where the agent runs: "srun", "flux", "mpiexec".
    """
    only = next(iter(config.mpi.values())) if len(config.mpi) == 1 else ()
    template = config.mpi.get(launcher, only)
    return [
        *([f"--pmi={config.pmi_mode}"] if config.pmi_mode else []),
        *([f"--launcher={json.dumps(template)}"] if template else []),
        *(["--oversubscribe"] if config.openmpi_oversubscribe else []),
    ]
