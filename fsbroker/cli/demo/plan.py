"""What one run of the demo computes, and with what."""

from __future__ import annotations

from typing import NamedTuple

RANKS = 2
"""MPI ranks of each scan, and cores of each agent."""
AGENTS = 2


class Plan(NamedTuple):
    """What the client computes, and where.

    Attributes:
        metals: chemical symbols. points: volumes of each scan. cells: see `metals.scan`.
    """

    spool: str
    metals: tuple[str, ...]
    points: int
    cells: int

    def tasks(self) -> int:
        """A scan and a fit for each metal, and the summary."""
        return 2 * len(self.metals) + 1
