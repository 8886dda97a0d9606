"""What happens to a task between its submission and its end, and to the files it reads and writes.

A task is taken off its worker in one place, `Life.leave`; it ends in one of three, `Life.done`, `Life.fail` and `Life.cancel`. A file
that has come into being is announced by `Life.appeared`, and freed by `Life.settle` as soon as nothing speaks for it any more.
"""

from __future__ import annotations

import zlib
from heapq import heapify, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.scheduler.instructions import (
    INFO,
    DropObject,
    FileAvailable,
    GraphFinished,
    GraphTaskFinished,
    LogMessage,
    SingleUse,
    StoreObject,
    TaskFinished,
)
from vinecore.scheduler.state import DISPATCH_ID_SHIFT, TASK, WORKFLOW, is_root
from vinecore.scheduler.transitions import ASSIGNED, READY, RETRIEVING, UNFINISHED, WAITING, next_state

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, GraphState, TaskQueue, TaskState, WorkerState

SAID = frozenset({"output", "errors", "warnings", "left"})
"""What a worker tells of a vertex that has said something; its user wants to see that."""

SMOOTHING = 0.2  # weight of the newest duration in a mean
MOST_EVIDENCE = 10
MAX_LOG_EXCERPT = 500
MAX_EVICTABLE_FILES = 100_000
MOST_GENERATIONS = 16  # looked at for when something is needed again
MOST_READERS = 64


