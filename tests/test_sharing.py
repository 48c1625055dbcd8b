"""What users of a shared spool have of each other, and what they do not."""

import json
import os
import stat

import pytest

from fsbroker.config import load
from fsbroker.errors import ConfigError, SpoolError, SpoolUnsafe
from fsbroker.launch.settings import in_task
from fsbroker.spool import spool as spools
from fsbroker.spool.sharing import READABLE
from fsbroker.spool.trust import Trust, Trusted

pytestmark = pytest.mark.users


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


# -- modes -----------------------------------------------------------------------------------


def test_modes_are_set_whatever_the_umask(lab):
    lab.publish(lab.b, ["plain", 1, ["plain", 7]])  # with umask 077
    assert (mode(lab.spool), mode(lab.spool / "users")) == (0o2750, 0o3770)
    assert mode(lab.spool / "spool.yaml") == 0o640
    for user in (lab.a, lab.b):
        area = lab.area(user)
        assert mode(area) == 0o2750
        assert {one.name for one in area.iterdir() if mode(one) == 0o2750} == READABLE
        assert {mode(one) for one in area.iterdir() if one.name not in READABLE} == {0o2700}
    paths = [*lab.area(lab.b).rglob("*")]
    assert {path.stat().st_gid for path in paths} == {lab.accounts.group}
    assert {mode(path) for path in paths if path.parent.name == "results"} == {0o2750}
    assert {mode(path) for path in paths if path.is_file()} == {0o640}


def test_a_private_spool_is_for_its_owner_alone(lab, tmp_path):
    spool = spools.create(tmp_path / "private")
    assert mode(tmp_path / "private") == 0o700
    assert {mode(path) for path in (tmp_path / "private").rglob("*") if path.is_dir()} == {0o700}
    assert not spool.files.shared


def test_several_groups_come_in_by_acls(lab):
    spool = lab.home_of(lab.a) / "project"
    done = lab.cli(lab.a, "cache", "share", "--group", lab.a.gid, "--group", lab.accounts.group,
                   spool=spool)  # fmt: skip
    assert done.code == 0, done.err
    assert "sharing: project" in (spool / "spool.yaml").read_text()
    lab.do(lab.a, "publish", spool=spool, results=[["plain", 1, ["plain", {"by": "a"}]]])
    found = lab.do(lab.b, "look", spool=spool, calls=[["plain", 1]], trust=[lab.a.name])
    assert found["values"] == ["{'by': 'a'}"], found
    assert stat.S_IMODE(os.stat(spool).st_gid) != lab.accounts.group  # the second of them


def test_where_there_are_no_acls_several_groups_are_refused(lab, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(SpoolError, match=r"no POSIX ACLs.*Name one group"):
        spools.share(tmp_path / "spool", [0, 1])


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("", 0o2770, r"Others may write in this directory \(mode 2770\).*chmod go-w"),
        ("users", 0o2770, r"mode 2770.*cache share"),
        ("users", 0o770, r"mode 0770"),
        ("users", 0o755, r"is group, and users/ is not sticky and setgid"),
        ("users/u0", 0o2770, r"mode 2770.*chmod go-w"),
        ("users/u0/results", 0o2770, r"users/u0/results.*chmod go-w"),
    ],
)
def test_directories_that_others_may_write_in_are_refused(tmp_path, name, wrong, told):
    spools.share(tmp_path / "spool", [0])
    (tmp_path / "spool" / name).chmod(wrong)
    for opened in (spools.create, spools.open_spool):
        with pytest.raises(SpoolUnsafe, match=told):
            opened(tmp_path / "spool")


def test_only_who_made_a_spool_shares_it(lab):
    done = lab.cli(lab.b, "cache", "share", "--group", lab.accounts.group)
    assert done.code == 1
    assert f"Only user {lab.a.uid}, who made it, can share it" in done.err


