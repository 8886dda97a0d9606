"""Find and kill the descendants of this process.

A process that a task starts may leave its process group, its session and its parent (a daemon does
all three). The kernel still assigns it: if the parent of a process has exited, its nearest ancestor
that is a *child subreaper* becomes its parent. So workers, fork servers, slots and commands are
subreapers.

While a slot lives, all processes that its calls have started descend from it. After its end they
are children of its fork server, which knows its slots: each other child is a stray, and is killed.
In the same way, the worker knows its commands and fork servers.

Linux has subreapers since 3.4. On other systems only the present descendants are found, and the
process group has to do for the rest.
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
"""Time to wait for the end of killed processes; some hang in the kernel."""
POLL_INTERVAL_S = 0.001
MAX_LIST_BYTES = 4096

_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
_probes: list[ProcessProbe | None] = []


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, if the kernel can."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become_subreaper() -> None:
    """Have the kernel make this process the parent of its orphaned descendants.

    This stays so when the process executes another program.
    """
    if _prctl is not None:
        _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(pid: int) -> list[int]:
    """Return the children of a process; none if the system does not tell."""
    probe = _get_probe()
    return [] if probe is None else probe.children(pid)


def _get_probe() -> ProcessProbe | None:
    if not _probes:
        _probes.append(best_probe())
    if _probes[0] is not None:
        _probes[0].start_round()
    return _probes[0]


def list_with_descendants(roots: Iterable[int]) -> list[int]:
    """Return processes with all their descendants, parents first."""
    found = list(roots)
    for pid in found:
        found += [child for child in children_of(pid) if child not in found]
    return found


def kill_processes(pids: Iterable[int]) -> None:
    """Kill processes, parents first, so that no parent replaces a killed child."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # it has ended, or belongs to another user
            pass


def kill_group(group: int) -> None:
    """Kill the processes of a process group.

    Its leader must not have been waited for: else its number may belong to another process.
    """
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # some systems raise the latter for a group of zombies
        pass


def can_have_strays(known: Collection[int]) -> bool:
    """Return whether the kernel may have made an unknown process a child of this one.

    The kernel assigns orphans to the first thread. If it has a list of children for each thread,
    reading that one takes a third of the time for all children.
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
    """Kill the unknown children of this process with their descendants; return these children.

    The descendants may become children of this process only when these were waited for. So this has
    to be repeated until there are none.
    """
    strays = [pid for pid in children_of(os.getpid()) if pid not in known]
    kill_processes(list_with_descendants(strays))
    return strays


def kill_all(known: Collection[int] = (), patience_s: float = EXIT_TIMEOUT_S) -> None:
    """Kill all descendants of this process except the known children, and wait for their end.

    Without children this costs one system call.

    Parameters
    ----------
    known
        Children that live on.
    patience_s
        Time to wait.
    """
    deadline = None
    while (known or has_children()) and (strays := kill_strays(known)):
        reap_children(strays)
        now = time.monotonic()
        deadline = deadline or now + patience_s
        if now > deadline:
            return
        time.sleep(POLL_INTERVAL_S)


def has_children() -> bool:
    """Return whether this process has children, alive or not waited for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def reap_children(pids: Iterable[int]) -> None:
    """Wait for those of these children that have exited."""
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # another thread has
            pass
