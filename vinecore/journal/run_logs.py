"""Writes the logs that tools for TaskVine read, from the records of the journal.

The folder ``vine-logs`` of a run has four files:

transactions
    One line for each change of a task, worker, category or library:
    ``<microseconds> <pid> SUBJECT id EVENT ...``.
performance
    A header line with the names of the columns, then one line of numbers for each interval.
taskgraph
    Tasks and files as a graph in the language of Graphviz.
debug
    Messages between manager and workers as lines of text with their local time.

The thread that writes the journal writes them, so the server's thread does nothing for them.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vinecore.journal import records
from vinecore.journal.run_log_formats import (
    COLUMNS,
    RESULTS,
    STATE_NUMBERS,
    TRANSACTIONS_HEADER,
    UNKNOWN_RESULT,
    disconnection_word,
    format_amounts,
    join_lines,
    quote_name,
    requested_amounts,
)
from vinecore.scheduler import events

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = "vine-logs"
FIRST_RECOVERY_NUMBER = 1_000_000_000


class RunLogs:
    """The logs of one run.

    Parameters
    ----------
    run_folder
        The folder of the run, which gets the folder ``vine-logs``.
    pid
        The process of the manager.
    started_at
        The time since 1970 that the records count from.
    port
        The port of the manager.

    Raises
    ------
    OSError
        A file cannot be made.
    """

    def __init__(self, run_folder: Path, *, pid: int, started_at: float, port: int) -> None:
        folder = run_folder / FOLDER
        folder.mkdir(exist_ok=True)
        self._pid, self._started_at = pid, started_at
        # The user's threads add lines, too.
        self._lock = threading.Lock()
        self._files: dict[str, TextIO] = {
            name: (folder / name).open("w", encoding="utf-8", errors="replace")
            for name in ("transactions", "performance", "taskgraph", "debug")
        }
        self._debug_time, self._debug_prefix = -1.0, ""
        # Entries of the program, with their times; the thread of the journal puts them in order.
        self._entries: deque[tuple[float, Callable[[float, str], None], str]] = deque()
        # Names and addresses, as "host (ip:port)", of connected workers.
        self._workers: dict[int, str] = {}
        self._ports: dict[int, int] = {}
        self._transfers = 0
        self._open_transfers: dict[tuple[str, Any], int] = {}
        self._tasks: dict[int, records.TaskSubmittedRecord] = {}
        # Tasks that run, or whose attempt has failed and that may get another one, with their workers.
        self._running: dict[int, int] = {}
        # A task that runs again because its result was lost is another one for the readers of these logs.
        self._recovery_numbers: dict[int, int] = {}
        self._next_recovery_number = FIRST_RECOVERY_NUMBER
        self._sizes: dict[str, int] = {}
        self._graph_files: set[str] = set()
        self._debug_files: set[str] = set()
        self._handlers: dict[type, Callable[[Any], None]] = {
            records.WorkerConnectedRecord: self._on_worker_connected,
            records.WorkerDisconnectedRecord: self._on_worker_disconnected,
            records.FileDeclaredRecord: self._on_file_declared,
            records.TaskSubmittedRecord: self._on_task_submitted,
            records.TaskActivatedRecord: self._on_task_activated,
            records.TaskDispatchedRecord: self._on_task_dispatched,
            records.TaskDoneRecord: self._on_task_done,
            records.TaskFailedRecord: self._on_task_failed,
            records.TaskReturnedRecord: self._on_task_returned,
            records.TaskEndedRecord: self._on_task_ended,
            records.ObjectSentRecord: self._on_object_sent,
            records.TransferStartedRecord: self._on_transfer_started,
            records.TransferEndedRecord: self._on_transfer_ended,
            records.TransferFailedRecord: self._on_transfer_failed,
            records.FilesRemovedRecord: self._on_files_removed,
            records.LibraryStartedRecord: lambda x: self._on_library(x, "SENT"),
            records.LibraryReadyRecord: lambda x: self._on_library(x, "STARTED"),
            records.LibraryFailedRecord: lambda x: self._on_library(x, "FAILURE"),
        }
        self._write("transactions", TRANSACTIONS_HEADER)
        self._write("performance", f"# timestamp {' '.join(COLUMNS)}\n")
        self._write("taskgraph", "digraph tasks {\nrankdir=LR;\n")
        self._transact(0.0, f"MANAGER {pid} START")
        self._debug(0.0, f"listening on port {port}", "tcp")

    # ---- from other threads

    def add_application_entry(self, text: str) -> None:
        """Add an entry of the program to the transactions."""
        self._entries.append((time.time() - self._started_at, self._transact, text))

    def add_debug_entry(self, text: str) -> None:
        """Add an entry of the program to the debug log."""
        self._entries.append((time.time() - self._started_at, self._debug, text))

    def add_performance(self, stats: Any) -> None:
        """Add a line with the present statistics."""
        numbers = " ".join(f"{getattr(stats, name):g}" if name == "bandwidth" else str(int(getattr(stats, name))) for name in COLUMNS)  # fmt: skip
        with self._lock:
            self._write("performance", f"{int(time.time() * 1e6)} {numbers}\n")

    # ---- from the thread of the journal

    def add_events(self, t: float, batch: Iterable[events.Event]) -> None:
        """Take from events that the journal does not record."""
        for event in batch:
            if type(event) is events.WorkerConnected:
                self._ports[event.worker] = event.hello.data_port or event.hello.pid % 65536
            elif type(event) is events.CategorySet:
                with self._lock:
                    self._on_category_set(round(t, 6), event)

    def add_records(self, batch: Iterable[records.Record]) -> None:
        """Write what records say."""
        with self._lock:
            for record in batch:
                handle = self._handlers.get(type(record))
                if handle is not None:
                    self._write_entries(record.t)
                    handle(record)

    def _write_entries(self, until: float) -> None:
        while self._entries and self._entries[0][0] <= until:
            t, write, text = self._entries.popleft()
            write(t, f"APPLICATION {join_lines(text)}")

    def flush(self) -> None:
        """Write what is buffered."""
        with self._lock:
            # Records of less than a second ago may not have come yet.
            self._write_entries(time.time() - self._started_at - 1.0)
            for file in self._files.values():
                file.flush()

    def close(self) -> None:
        """End the logs."""
        with self._lock:
            t = time.time() - self._started_at
            self._write_entries(t)
            self._transact(t, f"MANAGER {self._pid} END")
            self._debug(t, "manager end")
            self._write("taskgraph", "}\n")
            files, self._files = self._files, {}
        for file in files.values():
            file.close()

    def _write(self, name: str, text: str) -> None:
        file = self._files.get(name)
        if file is not None:
            file.write(text)

    def _transact(self, t: float, text: str) -> None:
        self._write("transactions", f"{self._microseconds(t)} {self._pid} {text}\n")

    def _debug(self, t: float, text: str, subsystem: str = "vine") -> None:
        if t != self._debug_time:
            # Most lines have the time of the one before.
            self._debug_time, when = t, datetime.fromtimestamp(self._started_at + t).astimezone()
            self._debug_prefix = f"{when:%Y/%m/%d %H:%M:%S.%f} vine_manager[{self._pid}] "
        self._write("debug", f"{self._debug_prefix}{subsystem}: {text}\n")

    def _microseconds(self, t: float) -> int:
        return int((self._started_at + t) * 1e6)

    def _change_state(self, t: float, task: int, *states: str) -> None:
        for old, new in itertools.pairwise(states):
            self._debug(
                t, f"Task {task} state change: {old} ({STATE_NUMBERS[old]}) to {new} ({STATE_NUMBERS[new]})"
            )

    # ---- workers

    def _on_worker_connected(self, record: records.WorkerConnectedRecord) -> None:
        t, number = record.t, record.worker
        address = f"{record.address}:{self._ports.pop(number, record.pid % 65536)}"
        self._workers[number] = where = f"{record.host} ({address})"
        has = {"cores": record.cores, "memory": record.memory_mb, "disk": record.disk_mb, "gpus": record.gpus}
        self._transact(t, f"WORKER worker-{number} CONNECTION {address}")
        self._transact(t, f"WORKER worker-{number} RESOURCES {format_amounts(has)}")
        self._debug(t, f"worker {address} connected")
        self._debug(t, f"rx from {where} info worker-id worker-{number}")
        self._debug(t, f"rx from {where} transfer-port {address.rpartition(':')[2]}")
        self._debug(t, f"rx from {where} resources")
        for name, amount in (*has.items(), ("end", "")):
            self._debug(t, f"rx from {where} {name} {amount}".rstrip())

    def _on_worker_disconnected(self, record: records.WorkerDisconnectedRecord) -> None:
        self._transact(
            record.t, f"WORKER worker-{record.worker} DISCONNECTION {disconnection_word(record.reason)}"
        )
        where = self._workers.pop(record.worker, None)
        if where is not None:
            self._debug(record.t, f"worker {where} removed")

    def _on_category_set(self, t: float, event: events.CategorySet) -> None:
        self._write_entries(t)
        mode = event.mode or "fixed"
        for kind, request in (("MAX", event.maximum), ("MIN", event.minimum), ("FIRST", event.first_guess)):
            if request is not None:
                amounts = {name: value for name, value in request._asdict().items() if value is not None}
                self._transact(
                    t,
                    f"CATEGORY {quote_name(event.name)} {kind} {quote_name(mode).upper()} {format_amounts(amounts)}",
                )

    def _on_library(self, record: Any, what: str) -> None:
        self._transact(record.t, f"LIBRARY {quote_name(record.library)} {what} worker-{record.worker}")

    # ---- tasks

    def _on_task_submitted(self, record: records.TaskSubmittedRecord) -> None:
        self._tasks[record.task] = record
        outputs = [name for name in (record.result, *record.outputs) if name]
        label = f"{record.task} {record.label}"
        self._write("taskgraph", f'"task-{record.task}" [shape=ellipse,label={json.dumps(label)}];\n')
        for name in record.inputs:
            self._draw_file(name)
            self._write("taskgraph", f'{json.dumps(name)} -> "task-{record.task}";\n')
        for name in outputs:
            self._draw_file(name)
            self._write("taskgraph", f'"task-{record.task}" -> {json.dumps(name)};\n')
        if not record.deferred:
            self._mark_ready(record.t, record.task, "INITIAL", 1)

    def _draw_file(self, name: str) -> None:
        if name not in self._graph_files:
            self._graph_files.add(name)
            self._write("taskgraph", f"{json.dumps(name)} [shape=box];\n")

    def _mark_ready(self, t: float, task: int, before: str, attempt: int) -> None:
        known = self._tasks.get(task)
        category = "default" if known is None else known.category
        self._transact(
            t,
            f"TASK {task} READY {quote_name(category)} FIRST_RESOURCES {attempt} {format_amounts(requested_amounts(known))}",
        )
        self._change_state(t, task, before, "READY")

    def _on_task_activated(self, record: records.TaskActivatedRecord) -> None:
        known = self._tasks.get(record.task)
        if not record.rerun or known is None:
            self._mark_ready(record.t, record.task, "INITIAL", 1)
            return
        number = self._next_recovery_number
        self._next_recovery_number += 1
        self._recovery_numbers[record.task] = number
        self._tasks[number] = known
        self._mark_ready(record.t, number, "INITIAL", 1)
        if known.result in self._debug_files:
            text = f"Submitted recovery task {number} to re-create lost temporary file {quote_name(known.result)}."
            self._debug(record.t, text)

    def _number(self, task: int) -> int:
        return self._recovery_numbers.get(task, task)

    def _on_task_dispatched(self, record: records.TaskDispatchedRecord) -> None:
        t, task, worker = record.t, self._number(record.task), record.worker
        if task in self._running:
            self._mark_ready(t, task, "RUNNING", record.attempt)
        known, where = self._tasks.get(task), self._workers.get(worker)
        amounts = requested_amounts(known)
        if record.cores is not None:
            amounts["cores"] = record.cores
        self._transact(t, f"TASK {task} RUNNING worker-{worker} FIRST_RESOURCES {format_amounts(amounts)}")
        self._running[task] = worker
        if known is None or where is None:
            return
        lines = [f"task {task}", f"category {quote_name(known.category)}"]
        lines += [
            f"infile {quote_name(name)} {quote_name(name)} 0" for name in (*known.inputs, *known.shared)
        ]
        lines += [
            f"outfile {quote_name(name)} {quote_name(name)} 0"
            for name in (known.result, *known.outputs)
            if name
        ]
        lines += [f"{name} {amount:g}" for name, amount in amounts.items()]
        self._debug(t, f"tx to {where} {lines[0]}")
        beginning = f"{self._debug_prefix}vine: tx to {where} "
        self._write("debug", "".join([f"{beginning}{line}\n" for line in (*lines[1:], "end")]))
        self._debug_files.update((*known.inputs, *known.shared, known.result, *known.outputs))
        self._change_state(t, task, "READY", "RUNNING")

    def _on_task_done(self, record: records.TaskDoneRecord) -> None:
        t, task = record.t, self._number(record.task)
        used = {"wall_time": record.wall_s, "cpu_time": record.cpu_s, "memory": record.memory_mb, "disk": record.disk_mb}  # fmt: skip
        measured = {name: amount for name, amount in used.items() if amount is not None}
        known, where = self._tasks.get(task), self._workers.get(record.worker)
        if known is not None and where is not None:
            made = {known.result: record.size} if known.result else {}
            for name, size in {**record.outputs, **made}.items():
                self._cache_update(t, record.worker, name, size, record.wall_s, "X")
        self._end_attempt(t, task, record.worker, ("SUCCESS", 0), record.exit_code, record.wall_s, measured)
        self._transact(t, f"TASK {task} DONE SUCCESS {record.exit_code}")
        self._change_state(t, task, "RETRIEVED", "DONE")

    def _end_attempt(
        self,
        t: float,
        task: int,
        worker: int,
        result: tuple[str, int],
        exit_code: int,
        wall_s: float,
        measured: dict[str, Any],
    ) -> None:
        self._running.pop(task, None)
        where = self._workers.get(worker)
        if where is not None:
            end = self._microseconds(t)
            start = end - int(wall_s * 1e6)
            self._debug(t, f"rx from {where} complete {result[1]} {exit_code} 0 0 {start} {end} 0 {task}")
        self._transact(t, f"TASK {task} WAITING_RETRIEVAL worker-{worker}")
        self._transact(t, f"TASK {task} RETRIEVED {result[0]} {exit_code} {{}} {format_amounts(measured)}")
        self._change_state(t, task, "RUNNING", "WAITING_RETRIEVAL", "RETRIEVED")
        if where is not None:
            # By this the readers of the log know that the worker has removed the task.
            self._debug(t, f"tx to {where} kill {task}")

    def _on_task_failed(self, record: records.TaskFailedRecord) -> None:
        """Remember the worker; either another attempt follows or the end of the task."""
        self._running[self._number(record.task)] = record.worker

    def _on_task_returned(self, record: records.TaskReturnedRecord) -> None:
        task = self._number(record.task)
        if self._running.pop(task, None) is not None:
            where = self._workers.get(record.worker)
            if where is not None and record.reason == "taken back":
                self._debug(record.t, f"tx to {where} kill {task}")
            self._mark_ready(record.t, task, "RUNNING", record.attempt + 1)

    def _on_task_ended(self, record: records.TaskEndedRecord) -> None:
        t, task, result = record.t, self._number(record.task), RESULTS.get(record.outcome, UNKNOWN_RESULT)
        exit_code = 1 if record.outcome == "exception" else -1
        worker = self._running.get(task)
        if worker is not None:
            self._end_attempt(t, task, worker, result, exit_code, 0.0, {})
            self._change_state(t, task, "RETRIEVED", "DONE")
        self._transact(t, f"TASK {task} DONE {result[0]} {exit_code}")

    # ---- files

    def _on_file_declared(self, record: records.FileDeclaredRecord) -> None:
        self._sizes[record.file] = record.size

    def _on_object_sent(self, record: records.ObjectSentRecord) -> None:
        size = max(self._sizes.get(record.file, 0), 0)
        self._start_put(record.t, record.destination, record.file, size)
        self._cache_update(record.t, record.destination, record.file, size, 0.0, "X")
        self._transfer(record.t, record.destination, "INPUT", record.file, size, 0.0)

    def _start_put(self, t: float, worker: int, name: str, size: int) -> None:
        where = self._workers.get(worker)
        if where is not None:
            self._debug_files.add(name)
            self._debug(t, f"tx to {where} put {quote_name(name)} 1 {size} 0644")

    def _on_transfer_started(self, record: records.TransferStartedRecord) -> None:
        where = self._workers.get(record.destination) if isinstance(record.destination, int) else None
        if where is None:
            return
        size = max(record.size, self._sizes.get(record.file, 0), 0)
        if record.source == records.MANAGER:
            self._start_put(record.t, int(record.destination), record.file, size)
            return
        if isinstance(record.source, int):
            address = self._workers.get(record.source, "").partition("(")[2].rstrip(")")
            source = f"workerip://{address}/{quote_name(record.file)}"
        else:
            source = quote_name(str(record.source), "/:?&=%")
        if "://" in source:
            self._transfers += 1
            self._open_transfers[record.file, record.destination] = self._transfers
            self._debug_files.add(record.file)
            self._debug(
                record.t,
                f"tx to {where} puturl {source} {quote_name(record.file)} 1 {size} 0644 {self._transfers}",
            )

    def _on_transfer_ended(self, record: records.TransferEndedRecord) -> None:
        transfer = self._open_transfers.pop((record.file, record.to), None)
        if isinstance(record.to, int):
            self._cache_update(
                record.t, record.to, record.file, record.bytes, record.seconds, str(transfer or "X")
            )
            self._transfer(record.t, record.to, "INPUT", record.file, record.bytes, record.seconds)
        elif isinstance(record.source, int):
            self._transfer(record.t, record.source, "OUTPUT", record.file, record.bytes, record.seconds)

    def _on_transfer_failed(self, record: records.TransferFailedRecord) -> None:
        transfer = self._open_transfers.pop((record.file, record.to), None)
        where = self._workers.get(record.to) if isinstance(record.to, int) else None
        if where is not None and transfer is not None:
            self._debug(
                record.t,
                f"rx from {where} cache-invalid {quote_name(record.file)} {len(record.reason)} {transfer}",
            )

    def _cache_update(
        self, t: float, worker: int, name: str, size: int, seconds: float, transfer: str
    ) -> None:
        where = self._workers.get(worker)
        self._sizes[name] = size
        start, wall = self._microseconds(t - seconds), int(seconds * 1e6)
        self._transact(t, f"WORKER worker-{worker} CACHE_UPDATE {quote_name(name)} {size} {wall} {start}")
        if where is not None and name in self._debug_files:
            self._debug(
                t,
                f"rx from {where} cache-update {quote_name(name)} 1 1 {size} {start // 1_000_000} {wall} {start} {transfer}",
            )

    def _transfer(self, t: float, worker: int, way: str, name: str, size: int, seconds: float) -> None:
        start, wall = self._microseconds(t - seconds), int(seconds * 1e6)
        self._transact(t, f"WORKER worker-{worker} TRANSFER {way} {quote_name(name)} {size} {wall} {start}")

    def _on_files_removed(self, record: records.FilesRemovedRecord) -> None:
        where = self._workers.get(record.worker)
        for name in record.files:
            if where is not None and name in self._debug_files:
                self._debug(record.t, f"tx to {where} unlink {quote_name(name)}")
