"""Signs that a site deletes old files where a spool lies.

Only systemd's own cleaning says for certain what it does (tmpfiles.d). Sites purge scratch file
systems by programs that run elsewhere, so all else is a guess from names, and said to be one.
"""

from __future__ import annotations

import glob
import os
import re

CONFIGURED = ("/etc/tmpfiles.d", "/run/tmpfiles.d", "/usr/lib/tmpfiles.d")
SCRATCH = re.compile(r"/(?:[a-z0-9]*scratch[a-z0-9]*|nobackup|ptmp|tmp|work)(?:/|$)", re.IGNORECASE)
VARIABLES = ("SCRATCH", "CSCRATCH", "PSCRATCH", "WORK", "MEMBERWORK", "LOCAL_SCRATCH")


def policy(path: str) -> str:
    """What is known, or to be feared; "" if there is no sign.

    Args:
        path: absolute, without links.
    """
    return _configured(path) or _named(path)


def _configured(path: str) -> str:
    """What tmpfiles.d says; of files of the same name the first directory's counts."""
    seen = set()
    for directory in CONFIGURED:
        for file in sorted(glob.glob(f"{directory}/*.conf")):
            if os.path.basename(file) in seen:
                continue
            seen.add(os.path.basename(file))
            for line in _lines(file):
                if (found := _age_in(line, path)) is not None:
                    where, age = found
                    return f"files in {where} are deleted when they are {age} old ({file})"
    return ""


def _lines(file: str) -> list[str]:
    try:
        with open(file, errors="replace") as opened:
            return opened.read().splitlines()
    except OSError:
        return []


def _age_in(line: str, path: str) -> tuple[str, str] | None:
    """The directory and age of a line ``d /tmp 1777 root root 10d`` that is about this path."""
    words = line.split()
    if len(words) < 6 or words[0][0] not in "dDvqQ" or words[5] in ("-", ""):
        return None
    return (words[1], words[5]) if _is_below(path, words[1]) else None


def _is_below(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def _named(path: str) -> str:
    for name in VARIABLES:
        value = os.environ.get(name)
        if value and _is_below(path, os.path.realpath(value)):
            return f"this is below ${name}: sites often purge old files there; ask yours"
    if match := SCRATCH.search(path):
        return f"{match[0]} in its path: sites often purge old files there; ask yours"
    return ""
