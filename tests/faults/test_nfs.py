"""The whole way over real NFS, v4.2 and v3: two hosts, one of which dies."""

import json
from pathlib import Path

import pytest

from tests.testbed.nfs import run_in_nfs


@pytest.mark.nfs
@pytest.mark.timeout(200)
def test_two_hosts_share_a_spool_and_one_dies():
    text = run_in_nfs(Path(__file__).parent / "nfs_story.py", timeout=180)
    stories = [line.split(" ", 1) for line in text.splitlines()]
    assert [version for version, _ in stories] == ["V4", "V3"]
    for version, found in stories:
        times = json.loads(found)
        print(version, *(f"{what}: {took:.2f}" for what, took in times.items()), sep="\n    ")
        assert times.pop("ran again") == 1  # the row that the killed agent held
        # No wait for a cache of 30 s: news is found by listing. Polls are 5 s apart at most.
        assert times["longest of ten"] < 15
        assert max(times.values()) < 40


@pytest.mark.nfs
@pytest.mark.timeout(300)
def test_a_server_that_goes_and_comes():
    """No agent dies of it, be its mount a patient one or not, and nothing is published twice."""
    text = run_in_nfs(Path(__file__).parent / "nfs_restart.py", timeout=280)
    alive, took, ended, again = text.splitlines()
    print(f"{took} s after the server was back all was done; ran again: {again}")
    assert alive == "[None, None]"
    assert ended == "[0, 0]"
    assert again == "0"


@pytest.mark.nfs
@pytest.mark.timeout(400)
def test_a_host_whose_link_is_cut_and_mended():
    """Its row is taken over, and what it did meanwhile counts for nothing."""
    text = run_in_nfs(Path(__file__).parent / "nfs_cut.py", timeout=380)
    stories = [line.split() for line in text.splitlines()]
    assert [version for version, *_ in stories] == ["V4", "V3"]
    for version, taken_over, woken, again in stories:
        print(f"{version}: taken over after {taken_over} s; ended {woken} s after its link came")
        assert again == "1"
