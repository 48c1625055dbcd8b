"""Workers: what serial processes and MPI groups promise alike, and what is the former's own.

`WorkerContract` runs here for serial workers, and in `test_mpi.py` for groups under each MPI.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest

from fsbroker import errors, keys, pickling, plain
from fsbroker.agent import capture, messages, processes
from fsbroker.agent.messages import Call, Ended, Forget, Function, Input, Returned, Slice, Value
from fsbroker.agent.processes import Settings
from fsbroker.agent.rows import Arrays
from fsbroker.agent.workers import Lost, SerialWorker
from fsbroker.task import Status

cloudpickle.register_pickle_by_value(sys.modules[__name__])

LIMIT = 30.0
"""Seconds after which a test has failed: no worker needs as long for anything here."""

MARK = "FSBROKER_TEST_MARK"


# -- the harness -------------------------------------------------------------------------


class Bench:
    """One worker, the spool it works in, and what it has said."""

    def __init__(self, make: Callable[[Settings], Any], settings: Settings) -> None:
        self.settings = settings
        self.mark = settings.environment[MARK]
        self.arrays = Arrays(settings.spool, settings.area, False)
        self._make = make
        self._row = 0
        self.renew()

    def renew(self) -> None:
        self.worker = self._make(self.settings)
        self._known: set[bytes] = set()

    def know(self, fn: Callable[..., Any], path: tuple[str, ...] = (), cwd: str = "/") -> bytes:
        record = keys.opaque(fn)
        if record.digest not in self._known:
            self._known.add(record.digest)
            name = getattr(fn, "__qualname__", "fn")
            self.worker.send(Function(record.digest, name, record.pickle, path, cwd))
        return record.digest

    def send(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
        """Send a call; its row."""
        self._row += 1
        arguments = self.arrays.store(pickling.encode_call(args, kwargs))
        self.worker.send(Call(self.know(fn), self._row, arguments, (), False))
        return self._row

    def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The worker's one report of a call."""
        row = self.send(fn, *args, **kwargs)
        (report,) = self.wait(1)
        assert getattr(report, "row", getattr(report, "first", row)) == row
        return report

    def slice(self, fn: Callable[..., Any], rows: list[Any], **known: Any) -> int:
        first, self._row = self._row + 1, self._row + len(rows)
        text = plain.encode(rows)
        assert text is not None
        self.worker.send(Slice(self.know(fn, **known), first, len(rows), text.data))
        return first

    def wait(self, rows: int) -> list[Any]:
        """Reports, until there are those of so many rows, or the worker is lost."""
        return self.until(lambda reports: rows <= sum(map(_rows, reports)))

    def until(self, enough: Callable[[list[Any]], bool], limit: float = LIMIT) -> list[Any]:
        reports: list[Any] = []
        deadline = time.monotonic() + limit
        while not enough(reports):
            if reports and isinstance(reports[-1], Lost):
                break
            assert time.monotonic() < deadline, reports
            select.select([self.worker], [], [], 0.2)
            reports += self.worker.receive()
        return reports

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Let the worker go on, which must not report anything, until the condition holds."""
        reports = self.until(lambda reports: bool(reports) or condition())
        assert reports == []
        return condition()

    def lost(self) -> Lost:
        found = self.until(lambda reports: bool(reports) and isinstance(reports[-1], Lost))[-1]
        assert isinstance(found, Lost)
        return found

    def value(self, report: Any) -> Any:
        """What a report says that the row returned, or raised."""
        if isinstance(report, Returned):
            return plain.decode(report.text)
        payload = self.arrays.fetch(report.value)
        return pickling.decode(payload.encoding, payload.data, payload.arrays)

    def left(self) -> list[int]:
        """Processes of this test that are alive, wherever they hang in the tree."""
        return alive_with(self.mark)

    def wait_until_none_is_left(self) -> None:
        wait_for(lambda: not self.left())


def _rows(report: Any) -> int:
    return report.count if isinstance(report, Returned) else 1


def wait_for(condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def alive_with(mark: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("spool/users/u/blobs", "spool/users/u/tmp", "scratch"):
        (tmp_path / name).mkdir(parents=True, mode=0o700)
    return Settings(
        spool=str(tmp_path / "spool"),
        area="users/u",
        scratch=str(tmp_path / "scratch"),
        durable=False,
        environment={MARK: f"{os.getpid()}-{random.getrandbits(64):x}"},
    )


# -- functions that run in workers -------------------------------------------------------


def add(a: Any, b: Any = 0) -> Any:
    return a + b


def fail(text: str) -> None:
    try:
        {"key": 1}[text]
    except KeyError as error:
        raise ValueError(f"wrong: {text}") from error


def end_by(how: str) -> None:
    if how == "exit":
        os._exit(3)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    os.kill(os.getpid(), signal.SIGKILL)


def start_programs(file: str) -> None:
    """Start programs, one of them in a session of its own and orphaned, and never return."""
    own = f"{file}.{os.getpid()}"
    script = f"(setsid sleep 1000 & echo $! > {own}; mv {own} {file}) & exec sleep 1000"
    subprocess.run(["sh", "-c", script], check=False)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class HalfPicklable(Exception):
    def __init__(self, one: int, two: int) -> None:  # pickles, but cannot be unpickled
        super().__init__("one argument")


# -- the contract ------------------------------------------------------------------------


class WorkerContract:
    """What every kind of worker promises.

    A subclass gives the fixture ``bench`` and says how ranks' values are gathered.
    """

    def each(self, value: Any) -> Any:
        """The value of a row that returned this on each rank."""
        return value

    def test_a_value_comes_back(self, bench: Bench) -> None:
        for _ in range(3):
            a, b = random.random(), random.random()
            assert bench.value(bench.call(add, a, b=b)) == self.each(a + b)

    def test_large_and_small_arrays_come_back(self, bench: Bench) -> None:
        generator = np.random.default_rng()
        small, large = generator.random(7), np.asfortranarray(generator.random((300, 500)))
        for given in (small, large):
            found = bench.value(bench.call(add, {"x": given}["x"], 1.0))
            np.testing.assert_equal(found, self.each(given + 1.0))

    def test_a_pickled_value_comes_back(self, bench: Bench) -> None:
        made = bench.value(bench.call(lambda x: {x, np.float64(x)}, 3))
        assert made == self.each({3})

    def test_an_exception_is_what_failed_with_its_causes(self, bench: Bench) -> None:
        text = str(random.random())
        report = bench.call(fail, text)
        assert report.status == Status.FAILED
        assert repr(bench.value(report)) == repr(ValueError(f"wrong: {text}"))
        assert report.error["type"] == "ValueError"
        assert report.error["message"] == f"wrong: {text}"
        for part in ("KeyError", "direct cause", "in fail", text):
            assert part in report.error["traceback"]
        assert "rows.py" not in report.error["traceback"]

    @pytest.mark.parametrize("code", [0, 3, "words", None])
    def test_sys_exit_is_a_failure_of_the_task(self, bench: Bench, code: Any) -> None:
        report = bench.call(sys.exit, code)
        error = bench.value(report)
        assert report.status == Status.FAILED
        assert type(error) is errors.TaskError
        assert f"sys.exit({code!r})" in str(error)

    def test_keyboard_interrupt_is_a_failure_of_the_task(self, bench: Bench) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        report = bench.call(interrupt)
        assert report.status == Status.FAILED
        assert "KeyboardInterrupt" in str(bench.value(report))

    def test_a_result_that_cannot_be_pickled_is_an_error(self, bench: Bench) -> None:
        report = bench.call(lambda: [1, Unpicklable()])
        error = bench.value(report)
        assert report.status == Status.FAILED
        assert type(error) is errors.ResultNotPicklable
        assert "Unpicklable" in str(error)

    def test_an_exception_that_cannot_be_unpickled_is_told(self, bench: Bench) -> None:
        def throw() -> None:
            raise HalfPicklable(1, 2)

        report = bench.call(throw)
        assert report.status == Status.FAILED
        assert bench.value(report) is None
        assert "HalfPicklable" in report.error["type"]
        assert "one argument" in report.error["message"]
        assert "in throw" in report.error["traceback"]

    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            ("exit", "exit code 3"),
            ("segfault", "signal 11 (SIGSEGV)"),
            ("kill", "signal 9 (SIGKILL)"),
        ],
    )
    def test_a_process_that_dies_is_reported(self, bench: Bench, how: str, reason: str) -> None:
        started = time.monotonic()
        bench.send(end_by, how)
        lost = bench.lost()
        assert time.monotonic() - started < 10
        assert lost.ready
        assert reason in lost.reason
        assert isinstance(lost.error, errors.WorkerLost)
        assert reason in str(lost.error)
        assert not bench.worker.alive
        assert not bench.left()
        bench.renew()
        assert bench.value(bench.call(add, 1, 2)) == self.each(3)

    def test_kill_ends_all_that_a_task_started(self, bench: Bench, tmp_path: Path) -> None:
        file = tmp_path / "pid"
        bench.send(start_programs, str(file))
        orphan = int(bench.wait_for(lambda: file.exists() and file.read_text()))
        assert orphan in bench.left()
        bench.worker.kill()
        bench.lost()
        assert not bench.left()

    def test_close_ends_all_that_a_task_started(self, bench: Bench, tmp_path: Path) -> None:
        file = tmp_path / "pid"
        bench.send(start_programs, str(file))
        bench.wait_for(file.exists)
        bench.worker.close()
        bench.wait_until_none_is_left()

    def test_a_dead_guardian_takes_the_worker_with_it(self, bench: Bench) -> None:
        bench.call(add, 1)
        os.kill(bench.worker._process._popen.pid, signal.SIGKILL)
        assert "SIGKILL" in bench.lost().reason
        bench.wait_until_none_is_left()

    def test_stop_ends_it_in_good_order(self, bench: Bench, tmp_path: Path) -> None:
        def leave_note(path: str) -> None:
            import atexit

            atexit.register(lambda: Path(path).write_text("done"))

        bench.send(leave_note, str(tmp_path / "note"))
        bench.worker.stop()
        *_, lost = bench.until(lambda reports: any(isinstance(one, Lost) for one in reports))
        assert lost.reason == "exit code 0"
        assert (tmp_path / "note").read_text() == "done"
        assert not bench.left()

    def test_what_was_printed_before_a_death_is_kept(self, bench: Bench) -> None:
        def speak_and_die(word: str) -> None:
            print(word)
            print(word[::-1], file=sys.stderr)
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        bench.send(speak_and_die, "swan song")
        outputs = bench.lost().outputs
        assert b"swan song" in outputs[0].stdout
        assert b"gnos naws" in outputs[0].stderr

    def test_the_environment_is_the_slots(self, bench: Bench) -> None:
        def look() -> list[str | None]:
            names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
            return [*map(os.environ.get, names), sys.stdin.read(), os.environ.get("FSBROKER_TOKEN")]

        assert bench.value(bench.call(look)) == self.each(["1", "1", "", "", None])

    def test_after_the_agent_nothing_is_left(
        self, bench: Bench, settings: Settings, tmp_path: Path
    ) -> None:
        """Not even while C code holds the interpreter lock."""

        def hold_the_lock(file: str) -> None:
            import ctypes

            subprocess.Popen(["setsid", "sleep", "1000"])
            Path(file).write_text("holding")
            ctypes.PyDLL(None).sleep(1000)

        bench.worker.close()
        bench.wait_until_none_is_left()
        file = tmp_path / "holding"
        agent = subprocess.Popen(
            [sys.executable, "-c", self.agent_program()],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        assert agent.stdin
        agent.stdin.write(cloudpickle.dumps((settings, hold_the_lock, str(file))))
        agent.stdin.close()
        wait_for(file.exists)
        assert bench.left()
        agent.kill()
        agent.wait()
        bench.wait_until_none_is_left()

    def agent_program(self) -> str:
        """A program that reads (settings, function, argument) and runs them for ever."""
        return textwrap.dedent(
            f"""
            import pickle, select, sys
            from fsbroker import keys, pickling
            from fsbroker.agent.messages import Call, Function, Value
            from fsbroker.agent import mpi, workers
            settings, fn, argument = pickle.load(sys.stdin.buffer)
            worker = {self.constructor}
            record, payload = keys.opaque(fn), pickling.encode_call((argument,), {{}})
            worker.send(Function(record.digest, "fn", record.pickle, (), "/"))
            worker.send(Call(record.digest, 1, Value(*payload[:2]), (), False))
            while True:
                select.select([worker], [], [])
                assert not worker.receive()
            """
        )

    constructor = ""


# -- serial workers ----------------------------------------------------------------------


@pytest.fixture
def bench(settings: Settings) -> Iterator[Bench]:
    bench = Bench(SerialWorker, settings)
    yield bench
    bench.worker.close()
    bench.wait_until_none_is_left()


class TestSerialContract(WorkerContract):
    constructor = "workers.SerialWorker(settings)"


def values_of(bench: Bench, reports: list[Any]) -> list[Any]:
    found = []
    for report in reports:
        if isinstance(report, Returned):
            found += plain.decode_many(report.text)
            lengths = array.array("I", report.lengths)
            assert sum(lengths) + 2 * (report.count - 1) == len(report.text)
        else:
            found.append(bench.value(report))
    return found


class TestSlices:
    def test_thousands_of_rows_come_back_in_order(self, bench: Bench) -> None:
        offset = random.randrange(10**6)
        first = bench.slice(add, [[i, offset] for i in range(5000)])
        reports = bench.wait(5000)
        assert values_of(bench, reports) == [i + offset for i in range(5000)]
        assert [report.first for report in reports] == [
            first + sum(one.count for one in reports[:i]) for i in range(len(reports))
        ]
        assert len(reports) < 500

    def test_failures_prints_and_objects_keep_their_place(self, bench: Bench) -> None:
        def mixed(i: int) -> Any:
            if i % 5 == 1:
                raise ValueError(i)
            if i % 5 == 2:
                print("row", i)
            if i % 5 == 3:
                return np.full(3, i)
            return {i} if i % 5 == 4 else i

        bench.slice(mixed, [[i] for i in range(50)])
        reports = bench.wait(50)
        for i, value in enumerate(values_of(bench, reports)):
            if i % 5 == 1:
                assert repr(value) == f"ValueError({i})"
            elif i % 5 == 3:
                np.testing.assert_equal(value, np.full(3, i))
            else:
                assert value == ({i} if i % 5 == 4 else i)
        printed = [
            report.stdout for report in reports if isinstance(report, Ended) and report.stdout
        ]
        assert printed == [b"row %d\n" % i for i in range(2, 50, 5)]

    def test_a_value_is_taken_before_the_next_row_changes_it(self, bench: Bench) -> None:
        def remember(i: int, seen: list[int] = []) -> list[int]:  # noqa: B006
            seen.append(i)
            return seen

        bench.slice(remember, [[i] for i in range(4)])
        assert values_of(bench, bench.wait(4)) == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]

    def test_strings_that_json_cannot_say(self, bench: Bench) -> None:
        bench.slice(lambda i: ["a", "\ud800", "\udc00", "ü", 10**2000][i], [[i] for i in range(5)])
        assert values_of(bench, bench.wait(5)) == ["a", "\ud800", "\udc00", "ü", 10**2000]

    def test_a_done_row_does_not_wait_for_a_long_one(self, bench: Bench, tmp_path: Path) -> None:
        def wait_for_file(path: str) -> str:
            while path and not os.path.exists(path):
                time.sleep(0.001)
            return path

        file = tmp_path / "go"
        # The first rows must be over so soon that they alone are no reason to report.
        bench.slice(wait_for_file, [[""] for _ in range(1000)])
        bench.wait(1000)
        bench.slice(wait_for_file, [[""], [""], [""], [str(file)]])
        assert values_of(bench, bench.wait(3)) == [""] * 3
        file.touch()
        assert values_of(bench, bench.wait(1)) == [str(file)]

    def test_each_row_starts_in_the_directory(self, bench: Bench, tmp_path: Path) -> None:
        def wander(_: int) -> str:
            found = os.getcwd()
            os.chdir("/")
            return found

        bench.slice(wander, [[i] for i in range(3)], cwd=str(tmp_path))
        assert values_of(bench, bench.wait(3)) == [str(tmp_path)] * 3

    def test_a_missing_directory_is_an_error_that_names_it(self, bench: Bench) -> None:
        bench.slice(add, [[1], [2]], cwd="/not/there")
        for report in bench.wait(2):
            assert report.status == Status.FAILED
            assert "/not/there" in str(bench.value(report))

    def test_times_and_memory(self, bench: Bench) -> None:
        def spin(seconds: float) -> int:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass
            return len(b"x" * (50 << 20))

        before = time.time()
        bench.slice(spin, [[0.0], [0.1]])
        reports = bench.wait(2)
        wall = [x for one in reports for x in array.array("d", one.wall)]
        cpu = [x for one in reports for x in array.array("d", one.cpu)]
        started = [x for one in reports for x in array.array("d", one.started)]
        assert 0.1 <= wall[1] < 5
        assert 0.02 <= cpu[1] <= wall[1] * 1.5
        assert before - 0.1 < started[0] < started[1] < time.time() + 0.1
        assert 50 << 20 < reports[-1].peak_memory < 500 << 20


class TestRows:
    def test_failures_leave_the_worker_as_it_was(self, bench: Bench) -> None:
        def recurse(n: int) -> int:
            return recurse(n + 1)

        def exhaust() -> None:
            bytearray(1 << 60)

        bench.call(add, 1)
        pid = bench.worker.pid
        assert isinstance(bench.value(bench.call(recurse, 0)), RecursionError)
        assert isinstance(bench.value(bench.call(exhaust)), MemoryError)
        assert bench.call(sys.exit, 1).status == Status.FAILED
        assert bench.value(bench.call(add, 1, 2)) == 3
        assert bench.worker.pid == pid

    def test_output_belongs_to_its_row(self, bench: Bench) -> None:
        def speak(word: str) -> None:
            import ctypes

            print(word)
            sys.stderr.write(f"no newline {word}")
            os.write(1, b"raw\n")
            libc = ctypes.CDLL(None)
            libc.printf(b"from C\n")
            subprocess.run(["echo", "child"], check=True)

        for word in ("one", "two"):
            report = bench.call(speak, word)
            lines = report.stdout.decode().splitlines()
            assert sorted(lines) == sorted([word, "raw", "from C", "child"])
            assert report.stderr.decode() == f"no newline {word}"
        assert isinstance(bench.call(add, 1), Returned)

    def test_long_output_loses_its_middle(self, bench: Bench) -> None:
        report = bench.call(lambda: print("a" + "x" * (5 << 20) + "z"))
        assert len(report.stdout) < 2 * capture.KEPT + 100
        assert report.stdout.startswith(b"ax")
        assert report.stdout.endswith(b"xz\n")
        assert b"bytes left out" in report.stdout

    def test_a_task_may_close_and_replace_its_streams(self, bench: Bench, tmp_path: Path) -> None:
        file = tmp_path / "mine"

        def replace(path: str) -> None:
            sys.stdout.close()
            os.close(1)
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, b"precious")

        bench.call(replace, str(file))
        assert bench.value(bench.call(add, 1, 2)) == 3
        assert file.read_bytes() == b"precious"

    def test_a_fork_that_returns_does_not_report(self, bench: Bench) -> None:
        def fork_and_return() -> int:
            return os.fork()

        child = bench.value(bench.call(fork_and_return))
        assert child > 0
        assert bench.value(bench.call(add, 1, 2)) == 3
        wait_for(lambda: child not in bench.left())

    def test_multiprocessing_works_inside_a_task(self, bench: Bench) -> None:
        def pool() -> list[int]:
            import multiprocessing

            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(abs, [-1, 2])

        assert bench.value(bench.call(pool)) == [1, 2]

    def test_a_queue_systems_signals_do_not_end_it(self, bench: Bench, tmp_path: Path) -> None:
        def wait_here(path: str) -> str:
            Path(path).touch()
            while os.path.exists(path):
                time.sleep(0.001)
            return "survived"

        file = tmp_path / "here"
        bench.send(wait_here, str(file))
        wait_for(file.exists)
        for pid in bench.left():
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(pid, number)
        file.unlink()
        (report,) = bench.wait(1)
        assert bench.value(report) == "survived"

    def test_programs_of_a_task_can_be_terminated(self, bench: Bench) -> None:
        def terminate() -> int:
            program = subprocess.Popen(["sleep", "1000"])
            program.terminate()
            return program.wait()

        assert bench.value(bench.call(terminate)) == -signal.SIGTERM

    def test_nothing_heavy_is_loaded(self, bench: Bench) -> None:
        loaded = bench.value(bench.call(lambda: [name for name in sys.modules if "." not in name]))
        assert not {"numpy", "h5py", "pandas", "mpi4py", "yaml", "watchdog"}.intersection(loaded)

    def test_main_is_the_users(self, bench: Bench) -> None:
        assert (
            bench.value(bench.call(lambda: sorted(vars(sys.modules["__main__"]))))[0] == "__doc__"
        )
        assert not bench.value(bench.call(lambda: hasattr(sys.modules["__main__"], "main")))

    def test_a_segfault_leaves_a_trace(self, bench: Bench) -> None:
        bench.send(end_by, "segfault")
        assert b"in end_by" in bench.lost().outputs[0].stderr

    def test_a_future_cannot_be_a_result(self, bench: Bench) -> None:
        def make() -> Any:
            from concurrent.futures import Future

            return Future()

        assert isinstance(bench.value(bench.call(make)), errors.ResultNotPicklable)


class TestInputs:
    """Calls whose arguments are other rows' values."""

    def call(self, bench: Bench, fn: Any, inputs: list[Input], keep: bool = False) -> int:
        """A call of fn(value of the first input, of the second, ...)."""
        bench._row += 1
        places = b",".join(b'{"$":"value","n":%d}' % n for n in range(len(inputs)))
        arguments = Value(1, b"[" + places + b"]")
        bench.worker.send(Call(bench.know(fn), bench._row, arguments, tuple(inputs), keep))
        return bench._row

    def test_values_are_filled_in(self, bench: Bench) -> None:
        stored = bench.arrays.store(pickling.encode({"a": [1, np.arange(3.0)]}))
        self.call(bench, add, [Input(stored, None, ("a", 0)), Input(stored, None, ("a", 1))])
        np.testing.assert_equal(bench.value(bench.wait(1)[0]), [1, 2, 3])

    def test_a_chain_takes_what_was_kept(self, bench: Bench) -> None:
        start = random.random()
        row = self.call(bench, lambda: [start, np.zeros(2)], [], keep=True)
        for _ in range(3):
            row = self.call(
                bench, lambda v: [v[0] + 1, v[1] + 1], [Input(None, row, ())], keep=True
            )
        found = bench.value(bench.wait(4)[-1])
        assert found[0] == start + 3
        np.testing.assert_equal(found[1], [3, 3])

    def test_what_was_kept_does_not_change(self, bench: Bench) -> None:
        row = self.call(bench, lambda: [np.zeros(2)], [], keep=True)

        def change(value: list[Any]) -> list[Any]:
            value[0] += 1
            return value

        for _ in range(2):
            self.call(bench, change, [Input(None, row, ())])
        for report in bench.wait(3)[1:]:
            np.testing.assert_equal(bench.value(report), [[1, 1]])

    def test_a_failed_row_fails_those_that_need_it(self, bench: Bench) -> None:
        def broken() -> None:
            raise ValueError("upstream")

        row = self.call(bench, broken, [], keep=True)
        self.call(bench, add, [Input(None, row, ())])
        report = bench.wait(2)[-1]
        assert isinstance(bench.value(report), errors.DependencyFailed)
        assert "upstream" in str(bench.value(report))
        assert "ValueError: upstream" in report.error["traceback"]

    def test_a_forgotten_row_is_not_there(self, bench: Bench) -> None:
        row = self.call(bench, lambda: 1, [], keep=True)
        bench.worker.send(Forget((row,)))
        self.call(bench, add, [Input(None, row, ())])
        assert isinstance(bench.value(bench.wait(2)[-1]), errors.DependencyFailed)

    def test_a_missing_item_is_named(self, bench: Bench) -> None:
        stored = bench.arrays.store(pickling.encode({"a": 1}))
        self.call(bench, add, [Input(stored, None, ("b", 2))])
        error = bench.value(bench.wait(1)[0])
        assert isinstance(error, errors.DependencyFailed)
        assert "['b'][2]" in str(error)


