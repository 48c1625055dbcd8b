import subprocess

import pytest

from tests.testbed import mpi

SCRIPT = """
from mpi4py import MPI
world = MPI.COMM_WORLD
ranks = world.gather(world.rank)
if world.rank == 0:
    print(ranks, MPI.Get_library_version().split()[0:2])
"""


@pytest.mark.parametrize(
    ("flavour", "says"),
    [
        pytest.param("mpich", "['MPICH', 'Version:']", marks=pytest.mark.mpich),
        pytest.param("openmpi", "['Open', 'MPI']", marks=pytest.mark.openmpi),
    ],
)
def test_ranks_meet(flavour, says):
    found = mpi.find(flavour)
    argv = found.argv(3, "-c", SCRIPT)
    done = subprocess.run(argv, env=found.env(), capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"[0, 1, 2] {says}", done.stderr
