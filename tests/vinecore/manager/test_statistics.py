"""Statistics of a manager with real workers."""

from __future__ import annotations

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import FunctionCall, LibraryTask, PythonTask, Task


def held(local_cluster, name, **resources):
    """Make a task that runs until its gate is opened."""
    task = PythonTask(sample_tasks.held, str(local_cluster.folder), name, f"{name}-gate")
    for resource, amount in resources.items():
        getattr(task, f"set_{resource}")(amount)
    return task


def wait_until_running(m, count):
    wait_until(lambda: m.stats.tasks_running == count, f"{count} running tasks")


def test_hungry_follows_taskvines_arithmetic(local_cluster):
    """The situations and numbers are those of TaskVine's own test of this method."""
    m = local_cluster.start_manager()
    for minimum in (11, 2):
        m.tune("hungry-minimum", minimum)
        assert m.hungry() == minimum
    whole = [Task("sleep 600"), Task("sleep 600")]
    numbers = []
    for task, left in zip(whole, (1, 0), strict=True):
        numbers.append(m.submit(task))
        assert m.hungry() == left
    local_cluster.start_worker(m, "--cores", "12", "--memory", "1200", "--disk", "1200")
    wait_until_running(m, 1)
    assert m.hungry() == 1
    m.tune("hungry-minimum", 5)
    assert m.hungry() == 4
    assert all(m.cancel_by_task_id(number) for number in numbers)
    assert m.hungry() == 2 * 12

    one_core = m.submit(Task("sleep 600", cores=1))
    wait_until_running(m, 1)
    assert m.hungry() == 2 * 12 - 1
    m.tune("hungry-minimum-factor", 3)
    assert m.hungry() == 3 * 12 - 1
    rest = m.submit(Task("sleep 600", cores=11))
    wait_until_running(m, 2)
    assert m.hungry() == 5
    m.cancel_by_task_id(one_core)
    m.cancel_by_task_id(rest)

    memory = m.submit(Task("sleep 600", cores=1, memory=200))
    wait_until_running(m, 1)
    assert m.hungry() == (3 * 1200 - 200) / 200
    m.cancel_by_task_id(memory)

    for cores in (1, 11):
        m.submit(Task("sleep 600", cores=cores, memory=1, disk=1))
    wait_until_running(m, 2)
    m.submit(Task("sleep 600", cores=2))
    m.tune("hungry-minimum-factor", 10)
    assert m.hungry() == (10 * 12 - 1 - 11) / 2 - 1


def test_program_submits_while_manager_is_hungry(m):
    """The loop that clients are made of ends, and nothing is lost in it."""
    submitted, ended = 0, []
    while len(ended) < 60:
        while submitted < 60 and m.hungry():
            m.submit(Task("true", cores=1))
            submitted += 1
        ended.append(m.wait(PATIENCE_S))
    assert submitted == 60
    assert {task.result for task in ended} == {"success"}


def test_stats_are_current_after_each_call(m, shared_cluster):
    before = m.stats
    tasks = [held(shared_cluster, f"current-{n}", cores=1) for n in range(6)]
    for number, task in enumerate(tasks, 1):
        m.submit(task)
        stats = m.stats
        assert stats.tasks_submitted == before.tasks_submitted + number
        assert stats.tasks_waiting + stats.tasks_on_workers == number
    # the worker has four cores
    wait_until_running(m, 4)
    stats = m.stats
    assert (stats.tasks_waiting, stats.tasks_on_workers, stats.workers_busy) == (2, 4, 1)
    assert (stats.total_cores, stats.committed_cores, stats.max_cores) == (4, 4, 4)
    for number in range(6):
        shared_cluster.path(f"current-{number}-gate").touch()
    assert all(m.wait(PATIENCE_S).successful() for _ in tasks)
    stats = m.stats
    assert stats.tasks_done == before.tasks_done + 6
    assert stats.tasks_dispatched >= before.tasks_dispatched + 6
    assert (stats.tasks_on_workers, stats.workers_idle, stats.committed_cores) == (0, 1, 0)
    assert stats.time_workers_execute_good > before.time_workers_execute_good
    assert stats.time_polling > 0
    assert stats.time_scheduling > 0
    assert before.time_when_started == stats.time_when_started


def test_stats_count_bytes_of_files(m, tmp_path, run):
    before = m.stats
    source = tmp_path / "data"
    source.write_bytes(bytes(3_000_000))
    task = Task("cp in out", cores=1)
    task.add_input(m.declare_file(source), "in")
    task.add_output(m.declare_file(tmp_path / "copy"), "out")
    assert run(task).successful()
    stats = m.stats
    assert stats.bytes_sent - before.bytes_sent == 3_000_000
    assert stats.bytes_received - before.bytes_received == 3_000_000
    assert stats.bandwidth > 0


def test_failed_task_is_counted(m, run):
    before = m.stats
    assert run(Task("sleep 600", cores=1, time_max=0.1)).result == "max wall time"
    stats = m.stats
    assert stats.tasks_failed == before.tasks_failed + 1
    assert stats.time_workers_execute > before.time_workers_execute + 50_000
    assert stats.time_workers_execute_good == before.time_workers_execute_good


@pytest.mark.parametrize("watchdog", [True, False])
def test_watchdog_ends_tasks_over_their_limits(local_cluster, watchdog):
    m = local_cluster.start_manager()
    m.enable_monitoring(watchdog=watchdog)
    local_cluster.start_worker(m)
    task = Task("head -c 30000000 /dev/zero > big; sync; sleep 1; echo end", cores=1, disk=5)
    m.submit(task)
    assert m.wait(PATIENCE_S) is task
    assert task.result == ("resource exhaustion" if watchdog else "success")


# ---- cancelling


def test_cancel_methods_return_their_counts(m, shared_cluster):
    def submit(count, **settings):
        return [m.submit(Task("sleep 600", cores=1, **settings)) for _ in range(count)]

    ended = m.submit(Task("true", tag="c", category="left", cores=1))
    assert m.wait_for_task_id(ended, PATIENCE_S).successful()
    a, b = submit(3, tag="a", category="left"), submit(4, tag="b", category="right")
    m.cancel_by_task_id(a[0])
    m.cancel_by_task_id(b[0])
    assert m.cancel_by_task_id(ended) is False
    assert m.cancel_by_task_id(a[0]) is False
    assert m.cancel_by_task_id(a[1]) is True
    assert m.cancel_by_task_tag("b") is True
    assert m.cancel_by_task_tag("c") is False
    assert m.cancel_by_category("left") == 1
    assert m.cancel_by_category("left") == 0
    assert m.cancel_all_by_tag("a") == 0
    assert m.cancel_all_by_tag("b") == 2
    submit(5)
    assert m.cancel_all() == 5
    assert m.cancel_all() == 0
    results = [m.wait(PATIENCE_S).result for _ in range(12)]
    assert results == ["cancelled"] * 12
    assert m.empty()


def test_running_call_is_cancelled_by_category(m, shared_cluster):
    library = LibraryTask("held-calls", [sample_tasks.held])
    m.install_library(library)
    call = FunctionCall("held-calls", "held", str(shared_cluster.folder), "cancelled-call", "never")
    call.set_category("calls")
    m.submit(call)
    wait_until(lambda: shared_cluster.path("cancelled-call").exists(), "the call")
    assert m.cancel_by_category("calls") == 1
    assert m.wait(PATIENCE_S) is call
    assert call.result == "cancelled"
    m.remove_library("held-calls")
