"""What a lost file costs, and who makes it again.

A file that is gone everywhere and still needed wakes the task that made it; that task's own inputs may be gone as well, and wake theirs.
The walk is a loop, not a recursion, so a chain of any length can be made again; every task has a bounded number of lives. Files that
nobody can name any more keep the tasks that made them as long as a living file descends from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinecore.core.instructions import INFO, Note, Woken
from vinecore.core.life import title
from vinecore.core.transitions import ASSIGNED, CANCELLED, DONE, FAILED, READY, RETRIEVING, WAITING
from vinecore.core.unmade import never_there

if TYPE_CHECKING:
    from vinecore.core.mind import Mind
    from vinecore.core.state import File, Task, Worker

MOST_REMAKES = 20


class Recovery:
    """Finds or makes again what was lost. One of the mind's parts."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind

    def worker_lost(self, worker: Worker, reason: str) -> None:
        """Take a worker, which is out of the table of workers already, out of every other; send its work elsewhere."""
        mind = self._mind
        suspects = set() if worker.leaving or worker.draining else self._suspects(worker)
        tasks = list(worker.tasks.values())
        for task in tasks:  # all of them first: what follows must not count on any
            mind.life.leave(task)
            mind.life.move(task, "back")
            task.worker = None
        mind.transfers.worker_gone(worker)
        mind.placement.worker_gone(worker)
        mind.disk.worker_gone(worker)
        mind.copies.left(worker)
        mind.farewells.gone(worker)
        files, worker.files = list(worker.files), {}
        for file in files:
            del file.replicas[worker]
        for file in files:
            mind.transfers.upload_lost(worker, file)
        self.gone([file for file in files if not file.available])
        for task in tasks:
            if task.state == WAITING:  # not failed with another one meanwhile
                blame = f"worker {worker.id} on {worker.name} was lost ({reason})" if task in suspects else ""
                mind.life.again(task, blame)
        mind.copies.spread(files)

    def _suspects(self, worker: Worker) -> set[Task]:
        """The tasks that were probably running: the oldest of each library, as many as it has slots, and all others."""
        suspects: set[Task] = set()
        room = {name: instance.slots for name, instance in worker.libraries.items()}
        for task in worker.tasks.values():
            name = task.spec.library
            if not name:
                suspects.add(task)
            elif room.get(name, 0) > 0 and not task.ahead:
                room[name] -= 1
                suspects.add(task)
        return suspects

    def replica_lost(self, file: File, worker: Worker) -> None:
        """One copy is gone."""
        if worker not in file.replicas:
            return
        del file.replicas[worker]
        self._mind.transfers.let_go(worker, file)
        self._mind.transfers.drop(worker, file, purge=True)  # it may be only half lost
        self._mind.transfers.upload_lost(worker, file)
        if not file.available:
            self.gone([file])
        elif self._mind.transfers.wanted_at(worker, file):
            self._mind.transfers.need(worker, file)

    def gone(self, files: list[File]) -> None:
        """The last copies are gone: those who wait for them miss them again, and whoever made them makes them again if they are needed."""
        life = self._mind.life
        for file in files:  # all of them first: who is woken below counts for itself what it misses
            for task in list(file.consumers):
                task.missing += 1
                if task.state == READY:
                    life.lose(task)
                elif (
                    task.state == ASSIGNED
                ):  # where it is it would hold a place that its input may have to be made in
                    life.recall(task)
        for file in files:
            producer = file.producer
            if file in self._mind.tables.spare:
                if producer is None:
                    life.drop_spare(file)
                    continue
                del self._mind.tables.spare[file]
            retrieving = producer is not None and producer.state == RETRIEVING
            if file.consumers or file.asked or (file.wanted and retrieving):
                self.remake(file)

    def remake(self, file: File) -> None:
        """Wake the producer of a file, and the producers of what that needs."""
        stack = [file]
        while stack:
            lost = stack.pop()
            producer = lost.producer
            if producer is None:
                if not self._mind.unmade.waits_for(lost):
                    gone = f"{lost.name} is gone and nothing can make it again"
                    self._mind.life.input_failed(lost, never_there(lost) if lost.absent else gone)
            elif producer.state in (DONE, RETRIEVING):
                self._wake(producer, lost, stack)
            elif producer.state in (FAILED, CANCELLED):
                why = (producer.info or {}).get("reason", "")
                ended = f"has failed: {why}" if why else f"was {producer.state}"
                self._mind.life.input_failed(lost, f"{title(lost)} is not there, and that task {ended}")

    def _wake(self, task: Task, lost: File, stack: list[File]) -> None:
        mind = self._mind
        task.remakes += 1
        if task.remakes > MOST_REMAKES:
            mind.life.input_failed(lost, f"the result of {task.spec.label} was lost {task.remakes} times")
            return
        if task.spec.library and task.spec.library not in mind.tables.libraries:
            mind.life.input_failed(lost, f"{title(lost)} is gone, and the library that made it was removed")
            return
        was_done = task.state == DONE
        mind.life.move(task, "again")
        task.worker = task.info = None
        run = task.run
        if was_done:
            task.bucket = mind.placement.bucket_of(task.spec, task.request)
            mind.life.enter(task)
            run.done -= 1
        mind.emit(Woken(task.spec.task, bool(task.remakes)))
        if task.remakes:
            run.remade += 1
            mind.emit(Note(INFO, f"making {task.spec.label} again: its result was lost"))
        else:
            run.asleep -= 1
        task.missing = 0
        for file in (
            *task.inputs,
            *task.extra_files,
            *task.outputs,
        ):  # it may be one that nobody can name any more
            known = mind.tables.files.setdefault(file.name, file)
            if known is not file and known in mind.tables.spare:  # and that a worker has found again since
                mind.life.drop_spare(known)
                mind.tables.files[file.name] = file
        for file in task.extra_files:
            file.pending += 1
            if not file.available:
                stack.append(file)
        for file in task.inputs:
            mind.life.read(task, file)
            if not file.available:
                task.missing += 1
                stack.append(file)
        if not task.missing:
            mind.life.ready(task)
