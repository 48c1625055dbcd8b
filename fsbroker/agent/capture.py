"""What functions write to stdout and stderr: files of a worker, emptied after each row.

Files and not pipes: whatever was written before a worker was killed can still be read,
a worker never waits for a reader, and programs that a task starts may write on.
They are opened for appending, so that those go on at the start of an emptied file.
"""

from __future__ import annotations

import os

KEPT = 1 << 20
"""Bytes kept from the beginning, and as many from the end, of what a row wrote."""

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def open_file(path: str) -> int:
    """The descriptor of an empty capture file."""
    return os.open(path, _FLAGS | os.O_TRUNC, 0o600)


def read(descriptor: int) -> bytes:
    """What was written since the file was last emptied, without its middle if it is long."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if size <= 2 * KEPT:
        return os.pread(descriptor, size, 0)
    head, tail = os.pread(descriptor, KEPT, 0), os.pread(descriptor, KEPT, size - KEPT)
    return head + b"\n[... %d bytes left out ...]\n" % (size - 2 * KEPT) + tail


def take(descriptor: int) -> bytes:
    """What was written, and empty the file."""
    if os.lseek(descriptor, 0, os.SEEK_END) == 0:
        return b""
    written = read(descriptor)
    os.ftruncate(descriptor, 0)
    return written


def read_file(path: str) -> bytes:
    """What is in the capture file of a worker that has ended; empty if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return read(descriptor)
    finally:
        os.close(descriptor)
