"""Queue jobs without a queue: which are wanted, the log of them, and their scripts."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import replace

import pytest

from fsbroker.agent.failures import CUT_OFFS, given_up
from fsbroker.agent.queuejob import QueueJobs
from fsbroker.config import Config
from fsbroker.errors import ConfigError, ResourceError, SpoolError
from fsbroker.launch import demand, plan
from fsbroker.launch.demand import Work
from fsbroker.launch.plan import Wanted, wanted
from fsbroker.launch.queue import QueueLauncher
from fsbroker.launch.settings import config_of, mpi_options, settings_of
from fsbroker.launch.slurm import Slurm
from fsbroker.needs import Resources, Shape, merged, queue_digest
from fsbroker.spool import spool as spools
from fsbroker.spool.jobs import LONGEST, Cause, JobLog, QueueJob
from tests.faults import parts

EACH = Config(backend="slurm")
PILOTS = replace(EACH, block_allocation=True)
GPU = {"partition": "gpu"}


@pytest.fixture
def spool(tmp_path):
    return spools.create(tmp_path / "spool", durable=False)


def log_of(spool) -> JobLog:
    log = JobLog(spool.files, spool.area)
    log.refresh()
    return log


def job(row="", number=0, job_id="1", cores=1, queue=""):
    return QueueJob(number, "t", "slurm", row=row, id=job_id, cores=cores, queue=queue)


def work(ready=0, *, shape=None, limit=0.0, waiting=None, held=0, queue=None):
    queue = queue or {}
    shape = (shape or Shape())._replace(queue=queue_digest(queue))
    names = [f"s.{n}" for n in range(ready)]
    limits = dict.fromkeys([*names, *(waiting or ())], limit)
    return Work(shape, queue, limits, names, waiting or {}, held)


# -- a job for each task -----------------------------------------------------------------


def test_each_ready_row_has_one_job():
    found = wanted([work(3, limit=30)], [job("s.1")], EACH)
    assert found == [Wanted(Shape(), {}, 30 + plan.START, row) for row in ("s.0", "s.2")]


def test_dependents_wait_for_the_jobs_of_all_their_inputs():
    waiting = {"s.5": ["s.0", "s.1"], "s.6": []}
    jobs = [job("s.0", job_id="10"), job("s.1", job_id="")]
    found = wanted([work(2, waiting=waiting)], jobs, EACH)
    assert [(one.row, one.after) for one in found] == [("s.6", ())]  # no id to wait for yet
    jobs[1] = job("s.1", job_id="11")
    found = wanted([work(2, waiting=waiting)], jobs, EACH)
    assert [(one.row, one.after) for one in found] == [("s.5", ("10", "11")), ("s.6", ())]
    assert [one.row for one in wanted([work(waiting=waiting)], jobs[:1], EACH)] == ["s.6"]


@pytest.mark.parametrize("config", [EACH, PILOTS])
def test_no_more_than_max_jobs(config):
    jobs = [job(f"x.{n}", queue="other") for n in range(3)]
    assert len(wanted([work(200)], [], config)) == plan.MOST_JOBS
    assert len(wanted([work(200)], jobs, replace(config, max_jobs=5))) == 2
    assert wanted([work(200)], jobs, replace(config, max_jobs=3)) == []
    assert wanted([work(200)], jobs, replace(config, max_jobs=2)) == []


@pytest.mark.parametrize(
    ("limit", "job_time", "seconds"),
    [(0, None, 0), (0, 900.0, 900), (30, None, 90), (30, 900.0, 900), (3000, 900.0, 3060)],
)
def test_time_of_a_job(limit, job_time, seconds):
    for config in (EACH, PILOTS):
        (one,) = wanted([work(1, limit=limit)], [], replace(config, job_time=job_time, max_jobs=1))
        assert one.seconds == seconds


def test_a_pilot_has_the_sites_time_if_one_of_its_tasks_has_no_limit():
    both = [work(1, limit=30), work(1, shape=Shape(threads=2))]
    assert {one.seconds for one in wanted(both, [], PILOTS)} == {0}


# -- pilots ------------------------------------------------------------------------------


def test_pilots_are_as_many_as_their_cores_are_needed():
    four = replace(PILOTS, max_workers=4)
    assert len(wanted([work(9)], [], four)) == 3
    assert len(wanted([work(9)], [job(cores=4)], four)) == 2
    assert len(wanted([work(9)], [job(cores=2)], four)) == 3  # too small for what is asked
    assert len(wanted([work(1, held=4)], [job(cores=4)], four)) == 1
    assert wanted([work(0, held=9)], [], four) == []
    assert wanted([work(0, waiting={"s.0": []})], [], four) == []
    assert len(wanted([work(1)], [], replace(four, min_jobs=2))) == 2


def test_a_pilot_is_large_enough_for_each_of_its_tasks():
    tasks = [
        work(1, shape=Shape(2, 3, memory=600, nodes=2)),
        work(1, shape=Shape(1, 1, gpus=2, memory=200, exclusive=1)),
    ]
    (one, _) = wanted(tasks, [], replace(PILOTS, max_jobs=2))
    # Memory for six of the small at once is more than the large one needs.
    assert one.shape == Shape(6, gpus=12, memory=1200, nodes=2, exclusive=1)


def test_what_asks_for_other_partitions_has_other_pilots():
    found = wanted([work(1), work(1, queue=GPU)], [job()], PILOTS)
    assert [(one.queue, one.shape.queue) for one in found] == [(GPU, queue_digest(GPU))]


# -- the open work -----------------------------------------------------------------------


def test_rows_by_what_they_wait_for(spool):
    """Ready, waiting for rows that are to come, held, and ended."""
    lane = parts.LANE._replace(shape=str(Shape()))
    stem = parts.submit(spool, [parts.row(name) for name in ("a", "b", "c")], lane)
    late = parts.submit(spool, [parts.row("d", "a"), parts.row("e", "b", "a")], lane)
    agent = parts.agent(spool)
    agent.live.poll(afresh=True)
    claim = agent.claim(lambda live, ready: 2 if live.stem == stem else 0)
    looking = demand.Demand(spool, parts.ENVIRONMENT)
    (found,) = looking.look(inputs=True)
    assert (found.ready, found.held) == ([f"{stem}.2"], 2)
    a, b = f"{stem}.0", f"{stem}.1"
    assert found.waiting == {f"{late}.0": [a], f"{late}.1": found.waiting[f"{late}.1"]}
    assert sorted(found.waiting[f"{late}.1"]) == [a, b]
    # What has ended is nobody's job any more: its dependents must not wait for one.
    agent.publish(parts.run_claim(agent, claim)[:1])
    (found,) = looking.look(inputs=True)
    assert found.waiting == {f"{late}.0": [], f"{late}.1": [b]}
    assert looking.look(inputs=False)[0].waiting == {f"{late}.0": [], f"{late}.1": []}
    assert demand.Demand(spool, "cpython2").look(inputs=True) == []


# -- the log of queue jobs ---------------------------------------------------------------


def intent(row="s.0"):
    return QueueJob(0, "token", "slurm", row=row, cores=2, seconds=60.0, born=5.0)


def test_a_life_in_the_log(spool):
    writer = log_of(spool)
    first = writer.intend(intent())
    assert first == replace(intent(), number=0)
    writer.submitted(first, "17")
    reader = log_of(spool)
    assert reader.open() == [replace(first, id="17")]
    reader.ended(reader.jobs[0], "FAILED", "exit code 1:0", "sacct", Cause.FAILED, failure=True)
    writer.ended(
        first, "COMPLETED", "late", "the agent", Cause.DONE, failure=False
    )  # once is enough
    assert writer.open() == []
    assert writer.jobs == log_of(spool).jobs
    assert writer.jobs[0].state == "FAILED"


def test_of_two_writers_one_appends_an_intent_and_the_other_reads_it(spool):
    one, other = log_of(spool), log_of(spool)
    assert one.intend(intent()) is not None
    assert other.intend(intent()) is None
    assert other.jobs == one.jobs


def test_many_writers_leave_no_hole_and_lose_nothing(spool):
    """Each of them adds its own, and agrees in the end with all others."""
    together = threading.Barrier(4)

    def write(me: int) -> None:
        log = log_of(spool)
        together.wait()
        for number in range(10):
            while (made := log.intend(intent(f"{me}.{number}"))) is None:
                pass
            log.submitted(made, f"{me}{number}")

    threads = [threading.Thread(target=write, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = log_of(spool)
    assert sorted(job.row for job in log.open()) == sorted(
        f"{me}.{number}" for me in range(4) for number in range(10)
    )
    assert all(job.id == job.row.replace(".", "") for job in log.open())
    assert max(os.listdir(f"{spool.files.root}/{spool.area.jobs}")) == f"{79:08d}"


@pytest.mark.parametrize("code", [errno.EIO, errno.EEXIST])
def test_a_reply_that_lies(spool, monkeypatch, code):
    """The record was made, whatever the reply says."""
    log = log_of(spool)
    symlink = spool.files.symlink

    def lie(text, path):
        symlink(text, path)
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(spool.files, "symlink", lie)
    assert log.intend(intent()) is not None
    assert len(log_of(spool).jobs) == len(log.jobs) == 1


def test_a_record_that_could_not_be_made(spool, monkeypatch):
    log = log_of(spool)

    def fail(text, path):
        raise OSError(errno.EIO, "input/output error", path)

    monkeypatch.setattr(spool.files, "symlink", fail)
    with pytest.raises(OSError, match="input/output"):
        log.intend(intent())
    assert not log.jobs


def test_a_listing_that_does_not_show_the_newest(spool, monkeypatch):
    """An NFS client may list an old directory for half a minute: the record itself tells."""
    one, other = log_of(spool), log_of(spool)
    for number in range(3):
        one.intend(intent(f"s.{number}"))
    monkeypatch.setattr(spool.files, "names", lambda directory: [])
    assert [other.intend(intent()) for _ in range(3)] == [None] * 3
    assert other.jobs == one.jobs
    one.pause("no")
    other.pause("no")
    assert (other.paused, one.paused) == ("no", "no")


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_hole_in_a_listing(spool, monkeypatch, hidden):
    """Records are read in their order, or another time."""
    writer = log_of(spool)
    for number in range(3):
        writer.intend(intent(f"s.{number}"))
    log, names = JobLog(spool.files, spool.area), spool.files.names
    path = os.path.basename(spool.area.job_record(hidden))
    with monkeypatch.context() as patch:
        patch.setattr(spool.files, "names", lambda where: [n for n in names(where) if n != path])
        log.refresh()
        assert sorted(log.jobs) == list(range(hidden))
    log.refresh()
    assert log.jobs == writer.jobs


@pytest.mark.parametrize("reason", ["x" * 5000, "\N{SNOWMAN}" * 2000, '"\\' * 2000])
def test_a_reason_that_is_too_long(spool, reason):
    log = log_of(spool)
    job = log.intend(intent())
    log.ended(job, "FAILED", reason, "sacct", Cause.FAILED, failure=True)
    log.pause(reason)
    found = log_of(spool)
    assert found.paused == log.paused
    assert reason.startswith(found.paused)
    assert reason.startswith(found.jobs[0].reason)
    assert len(found.paused) >= 100
    for name in os.listdir(f"{spool.files.root}/{spool.area.jobs}"):
        text = os.readlink(f"{spool.files.root}/{spool.area.jobs}/{name}")
        assert len(text.encode()) <= LONGEST


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[1]",
        '{"kind":"intent"}',
        '{"kind":"end","of":[]}',
        '{"kind":"end","of":7}',
        '{"kind":"else","of":0}',
    ],
)
def test_what_is_no_record_has_no_effect_and_takes_a_number(spool, text):
    log = log_of(spool)
    log.intend(intent())
    path = f"{spool.files.root}/{spool.area.job_record(1)}"
    if text:
        os.symlink(text, path)
    else:
        os.mkdir(path)
    log.refresh()
    second = log.intend(intent("s.1"))
    assert sorted(log.jobs) == sorted(log_of(spool).jobs) == [0, 2]
    assert second.number == 2


def test_failures_in_a_row(spool):
    log = log_of(spool)

    def end(*, failure, submitted=True):
        job = log.intend(intent())
        if submitted:
            log.submitted(job, f"{job.number}")
        log.ended(job, "OVER", "", "", Cause.UNKNOWN, failure=failure)
        return log.failures

    assert [end(failure=True), end(failure=True)] == [1, 2]
    assert end(failure=False, submitted=False) == 2  # the scheduler never had it
    assert end(failure=False) == 0
    end(failure=True)
    log.pause("enough")
    log.pause("again")
    assert log.paused == "enough"
    log.resume()
    assert (log.paused, log.failures) == ("", 0)
    assert (log_of(spool).paused, log_of(spool).failures) == ("", 0)
    log.cannot_submit("no sbatch")
    assert log_of(spool).no_submit == "no sbatch"


def test_settings_for_who_submits_next(spool):
    log = log_of(spool)
    config = replace(
        PILOTS,
        setup=("module load python",),
        mpi={"srun": ("srun", "-n{ranks}")},
        job_time=600.0,
        python="/opt/python",
    )
    digest = log.keep_settings(settings_of(config))
    assert digest == log.keep_settings(settings_of(config))
    assert config_of(log.settings(digest)) == config
    path = f"{spool.files.root}/{spool.area.job_settings(digest)}"
    os.chmod(path, 0o600)
    with open(path, "a") as file:
        file.write(" ")
    with pytest.raises(SpoolError, match="damaged"):
        log.settings(digest)
    with pytest.raises(SpoolError, match="gone"):
        log.settings("0" * 16)


# -- scripts -----------------------------------------------------------------------------


def script(spool, wishes=None, *, config=EACH, row="s.0", seconds=0.0, after=(), site_keys=()):
    """The job script for a task with these resources."""
    wanted = merged(Resources(), wishes, site_keys)
    slurm = Slurm(config.pysqa_config_directory, config.submission_template)
    launcher = QueueLauncher(spool, slurm, config)
    one = Wanted(wanted.shape, wanted.queue, seconds, row, after)
    number = QueueJob(7, "f" * 16, "slurm", row=row, seconds=seconds, queue=one.shape.queue)
    return slurm.script(launcher._request(number, one))


def directives(text):
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


def test_own_template(spool):
    wishes = {
        "cores": 4,
        "threads_per_core": 2,
        "gpus_per_core": 1,
        "memory_max": 1,
        "num_nodes": 2,
        "exclusive": True,
        "partition": "gpu",
        "account": "ab12",
        "qos": "long",
        "constraint": "fast",
        "slurm_cmd_args": ["--mail-type=END"],
    }
    config = replace(EACH, setup=("module load x", "ulimit -s unlimited"), project="a" * 20)
    text = script(spool, wishes, config=config, seconds=90.0, after=("3", "4"))
    place = f"{spool.files.root}/{spool.area.job_directory(7)}"
    assert directives(text) == [
        "--job-name=fsb-aaaaaaaaa-7",
        f"--chdir={place}",
        f"--output={place}/output",
        "--open-mode=append",
        "--ntasks=4",
        "--cpus-per-task=2",
        "--nodes=2",
        "--exclusive",
        "--mem=512M",
        "--gpus=4",
        "--time=1:30",
        "--dependency=afterany:3:4",
        "--partition=gpu",
        "--account=ab12",
        "--qos=long",
        "--constraint=fast",
        "--mail-type=END",
        f'--comment="fsbroker {"f" * 16} task s.0"',
    ]
    setup, more, agent = text.splitlines()[-3:]
    assert (setup, more) == ("module load x", "ulimit -s unlimited")
    assert agent.startswith("exec ")
    assert f"--spool={spool.files.root} --job=7 " in agent
    assert "--row=s.0" in agent
    assert "--time=90" in agent


def test_a_task_that_asks_for_nothing_leaves_all_to_the_site(spool):
    kept = ("--open-mode=append", "--ntasks=1", "--mem-per-cpu=128M")
    lines = directives(script(spool, {"memory_max": 0.125}))
    assert [line for line in lines if not line.startswith("--c")][-3:] == list(kept)


def test_a_template_of_the_user(spool):
    template = "#!/bin/sh\n#SBATCH -n{{cores}} -p {{partition}}\n{{command}}"
    wishes = {"cores": 3, "partition": "gpu"}
    text = script(spool, {**wishes, "submission_template": template})
    assert text.splitlines()[:2] == ["#!/bin/sh", "#SBATCH -n3 -p gpu"]
    config = replace(EACH, submission_template=template)
    # The last line names the digest of what was asked, in which a call's template counts.
    assert script(spool, wishes, config=config).splitlines()[:2] == text.splitlines()[:2]


@pytest.mark.parametrize("template", ["{% if %}", "{{ 1 / 0 }}", "{{ nothing.at_all }}"])
def test_a_template_that_is_wrong(spool, template):
    with pytest.raises(ResourceError, match="job script cannot be made"):
        script(spool, {"submission_template": template})


SITE = """\
queue_type: SLURM
queue_primary: short
queues:
  short: {cores_max: 4, run_time_max: 600, script: short.sh}
  long: {cores_max: 8, script: long.sh}
