"""Any Python object in its stored form, with its arrays and futures beside it.

    encode, encode_call    object, arguments of a call -> Payload: plain if possible,
                           else pickled by cloudpickle
    decode, decode_call    what was encoded
    join                   the payload of a list, from the payloads of its items
    dump_function, load_function

Numeric arrays anywhere in the object are taken out, so that they are stored as numbers.
So are futures: one that has a `Dependency` stands for the value of another task, which
the worker fills in; others are `ForeignFutures`, and only the client can wait for them.

The arguments of a call are one payload. Plain: the list of the positional arguments, or
``{"args": [...], "kwargs": {...}}`` where there are keyword arguments. Pickled:
``(args, kwargs)``.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import cache, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fsbroker import plain
from fsbroker.errors import CannotPickle, FileDamaged
from fsbroker.task import Dependency, Encoding, Payload

if TYPE_CHECKING:
    import numpy as np

PROTOCOL = 5

_PLAIN = Encoding.PLAIN
_new = tuple.__new__  # a third of the time that a named tuple's own constructor takes

Foreign = Mapping[int, Any]
"""The values of foreign futures, by ``id(future)``."""


class ForeignFutures(Exception):
    """The object holds futures of other executors.

    Wait for them, and encode again with ``foreign={id(future): value}``.

    Attributes:
        futures: all of them, each once.
    """

    def __init__(self, futures: list[Future[Any]]) -> None:
        self.futures = futures
        super().__init__(f"{len(futures)} futures of other executors")


def dependency_of(future: object) -> Dependency | None:
    """What a future of ours stands for; None for those of other executors."""
    found = getattr(future, "dependency", None)
    return found if isinstance(found, Dependency) else None


class _Futures:
    """What stands for each future in an object; remembers those it has no value for."""

    def __init__(self, foreign: Foreign | None) -> None:
        self._foreign = foreign or {}
        self._missing: dict[int, Future[Any]] = {}

    def resolve(self, obj: object) -> object:
        """A `Dependency`, or the value of a foreign future; raises `plain.NotPlain`."""
        if not isinstance(obj, Future):
            raise plain.NotPlain(type(obj))
        found = dependency_of(obj)
        if found is not None:
            return found
        if id(obj) in self._foreign:
            return self._foreign[id(obj)]
        self._missing[id(obj)] = obj
        return None

    def require_all(self) -> None:
        if self._missing:
            raise ForeignFutures(list(self._missing.values()))


# -- objects -----------------------------------------------------------------------------


def encode(obj: object, foreign: Foreign | None = None) -> Payload:
    """The stored form of any object.

    Raises:
        ForeignFutures: it holds futures of other executors that ``foreign`` has no value of.
        CannotPickle: it holds something that no other process can be given.
    """
    return _encode_plain(obj, foreign, False) or _encode_pickle(obj, foreign, False)


def decode(
    encoding: int, data: bytes, arrays: Sequence[Any] = (), values: Sequence[Any] = ()
) -> Any:
    """The object that was encoded.

    Args:
        encoding: of the payload.
        data: of the payload.
        arrays: of the payload; those that are read-only are copied.
        values: of its dependencies, in their order.
    """
    if encoding == Encoding.PLAIN:
        return plain.decode(data, arrays, values)
    if encoding != Encoding.PICKLE:
        raise FileDamaged(f"A stored value has the unknown encoding {encoding}")
    if not arrays and not values:
        return pickle.loads(data)
    return _Unpickler(data, arrays, values).load()


def join(payloads: Sequence[Payload]) -> Payload:
    """The payload of the list of the values (of all ranks), without unpickling any."""
    if all(p.encoding == Encoding.PLAIN for p in payloads):
        if not any(p.arrays for p in payloads):
            return Payload(Encoding.PLAIN, b"[%b]" % b",".join(p.data for p in payloads))
        joined = plain.encode([plain.decode(p.data, p.arrays) for p in payloads])
        if joined is not None:
            return joined
    return _encode_pickle(_Joined(payloads), None, False)


class _Joined:
    """Pickles as a list of values that are not unpickled before the list is."""

    def __init__(self, payloads: Sequence[Payload]) -> None:
        self._parts = [(int(p.encoding), p.data, p.arrays) for p in payloads]

    def __reduce__(self) -> tuple[Any, ...]:
        return _decode_parts, (self._parts,)


def _decode_parts(parts: list[tuple[int, bytes, tuple[np.ndarray, ...]]]) -> list[Any]:
    return [decode(encoding, data, arrays) for encoding, data, arrays in parts]


def _encode_plain(obj: object, foreign: Foreign | None, copy: bool) -> Payload | None:
    futures = _Futures(foreign)
    try:
        payload = plain.Encoder(plain.Arrays(copy), futures.resolve).payload(obj)
    except plain.NotPlain:
        return None
    futures.require_all()
    return payload


def _encode_pickle(obj: object, foreign: Foreign | None, copy: bool) -> Payload:
    futures = _Futures(foreign)
    stream = io.BytesIO()
    pickler = _pickler_class()(stream, plain.Arrays(copy), futures)
    try:
        pickler.dump(obj)
    except Exception as error:
        futures.require_all()
        raise _cannot_pickle(obj, error) from error
    futures.require_all()
    arrays, dependencies = tuple(pickler.arrays.found), tuple(pickler.dependencies)
    return Payload(Encoding.PICKLE, stream.getvalue(), arrays, dependencies)


@cache
def _pickler_class() -> Any:
    import cloudpickle  # on first use: plain values do without

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Takes arrays and futures out; they are persistent ids in the pickle.

        Without ``arrays`` and ``futures`` it leaves both where they are.
        """

        def __init__(
            self,
            stream: io.BytesIO,
            arrays: plain.Arrays | None = None,
            futures: _Futures | None = None,
        ) -> None:
            super().__init__(stream, protocol=PROTOCOL)
            self.arrays = arrays
            self.dependencies: dict[Dependency, int] = {}
            self._futures = futures

        def persistent_id(self, obj: Any) -> tuple[str, int] | None:
            if self.arrays is not None and plain.is_array(obj):
                return "array", self.arrays.place(obj)
            if self._futures is not None and isinstance(obj, Future):
                found = self._futures.resolve(obj)
                if isinstance(found, Dependency):
                    places = self.dependencies
                    return "value", places.setdefault(found, len(places))
            return None

        def reducer_override(self, obj: Any) -> Any:
            if self._futures is not None and isinstance(obj, Future):  # a foreign one: its value
                return _same, (self._futures.resolve(obj),)
            if type(obj) is _LRU_CACHE and not _is_importable(obj):
                return _cached, (obj.cache_parameters(), obj.__wrapped__)
            return super().reducer_override(obj)

    return Pickler


