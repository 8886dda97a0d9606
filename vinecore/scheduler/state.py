"""The records of the scheduler: what is known about tasks, files, workers, libraries and graphs.

The ``...Spec`` classes in `specs` are what the user puts in; the classes here are records that only the scheduler changes. A record
refers to other records directly, never through a search. Fields whose names need more words:

`TaskState.missing_inputs`
    how many of a task's inputs exist nowhere now (neither on a worker nor at the manager)
`TaskState.chained`
    the task was sent to the worker that is making its inputs before they exist
`TaskState.dispatch_id`
    what a task is called on its worker; a task that is handed out again gets a new one, so that late messages about the old
    attempt are not mistaken for messages about the new one
`TaskState.reserved_disk`
    bytes of disk that are kept free for what a task writes
`FileState.consumers`
    the unfinished tasks that read a file
`FileState.pending_readers`
    how many unfinished tasks there are to keep a file for: its consumers, those that read it as a shared object, and, where a
    graph prunes deeper, those behind them
`FileState.unsubmitted_readers`
    how many tasks that will read a file have not been submitted yet
`FileState.pin_count`
    how many reasons beside tasks there are to keep a file (the user's references, a graph that prunes nothing)
`FileState.level`
    how long workers keep a file: see `specs`
`FileState.released`
    the file cannot be named any more: all that is known of it goes when no task needs it
`FileState.reusable`
    workers keep the file when no task needs it, until its room is needed: it is evictable then
`WorkerState.free_disk`
    bytes that are neither taken by files, nor by files on their way, nor reserved by tasks; objects small enough to stay in
    memory take none
`WorkerState.unverified`
    files that are on the worker and not yet known to be what they should be: other workers may fetch them, tasks there still wait
`WorkerState.draining`
    the worker will leave: it gets nothing more, and what only it has is brought elsewhere
`WorkerState.closed`
    the worker gets no new tasks: it is draining, or the user has blocked its host
`GraphState.deferred`
    tasks that are entered as done though they have never run: they run when what they make is needed and nowhere
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from vinecore.protocol import INLINE_LIMIT
from vinecore.resources.amounts import ResourceRequest, Resources
from vinecore.resources.categories import Category
from vinecore.scheduler.counters import Counters
from vinecore.scheduler.specs import FileSpec, GraphSpec, LibrarySpec, PlacementConditions, TaskSpec
from vinecore.scheduler.task_accounts import TaskAccounts
from vinecore.scheduler.transitions import WAITING, next_state
from vinecore.scheduler.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

DISPATCH_ID_SHIFT = 40
MAX_CHAIN_CANDIDATES = 1024
MB = 1 << 20
UNLIMITED = 1 << 62  # of a worker that does not say how much disk it has


class FileState:
    """What is known of one file."""

    __slots__ = (
        "absent",
        "archive",
        "at_manager",
        "awaited",
        "consumers",
        "digest",
        "directory",
        "fetching",
        "level",
        "name",
        "peer_transfer",
        "pending_readers",
        "pin_count",
        "producer",
        "released",
        "replicas",
        "requested",
        "reusable",
        "size",
        "unsubmitted_readers",
        "uploading",
        "url",
        "validator",
        "waiting_for_source",
        "wanted_at_manager",
    )  # fmt: skip

    def __init__(self, spec: FileSpec) -> None:
        self.name, self.size, self.at_manager, self.url = spec.name, spec.size, spec.at_manager, spec.url
        self.directory, self.peer_transfer, self.level = spec.directory, spec.peer_transfer, spec.level
        self.validator, self.digest, self.awaited = spec.validator, spec.digest, spec.awaited
        self.absent = spec.absent
        self.archive: FileState | None = None
        self.producer: TaskState | None = None
        self.consumers: dict[TaskState, None] = {}
        # with the digests of what they have; holders that have a place free to serve it stand near the end
        self.replicas: dict[WorkerState, str] = {}
        self.fetching: dict[WorkerState, WorkerState | str] = {}
        self.waiting_for_source: dict[WorkerState, int] | None = None  # with the bytes it will take there
        self.uploading: WorkerState | None = None
        self.pending_readers = self.unsubmitted_readers = self.pin_count = 0
        self.wanted_at_manager = False  # at the manager
        self.requested = False  # the user waits to be told that it is there
        self.released = False
        self.reusable = False

    @property
    def available(self) -> bool:
        """Return whether a worker could get it now."""
        if self.replicas or self.at_manager or self.url:
            return True
        return self.archive is not None and self.archive.available

    def __repr__(self) -> str:
        return f"<File {self.name} on {[w.id for w in self.replicas]}{' and manager' if self.at_manager else ''}>"


def disk_bytes(size: int) -> int:
    """Bytes that an object takes on a worker's disk."""
    return size if size > INLINE_LIMIT else 0


