"""What users of a shared spool do in tests, each in processes of their own account.

    python -c "<this text>"    reads lines [action, arguments], answers each with a line of JSON

Each action has a process of its own, forked from one that has imported everything: new
interpreters would take most of the tests' time. Run by the fixture `lab` (tests/conftest.py),
as text, since the repository may lie behind a private home's door.
"""

import contextlib
import io
import json
import os
import pickle
import sys
import time
import traceback
import warnings

import h5py  # noqa: F401 - once, before the forks

from fsbroker import cli, keys
from fsbroker.spool.spool import open_spool
from fsbroker.spool.streams import Stream, build
from fsbroker.task import ArrayRef, Blob, Encoding, Outcome, Status, Value


def plain(n):
    """A plain value that tells who computed it."""
    return {"by": os.getuid(), "n": n}


def slow(n, marks):
    """As `plain`, after having said so, and with time for others to come."""
    with open(f"{marks}/{os.getuid()}.{n}.{time.monotonic_ns()}", "w"):
        pass
    while os.path.exists(f"{marks}/wait"):
        time.sleep(0.01)
    if os.path.exists(f"{marks}/fail.{os.getuid()}"):
        raise ValueError(n)
    return {"by": os.getuid(), "n": n}


def pickled(n):
    """A value that is stored as a pickle."""
    return range(n)


def array(n):
    import numpy as np

    return np.arange(float(n))


FUNCTIONS = {"plain": plain, "pickled": pickled, "array": array, "slow": slow}


os.umask(0o077)  # the worst for whoever forgets to say who may read


STEM = f"5000-{1:016x}-{0:016x}-c1-cpython3-4096-0"


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def stored(kind, what):
    """A value as a result file has it."""
    if kind == "bomb":
        return Value(Encoding.PICKLE, pickle.dumps(Bomb(what)))
    if kind == "blob":
        ref = ArrayRef("<f8", (200_000,), "C", Blob(what))
        return Value(Encoding.PLAIN, b'{"$":"array","n":0}', (ref,))
    return Value(Encoding.PLAIN, json.dumps(what).encode())


def outcome(function, n, value, other=None):
    """An outcome of a call; with `other` the key of that call, and the content of this one."""
    call = keys.identify(FUNCTIONS[function]).call((n,), {})
    key = keys.identify(FUNCTIONS[function]).call((other,), {}).key if other else call.key
    return Outcome(STEM, 0, key, call.descriptor, 0, 0, 0, 1, Status.DONE, stored(*value))


def image(files, results, origin=None):
    made = [outcome(*one) for one in results]
    return build(files.token(), made, origin or {"host": "lab"})


# -- actions ---------------------------------------------------------------------------------


def publish(spool, results, origin=None):
    """Results of one's own, whatever they claim; their path."""
    files, area, _ = open_spool(spool)
    stream = Stream(files, area, files.token())
    stream.create()
    stream.publish(image(files, results, origin), durable=False)
    return {"path": f"{spool}/{area.stream_file(stream.agent, 0)}"}


def look(spool, calls, trust=(), *, backend="none", timeout=0.0):
    """Submit calls; which had a value at once (or in time), and what was told meanwhile."""
    from fsbroker import ClusterExecutor

    unpickled, opened = [], []
    sys.addaudithook(lambda event, args: _note(event, args, unpickled, opened))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        executor = ClusterExecutor(
            spool, backend=backend, max_workers=1, trust=list(trust), idle_timeout=0.2
        )
        futures = [executor.submit(FUNCTIONS[name], *args) for name, *args in calls]
        executor._loop.flush(60)
        unpickled.clear() if backend != "none" else None
        values = [repr(one.result(timeout)) if timeout or one.done() else None for one in futures]
        executor._loop.stop(5)
    return {
        "values": values,
        "keys": [one.key.hex() for one in futures],
        "told": [str(one.message) for one in told],
        "unpickled": unpickled,
        "opened": opened,
    }


def _note(event, args, unpickled, opened):
    if event == "pickle.find_class":
        unpickled.append(list(map(str, args)))
    elif event == "open":
        opened.append(str(args[0]))


def attempt(code, **names):
    """Run a text as this user: what it leaves in `found`, or its error."""
    scope = {**globals(), **names, "found": None}
    try:
        exec(code, scope)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"found": scope["found"]}


def command(arguments):
    """What `fsbroker ARGUMENTS` says."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


# -- the process that forks ------------------------------------------------------------------


def serve():
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _answer(*json.loads(line))
        os.waitpid(pid, 0)


def _answer(action, arguments):
    try:
        told = json.dumps({"done": globals()[action](**arguments)})
    except BaseException:
        told = json.dumps({"failed": traceback.format_exc()})
    os.write(1, told.encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    serve()
