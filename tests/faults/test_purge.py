"""A site's purge takes single old files (scenario 53), while a spool is in use and after.

Each kind of file goes alone. No value may be wrong, nothing may hang or crash; what is lost is
told to its future, or computed again, and what cannot be told by anybody else, fsck lists.
"""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fsbroker import ClusterExecutor
from fsbroker.errors import FsbrokerError, ResultLost
from fsbroker.executor import attach
from fsbroker.spool import archive, fsck, packs
from fsbroker.spool.fsck import Kind, Weight
from fsbroker.spool.mend import mend
from fsbroker.spool.spool import create, open_spool, open_to_check
from tests.faults.processes import DEADLINE, Processes, wait_until
from tests.faults.tasks import hold, task, value_of

LARGE = 1 << 17
"""Numbers in an array that becomes a blob."""


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path / "spool", tmp_path) as processes:
        yield processes


def doubled(array):
    return 2 * array


def purge(spool, pattern, which=slice(None)):
    """Delete what matches, in its area; how many files that were."""
    found = sorted(glob.glob(f"{spool.files.root}/{spool.area.path}/{pattern}"))[which]
    for path in found:
        shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
    return len(found)


def purge_settings(spool):
    os.unlink(f"{spool.files.root}/spool.yaml")
    return 1


IN_USE = {
    "task file": lambda spool: purge(spool, "tasks/*"),
    "log": lambda spool: purge(spool, "claims/*"),
    "first record": lambda spool: purge(spool, "claims/*/*", slice(0, 1)),
    "last record": lambda spool: purge(spool, "claims/*/*", slice(-1, None)),
    "result file": lambda spool: purge(spool, "results/*/*"),
    "presence": lambda spool: purge(spool, "agents/*"),
    "argument": lambda spool: purge(spool, "blobs/*"),
    "locks": lambda spool: purge(spool, "locks/*"),
    "temporary": lambda spool: purge(spool, "tmp/*"),
    "settings": purge_settings,
}


FIRST = ("task file", "log", "result file")
"""The others have the long switch."""


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in FIRST else pytest.mark.long) for what in IN_USE]
)
def test_one_kind_of_file_goes_while_it_is_in_use(processes, what):
    spool = create(processes.spool)
    journal, gate = processes.journal, str(processes.folder / "gate")
    array = np.arange(float(LARGE))
    calls = [(task, journal, "early"), (hold, journal, "held", gate), (task, journal, "late")]

    def submit(executor):
        early, held, late = [executor.submit(*call) for call in calls]
        return [early, held, late, executor.submit(task, journal, "after", 0.0, held)]

    executor = ClusterExecutor(processes.spool, backend="none")
    futures = submit(executor)
    large = executor.submit(doubled, array, resource_dict={"priority": 1})
    agent = processes.agent(cores=1, idle_timeout=1)
    assert futures[0].result(DEADLINE) == value_of("early")
    wait_until(lambda: "held" in _lines(journal))
    assert IN_USE[what](spool) or what == "temporary"
    Path(gate).touch()
    told = [future.exception(DEADLINE) for future in (*futures, large)]
    assert all(
        error is None or isinstance(error, FsbrokerError | FileNotFoundError) for error in told
    )
    for future, name in zip(futures, ("early", "held", "late", "after"), strict=True):
        if future.exception() is None:
            assert future.result()[0] == name
    executor.shutdown()
    assert agent.wait(DEADLINE) in (0, 3), processes.output(agent)
    assert "Traceback" not in processes.output(agent)
    if what == "settings":
        assert fsck_spool(processes.spool)

    with ClusterExecutor(processes.spool, max_workers=1, idle_timeout=0.5) as executor:
        values = [future.result(DEADLINE) for future in submit(executor)]
        assert [value[0] for value in values] == ["early", "held", "late", "after"]
        np.testing.assert_array_equal(executor.submit(doubled, array).result(DEADLINE), 2 * array)
    mend(spool.files, spool.area)
    findings = fsck.survey(spool.files, spool.area)[0]
    assert not [one for one in findings if one.kind.weight == Weight.MENDABLE]
    assert not [one for one in findings if one.kind is Kind.TWO_VALUES]


