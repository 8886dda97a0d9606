"""What the records of a journal add up to: tasks with their attempts, files, workers and graphs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from vinecore.journal.reader import InvalidJournalError, read
from vinecore.journal.records import (
    FileDeclaredRecord,
    FilesFoundRecord,
    GraphClosedRecord,
    GraphEndedRecord,
    GraphOpenedRecord,
    Header,
    LibraryStartedRecord,
    ManagerClosedRecord,
    ObjectSentRecord,
    Record,
    TaskActivatedRecord,
    TaskDispatchedRecord,
    TaskDoneRecord,
    TaskEndedRecord,
    TaskFailedRecord,
    TaskReturnedRecord,
    TaskSubmittedRecord,
    TransferEndedRecord,
    TransferFailedRecord,
    WorkerConnectedRecord,
    WorkerDisconnectedRecord,
)

# ---- what the records add up to


class Attempt(msgspec.Struct):
    """One dispatch of a task to a worker.

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
    submitted : TaskSubmittedRecord
        As it was submitted.
    reruns : int
        How often it was made again because what it had made was lost and needed.
    outcome : str
        "success", the kind of its failure, "cancelled", or "" as long as it is not over.
    """

    submitted: TaskSubmittedRecord
    attempts: list[Attempt] = []
    reruns: int = 0
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

    joined: WorkerConnectedRecord
    lost: WorkerDisconnectedRecord | None = None


class GraphHistory(msgspec.Struct):
    """A graph, and when and how it ended."""

    opened: GraphOpenedRecord
    ended: GraphEndedRecord | None = None
    closed: float | None = None
    tasks: int = 0


class History:
    """What the records of a journal add up to.

    Attributes
    ----------
    journal : Header
        The first record.
    tasks, files, workers, graphs : dict
        `TaskHistory` by number, `FileHistory` by name, `WorkerHistory` and `GraphHistory` by number.
    transfers : list of TransferEndedRecord
        What has moved, except small objects.
    failed_transfers : list of TransferFailedRecord
        What has not arrived.
    sent : list of ObjectSentRecord
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
        self.transfers: list[TransferEndedRecord] = []
        self.failed_transfers: list[TransferFailedRecord] = []
        self.sent: list[ObjectSentRecord] = []
        self.returned_bytes = 0
        self.others: list[Record] = []
        self.end = 0.0
        self.closed = False
        self._open_attempts: dict[tuple[int, int], Attempt] = {}  # by task and number of the attempt
        self._cores: dict[tuple[int, str], float] = {}  # of one slot of a library
        handlers: dict[type[Record], Any] = {
            Header: self._on_header, WorkerConnectedRecord: self._on_worker_connected, WorkerDisconnectedRecord: self._on_worker_disconnected, GraphOpenedRecord: self._on_graph_opened, GraphEndedRecord: self._on_graph_ended,
            GraphClosedRecord: self._on_graph_closed, TaskSubmittedRecord: self._on_task_submitted, TaskActivatedRecord: self._on_task_activated, TaskDispatchedRecord: self._on_task_dispatched,
            TaskDoneRecord: self._on_task_done, TaskFailedRecord: self._on_task_failed, TaskReturnedRecord: self._on_task_returned, TaskEndedRecord: self._on_task_ended, FileDeclaredRecord: self._on_file_declared,
            FilesFoundRecord: self._on_files_found, TransferEndedRecord: self._on_transfer_ended, TransferFailedRecord: self.failed_transfers.append,
            ObjectSentRecord: self.sent.append, LibraryStartedRecord: self._on_library_started, ManagerClosedRecord: self._on_closed,
        }  # fmt: skip
        for record in records:
            handlers.get(type(record), self.others.append)(record)
            self.end = record.t

    def file_history(self, name: str) -> FileHistory:
        """Return the history of a file; create it if the journal has not named it before."""
        file = self.files.get(name)
        if file is None:
            file = self.files[name] = FileHistory(name)
        return file

    def _on_header(self, record: Header) -> None:
        self.journal = record

    def _on_closed(self, _record: ManagerClosedRecord) -> None:
        self.closed = True

    def _on_worker_connected(self, record: WorkerConnectedRecord) -> None:
        self.workers[record.worker] = WorkerHistory(record)

    def _on_worker_disconnected(self, record: WorkerDisconnectedRecord) -> None:
        if record.worker in self.workers:
            self.workers[record.worker].lost = record

    def _on_library_started(self, record: LibraryStartedRecord) -> None:
        self._cores[record.worker, record.library] = record.cores / max(record.slots, 1)
        self.others.append(record)

    def _on_graph_opened(self, record: GraphOpenedRecord) -> None:
        self.graphs[record.graph] = GraphHistory(record)

    def _on_graph_ended(self, record: GraphEndedRecord) -> None:
        if record.graph in self.graphs:
            self.graphs[record.graph].ended = record
        task = self.tasks.get(record.task)
        if task is not None:
            task.outcome, task.reason = record.outcome, record.reason

    def _on_graph_closed(self, record: GraphClosedRecord) -> None:
        if record.graph in self.graphs:
            self.graphs[record.graph].closed = record.t

    def _on_task_submitted(self, record: TaskSubmittedRecord) -> None:
        task = self.tasks[record.task] = TaskHistory(record)
        for name in task.outputs:
            self.file_history(name).task = record.task
        if record.graph in self.graphs:
            self.graphs[record.graph].tasks += 1

    def _on_task_activated(self, record: TaskActivatedRecord) -> None:
        if record.task in self.tasks:
            self.tasks[record.task].reruns += record.rerun

    def _on_task_dispatched(self, record: TaskDispatchedRecord) -> None:
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
        self, record: TaskDoneRecord | TaskFailedRecord | TaskReturnedRecord, how: str, reason: str
    ) -> Attempt | None:
        attempt = self._open_attempts.pop((record.task, record.attempt), None)
        if attempt is not None:
            attempt.ended, attempt.outcome, attempt.reason = record.t, how, reason
        return attempt

    def _on_task_done(self, record: TaskDoneRecord) -> None:
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

    def _on_task_failed(self, record: TaskFailedRecord) -> None:
        attempt = self._end_attempt(record, record.failure, record.reason)
        if attempt is not None:
            attempt.wall_s = record.wall_s

    def _on_task_returned(self, record: TaskReturnedRecord) -> None:
        self._end_attempt(record, "back", record.reason)

    def _on_task_ended(self, record: TaskEndedRecord) -> None:
        task = self.tasks.get(record.task)
        if task is not None:
            task.outcome, task.reason = record.outcome, record.reason

    def _on_file_declared(self, record: FileDeclaredRecord) -> None:
        file = self.file_history(record.file)
        file.size = max(file.size, record.size)
        file.at_manager |= record.at_manager
        file.url, file.archive = record.url or file.url, record.archive or file.archive

    def _on_files_found(self, record: FilesFoundRecord) -> None:
        for name, size in zip(record.files, record.sizes, strict=False):  # a line may be damaged
            self.file_history(name).size = size
        self.others.append(record)

    def _on_transfer_ended(self, record: TransferEndedRecord) -> None:
        self.transfers.append(record)
        file = self.file_history(record.file)
        file.size = max(file.size, record.bytes)


def load(path: str | Path, *, damaged_too: bool = False) -> History:
    """Read a journal and aggregate its records.

    Parameters
    ----------
    path
        As for `find`.
    damaged_too
        Whether one with damaged lines is read as well, as if these had never been written; `History.damaged` has them.

    Raises
    ------
    FileNotFoundError, InvalidJournalError
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
