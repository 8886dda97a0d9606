"""Turns the events and instructions of the scheduler into records of the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from vinecore.cache_level import CACHE_LEVELS
from vinecore.journal import records
from vinecore.protocol import INLINE_LIMIT, messages
from vinecore.scheduler import events, instructions
from vinecore.scheduler.state import DISPATCH_ID_SHIFT

MAX_REASON_CHARACTERS = 2000  # of a reason
_TASK_NUMBER_MASK = (1 << DISPATCH_ID_SHIFT) - 1
_LEVEL_NAMES = {number: name for name, number in CACHE_LEVELS.items()}


class _ConnectedWorker:
    """Tasks and transfers of a connected worker."""

    def __init__(self) -> None:
        self.dispatch_ids: dict[int, None] = {}
        self.fetching: dict[str, tuple[records.Place, float]] = {}
        self.address = ""


class JournalRecorder:
    """Turns events and instructions of the scheduler into records.

    Its tables are bounded by what is on the workers now.

    Parameters
    ----------
    start
        The time that counts as 0, on the clock of the scheduler.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._t = 0.0
        self._workers: dict[int, _ConnectedWorker] = {}
        self._addresses: dict[str, int] = {}
        self._uploads: dict[str, tuple[int, float]] = {}
        self._records: list[records.Record] = []
        # tasks of this iteration whose results serve one graph only
        self._single_use: set[int] = set()
        self._emit = self._records.append
        self._events: dict[type, Callable[[Any], None]] = {
            events.FilesDeclared: self._on_files_declared, events.LibraryInstalled: self._on_library_installed,
            events.LibraryRemoved: lambda x: self._emit(records.LibraryRemovedRecord(self._t, x.name)),
            events.GraphOpened: lambda x: self._emit(records.GraphOpenedRecord(self._t, x.spec.number, x.spec.label)),
            events.TasksSubmitted: self._on_tasks_submitted, events.GraphSubmitted: lambda x: self._emit(records.GraphSubmittedRecord(self._t, x.graph)),
            events.GraphClosed: lambda x: self._emit(records.GraphClosedRecord(self._t, x.graph)),
            events.WorkerConnected: self._on_worker_connected, events.WorkerDisconnected: self._on_worker_disconnected, events.ObjectStored: self._on_object_stored,
        }  # fmt: skip
        self._messages: dict[type, Callable[[int, _ConnectedWorker, Any], None]] = {
            messages.TaskFailed: self._on_task_failed, messages.StealResponse: self._on_steal_response, messages.Cached: self._on_cached, messages.FetchFailed: self._on_fetch_failed,
            messages.UploadFailed: self._on_upload_failed, messages.PersistentObjects: self._on_objects_found, messages.OrphanedObjects: self._on_objects_found, messages.ObjectsLost: self._on_objects_lost, messages.LibraryReady: self._on_library_ready,
            messages.LibraryFailed: self._on_library_failed,
        }  # fmt: skip
        self._instructions: dict[type, Callable[[Any], None]] = {
            instructions.SendObject: lambda x: self._emit(records.ObjectSentRecord(self._t, x.name, x.worker)),
            instructions.TaskActivated: lambda x: self._emit(records.TaskActivatedRecord(self._t, x.task, x.again)),
            instructions.TaskFinished: self._on_task_finished, instructions.GraphFinished: self._on_graph_finished, instructions.Stalled: lambda x: self._emit(records.StalledRecord(self._t, x.text)),
            instructions.LogMessage: lambda x: self._emit(records.LogMessageRecord(self._t, logging.getLevelName(x.level).lower(), x.text)),
        }  # fmt: skip
        self._message_handlers: dict[type, Callable[[int, _ConnectedWorker, Any], None]] = {
            messages.RunTask: self._on_run_task, messages.Cancel: self._on_cancel, messages.Fetch: self._on_fetch, messages.Unpack: self._on_unpack, messages.Upload: self._on_upload,
            messages.RemoveObjects: self._on_remove_objects, messages.PurgeObjects: self._on_remove_objects, messages.Library: self._on_library, messages.RemoveLibrary: self._on_remove_library,
        }  # fmt: skip

    def records_for(
        self, now: float, event_batch: list[events.Event], instruction_batch: list[instructions.Instruction]
    ) -> list[records.Record]:
        """Return the records of one call of `Scheduler.handle`."""
        self._t = round(now - self._start, 6)
        # for the scheduler a task that it cancels now has not ended, even if its worker reports an end
        cancelled: set[int] = set()
        self._single_use.clear()
        for instruction in instruction_batch:
            if type(instruction) is instructions.SingleUse:
                self._single_use.add(instruction.task)
            elif type(instruction) is instructions.Send and type(instruction.message) is messages.Cancel:
                cancelled.update(instruction.message.tasks)
        for event in event_batch:
            if type(event) is events.MessageReceived:
                self._on_worker_message(event.worker, event.message, cancelled)
            elif handle := self._events.get(type(event)):
                handle(event)
        for instruction in instruction_batch:
            if type(instruction) is instructions.Send:
                worker = self._workers.get(instruction.worker)
                if worker is not None and (
                    handle_sent := self._message_handlers.get(type(instruction.message))
                ):
                    handle_sent(instruction.worker, worker, instruction.message)
            elif handle := self._instructions.get(type(instruction)):
                handle(instruction)
        taken, self._records = self._records, []
        self._emit = self._records.append
        return taken

    def _on_worker_message(self, number: int, message: messages.Message, cancelled: set[int]) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        if type(message) is messages.TaskDone:
            if message.task in worker.dispatch_ids and message.task not in cancelled:
                self._on_task_done(number, worker, message)
        elif type(message) in self._messages:
            self._messages[type(message)](number, worker, message)

    def _on_files_declared(self, event: events.FilesDeclared) -> None:
        for spec in event.files:
            self._emit(
                records.FileDeclaredRecord(
                    self._t,
                    spec.name,
                    spec.size,
                    spec.at_manager,
                    spec.url,
                    spec.archive,
                    spec.directory,
                    _LEVEL_NAMES[spec.level],
                )
            )

    def _on_library_installed(self, event: events.LibraryInstalled) -> None:
        spec = event.library
        label = str(spec.options.get("label", ""))
        files = tuple(name for name in (spec.setup, spec.environment, *spec.files) if name)
        self._emit(
            records.LibraryInstalledRecord(
                self._t,
                spec.name,
                label,
                spec.slots,
                spec.request.cores,
                spec.request.memory,
                spec.exec_mode,
                files,
            )
        )

    def _on_tasks_submitted(self, event: events.TasksSubmitted) -> None:
        t, say = self._t, self._emit
        for spec in event.tasks:
            shared = (*spec.shared, spec.environment) if spec.environment else spec.shared
            inputs = spec.inputs + spec.mounts if spec.mounts else spec.inputs
            cores, memory, disk, gpus = spec.request
            function = "" if spec.function in shared else spec.function
            say(records.TaskSubmittedRecord(t, spec.task, spec.label, spec.category, spec.graph, spec.library, function, inputs, shared, spec.result,
                                spec.outputs, spec.wanted_at_manager, cores, memory, disk, gpus, spec.priority or 0.0, spec.on_demand))  # fmt: skip

    def _on_task_finished(self, end: instructions.TaskFinished) -> None:
        if end.outcome != "success":
            self._emit(records.TaskEndedRecord(self._t, end.task, end.outcome, _failure_reason(end.info)))

    def _on_graph_finished(self, end: instructions.GraphFinished) -> None:
        self._emit(
            records.GraphEndedRecord(self._t, end.graph, end.outcome, end.task, _failure_reason(end.info))
        )

    def _on_worker_connected(self, event: events.WorkerConnected) -> None:
        hello = event.hello
        worker = self._workers[event.worker] = _ConnectedWorker()
        if hello.data_port:
            worker.address = f"{event.host}:{hello.data_port}"
            self._addresses[worker.address] = event.worker
        self._emit(records.WorkerConnectedRecord(self._t, event.worker, hello.hostname, event.host, hello.python, hello.cores, hello.memory_mb, hello.disk_mb,
                                 hello.gpus, hello.pid))  # fmt: skip

    def _on_worker_disconnected(self, event: events.WorkerDisconnected) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        if self._addresses.get(worker.address) == event.worker:
            del self._addresses[worker.address]
        for name in [name for name, (holder, _t) in self._uploads.items() if holder == event.worker]:
            self._end_upload(name, "its worker was lost")
        for name in list(worker.fetching):
            self._end_fetch(event.worker, worker, name, "the worker was lost")
        for dispatch_id in list(worker.dispatch_ids):
            self._add_task_returned(event.worker, worker, dispatch_id, "the worker was lost")
        self._emit(records.WorkerDisconnectedRecord(self._t, event.worker, event.reason))

    def _on_objects_found(
        self,
        number: int,
        _worker: _ConnectedWorker,
        message: messages.PersistentObjects | messages.OrphanedObjects,
    ) -> None:
        self._emit(records.FilesFoundRecord(self._t, number, tuple(message.names), tuple(message.sizes)))

    def _on_objects_lost(self, number: int, _worker: _ConnectedWorker, message: messages.ObjectsLost) -> None:
        self._emit(records.FilesLostRecord(self._t, number, tuple(message.names)))

    def _on_remove_objects(
        self, number: int, worker: _ConnectedWorker, message: messages.RemoveObjects | messages.PurgeObjects
    ) -> None:
        if worker.fetching:
            for name in message.names:
                self._end_fetch(number, worker, name, "nobody needs it any more")
        self._emit(records.FilesRemovedRecord(self._t, number, tuple(message.names)))

    def _on_run_task(self, number: int, worker: _ConnectedWorker, message: messages.RunTask) -> None:
        dispatch_id = message.task
        worker.dispatch_ids[dispatch_id] = None
        allocation = message.options.get("allocation")
        cores = None if allocation is None else allocation.cores
        self._emit(
            records.TaskDispatchedRecord(
                self._t,
                dispatch_id & _TASK_NUMBER_MASK,
                number,
                (dispatch_id >> DISPATCH_ID_SHIFT) + 1,
                cores,
            )
        )

    def _on_task_done(self, number: int, worker: _ConnectedWorker, message: messages.TaskDone) -> None:
        dispatch_id, info = message.task, message.info
        del worker.dispatch_ids[dispatch_id]
        done = records.TaskDoneRecord(
            self._t,
            dispatch_id & _TASK_NUMBER_MASK,
            number,
            round(message.wall_s, 6),
            message.size,
            (dispatch_id >> DISPATCH_ID_SHIFT) + 1,
        )
        done.returned = len(message.payload)
        done.single_use = done.task in self._single_use
        if info:
            done.outputs = info.get("outputs") or {}
            done.digest = info.get("digest", "")
            digests = info.get("digests")
            if digests:
                done.digests = {
                    name: digest
                    for name, digest in digests.items()
                    if done.outputs.get(name, 0) > INLINE_LIMIT
                }
            done.exit_code = info.get("exit_code", 0)
            used = info.get("measured")
            if used:
                done.cpu_s = info.get("cpu_s") or used.get("cores", 0) * message.wall_s or None
                done.memory_mb, done.disk_mb = used.get("memory"), used.get("disk")
        self._emit(done)

    def _on_task_failed(self, number: int, worker: _ConnectedWorker, message: messages.TaskFailed) -> None:
        dispatch_id, info = message.task, message.info
        if dispatch_id in worker.dispatch_ids:
            del worker.dispatch_ids[dispatch_id]
            wall = info.get("wall_s") or (info.get("measured") or {}).get("wall_s")
            self._emit(records.TaskFailedRecord(self._t, dispatch_id & _TASK_NUMBER_MASK, number, message.kind, _failure_reason(info), (dispatch_id >> DISPATCH_ID_SHIFT) + 1, wall))  # fmt: skip

    def _on_steal_response(
        self, number: int, worker: _ConnectedWorker, message: messages.StealResponse
    ) -> None:
        for dispatch_id in message.tasks:
            self._add_task_returned(number, worker, dispatch_id, "given back to be run elsewhere")

    def _on_cancel(self, number: int, worker: _ConnectedWorker, message: messages.Cancel) -> None:
        for dispatch_id in message.tasks:
            self._add_task_returned(number, worker, dispatch_id, "taken back")

    def _add_task_returned(
        self, number: int, worker: _ConnectedWorker, dispatch_id: int, reason: str
    ) -> None:
        if dispatch_id in worker.dispatch_ids:
            del worker.dispatch_ids[dispatch_id]
            self._emit(
                records.TaskReturnedRecord(
                    self._t,
                    dispatch_id & _TASK_NUMBER_MASK,
                    number,
                    reason,
                    (dispatch_id >> DISPATCH_ID_SHIFT) + 1,
                )
            )

    def _on_fetch(self, number: int, worker: _ConnectedWorker, message: messages.Fetch) -> None:
        source = self._addresses.get(message.source, message.source)
        worker.fetching[message.name] = source, self._t
        self._emit(records.TransferStartedRecord(self._t, message.name, source, number, message.size))

    def _on_unpack(self, number: int, worker: _ConnectedWorker, message: messages.Unpack) -> None:
        worker.fetching[message.name] = records.ARCHIVE, self._t
        self._emit(records.TransferStartedRecord(self._t, message.name, records.ARCHIVE, number))

    def _on_cached(self, number: int, worker: _ConnectedWorker, message: messages.Cached) -> None:
        began = worker.fetching.pop(message.name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            ended = records.TransferEndedRecord(
                self._t, message.name, began[0], number, max(message.size, 0), seconds
            )
            if message.size > INLINE_LIMIT:
                ended.digest = message.digest
            self._emit(ended)

    def _on_fetch_failed(self, number: int, worker: _ConnectedWorker, message: messages.FetchFailed) -> None:
        if message.was_cached:  # that transfer had ended
            self._emit(records.FilesLostRecord(self._t, number, (message.name,)))
        else:
            self._end_fetch(number, worker, message.name, message.reason)

    def _end_fetch(self, number: int, worker: _ConnectedWorker, name: str, reason: str) -> None:
        began = worker.fetching.pop(name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            self._emit(
                records.TransferFailedRecord(
                    self._t, name, began[0], number, seconds, reason[:MAX_REASON_CHARACTERS]
                )
            )

    def _on_upload(self, number: int, _worker: _ConnectedWorker, message: messages.Upload) -> None:
        self._uploads[message.name] = number, self._t
        self._emit(records.TransferStartedRecord(self._t, message.name, number, records.MANAGER))

    def _on_object_stored(self, event: events.ObjectStored) -> None:
        began = self._uploads.pop(event.name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            self._emit(
                records.TransferEndedRecord(
                    self._t, event.name, began[0], records.MANAGER, max(event.size, 0), seconds
                )
            )

    def _on_upload_failed(
        self, _number: int, _worker: _ConnectedWorker, message: messages.UploadFailed
    ) -> None:
        self._end_upload(message.name, message.reason)

    def _end_upload(self, name: str, reason: str) -> None:
        began = self._uploads.pop(name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            self._emit(
                records.TransferFailedRecord(
                    self._t, name, began[0], records.MANAGER, seconds, reason[:MAX_REASON_CHARACTERS]
                )
            )

    def _on_library(self, number: int, worker: _ConnectedWorker, message: messages.Library) -> None:
        cores = float(message.options.get("cores") or message.slots)
        self._emit(records.LibraryStartedRecord(self._t, message.name, number, message.slots, cores))

    def _on_library_ready(
        self, number: int, worker: _ConnectedWorker, message: messages.LibraryReady
    ) -> None:
        self._emit(records.LibraryReadyRecord(self._t, message.name, number, round(message.wall_s, 6)))

    def _on_library_failed(
        self, number: int, worker: _ConnectedWorker, message: messages.LibraryFailed
    ) -> None:
        self._emit(
            records.LibraryFailedRecord(self._t, message.name, number, message.reason[:MAX_REASON_CHARACTERS])
        )

    def _on_remove_library(
        self, number: int, worker: _ConnectedWorker, message: messages.RemoveLibrary
    ) -> None:
        self._emit(records.LibraryStoppedRecord(self._t, message.name, number))


def _failure_reason(info: dict[str, Any]) -> str:
    evidence = info.get("evidence")
    return str("; ".join(evidence) if evidence else info.get("reason") or info.get("text", ""))[
        :MAX_REASON_CHARACTERS
    ]
