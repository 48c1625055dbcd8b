"""Content addresses: the same call has the same key, in every process and session.

    identify(fn) -> Function       what is called: its code, and all that the code reaches
    Function.call(args, kwargs)    -> Call: the key, and the arguments in their stored form
    verify(fn, digest)             is this the code that was submitted?

A key is the digest of (format, function, arguments, ranks, preset). Functions and objects
are written as a *canonical stream* of tokens, and the stream is hashed. Its rules:

- Own functions and classes are nodes of a graph. The stream refers to them by number, in
  the order of discovery, and describes each once: cycles end, and it takes linear time.
- Own is what no installed distribution lists among its files: scripts, notebooks, modules
  on a path, editable installs. It counts with its code. Installed code counts with
  distribution and version, the standard library with the version of Python.
- Code counts without file names, line numbers, docstrings and annotations.
- Data counts by value: neither the order of dicts and sets, nor sharing, nor memory layout
  matters. Objects of any class are taken apart as pickle would (``__reduce_ex__``).

A function's record is kept as long as the function lives, with *guards* that tell whether
anything it was made from has changed: identity tests for all that cannot change in place,
a new digest for what can.
"""

from __future__ import annotations

import builtins
import copyreg
import os
import pickle
import struct
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b
from importlib.machinery import ModuleSpec
from itertools import chain, combinations
from opcode import EXTENDED_ARG, hasconst, opmap
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

from fsbroker import pickling, plain
from fsbroker.errors import CannotPickle, CodeChanged
from fsbroker.task import KEY_BYTES, Encoding, Payload

if TYPE_CHECKING:
    import numpy as np

FORMAT = b"fsbroker key 1"

UNKNOWN = bytes(KEY_BYTES)
"""The descriptor of a call whose content has no canonical form: it can be compared with none."""

_PLAIN = Encoding.PLAIN
_new = tuple.__new__
_MISSING: Any = type("Missing", (), {"__repr__": lambda _: "<missing>"})()


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


# -- what users of this module call ------------------------------------------------------


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
    return Function(
        fn, _OPAQUE + blake2b(data, digest_size=KEY_BYTES - len(_OPAQUE)).digest(), data, None, None
    )


def verify(fn: Callable[..., Any], digest: bytes) -> bool:
    """Whether a function that was loaded here is the one that was submitted.

    Call it before the function runs for the first time: what a task does to the globals of
    its module changes the digest. A fresh process decides where a used one says no.
    """
    if digest.startswith(_OPAQUE):
        return True
    seen = _VERIFIED.get(digest)
    if seen is not None and seen() is fn:
        return True
    if not _matches(fn, digest):
        return False
    with suppress(TypeError):  # a builtin, say: it is looked at each time
        _VERIFIED[digest] = weakref.ref(fn)
    return True


def require_same_code(fn: Callable[..., Any], digest: bytes) -> None:
    """Raise `CodeChanged` unless `verify` says yes."""
    if not verify(fn, digest):
        raise CodeChanged(
            where=_name_of(fn),
            cure="Was a module edited after it was imported, or after the task was submitted? "
            "Restart the session (or reload the module) and submit again.",
        )


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
        guards: _Guards | None,
        shape: _Shape | None,
    ) -> None:
        self.digest = digest
        self.name = _name_of(fn)
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
            key = os.urandom(KEY_BYTES) if cache_key is None else _named(cache_key)
            return Call(key, UNKNOWN if cache_key is not None else key, payload)
        try:
            hasher = self._prefixed(*where)
            hasher.update(self._canonical(args, kwargs, foreign))
        except CannotPickle:
            if cache_key is None:
                raise
            return Call(_named(cache_key), UNKNOWN, payload)
        content = hasher.digest()
        return Call(content if cache_key is None else _named(cache_key), content, payload)

    def _prefixed(self, ranks: int, preset: bytes) -> blake2b:
        hasher = blake2b(FORMAT, digest_size=KEY_BYTES)
        hasher.update(b"%b%d,%d," % (self.digest, ranks, len(preset)))
        hasher.update(preset)
        return hasher

    def _canonical(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], foreign: pickling.Foreign | None
    ) -> bytes:
        """The arguments in the order of the parameters: as text if they are simple.

        No digest starts with the "[" of the text: it comes after a zero byte.
        """
        bound = self._shape.bind(args, kwargs) if self._shape is not None else None
        canon = _Canon(foreign=foreign)
        if bound is not None and not (bound.absent or bound.extra or bound.keywords):
            text = _simple_text(canon.filled(bound.values))
            if text is not None:
                return text.encode("ascii")
        with _refusing("the arguments"):
            return b"\0" + canon.digest((*bound,) if bound else ("call", args, dict(kwargs)))


def _simple_text(values: Sequence[Any]) -> str | None:
    """The text of atoms, of lists and tuples of atoms, and of dicts of them with str keys.

    For atoms alone it is the text of the payload, so that the fast path needs no other. It
    depends on the values only, by whatever way they came: else one call had two keys.
    """
    parts = [_simple_part(value) for value in values]
    return None if None in parts else f"[{','.join(parts)}]"  # type: ignore[arg-type]


def _simple_part(value: Any) -> str | None:
    kind = type(value)
    if kind is dict:
        if not {str}.issuperset(map(type, value)):
            return None
        names = sorted(value)
        texts = plain.flat_text(names), plain.flat_text([value[name] for name in names])
        return None if None in texts else f"{{{texts[0]}{texts[1]}}}"
    if kind is list or kind is tuple:
        text = plain.flat_text(value)
        return text if text is None or kind is list else f"({text[1:-1]})"
    text = plain.flat_text((value,))
    return text if text is None else text[1:-1]


def _named(cache_key: str) -> bytes:
    text = cache_key.encode("utf-8", "surrogatepass")
    return blake2b(FORMAT + b" name " + text, digest_size=KEY_BYTES).digest()


# -- records of functions ----------------------------------------------------------------

_OPAQUE = b"\0\0\0\0"
_RECORDS: dict[int, Function] = {}
_MAX_RECORDS = 4096
"""A record may hold what its function reaches, and so the function: they must not pile up."""

