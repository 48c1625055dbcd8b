"""Processes of this machine as /proc shows them: who belongs to whom, CPU time, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from contextlib import suppress


def descendants(pid):
    """All processes below one, their children's children included."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, ())]
        found += new
    return found


def command(pid):
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().decode(errors="replace").split("\0")
    return []


def role(pid):
    words = command(pid)
    if "fsbroker.agent.worker" in words:
        return "workers"
    return "agent" if "fsbroker.agent" in words else "other"


def agents(pid):
    return [one for one in descendants(pid) if role(one) == "agent"]


def wait_for(pids, seconds):
    """Until they have ended, or for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return
        time.sleep(0.02)


def cpu_by_thread():
    """Seconds on a core: of each thread of this process, and of those of its agent and workers."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    names[os.getpid()] = "submit"
    spent = {}
    for pid in [os.getpid(), *descendants(os.getpid())]:
        mine = pid == os.getpid()
        with suppress(OSError):
            for tid in map(int, os.listdir(f"/proc/{pid}/task")):
                if mine:
                    name = f"client: {_kind_of(names.get(tid, 'other'))}"
                else:
                    name = f"{role(pid)}: {'main' if tid == pid else 'other threads'}"
                spent[name] = spent.get(name, 0.0) + _on_core(pid, tid)
    return spent


def cpu_since(before, tasks):
    """Microseconds for each task since an earlier `cpu_by_thread`."""
    return {
        name: (seconds - before.get(name, 0.0)) / tasks * 1e6
        for name, seconds in cpu_by_thread().items()
    }


def _kind_of(name):
    """Library threads are numbered; we want one line for all of them."""
    return name if name in ("submit", "fsbroker") else "watch and other threads"


def _on_core(pid, tid):
    # To the nanosecond; utime and stime in `stat` are counted in ticks of 10 ms.
    with suppress(OSError), open(f"/proc/{pid}/task/{tid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9
    return 0.0


def memory():
    """Bytes that this process holds, what malloc keeps for later given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
