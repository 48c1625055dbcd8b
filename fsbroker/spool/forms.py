"""What JSON of the spool must look like, and how it is read: so, or its file is damaged.

A right checksum says that nothing was damaged by accident. Who wrote the file on purpose
wrote a right checksum too, so what follows from its content (a path, a size, a place in a
table) is believed only after it was looked at.

    int, str, bool, dict      exactly this type
    a function                what it says of the value
    [form]                    a list of any length
    (form, form)              a list of this length
    {"name": form}            a mapping; "?name" may be missing, others may be there
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from fsbroker.errors import FileDamaged

_DIGEST = re.compile(r"[0-9a-f]{40}")


def parsed(text: bytes | str, form: Any, what: str, path: str) -> Any:
    """The value that a text has.

    Raises:
        FileDamaged: it is no JSON, or of another form.
    """
    try:
        value = json.loads(text)
        right = fits(value, form)
    except (ValueError, RecursionError) as error:
        raise FileDamaged(f"The {what} cannot be read", path) from error
    if not right:
        raise FileDamaged(f"The {what} is not what fsbroker writes", path)
    return value


def fits(value: Any, form: Any) -> bool:
    """Whether a value is of this form."""
    if isinstance(form, type):
        return type(value) is form
    if isinstance(form, list):
        return type(value) is list and all(fits(one, form[0]) for one in value)
    if isinstance(form, tuple):
        return type(value) is list and len(value) == len(form) and all(map(fits, value, form))
    if isinstance(form, dict):
        return type(value) is dict and all(_has(value, *field) for field in form.items())
    says: Callable[[Any], bool] = form
    return says(value)


def _has(value: dict[str, Any], name: str, form: Any) -> bool:
    known = name.lstrip("?")
    return fits(value[known], form) if known in value else known != name


def natural(value: Any) -> bool:
    """An int that is not negative, and that every integer of 64 bits can hold."""
    return type(value) is int and 0 <= value < 1 << 63


def number(value: Any) -> bool:
    """A number that is not NaN, nor beyond what clocks and limits show."""
    return type(value) in (int, float) and abs(value) < FAR


def digest(value: Any) -> bool:
    """40 hex digits."""
    return type(value) is str and _DIGEST.fullmatch(value) is not None


FAR = 1e11
"""Seconds: no time that anybody has measured lies beyond."""
