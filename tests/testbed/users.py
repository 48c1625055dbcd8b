"""Three other users of this machine, to act as.

    with Accounts() as accounts:
        run_as(accounts.a, [accounts.python, "-c", "..."])

Real accounts, so that `getpass.getuser()`, group rights and the kernel's own
checks are what they are on a cluster. `accounts.python` is an interpreter
that they can run, with fsbroker and what it depends on: this one, or, where
this one lies in a private home, a copy in a public place.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.testbed import leftovers

PREFIX = "fsbroker-users"
ACCOUNT = re.compile(r"fsbt[abc](\d+\.\d+)")
REPOSITORY = Path(__file__).resolve().parents[2]
TRY = "import fsbroker, cloudpickle, cryptography, filelock, h5py, numpy, watchdog, yaml"


@dataclass(frozen=True)
class User:
    """An account that exists for the length of a test session."""

    name: str
    uid: int
    gid: int
    home: Path


class Accounts:
    """Three accounts, and a group that all are in.

    Attributes:
        a, b, c: the accounts; each has a group of its own and a private home.
        group: the number of the group that they share.
        python: an interpreter that all can run, with fsbroker in it.
        public: a directory that everybody may enter and nobody else may write.
    """

    def __enter__(self) -> Accounts:
        _sweep_once()
        self.public = Path(tempfile.mkdtemp(prefix=leftovers.prefix(PREFIX)))
        self.public.chmod(0o755)
        try:
            self._create()
            self.python = _python_for(self.a, self.public)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        _delete(leftovers.owner())
        shutil.rmtree(self.public)

    def _create(self) -> None:
        owner = leftovers.owner()
        shared = f"fsbts{owner}"
        _admin("groupadd", shared)
        for letter in "abc":
            name, home = f"fsbt{letter}{owner}", self.public / letter
            _admin(
                *("useradd", "--create-home", "--home-dir", home, "--user-group"),
                *("--groups", shared, "--shell", "/bin/sh", name),
            )
            home.chmod(0o700)
            status = home.stat()
            setattr(self, letter, User(name, status.st_uid, status.st_gid, home))
        import grp

        self.group = grp.getgrnam(shared).gr_gid

    a: User
    b: User
    c: User
    group: int
    python: str


def command_as(user: User, argv: Sequence[object]) -> list[str]:
    """The command that runs `argv` as that user, with a login's environment, for Popen."""
    env = {"HOME": user.home, "USER": user.name, "LOGNAME": user.name, "SHELL": "/bin/sh"}
    settings = [f"{name}={value}" for name, value in env.items()]
    path = "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return [
        *("setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"),
        *("env", "-i", path, *settings),
        *map(str, argv),
    ]


def run_as(user: User, argv: Sequence[object], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as that user, from their home, with a login's environment.

    Args:
        user: who.
        argv: the command.
        kwargs: for `subprocess.run`; stdout and stderr are captured as text.
            Variables for the environment go into the command: `["env", "A=1", ...]`.
    """
    options = {"capture_output": True, "text": True, "cwd": user.home, **kwargs}
    return subprocess.run(command_as(user, argv), check=False, **options)


@functools.cache
def missing() -> str | None:
    """Why nobody can act as other users here; None if they can."""
    if os.geteuid() != 0:
        return "only root can act as other users"
    for program in ("useradd", "groupadd", "userdel", "groupdel", "setpriv"):
        if shutil.which(program) is None:
            return f"the program {program} is not installed"
    if not os.access("/etc/passwd", os.W_OK):
        return "/etc/passwd cannot be written"
    # Some containers keep even root from becoming somebody else.
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "true"]
    done = subprocess.run(nobody, capture_output=True, text=True, check=False)
    return done.stderr.strip() or None


@functools.cache
def _sweep_once() -> None:
    for owner in {found[1] for found in map(ACCOUNT.match, _lines("/etc/passwd")) if found}:
        if not leftovers.alive(owner):
            _delete(owner)
    for directory in leftovers.of_dead(PREFIX):
        shutil.rmtree(directory, ignore_errors=True)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _delete(owner: str) -> None:
    """Remove the accounts of one session, and end what still runs as them."""
    for line in _lines("/etc/passwd"):
        name, _, uid, *_ = line.split(":")
        if name in {f"fsbt{letter}{owner}" for letter in "abc"}:
            for pid in _processes_of(int(uid)):
                os.kill(pid, signal.SIGKILL)
            _admin("userdel", "--force", name)
    if any(line.startswith(f"fsbts{owner}:") for line in _lines("/etc/group")):
        _admin("groupdel", f"fsbts{owner}")


def _processes_of(uid: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == uid:
                yield int(path.name)
        except OSError:
            continue  # it ended while we looked


def _admin(*argv: object) -> None:
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        message = f"{argv[0]}: {done.stderr.strip() or done.returncode}"
        raise RuntimeError(message)


def _python_for(user: User, public: Path) -> str:
    if run_as(user, [sys.executable, "-c", TRY]).returncode == 0:
        return sys.executable
    return _copied_python(public)


def _copied_python(public: Path) -> str:
    """A virtual environment in a public place, with copies of what fsbroker needs.

    Copies, since what lies behind a private home's door cannot be linked to;
    and no installation, since the tests must run without a network.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = shutil.which(version, path="/usr/local/bin:/usr/bin:/bin")
    if base is None:
        message = f"other users can neither run {sys.executable} nor a public {version}"
        raise RuntimeError(message)
    environment = public / "python"
    _admin(base, "-m", "venv", "--without-pip", environment)
    site = environment / "lib" / version / "site-packages"
    for name in _needed("fsbroker") | _needed("cryptography"):
        for file in importlib.metadata.files(name) or ():
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.suffix != ".pth":
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, site / file)
    ours = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "fsbroker", site / "fsbroker", ignore=ours, dirs_exist_ok=True)
    return str(environment / "bin" / "python")


def _needed(name: str, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """A distribution and, recursively, all that it needs."""
    if name in known:
        return known
    known |= {name}
    for requirement in importlib.metadata.requires(name) or ():
        if "extra ==" not in requirement:
            needed = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            try:
                known = _needed(needed, known)
            except importlib.metadata.PackageNotFoundError:
                continue  # for another platform or Python version
    return known
