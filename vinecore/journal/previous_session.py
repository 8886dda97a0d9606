"""What is known of managers that have died: read from their journals by the one that goes on.

Those of one run are a chain: each journal names the one that it goes on from. One that has ended in order ends the chain: then the workers
have been sent away, and have nothing any more.
"""

from __future__ import annotations

import fcntl
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from vinecore.journal import reader, records
from vinecore.journal.reader import InvalidJournalError
from vinecore.protocol import INLINE_LIMIT
from vinecore.scheduler.resume import RECONNECT_TIMEOUT_S, Result, result_key

log = logging.getLogger("vinecore")

MAX_JOURNALS = 1000  # of one chain


class PreviousSession(NamedTuple):
    """What a manager that goes on has to know.

    Attributes
    ----------
    journal
        The last one of the chain.
    port
        Where its manager listened.
    results
        What was made, or has arrived somewhere.
    workers
        Machine and process of those that were connected in the end, and may still be there.
    sessions
        Of the managers of this machine.
    """

    journal: Path
    port: int
    results: set[Result]
    workers: list[tuple[str, int]]
    sessions: list[str]


def find_previous_session(run_info_path: Path, name: str | None) -> PreviousSession | None:
    """Find the newest journal of managers with a name, or of any, and tell what it knows if its manager has died.

    Parameters
    ----------
    run_info_path
        The folder with the folders of journals.
    name
        Of the manager; None for any.
    """
    found = _find_newest(run_info_path, name)
    if found is None:
        return None
    path, header = found
    if is_being_written(path, header):
        log.warning("nothing is gone on with: the manager of %s still runs", path)
        return None
    reader = _ChainReader()
    chain = _follow_chain(path)
    for older, _header in reversed(chain):
        reader.read(older)
    if reader.closed:
        return None
    sessions = [header.session for _older, header in chain if header.host == socket.gethostname()]
    workers = [worker for worker in reader.workers if not has_ended(*worker)]
    return PreviousSession(path, header.port, reader.results, workers, sessions)


def is_being_written(path: Path, header: records.Header) -> bool:
    """Whether the manager that writes a journal is alive; it holds a lock on it, and so may processes that it has forked."""
    if has_ended(header.host, header.pid):
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks, or a journal that has just gone
        return False
    return False


def _find_newest(run_info_path: Path, name: str | None) -> tuple[Path, records.Header] | None:
    found: list[tuple[float, str, Path, records.Header]] = []
    try:
        paths = list(run_info_path.glob(f"*/{records.FILE}"))
    except OSError as error:
        log.warning("nothing is gone on with: journals in %s cannot be looked for: %s", run_info_path, error)
        return None
    unread: list[str] = []
    for path in paths:
        if path.parent.name == records.MOST_RECENT:
            continue
        header = _read_header(path, unread.append)
        if header is not None and name in (None, header.manager):
            found.append((header.time, path.parent.name, path, header))
    if unread:
        others = f", and {len(unread) - 1} more" if len(unread) > 1 else ""
        log.warning("a journal cannot be gone on with: %s%s", max(unread), others)
    return max(found)[2:] if found else None


def _read_header(path: Path, tell: Callable[[str], object]) -> records.Header | None:
    try:
        first = next(reader.read(path), None)
    except (OSError, InvalidJournalError) as error:
        tell(str(error))
        return None
    return first if isinstance(first, records.Header) else None


def _follow_chain(path: Path) -> list[tuple[Path, records.Header]]:
    """Return the chain of journals that resume each other, newest first, with their headers.

    The chain ends at a journal that has been removed.
    """
    chain: dict[Path, records.Header] = {}
    while len(chain) < MAX_JOURNALS and path not in chain and _is_file(path):
        header = _read_header(path, lambda problem: log.warning("a journal cannot be read: %s", problem))
        if header is None:
            break
        chain[path] = header
        if not header.resumes:
            break
        path = Path(header.resumes)
    return list(chain.items())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no path at all: what names it is damaged
        return False


