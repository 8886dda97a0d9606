"""Files that tasks read before anybody has said who makes them.

A task may be submitted before the one that makes its input: it waits. What was declared to be made by some task is waited for until a
task with that output is submitted, or it is undeclared. A path where nothing was may be a mistake, too: it is waited for only until the user
waits. What was never declared, or had a content once, is not waited for. Neither does a task wait for what is made of its own output.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import InputsAbsent
from vinecore.scheduler.transitions import WAITING

if TYPE_CHECKING:
    from vinecore.scheduler.scheduler import Scheduler
    from vinecore.scheduler.state import FileState, TaskState

LOOK_AT = 16


class Unmade:
    """Knows which files are waited for that no task makes yet. One of the mind's parts."""

    def __init__(self, mind: Scheduler) -> None:
        self._mind = mind
        self.files: dict[FileState, None] = {}
        self._told = False  # of files that were not there, since the user has waited

    def waits_for(self, file: FileState) -> bool:
        """Whether a task may wait for a file that is nowhere and that no task makes."""
        if not file.awaited or file.pin_count <= 0:
            return False
        self.files[file] = None
        if file.absent and not self._told:
            self._told = True
            self._mind.emit(InputsAbsent())
        return True

    def waited(self) -> None:
        """The user waits: whoever was to make what was not there has been submitted by now."""
        self._told = False
        for file in [file for file in self.files if file.absent]:
            if file.producer is None and not file.available:
                self._fail_readers(file, never_there(file))
            del self.files[file]

    def given_up(self, file: FileState, reason: str) -> None:
        """A file will not be made by anybody: fail who waits for it."""
        self.files.pop(file, None)
        self._fail_readers(file, f"{file.name}, one of its inputs, was made by no task: {reason}")

    def refused(self, task: TaskState, reason: str) -> None:
        """A task was not taken: who reads what it was to make fails, as after a maker that has failed."""
        for name in (task.spec.result, *task.spec.outputs):
            file = self._mind.tables.files.get(name)
            if file is not None and file.producer is None and not file.available:
                file.awaited = False
                self.given_up(file, f"{task.spec.label} was to make it, but {reason}")

    def _fail_readers(self, file: FileState, reason: str) -> None:
        for reader in list(file.consumers):
            self._mind.life.fail(reader, "input missing", {"reason": reason}, b"")

    def circle(self, task: TaskState) -> str:
        """Say how a task would wait for itself; "" if it does not."""
        if not any(file.consumers for file in task.outputs):  # nobody was submitted before it who reads it
            return ""
        seen, stack = {task}, [task]
        while stack:
            reader = stack.pop()
            for file in reader.inputs:
                maker = file.producer
                if maker is None or file.available or maker.state != WAITING:
                    continue
                if maker is task:
                    return _circle(task, reader, file)
                if maker not in seen:
                    seen.add(maker)
                    stack.append(maker)
        return ""

    def missing(self) -> str:
        """Which task waits for whom to be submitted, if nothing else happens."""
        if self._mind.tables.assigned:
            return ""
        for file in list(islice(self.files, LOOK_AT)):
            if file.producer is None and not file.available and file.consumers:
                reader = next(iter(file.consumers)).spec.label
                return f"{reader} waits for a file that no task makes yet ({file.name}): submit the task that has it among its outputs"
            del self.files[file]
        return ""


def _circle(task: TaskState, reader: TaskState, file: FileState) -> str:
    if reader is task:
        return f"{file.name} is made by the same task that reads it, so it cannot begin: declare another file for what it makes"
    return (
        f"{file.name} is made by {task.spec.label} and read by {reader.spec.label}, which {task.spec.label} waits for: "
        "no task of such a circle can begin"
    )


def never_there(file: FileState) -> str:
    """Say that a file was not where it was declared."""
    return (
        f"{file.name}: it did not exist when it was declared, and no submitted task makes it: "
        "check the path, or submit the task that makes it"
    )
