"""Pickles of objects whose class answers for attributes that it has not: with ``__getattr__``.

Pickle makes an object without its attributes, and asks it for ``__setstate__``. A ``__getattr__`` that hands on to an attribute of its own then asks itself
for that, without an end; another one raises `KeyError`, as that of uproot's descriptions of RNTuples does. Dask's own schedulers of one machine do not pickle,
so there such objects work. Here their attributes are put in place without a question.
"""

from __future__ import annotations

import copyreg
import functools
import types
from typing import Any

_INHERITED_METHODS = ("__reduce_ex__", "__reduce__", "__getstate__", "__new__", "__class__")
_CUSTOM_METHODS = ("__setstate__", "__getnewargs__", "__getnewargs_ex__")


@functools.lru_cache(maxsize=1024)
def is_delegate(kind: type) -> bool:
    """Whether objects of a type answer by a function for attributes that they have not, and leave all the rest to pickle."""
    return (
        isinstance(_find_in_classes(kind, "__getattr__"), types.FunctionType)
        and all(_find_in_classes(kind, name) is _find_in_classes(object, name) for name in _INHERITED_METHODS)
        and all(_find_in_classes(kind, name) is None for name in _CUSTOM_METHODS)
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined] # noqa: SLF001 - what pickle asks
        and kind not in copyreg.dispatch_table
        and kind.__dictoffset__ != 0
    )


def _find_in_classes(kind: type, name: str) -> Any:
    """Look an attribute of a class up without asking its metaclass."""
    return next((base.__dict__[name] for base in kind.__mro__ if name in base.__dict__), None)


def reduce_delegate(obj: Any) -> Any:
    """Reduce such an object to its class and its attributes."""
    state = object.__getattribute__(obj, "__dict__")
    return copyreg.__newobj__, (type(obj),), state, None, None, set_attributes  # type: ignore[attr-defined]


def set_attributes(obj: Any, state: dict[str, Any]) -> None:
    """Give an object its attributes, asking it for nothing."""
    object.__getattribute__(obj, "__dict__").update(state)
