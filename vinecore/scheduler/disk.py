"""Keeps the disks of workers from filling up.

Every worker has a running account of its disk, `Worker.room`: what is neither taken by files that it holds or fetches, nor promised to
its tasks for what they write. A task is given to a worker that has room for the inputs that are not there yet and for what its like are
known to write. Where there is too little, copies go that are cheapest to get again: first spare files, those used longest ago first;
then copies of what another worker, the manager or an address has as well; nothing that a task on that worker reads or makes. If that does not
suffice the task waits; and roots, which only add to what is held, wait earlier, while there is work that frees something.

When nothing runs anywhere and what could run waits for nothing but disk, an intermediate is given up that will be needed last, and made
again before it is. That is bounded by how often a task is made again; then the run fails, with the numbers.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from vinecore.protocol import INLINE_LIMIT
from vinecore.scheduler.instructions import INFO, LogMessage
from vinecore.scheduler.recovery import MAX_RECOMPUTATIONS
from vinecore.scheduler.state import MB, UNLIMITED, available_outside_workers, disk_bytes, is_root
from vinecore.scheduler.transitions import ASSIGNED, DONE, READY, RETRIEVING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vinecore.protocol import messages as m
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, TaskQueue, TaskState, WorkerState

HIGH_WATER_MARK = 0.7  # of a disk in use, above which roots wait for what frees something
SMOOTHING = 0.2
LOOK_FURTHER = 8  # tasks that are tried where the most urgent one waits for disk
LOOK_AT = 64  # workers
MAX_FILES_SCANNED = 1024  # files of a worker, for some that can go
FRUITLESS_S = 0.05  # where there were none nobody looks again so soon
MOST_EVICTIONS = MAX_RECOMPUTATIONS // 2  # of what one task makes; the other half is for what really is lost
MOST_REFUSALS = 5  # of one task, by workers whose disks are fuller than they seem from here
DISK_STALL_TIMEOUT_S = (
    10.0  # how long a worker with more room is waited for, where nobody knows how many will come
)


class DiskAccounts:
    """Decides what fits where, and what has to go. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self.disk_tracked = (
            False  # there are files that are not small: as long as there are none nothing has to be counted
        )
        self.last_placement_lacked_disk = (
            False  # a task could not be placed because of disk; reset before each try
        )
        self.waiting_for_disk: dict[TaskQueue, None] = {}  # buckets in which somebody waits for disk
        self.too_large_for_any_disk: dict[
            TaskState, None
        ] = {}  # ready tasks whose inputs are larger than any disk
        self._means: dict[str, float] = {}  # category -> bytes its tasks write, for those that write much
        self.refusals: dict[TaskState, int] = {}
        self._unaccounted_bytes: dict[
            WorkerState, int
        ] = {}  # bytes that a worker has less room than its files account for
        self._last_failed_attempt: dict[WorkerState, float] = {}
        self._stuck_since: float | None = None
        self._largest = 0  # disk of a worker, in bytes

    # ---- what a task takes

    def learn(self, task: TaskState, size: int) -> None:
        """A task has written this much."""
        category, mean = task.spec.category, self._means.get(task.spec.category)
        if mean is not None:
            self._means[category] = mean + SMOOTHING * (disk_bytes(size) - mean)
        elif size > INLINE_LIMIT:
            self._means[category] = size
            self.disk_tracked = True

    def writes_much(self, task: TaskState) -> bool:
        """Whether tasks of its category make what is too large for a message."""
        return task.spec.category in self._means

    def expected_output_bytes(self, task: TaskState) -> int:
        """Bytes that a task will write, as far as one can know, or has asked for."""
        mean, expected = self._means.get(task.spec.category), 0
        if mean is not None:
            expected = int(mean) if any(file.size < 0 for file in task.outputs) else _known_output_bytes(task)
        if task.bucket.library is None:
            expected = max(expected, self._mind.placement.requested_disk_mb(task.bucket) * MB)
        return expected

    def required_bytes(self, task: TaskState) -> int:
        """Bytes of disk that a task needs on a worker that has nothing of what it reads."""
        need = self.expected_output_bytes(task)
        for file in task.inputs:
            if file.size > INLINE_LIMIT:
                need += file.size
        for file in task.extra_files:
            if file.size > INLINE_LIMIT:
                need += file.size
        return need

    def _bytes_already_there(self, task: TaskState, worker: WorkerState) -> int:
        """Bytes of what a task reads that are on a worker, or have their place there."""
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
        """Whether a worker has room for a task now; ``need`` is what `need` says of it."""
        left, kept = worker.free_disk - need, (1 - HIGH_WATER_MARK) * worker.total.disk * MB
        if left >= kept:
            return True
        there = self._bytes_already_there(task, worker)
        if need == there:  # it takes nothing
            return True
        left += there
        if left >= 0 and (left >= kept or not is_root(task) or not self._frees_something(task, worker)):
            return True
        self.last_placement_lacked_disk = True
        return False

    def _frees_something(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether something on a worker, or for it, is better done before a root; roots are not queued there ahead of need either."""
        bucket = task.bucket
        if bucket.ready or not all(map(is_root, worker.tasks.values())):
            return True
        instance = worker.libraries.get(bucket.library.spec.name) if bucket.library is not None else None
        return instance is not None and instance.assigned >= instance.slots

    def frees_more(self, task: TaskState) -> bool:
        """Whether there is more room after a task than before: it may overtake one that waits for disk."""
        freed = sum(
            disk_bytes(file.size)
            for file in task.inputs
            if file.pending_readers == 1 and not file.unsubmitted_readers and file.pin_count <= 0
        )
        return freed >= self.expected_output_bytes(task)

    # ---- who waits

    def defer_for_disk(self, bucket: TaskQueue) -> bool:
        """The most urgent task of a bucket waits for disk; set it aside if it does so in vain, and tell whether that was so."""
        queue = bucket.front
        if _input_bytes(queue[0][2]) > self._largest:
            self.too_large_for_any_disk[heappop(queue)[2]] = None
            return True
        self.waiting_for_disk[bucket] = None
        return False

    def retry_waiting_for_disk(self) -> None:
        """Have those who wait tried again."""
        self._mind.placement.changed.update(self.waiting_for_disk)
        self.waiting_for_disk.clear()

    def worker_joined(self, worker: WorkerState) -> None:
        """There is a new worker: those who were set aside may fit there."""
        self._largest = max(self._largest, worker.total.disk * MB or UNLIMITED)
        self._stuck_since = None
        aside, self.too_large_for_any_disk = self.too_large_for_any_disk, {}
        for task in aside:
            if task.state == READY:
                self._mind.life.push(task)

    def worker_gone(self, worker: WorkerState) -> None:
        """A worker has left."""
        self._unaccounted_bytes.pop(worker, None)
        self._last_failed_attempt.pop(worker, None)
        totals = [other.total.disk * MB or UNLIMITED for other in self._mind.tables.workers.values()]
        self._largest = max(totals, default=0)

    def forget(self, task: TaskState) -> None:
        """A task is over."""
        self.refusals.pop(task, None)
        self.too_large_for_any_disk.pop(task, None)

    # ---- copies that nobody will miss

    def make_room(self, task: TaskState, worker: WorkerState) -> bool:
        """Drop from a worker what is cheap to get again, if that makes room for a task."""
        now = self._mind.now
        if 0 < now - self._last_failed_attempt.get(worker, -math.inf) < FRUITLESS_S:
            return False
        need = self.required_bytes(task) - self._bytes_already_there(task, worker)
        waits = is_root(task) and self._frees_something(task, worker)
        aim = need + (int((1 - HIGH_WATER_MARK) * worker.total.disk * MB) if waits else 0)
        victims, gain = [], worker.free_disk
        for file in self._replicated_or_evictable(worker, self._in_use(worker, task), spare_only=waits):
            if gain >= aim:
                break
            victims.append(file)
            gain += worker.files[file]
        if gain < aim:
            self._last_failed_attempt[worker] = now
            return False
        for file in victims:
            self._drop(worker, file)
        return True

    def _replicated_or_evictable(
        self, worker: WorkerState, busy: set[FileState], *, spare_only: bool = False
    ) -> Iterator[FileState]:
        """What a worker could do without: spare files, then what others have as well; the rest goes to the end of the row.

        What only others have whose copies are not compared yet comes last.
        """
        spare, late = self._mind.tables.evictable, []
        for file in list(worker.evictable):
            if file not in spare:
                del worker.evictable[file]
            elif self._is_removable(worker, file, busy):
                yield file
        for file in [] if spare_only else list(islice(worker.files, MAX_FILES_SCANNED)):
            if (
                file not in worker.evictable
                and (len(file.replicas) > 1 or available_outside_workers(file))
                and self._is_removable(worker, file, busy)
            ):
                if available_outside_workers(file) or _has_verified_replica(file, worker):
                    yield file
                else:
                    late.append(file)
            else:
                worker.files[file] = worker.files.pop(file)
        yield from late

    def _is_removable(self, worker: WorkerState, file: FileState, busy: set[FileState]) -> bool:
        return (
            worker.files[file] > 0
            and file not in busy
            and file.uploading is not worker
            and not self._mind.transfers.is_serving(worker, file)
        )

    def _in_use(self, worker: WorkerState, task: TaskState) -> set[FileState]:
        """What the tasks and libraries of a worker, and one more task, read or make."""
        busy = {*task.inputs, *task.extra_files}
        for one in worker.tasks.values():
            busy.update(one.inputs, one.extra_files, one.outputs)
        for instance in worker.libraries.values():
            busy.update(instance.library.files)
        return busy

    def _drop(self, worker: WorkerState, file: FileState) -> None:
        """Have a worker forget its copy."""
        mind = self._mind
        del file.replicas[worker]
        mind.transfers.discard(worker, file)
        mind.transfers.remove(worker, file, purge=True)
        if not file.available:
            mind.recovery.files_lost([file])
        if not file.replicas:
            mind.tables.evictable.pop(file, None)

    # ---- when nothing else helps

    def evict_recomputable(self) -> bool:
        """Nothing runs, and somebody waits for disk: give up what can be made again; whether there is something new to try."""
        if any(self._mind.instances.make_room(bucket) for bucket in list(self.waiting_for_disk)):
            return True  # without a library that is idle, on its worker and its disk
        entries = sorted(
            (
                entry
                for bucket in self.waiting_for_disk
                for entry in chain(_most_urgent(bucket.ready), _most_urgent(bucket.roots))
            ),
            key=lambda entry: entry[:2],
        )
        for _priority, _number, task in entries:
            if self._fail_impossible_reader(task):
                return True
            open_ = list(islice(task.bucket.workers_with_room, LOOK_AT))
            for worker in sorted(
                open_, key=lambda worker: self._bytes_already_there(task, worker), reverse=True
            ):
                if self._place_by_eviction(task, worker):
                    self._stuck_since = None
                    return True
        if entries:
            return self._fail_for_lack_of_disk(entries[0][2])
        self.waiting_for_disk.clear()
        return False

    def _fail_impossible_reader(self, task: TaskState) -> bool:
        """Fail who reads what a task makes, if that and all else it reads would never fit on one worker."""
        mind = self._mind
        for reader in [reader for file in task.outputs for reader in islice(file.consumers, LOOK_AT)]:
            if _input_bytes(reader) > self._largest and mind.all_expected_workers_connected():
                mind.life.fail(reader, "too large", {"reason": self.explain(reader)}, b"")
                return True
        return False

    def _place_by_eviction(self, task: TaskState, worker: WorkerState) -> bool:
        """Place a task on a worker, whatever has to go for that; what it reads has to fit, and what it is known, not only expected, to make."""
        if not self._mind.placement.fits_resources(task, worker):
            return False
        busy = self._in_use(worker, task)
        lacking = _input_bytes(task) - self._bytes_already_there(task, worker)
        need = lacking + self.expected_output_bytes(task)
        sure = lacking + _known_output_bytes(task)
        victims = {
            file: None
            for file in chain(self._replicated_or_evictable(worker, busy), self._recomputable(worker, busy))
            if file in worker.files
        }
        if worker.free_disk + sum(worker.files[file] for file in victims) < sure:
            return False
        for file in victims:
            if worker.free_disk >= need:
                break
            if file in worker.files:
                self._drop(worker, file)
        if task.state == READY:
            self._mind.placement.assign_to(task, worker)
        return True

    def _recomputable(self, worker: WorkerState, busy: set[FileState]) -> list[FileState]:
        """The intermediates of a worker that could be made again, those that nobody needs and those that are needed last first."""
        found = [
            file
            for file in worker.files
            if self._is_removable(worker, file, busy) and self._can_be_made(file)
        ]
        return sorted(found, key=_next_use, reverse=True)

    def _can_be_made(self, file: FileState) -> bool:
        maker = file.producer
        if maker is None or maker.state != DONE or maker.recomputations >= MOST_EVICTIONS or file.fetching:
            return False
        return not maker.spec.library or maker.spec.library in self._mind.tables.libraries

    def _fail_for_lack_of_disk(self, task: TaskState) -> bool:
        """Fail a task for which there is no room, though nothing runs, unless something is still on its way."""
        mind = self._mind
        if self._stuck_since is None:
            self._stuck_since = mind.now
        patient = (
            not mind.all_expected_workers_connected() and mind.now - self._stuck_since < DISK_STALL_TIMEOUT_S
        )
        if patient or self._unaccounted_bytes:
            return False
        if any(other.state == RETRIEVING for other in mind.tables.tasks.values()):
            return False
        self._stuck_since = None
        mind.life.fail(task, "too large", {"reason": self._describe_shortage(task)}, b"")
        return True

    def _describe_shortage(self, task: TaskState) -> str:
        workers = self._mind.tables.workers.values()
        roomiest = max(workers, key=lambda worker: worker.free_disk)
        reads, writes, held = (
            _input_bytes(task),
            self.expected_output_bytes(task),
            sum(roomiest.files.values()),
        )
        return (
            f"{task.spec.label} needs {_mb(reads + writes)} of disk on one worker ({_mb(reads)} of inputs, about {_mb(writes)} for what it "
            f"makes), and no worker can free that: worker {roomiest.id} ({roomiest.name}) has {roomiest.total.disk} MB, of which files take "
            f"{_mb(held)} that are still needed, or have been given up and made again too often. Start workers with more disk (--disk), or more workers"
        )

    def tick(self) -> None:
        """Some time has passed: fail who cannot be helped, and forget a little of what workers have complained about."""
        for worker, unknown in list(self._unaccounted_bytes.items()):
            self._account(worker, unknown // 2 if unknown > MB else 0)
        if self.too_large_for_any_disk and self._mind.all_expected_workers_connected():
            for task in list(self.too_large_for_any_disk):
                if task.state == READY:
                    self._mind.life.fail(task, "too large", {"reason": self.explain(task)}, b"")
            self.too_large_for_any_disk.clear()

    def explain(self, task: TaskState) -> str:
        """Say why a task that was set aside fits nowhere."""
        return (
            f"{task.spec.label} needs {_mb(_input_bytes(task))} of inputs on one worker; the largest worker has {self._largest // MB} MB of disk: "
            "start a worker with more disk (--disk), or split what the task reads"
        )

    def missing(self) -> str:
        """What those who will never have room here wait for, "" if there are none."""
        for task in list(self.too_large_for_any_disk):
            if task.state == READY:
                return self.explain(task)
            del self.too_large_for_any_disk[task]
        return ""

    # ---- workers that have less than they should

    def fetch_refused(self, worker: WorkerState, file: FileState, message: m.FetchFailed) -> bool:
        """A worker has no room for a file: the tasks that read it go elsewhere; whether there are any."""
        readers = [task for task in worker.tasks.values() if file in task.inputs or file in task.extra_files]
        self._apply_reported_free_disk(worker, message.free_disk)
        info = {"reason": message.reason, "kind": "input missing"}
        for task in readers:
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                self.task_refused(task, worker, info)
        return bool(readers)

    def task_refused(self, task: TaskState, worker: WorkerState, info: dict[str, Any]) -> None:
        """A worker has no room for what a task that it has reads or has made: try elsewhere, or after eviction."""
        mind = self._mind
        size = info.get("size")
        if size is not None:
            self.learn(task, size)
            for file in task.outputs:
                if file.name == task.spec.result and not file.available:
                    file.size = size
        self._apply_reported_free_disk(worker, info.get("room", worker.free_disk))
        count = self.refusals[task] = self.refusals.get(task, 0) + 1
        reason = f"worker {worker.id} on {worker.name} has no room on its disk: {info.get('reason', '')}"
        mind.emit(LogMessage(INFO, f"{task.spec.label} goes elsewhere, or waits: {reason}"))
        if count > MOST_REFUSALS:
            mind.life.fail(task, info.get("kind", "disk"), {"reason": f"{reason} ({count} times)"}, b"")
        else:
            mind.life.cancel_and_requeue(task)

    def _apply_reported_free_disk(self, worker: WorkerState, room: int) -> None:
        """A worker says how much room it has: not more than that, for a while."""
        if room < worker.free_disk:
            self._account(worker, self._unaccounted_bytes.get(worker, 0) + worker.free_disk - room)

    def _account(self, worker: WorkerState, unknown: int) -> None:
        """Take notice of how much of a worker's disk is taken by what is not known here."""
        worker.free_disk -= unknown - self._unaccounted_bytes.pop(worker, 0)
        if unknown:
            self._unaccounted_bytes[worker] = unknown


def _has_verified_replica(file: FileState, but: WorkerState) -> bool:
    """Whether another worker has a file and has compared it."""
    return any(holder is not but and file not in holder.unverified for holder in file.replicas)


def _input_bytes(task: TaskState) -> int:
    return sum(disk_bytes(file.size) for file in chain(task.inputs, task.extra_files))


def _known_output_bytes(task: TaskState) -> int:
    return sum(disk_bytes(file.size) for file in task.outputs)


def _next_use(file: FileState) -> float:
    return min((task.spec.priority for task in islice(file.consumers, LOOK_AT)), default=math.inf)


def _most_urgent(queue: list[tuple[float, int, TaskState]]) -> list[tuple[float, int, TaskState]]:
    """The most urgent tasks of a queue."""
    first: list[tuple[float, int, TaskState]] = []
    while queue and len(first) < LOOK_FURTHER:
        entry = heappop(queue)
        if entry[2].state == READY:
            first.append(entry)
    for entry in first:
        heappush(queue, entry)
    return first


def _mb(size: int) -> str:
    return f"{math.ceil(size / MB)} MB"
