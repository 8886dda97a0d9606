"""Workers with little disk: nothing is kept that could be had again, nothing is asked for that cannot be, and nobody dies of it."""

from __future__ import annotations

import os
import signal
import threading

import dask
import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import (
    PATIENCE_S,
    call_after_each_task,
    find_paths,
    scheduler_state,
    used_below,
    wait_for_task,
    wait_until,
)
from vinecore import PythonTask, Task
from vinecore.errors import InsufficientResources

MB = 1 << 20


class Gauge:
    """The most disk that one of the workers below a folder has ever used, by looking again and again."""

    def __init__(self, folder, every_s=0.01):
        self._folder, self._every_s, self.peak = folder, every_s, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(self._every_s):
            self.peak = max(self.peak, self.used())

    def used(self):
        return max(map(used_below, find_paths(self._folder, "vine-worker-*")), default=0)


def test_a_wide_graph_needs_little_disk(local_cluster):
    """200 results of 5 MB, added up in pairs, on a disk of 100 MB."""
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_workers(m, 1, "--disk", "100")
    roots = [("root", n) for n in range(200)]
    graph = {root: (sample_tasks.make_block, root[1], 5 * MB) for root in roots}
    level, layer = 0, roots
    while len(layer) > 1:
        level += 1
        pairs = [layer[n : n + 2] for n in range(0, len(layer), 2)]
        layer = [("sum", level, n) for n in range(len(pairs))]
        graph.update({key: (sample_tasks.add_blocks, pair) for key, pair in zip(layer, pairs, strict=True)})
    graph["end"] = (sample_tasks.first_of_block, layer[0])
    with Gauge(local_cluster.workspace) as gauge:
        assert m.get(graph, "end", task_mode="function-calls", progress_disable=True) == sum(range(200)) % 256
    assert m.last_run.recomputed == 0
    assert gauge.peak <= 100 * MB
    wait_until(lambda: gauge.used() < MB, "everything to be removed")


def test_inputs_too_large_are_refused_with_numbers():
    with DaskVine.local(workers=1, cores=1, disk_mb=30) as m:
        m.wait_for_workers(1, PATIENCE_S)
        task = Task("cat a b > /dev/null")
        task.add_input(m.declare_buffer(os.urandom(20 * MB)), "a")
        task.add_input(m.declare_buffer(os.urandom(20 * MB)), "b")
        m.submit(task)
        assert wait_for_task(m) is task
        assert task.result == "resource exhaustion"
        assert "needs 40 MB of inputs on one worker; the largest worker has 30 MB of disk" in str(
            task.error()
        )
        graph = dict.fromkeys(("a", "b"), (sample_tasks.make_bytes, 20 * MB))
        graph["end"] = (sample_tasks.length, ["a", "b"])
        with pytest.raises(InsufficientResources, match="end needs 41 MB of inputs on one worker"):
            m.get(graph, "end", task_mode="function-calls", progress_disable=True)
        assert (
            m.get({"x": (sample_tasks.add, 1, 2)}, "x", task_mode="function-calls", progress_disable=True)
            == 3
        )


def test_result_too_large_for_disks_fails_alone():
    """A result that no disk can hold fails with numbers and the others go on."""
    with DaskVine.local(workers=1, cores=1, disk_mb=10) as m:
        m.wait_for_workers(1, PATIENCE_S)
        for task_mode in ("function-calls", "tasks"):
            graph = {"large": (sample_tasks.make_bytes, 20 * MB), "end": (sample_tasks.length, "large")}
            with pytest.raises(InsufficientResources, match="21 MB"):
                m.get(graph, "end", task_mode=task_mode, progress_disable=True)
            assert (
                m.get({"x": (sample_tasks.add, 1, 2)}, "x", task_mode=task_mode, progress_disable=True) == 3
            )


