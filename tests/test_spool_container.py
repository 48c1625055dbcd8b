"""What stands in a file is read back, is what other programs show, and is never guessed."""

import os
import subprocess
import sys
from contextlib import suppress

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew
from fsbroker.spool import hdf5, streams, taskfile
from fsbroker.spool import spool as spools
from fsbroker.spool.blobs import SMALLEST, read_array, store
from fsbroker.spool.container import Container, image
from fsbroker.spool.layout import Stem, parse_stem
from fsbroker.spool.streams import Bulk, ResultFile
from fsbroker.spool.taskfile import Limits, TaskFile
from fsbroker.task import ArrayRef, Encoding, Status, Value
from tests.faults.parts import key_of, outcome, plain, row

STEM = Stem(5000, 1, "0" * 16, "c1", "cpython3", 4, 1)


@pytest.fixture
def spool(tmp_path):
    return spools.create(tmp_path / "spool", durable=False)


def write(spool, made, path="tmp/file"):
    spool.files.write_new(f"{spool.area.path}/{path}", made.chunks, sync=False)
    return f"{spool.area.path}/{path}"


def array_value(array):
    ref = ArrayRef(array.dtype.str, array.shape, "C", array.tobytes())
    return Value(Encoding.PLAIN, b'{"a":0}', (ref,))


def task_image():
    rows = [
        row("a", arguments=plain("[1, 2.5]")),
        row("b", arguments=Value(Encoding.PICKLE, b"\x80\x05pickled")),
        row("c", arguments=array_value(np.arange(6.0).reshape(2, 3))),
        row("d", "a", "elsewhere", arguments=plain("[4]")),
    ]
    return taskfile.build("a" * 16, rows, Limits(2, 60.0, 1), {"tag": "run 7", "user": "me"})


def test_a_task_file_gives_back_what_was_put_in(spool):
    file = TaskFile(spool.files, write(spool, task_image()), str(STEM))
    assert file.keys == [key_of(name) for name in "abcd"]
    assert file.meta["tag"] == "run 7"
    assert [file.arguments(n).data for n in (0, 1, 3)] == [b"[1, 2.5]", b"\x80\x05pickled", b"[4]"]
    (ref,) = file.arguments(2).arrays
    np.testing.assert_array_equal(
        read_array(spool.files, spool.area, ref), [[0.0, 1, 2], [3, 4, 5]]
    )
    assert [(one.key, own) for one, own in file.dependencies(3)] == [
        (key_of("a"), 0),
        (key_of("elsewhere"), -1),
    ]
    assert file.dependencies(0) == []
    assert file.function(3).name == "parts.double"
    assert file.rows["ranks"].tolist() == [2] * 4
    assert file.rows["time_limit"][0] == 60.0


def test_other_programs_show_values_and_arrays(spool):
    results = [outcome(str(STEM), 0, "a", array_value(np.arange(3) * 1.5)), outcome("x", 1, "b")]
    path = f"{spool.files.root}/{write(spool, streams.build('b' * 16, results, {'host': 'n1'}))}"
    shown = subprocess.run(["h5dump", path], capture_output=True, text=True, check=True).stdout
    assert '{"a":0}' in shown.replace('\\"', '"')
    assert "0, 1.5, 3" in shown
    with h5py.File(path) as file:
        assert file.attrs["host"] == b"n1"
        assert file["arrays/<f8"][()].tolist() == [0.0, 1.5, 3.0]
        assert file["rows"]["row"].tolist() == [0, 1]


def test_a_file_is_whole_though_somebody_holds_on_to_its_parts(spool, monkeypatch):
    """A profiler or ``gc.get_objects()`` in another thread does, for a moment."""
    held, real = [], hdf5._dataset

    def dataset(*arguments):
        held.append(real(*arguments))
        return held[-1]

    monkeypatch.setattr(hdf5, "_dataset", dataset)
    hdf5._frame.cache_clear()
    path = write(spool, task_image())
    hdf5._frame.cache_clear()
    assert held
    held.clear()
    assert TaskFile(spool.files, path, str(STEM)).arguments(0).data == b"[1, 2.5]"
    with h5py.File(f"{spool.files.root}/{path}", "r") as file:
        assert len(file["rows"]) == 4


