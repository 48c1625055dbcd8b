"""Readers of the spool refuse what they cannot believe: at random here, for long by hand.

`tests/fuzz/__init__.py` says how; what it found once stands in `tests/fuzz/findings`.
"""

import os
import tempfile
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import engine
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import NotNamed, Place

FINDINGS = sorted((Path(__file__).parent / "fuzz" / "findings").iterdir())
TARGETS = ("log", "plain", "results", "small", "tasks")
INPUTS = 3000 if os.environ.get("FSBROKER_LONG") else 250


@pytest.fixture(scope="module")
def targets():
    with tempfile.TemporaryDirectory(dir=engine.in_memory()) as directory:
        yield Place(directory).targets()


def test_every_target_is_tried(targets):
    assert sorted(targets) == list(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_real_files_are_read(targets, name):
    for data in targets[name].seeds:
        assert engine.tried(targets[name].read, data) is None


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_was_changed_is_read_or_refused(targets, name):
    rng = Random(name)
    for _ in range(INPUTS):
        data = mutate(rng.choice(targets[name].seeds), rng)
        found = engine.tried(targets[name].read, data)
        assert found is None, f"{found.what}\n{found.trace}"


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.name)
def test_what_once_broke_a_reader_does_not(targets, path):
    target = targets[path.name.partition("-")[0]]
    found = engine.tried(target.read, path.read_bytes())
    assert found is None, f"{found.what}\n{found.trace}"


def _spins(_: bytes) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("reader", "what"),
    [
        (lambda data: data[9], "IndexError"),
        (lambda _: bytearray(2 * engine.MEMORY), "MemoryError"),
        (_spins, "TooSlow"),
    ],
)
def test_a_reader_that_breaks_is_found(monkeypatch, reader, what):
    monkeypatch.setattr(engine, "SECONDS", 0.2)
    assert engine.tried(reader, b"").what.startswith(what)


def test_a_refusal_must_name_the_file(targets, monkeypatch):
    from fsbroker.errors import FileDamaged
    from fsbroker.spool.container import Container

    def refuse(*_, **__):
        raise FileDamaged("Somewhere")

    monkeypatch.setattr(Container, "_header", refuse)
    found = engine.tried(targets["tasks"].read, targets["tasks"].seeds[0])
    assert found.what.startswith(NotNamed.__name__)
