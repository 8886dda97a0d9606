"""The picklers: plain pickle and cloudpickle, with reducers for what both take badly or not at all.

Coffea gives each of its arrays a read-only mapping of a thousand functions, its behavior. Only
cloudpickle can take it, in about ten milliseconds; arrays read from its files have it, too, as a
dictionary. Such a mapping is pickled once per process, travels in that form, and is loaded once per
process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import pickle
import random
import sys
import types
import zlib
from typing import Any, Callable, NamedTuple

from vinecore.protocol.serialization import delegates, histograms, random_generators, wrapped_functions

PLAIN_PICKLE_TYPES = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""What pickle takes by itself, in a tenth of the time."""
UNNAMED = "<dynamic-code>"
"""What cloudpickle says in the place of the name of a file."""
MIN_SHARED_BEHAVIOR = 100
"""A dictionary of so many functions is worth to be serialized once only."""


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
            if reduced is NotImplemented:
                reduced = super().reducer_override(obj)
            return _keep_slots(obj, reduced) if isinstance(obj, type) else reduced

    return Cloudpickler


def _reduce_code(reduce: Callable[[types.CodeType], Any], code: types.CodeType) -> Any:
    """Reduce code with the name of its file, which cloudpickle leaves out: tracebacks and warnings lead to what the user has written."""
    make, parts = reduce(code)
    return make, tuple(code.co_filename if part == UNNAMED else part for part in parts)


def _keep_slots(cls: type, reduced: Any) -> Any:
    """Have a class that travels by value made with its `__slots__`.

    Cloudpickle sets them as an attribute of a class without slots, whose objects have a dictionary
    that the class here cannot take back.
    """
    slots = vars(cls).get("__slots__")
    # a named tuple defines its slots itself and refuses them in the body of its class
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return reduced
    # of other classes, such as enumerations, cloudpickle makes the skeleton in another way
    if not isinstance(slots, (str, tuple, list)) or type(reduced) is not tuple:
        return reduced
    make, arguments, *rest = reduced
    if getattr(make, "__name__", "") != "_make_skeleton_class":
        return reduced
    meta, name, bases, attributes, *more = arguments
    return make, (meta, name, bases, {**attributes, "__slots__": slots}, *more), *rest


_SEEDED_OR_RAISED = random.Random, BaseException  # each object is asked, so once for both


def _reduce_object(reducers: dict[type, Callable[[Any], Any]], obj: Any) -> Any:
    reduce = reducers.get(type(obj))
    if reduce is not None:
        return reduce(obj)
    if isinstance(obj, _SEEDED_OR_RAISED):
        if isinstance(obj, random.Random):
            return random_generators.reduce_generator(obj)
        return importlib.import_module("vinecore.protocol.serialization.exceptions").reduce_exception(obj)
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
