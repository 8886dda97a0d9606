"""The tables of the mind: what is known about tasks, files, workers, libraries and runs.

The ``...Spec`` classes are what the hands put in; the others are records that only the mind changes. A record refers to other records
directly, never through a search. Vocabulary:

missing
    how many of a task's inputs exist nowhere now (neither on a worker nor at the manager)
consumers
    the unfinished tasks that read a file
pending
    how many unfinished tasks there are to keep a file for: its consumers, those that read it as a shared object,
    and, where a run prunes deeper, those behind them
foretold
    how many tasks that will read a file have not been submitted yet
pins
    how many reasons beside tasks there are to keep a file (the user's references, a run that prunes nothing)
level
    how long workers keep a file: `TASK`, until the task is over that needed it; `WORKFLOW`, until nobody can name it; `WORKER` and
    `FOREVER`, longer than there is this manager
released
    nobody can name a file any more: all that is known of it goes when no task needs it
asleep
    a task is entered as done though it has never run: it is woken when somebody needs what it makes and nobody has that
spare
    a reusable file that no task needs now: kept until its room is needed, or a later run asks for it
room
    bytes of a worker's disk that are neither taken by files, nor by files on their way, nor promised to its tasks; objects small enough
    to stay in memory take none
promised
    bytes of disk that are kept free for what a task writes
unproven
    a worker has said that a file is there, and not yet that it is what it should be: other workers may fetch it, tasks there still wait
draining
    a worker will leave: it gets nothing more, and what only it has is brought elsewhere
ahead
    a task was sent to the worker that is making its inputs before they exist
ticket
    what a task is called on its worker; a task that is handed out again gets a new one, so that late news of the
    old one are not mistaken for news of the new one
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from vinecore.core.allocation import UNSPECIFIED, Category, Request, Resources
from vinecore.core.transitions import ASSIGNED, DONE, WAITING
from vinecore.protocol import INLINE_LIMIT

TICKET_SHIFT = 40
MOST_FRONTIER = 1024
TASK, WORKFLOW, WORKER, FOREVER = range(4)
MB = 1 << 20
UNLIMITED = 1 << 62  # of a worker that does not say how much disk it has


class FileSpec(NamedTuple):
    """A file as declared."""

    name: str
    size: int = -1
    at_manager: bool = False  # the hands hold its content, or can read it
    url: str = ""
    archive: str = ""  # the file this one is unpacked from
    directory: bool = False
    peer_transfer: bool = True
    validator: tuple[str, ...] = ()  # of a url: as in `protocol.messages.Fetch`
    digest: str = ""  # of what the manager has
    level: int = WORKFLOW
    awaited: bool = False  # a task will make it, which may be submitted later
    absent: bool = False  # awaited, but it may be a mistake as well: nothing was where it was declared


class LibrarySpec(NamedTuple):
    """A library as installed."""

    name: str
    setup: str  # file with what is loaded before the first fork
    slots: int | None = None  # None: one for each core
    request: Request = UNSPECIFIED
    environment: str = ""
    exec_mode: str = "direct"
    files: tuple[str, ...] = ()  # further files it needs
    options: dict[str, Any] = {}  # noqa: RUF012 - read only, and encoded as it is


class RunSpec(NamedTuple):
    """A graph as it begins."""

    run: int
    label: str = ""
    retries: int = 5
    prune_depth: int = 1
    priority_mode: str = ""
    tell: bool = False  # whether every vertex is reported
    size: int = 0  # how many tasks will be submitted, if that is known
    # whether the name of what a task makes tells of all these things, which it has used; asked for reusable results only
    covers: Callable[[int, list[str]], bool] | None = None


class TaskSpec(NamedTuple):
    """A task as submitted. Fields as in `protocol.messages.Run`."""

    task: int
    label: str
    result: str
    run: int = 0
    library: str = ""
    function: str = ""
    payload: bytes = b""
    shared: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()  # besides the result
    wanted: tuple[str, ...] = ()  # outputs whose content the manager wants
    category: str = "default"
    request: Request = UNSPECIFIED
    priority: float = 0.0  # smaller runs first
    depth: int = 0
    retries: int = 5
    exception_retries: int = 0  # how often it runs again after its function has raised
    python: bool = True  # runs pickled functions, so versions matter
    environment: str = ""
    peer_transfer: bool = True  # whether workers may fetch its outputs from each other
    readers: int = 0  # tasks of the same run that will read its result; known before they are submitted
    asleep: bool = False
    reusable: bool = (
        False  # its result is named after all that it depends on: whoever makes it makes the same
    )
    level: int = TASK  # of its result; below WORKFLOW that is as it was declared
    options: dict[str, Any] = {}  # noqa: RUF012 - read only, and encoded as it is


class File:
    """What is known of one file."""

    __slots__ = ("absent", "archive", "asked", "at_manager", "awaited", "consumers", "digest", "directory", "fetching", "foretold", "level",
                 "name", "peer_transfer", "pending", "pins", "producer", "released", "replicas", "reusable", "size",
                 "stalled", "uploading", "url", "validator", "wanted")  # fmt: skip

    def __init__(self, spec: FileSpec) -> None:
        self.name, self.size, self.at_manager, self.url = spec.name, spec.size, spec.at_manager, spec.url
        self.directory, self.peer_transfer, self.level = spec.directory, spec.peer_transfer, spec.level
        self.validator, self.digest, self.awaited = spec.validator, spec.digest, spec.awaited
        self.absent = spec.absent
        self.archive: File | None = None
        self.producer: Task | None = None
        self.consumers: dict[Task, None] = {}
        # and the digests of what they have; who has a place free to serve it from is near the end
        self.replicas: dict[Worker, str] = {}
        self.fetching: dict[Worker, Worker | str] = {}
        self.stalled: dict[Worker, int] | None = None  # with the bytes it will take there
        self.uploading: Worker | None = None
        self.pending = self.foretold = self.pins = 0
        self.wanted = False  # at the manager
        self.asked = False  # somebody waits to be told that it is there
        self.released = False
        self.reusable = False

    @property
    def available(self) -> bool:
        """Whether a worker could get it now."""
        if self.replicas or self.at_manager or self.url:
            return True
        return self.archive is not None and self.archive.available

    def __repr__(self) -> str:
        return f"<File {self.name} on {[w.id for w in self.replicas]}{' and manager' if self.at_manager else ''}>"


def on_disk(size: int) -> int:
    """Bytes that an object takes on a worker's disk."""
    return size if size > INLINE_LIMIT else 0


