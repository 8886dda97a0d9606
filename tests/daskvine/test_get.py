"""What comes in through the doors that dask has, and what goes out."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from operator import add, mul

import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from dask._task_spec import Alias, DataNode, List, Task, TaskRef
from dask.callbacks import Callback
from dask.diagnostics import ProgressBar

from daskvine import DaskVine
from tests.daskvine import sample_graphs as v
from tests.harness.processes import PATIENCE_S
from vinecore.errors import InsufficientResources
from vinecore.protocol import messages
from vinecore.protocol.discovery import registry

CALLS = {"task_mode": "function-calls"}


# ---- collections


def test_delayed(m, task_mode):
    x, y = dask.delayed(v.inc)(1), dask.delayed(v.inc)(10)
    assert dask.delayed(add)(x, y).compute(scheduler=m.get, task_mode=task_mode) == 13


def test_delayed_in_lists_and_keywords(m, task_mode):
    parts = [dask.delayed(v.inc)(n) for n in range(3)]
    nested = dask.delayed(lambda parts, *, more: (parts, more))(parts, more={"first": parts[0]})
    assert nested.compute(scheduler=m.get, task_mode=task_mode) == ([1, 2, 3], {"first": 1})


def test_delayed_methods_and_attributes(m):
    text = dask.delayed(str)("a,b")
    assert text.split(",")[1].upper().compute(scheduler=m.get, **CALLS) == "B"


def test_arrays(m, task_mode):
    x = da.arange(12, chunks=5).reshape(3, 4)
    options = {"scheduler": m.get, "task_mode": task_mode}
    assert (x + x.T.T).compute(**options).tolist() == (2 * np.arange(12).reshape(3, 4)).tolist()
    assert x.sum().compute(**options) == 66
    assert da.from_array(np.array(3.5)).compute(**options) == 3.5


def test_matrices(m):
    a = np.random.default_rng(1).random((40, 30))
    x = da.from_array(a, chunks=(10, 10))
    np.testing.assert_allclose((x @ x.T).compute(scheduler=m.get, **CALLS), a @ a.T)


def test_bags(m, task_mode):
    bag = db.from_sequence(range(10), npartitions=3)
    options = {"scheduler": m.get, "task_mode": task_mode}
    assert bag.map(v.inc).filter(lambda x: x % 2).compute(**options) == [1, 3, 5, 7, 9]
    assert bag.sum().compute(**options) == 45


def test_bags_are_grouped_by_tasks(m):
    grouped = db.from_sequence(range(10), npartitions=3).groupby(lambda x: x % 3)
    assert not any("partd" in str(key) for key in grouped.dask)
    found = {key: sorted(group) for key, group in grouped.compute(scheduler=m.get, **CALLS)}
    assert found == {0: [0, 3, 6, 9], 1: [1, 4, 7], 2: [2, 5, 8]}


def test_manager_leaves_chosen_shuffle_method():
    """A manager leaves the shuffle that the user chose."""
    with dask.config.set({"dataframe.shuffle.method": "disk"}), DaskVine(port=0):
        assert dask.config.get("dataframe.shuffle.method") == "disk"


def test_shuffle_method_lasts_with_last_manager():
    """The shuffle stays as long as a manager is open whichever ends first."""
    program = """
        import dask
        from daskvine import DaskVine
        method = lambda: dask.config.get("dataframe.shuffle.method", None)
        first, second = DaskVine(port=0), DaskVine(port=0)
        first.close()
        print(method())
        second.close()
        print(method())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.stdout.split() == ["tasks", "None"]


def test_shuffle_method_is_restored_at_end():
    """The shuffle is as before when the manager ends."""
    with dask.config.set({"dataframe.shuffle.method": None}):
        with DaskVine(port=0):
            assert dask.config.get("dataframe.shuffle.method") == "tasks"
        assert dask.config.get("dataframe.shuffle.method", None) is None


def test_dataframes(m, task_mode):
    frames = pytest.importorskip("dask.dataframe")
    frame = frames.from_dict({"x": range(20), "y": [n % 4 for n in range(20)]}, npartitions=4)
    options = {"scheduler": m.get, "task_mode": task_mode}
    assert frame.groupby("y").x.sum().compute(**options).to_dict() == {0: 40, 1: 45, 2: 50, 3: 55}
    assert frame.x.mean().compute(**options) == 9.5
    assert len(frame.shuffle("y").compute(**options)) == 20


