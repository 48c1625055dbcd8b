"""What is signed is read; what is not, or otherwise, is neither read nor unpickled.

each kind of file     a changed byte, another key, another name, no signature
the own area          planted tasks, results, arrays and records
keys and settings     who may read them, where they may stand
two users             on a file system where everything belongs to one account
"""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding as Form,
)

from fsbroker import ClusterExecutor, cli, keys
from fsbroker.client.session import ClientSession
from fsbroker.config import load
from fsbroker.errors import (
    ConfigError,
    FileDamaged,
    FsbrokerError,
    MissingExtra,
    ResourceError,
    SignatureRefused,
    SpoolError,
    SpoolUnsafe,
)
from fsbroker.launch.settings import key_options
from fsbroker.spool import archive, blobs, fsck, packs, tiers
from fsbroker.spool.archive import cycle as archive_cycle
from fsbroker.spool.container import Container, image
from fsbroker.spool.files import Files, ForeignFiles, OpenFile
from fsbroker.spool.layout import signed_name
from fsbroker.spool.log import Kind
from fsbroker.spool.packs import cycle as pack_cycle
from fsbroker.spool.signatures import BLOCK, LENGTH, Digests, digests_of, generate, keyring
from fsbroker.spool.spool import create, open_spool
from fsbroker.spool.streams import Stream, build
from fsbroker.task import Encoding, Outcome, Status, Value
from tests.testbed.byhand import ByHand, Job, key_of

EXPONENTS = (32, 26, 23, 22, 16, 12, 11, 10, 8, 7, 5, 4, 2, 1, 0)
SAME_CRC = sum(1 << (32 - one) for one in EXPONENTS).to_bytes(5, "little")
"""Added to any bytes (XOR), it leaves their CRC-32 as it is."""
LONG = Value(Encoding.PLAIN, json.dumps("x" * (2 * BLOCK + 9)).encode())


class Home:
    """A user's settings, and his key."""

    def __init__(self, place: Path) -> None:
        self.file = place / "fsbroker" / "config.yaml"
        self.key = place / "fsbroker" / "key.pem"
        self.public = generate(str(self.key))
        self.say("sign: true")

    def say(self, *lines: str) -> None:
        self.file.write_text("\n".join(lines))


@contextmanager
def at_home(place: Path) -> Iterator[Home]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FSBROKER_")]:
            patch.delenv(name)
        (place / "fsbroker").mkdir(parents=True)
        (place / "site.yaml").touch()
        patch.setenv("XDG_CONFIG_HOME", str(place))
        patch.setenv("FSBROKER_SITE_CONFIG", str(place / "site.yaml"))
        yield Home(place)


@pytest.fixture
def home(tmp_path):
    with at_home(tmp_path / "home") as found:
        yield found


# -- each kind of file -----------------------------------------------------------------------

