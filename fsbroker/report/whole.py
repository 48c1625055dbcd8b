"""Writing a file whole, or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Put ``data`` under this name at once; who has it open goes on to read what was there."""
    path = os.fspath(path)
    temporary = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
