"""What functools has wrapped around functions of the user's session, which cloudpickle takes by name or not at all.

A function with a cache is found by its name where it was defined, and nowhere else if that is a script or a notebook: it travels by value, with an
empty cache, as the function inside of it does. A generic function has a cache of weak references.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Callable

from vinecore.protocol.serialization.importable_names import is_found_by_name


def make_reducers() -> dict[type, Callable[[Any], Any]]:
    """Reducers by type, for what travels by value."""
    return {
        type(functools.lru_cache(abs)): _reduce_cache,
        functools.cached_property: _reduce_cached_property,
        weakref.WeakKeyDictionary: _reduce_weak_dictionary,
        weakref.WeakValueDictionary: _reduce_weak_dictionary,
    }


def _reduce_cache(cached: Any) -> Any:
    if is_found_by_name(cached):
        return NotImplemented
    own = {
        name: value
        for name, value in vars(cached).items()
        if name not in (*functools.WRAPPER_ASSIGNMENTS, "__wrapped__", "cache_parameters")
    }
    return _make_cached, (cached.__wrapped__, cached.cache_parameters()), own or None


def _make_cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _reduce_cached_property(value: Any) -> Any:
    """Leave out the lock that it has before Python 3.12."""
    return _make_cached_property, (value.func, value.attrname)


def _make_cached_property(function: Any, name: Any) -> Any:
    made = functools.cached_property(function)
    made.attrname = name
    return made


def _reduce_weak_dictionary(value: Any) -> Any:
    return type(value), (dict(value),)
