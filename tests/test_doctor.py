"""`fsbroker doctor`: its verdict on file systems that are good, and on some known to be bad."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from fsbroker import cli
from fsbroker.cli import doctor
from fsbroker.doctor import launching, partners, purges
from fsbroker.doctor.probes import Own, Pair
from fsbroker.doctor.verdict import Level, Sides, examine
from fsbroker.spool.spool import Settings, create, open_spool, read_settings, record
from fsbroker.spool.watch import LAST_DELAY, Polling, watch
from tests.testbed.faultfs import FaultFS
from tests.testbed.nfs import run_in_nfs
from tests.testbed.shell import Shell

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "mpi", lambda *_: ())  # it takes seconds, and has a test below
    return Shell(tmp_path / "a spool", capsys)


@pytest.fixture
def ssh(tmp_path):
    """A command like ssh that runs what it is given here, behind the words given to it."""

    def make(*before: str) -> str:
        script = tmp_path / f"ssh{len(before)}"
        script.write_text(f'#!/bin/sh\nshift\nexec {" ".join(before)} sh -c "$*"\n')
        script.chmod(0o755)
        return str(script)

    return make


def levels(told):
    """The worst level of each topic."""
    found: dict[str, int] = {}
    for one in told["findings"]:
        level = Level[one["level"].upper()]
        found[one["topic"]] = max(level, found.get(one["topic"], 0))
    return found


def said(told, topic):
    return " ".join(one["found"] for one in told["findings"] if one["topic"] == topic)


RULES = ("names", "links", "races", "locks", "sight")
"""Topics that say whether the protocol's rules hold, and what they cost."""


# -- good ones -----------------------------------------------------------------------------


def test_a_local_file_system_is_fit(shell, tmp_path):
    code, told = shell.json("doctor")
    assert code in (cli.OK, cli.FLAWED)  # it lies in /tmp, which may be purged
    assert {topic: levels(told)[topic] for topic in RULES} == dict.fromkeys(RULES, Level.FINE)
    settings = {"lock": "flock", "durable": True, "nudge": False, "pause": 0.0}
    assert told["recorded"] == {**settings, "sharing": "private"}
    assert read_settings(open_spool(shell.spool).files) == Settings("flock", durable=True)
    assert sorted(path.name for path in Path(shell.spool).iterdir()) == ["spool.yaml", "users"]
    assert levels(told)["partners"] == Level.NOTE  # of other machines it says nothing


def test_with_a_peer_both_sides_are_measured(shell, ssh):
    code, told = shell.json("doctor", "--peer", "there", "--ssh", ssh("unshare", "--uts"))
    assert code in (cli.OK, cli.FLAWED)
    pairs = {
        one["found"].rpartition(", ")[2].partition(":")[0]
        for one in told["findings"]
        if one["topic"] == "races"
    }
    assert len(pairs) == 2
    assert "partners" not in levels(told)
    assert {topic: levels(told)[topic] for topic in RULES} == dict.fromkeys(RULES, Level.FINE)
    assert levels(told)["clocks"] == Level.FINE


@pytest.mark.parametrize("size", ["size=8m,nr_inodes=1m", "size=2g,nr_inodes=2000"])
def test_memory_is_not_durable_and_that_is_said(shell, tmp_path, size):
    """And there is little of it: bytes, or inodes."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "t", tmp_path], check=False).returncode:
        pytest.skip("cannot mount a tmpfs")
    try:
        code, told = shell.json("doctor")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert code == cli.FLAWED
    assert "tmpfs" in said(told, "purge")
    assert levels(told)["room"] == Level.WARNING
    assert levels(told)["races"] == Level.FINE


def test_a_dry_run_records_nothing(shell):
    spool = create(shell.spool)
    record(spool, Settings("none", durable=False))
    assert shell.json("doctor", "--dry-run")[1]["recorded"] == {}
    assert read_settings(spool.files).lock == "none"
    shell.run("doctor")
    assert read_settings(spool.files) == Settings("flock", durable=False)


# -- bad ones ------------------------------------------------------------------------------


@pytest.fixture
def two_mounts(tmp_path):
    """One directory as two hosts with caches see it, whose locks are unknown to each other."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    with ExitStack() as stack:
        for name in ("real", "a", "b"):
            (tmp_path / name).mkdir()
        for name in ("a", "b"):
            options = "entry_timeout=3,negative_timeout=3,attr_timeout=3"
            command = ["bindfs", "-o", options, str(tmp_path / "real"), str(tmp_path / name)]
            if subprocess.run(command, check=False, capture_output=True).returncode:
                pytest.skip("cannot mount by FUSE")
            stack.callback(subprocess.run, ["umount", "-l", tmp_path / name], check=True)
        yield tmp_path / "a" / "spool", tmp_path / "b" / "spool"


