"""Objects with arrays and futures inside: taken out, stored beside, and put back."""

from __future__ import annotations

import dataclasses
import functools
import json.scanner as module
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsbroker import pickling
from fsbroker.errors import CannotPickle, FileDamaged
from fsbroker.pickling import ForeignFutures, decode, decode_call, encode, encode_call, join
from fsbroker.task import Dependency, Encoding, Payload

KEY = b"k" * 20


class Ours(Future):
    """A future of this package, as far as pickling can see."""

    def __init__(self, key: bytes = KEY, selector: tuple[int | str, ...] = ()) -> None:
        super().__init__()
        self.dependency = Dependency(key, selector)


@dataclasses.dataclass
class Box:
    inside: Any


def back(payload: Payload, values: Any = ()) -> Any:
    return decode(payload.encoding, payload.data, payload.arrays, values)


anything = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | inner.map(Box)
        | st.sets(st.integers())
    ),
    max_leaves=15,
)


@given(anything)
@settings(deadline=None)
def test_any_object_comes_back(obj):
    found = back(encode(obj))
    assert found == obj
    assert type(found) is type(obj)


@given(st.lists(anything).map(tuple), st.dictionaries(st.text(), anything))
@settings(deadline=None)
def test_arguments_come_back(args, kwargs):
    payload = encode_call(args, kwargs)
    assert decode_call(payload.encoding, payload.data, payload.arrays) == (args, kwargs)


@given(st.lists(anything, max_size=4))
@settings(deadline=None)
def test_joined_payloads_are_the_list_of_the_values(values):
    assert back(join([encode(value) for value in values])) == values


def test_plain_objects_are_not_pickled():
    assert encode({"a": [1, (2,)]}).encoding == Encoding.PLAIN
    assert encode_call((1, 2), {}) == Payload(Encoding.PLAIN, b"[1,2]")
    assert encode_call((), {"b": 1}).data == b'{"args":[],"kwargs":{"b":1}}'


def test_arrays_inside_a_pickle_are_taken_out_once_and_keep_their_order():
    item = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    payload = encode(Box([item, {"again": item}]))
    assert payload.encoding == Encoding.PICKLE
    assert len(payload.arrays) == 1
    assert item.tobytes() not in payload.data
    found = back(payload).inside
    assert found[0] is found[1]["again"]
    assert found[0].flags.f_contiguous
    np.testing.assert_array_equal(found[0], item)


@pytest.mark.parametrize("make", [lambda item: [item], Box])
def test_decoded_arrays_are_writable_and_independent_of_the_file(make):
    payload = encode(make(np.arange(3)))
    stored = payload.arrays[0].copy()
    stored.flags.writeable = False
    found = decode(payload.encoding, payload.data, [stored])
    found = found.inside if isinstance(found, Box) else found[0]
    found[0] = 9
    assert stored[0] == 0


def test_arrays_that_are_no_numbers_stay_in_the_pickle():
    items = [np.array(["a", None], dtype=object), np.zeros(1, dtype="i1,f8"), np.ma.array([1])]
    payload = encode(items)
    assert payload.arrays == ()
    assert [type(item) for item in back(payload)] == [type(item) for item in items]


def test_frames_come_back():
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=[3, 4])
    payload = encode(frame)
    assert payload.arrays
    found = back(payload)
    pd.testing.assert_frame_equal(found, frame)
    found.loc[3, "a"] = 5  # its blocks are writable


@pytest.mark.parametrize("wrap", [lambda item: item, Box])
def test_the_caller_may_change_his_arrays_after_the_call(wrap):
    item = np.zeros(3)
    payload = encode_call((wrap(item),), {})
    item += 1
    assert payload.arrays[0].tolist() == [0, 0, 0]


# -- futures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "filled"),
    [
        ((Ours(),), (7,)),
        (((1, Ours()),), ((1, 7),)),
        (([Ours()], {"a": {"b": Ours()}}), ([7], {"a": {"b": 7}})),
        (({Ours()},), ({7},)),
        ((Box(Ours()),), (Box(7),)),
    ],
    ids=["alone", "tuple", "list and dict", "set", "dataclass"],
)
def test_our_futures_anywhere_become_dependencies(args, filled):
    payload = encode_call(args, {})
    assert set(payload.dependencies) == {Dependency(KEY)}
    values = [7] * len(payload.dependencies)
    assert decode_call(payload.encoding, payload.data, (), values) == (filled, {})


def test_futures_as_keyword_arguments_with_selectors():
    payload = encode_call((), {"a": Ours(), "b": [Ours(selector=(0, "x")), Ours()]})
    assert payload.dependencies == (Dependency(KEY), Dependency(KEY, (0, "x")))
    found = decode_call(payload.encoding, payload.data, (), ["whole", "part"])
    assert found == ((), {"a": "whole", "b": ["part", "whole"]})


