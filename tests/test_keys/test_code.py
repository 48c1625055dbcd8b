"""The same code has the same key wherever it stands; what else it does gives another."""

from __future__ import annotations

import builtins
import collections
import functools
import json
import math
import os
import pathlib

import numpy as np
import pytest
import scipy.special

from fsbroker import pickling
from fsbroker.keys import identify, verify
from tests.test_keys.sessions import anything, define, key, key_of

# -- the same and other code ----------------------------------------------------------------
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


# -- functions of all kinds -----------------------------------------------------------------
LIBRARY = [
    sum, max, min, dict, int, len, print, math.sqrt, np.linalg.norm, np.sin, np.array, np.mean,
    "x".join, str.upper, json.dumps, os.path.join, collections.Counter, pathlib.Path,
    scipy.special.erf,
    functools.partial(max, 1), np.random.default_rng(1).normal, builtins.open,
]  # fmt: skip


@pytest.mark.parametrize("fn", LIBRARY, ids=lambda fn: repr(fn).partition(" at 0x")[0])
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
    model = define("class Model:\n    def __call__(self, x): return x\nf = Model()")
    before = identify(model)
    assert identify(model) is before
    model.state = 1
    assert identify(model).digest != before.digest


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
    assert identify(functools.partial(anything, 1)).name.endswith("sessions.anything")
