"""Files with the measured resources of tasks, as TaskVine's monitor writes them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vinecore.manager.tasks import Task

UNITS = {
    "start": "s",
    "end": "s",
    "wall_time": "s",
    "cpu_time": "s",
    "cores": "cores",
    "cores_avg": "cores",
    "gpus": "gpus",
    "memory": "MB",
    "disk": "MB",
    "max_concurrent_processes": "procs",
}


def write_summary(task: Task, directory: str) -> str:
    """Write what a finished task has used, and return the path of the file.

    Raises
    ------
    OSError
        The directory or the file cannot be made.
    """
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"vine-{os.getpid()}-task-{task.id}.summary")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(summarize(task), file, indent=1)
        file.write("\n")
    return path


def summarize(task: Task) -> dict[str, Any]:
    """Return the fields of a summary, as far as they were measured."""
    fields: dict[str, Any] = {
        "category": task.category,
        "command": task.command or type(task).__name__,
        "task_id": task.id,
        "host": task.hostname,
        "exit_type": "normal" if task.completed() else "limits" if task.limits_exceeded else task.result,
        "exit_status": task.exit_code,
    }
    for name, unit in UNITS.items():
        value = getattr(task.resources_measured, name)
        if value is not None:
            fields[name] = [value, unit]
    return fields