def has_ended(host: str, process: int) -> bool:
    """Whether a process of this machine is over; also if nobody has waited for it, as in a container whose first process waits for none."""
    if host != socket.gethostname():
        return False
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class _ChainReader:
    """Adds up the journals of one chain, the oldest first."""

    def __init__(self) -> None:
        self.results: set[Result] = set()
        # what served one graph only, under a name that something else may have
        self._used_once: set[Result] = set()
        self.workers: set[tuple[str, int]] = set()
        self.closed = False
        self._handlers: dict[type[records.Record], Callable[[Any], None]] = {
            records.Header: self._on_header, records.ManagerClosedRecord: self._on_closed, records.WorkerConnectedRecord: self._on_worker_connected, records.WorkerDisconnectedRecord: self._on_worker_disconnected,
            records.TaskSubmittedRecord: self._on_task_submitted, records.TaskDoneRecord: self._on_task_done, records.FileDeclaredRecord: self._on_file_declared, records.TransferEndedRecord: self._on_transfer_ended,
        }  # fmt: skip

    def read(self, path: Path) -> None:
        """Add one journal, as far as it can be read."""
        self._results_by_task: dict[int, str] = {}
        self._workers: dict[int, tuple[str, int]] = {}
        self._own, self._t, self.closed = "-", 0.0, False
        before = frozenset(self.workers)
        damaged: list[str] = []
        try:
            for record in reader.read(
                path, *self._handlers, damaged=lambda _number, what: damaged.append(what)
            ):
                self._t = record.t
                self._handlers[type(record)](record)
        except (OSError, InvalidJournalError) as error:
            log.warning("the rest of a journal cannot be read: %s", error)
        if damaged:
            log.warning("%s is damaged, and what these lines say is not gone on with: %d in all, the first is %s",
                        path, len(damaged), damaged[0])  # fmt: skip
        if self._t > RECONNECT_TIMEOUT_S:  # who has not come back by then is not waited for any more
            self.workers -= before.difference(self._workers.values())

    def _on_header(self, record: records.Header) -> None:
        self._own = f"-{record.session}-"

    def _on_closed(self, _record: records.ManagerClosedRecord) -> None:
        self.closed = True

    def _on_worker_connected(self, record: records.WorkerConnectedRecord) -> None:
        worker = self._workers[record.worker] = record.host, record.pid
        self.workers.add(worker)

    def _on_worker_disconnected(self, record: records.WorkerDisconnectedRecord) -> None:
        self.workers.discard(self._workers.get(record.worker, ("", 0)))

    def _on_task_submitted(self, record: records.TaskSubmittedRecord) -> None:
        known = record.result if self._own not in record.result else ""
        # a number comes once: of two tasks that have it, one is damaged, and nobody knows which
        self._results_by_task[record.task] = "" if record.task in self._results_by_task else known

    def _on_task_done(self, record: records.TaskDoneRecord) -> None:
        name = self._results_by_task.get(record.task)
        made = {result_key(name, record.size, record.digest)} if name else set()
        made.update(
            result_key(output, size, record.digests.get(output, ""))
            for output, size in record.outputs.items()
            if self._own not in output and output != name
        )
        if record.single_use:
            self._used_once |= made - self.results
        else:
            self._used_once -= made
            self.results |= made

    def _on_file_declared(self, record: records.FileDeclaredRecord) -> None:
        if record.directory or record.archive:
            self.results.add(result_key(record.file, -1, ""))
        elif 0 <= record.size <= INLINE_LIMIT:
            self.results.add(result_key(record.file, record.size, ""))

    def _on_transfer_ended(self, record: records.TransferEndedRecord) -> None:
        arrived = result_key(record.file, record.bytes, record.digest)
        if self._own not in record.file and arrived not in self._used_once:
            self.results.add(arrived)
