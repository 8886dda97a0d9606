"""Tasks that are entered as done though they have never run, and run when what they make is needed and nowhere.

A file made on demand is such a task, which its first reader activates. So is every task of a graph whose results are named by
recipes: the graph is submitted whole, and then its targets are asked for. `Recovery`, which finds what is lost and reschedules the
tasks that make it, does so with what was never made. It is asked when the workers have said what they have from before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.transitions import CANCELLED, DONE, FAILED

if TYPE_CHECKING:
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.missing_files import MissingFiles
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.recovery import Recovery
    from vinecore.scheduler.resume import ResumedSession
    from vinecore.scheduler.specs import TaskSpec
    from vinecore.scheduler.state import FileState, GraphState, SchedulerState, TaskState
    from vinecore.scheduler.transfers import Transfers


WORKER_GATHER_S = 2.0  # how long expected workers are waited for
INVENTORY_TIMEOUT_S = 10.0  # how long a worker may look through what it has kept


class OnDemandTasks:
    """Registers deferred tasks, and asks for the targets of graphs that consist of them.

    Attributes
    ----------
    waiting_graphs : dict of GraphState to float
        Graphs that are there whole and whose targets are not asked for yet, and since when.
    """

    def __init__(
        self,
        state: SchedulerState,
        queues: TaskQueues,
        files: FileLifetime,
        tasks: TaskLifecycle,
        missing_files: MissingFiles,
        transfers: Transfers,
        recovery: Recovery,
        resumed: ResumedSession,
    ) -> None:
        self._state = state
        self._queues = queues
        self._files = files
        self._tasks = tasks
        self._missing_files = missing_files
        self._transfers = transfers
        self._recovery = recovery
        self._resumed = resumed
        self.waiting_graphs: dict[GraphState, float] = {}

    def is_declared(self, spec: TaskSpec) -> bool:
        """Return whether the same file is declared a second time, and the task that makes it is known."""
        files = [self._state.files.get(name) for name in (spec.result, *spec.outputs) if name]
        makers = [None if file is None else file.producer for file in files]
        return all(maker is not None and maker.state not in (FAILED, CANCELLED) for maker in makers)

    def register_deferred(self, task: TaskState) -> None:
        """Enter a task whose outputs are known as done."""
        spec = task.spec
        task.state = DONE
        task.reported = not task.graph.spec.number  # nobody waits for it
        task.graph.done += 1
        task.mark_deferred()
        read: dict[FileState, None] = {}
        made = self._state.libraries[spec.library].made if spec.library else ()
        for name in dict.fromkeys((*spec.inputs, *spec.mounts, *spec.shared, spec.environment, *made)):
            file = self._state.find_or_create_file(name) if name else None
            if file is not None and name in spec.shared and file.producer is None and file.archive is None:
                task.extra_files.append(file)
                continue
            while file is not None:  # and the archive it is made of
                read[file] = None
                file = file.archive
        task.inputs.extend(read)
        for file in task.outputs:
            if file.consumers and not file.available:
                self._recovery.recompute(file)
            else:  # it may be there, and can go until somebody needs it
                self._files.release_if_unreferenced(file)

    def graph_submitted(self, graph: GraphState) -> None:
        """Have a graph that is there whole wait for the workers' inventories."""
        self.waiting_graphs[graph] = self._state.now
        self.request_targets()

    def request_targets(self) -> None:
        """Ask for the targets of the graphs that wait, if it is known by now what is there."""
        for graph in [graph for graph, since in self.waiting_graphs.items() if self._workers_known(since)]:
            del self.waiting_graphs[graph]
            if graph.ended:
                continue
            self._files.mark_graph_submitted(graph)
            for file in [file for file in graph.files if file.wanted_at_manager and not file.at_manager]:
                self._request_output(file)
            self._tasks.finish_graph_if_done(graph)

    def stalled_reason(self) -> str:
        """Return why graphs wait whose targets have not been asked for yet."""
        if not self.waiting_graphs:
            return ""
        if not self._state.workers:
            return "no worker is connected"
        return self._resumed.stalled_reason() if self._resumed.awaited_workers else ""

    def _workers_known(self, since: float) -> bool:
        workers = self._state.workers.values()
        if not workers:  # nothing can run anyway
            return False
        first = min(worker.joined_at for worker in workers)
        missing = len(workers) < (self._state.expected_workers or 1)
        if missing and self._state.now - max(first, since) < WORKER_GATHER_S:
            return False
        if self._resumed.is_waiting_for_workers(first):
            return False
        return not any(
            w.inventory_pending and self._state.now - w.joined_at < INVENTORY_TIMEOUT_S for w in workers
        )

    def _request_output(self, file: FileState) -> None:
        """Bring what a deferred task makes to the manager; run the task only if there is no other way."""
        task = file.producer
        assert task is not None
        if task.spec.library and task.spec.library not in self._state.libraries:
            self._missing_files.reject_without_library(task)
        elif not file.replicas:
            self._recovery.recompute(file)
        elif task.state == DONE:
            task.transition("bring")
            self._state.counters.tasks_retrieving += 1
            task.graph.done -= 1
            task.queue = self._queues.queue_for(task.spec, task.request)
            self._tasks.register(task)
            self._transfers.upload(file)
