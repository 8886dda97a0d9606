"""Digests: how what was altered on its way, or on a disk, is told from what was made.

CRC-32, because the whole budget of a transfer is a fifth of the time that the kernel takes for it: on two cores that move 2.4 GB/s
from file to file, zlib.crc32 does 3.7 GB/s, adler32 3.1, SHA-256 with the processor's own instructions 1.6 (without, 0.4), BLAKE2b
0.8. It is meant for accidents, of which it misses one in four billion; against people there are the keys that peers have to prove.

It is the file itself that is looked at, not the bytes between the socket and the file, because then they could not be spliced from one
to the other (0.65 of a bare sendfile into a file, measured). Where there are processors to spare a thread of its own reads the file behind whoever
writes it. Where there are not, that slows down both (0.6 on two cores): then a file that came from a peer is looked at when all of it is here,
while peers may fetch it already, and before anything uses it.
"""

from __future__ import annotations

import os
import threading
import zlib
from queue import SimpleQueue
from typing import Optional, Union

CHUNK_BYTES = 1 << 18
"""What is looked at at once: so little that it is still in the processor's cache."""
MIN_BACKGROUND_BYTES = 1 << 24
"""What is handed to the thread at once, because to wake it is dear; objects below this size need none."""
TRANSFER_CPUS = 2
"""Processors that a transfer between two workers takes if they share a machine."""

Bytes = Union[bytes, bytearray, memoryview]


class Digest:
    """The digest of what it has been given; its text is what is kept and sent."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Bytes) -> None:
        """Count in some more bytes."""
        self._value = zlib.crc32(data, self._value)

    def __str__(self) -> str:
        return f"{self._value:08x}"


def has_spare_cpu() -> bool:
    """Whether there are processors to spare for a digest while a transfer takes those of its sender and its receiver."""
    return len(os.sched_getaffinity(0)) > TRANSFER_CPUS if hasattr(os, "sched_getaffinity") else True


def digest_bytes(data: Bytes) -> str:
    """Return the digest of some bytes."""
    digest = Digest()
    digest.update(data)
    return str(digest)


def hash_file(path: str) -> str:
    """Return the digest of a file's content."""
    with open(path, "rb", buffering=0) as file:
        return IncrementalHasher(file.fileno()).digest(os.fstat(file.fileno()).st_size)


class IncrementalHasher:
    """Computes the digest of a file while it is written.

    Parameters
    ----------
    descriptor
        The file, open for reading.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._digest = descriptor, Digest()
        self._piece = memoryview(bytearray(CHUNK_BYTES))
        self._told = self._done = 0
        self._ends: SimpleQueue[Optional[int]] = SimpleQueue()
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[OSError] = None

    def advance(self, end: int) -> None:
        """Say how much of the file is written."""
        if end - self._told >= MIN_BACKGROUND_BYTES:
            self._told = end
            self._ends.put(end)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vine-digest", daemon=True)
                self._thread.start()

    def digest(self, end: int) -> str:
        """Give the digest of the file, which is written up to there."""
        self.close()
        if self._error is not None:
            raise self._error
        self._count_in(end)
        return str(self._digest)

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._thread is not None:
            self._ends.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            while (end := self._ends.get()) is not None:
                self._count_in(end)
        except OSError as error:
            self._error = error

    def _count_in(self, end: int) -> None:
        while self._done < end:
            piece = self._piece[: end - self._done]
            size = os.preadv(self._descriptor, [piece], self._done)
            if not size:
                msg = f"the file ends after {self._done} bytes"
                raise OSError(msg)
            self._digest.update(piece[:size])
            self._done += size
