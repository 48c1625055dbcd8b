"""A key that a trusted user is already computing runs once; whoever waits for it always ends."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.users

FIRST = """
from fsbroker import ClusterExecutor
executor = ClusterExecutor({spool!r}, backend={backend!r}, max_workers=1, idle_timeout=0.2)
future = executor.submit(slow, 1, {marks!r})
executor._loop.flush(60)
print(1, flush=True)
if sys.stdin.read() == "cancel":
    future.cancel()
executor.shutdown()
"""
WAITER = """
import fsbroker.client.deferral
from fsbroker import ClusterExecutor
vars(fsbroker.client.deferral).update({settings})
executor = ClusterExecutor(
    {spool!r}, backend="local", max_workers=1, idle_timeout=0.2, trust=[{friend!r}]
)
future = executor.submit(slow, 1, {marks!r})
other = executor.submit(str, future)
executor._loop.flush(60)
from fsbroker.client.history import History
counts = History(executor._spool).counts()
print(json.dumps({{phase.value: n for phase, n in counts.items() if n}}), flush=True)
sys.stdin.readline()
print(json.dumps([future.result(60), other.result(60)]), flush=True)
executor.shutdown()
"""
NEVER = 1e9
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


class Pair:
    """`first` has a call, and `waiter`, who trusts him, the same."""

    def __init__(self, lab, stack):
        self.lab, self.stack = lab, stack

    def start(self, user, text, **names):
        names = {"spool": str(self.lab.spool), "marks": str(self.lab.marks), **names}
        command = self.lab.command(user, text.format(**names))
        process = self.stack.enter_context(subprocess.Popen(command, **PIPES))
        self.stack.callback(process.kill)
        return process, process.stdout.readline()

    def first(self, backend="local"):
        (self.lab.marks / "wait").touch()
        process, _ = self.start(self.lab.b, FIRST, backend=backend)
        while backend == "local" and not self.runs_of(self.lab.b):
            time.sleep(0.01)
        return process

    def waiter(self, **settings):
        """Its process, once its calls have been put off."""
        process, put_off = self.start(self.lab.c, WAITER, settings=settings, friend=self.lab.b.name)
        assert json.loads(put_off) == {"put-off": 1, "waiting": 1}
        return process

    def end(self, process):
        """What the waiter gets."""
        process.stdin.write("\n")
        process.stdin.flush()
        return process.stdout.readline()

    def runs_of(self, user):
        return [name for name in os.listdir(self.lab.marks) if name.startswith(f"{user.uid}.")]

    def agent_of(self, user):
        """The pid of its agent; a presence file changes its name with each beat."""
        code = """
from fsbroker.spool import presence
files, area, _ = open_spool(spool)
while not (told := [presence.about(files, area, one) for one in presence.listing(files, area)]):
    pass
found = told[0] and told[0]["pid"]
"""
        while not (pid := self.lab.attempt(user, code)["found"]):
            pass
        return pid

    def value_of(self, user):
        value = {"by": user.uid, "n": 1}
        return f'[{{"by": {user.uid}, "n": 1}}, "{value}"]\n'


@pytest.fixture
def pair(lab):
    with contextlib.ExitStack() as stack:
        yield Pair(lab, stack)


def test_one_key_of_two_users_runs_once(pair, lab):
    first, waiter = pair.first(), pair.waiter()
    (lab.marks / "wait").unlink()
    assert pair.end(waiter) == pair.value_of(lab.b)
    first.stdin.close()
    assert first.wait(30) == 0
    assert (len(pair.runs_of(lab.b)), pair.runs_of(lab.c)) == (1, [])


def test_the_waiter_runs_it_when_the_agent_is_killed(pair, lab):
    """As soon as its process has ended, not only when it has long been silent."""
    first, waiter = pair.first(), pair.waiter(SILENCE=NEVER)
    pid = pair.agent_of(lab.b)
    first.kill()  # else it would start another agent
    os.kill(pid, signal.SIGKILL)
    (lab.marks / "wait").unlink()
    assert pair.end(waiter) == pair.value_of(lab.c)


def test_the_waiter_runs_it_when_the_agent_is_stopped(pair, lab):
    pair.first()
    waiter = pair.waiter(SILENCE=1.0)
    pid = pair.agent_of(lab.b)
    os.kill(pid, signal.SIGSTOP)
    pair.stack.callback(os.kill, pid, signal.SIGKILL)
    pair.stack.callback((lab.marks / "wait").unlink, missing_ok=True)
    while not pair.runs_of(lab.c):
        time.sleep(0.01)
    (lab.marks / "wait").unlink()
    assert pair.end(waiter) == pair.value_of(lab.c)


def test_the_waiter_runs_what_was_cancelled(pair, lab):
    first = pair.first(backend="none")
    waiter = pair.waiter(UNTAKEN=NEVER)
    (lab.marks / "wait").unlink()
    first.communicate("cancel", timeout=30)
    assert pair.end(waiter) == pair.value_of(lab.c)


def test_the_waiter_runs_what_no_agent_takes(pair, lab):
    pair.first(backend="none")
    waiter = pair.waiter(UNTAKEN=0.5)
    (lab.marks / "wait").unlink()
    assert pair.end(waiter) == pair.value_of(lab.c)


def test_what_is_put_off_is_in_the_spool_when_the_interpreter_ends(pair, lab):
    pair.first(backend="none")
    text = WAITER.partition("sys.stdin")[0]
    process, put_off = pair.start(lab.c, text, settings={}, friend=lab.b.name)
    assert json.loads(put_off) == {"put-off": 1, "waiting": 1}
    assert process.wait(30) == 0
    names = [path.stem for path in (lab.area(lab.c) / "tasks").iterdir()]
    assert sum(int(name.split("-")[5]) for name in names) == 2


def test_who_trusts_nobody_or_plain_data_only_does_not_wait(pair, lab):
    pair.first(backend="none")
    text = WAITER.partition("sys.stdin")[0]
    _, put_off = pair.start(lab.c, text, settings={}, friend=f"{lab.b.name}:plain")
    assert json.loads(put_off) == {"ready": 1, "waiting": 1}
