"""A private Flux instance on this machine, up in two seconds.

    with Instance() as instance:
        instance.run(["flux", "run", "-N3", "hostname"])

The programs are the real ones: a broker for each of the nodes 127.0.0.1 to 127.0.0.3, all on
this machine, which declare two cores and two GPUs each, whatever the machine has. (Names that
can be resolved without anybody's /etc/hosts.) There are two queues,
`batch`, which is the default, and `debug`, with a limit of ten minutes and two nodes.

The instance ends when its standard input does: when it is stopped, or the process that
started it dies in whichever way.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.testbed import leftovers

PREFIX = "fsb-flux"
CONFIGURATION = """
[resource]
noverify = true
[[resource.config]]
hosts = "127.0.0.[1-3]"
cores = "0-1"
gpus = "0-1"
[queues.batch]
[queues.debug]
policy.limits.duration = "10m"
policy.limits.job-size.max.nnodes = 2
[policy]
jobspec.defaults.system.queue = "batch"
"""
# The first program of the instance; its end is that of the instance.
PROGRAM = 'flux queue start --all >&2 && echo "$FLUX_URI" && exec cat'


class Instance:
    """Three brokers; `directory` holds all their files."""

    def __enter__(self) -> Instance:
        for directory in leftovers.of_dead(PREFIX):
            shutil.rmtree(directory, ignore_errors=True)
        self.directory = Path(tempfile.mkdtemp(prefix=leftovers.prefix(PREFIX)))
        (self.directory / "flux.toml").write_text(CONFIGURATION)
        (self.directory / "run").mkdir()
        options = [
            "--test-size=3",
            "--test-hosts=127.0.0.[1-3]",
            f"--test-rundir={self.directory / 'run'}",
            f"--config-path={self.directory / 'flux.toml'}",
        ]
        with (self.directory / "log").open("w") as log:
            self._process = subprocess.Popen(
                ["flux", "start", *options, "sh", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Brokers listen on the loopback device alone.
                env={**os.environ, "FLUX_IPADDR_INTERFACE": "lo"},
            )
        assert self._process.stdout
        self.uri = self._process.stdout.readline().strip()
        if not self.uri:
            said = (self.directory / "log").read_text()
            self.__exit__()
            raise RuntimeError(f"Flux does not start:\n{said}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.communicate()
        shutil.rmtree(self.directory)

    def environment(self) -> dict[str, str]:
        """What programs need to find it."""
        return {"FLUX_URI": self.uri, "FLUX_IPADDR_INTERFACE": "lo"}

    def run(self, argv: Sequence[object], **options: Any) -> str:
        """What a command prints that finds this instance."""
        done = subprocess.run(
            list(map(str, argv)),
            env={**os.environ, **self.environment()},
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
            **options,
        )
        if done.returncode:
            raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def restore(self) -> None:
        """Cancel all jobs, and wait until they are over."""
        self.run(["flux", "cancel", "--all", "--quiet"])
        self.run(["flux", "queue", "idle", "--quiet"])
