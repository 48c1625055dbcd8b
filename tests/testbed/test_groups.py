"""The groups' own rules: what is skipped, what fails, and what is said about it."""

import os
import subprocess
import sys

import pytest

from tests.groups import GROUPS, required
from tests.testbed.nfs import REPOSITORY

TESTS = """
import pytest

@pytest.mark.flux
def test_needs_flux(): pass

@pytest.mark.kernel
def test_skips_itself(): pytest.skip("no reason")

@pytest.mark.kernel
def test_runs(): pass

@pytest.mark.strace
@pytest.mark.flux
def test_needs_two(): pass

@pytest.mark.kernel
@pytest.mark.long
def test_takes_minutes(): pass

@pytest.mark.parametrize("name", ["nfs"])
def test_needs_nothing(name): pass
"""


@pytest.fixture
def suite(tmp_path):
    """A suite of its own, in which no group's probe finds anything but `kernel`'s."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = tests\naddopts = -p plugin")
    (tmp_path / "plugin.py").write_text(
        "import dataclasses\n"
        "from tests import groups\n"
        "for name, group in groups.GROUPS.items():\n"
        "    probe = lambda name=name: None if name == 'kernel' else f'no {name}'\n"
        "    groups.GROUPS[name] = dataclasses.replace(group, probe=probe)\n"
        "from tests.conftest import *\n"
    )

    def run(*args, require=""):
        env = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}", "FSBROKER_REQUIRE": require}
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *args]
        done = subprocess.run(
            argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def lines_of(said, group):
    return [line.split(None, 5) for line in said.splitlines() if line.startswith(f"{group} ")]


def test_what_cannot_run_is_skipped_and_the_summary_says_why(suite):
    status, said = suite()
    assert status == 0
    assert lines_of(said, "flux") == [["flux", "0", "ran", "2", "skipped", "flux: no flux"]]
    why = "no reason; takes minutes: --long"
    assert lines_of(said, "kernel") == [["kernel", "1", "ran", "2", "skipped", why]]
    assert "no group       1 ran" in said


@pytest.mark.parametrize("group", ["flux", "kernel"])
def test_a_required_group_must_not_be_skipped(suite, group):
    status, said = suite(require=f"{group}, kernel")
    assert status == 1
    assert "required by FSBROKER_REQUIRE, but skipped" in said


@pytest.mark.parametrize(("require", "status"), [("strace", 0), ("strace,flux", 1)])
def test_it_may_for_another_group_that_is_missing(suite, require, status):
    assert suite("-k", "two", require=require)[0] == status


def test_it_may_for_time(suite):
    assert suite("-k", "minutes", require="kernel")[0] == 0
    assert "1 passed" in suite("-k", "minutes", "--long", require="kernel")[1]


def test_a_required_group_must_have_tests(suite):
    status, said = suite("--deselect=tests/test_some.py::test_skips_itself", require="kernel,nfs")
    assert status == 1
    assert "nfs is required, but has no test" in said


def test_a_part_of_the_suite_may_be_asked_for(suite):
    status, _ = suite("-k", "nothing", require="nfs")
    assert status == 0


def test_a_group_that_does_not_exist_cannot_be_required(suite):
    status, said = suite(require="nsf")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "unknown in FSBROKER_REQUIRE: nsf; groups: mpich," in said


def test_the_list_may_have_blanks():
    assert required(" nfs, users ,") == {"nfs", "users"}
    assert required("") == frozenset()


def test_the_summary_names_every_group(suite):
    _, said = suite()
    assert all(lines_of(said, name) for name in GROUPS)
