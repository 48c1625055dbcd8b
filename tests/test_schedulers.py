"""What fsbroker wants of a scheduler, asked of the real ones.

Faults are those of the scheduler's own commands: a wrapper, first on PATH, does wrong
what the real program behind it does right.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fsbroker.errors import MissingProgram, ResourceError, SchedulerError
from fsbroker.launch import scheduler as scheduler_module
from fsbroker.launch.flux import Flux
from fsbroker.launch.scheduler import Ending, Request, Scheduler, run
from fsbroker.launch.slurm import OUT_OF_MEMORY, Slurm, read_sacct, read_scontrol
from fsbroker.spool.jobs import Cause
from tests.testbed.slurm import Cluster

TOKEN = "0123456789abcdef"
T = TypeVar("T")


@dataclass(frozen=True)
class Site:
    """A scheduler, and where its commands are got at.

    Attributes:
        submit, listing: the program, and its first argument or "".
        partition: one that exists, not the default. unknown: a job id that never was.
    """

    scheduler: Scheduler
    submit: tuple[str, str]
    listing: tuple[str, str]
    partition: str
    unknown: str


@pytest.fixture(
    params=[
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("flux", marks=pytest.mark.flux),
    ]
)
def site(request: pytest.FixtureRequest) -> Site:
    request.getfixturevalue(request.param)
    if request.param == "flux":
        return Site(Flux(), ("flux", "batch"), ("flux", "jobs"), "debug", "fJPJxYTR")
    return Site(Slurm(), ("sbatch", ""), ("squeue", ""), "test", "999999")


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    """A job that runs until there is a file `go`, and ends with the number in it."""
    wait = "echo here; until [ -e go ]; do sleep 0.1; done; exit $(cat go)"
    directory = tmp_path / "job"
    return Request(
        name="fsb-test-7",
        comment=f"fsbroker {TOKEN} task 3f.0",
        directory=str(directory),
        command=("sh", "-c", wait),
        seconds=300,
    )


def release(request: Request, code: int = 0) -> None:
    path = Path(request.directory, "code")
    path.write_text(str(code))
    path.rename(path.with_name("go"))


def output(request: Request) -> str:
    path = Path(request.directory, "output")
    return path.read_text() if path.exists() else ""


def wait_for(condition: Callable[[], T], limit: float = 40) -> T:
    end = time.monotonic() + limit
    while not (answer := condition()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.2)
    return answer


def state(site: Site, job: str) -> str:
    return site.scheduler.active({job})[job].state


def ended(site: Site, job: str) -> Ending:
    wait_for(lambda: state(site, job) == "over")
    ending = site.scheduler.ending(job)
    assert ending
    return ending


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a shell line in the place of a command; "$REAL" in it is the real program."""

    def put(command: tuple[str, str], line: str) -> None:
        program, first = command
        real = shutil.which(program)
        other = f'[ "$1" = {first} ] || exec "$REAL" "$@"' if first else ""
        path = tmp_path / "bin" / program
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\nREAL={real}\n{other}\n{line}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)

    return put