def test_large_results_are_made_one_by_one(local_cluster):
    """What they write is not known before: a worker says what it has no room for."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--disk", "50", "--cores", "4")
    kept = []
    for _ in range(4):
        task = PythonTask(sample_tasks.make_bytes, 20 * MB)
        task.set_cores(1)
        m.submit(task)
    for _ in range(4):
        task = wait_for_task(m)
        assert task.successful(), task.error()
        kept.append(len(task.output))
    assert len(set(kept)) == 1


def test_task_filling_sandbox_fails_alone(local_cluster):
    """A task that fills its sandbox fails alone."""
    m = local_cluster.start_manager()
    local_cluster.start_workers(m, 1, "--disk", "20")
    greedy = Task("head -c 40000000 /dev/zero > junk; sleep 600")
    greedy.set_cores(1)
    modest = Task("echo fine")
    modest.set_cores(1)
    m.submit(greedy)
    m.submit(modest)
    results = {task: task for task in (wait_for_task(m), wait_for_task(m))}
    assert results.keys() == {greedy, modest}
    assert modest.output == "fine\n"
    assert greedy.result == "resource exhaustion"
    assert "disk" in str(greedy.error())
    assert "20 MB" in str(greedy.error())


# ---- an analysis that makes more than all disks together hold

EVENTS, FILES, TIMES = 110_000, 3, 4  # in a file; files; how often each of them is read
DISK_MB, WORKERS = 300, 3


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    """Query 6 on 1.3 million events, and what it should find."""
    pytest.importorskip("coffea")
    from daskvine.demo.nanoaod import write_dataset
    from daskvine.demo.queries import QUERIES, open_events
    from daskvine.demo.reference import compute_reference

    folder = tmp_path_factory.mktemp("events")
    files = write_dataset(folder, FILES, EVENTS)
    links = [folder / f"again-{n}-{file.name}" for n in range(TIMES) for file in files]
    for n, link in enumerate(links):
        os.link(files[n % FILES], link)
    expected = [part * TIMES for part in compute_reference(files, ["Q6"])["Q6"]]
    return QUERIES["Q6"].histograms(open_events(links)), expected


def written(m):
    """Count the bytes that vertices write to disks."""
    counts = []
    disk = scheduler_state(m, lambda scheduler: scheduler.disk)
    record = disk.record_written_bytes
    disk.record_written_bytes = lambda task, size: (counts.append(size), record(task, size))
    return counts


class Killer:
    """Kills the worker that holds most, each time a third of a run is done, before the manager goes on; the factory starts others.

    Attributes
    ----------
    killed : set of int
        The processes.
    done_at_losses : list of int
        How many vertices were done when the manager noticed.
    """

    def __init__(self, m, most):
        self._server, self._most = m._server, most
        self.killed, self.done_at_losses = set(), []
        call_after_each_task(m, self._kill_if_due)
        scheduler_state(m, self._count_losses)

    def _count_losses(self, scheduler):
        membership = scheduler.membership
        lose = membership.remove_worker

        def lose_and_count(worker, reason):
            self.done_at_losses.append(sum(run.done for run in scheduler.state.graphs.values()))
            lose(worker, reason)

        membership.remove_worker = lose_and_count

    def _kill_if_due(self, scheduler):
        runs = scheduler.state.graphs.values()
        if self._due(sum(run.done for run in runs), sum(run.done + run.unfinished for run in runs)):
            self._kill(scheduler)

    def _due(self, done, vertices):
        """Whether it is time for the next one: after the first and the second third, where there are two to kill."""
        killed = len(self.killed)
        return killed < self._most and done * (self._most + 1) >= vertices * (killed + 1)

    def _kill(self, scheduler):
        held = {}
        for worker in scheduler.state.workers.values():
            pid = self._server._workers[worker.id].hello.pid
            if pid not in self.killed:
                held[pid] = sum(worker.files.values())
        victim = max(held, key=held.__getitem__, default=None)
        if victim is not None and held[victim] >= MB:
            os.kill(victim, signal.SIGKILL)
            self.killed.add(victim)


@pytest.mark.parametrize("kills", [0, (WORKERS + 1) // 2])
def test_analysis_survives_small_disks_and_deaths(analysis, kills):
    """An analysis finds the same where not all it makes fits and workers die."""
    from daskvine.demo.reference import same

    lazy, expected = analysis
    with DaskVine.local(workers=WORKERS, cores=1, disk_mb=DISK_MB) as m:
        m.wait_for_workers(WORKERS, PATIENCE_S)
        made = written(m)
        killer = Killer(m, kills)
        with Gauge(m.factory._batch.folder, 0.05) as gauge:
            found = dask.compute(*lazy, scheduler=m.get, task_mode="function-calls", progress_disable=True)
        assert same(found, expected)
        run = m.last_run
        print(
            f"{run.vertices} vertices, {run.recomputed} made again, {sum(made) / MB:.0f} MB made, at most {gauge.peak / MB:.0f} MB on a disk"
        )
        assert sum(made) > WORKERS * DISK_MB * MB
        assert gauge.peak <= DISK_MB * MB
        assert len(killer.killed) == len(killer.done_at_losses) == kills
        # who dies may have had a part of all that was done, and nothing of what was not yet begun
        assert run.recomputed <= sum(killer.done_at_losses)
