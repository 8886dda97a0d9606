"""Takes back what was queued ahead when another worker has nothing to do.

Calls wait on a worker beyond its slots to cover the way to the manager and back. At the end of a graph, or when a worker joins,
that leaves some workers with a queue and others with nothing. Then half of the longest queue, of a few that are looked at, is
recalled and placed again. What has begun stays where it is.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.protocol import messages
from vinecore.scheduler.instructions import Send

if TYPE_CHECKING:
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.state import LibraryInstance, SchedulerState, TaskQueue, WorkerState


LOOK_AT = 16  # workers whose queues are compared
MIN_DURATION_S = 0.005  # shorter calls are over before they could be moved


class WorkStealing:
    """Moves queued calls to idle workers."""

    def __init__(self, state: SchedulerState, outbox: Outbox, tasks: TaskLifecycle) -> None:
        self._state = state
        self._outbox = outbox
        self._tasks = tasks
        self._reservation = state.reservation

    def on_slot_freed(self, worker: WorkerState, queue: TaskQueue) -> None:
        """Recall queued calls for a worker with a free slot, if no call is ready."""
        workers = self._state.workers
        if (
            queue.library is None
            or queue.front
            or worker.closed
            or self._reservation.excludes(worker, queue)
            or len(workers) < 2
            or (queue.mean_s or MIN_DURATION_S) < MIN_DURATION_S
        ):
            return
        name = queue.library.spec.name
        longest: tuple[int, WorkerState, LibraryInstance] | None = None
        for other in islice(workers.values(), LOOK_AT):
            instance = other.libraries.get(name)
            if instance is None or other is worker or instance.steal_pending:
                continue
            queued = instance.assigned - instance.slots
            if queued > 0 and (longest is None or queued > longest[0]):
                longest = (queued, other, instance)
        if longest is not None:
            queued, other, instance = longest
            instance.steal_pending = True
            self._outbox.emit(Send(other.id, messages.StealRequest(name, max(1, queued // 2))))

    def worker_joined(self, worker: WorkerState) -> None:
        """Recall calls that wait elsewhere for a new worker."""
        for queue in self._state.queues.values():
            if queue.running and worker in queue.workers_with_room:
                self.on_slot_freed(worker, queue)

    def on_calls_returned(self, worker: WorkerState, message: messages.StealResponse) -> None:
        """Queue calls again that a worker has given back."""
        instance = worker.libraries.get(message.library)
        if instance is not None:
            instance.steal_pending = False
        for number in message.tasks:
            task = worker.tasks.get(number)
            if task is not None:
                self._tasks.withdraw(task)
                self._tasks.requeue(task, "")
