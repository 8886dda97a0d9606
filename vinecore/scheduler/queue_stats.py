"""What a manager could use: the numbers that a factory decides by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vinecore.scheduler.replicas import has_safe_replica, is_needed

if TYPE_CHECKING:
    from vinecore.scheduler.state import SchedulerState, WorkerState

MANAGER_SECONDS_PER_TASK = 1e-4  # the manager's own time for one task, with its share of what goes in and out


class QueueStats(NamedTuple):
    """What there is to do.

    Attributes
    ----------
    waiting : int
        Tasks that could run now, if a worker had room.
    running : int
        Tasks that are on workers.
    workers : int
        Workers that are connected.
    cores : float
        Cores that the waiting tasks ask for; one for each that does not say.
    capacity : int
        As many tasks as the manager could keep running at once, judged by how long they take; 0 if that is not known.
    left : int
        Tasks that the user says will still be submitted.
    pilots : tuple of str or None
        Connected workers that a factory has started, as the factory calls them; None if that is not known.
    """

    waiting: int = 0
    running: int = 0
    workers: int = 0
    cores: float = 0.0
    capacity: int = 0
    left: int = 0
    pilots: tuple[str, ...] | None = None


def queue_stats(state: SchedulerState) -> QueueStats:
    """Count what waits and what runs; asked for every few seconds, never on the way of a task."""
    waiting = weighed = 0
    cores = total_s = 0.0
    for queue in state.queues.values():
        ready = max(0, len(queue.ready) + len(queue.roots) - queue.stale_entries)
        waiting += ready
        cores += ready * (queue.request.cores or 1.0)
        if queue.mean_s is not None and ready + queue.running:
            weighed += ready + queue.running
            total_s += (ready + queue.running) * queue.mean_s
    capacity = max(1, int(total_s / weighed / MANAGER_SECONDS_PER_TASK)) if weighed else 0
    return QueueStats(waiting, state.assigned, len(state.workers), cores, capacity)


def is_idle_and_safe_to_remove(worker: WorkerState) -> bool:
    """Return whether a worker does nothing, and has nothing that only it has and that is needed."""
    if worker.tasks or worker.fetching or worker.outgoing or worker.disconnecting or worker.draining:
        return False
    return not any(is_needed(file) and not has_safe_replica(file, worker) for file in worker.files)