def available_outside_workers(file: FileState) -> bool:
    """Return whether a file can be had from outside of the workers."""
    return (
        file.at_manager
        or bool(file.url)
        or (file.archive is not None and available_outside_workers(file.archive))
    )


def is_root(task: TaskState) -> bool:
    """Return whether nothing that a task reads is made by another one."""
    for file in task.inputs:  # noqa: SIM110 - this is asked for every task
        if file.producer is not None:
            return False
    return True


class TaskState:
    """What is known of one task."""

    __slots__ = (
        "accounts",
        "allocation",
        "attempts",
        "chained",
        "dispatch_count",
        "dispatched_at",
        "extra_files",
        "failure_history",
        "graph",
        "info",
        "inputs",
        "missing_inputs",
        "outputs",
        "queue",
        "raised",
        "recomputations",
        "reported",
        "request",
        "reserved_disk",
        "spec",
        "state",
        "wall_s",
        "worker",
    )  # fmt: skip

    def __init__(self, spec: TaskSpec, graph: GraphState) -> None:
        self.spec, self.graph = spec, graph
        self.state: str = WAITING
        self.inputs: list[FileState] = []  # what it reads, and has to exist before it can run
        self.extra_files: list[
            FileState
        ] = []  # what many tasks share, and always exists: functions, environments
        self.outputs: list[FileState] = []
        self.missing_inputs = self.attempts = self.raised = self.recomputations = self.dispatch_count = (
            self.reserved_disk
        ) = 0
        self.chained = False
        self.reported = False  # its end has been reported: it runs again because its result was lost
        self.wall_s = self.dispatched_at = 0.0
        self.accounts: TaskAccounts | None = None
        self.queue: TaskQueue
        self.worker: WorkerState | None = None
        self.request = spec.request
        self.allocation: Resources | None = None
        self.failure_history: list[str] | None = None
        # what the worker said, while the outputs are being brought; then why it has failed
        self.info: dict[str, Any] | None = None

    def freeze(self) -> None:
        """All its files are linked: tuples take half of the memory of lists."""
        self.inputs = tuple(self.inputs)  # type: ignore[assignment]
        self.extra_files = tuple(self.extra_files)  # type: ignore[assignment]
        self.outputs = tuple(self.outputs)  # type: ignore[assignment]

    def transition(self, event: str) -> None:
        """Change the state as the table says."""
        self.state = next_state(self.state, event)

    def open_accounts(self) -> TaskAccounts:
        """Return its accounts, which are opened when they are needed first."""
        if self.accounts is None:
            self.accounts = TaskAccounts()
        return self.accounts

    def mark_deferred(self) -> None:
        """Count what it has made on demand, and what is not needed now, as if it had never run."""
        self.recomputations = -1
        self.graph.deferred += 1

    @property
    def dispatch_id(self) -> int:
        """Its number, and above that how often it has been handed out before."""
        return (
            self.spec.task
            if self.dispatch_count <= 1
            else self.spec.task + ((self.dispatch_count - 1) << DISPATCH_ID_SHIFT)
        )

    def __repr__(self) -> str:
        return f"<Task {self.spec.task} {self.spec.label} {self.state}>"


class LibraryState:
    """An installed library."""

    __slots__ = ("failures", "files", "made", "retired", "spec")

    def __init__(self, spec: LibrarySpec) -> None:
        self.spec = spec
        self.failures = 0  # in a row, with no call that succeeded in between
        self.retired = False  # it goes when nothing is left to do for it
        self.files: list[
            FileState
        ] = []  # its setup, its environment, further files, and the archives of those
        self.made: list[str] = []  # those of them that tasks make, or that are nowhere: its calls read them


