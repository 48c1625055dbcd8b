"""The benchmark runs, compares values, and says something about every budget."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.__main__ import main
from tests.benchmarks.table import Row, lines

BUDGETS = (
    "no-op tasks",
    "files made",
    "executions of fsbroker",
    "round trip of a lone task",
    "link of a dependency chain",
    "metadata calls for a lone task",
    "metadata calls for a task under load",
    "2 MB array in and out, with fsync",
    "2 MB array in and out, without fsync",
    "50 cached calls",
    "500 pending: client",
    "500 pending: agent",
    "500 pending: a claim",
    "import fsbroker",
    "agent: process start to presence",
    "agent: process start to first claim",
)


@pytest.mark.timeout(300)
def test_a_quick_run_has_a_number_for_every_budget(tmp_path, capsys):
    written = tmp_path / "rows.json"
    arguments = ["--quick", "--quiet", "--profile", "--peers=process_pool"]
    assert main([*arguments, f"--directory={tmp_path}", f"--json={written}"]) == 0
    shown = capsys.readouterr().out
    rows = json.loads(written.read_text())["rows"]
    for budget in BUDGETS:
        row = next(row for row in rows if row["what"].startswith(budget))
        assert row["limit"] is not None
        assert row["verdict"] in ("holds", "DOES NOT HOLD") or "strace" in row["trouble"], row
        assert row["what"] in shown
    assert any(row["what"].startswith("METG") and row["ours"] for row in rows)
    assert "CPU time a task" in shown


def test_a_sample_that_gives_wrong_values_does_not_count():
    from tests.benchmarks.tasks import WrongValue, compare

    compare([1, 2], [1, 2])
    with pytest.raises(WrongValue):
        compare([1, 3], [1, 2])


def test_ratios_are_formed_pair_by_pair():
    row = Row("what", "/s", [10.0, 30.0], "peer", [5.0, 10.0], 2.5, of_ratio=True, at_least=True)
    assert row.ratios == [2.0, 3.0]
    assert row.verdict == "holds"
    assert Row("what", "ms", [0.005], limit=0.004).verdict == "DOES NOT HOLD"
    assert "2.5x (2 .. 3)" in "\n".join(lines([row]))


def test_what_could_not_be_measured_says_why():
    row = Row("what", limit=1.0, trouble="strace is not installed")
    assert row.verdict == "not measured"
    assert "strace is not installed" in "\n".join(lines([row]))
