"""Two versions of fsbroker in one spool: what is newer is refused by its number, and left alone.

The newer version is this one with a higher format number, in processes of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import pytest

from fsbroker import ClusterExecutor
from fsbroker.agent.session import tidying
from fsbroker.errors import FormatTooNew
from fsbroker.spool import gc, layout
from fsbroker.spool.container import MAGIC
from fsbroker.spool.presence import listing
from fsbroker.spool.spool import create, open_spool
from tests.faults.processes import wait_until
from tests.testbed.byhand import ByHand, Job, key_of
from tests.testbed.pieces import PIECES
from tests.testbed.shell import Shell

NEWER = layout.FORMAT + 1
REPOSITORY = Path(__file__).parents[1]
BOTH = f"Format {NEWER}, this fsbroker reads up to {layout.FORMAT}"

AS_NEWER = """
import sys
from fsbroker.spool import layout
layout.FORMAT += 1
import operator
from fsbroker import ClusterExecutor
from fsbroker.agent.__main__ import main
from fsbroker.spool.spool import create
what, spool, *rest = sys.argv[1:]
if what == "agent":
    sys.exit(main([f"--spool={spool}", "--cores=1", "--idle-timeout=0.5", *rest]))
if what == "create":
    create(spool)
else:
    executor = ClusterExecutor(spool, backend="none")
    future = executor.submit(operator.add, int(rest[0]), 1)
    if what == "ask":
        print(future.result(30))
"""


def newer(*arguments, wait=True):
    """Run a newer fsbroker: "create", "submit", "ask" or "agent", the spool, and the rest."""
    command = [sys.executable, "-c", AS_NEWER, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=env, text=True, stdout=-1, stderr=-1, cwd="/")
    return process if not wait else ended(process)


def older_agent(spool, idle=0.5):
    options = ["--cores=1", f"--idle-timeout={idle}"]
    command = [sys.executable, "-m", "fsbroker.agent", f"--spool={spool}", *options]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return ended(subprocess.Popen(command, env=env, text=True, stdout=-1, stderr=-1, cwd="/"))


def ended(process):
    try:
        out, err = process.communicate(timeout=40)
    finally:
        process.kill()
    return process.returncode, out.strip(), err


@contextmanager
def client(spool):
    """An executor that waits for nobody when the test has failed."""
    executor = ClusterExecutor(spool, backend="none")
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def raise_format(path):
    """Make a file of the spool look as if a newer fsbroker had written it."""
    text = path.read_bytes()
    words = text.split(b" ", 2)
    assert words[0] == MAGIC
    path.write_bytes(b" ".join((MAGIC, str(NEWER).encode(), words[2])))


def content(root):
    """Digest or target of every file in a spool but locks and presences."""
    found = {}
    for path in sorted(Path(root).rglob("*")):
        if path.is_symlink():
            found[path] = os.readlink(path)
        elif path.is_file() and path.parent.name not in ("locks", "agents"):
            found[path] = sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def hand(tmp_path, monkeypatch):
    monkeypatch.setattr(tidying, "GRAVE_REST", -1.0)
    return ByHand(tmp_path / "spool")


# -- a newer spool -----------------------------------------------------------------------


def test_a_newer_spool_is_refused_by_everybody_and_left_as_it_is(tmp_path, capsys):
    spool = tmp_path / "spool"
    assert newer("create", spool)[0] == 0
    before = content(spool)
    for entry in (create, open_spool):
        with pytest.raises(FormatTooNew, match=BOTH):
            entry(spool)
    code, _, err = older_agent(spool)
    assert code == 1
    assert BOTH in err
    shell = Shell(spool, capsys)
    for command in ("status", "tasks", "gc", "wait"):
        assert shell.run(command)[0] == 1
        assert BOTH in shell.err
    assert content(spool) == before


# -- newer files in a spool that both use --------------------------------------------------


def test_each_version_runs_what_it_can_read(tmp_path):
    """Old and new clients and agents at once: scenario 45."""
    spool = tmp_path / "spool"
    create(spool)
    assert newer("submit", spool, 41)[0] == 0
    (theirs,) = (tmp_path / "spool").glob("users/*/tasks/*.h5")
    with client(spool) as executor:
        ours = executor.submit(pow, 2, 5)
        code, _, err = older_agent(spool)  # runs ours, and tells of the other
        assert ours.result(60) == 32
        assert (code, BOTH in err, "Use the newer fsbroker" in err) == (1, True, True)
        assert theirs.exists()
        assert not list(spool.glob("users/*/quarantine/*"))
    agent = newer("agent", spool, "--idle-timeout=60", wait=False)
    assert newer("ask", spool, 41)[:2] == (0, "42")
    assert newer("ask", spool, 6)[:2] == (0, "7")
    agent.terminate()
    assert ended(agent)[0] == 0
    # Its outcomes are not for us: whoever asks is told so, and nothing is concluded.
    assert older_agent(spool)[0] == 1
    with client(spool) as executor:
        again = executor.submit(pow, 2, 6)
        with pytest.raises(FormatTooNew, match=BOTH):
            again.result(60)
    assert newer("ask", spool, 41)[:2] == (0, "42")


def test_an_agent_that_meets_newer_outcomes_gives_its_rows_back_for_free(tmp_path):
    hand = ByHand(tmp_path / "spool")
    other = hand.agent()
    hand.submit("done")
    hand.end(other, hand.claim(other))
    with client(hand.root) as executor:
        executor.submit(pow, 2, 7)
        wait_until(lambda: len(hand.files.names(hand.area.tasks)) == 2)
        raise_format(Path(hand.root, hand.area.stream_file(other.agent, 0)))
        code, _, err = older_agent(hand.root)
        assert code == 1
        assert BOTH in err
    said = [os.readlink(path) for path in Path(hand.root, hand.area.claims).glob("*/*")]
    assert len([text for text in said if text.startswith("claim ")]) >= 1
    assert not [text for text in said if text.startswith("recover ") or "charge" in text]
    assert {one.agent for one in listing(hand.files, hand.area)} == {other.agent}  # it has left


def test_a_dependency_that_may_stand_in_a_newer_file_is_waited_for(hand):
    needed = hand.submit("needed")
    waiting = hand.submit(Job("waits", ("needed",)))
    raise_format(Path(hand.root, hand.area.task_file(needed)))
    agent = hand.run()
    assert isinstance(agent.live.newer(), FormatTooNew)
    assert {f"{needed}.h5", f"{waiting}.h5"} == set(hand.files.names(hand.area.tasks))
    assert agent.results.find(key_of("waits")) is None  # it has not failed


@pytest.mark.parametrize("kind", PIECES)
def test_no_newer_file_of_any_kind_is_touched(hand, kind, capsys):
    path = Path(hand.root, PIECES[kind](hand))
    raise_format(path)
    before = path.read_bytes()
    agent = hand.agent()
    for step in (agent.beat, agent.recover, agent.tidy, lambda: agent.resolve(thorough=True)):
        with suppress(FormatTooNew):
            step()
    hand.make_all_old(1000)
    gc.remove(hand.files, hand.area, gc.survey(hand.files, hand.area, gc.Wishes(0.0, True, True)))
    for command in ("status", "tasks"):
        Shell(hand.root, capsys).run(command)
    assert path.read_bytes() == before
    assert hand.files.names(hand.area.quarantine) == []
