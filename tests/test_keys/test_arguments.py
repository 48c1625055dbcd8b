"""Arguments count by value: equal ones have one key, others another."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import math
import pathlib
import random
import re
import sys
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsbroker import keys, pickling
from fsbroker.errors import CannotPickle
from fsbroker.keys import identify, verify
from fsbroker.pickling import ForeignFutures
from fsbroker.task import Dependency
from tests.test_keys.sessions import anything, define, key, key_of, scope_of


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024 - as users write it


class Plain:
    def __init__(self, **state):
        self.__dict__.update(state)


class Tags(set):
    """As users subclass it."""


def test_values_of_all_kinds_are_told_apart():
    values = [
        None, False, True, 0, 1, -1, 0.0, -0.0, 1.0, math.nan, math.inf, 1j, "1", "", b"1", b"",
        "True", "None", [], (), {}, set(), frozenset(), [1], (1,), {1}, frozenset({1}), {1: 1},
        {"1": 1}, {True: 1}, [[1], 2], [1, [2]], [1, 2], [2, 1], "\ud83d\ude00", "\U0001f600",
        10**5000, 10**5000 + 1, bytearray(b"1"), ..., NotImplemented, range(3), range(4),
        slice(1, 2), Number.ONE, Colour.RED, Colour.BLUE, Point(1), Point(1, 1), Pair(1, 2), (1, 2),
        Plain(), Plain(x=1), Plain(x=2), collections.OrderedDict(a=1), {"a": 1},
        collections.defaultdict(list), collections.defaultdict(dict), collections.deque([1]),
        decimal.Decimal(1), decimal.Decimal("1.0"), pathlib.Path("a"), pathlib.PurePosixPath("a"),
        dt.date(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc), dt.timedelta(1),
        re.compile("a"), re.compile("a", re.IGNORECASE), re.compile("b"), random.Random(1),
        random.Random(2), np.random.default_rng(1), np.random.default_rng(2), np.float64(1),
        np.float32(1), np.int64(1), np.bool_(True), np.array(1), np.array([1]), np.array([[1]]),
        np.array([1.0]), np.array([1], dtype="i4"), np.array([True]), np.array(["1"]),
        np.array([1], dtype=object), np.array([b"1"]), np.array([2**63], dtype="u8"),
        np.zeros(2, dtype=[("a", "i1"), ("b", "f8")]), np.array(["2020"], dtype="M8[Y]"),
        np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0]), np.dtype("f8"),
        int, float, Point, Colour, len, max, math.sqrt, np.sin, np.cos, np.linalg.norm, np, math,
        functools.partial(max, 1), functools.partial(max, 2), functools.partial(max, key=len),
        str.join, "a".join, "b".join, [1].append, lambda x: x, lambda x: x + 1, Point(1).__eq__,
        pd.NA, pd.NaT, pd.Timestamp("2020"), pd.Index([1]), pd.Series([1]), pd.Series([1.0]),
        pd.DataFrame({"a": [1]}),
        np.array([1], dtype=np.longdouble), np.array([2], dtype=np.longdouble), Tags(), Tags("a"),
        ValueError("x"), list[int], int | None,
        Future_of(b"a"), Future_of(b"b"), Future_of(b"a", (0,)), Future_of(b"a", ("0",)),
    ]  # fmt: skip
    found = [key(anything, value) for value in values]
    inside = [key(anything, ["inside", value]) for value in values]
    assert len({*found, *inside}) == 2 * len(values)
    assert found == [key(anything, value) for value in values]


class Future_of(Future):  # noqa: N801 - reads as what it is
    def __init__(self, key: bytes, selector: tuple[int | str, ...] = ()) -> None:
        super().__init__()
        self.dependency = Dependency(key * 20, selector)


def test_equal_values_have_one_key_however_they_were_made():
    text = str(b"ab", "ascii")  # equal to "ab", but another object
    shared = [1, {2}]
    pairs = [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
        ({1: "x", (2, 3): "y"}, {(2, 3): "y", 1: "x"}),
        ({"x", "y", "z"}, {"z", "y", "x"}),
        (frozenset({Colour.RED, Colour.BLUE}), frozenset({Colour.BLUE, Colour.RED})),
        ([text, text], ["ab", str(b"ab", "ascii")]),
        ([shared, shared], [[1, {2}], [1, {2}]]),
        ([Point(1), Point(1)], [Point(1)] * 2),
        (Plain(a=1, b=2), Plain(b=2, a=1)),
        (collections.Counter("ab"), collections.Counter("ba")),
        (math.nan, -math.nan),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(6), np.arange(12)[::2] // 2),
        (np.arange(3, dtype="<i4"), np.arange(3, dtype=">i4")),
        ([np.ones(2)], [np.ones((2, 2))[0]]),
        (Future_of(b"a"), Future_of(b"a")),
        (np.float64(1), np.ones(2)[0]),
        (lambda x: x, lambda x: x),
        (Point(1).__init__, Point(1).__init__),
    ]
    for one, two in pairs:
        assert key(anything, one) == key(anything, two), one
        assert key(anything, {"k": [one]}) == key(anything, {"k": [two]}), one


def test_order_counts_where_it_is_part_of_the_value():
    one = collections.OrderedDict([("a", 1), ("b", 2)])
    two = collections.OrderedDict([("b", 2), ("a", 1)])
    assert key(anything, one) != key(anything, two)


def test_frames_count_by_content_not_by_blocks():
    whole = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    grown = pd.DataFrame({"a": [1, 2]})
    grown["b"] = [3, 4]
    assert key(anything, whole) == key(anything, grown)
    others = [
        whole.rename(columns={"b": "c"}),
        whole.set_index(pd.Index([5, 6])),
        whole.astype(float),
        whole[["b", "a"]],
        whole.assign(b=["x", "y"]),
        whole.assign(b=pd.Categorical(["x", "y"])),
        whole.assign(b=pd.Categorical(["x", "y"], categories=["y", "x"])),
        whole.assign(b=pd.to_datetime(["2020", "2021"])),
        whole.assign(b=pd.to_datetime(["2020", "2021"]).tz_localize("UTC")),
    ]
    assert len({key(anything, frame) for frame in [whole, *others]}) == 10


def test_values_that_contain_themselves_have_a_key():
    def loop(inner):
        found: list[Any] = [inner]
        found.append(found)
        return found

    assert key(anything, loop(1)) == key(anything, loop(1))
    assert key(anything, loop(1)) != key(anything, loop(2))

    def knot():
        one: list[Any] = [1]
        two = [one, 2]
        one.append(two)
        return one, two

    one, two = knot()
    assert key(anything, [one, two]) == key(anything, [knot()[0], knot()[1]])
    node = Plain(name="a")
    node.peer = Plain(name="b", peer=node)
    assert key(anything, node) == key(anything, node)


def test_deeply_shared_values_take_linear_time():
    inner: Any = Point(1)
    for _ in range(60):
        inner = [inner, inner]
    assert key(anything, inner) == key(anything, inner)


def norm(obj: Any) -> Any:
    """What of a plain object counts."""
    if isinstance(obj, dict):
        return "dict", frozenset((norm(k), norm(v)) for k, v in obj.items())
    if isinstance(obj, (set, frozenset)):
        return type(obj), frozenset(map(norm, obj))
    if isinstance(obj, (list, tuple)):
        return type(obj), tuple(map(norm, obj))
    return type(obj), repr(obj)


atoms = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, "", "1"])
nested = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(atoms, inner, max_size=3)
        | st.frozensets(atoms, max_size=3)
    ),
    max_leaves=6,
)


@given(nested, nested)
@settings(deadline=None, max_examples=300)
def test_keys_are_equal_exactly_where_values_are(one, two):
    are_equal = norm(one) == norm(two)
    assert (key(anything, one) == key(anything, two)) == are_equal
    assert (key(takes_one, one) == key(takes_one, two)) == are_equal


def takes_one(value):
    """Its arguments may be text, where those of `anything` never are."""


def shuffled(obj: Any, rng: random.Random) -> Any:
    """An equal object with every dict and set built in another order."""
    if isinstance(obj, dict):
        items = [(k, shuffled(v, rng)) for k, v in obj.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(obj, frozenset):
        items = list(obj)
        rng.shuffle(items)
        return frozenset(items)
    return type(obj)(shuffled(x, rng) for x in obj) if isinstance(obj, (list, tuple)) else obj


@given(nested, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_dicts_and_sets_does_not_matter(obj, rng):
    assert key(anything, obj) == key(anything, shuffled(obj, rng))


def test_futures_of_others_count_by_their_value():
    future: Future[int] = Future()
    record = identify(anything)
    with pytest.raises(ForeignFutures):
        record.call((future,), {})
    call = record.call(([future],), {}, foreign={id(future): 3})
    assert call.key == record.call(([3],), {}).key
    assert call.payload.data == b"[[3]]"
    for wrap in (lambda v: v, lambda v: {"a": v}, lambda v: (v, [v]), lambda v: Point({v})):
        call = record.call((wrap(future),), {"k": future}, foreign={id(future): 3})
        assert call.key == record.call((wrap(3),), {"k": 3}).key
        call = identify(takes_one).call((wrap(future),), {}, foreign={id(future): 3})
        assert call.key == key(takes_one, wrap(3))


@pytest.mark.parametrize(
    ("args", "message"),
    [((open,), None), ((threading.Lock(),), "lock"), (((n for n in []),), "generator")],
)
def test_what_has_no_address_is_refused_with_a_cure(args, message):
    if message is None:
        assert key(anything, *args)
        return
    with pytest.raises(CannotPickle, match=message):
        identify(anything).call(args, {})


class Secret:
    """Pickles, but not in the way that all others are taken apart."""

    def __reduce_ex__(self, protocol):
        if sys._getframe(1).f_globals["__name__"].startswith(keys.__name__):
            raise TypeError("not like this")
        return Secret, ()


def test_what_only_has_no_canonical_form_says_that_cache_key_is_the_way():
    record = identify(anything)
    with pytest.raises(CannotPickle, match=r'cache_key=.*"cache": "off"') as caught:
        record.call((1, Secret()), {})
    assert "Secret" in str(caught.value)
    call = record.call((1, Secret()), {}, cache_key="mine")
    assert call.key == record.call((2,), {}, cache_key="mine").key
    assert call.descriptor == keys.UNKNOWN


def test_the_error_for_a_function_says_which_variable():
    f = define("def f(x): return handle")
    scope_of(f)["handle"] = (n for n in [])
    with pytest.raises(CannotPickle, match="global 'handle'"):
        identify(f)


def test_functions_without_an_address_can_be_called_all_the_same():
    record = keys.opaque(define("def f(x): return x"))
    one, two = record.call((1,), {}), record.call((1,), {})
    assert one.key != two.key
    assert record.call((1,), {}, cache_key="n").key == record.call((2,), {}, cache_key="n").key
    assert verify(len, record.digest)
    assert pickling.load_function(record.pickle)(3) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from concurrent.futures import Future\nhandle = Future()", "future of another executor"),
        ("handle = []\nfor _ in range(10**5): handle = [handle]", "Too deeply nested"),
    ],
)
def test_globals_without_an_address(source, message):
    with pytest.raises(CannotPickle, match=message):
        key_of(f"{source}\ndef f(): return handle")