class LibraryInstance:
    """A library on a worker."""

    __slots__ = (
        "allocation",
        "allocation_unit",
        "assigned",
        "chain_candidates",
        "chained",
        "library",
        "ready",
        "slots",
        "steal_pending",
    )

    def __init__(self, library: LibraryState, unit: Resources, slots: int) -> None:
        self.library, self.allocation_unit, self.allocation = library, unit, unit
        self.slots = slots
        self.assigned = self.chained = 0
        self.ready = False
        self.steal_pending = False  # asked to give calls back, and not answered yet
        # tasks whose successors could not be sent ahead yet
        self.chain_candidates: deque[TaskState] = deque(maxlen=MAX_CHAIN_CANDIDATES)

    @property
    def idle(self) -> bool:
        """Return whether it could be stopped without harm."""
        return not self.assigned and not self.chained


class TaskQueue:
    """Ready tasks that require the same thing, and the workers that have room for one more of them."""

    __slots__ = (
        "category",
        "conditions",
        "key",
        "last_root_worker",
        "library",
        "mean_s",
        "python",
        "ready",
        "request",
        "roots",
        "running",
        "stale_entries",
        "unfinished",
        "workers_with_room",
    )  # fmt: skip

    def __init__(
        self,
        key: tuple[Any, ...],
        library: LibraryState | None,
        category: Category | None,
        request: ResourceRequest,
        python: bool,
        conditions: PlacementConditions | None = None,
    ) -> None:
        self.key, self.library, self.category, self.request, self.python = (
            key,
            library,
            category,
            request,
            python,
        )
        self.conditions = conditions
        self.ready: list[tuple[float, int, TaskState]] = []
        self.roots: list[
            tuple[float, int, TaskState]
        ] = []  # ready, too: those that read nothing that a task has made
        self.workers_with_room: dict[WorkerState, None] = {}
        self.last_root_worker: WorkerState | None = None  # who got the last root
        self.mean_s: float | None = None
        self.running = 0
        self.unfinished = 0
        self.stale_entries = 0  # entries of these whose tasks are over

    @property
    def front(self) -> list[tuple[float, int, TaskState]]:
        """The queue with the most urgent task at its front; empty if both are."""
        ready, roots = self.ready, self.roots
        return roots if roots and not (ready and ready[0] < roots[0]) else ready


class WorkerState:
    """What is known of one connected worker."""

    __slots__ = (
        "cancel",
        "closed",
        "corrupt",
        "data_address",
        "disconnecting",
        "draining",
        "ends_at",
        "evictable",
        "excluded_until",
        "failed_reader",
        "features",
        "fetching",
        "files",
        "free",
        "free_disk",
        "host",
        "id",
        "inventory_pending",
        "joined_at",
        "libraries",
        "missing_packages",
        "name",
        "outgoing",
        "peer_failures",
        "peers_excluded_until",
        "purge",
        "python",
        "python_ok",
        "retain",
        "tasks",
        "total",
        "unlink",
        "unreachable_peers",
        "unverified",
        "wall_s",
    )  # fmt: skip

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
        self.features: frozenset[str] = frozenset()
        self.missing_packages: tuple[str, ...] = ()  # of the packages that its own Python needs
        # it looks through what it has from before, and has not told all of it yet
        self.inventory_pending = False
        self.disconnecting = False  # it has announced that it leaves: no task is to blame
        self.draining = self.closed = False
        self.ends_at: float | None = None  # when it will begin to leave, where that is known
        self.free_disk = total.disk * MB or UNLIMITED
        self.files: dict[FileState, int] = {}  # with the bytes of disk each takes
        # of its files those that have arrived somewhere as something else
        self.corrupt: set[FileState] = set()
        self.unverified: dict[FileState, WorkerState | str] = {}  # with the sources they came from
        self.fetching: dict[FileState, int] = {}
        self.evictable: dict[
            FileState, None
        ] = {}  # of its files those that no task needed at some time, in order of that time
        self.tasks: dict[int, TaskState] = {}  # by dispatch id
        self.libraries: dict[str, LibraryInstance] = {}
        self.outgoing = 0  # transfers that it serves to peers
        # a worker whose transfer from it has failed, with none after it that succeeded
        self.failed_reader = 0
        self.excluded_until = 0.0  # when peers may ask it again
        self.peer_failures = 0  # how often they were told not to, with nothing that succeeded since
        self.unreachable_peers = 0  # peers that it could not reach, with none since that it could
        self.peers_excluded_until = 0.0  # when it may ask peers again
        self.wall_s: float | None = None  # mean duration of tasks here
        self.cancel: list[int] = []  # what it is told at the end of `Scheduler.handle`
        self.unlink: dict[str, None] = {}
        self.purge: dict[str, None] = {}  # of these, whatever their level
        self.retain: dict[str, tuple[int, str]] = {}  # with their levels and digests

    def __repr__(self) -> str:
        return f"<Worker {self.id} on {self.name}>"


