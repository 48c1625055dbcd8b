"""System calls of a sample, through strace: what a file server would have to answer.

Metadata calls are those that name a path below the sample's directory (open, stat, link,
symlink, readlink, rename, unlink, mkdir, ...) and those that list a directory. Reading,
writing and fstat through a descriptor are data; fsync is counted by itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter

MARK = "/fsbroker-benchmark"
"""No such directory: looking for a name in it shows up in the trace, and nowhere else."""

_CALL = re.compile(r"^\d+ +(\w+)\((.*)")
_SYNC = ("fsync", "fdatasync", "sync_file_range", "syncfs")
_LIST = ("getdents", "getdents64")


def mark(name):
    """Leave a mark in the trace of whoever traces this process."""
    os.path.exists(f"{MARK}/{name}")


def missing():
    """Why system calls cannot be counted here; None if they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else "strace is not allowed here"


def command(output):
    """What to put before a command so that it and all its children are traced.

    --seccomp-bpf leaves all other calls at full speed.
    """
    calls = ",".join(("%file", *_LIST, *_SYNC))
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-yy", "-e", f"trace={calls}", "-o", output]


def count(path, directory):
    """Calls below ``directory`` between consecutive marks: name of the first -> Counter.

    The Counter's keys are "metadata", "fsync", and the names of the metadata calls.
    """
    found, current = {}, Counter()
    with open(path, errors="replace") as lines:
        for line in lines:
            match = _CALL.match(line)
            if match is None:
                continue  # the second half of a call, a signal, an exit
            name, arguments = match.groups()
            if f'"{MARK}/' in arguments:
                current = found.setdefault(arguments.split(f"{MARK}/")[1].split('"')[0], Counter())
            elif directory in arguments:
                kind = _kind(name, arguments)
                current.update((kind, name) if kind == "metadata" else (kind,))
    return found


def _kind(name, arguments):
    if name in _SYNC:
        return "fsync"
    # fstat in the clothes of newfstatat: through a descriptor, no name.
    return "data" if re.match(r'\d+<[^>]*>, ""', arguments) else "metadata"
