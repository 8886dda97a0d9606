"""How a Python value becomes the bytes of an object, and back without copying.

::

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

Coffea gives each of its arrays a read-only mapping of a thousand functions, its behavior, which only cloudpickle can take, in some ten
milliseconds; what reads its files has it, too, as a dictionary. Such a mapping is serialized once in a process, carried along in that form, and
loaded once in a process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import mmap
import os
import pickle
import random
import struct
import sys
import types
import zlib
from typing import Any, Callable, NamedTuple, Union

from vinecore.protocol.serialization import (
    delegates,
    histograms,
    random_generators,
    wrapped_functions,
    zero_suppression,
)

MAGIC = b"VINEVAL1"
MAGIC_PACKED = b"VINEVAL2"
HEADER = struct.Struct(">8sII")
ALIGNMENT = 64
PLAIN_PICKLE_TYPES = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""What pickle takes by itself, in a tenth of the time."""
UNPACKED_BY_CONSUMER = 1 << 63
"""In the table of unpacked lengths: what loads this buffer unpacks it, too."""
UNNAMED = "<dynamic-code>"
"""What cloudpickle says in the place of the name of a file."""
MIN_SHARED_BEHAVIOR = 100
"""A dictionary of so many functions is worth to be serialized once only."""
MIN_OUT_OF_BAND_BYTES = 4096
"""Buffers below this many bytes stay in the pickle."""

Readable = Union[bytes, bytearray, memoryview, mmap.mmap]


def cloudpickle_dumps(value: Any, **options: Any) -> bytes:
    """Pickle by value what cannot be imported; plain pickle where cloudpickle is not installed."""
    try:
        pickler = _cloudpickler()
    except ImportError:
        return pickle.dumps(value, **options)
    return _pickle_with(pickler, value, options)


@functools.cache
def _cloudpickler() -> Any:
    base: Any = importlib.import_module("cloudpickle").Pickler
    own = wrapped_functions.make_reducers()

    class Cloudpickler(base):  # type: ignore[misc]
        reducers: dict[type, Callable[[Any], Any]]

        def reducer_override(self, obj: Any) -> Any:
            kind = type(obj)
            if kind is types.CodeType:
                return _reduce_code(self.dispatch_table[types.CodeType], obj)
            wrapper = own.get(kind)
            reduced = _reduce_object(self.reducers, obj) if wrapper is None else wrapper(obj)
            return super().reducer_override(obj) if reduced is NotImplemented else reduced

    return Cloudpickler


def _reduce_code(reduce: Callable[[types.CodeType], Any], code: types.CodeType) -> Any:
    """Reduce code with the name of its file, which cloudpickle leaves out: tracebacks and warnings lead to what the user has written."""
    make, parts = reduce(code)
    return make, tuple(code.co_filename if part == UNNAMED else part for part in parts)


_SEEDED_OR_RAISED = random.Random, BaseException  # each object is asked, so once for both


def _reduce_object(reducers: dict[type, Callable[[Any], Any]], obj: Any) -> Any:
    reduce = reducers.get(type(obj))
    if reduce is not None:
        return reduce(obj)
    if isinstance(obj, _SEEDED_OR_RAISED):
        if isinstance(obj, random.Random):
            return random_generators.reduce_generator(obj)
        return importlib.import_module("vinecore.protocol.serialization.exceptions").reduced(obj)
    # an object of a type that is not written in Python may get a dictionary by being asked for it, and so be pickled as something else
    own = getattr(obj, "__dict__", None) if type(type(obj).__init__) is types.FunctionType else None
    if (
        type(own) is dict
        and type(behavior := own.get("behavior")) is dict
        and len(behavior) >= MIN_SHARED_BEHAVIOR
    ):
        return _reduce_with_behavior(obj, behavior)
    kind: Any = type(obj)
    return delegates.reduce_delegate(obj) if delegates.is_delegate(kind) else NotImplemented


@functools.cache
def _load_reducers(*_loaded: bool) -> dict[type, Callable[[Any], Any]]:
    """Give what reduces objects of packages, for those that are loaded: made once for each set of them."""
    return {
        types.MappingProxyType: _reduce_mapping,
        **histograms.make_reducers(),
        **random_generators.make_reducers(),
    }


def _pickle_with(kind: Any, value: Any, options: dict[str, Any]) -> bytes:
    text = io.BytesIO()
    pickler = kind(text, **options)
    pickler.reducers = _load_reducers(
        "boost_histogram._core" in sys.modules, *random_generators.loaded_packages()
    )
    pickler.dump(value)
    return text.getvalue()


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


def plain_dumps(value: Any, **options: Any) -> bytes:
    """Pickle, with read-only mappings in the form in which they have been pickled before."""
    return _pickle_with(_Pickler, value, options)


class _Pickler(pickle.Pickler):
    reducers: dict[type, Callable[[Any], Any]]

    def reducer_override(self, obj: Any) -> Any:
        return _reduce_object(self.reducers, obj)


class _Packed(NamedTuple):
    content: dict[Any, Any]
    digest: bytes
    data: bytes


_packed_mappings: list[_Packed] = []  # those this process has serialized, the most recently used first
_loaded_mappings: dict[bytes, Any] = {}
_MAX_MAPPINGS = 16
_IMMUTABLE_TYPES = (types.FunctionType, types.BuiltinFunctionType, type, str, bytes, int, float, type(None))


