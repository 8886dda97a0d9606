"""Queues of ready tasks, and which workers have room for one task more of each.

Ready tasks wait in queues by what they require. Every queue knows the workers that have room for one more of its tasks, so that
an event costs a handful of workers and the few queues there are, however many tasks wait.

Calls are sent ahead of need: as many beyond the slots of a library as cover the way to the manager and back, by measured durations.
"""

from __future__ import annotations

import math
import zlib
from heapq import heapify, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.resources.amounts import UNSPECIFIED, USUAL_SHARES, ResourceRequest, Resources, allocate
from vinecore.resources.categories import Category
from vinecore.scheduler.conditions import meets_conditions
from vinecore.scheduler.state import TaskQueue, is_root
from vinecore.scheduler.transitions import READY

if TYPE_CHECKING:
    from vinecore.scheduler.signals import Signals
    from vinecore.scheduler.specs import TaskSpec
    from vinecore.scheduler.state import LibraryInstance, LibraryState, SchedulerState, TaskState, WorkerState


MAX_GENERATIONS = 16  # of readers, for when the result of a task is needed again
MAX_READERS = 64
PREFETCH_S = 0.010  # work queued on a worker beyond its slots, to cover the round trip
# Longer calls wait at the manager: one queued in the wrong place costs more than a round trip.
MAX_PREFETCH_DURATION_S = 0.1
MAX_PREFETCHED_PER_SLOT = 256  # calls per slot


