"""Which worker gets a ready task.

Ready tasks wait in buckets by what they require; every bucket knows the workers that have room for one more. A task goes where it would
start first: where most of its input bytes are if that saves more than waiting there costs, else to the least loaded of a few open
workers; but roots that follow each other fill the slots of one worker after the other, where a graph will need all of them. Cost of an event: a handful of workers and the few buckets there are, however many tasks wait.

Calls are sent ahead of need: as many beyond a library's slots as cover the way to the manager and back, from measured durations; and
successors of what runs on a worker, which start there without asking.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.protocol import messages as m
from vinecore.resources.amounts import UNSPECIFIED, Category, ResourceRequest, Resources, allocate
from vinecore.scheduler.instructions import Send
from vinecore.scheduler.state import (
    WORKFLOW,
    LibraryInstance,
    TaskQueue,
    TaskSpec,
    TaskState,
    WorkerState,
    is_root,
)
from vinecore.scheduler.transitions import ASSIGNED, READY, WAITING

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler

MAX_CANDIDATES = 8  # workers compared for one task
MAX_FALLBACK_CANDIDATES = 64  # workers looked at where none of those will do
PREFETCH_S = 0.010  # work queued on a worker beyond its slots, to cover the round trip
MAX_PREFETCH_DURATION_S = 0.1  # calls of this length wait at the manager instead: one queued in the wrong place costs more than a round trip
MAX_PREFETCHED_PER_SLOT = 256  # calls per slot
MAX_CHAINED_PER_SLOT = 32  # calls per slot whose inputs are still being made
MAX_INPUTS_FOR_CHAINING = 32
BANDWIDTH = 250e6  # bytes/s between workers, assumed
LATENCY_S = 0.002  # per transfer, assumed
DEFAULT_DURATION_S = 0.02  # duration of a call nobody has measured yet
CHAINING_PRIORITY_MODES = (
    "",
    "depth-first",
)  # in these orders a successor comes right after what it waits for; in others it would overtake


class Placement:
    """Matches ready tasks and workers. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind, self._reservation = mind, mind.reservation
        self.changed: dict[TaskQueue, None] = {}  # buckets with something new to try
        self.policy = "files"
        self.steady_n = 25  # tasks of a category that are measured before it learns
        self._counter = 0
        self._needed_disk = 0  # bytes of disk that the task needs which is being placed
        self._largest: Resources | None = None  # of the workers

    # ---- buckets

    def queue_for(self, spec: TaskSpec, request: ResourceRequest) -> TaskQueue:
        """Find or make the bucket of a task that asks for this."""
        tables = self._mind.tables
        python = spec.python and not spec.environment
        key: tuple[Any, ...] = (spec.library,) if spec.library else ("", spec.category, request, python)
        bucket = tables.buckets.get(key)
        if bucket is None:
            if spec.library:
                library = tables.libraries[spec.library]
                bucket = TaskQueue(key, library, None, library.spec.request, not library.spec.environment)
            else:
                category = tables.categories.setdefault(
                    spec.category, Category(spec.category, steady_n=self.steady_n)
                )
                bucket = TaskQueue(key, None, category, request, python)
                self._mind.disk.disk_tracked |= self.requested_disk_mb(bucket) > 0
            tables.buckets[key] = bucket
            for worker in tables.workers.values():
                self._update_worker(worker, bucket)
        return bucket

    def remove_if_empty(self, bucket: TaskQueue) -> None:
        """Forget a bucket that no unfinished task is in; that of a library goes with the library."""
        if bucket.unfinished:
            return
        if bucket.library is None:
            self._mind.tables.buckets.pop(bucket.key, None)
            self.deactivate(bucket)
        elif bucket.library.retired:
            self._mind.instances.end(bucket.library)

    def deactivate(self, bucket: TaskQueue) -> None:
        """There is nothing to do for a bucket any more."""
        self.changed.pop(bucket, None)
        self._mind.disk.waiting_for_disk.pop(bucket, None)
        self._reservation.forget(bucket)

    def move(self, task: TaskState) -> None:
        """A task asks for something else now."""
        old = task.bucket
        task.bucket = self.queue_for(task.spec, task.request)
        task.bucket.unfinished += 1
        old.unfinished -= 1
        self.remove_if_empty(old)

    def request(self, bucket: TaskQueue, number: int) -> ResourceRequest:
        """What a task asks for: its own words, then what its category says or has learned."""
        category = bucket.category
        if category is None:
            return bucket.request
        learned = category.initial_request(number)
        if (
            category.learns and self._largest is not None
        ):  # a peak that is rounded up must not ask for more than there is
            learned = learned.at_most(ResourceRequest(*self._largest))
        return bucket.request.with_defaults(learned)

    def allocate(self, bucket: TaskQueue, number: int, worker: WorkerState) -> Resources | None:
        """What a task would get of a worker; None if it is too large for it."""
        minimum = UNSPECIFIED if bucket.category is None else bucket.category.minimum
        return allocate(self.request(bucket, number), worker.total, minimum)

    def record_usage(self, category: Category, measured: dict[str, Any], wall_s: float) -> None:
        """Let a category learn from a finished task."""
        cores, memory, disk = (measured.get(k) or 0 for k in ("cores", "memory", "disk"))
        category.record(Resources(float(cores), int(memory), int(disk), 0), wall_s)

    def grow_request(self, task: TaskState, info: dict[str, Any]) -> bool:
        """Whether a task that passed a limit may be tried with more; sets what it asks for then."""
        category = task.bucket.category
        if category is None or task.allocation is None:
            return False
        request = category.retry_request(task.allocation, {str(info.get("resource"))}, self._largest)
        if request is None:
            return False
        task.request = request
        return True

    # ---- room

    def _update_worker(self, worker: WorkerState, bucket: TaskQueue) -> None:
        if self._can_accept(worker, bucket):
            bucket.workers_with_room[worker] = None
            if bucket.ready or bucket.roots:
                self.changed[bucket] = None
        else:
            bucket.workers_with_room.pop(worker, None)

    def update_worker_everywhere(self, worker: WorkerState) -> None:
        """See which buckets a worker has room for now."""
        for bucket in self._mind.tables.buckets.values():
            self._update_worker(worker, bucket)

    def _can_accept(self, worker: WorkerState, bucket: TaskQueue) -> bool:
        if worker.draining or not meets_python_requirements(worker, bucket):
            return False
        if self._reservation.worker is worker and self._reservation.excludes(worker, bucket):
            return False
        if worker.ends_at is not None and self._exceeds_remaining_time(worker, bucket, bucket.mean_s):
            return False
        if bucket.library is None:  # an estimate: tasks of a category that learns do not all get the same
            allocation = self.allocate(bucket, 0, worker)
            return allocation is not None and allocation.fits(worker.free)
        instance = worker.libraries.get(bucket.library.spec.name)
        if instance is not None:
            return instance.assigned < self._queue_depth_limit(
                instance, bucket
            ) or instance.allocation_unit.fits(worker.free)
        unit = allocate(bucket.request, worker.total)
        return unit is not None and unit.fits(worker.free)

    def _queue_depth_limit(self, instance: LibraryInstance, bucket: TaskQueue) -> int:
        mean = bucket.mean_s
        if mean is None:
            extra = 1
        elif mean > MAX_PREFETCH_DURATION_S:
            extra = 0
        elif mean * MAX_PREFETCHED_PER_SLOT <= PREFETCH_S:
            extra = MAX_PREFETCHED_PER_SLOT
        else:
            extra = math.ceil(PREFETCH_S / mean)
        return instance.slots * (1 + extra)

    # ---- placing

    def place_ready_tasks(self) -> None:
        """Give ready tasks to workers with room, the most urgent of all buckets first, until one of the two runs out."""
        dirty = self.changed
        while dirty:
            bucket = next(iter(dirty)) if len(dirty) == 1 else min(dirty, key=_queue_priority)
            if not self._place_front_task(bucket):
                dirty.pop(bucket, None)

    def _place_front_task(self, bucket: TaskQueue) -> bool:
        """Place the first task of a bucket; whether it is worth looking at the next one."""
        ready, roots = bucket.ready, bucket.roots
        while ready and ready[0][2].state != READY:
            bucket.stale_entries = max(0, bucket.stale_entries - 1)
            heappop(ready)
        while roots and roots[0][2].state != READY:
            bucket.stale_entries = max(0, bucket.stale_entries - 1)
            heappop(roots)
        queue = roots if roots and not (ready and ready[0] < roots[0]) else ready
        if not queue:
            return False
        if not (
            bucket.workers_with_room
            or self._mind.instances.make_room(bucket)
            or self._reservation.starves(bucket)
        ):
            return False
        task, disk = queue[0][2], self._mind.disk
        disk.last_placement_lacked_disk = False
        worker = self._choose(task, bucket)
        if worker is not None:
            entry = heappop(queue)
            self._assign(task, worker, bucket)
            if self._reservation.starving is not None:
                self._reservation.placed(bucket, entry[:2])
            return True
        return self._place_alternative(queue, bucket)

    def _place_alternative(self, queue: list[tuple[float, int, TaskState]], bucket: TaskQueue) -> bool:
        """No worker has room for the most urgent task of a bucket; whether it is worth looking again."""
        disk = self._mind.disk
        if (
            not disk.last_placement_lacked_disk
        ):  # it asks for more of the open workers than they seemed to be asked for
            made = bucket.library is None and self._mind.instances.make_room(bucket)
            return made or (
                self._reservation.starves(bucket) and self._choose(queue[0][2], bucket) is not None
            )
        self._reservation.forget(bucket)  # a worker of its own would not help
        if self._place_front_with_eviction(queue, bucket):
            return True
        if queue is bucket.roots and bucket.ready and self._place_front_with_eviction(bucket.ready, bucket):
            return True
        return self._place_later_task(bucket) or disk.defer_for_disk(bucket)

    def _place_front_with_eviction(
        self, queue: list[tuple[float, int, TaskState]], bucket: TaskQueue
    ) -> bool:
        """Place the most urgent task of a queue, if that can be done with the room that is or can be made."""
        task = queue[0][2]
        worker = self._choose(task, bucket)
        if worker is None and self._mind.disk.last_placement_lacked_disk:
            worker = self._choose_with_eviction(task, bucket)
        if worker is None:
            return False
        heappop(queue)
        self._assign(task, worker, bucket)
        return True

    def _place_later_task(self, bucket: TaskQueue) -> bool:
        """The most urgent task waits for disk: place one of the next that leaves more room than it takes."""
        disk, placed = self._mind.disk, False
        passed: list[tuple[float, int, TaskState]] = []
        while bucket.ready and len(passed) < MAX_CANDIDATES and not placed:
            entry = heappop(bucket.ready)
            task = entry[2]
            if task.state != READY:
                continue
            worker = self._choose(task, bucket) if disk.frees_more(task) else None
            if worker is not None:
                self._assign(task, worker, bucket)
                placed = True
            else:
                passed.append(entry)
        for entry in passed:
            heappush(bucket.ready, entry)
        return placed

    def _choose_with_eviction(self, task: TaskState, bucket: TaskQueue) -> WorkerState | None:
        """A worker that has room for a task without what is cheap to get again; those that hold what it reads come first."""
        holders = (
            holder
            for file in islice(task.inputs, MAX_CANDIDATES)
            for holder in islice(file.replicas, MAX_CANDIDATES)
        )
        for worker in dict.fromkeys(
            [
                *(h for h in holders if h in bucket.workers_with_room),
                *islice(bucket.workers_with_room, MAX_CANDIDATES),
            ]
        ):
            if self.fits_resources(task, worker) and self._mind.disk.make_room(task, worker):
                return worker
        return None

    def fits_resources(self, task: TaskState, worker: WorkerState) -> bool:
        """Whether a worker has what a task asks for, disk for its files aside."""
        bucket = task.bucket
        if bucket.library is not None:
            return True
        allocation = self.allocate(bucket, task.spec.task, worker)
        return allocation is not None and allocation.fits(worker.free)

    def assign_to(self, task: TaskState, worker: WorkerState) -> None:
        """Give a ready task to a worker out of turn."""
        self._assign(task, worker, task.bucket)
        self._mind.life.mark_stale(task.bucket)

    def requested_disk_mb(self, bucket: TaskQueue) -> int:
        """MB of disk that the tasks of a bucket ask for in so many words."""
        asked = bucket.request.disk
        if asked is None and bucket.category is not None and not bucket.category.learns:
            asked = bucket.category.maximum.disk
        return asked or 0

    def _choose(self, task: TaskState, bucket: TaskQueue) -> WorkerState | None:
        disk = self._mind.disk
        self._needed_disk = disk.required_bytes(task) if disk.disk_tracked else 0
        if self.policy != "files":
            return self._choose_by_policy(task, bucket)
        neighbour = self._last_root_worker(task, bucket)
        if neighbour is not None:
            return neighbour
        least: WorkerState | None = None
        least_load = math.inf
        for worker in islice(bucket.workers_with_room, MAX_CANDIDATES):
            load = self._relative_load(worker, bucket)
            if load < least_load and self._fits(task, worker, bucket):
                least, least_load = worker, load
        if least is None:
            least = self._first_that_fits(task, bucket)
        if not task.inputs or len(self._mind.tables.workers) == 1:
            return least
        return self._by_locality(task, bucket, least)

    def _last_root_worker(self, task: TaskState, bucket: TaskQueue) -> WorkerState | None:
        """For a root, the worker of the one before, as long as a slot is free there, if all slots will be needed: neighbours mostly have a common reader."""
        worker = bucket.last_root_worker
        if worker is None or worker not in bucket.workers_with_room or not is_root(task):
            return None
        instance = worker.libraries.get(bucket.key[0])
        if instance is None or instance.assigned >= instance.slots or not self._fits(task, worker, bucket):
            return None
        expected = max(task.run.spec.size, bucket.unfinished)
        return worker if expected > instance.slots * len(self._mind.tables.workers) else None

    def _first_that_fits(self, task: TaskState, bucket: TaskQueue) -> WorkerState | None:
        """Look further where the estimate behind `Bucket.open` was wrong; who is too small goes to the end of the row."""
        for worker in list(islice(bucket.workers_with_room, MAX_FALLBACK_CANDIDATES)):
            if self._fits(task, worker, bucket):
                return worker
            del bucket.workers_with_room[worker]
            bucket.workers_with_room[worker] = None
        return None

    def _by_locality(
        self, task: TaskState, bucket: TaskQueue, least: WorkerState | None
    ) -> WorkerState | None:
        held: dict[WorkerState, int] = {}
        total = 0
        for file in islice(task.inputs, 64):
            total += max(file.size, 0)
            for holder in islice(file.replicas, MAX_CANDIDATES):
                held[holder] = held.get(holder, 0) + max(file.size, 1)
        best, best_cost = (
            least,
            math.inf if least is None else self._cost(least, bucket, total - held.get(least, 0)),
        )
        for worker in sorted(held, key=held.__getitem__, reverse=True)[:MAX_CANDIDATES]:
            may_queue = (
                bucket.library is not None
                and bucket.library.spec.name in worker.libraries
                and least is not None
                and not worker.draining
                and not self._reservation.excludes(worker, bucket)
            )
            if worker in bucket.workers_with_room or may_queue:
                cost = self._cost(worker, bucket, total - held[worker])
                if cost < best_cost and self._fits(task, worker, bucket):
                    best, best_cost = worker, cost
        return best

    def _cost(self, worker: WorkerState, bucket: TaskQueue, missing_bytes: int) -> float:
        """Seconds until a task could start on a worker: its queue there and the bytes it lacks."""
        fetch = missing_bytes / BANDWIDTH + LATENCY_S if missing_bytes > 0 else 0.0
        if bucket.library is None:
            return fetch
        instance = worker.libraries.get(bucket.library.spec.name)
        if instance is None or instance.assigned < instance.slots:
            return fetch
        mean = DEFAULT_DURATION_S if bucket.mean_s is None else bucket.mean_s
        return fetch + (1 + instance.assigned - instance.slots) * mean / instance.slots

    def _choose_by_policy(self, task: TaskState, bucket: TaskQueue) -> WorkerState | None:
        fitting = [
            w
            for w in islice(bucket.workers_with_room, MAX_FALLBACK_CANDIDATES)
            if self._fits(task, w, bucket)
        ]
        if not fitting:
            return None
        if self.policy == "fcfs":
            return min(fitting, key=lambda w: w.id)
        if (
            self.policy == "rand"
        ):  # the mind has no randomness: multiples of a large number are as good for spreading
            self._counter += 1
            return fitting[(self._counter * 2654435761 >> 7) % len(fitting)]
        if self.policy == "worst":
            return max(
                fitting, key=lambda w: ((1 - self._relative_load(w, bucket)) * w.total.cores, -len(w.tasks))
            )
        if self.policy == "disk":
            return max(fitting, key=lambda w: w.free_disk)
        return min(
            fitting, key=lambda w: (w.wall_s is not None, w.wall_s or 0.0)
        )  # "time": who has not been tried, then the fastest

    def _relative_load(self, worker: WorkerState, bucket: TaskQueue) -> float:
        if bucket.library is None:
            return 1.0 - worker.free.cores / max(worker.total.cores, 1)
        instance = worker.libraries.get(bucket.library.spec.name)
        return 0.5 if instance is None else instance.assigned / instance.slots

    def _fits(self, task: TaskState, worker: WorkerState, bucket: TaskQueue) -> bool:
        if bucket.library is None and not self.fits_resources(task, worker):
            return False
        if worker.ends_at is not None and self._exceeds_remaining_time(worker, bucket, self.duration(task)):
            return False
        return not self._needed_disk or self._mind.disk.fits(task, worker, self._needed_disk)

    def can_take(self, worker: WorkerState, task: TaskState) -> bool:
        """Whether a worker has the Python that a task needs, and stays long enough."""
        bucket = task.bucket
        return meets_python_requirements(worker, bucket) and not self._exceeds_remaining_time(
            worker, bucket, self.duration(task)
        )

    def duration(self, task: TaskState) -> float | None:
        """How long a task will take: as its like have taken, else as long as it may; None if nobody knows."""
        mean = task.bucket.mean_s
        if mean is None and task.bucket.library is None:
            _count, mean = self._mind.tables.category_walls.get(task.spec.category, (0, None))
        return mean if mean is not None else task.spec.options.get("time_max")

    def _exceeds_remaining_time(
        self, worker: WorkerState, bucket: TaskQueue, duration_s: float | None
    ) -> bool:
        """Whether a task of this duration would not be over before its worker begins to leave."""
        if worker.ends_at is None or duration_s is None:
            return False
        turns, instance = 1, None
        if bucket.library is not None:
            instance = worker.libraries.get(bucket.library.spec.name)
        if instance is not None:
            turns += instance.assigned // instance.slots
        return self._mind.now + turns * duration_s > worker.ends_at

    def _assign(self, task: TaskState, worker: WorkerState, bucket: TaskQueue) -> None:
        if bucket.library is None:
            task.allocation = self.allocate(bucket, task.spec.task, worker)
            assert task.allocation is not None
            worker.free = worker.free.minus(task.allocation)
            self._dispatch(task, worker, "assign")
            self.update_worker_everywhere(worker)
            return
        instance = self._mind.instances.instance_for(worker, bucket)
        instance.assigned += 1
        self._dispatch(task, worker, "assign")
        # move the worker to the end of the row, so that the next look starts with others
        bucket.workers_with_room.pop(worker, None)
        self._update_worker(worker, bucket)
        self._chain_successors(task, worker, instance)
        if len(self._mind.tables.workers) > 1 and is_root(task):
            bucket.last_root_worker = worker
            self._colocate_siblings(task, worker, instance)

    def _colocate_siblings(self, root: TaskState, worker: WorkerState, instance: LibraryInstance) -> None:
        """Queue the other roots that a root's first reader waits for on the same worker, where nobody idles: that will find all it reads there."""
        bucket = root.bucket
        if self.policy != "files" or root.run.spec.priority_mode not in CHAINING_PRIORITY_MODES:
            return
        reader = next((reader for file in root.outputs for reader in file.consumers), None)
        if reader is None or not 1 < len(reader.inputs) <= MAX_INPUTS_FOR_CHAINING:
            return
        if any(
            self._relative_load(other, bucket) < 1
            for other in islice(bucket.workers_with_room, MAX_CANDIDATES)
        ):
            return
        disk = self._mind.disk
        for file in reader.inputs:
            task = file.producer
            if task is None or task.state != READY or task.bucket is not bucket or not is_root(task):
                continue
            self._needed_disk = disk.required_bytes(task) if disk.disk_tracked else 0
            if not self._fits(task, worker, bucket):
                break
            instance.assigned += 1
            self._dispatch(task, worker, "assign")
            self._mind.life.mark_stale(bucket)
            self._chain_successors(task, worker, instance)
        self._update_worker(worker, bucket)

    def _dispatch(self, task: TaskState, worker: WorkerState, event: str) -> None:
        mind = self._mind
        mind.life.transition(task, event)
        task.worker = worker
        task.dispatch_count += 1
        task.run.running += 1
        task.bucket.running += 1
        mind.tables.assigned += 1
        if mind.disk.disk_tracked:
            task.reserved_disk = promised = mind.disk.expected_output_bytes(task)
            worker.free_disk -= promised
        worker.tasks[task.dispatch_id] = task
        if worker.unlink and any(
            file.name in worker.unlink for file in task.outputs
        ):  # which has to come before
            mind.flush(worker)
        for file in task.extra_files:
            if worker not in file.replicas:
                mind.transfers.request_copy(worker, file)
        for file in task.inputs:
            if worker not in file.replicas:
                mind.transfers.request_copy(worker, file)
        spec = task.spec
        options = spec.options
        if task.allocation is not None:
            options = {**options, "allocation": task.allocation}
            if task.bucket.category is not None and (
                task.bucket.category.learns or task.request != UNSPECIFIED
            ):
                options["limits"] = self._enforced_limits(task)
        if mind.disk.disk_tracked and (readers := self._reader_count(task)):
            options = {**options, "readers": readers}
        keep = bool(spec.result) and task.outputs[0].wanted_at_manager
        run = m.RunTask(
            task.dispatch_id,
            spec.library,
            spec.function,
            list(spec.shared),
            list(spec.inputs),
            spec.result,
            keep,
            options,
            spec.payload,
        )
        mind.emit(Send(worker.id, run))

    def _reader_count(self, task: TaskState) -> int:
        """How many calls of its graph will read the large result of a call; 0 where somebody else may want it."""
        if task.bucket.library is None or not task.run.spec.run or not self._mind.disk.writes_much(task):
            return 0
        file = task.outputs[0]
        private = not (file.wanted_at_manager or file.pin_count or file.reusable or file.level > WORKFLOW)
        return (
            len(file.consumers) + file.unsubmitted_readers
            if private and self._mind.copies.target_count < 2
            else 0
        )

    def _enforced_limits(self, task: TaskState) -> dict[str, float]:
        """What is enforced: what the task or its category said, not what was rounded up for it."""
        asked, got = self.request(task.bucket, task.spec.task), task.allocation
        assert got is not None
        return {name: getattr(got, name) for name in ("memory", "disk") if getattr(asked, name) is not None}

    # ---- ahead

    def _chain_successors(self, task: TaskState, worker: WorkerState, instance: LibraryInstance) -> None:
        """Send the successors of a task after it, if all they lack is being made on the same worker."""
        if task.run.spec.priority_mode not in CHAINING_PRIORITY_MODES or worker.draining:
            return
        if self._reservation.worker is worker and self._reservation.excludes(worker, task.bucket):
            return
        frontier = instance.chain_candidates
        frontier.append(task)
        most = instance.slots * (
            MAX_CHAINED_PER_SLOT if (task.bucket.mean_s or 0.0) < MAX_PREFETCH_DURATION_S else 1
        )
        while frontier and instance.chained < most:
            maker = frontier.popleft()
            if maker.worker is not worker or maker.state != ASSIGNED:
                continue
            for file in maker.outputs:
                for successor in islice(file.consumers, most - instance.chained):
                    if (
                        successor.state == WAITING
                        and successor.bucket is maker.bucket
                        and self._inputs_will_be_on(successor, worker)
                        and self._fits_on_disk(successor, worker)
                    ):
                        successor.chained = True
                        instance.chained += 1
                        self._dispatch(successor, worker, "ahead")
                        frontier.append(successor)

    def _inputs_will_be_on(self, task: TaskState, worker: WorkerState) -> bool:
        if len(task.inputs) > MAX_INPUTS_FOR_CHAINING:
            return False
        for file in task.inputs:
            maker = file.producer
            made_here = maker is not None and maker.state == ASSIGNED and maker.worker is worker
            if not (made_here or worker in file.replicas or (file.available and not file.replicas)):
                return False
        return True

    def _fits_on_disk(self, task: TaskState, worker: WorkerState) -> bool:
        disk = self._mind.disk
        need = disk.required_bytes(task) if disk.disk_tracked else 0
        return not need or disk.fits(task, worker, need)

    def inputs_complete(self, task: TaskState) -> None:
        """The inputs of a task that was sent ahead exist: it counts as queued now."""
        task.chained = False
        worker = task.worker
        assert worker is not None
        instance = worker.libraries.get(task.spec.library)
        if instance is not None:
            instance.chained -= 1
            instance.assigned += 1
            self._update_worker(worker, task.bucket)
            if self._reservation.starving is not None:
                self._reservation.placed(task.bucket, (task.spec.priority, math.inf))
            self._chain_successors(task, worker, instance)

    def remove_from_worker(self, worker: WorkerState, task: TaskState) -> None:
        """A task has left a worker, in whatever way: give back what it held."""
        ahead, task.chained = task.chained, False
        allocation, task.allocation = task.allocation, None
        if worker.id not in self._mind.tables.workers:
            return
        if allocation is not None:
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
        self._update_worker(worker, task.bucket)
        if instance.assigned < instance.slots:
            self._mind.balance.slot_freed(worker, task.bucket)
        if instance.idle:  # its room may serve others
            self._mind.instances.may_be_idle(worker)
            self.retry_starved()

    def retry_starved(self) -> None:
        """Try again those for whom there was no room."""
        for bucket in self._mind.tables.buckets.values():
            if bucket.front and not bucket.workers_with_room:
                self.changed[bucket] = None

    def retry_all(self) -> None:
        """Try again all who wait."""
        for bucket in self._mind.tables.buckets.values():
            if bucket.front:
                self.changed[bucket] = None

    def category_changed(self, category: Category) -> None:
        """The tasks of a category get more or less than before."""
        self._mind.disk.disk_tracked |= bool(category.maximum.disk)
        for bucket in self._mind.tables.buckets.values():
            if bucket.category is category:
                for worker in self._mind.tables.workers.values():
                    self._update_worker(worker, bucket)

    # ---- workers

    def worker_joined(self, worker: WorkerState) -> None:
        """There is a new worker."""
        if self._largest is None or capacity_key(worker.total) > capacity_key(self._largest):
            self._largest = worker.total
        self._reservation.joined(worker)
        self.update_worker_everywhere(worker)

    def worker_gone(self, worker: WorkerState) -> None:
        """A worker has left."""
        for bucket in self._mind.tables.buckets.values():
            bucket.workers_with_room.pop(worker, None)
            if bucket.last_root_worker is worker:
                bucket.last_root_worker = None
        self._mind.instances.worker_gone(worker)
        self._reservation.gone(worker)
        if worker.total == self._largest:
            totals = (w.total for w in self._mind.tables.workers.values())
            self._largest = max(totals, key=capacity_key, default=None)


def meets_python_requirements(worker: WorkerState, bucket: TaskQueue) -> bool:
    """Whether the worker's own Python will do, where there is no other one."""
    if not bucket.python:
        return True
    if not worker.python_ok:
        return False
    # what a command of the user's starts may have other packages, in a container for one
    return not worker.missing_packages or bool(bucket.library and bucket.library.spec.options.get("command"))


def _queue_priority(bucket: TaskQueue) -> tuple[float, int]:
    """Smaller goes first."""
    queue = bucket.front
    return queue[0][:2] if queue else (math.inf, 0)


def capacity_key(total: Resources) -> tuple[float, ...]:
    """Compare workers by this."""
    return (total.cores, total.memory, total.disk, total.gpus)
