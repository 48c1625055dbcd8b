"""Flux: what is its own way. What it shares with SLURM stands in `test_schedulers.py`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsbroker.errors import ResourceError, SchedulerError
from fsbroker.launch import scheduler
from fsbroker.launch.flux import Flux
from fsbroker.launch.scheduler import Request
from fsbroker.spool.jobs import Cause
from tests.test_schedulers import asked as asked  # noqa: PLC0414 - a fixture
from tests.test_schedulers import output, release, wait_for
from tests.testbed.flux import Instance

pytestmark = pytest.mark.flux


@pytest.fixture(autouse=True)
def instance(flux: Instance) -> Instance:
    return flux


class TestScript:
    def test_what_flux_calls_otherwise(self, asked: Request) -> None:
        queue = {"account": "bank1", "constraint": "not gpu"}
        text = Flux().script(replace(asked, queue=queue, exclusive=True, memory=10, seconds=0))
        lines = text.splitlines()
        for line in ("--setattr=bank=bank1", "--requires='not gpu'", "--nodes=1", "--exclusive"):
            assert f"#FLUX: {line}" in lines
        assert "time-limit" not in text

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"memory": 1}, "hands out no memory: 1 MB for fsb-test-7. Use exclusive=True"),
            ({"exclusive": True, "ranks": 2}, "whole nodes only by number: .* num_nodes"),
            ({"queue": {"qos": "high"}}, "no qos: 'high'. Use partition"),
        ],
    )
    def test_what_flux_has_not(self, asked: Request, change: Any, said: str) -> None:
        with pytest.raises(ResourceError, match=said):
            Flux().script(replace(asked, **change))

    def test_gpus_are_those_of_slots(self, asked: Request) -> None:
        assert "--gpus-per-slot=2" in Flux().script(replace(asked, ranks=2, gpus=3))


class TestSubmission:
    @pytest.mark.parametrize("change", [{"seconds": 700}, {"nodes": 3, "ranks": 3}])
    def test_limits_of_a_queue(self, asked: Request, change: Any) -> None:
        with pytest.raises(ResourceError, match="exceeds policy limit"):
            Flux().submit(replace(asked, queue={"partition": "debug"}, **change))

    def test_a_queue_that_is_closed(self, instance: Instance, asked: Request) -> None:
        instance.run(["flux", "queue", "disable", "-q", "debug", "--message=maintenance"])
        try:
            with pytest.raises(ResourceError, match="maintenance"):
                Flux().submit(replace(asked, queue={"partition": "debug"}))
        finally:
            instance.run(["flux", "queue", "enable", "-q", "debug"])

    def test_of_several_jobs_only_the_known_are_waited_for(self, asked: Request) -> None:
        first = Flux().submit(asked)
        after = replace(asked, directory=f"{asked.directory}2", after=("fzzz", first, "fJPJxYTR"))
        job = Flux().submit(after)
        wait_for(lambda: "here" in output(asked))
        assert Flux().active()[job].reason == f"after-finish={first}"

    def test_what_the_site_gives_more(self, asked: Request) -> None:
        queue = {"slurm_cmd_args": ["--env=COLOUR=deep red"]}
        shell = ("sh", "-c", "echo $COLOUR $SAID")
        setup = ("export SAID='before the agent'",)
        job = Flux().submit(replace(asked, queue=queue, command=shell, setup=setup))
        wait_for(lambda: Flux().active()[job].state == "over")
        assert output(asked) == "deep red before the agent\n"


class TestEndings:
    def test_what_can_never_run(self, asked: Request) -> None:
        job = Flux().submit(replace(asked, ranks=100))
        wait_for(lambda: Flux().active()[job].state == "over")
        ending = Flux().ending(job)
        assert ending
        assert (ending.word, ending.cause) == ("FAILED", Cause.FAILED)
        assert ending.reason.startswith("alloc: unsatisfiable request")

    def test_sigterm_comes_before_the_time_limit(self, asked: Request) -> None:
        shell = "trap 'echo told; exit 3' TERM; echo here; while :; do sleep 0.1; done"
        job = Flux().submit(replace(asked, command=("sh", "-c", shell), seconds=8))
        wait_for(lambda: Flux().active()[job].state == "over")
        assert "told" in output(asked).splitlines()
        ending = Flux().ending(job)
        assert ending
        assert (ending.word, ending.reason) == ("FAILED", "exit code 3")

    def test_the_time_limit(self, asked: Request) -> None:
        shell = "trap '' TERM; while :; do sleep 0.1; done"
        job = Flux().submit(replace(asked, command=("sh", "-c", shell), seconds=2))
        wait_for(lambda: Flux().active()[job].state == "over")
        ending = Flux().ending(job)
        assert ending
        assert (ending.word, ending.cause) == ("TIMEOUT", Cause.TIME)
        assert "resource allocation expired, exit code" in ending.reason

    def test_a_job_that_is_held(self, asked: Request) -> None:
        job = Flux().submit(replace(asked, arguments=("--urgency=0",)))
        assert Flux().active()[job] == ("pending", "SCHED", "held", asked.comment, False)
        Flux().cancel([job])
        wait_for(lambda: Flux().active()[job].state == "over")
        assert Flux().ending(job) == ("CANCELED", "cancel", "flux jobs", Cause.CANCELLED)

    def test_a_job_that_is_forgotten(self, instance: Instance, asked: Request) -> None:
        job = Flux().submit(asked)
        release(asked)
        wait_for(lambda: Flux().active()[job].state == "over")
        instance.run(["flux", "job", "purge", "--force", "--num-limit=0"])
        assert Flux().ending(job) is None
        assert Flux().active({job}) == {}
        Flux().cancel([job])


class TestTrouble:
    @pytest.fixture
    def stopped(self, instance: Instance) -> Iterator[None]:
        """A broker that takes connections and does not answer, as on a node out of memory."""
        broker = int(instance.run(["flux", "getattr", "broker.pid"]))
        os.kill(broker, signal.SIGSTOP)
        yield
        os.kill(broker, signal.SIGCONT)

    def test_a_broker_that_hangs(
        self, asked: Request, stopped: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scheduler, "PATIENCE", 2.0)
        for verb in (
            lambda: Flux().submit(asked),
            Flux().active,
            lambda: Flux().cancel(["fJPJxYTR"]),
            lambda: Flux().ending("fJPJxYTR"),
        ):
            with pytest.raises(SchedulerError, match="No answer within 2 s"):
                verb()

    def test_a_node_that_fails(self, asked: Request, monkeypatch: pytest.MonkeyPatch) -> None:
        with Instance() as own:
            monkeypatch.setenv("FLUX_URI", own.uri)
            # Nobody ends what runs on a node whose broker is gone: the job does so itself.
            shell = "echo here; trap '' TERM; until [ -e go ]; do sleep 0.1; done; kill -9 $PPID"
            there = replace(
                asked, queue={"constraint": "host:127.0.0.2"}, command=("sh", "-c", shell)
            )
            job = Flux().submit(there)
            wait_for(lambda: "here" in output(asked))
            broker = own.run(["flux", "exec", "--rank=1", "flux", "getattr", "broker.pid"])
            os.kill(int(broker), signal.SIGKILL)
            wait_for(lambda: Flux().active()[job].state == "over")
            ending = Flux().ending(job)
            release(asked)
        assert ending
        assert (ending.word, ending.cause) == ("FAILED", Cause.NODE)
        assert "node failure on 127.0.0.2" in ending.reason

    @pytest.mark.parametrize("said", ["", "welcome", '{"jobs": [{}]}', '{"jobs'])
    def test_a_listing_that_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
    ) -> None:
        program = tmp_path / "flux"
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
            for verb in (Flux().active, lambda: Flux().ending("fJPJxYTR")):
                with pytest.raises(SchedulerError, match="listing cannot be read"):
                    verb()
