"""Job scripts: templates, and pysqa, which fills them in and submits them.

The template is fsbroker's own, the user's (``submission_template``), or that of the site's
pysqa directory (``queue.yaml``), which is taken as it is. `words` says what templates may use.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from fsbroker.errors import MissingProgram, ResourceError
from fsbroker.launch.scheduler import Request, id_in, run
from fsbroker.needs import USUAL_PRIORITY

_OWN_KEYS = frozenset(
    (
        *("job_name", "working_directory", "directory", "comment", "command", "setup"),
        *("cores", "ranks", "threads", "nodes", "memory", "memory_max", "gpus", "exclusive"),
        *("run_time_max", "seconds", "time", "dependency_list", "after", "arguments", "queue"),
        *("partition", "account", "qos", "constraint", "priority", "nice", "urgency"),
    )
)
"""What templates may use without being given it as a resource of a call."""


class Pysqa:
    """Submission through pysqa.

    Args:
        kind: of scheduler, as pysqa names it.
        template: fsbroker's own.
        directory: a site's own configuration of pysqa.
    """

    def __init__(self, kind: str, template: str, directory: str | None = None) -> None:
        self._kind = kind
        self._template = template
        self._directory = directory

    @cached_property
    def _bare(self) -> Any:
        return _pysqa()(queue_type=self._kind, execute_command=_execute)

    @cached_property
    def _site(self) -> Any:
        try:
            return _pysqa()(directory=self._directory, execute_command=_execute)
        except (OSError, ValueError, KeyError) as error:
            cure = "It must hold a queue.yaml and the templates that it names."
            raise ResourceError(
                f"The pysqa configuration cannot be used ({error})", self._directory, cure
            ) from error

    def site_keys(self) -> frozenset[str]:
        """The keys of calls' resources that the template uses beyond those that all have."""
        return keys_of(self._texts())

    def _texts(self) -> list[str]:
        if self._directory is None:
            return [self._template]
        queues = self._site.config["queues"]
        paths = (os.path.join(self._directory, queue["script"]) for queue in queues.values())
        return [_read(path) for path in paths]

    def submit(self, request: Request) -> int:
        """Write the script and submit it; the job's number."""
        return int(self._called(request, _execute_here(request.directory)))

    def script(self, request: Request) -> str:
        """The script, not submitted."""
        return str(self._called(request, None))

    def _called(self, request: Request, execute: Callable[..., Any] | None) -> Any:
        from jinja2 import TemplateError

        wanted = words(request)
        given = request.queue.get("submission_template")
        if self._directory is None or given:
            # A queue of a site overrules other templates; without a site there are no queues.
            wanted |= {"queue": None, "submission_template": given or self._template}
            face = self._bare
        else:
            self._check_limits(wanted)
            face = self._site
        adapter = face._adapter  # noqa: SLF001 - the public face only submits
        try:
            if execute is None:
                return adapter._job_submission_template(**wanted)  # noqa: SLF001
            adapter._execute_command_function = execute  # noqa: SLF001
            return adapter.submit_job(**wanted)
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            where = self._directory or "submission_template"
            raise ResourceError(f"The job script cannot be made ({error})", where) from error

    def _check_limits(self, wanted: Mapping[str, Any]) -> None:
        """Pysqa cuts down what exceeds a queue's limits, without a word."""
        config = self._site.config
        name = wanted["queue"] or config["queue_primary"]
        queues = config["queues"]
        if name not in queues:
            valid = ", ".join(queues)
            raise ResourceError("Unknown partition", repr(name), f"{self._directory} has: {valid}")
        for key, most in (("cores", "cores_max"), ("run_time_max", "run_time_max")):
            limit = queues[name].get(most)
            if limit and wanted[key] and wanted[key] > int(limit):
                where = f"{key}={wanted[key]}; queue {name!r} of {self._directory} has {limit}"
                raise ResourceError("A job asks for more than its queue allows", where)


def keys_of(templates: Iterable[str]) -> frozenset[str]:
    """What templates use beyond what all requests have: a site's own keys."""
    return frozenset().union(*map(_variables, templates)) - _OWN_KEYS


def words(request: Request) -> dict[str, Any]:
    """What templates may use: the request in fsbroker's words, and in those of pysqa.

    Raises:
        ResourceError: a value has lines of its own, which would be lines of the script.
    """
    queue = {
        name: value
        for name, value in request.queue.items()
        if name not in ("slurm_cmd_args", "submission_template")
    }
    arguments = (*request.arguments, *request.queue.get("slurm_cmd_args", ()))
    for value in (*queue.values(), *arguments):
        if "\n" in str(value):
            cure = "Write it on one line."
            raise ResourceError("A job script cannot hold this value", repr(value), cure)
    seconds = math.ceil(request.seconds)
    return {
        **queue,
        "queue": queue.get("partition"),
        "job_name": request.name,
        "working_directory": request.directory,
        "directory": request.directory_on_nodes or request.directory,
        "comment": request.comment,
        "cores": request.ranks * request.threads,
        "ranks": request.ranks,
        "threads": request.threads,
        "nodes": request.nodes,
        "memory": request.memory,
        "memory_max": -(-request.memory // 1024) or None,
        "gpus": request.gpus,
        "exclusive": request.exclusive,
        "run_time_max": seconds or None,
        "seconds": seconds,
        "time": f"{seconds // 60}:{seconds % 60:02}" if seconds else "",
        "dependency_list": list(request.after) or None,
        "after": request.after,
        "setup": "\n".join(request.setup),
        "arguments": arguments,
        "priority": request.priority,
        # How much less than usual it may be served: users cannot ask for more.
        "nice": max(0, USUAL_PRIORITY - request.priority),
        "urgency": max(1, min(16, 16 * request.priority // USUAL_PRIORITY)),
        "command": request.shell,
    }


def _execute_here(directory: str) -> Callable[..., str]:
    """Pysqa's way to run commands, with failures told: in the job's directory."""

    def execute(commands: Any, working_directory: str | None = None, **_: Any) -> str:
        argv = [commands] if isinstance(commands, str) else list(commands)
        return id_in(run(argv, directory=working_directory or directory), r"(\d+)(?:;\S+)?")

    return execute


def _pysqa() -> Any:
    try:
        from pysqa import QueueAdapter
    except ImportError as error:
        cure = "pip install 'fsbroker[queue]'"
        raise MissingProgram("Submitting queue jobs needs pysqa", "pysqa", cure) from error
    return QueueAdapter


def _execute(*_: Any, **__: Any) -> None:
    raise AssertionError("a command of pysqa outside of a submission")


def _variables(template: str) -> set[str]:
    from jinja2 import Environment, meta

    environment = Environment()  # noqa: S701 - shell text, no page of the web
    environment.filters["quote"] = shlex.quote
    return meta.find_undeclared_variables(environment.parse(template))


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        raise ResourceError(f"A job template cannot be read ({error.strerror})", path) from error


def is_plain(path: str) -> bool:
    """Whether pysqa and job scripts can have this path: no blanks, no quotes."""
    return re.fullmatch(r"[\w./@:+=,~-]+", path) is not None
