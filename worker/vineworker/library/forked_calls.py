"""Calls in children of a slot, and children that a call has forked and that come back from it."""

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
"""How often a child is looked at where its end cannot be waited for together with what it says."""


def wait_for_reply(read: int, pid: int) -> Reply | None:
    """Wait for what a child says, or for its end.

    Parameters
    ----------
    read
        Where its reply comes. The end of that is not waited for, because processes that the call has left behind keep it open.
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
            elif over:  # and all that it has said has been read
                return None
            else:
                over = has_ended(pid)
    finally:
        if end is not None:
            os.close(end)


def _open_pidfd(pid: int) -> int | None:
    """Give a descriptor that is readable when a child has ended, where there is such a thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def has_ended(pid: int) -> bool:
    """Whether a child has ended; it is not waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def call_function(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], flush: Callable[[], None]
) -> Any:
    """Call a function of the user's, and come back only in the process that was asked to.

    A child that the function forks, and that does not end itself, ends where its copy of the function does, as Python ends a program. Otherwise it would
    answer, too, and take the slot's next calls away.
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