class TestCode:
    """Functions of the user's own modules."""

    def module(self, tmp_path: Path, monkeypatch: Any, body: str) -> Any:
        """The module, as this process sees it now."""
        (tmp_path / "own_code.py").write_text(body)
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("own_code", None)
        importlib.invalidate_caches()
        return importlib.import_module("own_code")

    def submit(self, bench: Bench, fn: Any, path: str) -> Any:
        record = keys.identify(fn)
        bench.worker.send(Function(record.digest, record.name, record.pickle, (path,), path))
        bench.worker.send(Slice(record.digest, 1, 1, b"[[]]"))
        (report,) = bench.wait(1)
        return report

    def test_a_module_is_found_on_the_clients_path(
        self, bench: Bench, tmp_path: Path, monkeypatch: Any
    ) -> None:
        number = random.random()
        module = self.module(tmp_path, monkeypatch, f"def f():\n    return {number}\n")
        assert bench.value(self.submit(bench, module.f, str(tmp_path))) == number

    def test_code_that_changed_since_is_an_error(
        self, bench: Bench, tmp_path: Path, monkeypatch: Any
    ) -> None:
        module = self.module(tmp_path, monkeypatch, "def f():\n    return 'old'\n")
        (tmp_path / "own_code.py").write_text("def f():\n    return 'newer'\n")
        report = self.submit(bench, module.f, str(tmp_path))
        assert isinstance(bench.value(report), errors.CodeChanged)
        assert "own_code" in str(bench.value(report))
        assert "stale" not in report.error

    def test_a_worker_with_the_old_code_says_that_it_is_stale(
        self, bench: Bench, tmp_path: Path, monkeypatch: Any
    ) -> None:
        old = self.module(tmp_path, monkeypatch, "def f():\n    return 'old'\n")
        assert bench.value(self.submit(bench, old.f, str(tmp_path))) == "old"
        new = self.module(tmp_path, monkeypatch, "def f():\n    return 'newer'\n")
        report = self.submit(bench, new.f, str(tmp_path))
        assert report.error["stale"] == "1"
        bench.worker.close()
        bench.renew()
        assert bench.value(self.submit(bench, new.f, str(tmp_path))) == "newer"

    def test_a_module_that_cannot_be_imported_fails_its_rows(
        self, bench: Bench, tmp_path: Path, monkeypatch: Any
    ) -> None:
        module = self.module(tmp_path, monkeypatch, "def f():\n    return 1\n")
        (tmp_path / "own_code.py").unlink()
        error = bench.value(self.submit(bench, module.f, str(tmp_path)))
        assert isinstance(error, ModuleNotFoundError)
        assert bench.value(bench.call(add, 1, 2)) == 3