KINDS = ("tasks", "results", "pack", "blob", "checkpoint", "archived", "archive", "agent")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A spool with a file of each kind, all of them signed: the paths by kind."""
    place = tmp_path_factory.mktemp("signed")
    with at_home(place / "home") as found, pytest.MonkeyPatch.context() as patch:
        for module in (archive, packs):
            patch.setattr(module, "cycle", lambda *_: False)  # we do, when it is time
        hand = ByHand(place / "spool")
        found.files, found.area, found.paths = hand.files, hand.area, make_all_kinds(hand)
        yield found


def make_all_kinds(hand):
    agent = hand.agent()
    for number in range(tiers.FAN + 1):
        hand.submit(f"packed{number}")
        hand.end(agent, hand.claim(agent), values=LONG if number < 3 else None)
    agent.tidy()
    assert archive_cycle(hand.files, hand.area)
    archive_cycle(hand.files, hand.area)
    assert pack_cycle(hand.files, hand.area)
    hand.submit("alone")
    hand.run(agent, values=LONG)
    ref = blobs.store(hand.files, hand.area, np.arange(150_000.0), durable=False)
    hand.submit(*(Job(f"f{number}", arrays=(ref,)) for number in range(100)))
    agent.live.poll()
    (live,) = agent.live
    for _ in range(66):
        live.log.append(Kind.READY, agent.agent, [(0, 1)])
    patterns = {
        "tasks": r"/tasks/.+",
        "results": r"/results/.+\.h5",
        "pack": r"/packs/.+",
        "blob": r"/blobs/.+",
        "checkpoint": r"/claims/.+/00000064",
        "archived": r"/archive/\d{4}-.+",
        "archive": r"/archive/\d\d\..+",
        "agent": r"/agents/.+",
    }
    names = sorted(hand.paths(), reverse=True)
    return {
        kind: next(name for name in names if re.search(pattern, name))
        for kind, pattern in patterns.items()
    }


def content(files, path):
    """All that fsbroker reads of a file, and of the files in it."""
    with Container(files, path) as file:
        found = [file.kind, file.token, file.meta]
        found += [(name, file.read(name)) for name in file.sections]
        if file.kind == "archive":
            for stem, inner in archive.opened(files, path):
                with Container(files, inner.path, "tasks", file=inner) as one:
                    found += [stem, one.meta, *map(one.read, one.sections)]
    return found


@contextmanager
def changed(made, kind, data) -> Iterator[str]:
    """The file of a kind with another content; put right again afterwards."""
    path = Path(made.files.root) / made.paths[kind]
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield made.paths[kind]
    finally:
        path.write_bytes(before)


def data_of(made, kind) -> bytearray:
    return bytearray((Path(made.files.root) / made.paths[kind]).read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_signed_is_read_as_without_signatures(made, kind):
    plain = Files(made.files.root)  # an older fsbroker reads it, too
    assert made.files.keyring is not None
    assert plain.keyring is None
    assert content(made.files, made.paths[kind]) == content(plain, made.paths[kind])
    with Container(made.files, made.paths[kind]) as file:
        file.verify()


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_that_was_changed_is_never_read(made, kind):
    """Of the header and the sections; what else HDF5 has around them nobody reads."""
    right, data = content(made.files, made.paths[kind]), data_of(made, kind)
    end = data.index(b"\n", data.index(b"\nsigned ") + 1)
    read = 0
    some = 1 if os.environ.get("FSBROKER_LONG") else max(1, end // 100)
    for place in (*range(0, end, some), *range(end, len(data), max(1, len(data) // 50))):
        wrong = bytearray(data)
        wrong[place] ^= 1 << place % 8
        with changed(made, kind, wrong) as path:
            try:
                assert content(made.files, path) == right
                read += place < end
            except SpoolError:
                pass
    assert not read


def rewritten(data, edit) -> bytearray:
    """A file whose header was edited by somebody who gets the checksum of the header right."""
    line, _, rest = bytes(data).partition(b"\n")
    magic, version, size, length, _ = line.split()
    header = json.loads(rest[: int(length, 16)])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    head = b"%s %s %s %08x %08x\n" % (magic, version, size, len(text), zlib.crc32(text))
    start = head + text + rest[int(length, 16) :][:LENGTH]
    return bytearray(start.ljust(int(size)) + bytes(data)[int(size) :])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "agent"])
def test_bytes_that_were_changed_with_their_checksum_are_never_read(made, kind):
    data = data_of(made, kind)
    with Container(made.files, made.paths[kind]) as file:
        name, (begin, length, checksum) = max(file.sections.items(), key=lambda one: one[1].length)
    assert length >= len(SAME_CRC)
    for at in (begin, begin + length - len(SAME_CRC)):
        wrong = bytearray(data)
        for offset, byte in enumerate(SAME_CRC):
            wrong[at + offset] ^= byte
        assert zlib.crc32(wrong[begin : begin + length]) == checksum
        with changed(made, kind, wrong) as path:
            plain = Container(Files(made.files.root), path)
            assert plain.read(name) == wrong[begin : begin + length]  # nobody else notices
            with pytest.raises(FileDamaged, match="not what was signed"):
                Container(made.files, path).read(name)
            with pytest.raises(FileDamaged, match="not what was signed"):
                Container(made.files, path).fill(name, memoryview(bytearray(length)))
    wrong[begin] ^= 255

    def hide(header):
        header["sections"][name][2] = zlib.crc32(wrong[begin : begin + length])

    with changed(made, kind, rewritten(wrong, hide)) as path:
        assert Container(Files(made.files.root), path).read(name)
        with pytest.raises(SignatureRefused, match="wrong, or of another file"):
            Container(made.files, path)


def test_what_is_changed_while_the_file_is_open_is_not_read(made):
    """Whoever may write it need not wait until nobody reads it."""
    data = data_of(made, "results")
    with Container(made.files, made.paths["results"]) as file:
        section = file.sections["values"]
        assert file.read_part("values", 0, 1, zlib.crc32(b"["))
        data[section.offset : section.offset + section.length] = bytes(section.length)
        with changed(made, "results", data), pytest.raises(FileDamaged, match="what was signed"):
            file.read_part("values", BLOCK, 8, zlib.crc32(bytes(8)))


@pytest.mark.parametrize("stored", [None, {}, {"values": ""}, {"values": 3}, {"values": "A" * 43}])
def test_sections_whose_blocks_are_not_all_named_are_refused(stored):
    with pytest.raises(FileDamaged, match="digests"):
        Digests(stored, {"values": 1}, "path")
    content = bytes(BLOCK + 1)
    known = Digests({"values": digests_of(content)}, {"values": BLOCK + 1}, "path")
    known.require("values", 0, content)
    known.require("values", 1, b"\0")
    for first, data in ((0, content + b"\0"), (1, content), (1, b"1"), (2, b"\0")):
        with pytest.raises(FileDamaged, match="not what was signed"):
            known.require("values", first, data)


def test_a_part_of_a_section_takes_no_more_than_its_blocks(made, monkeypatch):
    whole = Container(made.files, made.paths["pack"]).read("values")
    assert len(whole) > 4 * BLOCK
    read = []

    def count(file, offset, length, real=OpenFile.read):
        read.append(length)
        return real(file, offset, length)

    with Container(made.files, made.paths["pack"]) as file:
        monkeypatch.setattr(OpenFile, "read", count)
        for begin, end in ((0, 5), (5, 7), (BLOCK - 1, BLOCK + 1), (BLOCK, 2 * BLOCK)):
            found = file.read_part("values", begin, end - begin, zlib.crc32(whole[begin:end]))
            assert found == whole[begin:end]
    assert read == [BLOCK, 2 * BLOCK, BLOCK]


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_no_key_and_another_name_are_refused(made, kind):
    path, ring = made.paths[kind], made.files.keyring
    other = Files(made.files.root, keyring=replace(ring, private=Ed25519PrivateKey.generate()))
    with pytest.raises(SignatureRefused, match=f"{re.escape(made.public)}, which is no key of its"):
        content(other, path)
    both = replace(other.keyring, listed={str(os.getuid()): (made.public,)})
    assert content(Files(made.files.root, keyring=both), path)  # a key that one had before
    mapped = Files(made.files.root, keyring=replace(ring, owners=False))
    assert content(ForeignFiles(mapped, os.getuid()), path)
    stranger = ForeignFiles(mapped, os.getuid() + 1)
    with pytest.raises(SignatureRefused, match="no key of its owner"):
        content(stranger, path)
    unsigned = data_of(made, kind)
    at = unsigned.index(b"\nsigned ")
    unsigned[at : at + LENGTH] = b" " * LENGTH
    with changed(made, kind, unsigned), pytest.raises(SignatureRefused, match="not signed"):
        content(made.files, path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_under_the_name_of_another_one_is_refused(made, kind):
    """So nobody repeats a result as that of another task, or a task as another one."""
    path = made.paths[kind]
    if kind == "checkpoint":
        moved = path.replace("00000064", "00000128")
    else:  # the last of its random parts
        at = [found.start() for found in re.finditer(r"[0-9a-f]{16}", path)][-1]
        moved = path[:at] + "0" * 16 + path[at + 16 :]
    assert moved != path
    (Path(made.files.root) / moved).parent.mkdir(exist_ok=True)
    shutil.copy(f"{made.files.root}/{path}", f"{made.files.root}/{moved}")
    try:
        with pytest.raises(SignatureRefused, match="wrong, or of another file"):
            content(made.files, moved)
        assert content(Files(made.files.root), moved)
    finally:
        os.unlink(f"{made.files.root}/{moved}")


def test_names_are_those_of_what_a_file_is_wherever_it_lies():
    stem = f"4999-{1:016x}-{2:016x}-c1-cpython3-4-0"
    agent = "a" * 16
    for path, name in {
        f"users/u1/tasks/{stem}.h5": f"tasks/{stem}",
        f"users/u1/archive/{stem}.h5": f"tasks/{stem}",
        f"users/u1/archive/01.{agent}.h5:{stem}": f"tasks/{stem}",
        f"users/u1/archive/01.{agent}.h5": f"archive/01.{agent}.h5",
        f"users/u1/packs/01.{agent}.h5": f"packs/01.{agent}.h5",
        f"users/u1/results/{agent}/00000001.h5": f"results/{agent}/00000001.h5",
        f"users/u1/agents/{agent}.7.3": f"agents/{agent}",
        f"users/u1/claims/{stem}/00000064": f"claims/{stem}/00000064",
    }.items():
        assert signed_name(path) == name


def test_without_the_setting_nothing_is_signed_and_nothing_imported(home, tmp_path):
    home.say("sign: false")
    code = """
