"""The processes that descend from this one: finding them, and ending them.

What a task starts may leave its process group, its session and its parent (a daemon does all three), and only the kernel still knows whose it is: a
process whose parent has ended is given to the nearest ancestor that *adopts*. So a worker, each host, each slot and each command adopt. While a slot
lives, all that its calls have started is below it; when it has ended, what it had for children are children of its host, which knows its slots: every
other child is a stray, and ends. Commands and hosts are to the worker what slots are to a host.

Linux has known adopting since 3.4. Elsewhere what is found is what is still below this process, and the process group has to do for the rest.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from vineworker.machine.process_info import best_probe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from vineworker.machine.process_info import ProcessProbe

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
EXIT_TIMEOUT_S = 5.0
"""How long the end of what was killed is waited for; what hangs in the kernel ends when that lets it."""
POLL_INTERVAL_S = 0.001
MAX_LIST_BYTES = 4096

_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
_probes: list[ProcessProbe | None] = []


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, where the kernel can."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become_subreaper() -> None:
    """Have the kernel give this process the descendants whose parents end; it stays so when another program is executed."""
    if _prctl is not None:
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(pid: int) -> list[int]:
    """Give the children of a process; none where that cannot be known."""
    probe = _get_probe()
    return [] if probe is None else probe.children(pid)


def _get_probe() -> ProcessProbe | None:
    if not _probes:
        _probes.append(best_probe())
    if _probes[0] is not None:
        _probes[0].start_round()
    return _probes[0]


def list_with_descendants(roots: Iterable[int]) -> list[int]:
    """Give processes and all that descends from them, parents first."""
    found = list(roots)
    for pid in found:
        found += [child for child in children_of(pid) if child not in found]
    return found


def kill_processes(pids: Iterable[int]) -> None:
    """End processes, parents first, so that nobody is replaced."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has ended, or belongs to somebody else
            pass


def can_have_strays(known: Collection[int]) -> bool:
    """Whether the kernel may have given this process any child that is not known; False says that it has not.

    It gives them to the first thread, so where there is a list for each thread, this takes a third of what it takes to find all children.
    """
    try:
        list_ = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        found = os.read(list_, MAX_LIST_BYTES)
    finally:
        os.close(list_)
    return len(found) == MAX_LIST_BYTES or any(int(pid) not in known for pid in found.split())


def kill_strays(known: Collection[int]) -> list[int]:
    """End the children of this process that are not known, and all that descends from them; give these children.

    Those below may become children of this process only when they have been waited for: then it is time to look again.
    """
    strays = [pid for pid in children_of(os.getpid()) if pid not in known]
    kill_processes(list_with_descendants(strays))
    return strays


def kill_all(known: Collection[int] = (), patience_s: float = EXIT_TIMEOUT_S) -> None:
    """End all that descends from this process except the known children, and wait for that. Where there is nothing it costs one system call."""
    deadline = None
    while (known or has_children()) and (strays := kill_strays(known)):
        reap_children(strays)
        now = time.monotonic()
        deadline = deadline or now + patience_s
        if now > deadline:
            return
        time.sleep(POLL_INTERVAL_S)


def has_children() -> bool:
    """Whether this process has any children, be they alive or not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reap_children(pids: Iterable[int]) -> None:
    """Take leave of those of these children that have ended."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has
            pass
