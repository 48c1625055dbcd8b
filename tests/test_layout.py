"""Where the nodes of a drawing go, for any graph without cycles."""

from __future__ import annotations

import time
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsbroker.report.layout import BELOW, BESIDE, Box, layout


@st.composite
def graphs(draw):
    widths = draw(st.lists(st.integers(10, 200), max_size=12))
    pairs = list(combinations(range(len(widths)), 2))
    edges = draw(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []
    return [Box(float(width), 30.0) for width in widths], edges


@given(graphs())
def test_boxes_do_not_touch_and_edges_go_down(graph):
    boxes, edges = graph
    found = layout(boxes, edges)
    placed = list(zip(found.centres, boxes, strict=True))
    for ((x1, y1), one), ((x2, y2), two) in combinations(placed, 2):
        beside = abs(x1 - x2) >= (one.width + two.width) / 2 + BESIDE - 1e-6
        assert beside or abs(y1 - y2) >= 30 + BELOW - 1e-6
    for (x, y), box in placed:
        assert x - box.width / 2 >= -1e-6
        assert x + box.width / 2 <= found.width + 1e-6
        assert 15 <= y <= found.height - 15
    for (source, target), between in zip(edges, found.waypoints, strict=True):
        heights = [found.centres[source][1], *(y for _, y in between), found.centres[target][1]]
        assert heights == sorted(set(heights))


def test_a_chain_is_a_straight_line():
    found = layout([Box(50.0, 30.0)] * 4, [(0, 1), (1, 2), (2, 3)])
    assert len({x for x, _ in found.centres}) == 1


def test_a_node_stands_below_what_it_comes_from():
    found = layout([Box(50.0, 30.0)] * 4, [(0, 1), (1, 2), (0, 3)])
    assert found.centres[1][0] != found.centres[0][0]  # it has another beside it
    assert found.centres[2][0] == pytest.approx(found.centres[1][0])


def test_crossings_are_undone():
    """Two parallel chains whose nodes were met in another order."""
    found = layout([Box(50.0, 30.0)] * 4, [(0, 3), (1, 2)])
    upper, lower = [found.centres[n][0] for n in (0, 1)], [found.centres[n][0] for n in (3, 2)]
    assert (upper[0] < upper[1]) == (lower[0] < lower[1])


@pytest.mark.timeout(60)
def test_one_input_of_ten_thousand_links_is_drawn_in_time():
    """A waypoint in each layer of each edge would be fifty million."""
    count = 10_000
    edges = [(n, n + 1) for n in range(count - 1)] + [(count, n) for n in range(count)]
    began = time.process_time()
    found = layout([Box(50.0, 30.0)] * (count + 1), edges)
    assert not any(found.waypoints)
    assert time.process_time() - began < 30
