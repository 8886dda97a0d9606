"""What the attempts of a task have cost: for the user only, no decision depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vinecore.resources.amounts import Resources


class TaskAccounts:
    """The costs of a task; only a task that has any has accounts.

    Attributes
    ----------
    granted : Resources or None
        What the last attempt got of its worker.
    sent_bytes, received_bytes : int
        Bytes of files that the manager sent to workers for the task, and that were brought to it.
    lost_s, exhausted_s : float
        Durations of attempts that were lost with a process or worker, and of those that used more
        than they got.
    failed_s : float
        Duration of the last attempt that has failed.
    executed_at : float
        When the last attempt was over; 0.0 if nothing had to be brought to the manager after it.
    """

    __slots__ = (
        "executed_at",
        "exhausted_s",
        "failed_s",
        "granted",
        "lost_s",
        "received_bytes",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.granted: Resources | None = None
        self.sent_bytes = self.received_bytes = 0
        self.lost_s = self.exhausted_s = self.failed_s = self.executed_at = 0.0

    def add_lost_attempt(self, wall_s: float) -> None:
        """Account for an attempt whose process or worker was lost."""
        self.lost_s += wall_s
        self.failed_s = wall_s

    def add_failed_attempt(self, wall_s: float, *, exhausted: bool) -> None:
        """Account for an attempt that its worker reports as failed."""
        if exhausted:
            self.exhausted_s += wall_s
        self.failed_s = wall_s