def test_a_private_spool_is_shared_with_what_it_holds_and_closed_again(lab):
    spool = lab.home_of(lab.b) / "mine"
    code = "from fsbroker.spool.spool import create; create(spool)"
    lab.attempt(lab.b, code, spool=spool)
    lab.do(lab.b, "publish", spool=spool, results=[["array", 300_000, ["plain", 5]]])
    share = ["cache", "share"]
    assert "Name a --group" in lab.cli(lab.b, *share, spool=spool).err
    assert lab.cli(lab.b, *share, "--group", lab.accounts.group, spool=spool).code == 0

    def seen():
        found = lab.do(lab.a, "look", spool=spool, calls=[["array", 300_000]], trust=[lab.b.name])
        return found["values"]

    assert seen() == ["5"]
    assert lab.cli(lab.b, "cache", "unshare", spool=spool).code == 0
    lab.attempt(lab.a, "import shutil; shutil.rmtree(mine)", mine=spool / "users" / f"u{lab.a.uid}")
    assert seen() == [None]
    assert lab.cli(lab.b, *share, spool=spool).code == 0
    lab.attempt(lab.a, "import shutil; shutil.rmtree(mine)", mine=spool / "users" / f"u{lab.a.uid}")
    assert seen() == ["5"]


# -- trust -----------------------------------------------------------------------------------


def test_a_trust_list_names_users_and_groups(lab):
    a, b, group = lab.a, lab.b, lab.accounts.group
    trusted = Trusted([a.name, f"{b.uid}:plain"])
    assert [trusted.of(uid) for uid in (a.uid, b.uid, lab.c.uid)] == [2, 1, 0]
    trusted = Trusted([f"@{group}:plain", b.name])
    assert [trusted.of(uid) for uid in (a.uid, b.uid, 1)] == [1, 2, 0]
    assert Trusted([f"@{group}"]).of(a.uid) == Trust.CODE
    for entry in ("nobody-like-that", "@no-such-group:plain"):
        with pytest.raises(ConfigError, match="user:plain"):
            Trusted([entry])


def test_a_value_is_taken_from_whom_one_trusts_and_plain_data_from_more(lab):
    lab.publish(lab.b, ["plain", 1, ["plain", {"by": "b"}]], ["pickled", 4, ["bomb", "/x"]])
    calls = ["plain", 1], ["pickled", 4]
    assert lab.look(lab.a, *calls)["values"] == [None, None]
    found = lab.look(lab.c, *calls, trust=[f"{lab.b.name}:plain"])
    assert found["values"] == ["{'by': 'b'}", None]
    assert found["unpickled"] == []


def test_two_users_compute_a_key_once_and_a_third_who_trusts_nobody_again(lab):
    calls = [["plain", 3], ["pickled", 4], ["array", 200_000]]
    first = lab.look(lab.b, *calls, backend="local", timeout=60)
    assert first["values"][0] == f"{{'by': {lab.b.uid}, 'n': 3}}"
    second = lab.look(lab.c, *calls, trust=[lab.b.name])
    assert second["values"] == first["values"]
    assert second["keys"] == first["keys"]
    again = lab.look(lab.a, calls[0], backend="local", timeout=60)
    assert again["values"] == [f"{{'by': {lab.a.uid}, 'n': 3}}"]


def test_what_was_taken_over_stays_and_says_where_it_is_from(lab):
    lab.publish(lab.b, ["plain", 1, ["plain", 7]], origin={"host": "n7", "version": "3.11.2"})
    key = lab.look(lab.c, ["plain", 1], trust=[lab.b.name])["keys"][0]
    lab.attempt(lab.b, "import shutil; shutil.rmtree(area)", area=lab.area(lab.b))
    assert lab.look(lab.c, ["plain", 1])["values"] == ["7"]
    (record,) = json.loads(lab.cli(lab.c, "cache", "show", key[:12], "--json").out)
    assert (record["user"], record["through"]) == (lab.c.name, [lab.b.name])
    assert (record["host"], record["python"], record["value"]) == ("n7", "3.11.2", "7")
    assert lab.look(lab.a, ["plain", 1], trust=[lab.c.name])["values"] == ["7"]
    records = json.loads(lab.cli(lab.a, "cache", "show", key[:12], "--json").out)
    ways = {one["user"]: one["through"] for one in records}
    assert ways[lab.a.name] == [lab.c.name, lab.b.name]


