"""Records of functions, and the keys of their calls.

identify(fn)                  the record that is kept for it, or a new one
record.call(args, kwargs)     flat arguments: digest of (function, ranks, preset, their text)
                              others: bound to the parameters, see `arguments`
"""

from __future__ import annotations

import os
import types
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Any, NamedTuple

from fsbroker import pickling, plain
from fsbroker.errors import CannotPickle
from fsbroker.keys import arguments
from fsbroker.keys.arguments import Shape, shape_of
from fsbroker.keys.canonical import Canon
from fsbroker.keys.guards import Guards, is_fixed
from fsbroker.keys.refusal import refusing
from fsbroker.task import KEY_BYTES, Encoding, Payload

FORMAT = b"fsbroker key 1"

UNKNOWN = bytes(KEY_BYTES)
"""The descriptor of a call whose content has no canonical form: it can be compared with none."""

OPAQUE = b"\0\0\0\0"
"""How the digest of a function begins that was not identified."""

_MAX_RECORDS = 4096
"""A record may hold what its function reaches, and so the function: they must not pile up."""

_RECORDS: dict[int, Function] = {}

_PLAIN = Encoding.PLAIN
_new = tuple.__new__


def identify(fn: Callable[..., Any]) -> Function:
    """The record of a function as it is now.

    Raises:
        CannotPickle: it reaches something that has no canonical form, or no pickle.
    """
    record = _RECORDS.get(id(fn))
    if record is not None and record.is_of(fn):
        return record
    return _remember(fn, _record(fn))


def opaque(fn: Callable[..., Any]) -> Function:
    """A record without content: for calls that are not cached, and functions that cannot be.

    Its calls get a key of their own each, or the one that ``cache_key`` names. It costs one
    pickle of the function, where `identify` costs a walk through all that it reaches.
    """
    data = pickling.dump_function(fn)
    digest = blake2b(data, digest_size=KEY_BYTES - len(OPAQUE)).digest()
    return Function(fn, OPAQUE + digest, data, None, None)


class Call(NamedTuple):
    """One call of a function.

    Attributes:
        key: content address of the task, 20 bytes.
        descriptor: digest of what was called with which arguments, whatever the key was
            made from; `UNKNOWN` if that has no canonical form.
        payload: the arguments in their stored form.
    """

    key: bytes
    descriptor: bytes
    payload: Payload


