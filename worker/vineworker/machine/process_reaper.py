"""Clean up after a killed worker, in a small shell that lives a moment longer.

A worker that gets SIGKILL cannot clean up, and the kernel kills at most its direct children. So
each worker has a process reaper. It receives the process groups of all started processes. When its
input ends, the worker has ended: it kills the remaining groups and removes the worker's folder.
After an orderly end there are none. A process that has left its group (a daemon) has the variable
`WORKER_VARIABLE` in its environment.

The reaper's object in the worker also starts these processes, so it knows the worker's children;
each other child was left behind by one of them.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

from vineworker.machine import descendants
from vineworker.machine.argument_limits import ArgumentsTooLong, describe_excess

WORKER_VARIABLE = "VINE_WORKER"
"""Environment variable with the folder of the worker."""
SCRIPT = r"""
while read -r change group; do
    case $change in
        +) eval "group_$group=" ;;
        -) unset "group_$group" ;;
    esac
done
set | while IFS== read -r name _value; do
    case $name in
        group_*) kill -s KILL -- "-${name#group_}" ;;
    esac
done
rounds=0
while found=$(grep -lsF -- "VINE_WORKER=$1" /proc/[0-9]*/environ); [ -n "$found" ] && [ $rounds -lt 20 ]; do
    for path in $found; do
        path=${path#/proc/}
        kill -s KILL "${path%/environ}"
    done
    rounds=$((rounds + 1))
done
[ -z "$2" ] || rm -f -- "$2"
rm -rf -- "$1" || { chmod -R u+rwx -- "$1"; rm -rf -- "$1"; }
"""
SHUTDOWN_TIMEOUT_S = 5.0
MAX_UNSENT_BYTES = 1 << 16
"""If more bytes wait for a process reaper that does not read, it is killed.

It must not act on an outdated list.
"""


class ProcessReaper:
    """The reaper of one worker.

    Parameters
    ----------
    folder
        The worker's folder, removed at the end.
    link
        A short path into the folder, removed too; "" if there is none.
    """

    def __init__(self, folder: str, link: str = "") -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "vine-process-reaper", folder, link], cwd="/", stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )  # fmt: skip
        assert self._shell.stdin is not None
        self._pipe = self._shell.stdin.fileno()
        os.set_blocking(self._pipe, False)
        self._unsent = b""
        self._folder, self.link = folder, link
        # the threads that fetch start processes, too
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        # the shell, and what has been here before
        self._known_children = set(descendants.children_of(os.getpid()))

    def start(self, command: Sequence[str], env: dict[str, str], **options: Any) -> Any:
        """Start a process in a session of its own.

        Parameters
        ----------
        command, env
            The program with its arguments, and its environment variables.
        **options
            As for `subprocess.Popen`.

        Returns
        -------
        Popen

        Raises
        ------
        ArgumentsTooLong
            Its arguments or its environment are too large.
        """
        with self._starting:
            try:
                process = subprocess.Popen(
                    command, env={**env, WORKER_VARIABLE: self._folder}, stdin=subprocess.DEVNULL, start_new_session=True, **options
                )  # fmt: skip
            except OSError as error:
                if error.errno == errno.E2BIG:
                    raise ArgumentsTooLong(describe_excess(command, env)) from None
                raise
            self._known_children.add(process.pid)
        self.add_group(process.pid)
        return process

    def remove_process(self, pid: int) -> None:
        """Remove a process that has exited and was waited for."""
        self.remove_group(pid)
        self._known_children.discard(pid)

    def kill_strays(self, patience_s: float = 0.0) -> None:
        """Kill processes that exited ones have left behind.

        Parameters
        ----------
        patience_s
            Time to wait for a start that is under way, and for the end of the killed processes.
        """
        # else what is being started is not known yet
        if self._starting.acquire(blocking=patience_s > 0):
            try:
                descendants.reap_children(descendants.kill_strays(self._known_children))
                if patience_s:
                    descendants.kill_all(self._known_children, patience_s)
            finally:
                self._starting.release()

    def add_group(self, group: int) -> None:
        """Register a process group that was started."""
        self._send_line(f"+ {group}\n")

    def remove_group(self, group: int) -> None:
        """Remove a process group that has ended."""
        self._send_line(f"- {group}\n")

    def _send_line(self, line: str) -> None:
        with self._lock:
            self._unsent += line.encode()
            if len(self._unsent) > MAX_UNSENT_BYTES:
                self._shell.kill()
            try:
                self._unsent = self._unsent[os.write(self._pipe, self._unsent) :]
            except BlockingIOError:
                # it is busy; the next line takes this one with it
                pass
            except OSError:
                # a killed process reaper must not harm the worker
                self._unsent = b""

    def close(self) -> None:
        """Have the reaper do the remaining work, and wait for its end."""
        assert self._shell.stdin is not None
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT_S
        while self._unsent and time.monotonic() < deadline:
            self._send_line("")
            time.sleep(0.001)
        self._shell.stdin.close()
        try:
            self._shell.wait(SHUTDOWN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._shell.kill()
            self._shell.wait()
