"""What in a value keeps it from being pickled, for the text of the error; nothing here runs where pickling succeeds."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

from vinecore.protocol.serialization.pickling import PLAIN_PICKLE_TYPES, cloudpickle_dumps

MAX_TRIES = 200
"""Parts of a value that are pickled one by one to find the one that cannot be."""
MAX_PARTS = 100
"""Of one container or object that are looked at."""
MAX_DEPTH = 8
HINT = "take what is needed of it as plain data (numbers, texts, arrays, dicts), or make it in the function that uses it"


def describe_unpicklable(value: Any) -> str:
    """Say which part of a value cannot be pickled, of what type it is, and what to do instead; never raises.

    Examples
    --------
    >>> import threading
    >>> print(describe({"a": [threading.Lock()]}))
    a dict cannot be pickled, because ['a'][0] is a _thread.lock: take what is needed of it as plain data (numbers, texts, arrays, dicts), \
or make it in the function that uses it
    """
    where, part = _find_smallest_part(value)
    because = f", because {where.strip()} is a {type_name(part)}" if where else ""
    return f"a {type_name(value)} cannot be pickled{because}: {_suggest_alternative(part)}"


def type_name(value: Any) -> str:
    """Call the type of a value by what people know of it."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def _suggest_alternative(part: Any) -> str:
    if inspect.isgenerator(part):
        return "make a list of what it yields"
    if isinstance(part, io.IOBase):
        return "give its path or its content"
    return HINT


def _find_smallest_part(value: Any) -> tuple[str, Any]:
    """Go down to the smallest part that cannot be pickled; give how it is reached, and it."""
    where, tries = "", MAX_TRIES
    for _level in range(MAX_DEPTH):
        for name, part in _iterate_parts(value):
            tries -= 1
            if tries < 0:
                return where, value
            if not can_pickle(part):
                where, value = where + name, part
                break
        else:
            return where, value
    return where, value


def _iterate_parts(value: Any) -> Iterator[tuple[str, Any]]:
    try:
        if isinstance(value, dict):
            yield from ((f"[{key!r:.50}]", part) for key, part in islice(value.items(), MAX_PARTS))
        elif isinstance(value, (list, tuple)):
            yield from ((f"[{number}]", part) for number, part in enumerate(islice(value, MAX_PARTS)))
        elif inspect.isfunction(value):
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
                yield f" {name}", cell.cell_contents
            known = value.__globals__
            yield from ((f" {name}", known[name]) for name in value.__code__.co_names if name in known)
        elif not isinstance(value, type) and isinstance(inner := getattr(value, "__dict__", None), dict):
            yield from ((f".{name}", part) for name, part in islice(inner.items(), MAX_PARTS))
    except Exception:  # noqa: BLE001 - code of the value's own, and this is only for a text
        return


def can_pickle(part: Any) -> bool:
    """Whether a value can be pickled."""
    if type(part) in PLAIN_PICKLE_TYPES:
        return True
    try:
        cloudpickle_dumps(part, protocol=5, buffer_callback=lambda _buffer: None)
    except Exception:  # noqa: BLE001 - whatever it is, this is the part
        return False
    return True
