"""What a private task was given, and what it wrote, only its user can read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsbroker import plain
from fsbroker.errors import FileDamaged
from tests.private import exposed
from tests.testbed import mpi

SECRET = "secret-4711"
SCRIPT = str(Path(__file__).with_name("private.py"))
REPOSITORY = str(Path(__file__).parents[1])
CREATING = "trace=open,openat,creat,mkdir,mkdirat,mknod,mknodat,bind,chmod,fchmod,fchmodat"


UMASKS = (0o000, 0o022, 0o077) if os.environ.get("FSBROKER_LONG") else (0o000, 0o077)


@pytest.fixture
def place() -> Iterator[Path]:
    """A private directory, with a short name: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="fsb-private-") as directory:
        (Path(directory) / "tmp").mkdir(0o700)
        yield Path(directory)


def run(place: Path, umask: int, *before, env=(), cores=1, **options) -> list[list[str]]:
    """What the script found: command lines, what lay open during its run, and after it."""
    done = subprocess.run(
        [
            *before,
            sys.executable,
            SCRIPT,
            place / "spool",
            place,
            SECRET,
            str(cores),
            json.dumps(options),
        ],
        env={**os.environ, "TMPDIR": str(place / "tmp"), "PYTHONPATH": REPOSITORY, **dict(env)},
        umask=umask,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("umask", UMASKS)
def test_nothing_of_a_private_spool_is_for_others(place, umask):
    command_lines, during, after = run(place, umask)
    assert command_lines == []
    assert during == []
    assert after == []
    text = subprocess.run(
        ["grep", "-rl", SECRET, place], capture_output=True, text=True, check=False
    ).stdout
    assert "/logs/" in text, "the secret was never written, and so never kept"


@pytest.mark.mpich
def test_ranks_of_a_private_task_show_nothing(place):
    assert run(place, 0, env=mpi.find("mpich").env(), cores=2) == [[], [], []]


@pytest.mark.strace
def test_files_have_their_modes_from_the_start(place, tmp_path):
    """Also those that live for a moment: there is no time in which others could open them."""
    trace = tmp_path / "trace"
    command = ["strace", "-ff", "--seccomp-bpf", "-qq", "-s", "400", "-o", trace, "-e", CREATING]
    run(place, 0, *command, idle_timeout=0.5)
    said = "".join(path.read_text(errors="replace") for path in tmp_path.iterdir())
    lines = [line for line in said.splitlines() if str(place) in line]
    made = [line for line in lines if "O_CREAT" in line or "mkdir" in line]
    assert len(made) > 30
    assert [line for line in made if not re.search(r" 0[67]00\) |EEXIST", line)] == []
    changed = [line for line in lines if "chmod" in line]
    assert [line for line in changed if not re.search(r", 0[67]00\)", line)] == []


def test_a_value_that_cannot_be_read_is_not_quoted():
    for text in (f'{{"$":"{SECRET}"}}', f'{{"$":"scalar","dtype":"{SECRET}"}}', f"[{SECRET}]"):
        with pytest.raises(FileDamaged) as caught:
            plain.decode(text.encode())
        assert SECRET not in f"{caught.value!r}{caught.value.__cause__}"


def test_what_is_open_to_others_is_found(place):
    (place / "open").touch(0o604)
    os.chmod(place / "open", 0o604)
    assert list(exposed([place])) == [f"604 f {place}/open"]
