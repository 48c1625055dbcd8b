"""Each row of the threat table, tried by another account, and what the victim is told.

    row  asset             path of the attack                       test
    S1   the account       pickle planted in the cache              test_s1_*
    S2   the account       forged result of somebody one shares     test_s2_*
                           with, forged owner, key of another call
    S3   private files     HDF5 external storage                    test_s3_*
    S4   liveness          locks held for ever, signals             test_s4_*
    S5   files             links at names that will be used,        test_s5_*
                           files of others removed or renamed
    S6   the reader        FIFO, device, directory, huge file       test_s6_*
    S7   the reader        content swapped between check and load   test_s7_*
    S8   secrets           modes, command lines, logs               test_s8_*
    S9   the account       a task put where another's agents look   test_s9_*
    S11  files             paths and control characters in names    test_s11_*
    S12  the shell         commands in names of partitions, paths   test_s12_*
    S13  root              root in a user's spool                   test_s13_*
         the disk          a quota that others have filled          test_a_full_*

(S10, malformed files, is tested where files are read.) The attacker is ``lab.b``, the victim
``lab.a`` or ``lab.c``; the attacker is in the group of the spool, as colleagues are.
"""

import json
import os
import stat
import subprocess

import pytest

from fsbroker import ClusterExecutor
from fsbroker.errors import ResourceError, SpoolUnwritable
from fsbroker.spool import spool as spools

pytestmark = pytest.mark.users

CALL = ["plain", 1]


def bomb(lab, *, function="plain"):
    """A result for a call that the victim will make, which is code."""
    return [function, 1, ["bomb", str(lab.marks / "bang")]]


def exploded(lab):
    return (lab.marks / "bang").exists()


# -- S1 --------------------------------------------------------------------------------------


def test_s1_a_pickle_in_the_attackers_own_area_is_not_read(lab):
    lab.publish(lab.b, bomb(lab))
    found = lab.look(lab.a, CALL)
    assert (found["values"], found["unpickled"], exploded(lab)) == ([None], [], False)
    assert not [path for path in found["opened"] if f"u{lab.b.uid}" in path]


def test_s1_a_pickle_cannot_be_put_into_the_victims_area(lab):
    lab.publish(lab.a, ["plain", 2, ["plain", 2]])
    code = """
path = spool + "/users/u{}/results/" + "a" * 16
os.mkdir(path)
""".replace("{}", str(lab.a.uid))
    assert "PermissionError" in lab.attempt(lab.b, code)["error"]


def test_s1_a_group_writable_area_is_refused_and_what_was_put_there_is_not_opened(lab):
    lab.publish(lab.a, ["plain", 2, ["plain", 2]])
    results = lab.area(lab.a) / "results"
    results.chmod(0o2770)
    planted = lab.publish(lab.b, bomb(lab)).parent
    copied = results / ("f" * 16)
    lab.attempt(lab.b, "os.rename(path, there)", path=planted, there=copied)
    assert (copied / "00000000.h5").stat().st_uid == lab.b.uid
    told = lab.attempt(lab.a, "open_spool(spool)")
    assert "Others may write in this directory (mode 2770)" in told["error"]
    assert "chmod go-w" in told["error"]
    results.chmod(0o2750)
    found = lab.look(lab.a, CALL)
    assert (found["values"], found["unpickled"], exploded(lab)) == ([None], [], False)
    assert "a file of another user" in lab.cli(lab.a, "status").out


# -- S2 --------------------------------------------------------------------------------------


def test_s2_whoever_is_trusted_for_plain_data_has_no_code_run(lab):
    lab.publish(lab.b, bomb(lab), ["plain", 2, ["plain", "fine"]])
    found = lab.look(lab.a, CALL, ["plain", 2], trust=[f"{lab.b.name}:plain", lab.c.name])
    assert (found["values"], found["unpickled"]) == ([None, "'fine'"], [])
    assert not exploded(lab)


def test_s2_a_bit_that_changed_is_told_with_the_file(lab):
    path = lab.publish(lab.b, ["plain", 1, ["plain", "aaaaaaaaaaaaaaaa"]])
    code = """
data = open(path, "rb").read()
at = data.rindex(b"aaaaaaaa")
with open(path, "r+b") as file:
    file.seek(at)
    file.write(b"b")
"""
    assert lab.attempt(lab.b, code, path=path) == {"found": None}
    found = lab.look(lab.a, CALL, trust=[lab.b.name])
    assert found["values"] == [None]
    assert any("Checksum" in told and f"u{lab.b.uid}" in told for told in found["told"])


