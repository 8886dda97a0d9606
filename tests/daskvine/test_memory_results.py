"""Large results between short calls: they stay in the slot, and nobody can tell by what is computed."""

from __future__ import annotations

import sys

import pytest

from daskvine import DaskVine
from tests.daskvine import sample_graphs as v
from tests.harness.processes import scheduler_state, start_local_cluster

CALLS = {"task_mode": "function-calls", "progress_disable": True}
LENGTH = 1_000_000  # 8 MB

# what the machine does meanwhile shall not decide what is short
ALL_IS_SHORT = """
import math
from vineworker import cli
from vineworker.state import memory_results, records
memory_results.MAX_READERS_S = memory_results.MAX_GROUP_S = math.inf
records.SHORT_CALL_S = 0.0  # nothing is written to a slot ahead of need
cli.main()
"""


@pytest.fixture(scope="module")
def m(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        start_local_cluster(tmp_path_factory.mktemp("local_cluster"), monkeypatch) as local_cluster,
    ):
        m = local_cluster.start_manager(DaskVine)
        local_cluster.start_workers(m, 1, command=[sys.executable, "-c", ALL_IS_SHORT])
        yield m


def twice(n):
    """The sum of twice an array of these tests."""
    return 2 * sum(range(n, n + LENGTH))


def diamonds(count, change=v.from_memory):
    """Arrays of which each is read by two, who make others, which are read by one."""
    graph = {}
    for n in range(count):
        graph |= {
            ("array", n): (v.count_up, LENGTH, n),
            ("first", n): (change, ("array", n)),
            ("second", n): (v.twice, ("array", n)),
            ("end", n): (v.sums, ("first", n), ("second", n)),
        }
    return graph, [("end", n) for n in range(count)]


def learned(m, **shape):
    """What is computed when it is known how long calls take and how large their results are."""
    graph, keys = diamonds(6, **shape)
    m.get(graph, keys, **CALLS)
    return list(m.get(graph, keys, **CALLS))


def test_short_calls_read_results_from_memory(m):
    """What short calls read of each other is read from memory."""
    assert learned(m) == [(LENGTH, twice(n)) for n in range(6)]


def test_writing_to_input_changes_own_copy_only(m):
    """Who writes to what it reads writes to its own."""
    assert learned(m, change=v.overwrite) == [(0, twice(n)) for n in range(6)]


def test_requested_result_reaches_manager_despite_readers(m):
    """A result that is asked for comes to the manager though others read it."""
    graph, keys = diamonds(4)
    m.get(graph, keys, **CALLS)
    *ends, array = m.get(graph, [*keys, ("array", 1)], **CALLS)
    assert 2 * array.sum() == twice(1)
    assert [end[1] for end in ends] == [twice(n) for n in range(4)]


def test_held_result_is_remade_after_death(m, tmp_path):
    """What a slot held is made again when its process dies."""
    flag = tmp_path / "has died"
    graph, keys = diamonds(6)
    m.get(graph, keys, **CALLS)
    graph["second", 3] = (v.die_once, ("array", 3), str(flag))
    ends = m.get(graph, keys, **CALLS)
    assert flag.exists()
    assert [end[1] for end in ends] == [twice(n) for n in range(6)]


def test_error_in_group_belongs_to_vertex(m):
    """An error among them is that of its vertex."""
    graph, keys = diamonds(6)
    m.get(graph, keys, **CALLS)
    graph["second", 3] = (v.refuse, ("array", 3))
    with pytest.raises(ZeroDivisionError) as caught:
        m.get(graph, keys, **CALLS)
    assert any("('second', 3)" in note for note in caught.value.__notes__)
    assert [end[1] for end in m.get(*diamonds(2), **CALLS)] == [twice(0), twice(1)]


def test_groups_leave_nothing_on_worker(m):
    """Nothing of them is left with the worker."""
    learned(m)
    (worker,) = m.summarize_workers()
    assert worker["tasks"] == 0
    left = scheduler_state(
        m, lambda scheduler: [name for name in scheduler.state.files if name.startswith("result-")]
    )
    assert left == []
