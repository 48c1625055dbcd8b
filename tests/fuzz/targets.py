"""One target for each reader: what it does with the bytes, and what it may answer.

A target reads all that its reader offers. It may give anything back, or raise a `SpoolError`
that names the file; everything else is a finding.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fsbroker import pickling, plain
from fsbroker.errors import FsbrokerError, SpoolError, WorkflowError
from fsbroker.report.arrival import Crate, deliver
from fsbroker.report.crate import METADATA, TASKS, WORKFLOW
from fsbroker.report.steps import load
from fsbroker.spool import archive, fsck, gc, packs, presence
from fsbroker.spool import spool as spools
from fsbroker.spool.blobs import read_array
from fsbroker.spool.census import Census, fold_of
from fsbroker.spool.container import Container
from fsbroker.spool.index import Results
from fsbroker.spool.jobs import JobLog
from fsbroker.spool.layout import Presence, parse_stem
from fsbroker.spool.live import LiveFile
from fsbroker.spool.log import Fold, Log, Retired
from fsbroker.spool.streams import ResultFile
from fsbroker.spool.taskfile import TaskFile
from fsbroker.spool.tiers import Tiers
from fsbroker.task import ArrayRef, Encoding, Value
from tests.faults.parts import key_of
from tests.fuzz import corpus

SELDOM = 16
MOST = 8
"""Rows that are read of each file."""


class Target(NamedTuple):
    """A reader, and real files for it to start from."""

    seeds: Sequence[bytes]
    read: Callable[[bytes], None]


class NotNamed(Exception):
    """An error does not say which file it is about."""


class Escaped(Exception):
    """A name in a file led out of its place."""


class Place:
    """A spool of its own, in memory where that can be."""

    def __init__(self, directory: str) -> None:
        self.spool = spools.create(f"{directory}/spool", durable=False)
        self.files, self.area, _ = self.spool
        self.root = self.files.root
        self.put(self.area.blob(corpus.BLOB), corpus.blobs()[0])
        os.mkdir(self.path(self.area.stream(corpus.AGENT)))
        os.mkdir(self.path(self.area.stream(corpus.OTHER)))

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def put(self, name: str, data: bytes) -> str:
        with open(self.path(name), "wb", opener=_private) as file:
            file.write(data)
        return name

    def targets(self) -> dict[str, Target]:
        return {
            "tasks": Target(
                [*corpus.task_files(), *corpus.bundles()],
                _both(self.tasks, self.archive, self.surveys),
            ),
            "results": Target(
                [*corpus.result_files(), *self.pack_seeds()],
                _both(self.results, self.packs, self.surveys),
            ),
            "log": Target(corpus.logs(), self.log),
            "plain": Target(corpus.values(), values),
            "small": Target(
                [
                    *corpus.blobs(),
                    *corpus.presences(),
                    *corpus.queue_jobs(),
                    *corpus.spool_settings(),
                    *self.crate_seeds(),
                ],
                _both(self.blob, self.presence, self.jobs, self.settings, self.crate),
            ),
        }

    # -- task files ----------------------------------------------------------------------

    def tasks(self, data: bytes) -> None:
        path = self.put(self.area.task_file(corpus.STEM), data)
        name = parse_stem(corpus.STEM)
        assert name is not None
        live = LiveFile(self.files, self.area, corpus.STEM, name)
        with _named(path):
            live.holding([key_of(0)])
            live.log.fold.rows_in(1)
        with _named(path):
            self._task_file(TaskFile(self.files, path, corpus.STEM))

    def _task_file(self, file: TaskFile) -> None:
        rows = range(min(len(file.rows), MOST))
        wanted: list[Callable[[int], object]] = [
            lambda row: file.keys[row] == file.key(row),
            file.function,
            file.function_name,
            file.function_digest,
            file.dependencies,
            lambda row: self._value(file.arguments(row), call=True),
            lambda row: file.simple[row] and _of_a_worker(file.plain_text(0, row + 1)),
        ]
        for row in rows:
            _each((read, row) for read in wanted)

    def _value(self, value: Value, *, call: bool = False) -> None:
        arrays = [read_array(self.files, self.area, ref) for ref in value.arrays]
        if value.encoding == Encoding.PICKLE:  # whose bytes run code: not for us
            return
        decode = pickling.decode_call if call else pickling.decode
        with suppress(SpoolError):  # whoever decodes it names the task
            decode(value.encoding, value.data, arrays, (1, 2))

    # -- result files --------------------------------------------------------------------

    def results(self, data: bytes) -> None:
        path = self.put(self.area.stream_file(corpus.AGENT, 0), data)
        results = Results(self.files, self.area, durable=False)
        with _named(path):
            results.poll(deep=True)
        for file in results.news():
            with _named(path):
                self._result_file(file)
        self._damage_is_named(results.damaged)
        for row in range(corpus.ROWS):
            results.ended(corpus.STEM, [key_of(n) for n in range(corpus.ROWS)])
            with _named(path):
                results.value(key_of(row))
            with _named(path):
                results.find_row(key_of(row), corpus.STEM, row)

    def _result_file(self, file: ResultFile) -> None:
        _each([(lambda _: dict(file.errors()), 0), (lambda _: file.plain_texts(), 0)])
        for row in range(min(len(file.rows), MOST)):
            _each(
                [
                    (file.origin, row),
                    (file.error, row),
                    (file.outcome, row),
                    (lambda row: self._value(file.value(row)), row),
                ]
            )

    def _damage_is_named(self, damaged: dict[str, Exception]) -> None:
        for path, error in damaged.items():
            if path not in str(error):
                raise NotNamed(str(error)) from error

    def pack_seeds(self) -> list[bytes]:
        paths = [
            self.put(self.area.stream_file(corpus.OTHER, n), data)
            for n, data in enumerate(corpus.result_files())
        ]
        made = packs._merged("7" * 16, [ResultFile(self.files, path) for path in paths])
        assert made is not None
        return [b"".join(map(bytes, made.chunks))]

    def packs(self, data: bytes) -> None:
        """A pack that others are merged with, and whose inputs are dropped."""
        path = self.put(self.area.pack(1, "7" * 16), data)
        with suppress(FileNotFoundError):
            os.unlink(self.path(self.area.stream_file(corpus.AGENT, 0)))
        good = self.put(self.area.stream_file(corpus.OTHER, 1), corpus.result_files()[1])
        self.put(self.area.stream_file(corpus.OTHER, 2), corpus.result_files()[0])
        bystanders = [corpus.OTHER, "../bystander"]
        outside = self.put(self.area.blob("bystander"), b"")
        results = Results(self.files, self.area, durable=False)
        with _named(path):
            results.poll(deep=True)
        self._damage_is_named(results.damaged)
        with _named(path):
            results.value(key_of(1))
        tiers = Tiers(self.files, self.area.packs, 1 << 30)
        with _named(path):
            tiers.inputs()
        with _named(path):
            tiers.drop_inputs()
        with _named(path):
            tiers.due()
        if not os.path.exists(self.path(outside)) or not bystanders:
            raise Escaped(outside)
        with _named(path), ResultFile(self.files, path) as one:
            if os.path.exists(self.path(good)):
                with ResultFile(self.files, good) as other:
                    packs._merged("8" * 16, [one, other])

    # -- archive -------------------------------------------------------------------------

    def archive(self, data: bytes) -> None:
        path = self.put(self.area.bundle(1, "9" * 16), data)
        for stem, file in _all(path, archive.opened(self.files, path)):
            with _named(path):
                self._task_file(TaskFile(self.files, file.path, stem, file))
            with _named(path):
                archive._checked(self.files, file)
        census = Census(self.files, self.area)
        with _named(self.area.path):
            for entry in islice(census.task_files(), MOST):
                fold_of(self.files, self.area, entry)
        self._damage_is_named(census.unreadable)
        with _named(path):
            archive.rewrite(self.files, self.area, path, lambda _: False)

    # -- those who look at everything ----------------------------------------------------

    def surveys(self, data: bytes) -> None:
        """What the readers before have left in the spool; seldom, for it is slow."""
        if zlib.crc32(data) % SELDOM:
            return
        with _named(self.area.path):
            fsck.survey(self.files, self.area)
        with _named(self.area.path):
            gc.survey(self.files, self.area, gc.Wishes(results=True))

    # -- logs ----------------------------------------------------------------------------

    def log(self, data: bytes) -> None:
        directory = self.path(self.area.log(corpus.STEM))
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
        if data.startswith(b"fsbroker"):
            self.put(self.area.record(corpus.STEM, 64), data)
            records = corpus.logs()[0].split(b"\n") * 8
            self._records(directory, [*records[:64], b"", *records[:3]])
        else:
            self._records(directory, data.split(b"\n")[:64])
        log = Log(self.files, self.area, corpus.STEM, Fold(corpus.ROWS, [3]))
        with suppress(Retired), _named(corpus.STEM):
            log.refresh()
        fold = log.fold
        assert len(fold.state) == corpus.ROWS, "another number of rows"
        for agent in (*fold.agents, corpus.OTHER):
            fold.owned_by(agent)
        _ = [fold.owner_of(row) for row in range(corpus.ROWS)]
        again = Fold.from_json(fold.to_json().encode())
        assert again.to_json() == fold.to_json()

    @staticmethod
    def _records(directory: str, records: Iterable[bytes]) -> None:
        for number, text in enumerate(records):
            target = text.replace(b"\0", b"0")[:4095] or b"-"
            with suppress(FileExistsError):
                os.symlink(target, f"{directory}/{number:08d}".encode())

    # -- exported workflows --------------------------------------------------------------

    def crate_seeds(self) -> list[bytes]:
        """What two files of a crate say; its other files stay as they are."""
        self._crate = f"{self.root}/../crate"
        corpus.export_crate(self._crate)
        names = (TASKS, METADATA, WORKFLOW)
        return [Path(self._crate, name).read_bytes() for name in names]

    def crate(self, data: bytes) -> None:
        tasks, listed = (Path(self._crate, name) for name in (TASKS, METADATA))
        old = tasks.read_bytes(), listed.read_bytes()
        try:
            if b'"@graph"' in data:
                listed.write_bytes(data)
            else:
                tasks.write_bytes(data)
                listed.write_bytes(
                    old[1].replace(
                        sha256(old[0]).hexdigest().encode(), sha256(data).hexdigest().encode()
                    )
                )
            with _named(self._crate):
                deliver(self.spool, Crate(self._crate))
            with suppress(WorkflowError):
                Path(self._crate, WORKFLOW).write_bytes(data)
                load(f"{self._crate}/{WORKFLOW}")
        finally:
            for path, content in zip((tasks, listed), old, strict=True):
                path.write_bytes(content)
            self._forget_results()

    def _forget_results(self) -> None:
        for agent in self.files.names(self.area.results):
            if agent not in (corpus.AGENT, corpus.OTHER):
                shutil.rmtree(self.path(self.area.stream(agent)))

    # -- the small ones ------------------------------------------------------------------

    def blob(self, data: bytes) -> None:
        path = self.put(self.area.blob("d" * 40 + ".h5"), data)
        ref = ArrayRef("<f8", (2, 3), "C", pickling_blob("d" * 40 + ".h5"))
        with _named(path):
            assert read_array(self.files, self.area, ref).shape == (2, 3)
        with _named(path), Container(self.files, path) as file:
            for name in file.sections:
                file.read(name)

    def presence(self, data: bytes) -> None:
        present = Presence(corpus.AGENT, 1, 0)
        self.put(self.area.presence(present), data)
        with _named("agents"):
            presence.Observer(self.files, self.area).dead_processes([present])
            presence.is_alive_process(presence.about(self.files, self.area, present) or {})

    def jobs(self, data: bytes) -> None:
        directory = self.path(self.area.jobs)
        shutil.rmtree(directory)
        os.mkdir(directory)
        self._records(directory, data.split(b"\n")[:64])
        log = JobLog(self.files, self.area)
        log.refresh()
        for job in log.open():
            assert isinstance(job.token, str)
            assert isinstance(job.id, str)
            assert type(job.cores) is int
            assert isinstance(job.settings, str)

    def settings(self, data: bytes) -> None:
        self.put("spool.yaml", data)
        with _named("spool.yaml"):
            spools.open_spool(self.root)


def values(data: bytes) -> None:
    """Plain values: they name no file, their callers do."""
    for decode in (plain.decode, _call):
        with suppress(SpoolError):
            found = decode(data, (corpus.ARRAY,), (1, 2))
            plain.encode(found)


def _of_a_worker(text: bytes) -> None:
    with suppress(SpoolError):  # it names the task
        plain.decode(text)


def _call(data: bytes, arrays, values) -> object:
    return pickling.decode_call(Encoding.PLAIN, data, arrays, values)


def pickling_blob(name: str):
    from fsbroker.task import Blob

    return Blob(name)


def _both(*readers: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """All of these, one after the other."""

    def read(data: bytes) -> None:
        for reader in readers:
            reader(data)

    return read


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _named:  # noqa: N801 - reads like a function
    """Lets an error pass that names the file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if not isinstance(error, FsbrokerError):
            return isinstance(error, FileNotFoundError)
        if not isinstance(error, SpoolError) or (
            "/" not in error.where and self._path not in str(error)
        ):
            raise NotNamed(f"{type(error).__name__}: {error}") from error
        return True


def _each(calls: Iterable[tuple[Callable[[int], object], int]]) -> None:
    """All of them, whatever the ones before have raised; the first error that is allowed."""
    first = None
    for call, row in calls:
        try:
            call(row)
        except SpoolError as error:
            first = first or error
        except FileNotFoundError:
            pass
    if first is not None:
        raise first


def _all(path: str, found: Iterable) -> Iterable:
    with _named(path):
        yield from found