def test_dependents_of_a_value_that_was_taken_over_find_it(lab):
    """They run in the reader's agents, which know of nobody else."""
    lab.publish(lab.b, ["array", 1000, ["plain", [1, 2]]])
    code = """
from fsbroker import ClusterExecutor
with ClusterExecutor(spool, backend="local", trust=[friend], max_workers=1, idle_timeout=0.2) as e:
    found = e.submit(sum, e.submit(array, 1000)).result(60)
"""
    assert lab.attempt(lab.a, code, friend=lab.b.name) == {"found": 3}


def test_packing_keeps_what_was_taken_over(lab):
    """Packs tell outcomes apart by their rows."""
    for n in range(10):
        lab.publish(lab.b, ["plain", n, ["plain", n]])
        assert lab.look(lab.c, ["plain", n], trust=[lab.b.name])["values"] == [str(n)]
    code = """
from fsbroker.spool import packs
files, area, _ = open_spool(spool)
found = packs.cycle(files, area)
"""
    assert lab.attempt(lab.c, code) == {"found": True}
    assert len(list((lab.area(lab.c) / "packs").iterdir())) == 1
    values = lab.look(lab.c, *[["plain", n] for n in range(10)])["values"]
    assert values == [str(n) for n in range(10)]


def test_tasks_submit_to_a_spool_in_their_users_own_area(tmp_path, monkeypatch):
    """In the root of a shared one only its maker can put anything."""
    for name, groups, place in (("a", [0], "users/u0/nested"), ("b", [], "nested")):
        spool = str(tmp_path / name)
        spools.share(spool, groups) if groups else spools.create(spool)
        slot = {"spools": [spool], "nodes": ["n"], "ranks": 1, "threads": 1, "nested": False}
        monkeypatch.setattr("fsbroker.launch.settings.own_slot", lambda slot=slot: slot)
        assert in_task(load(spool=spool)).spool == f"{spool}/{place}"
        assert not spools.create(f"{spool}/{place}").files.shared


# -- commands --------------------------------------------------------------------------------


def test_commands_show_whose_results_there_are_and_touch_ones_own(lab):
    lab.publish(lab.a, ["plain", 1, ["plain", 1]])
    lab.publish(lab.b, ["plain", 1, ["plain", 2]], ["pickled", 1, ["bomb", f"{lab.marks}/x"]])
    listed = json.loads(lab.cli(lab.a, "cache", "ls", "--json").out)
    assert sorted((one["user"], one["encoding"]) for one in listed) == sorted(
        [(lab.a.name, "plain"), (lab.b.name, "plain"), (lab.b.name, "pickle")]
    )
    stats = json.loads(lab.cli(lab.a, "cache", "stats", "--json").out)
    assert [(one["user"], one["results"], one["trust"]) for one in stats] == [
        (lab.a.name, 1, "self"), (lab.b.name, 2, "nothing"),
    ]  # fmt: skip
    done = lab.cli(lab.a, "cache", "verify")
    assert done.code == 1
    assert f"{lab.a.name} and {lab.b.name} have different values" in done.out
    pruned = lab.cli(lab.a, "cache", "prune", "--older-than", "0s", "--json")
    assert pruned.code == 0, pruned.err
    left = json.loads(lab.cli(lab.b, "cache", "ls", "--json").out)
    assert {one["user"] for one in left if one["path"].startswith(f"users/u{lab.b.uid}")} == {
        lab.b.name
    }
    assert not (lab.marks / "x").exists()