class TestAgentsSide:
    def test_sending_never_waits_for_the_worker(self, bench: Bench) -> None:
        bench.call(add, 0)
        os.kill(bench.worker.pid, signal.SIGSTOP)
        word = "x" * (1 << 20)
        started = time.monotonic()
        for _ in range(30):
            bench.send(len, word)
        assert time.monotonic() - started < 5
        os.kill(bench.worker.pid, signal.SIGCONT)
        assert values_of(bench, bench.wait(30)) == [1 << 20] * 30

    def test_what_was_said_before_a_death_is_heard(self, bench: Bench) -> None:
        bench.slice(add, [[i] for i in range(2000)])
        bench.send(end_by, "kill")
        *reports, lost = bench.wait(10**6)
        assert values_of(bench, reports) == list(range(2000))
        assert isinstance(lost, Lost)

    def test_a_worker_that_cannot_start_is_lost_but_no_task_is_to_blame(
        self, settings: Settings
    ) -> None:
        bad = Settings(**{**vars(settings), "cpus": (100_000,)})
        bench = Bench(SerialWorker, bad)
        lost = bench.lost()
        assert not lost.ready
        assert b"sched_setaffinity" in lost.outputs[0].stderr
        bench.worker.close()

    def test_the_cores_are_the_slots(self, settings: Settings) -> None:
        core = max(os.sched_getaffinity(0))
        bench = Bench(SerialWorker, Settings(**{**vars(settings), "cpus": (core,)}))
        found = bench.value(bench.call(lambda: list(os.sched_getaffinity(0))))
        bench.worker.close()
        assert found == [core]

    def test_frames_come_in_pieces(self) -> None:
        sent: list[messages.Message] = [
            messages.Hello(1, 2, 3),
            messages.Stop(),
            messages.Forget((1, 2)),
        ]
        data = b"".join(messages.frame(message) for message in sent)
        frames = messages.Frames()
        found = [message for at in range(len(data)) for message in frames.feed(data[at : at + 1])]
        assert found == sent
        assert messages.Frames().feed(data) == sent


