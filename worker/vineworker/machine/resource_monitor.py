"""Measuring tasks: the peak of memory and disk, CPU time, processes; and who has exceeded a limit.

A `Sampler` watches the process tree of every task. Someone calls `Sampler.sample` a few times per second,
from a thread of its own; it reports the tasks that have exceeded a limit, and the caller stops them. Nothing
here ends a process.

A tree is what descends from the process of the task. Descendants stay members when their parent ends, so that
nothing escapes by forking twice, unless it does so between two samples.

The memory of a tree is what its processes hold for themselves plus what they share among each other, without
what they have from outside, namely from the library whose fork the task is::

    max(sum of private, sum of proportional shares - inherited)

where *inherited* is what the root shared with others when it was first looked at. The first is right for
single processes, the second for a task that fills its memory and then forks: what its children share is
private to none of them. It takes off a little too much (at most the size of the library), never too little.
See `vineworker.machine.process_info` for what counts; where that is not known it is the sum of the resident sets.

Looking costs time: 0.05 ms for a process, 10 ms for the memory of one that holds a GB, more for a sandbox
with many files. Each is therefore done more seldom the longer it takes, so as to use at most `DUTY` of one
core for each task.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union

from vineworker.machine.process_info import ProcessProbe, ProcessSample, best_probe

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

MB = 1 << 20

MAX_CPU_FRACTION = 0.05
# While the resident set is above the limit it has to be known soon whether that is the task's own memory.
MAX_CPU_FRACTION_NEAR_LIMIT = 0.2
# Where the resident set is below the peak there is nothing to find, unless the system swaps.
MIN_INTERVAL_BELOW_PEAK_S = 5.0
DISK_INTERVAL_S = 2.0
MAX_PROCESSES = 1000
MAX_ENTRIES = 20_000

TaskId = Union[int, str]


class Peak(NamedTuple):
    """What a task was seen to use; None where nothing could be measured.

    Attributes
    ----------
    memory_mb, disk_mb : int or None
        The most at any moment, rounded up.
    cores_avg : float or None
        CPU time over wall time.
    wall_s : float
        From `Sampler.watch` to `Sampler.unwatch`.
    processes : int
        The most at any moment.
    """

    memory_mb: int | None
    disk_mb: int | None
    cores_avg: float | None
    wall_s: float
    processes: int


class LimitExceeded(NamedTuple):
    """A task that uses more than it may."""

    task_id: TaskId
    resource: str
    limit_mb: int
    peak_mb: int


class ResourceMonitor:
    """Watches the process trees of tasks. All methods may be called from any thread.

    Parameters
    ----------
    probe : Probe or None
        How processes are looked at; by default the best way there is here.
    clock : callable
        Seconds that never go back.
    cpu_clock : callable
        CPU time of the calling thread, to tell what looking costs: on a busy node, where it matters most that
        tasks are watched, wall time says too much.
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
        """Start to measure a task.

        Parameters
        ----------
        task_id : int or str
            As it comes back in `Exceeded`. A task that is watched already is replaced.
        pid : int
            The process whose tree is measured.
        limits : mapping
            "memory" and "disk" in MB; None or absent: no limit. Other keys are ignored.
        sandbox : str or None
            The folder whose files count as disk, if there is a limit for that.
        output : str
            The file that takes what the task prints, which counts, too; "" if there is none.
        copies : mapping
            What in the folder does not count; see `sum_file_sizes`.
        """
        disk = None if sandbox is None else (sandbox, output, copies)
        watch = _MonitoredTask(self._probe, pid, limits, disk, self._clock, self._cpu_clock)
        with self._lock:
            self._tasks[task_id] = watch

    def remove_task(self, task_id: TaskId) -> Peak:
        """Stop to measure a task and tell what was seen; best called before the process is waited for.

        A task too short to be sampled is looked at now. Never waits for a sample that is being taken.
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
        """Look at every task; tell which have exceeded a limit, once for each limit.

        By the time the answer is read a task may have ended, and `unwatch` been called.
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
    """When something that costs may be done again."""

    __slots__ = ("_clock", "_cost_s", "_cpu_clock", "_done_at", "_since")

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float]) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._cost_s = self._since = 0.0
        self._done_at = float("-inf")

    def is_due(self, duty: float, at_least_s: float = 0.0) -> bool:
        """Whether it was not done for so long that it takes no more than this part of the time, and for that many seconds."""
        return self._clock() >= self._done_at + max(self._cost_s / duty, at_least_s)

    def __enter__(self) -> None:
        self._since = self._cpu_clock()

    def __exit__(self, *_: object) -> None:
        self._cost_s = self._cpu_clock() - self._since
        self._done_at = self._clock()


class _MonitoredTask:
    """One task: its members and its peaks."""

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
        """Look at the processes."""
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
        """Look at the members, and find new ones."""
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
                # Not to be seen (another user's): the upper bound. But what has just ended holds nothing; to
                # count its resident set would blame the task for all that it had inherited.
                rss = _read_current_rss(probe, pid, seen)
                private, share = private + rss, share + rss
                continue
            if pid == self._root and self._inherited is None:
                # By now it may have forked too; but what it brought along was in its resident set from the
                # start.
                self._inherited = min(memory.inherited, self._rss_before)
            private, share = private + memory.private, share + memory.share
        return max(private, share - (self._inherited or 0))

    def measure_sandbox(self) -> None:
        """Add up the sandbox, if there is a limit for it and it is time, and what the task has printed."""
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
    """Bytes of a file; 0 if there is none."""
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
    """Add up the sizes of the files below a folder.

    A file that is also linked from elsewhere, as the inputs from the cache are, belongs there and does not
    count. Symbolic links are not followed. After `max_entries` it stops: the sum is then a lower bound.

    Parameters
    ----------
    copies
        Files, by their numbers, that were there from the beginning, and their sizes then, which do not count.
    left_out
        Paths of files and folders below it that do not count.
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
    """Find open files without a name on the disk that a folder is on, by their numbers, and the bytes that they take, where the system tells."""
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
