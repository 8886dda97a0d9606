"""Send what running tasks append to their watched outputs to the manager."""

from __future__ import annotations

import os
import stat
from typing import Any, Callable, NamedTuple, Optional

from vinecore.protocol import messages
from vineworker.tasks.sandbox import resolve_in_sandbox

WATCH_INTERVAL_S = 0.5
MAX_PART_BYTES = 1 << 20
"""Bytes of one output in one interval."""


class WatchedTask(NamedTuple):
    """A task whose outputs are watched, with the bytes that were sent of each."""

    run: messages.RunTask
    folder: str
    offsets: dict[str, int]


class OutputWatcher:
    """The watched outputs of a session.

    Parameters
    ----------
    send
        Sends a message to the manager.
    run_in_thread, call_later
        Run a function in a helper thread and then another one in the loop; call a function later.
    """

    def __init__(
        self,
        send: Callable[[messages.Message], None],
        run_in_thread: Callable[..., None],
        call_later: Callable[..., Any],
    ) -> None:
        self._send, self._run_in_thread, self._call_later = send, run_in_thread, call_later
        self._tasks: dict[int, WatchedTask] = {}
        self._timer: Any = None

    def add_task(self, run: messages.RunTask, folder: str) -> None:
        """Watch the outputs of a task that starts in a sandbox, if its user has asked for that."""
        if run.options.get("watch"):
            self._tasks[run.task] = WatchedTask(run, folder, {})
            if self._timer is None:
                self._timer = self._call_later(WATCH_INTERVAL_S, self._look)

    def remove_task(self, task: int) -> Optional[WatchedTask]:
        """Watch a task no more, and return it, for `read_parts`; None if it was not watched."""
        return self._tasks.pop(task, None)

    def _look(self) -> None:
        self._timer = None
        watched = list(self._tasks.values())
        if watched:
            self._run_in_thread(lambda: [part for task in watched for part in read_parts(task)], self._then)

    def _then(self, parts: Any, error: Optional[BaseException]) -> None:
        for part in parts if error is None else ():
            # else it has ended, and its rest is sent in another way
            if part.task in self._tasks:
                self._send(part)
                self._tasks[part.task].offsets[part.name] = part.offset + len(part.payload)
        if self._tasks and self._timer is None:
            self._timer = self._call_later(WATCH_INTERVAL_S, self._look)


def read_parts(task: WatchedTask) -> list[messages.OutputPart]:
    """Read what a task has appended to its outputs; an output that was made anew is sent anew."""
    parts = []
    for remote, name in task.run.options["watch"]:
        try:
            with open(resolve_in_sandbox(task.folder, remote), "rb", opener=_open_without_waiting) as file:
                about = os.fstat(file.fileno())
                offset = task.offsets.get(name, 0)
                if not stat.S_ISREG(about.st_mode) or about.st_size == offset:
                    continue
                offset = 0 if about.st_size < offset else offset
                file.seek(offset)
                parts.append(messages.OutputPart(task.run.task, name, offset, file.read(MAX_PART_BYTES)))
        except (OSError, ValueError):
            # it is not there yet
            continue
    return parts


def _open_without_waiting(path: str, flags: int) -> int:
    # a pipe would wait for its writer
    return os.open(path, flags | os.O_NONBLOCK)