class TestEnvironment:
    def test_nothing_of_another_launch_is_passed_on(self) -> None:
        kept = {"SLURM_JOB_ID": "1", "OMPI_MCA_btl": "self", "PATH": "/bin", "PMIX": "mine"}
        launch = {
            "PMI_RANK": "0",
            "PMI_FD": "9",
            "PMIX_RANK": "0",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_MCA_orte_hnp_uri": "x",
            "HYDI_CONTROL_FD": "7",
            "MPI_LOCALRANKID": "0",
        }
        assert processes.without_launch({**kept, **launch}) == kept

    def test_gpus_are_named_once(self) -> None:
        assert processes.gpu_variables(("1", "3"), amd=False) == {"CUDA_VISIBLE_DEVICES": "1,3"}
        assert processes.gpu_variables(("1", "3"), amd=True) == {"ROCR_VISIBLE_DEVICES": "1,3"}
        assert set(processes.gpu_variables((), amd=True).values()) == {""}

    def test_the_slots_word_is_the_last(self, settings: Settings) -> None:
        chosen = Settings(**{**vars(settings), "threads": 3, "environment": {"A": "b"}})
        found = processes.environment(chosen, {"OMP_NUM_THREADS": "64", "HIP_VISIBLE_DEVICES": "5"})
        assert found["OMP_NUM_THREADS"] == "3"
        assert found["HIP_VISIBLE_DEVICES"] == ""
        assert found["A"] == "b"


def test_exit_texts() -> None:
    assert processes.exit_text(3) == "exit code 3"
    assert processes.exit_text(-9) == "killed by signal 9 (SIGKILL)"
    assert processes.exit_text(-40) == "killed by signal 40"


def test_the_plan_is_no_secret(bench: Bench) -> None:
    bench.call(add, 1)
    line = " ".join(psutil.Process(bench.worker.pid).cmdline())
    assert json.loads(line[line.index("{") :]) == {
        "spool": bench.settings.spool,
        "area": "users/u",
        "durable": False,
        "key": "",
        "cpus": None,
        "number": 0,
    }
