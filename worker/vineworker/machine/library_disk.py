"""Measure the disk space of a library, and find the slot that has written most.

The same counts as for a task: the library's folder without its inputs, its output, the temporary
folders and the output of its slots, and open files without a name on the same disk. Results do not
count, as they are the worker's.

A file that the library has opened before a fork is open in its slots, too, and does not count for
them.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from vinecore.protocol import MB
from vinecore.protocol.trees import list_names
from vineworker.machine.descendants import list_with_descendants
from vineworker.machine.resource_monitor import (
    DISK_INTERVAL_S,
    MAX_CPU_FRACTION,
    RateLimiter,
    file_size,
    find_unlinked_files,
    sum_file_sizes,
)
from vineworker.machine.tmpdir import TMPDIR_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping


class WritingProcess(NamedTuple):
    """A process of a library: its number, if known, and its output files."""

    pid: Optional[int]
    logs: tuple[str, ...]


class LibraryTooLarge(NamedTuple):
    """A library that exceeds its limit of disk space.

    ``slot`` has written most of it; None if the shared folder alone exceeds the limit.
    """

    slot: Optional[int]
    limit_mb: int
    peak_mb: int


class LibraryDiskMonitor:
    """Measures the disk space of a library.

    Parameters
    ----------
    folder
        Where the library runs.
    library
        Its fork server.
    slots
        Returns its slots by number; their temporary folders have these names.
    limit
        Returns the limit in MB; 0: no limit.
    copies
        The inputs in the folder; see `sum_file_sizes`.
    clock, cpu_clock
        As for `vineworker.machine.resource_monitor.ResourceMonitor`.
    """

    def __init__(
        self,
        folder: str,
        library: WritingProcess,
        slots: Callable[[], Mapping[int, WritingProcess]],
        limit: Callable[[], int],
        copies: Mapping[int, int],
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._folder, self._library, self._slots, self._limit = folder, library, slots, limit
        self._copies, self._spacing = copies, RateLimiter(clock, cpu_clock)
        self._temporary = os.path.join(folder, TMPDIR_NAME)

    def measure_if_due(self) -> Optional[LibraryTooLarge]:
        """Measure the disk space if there is a limit and it is time; return an excess."""
        limit = self._limit()
        if not limit or not self._spacing.is_due(MAX_CPU_FRACTION, DISK_INTERVAL_S):
            return None
        with self._spacing:
            shared, own = self._measure(dict(self._slots()))
        total = shared + sum(own.values())
        if total <= limit * MB:
            return None
        alone = shared > limit * MB or not any(own.values())
        return LibraryTooLarge(None if alone else max(own, key=own.__getitem__), limit, -(-total // MB))

    def _measure(self, slots: dict[int, WritingProcess]) -> tuple[int, dict[int, int]]:
        """Return the bytes that all slots share, and those of each slot."""
        place = self._folder
        # also those of slots that have ended, which are just being removed
        folders = {
            os.path.join(self._temporary, name) for name in list_names(self._temporary) if name.isdigit()
        }
        left_out = folders.union(*(writer.logs for writer in slots.values()))
        nameless = find_unlinked_files(_pids(self._library), place)
        shared = sum_file_sizes(place, copies=self._copies, left_out=left_out)
        shared += sum(map(file_size, self._library.logs)) + sum(nameless.values())
        own = {}
        for number, writer in slots.items():
            files = find_unlinked_files(list_with_descendants(_pids(writer)), place)
            own[number] = (
                sum_file_sizes(os.path.join(self._temporary, str(number)))
                + sum(map(file_size, writer.logs))
                + sum(size for file, size in files.items() if file not in nameless)
            )
            nameless.update(files)
        return shared, own


def _pids(writer: WritingProcess) -> list[int]:
    return [] if writer.pid is None else [writer.pid]
