"""Which worker gets a ready task.

A task goes where it would start first: where most of its input bytes are if that saves more than waiting there costs, else to the
least loaded of a few workers with room; but roots that follow each other fill the slots of one worker after the other, where a
graph will need all of them.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

from vinecore.scheduler.state import is_root

if TYPE_CHECKING:
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.specs import PlacementConditions
    from vinecore.scheduler.state import SchedulerState, TaskQueue, TaskState, WorkerState


MAX_CANDIDATES = 8  # workers compared for one task
MAX_FALLBACK_CANDIDATES = 64  # workers looked at where none of those will do
MAX_INPUTS_COMPARED = 64
BANDWIDTH = 250e6  # bytes/s between workers, assumed
LATENCY_S = 0.002  # per transfer, assumed
DEFAULT_DURATION_S = 0.02  # of a call that has not been measured yet


class WorkerChoice:
    """Chooses a worker for a task.

    Attributes
    ----------
    policy : str
        Name of the rule, as in `Manager.set_scheduler`.
    """

    def __init__(self, state: SchedulerState, queues: TaskQueues, disk: DiskAccounts) -> None:
        self._state = state
        self._queues = queues
        self._disk = disk
        self._reservation = state.reservation
        self.policy = "files"
        self._counter = 0
        self._needed_disk = 0  # bytes of disk that the task needs which is being placed

    def choose(self, task: TaskState, queue: TaskQueue) -> WorkerState | None:
        """Return the worker that a task goes to; None if none has room for it now."""
        self._needed_disk = self._disk.required_bytes(task) if self._state.disk_tracked else 0
        if queue.conditions is not None:
            return self._choose_conditional(task, queue, queue.conditions)
        if self.policy != "files":
            return self._choose_by_policy(task, queue, self.policy)
        return self._choose_by_files(task, queue)

    def _choose_conditional(
        self, task: TaskState, queue: TaskQueue, conditions: PlacementConditions
    ) -> WorkerState | None:
        # a file that tasks insist on may have gone since
        for worker in list(queue.workers_with_room) if conditions.strict_inputs else ():
            self._queues.update_worker(worker, queue)
        policy = conditions.schedule or self.policy
        if policy != "files":
            return self._choose_by_policy(task, queue, policy)
        return self._choose_by_files(task, queue)

    def _choose_by_files(self, task: TaskState, queue: TaskQueue) -> WorkerState | None:
        neighbour = self._last_root_worker(task, queue)
        if neighbour is not None:
            return neighbour
        least: WorkerState | None = None
        least_load = math.inf
        for worker in islice(queue.workers_with_room, MAX_CANDIDATES):
            load = self.relative_load(worker, queue)
            if load < least_load and self.fits(task, worker, queue):
                least, least_load = worker, load
        if least is None:
            least = self._first_that_fits(task, queue)
        if not task.inputs or len(self._state.workers) == 1:
            return least
        return self._by_locality(task, queue, least)

    def _last_root_worker(self, task: TaskState, queue: TaskQueue) -> WorkerState | None:
        """Return, for a root, the worker of the root before, as long as a slot is free there.

        Neighbours mostly have a common reader. None if not all slots of the workers will be needed.
        """
        worker = queue.last_root_worker
        if worker is None or worker not in queue.workers_with_room or not is_root(task):
            return None
        instance = worker.libraries.get(queue.key[0])
        if instance is None or instance.assigned >= instance.slots or not self.fits(task, worker, queue):
            return None
        expected = max(task.graph.spec.size, queue.unfinished)
        return worker if expected > instance.slots * len(self._state.workers) else None

    def _first_that_fits(self, task: TaskState, queue: TaskQueue) -> WorkerState | None:
        """Look further where the estimate behind `workers_with_room` was wrong.

        Workers that are too small go to the end of the row.
        """
        for worker in list(islice(queue.workers_with_room, MAX_FALLBACK_CANDIDATES)):
            if self.fits(task, worker, queue):
                return worker
            del queue.workers_with_room[worker]
            queue.workers_with_room[worker] = None
        return None

    def _by_locality(
        self, task: TaskState, queue: TaskQueue, least: WorkerState | None
    ) -> WorkerState | None:
        held: dict[WorkerState, int] = {}
        total = 0
        for file in islice(task.inputs, MAX_INPUTS_COMPARED):
            total += max(file.size, 0)
            for holder in islice(file.replicas, MAX_CANDIDATES):
                held[holder] = held.get(holder, 0) + max(file.size, 1)
        best, best_cost = (
            least,
            math.inf if least is None else self._start_delay(least, queue, total - held.get(least, 0)),
        )
        for worker in sorted(held, key=held.__getitem__, reverse=True)[:MAX_CANDIDATES]:
            may_queue = (
                queue.library is not None
                and queue.library.spec.name in worker.libraries
                and least is not None
                and not worker.closed
                and not self._reservation.excludes(worker, queue)
                and (queue.conditions is None or self._queues.is_suitable(worker, queue))
            )
            if worker in queue.workers_with_room or may_queue:
                cost = self._start_delay(worker, queue, total - held[worker])
                if cost < best_cost and self.fits(task, worker, queue):
                    best, best_cost = worker, cost
        return best

    def _start_delay(self, worker: WorkerState, queue: TaskQueue, missing_bytes: int) -> float:
        """Return the seconds until a task could start on a worker: its queue there and the bytes it lacks."""
        fetch = missing_bytes / BANDWIDTH + LATENCY_S if missing_bytes > 0 else 0.0
        if queue.library is None:
            return fetch
        instance = worker.libraries.get(queue.library.spec.name)
        if instance is None or instance.assigned < instance.slots:
            return fetch
        mean = DEFAULT_DURATION_S if queue.mean_s is None else queue.mean_s
        return fetch + (1 + instance.assigned - instance.slots) * mean / instance.slots

    def _choose_by_policy(self, task: TaskState, queue: TaskQueue, policy: str) -> WorkerState | None:
        fitting = [
            w for w in islice(queue.workers_with_room, MAX_FALLBACK_CANDIDATES) if self.fits(task, w, queue)
        ]
        if not fitting:
            return None
        if self._state.tuning.task_groups and (holder := self._holder_of_intermediates(task, fitting)):
            return holder
        if policy == "fcfs":
            return min(fitting, key=lambda w: w.id)
        # the scheduler has no randomness: multiples of a large number are as good for spreading
        if policy == "rand":
            self._counter += 1
            return fitting[(self._counter * 2654435761 >> 7) % len(fitting)]
        if policy == "worst":
            return max(
                fitting, key=lambda w: ((1 - self.relative_load(w, queue)) * w.total.cores, -len(w.tasks))
            )
        if policy == "disk":
            return max(fitting, key=lambda w: w.free_disk)
        # "time": who has not been tried, then the fastest
        return min(fitting, key=lambda w: (w.wall_s is not None, w.wall_s or 0.0))

    def _holder_of_intermediates(self, task: TaskState, workers: list[WorkerState]) -> WorkerState | None:
        """Return the first of these workers that has all that other tasks have made for a task."""
        made = [file for file in task.inputs if file.producer is not None]
        return next((w for w in workers if made and all(w in file.replicas for file in made)), None)

    def relative_load(self, worker: WorkerState, queue: TaskQueue) -> float:
        """Return how much of a worker is in use, as far as a queue is concerned; above 1 if calls wait there."""
        if queue.library is None:
            return 1.0 - worker.free.cores / max(worker.total.cores, 1)
        instance = worker.libraries.get(queue.library.spec.name)
        return 0.5 if instance is None else instance.assigned / instance.slots

    def can_take_now(self, task: TaskState, worker: WorkerState, queue: TaskQueue) -> bool:
        """Return whether a worker has room for a task now."""
        self._needed_disk = self._disk.required_bytes(task) if self._state.disk_tracked else 0
        return self.fits(task, worker, queue)

    def fits(self, task: TaskState, worker: WorkerState, queue: TaskQueue) -> bool:
        """Return whether a worker has room for the task that is being placed."""
        if queue.library is None and not self.fits_resources(task, worker):
            return False
        if worker.ends_at is not None and self._queues.exceeds_remaining_time(
            worker, queue, self._queues.expected_duration(task)
        ):
            return False
        return not self._needed_disk or self._disk.fits(task, worker, self._needed_disk)

    def fits_resources(self, task: TaskState, worker: WorkerState) -> bool:
        """Return whether a worker has what a task asks for, disk for its files aside."""
        queue = task.queue
        if queue.library is not None:
            return True
        allocation = self._queues.allocation_on(queue, task.spec.task, worker)
        return allocation is not None and allocation.fits(worker.free)
