"""What was computed before is found, and nothing else is taken for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import dask
import dask.array as da
import pytest

from daskvine import DaskVine
from tests.daskvine import sample_graphs as v
from tests.harness.processes import PATIENCE_S, scheduler_state, start_local_cluster, wait_until


@pytest.fixture
def m():
    """A manager whose workers hold nothing yet."""
    with DaskVine.local(workers=1, cores=2, memory_mb=2000, disk_mb=2000) as m:
        yield m


def test_the_same_again_runs_nothing(m, task_mode):
    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "end": (v.inc, "b")}
    for executed in (3, 0, 0):
        assert m.get(graph, "end", task_mode=task_mode, reuse=True) == 4
        assert (m.last_run.executed, m.last_run.vertices) == (executed, 3)


def test_only_changed_vertices_and_readers_run(m, task_mode):
    """Only what changed and what depends on it runs."""
    options = {"task_mode": task_mode, "reuse": True}
    graph = {
        "a": (v.inc, 1),
        "b": (v.inc, 10),
        "ab": (sum, ["a", "b"]),
        "c": (v.inc, 100),
        "all": (sum, ["ab", "c"]),
    }
    assert m.get(graph, "all", **options) == 114
    graph["c"] = (v.inc, 200)
    assert m.get(graph, "all", **options) == 214
    assert m.last_run.executed == 2


def test_without_reuse_all_vertices_run(m):
    """Without the option everything runs and nothing is kept."""
    graph = {"a": (v.inc, 1), "end": (v.inc, "a")}
    for _ in range(2):
        assert m.get(graph, "end", task_mode="function-calls") == 3
        assert m.last_run.executed == 2
    assert not scheduler_state(m, lambda scheduler: scheduler.state.evictable)


def test_keys_do_not_matter(m):
    options = {"task_mode": "function-calls", "reuse": True}
    for _ in range(2):
        increased = dask.delayed(v.inc)(1)  # with another random key each time
        assert dask.delayed(v.inc)(increased).compute(scheduler=m.get, **options) == 3
    assert m.last_run.executed == 0


def test_collections(m):
    x = da.ones((40, 40), chunks=10)
    for _ in range(2):
        assert ((x + x.T) @ x).sum().compute(
            scheduler=m.get, task_mode="function-calls", reuse=True
        ) == 2 * 40**3
    assert m.last_run.executed == 0


def test_equal_vertices_of_graph_stay_different(m):
    """Vertices of one graph that look the same stay different."""
    graph = {"a": (v.inc, 1), "b": (v.inc, 1), "c": (v.inc, 2)}
    for executed in (3, 0):
        assert m.get(graph, ["a", "b", "c"], task_mode="function-calls", reuse=True) == (2, 2, 3)
        assert (m.last_run.vertices, m.last_run.executed) == (3, executed)


def test_only_deterministic_vertices_are_found(m):
    """Only vertices that make the same each time are found."""
    graph = {"a": (v.inc, 1), "random": (v.inc, 2), "end": (sum, ["a", "random"])}
    for _ in range(2):
        assert m.get(graph, "end", task_mode="function-calls", reuse=lambda key: key != "random") == 5
    assert m.last_run.executed == 2


def test_unneeded_results_are_not_remade(m):
    """The inputs of what is found need not be there."""
    options = {"task_mode": "function-calls", "reuse": True}
    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "c": (v.inc, "b")}
    assert m.get(graph, "b", **options) == 3
    scheduler_state(
        m, lambda scheduler: scheduler.files.evict(next(f for f in scheduler.state.evictable if f.size))
    )  # that of "a"
    assert m.get(graph, "c", **options) == 4
    assert m.last_run.executed == 1


def test_results_lost_with_worker_are_remade(m):
    """What is lost with its worker is made again."""
    options = {"task_mode": "function-calls", "reuse": True}
    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "c": (v.inc, "b")}
    assert m.get(graph, "b", **options) == 3
    m.factory.processes[0].kill()
    wait_until(
        lambda: not scheduler_state(m, lambda scheduler: scheduler.state.evictable), "the worker to be gone"
    )
    assert m.get(graph, "c", **options) == 4
    assert m.last_run.executed == 3


def test_variables_of_the_environment_count(m):
    graph = {"x": (v.variable, "WORD")}
    found = [
        m.get(graph, "x", task_mode="function-calls", env_vars={"WORD": word}, reuse=True)
        for word in ("one", "two", "one")
    ]
    assert found == ["one", "two", "one"]
    assert m.last_run.executed == 0


def test_two_computations_at_once_take_turns(m):
    gate = threading.Barrier(2)

    def compute(number):
        gate.wait(PATIENCE_S)
        graph = {"a": (v.inc, 1), ("b", number): (v.inc, "a"), "end": (sum, [("b", number), number])}
        return m.get(graph, "end", task_mode="function-calls", reuse=True)

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(compute, (10, 20))) == [13, 23]


def test_results_before_error_are_found(m):
    """After an error what was made is found."""
    options = {"task_mode": "function-calls", "reuse": True}
    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "end": (v.divide, 0, "b")}
    with pytest.raises(TypeError):
        m.get(graph, "end", **options)
    graph["end"] = (v.inc, "b")
    assert m.get(graph, "end", **options) == 4
    assert m.last_run.executed == 1


def test_later_manager_finds_kept_results(tmp_path, task_mode):
    """A later manager finds what workers have kept."""
    graph = {"a": (v.inc, 1), "large": (v.make_bytes, 300_000, "a"), "end": (v.length, "large")}
    options = {"task_mode": task_mode, "reuse": True}
    for executed in (3, 0):
        with DaskVine.local(
            workers=2, cores=1, memory_mb=1000, disk_mb=1000, workspace=tmp_path / "kept"
        ) as m:
            assert m.get(graph, "end", **options) == 300_000
            assert m.last_run.executed == executed
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"secret", "vine-kept"}


def test_later_manager_misses_unkept_results(tmp_path):
    """A later manager does not find what was not to be kept."""
    graph = {"a": (v.inc, 1), "end": (v.inc, "a")}
    for _ in range(2):
        with DaskVine.local(cores=1, memory_mb=1000, disk_mb=1000) as m:
            assert m.get(graph, "end", task_mode="function-calls", reuse=True) == 3
            assert m.last_run.executed == 2


def test_resumable_manager_reruns_other_graph(tmp_path, caplog):
    """A manager that can be resumed runs another graph anew unless told otherwise."""
    graph = {"a": (v.inc, 1), "end": (v.inc, "a")}
    options = {"run_info_path": tmp_path / "info", "resume": True}
    with DaskVine.local(cores=1, memory_mb=1000, disk_mb=1000, **options) as m:
        for executed, more in ((2, {}), (2, {}), (2, {"reuse": True}), (0, {"reuse": True}), (2, {"reuse": False})):  # fmt: skip
            assert m.get(graph, "end", task_mode="function-calls", **more) == 3
            assert m.last_run.executed == executed
    assert "resume=True will find no results of these workers" in caplog.text


def test_an_edited_query_runs_alone(tmp_path):
    """Eight queries on the same events; one of them is changed, as in a notebook, where everything is defined again, or in a new program."""
    pytest.importorskip(
        "coffea.nanoevents", reason="the queries need coffea with dask-awkward", exc_type=ImportError
    )
    pytest.importorskip(
        "dask_awkward", reason="the queries need coffea with dask-awkward", exc_type=ImportError
    )
    from daskvine.demo.nanoaod import write_dataset
    from daskvine.demo.queries import QUERIES, open_events

    files = write_dataset(tmp_path, files=2, events=500)

    def compute(m, changed):
        events = open_events(files, steps_per_file=2)
        counts = {}
        for name, query in QUERIES.items():
            lazy = changed(events) if changed is not None and name == "Q2" else query.histograms(events)
            dask.compute(*lazy, scheduler=m.get, task_mode="function-calls", reuse=True)
            counts[name] = m.last_run.executed
        return counts

    import dask_awkward as ak
    import hist.dask

    def changed(events):
        return (hist.dask.Hist.new.Reg(100, 15, 215, name="x").Double().fill(ak.flatten(events.Jet.pt) + 1),)

    def manager():
        return DaskVine.local(workers=1, cores=2, memory_mb=2000, disk_mb=2000, workspace=tmp_path / "kept")

    with manager() as m:
        first = compute(m, None)
        assert all(first.values())
        assert set(compute(m, None).values()) == {0}
    with manager() as m:
        after = compute(m, changed)
        assert after.pop("Q2") > 0
        assert set(after.values()) == {0}
        assert set(compute(m, changed).values()) == {0}


def test_lookup_does_not_count_as_done(tmp_path, monkeypatch):
    """A graph that looks for earlier results does not count as done."""
    with start_local_cluster(tmp_path, monkeypatch) as local_cluster:
        m = local_cluster.start_manager(DaskVine)
        graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "end": (v.inc, "b")}
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(m.get, graph, "end", task_mode="tasks", reuse=True, progress_disable=True)
            laid_down = lambda scheduler: [run.deferred for run in scheduler.state.graphs.values()]  # noqa: E731
            wait_until(lambda: 3 in scheduler_state(m, laid_down), "the graph to be laid down")
            snapshot = m.last_run._take_snapshot()
            local_cluster.start_worker(m)
            assert result.result(240) == 4
        assert (snapshot.done, snapshot.looking) == (0, True)
        assert str(snapshot).startswith("looking for results of earlier computations, 0 workers")
        assert (m.last_run.done, m.last_run.executed) == (3, 3)
