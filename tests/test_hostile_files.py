"""Files that were made to do harm: refused, in little time and memory, without a byte outside.

What a fuzzer finds by chance stands in `test_fuzz.py`; here is what an attacker would try.
"""

import json
import os
import resource
import time
import zlib

import h5py
import numpy as np
import pytest

from fsbroker import executorlib_files
from fsbroker.errors import FileDamaged, FileRefused
from fsbroker.spool import container, packs
from fsbroker.spool.blobs import read_arrays
from fsbroker.spool.census import Census
from fsbroker.spool.container import Container
from fsbroker.spool.index import Results
from fsbroker.spool.jobs import JobLog
from fsbroker.spool.layout import is_merged
from fsbroker.spool.log import Fold, Kind, Log, parse
from fsbroker.spool.spool import create, open_spool
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.tiers import Tiers
from fsbroker.task import ArrayRef, Blob
from tests.faults.parts import key_of
from tests.fuzz import corpus
from tests.fuzz.mutate import put_together, taken_apart
from tests.testbed.byhand import ByHand

HUGE = 1 << 40
"""Bytes of a file that takes no disk."""


@pytest.fixture
def spool(tmp_path):
    return create(tmp_path / "spool", durable=False)


def put(spool, path, data, size=0):
    with open(f"{spool.files.root}/{path}", "wb", opener=lambda *a: os.open(*a, 0o600)) as file:
        file.write(data)
        file.truncate(max(size, len(data)))
    return path


def with_sections(data, **changed):
    """A file whose table of contents says something else, with a right checksum."""
    header, contents = taken_apart(data)
    made = put_together(header, contents, None)
    size = int(made.split()[2])
    table = taken_apart(made)[0]["sections"]
    text = json.dumps({**header, "sections": {**table, **changed}}).encode()
    head = b"fsbroker 1 %d %08x %08x\n" % (size, len(text), zlib.crc32(text))
    return (head + text).ljust(size) + made[size:]


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def refuses(call, *kinds):
    """That a call fails so, and takes neither memory nor time for it."""
    before, start = peak(), time.process_time()
    with pytest.raises(kinds or (FileDamaged, FileRefused)) as caught:
        call()
    assert peak() - before < 64 << 20
    assert time.process_time() - start < 2
    return str(caught.value)


def test_sections_of_a_sparse_file_take_no_memory(spool):
    data = with_sections(corpus.task_files()[0], rows=[4096, HUGE - 4096, 0])
    path = put(spool, spool.area.task_file(corpus.STEM), data, HUGE)
    assert path in refuses(lambda: Container(spool.files, path).read("rows"))


def test_a_header_of_any_length_takes_no_memory(spool):
    for length in (HUGE, -1, 1 << 80):
        data = b"fsbroker 1 2048 %x 00000000\n" % length
        path = put(spool, spool.area.blob(corpus.BLOB), data, HUGE)
        assert path in refuses(lambda path=path: Container(spool.files, path), FileDamaged)


def test_sections_that_share_bytes_are_refused(spool):
    data = with_sections(corpus.task_files()[0])
    offset, length, checksum = taken_apart(data)[0]["sections"]["rows"]
    for place in ([offset, length, checksum], [offset + length - 1, 1, 0]):
        path = put(spool, spool.area.blob(corpus.BLOB), with_sections(data, again=place))
        assert "overlap" in refuses(lambda path=path: Container(spool.files, path))


