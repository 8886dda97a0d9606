"""What a worker reports when a task is over: what it has made, and what it has used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vinecore.protocol import INLINE_LIMIT, messages
from vinecore.scheduler.instructions import INFO, GraphTaskFinished, LogMessage, SingleUse, StoreObject
from vinecore.scheduler.lifecycle import log_excerpt, output_name
from vinecore.scheduler.specs import TASK
from vinecore.scheduler.state import DISPATCH_ID_SHIFT
from vinecore.scheduler.transitions import ASSIGNED

if TYPE_CHECKING:
    from vinecore.scheduler.disk import DiskAccounts
    from vinecore.scheduler.dispatch import Dispatcher
    from vinecore.scheduler.eviction import Eviction
    from vinecore.scheduler.file_lifetime import FileLifetime
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.queues import TaskQueues
    from vinecore.scheduler.replicas import Replicas
    from vinecore.scheduler.replication import Replication
    from vinecore.scheduler.state import FileState, SchedulerState, TaskState, WorkerState
    from vinecore.scheduler.transfers import Transfers


# What a worker tells of a task that has said something, which its user wants to see.
REPORTED_INFO = frozenset({"output", "errors", "warnings", "left"})
NOT_BEGUN = frozenset({"input", "not started"})
"""Kinds of failure of a task that its worker could not begin."""
SMOOTHING = 0.2  # weight of the newest duration in a mean


class TaskResults:
    """Handles the ends of tasks as workers report them."""

    def __init__(
        self,
        *,
        state: SchedulerState,
        outbox: Outbox,
        queues: TaskQueues,
        disk: DiskAccounts,
        replicas: Replicas,
        files: FileLifetime,
        tasks: TaskLifecycle,
        transfers: Transfers,
        replication: Replication,
        eviction: Eviction,
        dispatcher: Dispatcher,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._queues = queues
        self._disk = disk
        self._replicas = replicas
        self._files = files
        self._tasks = tasks
        self._transfers = transfers
        self._replication = replication
        self._eviction = eviction
        self._dispatcher = dispatcher

    def on_task_done(self, worker: WorkerState, message: messages.TaskDone) -> None:
        """Take notice that a task has succeeded."""
        task = worker.tasks.get(message.task)
        if task is None:  # it was taken back before the worker knew, who then forgets what it has made
            self._record_replaced_copies(worker, message)
            return
        self._tasks.remove_from_worker(task)
        task.wall_s = message.wall_s
        self._update_duration_means(task, worker, message)
        if task.spec.content_addressed and self._is_single_use(task, message.info):
            self._mark_single_use(task)
        came = self._record_outputs(task, worker, message)
        awaited = [
            file for file in task.outputs if file.wanted_at_manager and not file.at_manager and file.replicas
        ]
        for file in awaited:
            self._transfers.upload(file)
        payload = message.payload
        alone = "once" in task.spec.options and not awaited and not task.outputs[0].requested
        if payload and alone:  # nobody will ask for it but whoever waits for the task
            task.outputs[0].at_manager, task.outputs[0].released = False, True
        elif payload:
            self._outbox.emit(StoreObject(task.spec.result, payload))
            self._files.answer_request(task.outputs[0], "")
            payload = b""
        task.transition("hold" if awaited else "done")
        about = task.graph.spec
        if not task.reported and (
            about.report_each_task or (about.number and not REPORTED_INFO.isdisjoint(message.info))
        ):
            task.reported = True
            self._outbox.emit(GraphTaskFinished(about.number, task.spec.task, worker.id, message.info))
        self._tasks.release_inputs(task)
        if awaited:
            task.info = message.info
            self._state.counters.tasks_retrieving += 1
            accounts = task.open_accounts()
            accounts.executed_at = self._state.now
            accounts.received_bytes = sum(max(file.size, 0) for file in awaited)
        else:
            self._tasks.finish(task, worker, message.info, payload)
        for file in came:
            self._dispatcher.file_available(file)
        for file in task.outputs:
            if not (file.available or file.released):
                self._fail_readers_of_missing_output(task, file, message.info)
            self._files.release_if_unreferenced(file)
        self._replication.ensure_replicas(task.outputs)

    def _record_replaced_copies(
        self, worker: WorkerState, message: messages.TaskDone | messages.TaskFailed
    ) -> None:
        """Enter the digests of copies that an attempt has replaced which failed or was taken back."""
        digests = message.info.get("digests", {})
        made = [(name, digests.get(name, "")) for name in message.info.get("outputs", {})]
        task = self._state.tasks.get(message.task & (1 << DISPATCH_ID_SHIFT) - 1)
        if task is not None and isinstance(message, messages.TaskDone):
            made.append((task.spec.result, message.info.get("digest", "")))
        for name, digest in made:
            file = self._state.files.get(name)
            if file is not None and worker in file.replicas:
                file.replicas[worker] = digest

    def _is_single_use(self, task: TaskState, info: dict[str, Any]) -> bool:
        """Return whether a task may make something else the next time, under the same name."""
        used = info.pop("used", None)
        covers = task.graph.spec.covers
        if used and covers is not None and not covers(task.spec.task, used):
            return True
        return any(
            not file.reusable and file.producer is not None and file.producer.spec.content_addressed
            for file in task.inputs
        )

    def _mark_single_use(self, task: TaskState) -> None:
        """Keep what a task makes for this graph only, and what is made of it."""
        self._outbox.emit(SingleUse(task.spec.task))
        for file in task.outputs:
            if file.reusable:
                self._state.evictable.pop(file, None)
            file.reusable, file.level = False, TASK

    def _record_outputs(
        self, task: TaskState, worker: WorkerState, message: messages.TaskDone
    ) -> list[FileState]:
        """Enter what a task has made; give the files that did not exist before."""
        came = []
        info = message.info
        sizes = info.get("outputs", {})
        for file in task.outputs:
            result = file.name == task.spec.result
            size = message.size if result else sizes.get(file.name)
            if size is None:
                continue
            digest = info.get("digest", "") if result else info.get("digests", {}).get(file.name, "")
            if not file.available:
                came.append(file)
            file.size = size
            if size > INLINE_LIMIT or self._state.disk_tracked:
                self._disk.record_written_bytes(task, size)
            if result and message.payload:
                file.at_manager = True
                if "once" in task.spec.options:  # the worker has not kept it
                    continue
            self._replicas.add_output(worker, file, digest)
        return came

    def _update_duration_means(
        self, task: TaskState, worker: WorkerState, message: messages.TaskDone
    ) -> None:
        queue, wall = task.queue, message.wall_s
        mean = queue.mean_s
        queue.mean_s = wall if mean is None else mean + SMOOTHING * (wall - mean)
        mean = worker.wall_s
        worker.wall_s = wall if mean is None else mean + SMOOTHING * (wall - mean)
        walls = self._state.category_walls
        count, mean = walls.get(task.spec.category, (0, 0.0))
        walls[task.spec.category] = (count + 1, mean + (wall - mean) / (count + 1))
        if queue.library is not None:
            queue.library.failures = 0
        measured = message.info.get("measured")
        if measured is not None and queue.category is not None:
            self._queues.record_usage(queue.category, measured, wall)

    def _fail_readers_of_missing_output(self, task: TaskState, file: FileState, info: dict[str, Any]) -> None:
        """Fail the readers of a file that its task has ended without making."""
        reason = f"{task.spec.label} has ended without making {output_name(task, file)}{log_excerpt(info)}"
        self._files.answer_request(file, reason)
        for reader in list(file.consumers):
            self._tasks.fail(reader, "input missing", {"reason": reason}, b"")
        file.wanted_at_manager = False

    def on_task_failed(self, worker: WorkerState, message: messages.TaskFailed) -> None:
        """Take notice that a task has not ended as it should."""
        task = worker.tasks.get(message.task)
        self._record_replaced_copies(worker, message)
        if task is None:
            return
        self._outbox.remove_objects(
            worker,
            *(
                f.name
                for f in task.outputs
                if f.name in message.info.get("outputs", ())
                and worker not in f.replicas
                and worker not in f.fetching
            ),
        )
        larger = message.kind == "exhausted" and self._queues.grow_request(task, message.info)
        if message.kind == "disk":
            self._eviction.task_refused(task, worker, message.info)
            return
        self._tasks.withdraw(task)
        self._count_failure(message)
        measured = message.info.get("measured") or {}
        wall_s = message.info.get("wall_s") or measured.get("wall_s") or 0.0
        task.open_accounts().add_failed_attempt(wall_s, exhausted=message.kind == "exhausted")
        if message.kind in NOT_BEGUN and self._is_retried_unrun(task, message):
            self._tasks.requeue(task, "")
        elif larger:
            self._queues.move(task)
            self._tasks.requeue(task, "")
        elif message.kind == "crash" or (message.kind == "library" and not task.spec.library):
            reason = message.info.get("reason", "its process died")
            self._tasks.requeue(
                task, f"{reason} on worker {worker.id} ({worker.name})", str(message.info.get("log", ""))
            )
        elif message.kind == "library":  # it was on its way while the library was removed
            self._tasks.requeue(task, "")
        elif message.kind == "exception" and task.raised < task.spec.exception_retries:
            task.raised += 1
            text = f"{task.spec.label} raised {message.info.get('text', 'an exception')} on worker {worker.id} ({worker.name})"
            self._outbox.emit(
                LogMessage(INFO, f"{text}; it is run again, {task.raised} of {task.spec.exception_retries}")
            )
            self._tasks.requeue(task, "")
        elif task.state == ASSIGNED:
            attempt = task.attempts + task.raised + 1
            self._tasks.fail(task, message.kind, {**message.info, "attempt": attempt}, message.payload)

    def _is_retried_unrun(self, task: TaskState, message: messages.TaskFailed) -> bool:
        """Return whether a task that a worker could not begin is tried again, as its user has set; else it may have failed."""
        conditions = task.spec.conditions
        if conditions is None or conditions.max_forsaken < 0:
            return False
        return not self._tasks.forsake(task, str(message.info.get("reason", "")))

    def _count_failure(self, message: messages.TaskFailed) -> None:
        counters, info = self._state.counters, message.info
        seconds = (info.get("measured") or info).get("wall_s", 0.0)
        counters.failed_s += seconds
        if message.kind == "exhausted":
            counters.attempts_exhausted += 1
            counters.exhausted_s += seconds
