r"""Values that are stored without pickle, as ASCII JSON text.

    encode, encode_many    object -> text      (None: not plain, pickle it)
    decode, decode_many    text -> object      (runs no code, whatever the text says)

Plain are None, bool, int, float, complex, str, bytes, list, tuple, dict, numeric numpy
arrays and numpy scalars: exactly these types. A subclass (an ``IntEnum``, a named tuple,
an ``OrderedDict``) is not plain, for it would come back as its base. What JSON has is
itself; the rest is an object with the key "$", which therefore no other object has:

    {"$": "tuple", "v": [...]}                      {"$": "bytes", "v": base64}
    {"$": "dict", "v": [[key, value], ...]}         {"$": "complex", "v": [re, im]}
    {"$": "int", "v": hexadecimal}                  {"$": "scalar", "dtype": name, "v": ...}
    {"$": "array", "n": place in Payload.arrays}    {"$": "value", "n": place of a dependency}

Floats are written as Python's json does it, with NaN and Infinity. The text never holds
a raw newline, so that texts joined by ``,\n`` can be told apart without parsing them.

Numpy is imported only when a text needs it: workers that never see an array start faster.
"""

from __future__ import annotations

import binascii
import json
import sys
from array import array
from collections.abc import Callable, Sequence
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, Literal

from fsbroker.errors import FileDamaged
from fsbroker.task import Dependency, Encoding, Payload

if TYPE_CHECKING:
    import numpy as np

MAX_DEPTH = 100
"""Deeper nests are pickled: both sides walk them by recursion."""

SHORT = 600
"""A text below this many characters holds no int that ``int(text)`` could refuse: its limit
can be set, but not below 640 digits."""

ATOMS = frozenset((type(None), bool, int, float, str))
_NUMBERS = frozenset((type(None), bool, int, float))
_BIG = 10**SHORT

_ITEM_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
"""Arrays that HDF5 stores as they are on every machine: long doubles are not among them."""

_DTYPES = {
    f"{order}{kind}{size}"
    for kind, sizes in _ITEM_SIZES.items()
    for size in sizes
    for order in ("|" if size == 1 else "<>")
}

_KIND_NAMES = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
_SCALAR_NAMES = {"bool"} | {
    f"{name}{8 * size}" for kind, name in _KIND_NAMES.items() for size in _ITEM_SIZES[kind]
}


class NotPlain(Exception):
    """The object holds something that is not plain."""


# -- object to text ----------------------------------------------------------------------


def _text_maker(separator: str) -> Callable[[Any], str]:
    """The encoder of `json`, without what ``json.dumps`` does anew for each call."""
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # an interpreter without the C accelerator
        return json.JSONEncoder(separators=(separator, ":"), check_circular=False).encode

    def refuse(obj: object) -> object:
        raise NotPlain(type(obj))

    chunks = make(None, refuse, encode_basestring_ascii, None, ":", separator, False, False, True)
    join = "".join
    return lambda obj: join(chunks(obj, 0))


to_text = _text_maker(",")
_to_rows = _text_maker(",\n")


def encode(obj: object) -> Payload | None:
    """The stored form of a plain object, or None if it is not plain."""
    try:
        return Encoder().payload(obj)
    except NotPlain:
        return None


def flat_text(items: Sequence[Any]) -> str | None:
    r"""The JSON list of these items, if all are atoms, and no other items have the same text.

    Returns None for others; for ints that not every interpreter would read; and where the
    text has ``\ud``: two lone surrogates look like one letter there.
    """
    if not ATOMS.issuperset(map(type, items)):
        return None
    try:
        text = to_text(items)
    except ValueError:  # an int beyond the digit limit
        return None
    if "\\ud" in text or (len(text) >= SHORT and any(map(_is_big, items))):
        return None
    return text


def _is_big(obj: object) -> bool:
    return type(obj) is int and not -_BIG < obj < _BIG


def encode_many(values: list[Any]) -> tuple[bytes, array[int]] | None:
    r"""The texts of many values, joined by ``,\n``, and the length of each.

    Returns:
        None if a value is not plain, or has arrays.
    """
    if ATOMS.issuperset(map(type, values)):
        try:
            text = _to_rows(values)[1:-1]
        except ValueError:  # an int beyond the digit limit
            return _encode_each(values)
        lengths = array("I", map(len, text.split(",\n"))) if values else array("I")
        if "\\ud" not in text and max(lengths, default=0) < SHORT:
            return text.encode("ascii"), lengths
    return _encode_each(values)


def _encode_each(values: list[Any]) -> tuple[bytes, array[int]] | None:
    payloads = [encode(value) for value in values]
    texts = [p.data for p in payloads if p is not None and not p.arrays]
    if len(texts) < len(values):
        return None
    return b",\n".join(texts), array("I", map(len, texts))


