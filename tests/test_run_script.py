"""`./run`, with an interpreter that only writes down what it is asked.

Really setting up takes a network and a minute; that is what .ci/run does on a
fresh clone. Here: what is done when, and what is said when it cannot be done.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

PYTEST = "-m pytest --numprocesses=2 --dist=loadfile"

# Answers questions as the real one; makes "environments" of copies of itself.
PYTHON = f"""#!/bin/sh
case "$1 ${{2:-}}" in
    *ensurepip*) [ -z "${{NO_VENV:-}}" ] || exit 1 ;;
    "-c "*) exec {shlex.quote(sys.executable)} "$@" ;;
    "-m venv") for venv; do :; done; mkdir -p "$venv/bin"; cp "$0" "$venv/bin/python"
        cp "$0" "$venv/bin/rocrate-validator" ;;
esac
printf '%s\\n' "$*" >>"$LOG"
"""


@pytest.fixture
def clone(tmp_path):
    """A copy of what `run` reads, in a place that shell scripts like to trip over."""
    clone = tmp_path / "it's a $HOME; of *"
    clone.mkdir()
    for name in ("run", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, clone)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return clone


def run(clone, *args, **env):
    """Run it from elsewhere with nothing in the environment; what Python was asked to do."""
    log = clone.parent / "log"
    log.write_text("")
    settings = {"PYTHON": str(clone.parent / "python"), "LOG": str(log), "FSBROKER_NO_APT": "1"}
    done = subprocess.run(
        [clone / "run", *args],
        cwd="/",
        env=settings | env,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [line for line in log.read_text().splitlines() if line.startswith("-m")]
    return done, calls


def install(calls):
    return [call for call in calls if "install" in call]


def test_the_first_run_sets_up_and_later_ones_do_not(clone):
    done, calls = run(clone, "test", "-k", "a b")
    assert done.returncode == 0, done.stderr
    assert calls[0] == f"-m venv --clear {clone}/.venv"
    assert install(calls)[0].endswith(f"--editable {clone}[test]")
    assert calls[-1] == f"{PYTEST} -k a b"
    _, calls = run(clone, "test")
    assert calls == [PYTEST]


def test_new_requirements_are_installed_into_the_same_environment(clone):
    run(clone, "test")
    with (clone / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    _, calls = run(clone, "test")
    assert len(install(calls)) == 1
    assert not [call for call in calls if "venv" in call.split()[1]]


def test_each_command_has_its_own_requirements(clone):
    run(clone, "test")
    _, calls = run(clone, "lint")
    assert install(calls)[0].endswith("[lint]")


def test_a_moved_repository_is_installed_anew(clone):
    run(clone, "test")
    moved = clone.rename(clone.parent / "moved")
    _, calls = run(moved, "test")
    assert install(calls)[0].endswith(f"{moved}[test]")


def test_a_failed_installation_is_tried_again(clone):
    run(clone, "test")
    python = clone / ".venv" / "bin" / "python"
    os.rename(python, clone / "kept")
    python.write_text("#!/bin/sh\ncase $* in *install*) exit 1;; esac")
    python.chmod(0o755)
    (clone / ".venv" / ".fsbroker-test").unlink()
    done, _ = run(clone, "test")
    assert done.returncode == 1
    assert "installation failed" in done.stderr
    os.rename(clone / "kept", python)
    _, calls = run(clone, "test")
    assert install(calls)


def test_without_venv_and_without_root_it_names_the_one_package(clone):
    done, calls = run(clone, "demo", NO_VENV="1")
    assert done.returncode == 1
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    assert done.stderr.strip().endswith((f"ask for the package: {package}", "and ensurepip"))
    assert calls == []
    assert not (clone / ".venv").exists()


def test_without_python_it_says_so(clone):
    done, _ = run(clone, "demo", PYTHON="/no/python")
    assert done.returncode == 1
    assert "Python 3.10 or newer" in done.stderr


def test_it_can_be_called_through_a_link(clone):
    link = clone.parent / "link"
    link.symlink_to(clone)
    run(clone, "test")
    _, calls = run(link, "test")
    assert calls == [PYTEST]


@pytest.mark.parametrize("args", [(), ("help",), ("--help",)])
def test_help(clone, args):
    done, _ = run(clone, *args)
    assert done.returncode == 0
    assert "usage: ./run COMMAND" in done.stdout


def test_an_unknown_command(clone):
    done, _ = run(clone, "tset")
    assert done.returncode == 1
    assert "no such command: tset" in done.stderr


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
@pytest.mark.parametrize("script", ["run", ".ci/run"])
def test_the_scripts_are_plain_shell(shell, script):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", REPOSITORY / script], check=True)
