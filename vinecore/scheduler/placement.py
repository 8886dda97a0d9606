"""Matches ready tasks and workers, the most urgent task of all queues first.

Which worker a task gets stands in `worker_choice`; where none has room, idle libraries are stopped, a worker is reserved
(`reservation`), or files are dropped (`eviction`).
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING

from vinecore.resources.amounts import Resources
from vinecore.scheduler.queues import queue_urgency
from vinecore.scheduler.state import is_root
from vinecore.scheduler.transitions import READY
from vinecore.scheduler.worker_choice import MAX_CANDIDATES

if TYPE_CHECKING:
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.dispatch import Dispatcher
    from vinecore.scheduler.eviction import Eviction
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.reservation import Reservations
    from vinecore.scheduler.state import SchedulerState, TaskQueue, TaskState, WorkerState
    from vinecore.scheduler.worker_choice import WorkerChoice


class Placement:
    """Gives ready tasks to workers with room."""

    def __init__(
        self,
        state: SchedulerState,
        queues: TaskQueues,
        reservations: Reservations,
        disk: DiskAccounts,
        libraries: LibraryInstances,
        eviction: Eviction,
        choice: WorkerChoice,
        dispatcher: Dispatcher,
    ) -> None:
        self._state = state
        self._queues = queues
        self._reservations = reservations
        self._disk = disk
        self._libraries = libraries
        self._eviction = eviction
        self._choice = choice
        self._dispatcher = dispatcher
        self._reservation = state.reservation
        self._allocation_on = queues.allocation_on

    def place_ready_tasks(self) -> None:
        """Give ready tasks to workers with room, the most urgent of all queues first, until one of the two runs out."""
        dirty = self._queues.changed
        if self._state.holds_tasks:
            dirty.clear()
        while dirty:
            queue = next(iter(dirty)) if len(dirty) == 1 else min(dirty, key=queue_urgency)
            if not self._place_front_task(queue):
                dirty.pop(queue, None)

    def _place_front_task(self, queue: TaskQueue) -> bool:
        """Place the first task of a queue; return whether it is worth looking at the next one."""
        ready, roots = queue.ready, queue.roots
        while ready and ready[0][2].state != READY:
            queue.stale_entries = max(0, queue.stale_entries - 1)
            heappop(ready)
        while roots and roots[0][2].state != READY:
            queue.stale_entries = max(0, queue.stale_entries - 1)
            heappop(roots)
        heap = roots if roots and not (ready and ready[0] < roots[0]) else ready
        if not heap:
            return False
        category = queue.category
        if category is not None and category.max_concurrent is not None and self._queues.is_full(category):
            return False
        if not (
            queue.workers_with_room
            or self._queues.refresh_conditional(queue)
            or self._libraries.make_room(queue)
            or self._reservations.starves(queue)
        ):
            return False
        task = heap[0][2]
        self._disk.last_placement_lacked_disk = False
        worker = self._choice.choose(task, queue)
        if worker is not None:
            entry = heappop(heap)
            self._assign(task, worker, queue)
            if self._reservation.starving is not None:
                self._reservations.placed(queue, entry[:2])
            return True
        return self._place_alternative(heap, queue)

    def _place_alternative(self, heap: list[tuple[float, int, TaskState]], queue: TaskQueue) -> bool:
        """Find another way for a queue for whose most urgent task no worker has room.

        Return whether it is worth looking at the queue again.
        """
        # it asks for more of the open workers than they seemed to be asked for
        if not self._disk.last_placement_lacked_disk:
            made = queue.library is None and self._libraries.make_room(queue)
            return made or (
                self._reservations.starves(queue) and self._choice.choose(heap[0][2], queue) is not None
            )
        self._queues.forget_reservation(queue)  # a worker of its own would not help
        if self._place_front_with_eviction(heap, queue):
            return True
        if heap is queue.roots and queue.ready and self._place_front_with_eviction(queue.ready, queue):
            return True
        return self._place_later_task(queue) or self._disk.defer_for_disk(queue)

    def _place_front_with_eviction(self, heap: list[tuple[float, int, TaskState]], queue: TaskQueue) -> bool:
        """Place the most urgent task of a queue, if that can be done with the room that is or can be made."""
        task = heap[0][2]
        worker = self._choice.choose(task, queue)
        if worker is None and self._disk.last_placement_lacked_disk:
            worker = self._choose_with_eviction(task, queue)
        if worker is None:
            return False
        heappop(heap)
        self._assign(task, worker, queue)
        return True

    def _place_later_task(self, queue: TaskQueue) -> bool:
        """Place one of the next tasks that leaves more room than it takes, as the first waits for disk."""
        placed = False
        passed: list[tuple[float, int, TaskState]] = []
        while queue.ready and len(passed) < MAX_CANDIDATES and not placed:
            entry = heappop(queue.ready)
            task = entry[2]
            if task.state != READY:
                continue
            worker = self._choice.choose(task, queue) if self._disk.frees_more(task) else None
            if worker is not None:
                self._assign(task, worker, queue)
                placed = True
            else:
                passed.append(entry)
        for entry in passed:
            heappush(queue.ready, entry)
        return placed

    def _choose_with_eviction(self, task: TaskState, queue: TaskQueue) -> WorkerState | None:
        """Return a worker that has room for a task once files that are cheap to get again are dropped.

        Workers that hold inputs of the task come first.
        """
        holders = (
            holder
            for file in islice(task.inputs, MAX_CANDIDATES)
            for holder in islice(file.replicas, MAX_CANDIDATES)
        )
        for worker in dict.fromkeys(
            [
                *(h for h in holders if h in queue.workers_with_room),
                *islice(queue.workers_with_room, MAX_CANDIDATES),
            ]
        ):
            if self._choice.fits_resources(task, worker) and self._eviction.make_room(task, worker):
                return worker
        return None

    def set_ramp_down(self, *, on: bool) -> None:
        """Set whether tasks get all that is free of their workers while there are fewer tasks than workers."""
        self._allocation_on = self._all_that_is_free if on else self._queues.allocation_on

    def _all_that_is_free(self, queue: TaskQueue, number: int, worker: WorkerState) -> Resources | None:
        """Return what a task gets of a worker, with all that is free there of what it does not ask for."""
        usual = self._queues.allocation_on(queue, number, worker)
        waiting = sum(
            len(other.ready) + len(other.roots) - other.stale_entries for other in self._state.queues.values()
        )
        if usual is None or waiting >= len(self._state.workers):
            return usual
        asked, free = queue.request, worker.free
        return Resources(
            max(usual.cores, free.cores) if asked.cores is None else usual.cores,
            max(usual.memory, free.memory) if asked.memory is None else usual.memory,
            max(usual.disk, free.disk) if asked.disk is None else usual.disk,
            usual.gpus,
        )

    def assign_to(self, task: TaskState, worker: WorkerState) -> None:
        """Give a ready task to a worker out of turn."""
        self._assign(task, worker, task.queue)
        self._queues.mark_stale(task.queue)

    def _assign(self, task: TaskState, worker: WorkerState, queue: TaskQueue) -> None:
        if queue.library is None:
            task.allocation = self._allocation_on(queue, task.spec.task, worker)
            assert task.allocation is not None
            worker.free = worker.free.minus(task.allocation)
            self._dispatcher.dispatch(task, worker, "assign")
            self._queues.update_worker_everywhere(worker)
            return
        instance = self._libraries.instance_for(worker, queue)
        instance.assigned += 1
        self._dispatcher.dispatch(task, worker, "assign")
        # move the worker to the end of the row, so that the next look starts with others
        queue.workers_with_room.pop(worker, None)
        if queue.conditions is not None:
            # other queues of the library have its slots in common with this one
            self._queues.update_worker_everywhere(worker)
            return
        self._queues.update_worker(worker, queue)
        self._dispatcher.chain_successors(task, worker, instance)
        if len(self._state.workers) > 1 and is_root(task):
            queue.last_root_worker = worker
            self._dispatcher.colocate_siblings(task, worker, instance)