def test_s2_a_key_with_the_content_of_another_call_is_refused(lab):
    """The poisoned key: what stands under it was made from other arguments."""
    lab.publish(lab.b, ["plain", 2, ["plain", "poison"], 1])
    found = lab.look(lab.a, CALL, trust=[lab.b.name])
    assert found["values"] == [None]
    assert any("claims a key for another call" in told for told in found["told"])
    assert any(found["keys"][0] in told for told in found["told"])


def test_s2_nobody_makes_his_result_anothers(lab):
    """The owner is who owns the file, whatever it says of itself."""
    lab.publish(lab.b, ["plain", 1, ["plain", 1]], origin={"user": lab.a.name, "uid": lab.a.uid})
    assert lab.look(lab.c, CALL, trust=[lab.a.name])["values"] == [None]
    listed = json.loads(lab.cli(lab.c, "cache", "ls", "--json").out)
    assert [one["user"] for one in listed] == [lab.b.name]


def test_s2_what_is_taken_over_ends_no_row_of_the_victim(lab):
    """A result names the row that it is of: here one that waits in the victim's area."""
    key = lab.look(lab.a, ["plain", 7])["keys"][0]
    (task,) = (lab.area(lab.a) / "tasks").iterdir()
    code = """
files, area, _ = open_spool(spool)
made = [outcome("plain", 1, ("plain", 1))._replace(stem=stem, row=0)]
stream = Stream(files, area, files.token())
stream.create()
stream.publish(build(files.token(), made, {}), durable=False)
"""
    assert lab.attempt(lab.b, code, stem=task.stem) == {"found": None}
    assert lab.look(lab.a, CALL, trust=[lab.b.name])["values"] == ["1"]
    (waiting,) = json.loads(lab.cli(lab.a, "tasks", "--json").out)
    assert (waiting["key"], waiting["state"]) == (key, "ready")


# -- S3 --------------------------------------------------------------------------------------


def test_s3_hdf5_of_others_is_not_parsed(lab):
    token = lab.a.home / "token"
    lab.attempt(lab.a, "open(path, 'w').write('secret' * 100)", path=token)
    code = """
import h5py
path = publish(spool, [["plain", 1, ["plain", 1]]])["path"]
os.unlink(path)
with h5py.File(path, "w", userblock_size=2048) as file:
    file.create_dataset("rows", (600,), "u1", external=[(token, 0, 600)])
os.chmod(path, 0o640)
"""
    assert lab.attempt(lab.b, code, token=str(token)) == {"found": None}
    found = lab.look(lab.a, CALL, trust=[lab.b.name])
    assert found["values"] == [None]
    assert str(token) not in found["opened"]
    assert any("Not an fsbroker file" in told for told in found["told"])


# -- S4 --------------------------------------------------------------------------------------

SQUAT = """
import fcntl
held = []
for directory, names, files in os.walk(spool):
    for name in [".", *names, *files]:
        try:
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NONBLOCK)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(os.path.join(directory, name))
        except OSError:
            pass
print(json.dumps(held), flush=True)
sys.stdin.read()
"""


