"""Files that tasks read before it is known which task makes them.

A task may be submitted before the one that makes its input: it waits. What was declared to be made by some task is waited for
until a task with that output is submitted, or it is undeclared. A path where nothing was may be a mistake, too: it is waited for
only until the user waits. What was never declared, or had a content once, is not waited for. Neither does a task wait for what is
made of its own output.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from vinecore.scheduler.instructions import InputsAbsent
from vinecore.scheduler.transitions import WAITING

if TYPE_CHECKING:
    from vinecore.scheduler.lifecycle import TaskLifecycle
    from vinecore.scheduler.outbox import Outbox
    from vinecore.scheduler.state import FileState, SchedulerState, TaskState


LOOK_AT = 16


class MissingFiles:
    """Knows which files are waited for that no task makes yet.

    Attributes
    ----------
    awaited : dict of FileState
        Those files.
    user_notified : bool
        Whether the user was notified of absent inputs since the last wait.
    """

    def __init__(self, state: SchedulerState, outbox: Outbox, tasks: TaskLifecycle) -> None:
        self._state = state
        self._outbox = outbox
        self._tasks = tasks
        self.awaited: dict[FileState, None] = {}
        self.user_notified = False

    def may_wait_for(self, file: FileState) -> bool:
        """Return whether a task may wait for a file that is nowhere and that no task makes."""
        if not file.awaited or file.pin_count <= 0:
            return False
        self.awaited[file] = None
        if file.absent and not self.user_notified:
            self.user_notified = True
            self._outbox.emit(InputsAbsent())
        return True

    def on_user_waits(self) -> None:
        """Fail readers of paths where nothing was: what makes them would have been submitted by now."""
        self.user_notified = False
        for file in [file for file in self.awaited if file.absent]:
            if file.producer is None and not file.available:
                self._fail_readers(file, never_there(file))
            del self.awaited[file]

    def fail_readers_of_abandoned(self, file: FileState, reason: str) -> None:
        """Fail the tasks that wait for a file that no task will make."""
        self.awaited.pop(file, None)
        self._fail_readers(file, f"{file.name}, one of its inputs, was made by no task: {reason}")

    def fail_readers_of_rejected(self, task: TaskState, reason: str) -> None:
        """Fail the readers of what a rejected task was to make, as after one that has failed."""
        for name in (task.spec.result, *task.spec.outputs):
            file = self._state.files.get(name)
            if file is not None and file.producer is None and not file.available:
                file.awaited = False
                self.fail_readers_of_abandoned(file, f"{task.spec.label} was to make it, but {reason}")

    def _fail_readers(self, file: FileState, reason: str) -> None:
        for reader in list(file.consumers):
            self._tasks.fail(reader, "input missing", {"reason": reason}, b"")

    def reject_without_library(self, task: TaskState) -> None:
        """Reject a task whose library is not installed."""
        name = task.spec.library
        reason = f"library {name} is not installed"
        self._tasks.reject(task, "library", {"reason": reason, "library": name})
        self.fail_readers_of_rejected(task, reason)

    def describe_circle(self, task: TaskState) -> str:
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

    def stalled_reason(self) -> str:
        """Return which task waits for another one to be submitted, if nothing else happens."""
        if self._state.assigned:
            return ""
        for file in list(islice(self.awaited, LOOK_AT)):
            if file.producer is None and not file.available and file.consumers:
                reader = next(iter(file.consumers)).spec.label
                return f"{reader} waits for a file that no task makes yet ({file.name}): submit the task that has it among its outputs"
            del self.awaited[file]
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
