"""The harness itself: real NFS, and clients with caches of their own."""

import pytest

from tests.testbed.nfs import UmlError, run_in_nfs, run_in_uml

pytestmark = pytest.mark.nfs

TWO_CLIENTS = """
import os, sys, time

for a, b in ((os.environ["V3A"], os.environ["V3B"]), (os.environ["V4A"], os.environ["V4B"])):
    name = "written-by-" + os.path.basename(a)
    os.listdir(b)  # else B has old attributes, asks again, and remembers nothing
    absent = os.path.exists(f"{b}/{name}")
    time.sleep(0.1)  # version 3 misses a second change in one tick of the server's clock
    with open(f"{a}/{name}", "w") as file:
        file.write(a)
    # B remembers for 30 s that there is no such name: only a client with its own cache does.
    remembered = os.path.exists(f"{b}/{name}")
    listed = name in os.listdir(b)
    print(absent, remembered, listed, open(f"{b}/{name}").read() == a)
print(sorted(set(os.listdir(os.environ["NFS_EXPORT"])) - {"lost+found"}))
print([line.split()[2] for line in open("/proc/mounts") if ":/" in line.split()[0]])
"""

LOCKS_AND_NUMBERS = """
import os
import filelock, h5py, numpy

print(float(numpy.exp(2.0)))
for kind in ("V3", "V4"):
    a, b = (os.path.join(os.environ[kind + client], kind) for client in "AB")
    with h5py.File(a + ".h5", "w") as file:
        file["x"] = numpy.arange(100000.0)
    with h5py.File(b + ".h5") as file:
        print(file["x"][()].sum())
    with filelock.FileLock(a + ".lock", fallback_to_soft=False):
        try:
            filelock.FileLock(b + ".lock", timeout=0, fallback_to_soft=False).acquire()
        except filelock.Timeout:
            print("excluded")
"""


def test_a_client_sees_in_a_listing_what_the_other_wrote():
    *seen, written, mounts = run_in_nfs(TWO_CLIENTS).splitlines()
    assert seen == ["False False True True"] * 2
    assert written == "['written-by-v3a', 'written-by-v4a']"
    assert mounts == "['nfs', 'nfs', 'nfs4', 'nfs4']"


def test_locks_exclude_and_numbers_are_right(tmp_path):
    script = tmp_path / "a script.py"
    script.write_text(LOCKS_AND_NUMBERS)
    exp, *seen = run_in_nfs(script).splitlines()
    assert float(exp) == pytest.approx(7.38905609893065, rel=1e-15)
    assert seen == ["4999950000.0", "excluded"] * 2


def test_arguments_and_variables_arrive():
    script = "import os, sys\nprint(sys.argv[1:], os.environ['A'])"
    assert run_in_nfs(script, "it's", "b c", env={"A": "x y"}) == "[\"it's\", 'b c'] x y\n"


def test_a_job_that_fails_tells_what_it_wrote():
    with pytest.raises(UmlError, match=r"status 3(?s:.*)to stdout(?s:.*)to stderr"):
        run_in_uml("echo to stdout; echo to stderr >&2; exit 3")


def test_a_job_that_hangs_is_ended():
    with pytest.raises(UmlError, match="not done after 5 s"):
        run_in_uml("sleep 1000", timeout=5)
