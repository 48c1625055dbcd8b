"""Whether the function that a worker loaded is the one that was submitted.

A task runs what its key was made from, or not at all: an edited module that an old worker
still holds must not fill the cache with values of other code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, combinations
from typing import Any

from fsbroker.keys.canonical import Canon
from fsbroker.keys.function import OPAQUE, name_of
from fsbroker.keys.refusal import refusing

_VERIFIED: dict[bytes, weakref.ref[Any]] = {}


def verify(fn: Callable[..., Any], digest: bytes) -> bool:
    """Whether a function that was loaded here is the one that was submitted.

    Call it before the function runs for the first time: what a task does to the globals of
    its module changes the digest. A fresh process decides where a used one says no.
    """
    if digest.startswith(OPAQUE):
        return True
    seen = _VERIFIED.get(digest)
    if seen is not None and seen() is fn:
        return True
    if not _matches(fn, digest):
        return False
    with suppress(TypeError):  # a builtin, say: it is looked at each time
        _VERIFIED[digest] = weakref.ref(fn)
    return True


def _matches(fn: Callable[..., Any], digest: bytes) -> bool:
    """Whether the digest fits, if what the client had not installed is left out.

    A function may import, when it runs, what only the compute nodes have.
    """
    canon = Canon()
    with refusing(name_of(fn)):
        if canon.digest(fn) == digest:
            return True
        names = sorted(canon.installed_imports)[:4]
        subsets = chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1))
        return any(Canon(absent=frozenset(some)).digest(fn) == digest for some in subsets)
