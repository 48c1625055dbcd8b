"""What changes while a session runs is noticed at the next call."""

from __future__ import annotations

import gc
import weakref

import pytest

from fsbroker import pickling
from fsbroker.errors import CannotPickle
from fsbroker.keys import function, identify
from tests.test_keys.sessions import define, key, scope_of

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
    assert len(function._RECORDS) <= function._MAX_RECORDS
    before = len(function._RECORDS)
    for _ in range(50):
        identify(define("def f(x): return x"))
    gc.collect()
    assert len(function._RECORDS) <= before + 1


def test_the_oldest_record_goes_first(monkeypatch):
    monkeypatch.setattr(function, "_MAX_RECORDS", 2)
    fns = [define("def f(x): return x") for _ in range(3)]
    records = [identify(fn) for fn in fns]
    assert identify(fns[2]) is records[2]
    assert identify(fns[0]) is not records[0]
    assert identify(fns[0]).digest == records[0].digest


@pytest.mark.parametrize("table", ["{helper}", "{helper: 1}", "[helper]", "frozenset([helper])"])
def test_a_change_behind_a_function_in_a_container_is_noticed(table):
    f = define(f"""
COUNT = 1
def helper(): return COUNT
TABLE = {table}
def f(): return [fn() for fn in TABLE]""")
    before = identify(f)
    scope_of(f)["COUNT"] = 2
    assert identify(f).digest != before.digest


def test_a_variable_that_gets_its_value_later_is_noticed():
    f = define("""
def make():
    def f(): return later
    fns.append(f)
    later = 1
    return f
fns = []
try:
    make()
finally:
    f = fns[0]""")
    del f.__closure__[0].cell_contents
    before = identify(f)
    f.__closure__[0].cell_contents = 2
    assert identify(f).digest != before.digest


def test_an_object_that_has_no_address_any_more_is_noticed():
    f = define("""
class Thing: pass
thing = Thing()
def f(): return thing""")
    before = identify(f)
    scope_of(f)["thing"].handle = (n for n in [])
    with pytest.raises(CannotPickle, match="generator"):
        identify(f)
    del scope_of(f)["thing"].handle
    assert identify(f).digest == before.digest
