"""How much of the disk a library takes, and which of its slots has written most.

What counts is what counts for a task: the folder of the library without what are inputs in it, what it prints, the temporary folders of its slots, what they print, and open
files on the same disk that have no name any more. Results do not: those are the worker's.

A file that the library had open before it forked is open in its slots, too, and is none of theirs.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Callable, NamedTuple, Optional

from vineworker.machine.descendants import list_with_descendants
from vineworker.machine.resource_monitor import (
    DISK_INTERVAL_S,
    MAX_CPU_FRACTION,
    MB,
    RateLimiter,
    file_size,
    find_unlinked_files,
    sum_file_sizes,
)
from vineworker.machine.tmpdir import TMPDIR_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping


class WritingProcess(NamedTuple):
    """A process of a library that writes: the number of the process if it is known, and the files that take what it prints."""

    pid: Optional[int]
    logs: tuple[str, ...]


class LibraryTooLarge(NamedTuple):
    """A library that takes more of the disk than it may; ``slot`` has written most of it, None: what is in the folder that all of them share is too much."""

    slot: Optional[int]
    limit_mb: int
    peak_mb: int


class LibraryDiskMonitor:
    """Looks how much of the disk a library takes.

    Parameters
    ----------
    folder
        Where the library runs.
    library
        Its process.
    slots
        Gives its slots by their numbers, which are also the names of their temporary folders.
    limit
        Gives how many MB they may take; 0: as many as there are.
    copies
        What in the folder are inputs; see `sum_file_sizes`.
    clock, cpu_clock
        As for `vineworker.machine.resource_monitor.Sampler`.
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
        """Add everything up, if there is a limit and it is time; tell if it is too much."""
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
        """Bytes of what all slots share, and of each slot."""
        place = self._folder
        # also those of slots that have ended, which are just being removed
        folders = {
            os.path.join(self._temporary, name) for name in _file_names(self._temporary) if name.isdigit()
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


def _file_names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
