"""What is stored without pickle comes back exactly, and damaged text does no harm."""

from __future__ import annotations

import collections
import enum
import math
import operator
import os
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsbroker import plain
from fsbroker.errors import FileDamaged
from fsbroker.task import Encoding

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=("Cs",)))
)
keys = scalars | st.binary() | st.tuples(scalars, scalars)
objects = st.recursive(
    scalars | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.just("$") | keys, inner)
    ),
    max_leaves=20,
)
arrays = st.sampled_from(
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24, dtype=">i2").reshape(2, 3, 4).transpose(1, 0, 2),
        np.array(1.5, dtype="f2"),
        np.zeros((0, 3), dtype=bool),
        np.array([1 + 2j], dtype="c8"),
    ]
)


def same(a: Any, b: Any) -> bool:
    """Equal in value, type, order of keys and sign of zero; NaN is itself."""
    return type(a) is type(b) and SAME.get(type(a), operator.eq)(a, b)


def same_floats(a: float, b: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def same_items(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(same, a, b))


def same_arrays(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


SAME = {
    float: same_floats,
    complex: lambda a, b: same_floats(a.real, b.real) and same_floats(a.imag, b.imag),
    list: same_items,
    tuple: same_items,
    dict: lambda a, b: same_items(list(a.items()), list(b.items())),
    np.ndarray: same_arrays,
}


def round_trip(obj: object) -> Any:
    payload = plain.encode(obj)
    assert payload is not None
    assert payload.encoding == Encoding.PLAIN
    assert payload.data.isascii()
    assert b"\n" not in payload.data
    return plain.decode(payload.data, payload.arrays)


@given(objects)
@settings(deadline=None)
def test_plain_objects_come_back_exactly(obj):
    payload = plain.encode(obj)
    if payload is None:  # a container that stands in it twice: hypothesis may share them
        return
    assert same(round_trip(obj), obj)


@given(st.lists(scalars))
@settings(deadline=None)
def test_many_values_come_back_and_can_be_told_apart(values):
    encoded = plain.encode_many(values)
    assert encoded is not None
    text, lengths = encoded
    assert same(plain.decode_many(text), values)
    parts = text.split(b",\n") if values else []
    assert [len(part) for part in parts] == list(lengths)
    assert same([plain.decode(part) for part in parts], values)


@pytest.mark.parametrize("values", [[(1, 2), {"$": b"x"}], [10**5000, "\U0001f600"], [[]]])
def test_many_values_of_other_plain_types(values):
    text, lengths = plain.encode_many(values) or (b"", [])
    assert same(plain.decode_many(text), values)
    assert [len(part) for part in text.split(b",\n")] == list(lengths)


@pytest.mark.parametrize("values", [[1, {2}], [np.zeros(3)], [1, object()]])
def test_many_values_are_refused_if_one_is_not_plain_or_has_arrays(values):
    assert plain.encode_many(values) is None


@given(arrays)
def test_arrays_keep_type_shape_and_values(item):
    assert same(round_trip({"a": [item]}), {"a": [item]})


def test_arrays_are_stored_in_one_piece_and_keep_the_order():
    fortran = np.asfortranarray(np.zeros((2, 3)))
    payload = plain.encode([fortran, np.zeros((4, 4))[::2, ::2], np.array(1.0)])
    assert payload is not None
    assert payload.arrays[0].flags.f_contiguous
    assert not payload.arrays[0].flags.c_contiguous
    assert payload.arrays[1].flags.c_contiguous
    assert payload.arrays[2].shape == ()


def test_an_array_that_stands_twice_is_stored_once():
    item = np.arange(3)
    payload = plain.encode([item, {"again": item}])
    assert payload is not None
    assert len(payload.arrays) == 1
    first, second = plain.decode(payload.data, payload.arrays)
    assert first is second["again"]


def test_decoded_arrays_can_be_written():
    item = np.arange(3)
    item.flags.writeable = False
    (found,) = plain.decode(b'[{"$":"array","n":0}]', [item])
    found[0] = 7
    assert item[0] == 0


@pytest.mark.parametrize(
    "scalar",
    [np.bool_(True), np.int8(-3), np.uint64(2**64 - 1), np.float16(0.1), np.float32(0.1),
     np.float64(math.inf), np.complex64(1 - 2j), np.complex128(complex(-0.0, 1e300))],
)  # fmt: skip
def test_numpy_scalars_keep_their_type(scalar):
    found = round_trip([scalar])[0]
    assert type(found) is type(scalar)
    assert found.tobytes() == scalar.tobytes()


class Colour(enum.IntEnum):
    RED = 1


class Named(NamedTuple):
    a: int
    b: int


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "obj",
    [Colour.RED, Named(1, 2), Text("x"), collections.OrderedDict(a=1), {1}, object(), len,
     collections.defaultdict(list), bytearray(b"x"), np.longdouble(1), np.array([None]),
     np.zeros(2, dtype=[("a", "i1")]), np.array(["x"]), np.ma.array([1]), {"a": [Colour.RED]},
     "\ud83d\ude00", {"\ud800": 1}, {Colour.RED: 1}],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)  # fmt: skip
def test_what_would_come_back_as_something_else_is_not_plain(obj):
    assert plain.encode(obj) is None


def test_containers_that_contain_themselves_or_are_shared_are_not_plain():
    loop: list[Any] = []
    loop.append(loop)
    inner = [1]
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert plain.encode(loop) is None
    assert plain.encode([inner, inner]) is None
    assert plain.encode(deep) is None


def test_ints_beyond_the_digit_limit():
    for number in (10**5000, -(10**5000), 10**599, 10**600, 10**601):
        assert same(round_trip(number), number)
        assert same(round_trip([1, number]), [1, number])


def test_the_limit_of_the_reader_does_not_matter():
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        encoded = plain.encode_many([10**5000])
    finally:
        sys.set_int_max_str_digits(limit)
    assert encoded is not None
    assert plain.decode_many(encoded[0]) == [10**5000]


@pytest.mark.parametrize(
    "text",
    [b"", b"[1", b"\xff", b"[" * 100_000, b"1 2", b"nan", b"9" * 5000, b'{"$":"no such tag"}',
     b'{"$":1}', b'{"$":[]}', b'{"$":"tuple"}', b'{"$":"tuple","v":{"a":1}}',
     b'{"$":"dict","v":[[[],1]]}', b'{"$":"dict","v":[[1]]}', b'{"$":"dict","v":["ab"]}',
     b'{"$":"bytes","v":"?"}', b'{"$":"bytes","v":1}', b'{"$":"complex","v":[1,2,3]}',
     b'{"$":"complex","v":["1","2"]}', b'{"$":"int","v":12}', b'{"$":"int","v":"zz"}',
     b'{"$":"array","n":0}', b'{"$":"array","n":-1}', b'{"$":"array","n":true}',
     b'{"$":"value","n":0}', b'{"$":"scalar","dtype":"O","v":1}',
     b'{"$":"scalar","dtype":"int8","v":300}', b'{"$":"scalar","dtype":["a"],"v":1}',
     b'{"$":"scalar","dtype":"float64","v":"1"}'],
    ids=lambda text: text[:40].decode("latin1"),
)  # fmt: skip
def test_damaged_text_is_refused(text):
    with pytest.raises(FileDamaged):
        plain.decode(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    try:
        plain.decode(data)
    except FileDamaged as error:
        assert "cannot be read" in str(error)  # noqa: PT017 - both ways are right


def test_values_of_dependencies_are_filled_in():
    assert plain.decode(b'[1,{"$":"value","n":1}]', (), ["a", "b"]) == [1, "b"]


def test_numpy_is_not_imported_for_values_without_arrays():
    script = f"""if True:
        import sys, types
        package = types.ModuleType("fsbroker")  # in place of all that the package imports
        package.__path__ = [{os.path.dirname(plain.__file__)!r}]
        sys.modules["fsbroker"] = package
        from fsbroker import plain
        payload = plain.encode([1, (2.5, b"x"), {{"a": None, 3: 1j}}])
        plain.decode(payload.data)
        plain.encode(object())
        plain.encode_many([1, 2])
        assert "numpy" not in sys.modules
        assert plain.decode(b'{{"$":"scalar","dtype":"int8","v":3}}').itemsize == 1
        assert "numpy" in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], check=True)