def test_a_blob_that_is_larger_than_memory(spool):
    length = 2 * container.LARGEST_READ & ~7
    data = with_sections(corpus.blobs()[0], array=[4096, length, 0])
    path = put(spool, spool.area.blob(corpus.BLOB), data, 4096 + length)
    ref = ArrayRef("<f8", (length // 8,), "C", Blob(corpus.BLOB))
    refuses(lambda: read_arrays(spool.files, spool.area, [ref]))
    assert path.endswith(corpus.BLOB)


def test_one_blob_many_times_is_refused(spool):
    """65,535 places of a row may name the same one: a small file, and all memory."""
    put(spool, spool.area.blob(corpus.BLOB), corpus.blobs()[0])
    one = ArrayRef("<f8", (1 << 20,), "C", Blob(corpus.BLOB))
    refuses(lambda: read_arrays(spool.files, spool.area, [one] * 65535), FileRefused)


def test_arrays_that_are_no_numbers_are_refused(spool):
    """Of objects: their bytes would be addresses."""
    header, contents = taken_apart(corpus.result_files()[0])
    for dtype in ("|O", "|O8", "<U999999999", "|V0", "<M8[ns]", "f8,f8", ["<f8"]):
        index = json.loads(contents["array_index"])
        index[0][0] = dtype
        data = put_together(header, {**contents, "array_index": json.dumps(index).encode()}, None)
        path = put(spool, spool.area.blob("file"), data)
        assert path in refuses(lambda path=path: ResultFile(spool.files, path).outcome(2))


@pytest.mark.parametrize("name", ["../../../../secret", "/etc/passwd", "a" * 40, ""])
def test_names_of_blobs_stay_in_their_place(spool, name):
    header, contents = taken_apart(corpus.result_files()[0])
    index = json.loads(contents["array_index"])
    index[0] = ["<f8", 0, [9], "C", 0, name]
    data = put_together(header, {**contents, "array_index": json.dumps(index).encode()}, None)
    path = put(spool, spool.area.blob("file"), data)
    refuses(lambda: ResultFile(spool.files, path).outcome(2))


def test_a_pack_deletes_nothing_but_what_packs_replace(spool, tmp_path):
    (tmp_path / "precious").touch()
    area = spool.area
    mine = put(spool, area.task_file(corpus.STEM), corpus.task_files()[0])
    names = ["../precious", f"{area.path}/packs/../../../../precious", mine, "spool.yaml"]
    header, contents = taken_apart(corpus.result_files()[0])
    for name in names:
        wanted = {**header, "kind": "pack", "meta": {"inputs": [name]}}
        path = put(spool, area.pack(1, "7" * 16), put_together(wanted, contents, None))
        tiers = Tiers(spool.files, area.packs, 1 << 30)
        tiers.drop_inputs()
        assert tiers.inputs() == set()
        assert tiers.due() is None
        assert not is_merged(area.path, name)
        assert (tmp_path / "precious").exists()
        assert os.path.exists(f"{spool.files.root}/{mine}")
    assert path in Census(spool.files, area).packs()


def test_an_unreadable_pack_stops_nobody(tmp_path):
    """Clients and agents go on, and other results are found and packed."""
    hand = ByHand(tmp_path / "spool")
    put(hand.spool, hand.area.pack(1, "7" * 16), corpus.blobs()[0])
    os.mkfifo(f"{hand.root}/{hand.area.pack(1, '8' * 16)}")
    hand.submit("a", "b")
    hand.run()
    results = Results(hand.files, hand.area)
    results.poll(deep=True)
    assert len(results.damaged) <= 2
    packs.cycle(hand.files, hand.area)


def test_no_record_makes_an_owner_of_a_path(spool):
    """Whoever recovers rows makes, and seals, the directory of their owner."""
    claim = f"claim {'a' * 16} {'b' * 16} 0-1 -"
    assert parse(claim) is not None
    for owner in ("../../../../home", "a/b", "a" * 15, "A" * 16, "", "\n" * 16):
        assert parse(claim.replace("a" * 16, owner)) is None


def test_no_log_is_too_much(spool):
    """Many ranges, more owners than there is room for, numbers of any length."""
    fold = Fold(4096)
    ranges = ",".join(["0-4095"] * 500)
    start = time.process_time()
    for number in range(200):
        fold.apply(parse(f"ready {number:016x} t {ranges} -"))
    assert time.process_time() - start < 2
    for number in range(66000):
        fold.apply(parse(f"claim {number:016x} t 7 -"))
        fold.apply(parse(f"release {number:016x} t 7 free"))
    assert len(fold.agents) <= 65536
    assert parse(f"claim {'a' * 16} t {'9' * 900} -") is not None
    assert Fold.from_json(fold.to_json().encode()).to_json() == fold.to_json()


def test_a_checkpoint_of_another_size_is_not_taken(spool):
    """It would let rows vanish."""
    os.makedirs(f"{spool.files.root}/{spool.area.log(corpus.STEM)}")
    records = [f"{Kind.READY.value} {'a' * 16} t 0 -"] * 66
    for number, record in enumerate(records):
        spool.files.symlink(
            record, spool.area.record(corpus.STEM, number if number < 64 else number + 1)
        )
    put(spool, spool.area.record(corpus.STEM, 64), corpus.logs()[1])
    log = Log(spool.files, spool.area, corpus.STEM, Fold(1))
    log.refresh()
    assert len(log.fold.state) == 1


def test_a_file_named_as_another_reads_as_none(spool):
    """A task file with more rows than its name says, whose log would be folded too short."""
    name = corpus.STEM.replace("-4-1", "-3-1")
    path = put(spool, spool.area.task_file(name), corpus.task_files()[0])
    entries = Census(spool.files, spool.area)
    assert list(entries.task_files()) == []
    assert path in entries.unreadable


def test_ids_of_jobs_are_no_options(spool):
    intent = {"kind": "intent", "token": "5" * 16, "scheduler": "slurm", "by": "x"}
    jobs = [{"kind": "job", "of": n, "by": "x"} for n in range(3)]
    said = [intent] * 3 + [
        {**one, "id": text} for one, text in zip(jobs, ("17", "--user=root", "1 2"), strict=True)
    ]
    for number, record in enumerate(said):
        spool.files.symlink(json.dumps(record), spool.area.job_record(number))
    log = JobLog(spool.files, spool.area)
    log.refresh()
    assert [job.id for job in log.jobs.values()] == ["17", "", ""]


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "format: 1\nlock: *i\ndurability: fsync\n",
        "[" * 60000,
        "format: !!python/object/apply:os.system ['exit 1']\nlock: flock\ndurability: fsync",
        "- 1",
        "",
        "format: 1\nlock: flock\ndurability: sometimes",
    ],
    ids=["bomb", "deep", "code", "list", "empty", "word"],
)
def test_settings_of_a_spool_that_are_none(spool, text):
    put(spool, "spool.yaml", text.encode())
    assert "spool.yaml" in refuses(lambda: open_spool(spool.files.root), FileDamaged)


