"""Why nothing of a queue runs, in words for the user."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vinecore.resources.amounts import too_large
from vinecore.scheduler.conditions import explain_unmet, meets_conditions
from vinecore.scheduler.instructions import Stalled
from vinecore.scheduler.queues import capacity_key, meets_python_requirements

if TYPE_CHECKING:
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.missing_files import MissingFiles
    from vinecore.scheduler.on_demand import OnDemandTasks
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.state import SchedulerState, TaskQueue, WorkerState
    from vinecore.scheduler.time_windows import TimeWindows


# how long nothing may run before the user is told: workers take a moment to connect
STALL_REPORT_DELAY_S = 2.0


class Diagnostics:
    """Finds what is missing.

    Attributes
    ----------
    stalled_reason : str
        What the user was told last; "" if something runs.
    """

    def __init__(
        self,
        *,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        disk: DiskAccounts,
        tasks: TaskLifecycle,
        missing_files: MissingFiles,
        libraries: LibraryInstances,
        on_demand: OnDemandTasks,
        time_windows: TimeWindows,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._disk = disk
        self._tasks = tasks
        self._missing_files = missing_files
        self._libraries = libraries
        self._on_demand = on_demand
        self._time_windows = time_windows
        self.stalled_reason = ""
        self._missing_since: float | None = None

    def report_stall(self) -> None:
        """Tell the user why nothing runs, if that has been so for a while, and that something does again."""
        text = ""
        for queue in list(self._state.queues.values()):
            if queue.running or not queue.front:  # it was pumped just now: what is at its front is ready
                continue
            text, hopeless = self.explain_queue(queue)
            if hopeless and queue.conditions is not None and queue.conditions.strict_inputs:
                waiting = [entry[2] for entry in (*queue.ready, *queue.roots)]
                self._tasks.fail_unsatisfiable(waiting, text, "fixed location missing")
                text = ""
                continue
            if not self._state.workers and self._state.start_failure:
                waiting = [entry[2] for entry in (*queue.ready, *queue.roots)]
                self._tasks.fail_unsatisfiable(waiting, self._state.start_failure, "no workers")
                text = ""
            elif hopeless and self._state.all_expected_workers_connected():
                self._tasks.fail_unsatisfiable([entry[2] for entry in (*queue.ready, *queue.roots)], text)
                text = ""
            if text:
                break
        text = (
            text
            or self._disk.stalled_reason()
            or self._on_demand.stalled_reason()
            or self._missing_files.stalled_reason()
            or self._time_windows.stalled_reason()
        )
        text = text or self._libraries.stalled_reason()
        if text and not self.stalled_reason and self._missing_since is None:
            self._missing_since = self._state.now
        elif not text:
            self._missing_since = None
        patient = (
            self._missing_since is not None and self._state.now - self._missing_since < STALL_REPORT_DELAY_S
        )
        if text != self.stalled_reason and not patient:
            self.stalled_reason = text
            self._outbox.emit(Stalled(text))

    def explain_queue(self, queue: TaskQueue) -> tuple[str, bool]:
        """Return why nothing of a queue can run, and whether no connected worker could ever run it."""
        if self._state.holds_tasks:
            count, wanted = len(self._state.workers), self._state.tuning.wait_for_workers
            return (
                f"{count} of the {wanted} workers are connected for which tune('wait-for-workers') waits",
                False,
            )
        workers = [w for w in self._state.workers.values() if not w.closed]
        if not workers and any(not w.draining for w in self._state.workers.values()):
            return "all workers that are connected are blocked: see Manager.unblock_host", False
        if not workers:
            leaving = len(self._state.workers)
            return (
                "no worker is connected" if not leaving else "all workers that are connected are leaving",
                False,
            )
        suitable = [w for w in workers if meets_python_requirements(w, queue)]
        if not suitable:
            return self._explain_python(workers), True
        if queue.conditions is not None:
            able = [w for w in suitable if meets_conditions(self._state, w, queue.conditions)]
            if not able:
                return explain_unmet(self._state, suitable, queue.conditions)
            suitable = able
        number = queue.front[0][2].spec.task if queue.front else 0
        fitting = [w for w in suitable if self._queues.allocation_on(queue, number, w) is not None]
        if fitting:
            return self._explain_time(queue, fitting), False
        largest = max((w.total for w in suitable), key=capacity_key)
        request = self._queues.effective_request(queue, number)
        if queue.category is not None:
            request = request.at_least(queue.category.minimum)
        what = "the tasks"
        if queue.library is not None:
            what = f"library {queue.library.spec.options.get('label') or queue.library.spec.name}"
        return f"no worker is large enough for {what}: {too_large(request, largest)}", True

    def _explain_time(self, queue: TaskQueue, workers: list[WorkerState]) -> str:
        """Say that no worker stays long enough, if that is so."""
        duration_s = self._queues.expected_duration(queue.front[0][2]) if queue.front else None
        left = [math.inf if w.ends_at is None else w.ends_at - self._state.now for w in workers]
        if duration_s is None or max(left) >= duration_s:
            return ""
        return (
            f"no worker stays long enough: tasks take {duration_s:.3g} s, and the workers leave within {max(0.0, *left):.3g} s. Start "
            "workers with a longer --wall-time"
        )

    def _explain_python(self, workers: list[WorkerState]) -> str:
        """Say why the own Python of none of these will do."""
        lacks = sorted({name for w in workers if w.python_ok for name in w.missing_packages})
        if lacks:
            what = " and ".join(lacks)
            return (
                f"the workers' own Python has no {what}, without which it cannot load the functions. Install {what} there, or ship an "
                "environment with environment='my-env.tar.gz'"
            )
        theirs = ", ".join(sorted({w.python for w in workers}))
        return (
            f"the manager runs Python {self._state.python} and the workers run {theirs}: functions pickled by one cannot be loaded by the "
            f"other. Start workers with Python {self._state.python}, or ship an environment with environment='my-env.tar.gz'"
        )
