"""The same call has the same key everywhere; another call has another.

Most tests define functions from source text, as a notebook cell or a script would, and
those that promise something about other processes start other processes.
"""

from __future__ import annotations

import builtins
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import gc
import importlib
import json
import math
import os
import pathlib
import pickle
import random
import re
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsbroker import keys, pickling
from fsbroker.errors import CannotPickle, CodeChanged
from fsbroker.keys import identify, verify
from fsbroker.pickling import ForeignFutures
from fsbroker.task import Dependency

ROOT = os.path.dirname(os.path.dirname(keys.__file__))


def define(source: str, name: str = "f", file: str = "<cell>") -> Any:
    """What running this text as a notebook cell or script leaves under the name."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), scope)
    return scope[name]


def key(fn: Any, *args: Any, **kwargs: Any) -> bytes:
    return identify(fn).call(args, kwargs).key


def key_of(source: str, *args: Any) -> bytes:
    return key(define(source), *args)


def run(script: os.PathLike[str] | str, *path: Any, seed: int = 0, **variables: str) -> Any:
    """What the script prints as JSON, in a fresh interpreter."""
    env = {
        **os.environ,
        "PYTHONHASHSEED": str(seed),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))),
        "PYTHONDONTWRITEBYTECODE": "1",  # an edit in the same second must be seen
        **variables,
    }
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, env=env, check=True)
    return json.loads(done.stdout)


def anything(*args, **kwargs):
    """Arguments of any kind are given to this."""


# -- the same and other code -------------------------------------------------------------

BASE = """
SCALE = 2
def helper(x):
    return x + 1
class Thing:
    size = 3
    def grow(self):
        return self.size
def make(k):
    def f(x, y=5, *, z=7):
        "What it does."
        for i in range(10):
            x += SCALE * i
        return helper(x) + k + len([v for v in {1, 2, "three"}]) + Thing().grow() + y + z
    return f
f = make(4)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "\n\n\nSCALE = 2"),
        ("SCALE = 2", "SCALE = 2  # a comment"),
        ("            x += SCALE", "            # why\n\n            x += SCALE"),
        ("range(10):\n", "range(10):\n\n"),
        ('"What it does."', '"Something else."'),
        ('        "What it does."\n', ""),
        ("def helper(x):", 'def helper(x):\n    "New."'),
        ("def helper(x):", "def helper(x: int) -> int:"),
        ("class Thing:", 'class Thing:\n    "New."'),
        ("f = make(4)", "unused = 1\nf = make(4)"),
        ("SCALE = 2", "SCALE = int('2')"),
    ],
)  # fmt: skip
def test_an_edit_that_changes_nothing_keeps_the_key(old, new):
    edited = BASE.replace(old, new, 1)
    assert edited != BASE
    assert key_of(edited, 1) == key_of(BASE, 1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "SCALE = 3"),
        ("SCALE = 2", "SCALE = 2.0"),
        ("SCALE = 2", "SCALE = True + 1j"),
        ("x + 1", "x + 2"),
        ("x + 1", "x - 1"),
        ("size = 3", "size = 4"),
        ("return self.size", "return -self.size"),
        ("y=5", "y=6"),
        ("z=7", "z=8"),
        ("make(4)", "make(5)"),
        ("range(10)", "range(11)"),
        ('"three"', '"four"'),
        ("len([", "max(["),
        ("def f(x, y", "def f(y, x"),
        ("f = make(4)", "len = max\nf = make(4)"),
    ],
)
def test_an_edit_that_matters_gives_another_key(old, new):
    assert BASE.replace(old, new, 1) != BASE
    source = BASE.replace(old, new, 1)
    assert key_of(source, 1) != key_of(BASE, 1)


def test_kinds_of_parameters_count():
    kinds = ["a", "*a", "**a", "*, a", "a, /"]
    assert len({identify(define(f"def f({kind}): return a")).digest for kind in kinds}) == 5


def test_the_cells_file_and_line_do_not_matter():
    one = define(BASE, file="/tmp/ipykernel_123/456.py")
    two = define("\n" * 50 + BASE, file="/tmp/ipykernel_98765/4.py")
    assert key(one, 1) == key(two, 1)


