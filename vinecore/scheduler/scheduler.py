"""The manager's mind: events in, instructions out.

`Mind.handle` takes what happened and the time, changes the tables, and returns what is to be done, in order. It does no I/O, starts no
thread, reads no clock and draws no random number, so the same object runs under the manager, under the tests and in a simulation.
The work is shared between `Life` (the states of tasks), `Placement` (who runs what), `Transfers` (who gets what from whom) and
`Recovery` (what to do about losses), `Balance` (what to take back), `Disk` (what fits where, and what goes), `Farewells` (what a worker that
leaves must not take with it), `Reservation` (room for who would starve) and `Restart` (what a manager that has died leaves to this one), which all read and write the one set of `Tables`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.resources.amounts import Category, Resources
from vinecore.scheduler import events as e
from vinecore.scheduler.diagnostics import Diagnostics
from vinecore.scheduler.disk import DiskAccounts
from vinecore.scheduler.draining import WorkerDraining
from vinecore.scheduler.instructions import (
    INFO,
    WARNING,
    Disconnect,
    DropObject,
    FileAvailable,
    Instruction,
    LogMessage,
    Send,
    Stalled,
)
from vinecore.scheduler.libraries import LibraryInstances
from vinecore.scheduler.lifecycle import TaskLifecycle
from vinecore.scheduler.missing_files import Unmade
from vinecore.scheduler.on_demand import OnDemandTasks
from vinecore.scheduler.placement import Placement
from vinecore.scheduler.recovery import Recovery
from vinecore.scheduler.replication import Replication
from vinecore.scheduler.reservation import Reservation
from vinecore.scheduler.resume import ResumedSession
from vinecore.scheduler.state import (
    FOREVER,
    WORKFLOW,
    FileSpec,
    FileState,
    GraphState,
    LibraryState,
    SchedulerState,
    TaskSpec,
    TaskState,
    WorkerState,
)
from vinecore.scheduler.stealing import WorkStealing
from vinecore.scheduler.transfers import NO_SOURCE, Transfers
from vinecore.scheduler.transitions import READY, WAITING

MAX_FILES_RELEASED_PER_BATCH = 20_000  # files of graphs that are closed, in one `Mind.handle`
STALL_REPORT_DELAY_S = (
    2.0  # how long nothing may run before a person is told: workers take a moment to connect
)


class Scheduler:
    """Decides everything the manager does.

    Parameters
    ----------
    python
        Major and minor version of the Python that pickles the functions, such as "3.11".
    needs
        Packages without which a worker's own Python can run none of them.
    """

    def __init__(self, python: str, needs: tuple[str, ...] = ()) -> None:
        self.python, self.required_packages = python, needs
        self.tables = SchedulerState()
        self.now = 0.0
        self.moved_bytes = 0
        self.expected_workers: int | None = None  # how many there will ever be, where that is known
        self.stalled_reason = ""
        self._missing_since: float | None = None
        self._out: list[Instruction] = []
        self.graphs_being_released: deque[GraphState] = (
            deque()
        )  # closed, and not all of their files are forgotten
        self._to_flush: dict[WorkerState, None] = {}  # who has to be told what to drop
        self.emit = self._out.append
        self.life = TaskLifecycle(self)
        self.reservation = Reservation(self)
        self.placement = Placement(self)
        self.instances = LibraryInstances(self)
        self.explanations = Diagnostics(self)
        self.transfers = Transfers(self)
        self.recovery = Recovery(self)
        self.disk = DiskAccounts(self)
        self.balance = WorkStealing(self)
        self.copies = Replication(self)
        self.farewells = WorkerDraining(self)
        self.sleepers = OnDemandTasks(self)
        self.unmade = Unmade(self)
        self.restart = ResumedSession(self)
        self._handlers: dict[type, Callable[[Any], None]] = {
            e.FilesDeclared: self._files_declared,
            e.LibraryInstalled: self._library_installed,
            e.LibraryRemoved: self._library_removed,
            e.LibraryRetired: lambda event: self.instances.retire(event.name),
            e.Restarted: lambda _event: self.instances.restart(),
            e.GraphOpened: self._run_opened,
            e.TasksSubmitted: self._tasks_submitted,
            e.GraphSubmitted: self._run_submitted,
            e.GraphClosed: self._run_closed,
            e.TasksCancelled: self._tasks_cancelled,
            e.FilesReleased: self._files_released,
            e.FileRequested: self._file_wanted,
            e.Waited: lambda _event: self.unmade.waited(),
            e.SessionResumed: self.restart.resumed,
            e.WorkersEnded: self.restart.ended,
            e.WorkerConnected: self._worker_joined,
            e.MessageReceived: self._worker_said,
            e.WorkerDisconnected: self._worker_lost,
            e.ObjectStored: self._object_stored,
            e.CategorySet: self._category_set,
            e.SettingChanged: self._tuned,
            e.ShutdownAnnounced: lambda _event: self.farewells.release_at_once(),
            e.Tick: self._tick,
        }
        self._worker_handlers: dict[type, Callable[[WorkerState, Any], None]] = {
            m.TaskDone: self.life.on_task_done,
            m.TaskFailed: self.life.on_task_failed,
            m.Cached: self._cached,
            m.Verified: self._compared,
            m.PersistentObjects: self._on_persistent_objects,
            m.OrphanedObjects: self._on_orphaned_objects,
            m.InventoryComplete: self._on_inventory_complete,
            m.FetchFailed: self._fetch_failed,
            m.UploadFailed: self._upload_failed,
            m.Uploaded: lambda _worker, _message: None,  # the hands have said ObjectStored
            m.StealResponse: self.balance.on_calls_returned,
            m.ObjectsLost: self._on_objects_lost,
            m.LibraryReady: self.instances.on_library_ready,
            m.LibraryFailed: self.instances.on_library_failed,
            m.LibrarySlow: self.instances.slow,
            m.Draining: self._on_draining,
            m.Ping: lambda worker, _message: self.emit(Send(worker.id, m.Pong())),
            m.Pong: lambda _worker, _message: None,
        }

    def handle(self, happened: Iterable[e.Event], now: float) -> list[Instruction]:
        """Take events in order; give the instructions that follow from them.

        As long as there is something in `closing` this wants to be called again soon, with or without events.
        """
        self.now = now
        for event in happened:
            self._handlers[type(event)](event)
        if self.graphs_being_released:
            self._release_closed_graphs(MAX_FILES_RELEASED_PER_BATCH)
        if self.disk.waiting_for_disk:
            self.disk.retry_waiting_for_disk()
        if self.placement.changed:
            self.placement.place_ready_tasks()
        while self.disk.waiting_for_disk and not self.tables.assigned and self.disk.evict_recomputable():
            self.disk.retry_waiting_for_disk()
            self.placement.place_ready_tasks()
        if self.farewells.draining_changed:
            self.farewells.process_changed()
        while self._to_flush:
            self.flush(self._to_flush.popitem()[0])
        out = self._out
        self._out = []
        self.emit = self._out.append
        return out

    def remove_objects(self, worker: WorkerState, *names: str) -> None:
        """Have a worker forget objects; sent once per `handle`."""
        if names and worker.id in self.tables.workers:
            worker.unlink.update(dict.fromkeys(names))
            self._to_flush[worker] = None
            if worker.retain:
                for name in names:
                    worker.retain.pop(name, None)

    def purge_object(self, worker: WorkerState, name: str) -> None:
        """Have a worker forget an object, whatever its level; sent once per `handle`."""
        if worker.id in self.tables.workers:
            worker.unlink[name] = worker.purge[name] = None
            worker.retain.pop(name, None)
            self._to_flush[worker] = None

    def retain(self, worker: WorkerState, file: FileState) -> None:
        """Have a worker keep a file, which it has, beyond this manager; sent once per `handle`."""
        if worker.id in self.tables.workers:
            worker.retain[file.name] = file.level, file.replicas.get(worker, "")
            self._to_flush[worker] = None

    def _retain_replicas(self, file: FileState) -> None:
        """A file may be of another level now: tell those who have it."""
        if file.level > WORKFLOW:
            for worker in file.replicas:
                self.retain(worker, file)

    def cancel_task(self, task: TaskState) -> None:
        """Have a task's worker drop it, and what it has made if it was faster; sent once per `handle`."""
        worker = task.worker
        if worker is not None and worker.id in self.tables.workers:
            worker.cancel.append(task.dispatch_id)
            self._to_flush[worker] = None
            # what it holds, or is fetching because another worker had it, is not what this task has made
            made = [f for f in task.outputs if worker not in f.replicas and worker not in f.fetching]
            self.remove_objects(worker, *(file.name for file in made))

    def flush(self, worker: WorkerState) -> None:
        """Send what a worker has to drop."""
        if worker.cancel:
            self.emit(Send(worker.id, m.Cancel(worker.cancel)))
            worker.cancel = []
        if worker.purge:
            for name in worker.purge:
                del worker.unlink[name]
            self.emit(Send(worker.id, m.PurgeObjects(list(worker.purge))))
            worker.purge.clear()
        if worker.unlink:
            self.emit(Send(worker.id, m.RemoveObjects(list(worker.unlink))))
            worker.unlink.clear()
        if worker.retain:
            for forever in (False, True):
                told = {n: d for n, (level, d) in worker.retain.items() if (level == FOREVER) == forever}
                if told:
                    self.emit(Send(worker.id, m.RetainObjects(list(told), forever, list(told.values()))))
            worker.retain.clear()

    # ---- what the user does

    def file(self, name: str) -> FileState:
        """Find or make the record of a file."""
        file = self.tables.files.get(name)
        if file is None:
            file = self.tables.files[name] = FileState(FileSpec(name))
        return file

    def _files_declared(self, event: e.FilesDeclared) -> None:
        for spec in event.files:
            file = self.tables.files.get(spec.name)
            if file is None:
                file = self.tables.files[spec.name] = FileState(spec)
            new = not file.available
            if file.pin_count <= 0 and file.producer is None:  # nobody else needs it so far
                file.level, file.peer_transfer, file.reusable = spec.level, spec.peer_transfer, False
                self.tables.evictable.pop(file, None)
            else:
                file.level = max(file.level, spec.level)
            self._retain_replicas(file)
            if spec.archive and file.archive is None:
                file.archive = self.file(spec.archive)
                file.archive.pin_count += 1
            if spec.at_manager and not file.at_manager:
                file.at_manager, file.size, file.digest = True, spec.size, spec.digest
            if spec.url:
                file.url, file.validator = spec.url, spec.validator
            self.disk.disk_tracked |= spec.size > INLINE_LIMIT
            file.released = False
            file.awaited |= spec.awaited
            file.absent |= spec.absent
            file.pin_count += 1
            if new and file.available:
                self.life.file_available(file)

    def unpin(self, file: FileState, reason: str) -> None:
        """A reason beside tasks to keep a file is gone."""
        file.pin_count -= 1
        if file.pin_count > 0:
            return
        run = file.producer.run if file.producer is not None else None
        if run is not None and run.spec.run and not run.closed:  # it stays with its run
            self.life.release_if_unreferenced(file)
            return
        self.life.undeclare(file, reason)

    def _library_installed(self, event: e.LibraryInstalled) -> None:
        spec = event.library
        if spec.name in self.tables.libraries:
            self.tables.libraries[spec.name].retired = False
            return
        library = self.tables.libraries[spec.name] = LibraryState(spec)
        names = (spec.setup, spec.environment, *spec.files)
        library.files = [self.file(name) for name in names if name]
        library.files += [file.archive for file in library.files if file.archive is not None]
        library.made = [
            file.name
            for file in library.files
            if file.producer is not None or file.awaited or not file.available
        ]
        for file in library.files:
            file.pin_count += 1
            file.level = max(file.level, WORKFLOW)  # needed as long as the library is installed

    def _library_removed(self, event: e.LibraryRemoved) -> None:
        library = self.tables.libraries.pop(event.name, None)
        if library is None:
            return
        library.retired = False
        self.instances.fail_calls(library, "the library was removed", b"")
        self.instances.clear(library)

    def _run_opened(self, event: e.GraphOpened) -> None:
        self.tables.runs[event.run.run] = GraphState(event.run)

    def _tasks_submitted(self, event: e.TasksSubmitted) -> None:
        for spec in event.tasks:
            run = self.tables.runs.get(spec.run)
            if run is not None and not run.ended:
                self._submit_task(spec, run)

    def _submit_task(self, spec: TaskSpec, run: GraphState) -> None:
        task = TaskState(spec, run)
        if spec.library and spec.library not in self.tables.libraries:
            self.reject_without_library(task)
            return
        if spec.on_demand and not spec.run and self.sleepers.is_declared(spec):
            return
        for name in (spec.result, *spec.outputs):
            if name:
                self._link_output(task, name, run)
        for name in spec.wanted_at_manager:
            self.file(name).wanted_at_manager = True
        if spec.environment:  # a warm Python runs in it when the task is over
            environment = self.file(spec.environment)
            environment.level = max(environment.level, WORKFLOW)
        if spec.on_demand:
            self.sleepers.register_deferred(task)
            task.freeze()
            return
        task.bucket = self.placement.queue_for(spec, spec.request)
        self.life.register(task)
        lost = [name for name in (*spec.inputs, *spec.mounts) if not self._link_input(task, name)]
        lost += [
            name
            for name in (*spec.shared, spec.environment)
            if name and not self._link_shared_object(task, name)
        ]
        if spec.library:
            lost += [
                name for name in self.tables.libraries[spec.library].made if not self._link_input(task, name)
            ]
        task.freeze()
        if lost:
            reason = self._explain_lost(lost)
            self.life.fail(task, "input missing", {"reason": reason}, b"")
        elif task.state != WAITING:
            return
        elif not task.missing_inputs:
            self.life.mark_ready(task)
        elif reason := self.unmade.circle(task):
            self.life.fail(task, "input missing", {"reason": reason}, b"")

    def _explain_lost(self, names: list[str]) -> str:
        """Say why inputs cannot be had that no task makes."""
        declared = [name for name in names if self.file(name).pin_count > 0]
        others = [name for name in names if name not in declared]
        texts = []
        if declared:
            texts.append(
                f"{', '.join(declared)}: not there when it was declared, and no task that was submitted before this one makes it"
            )
        if others:
            texts.append(f"{', '.join(others)}: pruned or never declared, and no task makes it")
        return "; ".join(texts)

    def reject_without_library(self, task: TaskState) -> None:
        """A task needs a library that is not there."""
        name = task.spec.library
        reason = f"library {name} is not installed"
        self.life.reject(task, "library", {"reason": reason, "library": name})
        self.unmade.refused(task, reason)

    def _link_output(self, task: TaskState, name: str, run: GraphState) -> None:
        file = self.file(name)
        file.producer = task
        file.peer_transfer = task.spec.peer_transfer
        if file.reusable:
            self.tables.evictable.pop(file, None)
        if task.spec.level > file.level:
            file.level = task.spec.level
            self._retain_replicas(file)
        file.reusable = task.spec.content_addressed or file.level > WORKFLOW
        task.outputs.append(file)
        if run.spec.run:
            run.files.append(file)
            if run.spec.prune_depth == 1:
                file.unsubmitted_readers = 0 if task.spec.on_demand else task.spec.reader_count
            else:  # kept until all readers are known, or to the end
                file.pin_count += 1

    def _link_input(self, task: TaskState, name: str) -> bool:
        """Link a file that a task reads; whether it exists, will exist, or can be made again."""
        file = self.file(name)
        if task.state != WAITING or task in file.consumers:
            return True
        task.inputs.append(file)
        self.life.add_consumer(task, file)
        if file.unsubmitted_readers and file.producer is not None and file.producer.run is task.run:
            file.unsubmitted_readers -= 1
        if file.archive is not None:  # made of that wherever it is needed
            return self._link_input(task, file.archive.name)
        if file.available:
            return True
        task.missing_inputs += 1
        if file.producer is None:
            return self.unmade.waits_for(file)
        self.recovery.recompute(file)
        return True

    def _link_shared_object(self, task: TaskState, name: str) -> bool:
        """Link a file that many tasks share."""
        file = self.file(name)
        if (
            task.state != WAITING
            or file.producer is not None
            or not file.available
            or file.archive is not None
        ):
            return self._link_input(task, name)
        task.extra_files.append(file)
        file.pending_readers += 1
        return True

    def _run_submitted(self, event: e.GraphSubmitted) -> None:
        run = self.tables.runs.get(event.run)
        if run is None:
            return
        if run.deferred:
            self.sleepers.submitted(run)
        else:
            self.graph_submitted(run)
            self.life.finish_graph_if_done(run)

    def graph_submitted(self, run: GraphState) -> None:
        """All tasks of a run are there, and it is known what has to be done."""
        run.submitted = True
        if run.spec.prune_depth > 1:
            for file in run.files:
                file.pin_count -= 1
                self.life.release_if_unreferenced(file)

    def _run_closed(self, event: e.GraphClosed) -> None:
        run = self.tables.runs.pop(event.run, None)
        if run is None:
            return
        run.ended = run.closed = True
        self.sleepers.runs.pop(run, None)
        self.life.cancel(list(run.tasks.values()))
        pinned = run.spec.prune_depth == 0 or (run.spec.prune_depth > 1 and not run.submitted)
        for file in run.files:
            file.unsubmitted_readers = 0
            file.pin_count -= pinned
        run.files.reverse()  # they are taken from the end
        self.graphs_being_released.append(run)
        if any(file.pin_count > 0 or file.pending_readers or file.reusable for file in run.files):
            self._release_closed_graphs(len(run.files))  # another run may name, or need, some of them
        else:
            run.unshared = True

    def _release_closed_graphs(self, most: int) -> None:
        """Forget files of graphs that are closed; a very large graph bit by bit, so that the workers are heard meanwhile."""
        while self.graphs_being_released and most > 0:
            run = self.graphs_being_released[-1]
            while run.files and most > 0:
                most -= 1
                self._release_graph_file(run.files.pop(), run)
            if not run.files:
                self.graphs_being_released.pop()

    def _release_graph_file(self, file: FileState, run: GraphState) -> None:
        if file.pin_count > 0:
            return
        if file.reusable and file.replicas and not file.pending_readers:
            self.life.keep_for_reuse(file)
        else:
            self.life.undeclare(file, "the graph that makes it was closed")
            if (
                run.unshared
            ):  # nothing descends from it: its records go at once, and not when Python looks for garbage
                file.producer = None

    def _tasks_cancelled(self, event: e.TasksCancelled) -> None:
        self.life.cancel([self.tables.tasks[number] for number in event.tasks if number in self.tables.tasks])

    def _files_released(self, event: e.FilesReleased) -> None:
        for name in event.names:
            file = self.tables.files.get(name)
            if file is None:
                continue
            if not event.prune:
                self.unpin(file, "it was undeclared")
            elif not file.pending_readers and (file.at_manager or not file.wanted_at_manager):
                forgotten = file.producer is None and file in self.tables.evictable
                self.transfers.purge_all(file)
                if forgotten:
                    self.life.undeclare(file, "it was pruned")

    def _file_wanted(self, event: e.FileRequested) -> None:
        file = self.tables.files.get(event.name)
        forgotten = file is not None and file.producer is None and file in self.tables.evictable
        if file is None or file.released or forgotten:
            self.emit(FileAvailable(event.name, "no such file is declared"))
        elif file.at_manager:
            self.emit(FileAvailable(event.name, ""))
        elif not file.replicas and file.producer is None:
            self.emit(FileAvailable(event.name, NO_SOURCE))
        else:
            file.wanted_at_manager = file.requested = True
            if file.replicas:
                self.transfers.upload(file)
            else:
                self.recovery.recompute(file)

    def _category_set(self, event: e.CategorySet) -> None:
        category = self.tables.categories.get(event.name)
        if category is None:
            category = self.tables.categories[event.name] = Category(
                event.name, steady_n=self.placement.steady_n
            )
        category.configure(
            mode=event.mode, maximum=event.maximum, minimum=event.minimum, first_guess=event.first_guess
        )
        self.placement.category_changed(category)

    def _tuned(self, event: e.SettingChanged) -> None:
        if event.name == "scheduler":
            self.placement.policy = event.value
        elif event.name == "peer-transfers":
            self.transfers.peer_transfers = bool(event.value)
        elif event.name == "worker-source-max-transfers":
            self.transfers.worker_source_max = int(event.value)
        elif event.name == "file-source-max-transfers":
            self.transfers.file_source_max = int(event.value)
        elif event.name == "expected-workers":
            self.expected_workers = event.value
        elif event.name == "category-steady-n-tasks":
            self.placement.steady_n = int(event.value)
        elif event.name == "temp-replica-count":
            self.copies.target_count = int(event.value)

    # ---- what workers do

    def _worker_joined(self, event: e.WorkerConnected) -> None:
        hello = event.hello
        total = Resources(float(hello.cores), hello.memory_mb, hello.disk_mb, float(hello.gpus))
        contact, _, port = hello.contact.rpartition(":")
        port = port or str(hello.data_port or "")
        address = f"{contact or event.host}:{port}" if port else ""
        worker = WorkerState(event.worker, event.host, hello.hostname, total, address, hello.python, self.now)
        worker.python_ok = hello.python == self.python
        if hello.versions:
            worker.missing_packages = tuple(
                name for name in self.required_packages if name not in hello.versions
            )
        if hello.time_left_s > 0:
            worker.ends_at = self.now + hello.time_left_s
        self.tables.workers[worker.id] = worker
        if not worker.python_ok:
            text = f"worker {worker.id} on {worker.name} runs Python {worker.python}, the manager {self.python}: it gets only work with an environment"
            self.emit(LogMessage(WARNING, text))
        elif worker.missing_packages:
            what = " and ".join(worker.missing_packages)
            text = f"worker {worker.id} on {worker.name} has no {what} in its own Python: it gets only commands and work with an environment"
            self.emit(LogMessage(INFO, text))
        self.disk.worker_joined(worker)
        self.placement.worker_joined(worker)
        self.balance.worker_connected(worker)
        self.copies.joined(worker)
        self.farewells.joined(worker)
        worker.inventory_pending = m.PERSISTENT_CACHE_FEATURE in hello.features or self.restart.active
        self.restart.joined(hello)
        self.sleepers.request_targets()

    def _worker_said(self, event: e.MessageReceived) -> None:
        worker = self.tables.workers.get(event.worker)
        if worker is not None:
            self._worker_handlers[type(event.message)](worker, event.message)

    def _worker_lost(self, event: e.WorkerDisconnected) -> None:
        worker = self.tables.workers.pop(event.worker, None)
        if worker is not None:
            self._to_flush.pop(worker, None)
            self.emit(LogMessage(INFO, f"worker {worker.id} on {worker.name} is gone: {event.reason}"))
            self.recovery.worker_lost(worker, event.reason)
            self.placement.retry_starved()

    def _cached(self, worker: WorkerState, message: m.Cached) -> None:
        file = self.tables.files.get(message.name)
        if file is None:
            self.remove_objects(worker, message.name)
        else:
            self.transfers.on_cached(worker, file, message)

    def _compared(self, worker: WorkerState, message: m.Verified) -> None:
        file = self.tables.files.get(message.name)
        if file is not None:
            self.transfers.on_verified(worker, file)

    def _on_persistent_objects(self, worker: WorkerState, message: m.PersistentObjects) -> None:
        """A worker has something from before."""
        for name, size, digest in zip(*message, strict=True):
            self.add_recovered_replica(worker, name, size, digest, FOREVER)
        self.life.trim_evictable()

    def _on_orphaned_objects(self, worker: WorkerState, message: m.OrphanedObjects) -> None:
        self.restart.on_orphaned_objects(worker, message)
        self.life.trim_evictable()

    def add_recovered_replica(
        self, worker: WorkerState, name: str, size: int, digest: str, level: int
    ) -> None:
        """A worker has a file from before; one that nobody has declared yet may still be."""
        file = self.tables.files.get(name)
        if file is None:
            file = self.tables.files[name] = FileState(FileSpec(name, size, directory=size < 0, level=level))
            file.reusable = True
        self.transfers.add_recovered_replica(worker, file, size, digest)

    def _on_inventory_complete(self, worker: WorkerState, _message: m.InventoryComplete) -> None:
        worker.inventory_pending = False
        self.sleepers.request_targets()

    def _fetch_failed(self, worker: WorkerState, message: m.FetchFailed) -> None:
        file = self.tables.files.get(message.name)
        if file is not None:
            self.transfers.on_fetch_failed(worker, file, message)

    def _upload_failed(self, worker: WorkerState, message: m.UploadFailed) -> None:
        file = self.tables.files.get(message.name)
        if file is not None:
            self.transfers.upload_failed(worker, file, message.reason)

    def _on_objects_lost(self, worker: WorkerState, message: m.ObjectsLost) -> None:
        for name in message.names:
            file = self.tables.files.get(name)
            if file is not None:
                self.recovery.replica_lost(file, worker)

    def _on_draining(self, worker: WorkerState, message: m.Draining) -> None:
        if message.within_s > 0:
            self.farewells.drain_within(worker, message.reason, message.within_s)
            return
        worker.disconnecting = True
        self.emit(Disconnect(worker.id, message.reason))

    def _object_stored(self, event: e.ObjectStored) -> None:
        file = self.tables.files.get(event.name)
        if file is None:
            self.emit(DropObject(event.name))
        else:
            self.transfers.on_object_stored(file, event.size, event.digest)

    # ---- time

    def _tick(self, _event: e.Tick) -> None:
        self.transfers.tick()
        self.disk.tick()
        self.farewells.tick()
        self.sleepers.request_targets()
        self.reservation.tick()
        self.placement.retry_all()
        self.placement.place_ready_tasks()
        self._report_stall()

    def _report_stall(self) -> None:
        text = ""
        for bucket in list(self.tables.buckets.values()):
            if bucket.running or not bucket.front:  # it was pumped just now: what is at its front is ready
                continue
            text, hopeless = self.explanations.explain(bucket)
            if hopeless and self.all_expected_workers_connected():
                self._fail_unsatisfiable([entry[2] for entry in (*bucket.ready, *bucket.roots)], text)
                text = ""
            if text:
                break
        text = text or self.disk.missing() or self.sleepers.stalled_reason() or self.unmade.missing()
        text = text or self.instances.missing()
        if text and not self.stalled_reason and self._missing_since is None:
            self._missing_since = self.now
        elif not text:
            self._missing_since = None
        patient = self._missing_since is not None and self.now - self._missing_since < STALL_REPORT_DELAY_S
        if text != self.stalled_reason and not patient:
            self.stalled_reason = text
            self.emit(Stalled(text))

    def all_expected_workers_connected(self) -> bool:
        """Whether all workers that there will ever be are connected."""
        return self.expected_workers is not None and len(self.tables.workers) >= self.expected_workers

    def _fail_unsatisfiable(self, tasks: list[TaskState], text: str) -> None:
        for task in tasks:
            if task.state == READY:
                self.life.fail(task, "too large", {"reason": text}, b"")
