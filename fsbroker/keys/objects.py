"""Objects that are taken apart: those of some types by their own rules, any others as pickle would.

Each rule stands here because pickle's is not enough. Properties, class methods and fields
do not pickle, but stand in classes; locks and weak containers hold no data, but stand in
closures; the order of a set is an accident.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from functools import lru_cache, partial
from typing import Any

from fsbroker import pickling
from fsbroker.keys.refusal import NotCanonical, type_name
from fsbroker.keys.stream import Stream

LRU_CACHE = type(lru_cache(len))


def write(stream: Stream, obj: Any) -> bool:
    """Write an object for which there is a rule; False: there is none."""
    step = _STEPS.get(type(obj))
    if step is not None:
        step(stream, obj)
    elif isinstance(obj, Future):
        _future(stream, obj)
    elif isinstance(obj, Enum):
        stream.value(type(obj))
        stream.put_text(b"member", str(obj.name))
        stream.value(obj._value_)
    elif isinstance(obj, (set, frozenset)):
        stream.value(type(obj))
        stream.set(obj)
        stream.mapping(getattr(obj, "__dict__", {}))
    else:
        return False
    return True


def _future(stream: Stream, obj: Future[Any]) -> None:
    found = pickling.dependency_of(obj)
    if found is None:
        raise NotCanonical(obj, "a future of another executor")
    stream.put(b"value of", found.key)
    stream.sequence(found.selector)


def _property(stream: Stream, obj: property) -> None:
    stream.put(b"property")
    for part in (obj.fget, obj.fset, obj.fdel):
        stream.value(part)


def _method(stream: Stream, obj: Any) -> None:
    stream.put_text(b"method", type(obj).__name__)
    stream.value(obj.__func__)


def _type_only(stream: Stream, obj: Any) -> None:
    stream.put_text(b"one of", type_name(obj))


def _cached(stream: Stream, obj: Any) -> None:
    stream.put_text(b"lru_cache", str(obj.cache_parameters()))
    stream.value(obj.__wrapped__)


def _partial(stream: Stream, obj: partial[Any]) -> None:
    stream.put(b"partial")
    for part in (obj.func, obj.args, obj.keywords, vars(obj)):
        stream.value(part)


def _field(stream: Stream, obj: Any) -> None:
    """A field of a dataclass, without its annotation."""
    stream.put_text(b"field", str(obj.name))
    for part in ("default", "default_factory", "init", "repr", "hash", "compare"):
        stream.value(getattr(obj, part))
    stream.mapping(obj.metadata)


def _type_variable(stream: Stream, obj: Any) -> None:
    stream.put_text(b"type variable", obj.__name__)


def _steps() -> dict[type, Callable[[Any, Any], None]]:
    """What writes objects of exactly this type."""
    import _thread
    import dataclasses
    import threading
    from typing import TypeVar

    return {
        list: Stream.sequence,
        tuple: Stream.sequence,
        dict: Stream.mapping,
        types.MappingProxyType: Stream.mapping,
        set: Stream.set,
        frozenset: Stream.set,
        property: _property,
        staticmethod: _method,
        classmethod: _method,
        TypeVar: _type_variable,
        dataclasses.Field: _field,
        LRU_CACHE: _cached,
        partial: _partial,
        # No data: locks, and caches that forget.
        _thread.LockType: _type_only,
        _thread.RLock: _type_only,
        threading.local: _type_only,
        weakref.WeakKeyDictionary: _type_only,
        weakref.WeakValueDictionary: _type_only,
        weakref.WeakSet: _type_only,
    }


_STEPS = _steps()


# -- as pickle would ---------------------------------------------------------------------


def reduce(obj: Any) -> Any:
    """The name of a global, or what pickle calls function, arguments, state, items and pairs."""
    try:
        registered = copyreg.dispatch_table.get(type(obj))
        reduced = registered(obj) if registered is not None else obj.__reduce_ex__(4)
        if isinstance(reduced, str):
            return reduced
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        return make, args, state, items and list(items), pairs and list(pairs)
    except Exception as error:
        raise NotCanonical(obj, error) from error


def module_of(obj: Any, name: str) -> str:
    """The module that has an object under this name."""
    if type(obj).__name__ == "ufunc":  # has no module; who imported it first must not matter
        numpy = sys.modules["numpy"]
        if getattr(numpy, name, None) is obj:
            return "numpy"
    found = getattr(obj, "__module__", None)
    return found if isinstance(found, str) else pickle.whichmodule(obj, name)  # type: ignore[attr-defined]
