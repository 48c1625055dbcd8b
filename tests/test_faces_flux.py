"""executorlib's executors on a real Flux: the talk's listings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

import fsbroker
from tests.testbed import listings
from tests.testbed.flux import Instance

cloudpickle.register_pickle_by_value(listings)

pytestmark = [pytest.mark.flux, pytest.mark.usefixtures("flux", "here")]

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.mpich
@pytest.mark.timeout(400)
def test_the_talk_from_outside(here: Path) -> None:
    """A job for each task; pilots for the block."""
    face = fsbroker.FluxClusterExecutor
    assert {name: listings.LISTINGS[name](face) for name in listings.EXPECTED} == listings.EXPECTED
    assert [one[:3] for one in listings.mpi(face)] == [(3, 2, 0), (3, 2, 1)]
    assert (here / "executorlib_cache/spool.yaml").exists()


NAMES = [*listings.EXPECTED, "mpi"]


@pytest.mark.mpich
@pytest.mark.timeout(300)
@pytest.mark.parametrize("names", [NAMES[:4], NAMES[4:7], NAMES[7:]], ids=" ".join)
def test_the_talk_in_an_instance(flux: Instance, here: Path, names: list[str]) -> None:
    program = [sys.executable, "-m", "tests.testbed.listings", "FluxJobExecutor", *names]
    environment = {**os.environ, **flux.environment(), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        program,
        env=environment,
        cwd=here,
        text=True,
        capture_output=True,
        timeout=250,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    if ranks := found.pop("mpi", None):
        assert [one[:3] for one in ranks] == [[3, 2, 0], [3, 2, 1]]
    assert found == {name: listings.EXPECTED[name] for name in found}
    assert not list(here.glob("fsbroker-*"))
