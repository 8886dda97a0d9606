"""The invariants of the scheduler's records, for tests, simulations and debugging.

Each record is compared with what it should be, computed anew from the others. That takes time in proportion to all tasks, files and
workers after every batch of events, so `Scheduler` does it only with ``validate=True``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from vinecore.resources.amounts import Resources
from vinecore.scheduler.replicas import ARCHIVE
from vinecore.scheduler.state import MB, UNLIMITED, disk_bytes
from vinecore.scheduler.transitions import ASSIGNED, READY, RETRIEVING, WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.disk_deadlock import DiskDeadlock
    from vinecore.scheduler.missing_files import MissingFiles
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.state import (
        FileState,
        GraphState,
        SchedulerState,
        TaskQueue,
        TaskState,
        WorkerState,
    )
    from vinecore.scheduler.time_windows import TimeWindows

    # a record, and the invariant that does not hold for it
    Violations = Iterator[tuple[object, str]]


class InvalidState(RuntimeError):
    """A defect of the scheduler: a record is not what follows from the other records."""


class StateValidation:
    """Finds records that contradict others; changes nothing."""

    def __init__(
        self,
        state: SchedulerState,
        queues: TaskQueues,
        disk: DiskAccounts,
        replicas: Replicas,
        missing_files: MissingFiles,
        disk_deadlock: DiskDeadlock,
        time_windows: TimeWindows,
    ) -> None:
        self._state = state
        self._queues = queues
        self._disk = disk
        self._replicas = replicas
        self._missing_files = missing_files
        self._disk_deadlock = disk_deadlock
        self._time_windows = time_windows

    def validate_state(self) -> None:
        """Check every invariant between two batches of events.

        Raises
        ------
        InvalidState
            An invariant does not hold; the text names the record and the invariant.
        """
        for check in (
            self._check_tasks,
            self._check_graphs,
            self._check_files,
            self._check_workers,
            self._check_queues,
            self._check_transfers,
        ):
            for record, invariant in check():
                msg = f"{record}: {invariant}"
                raise InvalidState(msg)

    # ---- tasks

    def _check_tasks(self) -> Violations:
        for task in self._state.tasks.values():
            if task.graph.tasks.get(task.spec.task) is not task:
                yield task, "it is not among the tasks of its graph"
            if task.state == RETRIEVING:
                yield from self._check_retrieving_task(task)
            elif task.state in (WAITING, READY, ASSIGNED):
                yield from self._check_inputs(task)
                yield from self._check_assignment(task)
            else:
                yield task, "a task that has ended is still recorded"
        retrieving = sum(task.state == RETRIEVING for task in self._state.tasks.values())
        counted = self._state.counters.tasks_retrieving
        if counted != retrieving:
            yield "counters", f"tasks_retrieving is {counted}, not {retrieving}"

    def _check_retrieving_task(self, task: TaskState) -> Violations:
        wanted = [file for file in task.outputs if file.wanted_at_manager and not file.at_manager]
        if not wanted:
            yield task, "it waits for the upload of its outputs, and none is wanted at the manager"
        for file in wanted:
            if not file.uploading:
                yield task, f"no worker uploads its output {file}"

    def _check_inputs(self, task: TaskState) -> Violations:
        # an unpacked directory can be had as soon as its archive can, which is an input, too
        unavailable = [file for file in task.inputs if not file.available and file.archive is None]
        early = task in self._time_windows.early
        if task.missing_inputs != len(unavailable) + early:
            yield task, f"missing_inputs is {task.missing_inputs}, and it misses {unavailable}"
        for file in task.inputs:
            if task not in file.consumers:
                yield task, f"it is not among the consumers of its input {file}"
        if task.state == WAITING and not unavailable and not early:
            yield task, "it waits, and all its inputs are available"
        if task.state == READY and unavailable:
            yield task, f"it is ready without {unavailable}"
        for file in unavailable:
            yield from self._check_unavailable_input(task, file)

    def _check_unavailable_input(self, task: TaskState, file: FileState) -> Violations:
        maker = file.producer
        if maker is None:
            # a task that makes it may still be submitted; the user is asked whether that is so
            if file not in self._missing_files.awaited:
                yield task, f"no task makes its input {file}, and the file is not awaited"
            if file.absent and not self._missing_files.user_notified:
                yield task, f"the user has not been notified that its input {file} is absent"
        elif maker.state not in (WAITING, READY, ASSIGNED):
            yield task, f"its input {file} is unavailable, and {maker} is not making it"
        elif task.state == ASSIGNED and not (task.chained and maker.worker is task.worker):
            yield task, f"it was sent before its input {file} exists, which {maker} makes elsewhere"

    def _check_assignment(self, task: TaskState) -> Violations:
        worker = task.worker
        if (task.state == ASSIGNED) != (worker is not None):
            yield task, f"its worker is {worker}"
        if task.state != ASSIGNED or worker is None:
            return
        if worker.id not in self._state.workers:
            yield task, f"{worker} is not connected"
        if task.chained != bool(task.missing_inputs):
            yield task, f"chained is {task.chained}, and {task.missing_inputs} inputs are missing"
        for file in (*task.inputs, *task.extra_files):
            if not _is_supplied(worker, file):
                yield task, f"{file} is neither on {worker} nor on its way there"

    # ---- graphs

    def _check_graphs(self) -> Violations:
        own: dict[GraphState, list[TaskState]] = {graph: [] for graph in self._state.graphs.values()}
        for task in self._state.tasks.values():
            own.setdefault(task.graph, []).append(task)
        for graph, tasks in own.items():
            label = f"graph {graph.spec.number}"
            if set(graph.tasks.values()) != set(tasks):
                yield label, f"its tasks are {[*graph.tasks.values()]}, not {tasks}"
            if graph.unfinished != len(tasks):
                yield label, f"unfinished is {graph.unfinished}, not {len(tasks)}"
            running = sum(task.state == ASSIGNED for task in tasks)
            if graph.running != running:
                yield label, f"running is {graph.running}, not {running}"
            if graph.done < 0:
                yield label, f"done is {graph.done}"

    # ---- files

    def _check_files(self) -> Violations:
        consumers, pending = self._count_readers()
        for file in {*self._state.files.values(), *consumers, *pending}:
            yield from self._check_replicas(file)
            expected = consumers.get(file, set())
            if set(file.consumers) != expected:
                yield file, f"its consumers are {[*file.consumers]}, not {expected}"
            if file.pending_readers != pending[file]:
                yield file, f"pending_readers is {file.pending_readers}, not {pending[file]}"
            if file.unsubmitted_readers < 0:
                yield file, f"unsubmitted_readers is {file.unsubmitted_readers}"
            if file.consumers and self._state.files.get(file.name) is not file:
                yield file, "it has consumers, and is not recorded"
            if not (file.pending_readers or file.unsubmitted_readers or file.pin_count > 0):
                yield from self._check_unneeded_file(file)
        for file in self._state.evictable:
            if not file.reusable or file.pending_readers or self._state.files.get(file.name) is not file:
                yield file, "it is evictable, and not reusable, or still needed, or not recorded"

    def _check_replicas(self, file: FileState) -> Violations:
        for worker in file.replicas:
            if file not in worker.files or self._state.workers.get(worker.id) is not worker:
                yield file, f"its replica on {worker} is not recorded there"
        if file.uploading is not None and file.uploading.id not in self._state.workers:
            yield file, f"{file.uploading}, which uploads it, is not connected"

    def _count_readers(self) -> tuple[dict[FileState, set[TaskState]], Counter[FileState]]:
        """Return the consumers and the number of pending readers of each file."""
        consumers: dict[FileState, set[TaskState]] = {}
        pending: Counter[FileState] = Counter()
        for task in self._state.tasks.values():
            if task.state == RETRIEVING:
                continue
            pending.update(task.extra_files)
            for file in task.inputs:
                consumers.setdefault(file, set()).add(task)
                pending[file] += 1
                generation = [file]
                for _level in range(1, task.graph.spec.prune_depth):
                    generation = [
                        older for f in generation if f.producer is not None for older in f.producer.inputs
                    ]
                    pending.update(generation)
        return consumers, pending

    def _check_unneeded_file(self, file: FileState) -> Violations:
        maker = file.producer
        is_being_made = maker is not None and maker.state in (WAITING, READY, ASSIGNED)
        if file.released and not is_being_made:
            yield file, "it is released and not needed, and still recorded"
        if file.reusable and file.replicas and file not in self._state.evictable:
            yield file, "it is reusable and not needed, and not evictable"
        if maker is not None and not file.wanted_at_manager and not file.reusable:
            if file.replicas:
                yield file, "it is an intermediate that is not needed, and not pruned"
            if file.at_manager:
                yield file, "it is an intermediate that is not needed, and still at the manager"

    # ---- workers

    def _check_workers(self) -> Violations:
        running = {task for task in self._state.tasks.values() if task.state == ASSIGNED}
        seen: set[TaskState] = set()
        for worker in self._state.workers.values():
            if worker.cancel or worker.unlink:
                yield worker, "it has not been told all that it is to cancel and to remove"
            for dispatch_id, task in worker.tasks.items():
                seen.add(task)
                if task not in running or task.worker is not worker or task.dispatch_id != dispatch_id:
                    yield worker, f"{task} is not running there as {dispatch_id}"
                if task.allocation is not None and task.spec.library:
                    yield worker, f"{task} is a call with an allocation of its own"
            yield from self._check_resources(worker)
            yield from self._check_disk(worker)
        for task in running - seen:
            yield task, "it is not among the tasks of its worker"
        if self._state.assigned != len(running):
            yield "scheduler", f"assigned is {self._state.assigned}, not {len(running)}"

    def _check_resources(self, worker: WorkerState) -> Violations:
        """Check the free resources of a worker against its tasks and library instances."""
        taken = Resources()
        assigned: Counter[str] = Counter()
        chained: Counter[str] = Counter()
        for task in worker.tasks.values():
            if task.allocation is not None:
                taken = taken.plus(task.allocation)
            else:
                (chained if task.chained else assigned)[task.spec.library] += 1
        for name, instance in worker.libraries.items():
            if self._state.libraries.get(name) is not instance.library:
                yield worker, f"its instance of library {name} is of one that is not installed"
            if instance.assigned != assigned[name] or instance.chained != chained[name]:
                counts = f"{instance.assigned} assigned and {instance.chained} chained calls"
                yield worker, f"{name} has {counts}, not {assigned[name]} and {chained[name]}"
            taken = taken.plus(instance.allocation)
            for file in instance.library.files:
                if not _is_supplied(worker, file):
                    yield worker, f"{file} of library {name} is neither there nor on its way"
        if worker.free.plus(taken) != worker.total:
            yield worker, f"of {worker.total} {taken} are taken and {worker.free} are free"
        if min(worker.free) < 0:
            yield worker, f"{worker.free} are free"

    def _check_disk(self, worker: WorkerState) -> Violations:
        """Check the free disk of a worker against all files on it, on their way to it, and expected there."""
        stalled = sum((file.waiting_for_source or {}).get(worker, 0) for file in self._replicas.stalled)
        reserved = sum(task.reserved_disk for task in worker.tasks.values())
        unaccounted = self._disk.unaccounted_bytes.get(worker, 0)
        taken = sum(worker.files.values()) + sum(worker.fetching.values()) + stalled + reserved + unaccounted
        total = worker.total.disk * MB or UNLIMITED
        if worker.free_disk + taken != total:
            yield worker, f"of {total} bytes of disk {taken} are taken and {worker.free_disk} are free"
        for file, size in worker.files.items():
            if worker not in file.replicas or self._state.files.get(file.name) is not file:
                yield worker, f"{file} is recorded there only"
            # workers may have made results of different sizes, so this need not be the file's size
            if size != disk_bytes(size):
                yield worker, f"{file} is recorded with {size} bytes there, which take no disk"
        if not worker.evictable.keys() <= worker.files.keys():
            yield (
                worker,
                f"of its evictable files {worker.evictable.keys() - worker.files.keys()} are not there",
            )
        if not worker.unverified.keys() <= worker.files.keys():
            yield (
                worker,
                f"of its unverified files {worker.unverified.keys() - worker.files.keys()} are not there",
            )

    # ---- queues

    def _check_queues(self) -> Violations:
        own: dict[TaskQueue, list[TaskState]] = {queue: [] for queue in self._state.queues.values()}
        for task in self._state.tasks.values():
            own.setdefault(task.queue, []).append(task)
        is_retrieving = any(task.state == RETRIEVING for task in self._state.tasks.values())
        disk_may_be_freed = bool(self._state.assigned) or is_retrieving or self._disk_deadlock.is_stuck
        for queue, tasks in own.items():
            name = f"queue {queue.key}"
            if self._state.queues.get(queue.key) is not queue:
                yield name, f"it is not recorded, and has {tasks}"
            if queue.unfinished != len(tasks):
                yield name, f"unfinished is {queue.unfinished}, not {len(tasks)}"
            running = sum(task.state == ASSIGNED for task in tasks)
            if queue.running != running:
                yield name, f"running is {queue.running}, not {running}"
            too_large = self._disk.too_large_for_any_disk.keys()
            ready = {task for task in tasks if task.state == READY}
            queued = {entry[2] for entry in (*queue.ready, *queue.roots)} | too_large
            if not ready <= queued:
                yield name, f"{ready - queued} are ready, and not queued"
            yield from self._check_workers_with_room(queue)
            ready -= too_large
            if not ready:
                continue
            if queue in self._queues.waiting_for_disk:
                if queue.workers_with_room and not disk_may_be_freed:
                    yield name, f"{ready} wait for disk, and nothing happens that could free some"
            # files that tasks insist on come and go without an event
            elif not (
                _learns(queue)
                or self._state.holds_tasks
                or (queue.category is not None and self._queues.is_full(queue.category))
                or (queue.conditions and queue.conditions.strict_inputs)
            ):
                open_ = [worker for worker in queue.workers_with_room if worker.ends_at is None]
                if open_:
                    yield name, f"{ready} could run on {open_}"

    def _check_workers_with_room(self, queue: TaskQueue) -> Violations:
        name = f"queue {queue.key}"
        connected = set(self._state.workers.values())
        if not queue.workers_with_room.keys() <= connected:
            yield name, f"{queue.workers_with_room.keys() - connected} have room, and are not connected"
        for worker in connected:
            if worker.closed and worker in queue.workers_with_room:
                yield name, f"{worker} has room, and is closed"
            # what is estimated, or depends on the time that is left, changes without an event
            if worker.ends_at is not None or _learns(queue):
                continue
            if queue.conditions is not None and (queue.library or queue.conditions.strict_inputs):
                continue
            has_room = self._queues.can_accept(worker, queue)
            instance = worker.libraries.get(queue.library.spec.name) if queue.library else None
            # a busy instance is looked at again when a call ends
            is_idle = instance is None or not instance.assigned
            if is_idle and has_room != (worker in queue.workers_with_room):
                yield name, f"that {worker} has room is {has_room}, and recorded otherwise"

    # ---- transfers

    def _check_transfers(self) -> Violations:
        by_source: Counter[WorkerState | str] = Counter()
        by_file_and_source: Counter[tuple[FileState, WorkerState | str]] = Counter()
        for file in self._state.files.values():
            yield from self._check_transfers_of(file)
            for source in file.fetching.values():
                if source != ARCHIVE:
                    by_source[source] += 1
                    by_file_and_source[file, source] += 1
        counted = self._replicas.active_by_file_and_source
        if counted != by_file_and_source:
            yield "replicas", f"transfers by file and source are {counted}, not {dict(by_file_and_source)}"
        external = {source: count for source, count in by_source.items() if isinstance(source, str)}
        if self._replicas.active_by_source != external:
            yield "replicas", f"transfers by source are {self._replicas.active_by_source}, not {external}"
        for worker in self._state.workers.values():
            if worker.outgoing != by_source[worker]:
                yield worker, f"outgoing is {worker.outgoing}, not {by_source[worker]}"
            for file in worker.fetching:
                if worker not in file.fetching:
                    yield worker, f"the transfer of {file} is recorded there only"

    def _check_transfers_of(self, file: FileState) -> Violations:
        for worker in file.fetching:
            if file not in worker.fetching:
                yield file, f"its transfer to {worker} is not recorded there"
            if worker in file.replicas:
                yield file, f"it is transferred to {worker}, which has a replica"
        if bool(file.waiting_for_source) != (file in self._replicas.stalled):
            waiting = [*(file.waiting_for_source or ())]
            yield file, f"{waiting} wait for a source, and it is not recorded so"


def _is_supplied(worker: WorkerState, file: FileState) -> bool:
    """Return whether an available file is on a worker, on its way there, or waits for a source."""
    return (
        not file.available
        or worker in file.replicas
        or worker in file.fetching
        or (file.waiting_for_source is not None and worker in file.waiting_for_source)
    )


def _learns(queue: TaskQueue) -> bool:
    """Return whether the allocations of a queue's tasks are estimates."""
    return queue.category is not None and queue.category.learns
