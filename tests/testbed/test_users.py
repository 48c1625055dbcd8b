import os
import stat

import pytest

from tests.testbed import leftovers, users
from tests.testbed.users import run_as

pytestmark = pytest.mark.users


def test_each_is_somebody_else(accounts):
    for user in (accounts.a, accounts.b):
        script = "import getpass, os; print(getpass.getuser(), os.getuid(), os.getcwd())"
        done = run_as(user, [accounts.python, "-c", script])
        assert done.stdout.split() == [user.name, str(user.uid), str(user.home)], done.stderr
    assert len({accounts.a.uid, accounts.b.uid, os.getuid()}) == 3


def test_fsbroker_can_be_imported_by_them(accounts):
    done = run_as(accounts.b, [accounts.python, "-c", users.TRY])
    assert done.returncode == 0, done.stderr


def test_a_copied_interpreter_serves_as_well(accounts, tmp_path_factory):
    python = users._copied_python(accounts.public)
    done = run_as(accounts.a, [python, "-c", f"{users.TRY}; print(fsbroker.__path__)"])
    assert str(accounts.public) in done.stdout, done.stderr


def test_their_homes_are_private_and_their_group_is_shared(accounts):
    secret = accounts.a.home / "secret"
    assert run_as(accounts.a, ["sh", "-c", f"echo x > {secret}"]).returncode == 0
    assert "Permission denied" in run_as(accounts.b, ["cat", secret]).stderr
    for user in (accounts.a, accounts.b):
        assert str(accounts.group) in run_as(user, ["id", "-G"]).stdout.split()
    assert stat.S_IMODE(accounts.a.home.stat().st_mode) == 0o700


def test_a_process_is_known_by_number_and_start():
    assert leftovers.alive(leftovers.owner())
    assert not leftovers.alive(f"{os.getpid()}.1")
    assert not leftovers.alive("999999999.5")
