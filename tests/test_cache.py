"""The functions for what a cache holds, over spools and over executorlib's own files."""

from __future__ import annotations

import json
import operator
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import h5py
import numpy as np
import pandas as pd
import pytest

import fsbroker
from fsbroker import (
    ClusterExecutor,
    get_cache_data,
    get_future_from_cache,
    split_future,
    terminate_task_in_cache,
    terminate_tasks_in_cache,
)
from fsbroker.client.history import History, Phase
from fsbroker.errors import NotInCache, ResourceError, SpoolMissing, TaskCancelled
from fsbroker.spool.index import Results
from fsbroker.spool.spool import open_spool

PATIENCE = 30.0
COLUMNS = ["function", "input_args", "input_kwargs", "output", "runtime", "filename"]


@pytest.fixture
def spool(tmp_path) -> Path:
    return tmp_path / "spool"


def add(a, b):
    return a + b


def fail(x):
    raise ValueError(x)


# -- over a spool --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    """A spool with four calls that have ended; two of them failed."""
    spool = tmp_path_factory.mktemp("spool")
    with ClusterExecutor(spool, max_workers=1) as exe:
        pair = exe.submit(tuple, [1, np.arange(3)])
        exe.submit(add, split_future(pair, 2)[0], b=2, resource_dict={"cache_key": "sum"})
        exe.submit(add, exe.submit(fail, "why", resource_dict={"cache_key": "error"}), 1)
    return spool


def test_cache_data_of_a_spool(filled):
    data = get_cache_data(filled)
    assert [list(row) for row in data[:2]] == [COLUMNS, COLUMNS]
    table = pd.DataFrame(data)
    assert set(table.columns) == {*COLUMNS, "error"}
    assert data[1]["function"](1, 2) == 3
    assert data[1]["input_args"] == (1,)
    assert data[1]["input_kwargs"] == {"b": 2}
    assert data[1]["output"] == 3
    assert 0 <= data[1]["runtime"] < PATIENCE
    assert data[0]["output"][1].tolist() == [0, 1, 2]
    assert str(data[2]["error"]) == "why"
    assert "output" not in data[2]
    assert len(data) == 4
    assert all(os.path.isfile(row["filename"]) for row in data)


def test_tasks_that_have_not_ended_are_no_data(spool):
    exe = ClusterExecutor(spool, backend="none")
    exe.submit(add, 1, 2)
    exe.shutdown(wait=False)
    assert get_cache_data(spool) == []


def test_damaged_files_are_left_out_with_a_warning(spool):
    with ClusterExecutor(spool, max_workers=1) as exe:
        assert exe.submit(add, 1, 2).result(PATIENCE) == 3
    with ClusterExecutor(spool, max_workers=1) as exe:
        assert exe.submit(add, 3, 4).result(PATIENCE) == 7
    path = get_cache_data(spool)[0]["filename"]
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.warns(UserWarning, match=os.path.basename(path)):
        assert [row["output"] for row in get_cache_data(spool)] == [7]


def test_future_from_cache(filled):
    with ClusterExecutor(filled, backend="none") as exe:
        key = exe.submit(tuple, [1, np.arange(3)]).key
    assert get_future_from_cache(filled, key.hex()).result(PATIENCE)[0] == 1
    assert get_future_from_cache(filled, "sum").result(PATIENCE) == 3
    with pytest.raises(ValueError, match="why"):
        get_future_from_cache(filled, "error").result(PATIENCE)
    with pytest.raises(FileNotFoundError, match="unknown"):
        get_future_from_cache(filled, "unknown")
    with pytest.raises(NotInCache):
        get_future_from_cache(filled / "elsewhere", "sum")


def test_terminate_tasks(spool, tmp_path):
    exe = ClusterExecutor(spool, backend="none")
    futures = [exe.submit(add, 1, n) for n in range(3)]
    one = exe.submit(add, 1, 3, resource_dict={"cache_key": "one"})
    exe._loop.flush(PATIENCE)
    terminate_task_in_cache(spool, "one")
    counts = History(open_spool(spool)).counts()
    assert (counts[Phase.CANCELLED], counts[Phase.READY]) == (1, 3)
    with pytest.raises(NotInCache):
        terminate_task_in_cache(spool, "two")
    with pytest.raises(ResourceError, match="slurm"):
        terminate_tasks_in_cache(spool, backend="lsf")
    terminate_tasks_in_cache(spool)
    assert History(open_spool(spool)).counts()[Phase.CANCELLED] == 4
    with ClusterExecutor(spool, max_workers=1) as other:  # whose agent says so
        assert other.submit(add, 5, 5).result(PATIENCE) == 10
        for future in [*futures, one]:
            assert isinstance(future.exception(PATIENCE), TaskCancelled)
    exe.shutdown()
    assert [row["output"] for row in get_cache_data(spool)] == [10]
    with pytest.raises(SpoolMissing):
        terminate_tasks_in_cache(tmp_path / "nothing")