@pytest.mark.filterwarnings("ignore:Passing more than 2 positional arguments to np:DeprecationWarning")
def test_dataframes_are_sorted_and_merged(m):
    frames = pytest.importorskip("dask.dataframe")
    left = frames.from_dict({"key": [n * 7 % 20 for n in range(20)], "x": range(20)}, npartitions=4)
    right = frames.from_dict({"key": range(20), "z": range(20)}, npartitions=3)
    options = {"scheduler": m.get, **CALLS}
    assert left.set_index("key").compute(**options).index.tolist() == list(range(20))
    merged = left.merge(right, on="key").compute(**options)
    assert (merged.key == merged.z).all()
    assert len(merged) == 20
    assert len(left.groupby("key").apply(len, meta=(None, int)).compute(**options)) == 20


def test_several_collections_at_once(m):
    x = da.ones((4, 4), chunks=2)
    one, two, (three,) = dask.compute(
        dask.delayed(v.inc)(1), x.sum(), [db.from_sequence([1, 2, 3]).sum()], scheduler=m.get, **CALLS
    )
    assert (one, two, three) == (2, 16, 6)


def test_what_collections_share_is_computed_once(m, tmp_path):
    shared = dask.delayed(v.write_down)(tmp_path / "log", "once", 1)
    assert dask.compute(shared + 1, shared + 2, scheduler=m.get, **CALLS) == (2, 3)
    assert (tmp_path / "log").read_text() == "once\n"


def test_persist(m, tmp_path):
    (x,) = dask.persist(dask.delayed(v.write_down)(tmp_path / "log", "once", 5), scheduler=m.get)
    assert (x + 1).compute(scheduler=m.get) == 6
    assert (x + 2).compute(scheduler=m.get, **CALLS) == 7
    assert (tmp_path / "log").read_text() == "once\n"
    array = da.ones((4, 4), chunks=2).persist(scheduler=m.get, **CALLS)
    assert array.sum().compute(scheduler=m.get) == 16
    assert db.from_sequence(range(4)).persist(scheduler=m).sum().compute(scheduler=m) == 6


# ---- ways to name the scheduler


def test_the_manager_is_a_scheduler(m):
    assert dask.delayed(v.inc)(1).compute(scheduler=m, **CALLS) == 2


def test_get_without_arguments_is_the_scheduler(m):
    assert dask.delayed(v.inc)(1).compute(scheduler=m.get(), **CALLS) == 2


@pytest.mark.parametrize("name", ["get", "__call__"])
def test_the_scheduler_may_be_configured(m, name):
    with dask.config.set(scheduler=getattr(m, name)):
        assert dask.delayed(v.process)().compute() != os.getpid()
        assert da.ones(4, chunks=2).sum().compute(task_mode="function-calls") == 4


# ---- raw graphs


def test_legacy_tuples(m, task_mode):
    graph = {
        "a": 1,
        ("b", 0): (v.inc, "a"),
        "c": (add, (mul, "a", 10), ("b", 0)),
        "d": (sum, ["a", "c", [("b", 0)][0]]),
    }
    assert m.get(graph, ["d", [["c"], "a"]], task_mode=task_mode) == (15, ((12,), 1))


def test_nodes(m, task_mode):
    graph = {
        "a": DataNode("a", 1),
        "b": Task("b", v.inc, TaskRef("a")),
        "c": Alias("c", "b"),
        "d": Task("d", sum, List(TaskRef("a"), TaskRef("c"))),
        "e": Task("e", v.add, x=TaskRef("d"), y=10),
    }
    assert m.get(graph, ["a", "b", "c", "d", "e"], task_mode=task_mode) == (1, 2, 2, 3, 13)


def test_legacy_tuples_and_nodes_together(m, task_mode):
    graph = {"a": Task("a", v.inc, 1), "b": (v.inc, "a"), "c": Task("c", add, TaskRef("a"), TaskRef("b"))}
    assert m.get(graph, "c", task_mode=task_mode) == 5


