"""Read CPU time, memory and children of single processes.

On Linux this reads two or three files of ``/proc``, in some ten microseconds each. On other systems
it uses psutil, if installed; else nothing is measured.

The resident set of a process includes pages that it shares: those inherited from its fork server,
and those of mapped files, which the kernel drops if it needs the space. A limit is about neither.
`Memory` counts the memory that the end of the process would free: dirty pages and swap.

References
----------
proc_pid_stat(5), proc_pid_smaps(5) and proc_tid_children(5) of the Linux manual pages.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol

from vinecore.protocol.trees import list_names

KB = 1024
READ_BYTES = 1 << 16


class ProcessSample(NamedTuple):
    """A process at one moment.

    Attributes
    ----------
    started_at : float
        Its start, in the units of the system. With the number, it identifies the process.
    cpu_s : float
        CPU time of the process and of those descendants that it has waited for.
    rss : int
        Resident set in bytes; 0 for a process that has ended and was not waited for.
    """

    started_at: float
    cpu_s: float
    rss: int


class Memory(NamedTuple):
    """Memory of a process in bytes.

    Attributes
    ----------
    private : int
        Dirty pages that it does not share.
    share : int
        These, and its proportional share of the shared ones.
    inherited : int
        All shared dirty pages.
    """

    private: int
    share: int
    inherited: int


class ProcessProbe(Protocol):
    """Reads processes; no method raises for a process that has ended."""

    def start_round(self) -> None:
        """Start a round: drop what holds for one moment only."""

    def sample(self, pid: int) -> ProcessSample | None:
        """Return a sample of a process; None if there is none, or if it cannot be read."""

    def children(self, pid: int) -> list[int]:
        """Return the direct children."""

    def memory(self, pid: int) -> Memory | None:
        """Measure the memory of a process; None if it is not known. Takes 10 ms per GB."""


class LinuxProbe:
    """Reads ``/proc``."""

    def __init__(self, root: str = "/proc") -> None:
        self._root = root
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        self._page = os.sysconf("SC_PAGE_SIZE")
        # Kernels may be built without the lists of children; then the parents of all processes are
        # read, once in a round.
        self._lists = os.path.exists(f"{root}/self/task/{os.getpid()}/children")
        self._children_table: dict[int, list[int]] | None = None

    def start_round(self) -> None:
        """Drop the table of children."""
        self._children_table = None

    def sample(self, pid: int) -> ProcessSample | None:
        """Read ``/proc/PID/stat``."""
        fields = self._stat(pid)
        if len(fields) < 22:
            return None
        cpu = sum(int(field) for field in fields[11:15])
        return ProcessSample(float(fields[19]), cpu * self._tick_s, int(fields[21]) * self._page)

    def _stat(self, pid: int) -> list[bytes]:
        # The name of the program comes second, in parentheses, and may itself hold blanks and
        # parentheses.
        return _read_file(f"{self._root}/{pid}/stat").rpartition(b")")[2].split()

    def children(self, pid: int) -> list[int]:
        """Read the list of each thread, as each has children of its own."""
        if not self._lists:
            if self._children_table is None:
                self._children_table = self._read_children_table()
            return self._children_table.get(pid, [])
        found: list[int] = []
        for thread in list_names(f"{self._root}/{pid}/task"):
            found += map(int, _read_file(f"{self._root}/{pid}/task/{thread}/children").split())
        return found

    def _read_children_table(self) -> dict[int, list[int]]:
        children: dict[int, list[int]] = {}
        for entry in list_names(self._root):
            if entry.isdigit():
                fields = self._stat(int(entry))
                if len(fields) > 1:
                    children.setdefault(int(fields[1]), []).append(int(entry))
        return children

    def memory(self, pid: int) -> Memory | None:
        """Read ``/proc/PID/smaps_rollup`` (Linux 4.14; the shares by kind came with 5.4)."""
        sizes: dict[bytes, int] = {}
        for line in _read_file(f"{self._root}/{pid}/smaps_rollup").splitlines()[1:]:
            words = line.split()
            if len(words) == 3:
                sizes[words[0]] = int(words[1]) * KB
        if b"Private_Dirty:" not in sizes:
            return None
        swap = sizes.get(b"SwapPss:", sizes.get(b"Swap:", 0))
        # Pages of a mapped file that was just written are dirty, too, but they are the file's.
        own = sizes[b"Anonymous:"] + sizes.get(b"Pss_Shmem:", sizes[b"Private_Dirty:"])
        private = min(sizes[b"Private_Dirty:"], own) + sizes.get(b"Private_Hugetlb:", 0) + swap
        share = sizes.get(b"Pss_Anon:", 0) + sizes.get(b"Pss_Shmem:", 0) + swap
        inherited = sizes.get(b"Anonymous:", 0) - sizes[b"Private_Dirty:"]
        return Memory(private, max(private, share), max(0, inherited))


class PsutilProbe:
    """Uses psutil, if there is no ``/proc``."""

    def __init__(self) -> None:
        import psutil

        self._psutil: Any = psutil
        self._children_table: dict[int, list[int]] | None = None

    def start_round(self) -> None:
        """Drop the table of children."""
        self._children_table = None

    def sample(self, pid: int) -> ProcessSample | None:
        """Read times and resident set."""
        try:
            process = self._psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                return ProcessSample(process.create_time(), sum(times[:4]), process.memory_info().rss)
        except (self._psutil.Error, OSError):
            return None

    def children(self, pid: int) -> list[int]:
        """Read the parents of all processes, once in a round."""
        if self._children_table is None:
            self._children_table = {}
            for process in self._psutil.process_iter(["ppid"]):
                self._children_table.setdefault(process.info["ppid"], []).append(process.pid)
        return self._children_table.get(pid, [])

    def memory(self, pid: int) -> Memory | None:
        """Return None: other systems need too long for it."""
        return None


def best_probe() -> ProcessProbe | None:
    """Return the best probe for this system; None if there is none."""
    if os.path.exists("/proc/self/stat"):
        return LinuxProbe()
    try:
        return PsutilProbe()
    except ImportError:
        return None


def _read_file(path: str) -> bytes:
    # Without a buffer, a short file is one read, and so of one moment.
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    try:
        while part := os.read(file, READ_BYTES):
            parts.append(part)
    except OSError:
        # its process has just ended
        return b""
    finally:
        os.close(file)
    return b"".join(parts)
