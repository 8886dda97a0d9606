"""The journal of a manager's run: its records, and how they are read.

A journal is a file of JSON lines: the first is a `Journal`, each of the others is one of the records below, by its ``kind``. The page
``docs/journal-format.md`` describes every kind and field. `vinecore.journal.writer` writes it, `read` gives its records, `load` what they add up to.

Examples
--------
>>> for record in read("vine-run-info"):  # doctest: +SKIP
...     if isinstance(record, TaskDone):
...         print(record.task, record.worker, record.wall_s)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union

import msgspec

VERSION = 3
FILE = "journal.jsonl"
MOST_RECENT = "most-recent"
MANAGER = "manager"
ARCHIVE = "archive"

# what is outside of these has been damaged: whoever reckons with the records need not expect it
_MAX_NUMBER = 1 << 62
_MAX_SECONDS = 1e12  # seconds
Number = Annotated[int, msgspec.Meta(ge=-_MAX_NUMBER, le=_MAX_NUMBER)]
Amount = Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)]
Seconds = Annotated[float, msgspec.Meta(ge=-_MAX_SECONDS, le=_MAX_SECONDS)]
Pid = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Cores = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Place = Number | str
"""Where a file comes from or goes to: the number of a worker, "manager", "archive" for what is unpacked there, or an address."""


def record_kind(name: str) -> str:
    """Return the kind of a record from the name of its class."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# a field that no record has is the damaged name of one, which would silently have its default
class Record(
    msgspec.Struct,
    tag_field="kind",
    tag=record_kind,
    omit_defaults=True,
    gc=False,
    forbid_unknown_fields=True,
):
    """What all records have: ``t``, seconds since the journal began."""

    t: Seconds


class Header(Record):
    """The first line."""

    version: Number
    time: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    host: str
    pid: Pid
    manager: str
    port: Port
    daskvine: str
    python: str
    packages: dict[str, str]
    session: str = ""
    resumes: str = ""


class WorkerConnected(Record):
    """A worker is connected."""

    worker: Number
    host: str
    address: str
    python: str
    cores: Cores
    memory_mb: Number
    disk_mb: Number
    gpus: Number = 0
    pid: Pid = 0


class WorkerDisconnected(Record):
    """A worker's connection has ended, and what it had is gone."""

    worker: Number
    reason: str


class LibraryInstalled(Record):
    """A library is available."""

    library: str
    label: str = ""
    slots: Number | None = None
    cores: Amount | None = None
    memory_mb: Number | None = None
    exec_mode: str = "direct"
    files: tuple[str, ...] = ()


class LibraryRemoved(Record):
    """A library is not available any more."""

    library: str


class LibraryStarted(Record):
    """A worker was told to start a library, or to grow it."""

    library: str
    worker: Number
    slots: Number
    cores: Amount


class LibraryReady(Record):
    """A library has started on a worker."""

    library: str
    worker: Number
    seconds: Seconds


class LibraryFailed(Record):
    """A library did not come up on a worker, or has died there."""

    library: str
    worker: Number
    reason: str


class LibraryStopped(Record):
    """A worker was told to stop a library."""

    library: str
    worker: Number


class GraphOpened(Record):
    """A graph begins to arrive."""

    graph: Number
    label: str = ""


class GraphSubmitted(Record):
    """The last task of a graph was submitted."""

    graph: Number


class GraphEnded(Record):
    """A graph is computed, or has failed."""

    graph: Number
    outcome: str
    task: Number = 0
    reason: str = ""


class GraphClosed(Record):
    """Nobody needs a graph any more: what was unfinished is cancelled."""

    graph: Number


class TaskSubmitted(Record):
    """A task is to be done."""

    task: Number
    label: str
    category: str = "default"
    graph: Number = 0
    library: str = ""
    function: str = ""
    inputs: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    result: str = ""
    outputs: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    cores: Amount | None = None
    memory_mb: Number | None = None
    disk_mb: Number | None = None
    gpus: Amount | None = None
    priority: Amount = 0.0
    deferred: bool = False