def test_paths_in_arguments_and_defaults_count():
    # The peer's key strips all between "/ipykernel_" and the last "/".
    sources = [f'def f(x, path="/tmp/ipykernel_1/run{i}/x.dat"):\n    return path' for i in (1, 2)]
    assert key_of(sources[0], 1) != key_of(sources[1], 1)
    f = define('def f(n, p): return "/".join([str(n), p])')
    assert key(f, n=1, p="a/b") != key(f, n=2, p="a/b")


def test_mutual_recursion_ends_and_counts():
    source = """
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
TABLE = {"even": even, "odd": odd}
def f(name, n): return TABLE[name](n)
"""
    assert key_of(source, 1) == key_of(source, 1)
    assert key_of(source, 1) != key_of(source.replace("n != 0", "n > 0"), 1)


def test_a_class_body_inside_a_function():
    source = """def f(x):
    class Inner:
        'Doc.'
        def m(self):
            self.a = x
            self.b = 1
    return Inner().m()"""
    moved = "\n\n\n" + source.replace("'Doc.'", "'Other.'")
    assert key_of(source, 1) == key_of(moved, 1)
    assert key_of(source, 1) != key_of(source.replace("b = 1", "b = 2"), 1)


def test_decorators_count_with_what_they_wrap():
    source = """
import functools
def twice(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args) * 2
    return wrapper
@twice
def f(x): return x
"""
    assert key_of(source, 1) == key_of(source, 1)
    assert key_of(source, 1) != key_of(source.replace("return x", "return -x"), 1)
    assert key_of(source, 1) != key_of(source.replace("* 2", "* 3"), 1)
    cached = source.replace("@twice", "@functools.lru_cache(maxsize=None)")
    assert key_of(cached, 1) == key_of(cached, 1)
    assert key_of(cached, 1) != key_of(cached.replace("return x", "return -x"), 1)


# -- changes while the session runs ------------------------------------------------------


def scope_of(fn: Any) -> dict[str, Any]:
    return fn.__globals__


CHANGING = """
import numpy as np
COUNT = 1
LIST = [1, [2]]
DICT = {"a": {"b": 1}}
ARRAY = np.zeros(3)
SET = set()
class Thing:
    parts = [1]
    def method(self): return 1
thing = Thing()
def helper(x, some=[1]): return x
def maker(k):
    def f(x, d={"q": 1}): return COUNT, LIST, DICT, ARRAY, SET, Thing, thing, helper(x), k, d
    return f
f = maker([1])
"""


@pytest.mark.parametrize(
    "change",
    [
        lambda f, g: g.update(COUNT=2),
        lambda f, g: g.update(COUNT=True),
        lambda f, g: g["LIST"][1].append(3),
        lambda f, g: g["LIST"].__setitem__(0, True),
        lambda f, g: g["LIST"].__setitem__(0, 1.0),
        lambda f, g: g["DICT"]["a"].update(b=2),
        lambda f, g: g["DICT"].update(c=2),
        lambda f, g: g["ARRAY"].__setitem__(0, 1),
        lambda f, g: g["SET"].add(1),
        lambda f, g: g["Thing"].parts.append(2),
        lambda f, g: setattr(g["Thing"], "method", lambda self: 2),
        lambda f, g: setattr(g["Thing"], "new", 2),
        lambda f, g: setattr(g["thing"], "state", 2),
        lambda f, g: g.update(helper=lambda x: -x),
        lambda f, g: g["helper"].__defaults__[0].append(2),
        lambda f, g: setattr(g["helper"], "__code__", (lambda x, some: x + 1).__code__),
        lambda f, g: f.__closure__[0].cell_contents.append(2),
        lambda f, g: setattr(f.__closure__[0], "cell_contents", 7),
        lambda f, g: f.__defaults__[0].update(q=2),
        lambda f, g: setattr(f, "__defaults__", (3,)),
        lambda f, g: setattr(f, "__kwdefaults__", {"x": 1}),
        lambda f, g: setattr(f, "attribute", 3),
        lambda f, g: g.update(len=max) or g.update(COUNT=3),
    ],
)
def test_every_change_is_noticed_on_the_next_call(change):
    f = define(CHANGING)
    before = identify(f)
    assert identify(f) is before  # nothing changed: the record is used again
    change(f, scope_of(f))
    after = identify(f)
    assert after.digest != before.digest
    assert identify(f) is after


