"""Sessions of a user: code from notebook cells and scripts, here or in another interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import fsbroker
from fsbroker.keys import identify

ROOT = os.path.dirname(os.path.dirname(fsbroker.__file__))


def define(source: str, name: str = "f", file: str = "<cell>") -> Any:
    """What running this text as a notebook cell or script leaves under the name."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), scope)
    return scope[name]


def key(fn: Any, *args: Any, **kwargs: Any) -> bytes:
    return identify(fn).call(args, kwargs).key


def key_of(source: str, *args: Any) -> bytes:
    return key(define(source), *args)


def run(script: os.PathLike[str] | str, *path: Any, seed: int = 0, **variables: str) -> Any:
    """What the script prints as JSON, in a fresh interpreter."""
    env = {
        **os.environ,
        "PYTHONHASHSEED": str(seed),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))),
        "PYTHONDONTWRITEBYTECODE": "1",  # an edit in the same second must be seen
        **variables,
    }
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, env=env, check=True)
    return json.loads(done.stdout)


def scope_of(fn: Any) -> dict[str, Any]:
    return fn.__globals__


def anything(*args, **kwargs):
    """Arguments of any kind are given to this."""


def changed(one: dict[str, str], two: dict[str, str]) -> set[str]:
    """The names whose digests differ."""
    return {name for name in one if one[name] != two[name]}
