"""The worker's side of a slot: its process, its channel, and the file with its progress."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
import sys
import tempfile
import time
from typing import Any, Callable, Optional

from vinecore.protocol.channel import MessageChannel
from vinecore.protocol.trees import remove_tree
from vineworker.library.fork_server_connection import ForkServerConnection
from vineworker.library.startup_watchdog import REPORT_INTERVAL_S
from vineworker.slot_protocol import FROM_SLOT, IMPORT_PROGRESS, PROGRESS
from vineworker.state import events
from vineworker.tasks.sandbox import read_log_tail

log = logging.getLogger("vine_worker")

EXIT_WAIT_S = 0.2
MAX_OUTPUT_CHARACTERS = 4000
"""The end of the output of a process that is reported with its exit."""


class SlotProcess:
    """A slot of a library, or the process of a Python task.

    Parameters
    ----------
    number
        The slot's number.
    fork_server
        Forks the process.
    folder
        Where the fork server runs; the output of a library's slots goes there.
    output
        File for the output of a Python task; "" for a slot of a library.
    temporary
        Folder for the temporary files of a library's slot, or "".
    on_event
        Takes events for the state machine.

    Attributes
    ----------
    pid
        Process of a Python task, which leads a process group.
    writer
        Process of a library's slot.
    copies
        The inputs in the folder of a Python task; see `sandbox.create_sandbox`.
    on_forked
        Called with the process number of a Python task.
    """

    def __init__(
        self,
        number: int,
        fork_server: ForkServerConnection,
        folder: str,
        output: str,
        temporary: str,
        on_event: Callable[[Any], None],
    ) -> None:
        self.id, self.fork_server, self.temporary = number, fork_server, temporary
        self.is_python_task = bool(output)
        self.log = output or os.path.join(folder, f".vine-stdout-{number}")
        self.errors = "" if output else os.path.join(folder, f".vine-stderr-{number}")
        self._on_event = on_event
        self._exit: Optional[dict[str, Any]] = None
        self.pid: Optional[int] = None
        self.writer: Optional[int] = None
        self.copies: dict[int, int] = {}
        self.on_forked: Callable[[int], None] = lambda _pid: None
        self._is_closed = self._exit_is_reported = self._has_replied = False
        self._file = _create_shared_file()
        self._file.write(PROGRESS.pack(-1, 0.0) + IMPORT_PROGRESS.pack(0.0, b""))
        self._file.flush()
        self._progress = mmap.mmap(self._file.fileno(), PROGRESS.size + IMPORT_PROGRESS.size)
        self._import_report_time = 0.0
        self._local, self._remote = socket.socketpair()
        self._local.setblocking(False)
        self.channel = MessageChannel(
            FROM_SLOT, self._on_replies, self._on_closed, unsent=self._on_send_failed
        )

    async def connect(self) -> None:
        """Attach the channel to the loop."""
        await asyncio.get_running_loop().create_connection(lambda: self.channel, sock=self._local)

    def fork(self, sandbox: str = "") -> None:
        """Request the process from the fork server."""
        if self.fork_server.is_closed:
            self.on_exited({"reason": "its library's process ended"})
            return
        request = {
            "slot": self.id,
            "sandbox": sandbox,
            "output": self.log,
            "errors": self.errors,
            "single": self.is_python_task,
            "temporary": self.temporary,
        }
        self.fork_server.send(request, (self._remote.fileno(), self._file.fileno()))
        self._remote.close()
        # the memory map of the file stays
        self._file.close()

    def on_started(self, pid: int) -> None:
        """Record the process id of the slot."""
        if self.is_python_task:
            self.pid = pid
            self.on_forked(pid)
        else:
            self.writer = pid

    def kill(self) -> None:
        """Have the fork server kill the process.

        Only the fork server knows that the process number was not given to another process: it has
        not waited for this one yet.
        """
        self.fork_server.send({"kill": self.id})

    def start_time_of(self, task: int) -> Optional[float]:
        """Return when the process began with a call that is timed, by `time.monotonic`.

        None if the process does not run that call.
        """
        if self._exit_is_reported:
            return None
        running, start_time = PROGRESS.unpack_from(self._progress, 0)
        return start_time if running == task else None

    def take_slow_import(self) -> Optional[tuple[int, str]]:
        """Return the running task and the module whose import takes long; "" for the module once when it is over.

        None if there is nothing to report now.
        """
        if self._exit_is_reported:
            return None
        now = time.monotonic()
        task, _start_time = PROGRESS.unpack_from(self._progress, 0)
        start_time, module = IMPORT_PROGRESS.unpack_from(self._progress, PROGRESS.size)
        if start_time and task >= 0 and now - start_time >= REPORT_INTERVAL_S:
            if now - self._import_report_time < REPORT_INTERVAL_S:
                return None
            self._import_report_time = now
            return task, os.fsdecode(module.rstrip(b"\0"))
        was_reported, self._import_report_time = bool(self._import_report_time), 0.0
        return (task, "") if was_reported else None

    def read_output_tail(self) -> str:
        """Return the end of the output of the process."""
        paths = filter(None, (self.log, self.errors))
        tails = (read_log_tail(path, MAX_OUTPUT_CHARACTERS) for path in paths)
        return "".join(tails)[-MAX_OUTPUT_CHARACTERS:]

    @property
    def is_over(self) -> bool:
        """Whether this is a Python task that has replied; its output is not reported again."""
        return self.is_python_task and self._has_replied

    def on_exited(self, info: dict[str, Any]) -> None:
        """Record the exit that the fork server reported, or the loss of the fork server."""
        self._exit = info
        # if no process was forked, this end is open here; the channel ends only without it
        self._remote.close()
        if not self._is_closed:
            self._end_channel()
        self._report_if_exited()

    def _on_replies(self, replies: list[Any]) -> None:
        self._has_replied = True
        self._on_event(events.CallsReturned(self.id, replies))

    def _on_send_failed(self, message: Any, reason: str) -> None:
        """Kill a process that would wait in vain for a message; its exit is reported."""
        name = type(message).__name__
        log.error("slot %d ends, because a %s cannot be sent to it: %s", self.id, name, reason)
        self.kill()

    def _on_closed(self, _reason: str) -> None:
        self._is_closed = True
        self._report_if_exited()

    def _end_channel(self) -> None:
        """Receive what the process has written, and no more.

        Other processes may have inherited the remote end, so the end of the connection may not
        come.
        """
        loop = asyncio.get_running_loop()
        try:
            # on Linux, what is in the socket can still be read after that
            if sys.platform == "linux":
                self._local.shutdown(socket.SHUT_RD)
        except OSError:
            # the socket is closed
            pass
        # do not wait until calls are sent that no process reads
        loop.call_later(EXIT_WAIT_S, self.channel.abort, "its process has ended")

    def _report_if_exited(self) -> None:
        """Report the exit when the process is gone and its socket is at its end.

        Replies that are still in the socket come before the report.
        """
        if self._exit is None or not self._is_closed or self._exit_is_reported:
            return
        self._exit_is_reported = True
        if not self.is_python_task:
            for path in (self.log, self.errors):
                remove_tree(path)
        running, _start_time = PROGRESS.unpack_from(self._progress, 0)
        self._progress.close()
        self._file.close()
        self._on_event(events.SlotExited(self.id, running, self._exit))


def _create_shared_file() -> Any:
    """Create a file without a name, in memory if possible.

    A full disk must not prevent the start of slots.
    """
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("vine-progress"), "r+b")
    return tempfile.TemporaryFile()
