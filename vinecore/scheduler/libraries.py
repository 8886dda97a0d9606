"""Libraries on workers: started where a call goes, stopped where they are idle and something else wants the room."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.protocol import messages
from vinecore.protocol.validation import MAX_MACHINE_AMOUNT
from vinecore.resources.amounts import allocate
from vinecore.scheduler.instructions import WARNING, LibraryStarted, LogMessage, Send
from vinecore.scheduler.state import LibraryInstance
from vinecore.scheduler.transitions import ASSIGNED

if TYPE_CHECKING:
    from vinecore.resources.amounts import Resources
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.state import (
        FileState,
        LibraryState,
        SchedulerState,
        TaskQueue,
        TaskState,
        WorkerState,
    )
    from vinecore.scheduler.transfers import Transfers


# What takes longer to start is told by workers, after each of these times anew.
SLOW_S = 5.0
MAX_WHERE_LENGTH = 1000
# What the names of processes begin with that single tasks are forked from; libraries are looked for first.
PYTHON = "python"
MAX_IDLE_WORKERS_TRIED = 64


class LibraryInstances:
    """Knows which libraries run where."""

    def __init__(
        self,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        files: FileLifetime,
        tasks: TaskLifecycle,
        transfers: Transfers,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._files = files
        self._tasks = tasks
        self._transfers = transfers
        self._reservation = state.reservation
        self._possibly_idle: dict[WorkerState, None] = {}  # workers with libraries that may be idle
        # what takes long to start: since when, when that was last said, and where it is
        self._slow: dict[tuple[WorkerState, str], tuple[float, float, str, int]] = {}

    def on_instance_idle(self, worker: WorkerState) -> None:
        """Remember a worker on which a library has nothing to do at the moment."""
        self._possibly_idle[worker] = None

    def worker_gone(self, worker: WorkerState) -> None:
        """Forget a lost worker."""
        worker.libraries.clear()
        self._possibly_idle.pop(worker, None)
        for key in [key for key in self._slow if key[0] is worker]:
            del self._slow[key]

    def instance_for(self, worker: WorkerState, queue: TaskQueue) -> LibraryInstance:
        """Return the library's instance on a worker; start it, or enlarge it if all its slots are busy."""
        assert queue.library is not None
        library = queue.library
        spec = library.spec
        instance = worker.libraries.get(spec.name)
        if instance is None:
            unit = allocate(spec.request, worker.total, rule=self._queues.share_rule)
            assert unit is not None
            instance = LibraryInstance(library, unit, _slots(spec.slots, unit))
            worker.libraries[spec.name] = instance
        elif instance.assigned >= instance.slots and instance.allocation_unit.fits(worker.free):
            unit = instance.allocation_unit
            instance.allocation = instance.allocation.plus(unit)
            instance.slots = min(instance.slots + _slots(spec.slots, unit), MAX_MACHINE_AMOUNT)
        else:
            return instance
        worker.free = worker.free.minus(unit)
        for file in library.files:
            self._transfers.request_copy(worker, file)
        options: dict[str, Any] = {
            **spec.options,
            "cores": instance.allocation.cores,
            "memory": instance.allocation.memory,
        }
        if spec.request.disk is not None:  # what is enforced is what was asked for
            options["disk"] = instance.allocation.disk
        self._outbox.emit(
            Send(
                worker.id,
                messages.Library(
                    spec.name, spec.setup, spec.environment, instance.slots, spec.exec_mode, options
                ),
            )
        )
        self._queues.update_worker_everywhere(worker)
        return instance

    def make_room(self, queue: TaskQueue) -> bool:
        """Stop idle libraries somewhere, if that makes room for a task of this queue."""
        for worker in list(islice(self._possibly_idle, MAX_IDLE_WORKERS_TRIED)):
            del self._possibly_idle[worker]
            instances = [i for i in worker.libraries.values() if i.idle]
            if not instances:
                continue
            self._possibly_idle[worker] = None  # at the end of the row
            idle = [instance for instance in instances if instance.library is not queue.library]
            if self._stop_idle(worker, queue, idle):
                return True
        return False

    def _stop_idle(self, worker: WorkerState, queue: TaskQueue, idle: list[LibraryInstance]) -> bool:
        """Stop as many of these libraries as it takes, if it helps."""
        if not idle or worker.closed or not self._queues.is_suitable(worker, queue):
            return False
        if self._reservation.excludes(worker, queue):
            return False
        wanted = self._queues.allocation_on(queue, 0, worker)
        free = worker.free
        for instance in idle:
            free = free.plus(instance.allocation)
        if wanted is None or not wanted.fits(free):
            return False
        for instance in idle:
            self.stop(worker, instance)
            if worker in queue.workers_with_room:
                return True
        return False

    def stop(self, worker: WorkerState, instance: LibraryInstance) -> None:
        """Stop a library on a worker."""
        del worker.libraries[instance.library.spec.name]
        self._slow.pop((worker, instance.library.spec.name), None)
        worker.free = worker.free.plus(instance.allocation)
        self._outbox.emit(Send(worker.id, messages.RemoveLibrary(instance.library.spec.name)))
        self._queues.update_worker_everywhere(worker)

    def _stop_everywhere(self, library: LibraryState) -> None:
        """Stop a library everywhere."""
        name = library.spec.name
        for worker in self._state.workers.values():
            instance = worker.libraries.get(name)
            if instance is not None:
                self.stop(worker, instance)
        for queue in [queue for queue in self._state.queues.values() if queue.library is library]:
            del self._state.queues[queue.key]
            self._queues.deactivate(queue)

    def clear_library(self, library: LibraryState) -> None:
        """Stop a library that has been removed, and release its files."""
        self._stop_everywhere(library)
        for file in library.files:
            self._files.unpin(file, "the library was removed")

    def retire_library(self, name: str) -> None:
        """Remove a library as soon as it has nothing left to do."""
        library = self._state.libraries.get(name)
        if library is None:
            return
        library.retired = True
        if self._queues.is_unused(library):
            self.remove_unused(library)

    def remove_unused(self, library: LibraryState) -> None:
        """Remove a library that has no calls."""
        if self._state.libraries.pop(library.spec.name, None) is not None:
            self.clear_library(library)

    def restart_all(self) -> None:
        """Stop all libraries, and what single tasks are forked from, on all workers; what they run now runs again."""
        for library in self._state.libraries.values():
            library.failures = 0
        for worker in self._state.workers.values():
            for name, instance in list(worker.libraries.items()):
                self._requeue_calls(worker, name)
                self.stop(worker, instance)
            self._outbox.emit(Send(worker.id, messages.Restart()))

    def on_library_failed(self, worker: WorkerState, message: messages.LibraryFailed) -> None:
        """Try a library elsewhere that did not come up, or has died, a bounded number of times."""
        library = self._state.libraries.get(message.name)
        instance = worker.libraries.get(message.name)
        if library is None or instance is None:
            return
        library.failures += 1
        what = f"library {message.name} failed on worker {worker.id} ({worker.name}): {message.reason}"
        self._outbox.emit(LogMessage(WARNING, what))
        self._requeue_calls(worker, message.name)
        self.stop(worker, instance)
        if message.final or library.failures > self._state.tuning.max_library_retries:
            self.fail_calls(library, message.reason, message.payload)

    def _requeue_calls(self, worker: WorkerState, name: str) -> None:
        """Have all calls that a worker has of a library run elsewhere, or later."""
        for task in [task for task in worker.tasks.values() if task.spec.library == name]:
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                self._tasks.cancel_and_requeue(task)

    def fail_calls(self, library: LibraryState, reason: str, payload: bytes, kind: str = "library") -> None:
        """Fail all calls of a library."""
        calls = [task for task in self._state.tasks.values() if task.spec.library == library.spec.name]
        for task in calls:
            self._tasks.fail(task, kind, {"reason": reason, "library": library.spec.name}, payload)
        library.failures = 0

    def file_unobtainable(self, file: FileState, reason: str) -> None:
        """Fail tasks and libraries that need a file that cannot be had."""
        self._files.answer_request(file, reason)
        producer = file.producer
        if producer is not None:
            self._tasks.fail(producer, "input missing", {"reason": reason}, b"")
        users = list(file.consumers)
        if not users:  # functions and environments keep no list of their many readers
            users = [task for task in self._state.tasks.values() if file in task.extra_files]
        for task in users:
            self._tasks.fail(task, "input missing", {"reason": reason}, b"")
        self._fail_libraries_reading(file, reason)

    def _fail_libraries_reading(self, file: FileState, reason: str) -> None:
        """Fail the calls of libraries that need a file that cannot be had, and stop those."""
        for library in list(self._state.libraries.values()):
            if file in library.files:
                self.fail_calls(library, reason, b"", "input missing")
                for worker in self._state.workers.values():
                    instance = worker.libraries.get(library.spec.name)
                    if instance is not None:
                        self.stop(worker, instance)

    def on_library_ready(self, worker: WorkerState, message: messages.LibraryReady) -> None:
        """Report that a library is up."""
        instance = worker.libraries.get(message.name)
        if instance is not None:
            instance.ready = True
            self._slow.pop((worker, message.name), None)
            self._outbox.emit(LibraryStarted(worker.id, message.name, message.versions))

    def on_library_slow(self, worker: WorkerState, message: messages.LibrarySlow) -> None:
        """Remember what takes long to start: a library, a slot's context, or imports of single tasks."""
        key, now = (worker, message.name), self._state.now
        if not message.where or not (message.name in worker.libraries or message.name.startswith(PYTHON)):
            self._slow.pop(key, None)
            return
        known = self._slow.get(key)
        since = known[0] if known is not None and known[3] == message.task else now - SLOW_S
        self._slow[key] = since, now, message.where[:MAX_WHERE_LENGTH], message.task

    def stalled_reason(self) -> str:
        """Say which library has been starting, or which task importing a module, for long."""
        for key, (since, said, where, number) in list(self._slow.items()):
            now = self._state.now
            task = self._state.tasks.get(number)
            # a slot that was killed meanwhile says no more
            if now - said > 3 * SLOW_S or (number and (task is None or task.worker is not key[0])):
                del self._slow[key]
                continue
            worker, name = key
            instance = worker.libraries.get(name)
            what = (
                f"library {instance.library.spec.options.get('label') or name}"
                if instance
                else "the Python that forks tasks"
            )
            # in few steps: each new text is a line in the log
            duration_s = SLOW_S * 2 ** int(math.log2(max(1.0, (now - since) / SLOW_S)))
            if task is not None:
                return f"{task.spec.label} has been importing {where} for more than {duration_s:.0f} s on worker {worker.id} ({worker.name})"
            return f"{what} has been starting for more than {duration_s:.0f} s on worker {worker.id} ({worker.name}): {where}"
        return ""


def list_probably_running(worker: WorkerState) -> list[TaskState]:
    """Return the tasks that are probably running: the oldest of each library, by slots, and all others."""
    running: list[TaskState] = []
    room = {name: instance.slots for name, instance in worker.libraries.items()}
    for task in worker.tasks.values():
        name = task.spec.library
        if not name:
            running.append(task)
        elif room.get(name, 0) > 0 and not task.chained:
            room[name] -= 1
            running.append(task)
    return running


def _slots(slots: int | None, unit: Resources) -> int:
    return slots if slots is not None else max(1, int(unit.cores))
