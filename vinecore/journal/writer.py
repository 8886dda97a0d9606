"""Writes the journal of a run, in a thread of its own.

The server's thread only appends events and instructions to a queue, once per iteration of its loop.
The writing thread turns them into records (`JournalRecorder`) and writes these once in half a second,
or when there is a megabyte. If it cannot write, or more than `MAX_QUEUED_ITEMS` items wait because the
disk is slow, it logs a warning, the journal ends, and the run continues.
"""

from __future__ import annotations

import contextlib
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
from vinecore.journal import records
from vinecore.journal.recorder import JournalRecorder
from vinecore.journal.run_logs import RunLogs
from vinecore.scheduler import events, instructions

log = logging.getLogger("vinecore")
TEMPLATE = "%Y-%m-%dT%H%M%S"
"""The name of the folder of a run."""
POLL_INTERVAL_S = 0.1
FLUSH_INTERVAL_S = 0.5
MAX_BUFFERED_BYTES = 1 << 20
MAX_QUEUED_ITEMS = 400_000
"""Events and instructions that wait to become records."""
SHUTDOWN_TIMEOUT_S = 10.0
"""How long `JournalWriter.close` waits until the rest is written."""
BATCHES_PER_YIELD = 16
"""Iterations of the server that are written before other threads may run."""
_encode_lines = msgspec.json.Encoder().encode_lines


