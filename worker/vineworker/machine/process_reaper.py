"""Cleans up after a worker that is killed: a small shell that outlives it by a moment.

A worker that gets SIGKILL can clean up nothing, and the kernel ends at most the direct children of a process with it. So every worker has a
process reaper: it is told the process groups of all that is started, and when its input ends, because the worker has, it kills those that are left
and removes the worker's folder. After an orderly end it finds nothing to do. What has left its process group (a daemon) is known by a variable that
all processes of a worker have had in their environment when they, or those they were forked from, were executed.

It also starts these processes, and so knows which children the worker has; every other child is what one of these has left behind.
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
"""The variable; its value is the worker's folder."""
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
"""Bytes that wait for a process reaper that does not listen. More, and it is ended: it must not act on what is no longer true."""


class ProcessReaper:
    """The shell of one worker.

    Parameters
    ----------
    folder, link
        What is removed in the end; the link is a short path to what is in the folder, if there is one.
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
        self._lock = threading.Lock()  # the threads that fetch start processes, too
        self._starting = threading.Lock()
        self._known_children = set(
            descendants.children_of(os.getpid())
        )  # the shell, and what has been here before

    def start(self, command: Sequence[str], env: dict[str, str], **options: Any) -> Any:
        """Start a process in a session of its own.

        Parameters
        ----------
        **options
            As those of `subprocess.Popen`.

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
        """Forget a process that has exited and been waited for."""
        self.remove_group(pid)
        self._known_children.discard(pid)

    def kill_strays(self, patience_s: float = 0.0) -> None:
        """End what processes have left behind that have ended."""
        if self._starting.acquire(blocking=patience_s > 0):  # else what is being started is not known yet
            try:
                descendants.reap_children(descendants.kill_strays(self._known_children))
                if patience_s:
                    descendants.kill_all(self._known_children, patience_s)
            finally:
                self._starting.release()

    def add_group(self, group: int) -> None:
        """Register a process group that has been started."""
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
            except BlockingIOError:  # it is busy; the next line takes this one with it
                pass
            except OSError:  # somebody has killed the process reaper; that must not harm the worker
                self._unsent = b""

    def close(self) -> None:
        """Let it do what is left to do, and end."""
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