def test_data_may_be_asked_for(m):
    graph = {"a": [1, 2], "b": "a", "c": DataNode("c", (v.inc, 1)), "d": 5}
    a, b, c, d = m.get(graph, ["a", "b", "c", "d"], **CALLS)
    assert (a, b, d) == ([1, 2], [1, 2], 5)
    assert c == (v.inc, 1)


def test_aliases_of_aliases(m, tmp_path):
    graph = {
        "a": (v.write_down, tmp_path / "log", "once", 7),
        "b": "a",
        "c": "b",
        "d": (v.inc, "c"),
        "e": "d",
    }
    assert m.get(graph, ["e", "c", "b", "a"], **CALLS) == (8, 7, 7, 7)
    assert (tmp_path / "log").read_text() == "once\n"


def test_keys_of_all_kinds(m):
    graph = {
        1: (v.inc, 100),
        2.5: (v.inc, 1),
        ("t", ("u", 1)): (v.inc, 2.5),
        "sp ace/ü": (v.inc, 1),
        b"x": (v.inc, 7),
    }
    assert m.get(graph, [[1, ("t", ("u", 1))], "sp ace/ü", b"x"], **CALLS) == ((101, 103), 102, 8)


def test_no_keys(m):
    assert m.get({"a": (v.inc, 1)}, [], **CALLS) == ()
    assert m.get({}, [[], []]) == ((), ())


def test_the_same_key_twice(m, tmp_path):
    graph = {"a": (v.write_down, tmp_path / "log", "once", 7)}
    assert m.get(graph, ["a", ["a"], "a"], **CALLS) == (7, (7,), 7)
    assert (tmp_path / "log").read_text() == "once\n"


def test_a_tuple_is_a_key(m):
    assert m.get({("x", 0): (v.inc, 1)}, ("x", 0), **CALLS) == 2


def test_a_missing_key_is_an_error(m):
    with pytest.raises(KeyError, match="nowhere"):
        m.get({"a": (v.inc, 1)}, ["a", "nowhere"])
    with pytest.raises(KeyError, match="nowhere"):
        m.get({"a": Task("a", v.inc, TaskRef("nowhere"))}, "a")


@pytest.mark.parametrize(
    "graph", [{"a": (v.inc, "b"), "b": (v.inc, "a")}, {"a": (v.inc, "a")}, {"a": "b", "b": "a"}]
)
def test_a_cycle_is_an_error(m, graph):
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)cycle|itself"):
        m.get(graph, "a")


def test_only_what_is_needed_is_computed(m, tmp_path):
    graph = {"a": (v.inc, 1), "b": (v.write_down, tmp_path / "log", "no"), "c": (v.inc, "b")}
    assert m.get(graph, "a", **CALLS) == 2
    assert not (tmp_path / "log").exists()
    assert m.last_run.vertices == 1


def steps(*more):
    """A chain whose calls are short, and whose results are small and large."""
    return {("step", n): (v.grow, ("step", n - 1) if n else 100_000, n, *more) for n in range(300)}


def test_a_chain_with_small_and_large_results(m):
    for _ in range(2):  # the second time it is known how short they are
        assert m.get(steps(), ("step", 298), **CALLS) == 100_299


def test_exception_within_chain(m):
    """An exception in the middle of a chain."""
    m.get(steps(), ("step", 100), **CALLS)
    with pytest.raises(ArithmeticError, match="step 150"):
        m.get(steps("", 150), ("step", 298), **CALLS)
    assert m.get(steps(), ("step", 298), **CALLS) == 100_299


def test_process_death_within_chain(m, tmp_path):
    """A process that dies in the middle of a chain."""
    m.get(steps(), ("step", 100), **CALLS)
    assert m.get(steps(str(tmp_path / "once"), 150), ("step", 298), **CALLS) == 100_299
    assert (tmp_path / "once").read_text() == "died\n"


def test_a_chain_of_ten_thousand(m):
    graph = {0: (v.inc, -1), **{n: (v.inc, n - 1) for n in range(1, 10_000)}}
    assert m.get(graph, 9_999, **CALLS) == 9_999


def test_a_wide_graph(m):
    graph = {("x", n): (v.inc, n) for n in range(3_000)}
    assert m.get({**graph, "sum": (sum, list(graph))}, "sum", **CALLS) == 3_000 * 3_001 // 2