def _reduce_mapping(mapping: Any) -> Any:
    if len(mapping) < MIN_SHARED_BEHAVIOR:  # it may lead back to itself, as that of a generic function does
        return types.MappingProxyType, (dict(mapping),)
    return read_only_mapping, _packed_mapping(mapping)


def _reduce_with_behavior(owner: Any, behavior: dict[Any, Any]) -> Any:
    reduced = owner.__reduce_ex__(4)
    state = reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None
    if type(state) is not dict or state.get("behavior") is not behavior:
        return NotImplemented
    return *reduced[:2], {**state, "behavior": _BehaviorStub(behavior)}, *reduced[3:]


class _BehaviorStub:
    """Stands for the behavior of an object while that is pickled."""

    def __init__(self, behavior: dict[Any, Any]) -> None:
        self._behavior = behavior

    def __reduce__(self) -> Any:
        return mutable_mapping, _packed_mapping(self._behavior)


def _packed_mapping(mapping: Any) -> tuple[bytes, bytes]:
    """Digest and compressed pickle of a read-only mapping."""
    for number, known in enumerate(_packed_mappings):
        if len(known.content) == len(mapping) and all(
            map(_same_item, mapping.items(), known.content.items())
        ):
            _packed_mappings.insert(0, _packed_mappings.pop(number))
            return known.digest, known.data
    content = dict(mapping)
    data = zlib.compress(cloudpickle_dumps(content, protocol=5))
    packed = _Packed(content, hashlib.sha256(data).digest(), data)
    _remember_mapping(packed)
    return packed.digest, packed.data


def _remember_mapping(packed: _Packed) -> None:
    if all(map(_is_immutable, packed.content.values())):
        _packed_mappings.insert(0, packed)
        del _packed_mappings[_MAX_MAPPINGS:]


def _same_item(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return one[0] is other[0] and one[1] is other[1]


def _is_immutable(value: Any) -> bool:
    """Whether a value is what it was, as long as it is the same object; what a user writes in a session may find other values the next time."""
    if isinstance(value, functools.partial):
        return all(map(_is_immutable, (value.func, *value.args, *value.keywords.values())))
    return isinstance(value, _IMMUTABLE_TYPES) and getattr(value, "__module__", "") != "__main__"


def read_only_mapping(digest: bytes, data: bytes) -> Any:
    """Give the mapping that was serialized, the same one each time."""
    mapping = _loaded_mappings.get(digest)
    if mapping is None:
        content = pickle.loads(zlib.decompress(data))
        mapping = types.MappingProxyType(content)
        _remember_mapping(_Packed(dict(content), digest, data))  # it goes on as it came
        while len(_loaded_mappings) >= _MAX_MAPPINGS:
            del _loaded_mappings[next(iter(_loaded_mappings))]
        _loaded_mappings[digest] = mapping
    return mapping


def mutable_mapping(digest: bytes, data: bytes) -> dict[Any, Any]:
    """Give the mapping that was serialized, another one each time."""
    return dict(read_only_mapping(digest, data))


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
        return [HEADER.pack(MAGIC, len(text), 0) + text]
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
    """Serialize a value into one byte string; in a plain one is nothing but containers, placeholders, and what is `PLAIN`."""
    if plain:
        text = pickle.dumps(value, protocol=5)
        return HEADER.pack(MAGIC, len(text), 0) + text
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


class Placeholder:
    """Stands, among the arguments of a call, for an object that travels beside them."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.index,))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.index})"


class InputPlaceholder(Placeholder):
    """The call's input with this number, loaded afresh."""

    __slots__ = ()


class LazyInput(Placeholder):
    """The call's input with this number, as a `Stored` that the function loads when it comes to it."""

    __slots__ = ()


class SharedPlaceholder(Placeholder):
    """The call's shared object with this number, loaded once in a slot."""

    __slots__ = ()


def substitute_placeholders(
    args: tuple[Any, ...], kwargs: dict[str, Any], shared: list[Any], inputs: list[Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Put objects in the places of their placeholders, among the arguments themselves (not inside of them)."""

    def replace(value: Any) -> Any:
        kind = type(value)
        if kind is InputPlaceholder or kind is LazyInput:
            return inputs[value.index]
        return shared[value.index] if kind is SharedPlaceholder else value

    return [replace(a) for a in args], ({k: replace(v) for k, v in kwargs.items()} if kwargs else kwargs)


class LazyValue:
    """A value that has not been loaded, and until then takes neither memory nor an open file.

    Parameters
    ----------
    data
        Gives what it is loaded from.

    Attributes
    ----------
    size : int
        Bytes of memory that it takes when it is loaded.
    """

    __slots__ = ("_data", "size")

    def __init__(self, data: Callable[[], Readable]) -> None:
        self._data = data
        self.size = loaded_size(data())

    def load(self) -> Any:
        """Load it, afresh each time; what one may do to it is as with an input."""
        return loads(self._data())


class ResultWithMetadata:
    """A result with something extra that goes to the manager beside it."""

    __slots__ = ("extra", "value")

    def __init__(self, value: Any, note: bytes) -> None:
        self.value, self.extra = value, note
