"""What can happen: the records that `Scheduler.handle` takes. The time comes with them, as an argument of `handle`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from vinecore.protocol.messages import Hello, Message
from vinecore.resources.amounts import Resources
from vinecore.scheduler.specs import FileSpec, GraphSpec, LibrarySpec, TaskSpec


class FilesDeclared(NamedTuple):
    """The user has named files."""

    files: list[FileSpec]


class LibraryInstalled(NamedTuple):
    """The user has made a library available."""

    library: LibrarySpec


class LibraryRetired(NamedTuple):
    """Another library has taken the place of this one: it goes when its unfinished calls are over."""

    name: str


class Restarted(NamedTuple):
    """The user wants new processes on all workers."""


class LibraryRemoved(NamedTuple):
    """The user does not need a library any more."""

    name: str


class GraphOpened(NamedTuple):
    """A graph begins to arrive."""

    spec: GraphSpec


class TasksSubmitted(NamedTuple):
    """Tasks, in the order in which they were submitted; their inputs need not exist yet."""

    tasks: list[TaskSpec]


class GraphSubmitted(NamedTuple):
    """The last task of a graph has been submitted."""

    graph: int


class GraphClosed(NamedTuple):
    """Nobody needs this graph any more: cancel what is unfinished, forget its files."""

    graph: int


class TasksCancelled(NamedTuple):
    """The user has cancelled single tasks."""

    tasks: list[int]


class FilesReleased(NamedTuple):
    """The user has undeclared files; ``prune`` keeps their names and only frees replicas that no unfinished task needs."""

    names: list[str]
    prune: bool


class Waited(NamedTuple):
    """The user waits for tasks, after an `instructions.InputsAbsent`: what they read has been submitted before, or is not there."""


class FileRequested(NamedTuple):
    """The user wants the content of a file at the manager."""

    name: str


class SessionResumed(NamedTuple):
    """Should this manager die, another one may go on; and, if one has died before this one, what its journal knows."""

    results: AbstractSet[tuple[str, int, str]] = frozenset()  # as `resume.result_key` returns them
    workers: Sequence[tuple[str, int]] = ()  # machine and process of those that were connected


class WorkersEnded(NamedTuple):
    """Of the workers that a manager before had, those whose processes are over do not come back."""

    workers: Sequence[tuple[str, int]]


class WorkerConnected(NamedTuple):
    """A worker has proved who it is and said hello."""

    worker: int
    host: str  # as the manager sees it
    hello: Hello


class MessageReceived(NamedTuple):
    """A message from a worker."""

    worker: int
    message: Message


class WorkerDisconnected(NamedTuple):
    """A worker's connection has ended."""

    worker: int
    reason: str


class ObjectStored(NamedTuple):
    """An upload is complete: the manager holds the object."""

    name: str
    size: int
    digest: str = ""


class CategorySet(NamedTuple):
    """How much of a worker the tasks of a category get."""

    name: str
    mode: str | None
    maximum: Any  # allocation.Request
    minimum: Any
    first_guess: Any
    slow_factor: float | None = None  # as `Category.slow_factor`
    max_concurrent: int | None = None  # negative for any number
    learned: Mapping[str, bool] | None = None  # which resources are learned from now on, or not any more


class UsageLearned(NamedTuple):
    """What tasks of a category have used in an earlier run."""

    category: str
    measured: Sequence[tuple[Resources, float]]  # with the durations in seconds


class SettingChanged(NamedTuple):
    """A policy number or name has changed."""

    name: str
    value: Any


class HostBlocked(NamedTuple):
    """A host gets no new tasks."""

    host: str
    duration_s: float  # math.inf for no end


class HostUnblocked(NamedTuple):
    """A host gets tasks again; "" for all hosts."""

    host: str


class HostDrained(NamedTuple):
    """The workers of a host leave when they have nothing to do; or they stay, if they have not left yet."""

    host: str
    drain: bool


class WorkersReleased(NamedTuple):
    """Workers are to leave now; what they run runs elsewhere."""

    workers: Sequence[int]
    reason: str


class ShutdownAnnounced(NamedTuple):
    """The user is about to close the manager: nothing is needed any more."""


class Tick(NamedTuple):
    """Drain workers whose time is over soon, and let those go whose grace is over."""


Event = (
    FilesDeclared
    | LibraryInstalled
    | LibraryRemoved
    | LibraryRetired
    | Restarted
    | GraphOpened
    | TasksSubmitted
    | GraphSubmitted
    | GraphClosed
    | TasksCancelled
    | FilesReleased
    | FileRequested
    | Waited
    | SessionResumed
    | WorkersEnded
    | WorkerConnected
    | MessageReceived
    | WorkerDisconnected
    | ObjectStored
    | CategorySet
    | UsageLearned
    | SettingChanged
    | HostBlocked
    | HostUnblocked
    | HostDrained
    | WorkersReleased
    | ShutdownAnnounced
    | Tick
)
