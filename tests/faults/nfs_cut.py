"""Runs inside the kernel with NFS: a client host's link is cut, and whole again later.

The first agent's mount is of a network of its own, joined to the server by one cable. That is
pulled while its task runs; the second agent, on another mount, takes it over; when the cable is
back, the first one finds that its work is no longer its own, and ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from fsbroker.executor import ClusterExecutor
from fsbroker.spool.spool import open_spool
from tests.faults.audit import check
from tests.faults.nfs_story import ELSEWHERE
from tests.faults.processes import wait_until
from tests.faults.tasks import hold, runs_of, task, value_of

ADDRESS = "192.0.2"
"""For documentation alone (RFC 5737): no machine of this world has it."""
LEASE = 4.0
FORGOTTEN = 15.0
"""Seconds after which the server, too, has given up a client of version 4."""
TAKEN_FOR_DEAD = 3
"""An agent's exit code."""
MOUNTS = {
    "V4": ("nfs4", "vers=4.2,proto=tcp", "/"),
    "V3": ("nfs", "vers=3,proto=tcp,mountproto=tcp,nolock", os.environ["NFS_EXPORT"]),
}
LINK = f"""
ip netns add far
ip link add near type veth peer name far netns far
ip address add {ADDRESS}.1/24 dev near
ip link set near up
ip -n far address add {ADDRESS}.2/24 dev far
ip -n far link set far up
"""
"""A network of its own, and with it an NFS client of its own, joined by one cable."""


def run(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True)


def agent(spool: str, *before: str) -> subprocess.Popen[bytes]:
    options = ["--cores=1", "--idle-timeout=100", f"--lease={LEASE}"]
    command = [*before, sys.executable, "-m", "fsbroker.agent", f"--spool={spool}", *options]
    return subprocess.Popen(command)


def story(version: str) -> str:
    kind, options, what = MOUNTS[version]
    here, there = os.environ[f"{version}A"], f"/run/far{version}"
    scratch = f"{os.environ['TMPDIR']}/{version}"
    journal, gate = f"{scratch}.journal", f"{scratch}.gate"
    os.mkdir(there)
    mount = f"mount -t {kind} -o {options} {ADDRESS}.1:{what} {there}"
    run(f"nsenter --net=/run/netns/far {mount}")

    executor = ClusterExecutor(f"{here}/spool", backend="none")
    far = agent(f"{there}/spool", *ELSEWHERE)  # only its silence tells of it
    held = executor.submit(hold, journal, "held", gate)
    wait_until(lambda: "held" in runs_of(journal))
    run("ip link set near down")
    cut = time.monotonic()
    near = agent(f"{here}/spool")
    wait_until(lambda: runs_of(journal).get("held") == 2)  # taken over
    taken_over = time.monotonic() - cut
    with open(gate, "w"):  # both go on now: one publishes, the other cannot
        pass
    assert held.result(100) == value_of("held")
    time.sleep(max(0.0, FORGOTTEN - (time.monotonic() - cut)))
    assert far.poll() is None

    run("ip link set near up")
    back = time.monotonic()
    assert far.wait(100) == TAKEN_FOR_DEAD
    woken = time.monotonic() - back
    names = {f"late{number}" for number in range(5)}
    late = {name: executor.submit(task, journal, name) for name in names}
    assert {name: future.result(100) for name, future in late.items()} == {
        name: value_of(name) for name in names
    }
    executor.shutdown()
    near.terminate()
    assert near.wait(100) == 0
    again = check(open_spool(f"{here}/spool"), journal, {"held", *names})
    return f"{version} {taken_over:.1f} {woken:.1f} {again}"


if __name__ == "__main__":
    run(LINK)
    for version in MOUNTS:
        print(story(version), flush=True)
