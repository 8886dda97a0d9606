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
from typing import Any, NamedTuple

from vinecore.protocol.serialization import random_seeds
from vinecore.protocol.user_modules import is_own_module

_TIME_FUNCTIONS = frozenset(
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
_CURRENT_TIME_NAMES = frozenset({"now", "utcnow", "today"})
_NONDETERMINISTIC_NAMES = frozenset(
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
_DATE_TYPES = (dt.datetime, dt.date)
_TIME_PARSERS = frozenset(
    {"datetime64", "array", "asarray", "astype", "Timestamp", "to_datetime", "DatetimeIndex", "date_range", "Period", "full"}
)  # fmt: skip
"""What makes a time of the text ``now`` or ``today``."""
_PROCESS_FUNCTIONS = frozenset({"hash", "id"})
"""Functions whose result is that of one process."""
_NAME_LOOKUPS = frozenset({"getattr", "attrgetter", "methodcaller"})
_TEXT_EVALUATORS = frozenset({"eval", "exec", "compile"})
"""Functions that use what a text names, or says."""
_UNTRACKED_NAMES = frozenset(
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
_UNTRACKED_MODULES = frozenset({"polars", "lmdb", "lance", "safetensors", "duckdb", "vaex", "datasets"})
"""Libraries that map files, or read them in other languages."""
_NONDETERMINISTIC_MODULES = frozenset(
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
_MAX_REACHABLE = 2000
"""Functions behind one that are looked at."""


class CodeProperties(NamedTuple):
    """Properties of the code of a function and of the user's own functions that it refers to.

    Attributes
    ----------
    is_nondeterministic
        Whether it asks for something that differs each time.
    has_untracked_reads
        Whether it reads files in a way that cannot be seen when it runs.
    """

    is_nondeterministic: bool
    has_untracked_reads: bool


def analyze_function(function: Any) -> CodeProperties:
    """Look through a function, and those of the user's own that it refers to; untracked reads end the search."""
    is_nondeterministic = False
    for inner in _iterate_reachable_functions(function):
        code, variables = inner.__code__, inner.__globals__
        if _has_untracked_reads(code, variables):
            return CodeProperties(is_nondeterministic, True)
        is_nondeterministic = is_nondeterministic or _is_nondeterministic_code(code, variables)
    return CodeProperties(is_nondeterministic, False)


def is_nondeterministic_builtin(value: Any) -> bool:
    """Return whether a function of a package or of the standard library itself asks for the time, the process, the machine or entropy."""
    name, module = getattr(value, "__name__", None), getattr(value, "__module__", None)
    if module in _NONDETERMINISTIC_MODULES:
        return name in _NONDETERMINISTIC_NAMES or (module == "time" and name in _TIME_FUNCTIONS)
    if module == "builtins":
        return name in _PROCESS_FUNCTIONS
    return name in _CURRENT_TIME_NAMES and isinstance(getattr(value, "__self__", None), type)


def is_current_time_text(function: Any, argument: Any) -> bool:
    """Return whether a function of NumPy or pandas makes the time of a text."""
    module = getattr(function, "__module__", None)
    return (
        isinstance(argument, str)
        and argument in _CURRENT_TIME_NAMES
        and isinstance(module, str)
        and module.partition(".")[0] in ("numpy", "pandas")
    )


def _iterate_reachable_functions(function: Any) -> Iterator[types.FunctionType]:
    """Yield a function and those of the user's own that it refers to."""
    seen: set[int] = set()
    waiting: list[Any] = [function]
    while waiting and len(seen) < _MAX_REACHABLE:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        for inner in _iterate_functions(found):
            yield inner
            waiting += _find_references(inner)


def _iterate_functions(value: Any) -> Iterator[types.FunctionType]:
    """Yield the functions in a value, that of a method and those of a class among them."""
    value = getattr(value, "__wrapped__", value) if callable(value) else value
    if isinstance(value, types.FunctionType):
        yield value
    elif isinstance(value, (types.MethodType, staticmethod, classmethod)):
        yield from _iterate_functions(value.__func__)
    elif isinstance(value, property):
        yield from _iterate_functions(value.fget)
    elif isinstance(value, type):
        for part in list(vars(value).values()):
            if not isinstance(part, type):
                yield from _iterate_functions(part)
    elif type(value) in (dict, list, tuple):
        for part in value.values() if type(value) is dict else value:
            if isinstance(part, types.FunctionType):
                yield part


def _find_references(function: types.FunctionType) -> list[Any]:
    """Return what of the user's own a function refers to by names."""
    names = find_global_names(function.__code__)
    found: list[Any] = []
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if is_own_module(value):
                found += [vars(value)[inner] for inner in names if inner in vars(value)]
        elif value is not None and _may_hold_user_code(value):
            found.append(value)
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if _may_hold_user_code(value):
            found.append(value)
    return found


def _may_hold_user_code(value: Any) -> bool:
    if type(value) in (dict, list, tuple):
        return len(value) < _MAX_REACHABLE
    module = getattr(value, "__module__", None)
    return isinstance(module, str) and (module == "__main__" or not _is_installed(module))


def _is_installed(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not is_own_module(module) and name != "__main__"


def _is_nondeterministic_code(code: types.CodeType, variables: Mapping[str, Any]) -> bool:
    loaded, attributes, imported = _find_names(code)
    if (loaded | attributes | imported) & _NONDETERMINISTIC_NAMES:
        return True
    if (loaded | attributes) & _TIME_PARSERS and _find_constants(code) & _CURRENT_TIME_NAMES:
        return True
    if (_find_process_names(code) & _PROCESS_FUNCTIONS) - variables.keys():
        return True
    values = [variables[name] for name in loaded if name in variables]
    if any(
        random_seeds.is_unseeded(value) or random_seeds.is_unseeded(_find_receiver(value)) for value in values
    ):
        return True
    knows_time = any(value is time for value in values) or "time" in imported
    if knows_time and (attributes | (loaded & imported)) & _TIME_FUNCTIONS:
        return True
    if attributes & _CURRENT_TIME_NAMES and (
        {"datetime", "date", "Timestamp"} & (loaded | imported | attributes)
        or any(
            value is dt or value in _DATE_TYPES
            for value in values
            if isinstance(value, (type, types.ModuleType))
        )
    ):
        return True
    return any(
        isinstance(value, types.BuiltinFunctionType)
        and value.__module__ == "time"
        and value.__name__ in _TIME_FUNCTIONS
        for value in values
    )


def _find_receiver(value: Any) -> Any:
    """Return what a method is bound to."""
    is_method = isinstance(value, (types.MethodType, types.BuiltinMethodType))
    return value.__self__ if is_method else None


def _has_untracked_reads(code: types.CodeType, variables: Mapping[str, Any]) -> bool:
    loaded, attributes, imported = _find_names(code)
    if (loaded | attributes | imported | _find_constants(code)) & _UNTRACKED_NAMES:
        return True
    if "modules" in attributes and ("sys" in imported or any(variables.get(name) is sys for name in loaded)):
        return True
    named = {value.__name__ for name in loaded if isinstance(value := variables.get(name), types.ModuleType)}
    named |= {
        module
        for name in loaded
        if isinstance(module := getattr(variables.get(name), "__module__", None), str)
    }
    return not _UNTRACKED_MODULES.isdisjoint(name.partition(".")[0] for name in named | imported)


def _find_constants(code: types.CodeType) -> frozenset[str]:
    """Return the texts in code, names of keywords included."""
    found: set[str] = set()
    for constant in code.co_consts:
        if type(constant) is str:
            found.add(constant)
        elif type(constant) in (tuple, frozenset):
            found.update(part for part in constant if type(part) is str)
        elif isinstance(constant, types.CodeType):
            found |= _find_constants(constant)
    return frozenset(found)


def _find_process_names(code: types.CodeType) -> frozenset[str]:
    """Return the global names in code, but for methods that say how a value is hashed."""
    if code.co_name == "__hash__":
        return frozenset()
    inner = [
        _find_process_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)
    ]
    return _find_process_globals(code).union(*inner)


@functools.lru_cache(maxsize=20_000)
def _find_process_globals(code: types.CodeType) -> frozenset[str]:
    names = _PROCESS_FUNCTIONS.intersection(code.co_names)
    if not names:
        return names
    return frozenset(
        str(step.argval) for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    )


_names_by_code: dict[types.CodeType, tuple[frozenset[str], frozenset[str], frozenset[str]]] = {}


def _find_names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return the names that code loads, attributes that it takes, and what it imports, the functions inside of it included."""
    found = _names_by_code.get(code)
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
        if (loaded | attributes) & (_NAME_LOOKUPS | _TEXT_EVALUATORS):
            texts = _find_constants(code)
            said = {text for text in texts if text.isidentifier()}
            if loaded & _TEXT_EVALUATORS:
                said.update(word for text in texts for word in _WORD.findall(text))
            loaded, attributes, imported = loaded | said, attributes | said, imported | said
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                inner = _find_names(constant)
                loaded |= inner[0]
                attributes |= inner[1]
                imported |= inner[2]
        if len(_names_by_code) > 10 * _MAX_REACHABLE:
            _names_by_code.clear()
        found = _names_by_code[code] = frozenset(loaded), frozenset(attributes), frozenset(imported)
    return found


def find_global_names(code: types.CodeType) -> set[str]:
    """Return all names that a function may look up in its globals, those of functions inside of it included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= find_global_names(constant)
    return names
