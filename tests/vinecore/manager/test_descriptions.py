"""What a manager says of its workers, tasks and categories."""

from __future__ import annotations

import json

import pytest

from tests.harness import sample_tasks
from tests.harness.processes import PATIENCE_S, wait_until
from vinecore import PythonTask, Task


@pytest.fixture
def held_task(m, shared_cluster, request):
    """A task that runs."""
    task = PythonTask(
        sample_tasks.held, str(shared_cluster.folder), request.node.name, f"{request.node.name}-gate"
    )
    task.set_cores(3)
    task.set_category("held")
    m.submit(task)
    wait_until(lambda: m.stats.tasks_running == 1)
    return task


def test_all_is_described_in_json(m, held_task):
    waiting = m.submit(Task("echo waiting", cores=2, tag="w", category="other"))
    try:
        for request in ("manager", "workers", "tasks", "categories"):
            json.dumps(m.status(request))
        [about] = m.status("manager")
        assert (about["project"], about["port"], about["tasks_waiting"], about["workers"]) == (
            m.name,
            m.port,
            1,
            1,
        )
        assert about["application_info"] == {"values": {}, "units": {}}
        [worker] = m.status("workers")
        assert (worker["cores_total"], worker["cores_inuse"], worker["total_tasks_running"]) == (4, 3, 1)
        held, other = m.status("tasks")
        assert (held["taskid"], held["state"], held["host"]) == (held_task.id, "RUNNING", worker["hostname"])
        assert (other["taskid"], other["state"], other["tag"], other["command"]) == (
            waiting,
            "READY",
            "w",
            "echo waiting",
        )
        by_name = {row["category"]: row for row in m.status("categories")}
        assert (by_name["held"]["tasks_running"], by_name["other"]["tasks_waiting"]) == (1, 1)
        assert m.status("worker_status")[0]["worker_id"] == worker["worker_id"]
    finally:
        m.cancel_by_task_id(waiting)
    with pytest.raises(ValueError, match="manager, workers, tasks, categories"):
        m.status("everything")


def test_numbers_of_one_category(m, held_task, run):
    before = m.stats_category("counted")
    m.submit(Task("true", cores=1, category="counted"))
    assert m.wait_for_tag("", PATIENCE_S).successful()
    waiting = m.submit(Task("true", cores=4, category="counted"))
    stats = m.stats_category("counted")
    assert stats.tasks_done == before.tasks_done + 1
    assert (stats.tasks_waiting, stats.tasks_running, stats.tasks_on_workers) == (1, 0, 0)
    assert stats.time_workers_execute_good > 0
    held = m.stats_category("held")
    assert (held.tasks_running, held.tasks_waiting) == (1, 0)
    assert m.stats_category("unknown").tasks_submitted == 0
    m.cancel_by_task_id(waiting)


def test_state_of_a_task_is_followed(m, shared_cluster, held_task):
    waiting = m.submit(Task("true", cores=4))
    assert m.task_state(held_task.id) == "RUNNING"
    assert m.task_state(waiting) == "READY"
    m.cancel_by_task_id(waiting)
    assert m.task_state(waiting) == "RETRIEVED"
    assert m.wait_for_task_id(waiting, PATIENCE_S).result == "cancelled"
    assert m.task_state(waiting) == "UNKNOWN"
    assert m.task_state(10**9) == "UNKNOWN"
