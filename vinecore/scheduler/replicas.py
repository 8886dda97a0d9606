"""Which worker holds which copy of a file, and which transfers are under way.

With every copy its digest is kept, as the worker that made or received it has computed it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore.protocol import INLINE_LIMIT
from vinecore.scheduler.instructions import DropObject
from vinecore.scheduler.specs import WORKFLOW
from vinecore.scheduler.state import available_outside_workers
from vinecore.scheduler.transitions import ASSIGNED, DONE

if TYPE_CHECKING:
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.state import FileState, SchedulerState, WorkerState


ARCHIVE = "archive"  # stands for a source in `FileState.fetching`: the file is being unpacked


class Replicas:
    """Keeps the books of copies and transfers, and frees copies.

    Attributes
    ----------
    active_by_source : dict of str to int
        Transfers under way from the manager and from addresses outside.
    active_by_file_and_source : dict
        Transfers under way of one file from one source.
    stalled : dict of FileState
        Files that workers wait for that have found no source.
    external_failures : dict of FileState to int
        Failures in a row at the manager or an address.
    peer_failures : dict of FileState to int
        Failures in a row between workers.
    """

    def __init__(self, state: SchedulerState, outbox: Outbox) -> None:
        self._state = state
        self._outbox = outbox
        self.active_by_source: dict[str, int] = {}
        self.active_by_file_and_source: dict[tuple[FileState, WorkerState | str], int] = {}
        self.stalled: dict[FileState, None] = {}
        self.external_failures: dict[FileState, int] = {}
        self.peer_failures: dict[FileState, int] = {}

    def add_replica(self, worker: WorkerState, file: FileState, size: int, digest: str) -> None:
        """Enter a copy that has come to a worker, and have the worker keep it if it is to outlive the manager."""
        self.record_replica(worker, file, size, digest)
        if file.level > WORKFLOW:
            self._outbox.retain(worker, file)

    def record_replica(self, worker: WorkerState, file: FileState, size: int, digest: str) -> None:
        """Enter a copy in the books."""
        file.replicas[worker] = digest
        worker.corrupt.discard(file)
        if worker.unverified:
            worker.unverified.pop(file, None)
        taken = size if size > INLINE_LIMIT else 0
        worker.free_disk += worker.files.get(file, 0) - taken
        worker.files[file] = taken
        if taken:
            self._state.disk_tracked = True

    def forget_replica(self, worker: WorkerState, file: FileState) -> None:
        """Strike a copy out of the books of a worker."""
        worker.free_disk += worker.files.pop(file, 0)
        worker.evictable.pop(file, None)
        worker.corrupt.discard(file)
        if worker.unverified:
            worker.unverified.pop(file, None)

    def add_output(self, worker: WorkerState, file: FileState, digest: str) -> None:
        """Enter a copy that was made on a worker."""
        if worker in file.fetching:
            self.end_transfer(worker, file)
        self.add_replica(worker, file, file.size, digest)

    def remove_copy(self, worker: WorkerState, file: FileState, *, purge: bool = False) -> None:
        """Have a worker forget its copy of a file, unless it is making another one: that must not be hit.

        What it has kept from before stays there, except where that is to be purged, too.
        """
        maker = file.producer
        if maker is not None and maker.worker is worker and maker.state == ASSIGNED:
            return
        if purge:
            self._outbox.purge_object(worker, file.name)
        else:
            self._outbox.remove_objects(worker, file.name)

    def is_serving(self, worker: WorkerState, file: FileState) -> bool:
        """Return whether a worker is sending a file to another one."""
        return (file, worker) in self.active_by_file_and_source

    def is_needed_on(self, worker: WorkerState, file: FileState) -> bool:
        """Return whether something on a worker reads a file."""
        if len(file.consumers) < len(worker.tasks):
            if any(task.worker is worker and task.state == ASSIGNED for task in file.consumers):
                return True
        elif any(task in file.consumers for task in worker.tasks.values()):
            return True
        if any(file in task.extra_files for task in worker.tasks.values()):
            return True
        return any(file in instance.library.files for instance in worker.libraries.values())

    def end_transfer(self, worker: WorkerState, file: FileState) -> None:
        """Strike a transfer that is over, in whatever way, out of the books."""
        source = file.fetching.pop(worker)
        worker.free_disk += worker.fetching.pop(file)
        if source == ARCHIVE:
            return
        _count_down(self.active_by_file_and_source, (file, source))
        if isinstance(source, str):
            _count_down(self.active_by_source, source)
        else:
            source.outgoing -= 1
            if source.draining:
                self._state.draining_changed[source] = None

    def free_all(self, file: FileState) -> None:
        """Free every copy of a file on workers; what is to outlive this manager stays there."""
        for worker in file.replicas:
            self.forget_replica(worker, file)
            if file.level <= WORKFLOW:
                self.remove_copy(worker, file)
        file.replicas.clear()
        if file.reusable:
            self._state.evictable.pop(file, None)
        for worker in list(file.fetching):
            self.end_transfer(worker, file)
        for worker, taken in (file.waiting_for_source or {}).items():
            worker.free_disk += taken
        file.waiting_for_source = None
        file.uploading = None
        self.stalled.pop(file, None)
        self.external_failures.pop(file, None)
        self.peer_failures.pop(file, None)

    def purge_all(self, file: FileState) -> None:
        """Free every copy of a file on workers, whatever its level."""
        for worker in file.replicas:
            self.forget_replica(worker, file)
            self.remove_copy(worker, file, purge=True)
        file.replicas.clear()
        self.free_all(file)

    def free_if_recoverable(self, file: FileState) -> None:
        """Free the copies of a file that no task needs now, if it can be brought to workers again."""
        if file.wanted_at_manager and not file.at_manager:
            return
        if file.at_manager or file.url or file.archive is not None:
            self.free_all(file)
        elif file.producer is not None and file.producer.spec.on_demand and file.producer.state == DONE:
            self.free_all(file)
            file.producer.mark_deferred()

    def free_everywhere(self, file: FileState) -> None:
        """Free every copy of a file, the manager's included if it came from a worker."""
        self.free_all(file)
        if file.at_manager and file.producer is not None:
            file.at_manager = False
            self._outbox.emit(DropObject(file.name))


def is_needed(file: FileState) -> bool:
    """Return whether a file is needed."""
    return bool(
        file.pending_readers or file.unsubmitted_readers or file.pin_count > 0 or file.wanted_at_manager
    )


def has_safe_replica(file: FileState, but: WorkerState) -> bool:
    """Return whether a file is elsewhere, too, on a worker that stays for one, and is known there to be what it should be."""
    if file.archive is not None or available_outside_workers(file):
        return True
    return any(h is not but and not h.draining and file not in h.unverified for h in file.replicas)


def _count_down(counts: dict[Any, int], key: Any) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