def test_vertex_may_return_task_like_value(m, task_mode):
    """A vertex may return what looks like a task."""
    graph = {"a": (lambda: (v.inc, 1),), "b": (len, "a")}
    assert m.get(graph, ["a", "b"], task_mode=task_mode) == ((v.inc, 1), 2)


# ---- what moves


def test_arguments_too_large_for_a_message(m, task_mode):
    large = bytes(range(256)) * 1000
    graph = {
        "a": Task("a", v.length, large),
        "b": Task("b", lambda data, n: (data[1], n), large + b"x", TaskRef("a")),
        "c": Task("c", v.length, data=large + b"yy"),
    }
    assert m.get(graph, ["a", "b", "c"], task_mode=task_mode) == (256_000, (1, 256_000), 256_002)


def test_data_too_large_for_a_message(m, task_mode):
    graph = {"data": DataNode("data", np.arange(100_000)), "a": (np.sum, "data"), "b": (len, "data")}
    total, length, data = m.get(graph, ["a", "b", "data"], task_mode=task_mode)
    assert (total, length, data[-1]) == (99_999 * 50_000, 100_000, 99_999)


@pytest.mark.parametrize("size", [10, 20_000, 2_500_000], ids=["80 B", "160 kB", "20 MB"])
def test_results_of_all_sizes_are_writable(m, task_mode, size):
    """Results of all sizes may be written to."""

    def change(array):
        array[0] += 1
        return float(array.sum())

    graph = {"a": (np.ones, size), "b": (change, "a"), "c": (change, "a")}
    array, *sums = m.get(graph, ["a", "b", "c"], task_mode=task_mode)
    assert sums == [size + 1, size + 1]  # neither consumer has seen what the other one did
    assert array.sum() == size
    array[:] = 0


def test_results_are_new_objects_for_each_consumer(m, task_mode):
    def change(items):
        items.append(1)
        return len(items)

    graph = {"a": (list, "xyz"), "b": (change, "a"), "c": (change, "a"), "d": (len, "a")}
    assert m.get(graph, ["b", "c", "d"], task_mode=task_mode) == (4, 4, 3)


def test_shared_objects_are_sent_and_loaded_once(m, listen_to, tmp_path):
    log = tmp_path / "log"

    class Schema:
        def __init__(self):
            self.content = os.urandom(20_000)

        def __reduce__(self):
            return load, (self.content,)

    def load(content):
        v.write_down(log, os.getpid())
        return content

    def use(content, n):
        return len(content) + n

    schema, wire = Schema(), listen_to(m)
    graph = {("x", n): Task(("x", n), use, schema, n) for n in range(50)}
    options = {**CALLS, "lib_resources": {"cores": 2, "slots": 2}}
    assert m.get(graph, list(graph), **options) == tuple(20_000 + n for n in range(50))
    runs = wire.of(messages.RunTask)
    assert len(runs) == 50
    assert max(len(run.payload) for run in runs) < 200
    sent = [
        name for name in [put.name for put in wire.sent if hasattr(put, "name")] if name.startswith("object-")
    ]
    assert len(sent) == len(set(sent))
    loaded = log.read_text().split()
    assert len(loaded) == len(set(loaded)) <= 2

    before = len(wire.sent)
    assert m.get(graph, list(graph), **options) == tuple(20_000 + n for n in range(50))
    assert {type(message) for message in wire.sent[before:]} <= {messages.RunTask, messages.RemoveObjects}
    assert len(log.read_text().split()) <= 2


def test_task_without_dask_does_not_load_it():
    """A task that does not need dask does not load it."""
    loaded = (eval, "'dask' in __import__('sys').modules")
    computed = (eval, "__import__('dask').delayed(int)('1').compute()")
    with DaskVine.local(cores=1) as m:
        assert m.get({"x": loaded}, "x", task_mode="tasks") is False
        assert m.get({"x": computed}, "x", task_mode="tasks") == 1


def test_the_second_compute_finds_the_library_running(m, listen_to):
    options = {**CALLS, "import_modules": ["json"]}
    first = m.get({"x": (v.parent,)}, "x", **options)
    wire = listen_to(m)
    assert m.get({"x": (v.parent, 1)}, "x", **options) == first
    assert wire.count(messages.Library) == wire.count(messages.LibraryReady) == 0


