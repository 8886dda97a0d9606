"""What a lost file costs, and who makes it again.

A file that is gone everywhere and still needed wakes the task that made it; that task's own inputs may be gone as well, and wake theirs.
The walk is a loop, not a recursion, so a chain of any length can be made again; every task has a bounded number of lives. Files that
nobody can name any more keep the tasks that made them as long as a living file descends from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import INFO, LogMessage, TaskActivated
from vinecore.scheduler.lifecycle import title
from vinecore.scheduler.missing_files import never_there
from vinecore.scheduler.transitions import ASSIGNED, CANCELLED, DONE, FAILED, READY, RETRIEVING, WAITING

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, TaskState, WorkerState

MAX_RECOMPUTATIONS = 20


class Recovery:
    """Finds or makes again what was lost. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind

    def worker_lost(self, worker: WorkerState, reason: str) -> None:
        """Take a worker, which is out of the table of workers already, out of every other; send its work elsewhere."""
        mind = self._mind
        suspects = set() if worker.disconnecting or worker.draining else self._probably_running(worker)
        tasks = list(worker.tasks.values())
        for task in tasks:  # all of them first: what follows must not count on any
            mind.life.remove_from_worker(task)
            mind.life.transition(task, "back")
            task.worker = None
        mind.transfers.worker_gone(worker)
        mind.placement.worker_gone(worker)
        mind.disk.worker_gone(worker)
        mind.copies.left(worker)
        mind.farewells.gone(worker)
        files, worker.files = list(worker.files), {}
        for file in files:
            del file.replicas[worker]
        for file in files:
            mind.transfers.retry_upload(worker, file)
        self.files_lost([file for file in files if not file.available])
        for task in tasks:
            if task.state == WAITING:  # not failed with another one meanwhile
                blame = f"worker {worker.id} on {worker.name} was lost ({reason})" if task in suspects else ""
                mind.life.retry(task, blame)
        mind.copies.ensure_replicas(files)

    def _probably_running(self, worker: WorkerState) -> set[TaskState]:
        """The tasks that were probably running: the oldest of each library, as many as it has slots, and all others."""
        suspects: set[TaskState] = set()
        room = {name: instance.slots for name, instance in worker.libraries.items()}
        for task in worker.tasks.values():
            name = task.spec.library
            if not name:
                suspects.add(task)
            elif room.get(name, 0) > 0 and not task.chained:
                room[name] -= 1
                suspects.add(task)
        return suspects

    def replica_lost(self, file: FileState, worker: WorkerState) -> None:
        """One copy is gone."""
        if worker not in file.replicas:
            return
        del file.replicas[worker]
        self._mind.transfers.discard(worker, file)
        self._mind.transfers.remove(worker, file, purge=True)  # it may be only half lost
        self._mind.transfers.retry_upload(worker, file)
        if not file.available:
            self.files_lost([file])
        elif self._mind.transfers.is_needed_on(worker, file):
            self._mind.transfers.request_copy(worker, file)

    def files_lost(self, files: list[FileState]) -> None:
        """The last copies are gone: those who wait for them miss them again, and whoever made them makes them again if they are needed."""
        life = self._mind.life
        for file in files:  # all of them first: who is woken below counts for itself what it misses
            for task in list(file.consumers):
                task.missing_inputs += 1
                if task.state == READY:
                    life.input_lost(task)
                elif (
                    task.state == ASSIGNED
                ):  # where it is it would hold a place that its input may have to be made in
                    life.cancel_and_requeue(task)
        for file in files:
            producer = file.producer
            if file in self._mind.tables.evictable:
                if producer is None:
                    life.evict(file)
                    continue
                del self._mind.tables.evictable[file]
            retrieving = producer is not None and producer.state == RETRIEVING
            if file.consumers or file.requested or (file.wanted_at_manager and retrieving):
                self.recompute(file)

    def recompute(self, file: FileState) -> None:
        """Wake the producer of a file, and the producers of what that needs."""
        stack = [file]
        while stack:
            lost = stack.pop()
            producer = lost.producer
            if producer is None:
                if not self._mind.unmade.waits_for(lost):
                    gone = f"{lost.name} is gone and nothing can make it again"
                    self._mind.life.file_unobtainable(lost, never_there(lost) if lost.absent else gone)
            elif producer.state in (DONE, RETRIEVING):
                self._reschedule_producer(producer, lost, stack)
            elif producer.state in (FAILED, CANCELLED):
                why = (producer.info or {}).get("reason", "")
                ended = f"has failed: {why}" if why else f"was {producer.state}"
                self._mind.life.file_unobtainable(lost, f"{title(lost)} is not there, and that task {ended}")

    def _reschedule_producer(self, task: TaskState, lost: FileState, stack: list[FileState]) -> None:
        mind = self._mind
        task.recomputations += 1
        if task.recomputations > MAX_RECOMPUTATIONS:
            mind.life.file_unobtainable(
                lost, f"the result of {task.spec.label} was lost {task.recomputations} times"
            )
            return
        if task.spec.library and task.spec.library not in mind.tables.libraries:
            mind.life.file_unobtainable(
                lost, f"{title(lost)} is gone, and the library that made it was removed"
            )
            return
        was_done = task.state == DONE
        mind.life.transition(task, "again")
        task.worker = task.info = None
        run = task.run
        if was_done:
            task.bucket = mind.placement.queue_for(task.spec, task.request)
            mind.life.register(task)
            run.done -= 1
        mind.emit(TaskActivated(task.spec.task, bool(task.recomputations)))
        if task.recomputations:
            run.recomputed += 1
            mind.emit(LogMessage(INFO, f"making {task.spec.label} again: its result was lost"))
        else:
            run.deferred -= 1
        task.missing_inputs = 0
        for file in (
            *task.inputs,
            *task.extra_files,
            *task.outputs,
        ):  # it may be one that nobody can name any more
            known = mind.tables.files.setdefault(file.name, file)
            if (
                known is not file and known in mind.tables.evictable
            ):  # and that a worker has found again since
                mind.life.evict(known)
                mind.tables.files[file.name] = file
        for file in task.extra_files:
            file.pending_readers += 1
            if not file.available:
                stack.append(file)
        for file in task.inputs:
            mind.life.add_consumer(task, file)
            if not file.available:
                task.missing_inputs += 1
                stack.append(file)
        if not task.missing_inputs:
            mind.life.mark_ready(task)
