"""Run a workflow file: a Python Workflow Definition, as `export_workflow_filename` writes it.

The functions that it names are imported and called: run no file that you would not run as a
script. Modules are found as Python finds them, and in the working directory. Calls have the
keys that they would have from a script, so what the spool has already is not run again.

Backend, resources and the rest come from the settings ('fsbroker config show').
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
from concurrent.futures import Future
from typing import Any

from fsbroker import cli
from fsbroker.cli.output import plain, print_json
from fsbroker.config import BACKENDS
from fsbroker.executor import ClusterExecutor
from fsbroker.report import steps

SPOOL_BY_SETTINGS = True
"""Any executor made here would know its spool."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the workflow file")
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--max-workers", type=int, metavar="N", help="cores of each agent")
    parser.add_argument("--tag", help="a name under which the tasks are found again")


def run(options: argparse.Namespace) -> int:
    definition = steps.load(options.file)
    # As `python script.py` has it; agents are told of it too.
    sys.path.insert(0, os.getcwd())
    definition.functions()
    with ClusterExecutor(
        options.spool, options.backend, options.max_workers, tag=options.tag
    ) as executor:
        futures, outputs = definition.submit(executor)
        concurrent.futures.wait(futures)
    failed = [future for future in futures if future.exception() is not None]
    values = {} if failed else {name: _resolved(value) for name, value in outputs.items()}
    if options.json:
        print_json(
            {
                "tasks": len(futures),
                "errors": [_told(future) for future in failed],
                "outputs": {name: _json(value) for name, value in values.items()},
            }
        )
    else:
        for name, value in values.items():
            print(f"{plain(name)}: {value!r}")
    for future in failed if not options.json else ():
        print(f"fsbroker run: {plain(_told(future))}", file=sys.stderr)
    return cli.SOME_FAILED if failed else cli.OK


def _told(future: Future[Any]) -> str:
    error = future.exception()
    return f"{type(error).__name__}: {error}"


def _resolved(value: Any) -> Any:
    """The value with the results of futures in their places."""
    if isinstance(value, Future):
        return value.result()
    if isinstance(value, list):
        return [_resolved(item) for item in value]
    if isinstance(value, dict):
        return {name: _resolved(item) for name, item in value.items()}
    return value


def _json(value: Any) -> Any:
    """As workflow files have values; what has no such form as its text."""
    from fsbroker.errors import WorkflowError
    from fsbroker.report.jsonform import json_form

    try:
        return json_form(value, "output")
    except WorkflowError:
        return repr(value)
