"""Workers on which tasks take much longer than usual.

Such a task is taken back and runs elsewhere. Its worker gets no new tasks for a while. If it happens there again the worker is
disconnected, and its host is blocked. The tasks that run are looked at in intervals, and only if that is switched on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import INFO, WARNING, LogMessage
from vinecore.scheduler.libraries import list_probably_running
from vinecore.scheduler.transitions import ASSIGNED

if TYPE_CHECKING:
    from vinecore.scheduler.draining import WorkerDraining
    from vinecore.scheduler.hosts import Hosts
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.state import SchedulerState, TaskState, WorkerState


MIN_TASKS = 10  # of a category that are done, before its mean counts


class SlowWorkers:
    """Finds slow workers, and lets them go."""

    def __init__(
        self,
        state: SchedulerState,
        outbox: Outbox,
        tasks: TaskLifecycle,
        draining: WorkerDraining,
        hosts: Hosts,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._tasks = tasks
        self._draining = draining
        self._hosts = hosts
        self._is_on = False
        # By dispatch id: when a task was first seen running, so it is late by an interval at most.
        self._seen_at: dict[int, float] = {}
        self._times_slow: dict[int, int] = {}
        self._suspects: dict[WorkerState, None] = {}

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a lost worker."""
        self._suspects.pop(worker, None)

    def update(self) -> None:
        """See whether a category is checked now."""
        categories = self._state.categories.values()
        self._is_on = self._state.tuning.disconnect_slow_worker_factor >= 1 or any(
            (category.slow_factor or 0) >= 1 for category in categories
        )

    def tick(self) -> None:
        """Take back the tasks that run for too long."""
        if not self._is_on:
            return
        now, seen_at = self._state.now, self._seen_at
        self._seen_at = {}
        slow: list[tuple[TaskState, float, float]] = []
        for worker in self._state.workers.values():
            for task in list_probably_running(worker):
                since = self._seen_at[task.dispatch_id] = seen_at.get(task.dispatch_id, now)
                limit = self._time_limit(task)
                if limit and now - since > limit:
                    slow.append((task, now - since, limit))
        self._times_slow = {n: times for n, times in self._times_slow.items() if n in self._state.tasks}
        for task, running_s, limit in slow:
            if task.state == ASSIGNED:  # not taken back with another one already
                self._on_slow_task(task, running_s, limit)

    def _time_limit(self, task: TaskState) -> float:
        """Return how long a task may take; 0 for any time."""
        category = self._state.categories.get(task.spec.category)
        factor = self._state.tuning.disconnect_slow_worker_factor
        if category is not None and category.slow_factor is not None:
            factor = category.slow_factor
        count, mean = self._state.category_walls.get(task.spec.category, (0, 0.0))
        if factor < 1 or count < MIN_TASKS:
            return 0.0
        return mean * (factor + self._times_slow.get(task.spec.task, 0))

    def _on_slow_task(self, task: TaskState, running_s: float, limit: float) -> None:
        worker = task.worker
        assert worker is not None
        self._times_slow[task.spec.task] = self._times_slow.get(task.spec.task, 0) + 1
        what = f"{task.spec.label} has run for {running_s:.3g} s on worker {worker.id} on {worker.name}, longer than {limit:.3g} s"
        if worker in self._suspects:
            self._state.counters.workers_slow += 1
            duration_s = self._state.tuning.option_blocklist_slow_workers_timeout
            self._outbox.emit(
                LogMessage(
                    WARNING, f"{what}: the worker is let go, and its host blocked for {duration_s:g} s"
                )
            )
            self._hosts.block(worker.name, duration_s)
            self._draining.drain_within(worker, "its tasks take too long", 0)
        else:
            self._suspects[worker] = None
            self._outbox.emit(LogMessage(INFO, f"{what}: it runs elsewhere"))
            self._hosts.pause(worker, self._state.tuning.transient_error_interval)
            self._tasks.cancel_and_requeue(task)