def test_a_global_that_appears_later_is_noticed():
    f = define("def f(x): return helper(len(x))")
    before = key(f, "a")
    scope_of(f)["helper"] = abs
    defined = key(f, "a")
    scope_of(f)["len"] = max
    assert len({before, defined, key(f, "a")}) == 3


def test_an_equal_value_in_its_place_gives_the_same_key():
    f = define("N = 100000\ndef f(x): return N + x")
    before = key(f, 1)
    scope_of(f)["N"] = int("100000")
    assert key(f, 1) == before


def test_the_pickle_is_of_the_state_that_was_identified():
    f = define("def helper(x): return 1\ndef f(x): return helper(x)")
    record = identify(f)
    scope_of(f)["helper"] = lambda x: 2
    assert pickling.load_function(record.pickle)(0) == 1
    assert pickling.load_function(identify(f).pickle)(0) == 2


@pytest.mark.parametrize("source", ["def f(n): return n and f(n - 1)", "f = lambda n: n"])
def test_a_record_does_not_keep_its_function_alive(source):
    f = define(source)
    identify(f)
    ref = weakref.ref(f)
    scope_of(f).clear()
    del f
    gc.collect()
    assert ref() is None


def test_records_do_not_pile_up():
    for _ in range(3):
        identify(define("def f(x): return x"))
    assert len(keys._RECORDS) <= keys._MAX_RECORDS
    before = len(keys._RECORDS)
    for _ in range(50):
        identify(define("def f(x): return x"))
    gc.collect()
    assert len(keys._RECORDS) <= before + 1


# -- calls -------------------------------------------------------------------------------


def test_ways_to_write_one_call():
    f = define("def f(a, b=2, *, c=3): return a")
    ways = [key(f, 1), key(f, 1, 2), key(f, 1, b=2), key(f, a=1), key(f, b=2, a=1),
            key(f, c=3, a=1), key(f, 1, 2, c=3)]  # fmt: skip
    assert len(set(ways)) == 1
    others = [key(f, 2), key(f, 1, 3), key(f, 1, c=4), key(f, 2, 1), key(f, 1, True), key(f, 1.0)]
    assert len({*ways, *others}) == 7


@given(st.lists(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), max_size=3))
@settings(deadline=None)
def test_position_and_keyword_are_one_call(values):
    f = define("def f(a=0, b=0, c=0): return a")
    named = dict(zip("abc", values, strict=False))
    filled = values + [0] * (3 - len(values))
    assert key(f, *values) == key(f, **named) == key(f, *filled)
    assert key(f, *values) == key(f, **dict(reversed(named.items())))


def test_variable_parameters():
    f = define("def f(a, *rest, b=1, **named): return a")
    assert key(f, 1, 2, 3, x=1, y=2) == key(f, 1, 2, 3, b=1, y=2, x=1)
    calls = [key(f, 1), key(f, 1, 2), key(f, 1, (2,)), key(f, 1, b=2), key(f, 1, x=1)]
    assert len(set(calls)) == 5


def test_positional_only_names_may_be_keywords_too():
    f = define("def f(a, /, **named): return a")
    assert key(f, 1, a=2) != key(f, 2, a=1)


def test_ranks_and_preset_count():
    record = identify(define("def f(x): return x"))
    calls = [
        record.call((1,), {}).key,
        record.call((1,), {}, ranks=2).key,
        record.call((1,), {}, preset=b"init").key,
        record.call(([1],), {}).key,
        record.call(([1],), {}, ranks=2).key,
        record.call(([1],), {}, preset=b"init").key,
    ]
    assert len(set(calls)) == 6
    assert record.call((1,), {}, ranks=1, preset=b"").key == calls[0]


def test_what_an_init_function_provides_may_be_left_out():
    f = define("def f(a, model): return a")
    assert key(f, 1) == key(f, a=1)
    assert key(f, 1) != key(f, 1, None)


