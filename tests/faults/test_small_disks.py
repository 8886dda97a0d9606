"""Workers with little disk: nothing is kept that could be had again, nothing is asked for that cannot be, and nobody dies of it."""

from __future__ import annotations

import os
import threading

import pytest

from daskvine import DaskVine
from tests import chores
from tests.support import until
from vinecore import PythonTask, Task
from vinecore.errors import InsufficientResources

MB = 1 << 20


def one_result(m):
    task = m.wait(60)
    assert task is not None
    return task


class Gauge:
    """The most disk that was ever used below a folder, by looking again and again."""

    def __init__(self, folder):
        self._folder, self.peak = folder, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._over.wait(0.005):
            self.peak = max(self.peak, self.used())

    def used(self):
        total = 0
        for folder, _folders, names in os.walk(self._folder):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:
                    pass
        return total

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def test_a_wide_graph_needs_little_disk(yard):
    """200 results of 5 MB, added up in pairs, on a disk of 100 MB."""
    m = yard.manager(DaskVine)
    yard.workers(m, 1, "--disk", "100")
    roots = [("root", n) for n in range(200)]
    graph = {root: (chores.make_block, root[1], 5 * MB) for root in roots}
    level, layer = 0, roots
    while len(layer) > 1:
        level += 1
        pairs = [layer[n : n + 2] for n in range(0, len(layer), 2)]
        layer = [("sum", level, n) for n in range(len(pairs))]
        graph.update({key: (chores.add_blocks, pair) for key, pair in zip(layer, pairs, strict=True)})
    graph["end"] = (chores.first_of_block, layer[0])
    with Gauge(yard.workspace) as gauge:
        assert m.get(graph, "end", task_mode="function-calls", progress_disable=True) == sum(range(200)) % 256
    assert m.last_run.remade == 0
    assert gauge.peak <= 100 * MB
    until(lambda: gauge.used() < MB, "everything to be removed")


def test_inputs_that_fit_on_no_disk_are_refused_with_numbers():
    with DaskVine.local(workers=1, cores=1, disk_mb=30) as m:
        m.wait_for_workers(1, 60)
        task = Task("cat a b > /dev/null")
        task.add_input(m.declare_buffer(os.urandom(20 * MB)), "a")
        task.add_input(m.declare_buffer(os.urandom(20 * MB)), "b")
        m.submit(task)
        assert one_result(m) is task
        assert task.result == "resource exhaustion"
        assert "needs 40 MB of inputs on one worker; the largest worker has 30 MB of disk" in str(
            task.error()
        )
        graph = dict.fromkeys(("a", "b"), (chores.make_bytes, 20 * MB))
        graph["end"] = (chores.length, ["a", "b"])
        with pytest.raises(InsufficientResources, match="end needs 41 MB of inputs on one worker"):
            m.get(graph, "end", task_mode="function-calls", progress_disable=True)
        assert m.get({"x": (chores.add, 1, 2)}, "x", task_mode="function-calls", progress_disable=True) == 3


def test_a_result_that_no_disk_can_hold_fails_with_numbers_and_the_others_go_on():
    with DaskVine.local(workers=1, cores=1, disk_mb=10) as m:
        m.wait_for_workers(1, 60)
        for task_mode in ("function-calls", "tasks"):
            graph = {"large": (chores.make_bytes, 20 * MB), "end": (chores.length, "large")}
            with pytest.raises(InsufficientResources, match="21 MB"):
                m.get(graph, "end", task_mode=task_mode, progress_disable=True)
            assert m.get({"x": (chores.add, 1, 2)}, "x", task_mode=task_mode, progress_disable=True) == 3


def test_results_that_do_not_fit_beside_each_other_are_made_one_after_another(yard):
    """What they write is not known before: a worker says what it has no room for."""
    m = yard.manager()
    yard.workers(m, 1, "--disk", "50", "--cores", "4")
    kept = []
    for _ in range(4):
        task = PythonTask(chores.make_bytes, 20 * MB)
        task.set_cores(1)
        m.submit(task)
    for _ in range(4):
        task = one_result(m)
        assert task.successful(), task.error()
        kept.append(len(task.output))
    assert len(set(kept)) == 1


def test_a_task_that_fills_its_sandbox_fails_alone(yard):
    m = yard.manager()
    yard.workers(m, 1, "--disk", "20")
    greedy = Task("head -c 40000000 /dev/zero > junk; sleep 600")
    greedy.set_cores(1)
    modest = Task("echo fine")
    modest.set_cores(1)
    m.submit(greedy)
    m.submit(modest)
    results = {task: task for task in (one_result(m), one_result(m))}
    assert results.keys() == {greedy, modest}
    assert modest.output == "fine\n"
    assert greedy.result == "resource exhaustion"
    assert "disk" in str(greedy.error())
    assert "20 MB" in str(greedy.error())
