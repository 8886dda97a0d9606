"""Keeps the disks of workers from filling up.

Every worker has a running account of its disk, `Worker.room`: what is neither taken by files that it holds or fetches, nor promised to
its tasks for what they write. A task is given to a worker that has room for the inputs that are not there yet and for what its like are
known to write. Where there is too little, copies go that are cheapest to get again: first spare files, those used longest ago first;
then copies of what another worker, the manager or an address has as well; nothing that a task on that worker reads or makes. If that does not
suffice the task waits; and roots, which only add to what is held, wait earlier, while there is work that frees something.

When nothing runs anywhere and what could run waits for nothing but disk, an intermediate is given up that will be needed last, and made
again before it is. That is bounded by how often a task is made again; then the run fails, with the numbers.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from vinecore.core.instructions import INFO, Note
from vinecore.core.recovery import MOST_REMAKES
from vinecore.core.state import MB, UNLIMITED, elsewhere, is_root, on_disk
from vinecore.core.transitions import ASSIGNED, DONE, READY, RETRIEVING
from vinecore.protocol import INLINE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vinecore.core.mind import Mind
    from vinecore.core.state import Bucket, File, Task, Worker
    from vinecore.protocol import messages as m

MARK = 0.7  # of a disk in use, above which roots wait for what frees something
SMOOTHING = 0.2
LOOK_FURTHER = 8  # tasks that are tried where the most urgent one waits for disk
LOOK_AT = 64  # workers
MOST_LOOKED_AT = 1024  # files of a worker, for some that can go
FRUITLESS_S = 0.05  # where there were none nobody looks again so soon
MOST_EVICTIONS = MOST_REMAKES // 2  # of what one task makes; the other half is for what really is lost
MOST_REFUSALS = 5  # of one task, by workers whose disks are fuller than they seem from here
STUCK_S = 10.0  # how long a worker with more room is waited for, where nobody knows how many will come


class Disk:
    """Decides what fits where, and what has to go. One of the mind's parts."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self.concerned = (
            False  # there are files that are not small: as long as there are none nothing has to be counted
        )
        self.short = False  # a task could not be placed because of disk; reset before each try
        self.waiting: dict[Bucket, None] = {}  # buckets in which somebody waits for disk
        self.aside: dict[Task, None] = {}  # ready tasks whose inputs are larger than any disk
        self._means: dict[str, float] = {}  # category -> bytes its tasks write, for those that write much
        self.refusals: dict[Task, int] = {}
        self._unknown: dict[Worker, int] = {}  # bytes that a worker has less room than its files account for
        self._fruitless: dict[Worker, float] = {}
        self._stuck_since: float | None = None
        self._largest = 0  # disk of a worker, in bytes

    # ---- what a task takes

    def learn(self, task: Task, size: int) -> None:
        """A task has written this much."""
        category, mean = task.spec.category, self._means.get(task.spec.category)
        if mean is not None:
            self._means[category] = mean + SMOOTHING * (on_disk(size) - mean)
        elif size > INLINE_LIMIT:
            self._means[category] = size
            self.concerned = True

    def writes_much(self, task: Task) -> bool:
        """Whether tasks of its category make what is too large for a message."""
        return task.spec.category in self._means

    def expected(self, task: Task) -> int:
        """Bytes that a task will write, as far as one can know, or has asked for."""
        mean, expected = self._means.get(task.spec.category), 0
        if mean is not None:
            expected = int(mean) if any(file.size < 0 for file in task.outputs) else _known(task)
        if task.bucket.library is None:
            expected = max(expected, self._mind.placement.asked_disk(task.bucket) * MB)
        return expected

    def need(self, task: Task) -> int:
        """Bytes of disk that a task needs on a worker that has nothing of what it reads."""
        need = self.expected(task)
        for file in task.inputs:
            if file.size > INLINE_LIMIT:
                need += file.size
        for file in task.extra_files:
            if file.size > INLINE_LIMIT:
                need += file.size
        return need

    def _there(self, task: Task, worker: Worker) -> int:
        """Bytes of what a task reads that are on a worker, or have their place there."""
        return sum(
            file.size
            for file in chain(task.inputs, task.extra_files)
            if file.size > INLINE_LIMIT
            and (
                worker in file.replicas
                or worker in file.fetching
                or (file.stalled and worker in file.stalled)
            )
        )

    def fits(self, task: Task, worker: Worker, need: int) -> bool:
        """Whether a worker has room for a task now; ``need`` is what `need` says of it."""
        left, kept = worker.room - need, (1 - MARK) * worker.total.disk * MB
        if left >= kept:
            return True
        there = self._there(task, worker)
        if need == there:  # it takes nothing
            return True
        left += there
        if left >= 0 and (left >= kept or not is_root(task) or not self._frees_something(task, worker)):
            return True
        self.short = True
        return False

    def _frees_something(self, task: Task, worker: Worker) -> bool:
        """Whether something on a worker, or for it, is better done before a root; roots are not queued there ahead of need either."""
        bucket = task.bucket
        if bucket.ready or not all(map(is_root, worker.tasks.values())):
            return True
        instance = worker.libraries.get(bucket.library.spec.name) if bucket.library is not None else None
        return instance is not None and instance.assigned >= instance.slots

    def frees_more(self, task: Task) -> bool:
        """Whether there is more room after a task than before: it may overtake one that waits for disk."""
        freed = sum(
            on_disk(file.size)
            for file in task.inputs
            if file.pending == 1 and not file.foretold and file.pins <= 0
        )
        return freed >= self.expected(task)

    # ---- who waits

    def wait(self, bucket: Bucket) -> bool:
        """The most urgent task of a bucket waits for disk; set it aside if it does so in vain, and tell whether that was so."""
        queue = bucket.urgent
        if _reads(queue[0][2]) > self._largest:
            self.aside[heappop(queue)[2]] = None
            return True
        self.waiting[bucket] = None
        return False

    def again(self) -> None:
        """Have those who wait tried again."""
        self._mind.placement.dirty.update(self.waiting)
        self.waiting.clear()

    def worker_joined(self, worker: Worker) -> None:
        """There is a new worker: those who were set aside may fit there."""
        self._largest = max(self._largest, worker.total.disk * MB or UNLIMITED)
        self._stuck_since = None
        aside, self.aside = self.aside, {}
        for task in aside:
            if task.state == READY:
                self._mind.life.queue(task)

    def worker_gone(self, worker: Worker) -> None:
        """A worker has left."""
        self._unknown.pop(worker, None)
        self._fruitless.pop(worker, None)
        totals = [other.total.disk * MB or UNLIMITED for other in self._mind.tables.workers.values()]
        self._largest = max(totals, default=0)

    def forget(self, task: Task) -> None:
        """A task is over."""
        self.refusals.pop(task, None)
        self.aside.pop(task, None)

    # ---- copies that nobody will miss

    def make_room(self, task: Task, worker: Worker) -> bool:
        """Drop from a worker what is cheap to get again, if that makes room for a task."""
        now = self._mind.now
        if 0 < now - self._fruitless.get(worker, -math.inf) < FRUITLESS_S:
            return False
        need = self.need(task) - self._there(task, worker)
        waits = is_root(task) and self._frees_something(task, worker)
        aim = need + (int((1 - MARK) * worker.total.disk * MB) if waits else 0)
        victims, gain = [], worker.room
        for file in self._cheap(worker, self._busy(worker, task), spare_only=waits):
            if gain >= aim:
                break
            victims.append(file)
            gain += worker.files[file]
        if gain < aim:
            self._fruitless[worker] = now
            return False
        for file in victims:
            self._drop(worker, file)
        return True

    def _cheap(self, worker: Worker, busy: set[File], *, spare_only: bool = False) -> Iterator[File]:
        """What a worker could do without: spare files, then what others have as well; the rest goes to the end of the row.

        What only others have whose copies are not compared yet comes last.
        """
        spare, late = self._mind.tables.spare, []
        for file in list(worker.spare):
            if file not in spare:
                del worker.spare[file]
            elif self._free_to_go(worker, file, busy):
                yield file
        for file in [] if spare_only else list(islice(worker.files, MOST_LOOKED_AT)):
            if (
                file not in worker.spare
                and (len(file.replicas) > 1 or elsewhere(file))
                and self._free_to_go(worker, file, busy)
            ):
                if elsewhere(file) or _is_sure(file, worker):
                    yield file
                else:
                    late.append(file)
            else:
                worker.files[file] = worker.files.pop(file)
        yield from late

    def _free_to_go(self, worker: Worker, file: File, busy: set[File]) -> bool:
        return (
            worker.files[file] > 0
            and file not in busy
            and file.uploading is not worker
            and not self._mind.transfers.serves(worker, file)
        )

    def _busy(self, worker: Worker, task: Task) -> set[File]:
        """What the tasks and libraries of a worker, and one more task, read or make."""
        busy = {*task.inputs, *task.extra_files}
        for one in worker.tasks.values():
            busy.update(one.inputs, one.extra_files, one.outputs)
        for instance in worker.libraries.values():
            busy.update(instance.library.files)
        return busy

    def _drop(self, worker: Worker, file: File) -> None:
        """Have a worker forget its copy."""
        mind = self._mind
        del file.replicas[worker]
        mind.transfers.let_go(worker, file)
        mind.transfers.drop(worker, file, purge=True)
        if not file.available:
            mind.recovery.gone([file])
        if not file.replicas:
            mind.tables.spare.pop(file, None)

    # ---- when nothing else helps

    def force(self) -> bool:
        """Nothing runs, and somebody waits for disk: give up what can be made again; whether there is something new to try."""
        if any(self._mind.instances.make_room(bucket) for bucket in list(self.waiting)):
            return True  # without a library that is idle, on its worker and its disk
        entries = sorted(
            (entry for bucket in self.waiting for entry in chain(_first(bucket.ready), _first(bucket.roots))),
            key=lambda entry: entry[:2],
        )
        for _priority, _number, task in entries:
            if self._in_vain(task):
                return True
            open_ = list(islice(task.bucket.open, LOOK_AT))
            for worker in sorted(open_, key=lambda worker: self._there(task, worker), reverse=True):
                if self._force(task, worker):
                    self._stuck_since = None
                    return True
        if entries:
            return self._give_up(entries[0][2])
        self.waiting.clear()
        return False

    def _in_vain(self, task: Task) -> bool:
        """Fail who reads what a task makes, if that and all else it reads would never fit on one worker."""
        mind = self._mind
        for reader in [reader for file in task.outputs for reader in islice(file.consumers, LOOK_AT)]:
            if _reads(reader) > self._largest and mind.all_are_here():
                mind.life.fail(reader, "too large", {"reason": self.explain(reader)}, b"")
                return True
        return False

    def _force(self, task: Task, worker: Worker) -> bool:
        """Place a task on a worker, whatever has to go for that; what it reads has to fit, and what it is known, not only expected, to make."""
        if not self._mind.placement.suits(task, worker):
            return False
        busy = self._busy(worker, task)
        lacking = _reads(task) - self._there(task, worker)
        need = lacking + self.expected(task)
        sure = lacking + _known(task)
        victims = {
            file: None
            for file in chain(self._cheap(worker, busy), self._dear(worker, busy))
            if file in worker.files
        }
        if worker.room + sum(worker.files[file] for file in victims) < sure:
            return False
        for file in victims:
            if worker.room >= need:
                break
            if file in worker.files:
                self._drop(worker, file)
        if task.state == READY:
            self._mind.placement.place(task, worker)
        return True

    def _dear(self, worker: Worker, busy: set[File]) -> list[File]:
        """The intermediates of a worker that could be made again, those that nobody needs and those that are needed last first."""
        found = [
            file for file in worker.files if self._free_to_go(worker, file, busy) and self._can_be_made(file)
        ]
        return sorted(found, key=_needed_at, reverse=True)

    def _can_be_made(self, file: File) -> bool:
        maker = file.producer
        if maker is None or maker.state != DONE or maker.remakes >= MOST_EVICTIONS or file.fetching:
            return False
        return not maker.spec.library or maker.spec.library in self._mind.tables.libraries

    def _give_up(self, task: Task) -> bool:
        """Fail a task for which there is no room, though nothing runs, unless something is still on its way."""
        mind = self._mind
        if self._stuck_since is None:
            self._stuck_since = mind.now
        patient = not mind.all_are_here() and mind.now - self._stuck_since < STUCK_S
        if patient or self._unknown:
            return False
        if any(other.state == RETRIEVING for other in mind.tables.tasks.values()):
            return False
        self._stuck_since = None
        mind.life.fail(task, "too large", {"reason": self._numbers(task)}, b"")
        return True

    def _numbers(self, task: Task) -> str:
        workers = self._mind.tables.workers.values()
        roomiest = max(workers, key=lambda worker: worker.room)
        reads, writes, held = _reads(task), self.expected(task), sum(roomiest.files.values())
        return (
            f"{task.spec.label} needs {_mb(reads + writes)} of disk on one worker ({_mb(reads)} of inputs, about {_mb(writes)} for what it "
            f"makes), and no worker can free that: worker {roomiest.id} ({roomiest.name}) has {roomiest.total.disk} MB, of which files take "
            f"{_mb(held)} that are still needed, or have been given up and made again too often. Start workers with more disk (--disk), or more workers"
        )

    def tick(self) -> None:
        """Some time has passed: fail who cannot be helped, and forget a little of what workers have complained about."""
        for worker, unknown in list(self._unknown.items()):
            self._account(worker, unknown // 2 if unknown > MB else 0)
        if self.aside and self._mind.all_are_here():
            for task in list(self.aside):
                if task.state == READY:
                    self._mind.life.fail(task, "too large", {"reason": self.explain(task)}, b"")
            self.aside.clear()

    def explain(self, task: Task) -> str:
        """Say why a task that was set aside fits nowhere."""
        return (
            f"{task.spec.label} needs {_mb(_reads(task))} of inputs on one worker; the largest worker has {self._largest // MB} MB of disk: "
            "start a worker with more disk (--disk), or split what the task reads"
        )

    def missing(self) -> str:
        """What those who will never have room here wait for, "" if there are none."""
        for task in list(self.aside):
            if task.state == READY:
                return self.explain(task)
            del self.aside[task]
        return ""

    # ---- workers that have less than they should

    def no_room(self, worker: Worker, file: File, message: m.FetchFailed) -> bool:
        """A worker has no room for a file: the tasks that read it go elsewhere; whether there are any."""
        readers = [task for task in worker.tasks.values() if file in task.inputs or file in task.extra_files]
        self._believe(worker, message.room)
        info = {"reason": message.reason, "kind": "input missing"}
        for task in readers:
            if task.worker is worker and task.state == ASSIGNED:  # not taken back with another one already
                self.refused(task, worker, info)
        return bool(readers)

    def refused(self, task: Task, worker: Worker, info: dict[str, Any]) -> None:
        """A worker has no room for what a task that it has reads or has made: try elsewhere, or after eviction."""
        mind = self._mind
        size = info.get("size")
        if size is not None:
            self.learn(task, size)
            for file in task.outputs:
                if file.name == task.spec.result and not file.available:
                    file.size = size
        self._believe(worker, info.get("room", worker.room))
        count = self.refusals[task] = self.refusals.get(task, 0) + 1
        reason = f"worker {worker.id} on {worker.name} has no room on its disk: {info.get('reason', '')}"
        mind.emit(Note(INFO, f"{task.spec.label} goes elsewhere, or waits: {reason}"))
        if count > MOST_REFUSALS:
            mind.life.fail(task, info.get("kind", "disk"), {"reason": f"{reason} ({count} times)"}, b"")
        else:
            mind.life.recall(task)

    def _believe(self, worker: Worker, room: int) -> None:
        """A worker says how much room it has: not more than that, for a while."""
        if room < worker.room:
            self._account(worker, self._unknown.get(worker, 0) + worker.room - room)

    def _account(self, worker: Worker, unknown: int) -> None:
        """Take notice of how much of a worker's disk is taken by what is not known here."""
        worker.room -= unknown - self._unknown.pop(worker, 0)
        if unknown:
            self._unknown[worker] = unknown


def _is_sure(file: File, but: Worker) -> bool:
    """Whether another worker has a file and has compared it."""
    return any(holder is not but and file not in holder.unproven for holder in file.replicas)


def _reads(task: Task) -> int:
    return sum(on_disk(file.size) for file in chain(task.inputs, task.extra_files))


def _known(task: Task) -> int:
    return sum(on_disk(file.size) for file in task.outputs)


def _needed_at(file: File) -> float:
    return min((task.spec.priority for task in islice(file.consumers, LOOK_AT)), default=math.inf)


def _first(queue: list[tuple[float, int, Task]]) -> list[tuple[float, int, Task]]:
    """The most urgent tasks of a queue."""
    first: list[tuple[float, int, Task]] = []
    while queue and len(first) < LOOK_FURTHER:
        entry = heappop(queue)
        if entry[2].state == READY:
            first.append(entry)
    for entry in first:
        heappush(queue, entry)
    return first


def _mb(size: int) -> str:
    return f"{math.ceil(size / MB)} MB"
