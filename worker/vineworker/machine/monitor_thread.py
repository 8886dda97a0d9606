"""The thread in which tasks and libraries are measured."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Callable, Optional

from vineworker.machine.library_disk import LibraryDiskMonitor, LibraryTooLarge
from vineworker.machine.resource_monitor import LimitExceeded, Peak, ResourceMonitor

log = logging.getLogger("vine_worker")

SAMPLE_INTERVAL_S = 0.2


class ResourceMonitorThread:
    """Measures tasks, in a thread that sleeps while there are none.

    Parameters
    ----------
    exceeded
        Called with each limit that a task has exceeded.
    disk_mb
        Limit of the disk space of a task without a limit of its own; 0: no limit.
    library_too_large
        Called with the name of a library that exceeds its limit of disk space.
    """

    def __init__(
        self,
        exceeded: Callable[[LimitExceeded], None],
        disk_mb: int = 0,
        library_too_large: Callable[[str, LibraryTooLarge], None] = lambda _library, _found: None,
    ) -> None:
        self._on_library_too_large = library_too_large
        self._libraries: dict[str, LibraryDiskMonitor] = {}
        self._monitor, self._on_limit_exceeded, self._disk_mb = ResourceMonitor(), exceeded, disk_mb
        self._tasks: set[int] = set()
        self._unlimited: set[int] = set()
        self._wake = threading.Event()
        self._closing = False
        self._thread: Optional[threading.Thread] = None

    def add_task(
        self,
        task: int,
        pid: int,
        options: dict[str, Any],
        folder: str,
        output: str = "",
        copies: Mapping[int, int] = {},
    ) -> None:
        """Begin to measure a task.

        Parameters
        ----------
        task, pid
            The task, and the process that leads its tree.
        options
            Options of the task, with its limits.
        folder, output
            Its sandbox, and its output file.
        copies
            The inputs in the sandbox; see `vineworker.machine.resource_monitor.sum_file_sizes`.
        """
        limits = dict(options.get("limits") or {})
        if self._disk_mb and "disk" not in limits:
            limits["disk"] = self._disk_mb
            self._unlimited.add(task)
        self._monitor.add_task(task, pid, limits, folder, output, copies)
        self._tasks.add(task)
        self._start()

    def add_library(self, name: str, disk: LibraryDiskMonitor) -> None:
        """Begin to measure the disk space of a library."""
        self._libraries[name] = disk
        self._start()

    def remove_library(self, name: str) -> None:
        """Stop measuring a library."""
        if self._libraries.pop(name, None) is not None:
            self._pause_if_unused()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vine-monitor", daemon=True)
            self._thread.start()
        self._wake.set()

    def remove_task(self, task: int) -> Optional[Peak]:
        """Stop measuring a task; return what it used at most."""
        if task not in self._tasks:
            return None
        self._tasks.discard(task)
        self._pause_if_unused()
        peak = self._monitor.remove_task(task)
        # a task without a limit of its own is told nothing
        if task in self._unlimited:
            self._unlimited.discard(task)
            peak = peak._replace(disk_mb=None)
        return peak

    def _pause_if_unused(self) -> None:
        if not self._tasks and not self._libraries:
            self._wake.clear()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait()
            try:
                for exceeded in self._monitor.sample():
                    self._on_limit_exceeded(exceeded)
                for name, disk in list(self._libraries.items()):
                    found = disk.measure_if_due()
                    if found is not None:
                        self._on_library_too_large(name, found)
            except Exception:
                # the tasks go on, and are looked at again
                log.exception("a defect where tasks are measured; please report it")
            time.sleep(SAMPLE_INTERVAL_S)

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._wake.set()
