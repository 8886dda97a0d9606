"""Run calls in children of a slot, and end children that a call forks and that return from it."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

from vinecore.protocol.frames import FrameReader
from vineworker.slot_protocol import Reply

if TYPE_CHECKING:
    from typing import NoReturn

POLL_INTERVAL_S = 0.02
"""Interval at which a child is checked, if the system has no descriptor for its end."""


def wait_for_reply(read: int, pid: int) -> Reply | None:
    """Wait for the reply of a child, or for its end.

    Parameters
    ----------
    read
        Where its reply comes. Processes that the call has left behind may keep the other end open,
        so the end of the child is waited for, too.
    pid
        The child.
    """
    reader = FrameReader([Reply])
    end = _open_pidfd(pid)
    watched = [read] if end is None else [read, end]
    over = False
    try:
        while True:
            ready, _, _ = select.select(
                watched, [], [], 0 if over else POLL_INTERVAL_S if end is None else None
            )
            if read in ready:
                data = os.read(read, 1 << 18)
                replies = reader.feed(data) if data else []
                if replies or not data:
                    return replies[0] if replies else None  # type: ignore[return-value]
            elif over:
                # and all that it has said has been read
                return None
            else:
                over = has_ended(pid)
    finally:
        if end is not None:
            os.close(end)


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor that is readable when a child has exited; None if there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def has_ended(pid: int) -> bool:
    """Return whether a child has exited, without waiting for it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def call_function(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], flush: Callable[[], None]
) -> Any:
    """Call a function of the user, and return only in the process that called it.

    If the function forks a child that does not end itself, the child ends with its copy of the
    function, as Python ends a program. Otherwise it would reply, too, and receive the slot's next
    calls.

    Parameters
    ----------
    function, args, kwargs
        The function and its arguments.
    flush
        Called before such a child ends.
    """
    process = os.getpid()
    try:
        return function(*args, **kwargs)
    finally:
        if os.getpid() != process:
            _exit_child(flush)


def _exit_child(flush: Callable[[], None]) -> NoReturn:
    status = 0
    error = sys.exc_info()[1]
    try:
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
            if status and error.code is not status:
                sys.stderr.write(f"{error.code}\n")
        elif error is not None:
            status = 1
            sys.excepthook(*sys.exc_info())
        flush()
    finally:
        os._exit(status & 0xFF)
