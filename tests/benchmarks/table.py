"""What the benchmark says: rows with a verdict, as a table or as JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field

UNITS = {
    "/s": (1.0, "/s"),
    "ms": (1e3, " ms"),
    "us": (1e6, " us"),
    "bytes": (1.0, " B"),
    "": (1.0, ""),
}
"""Unit of a row -> factor from what was measured, and how it is written."""


@dataclass(frozen=True)
class Row:
    """One line: what was measured, and how that stands to its budget and to a peer.

    Attributes:
        ours, theirs: one number for each repetition; those of one place make a pair.
        limit: of the budget; None for a comparison without one.
        of_ratio: the limit is of fsbroker / peer, not of the number itself.
        at_least: more is better.
        trouble: why there is no number.
    """

    what: str
    unit: str = ""
    ours: list[float] = field(default_factory=list)
    peer: str = ""
    theirs: list[float] = field(default_factory=list)
    limit: float | None = None
    of_ratio: bool = False
    at_least: bool = False
    note: str = ""
    trouble: str = ""

    @property
    def ratios(self):
        return [a / b for a, b in zip(self.ours, self.theirs, strict=False) if b]

    @property
    def verdict(self):
        if self.trouble:
            return "not measured"
        if self.limit is None:
            return ""
        judged = statistics.median(self.ratios if self.of_ratio else self.ours)
        holds = judged >= self.limit if self.at_least else judged <= self.limit
        return "holds" if holds else "DOES NOT HOLD"

    @property
    def budget(self):
        if self.limit is None:
            return ""
        sign = ">=" if self.at_least else "<="
        if self.of_ratio:
            return f"{sign} {self.limit:g}x"
        return f"{sign} {written(self.limit, self.unit)}"

    def cells(self):
        ours = self.trouble.splitlines()[-1][:60] if self.trouble else _spread(self.ours, self.unit)
        theirs = f"{self.peer} {_middle(self.theirs, self.unit)}".strip()
        return [self.what, self.budget, ours, theirs, _times(self.ratios), self.verdict]

    def as_json(self):
        found = asdict(self)
        return found | {"ratios": self.ratios, "verdict": self.verdict}


HEAD = ["what", "budget", "fsbroker: median (min..max)", "peer: median", "fsbroker / peer", ""]


def written(number, unit):
    """A number in its unit, with three digits."""
    factor, suffix = UNITS[unit]
    number *= factor
    digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 else 2
    return f"{number:,.{digits}f}".removesuffix(".00") + suffix


def _middle(numbers, unit):
    return written(statistics.median(numbers), unit) if numbers else ""


def _spread(numbers, unit):
    if not numbers:
        return ""
    if len(numbers) == 1:
        return _middle(numbers, unit)
    low, high = written(min(numbers), unit), written(max(numbers), unit)
    return f"{_middle(numbers, unit)} ({low} .. {high})"


def _times(ratios):
    if not ratios:
        return ""
    middle = f"{statistics.median(ratios):.3g}x"
    return f"{middle} ({min(ratios):.3g} .. {max(ratios):.3g})" if len(ratios) > 1 else middle


def lines(rows):
    """The table, and below it the notes."""
    cells = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(one[column]) for one in cells) for column in range(len(HEAD))]
    for number, one in enumerate(cells):
        padded = (cell.ljust(width) for cell, width in zip(one, widths, strict=True))
        yield "  ".join(padded).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in widths)
    for row in rows:
        if row.note:
            yield f"* {row.what}: {row.note}"


def profile(title, samples):
    """CPU time of each thread, one line each, the largest first."""
    names = {name for sample in samples for name in sample}
    spent = {name: statistics.median(one.get(name, 0.0) for one in samples) for name in names}
    yield title
    for name, microseconds in sorted(spent.items(), key=lambda entry: -entry[1]):
        if microseconds >= 0.05:
            yield f"  {microseconds:9.1f} us  {name}"
    yield f"  {sum(spent.values()):9.1f} us  together"