def test_s4_all_locks_that_others_can_hold_stop_nobody(lab):
    lab.look(lab.a, CALL)  # so that the area and its lock files are there
    command = lab.command(lab.b, SQUAT.replace("(spool)", f"({str(lab.spool)!r})"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as squatter:
        held = json.loads(squatter.stdout.readline())
        assert held
        assert not [path for path in held if "/locks/" in path]
        found = lab.look(lab.a, CALL, ["plain", 2], backend="local", timeout=60)
        squatter.stdin.close()
    assert found["values"] == [str({"by": lab.a.uid, "n": n}) for n in (1, 2)]


def test_s4_processes_of_others_cannot_be_signalled(lab):
    with subprocess.Popen(lab.command(lab.a, "sys.stdin.read()"), stdin=subprocess.PIPE) as victim:
        for number in (9, 15, 19):
            told = lab.attempt(lab.b, "os.kill(pid, number)", pid=victim.pid, number=number)
            assert "PermissionError" in told["error"]
        victim.stdin.close()
    assert victim.returncode == 0


# -- S5 --------------------------------------------------------------------------------------


def test_s5_an_area_that_somebody_else_has_made_is_refused(lab):
    area = lab.area(lab.c)
    lab.attempt(lab.b, "os.symlink(there, path)", there=lab.c.home, path=area)
    told = lab.attempt(lab.c, "open_spool(spool)")
    assert "Not a directory (a link?)" in told["error"]
    assert str(area) in told["error"]
    assert os.listdir(lab.c.home) == lab.attempt(lab.c, "found = os.listdir('.')")["found"]
    area.unlink()
    lab.attempt(lab.b, "os.mkdir(path); os.chmod(path, 0o777)", path=area)
    told = lab.attempt(lab.c, "open_spool(spool)")
    assert f"The area of user {lab.c.uid} is owned by {lab.b.uid}" in told["error"]
    assert os.listdir(area) == []


def test_s5_files_of_others_can_be_neither_removed_nor_renamed_nor_changed(lab):
    path = lab.publish(lab.a, ["plain", 1, ["plain", 1]])
    before = path.read_bytes()
    for code in (
        "os.unlink(path)",
        "os.rename(path, path + '.old')",
        "open(path, 'r+b')",
        "os.rename(area, area + '.old')",
        "import shutil; shutil.rmtree(area)",
        "os.rename(spool + '/users', spool + '/others')",
        "os.unlink(spool + '/spool.yaml')",
        "os.chmod(spool + '/users', 0o777)",
    ):
        told = lab.attempt(lab.b, code, path=path, area=lab.area(lab.a))
        assert "PermissionError" in told["error"], code
    assert path.read_bytes() == before


def test_s5_a_file_with_more_names_than_fsbroker_gives_is_refused(lab):
    path = lab.publish(lab.b, ["plain", 1, ["plain", 1]])
    for n in range(3):
        lab.attempt(lab.b, "os.link(path, there)", path=path, there=lab.home_of(lab.b) / str(n))
    found = lab.look(lab.a, CALL, trust=[lab.b.name])
    assert found["values"] == [None]
    assert any("it has 4 names" in told for told in found["told"])


# -- S6 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told"),
    [
        ("os.mkfifo(path)", "not a file"),
        ("os.mkdir(path)", "not a file"),
        ("os.symlink('/dev/zero', path)", "a link"),
        ("import socket; socket.socket(socket.AF_UNIX).bind(path)", "a socket"),
        ("f = open(path, 'wb'); f.truncate(1 << 40); f.close()", "Not an fsbroker file"),
        ("open(path, 'wb').close()", "Not an fsbroker file"),
        ("open(path, 'wb').close(); os.chmod(path, 0o600)", "lets nobody else read it"),
        ("open(path, 'wb').close(); os.chmod(path, 0o660)", "others may write to it"),
        ("open(path, 'wb').close(); os.chmod(path, 0o646)", "others may write to it"),
    ],
    ids=["fifo", "directory", "device", "socket", "sparse", "empty", "closed", "group", "world"],
)
def test_s6_what_is_no_result_file_is_told_and_the_others_are_read(lab, make, told):
    good = lab.publish(lab.b, ["plain", 1, ["plain", "good"]])
    code = f"""
os.umask(0o022)
os.rename(good, good.replace("00000000", "00000001"))
os.chdir(os.path.dirname(good))
path = "00000000.h5"
{make}
"""
    assert lab.attempt(lab.b, code, good=good) == {"found": None}
    found = lab.look(lab.a, CALL, trust=[lab.b.name])
    assert found["values"] == ["'good'"], found
    assert any(told in one and "00000000.h5" in one for one in found["told"])


# -- S7 --------------------------------------------------------------------------------------

SWAP = """
spool, marker = {spool!r}, {marker!r}
good = publish(spool, [["plain", 1, ["plain", 1]]])["path"]
evil = publish(spool, [["plain", 1, ["bomb", marker]]])["path"]
os.rename(evil, good + ".evil")
os.link(good, good + ".good")
print("1", flush=True)
os.chmod(good, 0o640)
n = 0
while not os.path.exists(marker + ".stop"):
    n += 1
    os.link(good + (".evil" if n % 2 else ".good"), good + ".next")
    os.rename(good + ".next", good)
    if os.path.exists(good + ".next"):  # both were names of one file
        os.unlink(good + ".next")
"""


def test_s7_what_is_checked_is_what_is_loaded(lab):
    looks = 2000 if os.environ.get("FSBROKER_LONG") else 100
    text = SWAP.format(spool=str(lab.spool), marker=str(lab.marks / "bang"))
    with subprocess.Popen(lab.command(lab.b, text), stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout.readline() == b"1\n"
        code = """
from fsbroker.spool.neighbours import Neighbours
from fsbroker.spool.trust import Trusted
call = keys.identify(plain).call((1,), {})
opened = open_spool(spool)
found = {"loaded": 0, "unpickled": 0}
sys.addaudithook(lambda event, _: event == "pickle.find_class" and found.update(unpickled=1))
warnings.simplefilter("ignore")
for _ in range(looks):
    others = Neighbours(opened, Trusted([friend]))
    if others.adopt({call.key: call.descriptor}):
        found["loaded"] += 1
"""
        seen = lab.attempt(lab.a, code, looks=looks, friend=f"{lab.b.name}:plain")["found"]
        (lab.marks / "bang.stop").touch()
    assert swapper.returncode == 0
    assert seen["unpickled"] == 0
    assert 0 < seen["loaded"] < looks, "the content was never swapped"
    listed = json.loads(lab.cli(lab.a, "cache", "ls", "--user", lab.a.name, "--json").out)
    assert {one["encoding"] for one in listed} == {"plain"}
    assert not exploded(lab)


# -- S8 --------------------------------------------------------------------------------------


def test_s8_nothing_of_a_private_spool_can_be_read_and_no_command_line_tells(lab):
    spool = lab.home_of(lab.a) / "private"
    secret = "correct-horse-battery"
    code = """
from fsbroker import ClusterExecutor
os.umask(0)
def work(word):
    import contextlib, glob
    lines = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            lines.append(open(path, "rb").read())
    print(word)
    return any(word.encode() in line for line in lines)
with ClusterExecutor(spool, backend="local", max_workers=1, idle_timeout=0.2) as executor:
    found = executor.submit(work, secret).result(60)
"""
    assert lab.do(lab.a, "attempt", spool=spool, code=code, secret=secret) == {"found": False}
    paths = [spool, *spool.rglob("*")]
    wrong = [path for path in paths if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert wrong == []
    assert any(secret in path.read_text() for path in paths if path.suffix == ".out")
    told = lab.do(lab.b, "attempt", spool=spool, code="open_spool(spool)")
    assert f"private to user {lab.a.uid}" in told["error"]


def test_s8_in_a_shared_spool_others_see_results_and_no_logs(lab):
    lab.look(lab.a, CALL, backend="local", timeout=60)
    code = """
found = []
for directory, names, files in os.walk(area):
    found += [os.path.join(directory, name) for name in files]
"""
    seen = lab.attempt(lab.b, code, area=str(lab.area(lab.a)))["found"]
    parts = {os.path.relpath(path, lab.area(lab.a)).split("/")[0] for path in seen}
    assert "results" in parts
    assert not parts & {"logs", "archive", "jobs", "locks", "cancel", "quarantine", "tmp"}
    own = [path for path in lab.area(lab.a).rglob("*") if not path.is_symlink()]
    assert [path for path in own if path.stat().st_mode & 0o007] == []


# -- S9 --------------------------------------------------------------------------------------

PLANT = """
spool, victim = {spool!r}, {victim!r}
look(spool, [["slow", 1, {marks!r}]])
mine = open_spool(spool)[1].path
import shutil
for name in os.listdir(f"{{spool}}/{{mine}}/tasks"):
    shutil.copy(f"{{spool}}/{{mine}}/tasks/{{name}}", f"{{spool}}/{{victim}}/tasks/{{name}}")
    os.mkdir(log := f"{{spool}}/{{victim}}/claims/{{name[:-3]}}")
    os.chmod(log, 0o755)
    found = name
"""


def test_s9_agents_run_tasks_of_their_own_user_only(lab):
    lab.look(lab.a, ["plain", 5])
    area = lab.area(lab.a)
    text = PLANT.format(spool=str(lab.spool), victim=f"users/u{lab.a.uid}", marks=str(lab.marks))
    assert "PermissionError" in lab.attempt(lab.b, text)["error"]
    for name in ("tasks", "claims"):  # as if she had been careless for a moment
        (area / name).chmod(0o2777)
    name = lab.attempt(lab.b, text)["found"]
    for one in ("tasks", "claims"):
        (area / one).chmod(0o2750)
    assert (area / "tasks" / name).stat().st_uid == lab.b.uid
    assert "a file of another user" in lab.cli(lab.a, "status").out
    found = lab.look(lab.a, ["plain", 5], backend="local", timeout=60)
    assert found["values"] == [str({"by": lab.a.uid, "n": 5})]
    assert os.listdir(lab.marks) == []  # the planted one did not run
    lab.look(lab.b, ["slow", 1, str(lab.marks)], backend="local", timeout=60)
    (mark,) = os.listdir(lab.marks)
    assert mark.startswith(f"{lab.b.uid}.1.")


# -- S11, S12, S13 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "..", "a\nb", "x" * 300, "/etc/passwd", "\0"]
)
def test_s11_names_inside_files_lead_nowhere(lab, name):
    lab.publish(lab.b, ["array", 200_000, ["blob", name]])
    found = lab.look(lab.a, ["array", 200_000], trust=[lab.b.name])
    assert found["values"] == [None]
    assert any(f"users/u{lab.b.uid}/results/" in told for told in found["told"]), found["told"]
    assert not [path for path in found["opened"] if "passwd" in path]


def test_s11_odd_names_of_files_are_left_alone(lab):
    good = lab.publish(lab.b, ["plain", 1, ["plain", "good"]])
    code = """
os.chdir(os.path.dirname(good))
for name in ("a\\nb.h5", "x" * 255, "00000001.h5 ", "..h5", "\\udcff.h5", "0000001.h5"):
    os.symlink("/etc/passwd", name)
os.chdir("..")
for name in ("\\n", "f" * 17, "F" * 16):
    os.mkdir(name)
os.chdir("../..")
"""
    lab.attempt(lab.b, code, good=good)
    lab.attempt(lab.b, "os.mkdir(spool + '/users/u99999999999')")
    lab.attempt(lab.b, "os.mkdir(spool + '/users/u1\\n')")
    found = lab.look(lab.a, CALL, trust=[lab.b.name])
    assert (found["values"], found["told"]) == (["'good'"], [])


@pytest.mark.parametrize("word", ["x; touch bang", "$(touch bang)", "`touch bang`", "a\nb", '"'])
def test_s12_what_stands_in_requests_reaches_no_shell(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    executor = ClusterExecutor(tmp_path / "spool", backend="slurm", job_time=60)
    try:
        lines = executor.job_script({"partition": word}).splitlines()
    except ResourceError as error:
        assert "partition" in str(error)  # noqa: PT017 - or else it is a comment to the shell
    else:
        assert {line[:8] for line in lines if "bang" in line or '"' in line} == {"#SBATCH "}


def test_s12_a_path_that_a_shell_would_read_otherwise_is_refused(tmp_path):
    spool = tmp_path / "a b;$(touch bang)'`touch bang`"
    with pytest.raises(ResourceError, match="only letters, digits and") as told:
        ClusterExecutor(spool, backend="slurm", job_time=60).job_script()
    assert spool.name in str(told.value)


def test_s13_root_does_not_use_a_users_spool(lab):
    spool = lab.home_of(lab.a) / "private"
    code = "from fsbroker.spool.spool import create; create(spool)"
    lab.do(lab.a, "attempt", spool=spool, code=code)
    for opened in (spools.create, spools.open_spool):
        with pytest.raises(SpoolUnwritable, match=f"private to user {lab.a.uid}, and you are"):
            opened(spool)
    assert os.listdir(spool / "users") == [f"u{lab.a.uid}"]
    command = [lab.accounts.python, "-m", "fsbroker.agent", "--spool", spool]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 1
    assert f"private to user {lab.a.uid}" in done.stderr


# -- the disk --------------------------------------------------------------------------------


def test_a_full_disk_costs_no_result_and_is_told(lab):
    lab.publish(lab.b, ["array", 200_000, ["plain", 1]], ["plain", 1, ["plain", "b's"]])
    area = lab.area(lab.c)
    code = "open_spool(spool)"
    assert lab.attempt(lab.c, code) == {"found": None}
    assert stat.S_IMODE(area.stat().st_mode) == 0o2750
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", area / "tmp"], check=True)
    try:
        os.chown(area / "tmp", lab.c.uid, lab.accounts.group)
        (area / "tmp").chmod(0o2700)
        lab.attempt(lab.c, "open(path, 'wb').write(bytes(1 << 20))", path=area / "tmp" / "x")
        code = """
from fsbroker import ClusterExecutor
executor = ClusterExecutor(spool, backend="none", trust=[friend])
executor.submit(plain, 1).result(20)
"""
        told = lab.attempt(lab.c, code, friend=lab.b.name)
    finally:
        subprocess.run(["umount", area / "tmp"], check=True)
    assert told["error"].startswith("SpoolFull: Cannot write (No space left on device)")
    assert lab.look(lab.c, CALL, trust=[lab.b.name])["values"] == ['"b\'s"']
