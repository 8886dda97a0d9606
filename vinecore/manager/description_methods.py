"""The part of `Manager` that describes its workers, tasks and categories one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore import validators
from vinecore.manager.announcement_methods import AnnouncementMethods
from vinecore.manager.log_methods import LogMethods
from vinecore.scheduler import status_tables

if TYPE_CHECKING:
    from collections import deque

    from vinecore.manager.tasks import Task
    from vinecore.server.server import ManagerServer

STATUS_NAMES = ("manager", "workers", "tasks", "categories")
# With TaskVine's names of the same questions.
STATUS_REQUESTS = {
    **{name: name for name in STATUS_NAMES},
    "manager_status": "manager",
    "worker_status": "workers",
    "task_status": "tasks",
    "wable_status": "categories",
}


class DescriptionMethods(AnnouncementMethods, LogMethods):
    """Answers to the questions of ``vine_status`` and of the program.

    Parameters
    ----------
    server, session
        As those of `StatusMethods`.
    """

    _tasks: dict[int, Task]
    _finished: deque[Task]

    def __init__(self, server: ManagerServer, session: str) -> None:
        super().__init__(server, session)
        server.describe = self.status

    def status(self, request: str) -> list[dict[str, Any]]:
        """Describe the manager, or each of its workers, unfinished tasks or categories.

        ``vine_status`` shows the same.

        Parameters
        ----------
        request : {"manager", "workers", "tasks", "categories"}
            What to describe. TaskVine's names with "_status" behind them, such as "worker_status",
            are accepted.

        Returns
        -------
        list of dict
            One dict for each; one for the manager. Of more than 100,000 tasks the first ones are
            described.

        Raises
        ------
        ValueError
            There is no such request.
        RuntimeError
            The manager is closed.
        """
        wanted = STATUS_REQUESTS.get(request) if isinstance(request, str) else None
        if wanted is None:
            validators.refuse("request", request, f"one of {', '.join(STATUS_NAMES)}")
        if wanted == "manager":
            return [self._describe_manager()]
        if wanted == "tasks":
            return self._describe_tasks()
        describe = (
            status_tables.describe_workers if wanted == "workers" else status_tables.describe_categories
        )
        return self._server.query(describe)

    def _describe_manager(self) -> dict[str, Any]:
        """Return the record by which the manager is found, with all numbers."""
        stats = self.stats
        return {
            **self._describe_record(),
            **stats._asdict(),
            "tasks_complete": stats.tasks_done,
            "tasks_left": stats.tasks_waiting + stats.tasks_on_workers + self._server.tasks_left,
            "workers": stats.workers_connected,
            "stalled_reason": self.stalled_reason,
            **self.application_info(),
        }

    def _describe_tasks(self) -> list[dict[str, Any]]:
        """Return the tasks with what only the program knows of them."""
        rows = self._server.query(status_tables.describe_tasks)
        for row in rows:
            task = self._tasks.get(row["taskid"])
            if task is not None:
                row["tag"], row["command"] = task.tag, task.command
        return rows

    def task_state(self, task_id: int) -> str:
        """Return the state of a task that has been submitted and not come back through `wait`.

        Parameters
        ----------
        task_id : int
            The number that `submit` has returned.

        Returns
        -------
        str
            "READY", "RUNNING" (or sent to a worker), "WAITING_RETRIEVAL" or "RETRIEVED"; "UNKNOWN"
            for other numbers.

        Raises
        ------
        TypeError, ValueError
            It is no whole number.
        RuntimeError
            The manager is closed.
        """
        number = validators.whole("task_id", task_id)
        state = self._server.query(lambda scheduler: status_tables.state_of_task(scheduler, number))
        if state and number in self._tasks:
            return state
        return "RETRIEVED" if any(task.id == number for task in list(self._finished)) else "UNKNOWN"
