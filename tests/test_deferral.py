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
    {spool!r}, backend="local", max_workers=1, idle_timeout=0.2, trust={friends!r}
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
ALONE = WAITER.replace("executor.submit(str, future)", "future")
"""Nothing depends on the call: no agent is there, nor comes, for anything else."""
NEVER = 1e9
PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}


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

    def waiter(self, text=WAITER, **settings):
        """Its process, once its calls have been put off."""
        friends = [self.lab.b.name]
        process, states = self.start(self.lab.c, text, settings=settings, friends=friends)
        assert json.loads(states) == {"put-off": 1} | (
            {} if "other = future" in text else {"waiting": 1}
        )
        return process

    def states_of(self, user):
        found = json.loads(self.lab.cli(user, "status", "--json").out)["tasks"]
        return {state: count for state, count in found.items() if count}

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

    def plain_value_of(self, user):
        return json.dumps({"by": user.uid, "n": 1})

    def value_of(self, user):
        value = {"by": user.uid, "n": 1}
        return f'[{self.plain_value_of(user)}, "{value}"]\n'


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
    assert pair.states_of(lab.c) == {"done": 2}
    own = json.loads(lab.cli(lab.c, "cache", "ls", "--json", "--user", lab.c.name).out)
    assert sorted(one["through"] for one in own) == [[], [lab.b.name]]


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
    waiter = pair.waiter(text=ALONE, UNTAKEN=0.5)
    (lab.marks / "wait").unlink()
    assert pair.end(waiter) == f"[{pair.plain_value_of(lab.c)}, {pair.plain_value_of(lab.c)}]\n"


def test_the_waiter_runs_what_has_failed(pair, lab):
    first, waiter = pair.first(), pair.waiter()
    (lab.marks / f"fail.{lab.b.uid}").touch()
    (lab.marks / "wait").unlink()
    assert pair.end(waiter) == pair.value_of(lab.c)
    first.kill()


def test_agents_run_what_is_put_off_when_the_interpreter_ends(pair, lab):
    pair.first(backend="none")
    process = pair.waiter(text=ALONE.partition("sys.stdin")[0])
    (lab.marks / "wait").unlink()
    assert process.wait(30) == 0
    assert lab.cli(lab.c, "wait", "--timeout", "60s").code == 0
    assert len(pair.runs_of(lab.c)) == 1


# -- the waiter's end ------------------------------------------------------------------------

HEIR = """
from fsbroker.agent.session import AgentSession
from fsbroker.environment import environment
heir = AgentSession(open_spool(spool), environment(), {}, {}, lease=0.5)
heir.join()
heir.live.poll()
while not heir.claim(lambda live, ready: 0, thorough=True) and not heir.recover():
    heir.beat()
    time.sleep(0.01)
heir.leave()
"""


def test_a_later_agent_runs_it_when_the_waiter_is_killed(pair, lab):
    """And a new client, who trusts nobody, finds its row."""
    pair.first(backend="none")
    waiter = pair.waiter(UNTAKEN=NEVER)
    waiter.kill()
    waiter.wait()
    (lab.marks / "wait").unlink()
    again, _ = pair.start(lab.c, WAITER, settings={}, friends=())
    assert pair.end(again) == pair.value_of(lab.c)
    assert len(pair.runs_of(lab.c)) == 1
    assert pair.states_of(lab.c) == {"done": 2}


def test_agents_take_it_from_a_waiter_that_is_silent(pair, lab):
    """He finds out when he is back, and ends like any other client."""
    pair.first(backend="none")
    waiter = pair.waiter(UNTAKEN=NEVER)
    waiter.send_signal(signal.SIGSTOP)
    assert lab.attempt(lab.c, HEIR) == {"found": None}
    assert "put-off" not in pair.states_of(lab.c)
    (lab.marks / "wait").unlink()
    waiter.send_signal(signal.SIGCONT)
    assert pair.end(waiter) == pair.value_of(lab.c)
    assert len(pair.runs_of(lab.c)) == 1


# -- what else one may do with it ------------------------------------------------------------


def test_a_put_off_call_can_be_explained_and_cancelled(pair, lab):
    pair.first(backend="none")
    waiter = pair.waiter(UNTAKEN=NEVER)
    (put_off,) = json.loads(lab.cli(lab.c, "tasks", "--json", "--state", "put-off").out)
    told = lab.cli(lab.c, "explain", put_off["key"]).out
    assert f"{lab.b.name} was computing it" in told
    assert f"(pid {waiter.pid}, alive) finds out" in told
    assert f"put off by client {put_off['agent']}" in told
    assert "is put-off" in lab.cli(lab.c, "retry", put_off["key"]).out
    assert "asked client" in lab.cli(lab.c, "cancel", put_off["key"]).out
    waiter.stdin.close()
    assert "TaskCancelled" in waiter.stderr.read()
    assert pair.states_of(lab.c) == {"cancelled": 1, "failed": 1}
    assert pair.runs_of(lab.c) == []


def test_its_future_can_be_cancelled(pair, lab):
    pair.first(backend="none")
    text = WAITER.partition("sys.stdin")[0]
    text += "print(json.dumps([future.running(), future.cancel(), future.cancelled()]))\n"
    waiter = pair.waiter(text=text, UNTAKEN=NEVER)
    assert waiter.stdout.readline() == "[false, true, true]\n"
    assert waiter.wait(30) == 0
    assert pair.states_of(lab.c)["cancelled"] == 1


def test_who_is_put_off_is_nobody_to_wait_for(pair, lab):
    """Two who wait for a third would wait for each other when he is gone."""
    first = pair.first()
    friends = [one.name for one in (lab.a, lab.b, lab.c)]
    started = [pair.start(one, WAITER, settings={}, friends=friends) for one in (lab.a, lab.c)]
    # The second one finds the dependent call with the first one, too.
    assert [json.loads(states).get("put-off") for _, states in started] == [1, 2]
    pid = pair.agent_of(lab.b)
    first.kill()
    os.kill(pid, signal.SIGKILL)
    (lab.marks / "wait").unlink()
    ends = {pair.end(waiter) for waiter, _ in started}
    assert ends <= {pair.value_of(lab.a), pair.value_of(lab.c)}


def test_who_trusts_nobody_or_plain_data_only_does_not_wait(pair, lab):
    pair.first(backend="none")
    text = WAITER.partition("sys.stdin")[0]
    _, put_off = pair.start(lab.c, text, settings={}, friends=[f"{lab.b.name}:plain"])
    assert json.loads(put_off) == {"ready": 1, "waiting": 1}
