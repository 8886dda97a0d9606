"""Measure the process trees of tasks, and report exceeded limits.

A thread calls `ResourceMonitor.sample` some times per second; the caller kills the tasks that have
exceeded a limit. Nothing else here stops a process.

A tree is the process of a task with its descendants. A descendant stays a member when its parent
ends, so a process does not escape by forking twice, unless it does so between two samples.

The memory of a tree is the memory that its processes do not share with processes outside, computed
as::

    max(sum of private, sum of share - inherited)

Here *inherited* is what the root shared with others at its first sample. The first term is right
for single processes, the second for a task that fills its memory and then forks: the pages that its
children share are private to none of them. It subtracts a little too much (at most the size of the
library), never too little. If the system does not tell, the sum of the resident sets counts; see
`vineworker.machine.process_info`.

Samples take time: 0.05 ms for a process, 10 ms for the memory of a process with 1 GB, longer for a
sandbox with many files. So slow measurements are made less often: each takes at most
`MAX_CPU_FRACTION` of one core for each task.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

from vinecore.protocol import MB
from vineworker.machine.process_info import ProcessProbe, ProcessSample, best_probe

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping


MAX_CPU_FRACTION = 0.05
# While the resident set is above the limit it has to be known soon whether that is the task's own
# memory.
MAX_CPU_FRACTION_NEAR_LIMIT = 0.2
# Where the resident set is below the peak there is nothing to find, unless the system swaps.
MIN_INTERVAL_BELOW_PEAK_S = 5.0
DISK_INTERVAL_S = 2.0
MAX_PROCESSES = 1000
MAX_ENTRIES = 20_000

TaskId = Union[int, str]


class Peak(NamedTuple):
    """Highest usage of a task; None for what could not be measured.

    Attributes
    ----------
    memory_mb, disk_mb : int or None
        The highest at any moment, rounded up.
    cores_avg : float or None
        CPU time over wall time.
    wall_s : float
        From `ResourceMonitor.add_task` to `ResourceMonitor.remove_task`.
    processes : int
        The highest number at any moment.
    """

    memory_mb: int | None
    disk_mb: int | None
    cores_avg: float | None
    wall_s: float
    processes: int


class LimitExceeded(NamedTuple):
    """A task that uses more than its limit."""

    task_id: TaskId
    resource: str
    limit_mb: int
    peak_mb: int


class ResourceMonitor:
    """Measures the process trees of tasks. All methods may be called from any thread.

    Parameters
    ----------
    probe : ProcessProbe or None
        Reads processes; by default the best way of this system.
    clock : callable
        Seconds that never go back.
    cpu_clock : callable
        CPU time of the calling thread, by which the cost of samples is measured. On a busy node,
        wall time would be too long, and there the samples matter most.
    """

    def __init__(
        self,
        probe: ProcessProbe | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._probe = probe or best_probe()
        self._clock, self._cpu_clock = clock, cpu_clock
        self._lock = threading.Lock()
        self._round_lock = threading.Lock()
        self._tasks: dict[TaskId, _MonitoredTask] = {}

    def add_task(
        self,
        task_id: TaskId,
        pid: int,
        limits: Mapping[str, Any],
        sandbox: str | None = None,
        output: str = "",
        copies: Mapping[int, int] = {},
    ) -> None:
        """Begin to measure a task.

        Parameters
        ----------
        task_id : int or str
            As in `LimitExceeded`. A task with the same id is replaced.
        pid : int
            The process that leads the tree.
        limits : mapping
            "memory" and "disk" in MB; None or absent: no limit. Other keys are ignored.
        sandbox : str or None
            Folder of which the files count as disk space, if there is a limit for that.
        output : str
            Output file of the task, which counts, too; "" if there is none.
        copies : mapping
            The inputs in the folder, which do not count; see `sum_file_sizes`.
        """
        disk = None if sandbox is None else (sandbox, output, copies)
        watch = _MonitoredTask(self._probe, pid, limits, disk, self._clock, self._cpu_clock)
        with self._lock:
            self._tasks[task_id] = watch

    def remove_task(self, task_id: TaskId) -> Peak:
        """Stop measuring a task and return its highest usage.

        Call this before waiting for the process. A task that was not sampled yet is sampled now.
        This never waits for another sample.
        """
        with self._lock:
            watch = self._tasks.pop(task_id, None)
        if watch is None:
            return Peak(None, None, None, 0.0, 0)
        if watch.busy.acquire(blocking=False):
            try:
                watch.sample(last=True)
            finally:
                watch.busy.release()
        return watch.get_peak()

    def sample(self) -> list[LimitExceeded]:
        """Sample all tasks; return the exceeded limits, each once.

        When the caller reads the answer, a task may have ended and been removed.
        """
        found: list[LimitExceeded] = []
        # One round at a time: what is kept for a round is not shared by two.
        with self._round_lock:
            with self._lock:
                watches = list(self._tasks.items())
            if self._probe is not None:
                self._probe.start_round()
            for task_id, watch in watches:
                with watch.busy:
                    watch.sample()
                watch.measure_sandbox()
                if self._tasks.get(task_id) is watch:
                    found += [LimitExceeded(task_id, *news) for news in watch.exceeded_limits()]
        return found


class RateLimiter:
    """Limits how often a slow measurement is made."""

    __slots__ = ("_clock", "_cost_s", "_cpu_clock", "_done_at", "_since")

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float]) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._cost_s = self._since = 0.0
        self._done_at = float("-inf")

    def is_due(self, duty: float, at_least_s: float = 0.0) -> bool:
        """Return whether the measurement may be made again.

        Parameters
        ----------
        duty
            Highest fraction of the time that it may take.
        at_least_s
            Shortest interval in seconds.
        """
        return self._clock() >= self._done_at + max(self._cost_s / duty, at_least_s)

    def __enter__(self) -> None:
        self._since = self._cpu_clock()

    def __exit__(self, *_: object) -> None:
        self._cost_s = self._cpu_clock() - self._since
        self._done_at = self._clock()


class _MonitoredTask:
    """A task with its members and its highest usage."""

    def __init__(
        self,
        probe: ProcessProbe | None,
        pid: int,
        limits: Mapping[str, Any],
        disk: tuple[str, str, Mapping[int, int]] | None,
        clock: Callable[[], float],
        cpu_clock: Callable[[], float],
    ) -> None:
        self.busy = threading.Lock()
        self._probe, self._root, self._disk_paths, self._clock = probe, pid, disk, clock
        self._in_sandbox = 0
        asked = {resource: limits.get(resource) for resource in ("memory", "disk")}
        self._limits = {resource: limit for resource, limit in asked.items() if limit is not None}
        self._started = clock()
        self._peaks: dict[str, int] = {}
        self._reported: set[str] = set()
        self._members: dict[int, float] = {}
        self._inherited: int | None = None
        self._cpu_s: float | None = None
        self._processes = 0
        self._tree_limiter, self._memory_limiter, self._disk_limiter = (
            RateLimiter(clock, cpu_clock) for _ in range(3)
        )
        first = probe.sample(pid) if probe is not None else None
        self._cpu_before = first.cpu_s if first else 0.0
        self._rss_before = first.rss if first else 0
        if first is not None:
            self._members[pid] = first.started_at

    def sample(self, *, last: bool = False) -> None:
        """Sample the processes."""
        if self._probe is None or not self._members:
            return
        living = self._update_members(self._probe)
        if not living:
            return
        cpu_s = sum(one.cpu_s for one in living.values()) - self._cpu_before
        self._cpu_s = max(cpu_s, self._cpu_s or 0.0)
        self._processes = max(self._processes, sum(one.rss > 0 for one in living.values()))
        rss = sum(one.rss for one in living.values())
        if rss and self._is_memory_due(rss, last):
            with self._memory_limiter:
                self._raise_peak("memory", self._own_memory(self._probe, living))

    def _update_members(self, probe: ProcessProbe) -> dict[int, ProcessSample]:
        """Sample the members, and find new ones."""
        living: dict[int, ProcessSample] = {}
        for pid, born in list(self._members.items()):
            seen = probe.sample(pid)
            # The same number with another birth is another process, and none of ours.
            if seen is None or seen.started_at != born:
                del self._members[pid]
            else:
                living[pid] = seen
        if self._tree_limiter.is_due(MAX_CPU_FRACTION):
            with self._tree_limiter:
                self._find_children(probe, living)
        return living

    def _find_children(self, probe: ProcessProbe, living: dict[int, ProcessSample]) -> None:
        waiting = list(living)
        while waiting and len(living) < MAX_PROCESSES:
            for child in probe.children(waiting.pop()):
                seen = None if child in living else probe.sample(child)
                if seen is not None:
                    living[child] = seen
                    self._members[child] = seen.started_at
                    waiting.append(child)

    def _is_memory_due(self, rss: int, last: bool) -> bool:
        peak = self._peaks.get("memory")
        if peak is None:
            return True
        if last:
            return False
        limit = self._limits.get("memory")
        doubt = limit is not None and "memory" not in self._reported and rss > limit * MB
        return self._memory_limiter.is_due(
            MAX_CPU_FRACTION_NEAR_LIMIT if doubt else MAX_CPU_FRACTION,
            MIN_INTERVAL_BELOW_PEAK_S if rss <= peak else 0.0,
        )

    def _own_memory(self, probe: ProcessProbe, living: dict[int, ProcessSample]) -> int:
        private = share = 0
        for pid, seen in living.items():
            memory = probe.memory(pid) if seen.rss else None
            if memory is None:
                # Not to be seen (another user's): the upper bound. But what has just ended holds
                # nothing; to count its resident set would blame the task for all that it had
                # inherited.
                rss = _read_current_rss(probe, pid, seen)
                private, share = private + rss, share + rss
                continue
            if pid == self._root and self._inherited is None:
                # By now it may have forked too; but what it brought along was in its resident set
                # from the start.
                self._inherited = min(memory.inherited, self._rss_before)
            private, share = private + memory.private, share + memory.share
        return max(private, share - (self._inherited or 0))

    def measure_sandbox(self) -> None:
        """Measure sandbox and output, if there is a limit for them and the interval has passed."""
        if self._disk_paths is None or "disk" not in self._limits:
            return
        sandbox, output, copies = self._disk_paths
        if self._disk_limiter.is_due(MAX_CPU_FRACTION, DISK_INTERVAL_S):
            with self._disk_limiter:
                nameless = sum(find_unlinked_files(list(self._members), sandbox).values())
                self._in_sandbox = sum_file_sizes(sandbox, copies=copies) + nameless
        self._raise_peak("disk", self._in_sandbox + file_size(output))

    def _raise_peak(self, resource: str, value: int) -> None:
        self._peaks[resource] = max(value, self._peaks.get(resource, 0))

    def exceeded_limits(self) -> list[tuple[str, int, int]]:
        """Return the exceeded limits that were not reported yet: resource, limit and peak in MB."""
        told = []
        for resource, limit in self._limits.items():
            peak = self._peaks.get(resource, 0)
            if peak > limit * MB and resource not in self._reported:
                self._reported.add(resource)
                told.append((resource, limit, _round_up_mb(peak)))
        return told

    def get_peak(self) -> Peak:
        """Return the highest usage so far."""
        wall_s = self._clock() - self._started
        memory, disk = self._peaks.get("memory"), self._peaks.get("disk")
        return Peak(
            None if memory is None else _round_up_mb(memory),
            None if disk is None else _round_up_mb(disk),
            None if self._cpu_s is None or wall_s <= 0 else self._cpu_s / wall_s,
            wall_s,
            self._processes,
        )


def _read_current_rss(probe: ProcessProbe, pid: int, before: ProcessSample) -> int:
    now = probe.sample(pid)
    return now.rss if now is not None and now.started_at == before.started_at else 0


def file_size(path: str) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    try:
        return os.stat(path).st_size if path else 0
    except OSError:
        return 0


def sum_file_sizes(
    folder: str,
    max_entries: int = MAX_ENTRIES,
    copies: Mapping[int, int] = {},
    left_out: Container[str] = (),
) -> int:
    """Return the sum of the sizes of the files below a folder.

    A file with a link elsewhere, such as an input from the cache, does not count. Symbolic links
    are not followed. After `max_entries` entries this stops, and the sum is a lower bound.

    Parameters
    ----------
    folder
        The folder.
    max_entries
        Highest number of entries that are read.
    copies
        Inode numbers and sizes of files that were there from the beginning; these sizes do not
        count.
    left_out
        Paths below the folder that do not count.
    """
    total = seen = 0
    linked: dict[tuple[int, int], list[int]] = {}
    folders = [folder]
    while folders and seen < max_entries:
        for entry in _scan_folder(folders.pop()):
            seen += 1
            if left_out and entry.path in left_out:
                continue
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(info.st_mode):
                folders.append(entry.path)
            elif not stat.S_ISREG(info.st_mode):
                continue
            elif info.st_nlink > 1:
                links = linked.setdefault((info.st_dev, info.st_ino), [info.st_nlink, info.st_size])
                links[0] -= 1
            else:
                total += max(0, info.st_size - copies.get(info.st_ino, 0)) if copies else info.st_size
            if seen >= max_entries:
                break
    return total + sum(size for missing, size in linked.values() if missing <= 0)


def find_unlinked_files(processes: Iterable[int], folder: str) -> dict[int, int]:
    """Return open files without a name, by inode, with the bytes that they take.

    Only files on the disk of a folder count. Not all systems tell.

    Parameters
    ----------
    processes
        Processes with open files.
    folder
        The folder.
    """
    try:
        disk = os.stat(folder).st_dev
    except OSError:
        return {}
    found: dict[int, int] = {}
    for pid in processes:
        for entry in _scan_folder(f"/proc/{pid}/fd"):
            try:
                info = os.stat(entry.path)
            except OSError:  # it has been closed
                continue
            if info.st_nlink == 0 and info.st_dev == disk and stat.S_ISREG(info.st_mode):
                found[info.st_ino] = info.st_blocks * 512
    return found


def _scan_folder(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _round_up_mb(size: int) -> int:
    return -(-size // MB)
