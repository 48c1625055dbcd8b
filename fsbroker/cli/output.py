"""How things are shown: tables, JSON, times and sizes."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Left-justified columns, two blanks between; control characters are shown, not obeyed."""
    lines = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def plain(cell: object) -> str:
    """One line of text: names and messages come from users' programs."""
    text = str(cell)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def span(seconds: float | None) -> str:
    """A duration: three digits are enough."""
    if seconds is None:
        return "-"
    for unit, length, end in (("ms", 1e-3, 1), ("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172800)):
        if seconds < end:
            return f"{_digits(seconds / length)} {unit}"
    return f"{_digits(seconds / 86400)} d"


def _digits(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:.3g}" if value < 99.5 else f"{value:.0f}"


def age(since: float, now: float | None = None) -> str:
    """Seconds since a time of another clock: never below zero."""
    return span(max(0.0, (time.time() if now is None else now) - since))


def size(number: int) -> str:
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{_digits(value)} {unit}"
        value /= 1000
    return f"{_digits(value)} TB"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def parse_span(text: str) -> float:
    """Seconds of "30d", "12h", "90m", "10s" or "2w": for argparse."""
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; for example 30d, 12h or 90m")
    return float(match[1]) * _UNITS[match[2]]


def parse_limit(text: str) -> int:
    """How many lines at most, 0 for all: for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)
