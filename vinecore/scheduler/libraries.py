"""Libraries on workers: started where a call goes, stopped where they are idle and something else wants the room."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.protocol import messages as m
from vinecore.protocol.validation import MAX_MACHINE_AMOUNT
from vinecore.resources.amounts import Resources, allocate
from vinecore.scheduler.instructions import WARNING, LibraryStarted, LogMessage, Send
from vinecore.scheduler.placement import MAX_FALLBACK_CANDIDATES, meets_python_requirements
from vinecore.scheduler.state import LibraryInstance
from vinecore.scheduler.transitions import ASSIGNED

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, LibraryState, TaskQueue, WorkerState

MOST_LIBRARY_FAILURES = 5
SLOW_S = 5.0
"""What takes longer to start is told by workers, after each of these times anew."""
MOST_WORDS = 1000
PYTHON = "python"
"""What the names of processes begin with that single tasks are forked from; libraries are looked for first."""


class LibraryInstances:
    """Knows which libraries run where. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind, self._placement = mind, mind.placement
        self._possibly_idle: dict[WorkerState, None] = {}  # workers with libraries that may be idle
        # what takes long to start: since when, when that was last said, and where it is
        self._slow: dict[tuple[WorkerState, str], tuple[float, float, str]] = {}

    def may_be_idle(self, worker: WorkerState) -> None:
        """A library of this worker has nothing to do at the moment."""
        self._possibly_idle[worker] = None

    def worker_gone(self, worker: WorkerState) -> None:
        """A worker has left."""
        worker.libraries.clear()
        self._possibly_idle.pop(worker, None)
        for key in [key for key in self._slow if key[0] is worker]:
            del self._slow[key]

    def instance_for(self, worker: WorkerState, bucket: TaskQueue) -> LibraryInstance:
        """Give the library's instance on a worker; start it, or have it take more of the worker, if all its slots are busy."""
        assert bucket.library is not None
        library, mind = bucket.library, self._mind
        spec = library.spec
        instance = worker.libraries.get(spec.name)
        if instance is None:
            unit = allocate(spec.request, worker.total)
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
            mind.transfers.request_copy(worker, file)
        options: dict[str, Any] = {
            **spec.options,
            "cores": instance.allocation.cores,
            "memory": instance.allocation.memory,
        }
        if spec.request.disk is not None:  # what is enforced is what was asked for
            options["disk"] = instance.allocation.disk
        mind.emit(
            Send(
                worker.id,
                m.Library(spec.name, spec.setup, spec.environment, instance.slots, spec.exec_mode, options),
            )
        )
        self._placement.update_worker_everywhere(worker)
        return instance

    def make_room(self, bucket: TaskQueue) -> bool:
        """Stop idle libraries somewhere, if that makes room for a task of this bucket."""
        for worker in list(islice(self._possibly_idle, MAX_FALLBACK_CANDIDATES)):
            del self._possibly_idle[worker]
            instances = [i for i in worker.libraries.values() if i.idle]
            if not instances:
                continue
            self._possibly_idle[worker] = None  # at the end of the row
            idle = [instance for instance in instances if instance.library is not bucket.library]
            if self._evict(worker, bucket, idle):
                return True
        return False

    def _evict(self, worker: WorkerState, bucket: TaskQueue, idle: list[LibraryInstance]) -> bool:
        """Stop as many of these libraries as it takes, if it helps."""
        if not idle or worker.draining or not meets_python_requirements(worker, bucket):
            return False
        if self._mind.reservation.excludes(worker, bucket):
            return False
        wanted = self._placement.allocate(bucket, 0, worker)
        free = worker.free
        for instance in idle:
            free = free.plus(instance.allocation)
        if wanted is None or not wanted.fits(free):
            return False
        for instance in idle:
            self.remove(worker, instance)
            if worker in bucket.workers_with_room:
                return True
        return False

    def remove(self, worker: WorkerState, instance: LibraryInstance) -> None:
        """Stop a library on a worker."""
        del worker.libraries[instance.library.spec.name]
        self._slow.pop((worker, instance.library.spec.name), None)
        worker.free = worker.free.plus(instance.allocation)
        self._mind.emit(Send(worker.id, m.RemoveLibrary(instance.library.spec.name)))
        self._placement.update_worker_everywhere(worker)

    def remove_everywhere(self, library: LibraryState) -> None:
        """Stop a library everywhere."""
        name = library.spec.name
        for worker in self._mind.tables.workers.values():
            instance = worker.libraries.get(name)
            if instance is not None:
                self.remove(worker, instance)
        bucket = self._mind.tables.buckets.pop((name,), None)
        if bucket is not None:
            self._placement.deactivate(bucket)

    def clear(self, library: LibraryState) -> None:
        """Stop a library that has been removed, and release its files."""
        self.remove_everywhere(library)
        for file in library.files:
            self._mind.unpin(file, "the library was removed")

    def retire(self, name: str) -> None:
        """Remove a library as soon as it has nothing left to do."""
        library = self._mind.tables.libraries.get(name)
        if library is None:
            return
        library.retired = True
        bucket = self._mind.tables.buckets.get((name,))
        if bucket is None or not bucket.unfinished:
            self.end(library)

    def end(self, library: LibraryState) -> None:
        """Remove a library that has no calls."""
        if self._mind.tables.libraries.pop(library.spec.name, None) is not None:
            self.clear(library)

    def restart(self) -> None:
        """Stop all libraries, and what single tasks are forked from, on all workers; what they run now runs again."""
        for library in self._mind.tables.libraries.values():
            library.failures = 0
        for worker in self._mind.tables.workers.values():
            for name, instance in list(worker.libraries.items()):
                self._requeue_calls(worker, name)
                self.remove(worker, instance)
            self._mind.emit(Send(worker.id, m.Restart()))

    def on_library_failed(self, worker: WorkerState, message: m.LibraryFailed) -> None:
        """A library did not come up, or has died: try again elsewhere, a bounded number of times."""
        library = self._mind.tables.libraries.get(message.name)
        instance = worker.libraries.get(message.name)
        if library is None or instance is None:
            return
        library.failures += 1
        what = f"library {message.name} failed on worker {worker.id} ({worker.name}): {message.reason}"
        self._mind.emit(LogMessage(WARNING, what))
        self._requeue_calls(worker, message.name)
        self.remove(worker, instance)
        if message.final or library.failures > MOST_LIBRARY_FAILURES:
            self.fail_calls(library, message.reason, message.payload)

    def _requeue_calls(self, worker: WorkerState, name: str) -> None:
        """Have all calls that a worker has of a library run elsewhere, or later."""
        life = self._mind.life
        for task in [task for task in worker.tasks.values() if task.spec.library == name]:
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                life.cancel_and_requeue(task)

    def fail_calls(self, library: LibraryState, reason: str, payload: bytes, kind: str = "library") -> None:
        """Fail all calls of a library."""
        calls = [task for task in self._mind.tables.tasks.values() if task.spec.library == library.spec.name]
        for task in calls:
            self._mind.life.fail(task, kind, {"reason": reason, "library": library.spec.name}, payload)
        library.failures = 0

    def input_failed(self, file: FileState, reason: str) -> None:
        """A file that a library needs cannot be had."""
        for library in list(self._mind.tables.libraries.values()):
            if file in library.files:
                self.fail_calls(library, reason, b"", "input missing")
                for worker in self._mind.tables.workers.values():
                    instance = worker.libraries.get(library.spec.name)
                    if instance is not None:
                        self.remove(worker, instance)

    def on_library_ready(self, worker: WorkerState, message: m.LibraryReady) -> None:
        """A library is up."""
        instance = worker.libraries.get(message.name)
        if instance is not None:
            instance.ready = True
            self._slow.pop((worker, message.name), None)
            self._mind.emit(LibraryStarted(worker.id, message.name, message.versions))

    def slow(self, worker: WorkerState, message: m.LibrarySlow) -> None:
        """A library takes long to start, or a slot of it to build its context, or what forks single tasks to import something."""
        key, now = (worker, message.name), self._mind.now
        if not message.where or not (message.name in worker.libraries or message.name.startswith(PYTHON)):
            self._slow.pop(key, None)
            return
        since = self._slow[key][0] if key in self._slow else now - SLOW_S
        self._slow[key] = since, now, message.where[:MOST_WORDS]

    def missing(self) -> str:
        """Say which library has been starting for long, and where it is."""
        for key, (since, said, where) in list(self._slow.items()):
            now = self._mind.now
            if now - said > 3 * SLOW_S:  # a slot that was killed meanwhile says no more
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
            return f"{what} has been starting for more than {duration_s:.0f} s on worker {worker.id} ({worker.name}): {where}"
        return ""


def _slots(slots: int | None, unit: Resources) -> int:
    return slots if slots is not None else max(1, int(unit.cores))