class TaskLifecycle:
    """Moves tasks through their states. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self._sequence = 0

    def transition(self, task: TaskState, event: str) -> None:
        """Change a task's state as the table says."""
        task.state = next_state(task.state, event)

    # ---- before it runs

    def register(self, task: TaskState) -> None:
        """A task is to be done: enter it in the tables, as a reader of its files."""
        mind = self._mind
        mind.tables.tasks[task.spec.task] = task.run.tasks[task.spec.task] = task
        task.run.unfinished += 1
        task.bucket.unfinished += 1

    def add_consumer(self, task: TaskState, file: FileState) -> None:
        """Have a task read a file."""
        file.consumers[task] = None
        self.adjust_readers(task, file, +1)

    def mark_ready(self, task: TaskState) -> None:
        """All inputs exist: queue the task for a worker."""
        task.state = next_state(task.state, "inputs")
        self.push(task)

    def push(self, task: TaskState) -> None:
        """Enter a ready task in its queue."""
        self._sequence += 1
        bucket = task.bucket
        queue = bucket.roots if not task.inputs or is_root(task) else bucket.ready
        heappush(queue, (self._priority(task), self._sequence, task))
        self._mind.placement.changed[bucket] = None

    def _priority(self, task: TaskState) -> float:
        """Smaller runs first. The modes are TaskVine's; the default is the order in which dask would run the graph."""
        mode = task.run.spec.priority_mode
        if not mode:
            return task.spec.priority if task.recomputations <= 0 else self._recomputation_priority(task)
        if mode == "FIFO":
            return self._sequence
        if mode == "LIFO":
            return -self._sequence
        if mode == "depth-first":
            return -task.spec.depth
        if mode == "breadth-first":
            return task.spec.depth
        if mode == "largest-input-first":
            return -sum(max(file.size, 0) for file in task.inputs)
        if mode == "random":  # the mind has no randomness: a checksum is as good for spreading
            return zlib.crc32(b"%d" % task.spec.task)
        _count, mean = self._mind.tables.category_walls.get(task.spec.category, (0, None))
        if mean is None:
            return float("-inf")
        return -mean if mode == "longest-category-first" else mean

    def _recomputation_priority(self, task: TaskState) -> float:
        """What is made again is made just before it is needed: until then it would only take room."""
        turn = task.spec.priority
        for _generation in range(MOST_GENERATIONS):
            readers = [reader for file in task.outputs for reader in islice(file.consumers, MOST_READERS)]
            if not readers:
                break
            task = min(readers, key=lambda reader: reader.spec.priority)
            turn = max(turn, task.spec.priority - 0.5)
            if task.recomputations <= 0:
                break
        return turn

    def input_lost(self, task: TaskState) -> None:
        """A ready task has lost an input."""
        self.transition(task, "lose")
        self.mark_stale(task.bucket)

    def mark_stale(self, bucket: TaskQueue) -> None:
        """An entry of a queue is void; sweep the queues when half of them is."""
        bucket.stale_entries += 1
        if bucket.stale_entries > 16 and 2 * bucket.stale_entries > len(bucket.ready) + len(bucket.roots):
            for queue in (bucket.ready, bucket.roots):
                live = {entry[2]: entry for entry in queue if entry[2].state == READY}
                queue[:] = live.values()
                heapify(queue)
            bucket.stale_entries = 0

    # ---- on a worker and off again

    def remove_from_worker(self, task: TaskState) -> None:
        """Take a task off its worker, in whatever way it ended there, and give back what it held."""
        worker = task.worker
        assert worker is not None
        del worker.tasks[task.dispatch_id]
        if task.reserved_disk:
            worker.free_disk += task.reserved_disk
            task.reserved_disk = 0
        self._mind.tables.assigned -= 1
        self._mind.placement.remove_from_worker(worker, task)
        task.run.running -= 1
        task.bucket.running -= 1

    def requeue(self, task: TaskState, blame: str, log: str = "") -> None:
        """A task that has left a live worker has to run again, unless it seems to be the cause; then ``log`` is part of the evidence."""
        worker = task.worker
        assert worker is not None
        self.transition(task, "back")
        task.worker = None
        self._requeue_chained_successors(task, worker)
        self.retry(task, blame, log)

    def retry(self, task: TaskState, blame: str, log: str = "") -> None:
        """Run a task again that had been given to a worker; ``blame`` is the evidence against it, "" if it is innocent."""
        if blame:
            task.attempts += 1
            task.failure_history = [*(task.failure_history or ()), blame][-MOST_EVIDENCE:]
            limit = task.run.spec.retries if task.run.spec.run else task.spec.retries
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

    def cancel_and_requeue(self, task: TaskState) -> None:
        """Take a task back from a live worker, where it cannot start."""
        self._mind.cancel_task(task)
        self.remove_from_worker(task)
        self.requeue(task, "")

    def _requeue_chained_successors(self, task: TaskState, worker: WorkerState) -> None:
        """Take back what was sent ahead to wait for a task that its worker does not run any more."""
        stack = [task]
        while stack:
            if not any(instance.chained for instance in worker.libraries.values()):
                return
            for file in stack.pop().outputs:
                for follower in [f for f in file.consumers if f.chained and f.worker is worker]:
                    self._mind.cancel_task(follower)
                    self.remove_from_worker(follower)
                    self.transition(follower, "back")
                    follower.worker = None
                    stack.append(follower)

    # ---- after it ran

    def on_task_done(self, worker: WorkerState, message: m.TaskDone) -> None:
        """A worker reports success."""
        mind = self._mind
        task = worker.tasks.get(message.task)
        if task is None:  # it was taken back before the worker knew, who then forgets what it has made
            self._replaced(worker, message)
            return
        self.remove_from_worker(task)
        task.wall_s = message.wall_s
        self._update_duration_means(task, worker, message)
        if task.spec.content_addressed and self._is_single_use(task, message.info):
            self._use_once(task)
        came = self._record_outputs(task, worker, message)
        awaited = [
            file for file in task.outputs if file.wanted_at_manager and not file.at_manager and file.replicas
        ]
        for file in awaited:
            mind.transfers.upload(file)
        payload = message.payload
        alone = "once" in task.spec.options and not awaited and not task.outputs[0].requested
        if payload and alone:  # nobody will ask for it but whoever waits for the task
            task.outputs[0].at_manager, task.outputs[0].released = False, True
        elif payload:
            mind.emit(StoreObject(task.spec.result, payload))
            self.answer_request(task.outputs[0], "")
            payload = b""
        self.transition(task, "hold" if awaited else "done")
        about = task.run.spec
        if not task.reported and (
            about.report_each_task or (about.run and not SAID.isdisjoint(message.info))
        ):
            task.reported = True
            mind.emit(GraphTaskFinished(about.run, task.spec.task, worker.id, message.info))
        self._release_inputs(task)
        if awaited:
            task.info = message.info
        else:
            self._finish(task, worker, message.info, payload)
        for file in came:
            self.file_available(file)
        for file in task.outputs:
            if not (file.available or file.released):
                self._fail_readers_of_missing_output(task, file, message.info)
            self.release_if_unreferenced(file)
        mind.copies.ensure_replicas(task.outputs)

    def _replaced(self, worker: WorkerState, message: m.TaskDone | m.TaskFailed) -> None:
        """What a worker had already of what an attempt makes that has failed or was taken back is not forgotten: what came last counts."""
        digests = message.info.get("digests", {})
        made = [(name, digests.get(name, "")) for name in message.info.get("outputs", {})]
        task = self._mind.tables.tasks.get(message.task & (1 << DISPATCH_ID_SHIFT) - 1)
        if task is not None and isinstance(message, m.TaskDone):
            made.append((task.spec.result, message.info.get("digest", "")))
        for name, digest in made:
            file = self._mind.tables.files.get(name)
            if file is not None and worker in file.replicas:
                file.replicas[worker] = digest

    def _is_single_use(self, task: TaskState, info: dict[str, Any]) -> bool:
        """Whether a task may make something else the next time, under the same name."""
        used = info.pop("used", None)
        covers = task.run.spec.covers
        if used and covers is not None and not covers(task.spec.task, used):
            return True
        return any(
            not file.reusable and file.producer is not None and file.producer.spec.content_addressed
            for file in task.inputs
        )

    def _use_once(self, task: TaskState) -> None:
        """What a task makes is for this graph, and not for a later one; neither is what is made of it."""
        self._mind.emit(SingleUse(task.spec.task))
        for file in task.outputs:
            if file.reusable:
                self._mind.tables.evictable.pop(file, None)
            file.reusable, file.level = False, TASK

    def _record_outputs(self, task: TaskState, worker: WorkerState, message: m.TaskDone) -> list[FileState]:
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
            if size > INLINE_LIMIT or self._mind.disk.disk_tracked:
                self._mind.disk.learn(task, size)
            if result and message.payload:
                file.at_manager = True
                if "once" in task.spec.options:  # the worker has not kept it
                    continue
            self._mind.transfers.add_output(worker, file, digest)
        return came

    def _update_duration_means(self, task: TaskState, worker: WorkerState, message: m.TaskDone) -> None:
        bucket, wall = task.bucket, message.wall_s
        mean = bucket.mean_s
        bucket.mean_s = wall if mean is None else mean + SMOOTHING * (wall - mean)
        mean = worker.wall_s
        worker.wall_s = wall if mean is None else mean + SMOOTHING * (wall - mean)
        walls = self._mind.tables.category_walls
        count, mean = walls.get(task.spec.category, (0, 0.0))
        walls[task.spec.category] = (count + 1, mean + (wall - mean) / (count + 1))
        if bucket.library is not None:
            bucket.library.failures = 0
        measured = message.info.get("measured")
        if measured is not None and bucket.category is not None:
            self._mind.placement.record_usage(bucket.category, measured, wall)

    def file_available(self, file: FileState) -> None:
        """A file exists that did not: who waits for it may go on."""
        for task in list(file.consumers):
            if task.state == WAITING:
                task.missing_inputs -= 1
                if not task.missing_inputs:
                    self.mark_ready(task)
            elif task.state == ASSIGNED:  # it was sent ahead
                task.missing_inputs -= 1
                assert task.worker is not None
                self._mind.transfers.request_copy(task.worker, file)
                if not task.missing_inputs:
                    self._mind.placement.inputs_complete(task)

    def _fail_readers_of_missing_output(self, task: TaskState, file: FileState, info: dict[str, Any]) -> None:
        """A task has ended well without making one of its files: who reads that can never run."""
        reason = f"{task.spec.label} has ended without making {_own_name(task, file)}{_log_excerpt(info)}"
        self.answer_request(file, reason)
        for reader in list(file.consumers):
            self.fail(reader, "input missing", {"reason": reason}, b"")
        file.wanted_at_manager = False

    def file_reached_manager(self, file: FileState) -> None:
        """The content of a file has come to the manager."""
        self.answer_request(file, "")
        self._finish_if_retrieved(file.producer)

    def _finish_if_retrieved(self, task: TaskState | None) -> None:
        """End a task if all that is wanted of it is at the manager."""
        if (
            task is not None
            and task.state == RETRIEVING
            and not any(f.wanted_at_manager and not f.at_manager for f in task.outputs)
        ):
            self.transition(task, "done")
            self._finish(task, task.worker, task.info or {}, b"")

    def _finish(
        self, task: TaskState, worker: WorkerState | None, info: dict[str, Any], payload: bytes
    ) -> None:
        run = task.run
        task.info = None
        self._unregister(task)
        run.done += 1
        if run.spec.run:
            self.finish_graph_if_done(run)
        else:
            self._report_finished(task, "success", worker, info, payload)

    def _report_finished(
        self, task: TaskState, outcome: str, worker: WorkerState | None, info: dict[str, Any], payload: bytes
    ) -> None:
        if not task.reported:
            task.reported = True
            self._mind.emit(TaskFinished(task.spec.task, outcome, worker.id if worker else 0, info, payload))

    def _unregister(self, task: TaskState) -> None:
        """Strike a task out of the tables."""
        del task.run.tasks[task.spec.task]
        del self._mind.tables.tasks[task.spec.task]
        task.run.unfinished -= 1
        task.bucket.unfinished -= 1
        self._mind.placement.remove_if_empty(task.bucket)
        disk = self._mind.disk
        if disk.refusals or disk.too_large_for_any_disk:
            disk.forget(task)

    def finish_graph_if_done(self, run: GraphState) -> None:
        """End a run whose last task is over."""
        if run.submitted and not run.unfinished and not run.ended:
            run.ended = True
            self._mind.emit(GraphFinished(run.spec.run, "success", 0, {}, b""))

    # ---- files

    def _release_inputs(self, task: TaskState) -> None:
        """A task does not need what it reads any more."""
        for file in task.inputs:
            file.consumers.pop(task, None)
            self.adjust_readers(task, file, -1)
        for file in task.extra_files:
            file.pending_readers -= 1
            self.release_if_unreferenced(file)

    def adjust_readers(self, task: TaskState, file: FileState, change: int) -> None:
        """Count a task in or out of those that need a file and, where the run prunes deeper, the files behind it."""
        generation = [file]
        depth = task.run.spec.prune_depth
        while generation:
            depth -= 1  # the next generation first: a file that is settled may lose its producer
            behind = [f.producer.inputs for f in generation if f.producer is not None] if depth > 0 else ()
            for older in generation:
                older.pending_readers += change
                if change < 0:
                    self.release_if_unreferenced(older)
                elif older.reusable:
                    self._mind.tables.evictable.pop(older, None)
            generation = [older for inputs in behind for older in inputs]

    def release_if_unreferenced(self, file: FileState) -> None:
        """Free what nobody needs any more: the copies of a file that can be made again, or all that is known of it."""
        if file.pending_readers or file.unsubmitted_readers:
            return
        if file.pin_count > 0:
            if file.level == TASK and file.replicas:
                self._mind.transfers.free_if_recoverable(file)
            return
        if file.released:
            self._forget(file)
        elif file.reusable:
            self._mark_evictable(file)
        elif file.producer is not None and (file.replicas or file.at_manager or file.fetching):
            if not file.wanted_at_manager:
                self._mind.transfers.free_everywhere(file)
            elif file.at_manager:
                self._mind.transfers.free_all(file)

    def _mark_evictable(self, file: FileState) -> None:
        """Keep what workers have of a reusable file that nobody needs now, until its room is needed."""
        if file.replicas:
            spare = self._mind.tables.evictable
            for worker in file.replicas:
                if file not in spare:
                    worker.evictable.pop(file, None)
                worker.evictable[file] = None
            spare[file] = None
            if file.at_manager and file.producer is None:  # it came when nobody wanted it any more
                file.at_manager = False
                self._mind.emit(DropObject(file.name))
        elif file.producer is None and not file.available:  # its last copy was lost while somebody needed it
            file.released = True
            self._forget(file)

    def keep_for_reuse(self, file: FileState) -> None:
        """The run that has made a reusable file is closed: keep what the workers have of it, for the next one."""
        file.producer = None
        file.wanted_at_manager = False
        self.answer_request(file, "the graph that makes it was closed")
        self.release_if_unreferenced(file)
        self.trim_evictable()

    def trim_evictable(self) -> None:
        """Do without what was kept longest for a later run, if that is too much."""
        spare = self._mind.tables.evictable
        while len(spare) > max(MAX_EVICTABLE_FILES, len(self._mind.restart.known_results)):
            self.evict(next(iter(spare)))

    def mark_deferred(self, task: TaskState) -> None:
        """What a task has made on demand is not needed now: as if it had never run."""
        task.recomputations = -1
        task.run.deferred += 1

    def evict(self, file: FileState) -> None:
        """Do without a file that was kept for a later run."""
        del self._mind.tables.evictable[file]
        self._mind.transfers.free_all(file)
        file.released = True
        self.release_if_unreferenced(file)

    def undeclare(self, file: FileState, reason: str) -> None:
        """Nobody can name a file any more."""
        if file.consumers and file.producer is None and not file.available:
            self._mind.unmade.given_up(file, reason)
        file.released = True
        file.wanted_at_manager = False
        self.answer_request(file, reason)
        self._finish_if_retrieved(file.producer)
        self.release_if_unreferenced(file)

    def _forget(self, file: FileState) -> None:
        mind = self._mind
        lasting = (file.level > WORKFLOW or file.reusable) and file.replicas
        if lasting and mind.tables.files.setdefault(file.name, file) is file:
            # workers keep it, and somebody may declare it or make it again
            file.released, file.reusable = False, True
            self._detach_archive(file)
            self.keep_for_reuse(file)
            return
        mind.transfers.free_everywhere(file)
        if file.at_manager:
            file.at_manager = False
            mind.emit(DropObject(file.name))
        if mind.tables.files.get(file.name) is file:
            del mind.tables.files[file.name]
        self._detach_archive(file)

    def _detach_archive(self, file: FileState) -> None:
        """A file does not need the archive that it is made of any more."""
        if file.archive is not None:
            archive, file.archive = file.archive, None
            self._mind.unpin(archive, "it was undeclared")

    def answer_request(self, file: FileState, reason: str) -> None:
        """Tell who asked for a file that it is at the manager, or why it will not be."""
        if file.requested:
            file.requested = False
            self._mind.emit(FileAvailable(file.name, reason))

    # ---- the bad ends

    def on_task_failed(self, worker: WorkerState, message: m.TaskFailed) -> None:
        """A worker reports that a task has not ended as it should."""
        mind = self._mind
        task = worker.tasks.get(message.task)
        self._replaced(worker, message)
        if task is None:
            return
        mind.remove_objects(
            worker,
            *(
                f.name
                for f in task.outputs
                if f.name in message.info.get("outputs", ())
                and worker not in f.replicas
                and worker not in f.fetching
            ),
        )
        larger = message.kind == "exhausted" and mind.placement.grow_request(task, message.info)
        if message.kind == "disk":
            mind.disk.task_refused(task, worker, message.info)
            return
        self.remove_from_worker(task)
        if larger:
            mind.placement.move(task)
            self.requeue(task, "")
        elif message.kind == "crash" or (message.kind == "library" and not task.spec.library):
            reason = message.info.get("reason", "its process died")
            self.requeue(
                task, f"{reason} on worker {worker.id} ({worker.name})", str(message.info.get("log", ""))
            )
        elif message.kind == "library":  # it was on its way while the library was removed
            self.requeue(task, "")
        elif message.kind == "exception" and task.raised < task.spec.exception_retries:
            task.raised += 1
            text = f"{task.spec.label} raised {message.info.get('text', 'an exception')} on worker {worker.id} ({worker.name})"
            mind.emit(
                LogMessage(INFO, f"{text}; it is run again, {task.raised} of {task.spec.exception_retries}")
            )
            self.requeue(task, "")
        else:
            attempt = task.attempts + task.raised + 1
            self.fail(task, message.kind, {**message.info, "attempt": attempt}, message.payload)

    def reject(self, task: TaskState, kind: str, info: dict[str, Any]) -> None:
        """A task cannot be taken at all."""
        if task.run.spec.run:
            self._fail_graph(task.run, task, kind, info, b"")
        else:
            self._report_finished(task, kind, None, info, b"")

    def fail(self, task: TaskState, kind: str, info: dict[str, Any], payload: bytes) -> None:
        """A task has failed for good; what depends on it fails with it."""
        stack = [(task, kind, info, payload)]
        while stack:
            task, kind, info, payload = stack.pop()
            if task.state not in UNFINISHED:
                continue
            worker = task.worker
            why = _reason(kind, info)
            # for who asks later for what it should have made
            task.info = {"reason": why}
            self._terminate(task, "fail", f"{task.spec.label} has failed: {why}")
            if task.run.spec.run:
                self._fail_graph(
                    task.run, task, kind, {**info, "worker": worker.id if worker else 0}, payload
                )
            else:
                self._report_finished(task, kind, worker, info, payload)
            reason = f"{task.spec.label}, which makes one of its inputs, has failed: {why}"
            stack += [
                (reader, "input missing", {"reason": reason}, b"") for reader in _consumers_of_outputs(task)
            ]

    def _fail_graph(
        self, run: GraphState, task: TaskState, kind: str, info: dict[str, Any], payload: bytes
    ) -> None:
        if not run.ended:
            run.ended = True
            self._mind.emit(GraphFinished(run.spec.run, kind, task.spec.task, info, payload))
            self.cancel(list(run.tasks.values()))

    def file_unobtainable(self, file: FileState, reason: str) -> None:
        """A file cannot be had: fail who needs it."""
        self.answer_request(file, reason)
        producer = file.producer
        if producer is not None:
            self.fail(producer, "input missing", {"reason": reason}, b"")
        users = list(file.consumers)
        if not users:  # functions and environments keep no list of their many readers
            users = [task for task in self._mind.tables.tasks.values() if file in task.extra_files]
        for task in users:
            self.fail(task, "input missing", {"reason": reason}, b"")
        self._mind.instances.input_failed(file, reason)

    def cancel(self, tasks: Iterable[TaskState]) -> None:
        """Drop tasks wherever they are; what others wanted of them has failed."""
        dropped = [task for task in tasks if task.state in UNFINISHED]
        for task in dropped:
            worker = task.worker
            self._terminate(task, "cancel", f"{task.spec.label}, which makes it, was cancelled")
            if not task.run.spec.run:
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
            self.mark_stale(task.bucket)
        if worker is not None and worker.tasks.get(task.dispatch_id) is task:
            self._mind.cancel_task(task)
            self.remove_from_worker(task)
        self.transition(task, event)
        self._unregister(task)
        if reads:
            self._release_inputs(task)
        for file in task.outputs:
            file.wanted_at_manager = False
            self.answer_request(file, reason)
            if (
                not task.run.spec.run and not file.pin_count
            ):  # the result of a task that was submitted by itself
                file.released = True
            self.release_if_unreferenced(file)