def test_locks_that_do_not_exclude_are_found_and_not_used(two_mounts, shell, ssh):
    here, there = two_mounts
    shell.spool = str(here)
    code, told = shell.json("doctor", "--peer", "b", "--ssh", ssh(), "--peer-spool", str(there))
    assert code in (cli.OK, cli.FLAWED)
    assert "flock locks do not exclude, between here and" in said(told, "locks")
    assert "both sides hold it at once" in said(told, "locks")
    assert told["recorded"]["lock"] != "flock"
    assert open_spool(here).files.lock_class == told["recorded"]["lock"]
    assert "(by name: not)" in said(told, "sight")  # the cache of 3 s
    assert levels(told)["races"] == Level.FINE


def test_one_pair_whose_locks_do_not_exclude_is_enough(two_mounts):
    here, there = two_mounts
    here.mkdir()
    with ExitStack() as stack:
        far, near = (
            stack.enter_context(partners.started(partners.hands_in(str(place))))
            for place in (there, here)
        )
        own = Own(str(here))
        pairs = [Pair("with another host", own, far), Pair("here", own, near)]
        assert examine(Sides(own, {}, pairs, str(here))).lock != "flock"


LIES = {
    "no symbolic links": ("symlink,symlinkat:error=EPERM", "races", Level.UNFIT),
    "links that are told but not made": ("link,linkat:retval=0:when=2+", "races", Level.UNFIT),
    "links that fail": ("link,linkat:error=EIO", "races", Level.UNFIT),
    "no locks at all": ("flock:error=ENOLCK", "locks", Level.NOTE),
    "slow listings": ("getdents64:delay_enter=60000", "listing", Level.WARNING),
}


@pytest.mark.strace
@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lie, marks=() if lie == "no symbolic links" else pytest.mark.long)
        for lie in LIES
    ],
)
def test_a_side_whose_calls_lie_is_found_out(shell, ssh, lie):
    inject, topic, level = LIES[lie]
    strace = ssh("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject}")
    code, told = shell.json("doctor", "--peer", "liar", "--ssh", strace)
    assert levels(told)[topic] == level, told
    if level == Level.UNFIT:
        assert code == cli.UNFIT
        assert told["recorded"] == {}
        assert "do not keep a spool here" in told["verdict"]
    if lie == "no locks at all":
        assert told["recorded"]["lock"] == "soft"
    if lie == "slow listings":
        assert told["recorded"]["pause"] >= 0.5


@pytest.mark.fuse
def test_names_that_somebody_else_has_than_was_told_are_found(shell, tmp_path):
    (tmp_path / "disk").mkdir()
    with FaultFS(tmp_path / "disk") as disk:
        disk.rule("link", "*/races*", "lie:EEXIST", 3)
        shell.spool = str(disk.path / "spool")
        code, told = shell.json("doctor")
    assert code == cli.UNFIT
    assert "0 names given twice, " in said(told, "races")


def test_another_python_on_the_other_side_is_named(shell, ssh, tmp_path):
    wrong = tmp_path / "python"
    wrong.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "\n'
        "from fsbroker.doctor import hands\n"
        "hands.environment = lambda: 'cpython27'\n"
        "import sys; hands.serve(sys.argv[-1])\n"
        '" "$@"\n'
    )
    wrong.chmod(0o755)
    code, told = shell.json("doctor", "--peer", "x", "--ssh", ssh(), "--python", str(wrong))
    assert code == cli.FLAWED
    assert "cpython27" in said(told, "versions")


def test_a_peer_that_does_not_answer_is_told_and_the_rest_is_measured(shell, tmp_path):
    code, told = shell.json("doctor", "--peer", "nobody", "--ssh", "false")
    assert code == cli.FLAWED
    assert "nothing was measured with others" in said(told, "partners")
    assert levels(told)["races"] == Level.FINE


def test_files_that_belong_to_somebody_else_make_it_unfit(shell, monkeypatch):
    """As root_squash has it."""
    real = Own.call

    def squashed(self, name, *args, **more):
        found = real(self, name, *args, **more)
        return {**found, "uid": 65534} if name == "status" else found

    monkeypatch.setattr(Own, "call", squashed)
    code, told = shell.json("doctor")
    assert code == cli.UNFIT
    assert levels(told)["links"] == Level.UNFIT


# -- real NFS --------------------------------------------------------------------------------

IN_NFS = """
import json, os, sys
from fsbroker import cli
from fsbroker.cli import doctor
ssh = os.environ["TMPDIR"] + "/ssh"
with open(ssh, "w") as file:
    file.write('#!/bin/sh\\nshift\\nexec sh -c "$*"\\n')
os.chmod(ssh, 0o755)
for version in ("V3", "V4"):
    here, there = (os.environ[version + side] + f"/{version}" for side in "AB")
    peer = ["--peer", "b", "--ssh", ssh, "--peer-spool", there]
    cli.main(["doctor", "--spool", here, "--json", *peer])
    print("END")
"""


