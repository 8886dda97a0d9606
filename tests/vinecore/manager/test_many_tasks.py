"""Many tasks, from many threads, with many ends: none is lost, and none comes back twice."""

from __future__ import annotations

import threading
from collections import Counter

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, PythonTask, Task
from vinecore.scheduler.events import TasksCancelled
from vinecore.server.server import StateQuery

THREADS = 8
CALLS = 300


def test_tasks_of_eight_threads_come_back(m):
    """Eight threads submit while another one waits: each task comes back once, with its own value."""
    m.install_library(m.create_library_from_functions("adding", sample_tasks.add, exec_mode="direct"))
    before = m.stats
    total = THREADS * CALLS
    submitted: list[dict[int, int]] = [{} for _ in range(THREADS)]
    returned: list[FunctionCall] = []
    start = threading.Barrier(THREADS + 1)

    def submit(thread: int) -> None:
        start.wait()
        for n in range(CALLS):
            value = thread * CALLS + n
            submitted[thread][m.submit(FunctionCall("adding", "add", value, 1))] = value + 1

    def collect() -> None:
        start.wait()
        while len(returned) < total:
            task = m.wait(0.2)
            if task is not None:
                returned.append(task)

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(THREADS)]
    threads.append(threading.Thread(target=collect))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    expected = {number: value for own in submitted for number, value in own.items()}
    assert len(expected) == total
    assert {task.id: task.output for task in returned} == expected
    assert len(returned) == total
    assert m.empty()
    stats = m.stats
    assert stats.tasks_submitted - before.tasks_submitted == total
    assert stats.tasks_successful - before.tasks_successful == total
    m.remove_library("adding")


def test_ten_thousand_cancelled_tasks_come_back(m, shared_cluster):
    """Some run, most wait, and some are cancelled twice: each comes back once, as cancelled."""
    before = m.stats
    tasks = [
        PythonTask(sample_tasks.held, str(shared_cluster.folder), f"many-{n}", "never") for n in range(4)
    ]
    for task in tasks:
        task.set_cores(1)
    tasks += [Task("sleep 600", cores=1, category="many") for _ in range(9_996)]
    for task in tasks[:5_000]:
        m.submit(task)
    wait_until(lambda: m.stats.tasks_running == 4, "four running tasks")
    for task in tasks[5_000:]:
        m.submit(task)
    assert m.cancel_by_task_id(tasks[17].id)
    assert m.cancel_by_category("many") == 9_995
    assert m.cancel_all() == 4
    assert m.cancel_all() == 0
    ended = [m.wait(PATIENCE_S) for _ in tasks]
    assert Counter(task.result for task in ended) == {"cancelled": 10_000}
    assert {id(task) for task in ended} == {id(task) for task in tasks}
    assert m.empty()
    assert m.wait(0) is None
    assert m.stats.tasks_cancelled - before.tasks_cancelled == 10_000
    wait_until(lambda: m.stats.committed_cores == 0, "the cores to be free again")


def test_cancelling_threads_count_each_task_once(m):
    """Four threads cancel while four submit: the counts and the returned tasks agree."""
    before = m.stats.tasks_cancelled
    submitters = [
        threading.Thread(target=lambda: [m.submit(Task("sleep 600", cores=4)) for _ in range(200)])
        for _ in range(4)
    ]
    cancelled: list[int] = []
    counts: list[int] = []
    over = threading.Event()

    def cancel() -> None:
        while not over.is_set():
            counts.append(m.cancel_all())

    cancellers = [threading.Thread(target=cancel) for _ in range(4)]
    for thread in (*submitters, *cancellers):
        thread.start()
    while len(cancelled) < 800:
        task = m.wait(PATIENCE_S)
        if task is not None:
            assert task.result == "cancelled"
            cancelled.append(task.id)
    over.set()
    for thread in (*submitters, *cancellers):
        thread.join(PATIENCE_S)
    assert len(set(cancelled)) == 800
    assert m.empty()
    assert sum(counts) == m.stats.tasks_cancelled - before == 800


def test_two_cancellations_count_a_task_once(m):
    """Two threads cancel the same tasks before the scheduler has heard of either."""
    for _ in range(20):
        m.submit(Task("sleep 600", cores=4))
    gate, counts = threading.Event(), []
    m._server.post_event(StateQuery(lambda _scheduler: gate.wait(PATIENCE_S)))
    wait_until(lambda: not m._server.inbox, "the scheduler to be held up")
    threads = [threading.Thread(target=lambda: counts.append(m.cancel_all())) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(type(event) is TasksCancelled for event in list(m._server.inbox)) == 2)
    gate.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(counts) == [0, 20]
    assert {m.wait(PATIENCE_S).result for _ in range(20)} == {"cancelled"}
