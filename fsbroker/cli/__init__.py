"""The command line: one module per command; only the one that was called is imported.

Every command but ``config`` takes its spool from ``--spool`` or the variable FSBROKER_SPOOL;
``run`` from the settings too.

    exit code   meaning
    0           done
    1           an error, told on stderr
    2           wrong usage
    3           no task, tag, queue job or spool of that name
    4           (status --check, wait, run) some tasks failed or were cancelled
    5           (status --check, wait, export) none failed, but some have not ended
    6           (cancel, retry, jobs cancel) nothing to do for some of those that were named:
                they had ended, or run; (launch) for any: nothing is open
    7           (fsck) something is wrong that --repair mends; (doctor) usable, with a warning
    8           (fsck) something is lost, or contradicts itself; (doctor) no place for a spool
    130         interrupted

``agent`` and ``demo`` have their own: an agent ends with 3 when others took it
for dead.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "a small workflow on this machine, from start to end",
    "agent": "claim and run tasks of a spool until there are none",
    "status": "how many tasks are in which state, which agents are there",
    "tasks": "list tasks",
    "explain": "why a task is in the state it is in, and what has to happen next",
    "logs": "what a task wrote to stdout and stderr",
    "cancel": "have tasks not run, or end them",
    "retry": "try failed and cancelled tasks anew",
    "wait": "return when tasks have ended",
    "launch": "start agents for what is open: here, or in queue jobs",
    "jobs": "the queue jobs of a spool; cancel some, or submit again after a pause",
    "import-cache": "take over the values of an executorlib cache",
    "cache": "the results of a spool, those of others too; share it with a group",
    "gc": "remove what nobody needs any more",
    "doctor": "measure what the file system of a spool really does",
    "fsck": "check every file of a spool, and mend what can be mended",
    "touch": "keep a spool from a site's purge: make all its files young",
    "run": "run a workflow file",
    "graph": "draw what is in a spool",
    "export": "write tasks that have ended, with their data, as an RO-Crate",
    "import": "put the results of an exported crate into a spool",
    "config": "the settings in force, and where each comes from",
}
_HANDED_OVER = {
    "demo": "fsbroker.cli.demo",
    "agent": "fsbroker.agent.__main__",
    "config": "fsbroker.cli.config",
}
"""Commands that read their own arguments: ``main(arguments) -> exit code``."""
_MODULES = {"import": "importing"}
"""Modules that cannot be named as their command is."""

OK, ERROR, USAGE, NOT_FOUND, SOME_FAILED, NOT_ENDED, NOTHING_TO_DO, FLAWED, UNFIT = range(9)
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] not in COMMANDS:
        return _no_command(words)
    try:
        return _run(words[0], words[1:])
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (`| head`). Python would complain once
        # more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(name: str, arguments: list[str]) -> int:
    from fsbroker.cli.choice import NotFound, NothingNamed
    from fsbroker.errors import FsbrokerError, SpoolMissing

    try:
        if name in _HANDED_OVER:
            code: int = importlib.import_module(_HANDED_OVER[name]).main(arguments)
            return code
        return _run_here(name, arguments)
    except (NotFound, SpoolMissing) as error:
        print(f"fsbroker {name}: {error}", file=sys.stderr)
        return NOT_FOUND
    except NothingNamed as error:
        print(f"fsbroker {name}: {error}", file=sys.stderr)
        return USAGE
    except (FsbrokerError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"fsbroker {name}: {error}", file=sys.stderr)
        return ERROR


def _run_here(name: str, arguments: list[str]) -> int:
    module = _MODULES.get(name, name.replace("-", "_"))
    command = importlib.import_module(f"fsbroker.cli.{module}")
    parser = argparse.ArgumentParser(
        prog=f"fsbroker {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_exit_codes(),
    )
    parser.add_argument(
        "--spool",
        metavar="DIRECTORY",
        default=os.environ.get("FSBROKER_SPOOL"),
        help="default: the variable FSBROKER_SPOOL",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    command.add_arguments(parser)
    options = parser.parse_intermixed_args(arguments)
    if not options.spool and not getattr(command, "SPOOL_BY_SETTINGS", False):
        parser.error("name the spool with --spool or FSBROKER_SPOOL")
    code: int = command.run(options)
    sys.stdout.flush()
    return code


def _no_command(words: list[str]) -> int:
    if words and words[0] == "--version":
        from fsbroker import __version__

        print(f"fsbroker {__version__}")
        return OK
    asked = bool(words) and words[0] in ("help", "-h", "--help")
    print(_usage(), file=sys.stdout if asked else sys.stderr)
    if asked:
        return OK
    if words:
        print(f"\nfsbroker: no such command: {words[0]}", file=sys.stderr)
    return USAGE


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fsbroker COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "fsbroker COMMAND --help says more. Every command but config takes its spool from",
            "--spool or the variable FSBROKER_SPOOL; run from the settings too.",
            "",
            _exit_codes(),
        ]
    )


def _exit_codes() -> str:
    """The table of this module's docstring."""
    lines = (__doc__ or "").splitlines()
    table = [line.strip() for line in lines if line.startswith("    ")]
    return "\n".join([table[0].replace("exit code ", "exit codes"), *table[1:]])
