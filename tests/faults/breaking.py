"""Places outside of publish and claim, broken on purpose; and the test that must fail then.

As a plugin (``-p tests.faults.breaking``) it applies the one that FSBROKER_TEST_BREAK names,
so that the ordinary tests run on the broken code. `tests/sim/breaks.py` has those that
the simulation catches.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, NamedTuple


class Break(NamedTuple):
    """One place.

    Attributes:
        where: module and attribute that are replaced. by: what stands there instead.
        caught: the test that must fail.
    """

    where: str
    by: Any
    caught: str


BREAKS = {
    "retry leaves failed inputs as they are": Break(
        "fsbroker.client.again:Again._dependencies",
        lambda *_: [],
        "tests/test_cli.py::test_retry_runs_a_failed_chain_anew_without_its_code",
    ),
    "import believes what a crate holds": Break(
        "fsbroker.report.arrival:digest_of",
        lambda _: EVERYTHING,
        "tests/test_crate.py::test_every_changed_file_is_noticed",
    ),
    "a newer spool is opened": Break(
        "fsbroker.spool.spool:FORMAT",
        1 << 30,
        "tests/test_versions.py::test_a_newer_spool_is_refused_by_everybody_and_left_as_it_is",
    ),
    "the doctor finds everything fine": Break(
        "fsbroker.doctor.verdict:Report.level",
        property(lambda _: 0),
        "tests/test_doctor.py::test_files_that_belong_to_somebody_else_make_it_unfit",
    ),
    "fsck repairs beside agents that work": Break(
        "fsbroker.spool.fsck:alive",
        lambda *_: iter(()),
        "tests/test_fsck.py::test_repair_waits_for_agents_that_may_be_at_work",
    ),
    "fsck does not look into results": Break(
        "fsbroker.spool.fsck:_Check._look_into",
        lambda *_: None,
        "tests/test_fsck.py::test_damage_to_every_kind_of_file_is_found_and_the_spool_works_on",
    ),
}


class _Everything:
    """Equal to all."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


EVERYTHING = _Everything()


def apply(name: str) -> None:
    broken = BREAKS[name]
    module, _, path = broken.where.partition(":")
    owner: Any = import_module(module)
    *inner, last = path.split(".")
    for one in inner:
        owner = getattr(owner, one)
    assert hasattr(owner, last)
    setattr(owner, last, broken.by)


if chosen := os.environ.get("FSBROKER_TEST_BREAK"):
    apply(chosen)
