"""A script that submits and ends: well, and with its tasks in the spool."""

from __future__ import annotations

import subprocess
import sys

import pytest

SUBMIT = """
import sys
from fsbroker import ClusterExecutor

def square(x):
    return x * x

executor = ClusterExecutor(sys.argv[1], max_workers=1, idle_timeout=2)
future = executor.submit(square, 7)
"""


def run(script: str, spool: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, spool]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def spool(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("of scripts") / "spool")


def test_script_that_only_submits_ends_well(spool):
    # It is the flush at exit that first loads HDF5 here, which must not outlive Python.
    done = run(SUBMIT, spool)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_next_script_finds_its_task(spool):
    done = run(SUBMIT + "print(future.result())", spool)
    assert (done.returncode, done.stdout, done.stderr) == (0, "49\n", "")
