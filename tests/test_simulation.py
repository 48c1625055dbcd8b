"""The protocol on the model file system, stepped by seeds; and each of its rules left out.

A seed that fails is replayed by ``python -m tests.sim --seed N --trace``. Long runs:
``python -m tests.sim --seeds 100000 --jobs 2``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.breaks import BREAKS, Break

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 2000


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, where sets of strings have one order: a seed replays."""
    return subprocess.run(
        [sys.executable, "-m", "tests.sim", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(300)
def test_the_rules_hold_in_every_seed():
    done = simulate("--seeds", str(SEEDS), "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_seed_replays_to_the_call():
    first, second = (simulate("--seed", "7", "--trace").stdout for _ in range(2))
    assert first == second
    assert "EXECUTE" in first


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.name)
def test_a_rule_left_out_is_caught(broken: Break):
    """... within some seeds, which the whole protocol passes in the same scenario."""
    done = simulate("--break", broken.name)
    assert done.returncode == 0, done.stdout + done.stderr
