"""Programs that were written for earlier TaskVines run unchanged, and are told today's spellings."""

from __future__ import annotations

from operator import add, neg

import dask
import pytest

from daskvine import DaskVine, older_spellings
from daskvine.options import Options


@pytest.mark.parametrize(
    ("given", "option", "value"),
    [
        ({"prune_files": True}, "prune_depth", 1),
        ({"prune_files": False}, "prune_depth", 0),
        ({"lazy_transfer": False}, "worker_transfers", False),
        ({"worker_scheduler": "files"}, "scheduling_mode", "files"),
        ({"scheduling_mode": "depth-first"}, "task_priority_mode", "depth-first"),
        ({"scheduling_mode": "breadth_first"}, "task_priority_mode", "breadth-first"),
        ({"scheduling_mode": "LIFO"}, "task_priority_mode", "LIFO"),
        ({"scheduling_mode": "LIFO"}, "scheduling_mode", "files"),
        (
            {"task_priority_mode": "largest-storage-footprint-first"},
            "task_priority_mode",
            "largest-input-first",
        ),
        ({"merge_chains": True}, "task_mode", "tasks"),
        ({"low_memory_mode": True}, "prune_depth", 1),
    ],
)
def test_one_warning_names_todays_spelling(given, option, value):
    """An older spelling has its meaning, and one warning that names the new one."""
    with pytest.warns(FutureWarning, match="older spelling") as caught:
        options = Options.parse(given)
    assert len(caught) == 1
    assert getattr(options, option) == value
    (name,) = given
    row = older_spellings.OLDER_SPELLINGS[name]
    assert row.option in str(caught[0].message)


def test_todays_spelling_holds():
    """Where both are given, the spelling of today holds, and the warning says so."""
    with pytest.warns(FutureWarning, match="given, too, and holds"):
        assert Options.parse({"prune_files": True, "prune_depth": 3}).prune_depth == 3


def test_wrong_value_names_the_option():
    """A wrong value of an older spelling is refused like one of today's."""
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="scheduling_mode"):
        Options.parse({"worker_scheduler": "nearest"})


def read_variable(_vertex):
    import os

    return os.environ.get("PREPARED")


def test_init_command_runs_before_library(m):
    """What ``init_command`` exports is set in the vertices of the library."""
    with pytest.warns(FutureWarning, match="lib_command"):
        got = m.get(
            {"a": (read_variable, 1)},
            "a",
            task_mode="function-calls",
            init_command="export PREPARED=yes; cd .",
        )
    assert got == "yes"


def test_manager_itself_is_a_scheduler(m, task_mode):
    """A program gives the manager where dask takes a scheduler."""
    total = dask.delayed(sum)([dask.delayed(neg)(n) for n in range(5)])
    assert total.compute(scheduler=m, task_mode=task_mode) == total.compute(scheduler="sync")
    with dask.config.set(scheduler=m):
        assert total.compute(task_mode=task_mode) == -10


def test_checkpoint_function_asks_for_children(m):
    """``checkpoint_fn`` may ask for the children of a vertex."""
    seen = {}

    def checkpoint(dag, key):
        seen[key] = dag.get_children(key), dag.get_parents(key), dag.has_result(key)
        return len(dag.get_children(key)) > 1

    graph = {"a": (neg, 1), "b": (neg, "a"), "c": (add, "a", "b"), "d": (neg, "c")}
    assert m.get(graph, "d", checkpoint_fn=checkpoint) == dask.get(graph, "d")
    assert seen["c"] == ({"a", "b"}, {"d"}, False)


class GroupedVine(DaskVine):
    """A manager whose vertices all have one category."""

    def category_name(self, node):
        assert node.func is neg
        return "grouped"


def test_subclass_names_categories(tmp_path):
    """A subclass chooses the category of a vertex."""
    names = []
    with GroupedVine.local(workers=1, cores=1) as m:
        m.get(
            {"a": (neg, 1)},
            "a",
            env_vars={"X": lambda _manager, task: names.append(task.category) or "1"},
        )
    assert names == ["grouped"]


def test_first_completion_and_summary(m, capsys):
    """The time of the first result lies within the computation; the summary counts its vertices."""
    graph = {"a": (neg, 1), "b": (neg, "a"), "c": (neg, "b")}
    m.get(graph, "c")
    run = m.last_run
    assert run.started_at <= m.when_first_task_completed <= run.ended_at
    m.workflow_summary()
    counts = dict(
        line.rsplit(None, 1)
        for line in capsys.readouterr().out.splitlines()
        if "MB" not in line and " s" not in line
    )
    assert counts["vertices"] == counts["computed"] == "3"


def test_summary_before_any_computation(tmp_path, capsys):
    """Before the first computation there is nothing to say."""
    with DaskVine(port=0) as m:
        m.workflow_summary()
        assert m.when_first_task_completed is None
    assert "nothing has been computed" in capsys.readouterr().out