def test_a_call_that_python_refuses_has_a_key_of_its_own():
    # It is the task that fails, with Python's own message.
    f = define("def f(a): return a")
    calls = [key(f, 1), key(f, 1, 2), key(f, b=1), key(f, 1, a=1), key(f)]
    assert len(set(calls)) == 5


def test_the_payload_is_what_the_caller_wrote():
    call = identify(define("def f(a, b=2): return a")).call(({"z": 1, "a": 2},), {})
    assert call.payload.data == b'[{"z":1,"a":2}]'
    ((found,), kwargs) = pickling.decode_call(call.payload.encoding, call.payload.data)
    assert list(found) == ["z", "a"]
    assert kwargs == {}


def test_cache_key_names_the_call_and_the_descriptor_tells_calls_apart():
    record = identify(anything)
    one, two = (record.call((n,), {}, cache_key="mine") for n in (1, 2))
    assert one.key == two.key
    assert one.key == identify(len).call(((),), {}, cache_key="mine", ranks=3).key
    assert one.key != record.call((1,), {}, cache_key="other").key
    assert one.descriptor != two.descriptor
    assert one.descriptor == record.call((1,), {}).descriptor


# -- arguments ---------------------------------------------------------------------------


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
        pd.DataFrame({"a": [1]}), ValueError("x"), list[int], int | None,
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
    assert (key(anything, one) == key(anything, two)) == (norm(one) == norm(two))


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
        if sys._getframe(1).f_globals["__name__"] == keys.__name__:
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


# -- functions of all kinds --------------------------------------------------------------

LIBRARY = [
    sum, max, min, dict, int, len, print, math.sqrt, np.linalg.norm, np.sin, np.array, np.mean,
    "x".join, str.upper, json.dumps, os.path.join, collections.Counter, pathlib.Path,
    functools.partial(max, 1), np.random.default_rng(1).normal, builtins.open,
]  # fmt: skip


@pytest.mark.parametrize("fn", LIBRARY, ids=repr)
def test_functions_of_libraries(fn):
    record = identify(fn)
    assert record.call(((1, 2),), {}).key == record.call(((1, 2),), {}).key
    assert record.call(((1, 2),), {}).key != record.call(((2, 1),), {}).key
    assert verify(pickling.load_function(record.pickle), record.digest)
    assert len({identify(other).digest for other in LIBRARY}) == len(LIBRARY)


def test_methods_and_callable_objects_count_with_their_state():
    source = """
class Model:
    def __init__(self, k): self.k = k
    def __call__(self, x): return self.k * x
    def run(self, x, y=2): return self.k + x
    @classmethod
    def make(cls, k): return cls(k)
f = Model
"""
    model, edited = define(source), define(source.replace("+ x", "- x"))
    assert key(model(1), 5) == key(define(source)(1), 5)
    assert key(model(1).run, 5) == key(model(1).run, 5, y=2)
    others = [model(1), model(2), model(1).run, model(2).run, edited(1).run, edited(1)]
    assert len({key(fn, 5) for fn in [*others, model.make, model]}) == 8


def test_a_callable_object_that_changes_is_noticed():
    model = Plain()
    type(model).__call__ = lambda self, x: x
    try:
        before = identify(model)
        assert identify(model) is before
        model.state = 1
        assert identify(model).digest != before.digest
    finally:
        del type(model).__call__


def test_partials_count_with_their_arguments():
    f = define("def f(a, b, c=3): return a")
    partial = functools.partial(f, 1)
    assert key(partial, 2) == key(partial, 2, c=3) == key(functools.partial(f, 1), b=2)
    assert key(partial, 2) != key(functools.partial(f, 2), 2)
    holder = functools.partial(f, [1])
    before = key(holder, 2)
    holder.args[0].append(2)
    assert key(holder, 2) != before


def test_names_and_sources():
    f = define("def f(x):\n    return x")
    assert identify(f).name == "__main__.f"
    assert identify(f).source == ""
    assert identify(anything).source.startswith("def anything(*args, **kwargs):")
    assert identify(np.linalg.norm).name == "numpy.linalg.norm"
    assert identify(functools.partial(anything, 1)).name.endswith("test_keys.anything")