def is_array(obj: object) -> bool:
    """Whether this is a numeric array that is stored as numbers."""
    numpy = sys.modules.get("numpy")
    if type(obj) is not getattr(numpy, "ndarray", None):
        return False
    dtype = obj.dtype  # type: ignore[attr-defined]
    return dtype.itemsize in _ITEM_SIZES.get(dtype.kind, ()) and dtype.metadata is None


def is_array_type(name: object) -> bool:
    """Whether such arrays have a dtype of this name (``dtype.str``)."""
    return type(name) is str and name in _DTYPES


class Arrays:
    """The arrays found in an object, each once, in one piece of memory (C or Fortran order).

    Args:
        copy: take copies, for the caller may change his arrays before they are written.
    """

    def __init__(self, copy: bool = False) -> None:
        self._copy = copy
        self._places: dict[int, int] = {}
        self._originals: list[object] = []  # keeps their ids from being used again
        self.found: list[np.ndarray] = []

    def place(self, item: np.ndarray) -> int:
        """Where the array stands in `found`."""
        place = self._places.get(id(item))
        if place is None:
            place = self._places[id(item)] = len(self.found)
            self._originals.append(item)
            self.found.append(_in_one_piece(item, self._copy))
        return place


def _in_one_piece(item: np.ndarray, copy: bool) -> np.ndarray:
    import numpy as np

    fortran = item.flags.f_contiguous and not item.flags.c_contiguous
    order: Literal["C", "F"] = "F" if fortran else "C"
    if copy:
        return np.array(item, order=order)
    return np.asarray(item, order=order)  # not ascontiguousarray: it adds a dimension to 0-d


class Encoder:
    """Turns one object into what JSON has, and collects its arrays and futures.

    Args:
        arrays: where arrays go.
        resolve: what stands for an object of an unknown type: a `Dependency`, or an
            object to be encoded in its place; it raises `NotPlain` for others.
    """

    def __init__(
        self, arrays: Arrays | None = None, resolve: Callable[[object], object] | None = None
    ) -> None:
        self._arrays = arrays or Arrays()
        self._resolve = resolve
        self._containers: set[int] = set()
        self._places: dict[Dependency, int] = {}

    def payload(self, obj: object) -> Payload:
        """The stored form of the object; raises `NotPlain`."""
        data = to_text(self._walk(obj, 0)).encode("ascii")
        return Payload(Encoding.PLAIN, data, tuple(self._arrays.found), tuple(self._places))

    def _walk(self, obj: Any, depth: int) -> object:
        kind = type(obj)
        if kind is int:
            return obj if -_BIG < obj < _BIG else {"$": "int", "v": hex(obj)}
        if kind in _NUMBERS:
            return obj
        return _checked(obj) if kind is str else self._walk_compound(obj, kind, depth)

    def _walk_compound(self, obj: Any, kind: type, depth: int) -> object:
        if kind is list:
            return self._list(obj, depth)
        if kind is dict:
            return self._dict(obj, depth)
        if kind is tuple:
            return self._tuple(obj, depth)
        if is_array(obj):
            return {"$": "array", "n": self._arrays.place(obj)}
        return _simple_tag(obj, kind) or self._stand_in(obj, depth)

    def _enter(self, container: object, depth: int) -> None:
        """Refuse what contains itself, and what is shared: only a pickle brings that back."""
        if depth >= MAX_DEPTH or id(container) in self._containers:
            raise NotPlain(type(container))
        self._containers.add(id(container))

    def _items(self, items: Sequence[Any], depth: int) -> Sequence[object]:
        kinds = set(map(type, items))
        if kinds == {float}:
            return items
        if kinds == {str} and all(map(str.isascii, items)):
            return items
        if kinds == {int} and max(items) < _BIG and min(items) > -_BIG:
            return items
        return [self._walk(item, depth + 1) for item in items]

    def _list(self, obj: list[Any], depth: int) -> object:
        if obj:
            self._enter(obj, depth)
        return self._items(obj, depth)

    def _tuple(self, obj: tuple[Any, ...], depth: int) -> object:
        if not ATOMS.issuperset(map(type, obj)):  # equal constants are often one object
            self._enter(obj, depth)
        return {"$": "tuple", "v": self._items(obj, depth)}

    def _dict(self, obj: dict[Any, Any], depth: int) -> object:
        if obj:
            self._enter(obj, depth)
        values = self._items(list(obj.values()), depth)
        if "$" not in obj and {str}.issuperset(map(type, obj)) and all(map(str.isascii, obj)):
            return dict(zip(obj, values, strict=True))
        keys = self._items(list(obj), depth)
        return {"$": "dict", "v": list(zip(keys, values, strict=True))}

    def _stand_in(self, obj: object, depth: int) -> object:
        if self._resolve is None or depth >= MAX_DEPTH:
            raise NotPlain(type(obj))
        found = self._resolve(obj)
        if not isinstance(found, Dependency):
            return self._walk(found, depth + 1)
        return {"$": "value", "n": self._places.setdefault(found, len(self._places))}


