"""Where nodes go: in layers, from top to bottom, as Sugiyama, Tagawa and Toda do it (1981).

    rank      every node below all that it comes from, and inputs right above what they go to
    order     within a layer by the mean place of the neighbours, layer by layer, down and up
    place     as near to the neighbours as nodes beside each other allow: least squares

Long edges pass through waypoints, one in each layer. The pure-Python libraries for this are no
longer looked after or take no labels, and a notebook should need nothing beyond fsbroker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

SWEEPS = 8
BESIDE = 24.0
"""Between neighbours of a layer, in the unit of the sizes (pixels)."""
BELOW = 56.0
"""Between layers: room for an arrow and its label."""
MOST_WAYPOINTS = 20_000
"""Of a graph with more, long edges are straight lines: an input of a million tasks."""


class Box(NamedTuple):
    """The size of a node."""

    width: float
    height: float


class Layout(NamedTuple):
    """Centres of the nodes, the points between them of each edge, and the whole size."""

    centres: list[tuple[float, float]]
    waypoints: list[list[tuple[float, float]]]
    width: float
    height: float


def layout(boxes: Sequence[Box], edges: Sequence[tuple[int, int]]) -> Layout:
    """Place nodes of these sizes.

    Args:
        edges: from and to; without cycles.
    """
    ranks = _ranks(len(boxes), edges)
    nodes, chains = _with_waypoints(boxes, ranks, edges)
    layers = _layers(ranks)
    links = _neighbours(len(nodes), chains)
    _order(layers, ranks, links)
    x = _place(layers, nodes, links)
    y, height = _heights(layers, nodes)
    left = min((x[n] - nodes[n].width / 2 for n in range(len(nodes))), default=0.0)
    right = max((x[n] + nodes[n].width / 2 for n in range(len(nodes))), default=0.0)
    points = [(x[n] - left, y[ranks[n]]) for n in range(len(nodes))]
    return Layout(
        points[: len(boxes)],
        [[points[n] for n in chain[1:-1]] for chain in chains],
        right - left,
        height,
    )


def _ranks(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    after: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for source, target in edges:
        after[source].append(target)
        missing[target] += 1
    inputs = [node for node in range(count) if not missing[node]]
    ranks = [0] * count
    ready = deque(inputs)
    while ready:
        node = ready.popleft()
        for target in after[node]:
            ranks[target] = max(ranks[target], ranks[node] + 1)
            missing[target] -= 1
            if not missing[target]:
                ready.append(target)
    for node in inputs:
        ranks[node] = min((ranks[target] for target in after[node]), default=1) - 1
    return ranks


def _with_waypoints(
    boxes: Sequence[Box], ranks: list[int], edges: Sequence[tuple[int, int]]
) -> tuple[list[Box], list[list[int]]]:
    """The nodes with a waypoint for each layer that an edge crosses; ``ranks`` grows with them."""
    nodes = list(boxes)
    lengths = [ranks[target] - ranks[source] for source, target in edges]
    bent = sum(lengths) - len(edges) <= MOST_WAYPOINTS
    chains = []
    for (source, target), length in zip(edges, lengths, strict=True):
        between = range(len(nodes), len(nodes) + length - 1) if bent else range(0)
        nodes += [Box(1.0, 1.0)] * len(between)
        ranks += range(ranks[source] + 1, ranks[source] + 1 + len(between))
        chains.append([source, *between, target])
    return nodes, chains


def _layers(ranks: Sequence[int]) -> list[list[int]]:
    layers: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for node, rank in enumerate(ranks):
        layers[rank].append(node)
    return layers


def _neighbours(count: int, chains: Sequence[Sequence[int]]) -> tuple[list[list[int]], ...]:
    """Of each node: those above it, and those below."""
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for chain in chains:
        for upper, lower in pairwise(chain):
            below[upper].append(lower)
            above[lower].append(upper)
    return above, below


def _order(
    layers: list[list[int]], ranks: Sequence[int], links: tuple[list[list[int]], ...]
) -> None:
    place = [0.0] * len(ranks)
    for layer in layers:
        for number, node in enumerate(layer):
            place[node] = float(number)
    for sweep in range(SWEEPS):
        near = links[sweep % 2]
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            mean = {
                node: sum(place[one] for one in near[node]) / len(near[node])
                if near[node]
                else place[node]
                for node in layer
            }
            layer.sort(key=mean.__getitem__)
            for number, node in enumerate(layer):
                place[node] = float(number)


def _place(
    layers: Sequence[Sequence[int]], nodes: Sequence[Box], links: tuple[list[list[int]], ...]
) -> list[float]:
    x = [0.0] * len(nodes)
    offsets = [_offsets(layer, nodes) for layer in layers]
    for layer, offset in zip(layers, offsets, strict=True):
        for node, at in zip(layer, offset, strict=True):
            x[node] = at - offset[-1] / 2
    for sweep in range(SWEEPS):
        near = links[sweep % 2]
        pairs = list(zip(layers, offsets, strict=True))
        for layer, offset in pairs if sweep % 2 == 0 else reversed(pairs):
            wanted = [
                sum(x[one] for one in near[node]) / len(near[node]) if near[node] else x[node]
                for node in layer
            ]
            free = _ascending([want - at for want, at in zip(wanted, offset, strict=True)])
            for node, start, at in zip(layer, free, offset, strict=True):
                x[node] = start + at
    return x


def _offsets(layer: Sequence[int], nodes: Sequence[Box]) -> list[float]:
    """Centres of a layer's nodes when they stand as close as they may, from 0."""
    found = [0.0]
    for left, right in pairwise(layer):
        found.append(found[-1] + (nodes[left].width + nodes[right].width) / 2 + BESIDE)
    return found


def _ascending(wanted: Sequence[float]) -> list[float]:
    """The nearest numbers (least squares) that do not descend: pooling adjacent violators."""
    pools: list[tuple[float, int]] = []
    for value in wanted:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before, size = pools.pop()
            total, count = total + before, count + size
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]


def _heights(layers: Sequence[Sequence[int]], nodes: Sequence[Box]) -> tuple[list[float], float]:
    """The middle of each layer, and the height of all."""
    y, top = [], 0.0
    for layer in layers:
        height = max((nodes[node].height for node in layer), default=0.0)
        y.append(top + height / 2)
        top += height + BELOW
    return y, max(top - BELOW, 0.0)
