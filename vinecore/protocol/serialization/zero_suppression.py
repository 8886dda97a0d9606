"""Buffers that are mostly zeros, as those of histograms with many bins are, take the room of what is not zero.

A bit for each word of eight bytes, then the words that are not zero, then what is left behind the last whole word. That does not mind how
the zeros are spread: of an array of which 15 % are filled a sixth is left, whether in clusters or at random. Words are compared as
integers, so what comes back is the same to the last bit: -0.0, and whatever a NaN carries.

NumPy does it, where the process has it anyway; nothing that comes without it is packed.
"""

from __future__ import annotations

import importlib
import mmap
import sys
from typing import Any, Union

MIN_BYTES = 1 << 16
"""Bytes; of smaller buffers it is not worth the look."""
MIN_COMPRESSION_RATIO = 3
"""A buffer is packed if at most one in so many of its words is not zero."""
SAMPLES = 1024
CHUNK_BYTES = 1 << 17
"""Words that are looked at at once: so few that what is made of them meanwhile is still in the processor's cache."""
WORD = 8

Buffer = Union[memoryview, mmap.mmap]


def pack(raw: memoryview) -> list[memoryview] | None:
    """Pack a buffer.

    Parameters
    ----------
    raw
        Its bytes; `MIN_BYTES` or more.

    Returns
    -------
    list of memoryview or None
        What to write one after another; None if that is not worth it. A look at a thousand words says so of most buffers.
    """
    np: Any = sys.modules.get("numpy")
    count = raw.nbytes // WORD
    if np is None or count < SAMPLES:
        return None
    words = np.frombuffer(raw, np.uint64, count)
    sample = words[:: count // SAMPLES | 1]
    if np.count_nonzero(sample) * MIN_COMPRESSION_RATIO > len(sample):
        return None
    filled = int(np.count_nonzero(words))
    if filled * MIN_COMPRESSION_RATIO > count:
        return None
    bits, kept, done = np.zeros(_length_of_bits(count), np.uint8), np.empty(filled, np.uint64), 0
    for start in range(0, count, CHUNK_BYTES):
        piece = words[start : start + CHUNK_BYTES]
        there = piece != 0
        some = piece[np.flatnonzero(there)]
        if not len(some):
            continue
        packed = np.packbits(there)
        bits[start // 8 : start // 8 + len(packed)] = packed
        kept[done : done + len(some)] = some
        done += len(some)
    parts = [bits.data, kept.view(np.uint8).data, raw[count * WORD :]]
    return [part for part in parts if part.nbytes]


def _length_of_bits(count: int) -> int:
    return -(-count // (8 * WORD)) * WORD  # whole words, so that what follows is aligned


def unpack(data: memoryview, target: Buffer) -> None:
    """Put what was packed into a buffer of the original size that is all zeros; where zeros stay it is not touched."""
    np: Any = importlib.import_module("numpy")
    whole = memoryview(target)
    count, rest = divmod(whole.nbytes, WORD)
    words, length = np.frombuffer(whole, np.uint64, count), _length_of_bits(count)
    bits = np.frombuffer(data, np.uint8, length)
    kept = np.frombuffer(data, np.uint64, (len(data) - length - rest) // WORD, length)
    done = 0
    for start in range(0, count, CHUNK_BYTES):
        some = bits[start // 8 : (start + CHUNK_BYTES) // 8]
        if not some.any():
            continue
        places = np.flatnonzero(np.unpackbits(some).view(np.bool_))
        words[start : start + CHUNK_BYTES][places] = kept[done : done + len(places)]
        done += len(places)
    if rest:
        whole[-rest:] = data[-rest:]


class ZeroSuppressedBuffer:
    """A packed buffer, for those who know where its bytes belong.

    Parameters
    ----------
    data
        As it was packed.
    size
        Bytes of the original.
    """

    def __init__(self, data: memoryview, size: int) -> None:
        self._data, self._size = data, size

    def unpack_into(self, target: memoryview) -> None:
        """Unpack into something of the right size that is all zeros."""
        unpack(self._data, target)

    def unpacked(self) -> memoryview:
        """Unpack into memory of its own, of which zeros take next to nothing."""
        memory = mmap.mmap(-1, self._size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        unpack(self._data, memory)
        return memoryview(memory)