# -- other processes ---------------------------------------------------------------------

KINDS = '''
import abc, collections, dataclasses, enum, functools, logging, math, threading, typing
import numpy as np

log = logging.getLogger(__name__)
CONFIG = {"b": 1, "a": {"x", "y", "z"}}

class Colour(enum.Enum):
    RED = 1
    BLUE = "b"
    def low(self): return self.name.lower()

@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0
    tags: list = dataclasses.field(default_factory=list)
    def norm(self): return math.hypot(self.x, self.y)

@dataclasses.dataclass(frozen=True, slots=True)
class Slim:
    a: int = 3

class Base(abc.ABC):
    """Doc."""
    @abc.abstractmethod
    def run(self): ...
    @property
    def p(self): return 1
    @staticmethod
    def s(): return 2
    @classmethod
    def c(cls): return cls

class Derived(Base):
    __slots__ = ("q",)
    def run(self): return super().p
    def __call__(self, x): return x

Pair = collections.namedtuple("Pair", "a b")
class Typed(typing.NamedTuple):
    a: int
    b: str = "x"
class Generic(typing.Generic[typing.TypeVar("T")]):
    def f(self): return 1

def helper(x): return x + 1
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n and even(n - 1)
def wrap(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs): return fn(*args, **kwargs)
    return wrapper
@wrap
def decorated(a, b=2): return a + b
def make(k):
    def inner(x): return x * k + helper(x)
    return inner
def uses_config(x): return CONFIG["b"]
def uses_log(x): log.info(x)
def uses_numpy(x): return np.linalg.norm(np.sin(x)) + math.pi
def uses_point(x): return Point(x, 1).norm()
def uses_enum(): return Colour.RED.low()
def uses_derived(): return Derived()
def uses_pair(): return Pair(1, 2), Typed(1)
def uses_generic(): return Generic[int]()
def uses_set(x): return x in {1, 2, "a", "b"}
def imports(x):
    import json, numpy
    return json.dumps(x)
def nested(x):
    class Inner:
        """Doc."""
        def m(self):
            self.a = self.b = self.c = x
    return [Inner().m() for _ in range(3)], (lambda y: y + x)(2)
def attribute(): return attribute.scale
attribute.scale = 2
@functools.lru_cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
TABLE = {"even": even, "odd": odd, "lambda": lambda x: x * 2}
def dispatch(n): return TABLE[n](1)
def generate(n): yield from range(n)
async def wait(n): return n

FUNCTIONS = dict(
    helper=helper, even=even, decorated=decorated, closure=make(3), closure2=make(np.float64(2)),
    uses_config=uses_config, uses_log=uses_log, uses_numpy=uses_numpy, uses_point=uses_point,
    uses_enum=uses_enum, uses_derived=uses_derived, uses_pair=uses_pair,
    uses_generic=uses_generic, uses_set=uses_set, imports=imports, nested=nested,
    attribute=attribute, fib=fib, dispatch=dispatch, generate=generate, wait=wait, Point=Point,
    Slim=Slim, Colour=Colour, partial=functools.partial(decorated, 1, b=3),
    method=Point(1, 2).norm, callable=Derived(), classmethod=Derived.c,
    vectorised=np.vectorize(helper), sum=sum, norm=np.linalg.norm, sin=np.sin,
)
VALUES = dict(
    enum=Colour.RED, point=Point(1, 2, [3]), slim=Slim(), pair=Pair(1, 2), typed=Typed(1),
    set={"a", "b", (1, 2)}, members=frozenset(Colour), dict={"b": 1, "a": {2: {"y", "x"}}},
    lambda_=lambda x: x, fn=helper, cls=Point, rng=np.random.default_rng(1),
    counter=collections.Counter("abca"), array=np.arange(6).reshape(2, 3), strings=["a"] * 3,
    points={Slim(1), Slim(2), Slim(3)}, slots={"x": Slim()},
)
'''

