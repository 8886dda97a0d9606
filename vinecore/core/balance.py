"""Takes back what was queued ahead when another worker has nothing to do.

Calls wait on a worker beyond its slots to cover the way to the manager and back. At the end of a graph, or when a worker joins, that leaves some
workers with a queue and others with nothing. Then half of the longest queue, of a few that are looked at, is recalled and placed again. What has begun stays where it is.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.core.instructions import Send
from vinecore.protocol import messages as m

if TYPE_CHECKING:
    from vinecore.core.mind import Mind
    from vinecore.core.state import Bucket, Instance, Worker

LOOK_AT = 16  # workers whose queues are compared
WORTH_S = 0.005  # shorter calls are over before they could be moved


class Balance:
    """Moves queued calls to idle workers. One of the mind's parts."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind

    def idle(self, worker: Worker, bucket: Bucket) -> None:
        """A worker has a free slot, and no task of this bucket is ready."""
        workers = self._mind.tables.workers
        if (
            bucket.library is None
            or bucket.urgent
            or worker.draining
            or self._mind.reservation.excludes(worker, bucket)
            or len(workers) < 2
            or (bucket.mean_s or WORTH_S) < WORTH_S
        ):
            return
        name = bucket.library.spec.name
        longest: tuple[int, Worker, Instance] | None = None
        for other in islice(workers.values(), LOOK_AT):
            instance = other.libraries.get(name)
            if instance is None or other is worker or instance.recalling:
                continue
            queued = instance.assigned - instance.slots
            if queued > 0 and (longest is None or queued > longest[0]):
                longest = (queued, other, instance)
        if longest is not None:
            queued, other, instance = longest
            instance.recalling = True
            self._mind.emit(Send(other.id, m.Recall(name, max(1, queued // 2))))

    def joined(self, worker: Worker) -> None:
        """A worker is new: what waits elsewhere may run there."""
        for bucket in self._mind.tables.buckets.values():
            if bucket.running and worker in bucket.open:
                self.idle(worker, bucket)

    def recalled(self, worker: Worker, message: m.Recalled) -> None:
        """A worker has given calls back."""
        instance = worker.libraries.get(message.library)
        if instance is not None:
            instance.recalling = False
        for number in message.tasks:
            task = worker.tasks.get(number)
            if task is not None:
                self._mind.life.leave(task)
                self._mind.life.back(task, "")
