"""Publishing: once, whole, and known for what it is when replies lie (rule 1)."""

import errno
import os
import threading

import pytest

from fsbroker.errors import SpoolFull
from fsbroker.spool import spool as spools
from fsbroker.spool.container import image, token_of
from fsbroker.spool.publish import publish
from tests.faults.parts import lying


@pytest.fixture
def spool(tmp_path):
    return spools.create(tmp_path / "spool", durable=False)


def made(token="a" * 16):
    return image(token, "blob", {}, {"text": b"content"})


def error(number):
    return OSError(number, os.strerror(number))


def final(spool):
    return f"{spool.area.path}/blobs/final"


def test_the_order_of_calls_is_the_rule(spool):
    files, liar = lying(spool)
    assert publish(files, liar.area, made(), final(spool), durable=True)
    names = [name for name, _ in files.calls]
    assert names == ["write_new", "link", "unlink", "sync_directory"]
    assert files.calls[-1][1] == f"{spool.area.path}/blobs"
    assert spool.files.names(spool.area.tmp) == []


def test_without_durability_the_directory_is_not_synced(spool):
    files, liar = lying(spool)
    assert publish(files, liar.area, made(), final(spool), durable=False)
    assert "sync_directory" not in [name for name, _ in files.calls]


def test_a_taken_name_is_left_as_it_is(spool):
    assert publish(spool.files, spool.area, made(), final(spool), durable=False)
    assert not publish(spool.files, spool.area, made("b" * 16), final(spool), durable=False)
    assert token_of(spool.files, final(spool)) == "a" * 16
    assert spool.files.names(spool.area.tmp) == []


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO, errno.ENOENT, errno.ESTALE])
def test_a_link_that_was_done_counts_whatever_the_reply(spool, number):
    files, liar = lying(spool)
    files.after["link"] = [error(number)]
    assert publish(files, liar.area, made(), final(spool), durable=True)
    assert token_of(spool.files, final(spool)) == "a" * 16


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_a_link_that_was_not_done_is_tried_again(spool, number):
    files, liar = lying(spool)
    files.before["link"] = [error(number), error(number)]
    assert publish(files, liar.area, made(), final(spool), durable=True)


def test_a_link_that_is_never_done_is_an_error(spool):
    files, liar = lying(spool)
    files.before["link"] = [error(errno.EIO)] * 50
    with pytest.raises(OSError, match="Input/output"):
        publish(files, liar.area, made(), final(spool), durable=True)
    assert token_of(spool.files, final(spool)) is None


def test_a_swept_temporary_file_is_written_again(spool):
    files, liar = lying(spool)
    link = files.link

    def swept_before_the_link(source, path):
        files.link = link
        spool.files.unlink(source)
        link(source, path)

    files.link = swept_before_the_link
    assert publish(files, liar.area, made(), final(spool), durable=True)
    assert token_of(spool.files, final(spool)) == "a" * 16


def test_a_failed_write_publishes_nothing(spool):
    files, liar = lying(spool)
    files.before["write_new"] = [SpoolFull("no space", final(spool), "free some")]
    with pytest.raises(SpoolFull):
        publish(files, liar.area, made(), final(spool), durable=True)
    assert "link" not in [name for name, _ in files.calls]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_fsync_publishes_nothing(spool, monkeypatch, number):
    def fsync(_):
        raise error(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises((OSError, SpoolFull)):
        publish(spool.files, spool.area, made(), final(spool), durable=True)
    monkeypatch.undo()
    assert spool.files.names(spool.area.blobs) == []
    assert spool.files.names(spool.area.tmp) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
def test_nothing_is_published_before_what_it_rests_on_is_durable(spool, number):
    """The log's directory must be synced first; a second fsync that succeeds proves nothing."""
    files, liar = lying(spool)
    files.before["sync_directory"] = [error(number)]
    first = [spool.area.claims]
    with pytest.raises(OSError):
        publish(files, liar.area, made(), final(spool), durable=True, first=first)
    assert token_of(spool.files, final(spool)) is None
    assert spool.files.names(spool.area.tmp) == []


def test_an_unsynced_directory_is_an_error(spool):
    files, liar = lying(spool)
    files.before["sync_directory"] = [error(errno.EIO)]
    with pytest.raises(OSError, match="Input/output"):
        publish(files, liar.area, made(), final(spool), durable=True)


def test_one_of_many_publishers_wins(spool):
    barrier = threading.Barrier(8)
    won = []

    def race(number):
        for turn in range(20):
            barrier.wait(30)
            token = f"{number:08d}{turn:08d}"
            path = f"{final(spool)}{turn}"
            if publish(spool.files, spool.area, made(token), path, durable=False):
                won.append((turn, token))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(turn for turn, _ in won) == list(range(20))
    for turn, token in won:
        assert token_of(spool.files, f"{final(spool)}{turn}") == token


def test_two_first_clients_agree_on_the_settings(tmp_path):
    barrier, opened = threading.Barrier(4), []

    def first(durable):
        barrier.wait(30)
        opened.append(spools.create(tmp_path / "new", durable=durable))

    threads = [threading.Thread(target=first, args=(n % 2 == 0,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({spool.durable for spool in opened}) == 1
    assert len(opened) == 4
    assert os.stat(tmp_path / "new").st_mode & 0o077 == 0
