"""The canonical stream of tokens, hashed as it is written: atoms and containers.

    @ tag length : data     what `Stream.put` writes
    i2a; s3:abc T N ...     atoms, each with a letter of its own
    @= 20 : digest          anything else, by the digest of its own stream

A value's digest does not depend on where it stands, so one that is met again, in a deeply
shared structure say, is not walked again. Only a value inside itself is known by how far
up it began.
"""

from __future__ import annotations

import struct
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from hashlib import blake2b
from typing import Any

from fsbroker import plain
from fsbroker.pickling import Foreign
from fsbroker.task import KEY_BYTES


class Stream(ABC):
    """Writes the canonical stream of one object.

    Args:
        foreign: values of the futures of other executors, by ``id(future)``.
    """

    def __init__(self, foreign: Foreign | None = None) -> None:
        self._foreign = foreign or {}
        self._hasher = blake2b(digest_size=KEY_BYTES)
        self._update: Callable[[bytes], None] = self._hasher.update
        self._keep: list[object] = []  # their ids stand for them: none may be used again
        self._memo: dict[int, bytes] = {}
        self._open: dict[int, int] = {}
        self._loops = 0

    @abstractmethod
    def code_like(self, obj: Any) -> None:
        """Write a function, class or module: not by value, for they may refer to each other."""

    @abstractmethod
    def compound(self, obj: Any) -> None:
        """Write the parts of an object that is no atom."""

    @abstractmethod
    def alone(self, obj: Any) -> bytes:
        """The digest of an object by a stream of its own."""

    # tokens

    def put(self, tag: bytes, data: bytes = b"") -> None:
        """Write one token."""
        self._update(b"@%b%d:%b" % (tag, len(data), data))

    def put_text(self, tag: bytes, *texts: str) -> None:
        """Write texts as one token."""
        self.put(tag, "\0".join(texts).encode("utf-8", "surrogatepass"))

    def put_bytes(self, data: Any) -> None:
        """Write a buffer whose length a token before it has told."""
        self._update(data)

    # values

    def value(self, obj: Any) -> None:
        """Write an object: atoms at once, code by reference, others by their own digest."""
        if self._foreign:
            obj = _stand_in(obj, self._foreign)
        atom = ATOMS.get(type(obj))
        if atom is not None:
            self._update(atom(obj))
        elif isinstance(obj, (types.FunctionType, type, types.ModuleType)):
            self.code_like(obj)
        else:
            self.put(b"=", self._closed(obj))

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
            self.compound(obj)
        finally:
            del self._open[number]
            self._update = outer
        self.keep(obj)
        digest = hasher.digest()
        if loops == self._loops:
            self._memo[number] = digest
        return digest

    def keep(self, obj: object) -> None:
        """Keep alive what was made to be written, as long as the stream knows its id."""
        self._keep.append(obj)

    # containers

    def sequence(self, obj: Sequence[Any]) -> None:
        """Write a list or tuple."""
        self.put_text(b"seq", type(obj).__name__, str(len(obj)))
        text = plain.flat_text(_filled(obj, self._foreign) if self._foreign else obj)
        if text is not None:
            self.put(b"flat", text.encode("ascii"))
            return
        for item in obj:
            self.value(item)

    def set(self, obj: Iterable[Any]) -> None:
        """Write a set or frozenset: what its order is, the digests of its items say."""
        digests = sorted(map(self._item, obj))
        self.put_text(b"set", "frozen" * isinstance(obj, frozenset), str(len(digests)))
        for digest in digests:
            self.put(b".", digest)

    def mapping(self, obj: Mapping[Any, Any]) -> None:
        """Write a dict."""
        self.put_text(b"map", str(len(obj)))
        if all(type(key) is str for key in obj):
            for name in sorted(obj):
                self.put_text(b"k", name)
                self.value(obj[name])
            return
        for digest, value in sorted(((self._item(k), v) for k, v in obj.items()), key=_first):
            self.put(b".", digest)
            self.value(value)

    def _item(self, obj: Any) -> bytes:
        """The digest of an item whose place among the others it decides."""
        obj = _stand_in(obj, self._foreign)
        atom = ATOMS.get(type(obj))
        return self.alone(obj) if atom is None else atom(obj)


def _first(pair: tuple[bytes, Any]) -> bytes:
    return pair[0]


# -- futures of other executors ----------------------------------------------------------


def filled(values: Sequence[Any], foreign: Foreign | None) -> Sequence[Any]:
    """The values, with those of foreign futures, two levels deep."""
    return [_filled(value, foreign) for value in values] if foreign else values


def _filled(value: Any, foreign: Foreign) -> Any:
    value = _stand_in(value, foreign)
    if type(value) is dict:
        return {name: _stand_in(part, foreign) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_stand_in(part, foreign) for part in value)
    return value


def _stand_in(obj: Any, foreign: Foreign) -> Any:
    return foreign.get(id(obj), obj) if isinstance(obj, Future) else obj


# -- atoms -------------------------------------------------------------------------------


def _pack_float(value: float) -> bytes:
    return b"f" + (struct.pack("<d", value) if value == value else b"nan.....")  # noqa: PLR0124


def _pack_str(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data)


ATOMS: dict[type, Callable[[Any], bytes]] = {
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
