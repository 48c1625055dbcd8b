"""``python -m fsbroker.cli.demo.client PLAN``: what a user's script would be.

It submits the whole workflow at once, then waits, and prints the results. Killed and
started again, it makes the same calls, and finds their tasks.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from fsbroker import ClusterExecutor
from fsbroker.cli.demo.metals import fit, scan, summary
from fsbroker.cli.demo.plan import AGENTS, RANKS, Plan

IDLE_TIMEOUT = 20.0
"""Seconds after which the agents end, if the supervisor was killed and cannot tell them to."""


def compute(plan: Plan) -> dict[str, Any]:
    """The ``rows`` of the summary, and the ``ranks`` that each scan ran on."""
    with ClusterExecutor(
        plan.spool, max_workers=RANKS, agents=AGENTS, idle_timeout=IDLE_TIMEOUT
    ) as executor:
        on_two_ranks = {"cores": RANKS}
        scans = {
            metal: executor.submit(scan, metal, plan.points, plan.cells, resource_dict=on_two_ranks)
            for metal in plan.metals
        }
        fits = [executor.submit(fit, metal, shares) for metal, shares in scans.items()]
        table = executor.submit(summary, fits)
        return {
            "rows": table.result(),
            "ranks": {
                metal: [[share["rank"], share["size"]] for share in shares.result()]
                for metal, shares in scans.items()
            },
        }


if __name__ == "__main__":
    print(json.dumps(compute(Plan(*json.loads(sys.argv[1])))))
