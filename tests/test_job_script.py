"""What is submitted for a task: resources and settings in the job script. Nothing is submitted."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from fsbroker import ClusterExecutor
from fsbroker.errors import ResourceError
from fsbroker.launch.plan import START
from fsbroker.launch.settings import config_of, settings_of


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Makes the lines of a script; no scheduler is installed here."""
    monkeypatch.setenv("PATH", "/nowhere")

    def make(resources=None, /, **settings) -> list[str]:
        settings = {"backend": "slurm", **settings}
        with ClusterExecutor(tmp_path / "spool", **settings) as executor:
            return executor.job_script(resources).splitlines()

    return make


def directives(lines) -> dict[str, str]:
    found = (re.fullmatch(r"#SBATCH --([\w-]+)=?(.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def agent(lines) -> list[str]:
    """The last line: the agent's command."""
    words = shlex.split(lines[-1])
    assert words[0] == "exec"
    return words[words.index("-m") - 1 :]


def test_a_job_for_one_task(script, tmp_path):
    lines = script(
        {
            "cores": 4,
            "threads_per_core": 2,
            "gpus_per_core": 1,
            "num_nodes": 2,
            "memory_max": 3,
            "exclusive": True,
            "run_time_max": 600,
            "partition": "gpu",
            "account": "chem",
            "qos": "high",
            "constraint": "a100",
            "slurm_cmd_args": ["--reservation=us"],
        }
    )
    assert lines[0] == "#!/bin/bash"
    directory = f"{tmp_path}/spool/users/u0/logs/jobs/00000000"
    assert re.sub(r"/u\d+/", "/u0/", directives(lines).pop("chdir")) == directory
    wanted = {
        "job-name": "fsb-job-0",
        "ntasks": "4",
        "cpus-per-task": "2",
        "gpus": "4",
        "nodes": "2",
        "mem": "1536M",
        "exclusive": "",
        "time": f"{(600 + int(START)) // 60}:00",
        "partition": "gpu",
        "account": "chem",
        "qos": "high",
        "constraint": "a100",
        "reservation": "us",
        "open-mode": "append",
    }
    found = directives(lines)
    assert {name: found.get(name) for name in wanted} == wanted
    assert set(found) - set(wanted) == {"chdir", "output", "comment"}
    assert list(found)[-1] == "comment"  # which nothing may overrule
    assert agent(lines)[0] == sys.executable
    assert "--row=0.0" in agent(lines)
    assert "--time=660" in agent(lines)


def test_a_job_that_drains_the_spool(script):
    wishes = {"cores": 2, "threads_per_core": 2, "gpus_per_core": 1}
    lines = script(wishes, block_allocation=True, max_workers=8, nodes_per_job=2, job_time=3600)
    found = directives(lines)
    shown = {name: found[name] for name in ("ntasks", "cpus-per-task", "nodes", "gpus", "time")}
    assert shown == {
        "ntasks": "2",
        "cpus-per-task": "4",
        "nodes": "2",
        "gpus": "4",
        "time": "60:00",
    }
    assert not any(word.startswith("--row") for word in agent(lines))


def test_defaults_of_the_executor_count(script):
    assert directives(script(None, resource_dict={"cores": 3, "account": "a"}))["ntasks"] == "3"


def test_settings_reach_the_script(script):
    lines = script(
        None,
        project="al-loys",
        python="/sw/python",
        setup=["module load gcc", "ulimit -s unlimited"],
        slurm_cmd_args=["--mail-type=END"],
        pmi_mode="pmi2",
        idle_timeout=7,
        spool_on_nodes="/mnt/nodes/spool",
        mpi={"srun": ["srun", "-n", "{ranks}"], "mpiexec": ["mpiexec"]},
    )
    found = directives(lines)
    assert found["mail-type"] == "END"
    assert found["job-name"] == "fsb-al-loys-0"
    assert found["chdir"].startswith("/mnt/nodes/spool/users/")
    assert found["output"] == f"{found['chdir']}/output"
    assert lines[-3:-1] == ["module load gcc", "ulimit -s unlimited"]
    words = agent(lines)
    assert words[0] == "/sw/python"
    assert {"--spool=/mnt/nodes/spool", "--pmi=pmi2", "--idle-timeout=7"} <= set(words)
    (launcher,) = [word for word in words if word.startswith("--launcher=")]
    assert json.loads(launcher.partition("=")[2]) == ["srun", "-n", "{ranks}"]


def test_the_only_launcher_is_taken_whatever_its_name(script):
    (launcher,) = [
        word for word in agent(script(mpi={"own": ["/sw/mpi", "{ranks}"]})) if "/sw/mpi" in word
    ]
    assert launcher == '--launcher=["/sw/mpi", "{ranks}"]'
    several = {"own": ["a"], "other": ["b"]}
    assert not any("--launcher" in word for word in agent(script(mpi=several)))


def test_a_partition_has_settings_of_its_own(script):
    settings = {
        "python": "/sw/python",
        "setup": ["module load gcc"],
        "job_time": 3600,
        "slurm_cmd_args": ["--mail-type=END"],
        "partitions": {
            "gpu": {
                "python": "/gpu/python",
                "setup": ["module load cuda"],
                "job_time": 900,
                "slurm_cmd_args": ["--gres-flags=enforce-binding"],
            },
            "long": {"job_time": 86400},
        },
    }

    def seen(partition):
        lines = script(partition and {"partition": partition}, **settings)
        found = directives(lines)
        flags = sorted(found.keys() & {"mail-type", "gres-flags"})
        return agent(lines)[0], lines[-2], found["time"], flags

    assert seen(None) == ("/sw/python", "module load gcc", "60:00", ["mail-type"])
    assert seen("gpu") == ("/gpu/python", "module load cuda", "15:00", ["gres-flags"])
    assert seen("long") == ("/sw/python", "module load gcc", "1440:00", ["mail-type"])


def test_who_submits_later_has_the_same_settings(script, tmp_path):
    settings = {"mpi": {"srun": ["srun"]}, "partitions": {"gpu": {"setup": ["x"], "job_time": 9}}}
    with ClusterExecutor(tmp_path / "spool", backend="slurm", setup=["y"], **settings) as executor:
        stored = settings_of(executor._config)
    again = config_of(json.loads(json.dumps(stored)))
    assert settings_of(again) == stored
    assert again.in_partition("gpu").setup == ("x",)
    assert again.in_partition("none such").setup == ("y",)


@pytest.mark.parametrize("backend", ["local", "none"])
def test_other_backends_have_no_script(tmp_path, backend):
    executor = ClusterExecutor(tmp_path / "spool", backend=backend)
    with executor, pytest.raises(ResourceError, match=f"backend='{backend}'"):
        executor.job_script()


def test_wrong_resources_have_none_either(script):
    with pytest.raises(ResourceError, match="more nodes than"):
        script({"num_nodes": 2})
    with pytest.raises(ResourceError, match="Unknown resource"):
        script({"walltime": 3})


def test_a_script_is_only_shown(script, tmp_path):
    before = script()
    assert script() == before
    (area,) = (tmp_path / "spool" / "users").iterdir()
    assert list((area / "jobs").iterdir()) == []
    assert not (area / "logs" / "jobs").exists()


@pytest.mark.parametrize(
    ("backend", "priority", "line"),
    [
        ("slurm", 4000, "#SBATCH --nice=1000"),
        ("slurm", 9000, None),
        ("flux", 2500, "#FLUX: --urgency=8"),
        ("flux", 0, "#FLUX: --urgency=1"),  # 0 would hold it
        ("flux", 9000, None),
    ],
)
def test_low_priority_is_told_to_the_scheduler(script, backend, priority, line):
    """Of a higher one than usual SLURM and Flux want to hear from operators only."""
    found = [one for one in script({"priority": priority}, backend=backend) if one.startswith("#")]
    said = [one for one in found if "nice" in one or "urgency" in one]
    assert said == ([line] if line else [])


def test_a_flux_template_is_named_by_itself(script):
    with pytest.raises(ResourceError, match="Give the template itself: submission_template"):
        script(backend="flux", pysqa_config_directory="site")


@pytest.mark.parametrize("key", ["partition", "account", "qos", "constraint", "slurm_cmd_args"])
def test_no_name_becomes_a_command(script, tmp_path, key):
    canary = tmp_path / "canary"
    name = f"--x=a; touch {canary} $(touch {canary}) `touch {canary}` \" ' | touch {canary}"
    lines = script({key: [name] if key == "slurm_cmd_args" else name})
    assert [line[0] for line in lines if "touch" in line] == ["#"]
    (tmp_path / "run.sh").write_text("\n".join([*lines[:-1], "exit 0"]))
    subprocess.run(["/bin/bash", tmp_path / "run.sh"], env={"PATH": os.defpath}, check=True)
    assert not canary.exists()
    bad = f"x\ntouch {canary}"
    with pytest.raises(ResourceError):
        script({key: [bad] if key == "slurm_cmd_args" else bad})
