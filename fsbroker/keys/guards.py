"""Whether a function's record still holds: all that its digest was made from, as it was then.

Asked at every call, so by identity wherever that is enough: names, cells, members and
items are compared with ``is``. Only objects that can change unseen are hashed again.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from functools import partial
from operator import is_
from typing import Any

from fsbroker import plain
from fsbroker.keys.canonical import MISSING, Canon, Witness, content_of, source_digest
from fsbroker.keys.home import resolves
from fsbroker.keys.objects import LRU_CACHE
from fsbroker.keys.refusal import NotCanonical
from fsbroker.keys.stream import ATOMS


class Guards(Witness):
    """What must hold for the digest of a function to be still the right one.

    First a witness of the function's stream; then `settle`, and from then on `hold`.
    """

    def __init__(self) -> None:
        self._names: list[tuple[Mapping[str, Any], str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, Any, Any, Any, bool]] = []
        self._members: list[tuple[Mapping[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = []
        self._items: list[tuple[Collection[Any], tuple[Any, ...]]] = []
        self._held: list[tuple[Any, bytes]] = []
        self._sources: list[tuple[str, bytes]] = []
        self._seen: dict[int, object] = {}
        self._function: tuple[Any, Any, Any, bool] | None = None
        self._own_names: list[tuple[Mapping[str, Any], str]] = []
        self._own_cells: list[types.CellType] = []
        self._own_digest: bytes | None = None
        self._is_simple = False

    def saw_function(self, fn: types.FunctionType) -> None:
        """Its code, defaults and attributes count."""
        self._functions.append(
            (fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__, bool(vars(fn)))
        )

    def saw_name(self, names: Mapping[str, Any], name: str, value: Any) -> None:
        """The name stands for this value, or `MISSING`."""
        self._names.append((names, name, value))

    def saw_cell(self, cell: types.CellType, value: Any) -> None:
        """The cell holds this value, or `MISSING`."""
        self._cells.append((cell, value))

    def saw_class(self, cls: type) -> None:
        """Its members count."""
        members = vars(cls)
        self._members.append((members, tuple(members), tuple(members.values())))

    def saw_source(self, name: str, digest: bytes) -> None:
        """The source of the own module has this digest."""
        self._sources.append((name, digest))

    def saw_value(self, value: Any) -> None:
        """Note what would tell that this value has changed in place."""
        if is_fixed(value) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        kind = type(value)
        if kind is dict:
            self._members.append((value, tuple(value), tuple(value.values())))
            self._saw_all(value.values())
        elif kind in (list, set):
            self._items.append((value, tuple(value)))
        elif kind is partial:
            self._saw_all((value.func, value.args, value.keywords, vars(value)))
        elif kind not in (tuple, frozenset):
            self._held.append((value, Canon().digest(value)))
        if kind in (dict, list, set, tuple, frozenset):
            self._saw_all(value)

    def _saw_all(self, values: Collection[Any]) -> None:
        if not plain.ATOMS.issuperset(map(type, values)):
            for value in values:
                self.saw_value(value)

    def settle(self, fn: Any, digest: bytes) -> None:
        """Let go of the function itself, so that the record does not keep it alive."""
        for entry in self._functions:
            if entry[0] is fn:
                self._function = entry[1:]
        self._functions = [entry for entry in self._functions if entry[0] is not fn]
        self._own_names = [entry[:2] for entry in self._names if entry[2] is fn]
        self._names = [entry for entry in self._names if entry[2] is not fn]
        self._own_cells = [cell for cell, value in self._cells if value is fn]
        self._cells = [entry for entry in self._cells if entry[1] is not fn]
        if type(fn) is partial:
            self.saw_value(fn)
        elif not is_fixed(fn):
            self._own_digest = digest
        self._seen.clear()
        rest = (self._functions, self._members, self._items, self._held, self._sources)
        own = (self._own_names, self._own_cells, self._own_digest)
        self._is_simple = not any(rest + own)

    def hold(self, fn: Any) -> bool:
        """Whether all of them do."""
        function = self._function
        if function is not None and (  # `_is_unchanged` in place: a call costs more than the tests
            fn.__code__ is not function[0]
            or fn.__defaults__ is not function[1]
            or fn.__kwdefaults__ is not function[2]
            or bool(fn.__dict__) is not function[3]
        ):
            return False
        for names, name, value in self._names:
            if names.get(name, MISSING) is not value:
                return False
        for cell, value in self._cells:
            if content_of(cell) is not value:
                return False
        return self._is_simple or self._rest_holds(fn)

    def _rest_holds(self, fn: Any) -> bool:
        return (
            all(names.get(name) is fn for names, name in self._own_names)
            and all(content_of(cell) is fn for cell in self._own_cells)
            and all(_is_unchanged(*entry) for entry in self._functions)
            and all(_has_same_members(*entry) for entry in self._members)
            and all(_has_same_items(*entry) for entry in self._items)
            and all(source_digest(name) == digest for name, digest in self._sources)
            and all(_has_digest(obj, digest) for obj, digest in self._held)
            and (self._own_digest is None or _has_digest(fn, self._own_digest))
        )


def _is_unchanged(
    fn: types.FunctionType, code: Any, defaults: Any, kwdefaults: Any, attributes: bool
) -> bool:
    return (
        fn.__code__ is code
        and fn.__defaults__ is defaults
        and fn.__kwdefaults__ is kwdefaults
        and bool(fn.__dict__) is attributes
    )


def _has_same_members(
    members: Mapping[Any, Any], names: tuple[Any, ...], values: tuple[Any, ...]
) -> bool:
    return _has_same_items(members, names) and all(map(is_, members.values(), values))


def _has_same_items(found: Collection[Any], items: tuple[Any, ...]) -> bool:
    """Identical, not equal: 1 and True are two values."""
    return len(found) == len(items) and all(map(is_, found, items))


def _has_digest(obj: Any, digest: bytes) -> bool:
    try:
        return Canon().digest(obj) == digest
    except (NotCanonical, RecursionError):
        return False


# -- what cannot change ------------------------------------------------------------------

_FIXED = {
    ("re", "Pattern"), ("decimal", "Decimal"), ("datetime", "datetime"), ("datetime", "date"),
    ("datetime", "time"), ("datetime", "timedelta"), ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"), ("builtins", "range"), ("logging", "Logger"),
    ("fractions", "Fraction"), ("uuid", "UUID"), ("numpy", "ufunc"),
    ("_collections", "_tuplegetter"), ("dataclasses", "Field"),
    ("dataclasses", "_DataclassParams"), ("dataclasses", "_HAS_DEFAULT_FACTORY_CLASS"),
}  # fmt: skip


def is_fixed(obj: Any) -> bool:
    """Whether this object cannot change in place, or has guards of its own."""
    kind = type(obj)
    if kind in (tuple, frozenset):
        return all(map(is_fixed, obj))
    if kind in (staticmethod, classmethod, LRU_CACHE):
        return is_fixed(obj.__wrapped__)
    if kind is property:
        return all(map(is_fixed, (obj.fget, obj.fset, obj.fdel)))
    return (
        (kind in ATOMS and kind is not bytearray)
        or isinstance(obj, (types.FunctionType, type, types.ModuleType))
        or (kind is types.BuiltinFunctionType and _is_of_module(obj))
        or (kind.__module__, kind.__name__) in _FIXED
        or (kind.__module__ == "numpy" and _is_fixed_in_numpy(obj))
    )


def _is_of_module(obj: types.BuiltinFunctionType) -> bool:
    """Whether this is a function, and no method of some object."""
    return obj.__self__ is None or isinstance(obj.__self__, (types.ModuleType, type))


def _is_fixed_in_numpy(obj: Any) -> bool:
    import numpy as np

    if isinstance(obj, np.generic):
        return not isinstance(obj, np.void)
    return isinstance(obj, np.dtype) or _is_importable(obj)


def _is_importable(obj: Any) -> bool:
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    return isinstance(module, str) and isinstance(name, str) and resolves(module, name, obj)
