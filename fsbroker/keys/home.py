"""Whose a module is: Python's, an installed distribution's, or the user's own.

Own is what no distribution lists among its files, for only that can change while its
version stays. Nothing is imported to find out: it might need a GPU.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec
from typing import Any, NamedTuple


class Home(NamedTuple):
    """Whose module it is.

    Attributes:
        label: name and version of the distribution; "" for own modules.
        file: of an own module; "" if it has none (``__main__``, or not found).
    """

    label: str
    file: str = ""

    @property
    def is_own(self) -> bool:
        """Whether it counts with its code."""
        return not self.label


_OWN = Home("")
_PYTHON = Home(f"python{sys.version_info[0]}.{sys.version_info[1]}")
_STDLIB = os.path.dirname(os.__file__) + os.sep

_HOMES: dict[str, tuple[types.ModuleType, Home]] = {}


def home_of(name: str) -> Home:
    """Whose module this is; it is not imported."""
    module = sys.modules.get(name)
    if module is None:
        spec = _find_spec(name)
        return _home_of_file(name, spec.origin if spec is not None else None)
    known = _HOMES.get(name)
    if known is None or known[0] is not module:
        found = _OWN if name == "__main__" else _home_of_file(name, _file_of(module))
        known = _HOMES[name] = module, found
    return known[1]


def resolves(module: str, name: str, obj: object) -> bool:
    """Whether anybody finds this very object under the name."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj and module != "__main__"


def _file_of(module: types.ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None


def _home_of_file(name: str, file: str | None) -> Home:
    top = name.partition(".")[0]
    if file is None or not os.path.isabs(file):
        known = name in sys.builtin_module_names or top in sys.stdlib_module_names
        return _PYTHON if known and name != "__main__" else _OWN
    inside = file.removeprefix(_STDLIB)
    if inside != file and not inside.startswith(("site-packages", "dist-packages")):
        return _PYTHON
    parts = name.count(".") + 1 + os.path.basename(file).startswith("__init__.")
    root = file
    for _ in range(parts):
        root = os.path.dirname(root)
    distribution = _distribution(root, os.path.relpath(file, root))
    return Home(distribution) if distribution else Home("", file)


# -- installed distributions -------------------------------------------------------------


@lru_cache(maxsize=4096)
def _distribution(root: str, file: str) -> str:
    """Name and version of the distribution that installed the file, or ""."""
    top = file.partition(os.sep)[0].partition(".")[0]
    for entry in sorted(_metadata(root), key=lambda entry: not _is_named(entry, top)):
        if _lists(root, entry, file, top):
            return entry.rpartition(".")[0]
    return ""


def _lists(root: str, entry: str, file: str, top: str) -> bool:
    """Whether this distribution's metadata lists the file, or else its top package."""
    record = _text(root, entry, "RECORD")
    if record:
        return f"\n{file}," in record
    return f"\n{top}\n" in _text(root, entry, "top_level.txt") + "\n"


def _is_named(entry: str, top: str) -> bool:
    return entry.lower().replace("-", "_").startswith(top.lower() + "_")


@lru_cache(maxsize=64)
def _metadata(root: str) -> tuple[str, ...]:
    """The metadata directories ``name-version.dist-info`` there."""
    try:
        return tuple(e for e in os.listdir(root) if e.endswith((".dist-info", ".egg-info")))
    except OSError:  # an archive, say
        return ()


@lru_cache(maxsize=16)
def _text(root: str, entry: str, name: str) -> str:
    try:
        with open(os.path.join(root, entry, name), encoding="utf-8", errors="replace") as stream:
            return "\n" + stream.read()
    except OSError:
        return ""


# -- modules that are not imported -------------------------------------------------------


def _find_spec(name: str) -> ModuleSpec | None:
    """The specification of a module; unlike importlib's own it does not import its parents."""
    path: Sequence[str] | None = None
    spec: ModuleSpec | None = None
    full = ""
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        spec = _ask_finders(full, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and full != name:  # no package: it has no modules inside
            return None
    return spec


def _ask_finders(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except ImportError:  # a finder that forbids a module, as IPython has for Qt
            continue
        if spec is not None:
            return spec
    return None