REPORT = """
import json
from fsbroker.keys import identify
def target(value): pass
out = {"functions": {}, "values": {}, "pickles": {}}
for name, fn in FUNCTIONS.items():
    record = identify(fn)
    out["functions"][name] = record.digest.hex()
    out["pickles"][name] = record.pickle.hex()
for name, value in VALUES.items():
    out["values"][name] = identify(target).call((value,), {}).key.hex()
print(json.dumps(out))
"""

CHECK = """
import json, os
from fsbroker import keys, pickling
sent = json.load(open(os.environ["SENT"]))
out = {}
for name, digest in sent["functions"].items():
    fn = pickling.load_function(bytes.fromhex(sent["pickles"][name]))
    out[name] = keys.verify(fn, bytes.fromhex(digest))
print(json.dumps(out))
"""


@pytest.fixture(scope="module", params=["script", "module"])
def kinds(request, tmp_path_factory):
    """Reports of two interpreters, and the directories that they need on the path."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "script":
        first, second = folder / "run.py", folder / "moved" / "other name.py"
        second.parent.mkdir()
        first.write_text(KINDS + REPORT)
        second.write_text("# moved\n\n\n" + KINDS + REPORT)
    else:
        (folder / "kinds.py").write_text(KINDS)
        first = second = folder / "run.py"
        first.write_text("from kinds import FUNCTIONS, VALUES\n" + REPORT)
    return folder, run(first, seed=1), run(second, seed=2)


def test_keys_are_the_same_in_another_interpreter_folder_and_line(kinds):
    _, one, two = kinds
    assert one["functions"] == two["functions"]
    assert one["values"] == two["values"]
    assert len(set(one["functions"].values())) == len(one["functions"])
    assert len(set(one["values"].values())) == len(one["values"])


def test_what_a_worker_loads_is_what_was_submitted(kinds, tmp_path):
    folder, one, _ = kinds
    sent = tmp_path / "sent.json"
    sent.write_text(json.dumps(one))
    check = tmp_path / "check.py"
    check.write_text(CHECK)
    found = run(check, folder, seed=3, SENT=str(sent))
    assert found == dict.fromkeys(one["functions"], True)


CELL = """
import dataclasses
@dataclasses.dataclass
class Job:
    n: int
def helper(x): return x + OFFSET
OFFSET = 1
def f(job, path="/tmp/ipykernel_1/run{number}/x.dat"): return helper(job.n), path
from fsbroker.keys import identify
record = identify(f)
print("key", record.call((Job(1),), {{}}).key.hex(), record.name, repr(record.source))
"""


def test_a_cell_has_the_same_key_in_another_kernel():
    first = in_kernel([CELL.format(number=1), CELL.format(number=2), CELL.format(number=1)])
    second = in_kernel(["'another cell first'", "\n\n# moved\n" + CELL.format(number=1)])
    assert first[0] == first[2] == second[0]
    assert first[0] != first[1]
    assert "def f(job" in first[0]
    assert "__main__.f" in first[0]


def in_kernel(cells: list[str]) -> list[str]:
    """What the cells print, in a Jupyter kernel of their own."""
    from jupyter_client.manager import start_new_kernel

    lines: list[str] = []

    def collect(message: Any) -> None:
        content = message["content"]
        assert message["msg_type"] != "error", content
        lines.extend(n for n in content.get("text", "").splitlines() if n.startswith("key "))

    manager, client = start_new_kernel(env={**os.environ, "PYTHONPATH": ROOT})
    try:
        for cell in cells:
            client.execute_interactive(cell, timeout=60, output_hook=collect)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return lines


# -- modules -----------------------------------------------------------------------------

USER = """
import json
import usermod, usermod.sub
from usermod import direct
from fsbroker.keys import identify
def attribute(x): return usermod.helper(x)
def deep(x): return usermod.sub.helper(x)
def alias(x): m = usermod; return m.helper(x)
def dynamic(x, name): return getattr(usermod, name)(x)
def inner(x):
    from usermod import helper
    return helper(x)
def inner_deep(x):
    import usermod.sub as s
    return s.helper(x)
found = dict(attribute=attribute, deep=deep, alias=alias, dynamic=dynamic, inner=inner,
             inner_deep=inner_deep, direct=direct, unrelated=usermod.unrelated)