def test_results_in_bulk_read_like_single_ones(spool):
    file = TaskFile(spool.files, write(spool, task_image()), str(STEM))
    texts, times = [b"10", b"20"], [1.0, 2.0]
    bulk = Bulk(str(STEM), 0, file.rows[:2], [3, 0], [1, 0], texts, times, times, times, 7)
    failed = outcome(str(STEM), 3, "d", status=Status.FAILED, error={"type": "ValueError"})
    path = write(spool, streams.build("c" * 16, [bulk, failed], {"host": "n1"}), "tmp/results")
    with ResultFile(spool.files, path) as read:
        outcomes = [read.outcome(index) for index in range(3)]
        assert [(o.row, o.key, o.value.data) for o in outcomes[:2]] == [
            (0, key_of("a"), b"10"),
            (1, key_of("b"), b"20"),
        ]
        assert [o.generation for o in outcomes] == [3, 0, 0]
        assert [o.attempt for o in outcomes] == [1, 0, 0]
        assert outcomes[2].error == {"type": "ValueError"}
        assert outcomes[0].error is None
        assert read.plain_texts() is None  # not all are done
        assert read.origin(1) == {"host": "n1"}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("size", [10, SMALLEST // 8 + 3])
def test_arrays_come_back_small_or_large(spool, order, size):
    array = np.asarray(np.random.default_rng(1).random((size, 2)), order=order)
    ref = store(spool.files, spool.area, array, durable=False)
    again = store(spool.files, spool.area, array, durable=False)
    assert ref == again
    assert len(spool.files.names(spool.area.blobs)) == (size > 10)
    back = read_array(spool.files, spool.area, ref)
    np.testing.assert_array_equal(back, array)
    back[0, 0] = 5  # its own memory
    if size > 10:
        (name,) = spool.files.names(spool.area.blobs)
        with h5py.File(f"{spool.files.root}/{spool.area.blob(name)}") as file:
            np.testing.assert_array_equal(file["array"][()], array if order == "C" else array.T)


def read_everything(spool, path):
    file = TaskFile(spool.files, path, str(STEM))
    found = [file.arguments(number) for number in range(4)]
    found += [file.function(number) for number in range(4)]
    return found + [file.dependencies(number) for number in range(4)]


def damaged(spool, data):
    path = f"{spool.area.path}/tmp/damaged"
    with open(f"{spool.files.root}/{path}", "wb") as file:
        file.write(data)
    os.chmod(f"{spool.files.root}/{path}", 0o600)
    return path


def test_a_file_that_is_cut_off_anywhere_is_never_read_half(spool):
    data = b"".join(map(bytes, task_image().chunks))
    expected = read_everything(spool, damaged(spool, data))
    noticed = 0
    for length in range(0, len(data), 61):
        try:
            assert read_everything(spool, damaged(spool, data[:length])) == expected
        except FileDamaged:
            noticed += 1
    assert noticed > len(data) // 61 // 2


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 1 << 20), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_what_is_read(tmp_path_factory, at, bit):
    spool = spools.create(tmp_path_factory.getbasetemp() / "flips", durable=False)
    data = bytearray(b"".join(map(bytes, task_image().chunks)))
    expected = read_everything(spool, damaged(spool, data))
    data[at % len(data)] ^= 1 << bit
    with suppress(FileDamaged, FileRefused, FormatTooNew):
        assert read_everything(spool, damaged(spool, data)) == expected


def test_a_newer_format_is_refused_and_both_versions_are_named(spool):
    data = b"".join(map(bytes, task_image().chunks)).replace(b"fsbroker 1 ", b"fsbroker 2 ", 1)
    with pytest.raises(FormatTooNew, match=r"Format 2.* up to 1"):
        Container(spool.files, damaged(spool, data))


def test_another_kind_is_refused(spool):
    path = write(spool, image("d" * 16, "blob", {}, {"array": np.arange(3)}))
    with pytest.raises(FileRefused, match="kind 'blob'"):
        ResultFile(spool.files, path)


def test_only_own_regular_files_are_opened(spool, tmp_path):
    inside = f"{spool.files.root}/{spool.area.path}/tmp"
    os.symlink(tmp_path / "secret", f"{inside}/link")
    os.mkfifo(f"{inside}/fifo")
    os.mkdir(f"{inside}/directory")
    for name in ("link", "fifo", "directory"):
        with pytest.raises(FileRefused):
            spool.files.open(f"{spool.area.path}/tmp/{name}")
    if os.getuid() == 0:
        path = write(spool, task_image(), "tmp/foreign")
        os.chown(f"{spool.files.root}/{path}", 12345, -1)
        with pytest.raises(FileRefused, match="another user"):
            spool.files.open(path)


def test_large_headers_and_many_sections(spool):
    sections = {f"text{n}": b"x" * n for n in range(1, 200)}
    path = write(spool, image("e" * 16, "blob", {"long": "y" * 70000}, sections))
    with Container(spool.files, path) as file:
        assert file.meta["long"] == "y" * 70000
        assert all(file.read(name) == content for name, content in sections.items())
        assert file.read("nothing") == b""
        with pytest.raises(FileDamaged):
            file.read_part("text5", 3, 5, 0)


@given(
    st.builds(
        Stem,
        st.integers(0, 9999),
        st.integers(0, 2**63),
        st.text("0123456789abcdef", min_size=16, max_size=16),
        st.text("0123456789abcdefc_", min_size=1, max_size=80),
        st.text("0123456789abcdef", min_size=1, max_size=16),
        st.integers(1, 4096),
        st.integers(0, 4096),
    )
)
def test_stems_round_trip(stem):
    assert parse_stem(str(stem)) == stem


def test_stems_sort_by_priority_then_age():
    first = STEM._replace(priority=9000, born=9)
    stems = [str(one) for one in (STEM._replace(born=2), first, STEM)]
    assert sorted(stems) == [str(first), str(STEM), str(STEM._replace(born=2))]
    assert parse_stem("../../" + str(STEM)) is None
    assert parse_stem(str(STEM) + "~") is None


BUILD = """
from fsbroker.spool import hdf5
try:
    hdf5.build("x", {"a": "b"}, {"n": b"content"})
except OSError as error:
    print("told")
"""


@pytest.mark.strace
@pytest.mark.parametrize("nth", range(1, 5))
def test_a_write_to_memory_that_fails_is_told_as_such(nth):
    """By HDF5 as whatever it was about to do next."""
    inject = ["-e", "trace=write", "-e", f"inject=write:error=ENOMEM:when={nth}"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *inject, sys.executable, "-c", BUILD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "told\n"
