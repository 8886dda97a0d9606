"""The statistics of a queue under Work Queue's names."""

from __future__ import annotations

from typing import Any

# Older names of Work Queue, and what they are called now.
SYNONYMS = {
    "workers_fast_aborted": "workers_slow",
    "workers_ready": "workers_idle",
    "workers_full": "workers_busy",
    "workers_blacklisted": "workers_blocked",
    "tasks_complete": "tasks_with_results",
    "total_workers_connected": "workers_connected",
    "total_workers_joined": "workers_joined",
    "total_workers_removed": "workers_removed",
    "total_workers_lost": "workers_lost",
    "total_workers_idled_out": "workers_idled_out",
    "total_workers_fast_aborted": "workers_slow",
    "total_worker_slots": "total_cores",
    "total_tasks_dispatched": "tasks_dispatched",
    "total_tasks_complete": "tasks_done",
    "total_tasks_failed": "tasks_failed",
    "total_tasks_cancelled": "tasks_cancelled",
    "total_exhausted_attempts": "tasks_exhausted_attempts",
    "start_time": "time_when_started",
    "total_send_time": "time_send",
    "total_receive_time": "time_receive",
    "total_execute_time": "time_workers_execute",
    "total_good_execute_time": "time_workers_execute_good",
    "total_bytes_sent": "bytes_sent",
    "total_bytes_received": "bytes_received",
    "capacity": "capacity_tasks",
    "avg_capacity": "capacity_tasks",
}
NAMES = (
    "workers_connected", "workers_init", "workers_idle", "workers_busy", "workers_able", "workers_joined", "workers_removed",
    "workers_released", "workers_idled_out", "workers_fast_aborted", "workers_blocked", "workers_lost",
    "tasks_waiting", "tasks_on_workers", "tasks_running", "tasks_with_results",
    "tasks_submitted", "tasks_dispatched", "tasks_done", "tasks_failed", "tasks_cancelled", "tasks_exhausted_attempts",
    "time_when_started", "time_send", "time_receive", "time_send_good", "time_receive_good", "time_status_msgs", "time_internal",
    "time_polling", "time_application", "time_workers_execute", "time_workers_execute_good", "time_workers_execute_exhaustion",
    "bytes_sent", "bytes_received", "bandwidth",
    "capacity_tasks", "capacity_cores", "capacity_memory", "capacity_disk", "capacity_instantaneous", "capacity_weighted", "manager_load",
    "total_cores", "total_memory", "total_disk", "total_gpus", "committed_cores", "committed_memory", "committed_disk", "committed_gpus",
    "max_cores", "max_memory", "max_disk", "max_gpus", "min_cores", "min_memory", "min_disk", "min_gpus",
)  # fmt: skip
"""The numbers of the statistics log, in its order."""


def _reader(name: str) -> Any:
    current = SYNONYMS.get(name, name)
    return property(lambda statistics: getattr(statistics.numbers, current, 0), doc=f"The number {name}.")


class QueueStatistics:
    """Numbers about a queue, as attributes; 0 for those that have no meaning here.

    Parameters
    ----------
    numbers : object
        The statistics of the manager.
    """

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers


# As members of the class: programs look for the names there.
for _name in (*NAMES, *SYNONYMS):
    setattr(QueueStatistics, _name, _reader(_name))