def test_another_library_takes_its_place(m):
    first = m.get({"x": (v.parent,)}, "x", **CALLS, lib_modules=["json"])
    second = m.get({"x": (v.parent,)}, "x", **CALLS, lib_modules=["json", "csv"])
    assert first != second
    assert m.get({"x": (v.inc, 1)}, "x") == 2  # and makes room for a task


# ---- functions and results of all kinds


def test_functions_that_cannot_be_imported(m, task_mode):
    offset = 10

    class Local:
        def __call__(self, x):
            return x + offset

    graph = {"a": (lambda x: x + offset, 1), "b": (Local(), "a"), "c": (v.inc, "b")}
    assert m.get(graph, "c", task_mode=task_mode) == 22


def test_classes_that_cannot_be_imported(m):
    class Point:
        def __init__(self, x):
            self.x = x

    graph = {"a": (Point, 3), "b": (lambda p: Point(p.x + 1), "a")}
    assert m.get(graph, "b", **CALLS).x == 4


def test_unpicklable_function_is_named(m, task_mode):
    """A function that cannot be pickled is named."""
    lock = threading.Lock()

    def holds_a_lock(x):
        return lock, x

    with pytest.raises(TypeError, match="lock") as caught:
        m.get({"wrong": (holds_a_lock, 1)}, "wrong", task_mode=task_mode)
    notes = "\n".join(caught.value.__notes__)
    assert "holds_a_lock" in notes
    assert "vertex 'wrong'" in notes
    assert m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode) == 2


def test_unpicklable_argument_is_named(m, task_mode):
    """An argument that cannot be pickled is named."""
    with pytest.raises(TypeError, match="lock") as caught:
        m.get({"wrong": Task("wrong", v.inc, threading.Lock())}, "wrong", task_mode=task_mode)
    assert "vertex 'wrong'" in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize(
    "make", [threading.Lock, lambda: (n for n in range(3)), sys._getframe], ids=["lock", "generator", "frame"]
)
def test_unpicklable_result_is_named(m, task_mode, make):
    """A result that cannot be pickled is named."""
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        m.get({"wrong": (make,)}, "wrong", task_mode=task_mode)
    notes = "\n".join(caught.value.__notes__)
    assert "what it returned cannot be sent" in notes
    assert "vertex 'wrong'" in notes


def test_unpicklable_part_of_result_is_named(m, task_mode):
    """The part of a result that cannot be pickled is named with its type."""

    def make():
        return {"jets": [1, threading.Lock()]}

    with pytest.raises(TypeError, match="cannot pickle") as caught:
        m.get({"wrong": (make,)}, "wrong", task_mode=task_mode)
    assert (
        "['jets'][1] is a _thread.lock: take what is needed of it as plain data" in caught.value.__notes__[0]
    )


def test_unpicklable_wrapper_output_is_named(m, task_mode):
    """What a wrapper returns beside the result is named where it cannot be pickled."""

    def wrapper(_vertex, _arguments):
        return threading.Lock(), 1

    with pytest.raises(TypeError, match="cannot pickle") as caught:
        m.get({"x": (v.inc, 1)}, "x", task_mode=task_mode, wrapper=wrapper)
    assert "what wrapper returned as extra cannot be sent: a _thread.lock" in "\n".join(
        caught.value.__notes__
    )


def test_generator_is_consumed_where_made(m):
    """A generator is consumed where it is made."""
    assert m.get({"a": (lambda: list(n for n in range(3)),)}, "a", **CALLS) == [0, 1, 2]  # noqa: C400


@pytest.mark.parametrize(
    "value", [None, (), b"", "", 0, False, ..., NotImplemented, float("inf"), {1: {2}}, 10**40]
)
def test_values_come_back_as_they_are(m, value):
    graph = {"a": Task("a", lambda x: x, value), "b": Task("b", lambda x: [x], TaskRef("a"))}
    assert m.get(graph, ["a", "b"], **CALLS) == (value, [value])


def test_what_is_printed_does_not_disturb(m, task_mode):
    def loud():
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr)
        os.write(1, b"z" * 100_000)
        return "done"

    assert m.get({"a": (loud,)}, "a", task_mode=task_mode) == "done"