print(json.dumps({name: identify(fn).digest.hex() for name, fn in found.items()}))
"""

MODULE = """
CONSTANT = 1
def helper(x): return x + CONSTANT
def direct(x): return helper(x)
def unrelated(x): return x
"""


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "path" / "usermod"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(MODULE)
    (folder / "sub.py").write_text("def helper(x): return x")
    (tmp_path / "user.py").write_text(USER)
    return folder


def changed(one: dict[str, str], two: dict[str, str]) -> set[str]:
    return {name for name in one if one[name] != two[name]}


@pytest.mark.parametrize(
    ("old", "new", "touched"),
    [
        ("CONSTANT = 1", "CONSTANT = 2", "attribute direct alias dynamic inner inner_deep"),
        ("x + CONSTANT", "x - CONSTANT", "attribute direct alias dynamic inner inner_deep"),
        ("CONSTANT = 1", "# a comment\nCONSTANT = 1\n", ""),
        ("def unrelated(x): return x", "def unrelated(x): return -x",
         "unrelated alias dynamic inner inner_deep"),
    ],
)  # fmt: skip
def test_an_own_module_counts_with_the_code_that_is_used(package, tmp_path, old, new, touched):
    before = run(tmp_path / "user.py", package.parent)
    (package / "__init__.py").write_text(MODULE.replace(old, new))
    after = run(tmp_path / "user.py", package.parent, seed=5)
    assert changed(before, after) == set(touched.split())


def test_a_submodule_counts_where_it_is_used(package, tmp_path):
    before = run(tmp_path / "user.py", package.parent)
    (package / "sub.py").write_text("def helper(x): return -x")
    after = run(tmp_path / "user.py", package.parent)
    assert changed(before, after) == {"deep", "inner_deep"}


def install(folder: pathlib.Path, version: str, code: str) -> None:
    """A distribution named Tiny-Dist with the package tinypkg, as an installer leaves it."""
    for old in folder.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    (folder / "tinypkg").mkdir(parents=True, exist_ok=True)
    (folder / "tinypkg" / "__init__.py").write_text(code)
    info = folder / f"tiny_dist-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Tiny-Dist\nVersion: {version}\n")
    (info / "RECORD").write_text(
        f"tinypkg/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
    )


INSTALLED = """
import json, tinypkg
from tinypkg import direct
from fsbroker.keys import identify
def attribute(x): return tinypkg.direct(x)
def inner(x):
    import tinypkg
    return tinypkg.direct(x)
found = dict(direct=direct, attribute=attribute, inner=inner, cls=tinypkg.Thing)
print(json.dumps({name: identify(fn).digest.hex() for name, fn in found.items()}))
"""


def test_an_installed_package_counts_with_its_version(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INSTALLED)
    code = "def direct(x): return x\nclass Thing:\n    pass\n"
    install(tmp_path / "a", "1.0", code)
    install(tmp_path / "b", "1.0", code.replace("return x", "return x  # built elsewhere"))
    one, elsewhere = run(script, tmp_path / "a"), run(script, tmp_path / "b")
    assert one == elsewhere
    install(tmp_path / "a", "1.1", code)
    assert changed(one, run(script, tmp_path / "a")) == set(one)


def test_a_package_without_a_distribution_is_own_code(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INSTALLED)
    folder = tmp_path / "site-packages"
    install(folder, "1.0", "def direct(x): return x\nclass Thing: pass\n")
    (folder / "tiny_dist-1.0.dist-info" / "RECORD").write_text("something/else.py,,\n")
    one = run(script, folder)
    (folder / "tinypkg" / "__init__.py").write_text("def direct(x): return -x\nclass Thing: pass\n")
    assert changed(one, run(script, folder)) == {"direct", "attribute", "inner"}


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """An imported module of the user, and a way to edit it on disk."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "ownmod.py"
    file.write_text("def f(x): return x + 1\n")
    module = importlib.import_module("ownmod")
    yield module, file
    sys.modules.pop("ownmod", None)


SUBMIT = """
import json, sys, ownmod
from fsbroker.keys import identify
print(json.dumps(identify(ownmod.f).digest.hex()))
"""