class TaskActivated(Record):
    """A task that counted as done is to run."""

    task: Number
    rerun: bool = False


class TaskDispatched(Record):
    """A task was sent to a worker."""

    task: Number
    worker: Number
    attempt: Number = 1
    cores: Amount | None = None


class TaskDone(Record):
    """A task has ended well on a worker."""

    task: Number
    worker: Number
    wall_s: Seconds
    size: Number = 0
    attempt: Number = 1
    outputs: dict[str, Number] = {}
    returned: Number = 0
    cpu_s: Seconds | None = None
    memory_mb: Number | None = None
    disk_mb: Number | None = None
    exit_code: Number = 0
    digest: str = ""
    digests: dict[str, str] = {}
    single_use: bool = False


class TaskFailed(Record):
    """A task has not ended well on a worker."""

    task: Number
    worker: Number
    failure: str
    reason: str = ""
    attempt: Number = 1
    wall_s: Seconds | None = None


class TaskReturned(Record):
    """A task has left a worker without having ended there."""

    task: Number
    worker: Number
    reason: str
    attempt: Number = 1


class TaskEnded(Record):
    """A task that was submitted by itself is over, and not well."""

    task: Number
    outcome: str
    reason: str = ""


class FileDeclared(Record):
    """The user has named a file."""

    file: str
    size: Number = -1
    at_manager: bool = False
    url: str = ""
    archive: str = ""
    directory: bool = False
    level: str = "workflow"


class FilesFound(Record):
    """A worker has files from before."""

    worker: Number
    files: tuple[str, ...]
    sizes: tuple[Number, ...]


class FilesRemoved(Record):
    """A worker was told to remove files: nobody needs them there, or their room is needed."""

    worker: Number
    files: tuple[str, ...]


class FilesLost(Record):
    """A worker says that files are damaged or gone."""

    worker: Number
    files: tuple[str, ...]


class ObjectSent(Record):
    """The manager has sent a small object along with its messages."""

    file: str
    destination: Number


class TransferStarted(Record):
    """A file begins to travel."""

    file: str
    source: Place
    destination: Place
    size: Number = -1


class TransferEnded(Record):
    """A file has arrived."""

    file: str
    source: Place
    to: Place
    bytes: Number
    seconds: Seconds
    digest: str = ""


class TransferFailed(Record):
    """A file has not arrived."""

    file: str
    source: Place
    to: Place
    seconds: Seconds
    reason: str = ""


class LogMessage(Record):
    """Something a person should know."""

    level: str
    text: str


class Stalled(Record):
    """Why nothing can run; empty when that is over."""

    text: str


class JournalStopped(Record):
    """The journal ends here, though the run went on."""

    reason: str


class ManagerClosed(Record):
    """The manager has ended."""


RECORDS: tuple[type[Record], ...] = tuple(Record.__subclasses__())

decode_record = msgspec.json.Decoder(Union[RECORDS]).decode  # noqa: UP007 - there is no other way to spell it


class InvalidJournalError(ValueError):
    """What was to be read is no journal, or one of another version."""


# ---- reading


