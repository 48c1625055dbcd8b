"""The commands that start agents, show queue jobs, and wait."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from fsbroker import ClusterExecutor, cli
from fsbroker.config import load
from fsbroker.launch.settings import settings_of
from fsbroker.spool.jobs import Cause, JobLog, QueueJob
from tests.testbed.byhand import ByHand, key_of
from tests.testbed.shell import Shell
from tests.testbed.slurm import Cluster

LIMIT = 60.0
COMMAND = (sys.executable, "-c", "import sys; from fsbroker.cli import main; sys.exit(main())")


@pytest.fixture
def hand(tmp_path):
    return ByHand(tmp_path / "spool")


@pytest.fixture
def shell(hand, capsys):
    return Shell(hand.root, capsys)


@pytest.fixture
def log(hand):
    """Of a spool for which one job was submitted to SLURM, and has not ended."""
    log = JobLog(hand.files, hand.area)
    add(log, "17")
    return log


def add(log: JobLog, job_id: str = "", row: str = "") -> QueueJob:
    settings = log.keep_settings(settings_of(load(backend="slurm")))
    born = time.time() - 90
    told = QueueJob(0, "f" * 16, "slurm", cores=4, row=row, settings=settings, born=born)
    job = log.intend(told)
    assert job is not None
    if job_id:
        log.submitted(job, job_id)
    return log.jobs[job.number]


# -- jobs --------------------------------------------------------------------------------


def test_a_spool_without_queue_jobs(shell):
    code, text = shell.run("jobs")
    assert code == cli.OK
    assert "no queue job was submitted" in text


def test_jobs_are_listed_with_what_the_log_says(shell, hand, log):
    add(log)
    stem = hand.submit("first", "second")
    failed = add(log, "18", row=f"{stem}.1")
    gone = add(log, "19", row="gone.0")
    log.ended(gone, "COMPLETED", "its task has ended", "the agent", Cause.DONE, failure=False)
    log.ended(failed, "FAILED", "exit code 1:0", "sacct", Cause.FAILED, failure=True)
    code, told = shell.json("jobs")
    assert code == cli.OK
    states = [(job["id"], job["state"], job["asked"]) for job in told["jobs"]]
    assert states == [
        ("19", "COMPLETED", None),
        ("18", "FAILED", None),
        ("", "intended", None),
        ("17", "submitted", None),
    ]
    assert [job["function"] for job in told["jobs"]] == ["", "module.second", "", ""]
    assert told["jobs"][1]["key"] == key_of("second").hex()
    text = shell.run("jobs")[1]
    assert "exit code 1:0 (says sacct)" in text
    assert "gone.0" in text
    assert f"{key_of('second').hex()[:12]} module.second" in text
    assert re.search(r"slurm +17 +submitted +4 +pilot +9[0-9.]+ s", text)
    hand.agent(place="slurm:17")
    assert [job["state"] for job in shell.json("jobs")[1]["jobs"]] == [
        "COMPLETED",
        "FAILED",
        "intended",
        "running",
    ]
    code, text = shell.run("jobs", "--limit", "1")
    assert "and 3 more" in text
    assert "17" not in text.replace("and 3 more", "")


def test_a_pause_is_told_and_ended(shell, log):
    failed = add(log, "18")
    log.ended(failed, "FAILED", "no such file", "sacct", Cause.FAILED, failure=True)
    log.pause("three jobs failed")
    log.cannot_submit("sbatch: not found")
    log.differ(failed, "on n1 h5py is missing, not 3.15")
    text = shell.run("jobs")[1]
    assert "submission is paused: three jobs failed" in text
    assert "fsbroker jobs resume" in text
    assert "compute nodes cannot submit" in text
    assert "other versions than the client's: on n1 h5py is missing" in text
    code, told = shell.json("jobs", "resume")
    assert (code, told["paused"], told["no_submit"]) == (cli.OK, "", "")
    log.refresh()
    assert (log.paused, log.no_submit, log.failures) == ("", "", 0)


def test_jobs_that_cannot_be_cancelled(shell, log):
    unsettled = add(log)
    over = add(log, "18")
    log.ended(over, "COMPLETED", "idle", "the agent", Cause.DONE, failure=False)
    assert shell.run("jobs", "cancel", "77")[0] == cli.NOT_FOUND
    assert "77" in shell.err
    code, told = shell.json("jobs", "cancel", str(unsettled.number), str(over.number))
    assert code == cli.NOTHING_TO_DO
    assert "is just being submitted" in told[0]["text"]
    assert "was over before (COMPLETED)" in told[1]["text"]
    log.refresh()
    assert not log.jobs[unsettled.number].is_over


@pytest.mark.parametrize("words", [["cancel"], ["resume", "3"], ["pause"], ["cancel", "x"]])
def test_wrong_usage_of_jobs(shell, words):
    assert shell.run("jobs", *words)[0] == cli.USAGE


# -- launch ------------------------------------------------------------------------------


def test_an_agent_of_this_machine_runs_what_is_open(tmp_path):
    spool = str(tmp_path / "spool")
    executor = ClusterExecutor(spool, backend="none")
    future = executor.submit(pow, 2, 5)
    executor._loop.flush(LIMIT)
    environment = {**os.environ, "FSBROKER_IDLE_TIMEOUT": "0.5"}
    told = subprocess.run(
        [*COMMAND, "launch", "local", "--jobs", "2", "--spool", spool, "--json"],
        env=environment,
        capture_output=True,
        check=True,
    )
    jobs = json.loads(told.stdout)["jobs"]
    assert len({job["id"] for job in jobs}) == 2
    assert future.result(timeout=LIMIT) == 32
    executor.shutdown()


def test_nothing_is_started_for_what_is_not_open(shell, hand):
    assert shell.run("launch", "local")[0] == cli.NOTHING_TO_DO
    hand.submit("done")
    hand.run().leave()
    assert shell.run("launch", "local")[0] == cli.NOTHING_TO_DO
    assert "nothing is open" in shell.run("launch", "slurm", "--jobs", "2")[1]
    hand.submit("for a partition", shape="c1t1g0m0n0x0q01234567")
    assert shell.run("launch", "local")[0] == cli.NOTHING_TO_DO


def test_a_dry_run_shows_how_an_agent_is_started(shell, hand):
    hand.submit("one", shape="c1t1g0m0n0x0")
    code, text = shell.run("launch", "local", "--dry-run")
    assert code == cli.OK
    assert f"-m fsbroker.agent --spool={hand.root}" in text
    assert not hand.files.names(hand.area.agents)


def test_a_dry_run_shows_the_job_script_and_submits_nothing(shell, hand, monkeypatch):
    monkeypatch.setenv("FSBROKER_SLURM_CMD_ARGS", "[--account=chem]")
    monkeypatch.setenv("PATH", "/nowhere")
    hand.submit(*(f"f{number}" for number in range(5)), shape="c2t1g0m0n0x0")
    words = ["launch", "slurm", "--jobs", "3", "--time", "90m", "--dry-run"]
    code, text = shell.run(*words, "--", "--qos", "high", "--mail-type=END")
    assert code == cli.OK
    assert text.count("#!/bin/bash") == 1
    lines = text.splitlines()
    assert "#SBATCH --time=90:00" in lines
    assert "#SBATCH --account=chem" in lines
    assert "#SBATCH --qos high --mail-type=END" in lines
    assert f"--spool={hand.root}" in text
    assert "--row" not in text
    assert hand.files.names(hand.area.jobs) == []


def test_a_pause_holds_for_launch_too(shell, hand, log):
    hand.submit("one")
    log.pause("three jobs failed")
    assert shell.run("launch", "slurm", "--dry-run")[0] == cli.ERROR
    assert "three jobs failed" in shell.err
    assert "fsbroker jobs resume" in shell.err


@pytest.mark.parametrize(
    "words",
    [["local", "--time", "1h"], ["local", "--", "--x"], ["slurm", "--jobs", "0"], ["pbs"], []],
)
def test_wrong_usage_of_launch(shell, words):
    assert shell.run("launch", *words)[0] == cli.USAGE


# -- wait --------------------------------------------------------------------------------


def test_wait_returns_when_all_have_ended(shell, hand):
    hand.submit("one", "two")
    agent = hand.agent()
    first = hand.claim(agent, 1)
    timer = threading.Timer(0.5, lambda: (hand.end(agent, first), hand.run(agent)))
    timer.start()
    began = time.monotonic()
    code, told = shell.json("wait", "--timeout", "1m")
    timer.join()
    assert code == cli.OK
    assert told["tasks"]["done"] == 2
    assert 0.4 < time.monotonic() - began < 30


def test_wait_for_some(shell, hand):
    hand.submit("good", "bad", "open", tag="t")
    hand.submit("other")
    agent = hand.agent()
    hand.end(agent, hand.claim(agent, 2), failing=["bad"])
    assert shell.run("wait", key_of("good").hex())[0] == cli.OK
    assert shell.run("wait", key_of("good").hex(), key_of("bad").hex()[:10])[0] == cli.SOME_FAILED
    code, told = shell.json("wait", key_of("good").hex(), key_of("open").hex(), "--timeout", "1s")
    assert code == cli.NOT_ENDED
    assert (told["tasks"]["done"], told["tasks"]["ready"], told["tasks"]["failed"]) == (1, 1, 0)
    code, told = shell.json("wait", "--tag", "t", "--timeout", "0s")
    assert code == cli.SOME_FAILED
    assert sum(told["tasks"].values()) == 3
    assert shell.run("wait", "--tag", "none such")[0] == cli.NOT_FOUND


def test_wait_ends_when_a_task_is_cancelled(shell, hand):
    hand.submit("one")
    agent = hand.agent()

    def cancel() -> None:
        hand.client.live.poll()
        (stem,) = [live.stem for live in hand.client.live]
        assert hand.client.cancel(stem, 0)
        hand.run(agent)

    timer = threading.Timer(0.3, cancel)
    timer.start()
    code, told = shell.json("wait", "--timeout", "1m")
    timer.join()
    assert (code, told["tasks"]["cancelled"]) == (cli.SOME_FAILED, 1)


# -- with a scheduler --------------------------------------------------------------------


@pytest.mark.slurm
def test_from_launch_to_wait_on_slurm(slurm: Cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FSBROKER_IDLE_TIMEOUT", "2")
    spool = tmp_path / "spool"
    executor = ClusterExecutor(spool, backend="none")
    futures = [executor.submit(pow, 2, number) for number in range(20)]
    executor._loop.flush(LIMIT)
    shell = Shell(spool, capsys)
    assert shell.run("launch", "slurm", "--dry-run")[1].startswith("#!/bin/bash")
    assert slurm.jobs() == {} or all(job.state != "PENDING" for job in slurm.jobs().values())
    code, told = shell.json("launch", "slurm", "--jobs", "2", "--time", "5m", "--", "--comment=x")
    assert code == cli.OK
    ids = [job["id"] for job in told["jobs"]]
    assert len(ids) == 2
    code, told = shell.json("jobs", "--ask")
    assert {job["id"] for job in told["jobs"]} == set(ids)
    assert {job["asked"]["state"] for job in told["jobs"]} <= {"PENDING", "RUNNING", "COMPLETED"}
    assert shell.run("wait", "--timeout", "60s")[0] == cli.OK
    assert [future.result(timeout=LIMIT) for future in futures] == [2**n for n in range(20)]
    executor.shutdown()