# -- HDF5 --------------------------------------------------------------------------------


def test_hdf5_is_never_parsed_to_read_a_spool(tmp_path, monkeypatch):
    """External storage in a file of the spool leads nowhere: nobody asks HDF5 what it says."""
    hand = ByHand(tmp_path / "spool")
    hand.submit("a", "b")
    hand.run()
    for name in ("File",):
        monkeypatch.setattr(h5py, name, _must_not_be_called)
    monkeypatch.setattr(h5py.h5f, "open", _must_not_be_called)
    results = Results(hand.files, hand.area)
    results.poll(deep=True)
    assert results.find(key_of("nothing")) is None
    assert [len(file.keys) for file in results.news()] == [2]
    assert [len(entry.tasks.keys) for entry in Census(hand.files, hand.area).task_files()] == [2]


def _must_not_be_called(*_, **__):
    raise AssertionError("HDF5 was asked")


def _external(file, secret):
    file.create_dataset("function", (6,), "u1", external=[(str(secret), 0, 6)])


def _soft(file, _):
    file["function"] = h5py.SoftLink("/output")


def _other_file(file, secret):
    file["function"] = h5py.ExternalLink(str(secret), "/x")


def _virtual(file, _):
    layout = h5py.VirtualLayout((6,), "u1")
    file.create_virtual_dataset("function", layout)


def _bomb(file, _):
    file.create_dataset("function", (1 << 30,), "u1", chunks=(1 << 20,), compression="gzip")


def _objects(file, _):
    file.create_dataset("function", (1,), h5py.string_dtype())


@pytest.mark.parametrize("plant", [_external, _soft, _other_file, _virtual, _bomb, _objects])
def test_a_cache_file_of_executorlib_holds_its_content_itself(tmp_path, plant):
    (tmp_path / "secret").write_text("secret")
    path = tmp_path / f"f{'0' * 32}_o.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("output", data=np.void(b"\x80\x05N."))
        plant(file, tmp_path / "secret")
    assert "what executorlib stores" in refuses(lambda: executorlib_files.read(str(path)))
