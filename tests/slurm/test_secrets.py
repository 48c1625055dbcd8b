"""What is private stays so in queue jobs, and tags, keys and directories are only names."""

from __future__ import annotations

import os
import subprocess
import sys

import cloudpickle
import pytest

from fsbroker import ClusterExecutor
from tests.private import command_lines, exposed, hold

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules["tests.private"])

pytestmark = pytest.mark.slurm

SECRET = "secret-4712"


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def look(secret):
    said = subprocess.run(
        ["scontrol", "show", "job", "-dd"], capture_output=True, text=True, check=False
    )
    return command_lines(secret), secret in said.stdout, said.stdout


def test_a_queue_job_tells_nothing(slurm, tmp_path, open_umask):
    spool = tmp_path / "spool"
    with ClusterExecutor(
        spool, "slurm", block_allocation=True, max_workers=2, idle_timeout=1.0
    ) as exe:
        (tmp_path / "tmp").mkdir()
        held = [exe.submit(hold, SECRET, number) for number in range(3)]
        seen = exe.submit(look, SECRET, resource_dict={"cache": "off"})
        assert [one.result(90)[0] for one in held] == [SECRET] * 3
        lines, shown, told = seen.result(90)
    assert lines == []
    assert "JobId=" in told
    assert not shown
    written = {name for _, _, names in os.walk(spool / "users") for name in names}
    assert {"run_queue.sh", "output"} <= written
    assert list(exposed([spool])) == []


HOSTILE = "x; touch {0} $(touch {0}) `touch {0}` \" ' | touch {0} #"


def test_tags_directories_and_keys_are_only_names(slurm, tmp_path):
    canary = tmp_path / "canary"
    name = HOSTILE.format("canary")
    (tmp_path / name).mkdir()
    options = {"tag": f"{name}\n../..", "idle_timeout": 1.0}
    with ClusterExecutor(tmp_path / "spool", "slurm", **options) as exe:
        wanted = {"cwd": str(tmp_path / name), "cache_key": f"../../{name}\n"}
        assert exe.submit(os.getcwd, resource_dict=wanted).result(90) == str(tmp_path / name)
        assert len(exe.futures()) == 1
    assert not canary.exists()
    assert not (tmp_path / name / "canary").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["spool", name])
