"""How a Python value becomes the bytes of an object, and back without copying.

A value without large buffers is a plain pickle, which any program can load. One with large buffers is::

    8 bytes       magic
    4 + 4 bytes   length of the pickle, number of buffers
    8 bytes each  lengths of the buffers
    8 bytes each  how long they are when they are unpacked, if any is packed: then the magic is another one
    pickle        protocol 5
    buffers       each starting at a multiple of 64 bytes

Large buffers (NumPy and awkward arrays) stay out of the pickle, so that a reader can map the file privately and load the
arrays where they are: no copy, and the consumer may still write to them. Plain pickle is tried first; cloudpickle, where it is
installed, takes what plain pickle cannot. A type that cannot do protocol 5 out of band falls back to protocol 4. A buffer that is
mostly zeros is packed; see `vinecore.protocol.serialization.zero_suppression`.

A large histogram of boost-histogram would copy all its bins to be pickled, and once more, from an array, to be loaded. Here its bins are a
buffer like others, so that it takes no memory beside itself.
"""

from __future__ import annotations

import mmap
import os
import pickle
import struct
from typing import Any, Callable, Union

from vinecore.protocol.serialization import histograms, zero_suppression
from vinecore.protocol.serialization.pickling import PLAIN_PICKLE_TYPES, cloudpickle_dumps, plain_dumps

MAGIC = b"VINEVAL1"
MAGIC_PACKED = b"VINEVAL2"
HEADER = struct.Struct(">8sII")
ALIGNMENT = 64
UNPACKED_BY_CONSUMER = 1 << 63
"""In the table of unpacked lengths: what loads this buffer unpacks it, too."""
MIN_OUT_OF_BAND_BYTES = 4096
"""Buffers below this many bytes stay in the pickle."""
Readable = Union[bytes, bytearray, memoryview, mmap.mmap]


def dump(value: Any, *, by_value: bool = False) -> list[Any]:
    """Serialize a value.

    Parameters
    ----------
    value
        Anything that pickle or cloudpickle can take.
    by_value
        Use cloudpickle at once: for what the user's own session defines, which a worker could not import.

    Returns
    -------
    list of bytes-like
        The parts of the object, to be written one after another.
    """
    if type(value) in PLAIN_PICKLE_TYPES:
        return _assemble(pickle.dumps(value, protocol=5), [])
    attempts: list[tuple[Callable[..., bytes], int]] = [(cloudpickle_dumps, 5), (cloudpickle_dumps, 4)]
    if not by_value:
        attempts.insert(0, (plain_dumps, 5))
    for number, (dumps, protocol) in enumerate(attempts):
        buffers: list[memoryview] = []
        try:
            if protocol == 5:
                text = dumps(
                    value, protocol=5, buffer_callback=lambda b, keep=buffers: _keep_in_band(b, keep)
                )
            else:
                text = dumps(value, protocol=4)
        except Exception:
            if number == len(attempts) - 1:
                raise
        else:
            return _assemble(text, buffers)
    raise AssertionError  # the last attempt returns or raises


def _keep_in_band(buffer: pickle.PickleBuffer, keep: list[memoryview]) -> bool:
    """Whether pickle shall keep this buffer itself."""
    try:
        raw = buffer.raw()
    except BufferError:  # not contiguous
        return True
    if raw.nbytes < MIN_OUT_OF_BAND_BYTES:
        return True
    keep.append(raw)
    return False


def _assemble(text: bytes, buffers: list[memoryview]) -> list[Any]:
    if not buffers:
        return [text]
    magic, count, sizes = MAGIC, len(buffers), [b.nbytes for b in buffers]
    packed: dict[int, list[memoryview]] = {}
    for number, size in enumerate(sizes):
        if size >= zero_suppression.MIN_BYTES and (content := zero_suppression.pack(buffers[number])):
            packed[number], sizes[number] = content, size_of(content)
    table = struct.pack(f">{count}Q", *sizes)
    if packed:
        magic = MAGIC_PACKED
        table += struct.pack(f">{count}Q", *map(_unpacked_size, buffers))
    parts: list[Any] = [HEADER.pack(magic, len(text), count) + table + text]
    position = len(parts[0])
    for number, buffer in enumerate(buffers):
        padding = -position % ALIGNMENT
        parts += [bytes(padding), *packed.get(number, (buffer,))]
        position += padding + sizes[number]
    return parts


def _unpacked_size(buffer: memoryview) -> int:
    return buffer.nbytes | (UNPACKED_BY_CONSUMER if histograms.is_bins(buffer) else 0)


def size_of(parts: list[Any]) -> int:
    """Bytes in all the parts of an object."""
    return sum(len(part) for part in parts)


def dumps(value: Any, *, by_value: bool = False, plain: bool = False) -> bytes:
    """Serialize a value into one byte string; in a plain one is nothing but containers, placeholders, and what is in `PLAIN_PICKLE_TYPES`."""
    if plain:
        return pickle.dumps(value, protocol=5)
    return b"".join(dump(value, by_value=by_value))


def loads(data: Readable) -> Any:
    """Load a value; its arrays share memory with ``data`` if that may be written to, else with a copy of it."""
    magic, start, size, count = _read_head(data)
    if not count:
        return pickle.loads(memoryview(data)[start : start + size])
    start, sizes, unpacked = _read_table(data, magic, start, count)
    view = memoryview(bytearray(data) if isinstance(data, bytes) else data)
    position = start + size
    buffers: list[Any] = []
    for length, whole in zip(sizes, unpacked):
        position += -position % ALIGNMENT
        content = view[position : position + length]
        position += length
        if whole & ~UNPACKED_BY_CONSUMER == length:
            buffers.append(content)
        else:
            packed = zero_suppression.ZeroSuppressedBuffer(content, whole & ~UNPACKED_BY_CONSUMER)
            buffers.append(packed if whole & UNPACKED_BY_CONSUMER else packed.unpacked())
    return pickle.loads(view[start : start + size], buffers=buffers)


def _read_head(data: Readable) -> tuple[bytes, int, int, int]:
    """Give the magic, where the head ends, the length of the pickle, and the number of buffers."""
    if data[:1] == pickle.PROTO:
        return MAGIC, 0, len(data), 0
    if len(data) >= HEADER.size:
        magic, size, count = HEADER.unpack_from(data, 0)
        if magic in (MAGIC, MAGIC_PACKED):
            return magic, HEADER.size, size, count
    msg = f"these {len(data)} bytes are not a serialized value"
    raise ValueError(msg)


def _read_table(
    data: Readable, magic: bytes, start: int, count: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where the table ends, and the lengths of the buffers, as they are and unpacked."""
    table = struct.Struct(f">{count}Q")
    sizes = table.unpack_from(data, start)
    start += table.size
    if magic == MAGIC:
        return start, sizes, sizes
    return start + table.size, sizes, table.unpack_from(data, start)


def loaded_size(data: Readable) -> int:
    """Bytes that a value takes when it is loaded: its pickle and its buffers, unpacked."""
    magic, start, size, count = _read_head(data)
    _start, _sizes, unpacked = _read_table(data, magic, start, count)
    return size + sum(whole & ~UNPACKED_BY_CONSUMER for whole in unpacked)


def load_file(path: str) -> Any:
    """Load a value from a file through a private, copy-on-write map."""
    return loads(map_object(path))


def map_object(path: str) -> Readable:
    """Map a file so that it can be loaded from, and what is loaded be written to."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:  # which cannot be mapped
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
