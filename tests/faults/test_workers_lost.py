"""Workers that are killed, with what they ran and what they held."""

from __future__ import annotations

import os
import signal
import threading

import dask
import pytest

from daskvine import DaskVine
from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, call_after_each_task, wait_until, worker_summaries
from vinecore import Factory, PythonTask, Task, TaskCrashed
from vinecore.scheduler.transitions import WAITING


class InThread:
    """A computation in another thread, so that a test can do harm meanwhile."""

    def __init__(self, function, *args, **kwargs):
        self._outcome = []
        self._thread = threading.Thread(target=self._run, args=(function, args, kwargs))
        self._thread.start()

    def _run(self, function, args, kwargs):
        try:
            self._outcome.append((function(*args, **kwargs), None))
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._outcome.append((None, error))

    @property
    def running(self):
        return self._thread.is_alive()

    def result(self):
        self._thread.join(PATIENCE_S)
        value, error = self._outcome[0]
        if error is not None:
            raise error
        return value


def holds_what_is_needed(scheduler, worker):
    """Whether there is a result that only this worker has, and that somebody will read who cannot have begun, because more is missing."""
    return any(
        list(file.replicas) == [worker]
        and not file.at_manager
        and any(task.state == WAITING and task.missing_inputs for task in file.consumers)
        for run in scheduler.state.graphs.values()
        for file in run.files
    )


def test_worker_loss_in_query_changes_nothing(local_cluster):
    """A worker killed in the middle of a query changes no bin."""
    pytest.importorskip("coffea", reason="the query needs coffea, dask-awkward and hist")
    from daskvine.demo.nanoaod import write_dataset
    from daskvine.demo.queries import QUERIES, open_events
    from daskvine.demo.reference import compute_reference, same

    paths = write_dataset(local_cluster.path("data"), files=2, events=15_000, seed=5)
    query = QUERIES["Q6"]
    events = open_events(paths, steps_per_file=4)
    m = local_cluster.start_manager(DaskVine)
    local_cluster.start_workers(m, 2)
    killed = []

    def kill_the_first_that_is_needed(scheduler):
        for worker in scheduler.state.workers.values():
            if not killed and holds_what_is_needed(scheduler, worker):
                killed.append(m._server._workers[worker.id].hello.pid)
                os.kill(killed[0], signal.SIGKILL)

    call_after_each_task(m, kill_the_first_that_is_needed)
    results = dask.compute(
        *query.histograms(events),
        scheduler=m.get,
        task_mode="function-calls",
        lib_resources={"cores": 1, "slots": 1},
        progress_disable=True,
    )
    assert killed
    assert m.last_run.recomputed > 0
    assert same(results, compute_reference(paths, ["Q6"])["Q6"])


def test_replacement_for_sole_worker_finishes_run(local_cluster):
    """The only worker is killed and another one finishes the run."""
    m = local_cluster.start_manager(DaskVine)
    [worker] = local_cluster.start_workers(m, 1)
    graph = {("part", n): (sample_tasks.counted, str(local_cluster.folder), f"part-{n}", n) for n in range(4)}
    graph |= {
        ("held", n): (sample_tasks.held, str(local_cluster.folder), f"held-{n}", "gate") for n in range(2)
    }
    graph["sum"] = (sum, [("part", n) for n in range(4)])
    graph["end"] = (lambda total, *held: (total, sorted(held)), "sum", ("held", 0), ("held", 1))
    run = InThread(m.get, graph, "end", task_mode="function-calls", progress_disable=True)
    wait_until(
        lambda: local_cluster.count_lines("held-0") and local_cluster.count_lines("held-1"),
        "both calls that wait to be running",
    )
    worker.kill()
    wait_until(lambda: m.workers_connected == 0, "the manager to notice")
    assert run.running
    local_cluster.path("gate").touch()
    local_cluster.start_workers(m, 1)
    assert run.result() == (6, ["held-0", "held-1"])
    assert local_cluster.count_lines("held-0") == 2


def test_tasks_of_a_killed_worker_run_elsewhere(local_cluster):
    m = local_cluster.start_manager()
    first, second = local_cluster.start_workers(m, 2)
    tasks = [PythonTask(sample_tasks.held, str(local_cluster.folder), f"task-{n}", "gate") for n in range(4)]
    for task in tasks:
        task.set_cores(1)
        m.submit(task)
    wait_until(
        lambda: all(local_cluster.count_lines(f"task-{n}") for n in range(4)), "all four to be running"
    )
    first.kill()
    local_cluster.path("gate").touch()
    assert sorted(m.wait(PATIENCE_S).output for _ in tasks) == [f"task-{n}" for n in range(4)]
    assert sorted(local_cluster.count_lines(f"task-{n}") for n in range(4)) == [1, 1, 2, 2]
    assert second.process.poll() is None


def test_lost_temporary_file_is_made_again(local_cluster):
    """A temporary file that was lost is made again."""
    m = local_cluster.start_manager()
    first, _second = local_cluster.start_workers(m, 2)
    temp = m.declare_temp()
    maker = Task(f"echo made >> {local_cluster.path('makers')}; echo precious > out")
    maker.set_cores(1)
    maker.add_output(temp, "out")
    m.submit(maker)
    assert m.wait(PATIENCE_S).successful()
    holder = next(w["id"] for w in worker_summaries(m) if w["files"])
    victim = first if holder == worker_summaries(m)[0]["id"] else _second
    victim.kill()
    wait_until(lambda: m.workers_connected == 1, "the manager to notice")
    reader = Task("cat in")
    reader.add_input(temp, "in")
    m.submit(reader)
    assert m.wait(PATIENCE_S).output == "precious\n"
    assert local_cluster.count_lines("makers") == 2


def test_vertex_killing_its_workers_is_blamed(local_cluster):
    """A vertex that kills every worker it runs on is blamed."""
    m = local_cluster.start_manager(DaskVine)
    with Factory("local", manager=m, cores=1, memory=500, disk=500):
        graph = {
            "bad": (sample_tasks.kills_its_worker, str(local_cluster.folder), "murders"),
            "good": (sample_tasks.add, 1, 2),
        }
        with pytest.raises(TaskCrashed) as caught:
            m.get(graph, ["bad", "good"], task_mode="function-calls", retries=2, progress_disable=True)
        assert local_cluster.count_lines("murders") == 3
        assert "'bad'" in str(caught.value)
        assert str(caught.value).count("was lost") == 4  # the headline, and each of the three tries
        assert (
            m.get(
                {"good": (sample_tasks.add, 1, 2)}, "good", task_mode="function-calls", progress_disable=True
            )
            == 3
        )