class Function:
    """What a call calls, in the state in which it was identified. Immutable.

    Attributes:
        digest: identity of the function and all that it reaches, 20 bytes.
        name: module and qualified name.
        pickle: how a worker loads it.
        source: its text, or "" where there is none.
    """

    __slots__ = (
        "_arity", "_guards", "_hasher", "_ref", "_shape", "_source", "digest", "name", "pickle",
    )  # fmt: skip

    def __init__(
        self,
        fn: Callable[..., Any],
        digest: bytes,
        data: bytes,
        guards: Guards | None,
        shape: Shape | None,
    ) -> None:
        self.digest = digest
        self.name = name_of(fn)
        self.pickle = data
        self._source = getattr(fn, "__code__", None)
        self._ref = _reference_to(fn)
        self._guards = guards
        self._shape = shape
        self._arity = shape.arity if shape is not None else -1
        self._hasher = self._prefixed(1, b"")

    @property
    def source(self) -> str:
        """The text of the function, as the editor or notebook has it."""
        return _source_text(self._source) if self._source is not None else ""

    def is_of(self, fn: Callable[..., Any]) -> bool:
        """Whether this is still the record of the function."""
        return self._ref() is fn and self._guards is not None and self._guards.hold(fn)

    def call(  # noqa: PLR0913, PLR0917 - the parts of a key
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        ranks: int = 1,
        preset: bytes = b"",
        cache_key: str | None = None,
        foreign: pickling.Foreign | None = None,
    ) -> Call:
        """Address one call.

        Args:
            args: positional arguments.
            kwargs: keyword arguments.
            ranks: how many MPI ranks run it.
            preset: digest of what an ``init_function`` provides.
            cache_key: a name to make the key from, in place of the content.
            foreign: values of the futures of other executors, by ``id(future)``.

        Raises:
            ForeignFutures: see `pickling.encode_call`.
            CannotPickle: an argument has no pickle, or no canonical form.
        """
        if not kwargs and len(args) == self._arity and cache_key is None:
            text = plain.flat_text(args)
            if text is not None:
                data = text.encode("ascii")
                hasher = self._hasher if ranks == 1 and not preset else None
                hasher = hasher.copy() if hasher is not None else self._prefixed(ranks, preset)
                hasher.update(data)
                key = hasher.digest()
                return _new(Call, (key, key, _new(Payload, (_PLAIN, data, (), ()))))
        return self._call(args, kwargs, (ranks, preset), cache_key, foreign)

    def _call(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        where: tuple[int, bytes],
        cache_key: str | None,
        foreign: pickling.Foreign | None,
    ) -> Call:
        payload = pickling.encode_call(args, kwargs, foreign)
        if self._guards is None:
            key = os.urandom(KEY_BYTES) if cache_key is None else named(cache_key)
            return Call(key, UNKNOWN if cache_key is not None else key, payload)
        try:
            hasher = self._prefixed(*where)
            preset = bool(where[1])
            hasher.update(arguments.canonical(self._shape, args, kwargs, foreign, preset=preset))
        except CannotPickle:
            if cache_key is None:
                raise
            return Call(named(cache_key), UNKNOWN, payload)
        content = hasher.digest()
        return Call(content if cache_key is None else named(cache_key), content, payload)

    def _prefixed(self, ranks: int, preset: bytes) -> blake2b:
        hasher = blake2b(FORMAT, digest_size=KEY_BYTES)
        hasher.update(b"%b%d,%d," % (self.digest, ranks, len(preset)))
        hasher.update(preset)
        return hasher


def named(cache_key: str) -> bytes:
    """The key of the call that gives itself this name, whatever it calls."""
    text = cache_key.encode("utf-8", "surrogatepass")
    return blake2b(FORMAT + b" name " + text, digest_size=KEY_BYTES).digest()


def name_of(fn: Any) -> str:
    """Module and qualified name of a callable."""
    inner = fn.func if type(fn) is partial else fn
    if not isinstance(getattr(inner, "__qualname__", None), str):
        inner = inner if hasattr(inner, "__name__") else type(inner)
    name = getattr(inner, "__qualname__", None) or getattr(inner, "__name__", "?")
    return f"{getattr(inner, '__module__', None) or 'builtins'}.{name}"


@lru_cache(maxsize=1024)
def _source_text(code: types.CodeType) -> str:
    import inspect

    try:
        return inspect.getsource(code)
    except (OSError, TypeError, SyntaxError, IndexError):
        return ""


# -- kept as long as the function lives --------------------------------------------------


def _record(fn: Callable[..., Any]) -> Function:
    guards = Guards()
    with refusing(name_of(fn)):
        digest = Canon(guards).digest(fn)
    guards.settle(fn, digest)
    return Function(fn, digest, pickling.dump_function(fn), guards, shape_of(fn))


def _remember(fn: Callable[..., Any], record: Function) -> Function:
    number = id(fn)

    # The records are an argument: at the interpreter's end the module's name is gone first.
    def forget(ref: weakref.ref[Any], records: dict[int, Function] = _RECORDS) -> None:
        found = records.get(number)
        if found is not None and found._ref is ref:  # noqa: SLF001 - the id may be in use again
            del records[number]

    try:
        record._ref = weakref.ref(fn, forget)  # noqa: SLF001 - a record is not out yet
    except TypeError:
        if not is_fixed(fn):
            return record
        record._ref = lambda: fn  # noqa: SLF001 - of a library, which keeps it anyhow
    while len(_RECORDS) >= _MAX_RECORDS:
        _RECORDS.pop(next(iter(_RECORDS)), None)
    _RECORDS[number] = record
    return record


def _reference_to(fn: Callable[..., Any]) -> Callable[[], Any]:
    try:
        return weakref.ref(fn)
    except TypeError:
        return lambda: None
