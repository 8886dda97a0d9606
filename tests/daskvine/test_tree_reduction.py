from __future__ import annotations

import functools
import operator
import os
import resource
from collections.abc import Mapping

import cloudpickle
import dask
import numpy as np
import pytest
import toolz
from dask._task_spec import List, Task, TaskRef, convert_legacy_graph
from hypothesis import given
from hypothesis import strategies as st

from daskvine.remote import task_functions
from daskvine.tree_reduction import daskvine_merge, is_merge, match_reduction, rewrite_wide_reductions
from vinecore.protocol.serialization import values
from vinecore.protocol.serialization.placeholders import LazyValue


@daskvine_merge
def join(*parts):
    return "".join(parts)


@daskvine_merge
def join_list(parts):
    assert isinstance(parts, list)
    return "".join(parts)


@daskvine_merge
def join_with(*parts, prefix=""):
    return prefix + "".join(part.removeprefix(prefix) for part in parts)


@daskvine_merge
def join_list_with(parts, prefix=""):
    assert isinstance(parts, list)
    return join_with(*parts, prefix=prefix)


def letter(i):
    return chr(ord("a") + i)


def compute(collection, size):
    """Return the result of the rewritten graph, and that graph."""
    seen = {}

    def get(dsk, keys, **_):
        graph = dsk if isinstance(dsk, Mapping) else dsk.__dask_graph__()
        seen.update(rewrite_wide_reductions(convert_legacy_graph(dict(graph)), size))
        return dask.get(seen, keys)

    return collection.compute(scheduler=get, optimize_graph=False), seen


def letters(n):
    leaf = dask.delayed(letter, pure=True)
    return [leaf(i, dask_key_name=f"leaf-{i}") for i in range(n)]


def merges(graph):
    return {key: node for key, node in graph.items() if "leaf" not in str(key)}


