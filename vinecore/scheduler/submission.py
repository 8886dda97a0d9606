"""What the user does: declare files, install libraries, submit tasks and graphs, set what can be set."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from vinecore.protocol import INLINE_LIMIT
from vinecore.scheduler.instructions import FileAvailable
from vinecore.scheduler.specs import WORKFLOW
from vinecore.scheduler.state import FileState, GraphState, LibraryState, TaskState
from vinecore.scheduler.transfers import NO_SOURCE
from vinecore.scheduler.transitions import WAITING

if TYPE_CHECKING:
    from vinecore.scheduler import events
    from vinecore.scheduler.dispatch import Dispatcher
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.libraries import LibraryInstances
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.missing_files import MissingFiles
    from vinecore.scheduler.on_demand import OnDemandTasks
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.recovery import Recovery
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.specs import TaskSpec
    from vinecore.scheduler.state import SchedulerState
    from vinecore.scheduler.time_windows import TimeWindows
    from vinecore.scheduler.transfers import Transfers
    from vinecore.scheduler.worker_choice import WorkerChoice


MAX_FILES_RELEASED_PER_BATCH = 20_000  # files of graphs that are closed, in one `Scheduler.handle`


class Submission:
    """Enters in the state what the user submits, and takes out what is not wanted any more.

    Attributes
    ----------
    graphs_being_released : deque of GraphState
        Graphs that are closed, and not all of whose files are forgotten.
    """

    def __init__(
        self,
        *,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        replicas: Replicas,
        files: FileLifetime,
        tasks: TaskLifecycle,
        missing_files: MissingFiles,
        transfers: Transfers,
        recovery: Recovery,
        replication: Replication,
        libraries: LibraryInstances,
        choice: WorkerChoice,
        dispatcher: Dispatcher,
        on_demand: OnDemandTasks,
        time_windows: TimeWindows,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._replicas = replicas
        self._files = files
        self._tasks = tasks
        self._missing_files = missing_files
        self._transfers = transfers
        self._recovery = recovery
        self._replication = replication
        self._libraries = libraries
        self._choice = choice
        self._dispatcher = dispatcher
        self._on_demand = on_demand
        self._time_windows = time_windows
        self.graphs_being_released: deque[GraphState] = deque()

    def on_files_declared(self, event: events.FilesDeclared) -> None:
        """Enter declared files."""
        for spec in event.files:
            file = self._state.files.get(spec.name)
            if file is None:
                file = self._state.files[spec.name] = FileState(spec)
            new = not file.available
            if file.pin_count <= 0 and file.producer is None:  # nobody else needs it so far
                file.level, file.peer_transfer, file.reusable = spec.level, spec.peer_transfer, False
                self._state.evictable.pop(file, None)
            else:
                file.level = max(file.level, spec.level)
            self._outbox.retain_replicas(file)
            if spec.archive and file.archive is None:
                file.archive = self._state.find_or_create_file(spec.archive)
                file.archive.pin_count += 1
            if spec.at_manager and not file.at_manager:
                file.at_manager, file.size, file.digest = True, spec.size, spec.digest
            if spec.url:
                file.url, file.validator = spec.url, spec.validator
            self._state.disk_tracked |= spec.size > INLINE_LIMIT
            file.released = False
            file.awaited |= spec.awaited
            file.absent |= spec.absent
            file.pin_count += 1
            if new and file.available:
                self._dispatcher.file_available(file)

    def on_library_installed(self, event: events.LibraryInstalled) -> None:
        """Enter a library."""
        spec = event.library
        if spec.name in self._state.libraries:
            self._state.libraries[spec.name].retired = False
            return
        library = self._state.libraries[spec.name] = LibraryState(spec)
        names = (spec.setup, spec.environment, *spec.files)
        library.files = [self._state.find_or_create_file(name) for name in names if name]
        library.files += [file.archive for file in library.files if file.archive is not None]
        library.made = [
            file.name
            for file in library.files
            if file.producer is not None or file.awaited or not file.available
        ]
        for file in library.files:
            file.pin_count += 1
            file.level = max(file.level, WORKFLOW)  # needed as long as the library is installed

    def on_library_removed(self, event: events.LibraryRemoved) -> None:
        """Fail the calls of a library, and stop it."""
        library = self._state.libraries.pop(event.name, None)
        if library is None:
            return
        library.retired = False
        self._libraries.fail_calls(library, "the library was removed", b"")
        self._libraries.clear_library(library)

    def on_graph_opened(self, event: events.GraphOpened) -> None:
        """Enter a graph."""
        self._state.graphs[event.spec.number] = GraphState(event.spec)

    def on_tasks_submitted(self, event: events.TasksSubmitted) -> None:
        """Enter tasks, unless their graph has ended."""
        self._state.counters.tasks_submitted += len(event.tasks)
        for spec in event.tasks:
            graph = self._state.graphs.get(spec.graph)
            if graph is not None and not graph.ended:
                self._submit_task(spec, graph)
            else:
                self._state.counters.tasks_submitted -= 1

    def _submit_task(self, spec: TaskSpec, graph: GraphState) -> None:
        task = TaskState(spec, graph)
        if spec.library and spec.library not in self._state.libraries:
            self._missing_files.reject_without_library(task)
            return
        if spec.on_demand and not spec.graph and self._on_demand.is_declared(spec):
            return
        for name in filter(None, (spec.result, *spec.outputs)):
            self._link_output(task, name, graph)
        for name in spec.wanted_at_manager:
            self._state.find_or_create_file(name).wanted_at_manager = True
        if spec.environment:  # a warm Python runs in it when the task is over
            environment = self._state.find_or_create_file(spec.environment)
            environment.level = max(environment.level, WORKFLOW)
        if spec.on_demand:
            self._on_demand.register_deferred(task)
            task.freeze()
            return
        task.queue = self._queues.queue_for(spec, spec.request)
        self._tasks.register(task)
        lost = [name for name in (*spec.inputs, *spec.mounts) if not self._link_input(task, name)]
        lost += [
            name
            for name in (*spec.shared, spec.environment)
            if name and not self._link_shared_object(task, name)
        ]
        if spec.library:
            lost += [
                name for name in self._state.libraries[spec.library].made if not self._link_input(task, name)
            ]
        task.freeze()
        if spec.conditions is not None and not lost:
            self._time_windows.task_submitted(task)
        if lost:
            reason = self._explain_lost(lost)
            self._tasks.fail(task, "input missing", {"reason": reason}, b"")
        elif task.state != WAITING:
            return
        elif not task.missing_inputs:
            self._tasks.mark_ready(task)
        elif reason := self._missing_files.describe_circle(task):
            self._tasks.fail(task, "input missing", {"reason": reason}, b"")

    def _explain_lost(self, names: list[str]) -> str:
        """Say why inputs cannot be had that no task makes."""
        declared = [name for name in names if self._state.find_or_create_file(name).pin_count > 0]
        others = [name for name in names if name not in declared]
        texts = []
        if declared:
            texts.append(
                f"{', '.join(declared)}: not there when it was declared, and no task that was submitted before this one makes it"
            )
        if others:
            texts.append(f"{', '.join(others)}: pruned or never declared, and no task makes it")
        return "; ".join(texts)

    def _link_output(self, task: TaskState, name: str, graph: GraphState) -> None:
        file = self._state.find_or_create_file(name)
        file.producer = task
        file.peer_transfer = task.spec.peer_transfer
        if file.reusable:
            self._state.evictable.pop(file, None)
        if task.spec.level > file.level:
            file.level = task.spec.level
            self._outbox.retain_replicas(file)
        file.reusable = task.spec.content_addressed or file.level > WORKFLOW
        task.outputs.append(file)
        if graph.spec.number:
            graph.files.append(file)
            if graph.spec.prune_depth == 1:
                file.unsubmitted_readers = 0 if task.spec.on_demand else task.spec.reader_count
            else:  # kept until all readers are known, or to the end
                file.pin_count += 1

    def _link_input(self, task: TaskState, name: str) -> bool:
        """Link a file that a task reads; whether it exists, will exist, or can be made again."""
        file = self._state.find_or_create_file(name)
        if task.state != WAITING or task in file.consumers:
            return True
        task.inputs.append(file)
        self._tasks.add_consumer(task, file)
        if file.unsubmitted_readers and file.producer is not None and file.producer.graph is task.graph:
            file.unsubmitted_readers -= 1
        if file.archive is not None:  # made of that wherever it is needed
            return self._link_input(task, file.archive.name)
        if file.available:
            return True
        task.missing_inputs += 1
        if file.producer is None:
            return self._missing_files.may_wait_for(file)
        self._recovery.recompute(file)
        return True

    def _link_shared_object(self, task: TaskState, name: str) -> bool:
        """Link a file that many tasks share."""
        file = self._state.find_or_create_file(name)
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

    def on_graph_submitted(self, event: events.GraphSubmitted) -> None:
        """Take notice that all tasks of a graph are there."""
        graph = self._state.graphs.get(event.graph)
        if graph is None:
            return
        if graph.deferred:
            self._on_demand.graph_submitted(graph)
        else:
            self._files.mark_graph_submitted(graph)
            self._tasks.finish_graph_if_done(graph)

    def on_graph_closed(self, event: events.GraphClosed) -> None:
        """Cancel what is left of a graph, and release its files."""
        graph = self._state.graphs.pop(event.graph, None)
        if graph is None:
            return
        graph.ended = graph.closed = True
        # they were found, and not run
        self._state.counters.tasks_submitted -= graph.deferred
        self._on_demand.waiting_graphs.pop(graph, None)
        self._tasks.cancel(list(graph.tasks.values()))
        pinned = graph.spec.prune_depth == 0 or (graph.spec.prune_depth > 1 and not graph.submitted)
        for file in graph.files:
            file.unsubmitted_readers = 0
            file.pin_count -= pinned
        graph.files.reverse()  # they are taken from the end
        self.graphs_being_released.append(graph)
        if any(file.pin_count > 0 or file.pending_readers or file.reusable for file in graph.files):
            self.release_closed_graphs(len(graph.files))  # another run may name, or need, some of them
        else:
            graph.unshared = True

    def release_closed_graphs(self, most: int) -> None:
        """Forget files of closed graphs, bit by bit, so that workers are heard meanwhile."""
        while self.graphs_being_released and most > 0:
            graph = self.graphs_being_released[-1]
            while graph.files and most > 0:
                most -= 1
                self._release_graph_file(graph.files.pop(), graph)
            if not graph.files:
                self.graphs_being_released.pop()

    def _release_graph_file(self, file: FileState, graph: GraphState) -> None:
        if file.pin_count > 0:
            return
        if file.reusable and file.replicas and not file.pending_readers:
            self._files.keep_for_reuse(file)
        else:
            self._files.undeclare(file, "the graph that makes it was closed")
            # nothing descends from it: its records go at once, and not when Python looks for garbage
            if graph.unshared:
                file.producer = None

    def on_tasks_cancelled(self, event: events.TasksCancelled) -> None:
        """Cancel tasks."""
        self._tasks.cancel(
            [self._state.tasks[number] for number in event.tasks if number in self._state.tasks]
        )

    def on_files_released(self, event: events.FilesReleased) -> None:
        """Release files that the user has undeclared or pruned."""
        for name in event.names:
            file = self._state.files.get(name)
            if file is None:
                continue
            if not event.prune:
                self._files.unpin(file, "it was undeclared")
            elif not file.pending_readers and (file.at_manager or not file.wanted_at_manager):
                forgotten = file.producer is None and file in self._state.evictable
                self._replicas.purge_all(file)
                if forgotten:
                    self._files.undeclare(file, "it was pruned")

    def on_file_requested(self, event: events.FileRequested) -> None:
        """Bring a file to the manager, or say why that cannot be."""
        file = self._state.files.get(event.name)
        forgotten = file is not None and file.producer is None and file in self._state.evictable
        if file is None or file.released or forgotten:
            self._outbox.emit(FileAvailable(event.name, "no such file is declared"))
        elif file.at_manager:
            self._outbox.emit(FileAvailable(event.name, ""))
        elif not file.replicas and file.producer is None:
            self._outbox.emit(FileAvailable(event.name, NO_SOURCE))
        else:
            file.wanted_at_manager = file.requested = True
            if file.replicas:
                self._transfers.upload(file)
            else:
                self._recovery.recompute(file)