def _checked(text: str) -> str:
    """The text, unless it has lone surrogates: JSON would read two of them as one letter."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise NotPlain(str) from None
    return text


def _simple_tag(obj: Any, kind: type) -> dict[str, object] | None:
    if kind is bytes:
        return {"$": "bytes", "v": binascii.b2a_base64(obj, newline=False).decode("ascii")}
    if kind is complex:
        return {"$": "complex", "v": [obj.real, obj.imag]}
    name = kind.__name__.rstrip("_")  # numpy 1 calls its bool "bool_"
    if kind.__module__ != "numpy" or name not in _SCALAR_NAMES:
        return None
    if kind is not sys.modules["numpy"].dtype(name).type:
        return None  # np.longlong is called int64 too on some platforms
    value = obj.item()
    parts = [value.real, value.imag] if type(value) is complex else value
    return {"$": "scalar", "dtype": name, "v": parts}


# -- text to object ----------------------------------------------------------------------


def decode(data: bytes, arrays: Sequence[Any] = (), values: Sequence[Any] = ()) -> Any:
    """The object that was encoded.

    Args:
        data: the text.
        arrays: the arrays it refers to.
        values: the values of the dependencies it refers to.

    Raises:
        FileDamaged: this is not what `encode` writes.
    """
    try:
        text = data.decode("ascii")
        decoder = _reader(arrays, values) if '"$"' in text else _DECODER
        return decoder.decode(text)
    except _MALFORMED as error:
        raise _damaged(error) from None


def decode_many(text: bytes) -> list[Any]:
    r"""The values of texts that are joined by ``,\n``."""
    values = decode(b"[%b]" % text)
    assert isinstance(values, list)  # a text that starts with "[" can be nothing else
    return values


_DECODER = json.JSONDecoder()
_MALFORMED = (ValueError, TypeError, LookupError, RecursionError, OverflowError, AttributeError)


def _damaged(error: Exception) -> FileDamaged:
    return FileDamaged(
        # Not what the error says: it quotes the value, and this may be somebody else's log.
        f"A stored value cannot be read ({type(error).__name__})",
        cure="If the file's checksum is right, a newer fsbroker may have written it.",
    )


def _reader(arrays: Sequence[Any], values: Sequence[Any]) -> json.JSONDecoder:
    writable = Writable(arrays)

    def untag(found: dict[str, Any]) -> Any:
        # The decoder works from the inside out: what stands in a tag is decoded already.
        if "$" not in found:
            return found
        tag = found["$"]
        if tag == "array":
            return writable[_place(found["n"])]
        if tag == "value":
            return values[_place(found["n"])]
        return _UNTAG[tag](found)

    return json.JSONDecoder(object_hook=untag)


def _place(number: object) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"no place: {number!r}")
    return number


class Writable:
    """Arrays that the caller may change: views of a file's read-only bytes are copied."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._arrays = arrays
        self._copies: dict[int, Any] = {}

    def __getitem__(self, place: int) -> Any:
        if place not in self._copies:
            item = self._arrays[place]
            self._copies[place] = item if item.flags.writeable else item.copy(order="K")
        return self._copies[place]


def _untag_tuple(tag: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(_listed(tag["v"]))


def _untag_dict(tag: dict[str, Any]) -> dict[Any, Any]:
    return dict(map(_listed, _listed(tag["v"])))


def _untag_bytes(tag: dict[str, Any]) -> bytes:
    text = tag["v"].encode("ascii")
    found = binascii.a2b_base64(text)
    if binascii.b2a_base64(found, newline=False) != text:  # it skips what it does not know
        raise ValueError("not base64")
    return found


def _untag_complex(tag: dict[str, Any]) -> complex:
    real, imag = _listed(tag["v"])
    return complex(_of(float, real), _of(float, imag))


def _untag_int(tag: dict[str, Any]) -> int:
    return int(_of(str, tag["v"]), 16)


def _untag_scalar(tag: dict[str, Any]) -> Any:
    import numpy as np

    name, value = tag["dtype"], tag["v"]
    if name not in _SCALAR_NAMES:
        raise ValueError(f"no scalar: {name!r}")
    dtype = np.dtype(name)
    if dtype.kind == "c":
        return dtype.type(_untag_complex(tag))
    return dtype.type(_of({"b": bool, "f": float}.get(dtype.kind, int), value))


_UNTAG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "tuple": _untag_tuple,
    "dict": _untag_dict,
    "bytes": _untag_bytes,
    "complex": _untag_complex,
    "int": _untag_int,
    "scalar": _untag_scalar,
}


def _listed(obj: Any) -> list[Any]:
    return _of(list, obj)  # type: ignore[no-any-return]


def _of(kind: type, obj: Any) -> Any:
    if type(obj) is not kind:
        raise TypeError(f"{type(obj).__name__} where {kind.__name__} belongs")
    return obj