def test_coroutine_functions(m, task_mode):
    async def later(x):
        await asyncio.sleep(0)
        return x + 1

    assert m.get({"a": (later, 1), "b": (v.inc, "a")}, "b", task_mode=task_mode) == 3


# ---- what surrounds a compute


class Counts(Callback):
    def __init__(self):
        self.calls = []

    def _start(self, dsk):
        self.calls.append(("start", len(dsk)))

    def _start_state(self, dsk, state):
        self.calls.append(("start state", len(state["ready"]) + len(state["waiting"])))

    def _pretask(self, key, dsk, state):
        self.calls.append(("pretask", key))

    def _posttask(self, key, value, dsk, state, worker_id):
        self.calls.append(("posttask", key))

    def _finish(self, dsk, state, failed):
        self.calls.append(("finish", failed))

    def of(self, name):
        return [what for kind, what in self.calls if kind == name]


@pytest.mark.parametrize("how", ["with", "register"])
def test_callbacks_are_called(m, task_mode, how):
    counts = Counts()
    graph = {"a": (v.inc, 1), "b": (v.inc, "a"), "c": (add, "a", "b")}
    counts.register() if how == "register" else counts.__enter__()
    try:
        assert m.get(graph, "c", task_mode=task_mode) == 5
    finally:
        counts.unregister() if how == "register" else counts.__exit__(None, None, None)
    assert counts.calls[:2] == [("start", 3), ("start state", 3)]
    assert sorted(counts.of("pretask")) == sorted(counts.of("posttask")) == ["a", "b", "c"]
    assert counts.of("posttask")[-1] == "c"
    assert counts.calls[-1] == ("finish", False)


def test_callbacks_hear_of_a_failure(m):
    with Counts() as counts, pytest.raises(ZeroDivisionError):
        m.get({"a": (lambda: 1 / 0,)}, "a")
    assert counts.calls[-1] == ("finish", True)


def test_the_progress_bar_of_dask(m, capsys):
    with ProgressBar():
        dask.delayed(v.inc)(1).compute(scheduler=m.get, **CALLS)
    assert "100% Completed" in capsys.readouterr().out


def test_a_compute_inside_a_vertex_runs_there(m, task_mode):
    def outer():
        inner = [dask.delayed(lambda n: (os.getpid(), threading.get_ident(), n))(n) for n in range(3)]
        return os.getpid(), threading.get_ident(), dask.compute(*inner), da.ones(4, chunks=2).sum().compute()

    pid, thread, inner, total = m.get({"a": (outer,)}, "a", task_mode=task_mode)
    assert inner == tuple((pid, thread, n) for n in range(3))
    assert total == 4
    with dask.config.set(scheduler=m.get):
        assert dask.delayed(outer)().compute(task_mode=task_mode)[3] == 4


def test_from_several_threads_at_once(m, task_mode):
    def compute(number):
        graph = {("x", n): (v.inc, 100 * number + n) for n in range(3)}
        return m.get({**graph, "sum": (sum, list(graph))}, "sum", task_mode=task_mode, progress_disable=True)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(compute, range(8)))
    assert found == [300 * number + 6 for number in range(8)]


def test_get_works_in_running_loop(m):
    """In a running loop as in a notebook."""

    async def cell():
        return dask.delayed(v.inc)(1).compute(scheduler=m.get, **CALLS)

    assert asyncio.run(cell()) == 2