_VERIFIED: dict[bytes, weakref.ref[Any]] = {}


def _record(fn: Callable[..., Any]) -> Function:
    guards = _Guards()
    with _refusing(_name_of(fn)):
        digest = _Canon(guards).digest(fn)
    guards.settle(fn, digest)
    return Function(fn, digest, pickling.dump_function(fn), guards, _shape_of(fn))


def _remember(fn: Callable[..., Any], record: Function) -> Function:
    number = id(fn)

    def forget(ref: weakref.ref[Any]) -> None:
        found = _RECORDS.get(number)
        if found is not None and found._ref is ref:  # noqa: SLF001 - the id may be in use again
            del _RECORDS[number]

    try:
        record._ref = weakref.ref(fn, forget)  # noqa: SLF001 - a record is not out yet
    except TypeError:
        if not _is_fixed(fn):
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


def _matches(fn: Callable[..., Any], digest: bytes) -> bool:
    """Whether the digest fits, if what the client had not installed is left out.

    A function may import, when it runs, what only the compute nodes have.
    """
    canon = _Canon()
    with _refusing(_name_of(fn)):
        if canon.digest(fn) == digest:
            return True
        names = sorted(canon.installed_imports)[:4]
        subsets = chain.from_iterable(combinations(names, n) for n in range(1, len(names) + 1))
        return any(_Canon(absent=frozenset(some)).digest(fn) == digest for some in subsets)


def _name_of(fn: Any) -> str:
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


