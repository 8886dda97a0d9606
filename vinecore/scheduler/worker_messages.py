"""What workers say: one handler for each type of message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore.protocol import messages
from vinecore.scheduler.instructions import AppendOutput, Disconnect, DropObject, Send
from vinecore.scheduler.specs import FOREVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from vinecore.scheduler import events
    from vinecore.scheduler.draining import WorkerDraining
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.on_demand import OnDemandTasks
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.recovery import Recovery
    from vinecore.scheduler.resume import ResumedSession
    from vinecore.scheduler.state import SchedulerState, WorkerState
    from vinecore.scheduler.stealing import WorkStealing
    from vinecore.scheduler.task_results import TaskResults
    from vinecore.scheduler.transfer_failures import TransferFailures
    from vinecore.scheduler.transfers import Transfers


class WorkerMessages:
    """Handles the messages of workers."""

    def __init__(
        self,
        *,
        state: SchedulerState,
        outbox: Outbox,
        files: FileLifetime,
        transfers: Transfers,
        recovery: Recovery,
        libraries: LibraryInstances,
        transfer_failures: TransferFailures,
        stealing: WorkStealing,
        resumed: ResumedSession,
        on_demand: OnDemandTasks,
        draining: WorkerDraining,
        task_results: TaskResults,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._files = files
        self._transfers = transfers
        self._recovery = recovery
        self._libraries = libraries
        self._transfer_failures = transfer_failures
        self._stealing = stealing
        self._resumed = resumed
        self._on_demand = on_demand
        self._draining = draining
        self._task_results = task_results
        self._handlers: dict[type, Callable[[WorkerState, Any], None]] = {
            messages.TaskDone: self._task_results.on_task_done,
            messages.TaskFailed: self._task_results.on_task_failed,
            messages.Cached: self._on_cached,
            messages.Verified: self._on_verified,
            messages.PersistentObjects: self._on_persistent_objects,
            messages.OrphanedObjects: self._on_orphaned_objects,
            messages.InventoryComplete: self._on_inventory_complete,
            messages.FetchFailed: self._on_fetch_failed,
            messages.UploadFailed: self._on_upload_failed,
            # the server has said ObjectStored
            messages.Uploaded: lambda _worker, _message: None,
            messages.StealResponse: self._stealing.on_calls_returned,
            messages.ObjectsLost: self._on_objects_lost,
            messages.LibraryReady: self._libraries.on_library_ready,
            messages.LibraryFailed: self._libraries.on_library_failed,
            messages.LibrarySlow: self._libraries.on_library_slow,
            messages.Draining: self._on_draining,
            messages.OutputPart: self._on_output_part,
            messages.Ping: lambda worker, _message: outbox.emit(Send(worker.id, messages.Pong())),
            messages.Pong: lambda _worker, _message: None,
        }

    def on_message(self, event: events.MessageReceived) -> None:
        """Handle a message of a worker that is still known."""
        worker = self._state.workers.get(event.worker)
        if worker is not None:
            self._handlers[type(event.message)](worker, event.message)

    def _on_cached(self, worker: WorkerState, message: messages.Cached) -> None:
        file = self._state.files.get(message.name)
        if file is None:
            self._outbox.remove_objects(worker, message.name)
        else:
            self._transfers.on_cached(worker, file, message)

    def _on_verified(self, worker: WorkerState, message: messages.Verified) -> None:
        file = self._state.files.get(message.name)
        if file is not None:
            self._transfers.on_verified(worker, file)

    def _on_persistent_objects(self, worker: WorkerState, message: messages.PersistentObjects) -> None:
        """Enter objects that a worker has from before."""
        for name, size, digest in zip(*message, strict=True):
            self._transfers.add_recovered_object(worker, name, size, digest, FOREVER)
        self._files.trim_evictable()

    def _on_orphaned_objects(self, worker: WorkerState, message: messages.OrphanedObjects) -> None:
        self._resumed.on_orphaned_objects(worker, message)
        self._files.trim_evictable()

    def _on_inventory_complete(self, worker: WorkerState, _message: messages.InventoryComplete) -> None:
        worker.inventory_pending = False
        self._on_demand.request_targets()

    def _on_fetch_failed(self, worker: WorkerState, message: messages.FetchFailed) -> None:
        file = self._state.files.get(message.name)
        if file is not None:
            self._transfer_failures.on_fetch_failed(worker, file, message)

    def _on_upload_failed(self, worker: WorkerState, message: messages.UploadFailed) -> None:
        file = self._state.files.get(message.name)
        if file is not None:
            self._transfer_failures.on_upload_failed(worker, file, message.reason)

    def _on_objects_lost(self, worker: WorkerState, message: messages.ObjectsLost) -> None:
        for name in message.names:
            file = self._state.files.get(name)
            if file is not None:
                self._recovery.replica_lost(file, worker)

    def _on_output_part(self, worker: WorkerState, message: messages.OutputPart) -> None:
        task = worker.tasks.get(message.task)
        names = [name for _remote, name in task.spec.options.get("watch", ())] if task is not None else []
        if message.name in names and message.offset >= 0:
            self._outbox.emit(AppendOutput(message.name, message.offset, message.payload))

    def _on_draining(self, worker: WorkerState, message: messages.Draining) -> None:
        if message.reason.startswith(messages.IDLE_REASON) and not worker.draining:
            self._state.counters.workers_idled_out += 1
        if message.within_s > 0:
            self._draining.drain_within(worker, message.reason, message.within_s)
            return
        worker.disconnecting = True
        self._outbox.emit(Disconnect(worker.id, message.reason))

    def on_object_stored(self, event: events.ObjectStored) -> None:
        """Take notice of a file that has arrived at the manager."""
        file = self._state.files.get(event.name)
        if file is None:
            self._outbox.emit(DropObject(event.name))
        else:
            self._transfers.on_object_stored(file, event.size, event.digest)
