"""Tasks that must not start before a time, or have to be over at one.

A task that has to wait for its start counts one missing input more than it has. A worker ends a
task whose time is over, because it has the outputs; the scheduler ends it where that does not
happen in time, and where it has not been sent.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from vinecore.scheduler.transitions import ASSIGNED, READY, UNFINISHED, WAITING

if TYPE_CHECKING:
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.state import SchedulerState, TaskState

END_MARGIN_S = 5.0
"""Time after which the scheduler ends a task that its worker should have ended."""
MIN_SWEPT_ENTRIES = 1000


class TimeWindows:
    """Starts and ends tasks at the times that their user has set.

    Attributes
    ----------
    early : dict of TaskState
        Tasks whose time has not come.
    """

    def __init__(self, state: SchedulerState, tasks: TaskLifecycle) -> None:
        self._state = state
        self._tasks = tasks
        self.early: dict[TaskState, None] = {}
        self._entries: list[tuple[float, int, TaskState]] = []
        self._sequence = 0
        self._sweep_size = MIN_SWEPT_ENTRIES

    def task_submitted(self, task: TaskState) -> None:
        """Enter a task with conditions."""
        conditions = task.spec.conditions
        assert conditions is not None
        if conditions.time_start > self._state.now:
            self.early[task] = None
            task.missing_inputs += 1
            self._push(conditions.time_start, task)
        if conditions.time_end is not None:
            self._push(conditions.time_end, task)

    def _push(self, time: float, task: TaskState) -> None:
        self._sequence += 1
        heappush(self._entries, (time, self._sequence, task))
        if len(self._entries) > self._sweep_size:
            self._entries = [entry for entry in self._entries if entry[2].state in UNFINISHED]
            heapify(self._entries)
            self.early = {task: None for task in self.early if task.state in UNFINISHED}
            self._sweep_size = max(MIN_SWEPT_ENTRIES, 2 * len(self._entries))

    def tick(self) -> None:
        """Start tasks whose time has come, and end tasks whose time is over."""
        now = self._state.now
        while self._entries and self._entries[0][0] <= now:
            task = heappop(self._entries)[2]
            if task in self.early and now >= task.spec.conditions.time_start:  # type: ignore[union-attr]
                self._start(task)
            else:
                self._end(task)

    def _start(self, task: TaskState) -> None:
        del self.early[task]
        if task.state == WAITING:
            task.missing_inputs -= 1
            if not task.missing_inputs:
                self._tasks.mark_ready(task)

    def _end(self, task: TaskState) -> None:
        time_end = task.spec.conditions.time_end  # type: ignore[union-attr]
        # one that runs again because its result was lost has been in time
        if time_end is None or task.reported or task.state not in (WAITING, READY, ASSIGNED):
            return
        if task.state == ASSIGNED and self._state.now < time_end + END_MARGIN_S:
            self._push(time_end + END_MARGIN_S, task)
            return
        self.early.pop(task, None)
        reason = "it was not over at the time that set_time_end has given"
        exit_code = 9 if task.state == ASSIGNED else -1
        self._tasks.fail(task, "end time", {"reason": reason, "exit_code": exit_code}, b"")

    def stalled_reason(self) -> str:
        """Say that tasks wait for their time, if nothing runs."""
        if self._state.assigned:
            return ""
        for task in list(self.early):
            if task.state == WAITING:
                return f"{task.spec.label} waits for the time that set_time_start has given"
            del self.early[task]
        return ""
