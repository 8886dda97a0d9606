"""What the scheduler has the server do: small records, carried out in order."""

from __future__ import annotations

from typing import Any, NamedTuple

from vinecore.protocol.messages import Message
from vinecore.scheduler.task_accounts import TaskAccounts

INFO, WARNING = 20, 30
"""Levels of a `LogMessage`, as `logging` has them."""


class Send(NamedTuple):
    """Send a message to a worker."""

    worker: int
    message: Message


class SendObject(NamedTuple):
    """Send a small object that the manager holds to a worker."""

    worker: int
    name: str


class StoreObject(NamedTuple):
    """Hold the content of this object."""

    name: str
    payload: bytes


class AppendOutput(NamedTuple):
    """Write what a running task has appended to an output to where its user wants that."""

    name: str
    offset: int
    payload: bytes


class DropObject(NamedTuple):
    """The content of this object is not needed at the manager any more."""

    name: str


class TaskFinished(NamedTuple):
    """A task that was submitted by itself is over.

    ``outcome`` is "success" or the kind of failure; ``info`` and ``payload`` are what the worker said.
    Times are those of the scheduler's clock.
    """

    task: int
    outcome: str
    worker: int
    info: dict[str, Any]
    payload: bytes
    dispatched_at: float = 0.0  # of the last attempt; 0.0 if there was none
    ended_at: float = 0.0
    wall_s: float = 0.0  # of the last attempt that has succeeded
    sent_bytes: int = 0  # of its arguments
    accounts: TaskAccounts | None = None


class GraphTaskFinished(NamedTuple):
    """A vertex of a graph is over: one with a message, or any of a graph that asked to be told."""

    graph: int
    task: int
    worker: int
    info: dict[str, Any]  # what the worker said


class SingleUse(NamedTuple):
    """What a task has made is not to be used by a later graph: it has used something that its name does not tell of."""

    task: int


class TaskActivated(NamedTuple):
    """A task that counts as done is to run: for the first time, or again, because what it made was lost."""

    task: int
    again: bool


class GraphFinished(NamedTuple):
    """All tasks of a graph are done and its wanted files are at the manager; or it has failed."""

    graph: int
    outcome: str  # "success" or the kind of the failure
    task: int  # the one that failed
    info: dict[str, Any]
    payload: bytes


class FileAvailable(NamedTuple):
    """The content of a file that was wanted is at the manager; ``reason`` says why not."""

    name: str
    reason: str


class InputsAbsent(NamedTuple):
    """Tasks read files that were not there when they were declared, and that no task makes yet: say `events.Waited` as soon as the user waits."""


class LibraryStarted(NamedTuple):
    """A library has started on a worker, which has these versions of packages that matter to pickles."""

    worker: int
    library: str
    versions: dict[str, str]


class Disconnect(NamedTuple):
    """End a worker's connection."""

    worker: int
    reason: str


class LogMessage(NamedTuple):
    """Something a person should know. The levels are `INFO` and `WARNING`."""

    level: int
    text: str


class Stalled(NamedTuple):
    """Why nothing can run now; "" when that is over."""

    text: str


Instruction = (
    Send
    | SendObject
    | StoreObject
    | AppendOutput
    | DropObject
    | TaskFinished
    | GraphTaskFinished
    | SingleUse
    | TaskActivated
    | GraphFinished
    | FileAvailable
    | InputsAbsent
    | LibraryStarted
    | Disconnect
    | LogMessage
    | Stalled
)
