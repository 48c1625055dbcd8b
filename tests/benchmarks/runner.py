"""Runs samples: each in a fresh process and directory, in turns."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from typing import NamedTuple

from tests.benchmarks import trace

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LAST_LINES = 6
"""Of what a sample that failed has said."""


class Failed(Exception):
    """A sample ended with an error: there is no number, and its last lines say why."""


class Sample(NamedTuple):
    """What to measure: a function of `tasks` or `storage`, and its arguments.

    Attributes:
        directory: where; a fresh one when left out.
    """

    function: str
    arguments: dict
    directory: str | None = None


class Runner:
    """Runs samples below one directory.

    Args:
        base: on the file system that is to be measured.
        timeout: seconds for one sample.
        say: told what is being measured.
    """

    def __init__(self, base, timeout=300.0, say=lambda _: None):
        self.base = base
        self.timeout = timeout
        self.say = say

    @contextmanager
    def directory(self):
        path = tempfile.mkdtemp(prefix="fsbroker-benchmark-", dir=self.base)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def in_turns(self, samples, repeats):
        """The results of each sample, name -> list; for one that fails, its error.

        Args:
            samples: name -> `Sample`; a sample that failed once is not tried again.
        """
        results = {name: [] for name in samples}
        for number in range(repeats):
            for name, sample in samples.items():
                if isinstance(results[name], Failed):
                    continue
                self.say(f"{sample.function} {name} ({number + 1} of {repeats})")
                try:
                    results[name].append(self.run(sample))
                except Failed as error:
                    results[name] = error
        return results

    def run(self, sample, prefix=(), **variables):
        """The result of one sample.

        Args:
            prefix: what to put before the command. variables: of the environment.
        """
        if sample.directory is not None:
            return self._run(sample, sample.directory, prefix, variables)
        with self.directory() as directory:
            return self._run(sample, directory, prefix, variables)

    def _run(self, sample, directory, prefix, variables):
        arguments = json.dumps({**sample.arguments, "directory": directory})
        python = [sys.executable, "-m", "tests.benchmarks.sample"]
        process = subprocess.Popen(
            [*prefix, *python, sample.function, arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # Workers of every pool import the functions from here.
            env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", **variables},
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            raise Failed(f"no result after {self.timeout:g} s") from None
        if process.returncode:
            raise Failed("\n".join(err.strip().splitlines()[-LAST_LINES:]))
        return json.loads(out.strip().splitlines()[-1])

    def traced(self, sample, **variables):
        """Counters of system calls between the sample's marks (`trace.count`)."""
        with self.directory() as directory:
            output = f"{directory}.trace"
            try:
                self.run(sample._replace(directory=directory), trace.command(output), **variables)
                return trace.count(output, directory)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(output)


def _end(process):
    """Kill a sample that hangs, with all its children that are in its session."""
    from signal import SIGKILL

    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    process.communicate()
