"""Writes the journal of a run: what happened, as the engine hands it over, becomes lines in a file.

The engine's thread only puts what it has into a queue, as it is, once for each of its turns. A thread of its own makes records of that
and writes them, once in half a second or when there is a megabyte. Where it cannot write, or the disk is so slow that more than
`MOST_WAITING` things wait, it says so once, the journal ends, and the run goes on.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import platform
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from vinecore import __version__
from vinecore.journal import records as j
from vinecore.manager.files import CacheLevel
from vinecore.protocol import INLINE_LIMIT
from vinecore.protocol import messages as m
from vinecore.scheduler import events as e
from vinecore.scheduler import instructions as i
from vinecore.scheduler.state import DISPATCH_ID_SHIFT

log = logging.getLogger("vinecore")

POLL_INTERVAL_S = 0.1
FLUSH_INTERVAL_S = 0.5
MAX_BUFFERED_BYTES = 1 << 20  # bytes
MAX_QUEUED_ITEMS = 400_000  # events and instructions that no record has been made of
SHUTDOWN_TIMEOUT_S = 10.0  # how long the end of the journal is waited for
BATCHES_PER_YIELD = 16  # turns of the engine, before others may run
MAX_REASON_CHARACTERS = 2000  # of a reason

_TASK_NUMBER_MASK = (1 << DISPATCH_ID_SHIFT) - 1
_LEVEL_NAMES = {number: name for name, number in CacheLevel.items()}
_encode_lines = msgspec.json.Encoder().encode_lines


class _ConnectedWorker:
    """What a connected worker is at."""

    def __init__(self) -> None:
        self.tickets: dict[int, None] = {}
        self.fetching: dict[str, tuple[j.Place, float]] = {}
        self.address = ""


class JournalRecorder:
    """Tells in records what the mind was told and what it asked for.

    Its tables hold no more than what is on the workers now.

    Parameters
    ----------
    start
        The time that counts as 0, on the clock of the mind.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._t = 0.0
        self._workers: dict[int, _ConnectedWorker] = {}
        self._addresses: dict[str, int] = {}
        self._uploads: dict[str, tuple[int, float]] = {}
        self._records: list[j.Record] = []
        self._single_use: set[int] = set()  # tasks of this turn
        self._emit = self._records.append
        self._events: dict[type, Callable[[Any], None]] = {
            e.FilesDeclared: self._on_files_declared, e.LibraryInstalled: self._on_library_installed,
            e.LibraryRemoved: lambda x: self._emit(j.LibraryRemoved(self._t, x.name)),
            e.GraphOpened: lambda x: self._emit(j.GraphOpened(self._t, x.run.run, x.run.label)),
            e.TasksSubmitted: self._on_tasks_submitted, e.GraphSubmitted: lambda x: self._emit(j.GraphSubmitted(self._t, x.run)),
            e.GraphClosed: lambda x: self._emit(j.GraphClosed(self._t, x.run)),
            e.WorkerConnected: self._on_worker_connected, e.WorkerDisconnected: self._on_worker_disconnected, e.ObjectStored: self._on_object_stored,
        }  # fmt: skip
        self._messages: dict[type, Callable[[int, _ConnectedWorker, Any], None]] = {
            m.TaskFailed: self._on_task_failed, m.StealResponse: self._on_steal_response, m.Cached: self._on_cached, m.FetchFailed: self._on_fetch_failed,
            m.UploadFailed: self._on_upload_failed, m.PersistentObjects: self._on_objects_found, m.OrphanedObjects: self._on_objects_found, m.ObjectsLost: self._on_objects_lost, m.LibraryReady: self._on_library_ready,
            m.LibraryFailed: self._on_library_failed,
        }  # fmt: skip
        self._instructions: dict[type, Callable[[Any], None]] = {
            i.SendObject: lambda x: self._emit(j.ObjectSent(self._t, x.name, x.worker)),
            i.TaskActivated: lambda x: self._emit(j.TaskActivated(self._t, x.task, x.again)),
            i.TaskFinished: self._on_task_finished, i.GraphFinished: self._on_graph_finished, i.Stalled: lambda x: self._emit(j.Stalled(self._t, x.text)),
            i.LogMessage: lambda x: self._emit(j.LogMessage(self._t, logging.getLevelName(x.level).lower(), x.text)),
        }  # fmt: skip
        self._message_handlers: dict[type, Callable[[int, _ConnectedWorker, Any], None]] = {
            m.RunTask: self._on_run_task, m.Cancel: self._on_cancel, m.Fetch: self._on_fetch, m.Unpack: self._on_unpack, m.Upload: self._on_upload,
            m.RemoveObjects: self._on_remove_objects, m.PurgeObjects: self._on_remove_objects, m.Library: self._on_library, m.RemoveLibrary: self._on_remove_library,
        }  # fmt: skip

    def records_for(
        self, now: float, events: list[e.Event], instructions: list[i.Instruction]
    ) -> list[j.Record]:
        """Give the records of one call of `Mind.handle`."""
        self._t = round(now - self._start, 6)
        # what is cancelled now was not over for the mind, whatever its worker has said meanwhile
        void: set[int] = set()
        self._single_use.clear()
        for order in instructions:
            if type(order) is i.SingleUse:
                self._single_use.add(order.task)
            elif type(order) is i.Send and type(order.message) is m.Cancel:
                void.update(order.message.tasks)
        for event in events:
            if type(event) is e.MessageReceived:
                self._on_worker_message(event.worker, event.message, void)
            elif tell := self._events.get(type(event)):
                tell(event)
        for order in instructions:
            if type(order) is i.Send:
                worker = self._workers.get(order.worker)
                if worker is not None and (carry := self._message_handlers.get(type(order.message))):
                    carry(order.worker, worker, order.message)
            elif tell := self._instructions.get(type(order)):
                tell(order)
        records, self._records = self._records, []
        self._emit = self._records.append
        return records

    def _on_worker_message(self, number: int, message: m.Message, void: set[int]) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        if type(message) is m.TaskDone:
            if message.task in worker.tickets and message.task not in void:
                self._on_task_done(number, worker, message)
        elif type(message) in self._messages:
            self._messages[type(message)](number, worker, message)

    # ---- the user

    def _on_files_declared(self, event: e.FilesDeclared) -> None:
        for spec in event.files:
            self._emit(
                j.FileDeclared(
                    self._t,
                    spec.name,
                    spec.size,
                    spec.at_manager,
                    spec.url,
                    spec.archive,
                    spec.directory,
                    _LEVEL_NAMES[spec.level],
                )
            )

    def _on_library_installed(self, event: e.LibraryInstalled) -> None:
        spec = event.library
        label = str(spec.options.get("label", ""))
        files = tuple(name for name in (spec.setup, spec.environment, *spec.files) if name)
        self._emit(
            j.LibraryInstalled(
                self._t,
                spec.name,
                label,
                spec.slots,
                spec.request.cores,
                spec.request.memory,
                spec.exec_mode,
                files,
            )
        )

    def _on_tasks_submitted(self, event: e.TasksSubmitted) -> None:
        t, say = self._t, self._emit
        for spec in event.tasks:
            shared = (*spec.shared, spec.environment) if spec.environment else spec.shared
            inputs = spec.inputs + spec.mounts if spec.mounts else spec.inputs
            cores, memory, disk, gpus = spec.request
            function = "" if spec.function in shared else spec.function
            say(j.TaskSubmitted(t, spec.task, spec.label, spec.category, spec.run, spec.library, function, inputs, shared, spec.result,
                                spec.outputs, spec.wanted_at_manager, cores, memory, disk, gpus, spec.priority or 0.0, spec.on_demand))  # fmt: skip

    def _on_task_finished(self, end: i.TaskFinished) -> None:
        if end.outcome != "success":
            self._emit(j.TaskEnded(self._t, end.task, end.outcome, _failure_reason(end.info)))

    def _on_graph_finished(self, end: i.GraphFinished) -> None:
        self._emit(j.GraphEnded(self._t, end.run, end.outcome, end.task, _failure_reason(end.info)))

    # ---- workers

    def _on_worker_connected(self, event: e.WorkerConnected) -> None:
        hello = event.hello
        worker = self._workers[event.worker] = _ConnectedWorker()
        if hello.data_port:
            worker.address = f"{event.host}:{hello.data_port}"
            self._addresses[worker.address] = event.worker
        self._emit(j.WorkerConnected(self._t, event.worker, hello.hostname, event.host, hello.python, hello.cores, hello.memory_mb, hello.disk_mb,
                                 hello.gpus, hello.pid))  # fmt: skip

    def _on_worker_disconnected(self, event: e.WorkerDisconnected) -> None:
        worker = self._workers.pop(event.worker, None)
        if worker is None:
            return
        if self._addresses.get(worker.address) == event.worker:
            del self._addresses[worker.address]
        for name in [name for name, (holder, _t) in self._uploads.items() if holder == event.worker]:
            self._end_upload(name, "its worker was lost")
        for name in list(worker.fetching):
            self._end_fetch(event.worker, worker, name, "the worker was lost")
        for ticket in list(worker.tickets):
            self._add_task_returned(event.worker, worker, ticket, "the worker was lost")
        self._emit(j.WorkerDisconnected(self._t, event.worker, event.reason))

    def _on_objects_found(
        self, number: int, _worker: _ConnectedWorker, message: m.PersistentObjects | m.OrphanedObjects
    ) -> None:
        self._emit(j.FilesFound(self._t, number, tuple(message.names), tuple(message.sizes)))

    def _on_objects_lost(self, number: int, _worker: _ConnectedWorker, message: m.ObjectsLost) -> None:
        self._emit(j.FilesLost(self._t, number, tuple(message.names)))

    def _on_remove_objects(
        self, number: int, worker: _ConnectedWorker, message: m.RemoveObjects | m.PurgeObjects
    ) -> None:
        if worker.fetching:
            for name in message.names:
                self._end_fetch(number, worker, name, "nobody needs it any more")
        self._emit(j.FilesRemoved(self._t, number, tuple(message.names)))

    # ---- tasks

    def _on_run_task(self, number: int, worker: _ConnectedWorker, message: m.RunTask) -> None:
        ticket = message.task
        worker.tickets[ticket] = None
        allocation = message.options.get("allocation")
        cores = None if allocation is None else allocation.cores
        self._emit(
            j.TaskDispatched(
                self._t, ticket & _TASK_NUMBER_MASK, number, (ticket >> DISPATCH_ID_SHIFT) + 1, cores
            )
        )

    def _on_task_done(self, number: int, worker: _ConnectedWorker, message: m.TaskDone) -> None:
        ticket, info = message.task, message.info
        del worker.tickets[ticket]
        done = j.TaskDone(
            self._t,
            ticket & _TASK_NUMBER_MASK,
            number,
            round(message.wall_s, 6),
            message.size,
            (ticket >> DISPATCH_ID_SHIFT) + 1,
        )
        done.returned = len(message.payload)
        done.single_use = done.task in self._single_use
        if info:
            done.outputs = info.get("outputs") or {}
            done.digest = info.get("digest", "")
            digests = info.get("digests")
            if digests:
                done.digests = {
                    name: digest
                    for name, digest in digests.items()
                    if done.outputs.get(name, 0) > INLINE_LIMIT
                }
            done.exit_code = info.get("exit_code", 0)
            used = info.get("measured")
            if used:
                done.cpu_s = info.get("cpu_s") or used.get("cores", 0) * message.wall_s or None
                done.memory_mb, done.disk_mb = used.get("memory"), used.get("disk")
        self._emit(done)

    def _on_task_failed(self, number: int, worker: _ConnectedWorker, message: m.TaskFailed) -> None:
        ticket, info = message.task, message.info
        if ticket in worker.tickets:
            del worker.tickets[ticket]
            wall = info.get("wall_s") or (info.get("measured") or {}).get("wall_s")
            self._emit(j.TaskFailed(self._t, ticket & _TASK_NUMBER_MASK, number, message.kind, _failure_reason(info), (ticket >> DISPATCH_ID_SHIFT) + 1, wall))  # fmt: skip

    def _on_steal_response(self, number: int, worker: _ConnectedWorker, message: m.StealResponse) -> None:
        for ticket in message.tasks:
            self._add_task_returned(number, worker, ticket, "given back to be run elsewhere")

    def _on_cancel(self, number: int, worker: _ConnectedWorker, message: m.Cancel) -> None:
        for ticket in message.tasks:
            self._add_task_returned(number, worker, ticket, "taken back")

    def _add_task_returned(self, number: int, worker: _ConnectedWorker, ticket: int, reason: str) -> None:
        if ticket in worker.tickets:
            del worker.tickets[ticket]
            self._emit(
                j.TaskReturned(
                    self._t, ticket & _TASK_NUMBER_MASK, number, reason, (ticket >> DISPATCH_ID_SHIFT) + 1
                )
            )

    # ---- transfers

    def _on_fetch(self, number: int, worker: _ConnectedWorker, message: m.Fetch) -> None:
        source = self._addresses.get(message.source, message.source)
        worker.fetching[message.name] = source, self._t
        self._emit(j.TransferStarted(self._t, message.name, source, number, message.size))

    def _on_unpack(self, number: int, worker: _ConnectedWorker, message: m.Unpack) -> None:
        worker.fetching[message.name] = j.ARCHIVE, self._t
        self._emit(j.TransferStarted(self._t, message.name, j.ARCHIVE, number))

    def _on_cached(self, number: int, worker: _ConnectedWorker, message: m.Cached) -> None:
        began = worker.fetching.pop(message.name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            ended = j.TransferEnded(self._t, message.name, began[0], number, max(message.size, 0), seconds)
            if message.size > INLINE_LIMIT:
                ended.digest = message.digest
            self._emit(ended)

    def _on_fetch_failed(self, number: int, worker: _ConnectedWorker, message: m.FetchFailed) -> None:
        if message.was_cached:  # that transfer had ended
            self._emit(j.FilesLost(self._t, number, (message.name,)))
        else:
            self._end_fetch(number, worker, message.name, message.reason)

    def _end_fetch(self, number: int, worker: _ConnectedWorker, name: str, reason: str) -> None:
        began = worker.fetching.pop(name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            self._emit(
                j.TransferFailed(self._t, name, began[0], number, seconds, reason[:MAX_REASON_CHARACTERS])
            )

    def _on_upload(self, number: int, _worker: _ConnectedWorker, message: m.Upload) -> None:
        self._uploads[message.name] = number, self._t
        self._emit(j.TransferStarted(self._t, message.name, number, j.MANAGER))

    def _on_object_stored(self, event: e.ObjectStored) -> None:
        began = self._uploads.pop(event.name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            self._emit(j.TransferEnded(self._t, event.name, began[0], j.MANAGER, max(event.size, 0), seconds))

    def _on_upload_failed(self, _number: int, _worker: _ConnectedWorker, message: m.UploadFailed) -> None:
        self._end_upload(message.name, message.reason)

    def _end_upload(self, name: str, reason: str) -> None:
        began = self._uploads.pop(name, None)
        if began is not None:
            seconds = round(self._t - began[1], 6)
            self._emit(
                j.TransferFailed(self._t, name, began[0], j.MANAGER, seconds, reason[:MAX_REASON_CHARACTERS])
            )

    # ---- libraries

    def _on_library(self, number: int, worker: _ConnectedWorker, message: m.Library) -> None:
        cores = float(message.options.get("cores") or message.slots)
        self._emit(j.LibraryStarted(self._t, message.name, number, message.slots, cores))

    def _on_library_ready(self, number: int, worker: _ConnectedWorker, message: m.LibraryReady) -> None:
        self._emit(j.LibraryReady(self._t, message.name, number, round(message.wall_s, 6)))

    def _on_library_failed(self, number: int, worker: _ConnectedWorker, message: m.LibraryFailed) -> None:
        self._emit(j.LibraryFailed(self._t, message.name, number, message.reason[:MAX_REASON_CHARACTERS]))

    def _on_remove_library(self, number: int, worker: _ConnectedWorker, message: m.RemoveLibrary) -> None:
        self._emit(j.LibraryStopped(self._t, message.name, number))


class JournalWriter:
    """Writes a journal, in a thread of its own.

    Parameters
    ----------
    run_info_path
        The folder that gets a folder with the journal, named by the time.
    durable
        Whether it shall survive that this machine loses its power, but for the last second.
    **about
        Fields of the first record: what the manager knows of itself.

    Attributes
    ----------
    path : Path or None
        The journal; None until `start` has made it, or if it could not.
    """

    def __init__(self, run_info_path: str | Path, *, durable: bool = False, **about: Any) -> None:
        self._parent, self._about, self._durable = Path(run_info_path).expanduser().absolute(), about, durable
        self.path: Path | None = None
        self._file = -1
        self._queue: deque[tuple[float, list[e.Event], list[i.Instruction]]] = deque()
        self._enqueued = self._written = (
            0  # events and instructions: counted by the engine's thread, and by this one
        )
        self._pending: list[bytes] = []
        self._unwritten = 0  # bytes of that
        self._closing = threading.Event()
        self._overflow = ""
        self._began = time.monotonic()
        self._recorder = JournalRecorder(self._began)
        self._thread = threading.Thread(target=self._run_thread, name="vine-journal", daemon=True)

    def start(self, port: int) -> None:
        """Begin the journal; where that cannot be there is a warning, and no journal."""
        header = j.Header(0.0, j.VERSION, time.time(), socket.gethostname(), os.getpid(), port=port, daskvine=__version__,
                           python=platform.python_version(), **self._about)  # fmt: skip
        path = self._parent
        try:
            path = _create_directory(self._parent) / j.FILE
            self._file = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            _lock_file(self._file)
            _write_all(self._file, _encode_lines([header]))
        except OSError as error:
            self._close_file()
            log.warning(
                "no journal is written, the run goes on without: %s: %s", path, error.strerror or error
            )
            return
        self.path = path
        _update_symlink(self._parent / j.MOST_RECENT, path.parent.name)
        self._thread.start()

    # ---- the engine's thread

    def record(self, now: float, events: list[e.Event], instructions: list[i.Instruction]) -> None:
        """Take what has happened, to be written soon."""
        if self._file < 0 or self._overflow:
            return
        if self._enqueued - self._written > MAX_QUEUED_ITEMS:
            self._overflow = f"{self.path} takes what happens more slowly than it happens"
            log.warning("the journal ends, the run goes on without: %s", self._overflow)
            return
        self._enqueued += len(events) + len(instructions)
        self._queue.append((now, events, instructions))

    def close(self) -> None:
        """Write what is left, and end the journal."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(SHUTDOWN_TIMEOUT_S)
            if self._thread.is_alive():
                log.warning("%s does not take what is left of the journal: it is not complete", self.path)

    # ---- the thread that writes

    def _run_thread(self) -> None:
        try:
            self._write_all()
        except Exception:
            self._close_file()
            log.exception("the journal ends, the run goes on without: a defect in daskvine, please report it")

    def _write_all(self) -> None:
        written = time.monotonic()
        while self._file >= 0:
            closing = self._closing.wait(POLL_INTERVAL_S)
            full = self._overflow  # before the queue is looked at: nothing comes after it
            self._write_queued()
            t = round(time.monotonic() - self._began, 6)
            if full:
                self._add_records([j.JournalStopped(t, full)])
            elif closing:
                self._add_records([j.ManagerClosed(t)])
            if full or closing or time.monotonic() - written > FLUSH_INTERVAL_S:
                self._flush()
                written = time.monotonic()
            if full or closing:
                self._close_file()

    def _write_queued(self) -> None:
        """Make lines of all that waits."""
        queue, tell = self._queue, self._recorder.records_for
        while queue:
            records: list[j.Record] = []
            for _ in range(min(len(queue), BATCHES_PER_YIELD)):
                now, events, instructions = queue.popleft()
                records += tell(now, events, instructions)
                self._written += len(events) + len(instructions)
            self._add_records(records)
            if self._unwritten >= MAX_BUFFERED_BYTES:
                self._flush()
            time.sleep(0)  # the engine goes first

    def _add_records(self, records: list[j.Record]) -> None:
        if records:
            lines = _encode_records(records)
            self._pending.append(lines)
            self._unwritten += len(lines)

    def _flush(self) -> None:
        lines, self._pending, self._unwritten = b"".join(self._pending), [], 0
        if self._file < 0:
            return
        try:
            _write_all(self._file, lines)
            if self._durable:
                os.fdatasync(self._file)
        except OSError as error:
            self._close_file()
            log.warning(
                "the journal ends, the run goes on without: %s: %s", self.path, error.strerror or error
            )

    def _close_file(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
        self._queue.clear()


def _encode_records(records: list[j.Record]) -> bytes:
    try:
        return _encode_lines(records)
    except UnicodeEncodeError:  # names of files and keys can be what is no text
        return _encode_lines([_replace_surrogates(msgspec.to_builtins(record)) for record in records])


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    return [_replace_surrogates(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write_all(file: int, lines: bytes) -> None:
    rest = memoryview(lines)
    while rest:
        rest = rest[os.write(file, rest) :]


def _lock_file(file: int) -> None:
    """Show that whoever writes this is alive."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a file system without locks
        pass


def _create_directory(parent: Path) -> Path:
    """Make a folder that is named by the time."""
    name = datetime.now().astimezone().strftime("%Y-%m-%dT%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        folder = parent / name
        try:
            folder.mkdir()
        except FileExistsError:
            name = f"{name[:17]}-{number}"
        else:
            break
    return folder


def _update_symlink(link: Path, name: str) -> None:
    """Have a link lead to a folder beside it; where that cannot be, it is done without."""
    fresh = link.with_name(f".{link.name}-{name}")
    try:
        fresh.symlink_to(name)
        fresh.replace(link)
    except OSError:
        pass


def _failure_reason(info: dict[str, Any]) -> str:
    evidence = info.get("evidence")
    return str("; ".join(evidence) if evidence else info.get("reason") or info.get("text", ""))[
        :MAX_REASON_CHARACTERS
    ]