import sys
from fsbroker.spool.spool import create, open_spool
from fsbroker.spool.blobs import store, read_array
import numpy as np
files, area, _ = create(sys.argv[1], durable=False)
ref = store(files, area, np.arange(150_000.0), durable=False)
assert read_array(files, area, ref)[3] == 3
assert files.keyring is None
assert "cryptography" not in sys.modules
data = open(f"{files.root}/{area.blob(ref.data.name)}", "rb").read(4096)
assert b"signed" not in data and b"digests" not in data
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "spool"], check=True)


# -- the own area ----------------------------------------------------------------------------


class Bomb:
    """Unpickling it creates a directory."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __call__(self, *_):
        return "exploded"

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def double(x):
    return 2 * x


def total(array, marker=None):
    return float(array.sum())


def ramp(n):
    return np.arange(float(n))


def strangers(spool):
    """The files of a spool for somebody who does not sign."""
    return spool._replace(files=Files(spool.files.root))


def plant_result(spool, value):
    """A result of `double(1)`, with this value."""
    call = keys.identify(double).call((1,), {})
    stem = f"4999-{1:016x}-{2:016x}-c1-cpython3-4-0"
    files, area, _ = spool
    stream = Stream(files, area, files.token())
    stream.create()
    one = Outcome(stem, 0, call.key, call.descriptor, 0, 0, 0, 1, Status.DONE, value)
    stream.publish(build(files.token(), [one], {}), durable=False)


@pytest.mark.parametrize("sign", [True, False])
def test_a_planted_result_is_not_unpickled(home, tmp_path, sign):
    home.say(f"sign: {str(sign).lower()}")
    spool, marker = create(tmp_path / "spool", durable=False), tmp_path / "bang"
    plant_result(strangers(spool), Value(Encoding.PICKLE, pickle.dumps(Bomb(marker))))
    executor = ClusterExecutor(spool.files.root, backend="none")
    future = executor.submit(double, 1)
    executor._loop.flush(60)
    assert (future.done(), marker.exists()) == (not sign, not sign)
    executor._loop.stop(5)


@pytest.mark.parametrize("sign", [True, False])
def test_a_planted_task_is_not_unpickled(home, tmp_path, sign):
    home.say(f"sign: {str(sign).lower()}")
    root, marker = tmp_path / "spool", tmp_path / "bang"
    victim = ClusterExecutor(root, max_workers=1, idle_timeout=0.5)
    home.say("sign: false")
    attacker = ClusterExecutor(root, backend="none", resource_dict={"priority": 9000})
    attacker.submit(double, Bomb(marker))
    attacker._loop.flush(60)
    attacker._loop.stop(5)
    home.say(f"sign: {str(sign).lower()}")
    future = victim.submit(double, 1)
    assert future.result(60) == 2
    victim.shutdown()
    assert marker.exists() is not sign


def test_an_agent_that_has_another_key_than_its_client_does_not_begin(home, tmp_path):
    spool = create(tmp_path / "spool", durable=False)
    home.say("sign: false")
    options = [*key_options(spool), "--cores=1", "--idle-timeout=0.1"]
    command = [sys.executable, "-m", "fsbroker.agent", f"--spool={spool.files.root}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"Files are signed with {home.public}, and " in done.stderr
    home.say("sign: true")
    assert subprocess.run(command, check=False).returncode == 0


def test_values_arrays_and_chains_go_through_workers_and_come_back(home, tmp_path):
    with ClusterExecutor(tmp_path / "spool", max_workers=2, idle_timeout=0.5) as executor:
        large = executor.submit(ramp, 200_000)
        assert executor.submit(total, large).result(60) == pytest.approx(199_999 * 100_000)
        assert executor.submit(total, np.ones(200_000)).result(60) == 200_000
        assert [one.result(60) for one in [executor.submit(double, n) for n in range(50)]] == [
            2 * n for n in range(50)
        ]
        assert executor.submit(double, large).result(60)[-1] == 399_998
    found = sorted((tmp_path / "spool").rglob("*.h5"))
    assert len(found) > 5
    assert [path for path in found if b"\nsigned ed25519:" not in path.read_bytes()] == []
    with ClusterExecutor(tmp_path / "spool", backend="none") as executor:
        assert executor.submit(double, 7).result(10) == 14


def leave_home(n):
    os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
    return np.arange(float(n))


def test_a_worker_that_has_lost_its_key_says_so(home, tmp_path):
    told = f"{re.escape(home.public)}, and .* has not this"
    executor = ClusterExecutor(tmp_path / "spool", max_workers=1, idle_timeout=0.5)
    with executor, pytest.raises(FsbrokerError, match=told):
        executor.submit(leave_home, 200_000).result(60)


def test_a_worker_takes_no_array_that_somebody_else_has_put_in_place(home, tmp_path):
    spool = create(tmp_path / "spool", durable=False)
    executor = ClusterExecutor(tmp_path / "spool", backend="none")
    future = executor.submit(total, np.ones(200_000))
    executor._loop.flush(60)
    (path,) = (tmp_path / "spool" / spool.area.blobs).iterdir()
    forged = image("f" * 16, "blob", {"order": "C"}, {"array": np.zeros(200_000)})
    path.write_bytes(b"".join(map(bytes, forged.chunks)))
    with ClusterExecutor(tmp_path / "spool", max_workers=1, idle_timeout=0.5) as other:
        assert other.submit(double, 1).result(60) == 2
        with pytest.raises(FsbrokerError, match="not signed"):
            future.result(60)
    executor._loop.stop(5)


def test_a_forged_record_leads_to_no_other_calls_value(home, tmp_path):
    """Records are links, and are not signed: whoever writes them may delay and repeat."""
    hand = ByHand(tmp_path / "spool")
    first, second = hand.submit("a"), hand.submit("b")
    record = f"alias {'0' * 16} {'1' * 16} 0 {second}%200"
    os.symlink(record, f"{hand.root}/{hand.area.log(first)}/00000000")
    other = ClientSession(hand.spool, bytes)
    other.bind((first, 0), key_of("a"))  # it has found the row there
    other.check()
    agent = hand.agent()
    claim = hand.claim(agent)
    assert claim.live.stem == second
    hand.end(agent, claim)
    assert [ended.tickets for ended in other.poll()] == []


def test_files_from_before_the_setting_stay_where_they_are(home, tmp_path):
    home.say("sign: false")
    hand = ByHand(tmp_path / "spool")
    hand.submit("a")
    hand.run()
    hand.submit("b")
    old = blobs.store(hand.files, hand.area, np.ones(200_000), durable=False)
    before = {path for path in hand.paths() if path.endswith(".h5")}
    home.say("sign: true")
    hand = ByHand(tmp_path / "spool")
    agent = hand.agent()
    assert hand.claim(agent) is None
    agent.tidy()
    assert before <= hand.paths()
    assert not [path for path in hand.paths() if "/quarantine/" in path]
    found, _ = fsck.survey(hand.files, hand.area)
    assert {one.path for one in found if one.kind is fsck.Kind.UNSIGNED} >= before
    new = blobs.store(hand.files, hand.area, np.ones(200_000), durable=False)
    assert new.data != old.data
    assert blobs.read_array(hand.files, hand.area, new).sum() == 200_000
    with pytest.raises(SignatureRefused):
        blobs.read_array(hand.files, hand.area, old)


# -- keys and settings -----------------------------------------------------------------------


def test_a_key_is_made_once_and_for_its_owner_alone(home, capsys):
    home.key.unlink()
    before = os.umask(0)
    try:
        assert cli.main(["config", "keygen", "--json"]) == cli.OK
    finally:
        os.umask(before)
    told = json.loads(capsys.readouterr().out)
    assert told["private"] == str(home.key)
    assert home.key.stat().st_mode & 0o777 == 0o600
    assert cli.main(["config", "keygen"]) == cli.OK
    said = capsys.readouterr().out
    assert told["public"] in said
    assert home.key.read_text() not in said
    home.say("sign: true", f"keys: {{alice: {told['public']!r}, 1234: [{told['public']!r}]}}")
    ring = keyring()
    assert ring.keys_of(1234) == {told["public"]}
    assert ring.keys_of(1235) == frozenset()
    assert ring.keys_of(os.getuid()) == {told["public"]}
    assert load().keys == {"alice": (told["public"],), 1234: (told["public"],)}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.chmod(0o640), r"others can use .*mode 0640.*chmod 600"),
        (lambda path: path.chmod(0o602), r"mode 0602"),
        (lambda path: os.chown(path, 12345, 12345), r"is user 12345's"),
        (lambda path: path.unlink(), r"cannot be read \(No such file.*config keygen"),
        (lambda path: (path.unlink(), os.mkfifo(path, 0o600)), r"not a file"),
        (lambda path: path.write_text("x"), r"not a private key in PEM"),
        (lambda path: path.write_bytes(locked()), r"without a password"),
        (lambda path: path.write_bytes(other_kind()), r"not an Ed25519 key"),
    ],
    ids=["group", "world", "owner", "gone", "fifo", "text", "password", "curve"],
)
def test_a_key_that_is_not_ones_own_alone_is_refused(home, tmp_path, spoil, told):
    if os.getuid() and told.startswith("is user"):
        pytest.skip("only root gives files away")
    spoil(home.key)
    with pytest.raises(ConfigError, match=told):
        create(tmp_path / "spool")


def locked():
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Form.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))


def other_kind():
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Form.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_a_key_may_lie_elsewhere(home, tmp_path):
    home.say("sign: ../other.pem")
    assert cli.main(["config", "keygen"]) == cli.OK
    assert keyring().keys_of(os.getuid()) == {generate(str(tmp_path / "home" / "other.pem"))}


def test_a_missing_package_is_named(home, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(MissingExtra, match=r"cryptography.*pip install 'fsbroker\[signatures\]'"):
        create(tmp_path / "spool")
    home.say("sign: false")
    create(tmp_path / "spool")


@pytest.mark.parametrize("line", ["sign: true", "keys: {me: PUBLIC}", "owners: true"])
def test_settings_of_signatures_come_from_their_user_alone(home, tmp_path, monkeypatch, line):
    text = line.replace("PUBLIC", home.public)
    (tmp_path / "fsbroker.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"your own settings alone: .*fsbroker.yaml"):
        load()
    assert keyring() is not None  # agents and workers do not look at it
    (tmp_path / "fsbroker.yaml").unlink()
    name, _, value = text.partition(": ")
    with pytest.raises(ConfigError, match="your own settings alone: argument"):
        ClusterExecutor(tmp_path / "spool", **{name: {"me": value} if name == "keys" else True})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("owners: false", "somebody must sign"),
        ("sign: 3", "sign must be true, false or the path"),
        ("keys: {a: x}", "keys.a must be a public key"),
        ("keys: {a: [ed25519:AAAA]}", "keys.a must be a public key"),
        ("keys: [x]", "keys must be a mapping"),
    ],
)
def test_settings_that_make_no_sense_are_refused(home, tmp_path, line, told):
    home.say(line)
    with pytest.raises(ConfigError, match=told):
        create(tmp_path / "spool")


@pytest.mark.parametrize("name", ["", "tmp", "quarantine", "results"])
def test_links_in_place_of_directories_are_refused_where_anybody_may_make_them(
    home, tmp_path, name
):
    home.say("sign: true", "owners: false")
    spool = create(tmp_path / "spool")
    path = tmp_path / "spool" / spool.area.path / name
    path.rename(tmp_path / "elsewhere")
    path.with_name(path.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SpoolUnsafe, match="Not a directory"):
        open_spool(tmp_path / "spool")


def test_no_queue_jobs_where_others_may_write_their_scripts(home, tmp_path):
    home.say("sign: true", "owners: false")
    with pytest.raises(ResourceError, match="Job scripts lie in the spool, are not signed"):
        ClusterExecutor(tmp_path / "spool", backend="slurm")


# -- two users -------------------------------------------------------------------------------

USING = """
os.environ["XDG_CONFIG_HOME"] = home
warnings.simplefilter("ignore")
"""
KEYGEN = """
from fsbroker.spool.signatures import generate
found = generate(f"{home}/fsbroker/key.pem")
"""
SAY = """
with open(f"{home}/fsbroker/config.yaml", "w") as file:
    file.write(text)
