"""The command line, on spools that real agents have worked on."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from fsbroker import ClusterExecutor, cli
from fsbroker.agent.session import tidying
from fsbroker.cli import output
from fsbroker.launch.local import LocalLauncher
from fsbroker.spool.layout import is_grave
from fsbroker.spool.presence import process_start
from fsbroker.spool.spool import open_spool
from tests.testbed.byhand import ByHand, Job, key_of
from tests.testbed.shell import Shell

IDLE = 0.5
"""Seconds after which the agents of these tests end."""

COMMAND = (sys.executable, "-c", "import sys; from fsbroker.cli import main; sys.exit(main())")


def hello(name):
    print("hello", name)
    print("beware", file=sys.stderr)
    return name


def broken(reason):
    raise ValueError(reason)


def after(value):
    return value


def needs_file(path):
    with open(path) as file:
        return file.read()


def lasting(started, seconds):
    with open(started, "w"):
        time.sleep(seconds)


@pytest.fixture
def hand(tmp_path, monkeypatch):
    monkeypatch.setattr(tidying, "GRAVE_REST", -1.0)  # no log rests in tmp/ beside what is tested
    return ByHand(tmp_path / "by hand")


@pytest.fixture
def shell(hand, capsys):
    """On a spool whose tasks are claimed and ended by hand."""
    return Shell(hand.root, capsys)


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """A spool on which an agent has run tasks, and their keys."""
    spool = tmp_path_factory.mktemp("cli") / "a spool"
    with ClusterExecutor(spool, max_workers=2, tag="first", idle_timeout=IDLE) as executor:
        good = executor.submit(hello, "world")
        bad = executor.submit(broken, "because")
        child = executor.submit(after, bad)
        concurrent.futures.wait([good, bad, child])
        keys = {"good": good.key, "bad": bad.key, "child": child.key}
    return spool, {name: key.hex() for name, key in keys.items()}


@pytest.fixture
def done(worked, capsys):
    return Shell(worked[0], capsys)


@pytest.fixture(scope="module")
def keys(worked):
    return worked[1]


# -- usage -------------------------------------------------------------------------------------


def test_help_lists_commands_and_exit_codes(capsys):
    assert cli.main(["--help"]) == cli.OK
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert "exit codes" in text
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", "--help"])
    assert ended.value.code == 0
    assert "exit codes" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["no-such-command"], ["--no-such-option"]])
def test_wrong_usage(words, capsys):
    assert cli.main(words) == cli.USAGE
    assert "usage: fsbroker" in capsys.readouterr().err


def test_the_spool_comes_from_the_variable_too(hand, capsys, monkeypatch):
    hand.submit("one")
    monkeypatch.setenv("FSBROKER_SPOOL", hand.root)
    assert cli.main(["tasks"]) == cli.OK
    assert "module.one" in capsys.readouterr().out
    monkeypatch.delenv("FSBROKER_SPOOL")
    with pytest.raises(SystemExit) as ended:
        cli.main(["tasks"])
    assert ended.value.code == cli.USAGE
    assert "FSBROKER_SPOOL" in capsys.readouterr().err


def test_no_spool_there(tmp_path, capsys):
    shell = Shell(tmp_path / "nothing", capsys)
    for command in ("status", "tasks", "gc"):
        assert shell.run(command)[0] == cli.NOT_FOUND
        assert "No spool here" in shell.err
    assert not os.path.exists(shell.spool)


def test_keys_that_cannot_be_meant(shell, hand):
    hand.submit(*(f"f{number}" for number in range(40)))
    for key in ("not hex", "", "f" * 41, "ab cd"):
        assert shell.run("explain", key)[0] == cli.NOT_FOUND
    digits = sorted(key_of(f"f{number}").hex() for number in range(40))
    first = next(a for a, b in itertools.pairwise(digits) if a[0] == b[0])
    assert shell.run("explain", first[0])[0] == cli.ERROR
    assert first in shell.err
    assert shell.run("cancel")[0] == cli.USAGE
    assert shell.run("cancel", "--tag", "none such")[0] == cli.NOT_FOUND
    assert shell.run("tasks", "--limit", "-1")[0] == cli.USAGE


def test_only_the_called_command_is_imported():
    code = (
        "import sys; from fsbroker import cli; cli.main(['--help'])\n"
        "heavy = {'numpy', 'h5py', 'filelock', 'watchdog', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_has_seen_enough_is_no_error(worked):
    command = [*COMMAND, "tasks", "--spool", worked[0]]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


# -- status and tasks --------------------------------------------------------------------------


def test_status_counts_and_judges(done):
    code, told = done.json("status")
    assert code == cli.OK
    assert {state: count for state, count in told["tasks"].items() if count} == {
        "done": 1,
        "failed": 2,
    }
    assert told["directories"]["results"]["files"] > 0
    assert done.run("status", "--check")[0] == cli.SOME_FAILED


def test_status_of_what_has_not_ended(shell, hand):
    hand.submit("ready", Job("waits", ("ready",)))
    agent = hand.agent()
    code, text = shell.run("status", "--check")
    assert code == cli.NOT_ENDED
    assert agent.agent in text
    code, told = shell.json("status")
    (seen,) = told["agents"]
    assert (seen["agent"], seen["pid"], seen["life"]) == (agent.agent, os.getpid(), "alive")
    hand.run(agent)
    assert shell.run("status", "--check")[0] == cli.OK


def test_an_agent_of_this_host_whose_process_has_ended_is_dead(shell, hand):
    child = subprocess.Popen(["sleep", "60"])
    hand.agent(pid=child.pid, process_start=process_start(child.pid))
    assert shell.json("status")[1]["agents"][0]["life"] == "alive"
    child.kill()
    child.wait()
    assert shell.json("status")[1]["agents"][0]["life"] == "dead"


def test_an_agent_of_another_host_is_unknown(shell, hand):
    hand.agent(boot="another")
    assert shell.json("status")[1]["agents"][0]["life"] == "unknown"


def test_tasks_can_be_filtered(done, keys):
    def listed(*words):
        return {record["key"] for record in done.json("tasks", *words)[1]}

    assert listed() == set(keys.values())
    assert listed("--state", "failed") == {keys["bad"], keys["child"]}
    assert listed("--state", "failed", "--state", "done") == set(keys.values())
    assert listed("--function", "hello") == {keys["good"]}
    assert listed("--function", "*roken") == {keys["bad"]}
    assert listed("--tag", "first") == set(keys.values())
    assert listed("--tag", "second") == set()
    assert len(done.json("tasks", "--limit", "2")[1]) == 2
    assert "and 1 more" in done.run("tasks", "--limit", "2")[1]


def test_a_name_cannot_write_to_the_terminal(shell, hand):
    hand.submit("red\x1b[31m")
    assert "\x1b" not in shell.run("tasks")[1]
    assert "\x1b" not in shell.run("explain", key_of("red\x1b[31m").hex())[1]


# -- explain -----------------------------------------------------------------------------------


def test_explain_names_the_root_of_the_waiting(shell, hand):
    hand.submit("root", "ready", Job("middle", ("root",)), Job("leaf", ("middle", "ready")))
    agent = hand.agent()
    claim = hand.claim(agent, 1)
    agent.holdings.release(claim.live, [2], "")  # the chain that came with it
    told = shell.json("explain", key_of("leaf").hex())[1]
    assert told["state"] == "waiting"
    blockers = {one["function"]: one["state"] for one in told["blockers"]}
    assert blockers == {"module.root": "running", "module.ready": "ready"}
    assert "waits for 2 dependencies" in told["next"]
    assert agent.agent in told["next"]
    text = shell.run("explain", key_of("leaf").hex())[1]
    assert told["next"] in text


def test_explain_says_that_no_agent_is_there(shell, hand):
    hand.submit("first", "second")
    told = shell.json("explain", key_of("second").hex())[1]
    assert "no agent is present" in told["next"]
    assert f"--spool {hand.root}" in told["next"]


def test_explain_counts_those_that_stand_before(shell, hand):
    hand.submit("first", "second")
    hand.submit("third")
    hand.agent(version=".".join(map(str, sys.version_info[:3])))
    assert "2 ready tasks stand before" in shell.json("explain", key_of("third").hex())[1]["next"]
    assert "it is the next one" in shell.json("explain", key_of("first").hex())[1]["next"]


def test_explain_tells_the_history_of_claims(shell, hand):
    hand.submit("one")
    first, second = hand.agent(), hand.agent()
    claim = hand.claim(first)
    first.holdings.release(claim.live, [0], "killed by signal 9", charge=True)
    hand.claim(second)
    told = shell.json("explain", key_of("one").hex())[1]
    assert [each["what"] for each in told["history"]] == ["claim", "release", "claim"]
    assert [each["by"] for each in told["history"]] == [first.agent, first.agent, second.agent]
    assert "killed by signal 9" in told["history"][1]["text"]
    assert (told["attempts"], told["generation"]) == (1, 1)
    assert second.agent in told["next"]


def test_explain_shows_the_error_and_its_root(done, keys):
    told = done.json("explain", keys["bad"][:10])[1]
    assert told["state"] == "failed"
    assert told["failure"]["type"] == "ValueError"
    text = done.run("explain", keys["bad"])[1]
    assert "ValueError: because" in text
    assert "in broken" in text
    child = done.json("explain", keys["child"])[1]
    assert [one["key"] for one in child["dependencies"]] == [keys["bad"]]
    assert keys["bad"][:12] in child["next"]


def test_explain_of_a_missing_dependency(shell, hand):
    hand.submit(Job("orphan", ("never submitted",)))
    told = shell.json("explain", key_of("orphan").hex())[1]
    assert [one["state"] for one in told["blockers"]] == ["missing"]
    assert "will fail" in told["next"]


# -- logs --------------------------------------------------------------------------------------


def test_logs_of_a_task(done, keys):
    code, text = done.run("logs", keys["good"][:12])
    assert code == cli.OK
    assert "hello world" in text
    assert "beware" in text
    assert done.run("logs", keys["good"], "--stdout")[1] == "hello world\n"
    assert done.run("logs", keys["good"], "--stderr")[1] == "beware\n"
    assert done.run("logs", keys["good"], "--rank", "1")[1] == ""
    (rank,) = done.json("logs", keys["good"])[1]["ranks"]
    assert rank == {"rank": 0, "stdout": "hello world\n", "stderr": "beware\n"}
    assert done.run("logs", keys["bad"])[1] == ""
    assert "wrote nothing" in done.err


def test_logs_are_those_of_the_attempt_that_counts(shell, hand):
    hand.submit("one")
    first, second = hand.agent(), hand.agent()
    claim = hand.claim(first)
    first.publisher.write_logs(claim.live, 0, [(0, b"first\n", b"")])
    first.holdings.release(claim.live, [0], "")
    again = hand.claim(second)
    second.publisher.write_logs(again.live, 0, [(0, b"zero\n", b""), (1, b"one\n", b"")])
    hand.end(second, again)
    first.publisher.write_logs(claim.live, 0, [(0, b"late\n", b"")])  # it slept meanwhile
    assert shell.run("logs", key_of("one").hex(), "--rank", "0")[1] == "zero\n"
    assert shell.run("logs", key_of("one").hex())[1].count("== rank") == 2


# -- cancel ------------------------------------------------------------------------------------


def test_cancelling_what_nobody_has_claimed(shell, hand):
    hand.submit("one", "two", tag="t")
    code, told = shell.json("cancel", "--tag", "t")
    assert code == cli.OK
    assert all(each["done"] for each in told)
    hand.run()
    counts = shell.json("status")[1]["tasks"]
    assert (counts["cancelled"], counts["done"]) == (2, 0)


def test_cancelling_what_has_ended(done, keys):
    code, told = done.json("cancel", keys["good"])
    assert code == cli.NOTHING_TO_DO
    assert "had ended before (done)" in told[0]["text"]


def test_cancelling_what_is_claimed_leaves_a_request_for_its_owner(shell, hand):
    stem = hand.submit("one", "two")
    agent = hand.agent()
    claim = hand.claim(agent, 1)
    code, told = shell.json("cancel", key_of("one").hex(), key_of("two").hex())
    assert code == cli.OK
    assert agent.agent in told[0]["text"]
    assert agent.cancelling.requests() == [(stem, 0)]
    hand.end(agent, claim)
    hand.run(agent)
    counts = shell.json("status")[1]["tasks"]
    assert (counts["done"], counts["cancelled"]) == (1, 1)


def test_a_running_task_is_ended_by_its_agent(tmp_path, capsys):
    shell = Shell(tmp_path / "spool", capsys)
    started = tmp_path / "started"
    with ClusterExecutor(shell.spool, max_workers=1, idle_timeout=IDLE) as executor:
        future = executor.submit(lasting, str(started), 600)
        deadline = time.monotonic() + 60
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert shell.run("cancel", future.key.hex())[0] == cli.OK
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(timeout=60)
    assert shell.json("status")[1]["tasks"]["cancelled"] == 1


# -- retry and agent ---------------------------------------------------------------------------


def test_retry_runs_a_failed_chain_anew_without_its_code(tmp_path, capsys):
    shell = Shell(tmp_path / "spool", capsys)
    path = tmp_path / "input"
    with ClusterExecutor(shell.spool, max_workers=1, idle_timeout=IDLE, tag="t") as executor:
        first = executor.submit(needs_file, str(path))
        last = executor.submit(after, first)
        assert isinstance(first.exception(timeout=60), FileNotFoundError)
        assert last.exception(timeout=60) is not None
        path.write_text("there now")
    code, told = shell.json("retry", last.key.hex())
    assert code == cli.OK
    assert [one["key"] for one in told["tasks"]] == [last.key.hex(), first.key.hex()]
    # Whatever became of the executor's agent, one that is started now serves the spool.
    words = ["agent", "--spool", shell.spool, "--cores", "1", "--idle-timeout", "0.5"]
    subprocess.run([*COMMAND, *words], check=True, timeout=60)
    counts = shell.json("status")[1]["tasks"]
    assert (counts["done"], counts["failed"]) == (2, 0)
    with ClusterExecutor(shell.spool, backend="none") as executor:
        assert [future.result(timeout=60) for future in executor.futures("t")] == ["there now"] * 2


def test_retry_says_who_would_run_it(shell, hand):
    hand.submit("bad")
    agent = hand.run(hand.agent(version="1.0"), failing=["bad"])
    code, told = shell.json("retry", key_of("bad").hex())
    assert code == cli.OK
    assert "fsbroker agent --spool" in told["agents"]  # that one has another Python
    hand.run(agent, failing=["bad"])
    able = hand.agent(version=".".join(map(str, sys.version_info[:3])))
    assert able.agent in shell.json("retry", key_of("bad").hex())[1]["agents"]


def test_retry_starts_an_agent_when_asked(shell, hand, monkeypatch):
    started = []
    submit = LocalLauncher.submit
    monkeypatch.setattr(
        LocalLauncher, "submit", lambda self: started.append(submit(self)) or started[-1]
    )
    hand.submit("bad")
    hand.run(failing=["bad"]).leave()
    code, told = shell.json("retry", key_of("bad").hex(), "--agents")
    try:
        assert code == cli.OK
        assert str(started[0]) in told["agents"]
    finally:
        for pid in started:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def test_retry_leaves_alone_what_has_a_value_or_runs(shell, hand):
    hand.submit("good", "bad")
    agent = hand.run(failing=["bad"])
    hand.submit("running")
    assert hand.claim(agent)
    names = ("good", "bad", "running")
    code, told = shell.json("retry", *(key_of(name).hex() for name in names))
    assert code == cli.NOTHING_TO_DO
    assert [one["done"] for one in told["tasks"]] == [False, True, False]
    assert shell.json("explain", key_of("bad").hex())[1]["round"] == 1


# -- gc ----------------------------------------------------------------------------------------


def test_gc_shows_first_and_removes_then(shell, hand):
    hand.submit("one")
    hand.run()
    hand.make_all_old(40)
    code, told = shell.json("gc", "--dry-run")
    assert code == cli.OK
    assert [item["kind"] for item in told["items"]] == ["archived"]
    assert told["before"] == told["after"]
    assert "a dry run" in shell.run("gc", "--dry-run")[1]
    assert shell.json("gc", "--older-than", "50d")[1]["items"] == []
    assert shell.json("gc")[1]["after"]["files"] < told["before"]["files"]
    assert "nothing to remove" in shell.run("gc")[1]
    assert shell.run("explain", key_of("one").hex())[0] == cli.NOT_FOUND
    assert "its outcome (done) stands" in shell.err


@pytest.mark.parametrize("text", ["30", "d", "-3d", "3 days", "", "1e9d"])
def test_a_wrong_duration_is_wrong_usage(shell, hand, text):
    assert shell.run("gc", f"--older-than={text}")[0] == cli.USAGE
    assert "duration" in shell.err


# -- how things are shown ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.00123, "1.23 ms"),
        (0.9999, "1000 ms"),
        (59.0, "59 s"),
        (119.7, "120 s"),
        (7100.0, "118 m"),
        (90000.0, "25 h"),
        (864000.0, "10 d"),
    ],
)
def test_spans(seconds, shown):
    assert output.span(seconds) == shown


@pytest.mark.parametrize(
    ("number", "shown"), [(0, "0 B"), (999, "999 B"), (48500, "48.5 kB"), (10**15, "1000 TB")]
)
def test_sizes(number, shown):
    assert output.size(number) == shown


def test_the_spool_can_be_opened_afterwards(worked):
    """No command has left anything behind that others stumble over."""
    spool = open_spool(worked[0])
    assert all(map(is_grave, spool.files.names(spool.area.tmp)))
