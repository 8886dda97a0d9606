"""Writes what running tasks append to watched outputs to the paths where their user wants these.

When a task has ended its output replaces the file, so what is here may lack the end.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vinecore.scheduler.instructions import AppendOutput
    from vinecore.server.object_store import ObjectStore


class WatchedOutputs:
    """Writes parts of outputs in a thread of its own.

    Parameters
    ----------
    store
        Knows the paths, and brings the complete outputs there.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        # its thread starts with the first part
        self._threads = ThreadPoolExecutor(1, "vine-watched-outputs")

    def append(self, part: AppendOutput) -> None:
        """Write a part, after those before it."""
        self._threads.submit(self._store.write_incomplete, part.name, part.offset, part.payload, write_part)

    def close(self) -> None:
        """Write no more."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def write_part(path: str, offset: int, payload: bytes) -> None:
    """Write a part of a file; the first part makes the file anew. Links are not followed."""
    parent = os.path.dirname(path)
    if parent:
        os.makedirs(parent, exist_ok=True)
    flags = os.O_WRONLY | os.O_NOFOLLOW | (0 if offset else os.O_CREAT | os.O_TRUNC)
    descriptor = os.open(path, flags, 0o666)
    try:
        while payload:
            written = os.pwrite(descriptor, payload, offset)
            offset, payload = offset + written, payload[written:]
    finally:
        os.close(descriptor)
