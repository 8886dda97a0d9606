"""Tasks that are entered as done though they have never run, and woken when somebody needs what they make and nobody has it.

A file made on demand is such a task, which its first reader wakes. So is every task of a graph whose results are named by recipes:
the graph is laid down whole, and then its targets are asked for. `Recovery`, which finds what is lost and wakes those who make it, and those
who make what they lack, wakes what nobody has. It is asked when the workers have said what they have from before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.scheduler.transitions import CANCELLED, DONE, FAILED

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, GraphState, TaskSpec, TaskState

WORKER_GATHER_S = 2.0  # how long those are waited for who should be there
INVENTORY_TIMEOUT_S = 10.0  # how long a worker may look through what it has kept


class OnDemandTasks:
    """Lays tasks down and wakes them. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self.runs: dict[GraphState, float] = {}  # laid down whole, not asked for yet -> since when

    def is_declared(self, spec: TaskSpec) -> bool:
        """Whether the same file is declared a second time, and the task that makes it is known."""
        files = [self._mind.tables.files.get(name) for name in (spec.result, *spec.outputs) if name]
        makers = [None if file is None else file.producer for file in files]
        return all(maker is not None and maker.state not in (FAILED, CANCELLED) for maker in makers)

    def register_deferred(self, task: TaskState) -> None:
        """Enter a task whose outputs are known as done."""
        mind, spec = self._mind, task.spec
        task.state = DONE
        task.reported = not task.run.spec.run  # nobody waits for it
        task.run.done += 1
        mind.life.mark_deferred(task)
        read: dict[FileState, None] = {}
        made = mind.tables.libraries[spec.library].made if spec.library else ()
        for name in dict.fromkeys((*spec.inputs, *spec.mounts, *spec.shared, spec.environment, *made)):
            file = mind.file(name) if name else None
            if file is not None and name in spec.shared and file.producer is None and file.archive is None:
                task.extra_files.append(file)
                continue
            while file is not None:  # and the archive it is made of
                read[file] = None
                file = file.archive
        task.inputs.extend(read)
        for file in task.outputs:
            if file.consumers and not file.available:
                mind.recovery.recompute(file)
            else:  # it may be there, and can go until somebody needs it
                mind.life.release_if_unreferenced(file)

    def submitted(self, run: GraphState) -> None:
        """All of a graph is there."""
        self.runs[run] = self._mind.now
        self.request_targets()

    def request_targets(self) -> None:
        """Ask for the targets of the graphs that wait, if it is known by now what is there."""
        for run in [run for run, since in self.runs.items() if self._workers_known(since)]:
            del self.runs[run]
            if run.ended:
                continue
            self._mind.graph_submitted(run)
            for file in [file for file in run.files if file.wanted_at_manager and not file.at_manager]:
                self._request_output(file)
            self._mind.life.finish_graph_if_done(run)

    def stalled_reason(self) -> str:
        """Why graphs wait that nobody has asked for yet."""
        if not self.runs:
            return ""
        if not self._mind.tables.workers:
            return "no worker is connected"
        return self._mind.restart.stalled_reason() if self._mind.restart.expected_workers else ""

    def _workers_known(self, since: float) -> bool:
        mind = self._mind
        workers = mind.tables.workers.values()
        if not workers:  # nothing can run anyway
            return False
        first = min(worker.joined_at for worker in workers)
        missing = len(workers) < (mind.expected_workers or 1)
        if missing and mind.now - max(first, since) < WORKER_GATHER_S:
            return False
        if mind.restart.still_waiting(first):
            return False
        return not any(w.inventory_pending and mind.now - w.joined_at < INVENTORY_TIMEOUT_S for w in workers)

    def _request_output(self, file: FileState) -> None:
        """Have what a sleeping task makes brought to the manager; wake the task only if there is no other way."""
        mind, task = self._mind, file.producer
        assert task is not None
        if task.spec.library and task.spec.library not in mind.tables.libraries:
            mind.reject_without_library(task)
        elif not file.replicas:
            mind.recovery.recompute(file)
        elif task.state == DONE:
            mind.life.transition(task, "bring")
            task.run.done -= 1
            task.bucket = mind.placement.queue_for(task.spec, task.request)
            mind.life.register(task)
            mind.transfers.upload(file)
