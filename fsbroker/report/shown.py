"""A value in a few characters, for circles and tables."""

from __future__ import annotations

import reprlib
import types
from typing import Any

WIDEST = 24

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxdict, _short.maxset = 2, 4, 4, 3, 4
_short.maxstring = WIDEST


def shown(value: Any) -> str:
    """One line that tells what it is; never the whole of something large."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and shape and dtype is not None:
        return f"{dtype}[{'x'.join(map(str, shape))}]"
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return f"{value.__name__}()"
    text = " ".join(_short.repr(value).split())
    if text.startswith("<") or len(text) > 2 * WIDEST:
        return f"{type(value).__name__}()" if text.startswith("<") else cut(text, 2 * WIDEST)
    return text


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
