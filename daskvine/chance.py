"""Code that makes something else each time it is run, as far as the names in it tell: it asks for the time, the process, the machine, or entropy."""

from __future__ import annotations

import datetime as dt
import dis
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any

from vinecore.protocol import seeds
from vinecore.protocol.modules import is_own_module

_OF_THE_TIME = frozenset(
    [
        "time",
        "time_ns",
        "ctime",
        "localtime",
        "gmtime",
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "perf_counter_ns",
        "process_time",
        "process_time_ns",
        "thread_time",
    ]
)
_OF_A_DAY = frozenset({"now", "utcnow", "today"})
_ANYWHERE = frozenset(
    [
        "uuid1",
        "uuid4",
        "urandom",
        "getrandom",
        "getpid",
        "getppid",
        "get_ident",
        "get_native_id",
        "gethostname",
        "getfqdn",
        "getnode",
        "SystemRandom",
        "token_bytes",
        "token_hex",
        "token_urlsafe",
        "randbelow",
    ]
)
_DAYS = (dt.datetime, dt.date)
_MOST_REACHED = 2000
"""Functions behind one that are looked at."""


def varies(function: types.FunctionType) -> bool:
    """Whether a function, or one of the user's own that it refers to, asks for something that differs each time."""
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting and len(seen) < _MOST_REACHED:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        for inner in _functions_of(found):
            if _asks(inner.__code__, inner.__globals__):
                return True
            waiting += _referred(inner)
    return False


def _functions_of(value: Any) -> Iterator[types.FunctionType]:
    """The functions in a value, that of a method and those of a class among them."""
    value = getattr(value, "__wrapped__", value) if callable(value) else value
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, (types.MethodType, staticmethod, classmethod)):
        yield from _functions_of(value.__func__)
    elif isinstance(value, property):
        yield from _functions_of(value.fget)
    elif isinstance(value, type):
        for part in list(vars(value).values()):
            if not isinstance(part, type):
                yield from _functions_of(part)
    elif type(value) in (dict, list, tuple):
        for part in value.values() if type(value) is dict else value:
            if isinstance(part, types.FunctionType):
                yield part


def _referred(function: types.FunctionType) -> list[Any]:
    """What of the user's own a function refers to by names."""
    names = names_in(function.__code__)
    found: list[Any] = []
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if is_own_module(value):
                found += [vars(value)[inner] for inner in names if inner in vars(value)]
        elif value is not None and _is_own(value):
            found.append(value)
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if _is_own(value):
            found.append(value)
    return found


def _is_own(value: Any) -> bool:
    if type(value) in (dict, list, tuple):
        return len(value) < _MOST_REACHED
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and (module == "__main__" or not _is_installed(module))


def _is_installed(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not is_own_module(module) and name != "__main__"


def _asks(code: types.CodeType, variables: Mapping[str, Any]) -> bool:
    loaded, attributes, imported = _words(code)
    if (loaded | attributes | imported) & _ANYWHERE:
        return True
    values = [variables[name] for name in loaded if name in variables]
    if any(seeds.is_unseeded(value) or seeds.is_unseeded(_owner(value)) for value in values):
        return True
    knows_time = any(value is time for value in values) or "time" in imported
    if knows_time and (attributes | (loaded & imported)) & _OF_THE_TIME:
        return True
    if attributes & _OF_A_DAY and (
        {"datetime", "date", "Timestamp"} & (loaded | imported | attributes)
        or any(
            value is dt or value in _DAYS for value in values if isinstance(value, (type, types.ModuleType))
        )
    ):
        return True
    return any(
        isinstance(value, types.BuiltinFunctionType)
        and value.__module__ == "time"
        and value.__name__ in _OF_THE_TIME
        for value in values
    )


def _owner(value: Any) -> Any:
    """What a method is bound to."""
    is_method = isinstance(value, (types.MethodType, types.BuiltinMethodType))
    return value.__self__ if is_method else None


_known: dict[types.CodeType, tuple[frozenset[str], frozenset[str], frozenset[str]]] = {}


def _words(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Names that code loads, attributes that it takes, and what it imports, the functions inside of it included."""
    found = _known.get(code)
    if found is None:
        loaded: set[str] = set()
        attributes: set[str] = set()
        imported: set[str] = set()
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF"):
                loaded.add(str(step.argval))
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                attributes.add(str(step.argval))
            elif step.opname in ("IMPORT_NAME", "IMPORT_FROM"):
                imported.add(str(step.argval))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                inner = _words(constant)
                loaded |= inner[0]
                attributes |= inner[1]
                imported |= inner[2]
        if len(_known) > 10 * _MOST_REACHED:
            _known.clear()
        found = _known[code] = frozenset(loaded), frozenset(attributes), frozenset(imported)
    return found


def names_in(code: types.CodeType) -> set[str]:
    """All names that a function may look up in its globals, those of functions inside of it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in(constant)
    return names
