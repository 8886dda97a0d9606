"""Code that makes something else each time it is run, as far as the names in it tell: it asks for the time, the process, the machine, or entropy."""

from __future__ import annotations

import datetime as dt
import dis
import functools
import re
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any

from vinecore.protocol.serialization import random_seeds
from vinecore.protocol.user_modules import is_own_module

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
        "strftime",
        "asctime",
    ]
)
_OF_A_DAY = frozenset({"now", "utcnow", "today"})
_ANYWHERE = frozenset(
    [
        "clock_gettime",
        "clock_gettime_ns",
        "getloadavg",
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
_OF_AN_ARRAY = frozenset(
    {"datetime64", "array", "asarray", "astype", "Timestamp", "to_datetime", "DatetimeIndex", "date_range", "Period", "full"}
)  # fmt: skip
"""What makes a time of the text ``now`` or ``today``."""
_OF_THE_PROCESS = frozenset({"hash", "id"})
"""Functions whose result is that of one process."""
_BY_NAME = frozenset({"getattr", "attrgetter", "methodcaller"})
_BY_TEXT = frozenset({"eval", "exec", "compile"})
"""Functions that use what a text names, or says."""
_UNSEEN = frozenset(
    {
        "__import__",
        "memory_map",
        "OSFile",
        "MemoryMappedFile",
        "input_stream",
        "open_input_file",
        "open_input_stream",
    }
)
"""Functions of pyarrow that read a file so that neither Python nor the kernel's counts tell of it, and what gives a module that is there already."""
_UNSEEN_MODULES = frozenset({"polars", "lmdb", "lance", "safetensors", "duckdb", "vaex", "datasets"})
"""Libraries that map files, or read them in other languages."""
_ASKING_MODULES = frozenset(
    {
        "time",
        "os",
        "posix",
        "uuid",
        "socket",
        "_socket",
        "platform",
        "_thread",
        "threading",
        "secrets",
        "datetime",
    }
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_MOST_REACHED = 2000
"""Functions behind one that are looked at."""


def varies(function: Any) -> bool:
    """Whether a function, or one of the user's own that it refers to, asks for something that differs each time."""
    return any(_asks(inner.__code__, inner.__globals__) for inner in _reached(function))


def reads_unseen(function: Any) -> bool:
    """Whether a function, or one of the user's own that it refers to, reads files in a way that nobody sees when it runs."""
    return any(_maps(inner.__code__, inner.__globals__) for inner in _reached(function))


def is_asking(value: Any) -> bool:
    """Whether a function of a package or of the standard library itself asks for the time, the process, the machine or entropy."""
    name, module = getattr(value, "__name__", None), getattr(value, "__module__", None)
    if module in _ASKING_MODULES:
        return name in _ANYWHERE or (module == "time" and name in _OF_THE_TIME)
    if module == "builtins":
        return name in _OF_THE_PROCESS
    return name in _OF_A_DAY and isinstance(getattr(value, "__self__", None), type)


def is_now(function: Any, argument: Any) -> bool:
    """Whether a function of NumPy or pandas makes the time of a text."""
    module = getattr(function, "__module__", None)
    return (
        isinstance(argument, str)
        and argument in _OF_A_DAY
        and isinstance(module, str)
        and module.partition(".")[0] in ("numpy", "pandas")
    )


def _reached(function: Any) -> Iterator[types.FunctionType]:
    """A function and those of the user's own that it refers to."""
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting and len(seen) < _MOST_REACHED:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        for inner in _functions_of(found):
            yield inner
            waiting += _referred(inner)


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
    if (loaded | attributes) & _OF_AN_ARRAY and _constants(code) & _OF_A_DAY:
        return True
    if (_names_loaded(code) & _OF_THE_PROCESS) - variables.keys():
        return True
    values = [variables[name] for name in loaded if name in variables]
    if any(random_seeds.is_unseeded(value) or random_seeds.is_unseeded(_owner(value)) for value in values):
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


def _maps(code: types.CodeType, variables: Mapping[str, Any]) -> bool:
    loaded, attributes, imported = _words(code)
    if (loaded | attributes | imported | _constants(code)) & _UNSEEN:
        return True
    if "modules" in attributes and ("sys" in imported or any(variables.get(name) is sys for name in loaded)):
        return True
    named = {value.__name__ for name in loaded if isinstance(value := variables.get(name), types.ModuleType)}
    named |= {
        module
        for name in loaded
        if isinstance(module := getattr(variables.get(name), "__module__", None), str)
    }
    return not _UNSEEN_MODULES.isdisjoint(name.partition(".")[0] for name in named | imported)


def _constants(code: types.CodeType) -> frozenset[str]:
    """Texts in code, names of keywords included."""
    found: set[str] = set()
    for constant in code.co_consts:
        if type(constant) is str:
            found.add(constant)
        elif type(constant) in (tuple, frozenset):
            found.update(part for part in constant if type(part) is str)
        elif isinstance(constant, types.CodeType):
            found |= _constants(constant)
    return frozenset(found)


def _names_loaded(code: types.CodeType) -> frozenset[str]:
    """Global names in code, but for methods that say how a value is hashed."""
    if code.co_name == "__hash__":
        return frozenset()
    inner = [_names_loaded(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return _globals_of(code).union(*inner)


@functools.lru_cache(maxsize=20_000)
def _globals_of(code: types.CodeType) -> frozenset[str]:
    names = _OF_THE_PROCESS.intersection(code.co_names)
    if not names:
        return names
    return frozenset(
        str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    )


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
        if (loaded | attributes) & (_BY_NAME | _BY_TEXT):
            texts = _constants(code)
            said = {text for text in texts if text.isidentifier()}
            if loaded & _BY_TEXT:
                said.update(word for text in texts for word in _WORD.findall(text))
            loaded, attributes, imported = loaded | said, attributes | said, imported | said
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