"""
SITE_SCRIPT = """\
#!/bin/bash
#SBATCH --ntasks={{cores}} --job-name={{job_name}} --chdir={{working_directory}}
#SBATCH --partition=%s {%% if wckey is defined %%}--wckey={{wckey}}{%% endif %%}
{{command}}
"""


@pytest.fixture
def site(tmp_path):
    directory = tmp_path / "queues"
    directory.mkdir()
    (directory / "queue.yaml").write_text(SITE)
    for name in ("short", "long"):
        (directory / f"{name}.sh").write_text(SITE_SCRIPT % name)
    return replace(EACH, pysqa_config_directory=str(directory))


def test_a_sites_own_pysqa_directory(spool, site):
    assert Slurm(site.pysqa_config_directory).site_keys() == {"wckey"}
    lines = script(spool, {"cores": 2}, config=site).splitlines()
    assert lines[1].startswith("#SBATCH --ntasks=2 --job-name=fsb-job-7 --chdir=/")
    assert lines[2].strip() == "#SBATCH --partition=short"
    assert lines[3].startswith("exec ")
    wishes = {"partition": "long", "cores": 8, "wckey": "abc"}
    lines = script(spool, wishes, config=site, site_keys=("wckey",)).splitlines()
    assert lines[2] == "#SBATCH --partition=long --wckey=abc"


@pytest.mark.parametrize(
    ("wishes", "seconds", "told"),
    [
        ({"cores": 5}, 0, "cores=5; queue 'short'"),
        ({"cores": 3, "threads_per_core": 2}, 0, "cores=6; queue 'short'"),
        ({}, 601, "run_time_max=601; queue 'short'"),
        ({"cores": 9, "partition": "long"}, 0, "cores=9; queue 'long'"),
        ({"partition": "none"}, 0, "has: short, long"),
    ],
)
def test_limits_of_a_sites_queue_are_not_cut_down_to(spool, site, wishes, seconds, told):
    with pytest.raises(ResourceError, match=told):
        script(spool, wishes, config=site, seconds=seconds)


@pytest.mark.parametrize("missing", ["queue.yaml", "long.sh"])
def test_a_pysqa_directory_that_cannot_be_used(spool, site, missing):
    os.unlink(f"{site.pysqa_config_directory}/{missing}")
    with pytest.raises(ResourceError, match="pysqa configuration cannot be used"):
        script(spool, config=site)


LINES = "fast\n#SBATCH --uid=0"


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "wckey"])
def test_a_value_cannot_begin_another_line_of_the_script(key):
    with pytest.raises(ResourceError, match="one line of text"):
        merged(Resources(), {key: LINES}, ("wckey",))


def test_neither_can_an_argument_or_a_setting(tmp_path):
    from fsbroker.config import load

    with pytest.raises(ResourceError, match="lines of text"):
        merged(Resources(), {"slurm_cmd_args": ["--hold", LINES]})
    for key in ("setup", "slurm_cmd_args"):
        with pytest.raises(ConfigError, match="one line each"):
            load(**{key: [LINES]})
    with pytest.raises(ConfigError, match="letters"):
        load(project=LINES)


@pytest.mark.parametrize("name", ["a b", "a'b", 'a"b', "a$(id)", "a;b", "a\nb"])
def test_a_spool_that_scripts_cannot_name(tmp_path, name):
    odd = spools.create(tmp_path / name, durable=False)
    with pytest.raises(ResourceError, match="cannot name this directory"):
        script(odd)


# -- what schedulers differ in ------------------------------------------------------------


def test_agents_are_told_what_the_settings_say_of_mpi():
    assert mpi_options(EACH, "srun") == []
    config = replace(EACH, pmi_mode="pmix", openmpi_oversubscribe=True, mpi={"srun": ("x", "-n")})
    told = ["--pmi=pmix", '--launcher=["x", "-n"]', "--oversubscribe"]
    assert mpi_options(config, "srun") == told
    assert mpi_options(config, "flux") == told, "the only one there is"
    config = replace(config, mpi={"srun": ("x",), "mpiexec": ("y",)})
    assert mpi_options(config, "mpiexec")[1] == '--launcher=["y"]'
    assert mpi_options(config, "flux") == ["--pmi=pmix", "--oversubscribe"]


def test_a_site_that_says_that_jobs_cannot_submit(spool, monkeypatch):
    monkeypatch.setattr(Slurm, "submit", lambda *_: "7")
    config = replace(EACH, submit_from_jobs=False)
    launcher = QueueLauncher(spool, Slurm(), config)
    work = [Work(Shape(), {}, {"s.0": 0.0}, ["s.0"])]
    monkeypatch.setattr(demand.Demand, "look", lambda *_, **__: work)
    assert launcher.step() == 1
    assert "submit_from_jobs" in log_of(spool).no_submit


@pytest.mark.parametrize(
    ("cause", "charged", "kind"),
    [
        (Cause.MEMORY, "dead", "OutOfMemory"),
        (Cause.FAILED, "dead", "WorkerLost"),
        (Cause.TIME, "silent", "WalltimeExceeded"),
        (Cause.NODE, "silent", "NodeFailed"),
        (Cause.CANCELLED, "silent", "WorkerLost"),
        (Cause.UNKNOWN, "silent", "WorkerLost"),
    ],
)
def test_what_the_end_of_a_job_means_for_its_task(spool, cause, charged, kind):
    log = log_of(spool)
    job = log.intend(intent())
    log.submitted(job, "7")
    log.ended(job, "X", "reason", "sacct", cause, failure=False)
    evidence, said = QueueJobs(spool, None).evidence({"7"})["7"]
    assert evidence == charged
    assert given_up(1, 2, [said]) is None
    assert given_up(3, 2, [said])["type"] == kind
    cut_off = given_up(0, 2, [said] * CUT_OFFS)
    assert (cut_off is not None) == (cause == Cause.TIME)
