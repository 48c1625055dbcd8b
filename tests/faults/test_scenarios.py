"""The table of scenarios is complete, and names tests that exist."""

import ast
from pathlib import Path

import pytest

from tests.faults.scenarios import SCENARIOS

REPOSITORY = Path(__file__).parents[2]


def names_in(path):
    """The names of the tests in a file, with those of their classes."""
    found = set()
    for node in ast.parse((REPOSITORY / path).read_text()).body:
        if isinstance(node, ast.ClassDef):
            inner = [one for one in node.body if isinstance(one, ast.FunctionDef)]
            found |= {f"{node.name}::{one.name}" for one in inner}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def test_there_is_a_row_for_each():
    assert list(SCENARIOS) == list(range(1, 55))


@pytest.mark.parametrize("number", SCENARIOS)
def test_a_scenario_is_run_or_says_what_it_needs(number):
    scenario = SCENARIOS[number]
    assert scenario.tests or scenario.needs
    for test in scenario.tests:
        path, _, name = test.partition("::")
        assert name in names_in(path), test