"""


class Mapped:
    """A spool on a mount where everything belongs to nobody, and everybody may do anything.

    So it is where a server maps its users to one account.
    """

    def __init__(self, lab, mount: Path) -> None:
        self.lab, self.spool = lab, mount / "spool"
        users = (lab.a, lab.b, lab.c)
        self.public = {one: self.do(one, KEYGEN)["found"] for one in users}

    def say(self, user, *lines: str) -> None:
        assert self.do(user, SAY, text="\n".join(lines)) == {"found": None}

    def do(self, user, code, **names):
        home = self.lab.home_of(user) / "config"
        return self.lab.do(
            user, "attempt", spool=str(self.spool), home=str(home), code=USING + code, **names
        )

    def look(self, user, *calls, **more):
        code = "found = look(spool, calls, **more)"
        told = self.do(user, code, calls=calls, more=more)
        assert "found" in told, told
        return told["found"]

    def publish(self, user, *results):
        told = self.do(user, "found = publish(spool, results)['path']", results=results)
        return Path(told["found"])

    def area(self, user) -> Path:
        return self.spool / "users" / f"u{user.uid}"


@pytest.fixture
def mapped(lab):
    real, mount = lab.place / "real", lab.place / "mount"
    real.mkdir()
    mount.mkdir()
    wishes = ["--force-user=nobody", "--force-group=nogroup", "--perms=a+rwX"]
    wishes += ["--create-for-user=root", "--chmod-ignore", "-o", "allow_other"]
    subprocess.run(["bindfs", *wishes, real, mount], check=True)
    try:
        yield Mapped(lab, mount)
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


@pytest.fixture
def sharing(mapped):
    """b takes results of a; nobody takes those of c."""
    a, b, c = mapped.public
    base = ["sign: true", "owners: false"]
    mapped.say(a, *base)
    mapped.say(b, *base, f"keys: {{{a.name}: {mapped.public[a]!r}}}")
    mapped.say(c, *base)
    assert mapped.do(
        a, "from fsbroker.spool.spool import create; create(spool, durable=False)"
    ) == {"found": None}
    return mapped


CALL = ["plain", 1]


@pytest.mark.users
def test_where_owners_tell_signatures_may_be_wanted_as_well(lab):
    shared = Mapped(lab, lab.home_of(lab.a))
    a, b, c = shared.public
    shared.say(a, "sign: true")
    shared.say(b, f"keys: {{{a.name}: {shared.public[a]!r}}}")
    path = shared.publish(a, ["plain", 1, ["plain", "a's"]], ["plain", 2, ["plain", "a's"]])
    shared.publish(c, ["plain", 3, ["plain", "c's"]], ["plain", 4, ["plain", "c's"]])
    found = shared.look(b, ["plain", 1], ["plain", 3], trust=[a.name, c.name])
    assert found["values"] == ['"a\'s"', None]
    assert any("It is not signed" in told for told in found["told"])
    code = "import shutil; os.mkdir(there); shutil.copy(path, there); os.chmod(there, 0o750)"
    there = shared.area(c) / "results" / path.parent.name
    assert shared.do(c, code, path=str(path), there=str(there)) == {"found": None}
    shared.say(b, f"keys: {{{c.name}: {shared.public[c]!r}}}")
    found = shared.look(b, ["plain", 2], trust=[c.name])  # what a has signed, as c's
    assert found["values"] == [None]
    assert any(f"{shared.public[a]}, which is no key" in told for told in found["told"])
    shared.say(b, "")
    assert shared.look(b, ["plain", 4], trust=[c.name])["values"] == ['"c\'s"']


@pytest.mark.users
@pytest.mark.fuse
def test_two_users_share_by_signatures_where_owners_tell_nothing(sharing):
    a, b, c = sharing.public
    sharing.publish(a, ["plain", 1, ["plain", "a's"]], ["array", 9, ["plain", "a's"]])
    assert {path.stat().st_uid for path in sharing.spool.rglob("*")} == {65534}
    found = sharing.look(b, CALL, trust=[a.name])
    assert (found["values"], found["unpickled"]) == (['"a\'s"'], [])
    assert sharing.look(b, ["array", 9])["values"] == [None]  # not on the list
    sharing.publish(c, ["plain", 2, ["plain", "c's"]])
    found = sharing.look(b, ["plain", 2], trust=[a.name, c.name])
    assert found["values"] == [None]
    assert any("no key of its owner" in told for told in found["told"])
    ran = sharing.look(b, ["pickled", 3], ["array", 200_000], backend="local", timeout=60)
    assert ran["values"][0] == "range(0, 3)"
    sharing.say(b, "")
    told = sharing.do(b, "open_spool(spool)")
    assert told["error"].startswith(("SpoolUnwritable", "SpoolUnsafe"))


@pytest.mark.users
@pytest.mark.fuse
@pytest.mark.parametrize("way", ["unsigned", "own key", "moved", "changed"])
def test_what_a_third_one_writes_into_an_area_is_not_unpickled(sharing, way):
    """He may write anything anywhere: as a's result for b, and into b's own area."""
    a, b, c = sharing.public
    bomb = ["plain", 1, ["bomb", str(sharing.lab.marks / "bang")]]
    if way == "unsigned":
        sharing.say(c, "")
    for victim in (a, b):
        assert sharing.do(victim, "open_spool(spool)") == {"found": None}
        if way in ("unsigned", "own key"):
            code = """
