"""The graph as ``checkpoint_fn`` and programs of their own see it."""

from __future__ import annotations

from operator import add, neg

import dask
import pytest
from dask._task_spec import Alias, List, Task, TaskRef, convert_legacy_graph

from daskvine import daskvine_merge
from daskvine.dag import DaskVineDag

DIAMOND = {"x": 1, "a": (neg, "x"), "b": (abs, "a"), "c": (neg, "a"), "d": (add, "b", "c"), "e": "d"}


def run_vertices(dag, keys):
    """Run what is ready until nothing is; return the values of the keys."""
    nodes = convert_legacy_graph(DIAMOND)
    ready, order = dag.set_targets(keys), []
    while ready:
        key = ready.pop(0)
        order.append(key)
        values = {name: dag.get_result(name) for name in dag.get_dependencies(key)}
        ready += dag.set_result(key, nodes[key](values))
    assert len(order) == len(set(order))
    return [dag.get_result(key) for key in keys]


def test_program_runs_vertices_as_they_get_ready():
    """A program that runs what is ready, and enters results, gets what dask gets."""
    dag = DaskVineDag(DIAMOND)
    assert run_vertices(dag, ["e", "a"]) == list(dask.get(DIAMOND, ["e", "a"]))
    assert dag.left_to_compute() == 0


def test_relations():
    """Dependencies and readers of a vertex, all and those without a result."""
    dag = DaskVineDag(DIAMOND)
    assert dag.set_targets(["e"]) == ["a"]
    assert dag.get_targets() == {"d"}
    assert dag.replace_targets(["e"]) == ["d"]
    assert dag.left_to_compute() == 4
    assert dag.get_dependencies("d") == dag.get_children("e") == {"b", "c"}
    assert dag.get_needed_by("a") == dag.get_parents("a") == {"b", "c"}
    assert dag.has_result("x")
    assert not dag.has_result("a")
    assert sorted(dag.set_result("a", -1)) == ["b", "c"]
    assert dag.set_result("a", -1) == []
    dag.set_result("b", 1)
    assert dag.get_missing_dependencies("d") == dag.get_missing_children("d") == {"c"}
    assert dag.get_pending_needed_by("a") == {"c"}
    assert [dag.depth_of(key) for key in "abd"] == [1, 2, 3]


def test_unneeded_vertices_are_left_out():
    """What the targets do not need is not to be computed."""
    dag = DaskVineDag(DIAMOND)
    dag.set_targets(["b"])
    assert dag.left_to_compute() == 2
    with pytest.raises(KeyError, match="no vertex 'c'"):
        dag.set_result("c", 1)
    with pytest.raises(KeyError, match="no result yet"):
        dag.get_result("b")


@daskvine_merge
def total(*parts):
    return sum(parts)


def test_wide_merges_become_trees():
    """With ``reconstruct`` no merge has more inputs than ``merge_size``."""
    graph = {**{f"p{n}": (neg, n) for n in range(9)}, "t": (total, *[f"p{n}" for n in range(9)])}
    dag = DaskVineDag(graph, reconstruct=True, merge_size=3)
    dag.set_targets(["t"])
    assert len(dag.get_dependencies("t")) == 3
    assert dag.left_to_compute() > 10
    plain = DaskVineDag(graph)
    plain.rebuild_merge("t", convert_legacy_graph(graph)["t"], 3)
    plain.initialize_graph()
    assert plain.get_dependencies("t") == dag.get_dependencies("t")
    later = DaskVineDag(graph)
    later.expand_merge(3)
    later.initialize_graph()
    assert later.left_to_compute() == dag.left_to_compute()


def test_entered_vertex_has_relations():
    """A vertex that is entered later is found by what it reads."""
    dag = DaskVineDag(DIAMOND)
    dag.set_relations(Task("f", neg, TaskRef("d")))
    assert dag.get_needed_by("d") == {"f"}


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (Task("k", neg, 1), {"taskp"}),
        ((neg, 1), {"taskp", "hashable"}),
        (List(TaskRef("a")), {"containerp"}),
        (Alias("a", "b"), {"aliasp"}),
        (TaskRef("a"), {"taskrefp"}),
        (("a", 0), {"keyp", "symbolp", "hashable"}),
        ("a", {"keyp", "symbolp", "hashable"}),
        ([1], {"symbolp"}),
    ],
)
def test_kinds_of_values(value, kinds):
    """Each kind of value of a graph is told apart."""
    relevant = {"taskp", "containerp", "aliasp", "taskrefp", "symbolp"} | kinds
    assert {name for name in relevant if getattr(DaskVineDag, name)(value)} == kinds