def test_a_worker_with_stale_code_is_told_so(own_module, tmp_path):
    module, file = own_module
    script = tmp_path / "submit.py"
    script.write_text(SUBMIT)
    old = bytes.fromhex(run(script))
    assert verify(module.f, old)
    keys.require_same_code(module.f, old)
    file.write_text("def f(x): return x + 2\n")
    new = bytes.fromhex(run(script))
    assert not verify(module.f, new)
    with pytest.raises(CodeChanged, match=r"ownmod\.f"):
        keys.require_same_code(module.f, new)
    assert pickle.loads(pickle.dumps(CodeChanged(where="x"))).where == "x"
    assert verify(importlib.reload(module).f, new)


def test_a_worker_that_imported_a_module_while_it_ran_is_told_so(own_module, tmp_path):
    _, file = own_module
    sys.modules.pop("ownmod")
    source = "def f(x):\n    import ownmod\n    return ownmod.f(x)\n"
    script = tmp_path / "submit.py"
    script.write_text(source + SUBMIT.replace("import json, sys, ownmod", "import json").replace(
        "ownmod.f", "f"))  # fmt: skip
    old = bytes.fromhex(run(script))
    worker = define(source)
    assert verify(worker, old)
    assert worker(1) == 2  # now it is imported
    file.write_text("def f(x): return x + 200\n")
    new = bytes.fromhex(run(script))
    assert new != old
    assert not verify(worker, new)
    sys.modules.pop("ownmod")
    assert verify(define(source), new)


def test_state_that_tasks_left_in_a_module_does_not_undo_a_verdict(own_module):
    module, file = own_module
    file.write_text("seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)\n")
    importlib.reload(module)
    digest = identify(module.f).digest
    assert verify(module.f, digest)
    module.f(1)
    assert verify(module.f, digest)
    assert identify(module.f).digest != digest


def test_an_own_module_may_hold_what_has_no_address(own_module):
    module, file = own_module
    text = "handle = (n for n in [])\ndef f(x): return handle, x\n"
    file.write_text(text)
    importlib.reload(module)
    before = key(module.f, 1)
    assert key(module.f, 1) == before
    sys.modules.pop("ownmod")
    file.write_text(text.replace("[])", "[1])"))
    assert key(importlib.import_module("ownmod").f, 1) != before


LOCAL_IMPORT = """
import json, os
from fsbroker import keys, pickling
def f(x):
    import onlythere
    return onlythere.g(x)
sent = os.environ.get("SENT")
if sent:
    digest, data = map(bytes.fromhex, sent.split())
    print(json.dumps(keys.verify(pickling.load_function(data), digest)))
else:
    record = keys.identify(f)
    print(json.dumps([record.digest.hex(), record.pickle.hex()]))
"""


def test_a_package_that_only_the_compute_nodes_have_is_no_other_code(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LOCAL_IMPORT)
    install(tmp_path / "there", "1.0", "")
    package = tmp_path / "there" / "onlythere"
    (tmp_path / "there" / "tinypkg").rename(package)
    record = tmp_path / "there" / "tiny_dist-1.0.dist-info" / "RECORD"
    record.write_text("onlythere/__init__.py,,\n")
    sent = " ".join(run(script))
    assert run(script, tmp_path / "there", SENT=sent) is True


# -- cost --------------------------------------------------------------------------------


def test_importing_this_module_brings_nothing_heavy():
    script = f"""if True:
        import sys, types
        package = types.ModuleType("fsbroker")  # in place of all that the package imports
        package.__path__ = [{os.path.join(ROOT, "fsbroker")!r}]
        sys.modules["fsbroker"] = package
        import fsbroker.keys
        heavy = {{"numpy", "pandas", "h5py", "filelock", "watchdog", "asyncio", "cloudpickle",
                  "importlib.metadata", "typing_extensions"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_argument_that_is_not_hashed_twice():
    """A fast path that fell back to the slow one would still be right: so count its steps."""
    record = identify(define("def f(i): return i"))
    calls = 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        record.call((1,), {})
    finally:
        sys.setprofile(None)
    assert calls < 20
