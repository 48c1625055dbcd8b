"""Tests that take minutes run only where FSBROKER_LONG is set, as `.ci/run` does."""

import os

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes minutes; runs where FSBROKER_LONG is set")


def pytest_runtest_setup(item):
    if item.get_closest_marker("long") and not os.environ.get("FSBROKER_LONG"):
        pytest.skip("takes minutes: set FSBROKER_LONG")
