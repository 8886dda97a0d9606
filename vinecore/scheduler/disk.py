"""What the disks of workers have room for.

Every worker has a running account of its disk, `WorkerState.free_disk`: what is neither taken by files that it holds or fetches,
nor promised to its tasks for what they write. A task is given to a worker that has room for the inputs that are not there yet and
for what tasks of its category are known to write. Where there is too little, copies go that are cheapest to get again
(`eviction`). If that does not suffice the task waits; and roots, which only add to what is held, wait earlier, while there is work
that frees something.
"""

from __future__ import annotations

import math
from heapq import heappop
from itertools import chain
from typing import TYPE_CHECKING

from vinecore.protocol import INLINE_LIMIT
from vinecore.scheduler.state import MB, UNLIMITED, disk_bytes, is_root
from vinecore.scheduler.transitions import READY

if TYPE_CHECKING:
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.state import SchedulerState, TaskQueue, TaskState, WorkerState


HIGH_WATER_MARK = 0.7  # of a disk in use, above which roots wait for what frees something
SMOOTHING = 0.2


class DiskAccounts:
    """Knows what tasks take of a disk, and what fits where.

    Attributes
    ----------
    last_placement_lacked_disk : bool
        A task could not be placed because of disk; reset before each try.
    too_large_for_any_disk : dict of TaskState
        Ready tasks whose inputs are larger than any disk.
    refusals : dict of TaskState to int
        How often workers had no room for a task.
    unaccounted_bytes : dict of WorkerState to int
        Bytes that a worker has less room than its files account for.
    largest_disk : int
        The largest disk of a worker, in bytes.
    """

    def __init__(self, state: SchedulerState, queues: TaskQueues) -> None:
        self._state = state
        self._queues = queues
        self.last_placement_lacked_disk = False
        self.too_large_for_any_disk: dict[TaskState, None] = {}
        self.refusals: dict[TaskState, int] = {}
        self.unaccounted_bytes: dict[WorkerState, int] = {}
        self.largest_disk = 0
        self._means: dict[str, float] = {}  # category -> bytes its tasks write, for those that write much

    # ---- what a task takes

    def record_written_bytes(self, task: TaskState, size: int) -> None:
        """Learn from what a task has written."""
        category, mean = task.spec.category, self._means.get(task.spec.category)
        if mean is not None:
            self._means[category] = mean + SMOOTHING * (disk_bytes(size) - mean)
        elif size > INLINE_LIMIT:
            self._means[category] = size
            self._state.disk_tracked = True

    def writes_much(self, task: TaskState) -> bool:
        """Return whether tasks of this category make results too large for a message."""
        return task.spec.category in self._means

    def expected_output_bytes(self, task: TaskState) -> int:
        """Return the bytes that a task is expected to write, or has asked for."""
        mean, expected = self._means.get(task.spec.category), 0
        if mean is not None:
            expected = int(mean) if any(file.size < 0 for file in task.outputs) else known_output_bytes(task)
        if task.queue.library is None:
            expected = max(expected, self._queues.requested_disk_mb(task.queue) * MB)
        return expected

    def required_bytes(self, task: TaskState) -> int:
        """Return the bytes of disk that a task needs on a worker that has nothing of what it reads."""
        need = self.expected_output_bytes(task)
        for file in task.inputs:
            if file.size > INLINE_LIMIT:
                need += file.size
        for file in task.extra_files:
            if file.size > INLINE_LIMIT:
                need += file.size
        return need

    def bytes_already_there(self, task: TaskState, worker: WorkerState) -> int:
        """Return the bytes of a task's inputs that are on a worker, or have their place there."""
        return sum(
            file.size
            for file in chain(task.inputs, task.extra_files)
            if file.size > INLINE_LIMIT
            and (
                worker in file.replicas
                or worker in file.fetching
                or (file.waiting_for_source and worker in file.waiting_for_source)
            )
        )

    def fits(self, task: TaskState, worker: WorkerState, need: int) -> bool:
        """Return whether a worker has room for a task now; ``need`` is what `required_bytes` says of it."""
        left, kept = worker.free_disk - need, (1 - HIGH_WATER_MARK) * worker.total.disk * MB
        if left >= kept:
            return True
        there = self.bytes_already_there(task, worker)
        if need == there:  # it takes nothing
            return True
        left += there
        if left >= 0 and (left >= kept or not is_root(task) or not self.frees_something(task, worker)):
            return True
        self.last_placement_lacked_disk = True
        return False

    def frees_something(self, task: TaskState, worker: WorkerState) -> bool:
        """Return whether something on a worker, or for it, is better done before a root.

        Roots are not queued there ahead of need either.
        """
        queue = task.queue
        if queue.ready or not all(map(is_root, worker.tasks.values())):
            return True
        instance = worker.libraries.get(queue.library.spec.name) if queue.library is not None else None
        return instance is not None and instance.assigned >= instance.slots

    def frees_more(self, task: TaskState) -> bool:
        """Return whether there is more room after a task than before: it may overtake one that waits for disk."""
        freed = sum(
            disk_bytes(file.size)
            for file in task.inputs
            if file.pending_readers == 1 and not file.unsubmitted_readers and file.pin_count <= 0
        )
        return freed >= self.expected_output_bytes(task)

    # ---- tasks that wait

    def defer_for_disk(self, queue: TaskQueue) -> bool:
        """Have a queue wait for disk; set its most urgent task aside if that waits in vain.

        Return whether it was set aside.
        """
        heap = queue.front
        if input_bytes(heap[0][2]) > self.largest_disk:
            self.too_large_for_any_disk[heappop(heap)[2]] = None
            return True
        self._queues.waiting_for_disk[queue] = None
        return False

    def worker_joined(self, worker: WorkerState) -> None:
        """Enter a new worker, and queue the tasks again that were set aside."""
        self.largest_disk = max(self.largest_disk, worker.total.disk * MB or UNLIMITED)
        aside, self.too_large_for_any_disk = self.too_large_for_any_disk, {}
        for task in aside:
            if task.state == READY:
                self._queues.push(task)

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a lost worker."""
        self.unaccounted_bytes.pop(worker, None)
        totals = [other.total.disk * MB or UNLIMITED for other in self._state.workers.values()]
        self.largest_disk = max(totals, default=0)

    def forget(self, task: TaskState) -> None:
        """Forget a task that is over."""
        self.refusals.pop(task, None)
        self.too_large_for_any_disk.pop(task, None)

    def explain_too_large(self, task: TaskState) -> str:
        """Say why a task that was set aside fits nowhere."""
        return (
            f"{task.spec.label} needs {_mb(input_bytes(task))} of inputs on one worker; the largest worker has {self.largest_disk // MB} MB of disk: "
            "start a worker with more disk (--disk), or split what the task reads"
        )

    def stalled_reason(self) -> str:
        """Return what tasks wait for that fit on no disk; "" if there are none."""
        for task in list(self.too_large_for_any_disk):
            if task.state == READY:
                return self.explain_too_large(task)
            del self.too_large_for_any_disk[task]
        return ""

    # ---- workers that have less than they should

    def apply_reported_free_disk(self, worker: WorkerState, room: int) -> None:
        """Count on no more free disk than a worker reports, for a while."""
        if room < worker.free_disk:
            self.set_unaccounted_bytes(
                worker, self.unaccounted_bytes.get(worker, 0) + worker.free_disk - room
            )

    def set_unaccounted_bytes(self, worker: WorkerState, unknown: int) -> None:
        """Take notice of how much of a worker's disk is taken by what is not known here."""
        worker.free_disk -= unknown - self.unaccounted_bytes.pop(worker, 0)
        if unknown:
            self.unaccounted_bytes[worker] = unknown


def input_bytes(task: TaskState) -> int:
    """Return the bytes of disk that the inputs of a task take."""
    return sum(disk_bytes(file.size) for file in chain(task.inputs, task.extra_files))


def known_output_bytes(task: TaskState) -> int:
    """Return the bytes of disk that the outputs of a task are known to take."""
    return sum(disk_bytes(file.size) for file in task.outputs)


def _mb(size: int) -> str:
    return f"{math.ceil(size / MB)} MB"