_LRU_CACHE = type(lru_cache(len))


def _is_importable(obj: Any) -> bool:
    """Whether a worker finds it by name. Of ``lru_cache`` cloudpickle always thinks so."""
    import cloudpickle

    module = obj.__module__
    if module == "__main__" or module in cloudpickle.list_registry_pickle_by_value():
        return False
    found: Any = sys.modules.get(module)
    for part in obj.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is obj


def _cached(parameters: dict[str, Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    cached: Callable[..., Any] = lru_cache(**parameters)(fn)
    return cached


def _same(obj: object) -> object:
    return obj


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, arrays: Sequence[Any], values: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._arrays = plain.Writable(arrays)
        self._values = values

    def persistent_load(self, pid: Any) -> Any:
        kind, place = pid
        return self._arrays[place] if kind == "array" else self._values[place]


# -- calls -------------------------------------------------------------------------------


def encode_call(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], foreign: Foreign | None = None
) -> Payload:
    """The stored form of the arguments of a call, as they are now.

    Arrays are copied: the caller may go on to change his before they are written.

    Raises:
        ForeignFutures, CannotPickle: as `encode` does.
    """
    if not kwargs:
        text = plain.flat_text(args)
        if text is not None:
            return _new(Payload, (_PLAIN, text.encode("ascii"), (), ()))
    plain_form = {"args": list(args), "kwargs": dict(kwargs)} if kwargs else list(args)
    payload = _encode_plain(plain_form, foreign, True)
    return payload or _encode_pickle((args, dict(kwargs)), foreign, True)


def decode_call(
    encoding: int, data: bytes, arrays: Sequence[Any] = (), values: Sequence[Any] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a call; parameters as those of `decode`."""
    found = decode(encoding, data, arrays, values)
    if encoding == Encoding.PICKLE:
        args, kwargs = found
        return args, kwargs
    if type(found) is list:
        return tuple(found), {}
    try:
        return tuple(found["args"]), dict(found["kwargs"])
    except (TypeError, LookupError, ValueError):
        raise FileDamaged("Stored arguments are not a list, nor args and kwargs") from None


# -- functions ---------------------------------------------------------------------------


def dump_function(fn: Callable[..., Any]) -> bytes:
    """The pickle of a function: by reference where it can be imported, else by value."""
    stream = io.BytesIO()
    try:
        _pickler_class()(stream).dump(fn)
    except Exception as error:
        raise _cannot_pickle(fn, error) from error
    return stream.getvalue()


def load_function(data: bytes) -> Callable[..., Any]:
    """The function that was dumped."""
    return pickle.loads(data)  # type: ignore[no-any-return]


def register_pickle_by_value(module: ModuleType) -> None:
    """Send functions and classes of an importable module by value from now on.

    For modules that workers cannot import.
    """
    import cloudpickle

    cloudpickle.register_pickle_by_value(module)


# -- what cannot be pickled --------------------------------------------------------------

_MAX_TRIES = 1000


def _cannot_pickle(obj: object, error: Exception) -> CannotPickle:
    culprit, path = _culprit(obj)
    reason = f"{type(error).__name__}: {error}"
    return CannotPickle(
        f"Cannot pickle an object of type {type(culprit).__qualname__} ({reason})",
        path or type(obj).__qualname__,
        "Create it inside the function, or pass what it is made from (a path, numbers).",
    )


def _culprit(obj: object) -> tuple[object, str]:
    """The innermost object that fails to pickle, and the way to it."""
    path = "the call" if _is_call(obj) else ""
    tries = _MAX_TRIES
    while True:
        for step, part in _parts(obj, path):
            tries -= 1
            if tries > 0 and not _pickles(part):
                obj, path = part, step
                break
        else:
            return obj, path


def _pickles(obj: object) -> bool:
    try:
        _pickler_class()(io.BytesIO(), plain.Arrays(), _Futures(None)).dump(obj)
    except Exception:
        return False
    return True


def _is_call(obj: object) -> bool:
    return type(obj) is tuple and len(obj) == 2 and list(map(type, obj)) == [tuple, dict]


def _parts(obj: Any, path: str) -> Iterator[tuple[str, object]]:
    if path == "the call":
        yield from ((f"argument {n}", part) for n, part in enumerate(obj[0]))
        yield from ((f"argument {name!r}", part) for name, part in obj[1].items())
    elif isinstance(obj, Mapping):
        yield from ((f"{path}[{key!r}]", part) for key, part in obj.items())
    elif isinstance(obj, (list, tuple)):
        yield from ((f"{path}[{n}]", part) for n, part in enumerate(obj))
    elif isinstance(obj, (set, frozenset)):
        yield from ((f"an item of {path or 'the set'}", part) for part in obj)
    else:
        yield from _attributes(obj, path)


def _attributes(obj: Any, path: str) -> Iterator[tuple[str, object]]:
    if not isinstance(obj, type):
        yield from ((f"{path}.{name}", part) for name, part in getattr(obj, "__dict__", {}).items())
    code = getattr(obj, "__code__", None)
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(obj, "__closure__", None) or (), strict=False
    ):
        yield f"{path} closure variable {name!r}", cell.cell_contents
    for name in getattr(code, "co_names", ()):
        if name in getattr(obj, "__globals__", {}):
            yield f"{path} global {name!r}", obj.__globals__[name]
