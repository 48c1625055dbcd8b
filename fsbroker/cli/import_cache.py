"""Put the values of an executorlib cache into a spool, so that the same calls find them there.

Function and arguments are read from each file, which runs code (they are pickles): only your
own files are read. Modules that functions are imported from are looked for in the current
directory and in PYTHONPATH. Failed calls are left out: they run again when they are submitted.
A file that does not say on how many cores it ran is taken for one; --cores says otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

from fsbroker import cli, keys, pickling
from fsbroker.cli.output import print_json, print_table
from fsbroker.client.submitter import lane_of
from fsbroker.deposit import Finished, deposit, missing
from fsbroker.errors import FileDamaged, FsbrokerError
from fsbroker.executorlib_files import Recorded, Reference, paths, read
from fsbroker.keys import Call, Function
from fsbroker.needs import Resources, merged
from fsbroker.spool.spool import create
from fsbroker.task import Dependency

MANY = 256
"""Values that are read before they are published."""


class Answer(NamedTuple):
    """What became of one file."""

    file: str
    key: str
    done: bool
    text: str


class _Read(NamedTuple):
    recorded: Recorded
    function: Function
    call: Call
    resources: Resources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the cache directory of executorlib")
    parser.add_argument("--tag", default="", help="a name to find the tasks by")
    parser.add_argument(
        "--cores", type=int, default=1, help="MPI ranks of those that do not say; default 1"
    )


def run(options: argparse.Namespace) -> int:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    spool = create(options.spool)
    cache = _Cache(options.cores)
    answers: list[Answer] = []
    # A call ended after those that it had arguments of: these come first then.
    found = sorted(paths(options.directory), key=os.path.getmtime)
    for part in _pieces(found):
        finished = dict(_finished(cache, part, options.tag, answers))
        new = missing(spool, [one.call.key for one in finished.values()])
        deposit(spool, finished.values(), {"imported_from": os.path.abspath(options.directory)})
        for path, one in finished.items():
            text = "imported" if one.call.key in new else "was there already"
            answers.append(Answer(path, one.call.key.hex(), True, text))
    _tell(options, sorted(answers))
    return cli.OK if all(answer.done for answer in answers) else cli.NOTHING_TO_DO


def _pieces(found: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(found), MANY):
        yield found[start : start + MANY]


def _finished(
    cache: _Cache, part: list[str], tag: str, answers: list[Answer]
) -> Iterator[tuple[str, Finished]]:
    for path in part:
        try:
            yield path, cache.finished(path, tag)
        except FsbrokerError as error:
            answers.append(Answer(path, "", False, str(error)))


def _tell(options: argparse.Namespace, answers: list[Answer]) -> None:
    if options.json:
        print_json([answer._asdict() for answer in answers])
        return
    lines = [(os.path.basename(one.file), one.key[:12] or "-", one.text) for one in answers]
    print_table(("file", "key", "what happened"), lines)
    done = sum(answer.done for answer in answers)
    print(f"{done} of {len(answers)} files are in the spool")


class _Cache:
    """The calls in a cache, addressed as fsbroker does.

    Args:
        cores: of those that do not say.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._keys: dict[str, bytes | None] = {}

    def finished(self, path: str, tag: str) -> Finished:
        """The call in a file, and its value.

        Raises:
            FsbrokerError: it cannot be read, stored or addressed, or it has no value.
        """
        recorded, function, call, resources = self._address(path)
        if "error" in recorded.result:
            error = recorded.result["error"]
            raise FileDamaged(f"The call failed ({type(error).__name__}): it will run again", path)
        value = pickling.encode(recorded.result["output"])
        started = recorded.ended - recorded.runtime
        lane = lane_of(resources, tag)
        return Finished(lane, function, call, value, started, recorded.runtime)

    def _address(self, path: str) -> _Read:
        recorded = read(path)
        args, kwargs = recorded.arguments
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Reference):
                other = self._key(argument.path(os.path.dirname(path)))
                argument.dependency = Dependency(other, argument.selector)
        function = keys.identify(recorded.function)
        cores = self._cores if recorded.cores is None else recorded.cores
        resources = merged(Resources(), {"cores": cores})
        call = function.call(args, kwargs, cores, cache_key=recorded.cache_key)
        return _Read(recorded, function, call, resources)

    def _key(self, path: str) -> bytes:
        """The key of another call, whose value this one was given."""
        if path not in self._keys:
            self._keys[path] = None
            self._keys[path] = self._address(path).call.key
        key = self._keys[path]
        if key is None:
            raise FileDamaged("The calls of a cache depend on each other in a circle", path)
        return key
