"""The same call has the same key in other interpreters and kernels."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests.test_keys.sessions import ROOT, run

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

    said: list[str] = []  # a line may come in two messages

    def collect(message: Any) -> None:
        content = message["content"]
        assert message["msg_type"] != "error", content
        said.append(content.get("text", ""))

    manager, client = start_new_kernel(env={**os.environ, "PYTHONPATH": ROOT})
    try:
        for cell in cells:
            client.execute_interactive(cell, timeout=60, output_hook=collect)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return [line for line in "".join(said).splitlines() if line.startswith("key ")]
