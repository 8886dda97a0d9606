"""Hands tasks to workers, with what they read.

Successors of what runs on a worker are sent ahead: they start there without asking, as soon as their inputs are made.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.protocol import messages
from vinecore.resources.amounts import UNSPECIFIED
from vinecore.scheduler.instructions import Send
from vinecore.scheduler.queues import MAX_PREFETCH_DURATION_S
from vinecore.scheduler.specs import WORKFLOW
from vinecore.scheduler.state import is_root
from vinecore.scheduler.transfers import MANAGER
from vinecore.scheduler.transitions import ASSIGNED, READY, WAITING
from vinecore.scheduler.worker_choice import MAX_CANDIDATES

if TYPE_CHECKING:
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.reservation import Reservations
    from vinecore.scheduler.state import FileState, LibraryInstance, SchedulerState, TaskState, WorkerState
    from vinecore.scheduler.transfers import Transfers
    from vinecore.scheduler.worker_choice import WorkerChoice


MAX_CHAINED_PER_SLOT = 32  # calls per slot whose inputs are still being made
MAX_INPUTS_FOR_CHAINING = 32
# In these orders a successor comes right after what it waits for; in others it would overtake.
CHAINING_PRIORITY_MODES = ("", "depth-first")


class Dispatcher:
    """Sends tasks to the workers that were chosen for them.

    Attributes
    ----------
    process_options : dict
        Options of all tasks that have a process of their own.
    """

    def __init__(
        self,
        *,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        reservations: Reservations,
        disk: DiskAccounts,
        tasks: TaskLifecycle,
        transfers: Transfers,
        replication: Replication,
        choice: WorkerChoice,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._reservations = reservations
        self._disk = disk
        self._tasks = tasks
        self._transfers = transfers
        self._replication = replication
        self._choice = choice
        self._reservation = state.reservation
        self.process_options: dict[str, Any] = {}

    def dispatch(self, task: TaskState, worker: WorkerState, event: str) -> None:
        """Send a task to a worker, and what it reads that is not there."""
        task.transition(event)
        task.worker = worker
        task.dispatched_at = self._state.now
        task.dispatch_count += 1
        task.graph.running += 1
        task.queue.running += 1
        self._state.assigned += 1
        if self._state.disk_tracked:
            task.reserved_disk = promised = self._disk.expected_output_bytes(task)
            worker.free_disk -= promised
        worker.tasks[task.dispatch_id] = task
        # which has to come before
        if worker.unlink and any(file.name in worker.unlink for file in task.outputs):
            self._outbox.flush(worker)
        for file in task.extra_files:
            if worker not in file.replicas:
                self._bring_for_task(file, worker, task)
        for file in task.inputs:
            if worker not in file.replicas:
                self._bring_for_task(file, worker, task)
        spec = task.spec
        options = spec.options
        if task.allocation is not None:
            options = {**options, "allocation": task.allocation, **self.process_options}
            if task.queue.category is not None and (
                task.queue.category.learns or task.request != UNSPECIFIED
            ):
                options["limits"] = self._enforced_limits(task)
        if spec.conditions is not None and spec.conditions.time_end is not None:
            options = {**options, "time_left": max(0.0, spec.conditions.time_end - self._state.now)}
        if self._state.disk_tracked and (readers := self._reader_count(task)):
            options = {**options, "readers": readers}
        # a small result of a future comes with the news of its end, whether the program asks for it or not
        keep = bool(spec.result) and (task.outputs[0].wanted_at_manager or "inline" in options)
        run = messages.RunTask(
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
        self._outbox.emit(Send(worker.id, run))

    def _bring_for_task(self, file: FileState, worker: WorkerState, task: TaskState) -> None:
        """Have a file brought to the worker of a task, which accounts for what the manager sends."""
        sent = file.archive or file
        is_coming = worker in sent.replicas or worker in sent.fetching
        self._transfers.request_copy(worker, file)
        if not is_coming and (worker in sent.replicas or sent.fetching.get(worker) == MANAGER):
            task.open_accounts().sent_bytes += max(sent.size, 0)

    def _reader_count(self, task: TaskState) -> int:
        """Return how many calls of its graph will read the large result of a call; 0 if others may, too."""
        if task.queue.library is None or not task.graph.spec.number or not self._disk.writes_much(task):
            return 0
        file = task.outputs[0]
        private = not (file.wanted_at_manager or file.pin_count or file.reusable or file.level > WORKFLOW)
        return (
            len(file.consumers) + file.unsubmitted_readers
            if private and self._replication.target_count < 2
            else 0
        )

    def _enforced_limits(self, task: TaskState) -> dict[str, float]:
        """Return the limits that are enforced: what was asked for, not what was rounded up from it."""
        if not self._state.enforces_limits:
            return {}
        asked, got = self._queues.effective_request(task.queue, task.spec.task), task.allocation
        assert got is not None
        return {name: getattr(got, name) for name in ("memory", "disk") if getattr(asked, name) is not None}

    def colocate_siblings(self, root: TaskState, worker: WorkerState, instance: LibraryInstance) -> None:
        """Queue the other roots that a root's first reader waits for on the same worker, if none idles.

        The reader then finds all its inputs there.
        """
        queue = root.queue
        if self._choice.policy != "files" or root.graph.spec.priority_mode not in CHAINING_PRIORITY_MODES:
            return
        reader = next((reader for file in root.outputs for reader in file.consumers), None)
        if reader is None or not 1 < len(reader.inputs) <= MAX_INPUTS_FOR_CHAINING:
            return
        if any(
            self._choice.relative_load(other, queue) < 1
            for other in islice(queue.workers_with_room, MAX_CANDIDATES)
        ):
            return
        for file in reader.inputs:
            task = file.producer
            if task is None or task.state != READY or task.queue is not queue or not is_root(task):
                continue
            if not self._choice.can_take_now(task, worker, queue):
                break
            instance.assigned += 1
            self.dispatch(task, worker, "assign")
            self._queues.mark_stale(queue)
            self.chain_successors(task, worker, instance)
        self._queues.update_worker(worker, queue)

    def chain_successors(self, task: TaskState, worker: WorkerState, instance: LibraryInstance) -> None:
        """Send the successors of a task after it, if all they lack is being made on the same worker."""
        if task.graph.spec.priority_mode not in CHAINING_PRIORITY_MODES or worker.closed:
            return
        if self._reservation.worker is worker and self._reservation.excludes(worker, task.queue):
            return
        frontier = instance.chain_candidates
        frontier.append(task)
        most = instance.slots * (
            MAX_CHAINED_PER_SLOT if (task.queue.mean_s or 0.0) < MAX_PREFETCH_DURATION_S else 1
        )
        while frontier and instance.chained < most:
            maker = frontier.popleft()
            if maker.worker is not worker or maker.state != ASSIGNED:
                continue
            for file in maker.outputs:
                for successor in islice(file.consumers, most - instance.chained):
                    if (
                        successor.state == WAITING
                        and successor.queue is maker.queue
                        and self._inputs_will_be_on(successor, worker)
                        and self._fits_on_disk(successor, worker)
                    ):
                        successor.chained = True
                        instance.chained += 1
                        self.dispatch(successor, worker, "ahead")
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
        need = self._disk.required_bytes(task) if self._state.disk_tracked else 0
        return not need or self._disk.fits(task, worker, need)

    def inputs_complete(self, task: TaskState) -> None:
        """Count a task as queued that was sent ahead and whose inputs exist now."""
        task.chained = False
        worker = task.worker
        assert worker is not None
        instance = worker.libraries.get(task.spec.library)
        if instance is not None:
            instance.chained -= 1
            instance.assigned += 1
            self._queues.update_worker(worker, task.queue)
            if self._reservation.starving is not None:
                self._reservations.placed(task.queue, (task.spec.priority, math.inf))
            self.chain_successors(task, worker, instance)

    def file_available(self, file: FileState) -> None:
        """Go on with the tasks that wait for a file."""
        for task in list(file.consumers):
            if task.state == WAITING:
                task.missing_inputs -= 1
                if not task.missing_inputs:
                    self._tasks.mark_ready(task)
            elif task.state == ASSIGNED:  # it was sent ahead
                task.missing_inputs -= 1
                assert task.worker is not None
                self._transfers.request_copy(task.worker, file)
                if not task.missing_inputs:
                    self.inputs_complete(task)