class TestContract:
    def test_a_job_from_its_submission_to_its_end(self, site: Site, asked: Request) -> None:
        job = site.scheduler.submit(asked)
        wait_for(lambda: "here" in output(asked))
        status = site.scheduler.active()[job]
        assert (status.state, status.comment) == ("running", asked.comment)
        with pytest.raises(SchedulerError, match="not ended: it is RUN"):
            site.scheduler.ending(job)
        release(asked)
        ending = ended(site, job)
        assert (ending.word, ending.reason) == ("COMPLETED", "exit code 0" + ":0" * _slurm(site))

    def test_how_it_failed(self, site: Site, asked: Request) -> None:
        job = site.scheduler.submit(asked)
        release(asked, 7)
        ending = ended(site, job)
        assert ending.word == "FAILED"
        assert "exit code 7" in ending.reason

    def test_it_has_what_was_asked_for(self, site: Site, asked: Request) -> None:
        shape = replace(asked, ranks=2, threads=2, nodes=2, gpus=4)
        job = site.scheduler.submit(shape)
        wait_for(lambda: "here" in output(shape))
        if _slurm(site):
            found = run(["scontrol", "--oneliner", "show", "job", job])
            wanted = ["NumNodes=2", "NumCPUs=4", "TimeLimit=00:05:00", "TresPerJob=gres:gpu:4"]
        else:
            form = "{nnodes} {ncores} {duration!F} {annotations.sched.resource_summary}"
            found = run(["flux", "jobs", "--no-header", f"--format={form}", job])
            wanted = ["2", "4", "5m", "rank[0-1]/core[0-1],gpu[0-1]"]
        assert set(wanted) <= set(found.split())

    def test_nobody_else_on_its_nodes(self, site: Site, asked: Request) -> None:
        alone = replace(asked, exclusive=True)
        site.scheduler.submit(alone)
        others = [replace(asked, directory=f"{asked.directory}{n}") for n in range(5)]
        jobs = [site.scheduler.submit(other) for other in others]
        wait_for(lambda: sum("here" in output(other) for other in others) == 4)
        assert "here" in output(alone)
        assert [state(site, job) for job in jobs].count("pending") == 1

    def test_one_waits_for_another(self, site: Site, asked: Request) -> None:
        first = site.scheduler.submit(asked)
        after = replace(asked, directory=f"{asked.directory}2", after=(first,))
        second = site.scheduler.submit(after)
        wait_for(lambda: "here" in output(asked))
        status = site.scheduler.active({second})[second]
        assert status.state == "pending"
        assert "Dependency" in status.reason or first in status.reason
        release(asked, 1)
        wait_for(lambda: "here" in output(after))

    def test_a_cancelled_job(self, site: Site, asked: Request) -> None:
        over = site.scheduler.submit(asked)
        release(asked)
        ended(site, over)
        running = replace(asked, directory=f"{asked.directory}2")
        job = site.scheduler.submit(running)
        wait_for(lambda: "here" in output(running))
        site.scheduler.cancel([over, site.unknown, job])
        assert ended(site, job).word in ("CANCELLED", "CANCELED")
        site.scheduler.cancel([over, job, site.unknown])
        site.scheduler.cancel([])

    def test_a_job_that_nobody_knows(self, site: Site) -> None:
        assert site.scheduler.active({site.unknown}) == {}
        assert site.scheduler.ending(site.unknown) is None

    def test_one_that_waits_for_what_is_forgotten_starts(self, site: Site, asked: Request) -> None:
        site.scheduler.submit(replace(asked, after=(site.unknown,)))
        wait_for(lambda: "here" in output(asked))

    def test_a_partition(self, site: Site, asked: Request) -> None:
        job = site.scheduler.submit(replace(asked, queue={"partition": site.partition}))
        assert f"={site.partition}\n" in Path(asked.directory, "run_queue.sh").read_text()
        assert state(site, job)

    def test_a_template_of_the_users(self, site: Site, asked: Request) -> None:
        text = "#!/bin/bash\necho {{colour}} {{partition}} {{cores}} > {{directory}}/said\n"
        directive = "#SBATCH -t1\n" if _slurm(site) else "#FLUX: -n1\n"
        text = text.replace("echo", f"{directive}echo", 1)
        queue = {"submission_template": text, "colour": "red", "partition": "x"}
        job = site.scheduler.submit(replace(asked, queue=queue, ranks=2))
        assert ended(site, job).word == "COMPLETED"
        assert Path(asked.directory, "said").read_text() == "red x 2\n"

    def test_a_template_that_cannot_be_filled_in(self, site: Site, asked: Request) -> None:
        queue = {"submission_template": "{{ 1 / nodes }}{% if %}"}
        with pytest.raises(ResourceError, match="script cannot be made"):
            site.scheduler.submit(replace(asked, queue=queue))

    def test_values_cannot_add_lines(self, site: Site, asked: Request) -> None:
        queue = {"partition": "test\nrm -r ."}
        with pytest.raises(ResourceError, match="cannot hold"):
            site.scheduler.script(replace(asked, queue=queue))

    @pytest.mark.parametrize("locale", ["C", "C.UTF-8"])  # without and with the letter of Flux
    def test_the_users_own_defaults_hide_nothing(
        self, site: Site, asked: Request, monkeypatch: pytest.MonkeyPatch, locale: str
    ) -> None:
        for name, value in {
            "SBATCH_PARTITION": "nope",
            "SQUEUE_NAMES": "nope",
            "SCANCEL_NAME": "nope",
            "FLUX_JOB_ID": "fzzz",
            "LC_ALL": locale,
        }.items():
            monkeypatch.setenv(name, value)
        job = site.scheduler.submit(asked)
        assert job.isascii()
        wait_for(lambda: state(site, job) == "running")
        site.scheduler.cancel([job])
        assert ended(site, job).word.startswith("CANCEL")