def title(file: FileState) -> str:
    """Call a file by what people know of it: the task that makes it, and its name there."""
    task = file.producer
    return file.name if task is None else f"{_own_name(task, file)} of {task.spec.label}"


def _own_name(task: TaskState, file: FileState) -> str:
    """What a file is called by the task that makes it."""
    if file.name == task.spec.result:
        return "the result"
    return next(
        (repr(remote) for remote, name, _when in task.spec.options.get("outputs", ()) if name == file.name),
        file.name,
    )


def _reason(kind: str, info: dict[str, Any]) -> str:
    """Say in one line why a task has failed."""
    said = info.get("reason") or info.get("text") or ""
    if kind == "exhausted" and not said:
        said = f"it used {info.get('peak')} MB of {info.get('resource')}, its limit is {info.get('limit')} MB"
    return f"{said or kind}{_log_excerpt(info) if kind == 'output missing' else ''}"


def _log_excerpt(info: dict[str, Any]) -> str:
    code, said = info.get("exit_code", 0), str(info.get("output", "")).strip()[-MAX_LOG_EXCERPT:]
    return f": exit code {code}{f', {said}' if said else ''}" if code else ""


def _consumers_of_outputs(task: TaskState) -> list[TaskState]:
    return [reader for file in task.outputs if not file.available for reader in file.consumers]
