"""Hosts that are not what they seem: clocks, names and pids alike, locks that nobody gives back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsbroker.spool.layout import LOCKS
from fsbroker.spool.spool import create
from tests.faults.audit import check, outcomes
from tests.faults.processes import DEADLINE, wait_until
from tests.faults.tasks import hold, runs_of, value_of

PRELOAD = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
HOLDER = """
import fcntl, os, sys, time
files = [open(name, "a") for name in sys.argv[1:]]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
if os.fork():
    os._exit(0)     # the child keeps the locks
print(os.getpid(), flush=True)
time.sleep(300)
"""


@pytest.mark.skipif(PRELOAD is None, reason="faketime is not installed")
def test_clocks_that_differ_by_hours_and_jump(batches, executor, processes, monkeypatch):
    """One agent's clock is an hour ahead, and jumps to one behind while its task runs."""
    clock, gate = processes.folder / "clock", processes.folder / "gate"
    clock.write_text("+3600")
    fake = ["env", f"LD_PRELOAD={PRELOAD}", f"FAKETIME_TIMESTAMP_FILE={clock}"]
    fake += ["FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"]
    held = executor.submit(hold, processes.journal, "held", str(gate))
    batches.expect([held], [value_of("held")])
    strange = processes.agent(before=fake, cores=1, lease=60)
    wait_until(lambda: "held" in runs_of(processes.journal))
    batches.submit("a", 20)
    other = processes.agent(cores=1, idle_timeout=5, lease=60)
    wait_until(lambda: len(runs_of(processes.journal)) > 5)  # the strange one has claimed some
    clock.write_text("-3600")
    gate.touch()
    for agent in (strange, other):
        processes.ends(agent)
    batches.finish(exact=True)


SAME = 'hostname same; exec "$@"'
ALIKE = ["unshare", "--propagation=slave", "--uts", "--pid", "--fork", "--mount-proc"]
ALIKE += ["--kill-child", "sh", "-c", SAME]


@pytest.mark.users
def test_hosts_of_one_name_with_the_same_pids(batches, executor, processes):
    """Who looks for the other's pid finds his own: only silence tells who is dead."""
    gate = processes.folder / "gate"
    held = executor.submit(hold, processes.journal, "held", str(gate))
    batches.expect([held], [value_of("held")])
    first = processes.agent(before=[*ALIKE, "sh"], cores=1, idle_timeout=60)
    wait_until(lambda: "held" in runs_of(processes.journal))
    second = processes.agent(before=[*ALIKE, "sh"], cores=1, lease=3, idle_timeout=4)
    batches.submit("a", 20)
    wait_until(lambda: len(runs_of(processes.journal)) > 5)
    first.kill()
    first.wait()
    gate.touch()
    assert held.result(DEADLINE) == value_of("held")
    processes.ends(second)
    batches.finish()
    spool = create(processes.spool)
    assert {seen.generation for seen in outcomes(spool).values()} == {0, 1}
    assert runs_of(processes.journal)["held"] == 2


def test_locks_that_an_orphan_keeps(batches, processes):
    """The holder is dead, its child lives on with all locks: work goes on without them."""
    spool = create(processes.spool)
    locks = [f"{processes.spool}/{spool.area.path}/locks/{number:02d}" for number in range(LOCKS)]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *locks], stdout=subprocess.PIPE, text=True
    )
    orphan = int(holder.stdout.readline())
    try:
        assert holder.wait(DEADLINE) == 0
        batches.submit("a", 20)
        for agent in [processes.agent(cores=1, lease=60) for _ in range(2)]:
            processes.ends(agent)
        batches.finish(exact=True)
    finally:
        os.kill(orphan, signal.SIGKILL)
        holder.stdout.close()


def test_a_spool_that_was_copied_elsewhere(batches, processes, tmp_path):
    """At rest or not: values are found there, stale agents are not believed, work goes on."""
    batches.submit("a")
    processes.ends(processes.agent())
    script = ["client", str(tmp_path / "copy"), processes.journal]
    shutil.copytree(processes.spool, tmp_path / "copy", symlinks=True)
    for prefix in ("a", "b"):
        client = processes.start(*script, prefix, "5")
        processes.ends(processes.agent(spool=tmp_path / "copy", idle_timeout=2))
        processes.ends(client)
    assert runs_of(processes.journal)["a0"] == 1
    assert len(runs_of(processes.journal)) == 10
    check(create(tmp_path / "copy"), processes.journal, set(runs_of(processes.journal)), exact=True)