class _Guards:
    """What must hold for the digest of a function to be still the right one."""

    def __init__(self) -> None:
        self.names: list[tuple[Mapping[str, Any], str, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any, Any, bool]] = []
        self.members: list[tuple[Mapping[Any, Any], tuple[Any, ...], tuple[Any, ...]]] = []
        self.items: list[tuple[Collection[Any], tuple[Any, ...]]] = []
        self.held: list[tuple[Any, bytes]] = []
        self.sources: list[tuple[str, bytes]] = []
        self._seen: dict[int, object] = {}
        self._function: tuple[Any, Any, Any, bool] | None = None
        self._own_names: list[tuple[Mapping[str, Any], str]] = []
        self._own_cells: list[types.CellType] = []
        self._own_digest: bytes | None = None
        self._is_simple = False

    def watch(self, value: Any) -> None:
        """Note what would tell that this value has changed in place."""
        if _is_fixed(value) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        kind = type(value)
        if kind is dict:
            self.members.append((value, tuple(value), tuple(value.values())))
            self._watch_all(value.values())
        elif kind in (list, set):
            self.items.append((value, tuple(value)))
        elif kind is partial:
            self._watch_all((value.func, value.args, value.keywords, vars(value)))
        elif kind not in (tuple, frozenset):
            self.held.append((value, _Canon().digest(value)))
        if kind in (dict, list, set, tuple, frozenset):
            self._watch_all(value)

    def _watch_all(self, values: Collection[Any]) -> None:
        if not plain.ATOMS.issuperset(map(type, values)):
            for value in values:
                self.watch(value)

    def settle(self, fn: Any, digest: bytes) -> None:
        """Let go of the function itself, so that the record does not keep it alive."""
        for entry in self.functions:
            if entry[0] is fn:
                self._function = entry[1:]
        self.functions = [entry for entry in self.functions if entry[0] is not fn]
        self._own_names = [entry[:2] for entry in self.names if entry[2] is fn]
        self.names = [entry for entry in self.names if entry[2] is not fn]
        self._own_cells = [cell for cell, value in self.cells if value is fn]
        self.cells = [entry for entry in self.cells if entry[1] is not fn]
        if type(fn) is partial:
            self.watch(fn)
        elif not _is_fixed(fn):
            self._own_digest = digest
        self._seen.clear()
        rest = (self.functions, self.members, self.items, self.held, self.sources)
        own = (self._own_names, self._own_cells, self._own_digest)
        self._is_simple = not any(rest + own)

    def hold(self, fn: Any) -> bool:
        """Whether all of them do."""
        function = self._function
        if function is not None and (
            fn.__code__ is not function[0]
            or fn.__defaults__ is not function[1]
            or fn.__kwdefaults__ is not function[2]
            or bool(fn.__dict__) is not function[3]
        ):
            return False
        for names, name, value in self.names:
            if names.get(name, _MISSING) is not value:
                return False
        for cell, value in self.cells:
            if _content(cell) is not value:
                return False
        return self._is_simple or self._rest_holds(fn)

    def _rest_holds(self, fn: Any) -> bool:
        return (
            all(names.get(name) is fn for names, name in self._own_names)
            and all(_content(cell) is fn for cell in self._own_cells)
            and all(_is_unchanged(*entry) for entry in self.functions)
            and all(_has_same_members(*entry) for entry in self.members)
            and all(_has_same_items(*entry) for entry in self.items)
            and all(_source_digest(name) == digest for name, digest in self.sources)
            and all(_has_digest(obj, digest) for obj, digest in self.held)
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
        return _Canon().digest(obj) == digest
    except (_NotCanonical, RecursionError):
        return False


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty: the variable has no value yet
        return _MISSING


# -- arguments and parameters ------------------------------------------------------------


class _Bound(NamedTuple):
    values: list[Any]
    absent: tuple[str, ...]
    extra: tuple[Any, ...]
    keywords: dict[str, Any]


class _Shape:
    """The parameters of a callable: what arguments are bound to.

    Args:
        names: of the parameters, keyword-only ones last.
        counts: how many of them are positional-only, and positional.
        defaults: by name.
        takes: whether there are ``*args`` and ``**kwargs``.
    """

    __slots__ = ("_defaults", "_names", "_only", "_positional", "_takes", "arity")

    def __init__(
        self,
        names: Sequence[str],
        counts: tuple[int, int],
        defaults: Mapping[str, Any],
        takes: tuple[bool, bool],
    ) -> None:
        self._names = tuple(names)
        self._only, self._positional = counts
        self._defaults = defaults
        self._takes = takes
        self.arity = self._positional if self._positional == len(self._names) else -1
        """With so many positional arguments nothing is left to bind; -1: look closer."""

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Bound | None:
        """The value of each parameter, or None for a call that Python would refuse.

        A parameter without a value is no error: an ``init_function`` may provide it.
        """
        keywords = dict(kwargs)
        count = min(len(args), self._positional)
        values, absent = list(args[:count]), []
        for place in range(count, len(self._names)):
            name = self._names[place]
            value = keywords.pop(name, _MISSING) if place >= self._only else _MISSING
            value = self._defaults.get(name, _MISSING) if value is _MISSING else value
            if value is _MISSING:
                absent.append(name)
            values.append(None if value is _MISSING else value)
        bound = _Bound(values, tuple(absent), args[count:], keywords)
        return bound if self._accepts(bound, count) else None

    def _accepts(self, bound: _Bound, count: int) -> bool:
        twice = bound.keywords.keys() & set(self._names[self._only : count])
        wrong = (bound.extra and not self._takes[0]) or (bound.keywords and not self._takes[1])
        return not wrong and not twice


def _shape_of(fn: Any) -> _Shape | None:
    if type(fn) is types.FunctionType:
        return _shape_of_code(fn)
    import inspect

    try:
        # Not through __wrapped__: what a wrapper does with its arguments is its own affair.
        parameters = inspect.signature(fn, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = [p.kind for p in parameters]
    only = kinds.count(inspect.Parameter.POSITIONAL_ONLY)
    positional = only + kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return _Shape(
        [p.name for p in parameters if p.kind not in variable],
        (only, positional),
        {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty},
        (variable[0] in kinds, variable[1] in kinds),
    )


def _shape_of_code(fn: types.FunctionType) -> _Shape:
    code = fn.__code__
    count = code.co_argcount
    names = code.co_varnames[: count + code.co_kwonlyargcount]
    given = fn.__defaults__ or ()
    defaults = dict(zip(names[count - len(given) : count], given, strict=True))
    defaults.update(fn.__kwdefaults__ or {})
    takes = (bool(code.co_flags & 0x04), bool(code.co_flags & 0x08))
    return _Shape(names, (code.co_posonlyargcount, count), defaults, takes)


# -- the canonical stream ----------------------------------------------------------------


class _NotCanonical(Exception):
    """An object has no canonical form; ``way`` leads to it from the outside."""

    def __init__(self, obj: object, reason: object = "") -> None:
        self.obj = obj
        self.reason = str(reason)
        self.way: list[str] = []
        super().__init__(type(obj))


class _refusing:  # noqa: N801 - reads as a statement
    """Tell the user what has no canonical form, and what can be done."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _NotCanonical):
            reason = f" ({error.reason})" if error.reason else ""
            what = f"An object of type {_type_name(error.obj)} has no content address{reason}"
            where = ", ".join([self._what, *error.way])
        elif isinstance(error, RecursionError):
            what, where = "Too deeply nested for a content address", self._what
        else:
            return
        raise CannotPickle(what, where, _NO_ADDRESS) from error


_NO_ADDRESS = (
    'Name the call yourself with cache_key=..., or switch the cache off with {"cache": "off"}.'
)


def _type_name(obj: object) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


class _Canon:
    """Writes the canonical stream of one object, and hashes it.

    Args:
        guards: where to note what the stream depends on.
        foreign: values of the futures of other executors.
        absent: installed modules to treat as missing, where a function imports them.
    """

    def __init__(
        self,
        guards: _Guards | None = None,
        foreign: pickling.Foreign | None = None,
        absent: frozenset[str] = frozenset(),
    ) -> None:
        self._guards = guards
        self._foreign = foreign or {}
        self._absent = absent
        self.installed_imports: set[str] = set()
        self._numbers: dict[int, int] = {}
        self._waiting: list[Any] = []
        self._keep: list[object] = []  # their ids stand for them: none may be used again
        self._memo: dict[int, bytes] = {}
        self._open: dict[int, int] = {}
        self._loops = 0
        self._update: Callable[[bytes], None] = _ignore

    def digest(self, obj: object) -> bytes:
        """The digest of the object and of all own code that it reaches."""
        hasher = blake2b(digest_size=KEY_BYTES)
        self._update = hasher.update
        self.value(obj)
        for node in self._waiting:  # grows while we walk it
            self._node(node)
        return hasher.digest()

    def _put(self, tag: bytes, data: bytes = b"") -> None:
        self._update(b"@%b%d:%b" % (tag, len(data), data))

    def _put_text(self, tag: bytes, *texts: str) -> None:
        self._put(tag, "\0".join(texts).encode("utf-8", "surrogatepass"))

    # values

    def value(self, obj: Any) -> None:
        """Write any object: atoms at once, code by number, the rest by the digest of its parts."""
        if self._foreign:
            obj = self._stand_in(obj)
        atom = _ATOMS.get(type(obj))
        if atom is not None:
            self._update(atom(obj))
        elif isinstance(obj, (types.FunctionType, type, types.ModuleType)):
            self._code_like(obj)
        else:
            self._put(b"=", self._closed(obj))

    def _closed(self, obj: Any) -> bytes:
        number = id(obj)
        if number in self._memo:
            return self._memo[number]
        if number in self._open:  # it contains itself: say how far up
            self._loops += 1
            return b"loop %d" % (len(self._open) - self._open[number])
        loops, outer = self._loops, self._update
        hasher = blake2b(digest_size=KEY_BYTES)
        self._open[number], self._update = len(self._open), hasher.update
        try:
            self._compound(obj)
        finally:
            del self._open[number]
            self._update = outer
        self._keep.append(obj)
        digest = hasher.digest()
        if loops == self._loops:
            self._memo[number] = digest
        return digest

    def _compound(self, obj: Any) -> None:
        kind = type(obj)
        step = _STEPS.get(kind)
        if step is not None:
            getattr(self, step)(obj)
        elif isinstance(obj, Future):
            self._future(obj)
        elif isinstance(obj, Enum):
            self.value(kind)
            self._put_text(b"member", str(obj.name))
            self.value(obj._value_)
        elif isinstance(obj, (set, frozenset)):
            self.value(kind)
            self._set(obj)
            self._mapping(getattr(obj, "__dict__", {}))
        elif not (_is_numeric_library(kind) and self._library_object(obj, kind)):
            self._object(obj)

    def _sequence(self, obj: Sequence[Any]) -> None:
        self._put_text(b"seq", type(obj).__name__, str(len(obj)))
        text = plain.flat_text(self._filled(obj) if self._foreign else obj)
        if text is not None:
            self._put(b"flat", text.encode("ascii"))
            return
        for item in obj:
            self.value(item)

    def _set(self, obj: Iterable[Any]) -> None:
        digests = sorted(map(self._alone, obj))
        self._put_text(b"set", "frozen" * isinstance(obj, frozenset), str(len(digests)))
        for digest in digests:
            self._put(b".", digest)

    def _mapping(self, obj: Mapping[Any, Any]) -> None:
        self._put_text(b"map", str(len(obj)))
        if all(type(key) is str for key in obj):
            for name in sorted(obj):
                self._put_text(b"k", name)
                self.value(obj[name])
            return
        for digest, value in sorted(((self._alone(k), v) for k, v in obj.items()), key=_first):
            self._put(b".", digest)
            self.value(value)

    def _alone(self, obj: Any) -> bytes:
        """The digest of an item whose place among the others it decides."""
        obj = self._stand_in(obj)
        atom = _ATOMS.get(type(obj))
        if atom is not None:
            return atom(obj)
        return _Canon(foreign=self._foreign, absent=self._absent).digest(obj)

    def filled(self, values: Sequence[Any]) -> Sequence[Any]:
        """The values, with those of foreign futures, as deep as `_simple_text` looks."""
        return list(map(self._filled, values)) if self._foreign else values

    def _filled(self, value: Any) -> Any:
        value = self._stand_in(value)
        if type(value) is dict:
            return {name: self._stand_in(part) for name, part in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self._stand_in, value))
        return value

    def _stand_in(self, obj: Any) -> Any:
        return self._foreign.get(id(obj), obj) if isinstance(obj, Future) else obj

    def _future(self, obj: Future[Any]) -> None:
        found = pickling.dependency_of(obj)
        if found is not None:
            self._put(b"value of", found.key)
            self._sequence(found.selector)
        else:
            raise _NotCanonical(obj, "a future of another executor")

    def _object(self, obj: Any) -> None:
        """Take it apart as pickle would."""
        reduced = _reduce(obj)
        self._keep.append(reduced)
        if isinstance(reduced, str):
            self._global(obj, reduced)
            return
        make, args, state, items, pairs = reduced
        self._put(b"object")
        for part in (make, tuple(args), state, items):
            self.value(part)
        if isinstance(obj, OrderedDict):
            self.value(pairs)
        else:
            self._mapping(dict(pairs or ()))

    def _global(self, obj: Any, name: str) -> None:
        """An object that its module has under this name."""
        module = _module_of(obj, name)
        home = _home(module)
        if home.is_own:
            wrapped = getattr(obj, "__wrapped__", None)
            if wrapped is None and not home.file:
                raise _NotCanonical(obj)
            self._put_text(b"own", name.rpartition(".")[2], _type_name(obj))
            self.value(wrapped)
            if wrapped is None:
                self._source(module)
        else:
            self._put_text(b"ref", home.label, module, name)

    # arrays and frames

    def _library_object(self, obj: Any, kind: type) -> bool:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(obj, numpy.ndarray):
            self._array_like(obj, kind)
        elif numpy is not None and isinstance(obj, numpy.generic):
            self._array(numpy.asarray(obj), b"scalar")
        elif str(kind.__module__).partition(".")[0] == "pandas":
            return self._pandas(obj, kind)
        else:
            return False
        return True

    def _array_like(self, obj: Any, kind: type) -> None:
        import numpy as np

        if kind is not np.ndarray and kind is not np.memmap:
            self.value(kind)
            self._mapping({k: v for k, v in vars(obj).items() if v is not obj})
        self._array(np.asarray(obj), b"array")

    def _array(self, obj: np.ndarray, tag: bytes) -> None:
        """Shape, type and the bytes of the values in C order, little endian."""
        dtype = obj.dtype
        self._put_text(tag, str(obj.shape))
        if dtype.names is not None:  # by field: the padding between them is undefined
            for name in dtype.names:
                self._put_text(b"field", name)
                self._array(obj[name], tag)
        elif dtype.kind == "O" or dtype.kind not in "biufcmMSUV":
            self._put_text(b"dtype", str(dtype))
            self._sequence(obj.ravel().tolist())
        elif dtype.kind in "fc" and dtype.itemsize not in (2, 4, 8, 16 * (dtype.kind == "c")):
            self._put_text(b"dtype", dtype.str)  # long double: some of its bytes are undefined
            self._sequence([repr(item) for item in obj.ravel()])
        else:
            self._put_text(b"dtype", dtype.newbyteorder("<").str)
            self._update(_bytes_of(obj))

    def _pandas(self, obj: Any, kind: type) -> bool:
        """By values, types, index and columns: the blocks inside depend on the history."""
        import pandas as pd

        if kind is pd.DataFrame:
            self._put_text(b"frame", str(obj.shape))
            self._index(obj.columns)
            for place in range(obj.shape[1]):
                self._column(obj.iloc[:, place])
            self._index(obj.index)
        elif kind is pd.Series:
            self._put(b"series")
            self.value(obj.name)
            self._column(obj)
            self._index(obj.index)
        elif isinstance(obj, pd.Index) and kind.__module__.startswith("pandas."):
            self._index(obj)
        else:
            return False
        if kind in (pd.DataFrame, pd.Series):
            self._mapping(obj.attrs)
        return True

    def _index(self, index: Any) -> None:
        self._put_text(b"index", str(getattr(index, "freqstr", None)), str(index.nlevels))
        self.value(list(index.names))
        for level in range(index.nlevels):
            self._column(index.get_level_values(level))

    def _column(self, column: Any) -> None:
        import numpy as np

        self._put_text(b"column", str(column.dtype))
        if hasattr(column.dtype, "categories"):
            self._put_text(b"categories", str(getattr(column.dtype, "ordered", "")))
            self._column(column.dtype.categories)
        self._array(np.asarray(column), b"values")

    # code: by number here, described at the end of the stream

    def _code_like(self, obj: Any) -> None:
        if isinstance(obj, types.ModuleType):
            self._module(obj, [()])
        elif not _has_own_code(obj):
            home = _home(str(obj.__module__))
            self._put_text(b"ref", home.label, str(obj.__module__), obj.__qualname__)
            if home.file:  # a class of an own compiled extension
                self._source(obj.__module__)
        else:
            if id(obj) not in self._numbers:
                self._numbers[id(obj)] = len(self._numbers)
                self._waiting.append(obj)
            self._put(b"#", b"%d" % self._numbers[id(obj)])

    def _node(self, obj: Any) -> None:
        try:
            if isinstance(obj, type):
                self._class(obj)
            else:
                self._function(obj)
        except _NotCanonical as error:
            error.way.insert(
                0, f"{'class' if isinstance(obj, type) else 'function'} {obj.__qualname__}"
            )
            raise

    def _function(self, fn: types.FunctionType) -> None:
        if self._guards is not None:
            self._guards.functions.append(
                (fn, fn.__code__, fn.__defaults__, fn.__kwdefaults__, bool(vars(fn)))
            )
        self._put(b"function")
        self._code(fn.__code__)
        uses = _uses_of(fn.__code__)
        for name, value in zip(_default_names(fn), fn.__defaults__ or (), strict=True):
            self._held(fn, f"default of {name!r}", value)
        self._held(fn, "keyword defaults", fn.__kwdefaults__ or None)
        self._held(fn, "attributes", vars(fn) or None)
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            self._cell(fn, name, cell, uses.frees.get(name, ()))
        home = _home(str(fn.__globals__.get("__name__")))
        if home.is_own:
            for name in sorted(uses.names):
                self._variable(fn, name, uses.names[name])
        else:  # what a decorator from a library made: its globals are the library's
            self._put_text(b"library", home.label)
        for name in sorted(uses.imports(fn.__globals__)):
            self._import(name)

    def _cell(
        self, fn: types.FunctionType, name: str, cell: types.CellType, chains: Iterable[_Chain]
    ) -> None:
        value = _content(cell)
        if self._guards is not None:
            self._guards.cells.append((cell, value))
        self._used(fn, f"closure variable {name!r}", value, chains)

    def _variable(self, fn: types.FunctionType, name: str, chains: Iterable[_Chain]) -> None:
        value = fn.__globals__.get(name, _MISSING)
        if name == "__builtins__":
            return  # what a bare exec left there
        if self._guards is not None:
            self._guards.names.append((fn.__globals__, name, value))
        self._put_text(b"global", name)
        if value is _MISSING:
            self._put(b"builtin" if hasattr(builtins, name) else b"unbound")
        else:
            self._used(fn, f"global {name!r}", value, chains)

    def _used(
        self, fn: types.FunctionType, what: str, value: Any, chains: Iterable[_Chain]
    ) -> None:
        if value is _MISSING:
            self._put(b"unbound")
        elif isinstance(value, types.ModuleType):
            self._module(value, sorted(chains), fn)
        else:
            self._held(fn, what, value)

    def _held(self, owner: Any, what: str, value: Any) -> None:
        """A value that a function or class holds on to, and that may change in place."""
        try:
            self.value(value)
            if self._guards is not None:
                self._guards.watch(value)
        except _NotCanonical as error:
            module = str(owner.__module__)
            if _home(module).file and _resolves(module, owner.__qualname__, owner):
                self._put_text(b"made by", _type_name(value))  # by the module, as it is imported
                self._source(module)
                return
            error.way.insert(0, what)
            raise

    def _class(self, cls: type) -> None:
        members = vars(cls)
        if self._guards is not None:
            self._guards.members.append((members, tuple(members), tuple(members.values())))
        self._put_text(b"class", cls.__name__)
        self.value(type(cls))
        self.value(cls.__bases__)
        if issubclass(cls, Enum):
            for name, member in cls.__members__.items():
                self._put_text(b"member", name)
                self._held(cls, name, member._value_)
        for name in sorted(members):
            if not _is_bookkeeping(cls, name, members[name]):
                self._put_text(b"attribute", name)
                self._held(cls, f"attribute {name!r}", members[name])

    def _module(
        self,
        module: types.ModuleType,
        chains: Sequence[_Chain],
        user: types.FunctionType | None = None,
    ) -> None:
        """A module: installed ones by version, own ones by those attributes that are used."""
        name = module.__name__
        home = _home(name)
        if not home.is_own:
            self._put_text(b"module", home.label, name)
            return
        self._put(b"own module")
        for attributes in chains:
            if attributes and user is not None:
                self._attribute(module, attributes, user)
            else:  # used as a whole
                self._source(name)

    def _attribute(
        self, module: types.ModuleType, attributes: _Chain, user: types.FunctionType
    ) -> None:
        name = attributes[0]
        value = vars(module).get(name, _MISSING)
        if self._guards is not None:
            self._guards.names.append((vars(module), name, value))
        self._put_text(b"attribute", name)
        self._used(user, f"{module.__name__}.{name}", value, [attributes[1:]])

    def _import(self, name: str) -> None:
        """What a function imports when it runs: not imported here, for it may need a GPU."""
        home = _home(name)
        if not home.is_own:
            self.installed_imports.add(name)
        if home.is_own and home.file:
            self._put_text(b"import", name)
            self._source(name)
        elif home.is_own or name in self._absent:
            self._put_text(b"import", name, "missing")
            if self._guards is not None:  # it may come
                self._guards.sources.append((name, _source_digest(name)))
        else:
            self._put_text(b"import", name, home.label)

    def _source(self, name: str) -> None:
        digest = _source_digest(name)
        if self._guards is not None:
            self._guards.sources.append((name, digest))
        self._put(b"source", digest)

    def _code(self, code: types.CodeType) -> None:
        parts = _normalised(code)
        self._put_text(b"code", code.co_name)
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        self._put_text(b"counts", str(counts), str(code.co_flags & 0x3FF))
        for names in (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars):
            self._put_text(b"names", *names)
        self._put(b"bytecode", parts.bytecode)
        self._put(b"handlers", getattr(code, "co_exceptiontable", b""))
        for constant in parts.constants:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self.value(constant)

    # what does not pickle, but stands in classes and closures

    def _property(self, obj: property) -> None:
        self._put(b"property")
        for part in (obj.fget, obj.fset, obj.fdel):
            self.value(part)

    def _method(self, obj: Any) -> None:
        self._put_text(b"method", type(obj).__name__)
        self.value(obj.__func__)

    def _type_only(self, obj: Any) -> None:
        self._put_text(b"one of", _type_name(obj))

    def _cached(self, obj: Any) -> None:
        self._put_text(b"lru_cache", str(obj.cache_parameters()))
        self.value(obj.__wrapped__)

    def _partial(self, obj: partial[Any]) -> None:
        self._put(b"partial")
        for part in (obj.func, obj.args, obj.keywords, vars(obj)):
            self.value(part)

    def _code_object(self, obj: types.CodeType) -> None:
        self._code(obj)

    def _field(self, obj: Any) -> None:
        """A field of a dataclass, without its annotation."""
        self._put_text(b"field", str(obj.name))
        for part in ("default", "default_factory", "init", "repr", "hash", "compare"):
            self.value(getattr(obj, part))
        self._mapping(obj.metadata)

    def _type_variable(self, obj: Any) -> None:
        self._put_text(b"type variable", obj.__name__)


def _ignore(_: bytes) -> None:
    pass


def _first(pair: tuple[bytes, Any]) -> bytes:
    return pair[0]


def _reduce(obj: Any) -> Any:
    """The name of a global, or what pickle calls function, arguments, state, items and pairs."""
    try:
        registered = copyreg.dispatch_table.get(type(obj))
        reduced = registered(obj) if registered is not None else obj.__reduce_ex__(4)
        if isinstance(reduced, str):
            return reduced
        make, args, state, items, pairs = (*reduced, None, None, None)[:5]
        return make, args, state, items and list(items), pairs and list(pairs)
    except Exception as error:
        raise _NotCanonical(obj, error) from error


def _module_of(obj: Any, name: str) -> str:
    if type(obj).__name__ == "ufunc":  # has no module; who imported it first must not matter
        numpy = sys.modules["numpy"]
        if getattr(numpy, name, None) is obj:
            return "numpy"
    found = getattr(obj, "__module__", None)
    return found if isinstance(found, str) else pickle.whichmodule(obj, name)  # type: ignore[attr-defined]


def _is_numeric_library(kind: type) -> bool:
    return any(
        str(base.__module__).partition(".")[0] in ("numpy", "pandas") for base in kind.__mro__
    )


def _bytes_of(obj: np.ndarray) -> Any:
    import numpy as np

    packed = np.ascontiguousarray(obj, dtype=obj.dtype.newbyteorder("<")).reshape(-1)
    return packed.view(np.uint8) if packed.size and packed.itemsize else b""


def _pack_float(value: float) -> bytes:
    return b"f" + (struct.pack("<d", value) if value == value else b"nan.....")  # noqa: PLR0124


def _pack_str(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


_ATOMS: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i%x;" % value,
    float: _pack_float,
    str: _pack_str,
    bytes: lambda value: b"b%d:%b" % (len(value), value),
    bytearray: lambda value: b"B%d:%b" % (len(value), value),
    complex: lambda value: b"c" + _pack_float(value.real) + _pack_float(value.imag),
    type(...): lambda _: b"...",
    type(NotImplemented): lambda _: b"NI",
}


_LRU_CACHE = type(lru_cache(len))


def _steps() -> dict[type, str]:
    """Which method of `_Canon` writes objects of exactly this type."""
    import _thread
    import dataclasses
    import threading
    from typing import TypeVar

    return {
        list: "_sequence",
        tuple: "_sequence",
        dict: "_mapping",
        types.MappingProxyType: "_mapping",
        set: "_set",
        frozenset: "_set",
        property: "_property",
        staticmethod: "_method",
        classmethod: "_method",
        types.CodeType: "_code_object",
        TypeVar: "_type_variable",
        dataclasses.Field: "_field",
        _LRU_CACHE: "_cached",
        partial: "_partial",
        # No data: locks, and caches that forget.
        _thread.LockType: "_type_only",
        _thread.RLock: "_type_only",
        threading.local: "_type_only",
        weakref.WeakKeyDictionary: "_type_only",
        weakref.WeakValueDictionary: "_type_only",
        weakref.WeakSet: "_type_only",
    }


_STEPS = _steps()

_FIXED = {
    ("re", "Pattern"), ("decimal", "Decimal"), ("datetime", "datetime"), ("datetime", "date"),
    ("datetime", "time"), ("datetime", "timedelta"), ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"), ("builtins", "range"), ("logging", "Logger"),
    ("fractions", "Fraction"), ("uuid", "UUID"), ("numpy", "ufunc"),
    ("_collections", "_tuplegetter"), ("dataclasses", "Field"),
    ("dataclasses", "_DataclassParams"), ("dataclasses", "_HAS_DEFAULT_FACTORY_CLASS"),
}  # fmt: skip


def _is_fixed(obj: Any) -> bool:
    """Whether this object cannot change in place, or has guards of its own."""
    kind = type(obj)
    if kind in (tuple, frozenset):
        return all(map(_is_fixed, obj))
    if kind in (staticmethod, classmethod, _LRU_CACHE):
        return _is_fixed(obj.__wrapped__)
    if kind is property:
        return all(map(_is_fixed, (obj.fget, obj.fset, obj.fdel)))
    return (
        (kind in _ATOMS and kind is not bytearray)
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
    return isinstance(obj, np.dtype) or _reference(obj) is not None


def _reference(obj: Any) -> tuple[str, str] | None:
    """Module and name under which anybody finds this very object."""
    module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and _resolves(module, name, obj):
        return module, name
    return None


def _resolves(module: str, name: str, obj: Any) -> bool:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj and module != "__main__"


def _has_own_code(obj: type | types.FunctionType) -> bool:
    """Whether this is to be described by its code. So is what libraries make at run time."""
    module = str(obj.__module__)
    if _home(module).is_own:
        return isinstance(obj, types.FunctionType) or bool(obj.__flags__ & _HEAP_TYPE)
    if _resolves(module, obj.__qualname__, obj):
        return False
    return isinstance(obj, types.FunctionType) or bool(obj.__flags__ & _HEAP_TYPE)


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or like one


# -- code --------------------------------------------------------------------------------

_Chain = tuple[str, ...]
"""The attributes that are taken from a variable: ``("linalg", "norm")`` in np.linalg.norm."""

_NEW_LAYOUT = sys.version_info >= (3, 11)
_GLOBAL_SHIFT = 1 if _NEW_LAYOUT else 0
_ATTR_SHIFT = 1 if sys.version_info >= (3, 12) else 0
_CONST = frozenset(hasconst)


def _opcodes(*names: str) -> frozenset[int]:
    return frozenset(opmap[name] for name in names if name in opmap)


_LOAD_GLOBAL = _opcodes("LOAD_GLOBAL")
_LOAD_NAME = _opcodes("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_LOAD_FREE = _opcodes("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_LOAD_ATTR = _opcodes("LOAD_ATTR")
_LOAD_METHOD = _opcodes("LOAD_METHOD")
_IMPORT_NAME = _opcodes("IMPORT_NAME")
_STORE_NAME = _opcodes("STORE_NAME")
_SMALL_INT = _opcodes("LOAD_SMALL_INT")
_SKIPPED = _opcodes("CACHE") | {EXTENDED_ARG}

_LINE_DEPENDENT = {"__firstlineno__", "__static_attributes__", "__doc__"}
"""What class bodies store that an edit elsewhere, or the order of a set, changes."""


def _instructions(code: types.CodeType) -> Iterator[tuple[int, int]]:
    raw = code.co_code
    high = 0
    for place in range(0, len(raw), 2):
        op, arg = raw[place], raw[place + 1] | high
        high = arg << 8 if op == EXTENDED_ARG else 0
        if op not in _SKIPPED:
            yield op, arg


class _Normalised(NamedTuple):
    bytecode: bytes
    constants: list[Any]


def _normalised(code: types.CodeType) -> _Normalised:
    """The instructions, with constants numbered as they are used: a docstring shifts them."""
    found = list(_instructions(code))
    for place, (op, arg) in enumerate(found):
        if op in _STORE_NAME and code.co_names[arg] in _LINE_DEPENDENT and place:
            found[place - 1] = (0, 0)
    places: dict[int, int] = {}
    for place, (op, arg) in enumerate(found):
        if op in _CONST:
            found[place] = op, places.setdefault(arg, len(places))
    bytecode = b"".join(struct.pack("<BI", *instruction) for instruction in found)
    return _Normalised(bytecode, [code.co_consts[arg] for arg in places])


class _Uses:
    """What a code object, with those inside it, takes from outside.

    Attributes:
        names: global variables, and which attributes are taken from each at once.
        frees: the same for variables of enclosing functions.
    """

    def __init__(self, code: types.CodeType) -> None:
        self.names: dict[str, set[_Chain]] = {}
        self.frees: dict[str, set[_Chain]] = {}
        self._imports: list[tuple[int, str, tuple[str, ...]]] = []
        self._scan(code)

    def imports(self, scope: Mapping[str, Any]) -> set[str]:
        """The full names of the modules that are imported when the code runs."""
        return set(chain.from_iterable(_full_names(scope, *entry) for entry in self._imports))

    def _scan(self, code: types.CodeType) -> None:
        found = [*_instructions(code), (0, 0)]
        for place, (op, arg) in enumerate(found[:-1]):
            if op in _LOAD_GLOBAL:
                self._take(
                    self.names, code, code.co_names[arg >> _GLOBAL_SHIFT], found[place + 1 :]
                )
            elif op in _LOAD_NAME:
                self._take(self.names, code, code.co_names[arg], found[place + 1 :])
            elif op in _LOAD_FREE:
                self._take(self.frees, code, _free_name(code, arg), found[place + 1 :])
            elif op in _IMPORT_NAME:
                level, names = (_constant(code, *found[place - back]) for back in (2, 1))
                self._imports.append((level or 0, code.co_names[arg], tuple(names or ())))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._scan(constant)

    @staticmethod
    def _take(
        into: dict[str, set[_Chain]],
        code: types.CodeType,
        name: str,
        following: Sequence[tuple[int, int]],
    ) -> None:
        attributes = []
        for op, arg in following:
            if op in _LOAD_ATTR:
                attributes.append(code.co_names[arg >> _ATTR_SHIFT])
            elif op in _LOAD_METHOD:
                attributes.append(code.co_names[arg])
            else:
                break
        into.setdefault(name, set()).add(tuple(attributes))


@lru_cache(maxsize=1024)
def _uses_of(code: types.CodeType) -> _Uses:
    return _Uses(code)


def _free_name(code: types.CodeType, arg: int) -> str:
    """The free variable of a LOAD_DEREF, or "" for a variable of the function itself."""
    inner = set(code.co_varnames) if _NEW_LAYOUT else set()
    before = len(inner) + len([name for name in code.co_cellvars if name not in inner])
    return code.co_freevars[arg - before] if arg >= before else ""


def _constant(code: types.CodeType, op: int, arg: int) -> Any:
    if op in _SMALL_INT:
        return arg
    return code.co_consts[arg] if op in _CONST else None


def _full_names(
    scope: Mapping[str, Any], level: int, name: str, names: Sequence[str]
) -> Iterator[str]:
    if level:
        package = str(scope.get("__package__") or scope.get("__name__"))
        base = package.rsplit(".", level - 1)[0]
        name = f"{base}.{name}" if name else base
    yield name
    for item in names:  # `from package import module`
        if item != "*" and _home(name).is_own and _home(f"{name}.{item}").file:
            yield f"{name}.{item}"


def _default_names(fn: types.FunctionType) -> Sequence[str]:
    count = fn.__code__.co_argcount
    return fn.__code__.co_varnames[count - len(fn.__defaults__ or ()) : count]


_BOOKKEEPING = frozenset((
    "__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__slotnames__",
    "__firstlineno__", "__static_attributes__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__conditional_annotations__",
    "__type_params__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl",
    "__protocol_attrs__", "__non_callable_proto_members__", "__new_member__",
))  # fmt: skip
"""Members of a class that Python and libraries keep: they follow from others, or change by
themselves."""


_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)


def _is_bookkeeping(cls: type, name: str, value: Any) -> bool:
    if name in _BOOKKEEPING or isinstance(value, _SLOTS):
        return True
    if not issubclass(cls, Enum):
        return False
    user_made = isinstance(value, (types.FunctionType, property, staticmethod, classmethod))
    return name in cls.__members__ or not user_made


# -- where modules come from -------------------------------------------------------------


class _Home(NamedTuple):
    """Whose module it is.

    Attributes:
        label: name and version of the distribution; "" for own modules.
        file: of an own module; "" if it has none (``__main__``, or not found).
    """

    label: str
    file: str = ""

    @property
    def is_own(self) -> bool:
        return not self.label


_OWN = _Home("")
_PYTHON = _Home(f"python{sys.version_info[0]}.{sys.version_info[1]}")
_STDLIB = os.path.dirname(os.__file__) + os.sep

_HOMES: dict[str, tuple[types.ModuleType, _Home]] = {}


def _home(name: str) -> _Home:
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


def _file_of(module: types.ModuleType) -> str | None:
    file = getattr(module, "__file__", None)
    return file if isinstance(file, str) else None


def _home_of_file(name: str, file: str | None) -> _Home:
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
    return _Home(distribution) if distribution else _Home("", file)


@lru_cache(maxsize=4096)
def _distribution(root: str, file: str) -> str:
    """Name and version of the distribution that installed the file, or ""."""
    top = file.partition(os.sep)[0].partition(".")[0]
    for entry in sorted(_metadata(root), key=lambda entry: not _is_named(entry, top)):
        if f"\n{file}," in _text(root, entry, "RECORD") or (
            not _text(root, entry, "RECORD")
            and f"\n{top}\n" in _text(root, entry, "top_level.txt") + "\n"
        ):
            return entry.rpartition(".")[0]
    return ""


def _is_named(entry: str, top: str) -> bool:
    return entry.lower().replace("-", "_").startswith(top.lower() + "_")


@lru_cache(maxsize=64)
def _metadata(root: str) -> tuple[str, ...]:
    """The metadata directories ``name-version.dist-info`` there."""
    try:
        return tuple(e for e in os.listdir(root) if e.endswith((".dist-info", ".egg-info")))
    except OSError:
        return ()


@lru_cache(maxsize=16)
def _text(root: str, entry: str, name: str) -> str:
    try:
        with open(os.path.join(root, entry, name), encoding="utf-8", errors="replace") as stream:
            return "\n" + stream.read()
    except OSError:
        return ""


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
        if path is None and full != name:
            return None
    return spec


def _ask_finders(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except (ImportError, AttributeError, ValueError):
            continue
        if spec is not None:
            return spec
    return None


# -- source files of own modules ---------------------------------------------------------


class _Source(NamedTuple):
    module: types.ModuleType | None
    stamp: tuple[str, int, int]
    digest: bytes
    imports: tuple[str, ...]


_SOURCES: dict[str, _Source] = {}


def _source_digest(name: str) -> bytes:
    """The digest of an own module's source, and of the own modules that it imports."""
    found: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        source = _source_of(module) if module not in found else None
        if source is not None:
            found[module] = source.digest
            waiting += source.imports
            waiting += [module.rpartition(".")[0]] * ("." in module)
    hasher = blake2b(digest_size=KEY_BYTES)
    for module in sorted(found):
        hasher.update(b"%b:%b" % (module.encode(), found[module]))
    return hasher.digest()


def _source_of(name: str) -> _Source | None:
    """The source of a module as it was imported, or as an import would find it.

    An imported module keeps the code that it had, whatever the file says now. So once it
    is imported, what was seen first counts: a worker that holds old code finds out so.
    """
    module = sys.modules.get(name)
    known = _SOURCES.get(name)
    if known is not None and module is not None:
        if known.module is None:
            known = _SOURCES[name] = known._replace(module=module)
        if known.module is module:
            return known
    file = _home(name).file
    try:
        status = os.stat(file)
        stamp = file, status.st_mtime_ns, status.st_size
        if known is None or known.stamp != stamp:
            known = _read_source(name, stamp)
    except OSError:
        return None
    _SOURCES[name] = known._replace(module=module)
    return _SOURCES[name]


def _read_source(name: str, stamp: tuple[str, int, int]) -> _Source:
    with open(stamp[0], "rb") as stream:
        data = stream.read()
    code = _compiled(data) if stamp[0].endswith(".py") else None
    if code is None:  # a compiled extension, say
        return _Source(None, stamp, blake2b(data, digest_size=KEY_BYTES).digest(), ())
    is_package = os.path.basename(stamp[0]) == "__init__.py"
    package = name if is_package else name.rpartition(".")[0]
    imports = _uses_of(code).imports({"__package__": package, "__name__": name})
    return _Source(None, stamp, _Canon().digest(code), tuple(sorted(imports)))


def _compiled(data: bytes) -> types.CodeType | None:
    try:
        return compile(data, "module", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
