"""What happens to a task between its submission and its end, and to the files it reads and writes.

A task is taken off its worker in one place, `Life.leave`; it ends in one of three, `Life.done`, `Life.fail` and `Life.cancel`. A file
that has come into being is announced by `Life.appeared`, and freed by `Life.settle` as soon as nothing speaks for it any more.
"""

from __future__ import annotations

import zlib
from heapq import heapify, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any

from vinecore.core.instructions import (
    INFO,
    FileObtained,
    Forget,
    Keep,
    Note,
    RunEnded,
    SingleUse,
    TaskEnded,
    VertexEnded,
)
from vinecore.core.state import TASK, TICKET_SHIFT, WORKFLOW, is_root
from vinecore.core.transitions import ASSIGNED, READY, RETRIEVING, UNFINISHED, WAITING, step
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vinecore.core.mind import Mind
    from vinecore.core.state import Bucket, File, Run, Task, Worker

SAID = frozenset({"output", "errors", "warnings", "left"})
"""What a worker tells of a vertex that has said something; its user wants to see that."""

SMOOTHING = 0.2  # weight of the newest duration in a mean
MOST_EVIDENCE = 10
MOST_LAST_WORDS = 500
MOST_SPARE = 100_000
MOST_GENERATIONS = 16  # looked at for when something is needed again
MOST_READERS = 64