class TestRefused:
    @pytest.mark.parametrize(
        "queue", [{"partition": "nope"}, {"constraint": "no(|pe"}, {"account": "no \" '"}]
    )
    def test_what_the_site_has_not(self, site: Site, asked: Request, queue: Any) -> None:
        with pytest.raises(ResourceError, match="refuses the job"):
            site.scheduler.submit(replace(asked, queue=queue))

    @pytest.mark.parametrize("argument", ["--no-such-option", "--time=x", "--time-limit=x"])
    def test_arguments_that_its_command_has_not(
        self, site: Site, asked: Request, argument: str
    ) -> None:
        with pytest.raises(ResourceError, match="refuses the job"):
            site.scheduler.submit(replace(asked, arguments=(argument,)))

    def test_memory(self, site: Site, asked: Request) -> None:
        with pytest.raises(ResourceError, match=r"refuses the job|hands out no memory"):
            site.scheduler.submit(replace(asked, memory=10**8))


class TestFaults:
    def test_submitted_but_the_answer_got_lost(
        self, site: Site, asked: Request, instead: Any
    ) -> None:
        instead(site.submit, '"$REAL" "$@" >&2; echo "Connection reset by peer" >&2; exit 1')
        with pytest.raises(SchedulerError, match="reset by peer"):
            site.scheduler.submit(asked)
        comments = [status.comment for status in site.scheduler.active().values()]
        assert asked.comment in comments

    def test_submitted_and_nothing_printed(self, site: Site, asked: Request, instead: Any) -> None:
        instead(site.submit, '"$REAL" "$@" >/dev/null; echo welcome')
        with pytest.raises(SchedulerError, match="without an id; it said: welcome"):
            site.scheduler.submit(asked)

    def test_noise_around_the_id(self, site: Site, asked: Request, instead: Any) -> None:
        instead(site.submit, 'echo "3 nodes down"; "$REAL" "$@"; echo bye; echo 12 >&2')
        job = site.scheduler.submit(asked)
        wait_for(lambda: "here" in output(asked))
        assert state(site, job) == "running"

    def test_a_submission_that_hangs(
        self, site: Site, asked: Request, instead: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scheduler_module, "PATIENCE", 1.0)
        instead(site.submit, "exec sleep 60")
        with pytest.raises(SchedulerError, match="No answer within 1 s"):
            site.scheduler.submit(asked)

    def test_a_listing_that_hangs(
        self, site: Site, instead: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scheduler_module, "PATIENCE", 1.0)
        instead(site.listing, "exec sleep 60")
        with pytest.raises(SchedulerError, match="No answer within 1 s"):
            site.scheduler.active()

    def test_a_listing_that_fails(self, site: Site, instead: Any) -> None:
        instead(site.listing, '"$REAL" "$@"; echo "it is Monday" >&2; exit 3')
        with pytest.raises(SchedulerError, match="ended with 3 and said: it is Monday"):
            site.scheduler.active()

    def test_noise_around_a_listing(self, site: Site, asked: Request, instead: Any) -> None:
        job = site.scheduler.submit(asked)
        instead(site.listing, 'echo "a|b|c|d"; echo; "$REAL" "$@"; echo bye')
        assert list(site.scheduler.active({job, site.unknown})) == [job]

    def test_unreachable(
        self, site: Site, asked: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        if _slurm(site):
            text = Path(os.environ["SLURM_CONF"]).read_text()
            nowhere = tmp_path / "slurm.conf"
            nowhere.write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1", text))
            monkeypatch.setenv("SLURM_CONF", str(nowhere))
        else:
            monkeypatch.setenv("FLUX_URI", f"local://{tmp_path}/nobody")
        for verb in (
            lambda: site.scheduler.submit(asked),
            site.scheduler.active,
            lambda: site.scheduler.cancel(["1" if _slurm(site) else "fJPJxYTR"]),
            lambda: site.scheduler.ending(site.unknown),
        ):
            with pytest.raises(SchedulerError):
                verb()

    def test_not_installed(
        self, site: Site, asked: Request, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for verb in (lambda: site.scheduler.submit(asked), site.scheduler.active):
            with monkeypatch.context() as patch:
                patch.setenv("PATH", str(tmp_path))
                with pytest.raises(MissingProgram, match="not installed here"):
                    verb()


def _slurm(site: Site) -> bool:
    return site.scheduler.name == "slurm"


@pytest.mark.slurm
class TestSlurm:
    def test_a_time_limit_that_the_partition_has_not(self, asked: Request, strict: None) -> None:
        with pytest.raises(ResourceError, match="time limit is invalid"):
            Slurm().submit(replace(asked, seconds=3600))

    def test_a_sites_own_configuration(
        self, slurm: Cluster, asked: Request, tmp_path: Path
    ) -> None:
        (tmp_path / "queue.yaml").write_text(SITE)
        (tmp_path / "slurm.sh").write_text(SITES_TEMPLATE)
        site = Slurm(str(tmp_path))
        assert site.site_keys() == {"colour"}
        job = site.submit(replace(asked, ranks=2, queue={"partition": "here", "colour": "red"}))
        wait_for(lambda: "red\nhere" in output(asked))
        assert job in site.active()
        own = {"submission_template": "#!/bin/bash\n{{command}}\n"}
        assert "red" not in site.script(replace(asked, queue=own))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"queue": {"partition": "nope"}}, "has: here"),
            ({"ranks": 3}, "cores=3; queue 'here' .* has 2"),
            ({"seconds": 601}, "run_time_max=601; queue 'here' .* has 600"),
        ],
    )
    def test_limits_of_a_sites_configuration(
        self, asked: Request, tmp_path: Path, change: Any, said: str
    ) -> None:
        (tmp_path / "queue.yaml").write_text(SITE)
        (tmp_path / "slurm.sh").write_text(SITES_TEMPLATE)
        with pytest.raises(ResourceError, match=said):
            Slurm(str(tmp_path)).script(replace(asked, **change))

    def test_a_directory_that_holds_none(self, asked: Request, tmp_path: Path) -> None:
        with pytest.raises(ResourceError, match=r"must hold a queue\.yaml"):
            Slurm(str(tmp_path)).script(asked)

    def test_what_the_accounting_says_comes_first(
        self, slurm: Cluster, asked: Request, instead: Any
    ) -> None:
        job = Slurm().submit(asked)
        release(asked)
        wait_for(lambda: Slurm().active()[job].state == "over")
        instead(("sacct", ""), f'[ "$4" = --jobs={job} ] && echo "OUT_OF_MEMORY|0:125|None"')
        ending = Slurm().ending(job)
        assert ending == ("OUT_OF_MEMORY", "exit code 0:125", "sacct", Cause.MEMORY)

    @pytest.mark.parametrize(("said", "known"), [("Invalid job id specified", 1), ("Monday", 0)])
    def test_cancel_of_a_version_that_minds(
        self, slurm: Cluster, instead: Any, said: str, known: int
    ) -> None:
        # scancel 22.05 does not say so unless it is told to be verbose; others do.
        instead(("scancel", ""), f'echo "scancel: error: Kill job error: {said}" >&2; exit 1')
        if known:
            Slurm().cancel(["9"])
        else:
            with pytest.raises(SchedulerError, match=said):
                Slurm().cancel(["9"])

    def test_a_job_that_is_held(self, slurm: Cluster, asked: Request) -> None:
        scheduler = Slurm()
        job = scheduler.submit(replace(asked, arguments=("--hold",)))
        status = scheduler.active()[job]
        assert status == ("pending", "PENDING", "JobHeldUser", asked.comment, False)


