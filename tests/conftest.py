"""Which tests can run on this machine, and what that came to.

The groups and their probes stand in `tests/groups.py`, the machinery that
they test with in `tests/testbed/`. A group named in FSBROKER_REQUIRE fails
where it would be skipped: without that, a test that never runs anywhere looks
like one that passes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsbroker import ClusterExecutor
from fsbroker.launch import queue
from tests.groups import GROUPS, required
from tests.testbed.flux import Instance
from tests.testbed.lab import Lab, Labmates
from tests.testbed.powerloss import PowerLossDisk
from tests.testbed.slurm import Cluster
from tests.testbed.users import Accounts

REQUIRED = pytest.StashKey[frozenset[str]]()
EXCUSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        action="store_true",
        default=bool(os.environ.get("FSBROKER_LONG")),
        help="run also what takes minutes (or set FSBROKER_LONG)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: takes minutes; runs with --long")
    for group in GROUPS.values():
        config.addinivalue_line("markers", f"{group.name}: needs {group.needs}")
    try:
        config.stash[REQUIRED] = required(os.environ.get("FSBROKER_REQUIRE", ""))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


def groups_of(item: pytest.Item) -> list[str]:
    # Its markers; `item.keywords` would have the names of files and parameters too.
    return sorted({mark.name for mark in item.iter_markers() if mark.name in GROUPS})


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        item.stash[EXCUSED] = True
        pytest.skip("takes minutes: --long")
    for name in groups_of(item):
        if reason := GROUPS[name].missing():
            item.stash[EXCUSED] = name not in item.config.stash[REQUIRED]
            pytest.skip(f"{name}: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """A skip, from whichever line, is a failure in a group that is required.

    Unless another group, which is not required, is what is missing, or the time for it.
    """
    report = yield
    report.groups = groups_of(item)  # for the summary
    needed = item.config.stash[REQUIRED].intersection(report.groups)
    excused = item.stash.get(EXCUSED, False) or hasattr(report, "wasxfail")
    if report.skipped and needed and not excused:
        report.outcome = "failed"
        report.longrepr = f"required by FSBROKER_REQUIRE, but skipped: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def _absent(config: pytest.Config) -> list[str]:
    """Required groups without a single test, when the whole suite was asked for."""
    option = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole or option.keyword or option.markexpr or option.collectonly:
        return []
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None:  # one of several processes: only the first knows of all tests
        return []
    told = (report for some in terminal.stats.values() for report in some)
    seen = {name for report in told for name in getattr(report, "groups", ())}
    return sorted(config.stash[REQUIRED] - seen)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and _absent(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """One line per group: how many of its tests ran, how many did not, and why."""
    ran: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    reasons: dict[str, set[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in terminalreporter.getreports(outcome):
            for name in getattr(report, "groups", None) or ["no group"]:
                if outcome == "skipped":
                    skipped[name] += 1
                    reasons.setdefault(name, set()).add(_reason(report))
                elif report.when == "call":
                    ran[name] += 1
    terminalreporter.section("test groups")
    for name in ("no group", *GROUPS):
        line = f"{name:<10} {ran[name]:>5} ran {skipped[name]:>4} skipped"
        why = "; ".join(sorted(reasons.get(name, ())))
        terminalreporter.write_line(f"{line}  {why}".rstrip())
    for name in _absent(config):
        terminalreporter.write_line(f"FAILED: {name} is required, but has no test", red=True)


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the whole of a matrix is wanted, not only a part."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[ClusterExecutor]:
    """An executor without agents: what it submits stays pending."""
    executor = ClusterExecutor(tmp_path / "idle", backend="none")
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a script whose queue jobs are looked after all the time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FSBROKER_IDLE_TIMEOUT", "1")
    monkeypatch.setattr(queue, "QUERY_EVERY", 2.0)
    monkeypatch.setattr(queue, "LOOK_EVERY", 0.5)
    monkeypatch.setattr(queue, "NOBODY_ASKS", 5.0)
    return tmp_path


@pytest.fixture(params=["ext4", "xfs"])
def power_loss_disk(request: pytest.FixtureRequest) -> Iterator[PowerLossDisk]:
    """A freshly made file system whose power can be cut; mark the test `powerloss`."""
    with PowerLossDisk(request.param) as disk:
        yield disk


@pytest.fixture(scope="session")
def accounts() -> Iterator[Accounts]:
    """Other users of this machine, `.a`, `.b` and `.c`; mark the test `users`."""
    with Accounts() as accounts:
        yield accounts


@pytest.fixture(scope="session")
def labmates(accounts: Accounts) -> Iterator[Labmates]:
    """The hands behind `lab`; tests ask for that."""
    with Labmates(accounts) as mates:
        yield mates


@pytest.fixture
def lab(labmates: Labmates) -> Iterator[Lab]:
    """A spool that three users share; mark the test `users`."""
    lab = Lab(labmates)
    try:
        lab.share()
        yield lab
    finally:
        lab.remove()


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Cluster]:
    """The cluster behind `slurm`; tests ask for that."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A SLURM cluster of nodes n1 to n3, at rest before each test; mark the test `slurm`.

    The test's own process and its children find it too.
    """
    for name in os.environ.keys() - slurm_cluster.environment().keys():
        monkeypatch.delenv(name)
    for name, value in slurm_cluster.environment().items():
        monkeypatch.setenv(name, value)
    yield slurm_cluster
    slurm_cluster.restore()


@pytest.fixture(scope="session")
def flux_instance() -> Iterator[Instance]:
    """The instance behind `flux`; tests ask for that."""
    with Instance() as instance:
        yield instance


@pytest.fixture
def flux(flux_instance: Instance, monkeypatch: pytest.MonkeyPatch) -> Iterator[Instance]:
    """A Flux instance of three nodes, without jobs before each test; mark the test `flux`.

    The test's own process and its children find it too.
    """
    for name, value in flux_instance.environment().items():
        monkeypatch.setenv(name, value)
    yield flux_instance
    flux_instance.restore()
