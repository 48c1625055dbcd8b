"""The source files of own modules: for those that are used as a whole, or imported later.

An imported module keeps the code that it had, whatever its file says now. So once it is
imported, what was seen first counts: a worker that holds old code finds out so.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from fsbroker.keys.code import uses_of
from fsbroker.keys.home import home_of
from fsbroker.task import KEY_BYTES

CodeDigest = Callable[[types.CodeType], bytes]
"""How a code object is hashed: `canonical` knows, which rests on this module."""


class _Source(NamedTuple):
    module: types.ModuleType | None
    stamp: tuple[str, int, int]
    digest: bytes
    imports: tuple[str, ...]


_SOURCES: dict[str, _Source] = {}


def digest_of(name: str, code_digest: CodeDigest) -> bytes:
    """The digest of an own module's source, and of the own modules that it imports."""
    found: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        source = _source_of(module, code_digest) if module not in found else None
        if source is not None:
            found[module] = source.digest
            waiting += source.imports
            waiting += [module.rpartition(".")[0]] * ("." in module)
    hasher = blake2b(digest_size=KEY_BYTES)
    for module in sorted(found):
        hasher.update(b"%b:%b" % (module.encode(), found[module]))
    return hasher.digest()


def _source_of(name: str, code_digest: CodeDigest) -> _Source | None:
    """The source of a module as it was imported, or as an import would find it."""
    module = sys.modules.get(name)
    known = _SOURCES.get(name)
    if known is not None and module is not None:
        if known.module is None:
            known = _SOURCES[name] = known._replace(module=module)
        if known.module is module:
            return known
    file = home_of(name).file
    try:
        status = os.stat(file)
        stamp = file, status.st_mtime_ns, status.st_size
        if known is None or known.stamp != stamp:
            known = _read(name, stamp, code_digest)
    except OSError:  # none: installed, not found, or in an archive
        return None
    _SOURCES[name] = known._replace(module=module)
    return _SOURCES[name]


def _read(name: str, stamp: tuple[str, int, int], code_digest: CodeDigest) -> _Source:
    with open(stamp[0], "rb") as stream:
        data = stream.read()
    code = _compiled(data) if stamp[0].endswith(".py") else None
    if code is None:  # a compiled extension, say
        return _Source(None, stamp, blake2b(data, digest_size=KEY_BYTES).digest(), ())
    is_package = os.path.basename(stamp[0]) == "__init__.py"
    package = name if is_package else name.rpartition(".")[0]
    imports = uses_of(code).imports({"__package__": package, "__name__": name})
    return _Source(None, stamp, code_digest(code), tuple(sorted(imports)))


def _compiled(data: bytes) -> types.CodeType | None:
    try:
        return compile(data, "module", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