@pytest.mark.parametrize("wrap", [lambda f: [f], lambda f: {"k": (f,)}, Box, lambda f: Box({f})])
def test_futures_of_others_are_collected_and_then_replaced(wrap):
    first, second = Future(), Future()
    with pytest.raises(ForeignFutures) as caught:
        encode_call((wrap(first), second), {"again": first, "ours": Ours()})
    assert set(caught.value.futures) == {first, second}
    assert len(caught.value.futures) == 2
    payload = encode_call(
        (wrap(first), second),
        {"again": first, "ours": Ours()},
        {id(first): 1, id(second): np.arange(3)},
    )
    args, kwargs = decode_call(payload.encoding, payload.data, payload.arrays, [5])
    assert args[0] == wrap(1)
    assert args[1].tolist() == [0, 1, 2]
    assert kwargs == {"again": 1, "ours": 5}


# -- joined ranks ------------------------------------------------------------------------


class Loud:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_joining_does_not_unpickle(tmp_path):
    mark = tmp_path / "mark"
    joined = join([encode(Loud(str(mark))), encode(1)])
    assert not mark.exists()
    assert back(joined) == [None, 1]
    assert mark.exists()


def test_joined_arrays_stay_numbers():
    items = [np.arange(3), np.arange(4.0)]
    joined = join([encode(item) for item in items])
    assert joined.encoding == Encoding.PLAIN
    assert [found.tolist() for found in back(joined)] == [[0, 1, 2], [0.0, 1.0, 2.0, 3.0]]
    mixed = join([encode(Box(items[0])), encode(items[1])])
    assert len(mixed.arrays) == 2
    assert back(mixed)[0].inside.tolist() == [0, 1, 2]


# -- what cannot be stored ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((1, threading.Lock()), {}, "argument 1"),
        ((), {"handle": {"a": [threading.Lock()]}}, "argument 'handle'['a'][0]"),
        ((Box(threading.Lock()),), {}, "argument 0.inside"),
    ],
)
def test_the_error_says_what_and_where(args, kwargs, where):
    with pytest.raises(CannotPickle) as caught:
        encode_call(args, kwargs)
    assert caught.value.where == where
    assert "lock" in caught.value.what
    assert caught.value.cure


def test_the_error_for_a_function_names_the_variable():
    lock = threading.Lock()
    with pytest.raises(CannotPickle, match="closure variable 'lock'"):
        pickling.dump_function(lambda: lock)


def test_a_bare_object_that_cannot_be_pickled():
    with pytest.raises(CannotPickle, match="lock"):
        encode(threading.Lock())


def test_errors_of_users_reducers_are_told():
    class Bad:
        def __reduce__(self):
            raise ZeroDivisionError("mine")

    with pytest.raises(CannotPickle, match="mine"):
        encode([Bad()])


@pytest.mark.parametrize("data", [b"1", b'{"args":[]}', b'"x"', b'{"args":1,"kwargs":2}'])
def test_arguments_that_are_none_are_refused(data):
    with pytest.raises(FileDamaged):
        decode_call(Encoding.PLAIN, data)


def test_an_unknown_encoding_is_refused():
    with pytest.raises(FileDamaged):
        decode(9, b"1")


# -- functions ---------------------------------------------------------------------------

SCRIPT = """
import functools, sys
from fsbroker import pickling

BASE = 10

def helper(x):
    return x + BASE

def plus(x):
    return helper(x)

@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

def make(k):
    return lambda x: x * k

for fn in (plus, fib, make(3), functools.partial(plus), len):
    print(pickling.dump_function(fn).hex())
"""


def test_functions_of_a_script_work_where_main_is_another(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], check=True, capture_output=True, text=True, env=environment()
    )
    plus, fib, times, part, length = map(
        pickling.load_function, map(bytes.fromhex, done.stdout.split())
    )
    assert (plus(1), fib(30), times(2), part(5), length("abc")) == (11, 832040, 6, 15, 3)


def environment() -> dict[str, str]:
    root = os.path.dirname(os.path.dirname(pickling.__file__))
    return {**os.environ, "PYTHONPATH": root}


def test_importable_functions_go_by_reference_unless_registered():
    assert pickling.load_function(pickling.dump_function(functools.reduce)) is functools.reduce

    before = pickling.dump_function(module.py_make_scanner)
    pickling.register_pickle_by_value(module)
    try:
        after = pickling.dump_function(module.py_make_scanner)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert len(after) > 2 * len(before)
