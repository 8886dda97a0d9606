"""What is computed: functions that workers import from here, and the graphs made of them."""

from __future__ import annotations

from typing import Any

FAN_IN = 8
Graph = dict[tuple[str, int], Any]


def increment(x: int) -> int:
    """As little as a call can do."""
    return x + 1


def wide(vertices: int) -> tuple[Graph, tuple[str, int], int]:
    """Build a graph of independent vertices and a tree of sums over them, as histograms are summed.

    Returns
    -------
    graph, key, value
        The key of the total, and what it should be.
    """
    leaves = vertices * (FAN_IN - 1) // FAN_IN
    graph: Graph = {("leaf", n): (increment, n) for n in range(leaves)}
    layer = list(graph)
    while len(layer) > 1:
        sums: list[tuple[str, int]] = []
        for start in range(0, len(layer), FAN_IN):
            key = ("sum", len(graph))
            graph[key] = (sum, layer[start : start + FAN_IN])
            sums.append(key)
        layer = sums
    return graph, layer[0], leaves * (leaves + 1) // 2


def chain(hops: int) -> tuple[Graph, tuple[str, int], int]:
    """Build a graph in which every vertex needs the one before. Returns as `wide`."""
    graph: Graph = {("hop", 0): (increment, 0)}
    for n in range(1, hops):
        graph["hop", n] = (increment, ("hop", n - 1))
    return graph, ("hop", hops - 1), hops


def single(vertices: int) -> tuple[Graph, list[tuple[str, int]], tuple[int, ...]]:
    """Independent vertices, all of which are asked for. Returns as `wide`."""
    graph: Graph = {("one", n): (increment, n) for n in range(vertices)}
    return graph, list(graph), tuple(range(1, vertices + 1))
