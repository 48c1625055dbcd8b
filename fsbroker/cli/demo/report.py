"""What the demo prints at its end: the numbers, and whether all went as it should."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fsbroker.cli.demo import metals
from fsbroker.cli.demo.metals import EXPERIMENT
from fsbroker.cli.demo.plan import RANKS, Plan
from fsbroker.cli.demo.supervisor import Course

LARGEST_MISFIT = 1e-3
"""eV per atom, root mean square: fits through energies of EMT are ten times better."""
FARTHEST = {"lattice_constant": 2.0, "bulk_modulus": 50.0}
"""Percent that EMT may be off: aluminium is off by 1.4 and 45, no other metal by as much."""
SAME = 1e-6
"""Relative difference between two ways to the same number."""
JUST_NOW = 1.0
"""Seconds before the end of an agent: what ended then may not have been published."""

Row = dict[str, Any]


def print_report(plan: Plan, course: Course) -> bool:
    """Print table, errors of the potential, and checks; True if all of these hold."""
    rows = course.result["rows"]
    print(*_table(rows, course.result["ranks"]), sep="\n")
    print(*_errors(rows), sep="\n")
    checks = [*_checks(plan, course)]
    print()
    for check in checks:
        print(f"  {'ok    ' if check.holds else 'FAILED'}  {check.text}")
    return all(check.holds for check in checks)


def _table(rows: Sequence[Row], ranks: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "           lattice constant (Angstrom)     bulk modulus (GPa)"
    yield "    ranks     EMT  measured       off     EMT  measured       off"
    for row in rows:
        metal = row["metal"]
        measured = EXPERIMENT[metal]
        yield (
            f"{metal}  {len(ranks[metal]):5}"
            f"  {row['lattice_constant']:6.3f}  {measured.lattice_constant:8.2f}"
            f"  {row['lattice_constant_off']:+6.1f} %"
            f"  {row['bulk_modulus']:6.1f}  {measured.bulk_modulus:8.1f}"
            f"  {row['bulk_modulus_off']:+6.1f} %"
        )


def _errors(rows: Sequence[Row]) -> Iterator[str]:
    """What these numbers say of the potential."""
    yield ""
    yield "EMT, at 0 K, against measurements at room temperature (Kittel). On average it is off"
    yield f"by {_average(rows, 'lattice_constant')} in the lattice constant,"
    yield f"by {_average(rows, 'bulk_modulus')} in the bulk modulus."


def _average(rows: Sequence[Row], name: str) -> str:
    """The mean absolute deviation, and how much of it is due to one metal."""
    off = {row["metal"]: abs(row[f"{name}_off"]) for row in rows}
    mean = f"{sum(off.values()) / len(off):.1f} %"
    if len(off) == 1:
        return mean
    worst = max(off, key=lambda metal: off[metal])
    without = (sum(off.values()) - off[worst]) / (len(off) - 1)
    return f"{mean} ({without:.1f} % without {worst}, the worst)"


# -- checks ------------------------------------------------------------------------------


class Check(NamedTuple):
    """A statement, and whether it is true."""

    holds: bool
    text: str


def _checks(plan: Plan, course: Course) -> Iterator[Check]:
    if course.at_restart is None:
        yield from _recovered(plan, course)
    else:
        yield from _found_again(plan, course, len(course.at_restart.done()))
    yield _on_all_ranks(plan, course)
    yield _are_sane(course.result["rows"])
    yield _are_serial(plan, course.result["rows"])


def _found_again(plan: Plan, course: Course, found: int) -> Iterator[Check]:
    """After the end of a client: whatever it had submitted ran once.

    Args:
        found: tasks that had ended when the next client started.
    """
    tasks, done = plan.tasks(), len(course.at_end.done())
    again = _begun_again(course)
    yield Check(
        done == tasks and not again,
        f"{done} of {tasks} tasks ran, by the log that they write; ran twice: {_list(again)}",
    )
    yield Check(
        0 < found < tasks,
        f"the second client found the values of {found} tasks, and attached to {tasks - found}",
    )


def _recovered(plan: Plan, course: Course) -> Iterator[Check]:
    """After the end of an agent or a rank: what it had in hand ran again, and nothing else."""
    log, tasks = course.at_end, plan.tasks()
    yield Check(
        len(log.done()) == tasks,
        f"{len(log.done())} of {tasks} tasks ran to their end, by the log that they write:"
        f" {sum(log.attempts.values())} attempts, {sum(log.completions.values())} complete",
    )
    interrupted, again = _interrupted(course), _begun_again(course)
    yield Check(
        bool(interrupted) and interrupted <= again <= interrupted | _unpublished(course),
        f"interrupted by the kill: {_list(interrupted)}; begun again: {_list(again)}",
    )
    begun = [line.time for line in log.lines if line.task in again and line.event == "began"]
    after = min((time for time in begun if time > course.killed_at), default=None)
    if after is not None:
        yield Check(True, f"the next attempt began {after - course.killed_at:.1f} s after the kill")


def _begun_again(course: Course) -> set[str]:
    return {task for task, attempts in course.at_end.attempts.items() if attempts > 1}


def _interrupted(course: Course) -> set[str]:
    """Tasks that the killed processes had begun and never ended."""
    killed = course.killed.processes
    ended = {(line.task, line.pid) for line in course.at_end.lines if line.event == "ended"}
    return {
        line.task
        for lines in course.at_kill.in_progress().values()
        for line in lines
        if line.pid in killed and (line.task, line.pid) not in ended
    }


def _unpublished(course: Course) -> set[str]:
    """Tasks that ended so shortly before the kill that nobody else may have learnt of it."""
    return {
        line.task
        for line in course.at_end.lines
        if line.pid in course.killed.processes and line.time > course.killed_at - JUST_NOW
    }


def _list(tasks: set[str]) -> str:
    return ", ".join(sorted(tasks)) or "none"


def _on_all_ranks(plan: Plan, course: Course) -> Check:
    """By what the scans returned, and by the processes that wrote to the log."""
    expected = [[rank, RANKS] for rank in range(RANKS)]
    returned = course.result["ranks"]
    pids: dict[str, set[int]] = {}
    for line in course.at_end.lines:
        pids.setdefault(line.task, set()).add(line.pid)
    points = {row["metal"]: row["points"] for row in course.result["rows"]}
    good = [
        metal
        for metal in plan.metals
        if returned[metal] == expected
        and points[metal] == plan.points
        and len(pids[f"scan {metal}"]) >= RANKS
    ]
    return Check(
        len(good) == len(plan.metals),
        f"{len(good)} of {len(plan.metals)} scans ran on {RANKS} MPI ranks, each a process",
    )


def _are_sane(rows: Sequence[Row]) -> Check:
    misfit = max(row["misfit"] for row in rows)
    near = all(abs(row[f"{name}_off"]) < most for name, most in FARTHEST.items() for row in rows)
    lattice, modulus = FARTHEST.values()
    return Check(
        near and misfit < LARGEST_MISFIT,
        f"lattice constants within {lattice:g} %, bulk moduli within {modulus:g} % of the measured;"
        f" fits within {1000 * misfit:.2f} meV per atom",
    )


def _are_serial(plan: Plan, rows: Sequence[Row]) -> Check:
    """Once more, in this process, on cells of four atoms."""
    difference = 0.0
    for row in rows:
        points = metals.curve(row["metal"], plan.points, 1, slice(None))
        again = metals.equation_of_state([*zip(*points, strict=True)])
        for name in FARTHEST:
            difference = max(difference, abs(row[name] / again[name] - 1))
    text = f"a serial run of ASE gives the same numbers (relative difference {difference:.0e})"
    return Check(difference < SAME, text)
