"""Real files, made by the real writers: what mutations start from."""

from __future__ import annotations

import json
import tempfile

import numpy as np

from fsbroker import plain
from fsbroker.cli.choice import tagged_or_found
from fsbroker.client.history import History
from fsbroker.report.crate import export
from fsbroker.report.metadata import About
from fsbroker.spool import streams, taskfile
from fsbroker.spool.container import Image, image
from fsbroker.spool.layout import Stem
from fsbroker.spool.log import Fold, Kind, Record
from fsbroker.spool.presence import describe
from fsbroker.spool.taskfile import Arguments, FunctionEntry, Limits, TaskRow
from fsbroker.task import ArrayRef, Blob, Dependency, Encoding, Status, Value
from tests.faults.parts import key_of, outcome
from tests.testbed.byhand import ByHand, Job

ROWS = 4
STEM = str(Stem(5000, 1, "0" * 16, "c1t1g0m0n0x0", "cpython311", ROWS, 1))
AGENT, OTHER = "a" * 16, "b" * 16
BLOB = "c" * 40 + ".h5"
ARRAY = np.arange(6.0).reshape(2, 3)
FUNCTION = FunctionEntry(b"F" * 20, "parts.double", "def double(x): ...", b"\x80pickle")


def _bytes(made: Image) -> bytes:
    return b"".join(map(bytes, made.chunks))


def _values() -> list[Value]:
    small = ArrayRef("<f8", ARRAY.shape, "C", ARRAY.tobytes())
    whole = ArrayRef("<i4", (4,), "C", np.arange(4, dtype="<i4").tobytes())
    large = ArrayRef("<f8", ARRAY.shape, "C", Blob(BLOB))
    return [
        Value(Encoding.PLAIN, b"[1,2.5]"),
        Value(Encoding.PICKLE, b"\x80\x05pickled"),
        Value(Encoding.PLAIN, b'[{"$":"array","n":0},{"$":"array","n":1}]', (small, whole)),
        Value(Encoding.PLAIN, b'[{"$":"array","n":0},{"$":"value","n":0}]', (large,)),
    ]


def task_files() -> list[bytes]:
    limits, meta = Limits(2, 60.0, 1), {"tag": "run 7", "user": "me", "cwd": "/", "path": []}
    wanted = [(), (), (), (Dependency(key_of(0)), Dependency(key_of("x"), (0, "energy")))]
    rows = [
        TaskRow(key_of(n), key_of(-n), Arguments(*value, wanted[n]), FUNCTION)
        for n, value in enumerate(_values())
    ]
    simple = [
        TaskRow(key_of(n), key_of(-n), Arguments(Encoding.PLAIN, b"[%d]" % n), FUNCTION)
        for n in range(ROWS)
    ]
    return [_bytes(taskfile.build("d" * 16, one, limits, meta)) for one in (rows, simple)]


def result_files() -> list[bytes]:
    values = _values()
    mixed = [outcome(STEM, n, n, value) for n, value in enumerate(values[:3])]
    failure = {"type": "ValueError", "message": "no", "traceback": "Traceback"}
    mixed.append(outcome(STEM, 3, 3, status=Status.FAILED, error=failure))
    simple = [outcome(STEM, n, n, values[0]) for n in range(ROWS)]
    origin = {"host": "n1", "agent": AGENT}
    return [_bytes(streams.build("e" * 16, one, origin)) for one in (mixed, simple)]


def blobs() -> list[bytes]:
    return [_bytes(image("f" * 16, "blob", {"order": "C"}, {"array": ARRAY}))]


def bundles() -> list[bytes]:
    sections = {f"tasks/{STEM}": np.frombuffer(task_files()[0], np.uint8)}
    return [_bytes(image("1" * 16, "archive", {"inputs": []}, sections)), task_files()[0]]


def logs() -> list[bytes]:
    records = [
        Record(Kind.CLAIM, AGENT, "2" * 16, ((0, 2), (3, 4))),
        Record(Kind.READY, AGENT, "2" * 16, ((3, 4),)),
        Record(Kind.RELEASE, AGENT, "2" * 16, ((0, 1),), "charge it died"),
        Record(Kind.RECOVER, OTHER, "2" * 16, ((1, 2),), f"{AGENT} dead by SIGKILL"),
        Record(Kind.ALIAS, OTHER, "2" * 16, ((0, 1),), f"{STEM} 2"),
        Record(Kind.LOST, OTHER, "2" * 16, ((3, 4),), "0 gone"),
        Record(Kind.CANCEL, OTHER, "2" * 16, ((1, 2),)),
        Record(Kind.RETIRE, OTHER, "2" * 16, ()),
    ]
    fold = Fold(ROWS, [3])
    for record in records[:-1]:
        fold.apply(record)
    text = fold.to_json().encode()
    checkpoint = _bytes(image("3" * 16, "checkpoint", {"stem": STEM}, {"fold": text}))
    return ["\n".join(record.text() for record in records).encode(), checkpoint]


def presences() -> list[bytes]:
    return [_bytes(image("4" * 16, "agent", describe(place="local", cores=4), {}))]


def spool_settings() -> list[bytes]:
    return [b"format: 1\nlock: flock\ndurability: fsync\n"]


def queue_jobs() -> list[bytes]:
    intent = {"token": "5" * 16, "scheduler": "slurm", "cores": 4, "born": 1e9, "row": f"{STEM}.1"}
    records = [
        {"kind": "intent", **intent},
        {"kind": "job", "of": 0, "id": "17"},
        {"kind": "end", "of": 0, "state": "FAILED", "cause": "failed", "failure": 1},
        {"kind": "compared", "settings": "0", "reason": "other numpy"},
        {"kind": "pause", "reason": "three failures"},
        {"kind": "resume"},
    ]
    return ["\n".join(json.dumps({**one, "by": "6" * 16}) for one in records).encode()]


def export_crate(directory: str) -> None:
    """An executed workflow of three tasks, exported."""
    with tempfile.TemporaryDirectory() as root:
        hand = ByHand(root)
        ref = ArrayRef("<f8", ARRAY.shape, "C", ARRAY.tobytes())
        hand.submit(Job("a", arrays=(ref,)), "b", Job("c", ("a",)), tag="t")
        hand.run(values=Value(Encoding.PLAIN, b'[{"$":"array","n":0},1.5]', (ref,)))
        history = History(hand.spool)
        rows = tagged_or_found(history, ["t"])
        export(hand.spool, history, rows, directory, About("a", "b", "c"))


def values() -> list[bytes]:
    objects = [
        [1, -2.5, "text", None, True],
        {"a": (1, 2), 3: b"bytes", "c": 1 + 2j, "d": 10**700},
        {"x": ARRAY, "y": np.float32(2.0), "z": [np.int64(3)]},
        {"args": [1], "kwargs": {"k": 2}},
    ]
    return [found.data for found in map(plain.encode, objects) if found is not None]
