"""What a lost file costs, and which task makes it again.

A file that is gone everywhere and still needed reschedules the task that made it; that task's own inputs may be gone as well, and
reschedule theirs. The walk is a loop, not a recursion, so a chain of any length can be made again; every task is made again a
bounded number of times. Files that cannot be named any more keep the tasks that made them as long as a living file descends from
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import INFO, LogMessage, TaskActivated
from vinecore.scheduler.lifecycle import describe_file
from vinecore.scheduler.missing_files import never_there
from vinecore.scheduler.replicas import is_needed
from vinecore.scheduler.transitions import ASSIGNED, CANCELLED, DONE, FAILED, READY, RETRIEVING

if TYPE_CHECKING:
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.missing_files import MissingFiles
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.signals import Signals
    from vinecore.scheduler.state import FileState, SchedulerState, TaskState, WorkerState
    from vinecore.scheduler.transfers import Transfers


MAX_RECOMPUTATIONS = 20


class Recovery:
    """Finds or makes again what was lost."""

    def __init__(
        self,
        *,
        signals: Signals,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        replicas: Replicas,
        files: FileLifetime,
        tasks: TaskLifecycle,
        missing_files: MissingFiles,
        transfers: Transfers,
    ) -> None:
        self._signals = signals
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._replicas = replicas
        self._files = files
        self._tasks = tasks
        self._missing_files = missing_files
        self._transfers = transfers

    def replica_lost(self, file: FileState, worker: WorkerState) -> None:
        """Strike a lost copy, and make up for it where it is needed."""
        if worker not in file.replicas:
            return
        del file.replicas[worker]
        self._replicas.forget_replica(worker, file)
        self._replicas.remove_copy(worker, file, purge=True)  # it may be only half lost
        self._transfers.retry_upload(worker, file)
        if not file.available:
            self.files_lost([file])
        elif self._replicas.is_needed_on(worker, file):
            self._transfers.request_copy(worker, file)

    def files_lost(self, files: list[FileState]) -> None:
        """Have the readers of files wait whose last copies are gone, and make needed files again."""
        for file in files:  # all of them first: who is woken below counts for itself what it misses
            for task in list(file.consumers):
                # an unpacked directory can be had as soon as its archive can, which the task reads, too
                if file.archive is None:
                    task.missing_inputs += 1
                if task.state == READY:
                    self._tasks.input_lost(task)
                # where it is it would hold a place that its input may have to be made in
                elif task.state == ASSIGNED:
                    self._tasks.cancel_and_requeue(task)
        for file in files:
            producer = file.producer
            if file in self._state.evictable:
                if producer is None:
                    self._files.evict(file)
                    continue
                del self._state.evictable[file]
            retrieving = producer is not None and producer.state == RETRIEVING
            at_once = self._state.tuning.immediate_recovery and producer is not None and is_needed(file)
            if file.consumers or file.requested or (file.wanted_at_manager and retrieving) or at_once:
                self.recompute(file)

    def recompute(self, file: FileState) -> None:
        """Reschedule the producer of a file, and the producers of what that needs."""
        stack = [file]
        while stack:
            lost = stack.pop()
            producer = lost.producer
            if lost.archive is not None:
                stack.append(lost.archive)
            elif producer is None:
                if not self._missing_files.may_wait_for(lost):
                    gone = f"{lost.name} is gone and nothing can make it again"
                    self._signals.file_unobtainable(lost, never_there(lost) if lost.absent else gone)
            elif producer.state in (DONE, RETRIEVING):
                self._reschedule_producer(producer, lost, stack)
            elif producer.state in (FAILED, CANCELLED):
                why = (producer.info or {}).get("reason", "")
                ended = f"has failed: {why}" if why else f"was {producer.state}"
                self._signals.file_unobtainable(
                    lost, f"{describe_file(lost)} is not there, and that task {ended}"
                )

    def _reschedule_producer(self, task: TaskState, lost: FileState, stack: list[FileState]) -> None:
        task.recomputations += 1
        if task.recomputations > MAX_RECOMPUTATIONS:
            self._signals.file_unobtainable(
                lost, f"the result of {task.spec.label} was lost {task.recomputations} times"
            )
            return
        if task.spec.library and task.spec.library not in self._state.libraries:
            self._signals.file_unobtainable(
                lost, f"{describe_file(lost)} is gone, and the library that made it was removed"
            )
            return
        was_done = task.state == DONE
        task.transition("again")
        task.worker = task.info = None
        graph = task.graph
        self._state.counters.tasks_retrieving -= not was_done
        if was_done:
            task.queue = self._queues.queue_for(task.spec, task.request)
            self._tasks.register(task)
            graph.done -= 1
        self._outbox.emit(TaskActivated(task.spec.task, bool(task.recomputations)))
        if task.recomputations:
            graph.recomputed += 1
            self._state.counters.tasks_recovery += 1
            self._outbox.emit(LogMessage(INFO, f"making {task.spec.label} again: its result was lost"))
        else:
            graph.deferred -= 1
        task.missing_inputs = 0
        # it may be one that nobody can name any more
        for file in (
            *task.inputs,
            *task.extra_files,
            *task.outputs,
        ):
            known = self._state.files.setdefault(file.name, file)
            # and that a worker has found again since
            if known is not file and known in self._state.evictable:
                self._files.evict(known)
                self._state.files[file.name] = file
        for file in task.extra_files:
            file.pending_readers += 1
            if not file.available:
                stack.append(file)
        for file in task.inputs:
            self._tasks.add_consumer(task, file)
            if not file.available and file.archive is None:
                task.missing_inputs += 1
                stack.append(file)
        if not task.missing_inputs:
            self._tasks.mark_ready(task)
