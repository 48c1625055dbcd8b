"""The named points at which processes are killed: each step of each part of the protocol."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One file call of the protocol, recognised from outside.

    Attributes:
        call: the method of `Files`. path, text: patterns that its path, and the text of a
            record, the source of a link or rename, or the header of a file, must contain.
        when: "before" or "after" the call, or "during": a file is half written; or "asleep
            before": it stops itself, and makes the call when somebody wakes it.
    """

    call: str
    path: str = ""
    text: str = ""
    when: str = "before"


@dataclass(frozen=True)
class Point:
    """A name for the n-th time that a process takes a step."""

    name: str
    step: Step
    nth: int = 1


def _around(name: str, call: str, path: str = "", text: str = "", nth: int = 1) -> list[Point]:
    return [
        Point(f"{when} {name}", Step(call, path, text, when), nth) for when in ("before", "after")
    ]


def _written(name: str, kind: str, nth: int = 1) -> list[Point]:
    header = f'"kind":"{kind}"'
    return [
        Point(f"{when} the write of {name}", Step("write_new", "/tmp/", header, when), nth)
        for when in ("before", "during", "after")
    ]


_LOG = r"/claims/[^/]+/\d{8}$"

CLIENT = [
    *_around("mkdir of the log", "mkdir", "/claims/"),
    *_written("a task file", "tasks"),
    *_around("sync of the logs' directory", "sync_directory", "/claims$"),
    *_around("link of a task file", "link", "/tasks/"),
    *_around("unlink of its temporary name", "unlink", "/tmp/"),
    *_around("sync of the task files' directory", "sync_directory", "/tasks$"),
]
"""A client that publishes a task file; `unlink` of an agent's tmp comes later."""

ALIAS = _around("alias record", "symlink", _LOG, "^alias ")
"""A client that finds its rows in an older file."""

CANCEL = _around("cancel record", "symlink", _LOG, "^cancel ")

HOLD = [
    *_around("claim of what is put off", "symlink", _LOG, "^claim "),
    *_around("link of a task file that is put off", "link", "/tasks/"),
    *_around("link of a result that was taken over", "link", "/results/"),
    *_around("release of what was put off", "symlink", _LOG, "^release "),
    *_around("seal of its holder", "symlink", "/results/", "^seal "),
]
"""A client that puts calls off, and gives them back."""

AGENT = [
    *_around("mkdir of the stream", "mkdir", "/results/"),
    *_around("sync of the new stream", "sync_directory", "/results$"),
    *_written("the presence", "agent"),
    *_around("link of the presence", "link", "/agents/"),
    *_around("claim record", "symlink", _LOG, "^claim "),
    *_around("second claim record", "symlink", _LOG, "^claim ", nth=2),
    *_around("beat", "rename", "/agents/"),
    *_written("a result file", "results"),
    *_around("sync of the claims", "sync_directory", "/claims/"),
    *_around("link of a result file", "link", "/results/"),
    *_around("unlink of its temporary name", "unlink", "/tmp/", nth=2),
    *_around("sync of the stream", "sync_directory", "/results/"),
    *_around("link of a second result file", "link", "/results/", nth=2),
    *_around("beat that tells of results", "rename", r"/agents/\w+\.\d+\.[1-9]\d*$"),
]
"""An agent from its birth to its results."""

RETIRE = [
    *_around("retire record", "symlink", _LOG, "^retire "),
    *_around("archive link", "link", "/archive/"),
    *_around("sync of the archive", "sync_directory", "/archive$"),
    *_around("unlink of the task file", "unlink", "/tasks/"),
    *_around("sync of the task files' directory", "sync_directory", "/tasks$"),
    *_around("rename of the log", "rename", "/tmp/log-"),
    *_around("deletion of a record", "unlink", "/tmp/log-"),
    *_around("rmdir of the log", "rmdir", "/tmp/log-"),
    *_around("own seal", "symlink", "/results/", "^seal "),
    *_around("vanishing", "unlink", "/agents/"),
]
"""An agent that ends task files, and then itself."""

RECOVER = [
    *_around("seal of a dead agent", "symlink", "/results/", "^seal "),
    *_around("sync of the seal", "sync_directory", "/results/"),
    *_around("recover record", "symlink", _LOG, "^recover "),
    *_around("removal of a dead agent's presence", "unlink", "/agents/"),
]
"""An agent that takes over from one that was killed with rows in hand."""

ROWS = [
    *_around("ready record", "symlink", _LOG, "^ready "),
    *_around("release record of a lost worker", "symlink", _LOG, "^release "),
    *_around("link of a checkpoint", "link", "/claims/"),
    *_written("a checkpoint", "checkpoint"),
]
"""Records of rows that wait, come back, or are many."""

PACKS = [
    *_written("a pack", "pack"),
    *_around("link of a pack", "link", "/packs/"),
    *_around("sync of the packs", "sync_directory", "/packs$"),
    *_around("deletion of a pack's input", "unlink", "/results/"),
    *_around("deletion of a pack's third input", "unlink", "/results/", nth=3),
]
"""An agent that packs result files."""

ASLEEP = [
    Point(f"asleep before {name}", Step(call, path, text, "asleep before"), nth)
    for name, call, path, text, nth in (
        ("link of a result file", "link", "/results/", "", 1),
        ("second claim record", "symlink", _LOG, "^claim ", 2),
        ("beat that tells of results", "rename", r"/agents/\w+\.\d+\.[1-9]\d*$", "", 1),
    )
]
"""An agent that is taken for dead in the middle of a step, and goes on with it."""