@pytest.mark.nfs
@pytest.mark.long
@pytest.mark.timeout(200)
def test_nfs_v3_needs_a_nudge_and_v4_does_not():
    text = run_in_nfs(IN_NFS, timeout=180)
    v3, v4 = (json.loads(part) for part in text.split("END")[:2])
    for told in (v3, v4):
        assert levels(told)["races"] == Level.FINE, told
        assert levels(told)["locks"] == Level.FINE
        assert told["recorded"]["lock"] == "flock"
    assert "(by name: not), between here and" in said(v4, "sight")
    assert v3["recorded"]["nudge"] is True
    assert "was not listed" in said(v3, "sight")
    assert v4["recorded"]["nudge"] is False


# -- nodes ---------------------------------------------------------------------------------


@pytest.mark.slurm
def test_two_nodes_are_measured_through_the_scheduler(slurm, tmp_path, capsys):
    code, told = Shell(tmp_path / "spool", capsys).json("doctor", "--slurm")
    assert code in (cli.OK, cli.FLAWED)
    races = [one["found"] for one in told["findings"] if one["topic"] == "races"]
    assert any("between n1 and n2" in found for found in races), races
    assert any("between here and n1" in found for found in races)
    assert levels(told)["races"] == Level.FINE
    assert {"n1", "n2"} <= {
        one["facts"]["host"] for one in told["findings"] if one["topic"] == "versions"
    }


# -- what is made of it ----------------------------------------------------------------------


def test_what_was_recorded_is_obeyed(tmp_path):
    spool = create(tmp_path)
    record(spool, Settings("soft", durable=True, nudge=True, pause=7.0))
    opened = open_spool(tmp_path)
    assert (opened.files.lock_class, opened.files.ticks, opened.files.pause) == ("soft", True, 7.0)
    watching = watch(str(tmp_path), lambda: None, "polling", pause=opened.files.pause)
    assert isinstance(watching, Polling)
    assert watching.delay == 7.0
    watching.waited()
    assert watching.delay == 7.0 > LAST_DELAY


def test_settings_of_a_version_that_knows_more_are_kept_apart(tmp_path):
    create(tmp_path)
    path = tmp_path / "spool.yaml"
    path.write_text(path.read_text() + "moods: good\n")
    assert open_spool(tmp_path).durable


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("d /data 1777 root root 10d", "10d"),
        ("q /data/spools - - - 4w", "4w"),
        ("d /data 1777 root root -", ""),
        ("d /elsewhere 1777 root root 10d", ""),
        ("d /dat 1777 root root 10d", ""),
        ("r /data/x", ""),
    ],
)
def test_a_purge_that_systemd_is_told_to_do_is_found(tmp_path, monkeypatch, line, told):
    (tmp_path / "x.conf").write_text(f"# a comment\n\n{line}\n")
    monkeypatch.setattr(purges, "CONFIGURED", (str(tmp_path),))
    found = purges.policy("/data/spools/mine")
    assert (told in found) if told else found == ""


def test_of_two_lists_of_one_name_the_first_counts(tmp_path, monkeypatch):
    for name, age in (("etc", "-"), ("lib", "10d")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.conf").write_text(f"d /data 1777 root root {age}\n")
    places = (str(tmp_path / "etc"), str(tmp_path / "lib"))
    monkeypatch.setattr(purges, "CONFIGURED", places)
    assert purges.policy("/data/mine") == ""
    monkeypatch.setattr(purges, "CONFIGURED", places[::-1])
    assert "10d" in purges.policy("/data/mine")


def test_other_purges_are_guessed_from_names(tmp_path, monkeypatch):
    monkeypatch.setattr(purges, "CONFIGURED", ())
    monkeypatch.setenv("SCRATCH", "/data/fast")
    assert "$SCRATCH" in purges.policy("/data/fast/me")
    assert purges.policy("/data/faster/me") == ""
    (tmp_path / "link").symlink_to("/data/fast")
    monkeypatch.setenv("SCRATCH", str(tmp_path / "link"))
    assert "$SCRATCH" in purges.policy("/data/fast/me")
    assert "scratch" in purges.policy("/gpfs/scratch7/me")
    assert purges.policy("/home/me/spool") == ""


def test_ranks_that_do_not_start_are_told():
    found = launching._started(["false", sys.executable, "-c", "pass"])
    assert (found.topic, found.level) == ("mpi", Level.WARNING)
    found = launching._started(["no-such-mpiexec", sys.executable, "-c", "pass"])
    assert found.level == Level.NOTE
