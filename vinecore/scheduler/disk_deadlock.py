"""What is done when nothing runs anywhere, and what could run waits for nothing but disk.

Then an intermediate is given up that will be needed last, and made again before it is. That is bounded by how often a task is made
again; then the task fails, with the numbers.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import chain, islice
from typing import TYPE_CHECKING

from vinecore.scheduler.disk import _mb, input_bytes, known_output_bytes
from vinecore.scheduler.recovery import MAX_RECOMPUTATIONS
from vinecore.scheduler.state import MB
from vinecore.scheduler.transitions import DONE, READY, RETRIEVING

if TYPE_CHECKING:
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.eviction import Eviction
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.placement import Placement
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.state import FileState, SchedulerState, TaskState, WorkerState
    from vinecore.scheduler.worker_choice import WorkerChoice


LOOK_AT = 64  # workers, and readers of a file
LOOK_FURTHER = 8  # tasks of a queue that are tried
MAX_EVICTIONS = MAX_RECOMPUTATIONS // 2  # of what one task makes; the other half is for what really is lost
DISK_STALL_TIMEOUT_S = 10.0  # for a worker with more room, where it is not known how many will come


class DiskDeadlock:
    """Finds room by giving up what can be made again, or fails tasks that will never have room."""

    def __init__(
        self,
        state: SchedulerState,
        queues: TaskQueues,
        disk: DiskAccounts,
        tasks: TaskLifecycle,
        libraries: LibraryInstances,
        eviction: Eviction,
        choice: WorkerChoice,
        placement: Placement,
    ) -> None:
        self._state = state
        self._queues = queues
        self._disk = disk
        self._tasks = tasks
        self._libraries = libraries
        self._eviction = eviction
        self._choice = choice
        self._placement = placement
        self._stuck_since: float | None = None

    @property
    def is_stuck(self) -> bool:
        """Return whether a task is about to be failed for lack of disk."""
        return self._stuck_since is not None

    def worker_joined(self) -> None:
        """Give tasks that are stuck the time to run on a new worker."""
        self._stuck_since = None

    def evict_recomputable(self) -> bool:
        """Give up files that can be made again; return whether there is something new to try."""
        if any(self._libraries.make_room(queue) for queue in list(self._queues.waiting_for_disk)):
            return True  # without a library that is idle, on its worker and its disk
        entries = sorted(
            (
                entry
                for queue in self._queues.waiting_for_disk
                for entry in chain(_most_urgent(queue.ready), _most_urgent(queue.roots))
            ),
            key=lambda entry: entry[:2],
        )
        for _priority, _number, task in entries:
            if self._fail_impossible_reader(task):
                return True
            open_ = list(islice(task.queue.workers_with_room, LOOK_AT))
            for worker in sorted(
                open_, key=lambda worker: self._disk.bytes_already_there(task, worker), reverse=True
            ):
                if self._place_by_eviction(task, worker):
                    self._stuck_since = None
                    return True
        if entries:
            return self._fail_for_lack_of_disk(entries[0][2])
        self._queues.waiting_for_disk.clear()
        return False

    def _fail_impossible_reader(self, task: TaskState) -> bool:
        """Fail a reader of what a task makes, if all its inputs would never fit on one worker."""
        for reader in [reader for file in task.outputs for reader in islice(file.consumers, LOOK_AT)]:
            if input_bytes(reader) > self._disk.largest_disk and self._state.all_expected_workers_connected():
                self._tasks.fail(reader, "too large", {"reason": self._disk.explain_too_large(reader)}, b"")
                return True
        return False

    def _place_by_eviction(self, task: TaskState, worker: WorkerState) -> bool:
        """Place a task on a worker, whatever has to go for that.

        What it reads has to fit, and what it is known, not only expected, to make.
        """
        if not self._choice.fits_resources(task, worker):
            return False
        busy = self._eviction.files_in_use(worker, task)
        lacking = input_bytes(task) - self._disk.bytes_already_there(task, worker)
        need = lacking + self._disk.expected_output_bytes(task)
        sure = lacking + known_output_bytes(task)
        victims = {
            file: None
            for file in chain(
                self._eviction.replicated_or_evictable(worker, busy), self._recomputable(worker, busy)
            )
            if file in worker.files
        }
        if worker.free_disk + sum(worker.files[file] for file in victims) < sure:
            return False
        for file in victims:
            if worker.free_disk >= need:
                break
            if file in worker.files:
                self._eviction.drop_replica(worker, file)
        if task.state == READY:
            self._placement.assign_to(task, worker)
        return True

    def _recomputable(self, worker: WorkerState, busy: set[FileState]) -> list[FileState]:
        """Return the intermediates of a worker that could be made again, those needed last first."""
        found = [
            file
            for file in worker.files
            if self._eviction.is_removable(worker, file, busy) and self._can_be_made(file)
        ]
        return sorted(found, key=_next_use, reverse=True)

    def _can_be_made(self, file: FileState) -> bool:
        maker = file.producer
        if maker is None or maker.state != DONE or maker.recomputations >= MAX_EVICTIONS or file.fetching:
            return False
        return not maker.spec.library or maker.spec.library in self._state.libraries

    def _fail_for_lack_of_disk(self, task: TaskState) -> bool:
        """Fail a task for which there is no room, though nothing runs, unless something is still on its way."""
        if self._stuck_since is None:
            self._stuck_since = self._state.now
        patient = (
            not self._state.all_expected_workers_connected()
            and self._state.now - self._stuck_since < DISK_STALL_TIMEOUT_S
        )
        if patient or self._disk.unaccounted_bytes:
            return False
        if any(other.state == RETRIEVING for other in self._state.tasks.values()):
            return False
        self._stuck_since = None
        self._tasks.fail(task, "too large", {"reason": self._describe_shortage(task)}, b"")
        return True

    def _describe_shortage(self, task: TaskState) -> str:
        workers = self._state.workers.values()
        roomiest = max(workers, key=lambda worker: worker.free_disk)
        reads, writes, held = (
            input_bytes(task),
            self._disk.expected_output_bytes(task),
            sum(roomiest.files.values()),
        )
        return (
            f"{task.spec.label} needs {_mb(reads + writes)} of disk on one worker ({_mb(reads)} of inputs, about {_mb(writes)} for what it "
            f"makes), and no worker can free that: worker {roomiest.id} ({roomiest.name}) has {roomiest.total.disk} MB, of which files take "
            f"{_mb(held)} that are still needed, or have been given up and made again too often. Start workers with more disk (--disk), or more workers"
        )

    def tick(self) -> None:
        """Fail tasks that fit on no disk, and forget a little of what workers have complained about."""
        for worker, unknown in list(self._disk.unaccounted_bytes.items()):
            self._disk.set_unaccounted_bytes(worker, unknown // 2 if unknown > MB else 0)
        if self._disk.too_large_for_any_disk and self._state.all_expected_workers_connected():
            for task in list(self._disk.too_large_for_any_disk):
                if task.state == READY:
                    self._tasks.fail(task, "too large", {"reason": self._disk.explain_too_large(task)}, b"")
            self._disk.too_large_for_any_disk.clear()


def _next_use(file: FileState) -> float:
    return min((task.spec.priority for task in islice(file.consumers, LOOK_AT)), default=math.inf)


def _most_urgent(queue: list[tuple[float, int, TaskState]]) -> list[tuple[float, int, TaskState]]:
    """Return the most urgent tasks of a queue."""
    first: list[tuple[float, int, TaskState]] = []
    while queue and len(first) < LOOK_FURTHER:
        entry = heappop(queue)
        if entry[2].state == READY:
            first.append(entry)
    for entry in first:
        heappush(queue, entry)
    return first