def fsck_spool(path):
    """With its settings gone a spool is opened by nobody but fsck and new executors."""
    create(path)
    return open_spool(path)


def _lines(journal):
    if not os.path.exists(journal):
        return []
    with open(journal) as file:
        return [line.split()[0] for line in file]


# -- after -------------------------------------------------------------------------------


def finished(root):
    """A spool whose tasks have ended: small values, and a large array; all packed and bundled."""
    with ClusterExecutor(root, max_workers=1, idle_timeout=0.3) as executor:
        for number in range(10):
            assert executor.submit(pow, 2, number).result(DEADLINE) == 2**number
        executor.submit(doubled, np.arange(float(LARGE))).result(DEADLINE)
    spool = open_spool(root)
    wait_until(lambda: not spool.files.names(spool.area.agents))
    return spool


AFTER = {
    "result file": lambda spool: purge(spool, "results/*/*.h5"),
    "pack": lambda spool: purge(spool, "packs/*"),
    "archive": lambda spool: purge(spool, "archive/*"),
    "blobs": lambda spool: purge(spool, "blobs/*"),
    "locks": lambda spool: purge(spool, "locks/*"),
    "settings": purge_settings,
    "directories": lambda spool: purge(spool, "cancel") + purge(spool, "packs"),
    "everything but settings": lambda spool: purge(spool, "*"),
}
LOSSES = ("result file", "pack", "blobs", "directories")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("purged") / "spool"
    spool = finished(root)
    packs.cycle(spool.files, spool.area)
    archive.cycle(spool.files, spool.area)
    archive.cycle(spool.files, spool.area)
    return root


@pytest.mark.parametrize("what", AFTER)
def test_one_kind_of_file_goes_from_a_spool_at_rest(template, tmp_path, what):
    root = tmp_path / "spool"
    shutil.copytree(template, root, symlinks=True)
    spool = open_spool(root)
    if what == "pack":  # of what it holds nothing must stand elsewhere
        packs.cycle(spool.files, spool.area)
    assert AFTER[what](spool)
    spool, _ = open_to_check(root)
    found = {one.kind for one in fsck.survey(spool.files, spool.area)[0]}
    if what in LOSSES:
        assert found & {Kind.NO_RESULT, Kind.NO_BLOB}
    with ClusterExecutor(root, max_workers=1, idle_timeout=0.3) as executor:
        futures = [executor.submit(pow, 2, number) for number in range(10)]
        large = executor.submit(doubled, np.arange(float(LARGE)))
        assert [future.result(DEADLINE) for future in futures] == [2**n for n in range(10)]
        np.testing.assert_array_equal(large.result(DEADLINE), 2 * np.arange(float(LARGE)))
    mend(spool.files, spool.area)
    left = fsck.survey(spool.files, spool.area)[0]
    assert not [one for one in left if one.kind.weight > Weight.NOTE]


def test_who_asks_for_a_key_whose_value_is_gone_is_told(template, tmp_path):
    root = tmp_path / "spool"
    shutil.copytree(template, root, symlinks=True)
    array = np.arange(float(LARGE))
    with ClusterExecutor(root, backend="none") as executor:
        future = executor.submit(doubled, array)
        future.result(DEADLINE)
    purge(open_spool(root), "blobs/*")
    with pytest.raises(ResultLost, match="Submit it again"):
        attach(root, future.key).result(DEADLINE)
    with ClusterExecutor(root, max_workers=1, idle_timeout=0.3) as executor:
        np.testing.assert_array_equal(executor.submit(doubled, array).result(DEADLINE), 2 * array)
    np.testing.assert_array_equal(attach(root, future.key).result(DEADLINE), 2 * array)
