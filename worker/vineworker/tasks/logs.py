"""Limit the logs of long-running processes: keep their end."""

from __future__ import annotations

import os

MAX_LOG_BYTES = 16 << 20
KEPT_BYTES = 1 << 20
MAX_COPY_ATTEMPTS = 10
"""Attempts to copy an end that does not grow meanwhile."""
POLL_INTERVAL_S = 0.25
"""Interval at which the size of logs is checked."""


def truncate_log(path: str) -> None:
    """Keep only the end of a log if it is too long; its writers append, wherever the end is.

    The end is copied over the beginning, then the rest is cut off. A writer that appends meanwhile
    writes behind the part that is kept, so what stays is always in the order of its writing. What is
    written between the last look at the size and the cut is lost.
    """
    try:
        if os.stat(path).st_size <= MAX_LOG_BYTES:
            return
        # without O_APPEND, with which pwrite would append, too
        log = os.open(path, os.O_RDWR)
    except OSError:  # there is none
        return
    try:
        kept_bytes = 0
        for _ in range(MAX_COPY_ATTEMPTS):
            size = os.fstat(log).st_size
            end = os.pread(log, KEPT_BYTES, size - KEPT_BYTES)
            note = b"[what was here, %d bytes, is left out]\n" % (size - len(end))
            kept_bytes = os.pwrite(log, note + end, 0)
            if os.fstat(log).st_size == size:
                break
        os.ftruncate(log, kept_bytes)
    except OSError:
        # a disk with a fault: the log may stay long
        pass
    finally:
        os.close(log)
