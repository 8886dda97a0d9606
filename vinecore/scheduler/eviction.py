"""Frees room on the disks of workers by dropping copies that are cheap to get again.

First go evictable files, those used longest ago first; then copies of what another worker, the manager or an address has as well.
Nothing goes that a task on that worker reads or makes.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.scheduler.disk import HIGH_WATER_MARK
from vinecore.scheduler.instructions import INFO, LogMessage
from vinecore.scheduler.state import MB, available_outside_workers, is_root
from vinecore.scheduler.transitions import ASSIGNED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vinecore.protocol import messages
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.recovery import Recovery
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.state import FileState, SchedulerState, TaskState, WorkerState


MAX_FILES_SCANNED = 1024  # files of a worker, for some that can go
RETRY_INTERVAL_S = 0.05  # before files of a worker are looked through again that had none that can go
MAX_REFUSALS = 5  # of one task, by workers whose disks are fuller than they seem from here


class Eviction:
    """Decides which copies go to make room on a worker."""

    def __init__(
        self,
        state: SchedulerState,
        outbox: Outbox,
        disk: DiskAccounts,
        replicas: Replicas,
        tasks: TaskLifecycle,
        recovery: Recovery,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._disk = disk
        self._replicas = replicas
        self._tasks = tasks
        self._recovery = recovery
        self._last_failed_attempt: dict[WorkerState, float] = {}

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a lost worker."""
        self._last_failed_attempt.pop(worker, None)

    def make_room(self, task: TaskState, worker: WorkerState) -> bool:
        """Drop from a worker what is cheap to get again, if that makes room for a task."""
        now = self._state.now
        if 0 < now - self._last_failed_attempt.get(worker, -math.inf) < RETRY_INTERVAL_S:
            return False
        need = self._disk.required_bytes(task) - self._disk.bytes_already_there(task, worker)
        waits = is_root(task) and self._disk.frees_something(task, worker)
        aim = need + (int((1 - HIGH_WATER_MARK) * worker.total.disk * MB) if waits else 0)
        victims, gain = [], worker.free_disk
        for file in self.replicated_or_evictable(
            worker, self.files_in_use(worker, task), evictable_only=waits
        ):
            if gain >= aim:
                break
            victims.append(file)
            gain += worker.files[file]
        if gain < aim:
            self._last_failed_attempt[worker] = now
            return False
        for file in victims:
            self.drop_replica(worker, file)
        return True

    def replicated_or_evictable(
        self, worker: WorkerState, busy: set[FileState], *, evictable_only: bool = False
    ) -> Iterator[FileState]:
        """Yield files that may go: evictable ones, then copies that exist elsewhere as well.

        Files that may not go are put at the end of the worker's row.
        Copies whose only others are not compared yet come last.
        """
        evictable, late = self._state.evictable, []
        for file in list(worker.evictable):
            if file not in evictable:
                del worker.evictable[file]
            elif self.is_removable(worker, file, busy):
                yield file
        for file in [] if evictable_only else list(islice(worker.files, MAX_FILES_SCANNED)):
            if (
                file not in worker.evictable
                and (len(file.replicas) > 1 or available_outside_workers(file))
                and self.is_removable(worker, file, busy)
            ):
                if available_outside_workers(file) or _has_verified_replica(file, worker):
                    yield file
                else:
                    late.append(file)
            else:
                worker.files[file] = worker.files.pop(file)
        yield from late

    def is_removable(self, worker: WorkerState, file: FileState, busy: set[FileState]) -> bool:
        """Return whether a copy may go from a worker, which neither reads, makes nor sends it."""
        return (
            worker.files[file] > 0
            and file not in busy
            and file.uploading is not worker
            and not self._replicas.is_serving(worker, file)
        )

    def files_in_use(self, worker: WorkerState, task: TaskState) -> set[FileState]:
        """Return what the tasks and libraries of a worker, and one more task, read or make."""
        busy = {*task.inputs, *task.extra_files}
        for one in worker.tasks.values():
            busy.update(one.inputs, one.extra_files, one.outputs)
        for instance in worker.libraries.values():
            busy.update(instance.library.files)
        return busy

    def drop_replica(self, worker: WorkerState, file: FileState) -> None:
        """Have a worker forget its copy."""
        del file.replicas[worker]
        self._replicas.forget_replica(worker, file)
        self._replicas.remove_copy(worker, file, purge=True)
        if not file.available:
            self._recovery.files_lost([file])
        if not file.replicas:
            self._state.evictable.pop(file, None)

    def fetch_refused(self, worker: WorkerState, file: FileState, message: messages.FetchFailed) -> bool:
        """Send the readers of a file elsewhere for which a worker has no room; return whether there are any."""
        readers = [task for task in worker.tasks.values() if file in task.inputs or file in task.extra_files]
        self._disk.apply_reported_free_disk(worker, message.free_disk)
        info = {"reason": message.reason, "kind": "input missing"}
        for task in readers:
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                self.task_refused(task, worker, info)
        return bool(readers)

    def task_refused(self, task: TaskState, worker: WorkerState, info: dict[str, Any]) -> None:
        """Try a task elsewhere, or after eviction, for whose inputs or outputs its worker has no room."""
        size = info.get("size")
        if size is not None:
            self._disk.record_written_bytes(task, size)
            for file in task.outputs:
                if file.name == task.spec.result and not file.available:
                    file.size = size
        self._disk.apply_reported_free_disk(worker, info.get("room", worker.free_disk))
        count = self._disk.refusals[task] = self._disk.refusals.get(task, 0) + 1
        reason = f"worker {worker.id} on {worker.name} has no room on its disk: {info.get('reason', '')}"
        self._outbox.emit(LogMessage(INFO, f"{task.spec.label} goes elsewhere, or waits: {reason}"))
        if count > MAX_REFUSALS:
            self._tasks.fail(task, info.get("kind", "disk"), {"reason": f"{reason} ({count} times)"}, b"")
        elif not self._tasks.forsake(task, reason):
            self._tasks.cancel_and_requeue(task)


def _has_verified_replica(file: FileState, but: WorkerState) -> bool:
    """Return whether another worker has a file and has compared it."""
    return any(holder is not but and file not in holder.unverified for holder in file.replicas)
