"""A run as it is reported: its history, the time span that counts, and when tasks ran."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vinecore.journal.history import History, WorkerHistory


class TaskInterval(NamedTuple):
    """The cores of a worker that a task had, and the time."""

    worker: int
    start: float
    end: float
    cores: float
    category: str
    well: bool


class TimeWindow(NamedTuple):
    """The part of a run that counts: from the first submission to the end of the last task."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


class ReportedRun:
    """A run as it is reported.

    Attributes
    ----------
    history : journal.History
        The history of the run, from its journal.
    span : TimeWindow
        The part of it that counts.
    uses : list of TaskInterval
        The time that tasks have run on workers, where it is known, in the order of their starts.
    lost : list of WorkerDisconnected
        The workers that were lost before the run was over.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.span = _find_window(history)
        self.uses = sorted(_find_task_intervals(history), key=lambda use: use.start)
        gone = [worker.lost for worker in history.workers.values() if worker.lost is not None]
        self.lost = [record for record in gone if record.t <= self.span.end]

    def connected_seconds(self, worker: WorkerHistory) -> float:
        """How long a worker was connected, within the part that counts."""
        end = self.span.end if worker.lost is None else min(worker.lost.t, self.span.end)
        return max(0.0, end - max(worker.joined.t, self.span.start))


def _find_window(history: History) -> TimeWindow:
    tasks = history.tasks.values()
    start = min((task.submitted.t for task in tasks), default=0.0)
    end, running = start, False
    for task in tasks:
        for attempt in task.attempts:
            if attempt.ended is None:
                running = True
            elif attempt.ended > end:
                end = attempt.ended
    return TimeWindow(start, history.end if running else end)


def _find_task_intervals(history: History) -> Iterator[TaskInterval]:
    for task in history.tasks.values():
        for attempt in task.attempts:
            start, end = attempt.started_at, attempt.ended
            if start is not None and end is not None:
                yield TaskInterval(
                    attempt.worker,
                    start,
                    end,
                    attempt.cores,
                    task.submitted.category,
                    attempt.outcome == "done",
                )