def find(path: str | Path) -> Path:
    """Give the journal that a path means: that file, or the one in that folder, or the most recent one of a ``run_info_path``.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for place in (path / FILE, path / MOST_RECENT / FILE):
        if place.is_file():
            return place
    why = "there is no journal in it" if path.is_dir() else "it does not exist"
    msg = f"{path}: {why}. A manager writes one if it is told where: DaskVine(run_info_path='vine-run-info')"
    raise FileNotFoundError(msg)


def read(
    path: str | Path, *kinds: type[Record], damaged: Callable[[int, str], None] | None = None
) -> Iterator[Record]:
    """Give the records of a journal, in their order, as far as they are written.

    The manager may still be writing, or have died while it did: half a line at the end is left out.

    Parameters
    ----------
    path
        As for `find`.
    *kinds
        Which records, the first one aside; none for all. The others take no time.
    damaged
        Called with the number of each line that is no record, and what is wrong with it; such lines are left out. None makes them an error.

    Raises
    ------
    FileNotFoundError
        There is no journal.
    NotAJournal
        It is something else, or has another version, or its first line is damaged, or another one and nobody is told.
    """
    path = find(path)
    wanted = tuple(b'{"kind":"%s"' % record_kind(kind.__name__).encode() for kind in kinds) or b""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if number == 1:
                yield _parse_header(line, path)
                continue
            if not line.startswith(wanted):
                continue
            try:
                yield decode_record(line)
            except (ValueError, RecursionError) as error:
                what = f"line {number} is not a record of a journal ({error}): {line[:100]!r}"
                if damaged is None:
                    msg = f"{path}, {what}"
                    raise InvalidJournalError(msg) from None
                damaged(number, what)


def _parse_header(line: bytes, path: Path) -> Header:
    said: Any = None
    try:
        said = msgspec.json.decode(line)
        # the first record was of the kind "journal" before version 3
        version = said["version"] if said["kind"] in ("header", "journal") else None
        header = decode_record(line) if version == VERSION else None
    except (ValueError, LookupError, TypeError, RecursionError):
        version = header = None
    if isinstance(header, Header):
        return header
    if version is None or version == VERSION:
        msg = f"{path} is not a journal: its first line is {line[:100]!r}"
        raise InvalidJournalError(msg)
    msg = f"{path} is a journal of version {str(version)[:100]}, and this daskvine reads version {VERSION}: read it with the daskvine that wrote it ({str(said.get('daskvine', 'unknown'))[:100]})"
    raise InvalidJournalError(msg)


# ---- what the records add up to


class Attempt(msgspec.Struct):
    """One stay of a task on a worker.

    Attributes
    ----------
    dispatched, ended : float
        When it was sent there, and when the manager knew that it was over; None if the journal does not say.
    how : str
        "done", "back", the kind of the failure, or "" while it is there.
    wall_s : float or None
        How long it ran; None if nobody has measured that.
    cores : float
        What it had of its worker.
    """

    worker: int
    number: int
    dispatched: float
    cores: float = 1.0
    ended: float | None = None
    outcome: str = ""
    reason: str = ""
    wall_s: float | None = None
    cpu_s: float | None = None
    memory_mb: int | None = None
    exit_code: int = 0

    @property
    def started_at(self) -> float | None:
        """When it began to run, if that is known."""
        if self.ended is None or self.wall_s is None:
            return None
        return max(self.dispatched, self.ended - self.wall_s)


class TaskHistory(msgspec.Struct):
    """What became of a task.

    Attributes
    ----------
    submitted : TaskSubmitted
        As it was submitted.
    woken : int
        How often it was made again because what it had made was lost and needed.
    outcome : str
        "success", the kind of its failure, "cancelled", or "" as long as it is not over.
    """

    submitted: TaskSubmitted
    attempts: list[Attempt] = []
    woken: int = 0
    outcome: str = ""
    reason: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """All files that it makes, its result first."""
        said = self.submitted
        return (said.result, *said.outputs) if said.result else said.outputs

    @property
    def done(self) -> Attempt | None:
        """The last attempt that ended well."""
        for attempt in reversed(self.attempts):
            if attempt.outcome == "done":
                return attempt
        return None


class FileHistory(msgspec.Struct):
    """What is known of a file.

    Attributes
    ----------
    size : int
        Bytes; -1 where nobody has said.
    task : int
        What makes it; 0 for what was declared.
    """

    file: str
    size: int = -1
    task: int = 0
    at_manager: bool = False
    url: str = ""
    archive: str = ""


class WorkerHistory(msgspec.Struct):
    """What became of a worker."""

    joined: WorkerConnected
    lost: WorkerDisconnected | None = None


class GraphHistory(msgspec.Struct):
    """What became of a graph."""

    opened: GraphOpened
    ended: GraphEnded | None = None
    closed: float | None = None
    tasks: int = 0


class History:
    """All that the records of a journal add up to.

    Attributes
    ----------
    journal : Journal
        The first record.
    tasks, files, workers, graphs : dict
        `TaskHistory` by number, `FileHistory` by name, `WorkerHistory` and `GraphHistory` by number.
    transfers : list of TransferEnded
        What has moved, except small objects.
    failed_transfers : list of TransferFailed
        What has not arrived.
    sent : list of ObjectSent
        What the manager has sent along with messages; how large they are is in `files`.
    returned_bytes : int
        What came to the manager in the messages that a task is done.
    others : list of Record
        Notes, libraries, files that were dropped or lost.
    end : float
        The time of the last record.
    closed : bool
        Whether the manager has ended in order.
    damaged : list of str
        What is wrong with the lines that could not be read, where those are left out.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.journal: Header
        self.damaged: list[str] = []
        self.tasks: dict[int, TaskHistory] = {}
        self.files: dict[str, FileHistory] = {}
        self.workers: dict[int, WorkerHistory] = {}
        self.graphs: dict[int, GraphHistory] = {}
        self.transfers: list[TransferEnded] = []
        self.failed_transfers: list[TransferFailed] = []
        self.sent: list[ObjectSent] = []
        self.returned_bytes = 0
        self.others: list[Record] = []
        self.end = 0.0
        self.closed = False
        self._open_attempts: dict[tuple[int, int], Attempt] = {}  # by task and number of the attempt
        self._cores: dict[tuple[int, str], float] = {}  # of one slot of a library
        takers: dict[type[Record], Any] = {
            Header: self._on_header, WorkerConnected: self._on_worker_connected, WorkerDisconnected: self._on_worker_disconnected, GraphOpened: self._on_graph_opened, GraphEnded: self._on_graph_ended,
            GraphClosed: self._on_graph_closed, TaskSubmitted: self._on_task_submitted, TaskActivated: self._on_task_activated, TaskDispatched: self._on_task_dispatched,
            TaskDone: self._on_task_done, TaskFailed: self._on_task_failed, TaskReturned: self._on_task_returned, TaskEnded: self._on_task_ended, FileDeclared: self._on_file_declared,
            FilesFound: self._on_files_found, TransferEnded: self._on_transfer_ended, TransferFailed: self.failed_transfers.append,
            ObjectSent: self.sent.append, LibraryStarted: self._on_library_started, ManagerClosed: self._on_closed,
        }  # fmt: skip
        for record in records:
            takers.get(type(record), self.others.append)(record)
            self.end = record.t

    def file_history(self, name: str) -> FileHistory:
        """Find or make what is known of a file."""
        file = self.files.get(name)
        if file is None:
            file = self.files[name] = FileHistory(name)
        return file

    def _on_header(self, record: Header) -> None:
        self.journal = record

    def _on_closed(self, _record: ManagerClosed) -> None:
        self.closed = True

    def _on_worker_connected(self, record: WorkerConnected) -> None:
        self.workers[record.worker] = WorkerHistory(record)

    def _on_worker_disconnected(self, record: WorkerDisconnected) -> None:
        if record.worker in self.workers:
            self.workers[record.worker].lost = record

    def _on_library_started(self, record: LibraryStarted) -> None:
        self._cores[record.worker, record.library] = record.cores / max(record.slots, 1)
        self.others.append(record)

    def _on_graph_opened(self, record: GraphOpened) -> None:
        self.graphs[record.graph] = GraphHistory(record)

    def _on_graph_ended(self, record: GraphEnded) -> None:
        if record.graph in self.graphs:
            self.graphs[record.graph].ended = record
        task = self.tasks.get(record.task)
        if task is not None:
            task.outcome, task.reason = record.outcome, record.reason

    def _on_graph_closed(self, record: GraphClosed) -> None:
        if record.graph in self.graphs:
            self.graphs[record.graph].closed = record.t

    def _on_task_submitted(self, record: TaskSubmitted) -> None:
        task = self.tasks[record.task] = TaskHistory(record)
        for name in task.outputs:
            self.file_history(name).task = record.task
        if record.graph in self.graphs:
            self.graphs[record.graph].tasks += 1

    def _on_task_activated(self, record: TaskActivated) -> None:
        if record.task in self.tasks:
            self.tasks[record.task].woken += record.rerun

    def _on_task_dispatched(self, record: TaskDispatched) -> None:
        task = self.tasks.get(record.task)
        if task is None:
            return
        cores = record.cores
        if cores is None:
            cores = self._cores.get((record.worker, task.submitted.library), 1.0)
        attempt = Attempt(record.worker, record.attempt, record.t, cores)
        task.attempts.append(attempt)
        self._open_attempts[record.task, record.attempt] = attempt

    def _end_attempt(
        self, record: TaskDone | TaskFailed | TaskReturned, how: str, reason: str
    ) -> Attempt | None:
        attempt = self._open_attempts.pop((record.task, record.attempt), None)
        if attempt is not None:
            attempt.ended, attempt.outcome, attempt.reason = record.t, how, reason
        return attempt

    def _on_task_done(self, record: TaskDone) -> None:
        self.returned_bytes += record.returned
        task = self.tasks.get(record.task)
        attempt = self._end_attempt(record, "done", "")
        if attempt is not None:
            attempt.wall_s, attempt.cpu_s, attempt.memory_mb = record.wall_s, record.cpu_s, record.memory_mb
            attempt.exit_code = record.exit_code
        if task is not None:
            task.outcome = "success"
            if task.submitted.result:
                self.file_history(task.submitted.result).size = record.size
        for name, size in record.outputs.items():
            self.file_history(name).size = size

    def _on_task_failed(self, record: TaskFailed) -> None:
        attempt = self._end_attempt(record, record.failure, record.reason)
        if attempt is not None:
            attempt.wall_s = record.wall_s

    def _on_task_returned(self, record: TaskReturned) -> None:
        self._end_attempt(record, "back", record.reason)

    def _on_task_ended(self, record: TaskEnded) -> None:
        task = self.tasks.get(record.task)
        if task is not None:
            task.outcome, task.reason = record.outcome, record.reason

    def _on_file_declared(self, record: FileDeclared) -> None:
        file = self.file_history(record.file)
        file.size = max(file.size, record.size)
        file.at_manager |= record.at_manager
        file.url, file.archive = record.url or file.url, record.archive or file.archive

    def _on_files_found(self, record: FilesFound) -> None:
        for name, size in zip(record.files, record.sizes, strict=False):  # a line may be damaged
            self.file_history(name).size = size
        self.others.append(record)

    def _on_transfer_ended(self, record: TransferEnded) -> None:
        self.transfers.append(record)
        file = self.file_history(record.file)
        file.size = max(file.size, record.bytes)


def load(path: str | Path, *, damaged_too: bool = False) -> History:
    """Read a journal and add up its records.

    Parameters
    ----------
    path
        As for `find`.
    damaged_too
        Whether one with damaged lines is read as well, as if these had never been written; `History.damaged` has them.

    Raises
    ------
    FileNotFoundError, NotAJournal
        As `read`.
    """
    damaged: list[str] = []
    history = History(
        read(path, damaged=(lambda _number, what: damaged.append(what)) if damaged_too else None)
    )
    if not hasattr(history, "journal"):
        msg = f"{path} is empty: its manager was killed while it began, or its disk was full"
        raise InvalidJournalError(msg)
    history.damaged = damaged
    return history
