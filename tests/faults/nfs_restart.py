"""Runs inside the kernel with NFS: the server goes away for seconds, under work.

One client host has mounts that wait for it, as they do by default; another's give up (`soft`)
and report EIO.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from fsbroker.executor import ClusterExecutor
from fsbroker.spool.spool import open_spool
from tests.faults.audit import check
from tests.faults.processes import wait_until
from tests.faults.tasks import hold, runs_of, task, value_of

AWAY = 6.0
SOFT = "vers=4.2,proto=tcp,nosharecache,soft,timeo=10,retrans=1"


def agent(spool: str, *more: str) -> subprocess.Popen[bytes]:
    options = ["--cores=1", "--lease=60", *more]
    return subprocess.Popen([sys.executable, "-m", "fsbroker.agent", f"--spool={spool}", *options])


def main() -> None:
    hard, soft, scratch = os.environ["V4A"], "/run/soft", os.environ["TMPDIR"]
    os.mkdir(soft)
    subprocess.run(["mount", "-t", "nfs4", "-o", SOFT, "127.0.0.1:/", soft], check=True)
    journal, gate = f"{scratch}/journal", f"{scratch}/gate"
    executor = ClusterExecutor(f"{hard}/spool", backend="none")
    held = [executor.submit(hold, journal, f"held{number}", gate) for number in range(2)]
    agents = [agent(f"{where}/spool", "--idle-timeout=5") for where in (hard, soft)]
    wait_until(lambda: len(runs_of(journal)) == 2)
    subprocess.run(["rpc.nfsd", "0"], check=True)
    with open(gate, "w"):
        pass
    more = [executor.submit(task, journal, f"more{number}") for number in range(20)]
    time.sleep(AWAY)
    print([one.poll() for one in agents], flush=True)
    subprocess.run(["rpc.nfsd", "-L", "10", "-G", "10", "4"], check=True)
    began = time.monotonic()
    for number, future in enumerate(held):
        assert future.result(100) == value_of(f"held{number}")
    for number, future in enumerate(more):
        assert future.result(100) == value_of(f"more{number}")
    print(f"{time.monotonic() - began:.1f}", flush=True)
    executor.shutdown()
    print([one.wait(100) for one in agents], flush=True)
    names = {*(f"held{n}" for n in range(2)), *(f"more{n}" for n in range(20))}
    print(check(open_spool(f"{hard}/spool"), journal, names), flush=True)


if __name__ == "__main__":
    main()