@pytest.fixture
def strict(slurm: Cluster) -> Iterator[None]:
    """A controller that refuses what breaks a partition's limits, as most sites' do."""
    conf = slurm.directory / "slurm.conf"
    text = conf.read_text()
    conf.write_text(text + "EnforcePartLimits=ALL\n")
    slurm.run(["scontrol", "reconfigure"])
    slurm.run(["scontrol", "update", "partition=test", "MaxTime=10"])
    yield
    conf.write_text(text)
    slurm.run(["scontrol", "reconfigure"])
    slurm.run(["scontrol", "update", "partition=test", "MaxTime=UNLIMITED"])


SITE = """
queue_type: SLURM
queue_primary: here
queues:
  here: {cores_max: 2, cores_min: 1, run_time_max: 600, script: slurm.sh}
"""
SITES_TEMPLATE = """#!/bin/bash
#SBATCH --output=output --ntasks={{cores}} --job-name={{job_name}}
echo {{colour}}
{{command}}
"""


# Recorded from the private cluster, SLURM 22.05.8; what stands between is left out.
SHOWN = (
    "JobId=3 JobName=wrap UserId=root(0) JobState={} Reason={} Dependency=(null) Requeue=1 "
    "Restarts=0 BatchFlag=1 Reboot=0 ExitCode={} RunTime=00:01:29 TimeLimit=00:01:00 "
    "TimeMin=N/A WorkDir=/tmp StdErr=/dev/null StdIn=/dev/null StdOut=/dev/null Power= \n"
)


