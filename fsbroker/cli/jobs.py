"""The queue jobs of a spool, as its log tells; with --ask, as the scheduler does, too.

fsbroker jobs                 list them, the last submitted first
fsbroker jobs cancel N...     end these queue jobs. What they run goes back to the spool, and
                              clients that wait for it submit new ones: to have tasks not
                              run, use `fsbroker cancel`
fsbroker jobs resume          submit jobs again after a pause
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from fsbroker import cli
from fsbroker.cli import agents, choice
from fsbroker.cli.output import age, parse_limit, plain, print_json, print_table
from fsbroker.client.history import History
from fsbroker.launch.scheduler import Scheduler, Status
from fsbroker.launch.settings import config_of, scheduler_of
from fsbroker.spool.jobs import Cause, JobLog, QueueJob
from fsbroker.spool.spool import Spool, open_spool

LIMIT = 50
INTENDED, SUBMITTED, RUNNING = "intended", "submitted", "running"
"""States of jobs that are not over: as far as the spool knows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("cancel", "resume"))
    parser.add_argument("numbers", nargs="*", type=int, metavar="N", help="number of a queue job")
    parser.add_argument("--ask", action="store_true", help="ask the scheduler, too")
    parser.add_argument(
        "--limit", type=parse_limit, default=LIMIT, help=f"at most so many, 0 for all; {LIMIT}"
    )


def run(options: argparse.Namespace) -> int:
    spool = open_spool(options.spool)
    log = JobLog(spool.files, spool.area)
    log.refresh()
    if (options.action == "cancel") != bool(options.numbers):
        raise choice.NothingNamed("Name the queue jobs", "fsbroker jobs cancel N...")
    if options.action == "cancel":
        return _cancel(spool, log, options)
    if options.action == "resume":
        log.resume()
    _list(spool, log, options)
    return cli.OK


def _scheduler(log: JobLog, job: QueueJob) -> Scheduler:
    """The one that it was submitted to, as it was then."""
    return scheduler_of(config_of(log.settings(job.settings)))


# -- list --------------------------------------------------------------------------------


def _list(spool: Spool, log: JobLog, options: argparse.Namespace) -> None:
    newest = list(log.jobs.values())[::-1]
    shown = newest[: options.limit or None]
    known = _ask(log, shown) if options.ask else {}
    running = _with_agents(spool)
    history = History(spool)
    told = {
        "jobs": [
            {**_told(job, running, known if options.ask else None), **_task(history, job)}
            for job in shown
        ],
        "more": len(newest) - len(shown),
        "paused": log.paused,
        "no_submit": log.no_submit,
        "differences": [said for said in log.compared.values() if said],
    }
    print_json(told) if options.json else _print(told, asked=options.ask)


def _ask(log: JobLog, jobs: Iterable[QueueJob]) -> dict[str, Status]:
    """One question to each scheduler, by the place of a job."""
    one_each = {job.scheduler: job for job in jobs}
    found: dict[str, Status] = {}
    for name, job in one_each.items():
        answer = _scheduler(log, job).active()
        found.update({f"{name}:{number}": status for number, status in answer.items()})
    return found


def _with_agents(spool: Spool) -> set[str]:
    """The places where agents are."""
    return {seen.place for seen in agents.present(spool)}


def _told(job: QueueJob, running: set[str], known: Mapping[str, Status] | None) -> dict[str, Any]:
    place = f"{job.scheduler}:{job.id}"
    state = RUNNING if place in running else SUBMITTED if job.id else INTENDED
    said = None
    if known is not None:
        status = known.get(place)
        said = {"state": status.word, "reason": status.reason} if status else None
    return {
        "number": job.number,
        "scheduler": job.scheduler,
        "id": job.id,
        "state": job.state or state,
        "asked": said,
        "cores": job.cores,
        "since": job.born,
        "reason": job.reason,
        "source": job.source,
        "failure": job.failure,
    }


def _task(history: History, job: QueueJob) -> dict[str, str]:
    """What a job runs: key and function of its one task; empty for one that drains the spool."""
    stem, _, row = job.row.rpartition(".")
    tasks = history.tasks.get(stem)
    if tasks is None:
        return {"row": job.row, "key": "", "function": ""}
    number = int(row)
    return {"row": job.row, "key": tasks.key(number).hex(), "function": tasks.function(number)}


def _print(told: Mapping[str, Any], *, asked: bool) -> None:
    head = ["number", "scheduler", "id", "state", "cores", "runs", "since", "reason"]
    lines = [_line(one) for one in told["jobs"]]
    if asked:
        head.insert(4, "scheduler says")
        for line, one in zip(lines, told["jobs"], strict=True):
            line.insert(4, _said(one["asked"]))
    if lines:
        print_table(head, lines)
    else:
        print("no queue job was submitted for this spool")
    if told["more"]:
        print(f"... and {told['more']} more (--limit 0 shows all)")
    if told["paused"]:
        print(f"submission is paused: {plain(told['paused'])}")
        print("when that is mended: fsbroker jobs resume")
    for said in told["differences"]:
        print(f"other versions than the client's: {plain(said)}")
    if told["no_submit"]:
        print(f"compute nodes cannot submit, clients have to: {plain(told['no_submit'])}")


def _line(one: Mapping[str, Any]) -> list[object]:
    source = f" (says {one['source']})" if one["source"] else ""
    return [
        one["number"],
        one["scheduler"],
        one["id"] or "-",
        one["state"],
        one["cores"],
        f"{one['key'][:12]} {one['function']}" if one["key"] else one["row"] or "pilot",
        age(one["since"]),
        f"{one['reason']}{source}" or "-",
    ]


def _said(asked: Mapping[str, str] | None) -> str:
    if asked is None:
        return "does not know it"
    return f"{asked['state']} ({asked['reason']})" if asked["reason"] else asked["state"]


# -- cancel ------------------------------------------------------------------------------


def _cancel(spool: Spool, log: JobLog, options: argparse.Namespace) -> int:
    unknown = [number for number in options.numbers if number not in log.jobs]
    if unknown:
        where = ", ".join(map(str, unknown))
        raise choice.NotFound("No such queue job", where, "'fsbroker jobs' lists them")
    running = _with_agents(spool)
    answers = [_end(log, log.jobs[number], running) for number in options.numbers]
    if options.json:
        print_json(answers)
    else:
        lines = [(one["number"], one["id"] or "-", one["text"]) for one in answers]
        print_table(("number", "id", "what happened"), lines)
    return cli.OK if all(one["done"] for one in answers) else cli.NOTHING_TO_DO


def _end(log: JobLog, job: QueueJob, running: set[str]) -> dict[str, Any]:
    told: dict[str, Any] = {"number": job.number, "id": job.id, "done": False}
    if job.is_over:
        return {**told, "text": f"was over before ({job.state})"}
    if not job.id:
        return {**told, "text": "is just being submitted: its id is not known yet, try again"}
    _scheduler(log, job).cancel([job.id])
    if f"{job.scheduler}:{job.id}" in running:
        return {**told, "done": True, "text": "its agent was told to end"}
    # The end of one that has an agent is for the scheduler to tell: the agent is giving back
    # what it ran, and would be sealed in the middle of that.
    why = "by `fsbroker jobs cancel`"
    log.ended(job, "CANCELLED", why, "fsbroker", Cause.CANCELLED, failure=False)
    return {**told, "done": True, "text": "cancelled before it began"}