class GraphState:
    """A graph that is being computed; run 0 holds the tasks that were submitted by themselves."""

    __slots__ = (
        "closed",
        "deferred",
        "done",
        "ended",
        "files",
        "recomputed",
        "running",
        "spec",
        "submitted",
        "tasks",
        "unfinished",
        "unshared",
    )

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec
        self.tasks: dict[int, TaskState] = {}
        self.files: list[FileState] = []
        self.unfinished = self.done = self.running = self.recomputed = 0
        self.deferred = 0  # tasks that have not run because their results were not needed
        self.submitted = False  # all its tasks have been submitted
        self.ended = False  # its end has been reported
        self.closed = False
        self.unshared = False  # closed, and none of its files is needed elsewhere


class Reservation:
    """Which worker is kept for the tasks of which queue.

    Attributes
    ----------
    worker, queue
        None and None if no worker is kept.
    starving
        The queue with the most urgent task that no worker had room for; None if there is none.
    """

    __slots__ = ("queue", "starving", "worker")

    def __init__(self) -> None:
        self.worker: WorkerState | None = None
        self.queue: TaskQueue | None = None
        self.starving: TaskQueue | None = None

    def excludes(self, worker: WorkerState, queue: TaskQueue) -> bool:
        """Return whether a worker is kept for another queue than this one."""
        return worker is self.worker and queue is not self.queue


class SchedulerState:
    """All records, and what else several parts of the scheduler share.

    Parameters
    ----------
    python
        Major and minor version of the Python that pickles the functions.
    required_packages
        Packages without which a worker's own Python can run none of them.

    Attributes
    ----------
    tuning : Tuning
        The parameters of `Manager.tune`.
    holds_tasks : bool
        No task is placed before as many workers are connected as ``wait-for-workers`` says.
    evictable : dict of FileState
        Reusable files that no task needs now; the one that was used last stands at the end.
    assigned : int
        Tasks that are on workers.
    expected_workers : int or None
        How many workers there will ever be, where that is known.
    start_failure : str
        Why the program of the manager can start no worker; "" if it can, or starts none.
    disk_tracked : bool
        There are files that are not small: as long as there are none disk is not counted.
    draining_changed : dict of WorkerState
        Workers that are leaving and for which something has changed.
    known_results : set
        What a manager made that this one goes on for; see `resume`.
    """

    def __init__(self, python: str = "", required_packages: tuple[str, ...] = ()) -> None:
        self.python, self.required_packages = python, required_packages
        self.tuning = Tuning()
        self.now = 0.0
        self.holds_tasks = False
        self.moved_bytes = 0
        self.expected_workers: int | None = None
        self.start_failure = ""
        self.tasks: dict[int, TaskState] = {}
        self.files: dict[str, FileState] = {}
        self.evictable: dict[FileState, None] = {}
        self.workers: dict[int, WorkerState] = {}
        self.libraries: dict[str, LibraryState] = {}
        self.queues: dict[tuple[Any, ...], TaskQueue] = {}
        self.categories: dict[str, Category] = {}
        self.category_walls: dict[str, tuple[int, float]] = {}  # count and mean seconds
        self.assigned = 0
        self.graphs: dict[int, GraphState] = {0: GraphState(GraphSpec(0, prune_depth=0))}
        self.reservation = Reservation()
        self.disk_tracked = False
        self.draining_changed: dict[WorkerState, None] = {}
        self.known_results: AbstractSet[tuple[str, int, str]] = frozenset()
        self.counters = Counters()
        # tasks that exceed their resources are ended
        self.enforces_limits = True

    def find_or_create_file(self, name: str) -> FileState:
        """Return the record of a file; make one if there is none."""
        file = self.files.get(name)
        if file is None:
            file = self.files[name] = FileState(FileSpec(name))
        return file

    def all_expected_workers_connected(self) -> bool:
        """Return whether all workers that there will ever be are connected."""
        return self.expected_workers is not None and len(self.workers) >= self.expected_workers