CALLS = {
    "arguments": lambda parts: dask.delayed(join)(*parts, dask_key_name="top"),
    "list": lambda parts: dask.delayed(join_list)(parts, dask_key_name="top"),
    "arguments and keyword": lambda parts: dask.delayed(join_with)(*parts, prefix="a", dask_key_name="top"),
    "list and keyword": lambda parts: dask.delayed(join_list_with)(parts, prefix="a", dask_key_name="top"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("size", [2, 3, 10, 25, 26])
def test_same_result_with_few_inputs_each(call, size):
    result, graph = compute(call(letters(26)), size)
    assert result == "abcdefghijklmnopqrstuvwxyz"
    assert max(len(node.dependencies) for node in graph.values()) <= size
    assert len(merges(graph)) > 1 or size == 26


@given(n=st.integers(1, 60), size=st.integers(2, 9))
def test_order_count_and_depth_of_any_tree(n, size):
    graph = {f"leaf-{i}": Task(f"leaf-{i}", letter, i) for i in range(n)}
    graph["top"] = Task("top", join, *map(TaskRef, list(graph)))
    rewritten = rewrite_wide_reductions(graph, size)
    assert dask.get(rewritten, "top") == "".join(map(letter, range(n)))
    assert all(len(node.dependencies) <= size for node in rewritten.values())
    # no merge does more than it has to: none of a single part, except the one that was asked for
    assert all(len(node.dependencies) > 1 for key, node in merges(rewritten).items() if key != "top")
    assert rewrite_wide_reductions(graph, size).keys() == rewritten.keys()


def test_a_narrow_merge_stays_as_it_is():
    graph = convert_legacy_graph({"a": "x", "b": "y", "top": (join, "a", "b")})
    assert rewrite_wide_reductions(graph, 2) == graph


def test_unmarked_functions_stay_as_they_are():
    graph = convert_legacy_graph({**dict.fromkeys("abcd", 1), "top": (max, "a", "b", "c", "d")})
    assert rewrite_wide_reductions(graph, 2) == graph


def test_list_as_vertex_of_its_own():
    """A list that is a vertex of its own."""
    graph = convert_legacy_graph(
        {**{c: c.upper() for c in "abcde"}, "parts": list("abcde"), "top": (join_list, "parts")}
    )
    rewritten = rewrite_wide_reductions(graph, 2)
    assert dask.get(rewritten, ["top", "parts"]) == ("ABCDE", list("ABCDE"))
    assert "parts" not in rewritten["top"].dependencies


def test_reference_counts_as_one_part():
    """A reference to something else is one part."""
    graph = convert_legacy_graph({"parts": (list, "abcde"), "top": (join_list, "parts")})
    assert rewrite_wide_reductions(graph, 2) == graph
    assert dask.get(graph, "top") == "abcde"


def test_constants_and_nested_tasks_are_parts():
    graph = convert_legacy_graph({"a": "x", "top": (join, "a", "-", (letter, 3), "a")})
    assert dask.get(rewrite_wide_reductions(graph, 2), "top") == "x-dx"


def test_list_node_as_an_argument():
    graph = {c: Task(c, str.upper, c) for c in "abc"}
    graph["top"] = Task("top", join_list, List(*map(TaskRef, "abc")))
    assert dask.get(rewrite_wide_reductions(graph, 2), "top") == "ABC"


@pytest.mark.parametrize("key", ["top", ("top", 0), ("top", 1, 2), b"top", 7, ("x",)])
def test_root_keeps_key_others_get_new(key):
    """The root keeps its key and others get new ones."""
    graph = {f"leaf-{c}": Task(f"leaf-{c}", str.upper, c) for c in "abcde"}
    graph[key] = Task(key, join, *map(TaskRef, list(graph)))
    graph["last"] = Task("last", str.lower, TaskRef(key))
    rewritten = rewrite_wide_reductions(graph, 2)
    assert rewritten.keys() > graph.keys()
    assert all(node.key == name for name, node in rewritten.items())
    assert dask.get(rewritten, "last") == "abcde"
    if isinstance(key, tuple):
        assert {len(new) for new in rewritten.keys() - graph.keys()} == {len(key)}


def test_new_keys_avoid_those_of_the_graph():
    graph = {f"leaf-{c}": Task(f"leaf-{c}", str.upper, c) for c in "abc"}
    parts = [TaskRef(key) for key in graph]
    graph["top-merge-1-0"] = Task("top-merge-1-0", letter, 25)
    graph["top"] = Task("top", join, *parts, TaskRef("top-merge-1-0"))
    assert dask.get(rewrite_wide_reductions(graph, 2), "top") == "ABCz"


def test_trees_of_trees():
    leaves = letters(9)
    inner = [dask.delayed(join)(*leaves[i : i + 3], dask_key_name=f"inner-{i}") for i in (0, 3, 6)]
    result, graph = compute(dask.delayed(join)(*inner, dask_key_name="top"), 2)
    assert result == "abcdefghi"
    assert max(len(node.dependencies) for node in graph.values()) == 2


def test_merge_size_is_at_least_two():
    with pytest.raises(ValueError, match="2 or more"):
        rewrite_wide_reductions({}, 1)


def test_mark_survives_cloudpickle():
    """The mark survives cloudpickle and leaves the function alone."""

    def plain(*parts):
        return sum(parts)

    marked = daskvine_merge(plain)
    assert marked.__name__ == "plain"
    assert is_merge(marked)
    assert is_merge(cloudpickle.loads(cloudpickle.dumps(marked)))
    assert is_merge(cloudpickle.loads(cloudpickle.dumps(join)))
    assert not is_merge(plain)


def test_builtins_and_partial_functions_can_be_marked():
    assert daskvine_merge(max)(1, 2) == 2
    assert daskvine_merge(functools.partial(functools.reduce, operator.add))([1, 2, 3]) == 6


# ---- functions of others


def known(how, parts):
    """A vertex that merges a list by a function that needs no mark."""
    listed = List(*map(TaskRef, parts))
    if how == "histograms":
        histograms = pytest.importorskip("dask_histogram.core")
        return Task("top", toolz.pipe, listed, histograms.hist_safe_sum, histograms.identity)
    if how == "accumulate":
        return Task("top", pytest.importorskip("coffea.processor").accumulate, listed)
    return Task("top", sum, listed)


def numbers(count):
    return {f"leaf-{i}": Task(f"leaf-{i}", float, i) for i in range(count)}


@pytest.mark.parametrize("how", ["histograms", "accumulate", "sum"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_known_merges_become_trees_on_request(how, size):
    graph = numbers(30)
    graph["top"] = known(how, graph)
    assert match_reduction(graph["top"], {}).argument_style == how
    rewritten = rewrite_wide_reductions(graph, size)
    assert dask.get(rewritten, "top") == sum(range(30))
    assert max(len(node.dependencies) for node in rewritten.values()) == size


@pytest.mark.parametrize(
    ("how", "count", "widest"), [("histograms", 100, 8), ("accumulate", 100, 8), ("histograms", 8, 8), ("sum", 100, 100)]
)  # fmt: skip
def test_only_associative_functions_are_grouped(how, count, widest):
    """Only what may be grouped in any way does so by itself."""
    graph = numbers(count)
    graph["top"] = known(how, graph)
    rewritten = rewrite_wide_reductions(graph, None)
    assert dask.get(rewritten, "top") == sum(range(count))
    assert max(len(node.dependencies) for node in rewritten.values()) == widest


def test_marked_merges_need_reconstruct_option():
    """Marked merges are left alone unless that was asked for."""
    graph = numbers(100)
    graph["top"] = Task("top", join_list, List(*map(TaskRef, graph)))
    assert rewrite_wide_reductions(graph, None) == graph


@pytest.mark.parametrize(
    "node",
    [
        Task("top", sum, List(TaskRef("leaf-0"), TaskRef("leaf-1"), TaskRef("leaf-2")), 1.0),
        Task("top", sum, TaskRef("leaf-0")),
        Task("top", max, List(TaskRef("leaf-0"), TaskRef("leaf-1"), TaskRef("leaf-2"))),
        Task("top", toolz.pipe, List(TaskRef("leaf-0"), TaskRef("leaf-1"), TaskRef("leaf-2")), sum, float),
        Task("top", toolz.pipe, List(TaskRef("leaf-0"), TaskRef("leaf-1"), TaskRef("leaf-2")), max),
    ],
    ids=str,
)
def test_merge_lookalikes_are_left_alone(node):
    """What only looks like a known merge is none."""
    assert rewrite_wide_reductions({**numbers(3), "top": node}, 2)["top"] is node


# ---- inside of a vertex


@pytest.fixture
def one_by_one(monkeypatch):
    """Have every partial result count as large."""
    monkeypatch.setattr(task_functions, "MAX_BYTES_LOADED_AT_ONCE", 0)


def stored(*parts):
    return [LazyValue(functools.partial(values.dumps, part)) for part in parts]


def merged(how, function, *parts, **keywords):
    return task_functions.reduce_partial_results(function, how, keywords, *stored(*parts))


def test_small_parts_merge_at_once(monkeypatch):
    """Small parts are merged at once and large ones two at a time."""
    calls = []

    def merge(parts):
        calls.append(len(parts))
        return [n for part in parts for n in part]

    parts = [[n] for n in range(7)]
    assert merged("list", merge, *parts) == list(range(7))
    monkeypatch.setattr(task_functions, "MAX_BYTES_LOADED_AT_ONCE", 0)
    assert merged("list", merge, *parts) == list(range(7))
    assert calls == [7, *[2] * 6]


def test_large_parts_merge_as_memory_allows(monkeypatch):
    """As many large parts are merged at once as have room."""
    calls = []

    def merge(*parts):
        calls.append(len(parts))
        return np.concatenate(parts)

    parts = [np.full(1000, n, "f8") for n in range(10)]
    monkeypatch.setattr(task_functions, "MAX_BYTES_LOADED_AT_ONCE", 26_000)
    assert np.array_equal(merged("arguments", merge, *parts), np.concatenate(parts))
    assert calls == [4, 4, 4]


def test_a_single_part_goes_through_the_function(one_by_one):
    assert merged("list", tuple, "a") == ("a",)


def test_more_parts_than_open_files_merge(one_by_one, tmp_path):
    """More large parts are merged than files may be open."""
    path = tmp_path / "part"
    path.write_bytes(values.dumps(np.ones(10_000)))
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd"))) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, most))
    try:
        parts = [LazyValue(functools.partial(values.map_object, str(path))) for _ in range(highest + 1)]
        assert task_functions.reduce_partial_results(sum, "sum", {}, *parts).tolist() == [len(parts)] * 10_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most))


def test_keywords_go_to_every_merge(one_by_one):
    def merge(*parts, prefix):
        return prefix + "".join(parts)

    assert merged("arguments", merge, "a", "b", "c", prefix="-") == "--abc"


@pytest.mark.parametrize(
    "parts",
    [[1, 2, 3], [0.1, 0.2, 0.3], [np.arange(3), np.arange(3.0)], [np.int8(100), np.int8(27)]],
    ids=str,
)
def test_sums_are_those_of_sum(one_by_one, parts):
    mine, theirs = merged("sum", sum, *parts), sum(parts)
    assert type(mine) is type(theirs)
    assert np.array_equal(mine, theirs)


def test_unaddable_sums_fail_as_with_sum(one_by_one):
    """Sums of what cannot be added to zero fail as those of sum."""
    with pytest.raises(TypeError, match="unsupported operand"):
        merged("sum", sum, [1], [2])


def histograms(count):
    hist = pytest.importorskip("hist")
    rng = np.random.default_rng(1)
    made = []
    for number in range(count):
        one = hist.Hist.new.Reg(200, 0, 1, name="x").StrCat([], growth=True, name="c").Weight()
        one.fill(rng.random(1000), rng.choice(["a", "b", f"only {number}"], 1000), weight=rng.random(1000))
        made.append(one)
    return made


def same(one, other):
    return (
        type(one) is type(other) and one == other and one.view(True).tobytes() == other.view(True).tobytes()
    )


def test_histograms_are_added_as_sum_adds_them(one_by_one):
    parts = histograms(5)
    assert same(merged("sum", sum, *parts), sum(parts))
    hist_safe_sum = pytest.importorskip("dask_histogram.core").hist_safe_sum
    assert same(merged("histograms", hist_safe_sum, parts[0], (), *parts[1:]), sum(parts))
    assert merged("histograms", hist_safe_sum, (), ()) == 0


def test_histogram_with_own_addition_uses_it(one_by_one):
    """A histogram that adds in its own way is added so."""
    hist = pytest.importorskip("hist")

    class Counted(hist.Hist):
        def __add__(self, other):
            result = super().__add__(other)
            result.label = (self.label or 0) + 1
            return result

    parts = [Counted(hist.axis.Regular(3, 0, 1)) for _ in range(3)]
    assert merged("sum", sum, *parts).label == sum(parts).label == 3


def test_accumulators_are_those_of_coffea(one_by_one):
    accumulate = pytest.importorskip("coffea.processor").accumulate
    a, b, c, d = histograms(4)
    parts = [
        {"h": a, "cutflow": {"all": 1}, "names": {"x"}, "values": np.arange(3), "lists": [1]},
        None,
        {"h": b, "cutflow": {"all": 2, "some": 1.5}, "names": {"y"}, "values": np.ones(3), "lists": [2]},
        {"new": d, "h": c, "cutflow": {"other": 7}, "names": set(), "values": np.ones(3), "lists": []},
    ]
    mine, theirs = merged("accumulate", accumulate, *parts), accumulate(parts)
    assert list(mine) == list(theirs)
    assert same(mine["h"], theirs["h"])
    assert same(mine["new"], theirs["new"])
    assert mine["cutflow"] == theirs["cutflow"]
    assert mine["names"] == theirs["names"]
    assert mine["lists"] == theirs["lists"]
    assert np.array_equal(mine["values"], theirs["values"])
    assert merged("accumulate", accumulate, None, None) is None


def test_accumulators_use_histograms_own_addition(one_by_one):
    """Accumulators add in place to histograms that do so in their own way."""
    accumulate = pytest.importorskip("coffea.processor").accumulate
    hist = pytest.importorskip("hist")

    class Counted(hist.Hist):
        def __iadd__(self, other):
            self.label = (self.label or 0) + 1
            return super().__iadd__(other)

    parts = [{"h": Counted(hist.axis.Regular(3, 0, 1))} for _ in range(4)]
    assert merged("accumulate", accumulate, *parts)["h"].label == accumulate(parts)["h"].label == 3


def test_repeated_histogram_is_added_to_once(one_by_one):
    """A histogram that is there twice is added to once."""
    accumulate = pytest.importorskip("coffea.processor").accumulate
    parts = [{"one": h, "other": h} for h in histograms(3)]
    mine, theirs = merged("accumulate", accumulate, *parts), accumulate(parts)
    assert same(mine["one"], theirs["one"])
    assert same(mine["other"], theirs["other"])


def test_unfitting_accumulators_fail_as_with_coffea(one_by_one):
    """Accumulators that do not fit fail as those of coffea."""
    accumulate = pytest.importorskip("coffea.processor").accumulate
    with pytest.raises(ValueError, match="incompatible type"):
        merged("accumulate", accumulate, {"a": {}}, {"a": set()})
