"""Descriptions of all workers, tasks and categories, for users who ask what a manager does.

Field names are TaskVine's as far as it has them. The cost is proportional to what is described.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.resources.amounts import ResourceRequest, Resources, allocate
from vinecore.scheduler.state import MB
from vinecore.scheduler.transitions import ASSIGNED, READY, RETRIEVING, WAITING

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import TaskState, WorkerState

MAX_TASKS = 100_000
"""Tasks that are described in one answer."""
STATE_NAMES = {
    WAITING: "READY",
    READY: "READY",
    ASSIGNED: "RUNNING",
    RETRIEVING: "WAITING_RETRIEVAL",
}
"""TaskVine's names of states: a task is ready there also while its inputs are missing."""


def describe_workers(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Return the place, resources and work of each connected worker."""
    state = scheduler.state
    return [_describe_worker(worker, state.now) for worker in state.workers.values()]


def _describe_worker(worker: WorkerState, now: float) -> dict[str, Any]:
    resources: dict[str, float] = {}
    for name, total, free in zip(Resources._fields, worker.total, worker.free, strict=True):
        resources[f"{name}_total"], resources[f"{name}_inuse"] = total, total - free
    return {
        "worker_id": worker.id,
        "hostname": worker.name,
        "address_port": worker.data_address or worker.host,
        "total_tasks_running": len(worker.tasks),
        **resources,
        "cached_files": len(worker.files),
        "cached_mb": sum(worker.files.values()) // MB,
        "libraries": sorted(instance.library.spec.name for instance in worker.libraries.values()),
        "python": worker.python,
        "draining": worker.draining,
        "time_connected_s": round(now - worker.joined_at, 3),
    }


def describe_tasks(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Return the state and place of each unfinished task, of the first ones if there are very many."""
    return [_describe_task(task) for task in islice(scheduler.state.tasks.values(), MAX_TASKS)]


def _describe_task(task: TaskState) -> dict[str, Any]:
    got = task.allocation or task.request
    return {
        "taskid": task.spec.task,
        "label": task.spec.label,
        "state": STATE_NAMES[task.state],
        "missing_inputs": task.missing_inputs,
        "category": task.spec.category,
        "graph": task.spec.graph,
        "library": task.spec.library,
        "priority": -task.spec.priority,
        "attempts": task.dispatch_count,
        "worker_id": 0 if task.worker is None else task.worker.id,
        "host": "" if task.worker is None else task.worker.name,
        **{name: amount for name, amount in got._asdict().items() if amount is not None},
    }


def state_of_task(scheduler: Scheduler, number: int) -> str:
    """Return TaskVine's name of the state of an unfinished task; "" if there is none of this number."""
    task = scheduler.state.tasks.get(number)
    return "" if task is None else STATE_NAMES[task.state]


def describe_categories(scheduler: Scheduler) -> list[dict[str, Any]]:
    """Return the tasks of each category, its resources, and how many workers are large enough for one."""
    state = scheduler.state
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str) -> dict[str, Any]:
        counts = {"tasks_waiting": 0, "tasks_running": 0, "tasks_done": 0}
        return rows.setdefault(name, {"category": name, **counts})

    for name, (count, mean_s) in state.category_walls.items():
        row(name).update(tasks_done=count, mean_wall_time_s=round(mean_s, 6))
    for task in state.tasks.values():
        row(task.spec.category)["tasks_running" if task.state == ASSIGNED else "tasks_waiting"] += 1
    for name, category in state.categories.items():
        request = category.initial_request(0)
        row(name).update(
            mode=category.mode,
            workers_able=sum(
                allocate(request, worker.total, category.minimum) is not None
                for worker in state.workers.values()
            ),
            **_amounts("first", request),
            **_amounts("max", category.maximum),
            **_amounts("min", category.minimum),
        )
    return [rows[name] for name in sorted(rows)]


def _amounts(prefix: str, request: ResourceRequest) -> dict[str, float]:
    return {f"{prefix}_{name}": amount for name, amount in request._asdict().items() if amount is not None}