class Life:
    """Moves tasks through their states. One of the mind's parts."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self._sequence = 0

    def move(self, task: Task, event: str) -> None:
        """Change a task's state as the table says."""
        task.state = step(task.state, event)

    # ---- before it runs

    def enter(self, task: Task) -> None:
        """A task is to be done: enter it in the tables, as a reader of its files."""
        mind = self._mind
        mind.tables.tasks[task.spec.task] = task.run.tasks[task.spec.task] = task
        task.run.unfinished += 1
        task.bucket.unfinished += 1

    def read(self, task: Task, file: File) -> None:
        """Have a task read a file."""
        file.consumers[task] = None
        self.count(task, file, +1)

    def ready(self, task: Task) -> None:
        """All inputs exist: queue the task for a worker."""
        task.state = step(task.state, "inputs")
        self.queue(task)

    def queue(self, task: Task) -> None:
        """Enter a ready task in its queue."""
        self._sequence += 1
        bucket = task.bucket
        queue = bucket.roots if not task.inputs or is_root(task) else bucket.ready
        heappush(queue, (self._priority(task), self._sequence, task))
        self._mind.placement.dirty[bucket] = None

    def _priority(self, task: Task) -> float:
        """Smaller runs first. The modes are TaskVine's; the default is the order in which dask would run the graph."""
        mode = task.run.spec.priority_mode
        if not mode:
            return task.spec.priority if task.remakes <= 0 else self._turn(task)
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

    def _turn(self, task: Task) -> float:
        """What is made again is made just before it is needed: until then it would only take room."""
        turn = task.spec.priority
        for _generation in range(MOST_GENERATIONS):
            readers = [reader for file in task.outputs for reader in islice(file.consumers, MOST_READERS)]
            if not readers:
                break
            task = min(readers, key=lambda reader: reader.spec.priority)
            turn = max(turn, task.spec.priority - 0.5)
            if task.remakes <= 0:
                break
        return turn

    def lose(self, task: Task) -> None:
        """A ready task has lost an input."""
        self.move(task, "lose")
        self.void(task.bucket)

    def void(self, bucket: Bucket) -> None:
        """An entry of a queue is void; sweep the queues when half of them is."""
        bucket.stale += 1
        if bucket.stale > 16 and 2 * bucket.stale > len(bucket.ready) + len(bucket.roots):
            for queue in (bucket.ready, bucket.roots):
                live = {entry[2]: entry for entry in queue if entry[2].state == READY}
                queue[:] = live.values()
                heapify(queue)
            bucket.stale = 0

    # ---- on a worker and off again

    def leave(self, task: Task) -> None:
        """Take a task off its worker, in whatever way it ended there, and give back what it held."""
        worker = task.worker
        assert worker is not None
        del worker.tasks[task.ticket]
        if task.promised:
            worker.room += task.promised
            task.promised = 0
        self._mind.tables.assigned -= 1
        self._mind.placement.left(worker, task)
        task.run.running -= 1
        task.bucket.running -= 1

    def back(self, task: Task, blame: str, log: str = "") -> None:
        """A task that has left a live worker has to run again, unless it seems to be the cause; then ``log`` is part of the evidence."""
        worker = task.worker
        assert worker is not None
        self.move(task, "back")
        task.worker = None
        self._recall_followers(task, worker)
        self.again(task, blame, log)

    def again(self, task: Task, blame: str, log: str = "") -> None:
        """Run a task again that had been given to a worker; ``blame`` is the evidence against it, "" if it is innocent."""
        if blame:
            task.attempts += 1
            task.evidence = [*(task.evidence or ()), blame][-MOST_EVIDENCE:]
            limit = task.run.spec.retries if task.run.spec.run else task.spec.retries
            if task.attempts > limit:
                self.fail(
                    task, "crash", {"evidence": task.evidence, "attempts": task.attempts, "log": log}, b""
                )
                return
        if not task.missing:
            self.ready(task)

    def recall(self, task: Task) -> None:
        """Take a task back from a live worker, where it cannot start."""
        self._mind.cancel(task)
        self.leave(task)
        self.back(task, "")

    def _recall_followers(self, task: Task, worker: Worker) -> None:
        """Take back what was sent ahead to wait for a task that its worker does not run any more."""
        stack = [task]
        while stack:
            if not any(instance.ahead for instance in worker.libraries.values()):
                return
            for file in stack.pop().outputs:
                for follower in [f for f in file.consumers if f.ahead and f.worker is worker]:
                    self._mind.cancel(follower)
                    self.leave(follower)
                    self.move(follower, "back")
                    follower.worker = None
                    stack.append(follower)

    # ---- after it ran

    def done(self, worker: Worker, message: m.Done) -> None:
        """A worker reports success."""
        mind = self._mind
        task = worker.tasks.get(message.task)
        if task is None:  # it was taken back before the worker knew, who then forgets what it has made
            self._replaced(worker, message)
            return
        self.leave(task)
        task.wall_s = message.wall_s
        self._learn(task, worker, message)
        if task.spec.reusable and self._is_single_use(task, message.info):
            self._use_once(task)
        came = self._outputs(task, worker, message)
        awaited = [file for file in task.outputs if file.wanted and not file.at_manager and file.replicas]
        for file in awaited:
            mind.transfers.upload(file)
        payload = message.payload
        alone = "once" in task.spec.options and not awaited and not task.outputs[0].asked
        if payload and alone:  # nobody will ask for it but whoever waits for the task
            task.outputs[0].at_manager, task.outputs[0].released = False, True
        elif payload:
            mind.emit(Keep(task.spec.result, payload))
            self.tell(task.outputs[0], "")
            payload = b""
        self.move(task, "hold" if awaited else "done")
        about = task.run.spec
        if not task.told and (about.tell or (about.run and not SAID.isdisjoint(message.info))):
            task.told = True
            mind.emit(VertexEnded(about.run, task.spec.task, worker.id, message.info))
        self._read(task)
        if awaited:
            task.info = message.info
        else:
            self._ended(task, worker, message.info, payload)
        for file in came:
            self.appeared(file)
        for file in task.outputs:
            if not (file.available or file.released):
                self._absent(task, file, message.info)
            self.settle(file)
        mind.copies.spread(task.outputs)

    def _replaced(self, worker: Worker, message: m.Done | m.Failed) -> None:
        """What a worker had already of what an attempt makes that has failed or was taken back is not forgotten: what came last counts."""
        digests = message.info.get("digests", {})
        made = [(name, digests.get(name, "")) for name in message.info.get("outputs", {})]
        task = self._mind.tables.tasks.get(message.task & (1 << TICKET_SHIFT) - 1)
        if task is not None and isinstance(message, m.Done):
            made.append((task.spec.result, message.info.get("digest", "")))
        for name, digest in made:
            file = self._mind.tables.files.get(name)
            if file is not None and worker in file.replicas:
                file.replicas[worker] = digest

    def _is_single_use(self, task: Task, info: dict[str, Any]) -> bool:
        """Whether a task may make something else the next time, under the same name."""
        used = info.pop("used", None)
        covers = task.run.spec.covers
        if used and covers is not None and not covers(task.spec.task, used):
            return True
        return any(
            not file.reusable and file.producer is not None and file.producer.spec.reusable
            for file in task.inputs
        )

    def _use_once(self, task: Task) -> None:
        """What a task makes is for this graph, and not for a later one; neither is what is made of it."""
        self._mind.emit(SingleUse(task.spec.task))
        for file in task.outputs:
            if file.reusable:
                self._mind.tables.spare.pop(file, None)
            file.reusable, file.level = False, TASK

    def _outputs(self, task: Task, worker: Worker, message: m.Done) -> list[File]:
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
            if size > INLINE_LIMIT or self._mind.disk.concerned:
                self._mind.disk.learn(task, size)
            if result and message.payload:
                file.at_manager = True
                if "once" in task.spec.options:  # the worker has not kept it
                    continue
            self._mind.transfers.made(worker, file, digest)
        return came

    def _learn(self, task: Task, worker: Worker, message: m.Done) -> None:
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
            self._mind.placement.record(bucket.category, measured, wall)

    def appeared(self, file: File) -> None:
        """A file exists that did not: who waits for it may go on."""
        for task in list(file.consumers):
            if task.state == WAITING:
                task.missing -= 1
                if not task.missing:
                    self.ready(task)
            elif task.state == ASSIGNED:  # it was sent ahead
                task.missing -= 1
                assert task.worker is not None
                self._mind.transfers.need(task.worker, file)
                if not task.missing:
                    self._mind.placement.caught_up(task)

    def _absent(self, task: Task, file: File, info: dict[str, Any]) -> None:
        """A task has ended well without making one of its files: who reads that can never run."""
        reason = f"{task.spec.label} has ended without making {_own_name(task, file)}{_last_words(info)}"
        self.tell(file, reason)
        for reader in list(file.consumers):
            self.fail(reader, "input missing", {"reason": reason}, b"")
        file.wanted = False

    def obtained(self, file: File) -> None:
        """The content of a file has come to the manager."""
        self.tell(file, "")
        self._retrieved(file.producer)

    def _retrieved(self, task: Task | None) -> None:
        """End a task if all that is wanted of it is at the manager."""
        if (
            task is not None
            and task.state == RETRIEVING
            and not any(f.wanted and not f.at_manager for f in task.outputs)
        ):
            self.move(task, "done")
            self._ended(task, task.worker, task.info or {}, b"")

    def _ended(self, task: Task, worker: Worker | None, info: dict[str, Any], payload: bytes) -> None:
        run = task.run
        task.info = None
        self._exit(task)
        run.done += 1
        if run.spec.run:
            self.check_run(run)
        else:
            self._report(task, "success", worker, info, payload)

    def _report(
        self, task: Task, outcome: str, worker: Worker | None, info: dict[str, Any], payload: bytes
    ) -> None:
        if not task.told:
            task.told = True
            self._mind.emit(TaskEnded(task.spec.task, outcome, worker.id if worker else 0, info, payload))

    def _exit(self, task: Task) -> None:
        """Strike a task out of the tables."""
        del task.run.tasks[task.spec.task]
        del self._mind.tables.tasks[task.spec.task]
        task.run.unfinished -= 1
        task.bucket.unfinished -= 1
        self._mind.placement.drop_if_empty(task.bucket)
        disk = self._mind.disk
        if disk.refusals or disk.aside:
            disk.forget(task)

    def check_run(self, run: Run) -> None:
        """End a run whose last task is over."""
        if run.complete and not run.unfinished and not run.ended:
            run.ended = True
            self._mind.emit(RunEnded(run.spec.run, "success", 0, {}, b""))

    # ---- files

    def _read(self, task: Task) -> None:
        """A task does not need what it reads any more."""
        for file in task.inputs:
            file.consumers.pop(task, None)
            self.count(task, file, -1)
        for file in task.extra_files:
            file.pending -= 1
            self.settle(file)

    def count(self, task: Task, file: File, change: int) -> None:
        """Count a task in or out of those that need a file and, where the run prunes deeper, the files behind it."""
        generation = [file]
        depth = task.run.spec.prune_depth
        while generation:
            depth -= 1  # the next generation first: a file that is settled may lose its producer
            behind = [f.producer.inputs for f in generation if f.producer is not None] if depth > 0 else ()
            for older in generation:
                older.pending += change
                if change < 0:
                    self.settle(older)
                elif older.reusable:
                    self._mind.tables.spare.pop(older, None)
            generation = [older for inputs in behind for older in inputs]

    def settle(self, file: File) -> None:
        """Free what nobody needs any more: the copies of a file that can be made again, or all that is known of it."""
        if file.pending or file.foretold:
            return
        if file.pins > 0:
            if file.level == TASK and file.replicas:
                self._mind.transfers.leave(file)
            return
        if file.released:
            self._discard(file)
        elif file.reusable:
            self._lay_aside(file)
        elif file.producer is not None and (file.replicas or file.at_manager or file.fetching):
            if not file.wanted:
                self._mind.transfers.forget(file)
            elif file.at_manager:
                self._mind.transfers.free(file)

    def _lay_aside(self, file: File) -> None:
        """Keep what workers have of a reusable file that nobody needs now, until its room is needed."""
        if file.replicas:
            spare = self._mind.tables.spare
            for worker in file.replicas:
                if file not in spare:
                    worker.spare.pop(file, None)
                worker.spare[file] = None
            spare[file] = None
            if file.at_manager and file.producer is None:  # it came when nobody wanted it any more
                file.at_manager = False
                self._mind.emit(Forget(file.name))
        elif file.producer is None and not file.available:  # its last copy was lost while somebody needed it
            file.released = True
            self._discard(file)

    def spare(self, file: File) -> None:
        """The run that has made a reusable file is closed: keep what the workers have of it, for the next one."""
        file.producer = None
        file.wanted = False
        self.tell(file, "the graph that makes it was closed")
        self.settle(file)
        self.limit_spare()

    def limit_spare(self) -> None:
        """Do without what was kept longest for a later run, if that is too much."""
        spare = self._mind.tables.spare
        while len(spare) > max(MOST_SPARE, len(self._mind.restart.known)):
            self.drop_spare(next(iter(spare)))

    def sleep(self, task: Task) -> None:
        """What a task has made on demand is not needed now: as if it had never run."""
        task.remakes = -1
        task.run.asleep += 1

    def drop_spare(self, file: File) -> None:
        """Do without a file that was kept for a later run."""
        del self._mind.tables.spare[file]
        self._mind.transfers.free(file)
        file.released = True
        self.settle(file)

    def release(self, file: File, reason: str) -> None:
        """Nobody can name a file any more."""
        if file.consumers and file.producer is None and not file.available:
            self._mind.unmade.given_up(file, reason)
        file.released = True
        file.wanted = False
        self.tell(file, reason)
        self._retrieved(file.producer)
        self.settle(file)

    def _discard(self, file: File) -> None:
        mind = self._mind
        lasting = (file.level > WORKFLOW or file.reusable) and file.replicas
        if lasting and mind.tables.files.setdefault(file.name, file) is file:
            # workers keep it, and somebody may declare it or make it again
            file.released, file.reusable = False, True
            self._loosen(file)
            self.spare(file)
            return
        mind.transfers.forget(file)
        if file.at_manager:
            file.at_manager = False
            mind.emit(Forget(file.name))
        if mind.tables.files.get(file.name) is file:
            del mind.tables.files[file.name]
        self._loosen(file)

    def _loosen(self, file: File) -> None:
        """A file does not need the archive that it is made of any more."""
        if file.archive is not None:
            archive, file.archive = file.archive, None
            self._mind.unpin(archive, "it was undeclared")

    def tell(self, file: File, reason: str) -> None:
        """Tell who asked for a file that it is at the manager, or why it will not be."""
        if file.asked:
            file.asked = False
            self._mind.emit(FileObtained(file.name, reason))

    # ---- the bad ends

    def failed(self, worker: Worker, message: m.Failed) -> None:
        """A worker reports that a task has not ended as it should."""
        mind = self._mind
        task = worker.tasks.get(message.task)
        self._replaced(worker, message)
        if task is None:
            return
        mind.unlink(
            worker,
            *(
                f.name
                for f in task.outputs
                if f.name in message.info.get("outputs", ())
                and worker not in f.replicas
                and worker not in f.fetching
            ),
        )
        larger = message.kind == "exhausted" and mind.placement.larger(task, message.info)
        if message.kind == "disk":
            mind.disk.refused(task, worker, message.info)
            return
        self.leave(task)
        if larger:
            mind.placement.change_bucket(task)
            self.back(task, "")
        elif message.kind == "crash" or (message.kind == "library" and not task.spec.library):
            reason = message.info.get("reason", "its process died")
            self.back(
                task, f"{reason} on worker {worker.id} ({worker.name})", str(message.info.get("log", ""))
            )
        elif message.kind == "library":  # it was on its way while the library was removed
            self.back(task, "")
        elif message.kind == "exception" and task.raised < task.spec.exception_retries:
            task.raised += 1
            text = f"{task.spec.label} raised {message.info.get('text', 'an exception')} on worker {worker.id} ({worker.name})"
            mind.emit(Note(INFO, f"{text}; it is run again, {task.raised} of {task.spec.exception_retries}"))
            self.back(task, "")
        else:
            attempt = task.attempts + task.raised + 1
            self.fail(task, message.kind, {**message.info, "attempt": attempt}, message.payload)

    def refuse(self, task: Task, kind: str, info: dict[str, Any]) -> None:
        """A task cannot be taken at all."""
        if task.run.spec.run:
            self._fail_run(task.run, task, kind, info, b"")
        else:
            self._report(task, kind, None, info, b"")

    def fail(self, task: Task, kind: str, info: dict[str, Any], payload: bytes) -> None:
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
            self._drop(task, "fail", f"{task.spec.label} has failed: {why}")
            if task.run.spec.run:
                self._fail_run(task.run, task, kind, {**info, "worker": worker.id if worker else 0}, payload)
            else:
                self._report(task, kind, worker, info, payload)
            reason = f"{task.spec.label}, which makes one of its inputs, has failed: {why}"
            stack += [(reader, "input missing", {"reason": reason}, b"") for reader in _readers(task)]

    def _fail_run(self, run: Run, task: Task, kind: str, info: dict[str, Any], payload: bytes) -> None:
        if not run.ended:
            run.ended = True
            self._mind.emit(RunEnded(run.spec.run, kind, task.spec.task, info, payload))
            self.cancel(list(run.tasks.values()))

    def input_failed(self, file: File, reason: str) -> None:
        """A file cannot be had: fail who needs it."""
        self.tell(file, reason)
        producer = file.producer
        if producer is not None:
            self.fail(producer, "input missing", {"reason": reason}, b"")
        users = list(file.consumers)
        if not users:  # functions and environments keep no list of their many readers
            users = [task for task in self._mind.tables.tasks.values() if file in task.extra_files]
        for task in users:
            self.fail(task, "input missing", {"reason": reason}, b"")
        self._mind.instances.input_failed(file, reason)

    def cancel(self, tasks: Iterable[Task]) -> None:
        """Drop tasks wherever they are; what others wanted of them has failed."""
        dropped = [task for task in tasks if task.state in UNFINISHED]
        for task in dropped:
            worker = task.worker
            self._drop(task, "cancel", f"{task.spec.label}, which makes it, was cancelled")
            if not task.run.spec.run:
                self._report(task, "cancelled", worker, {}, b"")
        for task in dropped:
            for reader in _readers(task):
                reason = f"{task.spec.label}, which makes one of its inputs, was cancelled"
                self.fail(reader, "input missing", {"reason": reason}, b"")

    def _drop(self, task: Task, event: str, reason: str) -> None:
        """End a task that is not done, wherever it is."""
        reads = task.state != RETRIEVING  # else it has read all it needs
        worker = task.worker
        if task.state == READY:
            self.void(task.bucket)
        if worker is not None and worker.tasks.get(task.ticket) is task:
            self._mind.cancel(task)
            self.leave(task)
        self.move(task, event)
        self._exit(task)
        if reads:
            self._read(task)
        for file in task.outputs:
            file.wanted = False
            self.tell(file, reason)
            if not task.run.spec.run and not file.pins:  # the result of a task that was submitted by itself
                file.released = True
            self.settle(file)


def title(file: File) -> str:
    """Call a file by what people know of it: the task that makes it, and its name there."""
    task = file.producer
    return file.name if task is None else f"{_own_name(task, file)} of {task.spec.label}"


def _own_name(task: Task, file: File) -> str:
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
    return f"{said or kind}{_last_words(info) if kind == 'output missing' else ''}"


def _last_words(info: dict[str, Any]) -> str:
    code, said = info.get("exit_code", 0), str(info.get("output", "")).strip()[-MOST_LAST_WORDS:]
    return f": exit code {code}{f', {said}' if said else ''}" if code else ""


def _readers(task: Task) -> list[Task]:
    return [reader for file in task.outputs if not file.available for reader in file.consumers]
