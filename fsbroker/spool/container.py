"""The container of every published file: an HDF5 file that begins with its own table of contents.

    0        magic line, then one line of JSON (kind, token, meta, sections), padded
    2^k      the HDF5 image: each section is a contiguous dataset, meta are attributes

HDF5 lets a file begin with a user block of 512, 1024, ... bytes that it skips. fsbroker
keeps there, for each section, its offset, length and checksum. So `h5dump`, h5py and
HDFView show everything, while fsbroker itself reads a section with one `pread` and a
checksum: it never has HDF5 parse bytes that it did not write (a hostile HDF5 file reads
and writes other files through external storage), and an agent starts without h5py.

Images are built in memory and written by plain writes: HDF5 crashes on a full disk.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from fsbroker.errors import FileDamaged, FileRefused, FormatTooNew
from fsbroker.spool import forms
from fsbroker.spool.files import Buffer, Files, OpenFile
from fsbroker.spool.layout import FORMAT, signed_name
from fsbroker.spool.signatures import BLOCK, LENGTH, Digests, Signer, digests_of, require

if TYPE_CHECKING:
    import numpy as np

MAGIC = b"fsbroker"
SIGNATURE = b"\x89HDF\r\n\x1a\n"
SMALLEST_HEADER = 2048
FIRST_READ = 4096
LARGEST_HEADER = 16 << 20
LARGEST_READ = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
"""Bytes that are read into memory in one piece, at most: half of what the machine has. A
sparse file takes no disk, and would take all memory."""

_HEADER = {"kind": str, "token": str, "meta": dict, "sections": dict}
_SECTION = (forms.natural, forms.natural, int)


@dataclass(frozen=True)
class Image:
    """A file that is ready to be written.

    Attributes:
        token: random; tells this file from another one under the same name.
        header: as it is stored, but that offsets count from the beginning of the body.
        contents: of its sections. body: the HDF5 file.
        sign: signs the header; None: it is not signed.
    """

    token: str
    header: Mapping[str, Any]
    contents: Mapping[str, Buffer]
    body: list[Buffer]
    sign: Signer | None = None

    @cached_property
    def chunks(self) -> list[Buffer]:
        """Its bytes, in order."""
        header = dict(self.header)
        if self.sign is not None:
            header["digests"] = {name: digests_of(one) for name, one in self.contents.items()}
        size, reserved = SMALLEST_HEADER, LENGTH if self.sign else 0
        while (start := _header(header, size)) and len(start) + reserved >= size:
            size *= 2
        if self.sign is not None:
            start += self.sign(start)
        return [start + b" " * (size - len(start) - 1) + b"\n", *self.body]


def _header(header: Mapping[str, Any], size: int) -> bytes:
    """The first line and the JSON of a file whose body begins at ``size``."""
    shifted = {name: (start + size, *rest) for name, (start, *rest) in header["sections"].items()}
    text = json.dumps({**header, "sections": shifted}, separators=(",", ":")).encode()
    return b"%s %d %d %08x %08x\n%s" % (MAGIC, FORMAT, size, len(text), zlib.crc32(text), text)


class Section(NamedTuple):
    """Where a section stands: bytes from the beginning of the file, CRC-32."""

    offset: int
    length: int
    checksum: int


def image(
    token: str, kind: str, meta: Mapping[str, Any], sections: Mapping[str, bytes | np.ndarray]
) -> Image:
    """Build a file.

    Args:
        token: 16 random hex digits.
        kind: "tasks", "results", "pack", "archive", "blob" or "checkpoint".
        meta: JSON values; shown as HDF5 attributes.
        sections: by name. Bytes are shown as a string and must then be ASCII text, unless
            the name ends in ``_pickle``; arrays of one dimension or more as they are.
    """
    filled = {name: content for name, content in sections.items() if len(content)}
    body, offsets = _body(kind, meta, filled)
    contents = {name: _contiguous(content) for name, content in filled.items()}
    table = {
        name: (offsets[name], memoryview(content).nbytes, zlib.crc32(content))
        for name, content in contents.items()
    }
    header = {"kind": kind, "token": token, "meta": meta, "sections": table}
    return Image(token, header, contents, body)


def _contiguous(content: bytes | np.ndarray) -> Buffer:
    return content if isinstance(content, bytes) else memoryview(content).cast("B")


def _body(
    kind: str, meta: Mapping[str, Any], sections: Mapping[str, bytes | np.ndarray]
) -> tuple[list[Buffer], dict[str, int]]:
    """The file behind the header, and where in it each section begins."""
    from fsbroker.spool import hdf5

    return hdf5.build(kind, meta, sections)


class Container:
    """A published file, opened for reading.

    Args:
        kinds: which kinds are wanted; all when left out.
        file: where it is open already (a window into an archive).

    Attributes:
        path: relative to the spool.
        kind, token, meta: as it was written.
        sections: where each stands.
    """

    __slots__ = (
        *("_block", "_digests", "_file", "_hdf5", "_keys"),
        *("kind", "meta", "path", "sections", "token"),
    )

    def __init__(self, files: Files, path: str, *kinds: str, file: OpenFile | None = None) -> None:
        self._file: OpenFile = file or files.open(path)
        self.path = path
        self._keys = files.keyring.keys_of(files.uid) if files.keyring else None
        try:
            header, self.sections = _contents(self._header(), path)
        except ValueError as error:
            self._file.close()
            raise FileDamaged("The header cannot be read", path) from error
        self.kind: str = header["kind"]
        self.token: str = header["token"]
        self.meta: dict[str, Any] = header["meta"]
        self._digests: Digests | None = None
        self._block = ("", 0, b"")
        if self._keys is not None:
            lengths = {name: section.length for name, section in self.sections.items()}
            self._digests = Digests(header.get("digests"), lengths, path)
        if kinds and self.kind not in kinds:
            self._file.close()
            raise FileRefused(f"A file of kind {self.kind[:40]!r}, not {' or '.join(kinds)}", path)

    def _header(self) -> bytes:
        """The line that tells what is in the file, checked."""
        start = self._file.read(0, FIRST_READ)
        line, _, rest = start.partition(b"\n")
        words = line.split()
        if len(words) < 2 or words[0] != MAGIC:
            raise FileDamaged("Not an fsbroker file, or cut off", self.path)
        if int(words[1]) > FORMAT:
            raise FormatTooNew(
                f"Format {int(words[1])}, this fsbroker reads up to {FORMAT}",
                self.path,
                "Use the newer fsbroker that wrote it",
            )
        _, _, size, length_text, checksum = words
        self._hdf5, length = int(size), int(length_text, 16)
        if not (0 <= length <= LARGEST_HEADER and 0 <= self._hdf5 <= LARGEST_HEADER):
            raise FileDamaged("The header is larger than any that fsbroker writes", self.path)
        text = rest[:length]
        if len(text) < length:
            text = self._file.read(len(line) + 1, length)
        if zlib.crc32(text) != int(checksum, 16):
            raise FileDamaged("The header's checksum is wrong", self.path)
        if self._keys is not None:
            self._require_signature(self._keys, line + b"\n" + text)
        return text

    def _require_signature(self, keys: frozenset[str], header: bytes) -> None:
        line = self._file.read(len(header), LENGTH)
        require(keys, signed_name(self.path), header, line, self.path)

    def __contains__(self, name: str) -> bool:
        return name in self.sections

    def length(self, name: str) -> int:
        """Bytes of a section that reach to its end, and may be read; 0 if it is not there."""
        section = self.sections.get(name, Section(0, 0, 0))
        self._within(section.offset, section.length, name)
        return section.length

    def read(self, name: str) -> bytes:
        """A whole section, checked; nothing for one that is not there (it was empty)."""
        section = self.sections.get(name)
        if section is None:
            return b""
        return self._checked(name, 0, section.length, section.checksum)

    def json(self, name: str, form: Any) -> Any:
        """A section of JSON text of this form; it must be there."""
        return forms.parsed(self.read(name), form, f"section {name!r}", self.path)

    def read_part(self, name: str, offset: int, length: int, checksum: int) -> bytes:
        """A part of a section, with the checksum that a table row gives for it."""
        section = self.sections.get(name, Section(0, 0, 0))
        if offset < 0 or length < 0 or offset + length > section.length:
            raise FileDamaged(f"A row points outside of section {name!r}", self.path)
        return self._checked(name, offset, length, checksum)

    def table(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """A section as a read-only array of table rows."""
        import numpy as np

        data = self.read(name)
        if len(data) % dtype.itemsize:
            raise FileDamaged(f"Section {name!r} has a broken row", self.path)
        return np.frombuffer(data, dtype)

    def fill(self, name: str, buffer: memoryview) -> None:
        """Read a whole section into a buffer of its size."""
        section = self.sections.get(name, Section(0, 0, 0))
        if section.length != len(buffer) or (
            self._file.read_into(buffer, section.offset) != section.length
            or zlib.crc32(buffer) != section.checksum
        ):
            raise FileDamaged(f"Checksum of section {name!r} is wrong", self.path)
        if self._digests is not None:
            self._digests.require(name, 0, buffer)

    def _within(self, offset: int, length: int, name: str) -> None:
        if offset + length > self._file.size:
            raise FileDamaged(f"Cut off before the end of section {name!r}", self.path)
        if length > LARGEST_READ:
            raise FileRefused(
                f"{length} bytes of section {name!r} do not fit in memory here", self.path
            )

    def _checked(self, name: str, offset: int, length: int, checksum: int) -> bytes:
        start = self.sections[name].offset if length else 0
        self._within(start + offset, length, name)
        if self._digests is None or not length:
            data = self._file.read(start + offset, length)
        else:
            data = self._proved(self._digests, name, offset, offset + length)
        if len(data) != length or zlib.crc32(data) != checksum:
            raise FileDamaged(f"Checksum of section {name!r} is wrong", self.path)
        return data

    def _proved(self, digests: Digests, name: str, begin: int, end: int) -> bytes:
        """A part of a section, out of whole blocks, all of which were compared.

        The last block is kept: values of microseconds stand in it by the thousand.
        """
        section, (known, first, data) = self.sections[name], self._block
        if known != name or not first <= begin <= end <= first + len(data):
            first = begin // BLOCK * BLOCK
            last = min(-(-end // BLOCK) * BLOCK, section.length)
            data = self._file.read(section.offset + first, last - first)
            digests.require(name, first // BLOCK, data)
            if len(data) <= BLOCK:
                self._block = (name, first, data)
        return data[begin - first : end - first]

    def verify(self) -> None:
        """Read everything, and compare the length with what HDF5's superblock says of it.

        Raises:
            FileDamaged: it is not as it was written.
        """
        for name in self.sections:
            self.read(name)
        superblock = self._file.read(self._hdf5, 36)
        end = int.from_bytes(superblock[28:36], "little")
        if superblock[:8] != SIGNATURE or self._hdf5 + end != self._file.size:
            raise FileDamaged("Cut off, or longer than it was written", self.path)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _contents(text: bytes, path: str) -> tuple[dict[str, Any], dict[str, Section]]:
    """What a header says, and where each section stands: none on another.

    So no byte is read twice. That the file reaches so far is seen when a section is read: its
    size may be stale.
    """
    header: dict[str, Any] = forms.parsed(text, _HEADER, "header", path)
    table = header["sections"]
    if not all(forms.fits(entry, _SECTION) for entry in table.values()):
        raise FileDamaged("The header is not what fsbroker writes", path)
    found = {name: Section(*entry) for name, entry in table.items()}
    end = 0
    for section in sorted(found.values()):
        if section.offset < end:
            raise FileDamaged("Sections overlap", path)
        end = section.offset + section.length
    return header, found


def token_of(files: Files, path: str) -> str | None:
    """The token of the file under this name; None if none is there that can be read."""
    try:
        with Container(files, path) as file:
            return file.token
    except (FileNotFoundError, FileDamaged, FileRefused):
        return None