class TaskQueues:
    """All queues of ready tasks.

    Attributes
    ----------
    changed : dict of TaskQueue
        Queues with something new to try.
    waiting_for_disk : dict of TaskQueue
        Queues whose most urgent task waits for disk.
    steady_n : int
        Tasks of a category that are measured before the category learns from them.
    share_rule : ShareRule
        What tasks get that they do not ask for.
    extra_long_calls : int
        Calls for each slot of a library that are sent ahead although calls are long.
    largest_worker : Resources or None
        What the largest connected worker has.
    """

    def __init__(self, signals: Signals, state: SchedulerState) -> None:
        self._signals = signals
        self._state = state
        self._reservation = state.reservation
        self._reservation = state.reservation
        self.changed: dict[TaskQueue, None] = {}
        self.waiting_for_disk: dict[TaskQueue, None] = {}
        self.steady_n = 25
        self.share_rule = USUAL_SHARES
        self.extra_long_calls = 0
        self.largest_worker: Resources | None = None
        self._sequence = 0

    # ---- ready tasks

    def push(self, task: TaskState) -> None:
        """Enter a ready task in its queue."""
        self._sequence += 1
        queue = task.queue
        heap = queue.roots if not task.inputs or is_root(task) else queue.ready
        heappush(heap, (self._priority(task), self._sequence, task))
        self.changed[queue] = None

    def _priority(self, task: TaskState) -> float:
        """Return a number that is smaller the sooner a task runs. The modes are TaskVine's; the default is dask's order."""
        mode = task.graph.spec.priority_mode
        if not mode:
            return task.spec.priority if task.recomputations <= 0 else self._recomputation_priority(task)
        if mode == "FIFO":
            return self._sequence
        if mode == "LIFO":
            return -self._sequence
        if mode == "depth-first":
            return -task.spec.depth
        if mode == "breadth-first":
            return task.spec.depth
        if mode == "largest-input-first":
            return -sum(max(file.size, 0) for file in task.inputs)
        if mode == "random":  # the scheduler has no randomness: a checksum is as good for spreading
            return zlib.crc32(b"%d" % task.spec.task)
        _count, mean = self._state.category_walls.get(task.spec.category, (0, None))
        if mean is None:
            return float("-inf")
        return -mean if mode == "longest-category-first" else mean

    def _recomputation_priority(self, task: TaskState) -> float:
        """Return a priority just before the first reader's: until then the result would only take room."""
        turn = task.spec.priority
        for _generation in range(MAX_GENERATIONS):
            readers = [reader for file in task.outputs for reader in islice(file.consumers, MAX_READERS)]
            if not readers:
                break
            task = min(readers, key=lambda reader: reader.spec.priority)
            turn = max(turn, task.spec.priority - 0.5)
            if task.recomputations <= 0:
                break
        return turn

    def mark_stale(self, queue: TaskQueue) -> None:
        """Count an entry of a queue as stale; sweep the queue when half of it is."""
        queue.stale_entries += 1
        if queue.stale_entries > 16 and 2 * queue.stale_entries > len(queue.ready) + len(queue.roots):
            for heap in (queue.ready, queue.roots):
                live = {entry[2]: entry for entry in heap if entry[2].state == READY}
                heap[:] = live.values()
                heapify(heap)
            queue.stale_entries = 0

    # ---- queues

    def queue_for(self, spec: TaskSpec, request: ResourceRequest) -> TaskQueue:
        """Find or make the queue of a task that asks for this."""
        python = spec.python and not spec.environment
        key: tuple[Any, ...] = (spec.library,) if spec.library else ("", spec.category, request, python)
        conditions = None
        if spec.conditions is not None:
            conditions = spec.conditions.placement
            key = (*key, conditions)
        queue = self._state.queues.get(key)
        if queue is None:
            if spec.library:
                library = self._state.libraries[spec.library]
                queue = TaskQueue(
                    key, library, None, library.spec.request, not library.spec.environment, conditions
                )
            else:
                category = self._state.categories.setdefault(
                    spec.category, Category(spec.category, steady_n=self.steady_n)
                )
                queue = TaskQueue(key, None, category, request, python, conditions)
                self._state.disk_tracked |= self.requested_disk_mb(queue) > 0
            self._state.queues[key] = queue
            for worker in self._state.workers.values():
                self.update_worker(worker, queue)
        return queue

    def remove_if_empty(self, queue: TaskQueue) -> None:
        """Forget a queue that no unfinished task is in; that of a library goes with the library."""
        if queue.unfinished:
            return
        if queue.library is None or queue.conditions is not None:
            self._state.queues.pop(queue.key, None)
            self.deactivate(queue)
        if queue.library is not None and queue.library.retired and self.is_unused(queue.library):
            self._signals.library_unused(queue.library)

    def is_unused(self, library: LibraryState) -> bool:
        """Return whether no unfinished task is a call of a library."""
        return not any(queue.unfinished for queue in self._state.queues.values() if queue.library is library)

    def deactivate(self, queue: TaskQueue) -> None:
        """Try a queue no more, as there is nothing to do for it."""
        self.changed.pop(queue, None)
        self.waiting_for_disk.pop(queue, None)
        self.forget_reservation(queue)

    def move(self, task: TaskState) -> None:
        """Move a task that asks for something else now to the queue for that."""
        old = task.queue
        task.queue = self.queue_for(task.spec, task.request)
        task.queue.unfinished += 1
        old.unfinished -= 1
        self.remove_if_empty(old)

    def effective_request(self, queue: TaskQueue, number: int) -> ResourceRequest:
        """Return what a task asks for: its own request, completed by what its category says or has learned."""
        category = queue.category
        if category is None:
            return queue.request
        learned = category.initial_request(number)
        # a peak that is rounded up must not ask for more than there is
        if category.learns and self.largest_worker is not None:
            learned = learned.at_most(ResourceRequest(*self.largest_worker))
        return queue.request.with_defaults(learned)

    def allocation_on(self, queue: TaskQueue, number: int, worker: WorkerState) -> Resources | None:
        """Return what a task would get of a worker; None if it is too large for it."""
        minimum = UNSPECIFIED if queue.category is None else queue.category.minimum
        return allocate(self.effective_request(queue, number), worker.total, minimum, self.share_rule)

    def record_usage(self, category: Category, measured: dict[str, Any], wall_s: float) -> None:
        """Let a category learn from a finished task."""
        cores, memory, disk = (measured.get(k) or 0 for k in ("cores", "memory", "disk"))
        category.record(Resources(float(cores), int(memory), int(disk), 0), wall_s)

    def grow_request(self, task: TaskState, info: dict[str, Any]) -> bool:
        """Return whether a task that passed a limit may be tried with more; set what it asks for then."""
        category = task.queue.category
        if category is None or task.allocation is None:
            return False
        request = category.retry_request(
            task.allocation,
            {str(info.get("resource"))},
            self.largest_worker,
            self._state.tuning.sandbox_grow_factor,
        )
        if request is None:
            return False
        task.request = request
        return True

    def is_full(self, category: Category) -> bool:
        """Return whether as many tasks of a category run as may run at once."""
        running = sum(queue.running for queue in self._state.queues.values() if queue.category is category)
        return category.max_concurrent is not None and running >= category.max_concurrent

    def requested_disk_mb(self, queue: TaskQueue) -> int:
        """Return the MB of disk that the tasks of a queue ask for explicitly."""
        asked = queue.request.disk
        if asked is None and queue.category is not None and not queue.category.learns:
            asked = queue.category.maximum.disk
        return asked or 0

    # ---- room

    def update_worker(self, worker: WorkerState, queue: TaskQueue) -> None:
        """See whether a worker has room for a task more of a queue."""
        if self.can_accept(worker, queue):
            queue.workers_with_room[worker] = None
            if queue.ready or queue.roots:
                self.changed[queue] = None
        else:
            queue.workers_with_room.pop(worker, None)

    def update_worker_everywhere(self, worker: WorkerState) -> None:
        """Find the queues that a worker has room for now."""
        for queue in self._state.queues.values():
            self.update_worker(worker, queue)

    def can_accept(self, worker: WorkerState, queue: TaskQueue) -> bool:
        """Return whether a worker has room for a task more of a queue."""
        if worker.closed or not meets_python_requirements(worker, queue):
            return False
        if queue.conditions is not None and not meets_conditions(self._state, worker, queue.conditions):
            return False
        if self._reservation.worker is worker and self._reservation.excludes(worker, queue):
            return False
        if worker.ends_at is not None and self.exceeds_remaining_time(worker, queue, queue.mean_s):
            return False
        if queue.library is None:  # an estimate: tasks of a category that learns do not all get the same
            allocation = self.allocation_on(queue, 0, worker)
            return allocation is not None and allocation.fits(worker.free)
        instance = worker.libraries.get(queue.library.spec.name)
        if instance is not None:
            return instance.assigned < self._queue_depth_limit(
                instance, queue
            ) or instance.allocation_unit.fits(worker.free)
        unit = allocate(queue.request, worker.total, rule=self.share_rule)
        return unit is not None and unit.fits(worker.free)

    def is_suitable(self, worker: WorkerState, queue: TaskQueue) -> bool:
        """Return whether a worker has what the tasks of a queue need besides resources."""
        conditions = queue.conditions
        return meets_python_requirements(worker, queue) and (
            conditions is None or meets_conditions(self._state, worker, conditions)
        )

    def refresh_conditional(self, queue: TaskQueue) -> bool:
        """Find the holders of files that the tasks of a queue insist on; return whether one has room."""
        conditions = queue.conditions
        if conditions is None or not conditions.strict_inputs:
            return False
        file = self._state.files.get(conditions.strict_inputs[0])
        for worker in list(file.replicas) if file is not None else ():
            self.update_worker(worker, queue)
        return bool(queue.workers_with_room)

    def _queue_depth_limit(self, instance: LibraryInstance, queue: TaskQueue) -> int:
        mean = queue.mean_s
        if mean is None:
            extra = 1
        elif mean > MAX_PREFETCH_DURATION_S:
            extra = self.extra_long_calls
        elif mean * MAX_PREFETCHED_PER_SLOT <= PREFETCH_S:
            extra = MAX_PREFETCHED_PER_SLOT
        else:
            extra = math.ceil(PREFETCH_S / mean)
        return instance.slots * (1 + extra)

    def can_take(self, worker: WorkerState, task: TaskState) -> bool:
        """Return whether a worker has what a task needs besides resources, and stays long enough."""
        queue = task.queue
        return self.is_suitable(worker, queue) and not self.exceeds_remaining_time(
            worker, queue, self.expected_duration(task)
        )

    def expected_duration(self, task: TaskState) -> float | None:
        """Return how long a task will take: the mean of its queue, else its limit; None if neither is known."""
        mean = task.queue.mean_s
        if mean is None and task.queue.library is None:
            _count, mean = self._state.category_walls.get(task.spec.category, (0, None))
        return mean if mean is not None else task.spec.options.get("time_max")

    def exceeds_remaining_time(self, worker: WorkerState, queue: TaskQueue, duration_s: float | None) -> bool:
        """Return whether a task of this duration would not be over before its worker begins to leave."""
        if worker.ends_at is None or duration_s is None:
            return False
        turns, instance = 1, None
        if queue.library is not None:
            instance = worker.libraries.get(queue.library.spec.name)
        if instance is not None:
            turns += instance.assigned // instance.slots
        return self._state.now + turns * duration_s > worker.ends_at

    def release_worker(self, worker: WorkerState, task: TaskState) -> None:
        """Give back what a task held that has left a worker, in whatever way."""
        ahead, task.chained = task.chained, False
        allocation, task.allocation = task.allocation, None
        if worker.id not in self._state.workers:
            return
        if allocation is not None:
            task.open_accounts().granted = allocation
            worker.free = worker.free.plus(allocation)
            self.update_worker_everywhere(worker)
            return
        instance = worker.libraries.get(task.spec.library)
        if instance is None:
            return
        if ahead:
            instance.chained -= 1
        else:
            instance.assigned -= 1
        if task.queue.conditions is None:
            self.update_worker(worker, task.queue)
        else:
            self.update_worker_everywhere(worker)
        if instance.assigned < instance.slots:
            self._signals.slot_freed(worker, task.queue)
        if instance.idle:  # its room may serve others
            self._signals.instance_idle(worker)
            self.retry_starved()

    # ---- the reservation

    def end_reservation(self) -> None:
        """Let others have the worker again."""
        worker, self._reservation.worker, self._reservation.queue = self._reservation.worker, None, None
        if worker is not None and worker.id in self._state.workers:
            self.update_worker_everywhere(worker)

    def forget_reservation(self, queue: TaskQueue) -> None:
        """End the reservation for a queue that has nothing to place, or waits for something else than room."""
        if queue is self._reservation.starving:
            self._reservation.starving = None
        if queue is self._reservation.queue:
            self.end_reservation()

    # ---- trying again

    def retry_starved(self) -> None:
        """Try again those for whom there was no room."""
        for queue in self._state.queues.values():
            if queue.front and not queue.workers_with_room:
                self.changed[queue] = None

    def retry_all(self) -> None:
        """Try again all who wait."""
        for queue in self._state.queues.values():
            # what they ask for changes without an event, or is counted in another queue
            if queue.conditions is not None:
                for worker in self._state.workers.values():
                    self.update_worker(worker, queue)
            if queue.front:
                self.changed[queue] = None

    def retry_waiting_for_disk(self) -> None:
        """Have those who wait tried again."""
        self.changed.update(self.waiting_for_disk)
        self.waiting_for_disk.clear()

    def category_changed(self, category: Category) -> None:
        """See which workers have room for tasks of a category that get more or less than before."""
        self._state.disk_tracked |= bool(category.maximum.disk)
        for queue in self._state.queues.values():
            if queue.category is category:
                for worker in self._state.workers.values():
                    self.update_worker(worker, queue)

    def worker_joined(self, worker: WorkerState) -> None:
        """Enter a new worker."""
        if self.largest_worker is None or capacity_key(worker.total) > capacity_key(self.largest_worker):
            self.largest_worker = worker.total
        self.update_worker_everywhere(worker)

    def worker_gone(self, worker: WorkerState) -> None:
        """Take a lost worker out of all queues."""
        for queue in self._state.queues.values():
            queue.workers_with_room.pop(worker, None)
            if queue.last_root_worker is worker:
                queue.last_root_worker = None

    def update_largest_worker(self, lost: WorkerState) -> None:
        """Find the largest worker anew, if that is the lost one."""
        if lost.total == self.largest_worker:
            totals = (worker.total for worker in self._state.workers.values())
            self.largest_worker = max(totals, key=capacity_key, default=None)


def meets_python_requirements(worker: WorkerState, queue: TaskQueue) -> bool:
    """Return whether the worker's own Python will do, where there is no other one."""
    if not queue.python:
        return True
    if not worker.python_ok:
        return False
    if not worker.missing_packages:
        return True
    # what a command of the user's starts may have other packages, in a container for one
    options = queue.library.spec.options if queue.library else {}
    return bool(options.get("command") or options.get("init_command"))


def queue_urgency(queue: TaskQueue) -> tuple[float, int]:
    """Return the key of a queue's most urgent task; smaller goes first."""
    heap = queue.front
    return heap[0][:2] if heap else (math.inf, 0)


def capacity_key(total: Resources) -> tuple[float, ...]:
    """Return the key by which workers are compared."""
    return (total.cores, total.memory, total.disk, total.gpus)