class JournalWriter:
    """Writes a journal, in a thread of its own.

    Parameters
    ----------
    run_info_path
        The folder that gets a folder with the journal, named by the time.
    template
        The name of this folder, in which ``strftime`` replaces times.
    durable
        Whether the journal, except for the last second, survives a loss of power.
    run_logs
        Whether the logs that tools for TaskVine read are written beside the journal.
    **about
        Fields of the first record, which describe the manager.

    Attributes
    ----------
    path : Path or None
        The journal; None until `start` has made it, or if it could not.
    logs : RunLogs or None
        The logs, from `start` to `close`.
    """

    def __init__(
        self,
        run_info_path: str | Path,
        *,
        template: str = TEMPLATE,
        durable: bool = False,
        run_logs: bool = False,
        **about: Any,
    ) -> None:
        self._parent, self._about, self._durable = Path(run_info_path).expanduser().absolute(), about, durable
        self._template, self._has_run_logs = template, run_logs
        self.logs: RunLogs | None = None
        # Returns the statistics and the interval of the performance log in seconds.
        self._read_stats: Callable[[], tuple[Any, float]] | None = None
        self._next_stats = 0.0
        self.path: Path | None = None
        self._file = -1
        self._queue: deque[tuple[float, list[events.Event], list[instructions.Instruction]]] = deque()
        # events and instructions, counted by the server's thread and by this one
        self._enqueued = self._written = 0
        self._pending: list[bytes] = []
        # bytes of the pending lines
        self._unwritten = 0
        self._closing = threading.Event()
        self._overflow = ""
        self._began = time.monotonic()
        self._recorder = JournalRecorder(self._began)
        self._thread = threading.Thread(target=self._run_thread, name="vine-journal", daemon=True)

    def start(self, port: int) -> None:
        """Create the journal and start the thread; log a warning if that is impossible."""
        header = records.Header(0.0, records.VERSION, time.time(), socket.gethostname(), os.getpid(), port=port, daskvine=__version__,
                           python=platform.python_version(), **self._about)  # fmt: skip
        path = self._parent
        try:
            path = _create_directory(self._parent, self._template) / records.FILE
            self._file = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            _lock_file(self._file)
            _write_all(self._file, _encode_lines([header]))
        except OSError as error:
            self._close_file()
            log.warning(
                "cannot write the journal %s: %s; continuing without a journal", path, error.strerror or error
            )
            return
        self.path = path
        if self._has_run_logs:
            started_at = time.time() - (time.monotonic() - self._began)
            try:
                self.logs = RunLogs(path.parent, pid=os.getpid(), started_at=started_at, port=port)
            except OSError as error:
                self._end_logs(error)
        _update_symlink(self._parent / records.MOST_RECENT, path.parent.name)
        self._thread.start()

    def log_performance(self, read_stats: Callable[[], tuple[Any, float]]) -> None:
        """Write a line of the performance log now, and then one in each interval.

        Parameters
        ----------
        read_stats
            Returns the statistics, and the interval in seconds.
        """
        self._read_stats = read_stats
        self._write_performance()

    def _write_performance(self) -> None:
        if self.logs is None or self._read_stats is None:
            return
        try:
            stats, interval = self._read_stats()
        except RuntimeError:  # the manager is closed
            self._read_stats = None
            return
        self._next_stats = time.monotonic() + interval
        self.logs.add_performance(stats)

    def _end_logs(self, error: OSError) -> None:
        self.logs = None
        log.warning("the logs end, the run goes on without: %s: %s", self._parent, error.strerror or error)

    def record(
        self, now: float, event_batch: list[events.Event], instruction_batch: list[instructions.Instruction]
    ) -> None:
        """Queue events and instructions for the writing thread."""
        if self._file < 0 or self._overflow:
            return
        if self._enqueued - self._written > MAX_QUEUED_ITEMS:
            self._overflow = f"{self.path} takes what happens more slowly than it happens"
            log.warning("the journal ends, the run goes on without: %s", self._overflow)
            return
        self._enqueued += len(event_batch) + len(instruction_batch)
        self._queue.append((now, event_batch, instruction_batch))

    def close(self) -> None:
        """Write what is queued, and end the journal."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(SHUTDOWN_TIMEOUT_S)
            if self._thread.is_alive():
                log.warning("%s does not take what is left of the journal: it is not complete", self.path)

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
            # read before the queue: nothing is queued after an overflow
            full = self._overflow
            self._write_queued()
            if self.logs is not None and not closing and time.monotonic() > self._next_stats:
                self._write_performance()
            t = round(time.monotonic() - self._began, 6)
            if full:
                self._add_records([records.JournalStoppedRecord(t, full)])
            elif closing:
                self._add_records([records.ManagerClosedRecord(t)])
            if full or closing or time.monotonic() - written > FLUSH_INTERVAL_S:
                self._flush()
                written = time.monotonic()
            if full or closing:
                self._close_file()

    def _write_queued(self) -> None:
        """Turn all queued events and instructions into lines."""
        queue, records_for = self._queue, self._recorder.records_for
        while queue:
            batch: list[records.Record] = []
            for _ in range(min(len(queue), BATCHES_PER_YIELD)):
                now, event_batch, instruction_batch = queue.popleft()
                of_iteration = records_for(now, event_batch, instruction_batch)
                batch += of_iteration
                if self.logs is not None:
                    self.logs.add_events(now - self._began, event_batch)
                    self.logs.add_records(of_iteration)
                self._written += len(event_batch) + len(instruction_batch)
            self._add_records(batch)
            if self._unwritten >= MAX_BUFFERED_BYTES:
                self._flush()
            # the server's thread has priority
            time.sleep(0)

    def _add_records(self, batch: list[records.Record]) -> None:
        if batch:
            lines = _encode_records(batch)
            self._pending.append(lines)
            self._unwritten += len(lines)

    def _flush(self) -> None:
        lines, self._pending, self._unwritten = b"".join(self._pending), [], 0
        if self.logs is not None:
            try:
                self.logs.flush()
            except OSError as error:
                self._end_logs(error)
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
        logs, self.logs = self.logs, None
        if logs is not None:
            with contextlib.suppress(OSError):
                logs.close()
        self._queue.clear()


def _encode_records(batch: list[records.Record]) -> bytes:
    try:
        return _encode_lines(batch)
    except UnicodeEncodeError:
        # names of files and keys may contain bytes that are no text
        return _encode_lines([_replace_surrogates(msgspec.to_builtins(record)) for record in batch])


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
    """Lock the journal, which shows that its manager is alive."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # a file system without locks
        pass


def _create_directory(parent: Path, template: str) -> Path:
    """Create a folder that is named by the time."""
    name = first = datetime.now().astimezone().strftime(template)
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(2):
        folder = parent / name
        try:
            folder.mkdir()
        except FileExistsError:
            name = f"{first}-{number}"
        else:
            break
    return folder


def _update_symlink(link: Path, name: str) -> None:
    """Point a link to a folder beside it, if the file system allows that."""
    fresh = link.with_name(f".{link.name}-{name}")
    try:
        fresh.symlink_to(name)
        fresh.replace(link)
    except OSError:
        pass
