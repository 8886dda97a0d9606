"""Counters of events that leave no trace in the scheduler's tables."""

from __future__ import annotations


class Counters:
    """Numbers since the start of the manager.

    What can be read from the tables, or computed from them, is not counted: `statistics` does that when
    it is asked. In particular no counter changes when a task is dispatched or succeeds.

    Attributes
    ----------
    tasks_submitted : int
        Tasks of users and of graphs.
    tasks_failed, tasks_cancelled : int
        Tasks that have failed for good, or that were dropped before their end.
    tasks_recovery : int
        Tasks that run again because their results were lost.
    tasks_retrieving : int
        Tasks whose outputs are on their way to the manager now.
    attempts_withdrawn : int
        Attempts of tasks on workers that have ended without success.
    attempts_exhausted : int
        Attempts that have exceeded a limit.
    failed_s, exhausted_s : float
        The seconds that attempts took which have failed, and, of these, which have exceeded a limit.
    workers_joined, workers_released, workers_idled_out, workers_slow, workers_lost : int
        Workers that have connected; that the manager has let go; that have left because they had nothing
        to do; that were too slow; and that were lost without notice.
    bytes_sent, bytes_received : int
        Contents of files that workers got from the manager, or the manager from workers.
    """

    __slots__ = (
        "attempts_exhausted",
        "attempts_withdrawn",
        "bytes_received",
        "bytes_sent",
        "exhausted_s",
        "failed_s",
        "tasks_cancelled",
        "tasks_failed",
        "tasks_recovery",
        "tasks_retrieving",
        "tasks_submitted",
        "workers_idled_out",
        "workers_joined",
        "workers_lost",
        "workers_released",
        "workers_slow",
    )

    def __init__(self) -> None:
        self.tasks_submitted = self.tasks_failed = self.tasks_cancelled = self.tasks_recovery = 0
        self.tasks_retrieving = self.attempts_withdrawn = self.attempts_exhausted = 0
        self.workers_joined = self.workers_released = self.workers_idled_out = 0
        self.workers_slow = self.workers_lost = 0
        self.bytes_sent = self.bytes_received = 0
        self.failed_s = self.exhausted_s = 0.0
