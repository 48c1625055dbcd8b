"""Code that was broken on purpose does not pass its tests (which pass as it is, in this suite)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.breaking import BREAKS

REPOSITORY = Path(__file__).parents[2]
FAILED = 1
"""pytest's exit code; others are for tests that were not found, or could not begin."""


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_place_is_noticed(name):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("-p", "tests.faults.breaking", BREAKS[name].caught),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "FSBROKER_TEST_BREAK": name, "FSBROKER_REQUIRE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == FAILED, done.stdout[-2000:] + done.stderr[-1000:]
    assert "1 failed" in done.stdout
