"""The order in which the vertices of a graph are handed over."""

from __future__ import annotations

import gc

import pytest
from dask.order import order

from daskvine import graph as graphs
from daskvine.graph import Graph, gc_disabled, to_task_spec_graph


def tree(leaves):
    graph = {("leaf", n): (abs, n) for n in range(leaves)}
    level, number = list(graph), 0
    while len(level) > 1:
        level, parts = [], [level[n : n + 4] for n in range(0, len(level), 4)]
        for part in parts:
            number += 1
            graph["sum", number] = (sum, part)
            level.append(("sum", number))
    return graph, level[0]


def test_graph_runs_in_order_of_dask():
    """A graph runs in the order of dask."""
    graph, target = tree(40)
    nodes = to_task_spec_graph(graph)
    ranks = order(nodes)
    assert [ranks[key] for key in Graph(nodes, [target]).in_priority_order()] == list(range(len(graph)))


def test_large_graph_begins_depth_first(monkeypatch):
    """A large graph begins depth first and goes on in the order of dask."""
    monkeypatch.setattr(graphs, "LARGE_GRAPH_VERTICES", 30)
    monkeypatch.setattr(graphs, "FIRST_SLICE_VERTICES", 10)
    graph, target = tree(40)
    nodes = to_task_spec_graph(graph)
    ranks = order(nodes)
    found = Graph(nodes, [target])
    given = list(found.in_priority_order())
    assert len(given) == len(graph)
    assert set(given) == set(graph)
    seen = set()
    for key in given:
        assert seen.issuperset(found.dependencies[key]), f"{key} comes before what it depends on"
        seen.add(key)
    assert [key[0] for key in given[:10]] == [*4 * ["leaf"], "sum", *4 * ["leaf"], "sum"]
    assert [ranks[key] for key in given[10:]] == sorted(ranks[key] for key in given[10:])


def test_large_graph_gives_vertices_before_ordering(monkeypatch):
    """A large graph is not put in order before its first vertices are given."""
    monkeypatch.setattr(graphs, "LARGE_GRAPH_VERTICES", 30)
    monkeypatch.setattr(graphs, "FIRST_SLICE_VERTICES", 10)
    graph, target = tree(40)

    def too_soon(_nodes):
        raise AssertionError

    monkeypatch.setattr(graphs, "order", too_soon)
    given = Graph(to_task_spec_graph(graph), [target]).in_priority_order()
    for _n in range(10):
        next(given)
    with pytest.raises(AssertionError):
        next(given)


def test_cycle_in_large_graph_is_refused(monkeypatch):
    """A circle in a large graph is refused."""
    monkeypatch.setattr(graphs, "LARGE_GRAPH_VERTICES", 2)
    graph = {"a": (abs, "c"), "b": (abs, "a"), "c": (abs, "b"), "d": (abs, "c")}
    with pytest.raises(RuntimeError, match="Cycle"):
        Graph(to_task_spec_graph(graph), ["d"])


@pytest.mark.parametrize("on", [True, False])
def test_garbage_collector_state_is_restored(on):
    """The garbage collector is as it was when a graph is made or is not."""
    before = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with gc_disabled():
            assert not gc.isenabled()
        with pytest.raises(KeyError), gc_disabled():
            Graph({}, ["x"])
        assert gc.isenabled() is on
    finally:
        (gc.enable if before else gc.disable)()