def test_terminate_what_runs(spool, tmp_path):
    with ClusterExecutor(spool, max_workers=1) as exe:
        future = exe.submit(_stay, str(tmp_path / "begun"))
        while not (tmp_path / "begun").exists():
            assert not future.done()
        terminate_tasks_in_cache(spool)
        assert isinstance(future.exception(PATIENCE), TaskCancelled)


def _stay(begun):
    import time

    open(begun, "w").close()
    time.sleep(1000)


# -- executorlib's own files -----------------------------------------------------------------


class FutureItem:
    """As executorlib's: what it stores in place of a future."""

    def __init__(self, file_name, selector=None):
        self._file_name = file_name
        self._selector = selector


@pytest.fixture
def write(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Writes files as executorlib does, in `tmp_path / "cache"`."""
    module = types.ModuleType("executorlib.task_scheduler.file.shared")
    module.FutureItem = FutureItem
    monkeypatch.setattr(FutureItem, "__module__", module.__name__)
    for name in ("executorlib", "executorlib.task_scheduler", "executorlib.task_scheduler.file"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "cache" / "below").mkdir(parents=True)

    def write(name, function, args, kwargs=None, **more) -> Path:
        path = tmp_path / "cache" / f"{name}_o.h5"
        content = {
            "function": function,
            "input_args": args,
            "input_kwargs": kwargs or {},
            "runtime": 0.5,
            **more,
        }
        with h5py.File(path, "w") as file:
            for key, value in content.items():
                data = np.frombuffer(cloudpickle.dumps(value), np.uint8)
                file.create_dataset(key, data=data, compression="gzip")
        return path

    return write


@pytest.fixture
def peer(write, tmp_path) -> Path:
    """A cache of executorlib."""
    write("sum" + 32 * "a", sum, [[2, 2]], output=4, resource_dict={"cores": 1})
    pair = write("below/divmod" + 32 * "b", divmod, (7, 2), output=(3, 1))
    item = FutureItem(f"/gone/{pair.name}", 0)
    write("below/pow" + 32 * "c", pow, [item], {"exp": FutureItem(str(pair), 1)}, output=3)
    write("mine", operator.add, (1, 2), output=3)
    write("truediv" + 32 * "d", operator.truediv, (1, 0), error=ZeroDivisionError("zero"))
    write("min" + 32 * "e", min, ([1, 2],), output=[1, 1], resource_dict={"cores": 2})
    for name, content in (("empty", b""), ("text", b"no file of HDF5"), ("cut", None)):
        text = content if content is not None else pair.read_bytes()[:500]
        (tmp_path / "cache" / f"{name}_o.h5").write_bytes(text)
    write("missing", sum, ())  # neither output nor error
    return tmp_path / "cache"


DAMAGED = ["cut", "empty", "missing", "text"]


def test_cache_data_of_executorlib(peer):
    with pytest.warns(UserWarning, match="_o.h5") as warned:
        data = get_cache_data(peer)
    assert sorted({n for n in DAMAGED for w in warned if f"/{n}_o.h5" in str(w.message)}) == DAMAGED
    found = {row["function"].__name__: row for row in data}
    assert sorted(found) == ["add", "divmod", "min", "pow", "sum", "truediv"]
    assert list(found["sum"]) == COLUMNS
    assert (found["sum"]["output"], found["sum"]["runtime"]) == (4, 0.5)
    assert found["pow"]["input_args"] == (3,)
    assert found["pow"]["input_kwargs"] == {"exp": 1}
    assert isinstance(found["truediv"]["error"], ZeroDivisionError)
    assert pd.DataFrame(data).shape == (6, 7)


def test_future_from_cache_of_executorlib(peer):
    assert get_future_from_cache(peer, "mine").result(0) == 3
    with pytest.raises(ZeroDivisionError):
        get_future_from_cache(peer, "truediv" + 32 * "d").result(0)
    with pytest.raises(NotInCache):
        get_future_from_cache(peer, "../cache/mine")


def command(*arguments) -> subprocess.CompletedProcess:
    code = "import sys; from fsbroker.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_import_cache(peer, spool, tmp_path):
    answer = command("import-cache", peer, "--spool", spool, "--json")
    assert answer.returncode == 6, answer.stderr
    told = {os.path.basename(one["file"]): one for one in json.loads(answer.stdout)}
    refused = {name for name, one in told.items() if not one["done"]}
    assert refused == {f"{name}_o.h5" for name in (*DAMAGED, "truediv" + 32 * "d")}
    assert "failed (ZeroDivisionError)" in told[f"truediv{32 * 'd'}_o.h5"]["text"]
    exe = ClusterExecutor(spool, backend="none")  # nobody there could compute them
    try:
        first, second = split_future(exe.submit(divmod, 7, 2), 2)
        found = [
            exe.submit(sum, [2, 2]),
            exe.submit(pow, first, exp=second),
            exe.submit(operator.add, 1, 2, resource_dict={"cache_key": "mine"}),
            exe.submit(min, [1, 2], resource_dict={"cores": 2}),
        ]
        assert [future.result(PATIENCE) for future in found] == [4, 3, 3, [1, 1]]
        assert not exe.submit(min, [1, 2]).done()
    finally:
        exe.shutdown(wait=False, cancel_futures=True)
    again = json.loads(command("import-cache", peer, "--spool", spool, "--json").stdout)
    assert [one["text"] for one in again if one["done"]] == ["was there already"] * 5


def test_import_cache_of_a_script(tmp_path):
    """Functions of a script: pickled by value there, and the same call here."""
    script = """
        import sys, cloudpickle, h5py, numpy as np
        def scaled(values, factor=2):
            return values * factor
        if sys.argv[1] == "write":
            with h5py.File(sys.argv[2], "w") as file:
                for name, value in {
                    "function": scaled, "input_args": [np.arange(200_000.0)], "input_kwargs": {},
                    "output": scaled(np.arange(200_000.0)),
                }.items():
                    data = np.frombuffer(cloudpickle.dumps(value), np.uint8)
                    file.create_dataset(name, data=data, compression="gzip")
        else:
            from fsbroker import ClusterExecutor
            exe = ClusterExecutor(sys.argv[2], backend="none")
            print(exe.submit(scaled, np.arange(200_000.0)).result(30)[-1])
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    run = [sys.executable, tmp_path / "script.py"]
    file, spool = tmp_path / f"scaled{32 * '0'}_o.h5", tmp_path / "spool"
    subprocess.run([*run, "write", file], check=True, timeout=60)
    answer = command("import-cache", tmp_path, "--spool", spool)
    assert "1 of 1 files" in answer.stdout, answer.stderr
    read = subprocess.run(
        [*run, "read", spool], check=True, timeout=60, capture_output=True, text=True
    )
    assert float(read.stdout) == 399_998


def test_import_of_a_failed_call(peer, spool):
    """What failed here before, and has a value there, has that value in its next round."""
    with ClusterExecutor(spool, max_workers=1) as exe:
        failed = exe.submit(operator.add, "x", 2, resource_dict={"cache_key": "mine"})
        assert isinstance(failed.exception(PATIENCE), TypeError)
    command("import-cache", peer, "--spool", spool)
    assert get_future_from_cache(spool, "mine").result(PATIENCE) == 3
    files, area, _ = open_spool(spool)
    results = Results(files, area)
    results.poll(deep=True)
    assert results.find(failed.key).round == 1


def test_agents_do_not_run_what_is_imported(peer, write, spool, tmp_path):
    """Though one is there, and would take the task as soon as it sees it."""
    for number in range(20):
        write(f"mkdir{number:032}", os.mkdir, [str(tmp_path / f"made{number}")], output=None)
    with ClusterExecutor(spool, max_workers=2) as exe:
        assert exe.submit(add, 1, 1).result(PATIENCE) == 2
        assert "was there already" not in command("import-cache", peer, "--spool", spool).stdout
        calls = [exe.submit(os.mkdir, str(tmp_path / f"made{number}")) for number in range(20)]
        assert [call.result(PATIENCE) for call in calls] == [None] * 20
    assert list(tmp_path.glob("made*")) == []


def test_an_import_that_is_killed(peer, spool):
    """What it had published without values is run, not waited for."""
    script = """
        import os, sys
        from fsbroker.agent.session import AgentSession
        from fsbroker.cli import main
        AgentSession.publish = lambda *_: os._exit(9)
        main(["import-cache", *sys.argv[1:]])
    """
    words = [sys.executable, "-c", textwrap.dedent(script), peer, "--spool", spool]
    assert subprocess.run(words, timeout=60, check=False).returncode == 9
    with ClusterExecutor(spool, max_workers=1) as exe:
        assert exe.submit(sum, [2, 2]).result(PATIENCE) == 4


def test_somebody_elses_file_is_not_unpickled(peer, spool, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.warns(UserWarning, match="Not a file of your own"):
        assert get_cache_data(peer) == []


def test_names_stand_in_the_package():
    for function in (get_cache_data, get_future_from_cache, terminate_tasks_in_cache):
        assert getattr(fsbroker, function.__name__) is function
