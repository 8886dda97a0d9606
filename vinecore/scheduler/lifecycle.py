"""What happens to a task between its submission and its end.

A task is taken off its worker in one place, `TaskLifecycle.remove_from_worker`. It ends in one of three: `finish`, `fail` and
`cancel`. What a worker reports of a task is handled in `task_results`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore.scheduler.instructions import GraphFinished, TaskFinished
from vinecore.scheduler.transitions import READY, RETRIEVING, UNFINISHED, next_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.state import FileState, GraphState, SchedulerState, TaskState, WorkerState


MAX_EVIDENCE = 10
MAX_LOG_EXCERPT = 500


class TaskLifecycle:
    """Moves tasks through their states."""

    def __init__(
        self,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        disk: DiskAccounts,
        files: FileLifetime,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._disk = disk
        self._files = files
        # tasks with a limit -> how often workers have given them back without having run them
        self._forsaken_counts: dict[TaskState, int] = {}

    # ---- before it runs

    def register(self, task: TaskState) -> None:
        """Enter a task that is to be done."""
        self._state.tasks[task.spec.task] = task.graph.tasks[task.spec.task] = task
        task.graph.unfinished += 1
        task.queue.unfinished += 1

    def add_consumer(self, task: TaskState, file: FileState) -> None:
        """Have a task read a file."""
        file.consumers[task] = None
        self._files.adjust_readers(task, file, +1)

    def mark_ready(self, task: TaskState) -> None:
        """Queue a task whose inputs exist."""
        task.state = next_state(task.state, "inputs")
        self._queues.push(task)

    def input_lost(self, task: TaskState) -> None:
        """Have a ready task wait that has lost an input."""
        task.transition("lose")
        self._queues.mark_stale(task.queue)

    # ---- off a worker again

    def remove_from_worker(self, task: TaskState) -> None:
        """Take a task off its worker, in whatever way it ended there, and give back what it held."""
        worker = task.worker
        assert worker is not None
        del worker.tasks[task.dispatch_id]
        if task.reserved_disk:
            worker.free_disk += task.reserved_disk
            task.reserved_disk = 0
        self._state.assigned -= 1
        self._queues.release_worker(worker, task)
        task.graph.running -= 1
        task.queue.running -= 1

    def withdraw(self, task: TaskState) -> None:
        """Take a task off its worker that has not succeeded there."""
        self._state.counters.attempts_withdrawn += 1
        self.remove_from_worker(task)

    def requeue(self, task: TaskState, blame: str, log: str = "") -> None:
        """Run a task again that has left a live worker, unless it seems to be the cause.

        Then ``log`` is part of the evidence.
        """
        worker = task.worker
        assert worker is not None
        task.transition("back")
        task.worker = None
        self._requeue_chained_successors(task, worker)
        self.retry(task, blame, log)

    def retry(self, task: TaskState, blame: str, log: str = "") -> None:
        """Run a task again that had been given to a worker; ``blame`` is the evidence against it, "" if it is innocent."""
        if blame:
            task.open_accounts().add_lost_attempt(self._state.now - task.dispatched_at)
            task.attempts += 1
            task.failure_history = [*(task.failure_history or ()), blame][-MAX_EVIDENCE:]
            limit = task.graph.spec.retries if task.graph.spec.number else task.spec.retries
            if task.attempts > limit:
                self.fail(
                    task,
                    "crash",
                    {"evidence": task.failure_history, "attempts": task.attempts, "log": log},
                    b"",
                )
                return
        if not task.missing_inputs:
            self.mark_ready(task)

    def forsake(self, task: TaskState, reason: str) -> bool:
        """Fail a task that workers give back too often without having run it; return whether it has failed.

        A task without a limit is not counted.
        """
        conditions = task.spec.conditions
        if conditions is None or conditions.max_forsaken < 0:
            return False
        count = self._forsaken_counts[task] = self._forsaken_counts.get(task, 0) + 1
        if count <= conditions.max_forsaken:
            return False
        text = f"{count} times a worker gave it back without having run it, the last time because {reason}"
        self.fail(task, "forsaken", {"reason": text}, b"")
        return True

    def cancel_and_requeue(self, task: TaskState) -> None:
        """Take a task back from a live worker, where it cannot start."""
        self._outbox.cancel_task(task)
        self.withdraw(task)
        self.requeue(task, "")

    def _requeue_chained_successors(self, task: TaskState, worker: WorkerState) -> None:
        """Take back what was sent ahead to wait for a task that its worker does not run any more."""
        stack = [task]
        while stack:
            if not any(instance.chained for instance in worker.libraries.values()):
                return
            for file in stack.pop().outputs:
                for follower in [f for f in file.consumers if f.chained and f.worker is worker]:
                    self._outbox.cancel_task(follower)
                    self.withdraw(follower)
                    follower.transition("back")
                    follower.worker = None
                    stack.append(follower)

    # ---- after it ran

    def file_reached_manager(self, file: FileState) -> None:
        """Go on with what waited for a file to arrive at the manager."""
        self._files.answer_request(file, "")
        self.finish_if_retrieved(file.producer)

    def finish_if_retrieved(self, task: TaskState | None) -> None:
        """End a task if all that is wanted of it is at the manager."""
        if (
            task is not None
            and task.state == RETRIEVING
            and not any(f.wanted_at_manager and not f.at_manager for f in task.outputs)
        ):
            task.transition("done")
            self._state.counters.tasks_retrieving -= 1
            self.finish(task, task.worker, task.info or {}, b"")

    def finish(
        self, task: TaskState, worker: WorkerState | None, info: dict[str, Any], payload: bytes
    ) -> None:
        """End a task that has succeeded."""
        graph = task.graph
        task.info = None
        self._unregister(task)
        graph.done += 1
        if graph.spec.number:
            self.finish_graph_if_done(graph)
        else:
            self._report_finished(task, "success", worker, info, payload)

    def _report_finished(
        self, task: TaskState, outcome: str, worker: WorkerState | None, info: dict[str, Any], payload: bytes
    ) -> None:
        if not task.reported:
            task.reported = True
            spec = task.spec
            number = worker.id if worker else 0
            self._outbox.emit(
                TaskFinished(spec.task, outcome, number, info, payload, task.dispatched_at, self._state.now,
                             task.wall_s, len(spec.payload), task.accounts)
            )  # fmt: skip

    def _unregister(self, task: TaskState) -> None:
        """Strike a task out of the tables."""
        del task.graph.tasks[task.spec.task]
        del self._state.tasks[task.spec.task]
        task.graph.unfinished -= 1
        task.queue.unfinished -= 1
        self._queues.remove_if_empty(task.queue)
        if self._disk.refusals or self._disk.too_large_for_any_disk:
            self._disk.forget(task)
        if self._forsaken_counts:
            self._forsaken_counts.pop(task, None)

    def finish_graph_if_done(self, graph: GraphState) -> None:
        """End a graph whose last task is over."""
        if graph.submitted and not graph.unfinished and not graph.ended:
            graph.ended = True
            self._outbox.emit(GraphFinished(graph.spec.number, "success", 0, {}, b""))

    def release_inputs(self, task: TaskState) -> None:
        """Release what a task reads."""
        for file in task.inputs:
            file.consumers.pop(task, None)
            self._files.adjust_readers(task, file, -1)
        for file in task.extra_files:
            file.pending_readers -= 1
            self._files.release_if_unreferenced(file)

    # ---- the bad ends

    def reject(self, task: TaskState, kind: str, info: dict[str, Any]) -> None:
        """Report a task that cannot be taken at all."""
        self._state.counters.tasks_failed += 1
        if task.graph.spec.number:
            self._fail_graph(task.graph, task, kind, info, b"")
        else:
            self._report_finished(task, kind, None, info, b"")

    def fail(self, task: TaskState, kind: str, info: dict[str, Any], payload: bytes) -> None:
        """Fail a task for good, and what depends on it."""
        stack = [(task, kind, info, payload)]
        while stack:
            task, kind, info, payload = stack.pop()
            if task.state not in UNFINISHED:
                continue
            self._state.counters.tasks_failed += 1
            worker = task.worker
            why = describe_failure(kind, info)
            # for who asks later for what it should have made
            task.info = {"reason": why}
            self._terminate(task, "fail", f"{task.spec.label} has failed: {why}")
            if task.graph.spec.number:
                self._fail_graph(
                    task.graph, task, kind, {**info, "worker": worker.id if worker else 0}, payload
                )
            else:
                self._report_finished(task, kind, worker, info, payload)
            reason = f"{task.spec.label}, which makes one of its inputs, has failed: {why}"
            stack += [
                (reader, "input missing", {"reason": reason}, b"") for reader in _consumers_of_outputs(task)
            ]

    def _fail_graph(
        self, graph: GraphState, task: TaskState, kind: str, info: dict[str, Any], payload: bytes
    ) -> None:
        if not graph.ended:
            graph.ended = True
            self._outbox.emit(GraphFinished(graph.spec.number, kind, task.spec.task, info, payload))
            self.cancel(list(graph.tasks.values()))

    def fail_unsatisfiable(self, tasks: list[TaskState], text: str, kind: str = "too large") -> None:
        """Fail ready tasks that no worker will ever run."""
        for task in tasks:
            if task.state == READY:
                self.fail(task, kind, {"reason": text}, b"")

    def cancel(self, tasks: Iterable[TaskState]) -> None:
        """Drop tasks wherever they are; what others wanted of them has failed."""
        dropped = [task for task in tasks if task.state in UNFINISHED]
        self._state.counters.tasks_cancelled += len(dropped)
        for task in dropped:
            worker = task.worker
            self._terminate(task, "cancel", f"{task.spec.label}, which makes it, was cancelled")
            if not task.graph.spec.number:
                self._report_finished(task, "cancelled", worker, {}, b"")
        for task in dropped:
            for reader in _consumers_of_outputs(task):
                reason = f"{task.spec.label}, which makes one of its inputs, was cancelled"
                self.fail(reader, "input missing", {"reason": reason}, b"")

    def _terminate(self, task: TaskState, event: str, reason: str) -> None:
        """End a task that is not done, wherever it is."""
        reads = task.state != RETRIEVING  # else it has read all it needs
        worker = task.worker
        if task.state == READY:
            self._queues.mark_stale(task.queue)
        if worker is not None and worker.tasks.get(task.dispatch_id) is task:
            self._outbox.cancel_task(task)
            self.withdraw(task)
        task.transition(event)
        self._unregister(task)
        if reads:
            self.release_inputs(task)
        else:
            self._state.counters.tasks_retrieving -= 1
        for file in task.outputs:
            file.wanted_at_manager = False
            self._files.answer_request(file, reason)
            # the result of a task that was submitted by itself
            if not task.graph.spec.number and not file.pin_count:
                file.released = True
            self._files.release_if_unreferenced(file)


def describe_file(file: FileState) -> str:
    """Return how users know a file: by the task that makes it, and its name there."""
    task = file.producer
    return file.name if task is None else f"{output_name(task, file)} of {task.spec.label}"


def output_name(task: TaskState, file: FileState) -> str:
    """Return the name that the task which makes a file has for it."""
    if file.name == task.spec.result:
        return "the result"
    return next(
        (repr(remote) for remote, name, _when in task.spec.options.get("outputs", ()) if name == file.name),
        file.name,
    )


def describe_failure(kind: str, info: dict[str, Any]) -> str:
    """Say in one line why a task has failed."""
    said = info.get("reason") or info.get("text") or ""
    if kind == "exhausted" and not said:
        said = f"it used {info.get('peak')} MB of {info.get('resource')}, its limit is {info.get('limit')} MB"
    return f"{said or kind}{log_excerpt(info) if kind == 'output missing' else ''}"


def log_excerpt(info: dict[str, Any]) -> str:
    """Return the exit code and the end of what a task has printed; "" if it ended well."""
    code, said = info.get("exit_code", 0), str(info.get("output", "")).strip()[-MAX_LOG_EXCERPT:]
    return f": exit code {code}{f', {said}' if said else ''}" if code else ""


def _consumers_of_outputs(task: TaskState) -> list[TaskState]:
    return [reader for file in task.outputs if not file.available for reader in file.consumers]