def test_beside_a_running_loop(m):
    async def cell():
        computing = [asyncio.to_thread(m.get, {"a": (v.inc, n)}, "a", **CALLS) for n in range(4)]
        return await asyncio.gather(*computing)

    assert asyncio.run(cell()) == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_cannot_use_manager(m):
    """A forked child is told that it cannot use the manager."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            m.get({"a": (v.inc, 1)}, "a")
        except RuntimeError as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            m.close()  # as atexit would; the parent's workers stay
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said.startswith("RuntimeError: this manager belongs to the process that made it")
    assert m.get({"a": (v.inc, 1)}, "a") == 2


def compute_elsewhere(number):
    with DaskVine.local(cores=1) as m:
        return m.get({"a": (v.inc, number)}, "a", **CALLS)


def test_in_a_spawned_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(compute_elsewhere, (1,)) == 2


def test_a_manager_cannot_be_pickled(m):
    with pytest.raises(TypeError, match="DaskVine cannot be pickled"):
        pickle.dumps(m)


def test_local_manager_is_announced_on_request_only(tmp_path, monkeypatch):
    """A vine of this machine is announced to nobody unless that is wanted."""
    monkeypatch.setenv("VINE_REGISTRY", str(tmp_path / "managers"))
    with DaskVine.local(cores=1, name="mine"):
        assert not (tmp_path / "managers").exists()
    with DaskVine.local(cores=1, name="mine", registry=True):
        assert len(registry.read(str(tmp_path / "managers"))) == 1


def test_a_closed_manager_says_so():
    m = DaskVine.local(cores=1)
    m.close()
    with pytest.raises(RuntimeError, match="this manager is closed"):
        m.get({"a": (v.inc, 1)}, "a")


def test_classes_and_functions_of_a_script(run_script):
    done = run_script(
        """
        from dataclasses import dataclass
        import dask
        from daskvine import DaskVine

        @dataclass
        class Event:
            pt: float

        def boost(event):
            return Event(event.pt * FACTOR)

        FACTOR = 2

        if __name__ == "__main__":
            with DaskVine.local(cores=1) as m:
                x = dask.delayed(boost)(dask.delayed(Event)(1.5))
                first = x.compute(scheduler=m.get, task_mode="function-calls")
                assert isinstance(first, Event), first
                print(first, x.compute(scheduler=m.get))
        """,
    )
    assert done.stdout == "Event(pt=3.0) Event(pt=3.0)\n", done.stderr
    assert done.returncode == 0


def test_a_script_without_the_main_idiom(run_script):
    done = run_script(
        """
        from daskvine import DaskVine
        m = DaskVine.local(cores=1)
        print(m.get({"a": (lambda: 5,)}, "a", task_mode="function-calls"))
        """,
    )
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr


# ---- the stack of high energy physics


@pytest.fixture(scope="module")
def missing_momentum(tmp_path_factory):
    """A histogram of a small data set, as in the talks."""
    pytest.importorskip(
        "dask_awkward", reason="needs coffea with dask-awkward, and a dask that these work with"
    )
    hda = pytest.importorskip("hist.dask", reason="needs hist with dask")
    nanoevents = pytest.importorskip("coffea.nanoevents", reason="needs coffea")
    from daskvine.demo.nanoaod import write_dataset

    files = write_dataset(tmp_path_factory.mktemp("nanoaod"), files=2, events=500, seed=7)
    events = nanoevents.NanoEventsFactory.from_root(
        {str(path): "Events" for path in files}, schemaclass=nanoevents.NanoAODSchema, mode="dask"
    ).events()
    return hda.Hist.new.Reg(100, 0, 200, name="met", label="$E_T^{miss}$ [GeV]").Double().fill(events.MET.pt)


HEP_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)


@HEP_WARNINGS
def test_a_histogram(m, missing_momentum, task_mode):
    import dask_awkward as dak

    expected = missing_momentum.compute(scheduler="synchronous")
    found = missing_momentum.compute(scheduler=m.get, task_mode=task_mode)
    assert found == expected
    assert found.sum() > 0
    assert list(dak.necessary_columns(missing_momentum).values()) == [frozenset({"MET_pt"})]


@HEP_WARNINGS
def test_code_of_talks_on_small_machine(m, missing_momentum):
    """The code of the talks on a machine that is too small."""
    with pytest.raises(InsufficientResources, match="at most 2 cores"):
        missing_momentum.compute(
            scheduler=m.get,
            lazy_transfers=True,
            task_mode="function-calls",
            lib_resources={"cores": 12, "slots": 12},
        )


@HEP_WARNINGS
def test_the_code_of_the_talks(missing_momentum):
    import scipy

    expected = missing_momentum.compute(scheduler="synchronous")
    with DaskVine.local(cores=12) as m:
        found = missing_momentum.compute(
            scheduler=m.get,
            lazy_transfers=True,
            task_mode="function-calls",
            lib_resources={"cores": 12, "slots": 12},
        )
        assert found == expected
        found = missing_momentum.compute(
            scheduler=m.get,
            peer_transfers=True,
            resources_mode="min waste",
            task_mode="function-calls",
            lib_resources={"cores": 12, "slots": 12},
            import_modules=[np, scipy],
        )
        assert found == expected
