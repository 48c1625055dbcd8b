"""However a call is written, it is one call."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from fsbroker import pickling
from fsbroker.keys import identify
from tests.test_keys.sessions import ROOT, anything, define, key


# -- calls ----------------------------------------------------------------------------------
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


# -- cost -----------------------------------------------------------------------------------
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
