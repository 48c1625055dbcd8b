"""Giving a file its final name: once, whole, and for ever (rule 1).

    write tmp/<token>, fsync -> fsync what must be there before -> link to the final name
    -> unlink tmp -> fsync directory

`link` never replaces. Over a network its reply may lie, so after an error the final
name is opened and the random token inside compared: ours means that it was done.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from fsbroker.errors import SpoolError
from fsbroker.spool.container import Image, token_of
from fsbroker.spool.files import Files
from fsbroker.spool.layout import Area, signed_name

ATTEMPTS = 5


def publish(  # noqa: PLR0913 - what, where, and how safely
    files: Files,
    area: Area,
    image: Image,
    path: str,
    *,
    durable: bool,
    first: Sequence[str] = (),
) -> bool:
    """Give ``image`` the name ``path``; False if another file has it.

    Args:
        durable: survive a power loss from the moment this returns.
        first: directories whose names must be durable before this one is visible. They
            are synced behind the file, when a journal has written them already.

    Raises:
        SpoolFull, SpoolUnwritable, OSError: nothing was published.
    """
    if files.keyring is not None:
        image = replace(image, sign=files.keyring.signer(signed_name(path)))
    temporary = area.temporary(image.token)
    try:
        done = _linked(files, temporary, image, path, first if durable else None)
    finally:
        with suppress(OSError, SpoolError):
            files.unlink(temporary)
    if durable and done:
        files.sync_directory(path.rpartition("/")[0])
    return done


def _linked(
    files: Files, temporary: str, image: Image, path: str, first: Sequence[str] | None
) -> bool:
    """Write and link. A temporary file that somebody swept meanwhile is written again."""
    _write(files, temporary, image, sync=first is not None)
    # Where this fails the publish has failed: a second fsync may succeed though the
    # first one's pages are lost.
    for directory in first or ():
        files.sync_directory(directory)
    last: OSError | None = None
    for _ in range(ATTEMPTS):
        try:
            files.link(temporary, path)
            return True
        except OSError as error:
            last = error
        found = token_of(files, path)
        if found is not None:
            return found == image.token
        if last.errno == errno.ENOENT:
            _write(files, temporary, image, sync=first is not None)
    assert last is not None
    if last.errno == errno.EEXIST:
        return False  # taken by something that cannot be read: not ours
    raise last


def _write(files: Files, temporary: str, image: Image, *, sync: bool) -> None:
    """Write the temporary file; once more if the name is taken by a try whose reply was lost."""
    try:
        files.write_new(temporary, image.chunks, sync=sync)
    except FileExistsError:
        with suppress(OSError):
            files.unlink(temporary)
        files.write_new(temporary, image.chunks, sync=sync)
