"""Signatures: who wrote a file, where its owner does not tell.

    keyring()         what this user signs with, and whose signatures he takes; usually nothing
    Keyring.signer    signs what is published, under one name
    Keyring.keys_of   the keys of which one must have signed a user's files
    require           refuses what none of them has signed under that name
    Digests           what a signed header says of each block of the sections behind it
    generate          a new key

What is signed is a file's name and its header. The header has a digest of every 64 KiB of every
section, so a part of a large file is read, and proved, without the rest of it, and no byte is
read a second time after it was checked. A shared secret (HMAC) would do for one user alone:
whoever can check one can forge.

`cryptography` is imported when something is signed or checked.
"""

from __future__ import annotations

import os
import platform
import re
import stat
import sys
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from fsbroker.errors import ConfigError, FileDamaged, MissingExtra, SignatureRefused
from fsbroker.spool.trust import name_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

BLOCK = 1 << 16
"""Bytes of a section with one digest: the least that is read of a signed file."""
LENGTH = 150
"""Bytes of the line with the signature."""

_DIGEST = 32
_DOMAIN = b"fsbroker signature 1\n"
_LINE = re.compile(rb"\nsigned ed25519:([A-Za-z0-9+/]{43}=) ([A-Za-z0-9+/]{86}==)\n")

Buffer = bytes | bytearray | memoryview
Signer = Callable[[bytes], bytes]
"""Gives the line with the signature of a header."""


@dataclass(frozen=True)
class Keyring:
    """What a user signs with, and whose signatures he takes.

    Attributes:
        uid: the user's own.
        private: None: he signs nothing, and of his own files the owner tells.
        listed: public keys, by user name or number.
        owners: owners and modes of files tell something, too.
    """

    uid: int
    private: Ed25519PrivateKey | None
    listed: Mapping[str, tuple[str, ...]]
    owners: bool = True
    _known: dict[int, frozenset[str] | None] = field(default_factory=dict, init=False)

    @cached_property
    def public(self) -> str:
        """What the user's own files are signed with; "": they are not."""
        return public_of(self.private) if self.private else ""

    def signer(self, name: str) -> Signer | None:
        """Signs headers of files of this name; None: nothing is signed."""
        private, public = self.private, self.public.encode()
        if private is None:
            return None

        def sign(header: bytes) -> bytes:
            signature = b64encode(private.sign(_statement(name, header)))
            return b"\nsigned %s %s\n" % (public, signature)

        return sign

    def keys_of(self, uid: int) -> frozenset[str] | None:
        """Keys of which one must have signed a user's files; None: their owner tells."""
        if uid not in self._known:  # asked for each file, and names may come from a server
            self._known[uid] = self._keys_of(uid)
        return self._known[uid]

    def _keys_of(self, uid: int) -> frozenset[str] | None:
        listed = (*self.listed.get(name_of(uid), ()), *self.listed.get(str(uid), ()))
        if uid != self.uid:
            return frozenset(listed)
        return frozenset((self.public, *listed)) if self.public else None


def keyring(expected: str = "") -> Keyring | None:
    """That of this process's user, by his settings; None: signatures are of no concern.

    Args:
        expected: the public key of whoever started this process, and takes nothing else.

    Raises:
        ConfigError: there is no such key, or others can read it.
        MissingExtra: signatures are wanted, and `cryptography` is not installed.
    """
    from fsbroker.config import load_own, user_file

    config, found = load_own(), None
    if config.sign or config.keys:
        _ed25519()
        private = _private(key_path(config.sign)) if config.sign else None
        listed = {str(name): keys for name, keys in config.keys.items()}
        found = Keyring(os.getuid(), private, listed, config.owners)
    if expected and (found is None or found.public != expected):
        what = f"Files are signed with {expected}, and {platform.node()} has not this key"
        raise ConfigError(what, user_file(), "Have `sign` and the private key there, too")
    return found


# -- what is signed ----------------------------------------------------------------------


