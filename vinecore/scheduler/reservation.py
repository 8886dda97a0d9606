"""Room for a task that needs more of a worker than is ever free at once.

Small tasks take each core as soon as it is free, so a task that needs a whole worker would wait as long as there are small ones,
however urgent it is. The most urgent task that no worker has room for is therefore remembered. When a less urgent one has been
placed meanwhile, one worker is reserved: it gets nothing of other queues until the task is there. There is one reservation at a
time, so no two tasks wait for what the other holds. It ends when its task is placed anywhere, is gone, or waits for disk; when
something more urgent finds no room; and when its worker leaves, or will not stay long enough.

A task that is merely older than what is placed before it, and a library that another one keeps out, waits a while first: to start
libraries in turn, over and over, would cost more than it is worth.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.resources.amounts import allocate
from vinecore.scheduler.queues import queue_urgency
from vinecore.scheduler.transitions import READY

if TYPE_CHECKING:
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.state import SchedulerState, TaskQueue, TaskState, WorkerState


LOOK_AT = 64  # workers compared at a time
FEW = 4
AGAIN_S = 1.0  # until the next ones are, where none of those is large enough
PATIENCE_S = 10.0  # of a task that is not more urgent, but older


class Reservations:
    """Keeps one worker free for a task that starves; the record of it is `SchedulerState.reservation`."""

    def __init__(self, state: SchedulerState, queues: TaskQueues) -> None:
        self._state = state
        self._queues = queues
        self._reservation = state.reservation
        self._since = 0.0  # when the starving task was found
        self._look_again_at = 0.0
        self._row: dict[WorkerState, None] = {}  # of workers, those that were looked at last at the end

    def starves(self, queue: TaskQueue) -> bool:
        """Remember a queue whose most urgent task no worker has room for.

        Return whether a worker has room now, because the queue that it was kept for is less urgent.
        """
        if (
            queue is self._reservation.starving
            or not _may_starve(queue)
            or queue in self._queues.waiting_for_disk
        ):
            return False
        starving = self._reservation.starving
        if starving is None or not starving.front or queue_urgency(queue) < queue_urgency(starving):
            self._reservation.starving, self._since, self._look_again_at = queue, self._state.now, 0.0
            if self._reservation.queue is not None:
                self._queues.changed[self._reservation.queue] = None  # it is next
                self._queues.end_reservation()
                return bool(queue.workers_with_room)
        return False

    def placed(self, queue: TaskQueue, urgency: tuple[float, float]) -> None:
        """Reserve a worker if the task that was placed is less urgent than the one that starves."""
        starving = self._reservation.starving
        if queue is starving:
            self._reservation.starving = None
            self._queues.end_reservation()
        elif starving is not None and self._reservation.worker is None and urgency > queue_urgency(starving):
            between_libraries = starving.library is not None and queue.library is not None
            more_urgent = queue_urgency(starving)[0] < urgency[0] and not between_libraries
            if more_urgent or self._state.now - self._since >= PATIENCE_S:
                self._reserve(starving)

    def _reserve(self, queue: TaskQueue) -> None:
        task, now = _front(queue), self._state.now
        if task is None or now < self._look_again_at:
            return
        best: WorkerState | None = None
        for worker in list(islice(self._row, LOOK_AT)):
            del self._row[worker]
            self._row[worker] = None
            if self._suits(worker, task) and (best is None or _rank(worker) < _rank(best)):
                best = worker
        if best is None:
            self._look_again_at = now + AGAIN_S
            return
        self._reservation.worker, self._reservation.queue = best, queue
        self._queues.update_worker_everywhere(best)

    def _suits(self, worker: WorkerState, task: TaskState) -> bool:
        """Return whether a task could run on a worker that had nothing else to do."""
        queue = task.queue
        if worker.closed or worker.disconnecting or not self._queues.can_take(worker, task):
            return False
        # it takes its turn there in any case
        if any(other.queue is queue for other in islice(worker.tasks.values(), FEW)):
            return False
        if queue.library is not None:
            return allocate(queue.request, worker.total, rule=self._queues.share_rule) is not None
        return self._queues.allocation_on(queue, task.spec.task, worker) is not None

    def tick(self) -> None:
        """See whether what is reserved still has a purpose."""
        if self._reservation.queue is None or self._reservation.worker is None:
            return
        task = _front(self._reservation.queue)
        if task is None:
            self._queues.forget_reservation(self._reservation.queue)
        elif not self._suits(self._reservation.worker, task):
            self._queues.end_reservation()

    def worker_joined(self, worker: WorkerState) -> None:
        """Enter a new worker."""
        self._row[worker] = None
        self._look_again_at = 0.0

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a worker that is lost, or is leaving."""
        self._row.pop(worker, None)
        if worker is self._reservation.worker:
            self._queues.end_reservation()


def _front(queue: TaskQueue) -> TaskState | None:
    """Return the most urgent task of a queue if it is ready."""
    heap = queue.front
    task = heap[0][2] if heap else None
    return task if task is not None and task.state == READY else None


def _may_starve(queue: TaskQueue) -> bool:
    """Return whether a queue may starve; calls of a library that is up somewhere get their turn there."""
    return queue.library is None or not queue.running


def _rank(worker: WorkerState) -> tuple[float, int]:
    """Return a number that is smaller the sooner a worker will be empty, as far as can be seen."""
    busy = 1.0 - worker.free.cores / max(worker.total.cores, 1)
    return busy, len(worker.tasks)
