"""Room for a task that needs more of a worker than is ever free at once.

Small tasks take each core as soon as it is free, so a task that needs a whole worker would wait as long as there are small ones, however
urgent it is. The most urgent task that no worker has room for is therefore remembered; when a less urgent one has been placed meanwhile,
one worker is reserved: it gets nothing of other buckets until the task is there. There is one reservation at a time, so nobody waits for
what somebody else holds. It ends when its task is placed anywhere, is gone, or waits for disk; when something more urgent finds no room; and
when its worker leaves, or will not stay long enough.

Who is merely older than what is placed before it, and a library that another one keeps out, waits a while first: to start libraries in turn, over
and over, would cost more than it is worth.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.resources.amounts import allocate
from vinecore.scheduler.transitions import READY

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import TaskQueue, TaskState, WorkerState

LOOK_AT = 64  # workers compared at a time
FEW = 4
AGAIN_S = 1.0  # until the next ones are, where none of those is large enough
PATIENCE_S = 10.0  # of who is not more urgent, but older


class Reservation:
    """Keeps one worker free for a task that starves. One of the mind's parts.

    Attributes
    ----------
    worker, bucket
        Which worker is kept for the tasks of which bucket; None and None if none is.
    starving
        The bucket with the most urgent task that nobody had room for; None if there is none.
    """

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self.worker: WorkerState | None = None
        self.bucket: TaskQueue | None = None
        self.starving: TaskQueue | None = None
        self._since = 0.0  # when it was found to be
        self._look_again_at = 0.0
        self._row: dict[WorkerState, None] = {}  # of workers, those that were looked at last at the end

    def excludes(self, worker: WorkerState, bucket: TaskQueue) -> bool:
        """Whether a worker is kept for another bucket than this one."""
        return worker is self.worker and bucket is not self.bucket

    def starves(self, bucket: TaskQueue) -> bool:
        """No worker has room for the most urgent task of a bucket; whether one has now, because what it was kept for is less urgent."""
        if bucket is self.starving or not _may_starve(bucket) or bucket in self._mind.disk.waiting_for_disk:
            return False
        starving = self.starving
        if starving is None or not starving.front or _urgency(bucket) < _urgency(starving):
            self.starving, self._since, self._look_again_at = bucket, self._mind.now, 0.0
            if self.bucket is not None:
                self._mind.placement.changed[self.bucket] = None  # it is next
                self.end()
                return bool(bucket.workers_with_room)
        return False

    def placed(self, bucket: TaskQueue, urgency: tuple[float, float]) -> None:
        """A task has got a worker, perhaps one that was less urgent than who starves."""
        starving = self.starving
        if bucket is starving:
            self.starving = None
            self.end()
        elif starving is not None and self.worker is None and urgency > _urgency(starving):
            between_libraries = starving.library is not None and bucket.library is not None
            more_urgent = _urgency(starving)[0] < urgency[0] and not between_libraries
            if more_urgent or self._mind.now - self._since >= PATIENCE_S:
                self._reserve(starving)

    def _reserve(self, bucket: TaskQueue) -> None:
        task, now = _front(bucket), self._mind.now
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
        self.worker, self.bucket = best, bucket
        self._mind.placement.update_worker_everywhere(best)

    def _suits(self, worker: WorkerState, task: TaskState) -> bool:
        """Whether a task could run on a worker that had nothing else to do."""
        placement, bucket = self._mind.placement, task.bucket
        if worker.draining or worker.disconnecting or not placement.can_take(worker, task):
            return False
        if any(
            other.bucket is bucket for other in islice(worker.tasks.values(), FEW)
        ):  # it takes its turn there in any case
            return False
        if bucket.library is not None:
            return allocate(bucket.request, worker.total) is not None
        return placement.allocate(bucket, task.spec.task, worker) is not None

    def end(self) -> None:
        """Let others have the worker again."""
        worker, self.worker, self.bucket = self.worker, None, None
        if worker is not None and worker.id in self._mind.tables.workers:
            self._mind.placement.update_worker_everywhere(worker)

    def forget(self, bucket: TaskQueue) -> None:
        """A bucket has nothing to place any more, or waits for something else than room."""
        if bucket is self.starving:
            self.starving = None
        if bucket is self.bucket:
            self.end()

    def tick(self) -> None:
        """See whether what is reserved still has a purpose."""
        if self.bucket is None or self.worker is None:
            return
        task = _front(self.bucket)
        if task is None:
            self.forget(self.bucket)
        elif not self._suits(self.worker, task):
            self.end()

    def joined(self, worker: WorkerState) -> None:
        """There is a new worker."""
        self._row[worker] = None
        self._look_again_at = 0.0

    def gone(self, worker: WorkerState) -> None:
        """A worker has left, or leaves."""
        self._row.pop(worker, None)
        if worker is self.worker:
            self.end()


def _front(bucket: TaskQueue) -> TaskState | None:
    """The most urgent task of a bucket that is ready."""
    queue = bucket.front
    task = queue[0][2] if queue else None
    return task if task is not None and task.state == READY else None


def _urgency(bucket: TaskQueue) -> tuple[float, float]:
    queue = bucket.front
    return queue[0][:2] if queue else (float("inf"), 0)


def _may_starve(bucket: TaskQueue) -> bool:
    """Calls of a library that is up somewhere get their turn there."""
    return bucket.library is None or not bucket.running


def _rank(worker: WorkerState) -> tuple[float, int]:
    """Smaller is sooner empty, as far as one can see."""
    busy = 1.0 - worker.free.cores / max(worker.total.cores, 1)
    return busy, len(worker.tasks)