def elsewhere(file: File) -> bool:
    """Whether a file can be had from outside of the workers."""
    return file.at_manager or bool(file.url) or (file.archive is not None and elsewhere(file.archive))


def is_root(task: Task) -> bool:
    """Whether nothing that a task reads is made by another one."""
    for file in task.inputs:  # noqa: SIM110 - this is asked for every task
        if file.producer is not None:
            return False
    return True


class Task:
    """What is known of one task."""

    __slots__ = ("ahead", "allocation", "attempts", "bucket", "evidence", "extra_files", "handed", "info", "inputs",
                 "missing", "outputs", "promised", "raised", "remakes", "request", "run", "spec", "state", "told", "wall_s", "worker")  # fmt: skip

    def __init__(self, spec: TaskSpec, run: Run) -> None:
        self.spec, self.run = spec, run
        self.state: str = WAITING
        self.inputs: list[File] = []  # what it reads, and has to exist before it can run
        self.extra_files: list[File] = []  # what many tasks share, and always exists: functions, environments
        self.outputs: list[File] = []
        self.missing = self.attempts = self.raised = self.remakes = self.handed = self.promised = 0
        self.ahead = False
        self.told = False  # its end has been reported: it runs again because its result was lost
        self.wall_s = 0.0
        self.bucket: Bucket
        self.worker: Worker | None = None
        self.request = spec.request
        self.allocation: Resources | None = None
        self.evidence: list[str] | None = None
        self.info: dict[str, Any] | None = (
            None  # what the worker said, while the outputs are being brought; then why it has failed
        )

    def seal(self) -> None:
        """All its files are linked: tuples take half of the memory of lists."""
        self.inputs = tuple(self.inputs)  # type: ignore[assignment]
        self.extra_files = tuple(self.extra_files)  # type: ignore[assignment]
        self.outputs = tuple(self.outputs)  # type: ignore[assignment]

    @property
    def ticket(self) -> int:
        """Its number, and above that how often it has been handed out before."""
        return self.spec.task if self.handed <= 1 else self.spec.task + ((self.handed - 1) << TICKET_SHIFT)

    def __repr__(self) -> str:
        return f"<Task {self.spec.task} {self.spec.label} {self.state}>"


class Library:
    """An installed library."""

    __slots__ = ("failures", "files", "made", "retired", "spec")

    def __init__(self, spec: LibrarySpec) -> None:
        self.spec = spec
        self.failures = 0  # in a row, with no call that succeeded in between
        self.retired = False  # it goes when nothing is left to do for it
        self.files: list[File] = []  # its setup, its environment, further files, and the archives of those
        self.made: list[str] = []  # those of them that tasks make, or that are nowhere: its calls read them


class Instance:
    """A library on a worker."""

    __slots__ = (
        "ahead",
        "allocation",
        "assigned",
        "frontier",
        "library",
        "ready",
        "recalling",
        "slots",
        "unit",
    )

    def __init__(self, library: Library, unit: Resources, slots: int) -> None:
        self.library, self.unit, self.allocation = library, unit, unit
        self.slots = slots
        self.assigned = self.ahead = 0
        self.ready = False
        self.recalling = False  # asked to give calls back, and not answered yet
        # tasks whose successors could not be sent ahead yet
        self.frontier: deque[Task] = deque(maxlen=MOST_FRONTIER)

    @property
    def idle(self) -> bool:
        """Whether it could be stopped without harm."""
        return not self.assigned and not self.ahead