def require(keys: frozenset[str], name: str, header: bytes, line: bytes, path: str) -> None:
    """Refuse a header that none of these keys has signed under this name.

    Raises:
        SignatureRefused: with the reason.
    """
    found = _LINE.fullmatch(line)
    if found is None:
        raise SignatureRefused("It is not signed", path, _CURE)
    public, signature = found.groups()
    if f"ed25519:{public.decode()}" not in keys:
        what = f"Signed with ed25519:{public.decode()}, which is no key of its owner"
        raise SignatureRefused(what, path, _CURE)
    module = _ed25519()
    try:
        key = module.Ed25519PublicKey.from_public_bytes(b64decode(public))
        key.verify(b64decode(signature), _statement(name, header))
    except Exception as error:  # that of `cryptography`, which need not be imported for it
        raise SignatureRefused("The signature is wrong, or of another file", path) from error


_CURE = "`sign` and `keys` in your settings say whose files are taken"


def _statement(name: str, header: bytes) -> bytes:
    return b"%s%s\n%s" % (_DOMAIN, name.encode(), header)


def digests_of(content: Buffer) -> str:
    """Those of all blocks of a section, as a header has them."""
    return b64encode(b"".join(_digests(content))).decode()


def _digests(content: Buffer) -> list[bytes]:
    view = memoryview(content).cast("B")
    starts = range(0, len(view), BLOCK)
    return [blake2b(view[at : at + BLOCK], digest_size=_DIGEST).digest() for at in starts]


class Digests:
    """What a signed header says of the sections behind it.

    Args:
        lengths: of the sections, in bytes.
    """

    def __init__(self, stored: Any, lengths: Mapping[str, int], path: str) -> None:
        self._path = path
        try:
            self._known = {name: b64decode(stored[name]) for name in lengths}
        except (LookupError, TypeError, ValueError) as error:
            raise FileDamaged("A section has no digests", path) from error
        for name, length in lengths.items():
            if len(self._known[name]) != -(-length // BLOCK) * _DIGEST:
                raise FileDamaged(f"Section {name!r} has not as many digests as blocks", path)

    def require(self, name: str, first: int, content: Buffer) -> None:
        """Refuse blocks, the first of which has this number, that are not as they were signed."""
        known = self._known[name][first * _DIGEST :]
        found = b"".join(_digests(content))
        if known[: len(found)] != found:
            raise FileDamaged(f"Section {name!r} is not what was signed", self._path)


# -- keys --------------------------------------------------------------------------------


def public_of(private: Ed25519PrivateKey) -> str:
    """The public key, as settings have it."""
    return f"ed25519:{b64encode(private.public_key().public_bytes_raw()).decode()}"


def key_path(sign: bool | str) -> str:
    """Where the private key is that the setting ``sign`` means."""
    from fsbroker.config import user_file

    return sign if isinstance(sign, str) else os.path.join(os.path.dirname(user_file()), "key.pem")


def generate(path: str) -> str:
    """Make a private key that nobody else can read, unless there is one; the public key."""
    from cryptography.hazmat.primitives import serialization as forms

    module = _ed25519()
    text = module.Ed25519PrivateKey.generate().private_bytes(
        forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()
    )
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    if not os.path.lexists(path):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            os.fchmod(fd, 0o600)
            file.write(text)
            file.flush()
            os.fsync(fd)
    return public_of(_private(path))


def _private(path: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    text = _secret(path)
    try:
        key: Any = load_pem_private_key(text, None)
    except (ValueError, TypeError) as error:
        raise ConfigError("sign: not a private key in PEM, without a password", path) from error
    if not isinstance(key, _ed25519().Ed25519PrivateKey):
        raise ConfigError("sign: not an Ed25519 key", path)
    return key  # type: ignore[no-any-return]


def _secret(path: str) -> bytes:
    """The content of a file that its owner alone can read: content and owner of one file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = f"sign: the private key cannot be read ({error.strerror})"
        raise ConfigError(what, path, "Make one with 'fsbroker config keygen'") from error
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError("sign: the private key is not a file", path)
        if status.st_uid != os.geteuid():
            raise ConfigError(f"sign: the private key is user {status.st_uid}'s", path)
        if status.st_mode & 0o077:
            mode = f"{stat.S_IMODE(status.st_mode):04o}"
            cure = f"chmod 600 {path}; if others could read it, make another one"
            raise ConfigError(f"sign: others can use the private key (mode {mode})", path, cure)
        return file.read(1 << 14)


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        cure = "pip install 'fsbroker[signatures]'"
        what = "Signatures need a package that is not installed"
        raise MissingExtra(what, f"cryptography, in {sys.prefix}", cure) from error
    return ed25519
