"""Who is alive, judged by one's own clock and never by silence one did not watch (10)."""

import errno
import os
import subprocess

import pytest

from fsbroker.spool import presence
from fsbroker.spool import spool as spools
from fsbroker.spool.layout import Presence
from fsbroker.spool.presence import Observer, Self
from tests.faults.parts import lying

ME, YOU = "a" * 16, "b" * 16


@pytest.fixture
def spool(tmp_path):
    return spools.create(tmp_path / "spool", durable=False)


@pytest.fixture
def clock(spool, monkeypatch):
    """An observer's monotonic clock, moved by hand."""
    time = [100.0]
    monkeypatch.setattr(spool.files, "monotonic", lambda: time[0])
    return time


def watch(observer, clock, polls, beats, *, step=1.0, prompt=True, held=()):
    """Poll so often; the set of agents that were ever called dead."""
    dead = set()
    for number in range(polls):
        clock[0] += step
        seen = [Presence(YOU, beats(number), 0)] if beats else []
        dead |= set(observer.poll(seen, held, prompt))
    return dead


def observer(spool, lease=10.0):
    return Observer(spool.files, spool.area, lease)


def test_who_beats_lives(spool, clock):
    assert watch(observer(spool), clock, 100, lambda number: number) == set()


def test_silence_longer_than_the_lease_is_death(spool, clock):
    one = observer(spool)
    assert watch(one, clock, 11, lambda _: 3) == set()
    assert watch(one, clock, 1, lambda _: 3) == {YOU}


def test_silence_while_the_observer_slept_kills_nobody(spool, clock):
    assert watch(observer(spool), clock, 20, lambda _: 3, step=60.0) == set()


def test_silence_while_the_observers_own_beat_failed_kills_nobody(spool, clock):
    assert watch(observer(spool), clock, 60, lambda _: 3, prompt=False) == set()


def test_a_clock_that_jumps_back_kills_nobody(spool, clock):
    assert watch(observer(spool), clock, 60, lambda _: 3, step=-5.0) == set()


def test_a_late_beat_forgives_all_silence(spool, clock):
    one = observer(spool)
    watch(one, clock, 10, lambda _: 3)
    assert watch(one, clock, 10, lambda _: 4) == set()
    assert watch(one, clock, 3, lambda _: 4) == {YOU}


def test_missing_from_the_listing_is_silence_since_first_seen(spool, clock):
    one = observer(spool)
    assert watch(one, clock, 11, None, held=[YOU]) == set()
    assert watch(one, clock, 2, None, held=[YOU]) == {YOU}


def test_missing_once_is_no_evidence(spool, clock):
    one = observer(spool)
    for number in range(30):
        beats = (lambda _, n=number: n) if number % 2 else None
        assert watch(one, clock, 1, beats, held=[YOU]) == set()


def test_a_dead_process_of_this_host_is_dead_at_once(spool):
    process = subprocess.Popen(["sleep", "60"])
    host = presence.this_host()
    described = {
        **presence.describe(),
        "pid": process.pid,
        "process_start": presence.process_start(process.pid),
    }
    assert host.boot
    Self(spool.files, spool.area, YOU, described).appear()
    one = observer(spool)
    assert one.dead_processes(presence.listing(spool.files, spool.area)) == []
    process.kill()
    process.wait()
    assert one.dead_processes(presence.listing(spool.files, spool.area)) == [YOU]


@pytest.mark.parametrize(
    "changed", [{"boot": "another"}, {"namespace": "pid:[1]"}, {"boot": "", "namespace": ""}]
)
def test_a_pid_of_another_host_or_boot_says_nothing(spool, changed):
    described = {**presence.describe(), "pid": 2**22 + 1, **changed}
    assert not presence.is_dead_process(described)
    assert not presence.is_alive_process({**presence.describe(), **changed})


def test_a_pid_that_was_used_again_is_dead():
    described = {**presence.describe(), "process_start": "1"}
    assert presence.is_dead_process(described)
    assert presence.is_alive_process(presence.describe())


def test_a_beat_renames_the_own_file(spool):
    me = Self(spool.files, spool.area, ME, {"host": "n1"})
    me.appear()
    assert me.beat(3)
    assert presence.listing(spool.files, spool.area) == [Presence(ME, 1, 3)]
    assert presence.about(spool.files, spool.area, Presence(ME, 1, 3)) == {"host": "n1"}
    me.vanish()
    assert presence.listing(spool.files, spool.area) == []


def test_a_beat_without_a_file_says_so(spool):
    me = Self(spool.files, spool.area, ME, {})
    me.appear()
    presence.remove(spool.files, spool.area, ME)
    assert not me.beat(0)
    me.appear()
    assert me.beat(0)


def test_a_beat_that_was_done_counts_whatever_the_reply(spool):
    files, liar = lying(spool)
    me = Self(liar.files, liar.area, ME, {})
    me.appear()
    files.after["rename"] = [OSError(errno.EIO, "a lie")]
    assert me.beat(1)
    assert me.beat(2)
    files.before["rename"] = [OSError(errno.EIO, "true")]
    with pytest.raises(OSError, match="true"):
        me.beat(3)
    assert me.beat(3)
    assert [one.published for one in presence.listing(spool.files, spool.area)] == [3]


def test_strange_names_are_ignored(spool):
    for name in ("x", f"{ME}.1", f"{ME}.1.2~", ".nfs0001", f"{ME}.-1.0"):
        open(f"{spool.files.root}/{spool.area.agents}/{name}", "w").close()
    os.mkdir(f"{spool.files.root}/{spool.area.agents}/directory")
    assert presence.listing(spool.files, spool.area) == []
