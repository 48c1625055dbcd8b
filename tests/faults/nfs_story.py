"""Runs inside the kernel with NFS (`tests/testbed/nfs`): two hosts, one spool.

The client and the second agent see the spool through one mount, the first agent through
another, in a pid namespace of its own, so that only its silence tells of its death.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from fsbroker.executor import ClusterExecutor
from fsbroker.spool.spool import open_spool
from tests.faults.audit import check
from tests.faults.processes import wait_until
from tests.faults.tasks import hold, runs_of, task, value_of

LEASE = 4.0
ELSEWHERE = ["unshare", "--propagation=slave", "--pid", "--fork", "--mount-proc", "--kill-child"]


def agent(spool: str, *before: str) -> subprocess.Popen[bytes]:
    options = ["--cores=1", "--idle-timeout=60", f"--lease={LEASE}"]
    command = [*before, sys.executable, "-m", "fsbroker.agent", f"--spool={spool}", *options]
    return subprocess.Popen(command, start_new_session=True)


def story(there: str, here: str) -> dict[str, float]:
    """What took how long, seconds."""
    times: dict[str, float] = {}
    scratch = os.environ["TMPDIR"]
    journal, gate = (f"{scratch}/{os.path.basename(here)}.{name}" for name in ("journal", "gate"))
    began = time.monotonic()
    executor = ClusterExecutor(f"{here}/spool", backend="none")
    first = agent(f"{there}/spool", *ELSEWHERE)
    assert executor.submit(task, journal, "first").result(60) == value_of("first")
    times["first task, agent's start included"] = time.monotonic() - began

    trips = []
    for number in range(10):
        began = time.monotonic()
        assert executor.submit(task, journal, f"lone{number}").result(60)[0] == f"lone{number}"
        trips.append(time.monotonic() - began)
    times["median round trip of a lone task"] = sorted(trips)[5]
    times["longest of ten"] = max(trips)

    began = time.monotonic()
    head = [executor.submit(task, journal, f"many{number}") for number in range(200)]
    tail = [executor.submit(task, journal, f"tail{n}", 0.0, one) for n, one in enumerate(head[:5])]
    for number, future in enumerate(head):
        assert future.result(60) == value_of(f"many{number}")
    for number, future in enumerate(tail):
        assert future.result(60) == value_of(f"tail{number}", [f"many{number}"])
    times["205 tasks"] = time.monotonic() - began

    held = [executor.submit(hold, journal, f"held{number}", gate) for number in range(3)]
    wait_until(lambda: "held0" in runs_of(journal))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    began = time.monotonic()
    with open(gate, "w"):
        pass
    second = agent(f"{here}/spool")
    for number, future in enumerate(held):
        assert future.result(60) == value_of(f"held{number}")
    times[f"until a row of a killed agent ran again (lease {LEASE:g} s)"] = time.monotonic() - began

    executor.shutdown()
    second.terminate()
    assert second.wait(30) == 0
    names = {"first", *(f"lone{n}" for n in range(10)), *(f"many{n}" for n in range(200))}
    names |= {f"tail{n}" for n in range(5)} | {f"held{n}" for n in range(3)}
    times["ran again"] = check(open_spool(f"{there}/spool"), journal, names)
    return times


if __name__ == "__main__":
    for version in ("V4", "V3"):
        found = story(os.environ[f"{version}A"], os.environ[f"{version}B"])
        print(version, json.dumps(found), flush=True)
