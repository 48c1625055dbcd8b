"""A real NFS server with real clients, in a kernel that is an ordinary process.

    text = run_in_nfs("script.py", "argument")

runs a Python script inside a User-Mode Linux kernel, where these directories
are one and the same, seen by four clients:

    $V3A, $V3B      two clients of version 3
    $V4A, $V4B      two clients of version 4.2
    $NFS_EXPORT     the server's own view

The root is this machine's /, to be read only: interpreter, packages, tests
and the repository are where they always are. Writable are the above, $TMPDIR
and $HOME, which are gone afterwards. It needs no root: whoever the test runs as
looks like root in there. The script starts after some eight seconds, and is slow
where it makes many system calls or starts programs (0.1 s each; importing
numpy and h5py takes 2 s): put several checks into one script.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
NFS_MODULES = "sunrpc grace lockd nfs nfsv3 nfsv4 nfsd veth"
PROGRAMS = [
    "linux.uml",
    "gcc",
    "modprobe",
    "ip",
    "mkfs.ext4",
    "mount.nfs",
    "rpcbind",
    "exportfs",
    "rpc.nfsd",
    "rpc.mountd",
    "rpc.statd",
]


class UmlError(Exception):
    """The kernel or the job in it failed; the text has what both wrote."""


def run_in_nfs(
    script: str | os.PathLike[str],
    *args: str,
    python: str = sys.executable,
    env: Mapping[str, str] = {},
    timeout: float = 100,
) -> str:
    """Run a Python script on a machine with NFS.

    Args:
        script: the path of the script, or its text when it has a line break.
        args: its arguments.
        python: the interpreter.
        env: more variables; NFS_OPTIONS are further mount options for all
            clients ("lookupcache=positive"), NFS_SIZE the size of the server's disk ("64M").
        timeout: seconds for all of it, the boot included.

    Returns:
        What the script wrote to its standard output.

    Raises:
        UmlError: it ended with another status than 0, or not in time.
    """
    run = [python, str(script), *args]
    if "\n" in str(script):
        run[1:2] = ["-c", str(script)]
    variables = {"PYTHONPATH": str(REPOSITORY), **env}
    return run_in_uml(
        f". {shlex.quote(str(HERE / 'serve.sh'))}\nexec {shlex.join(run)}",
        env=variables,
        modules=NFS_MODULES,
        timeout=timeout,
    )


def run_in_uml(
    job: str, *, env: Mapping[str, str] = {}, modules: str = "", timeout: float = 100
) -> str:
    """Run a shell script as root of a kernel of its own.

    Args:
        job: the text of the script, for /bin/sh.
        env: variables for it.
        modules: kernel modules to load, from Debian's user-mode-linux.
        timeout: seconds, the boot included.

    Returns:
        What the job wrote to its standard output.

    Raises:
        UmlError: it ended with another status than 0, or not in time.
    """
    # In /tmp whatever TMPDIR says: the kernel's command line knows no quotes.
    work = Path(tempfile.mkdtemp(prefix="fsbroker-uml-", dir="/tmp"))
    try:
        return _boot(work, _exports(env) + job, modules, timeout)
    finally:
        shutil.rmtree(work)


def _exports(env: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())


def _boot(work: Path, job: str, modules: str, timeout: float) -> str:
    out, init, shim = work / "out", work / "init", work / "xstate.so"
    out.mkdir()
    variables = _exports({"UML_OUT": str(out), "UML_MODULES": modules})
    _script(init, f"{variables}. {shlex.quote(str(HERE / 'boot.sh'))}\n")
    _script(out / "job", f"{job}\n")
    # One file for good would be taken from whoever may write there.
    compile_shim = ["gcc", "-O2", "-shared", "-fPIC", "-o", shim, HERE / "xstate.c"]
    subprocess.run(compile_shim, check=True, capture_output=True)
    kernel = [
        *("linux.uml", "umid=uml", "mem=1024M", "rootfstype=hostfs", "rootflags=/", "ro"),
        *(f"init={init}", "quiet", "con=null", "con0=null,fd:1", "con1=null,fd:1"),
    ]
    environment = {"PATH": _path(), "HOME": str(work), "LD_PRELOAD": str(shim)}
    _run_kernel(kernel, environment, work / "console", timeout)
    return _outcome(work)


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def _run_kernel(
    kernel: Sequence[str], env: Mapping[str, str], console: Path, timeout: float
) -> None:
    with console.open("wb") as log:
        process = subprocess.Popen(
            kernel,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the kernel's tasks are processes: they end together
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.write(f"\nnot done after {timeout} s\n".encode())
        finally:
            _kill_session(process)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all gone by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(work: Path) -> str:
    def text(name: str) -> str:
        path = work / name
        return path.read_text(errors="replace").strip("\0") if path.exists() else ""

    if (status := text("out/status").strip()) == "0":
        return text("out/stdout")
    names = ("out/stdout", "out/stderr", "console")
    told = "".join(f"\n--- {name}\n{text(name)}" for name in names if text(name).strip())
    message = f"the job ended with status {status or 'unknown: the kernel ended first'}{told}"
    raise UmlError(message)


@functools.cache
def missing() -> str | None:
    """Why there is no NFS here; None if there is."""
    for program in PROGRAMS:
        if shutil.which(program, path=_path()) is None:
            return f"the program {program} is not installed"
    try:
        # Boots in a second or two, and not at all where ptrace is forbidden.
        run_in_uml("true", timeout=30)
    except (UmlError, OSError, subprocess.CalledProcessError) as error:
        return "User-Mode Linux does not boot: " + str(error).splitlines()[-1]
    return None


def _path() -> str:
    # A user's PATH lacks the system programs on Debian.
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