class TestReading:
    @pytest.mark.parametrize(
        ("state", "reason", "code", "said", "cause"),
        [
            ("COMPLETED", "None", "0:0", "exit code 0:0", Cause.DONE),
            ("FAILED", "NonZeroExitCode", "7:0", "NonZeroExitCode, exit code 7:0", Cause.FAILED),
            (
                "FAILED",
                "JobLaunchFailure",
                "0:53",
                "JobLaunchFailure, exit code 0:53",
                Cause.FAILED,
            ),
            ("TIMEOUT", "TimeLimit", "0:15", "TimeLimit, exit code 0:15", Cause.TIME),
            ("NODE_FAIL", "NodeDown", "0:0", "NodeDown, exit code 0:0", Cause.NODE),
            ("CANCELLED", "None", "0:15", "exit code 0:15", Cause.CANCELLED),
            ("SOMETHING_NEW", "None", "0:0", "exit code 0:0", Cause.UNKNOWN),
        ],
    )
    def test_scontrol(self, state: str, reason: str, code: str, said: str, cause: Cause) -> None:
        ending = read_scontrol(SHOWN.format(state, reason, code))
        assert ending == (state, said, "scontrol", cause)

    def test_scontrol_of_a_job_without_memory(self) -> None:
        # Written by hand: without cgroups the private cluster has no job that is OUT_OF_MEMORY.
        ending = read_scontrol(SHOWN.format("OUT_OF_MEMORY", "OutOfMemory", "0:125"))
        assert ending == ("OUT_OF_MEMORY", "OutOfMemory, exit code 0:125", "scontrol", Cause.MEMORY)

    @pytest.mark.parametrize("text", ["", "welcome\n", SHOWN.format("RUNNING", "None", "0:0")])
    def test_scontrol_of_a_job_that_has_not_ended(self, text: str) -> None:
        with pytest.raises(SchedulerError, match=r"has not ended: it is (RUNNING|unknown)"):
            read_scontrol(text)

    @pytest.mark.parametrize(
        ("lines", "word", "said", "cause"),
        [
            # Recorded: this cluster with slurmdbd 22.05.8 and MariaDB, which the tests do without.
            (["COMPLETED|0:0|None", "COMPLETED|0:0|"], "COMPLETED", "0:0", Cause.DONE),
            (["FAILED|3:0|None", "FAILED|3:0|"], "FAILED", "3:0", Cause.FAILED),
            (["CANCELLED by 0|0:0|None", "CANCELLED|0:15|"], "CANCELLED", "0:0", Cause.CANCELLED),
            (["TIMEOUT|0:0|None", "CANCELLED|0:15|"], "TIMEOUT", "0:0", Cause.TIME),
            (["NODE_FAIL|0:0|None", "CANCELLED||"], "NODE_FAIL", "0:0", Cause.NODE),
            # Its memory was counted by SLURM: only the output says so.
            (["FAILED|0:9|None", "CANCELLED by 0|0:9|"], "FAILED", "0:9", Cause.FAILED),
            (["a|b|c", "", "TIMEOUT|0:0|None"], "TIMEOUT", "0:0", Cause.TIME),
        ],
    )
    def test_sacct(self, lines: list[str], word: str, said: str, cause: Cause) -> None:
        assert read_sacct(lines) == (word, f"exit code {said}", "sacct", cause)

    def test_sacct_of_a_job_held_by_hand(self) -> None:
        ending = read_sacct(["CANCELLED by 0|0:0|JobHeldUser"])  # recorded, as above
        assert ending
        assert ending.reason == "JobHeldUser, exit code 0:0"

    # Jobs under cgroups, as Harvard's FAS Research Computing recorded them for its users
    # (github.com/fasrc/User_Codes, troubleshooting pages on memory; State and ExitCode).
    @pytest.mark.parametrize(
        "rows",
        [
            ["OUT_OF_ME+    0:125", "OUT_OF_ME+    0:125", "COMPLETED      0:0"],
            ["FAILED      1:0", "FAILED      1:0", "COMPLETED      0:0", "OUT_OF_ME+    0:125"],
        ],
    )
    def test_sacct_of_a_job_without_memory(self, rows: list[str]) -> None:
        ending = read_sacct(["|".join([*row.split(), ""]) for row in rows])
        assert ending
        assert (ending.word, ending.cause) == ("OUT_OF_MEMORY", Cause.MEMORY)

    @pytest.mark.parametrize(
        "said",
        [
            # Recorded: this cluster with gather="linux".
            "slurmstepd-n1: error: StepId=2.batch exceeded memory limit (534126592 > 209715200)",
            # Recorded by others: fasrc/User_Codes, ArjunaCluster/ArjunaUsers#52, HAFS#101.
            "slurmstepd: error: Detected 1 oom_kill event in StepId=3801897.batch.",
            "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=191.batch cgroup.",
            "slurmstepd: error: Detected 1 oom-kill event(s) in step 3495064.0 cgroup.",
        ],
    )
    def test_output_of_a_job_without_memory(self, said: str) -> None:
        assert OUT_OF_MEMORY.search(f"line 15: 259449 Killed    ./mem_test.x\n{said}\n")
        assert not OUT_OF_MEMORY.search(f"a task prints: {said}")

    @pytest.mark.parametrize("lines", [[], ["||"], ["RUNNING|0:0|None"], ["PENDING|0:0|Priority"]])
    def test_sacct_of_a_job_that_has_not_ended(self, lines: list[str]) -> None:
        assert read_sacct(lines) is None