from fsbroker.spool.signatures import keyring
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area
files, area = Files(spool, keyring=keyring()), Area(f"users/u{uid}")
stream = Stream(files, area, files.token())
stream.create()
stream.publish(image(files, results), durable=False)
"""
            told = sharing.do(c, code, results=[bomb], uid=victim.uid)
        else:
            path = sharing.publish(victim, bomb if way == "moved" else ["pickled", 3, bomb[2]])
            code = """
os.rename(os.path.dirname(path), there)
if way == "changed":
    data = bytearray(open(f"{there}/00000000.h5", "rb").read())
    old, new = (keys.identify(FUNCTIONS[name]).call((n,), {}) for name, n in calls)
    for one, other in ((old.key, new.key), (old.descriptor, new.descriptor)):
        data = data.replace(one, other)
    open(f"{there}/00000000.h5", "wb").write(data)
"""
            there = path.parent.parent / ("f" * 16) if way == "moved" else path.parent
            told = sharing.do(
                c, code, path=str(path), there=str(there), way=way, calls=[["pickled", 3], CALL]
            )
        assert told == {"found": None}
    found = sharing.look(b, CALL, trust=[a.name])
    assert (found["values"], found["unpickled"]) == ([None], [])
    assert not (sharing.lab.marks / "bang").exists()