class Bucket:
    """Ready tasks that require the same thing, and the workers that have room for one more of them."""

    __slots__ = ("category", "key", "library", "mean_s", "neighbour", "open", "python", "ready", "request", "roots", "running",
                 "stale", "unfinished")  # fmt: skip

    def __init__(
        self,
        key: tuple[Any, ...],
        library: Library | None,
        category: Category | None,
        request: Request,
        python: bool,
    ) -> None:
        self.key, self.library, self.category, self.request, self.python = (
            key,
            library,
            category,
            request,
            python,
        )
        self.ready: list[tuple[float, int, Task]] = []
        self.roots: list[
            tuple[float, int, Task]
        ] = []  # ready, too: those that read nothing that a task has made
        self.open: dict[Worker, None] = {}
        self.neighbour: Worker | None = None  # who got the last root
        self.mean_s: float | None = None
        self.running = 0
        self.unfinished = 0
        self.stale = 0  # entries of these whose tasks are over

    @property
    def urgent(self) -> list[tuple[float, int, Task]]:
        """The queue with the most urgent task at its front; empty if both are."""
        ready, roots = self.ready, self.roots
        return roots if roots and not (ready and ready[0] < roots[0]) else ready


class Worker:
    """What is known of one connected worker."""

    __slots__ = ("alone_until", "altered", "announcing", "cancel", "data_address", "doubted_by", "draining", "ends_at", "fetching", "files", "free", "host",
                 "id", "joined_at", "lacks", "leaving", "libraries", "missed", "name", "outgoing", "purge", "python", "python_ok", "retain", "room",
                 "shunned", "shunned_until", "spare", "tasks", "total", "unlink", "unproven", "wall_s")  # fmt: skip

    def __init__(
        self,
        number: int,
        host: str,
        hostname: str,
        total: Resources,
        data_address: str,
        python: str,
        now: float,
    ) -> None:
        self.id, self.host, self.name, self.total, self.free = number, host, hostname, total, total
        self.data_address, self.python, self.joined_at = data_address, python, now
        self.python_ok = True
        self.lacks: tuple[str, ...] = ()  # of the packages that its own Python needs
        self.announcing = False  # it looks through what it has from before, and has not told all of it yet
        self.leaving = False  # it has said goodbye: nobody is to blame
        self.draining = False
        self.ends_at: float | None = None  # when it will begin to leave, where that is known
        self.room = total.disk * MB or UNLIMITED
        self.files: dict[File, int] = {}  # with the bytes of disk each takes
        self.altered: set[File] = set()  # of its files those that have arrived somewhere as something else
        self.unproven: dict[File, Worker | str] = {}  # with the sources they came from
        self.fetching: dict[File, int] = {}
        self.spare: dict[
            File, None
        ] = {}  # of its files those that nobody needed at some time, that time's order
        self.tasks: dict[int, Task] = {}  # by ticket
        self.libraries: dict[str, Instance] = {}
        self.outgoing = 0  # transfers that it serves to peers
        self.doubted_by = 0  # whose transfer from it has failed, with none after it that succeeded
        self.shunned_until = 0.0  # when peers may ask it again
        self.shunned = 0  # how often they were told not to, with nothing that succeeded since
        self.missed = 0  # peers that it could not reach, with none since that it could
        self.alone_until = 0.0  # when it may ask peers again
        self.wall_s: float | None = None  # mean duration of tasks here
        self.cancel: list[int] = []  # what it is told at the end of `Mind.handle`
        self.unlink: dict[str, None] = {}
        self.purge: dict[str, None] = {}  # of these, whatever their level
        self.retain: dict[str, tuple[int, str]] = {}  # with their levels and digests

    def __repr__(self) -> str:
        return f"<Worker {self.id} on {self.name}>"


class Run:
    """A graph that is being computed; run 0 holds the tasks that were submitted by themselves."""

    __slots__ = (
        "alone",
        "asleep",
        "closed",
        "complete",
        "done",
        "ended",
        "files",
        "remade",
        "running",
        "spec",
        "tasks",
        "unfinished",
    )

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self.tasks: dict[int, Task] = {}
        self.files: list[File] = []
        self.unfinished = self.done = self.running = self.remade = 0
        self.asleep = 0  # tasks that have not run because nobody needed them to
        self.complete = False  # all its tasks have been submitted
        self.ended = False  # whoever computes it has been told
        self.closed = False
        self.alone = False  # closed, and nobody else needs one of its files


class Tables:
    """All the records."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.files: dict[str, File] = {}
        self.spare: dict[File, None] = {}  # the one that was used last at the end
        self.workers: dict[int, Worker] = {}
        self.libraries: dict[str, Library] = {}
        self.buckets: dict[tuple[Any, ...], Bucket] = {}
        self.categories: dict[str, Category] = {}
        self.category_walls: dict[str, tuple[int, float]] = {}  # count and mean seconds
        self.assigned = 0  # tasks that are on workers
        self.runs: dict[int, Run] = {0: Run(RunSpec(0, prune_depth=0))}


__all__ = ["ASSIGNED", "DONE", "FOREVER", "TASK", "WAITING", "WORKER", "WORKFLOW", "Bucket", "File", "FileSpec", "Instance",
           "Library", "LibrarySpec", "Run", "RunSpec", "Tables", "Task", "TaskSpec", "Worker", "is_root", "on_disk"]  # fmt: skip
