"""How long a file is kept.

A file is kept as long as a task that is not over reads it, a task that will be submitted does, or it is pinned. Then its copies
are freed, and its record goes when it cannot be named any more; a reusable file stays on workers until its room is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import DropObject, FileAvailable
from vinecore.scheduler.specs import TASK, WORKFLOW

if TYPE_CHECKING:
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.signals import Signals
    from vinecore.scheduler.state import FileState, GraphState, SchedulerState, TaskState


MAX_EVICTABLE_FILES = 100_000


class FileLifetime:
    """Counts the reasons to keep a file, and frees it when there is none left."""

    def __init__(self, signals: Signals, state: SchedulerState, outbox: Outbox, replicas: Replicas) -> None:
        self._signals = signals
        self._state = state
        self._outbox = outbox
        self._replicas = replicas

    def adjust_readers(self, task: TaskState, file: FileState, change: int) -> None:
        """Count a task in or out as a reader of a file and, if its graph prunes deeper, of the files behind."""
        generation = [file]
        depth = task.graph.spec.prune_depth
        while generation:
            depth -= 1  # the next generation first: a file that is settled may lose its producer
            behind = [f.producer.inputs for f in generation if f.producer is not None] if depth > 0 else ()
            for older in generation:
                older.pending_readers += change
                if change < 0:
                    self.release_if_unreferenced(older)
                elif older.reusable:
                    self._state.evictable.pop(older, None)
            generation = [older for inputs in behind for older in inputs]

    def release_if_unreferenced(self, file: FileState) -> None:
        """Free what is not needed of a file: its copies, or all that is known of it."""
        if file.pending_readers or file.unsubmitted_readers:
            return
        if file.pin_count > 0:
            if file.level == TASK and file.replicas:
                self._replicas.free_if_recoverable(file)
            return
        if file.released:
            self._forget(file)
        elif file.reusable:
            self._mark_evictable(file)
        elif file.producer is not None and (file.replicas or file.at_manager or file.fetching):
            if not file.wanted_at_manager:
                self._replicas.free_everywhere(file)
            elif file.at_manager:
                self._replicas.free_all(file)

    def _mark_evictable(self, file: FileState) -> None:
        """Keep what workers have of a reusable file that no task needs now, until its room is needed."""
        if file.replicas:
            evictable = self._state.evictable
            for worker in file.replicas:
                if file not in evictable:
                    worker.evictable.pop(file, None)
                worker.evictable[file] = None
            evictable[file] = None
            if file.at_manager and file.producer is None:  # it came when nobody wanted it any more
                file.at_manager = False
                self._outbox.emit(DropObject(file.name))
        elif file.producer is None and not file.available:  # its last copy was lost while somebody needed it
            file.released = True
            self._forget(file)

    def keep_for_reuse(self, file: FileState) -> None:
        """Keep what workers have of a reusable file after the graph that made it was closed."""
        file.producer = None
        file.wanted_at_manager = False
        self.answer_request(file, "the graph that makes it was closed")
        self.release_if_unreferenced(file)
        self.trim_evictable()

    def trim_evictable(self) -> None:
        """Evict the files that were kept longest for a later graph, if there are too many."""
        evictable = self._state.evictable
        while len(evictable) > max(MAX_EVICTABLE_FILES, len(self._state.known_results)):
            self.evict(next(iter(evictable)))

    def evict(self, file: FileState) -> None:
        """Free a file that was kept for a later graph."""
        del self._state.evictable[file]
        self._replicas.free_all(file)
        file.released = True
        self.release_if_unreferenced(file)

    def unpin(self, file: FileState, reason: str) -> None:
        """Count down the reasons beside tasks to keep a file."""
        file.pin_count -= 1
        if file.pin_count > 0:
            return
        graph = file.producer.graph if file.producer is not None else None
        if graph is not None and graph.spec.number and not graph.closed:  # it stays with its graph
            self.release_if_unreferenced(file)
            return
        self.undeclare(file, reason)

    def mark_graph_submitted(self, graph: GraphState) -> None:
        """Take notice that all tasks of a graph are there, so that all readers of its files are known."""
        graph.submitted = True
        if graph.spec.prune_depth > 1:
            for file in graph.files:
                file.pin_count -= 1
                self.release_if_unreferenced(file)

    def undeclare(self, file: FileState, reason: str) -> None:
        """Release a file that cannot be named any more."""
        if file.consumers and file.producer is None and not file.available:
            self._signals.file_abandoned(file, reason)
        file.released = True
        file.wanted_at_manager = False
        self.answer_request(file, reason)
        self._signals.request_withdrawn(file.producer)
        self.release_if_unreferenced(file)

    def _forget(self, file: FileState) -> None:
        lasting = (file.level > WORKFLOW or file.reusable) and file.replicas
        if lasting and self._state.files.setdefault(file.name, file) is file:
            # workers keep it, and somebody may declare it or make it again
            file.released, file.reusable = False, True
            self._detach_archive(file)
            self.keep_for_reuse(file)
            return
        self._replicas.free_everywhere(file)
        if file.at_manager:
            file.at_manager = False
            self._outbox.emit(DropObject(file.name))
        if self._state.files.get(file.name) is file:
            del self._state.files[file.name]
        self._detach_archive(file)

    def _detach_archive(self, file: FileState) -> None:
        """Unpin the archive that a file is made of."""
        if file.archive is not None:
            archive, file.archive = file.archive, None
            self.unpin(archive, "it was undeclared")

    def answer_request(self, file: FileState, reason: str) -> None:
        """Tell who asked for a file that it is at the manager, or why it will not be."""
        if file.requested:
            file.requested = False
            self._outbox.emit(FileAvailable(file.name, reason))
