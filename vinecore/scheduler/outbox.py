"""Collects the instructions of one call of `Scheduler.handle`.

What a worker has to drop or keep is collected per worker and sent once, at the end, or before something that has to come after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.protocol import messages
from vinecore.scheduler.instructions import Send
from vinecore.scheduler.specs import FOREVER, WORKFLOW

if TYPE_CHECKING:
    from vinecore.scheduler.instructions import Instruction
    from vinecore.scheduler.state import FileState, SchedulerState, TaskState, WorkerState


class Outbox:
    """Instructions that have been given and not yet been returned."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._instructions: list[Instruction] = []
        self._to_flush: dict[WorkerState, None] = {}
        self.emit = self._instructions.append

    def take(self) -> list[Instruction]:
        """Return all instructions, and begin a new list."""
        while self._to_flush:
            self.flush(self._to_flush.popitem()[0])
        instructions = self._instructions
        self._instructions = []
        self.emit = self._instructions.append
        return instructions

    def forget_worker(self, worker: WorkerState) -> None:
        """Send nothing more to a worker that is gone."""
        self._to_flush.pop(worker, None)

    def remove_objects(self, worker: WorkerState, *names: str) -> None:
        """Have a worker forget objects; sent once per `handle`."""
        if names and worker.id in self._state.workers:
            worker.unlink.update(dict.fromkeys(names))
            self._to_flush[worker] = None
            if worker.retain:
                for name in names:
                    worker.retain.pop(name, None)

    def purge_object(self, worker: WorkerState, name: str) -> None:
        """Have a worker forget an object, whatever its level; sent once per `handle`."""
        if worker.id in self._state.workers:
            worker.unlink[name] = worker.purge[name] = None
            worker.retain.pop(name, None)
            self._to_flush[worker] = None

    def retain(self, worker: WorkerState, file: FileState) -> None:
        """Have a worker keep a file, which it has, beyond this manager; sent once per `handle`."""
        if worker.id in self._state.workers:
            worker.retain[file.name] = file.level, file.replicas.get(worker, "")
            self._to_flush[worker] = None

    def retain_replicas(self, file: FileState) -> None:
        """Tell the holders of a file that may be of another level now."""
        if file.level > WORKFLOW:
            for worker in file.replicas:
                self.retain(worker, file)

    def cancel_task(self, task: TaskState) -> None:
        """Have a task's worker drop it, and what it has made already; sent once per `handle`."""
        worker = task.worker
        if worker is not None and worker.id in self._state.workers:
            worker.cancel.append(task.dispatch_id)
            self._to_flush[worker] = None
            # what it holds, or is fetching because another worker had it, is not what this task has made
            made = [f for f in task.outputs if worker not in f.replicas and worker not in f.fetching]
            self.remove_objects(worker, *(file.name for file in made))

    def flush(self, worker: WorkerState) -> None:
        """Send what a worker has to drop."""
        if worker.cancel:
            self.emit(Send(worker.id, messages.Cancel(worker.cancel)))
            worker.cancel = []
        if worker.purge:
            for name in worker.purge:
                del worker.unlink[name]
            self.emit(Send(worker.id, messages.PurgeObjects(list(worker.purge))))
            worker.purge.clear()
        if worker.unlink:
            self.emit(Send(worker.id, messages.RemoveObjects(list(worker.unlink))))
            worker.unlink.clear()
        if worker.retain:
            for forever in (False, True):
                told = {n: d for n, (level, d) in worker.retain.items() if (level == FOREVER) == forever}
                if told:
                    self.emit(
                        Send(worker.id, messages.RetainObjects(list(told), forever, list(told.values())))
                    )
            worker.retain.clear()
