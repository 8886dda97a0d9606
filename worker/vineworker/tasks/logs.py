"""Limit the logs of long-running processes: keep their end."""

from __future__ import annotations

import os

MAX_LOG_BYTES = 16 << 20
KEPT_BYTES = 1 << 20
MAX_READ_ATTEMPTS = 10
"""Attempts to read an end that does not grow meanwhile."""
POLL_INTERVAL_S = 0.25
"""Interval at which the size of logs is checked."""


def truncate_log(path: str) -> None:
    """Keep only the end of a log if it is too long; its writers append, wherever the end is."""
    try:
        if os.stat(path).st_size <= MAX_LOG_BYTES:
            return
        log = os.open(path, os.O_RDWR | os.O_APPEND)
    except OSError:  # there is none
        return
    try:
        size, end = 0, b""
        for _ in range(MAX_READ_ATTEMPTS):
            size = os.fstat(log).st_size
            end = os.pread(log, KEPT_BYTES, max(0, size - KEPT_BYTES))
            # what is written between these two calls is lost
            if os.fstat(log).st_size == size:
                break
        os.ftruncate(log, 0)
        os.write(log, b"[what was here, %d bytes, is left out]\n" % (size - len(end)) + end)
    except OSError:
        # a disk that is full: then the end is gone, too
        pass
    finally:
        os.close(log)
